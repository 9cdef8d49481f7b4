//! What CRIU is told about a container: `CriuOpts` of rpc.proto, by its field numbers.

use std::fs::{self, File};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use corten_oci::runtime_spec::{LinuxNamespaceType, Spec};
use rustix::io::{FdFlags, fcntl_setfd};

use super::CriuArgs;
use super::wire::Message;
use crate::cgroup::Cgroup;
use crate::cli::CliError;
use crate::mounts::is_bind;

const IMAGES_DIR_FD: u32 = 1;
const PID: u32 = 2;
const LEAVE_RUNNING: u32 = 3;
const EXT_UNIX_SK: u32 = 4;
const TCP_ESTABLISHED: u32 = 5;
const EVASIVE_DEVICES: u32 = 6;
const SHELL_JOB: u32 = 7;
const FILE_LOCKS: u32 = 8;
const LOG_LEVEL: u32 = 9;
const LOG_FILE: u32 = 10;
const PAGE_SERVER: u32 = 11;
const NOTIFY_SCRIPTS: u32 = 12;
const ROOT: u32 = 13;
const PARENT_IMG: u32 = 14;
const TRACK_MEM: u32 = 15;
const AUTO_DEDUP: u32 = 16;
const WORK_DIR_FD: u32 = 17;
const LINK_REMAP: u32 = 18;
const EXT_MNT: u32 = 23;
const MANAGE_CGROUPS: u32 = 24;
const CG_ROOT: u32 = 25;
const RST_SIBLING: u32 = 26;
const INHERIT_FD: u32 = 27;
const MANAGE_CGROUPS_MODE: u32 = 34;
const EXTERNAL: u32 = 37;
const EMPTY_NS: u32 = 38;
const JOIN_NS: u32 = 39;
const FREEZE_CGROUP: u32 = 44;
const TCP_SKIP_IN_FLIGHT: u32 = 46;
const LAZY_PAGES: u32 = 48;
const STATUS_FD: u32 = 49;
const ORPHAN_PTS_MASTER: u32 = 50;
const CONFIG_FILE: u32 = 51;
const LSM_PROFILE: u32 = 53;
const LSM_MOUNT_CONTEXT: u32 = 63;

/// `CriuCgMode`: what CRIU does by itself.
const DEFAULT_MODE: u64 = 6;
/// Log everything up to debug messages, as runc does: a failure must be explainable.
const VERBOSE: u64 = 4;
/// runc's, so that a host's settings for it hold here, too.
const CONFIG: &str = "/etc/criu/runc.conf";

/// A request's open directories, which must live until it is answered.
#[derive(Debug)]
struct Directories {
    images: File,
    work: Option<File>,
}

impl Directories {
    fn open(args: &CriuArgs) -> Result<Self, CliError> {
        let open = |path: &Path| {
            File::open(path).map_err(|e| CliError::io(format_args!("open {}", path.display()), e))
        };
        Ok(Self {
            images: open(&args.image_path)?,
            work: args.work_path.as_deref().map(open).transpose()?,
        })
    }
}

/// What both requests have.
fn common(args: &CriuArgs, dirs: &Directories, spec: &Spec, log: &str, root: &Path) -> Message {
    let fd = |file: &File| u64::from(file.as_raw_fd().unsigned_abs());
    let mut options = Message::default();
    options
        .number(IMAGES_DIR_FD, fd(&dirs.images))
        .number(LOG_LEVEL, VERBOSE)
        .text(LOG_FILE, log)
        .text(ROOT, &root.to_string_lossy())
        .flag(NOTIFY_SCRIPTS, true)
        .flag(MANAGE_CGROUPS, true)
        .number(
            MANAGE_CGROUPS_MODE,
            args.manage_cgroups_mode.unwrap_or(DEFAULT_MODE),
        )
        .flag(SHELL_JOB, args.shell_job)
        .flag(EXT_UNIX_SK, args.ext_unix_sk)
        .flag(TCP_ESTABLISHED, args.tcp_established)
        .flag(FILE_LOCKS, args.file_locks)
        .flag(AUTO_DEDUP, args.auto_dedup)
        .flag(LAZY_PAGES, args.lazy_pages)
        .flag(ORPHAN_PTS_MASTER, true)
        // Networks are the engine's, not ours: they are never saved.
        .number(EMPTY_NS, u64::from(libc::CLONE_NEWNET.unsigned_abs()));
    if let Some(work) = &dirs.work {
        options.number(WORK_DIR_FD, fd(work));
    }
    let annotations = spec.annotations().as_ref();
    match annotations.and_then(|all| all.get("org.criu.config")) {
        Some(path) if path.is_empty() => {}
        Some(path) => {
            options.text(CONFIG_FILE, path);
        }
        None => {
            options.text(CONFIG_FILE, CONFIG);
        }
    }
    options
}

