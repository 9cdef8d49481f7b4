//! Which namespaces a container gets (runtime-spec, config-linux "Namespaces"): new ones
//! by `clone3` flags, existing ones by descriptors opened before the clone.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use corten_oci::runtime_spec::{LinuxIdMapping, LinuxNamespaceType, Spec};
use rustix::io::Errno;

use crate::error::{RuntimeError, Step};
use crate::procfs::open_namespace;
use crate::sandbox::NetNs;
use crate::sys;

/// The namespaces of a container to be.
#[derive(Debug, Default)]
pub(crate) struct Namespaces {
    /// `CLONE_NEW*` of those made by the clone.
    clone: u64,
    /// Those joined: flag and descriptor, the user namespace first.
    joins: Vec<(i32, OwnedFd)>,
    /// Joined before the clone: a process cannot change its own pid namespace.
    pid: Option<OwnedFd>,
    /// Unshared by the child once it is in its control group, which becomes the root.
    pub(crate) new_cgroup: bool,
    pub(crate) new_mount: bool,
    pub(crate) new_network: bool,
    pub(crate) new_user: bool,
    uids: Vec<LinuxIdMapping>,
    gids: Vec<LinuxIdMapping>,
}

impl Namespaces {
    /// From the spec, with the network namespace the caller wants.
    pub(crate) fn plan(spec: &Spec, network: NetNs) -> Result<Self, RuntimeError> {
        let mut plan = Self::default();
        let linux = spec.linux().as_ref();
        let listed = linux
            .and_then(|linux| linux.namespaces().as_deref())
            .unwrap_or_default();
        for namespace in listed {
            let typ = namespace.typ();
            if typ == LinuxNamespaceType::Network && !matches!(network, NetNs::Spec) {
                continue;
            }
            let path = namespace
                .path()
                .as_deref()
                .filter(|path| !path.as_os_str().is_empty());
            match path {
                None => plan.add_new(typ),
                Some(path) => {
                    let fd = open_namespace(path).map_err(|errno| {
                        RuntimeError::setup(Step::Namespace, path.display().to_string(), errno)
                    })?;
                    plan.add_join(typ, fd);
                }
            }
        }
        match network {
            NetNs::New => plan.add_new(LinuxNamespaceType::Network),
            NetNs::Join(fd) => plan.add_join(LinuxNamespaceType::Network, fd),
            NetNs::Host | NetNs::Spec => {}
        }
        let joins_mount = plan
            .joins
            .iter()
            .any(|(flag, _)| *flag == libc::CLONE_NEWNS);
        if !plan.new_mount && !joins_mount {
            let reason = "a mount namespace is needed to have a root file system";
            return Err(RuntimeError::spec("linux.namespaces", reason));
        }
        if let Some(linux) = linux {
            if linux
                .time_offsets()
                .as_ref()
                .is_some_and(|offsets| !offsets.is_empty())
            {
                return Err(RuntimeError::spec("linux.timeOffsets", "is not supported"));
            }
            plan.uids = linux.uid_mappings().clone().unwrap_or_default();
            plan.gids = linux.gid_mappings().clone().unwrap_or_default();
        }
        if plan.new_user && (plan.uids.is_empty() || plan.gids.is_empty()) {
            let reason = "a new user namespace needs uidMappings and gidMappings";
            return Err(RuntimeError::spec("linux", reason));
        }
        Ok(plan)
    }

    fn add_new(&mut self, typ: LinuxNamespaceType) {
        match typ {
            LinuxNamespaceType::Cgroup => return self.new_cgroup = true,
            LinuxNamespaceType::Mount => self.new_mount = true,
            LinuxNamespaceType::Network => self.new_network = true,
            LinuxNamespaceType::User => self.new_user = true,
            _ => {}
        }
        self.clone |= u64::from(typ as u32);
    }

