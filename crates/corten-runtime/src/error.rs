//! What can go wrong, as data: the step, the object (a path, a name) and the errno.
//! The texts of [`RuntimeError::Exec`] are those of runc and Docker, because callers
//! (the `docker` command line among them) read 126 and 127 out of them.

use std::fmt;

use rustix::io::Errno;

/// A failure of the runtime.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// A step of setting up, on either side of the clone, failed.
    #[error("{step}{}{target}: {}", if target.is_empty() { "" } else { " " }, Os(*errno))]
    Setup {
        /// What was being done.
        step: Step,
        /// The object: a path, a mount destination, a name; may be empty.
        target: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The program could not be executed.
    #[error("{}", exec_message(path, *reason))]
    Exec {
        /// The program as named by the spec's `args[0]`.
        path: String,
        /// Why.
        reason: ExecErrno,
    },
    /// The spec asks for something impossible or unsafe.
    #[error("invalid spec: {field}: {reason}")]
    Spec {
        /// Which field, in the document's own notation.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A working directory that is not inside the container's root (CVE-2024-21626).
    #[error("current working directory {path:?} is outside of the container's root")]
    CwdOutsideRoot {
        /// The spec's `cwd`.
        path: String,
    },
    /// A control group operation failed.
    #[error("cgroup {path}: {action}: {}", Os(*errno))]
    Cgroup {
        /// The group or file.
        path: String,
        /// What was being done.
        action: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The caller may not make groups there, as without privileges.
    #[error("cgroup {path}: create: {}", Os(*errno))]
    CgroupDenied {
        /// The group.
        path: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The group exists already: another container of this id lives or has not been
    /// cleaned up.
    #[error("cgroup {path} already exists")]
    CgroupExists {
        /// The group.
        path: String,
    },
    /// Limits are asked for below a v2 group that has processes itself.
    #[error(
        "cgroup {path} has processes of its own, so no limit can be set for a container below it \
         (cgroup v2): choose another cgroupsPath, or move them into a group of their own"
    )]
    InternalProcesses {
        /// The group above the container's.
        path: String,
    },
    /// systemd did not do what it was asked for.
    #[error("systemd unit {unit}: {source}")]
    Systemd {
        /// The scope.
        unit: String,
        /// Why.
        source: crate::cgroup::SystemdError,
    },
    /// A resource is asked for whose controller this host does not offer.
    #[error("cgroup controller {controller} is not available on this host")]
    NoController {
        /// The controller.
        controller: String,
    },
    /// The process vanished before it was ready.
    #[error("container process ended during {step}: {status}")]
    Died {
        /// How far the caller was.
        step: Step,
        /// How it ended.
        status: crate::ExitStatus,
    },
    /// What the caller did meanwhile has failed, so the process was ended.
    #[error("container process given up")]
    GivenUp,
    /// A program of the host that is needed failed (newuidmap, newgidmap).
    #[error("{program}: {reason}")]
    Helper {
        /// Its name.
        program: &'static str,
        /// What happened.
        reason: String,
    },
    /// A hook failed (runtime-spec, POSIX-platform hooks).
    #[error("{kind} hook {path}: {reason}")]
    Hook {
        /// `prestart`, `createRuntime`, ….
        kind: &'static str,
        /// The hook's program.
        path: String,
        /// What happened.
        reason: String,
    },
}

/// The kernel's answer behind an error of the standard library.
pub(crate) fn os(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// The kernel's answer behind an error of the standard library in our words; else its own.
pub(crate) fn io_text(error: &std::io::Error) -> String {
    match Errno::from_io_error(error) {
        Some(errno) => Os(errno).to_string(),
        None => error.to_string(),
    }
}

/// Why an `execve` (or the look-up before it) failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecErrno {
    /// A bare name that no directory of `$PATH` holds.
    NotInPath,
    /// The kernel's answer for a named file.
    Errno(Errno),
}

impl RuntimeError {
    /// The exit code Docker and the shell give this failure: 127 for a missing program,
    /// 126 for one that cannot be executed, 125 for everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Exec {
                reason: ExecErrno::NotInPath | ExecErrno::Errno(Errno::NOENT),
                ..
            } => 127,
            Self::Exec { .. } => 126,
            _ => 125,
        }
    }

    /// The errno at the bottom of it, if there is one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Setup { errno, .. }
            | Self::Cgroup { errno, .. }
            | Self::CgroupDenied { errno, .. } => Some(*errno),
            Self::Exec {
                reason: ExecErrno::Errno(errno),
                ..
            } => Some(*errno),
            _ => None,
        }
    }

    pub(crate) fn setup(step: Step, target: impl Into<String>, errno: Errno) -> Self {
        Self::Setup {
            step,
            target: target.into(),
            errno,
        }
    }

    pub(crate) fn spec(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Spec {
            field: field.into(),
            reason: reason.into(),
        }
    }
}