fn external_mount(options: &mut Message, key: &str, value: &str) {
    let mut mount = Message::default();
    mount.text(1, key).text(2, value);
    options.message(EXT_MNT, &mount);
}

/// Namespaces of the configuration that exist already: kind and path.
fn existing_namespaces(spec: &Spec) -> Vec<(LinuxNamespaceType, String)> {
    let linux = spec.linux().as_ref();
    let listed = linux.and_then(|linux| linux.namespaces().as_deref());
    let listed = listed.unwrap_or_default().iter();
    listed
        .filter_map(|namespace| {
            let path = namespace.path().as_deref()?.to_string_lossy().into_owned();
            (!path.is_empty()).then_some((namespace.typ(), path))
        })
        .collect()
}

/// runc's and CRIU's names of those that are neither saved nor made, but handed over.
fn external_key(typ: LinuxNamespaceType) -> Option<(&'static str, &'static str)> {
    match typ {
        LinuxNamespaceType::Network => Some(("net", "extRootNetNS")),
        LinuxNamespaceType::Pid => Some(("pid", "extRootPidNS")),
        _ => None,
    }
}

/// Targets of the standard streams: `pipe:[123]` and paths.
pub(crate) fn external_descriptors(pid: i32) -> Vec<String> {
    let target = |fd| fs::read_link(format!("/proc/{pid}/fd/{fd}"));
    (0..3)
        .map(|fd| target(fd).map_or_else(|_| String::new(), |t| t.display().to_string()))
        .collect()
}

/// To save a container.
#[derive(Debug)]
pub(crate) struct Dump<'a> {
    pub(crate) args: &'a CriuArgs,
    pub(crate) spec: &'a Spec,
    pub(crate) root: &'a Path,
    pub(crate) pid: i32,
    pub(crate) cgroup: &'a Cgroup,
    pub(crate) leave_running: bool,
    pub(crate) tcp_skip_in_flight: bool,
    pub(crate) link_remap: bool,
    pub(crate) status_fd: Option<u32>,
    pub(crate) page_server: Option<(String, u16)>,
    pub(crate) parent: Option<&'a str>,
    pub(crate) memory_only: bool,
}

impl Dump<'_> {
    /// The options, and what they refer to.
    pub(crate) fn options(&self) -> Result<(Message, impl Sized + use<>), CliError> {
        let dirs = Directories::open(self.args)?;
        let mut options = common(self.args, &dirs, self.spec, "dump.log", self.root);
        options
            .number(PID, u64::from(self.pid.unsigned_abs()))
            .flag(LEAVE_RUNNING, self.leave_running)
            .flag(TCP_SKIP_IN_FLIGHT, self.tcp_skip_in_flight)
            .flag(LINK_REMAP, self.link_remap);
        if let Some(fd) = self.status_fd {
            options.number(STATUS_FD, fd.into());
        }
        if let Some((address, port)) = &self.page_server {
            let mut server = Message::default();
            server.text(1, address).number(2, (*port).into());
            options.message(PAGE_SERVER, &server);
        }
        if let Some(parent) = self.parent {
            options.text(PARENT_IMG, parent).flag(TRACK_MEM, true);
        } else {
            options.flag(TRACK_MEM, self.memory_only);
        }
        for (typ, path) in existing_namespaces(self.spec) {
            if let Some((name, key)) = external_key(typ) {
                let inode = fs::metadata(&path)
                    .map_err(|error| CliError::io(format_args!("look at {}", &path), error))?;
                options.text(EXTERNAL, &format!("{name}[{}]:{key}", inode.ino()));
            }
        }
        let mut freezers = self.cgroup.legacy_views();
        let legacy = freezers.find(|view| view.options.iter().any(|name| name == "freezer"));
        if let Some(dir) = legacy.map(|view| view.dir).or(self.cgroup.unified_dir()) {
            options.text(FREEZE_CGROUP, &dir.to_string_lossy());
        }
        if !self.memory_only {
            self.mounts(&mut options);
        }
        Ok((options, dirs))
    }

    /// Mounts whose source is the host's are only remembered by their place.
    fn mounts(&self, options: &mut Message) {
        for mount in self.spec.mounts().iter().flatten().filter(|m| is_bind(m)) {
            let place = mount.destination().to_string_lossy();
            external_mount(options, &place, &place);
        }
        let linux = self.spec.linux().as_ref();
        let masked = linux.and_then(|linux| linux.masked_paths().as_deref());
        for path in masked.unwrap_or_default() {
            let inside = format!("/proc/{}/root/{path}", self.pid);
            if fs::metadata(inside).is_ok_and(|data| !data.is_dir()) {
                external_mount(options, path, "/dev/null");
            }
        }
        let devices = linux.and_then(|linux| linux.devices().as_deref());
        for device in devices.unwrap_or_default() {
            let path = device.path().to_string_lossy();
            external_mount(options, &path, &path);
        }
    }
}