    fn add_join(&mut self, typ: LinuxNamespaceType, fd: OwnedFd) {
        match typ {
            LinuxNamespaceType::Pid => self.pid = Some(fd),
            LinuxNamespaceType::User => self.joins.insert(0, (libc::CLONE_NEWUSER, fd)),
            typ => self
                .joins
                .push((i32::try_from(typ as u32).unwrap_or(0), fd)),
        }
    }

    /// `CLONE_NEW*` for the clone.
    pub(crate) fn clone_flags(&self) -> u64 {
        self.clone
    }

    /// Mappings of a new user namespace, for checking ids against.
    pub(crate) fn mappings(&self) -> (&[LinuxIdMapping], &[LinuxIdMapping]) {
        (&self.uids, &self.gids)
    }

    /// Whether host device nodes must be bound because none can be made.
    pub(crate) fn in_user_namespace(&self) -> bool {
        self.new_user
            || self
                .joins
                .first()
                .is_some_and(|(flag, _)| *flag == libc::CLONE_NEWUSER)
    }

    /// Caller: lets children be born into the pid namespace to be joined, until the
    /// guard is dropped.
    pub(crate) fn enter_pid(&self) -> Result<Option<PidGuard>, RuntimeError> {
        self.pid.as_ref().map(PidGuard::enter).transpose()
    }

    /// Child: joins the others.
    pub(crate) fn join(&self) -> Result<(), RuntimeError> {
        for (flag, fd) in &self.joins {
            sys::setns(fd.as_fd(), *flag)
                .map_err(|errno| RuntimeError::setup(Step::Namespace, name(*flag), errno))?;
        }
        Ok(())
    }

    /// Caller: writes the mappings of the child's new user namespace.
    pub(crate) fn write_mappings(&self, pid: i32) -> Result<(), RuntimeError> {
        for (file, mappings) in [("uid_map", &self.uids), ("gid_map", &self.gids)] {
            let mut text = String::new();
            for mapping in mappings {
                let (inside, outside) = (mapping.container_id(), mapping.host_id());
                text.push_str(&format!("{inside} {outside} {}\n", mapping.size()));
            }
            let path = format!("/proc/{pid}/{file}");
            let written = fs::write(&path, &text).or_else(|error| {
                // An unprivileged caller must give up setgroups to map its own group.
                if file == "gid_map" && error.raw_os_error() == Some(libc::EPERM) {
                    fs::write(format!("/proc/{pid}/setgroups"), "deny")?;
                    return fs::write(&path, &text);
                }
                Err(error)
            });
            written.map_err(|error| {
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                RuntimeError::setup(Step::IdMap, path, errno)
            })?;
        }
        Ok(())
    }
}

/// While it lives, the caller's children are born into another pid namespace.
#[derive(Debug)]
pub(crate) struct PidGuard {
    own: OwnedFd,
}

impl PidGuard {
    /// `target` is a namespace descriptor or a pidfd of a process inside.
    pub(crate) fn enter(target: impl AsFd) -> Result<Self, RuntimeError> {
        let fail = |errno| RuntimeError::setup(Step::Namespace, "pid", errno);
        let own = open_namespace("/proc/self/ns/pid".as_ref()).map_err(fail)?;
        sys::setns(target.as_fd(), libc::CLONE_NEWPID).map_err(fail)?;
        Ok(Self { own })
    }
}

impl Drop for PidGuard {
    fn drop(&mut self) {
        // Cannot fail: the own namespace is always an ancestor of itself.
        sys::setns(self.own.as_fd(), libc::CLONE_NEWPID).ok();
    }
}

/// Namespace name of a flag.
fn name(flag: i32) -> &'static str {
    match flag {
        libc::CLONE_NEWNS => "mount",
        libc::CLONE_NEWNET => "network",
        libc::CLONE_NEWIPC => "ipc",
        libc::CLONE_NEWUTS => "uts",
        libc::CLONE_NEWUSER => "user",
        libc::CLONE_NEWPID => "pid",
        libc::CLONE_NEWCGROUP => "cgroup",
        _ => "time",
    }
}
