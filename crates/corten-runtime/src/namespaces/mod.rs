//! Which namespaces a container gets (runtime-spec, config-linux "Namespaces"): new ones
//! by `clone3` flags, existing ones by descriptors opened (and checked to be of the right
//! kind) before the clone. Where a user namespace is joined, a process in between enters
//! it and clones the container's ([`relay`]).

mod mapping;
pub(crate) mod relay;
mod time;
pub(crate) mod userns;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use corten_oci::runtime_spec::{LinuxIdMapping, LinuxNamespaceType, Spec};

use crate::error::{RuntimeError, Step};
use crate::procfs::{Proc, open_namespace};
use crate::sandbox::NetNs;
use crate::sys;

/// Where a container's mounts are attached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum MountNamespace {
    /// Nowhere: the caller's namespace is inherited, and nothing may be attached there.
    #[default]
    Host,
    /// In an existing one.
    Joined,
    /// In a new one.
    New,
}

/// The namespaces of a container to be.
#[derive(Debug, Default)]
pub(crate) struct Namespaces {
    /// `CLONE_NEW*` of those made by the clone.
    clone: u64,
    /// Those joined by the child: flag and descriptor.
    joins: Vec<(i32, OwnedFd)>,
    /// The user namespace joined.
    user: Option<OwnedFd>,
    /// Joined before the clone: a process cannot change its own pid namespace.
    pid: Option<OwnedFd>,
    /// Unshared by the child once it is in its control group, which becomes the root.
    pub(crate) new_cgroup: bool,
    pub(crate) new_network: bool,
    pub(crate) new_user: bool,
    pub(crate) mount: MountNamespace,
    new_time: bool,
    /// For a new time namespace, as `timens_offsets` takes them; may be empty.
    time_offsets: String,
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
            if typ == LinuxNamespaceType::Mount {
                plan.mount = match path {
                    None => MountNamespace::New,
                    Some(_) => MountNamespace::Joined,
                };
            }
            match path {
                None => plan.add_new(typ),
                // The container's root would cover the host's.
                Some(path) if typ == LinuxNamespaceType::Mount && is_own(typ, path) => {
                    let reason = format!(
                        "{} is the mount namespace of the caller: leave mount out of the list to share it",
                        path.display()
                    );
                    return Err(RuntimeError::spec("linux.namespaces.path", reason));
                }
                Some(path) => plan.add_join(typ, open(typ, path)?),
            }
        }
        match network {
            NetNs::New => plan.add_new(LinuxNamespaceType::Network),
            NetNs::Join(fd) => plan.add_join(LinuxNamespaceType::Network, fd),
            NetNs::Host | NetNs::Spec => {}
        }
        if plan.mount == MountNamespace::Host && plan.in_user_namespace() {
            let reason = "with a user namespace a mount namespace is needed, because nothing else \
                          gives the right to mount";
            return Err(RuntimeError::spec("linux.namespaces", reason));
        }
        if let Some(linux) = linux {
            if let Some(offsets) = linux.time_offsets().as_ref().filter(|all| !all.is_empty()) {
                if !plan.new_time {
                    let reason = "needs a new time namespace in linux.namespaces";
                    return Err(RuntimeError::spec("linux.timeOffsets", reason));
                }
                plan.time_offsets = time::lines(offsets)?;
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
            LinuxNamespaceType::Time => return self.new_time = true,
            LinuxNamespaceType::Network => self.new_network = true,
            LinuxNamespaceType::User => self.new_user = true,
            _ => {}
        }
        self.clone |= u64::from(typ as u32);
    }

    fn add_join(&mut self, typ: LinuxNamespaceType, fd: OwnedFd) {
        match typ {
            LinuxNamespaceType::Pid => self.pid = Some(fd),
            LinuxNamespaceType::User => self.user = Some(fd),
            typ => self.joins.push((flag(typ), fd)),
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

    /// The user namespace that is joined, if one is.
    pub(crate) fn joined_user(&self) -> Option<BorrowedFd<'_>> {
        self.user.as_ref().map(AsFd::as_fd)
    }

    /// Whether others are in its pid namespace already.
    pub(crate) fn joins_pid(&self) -> bool {
        self.pid.is_some()
    }

    /// Whether host device nodes must be bound because none can be made.
    pub(crate) fn in_user_namespace(&self) -> bool {
        self.new_user || self.user.is_some()
    }

    /// Whether the caller has something to do between the making of the namespaces and
    /// their use.
    pub(crate) fn need_caller(&self) -> bool {
        self.new_user || !self.time_offsets.is_empty()
    }

    /// Caller: lets children be born into the pid namespace to be joined, until the
    /// guard is dropped.
    pub(crate) fn enter_pid(&self) -> Result<Option<PidGuard>, RuntimeError> {
        self.pid.as_ref().map(PidGuard::enter).transpose()
    }

    /// Process in between: enters the user namespace and all others. Those that do not
    /// belong to it can only be joined before, those of which it is the owner only after.
    pub(crate) fn enter_user(&self) -> Result<(), RuntimeError> {
        let mut joins: Vec<(i32, BorrowedFd<'_>)> = Vec::new();
        joins.extend(self.pid.iter().map(|fd| (libc::CLONE_NEWPID, fd.as_fd())));
        joins.extend(self.joins.iter().map(|(flag, fd)| (*flag, fd.as_fd())));
        joins.retain(|(flag, fd)| sys::setns(*fd, *flag).is_err());
        if let Some(user) = &self.user {
            sys::setns(user.as_fd(), libc::CLONE_NEWUSER)
                .map_err(|errno| RuntimeError::setup(Step::Namespace, "user", errno))?;
        }
        for (flag, fd) in joins {
            sys::setns(fd, flag)
                .map_err(|errno| RuntimeError::setup(Step::Namespace, name(flag), errno))?;
        }
        Ok(())
    }

    /// Child: joins the others, unless the process in between has.
    pub(crate) fn join(&self) -> Result<(), RuntimeError> {
        if self.user.is_none() {
            for (flag, fd) in &self.joins {
                sys::setns(fd.as_fd(), *flag)
                    .map_err(|errno| RuntimeError::setup(Step::Namespace, name(*flag), errno))?;
            }
        }
        if self.new_time {
            time::make()?;
        }
        Ok(())
    }

    /// Child, after the caller has done its part: enters what is entered last.
    pub(crate) fn settle(&self, proc: &Proc) -> Result<(), RuntimeError> {
        if self.new_time {
            time::enter(proc)?;
        }
        Ok(())
    }

    /// Caller: the mappings and offsets of the child's new namespaces.
    pub(crate) fn provide(&self, pid: i32) -> Result<(), RuntimeError> {
        if self.new_user {
            mapping::write(pid, &self.uids, &self.gids)?;
        }
        if !self.time_offsets.is_empty() {
            time::write(pid, &self.time_offsets)?;
        }
        Ok(())
    }
}

/// Opens the namespace at `path`, which must be of the kind.
fn open(typ: LinuxNamespaceType, path: &Path) -> Result<OwnedFd, RuntimeError> {
    let fd = open_namespace(path)
        .map_err(|errno| RuntimeError::setup(Step::Namespace, path.display().to_string(), errno))?;
    match sys::namespace_type(fd.as_fd()) {
        Ok(kind) if kind == flag(typ) => Ok(fd),
        kind => {
            let is = match kind {
                Ok(kind) => format!("of type {}", name(kind)),
                Err(_) => "no namespace".to_owned(),
            };
            let wanted = name(flag(typ));
            let reason = format!("{} is {is}, not one of type {wanted}", path.display());
            Err(RuntimeError::spec("linux.namespaces.path", reason))
        }
    }
}

/// Whether the namespace at `path` is the one of its kind that the caller is in.
pub(crate) fn is_own(typ: LinuxNamespaceType, path: &Path) -> bool {
    let file = match name(flag(typ)) {
        "mount" => "mnt",
        "network" => "net",
        name => name,
    };
    let [own, other] = [Path::new(&format!("/proc/self/ns/{file}")), path]
        .map(|path| rustix::fs::stat(path).map(|stat| (stat.st_dev, stat.st_ino)));
    own.is_ok() && own == other
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

/// `CLONE_NEW*` of a kind, whose numbers the typed form uses.
fn flag(typ: LinuxNamespaceType) -> i32 {
    i32::try_from(typ as u32).unwrap_or(0)
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

/// Whether the calling process may do to mounts and namespaces what only root may.
pub(crate) fn unprivileged() -> bool {
    !rustix::process::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_must_be_of_the_kind() {
        let open = |typ, path: &str| open(typ, Path::new(path)).map_err(|error| error.to_string());
        open(LinuxNamespaceType::Network, "/proc/self/ns/net").unwrap();
        open(LinuxNamespaceType::Time, "/proc/self/ns/time").unwrap();
        let error = open(LinuxNamespaceType::Network, "/proc/self/ns/ipc").unwrap_err();
        assert!(
            error.contains("is of type ipc, not one of type network"),
            "{error}"
        );
        let error = open(LinuxNamespaceType::Pid, "/proc/self/status").unwrap_err();
        assert!(error.contains("no namespace"), "{error}");
    }

    #[test]
    fn the_callers_mounts_are_not_joined() {
        let spec = serde_json::json!({"ociVersion": "1.3.0", "linux": {"namespaces": [
            {"type": "mount", "path": "/proc/self/ns/mnt"}]}});
        let spec: Spec = serde_json::from_value(spec).unwrap();
        let error = Namespaces::plan(&spec, NetNs::Spec)
            .unwrap_err()
            .to_string();
        assert!(error.contains("mount namespace of the caller"), "{error}");
        assert!(is_own(
            LinuxNamespaceType::Network,
            Path::new("/proc/self/ns/net")
        ));
        assert!(!is_own(
            LinuxNamespaceType::Network,
            Path::new("/proc/self/ns/uts")
        ));
        assert!(!is_own(LinuxNamespaceType::Network, Path::new("/nowhere")));
    }
}