/// runc's words: `exec: "foo": executable file not found in $PATH`,
/// `exec: "/x": stat /x: no such file or directory`, `exec: "/x": permission denied`.
fn exec_message(path: &str, reason: ExecErrno) -> String {
    match reason {
        ExecErrno::NotInPath => format!("exec: {path:?}: executable file not found in $PATH"),
        ExecErrno::Errno(Errno::NOENT) => {
            format!("exec: {path:?}: stat {path}: no such file or directory")
        }
        ExecErrno::Errno(errno) => format!("exec: {path:?}: {}", Os(errno)),
    }
}

/// An errno in the C library's words, in lower case as Go prints them.
pub(crate) struct Os(pub(crate) Errno);

impl fmt::Display for Os {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = std::io::Error::from_raw_os_error(self.0.raw_os_error()).to_string();
        let text = text.split(" (os error").next().unwrap_or(&text);
        let mut chars = text.chars();
        match chars.next() {
            Some(first) => write!(f, "{}{}", first.to_ascii_lowercase(), chars.as_str()),
            None => write!(f, "errno {}", self.0.raw_os_error()),
        }
    }
}

macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)+) => {
        /// A step of setting a process up. Travels as one byte from the child.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Step { $($(#[$doc])* $name,)+ }

        impl Step {
            const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The step a byte stands for; an unknown one is [`Step::Prepare`].
            pub(crate) fn from_byte(byte: u8) -> Self {
                Self::ALL.get(usize::from(byte)).copied().unwrap_or(Self::Prepare)
            }
        }

        impl fmt::Display for Step {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$name => $text,)+ })
            }
        }
    };
}

steps! {
    /// Before the clone.
    Prepare = "prepare",
    /// `clone3`.
    Clone = "clone process",
    /// Talking to the child.
    Sync = "talk to the container process",
    /// Writing `uid_map` and `gid_map`.
    IdMap = "write id mappings",
    /// Joining a namespace.
    Namespace = "join namespace",
    /// Joining a control group.
    CgroupJoin = "join cgroup",
    /// Attaching the root file system.
    Rootfs = "attach root file system",
    /// Changing the root.
    PivotRoot = "pivot root",
    /// Making a mount.
    Mount = "mount",
    /// Making a device node.
    Device = "make device",
    /// Masking a path.
    Mask = "mask path",
    /// Making a path read-only.
    Readonly = "make read-only",
    /// Setting the host or domain name.
    Hostname = "set hostname",
    /// Writing a sysctl.
    Sysctl = "write sysctl",
    /// Setting a resource limit.
    Rlimit = "set resource limit",
    /// Writing a file of procfs.
    Procfs = "write procfs",
    /// Opening the terminal.
    Console = "open console",
    /// Bringing the loopback link up.
    Loopback = "bring loopback up",
    /// Changing user and groups.
    User = "set user",
    /// Setting capabilities.
    Capabilities = "set capabilities",
    /// Setting an LSM label.
    Label = "set security label",
    /// Setting no_new_privs.
    NoNewPrivs = "set no_new_privs",
    /// Loading the seccomp filter.
    Seccomp = "load seccomp filter",
    /// Handing a seccomp notification descriptor to its listener.
    Listener = "hand the seccomp descriptor to the listener",
    /// Entering the working directory.
    Cwd = "chdir to cwd",
    /// Standard streams.
    Stdio = "set up standard streams",
    /// Closing descriptors.
    CloseFds = "close descriptors",
    /// Scheduling attributes.
    Scheduler = "set scheduling",
    /// Session keyring.
    Keyring = "join session keyring",
    /// Waiting for a process.
    Wait = "wait for process",
    /// Signalling a process.
    Kill = "signal process",
    /// Moving a network device.
    NetDevice = "move network device",
    /// A group of the resctrl file system.
    Resctrl = "set up resctrl group",
    /// Loading or attaching the device filter.
    DeviceFilter = "attach device filter",
}