/// To restore one.
#[derive(Debug)]
pub(crate) struct Restore<'a> {
    pub(crate) args: &'a CriuArgs,
    pub(crate) spec: &'a Spec,
    /// Where the root file system is mounted.
    pub(crate) root: &'a Path,
    pub(crate) lsm_profile: Option<&'a str>,
    pub(crate) lsm_mount_context: Option<&'a str>,
    /// Targets of the standard streams when it was saved.
    pub(crate) descriptors: &'a [String],
}

impl Restore<'_> {
    /// The options for the CRIU process `pid`, and what they refer to. Its control groups
    /// are those of the container, because what it restores starts in them.
    pub(crate) fn options(
        &self,
        pid: i32,
        namespaces: &[(&'static str, OwnedFd)],
    ) -> Result<(Message, impl Sized + use<>), CliError> {
        let dirs = Directories::open(self.args)?;
        let mut options = common(self.args, &dirs, self.spec, "restore.log", self.root);
        options.flag(EVASIVE_DEVICES, true).flag(RST_SIBLING, true);
        if let Some(profile) = self.lsm_profile {
            options.text(LSM_PROFILE, profile);
        }
        if let Some(context) = self.lsm_mount_context {
            options.text(LSM_MOUNT_CONTEXT, context);
        }
        let mut inherit = |key: &str, fd: u64| {
            let mut message = Message::default();
            message.text(1, key).number(2, fd);
            options.message(INHERIT_FD, &message);
        };
        for (key, fd) in namespaces {
            inherit(key, u64::from(fd.as_raw_fd().unsigned_abs()));
        }
        for (fd, target) in (0..).zip(self.descriptors) {
            if target.starts_with("pipe:") {
                inherit(target, fd);
            }
        }
        for (typ, path) in existing_namespaces(self.spec) {
            if external_key(typ).is_none() {
                let mut join = Message::default();
                let name = match typ {
                    LinuxNamespaceType::Mount => "mnt".to_owned(),
                    typ => typ.to_string(),
                };
                join.text(1, &name).text(2, &path);
                options.message(JOIN_NS, &join);
            }
        }
        for mount in self.spec.mounts().iter().flatten().filter(|m| is_bind(m)) {
            let source = mount.source().as_deref().unwrap_or(Path::new(""));
            let place = mount.destination().to_string_lossy();
            external_mount(&mut options, &place, &source.to_string_lossy());
        }
        external_mount(&mut options, "/dev/null", "/dev/null");
        let linux = self.spec.linux().as_ref();
        let devices = linux.and_then(|linux| linux.devices().as_deref());
        for device in devices.unwrap_or_default() {
            let path = device.path().to_string_lossy();
            external_mount(&mut options, &path, &path);
        }
        let groups = format!("/proc/{pid}/cgroup");
        let text = fs::read_to_string(&groups)
            .map_err(|error| CliError::io(format_args!("read {}", &groups), error))?;
        for line in text.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            if let (Some(controllers), Some(path)) = (parts.next(), parts.next()) {
                let mut group = Message::default();
                group.text(1, controllers).text(2, path);
                options.message(CG_ROOT, &group);
            }
        }
        Ok((options, dirs))
    }

    /// The namespaces to hand over, by CRIU's keys.
    pub(crate) fn namespaces(&self) -> Result<Vec<(&'static str, OwnedFd)>, CliError> {
        let existing = existing_namespaces(self.spec).into_iter();
        existing
            .filter_map(|(typ, path)| Some((external_key(typ)?.1, path)))
            .map(|(key, path)| {
                let file = File::open(&path)
                    .map_err(|error| CliError::io(format_args!("open {}", &path), error))?;
                // CRIU gets it under the same number.
                fcntl_setfd(&file, FdFlags::empty())
                    .map_err(|errno| CliError::io(format_args!("open {}", &path), errno.into()))?;
                Ok((key, file.into()))
            })
            .collect()
    }
}
