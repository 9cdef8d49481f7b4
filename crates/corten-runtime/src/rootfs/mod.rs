//! The container's root file system, as the child sees it come about: attach it in the
//! new mount namespace, mount everything below it, make the devices, change the root,
//! protect what must be protected. Everything goes through descriptors.
//!
//! A container that shares its creator's mount namespace gets the same root without any of
//! it being attached there: the mounts are put together on the detached tree, which is then
//! entered with `chroot`. When the last descriptor of the tree is closed (by `execve`), the
//! tree lives on for those who have it as their root, as after a lazy unmount.

mod console;
mod devices;
mod no_pivot;
mod protect;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use corten_oci::runtime_spec::Spec;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};

use crate::error::{RuntimeError, Step};
use crate::hook_guard::HookGuard;
use crate::mounts::{Attached, Listing, MountPlan, Tree, attach_all, attach_to, propagation_flag};
use crate::namespaces::{MountNamespace, Namespaces};
use crate::root::RootFd;
use crate::sandbox::{Rootfs, TerminalSize};
use crate::sys::{self, MountAttr};
pub(crate) use console::{Console, open_console};
use devices::DevicePlan;
use protect::ProtectPlan;

/// Everything about the root file system, prepared by the caller.
#[derive(Debug)]
pub(crate) struct RootfsPlan {
    tree: Tree,
    mounts: Vec<MountPlan>,
    devices: DevicePlan,
    protect: ProtectPlan,
    readonly: bool,
    /// What the root mount's propagation is in the end.
    propagation: Option<(u64, bool)>,
    /// `chroot` instead of `pivot_root`.
    no_pivot: bool,
    /// Where hooks look for it.
    seen_at: Option<PathBuf>,
    namespace: MountNamespace,
    /// Process working directory, created when missing.
    cwd: String,
}

/// How the root is entered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Way<'a> {
    /// By `chroot` instead of `pivot_root`.
    pub(crate) no_pivot: bool,
    /// Hooks look at it before that.
    pub(crate) looked_at: bool,
    /// The bundle, in which a root without a path is shown to them; empty: it is not.
    pub(crate) place: &'a Path,
}

impl RootfsPlan {
    /// Opens the root as a detached tree, and plans the rest.
    pub(crate) fn new(
        spec: &Spec,
        rootfs: Rootfs,
        mounts: Vec<MountPlan>,
        namespaces: &Namespaces,
        way: Way<'_>,
    ) -> Result<Self, RuntimeError> {
        let linux = spec.linux().as_ref();
        let propagation = linux.and_then(|linux| linux.rootfs_propagation().as_deref());
        let propagation = propagation.filter(|name| !name.is_empty());
        let propagation = propagation.map(root_propagation).transpose()?;
        // A copy of a shared mount would pass what is mounted below on to the host; what
        // the host mounts later appears inside only if that is asked for.
        let first = match propagation {
            Some((libc::MS_SLAVE, _)) => libc::MS_SLAVE,
            _ => libc::MS_PRIVATE,
        };
        // In another container's mount namespace the host's path means something else.
        let attachable = way.looked_at && namespaces.mount == MountNamespace::New;
        let seen_at: Option<PathBuf>;
        let tree = match rootfs {
            Rootfs::Detached(tree) => {
                let attr = MountAttr {
                    propagation: first,
                    ..MountAttr::default()
                };
                sys::mount_setattr(tree.as_fd(), true, attr)
                    .map_err(|errno| RuntimeError::setup(Step::Rootfs, "", errno))?;
                let shown = attachable && !way.place.as_os_str().is_empty();
                seen_at = shown.then(|| HookGuard::root(way.place));
                Tree::Open(tree)
            }
            Rootfs::Path(path) => {
                let fail = |errno| match errno {
                    // It would let whoever can replace it choose another root.
                    Errno::LOOP => {
                        let reason = format!("{} is a symbolic link", path.display());
                        RuntimeError::spec("root.path", reason)
                    }
                    errno => RuntimeError::setup(Step::Rootfs, path.display().to_string(), errno),
                };
                let tree = Tree::root(&path, first, namespaces).map_err(fail)?;
                // Without a slash at the end, which would follow a link.
                seen_at = attachable.then(|| path.components().collect());
                tree
            }
        };
        let cwd = spec
            .process()
            .as_ref()
            .map(|process| process.cwd().to_string_lossy());
        Ok(Self {
            tree,
            devices: DevicePlan::new(spec, namespaces)?,
            mounts,
            protect: ProtectPlan::new(spec, namespaces)?,
            readonly: spec
                .root()
                .as_ref()
                .and_then(|root| root.readonly())
                .unwrap_or(false),
            propagation,
            no_pivot: way.no_pivot,
            seen_at,
            namespace: namespaces.mount,
            cwd: cwd.map_or("/".to_owned(), |cwd| cwd.into_owned()),
        })
    }

    /// Child: the directory hooks know as the container's root, in the child's mount
    /// namespace.
    pub(crate) fn place(&self) -> Result<Option<OwnedFd>, RuntimeError> {
        let Some(path) = &self.seen_at else {
            return Ok(None);
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| {
            RuntimeError::setup(Step::Rootfs, path.display().to_string(), errno)
        })?;
        Ok(Some(place))
    }

    /// Child: attaches the root, and everything below it, over the old root, or at its
    /// `place` if hooks are to see it.
    pub(crate) fn build(&self, place: Option<OwnedFd>) -> Result<(RootFd, Attached), RuntimeError> {
        if self.namespace == MountNamespace::Host {
            return self.build_detached();
        }
        let fail = |errno| RuntimeError::setup(Step::Rootfs, "", errno);
        // Nothing that happens from here on may reach the host.
        let host =
            rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(fail)?;
        let private = MountAttr {
            propagation: libc::MS_PRIVATE,
            ..MountAttr::default()
        };
        sys::mount_setattr(host.as_fd(), true, private).map_err(fail)?;
        let root = self.tree.open_owned(fail)?;
        match place {
            Some(place) => attach_to(root.as_fd(), place.as_fd()),
            // No directory of the host is needed, and `pivot_root` only asks that the new
            // root be reachable from the old one.
            None => over_the_old(root.as_fd()),
        }
        .map_err(fail)?;
        self.fill(root)
    }

    /// Child: the same on a tree that stays detached.
    fn build_detached(&self) -> Result<(RootFd, Attached), RuntimeError> {
        let root = self
            .tree
            .open_owned(|errno| RuntimeError::setup(Step::Rootfs, "", errno))?;
        self.fill(root).map_err(|error| match error {
            RuntimeError::Setup {
                step,
                target,
                errno: Errno::INVAL,
            } => RuntimeError::spec(
                "linux.namespaces",
                format!(
                    "without a mount namespace, {step} {target} needs a kernel that attaches \
                     mounts to detached ones (Linux 6.15)"
                ),
            ),
            error => error,
        })
    }

    fn fill(&self, root: OwnedFd) -> Result<(RootFd, Attached), RuntimeError> {
        let root = RootFd::new(root);
        let attached = {
            // With the old root all that was attached to it goes away. Hooks see it before,
            // and must find nothing of the host's covered.
            let old_root_goes = self.namespace == MountNamespace::New && !self.no_pivot;
            let listing = Listing::new(old_root_goes && self.seen_at.is_none());
            attach_all(&root, &self.mounts, listing, self.namespace)?
        };
        self.devices.make(&root)?;
        Ok((root, attached))
    }

    /// Child: makes the new root the root, and lets go of the old one.
    pub(crate) fn enter(&self, root: &RootFd) -> Result<(), RuntimeError> {
        let fail = |errno| RuntimeError::setup(Step::PivotRoot, "", errno);
        rustix::process::fchdir(root.as_fd()).map_err(fail)?;
        if self.namespace == MountNamespace::Host {
            rustix::process::chroot(".").map_err(fail)?;
        } else if self.no_pivot {
            if self.seen_at.is_some() {
                over_the_old(root.as_fd()).map_err(fail)?;
            }
            no_pivot::enter(root.as_fd()).map_err(fail)?;
        } else {
            // pivot_root(2), "pivot_root(".", ".")": the old root ends up stacked on the
            // new one, and `.` leads to it.
            rustix::process::pivot_root(".", ".").map_err(fail)?;
            unmount(".", UnmountFlags::DETACH).map_err(fail)?;
        }
        rustix::process::chdir("/").map_err(fail)
    }

    /// Child: masks and write-protects; creates the working directory before the root
    /// becomes read-only.
    pub(crate) fn finish(&self, root: &RootFd, attached: &Attached) -> Result<(), RuntimeError> {
        root.ensure(&self.cwd, crate::root::Node::Directory)
            .map_err(|errno| RuntimeError::setup(Step::Cwd, self.cwd.clone(), errno))
            .or_else(|error| match error.errno() {
                // A read-only file system, or a magic link: the chdir will tell.
                Some(Errno::ROFS | Errno::LOOP | Errno::ACCESS | Errno::NOTDIR) => {
                    rustix::io::fcntl_dupfd_cloexec(root.as_fd(), 3).map_err(|_| error)
                }
                _ => Err(error),
            })?;
        self.protect.apply(root, &attached.kernel)?;
        attached.write_protect()?;
        if self.readonly {
            let attr = MountAttr {
                set: crate::mounts::RDONLY,
                ..MountAttr::default()
            };
            sys::mount_setattr(root.as_fd(), false, attr)
                .map_err(|errno| RuntimeError::setup(Step::Readonly, "/", errno))?;
        }
        if let Some((propagation, recursive)) = self.propagation {
            let attr = MountAttr {
                propagation,
                ..MountAttr::default()
            };
            sys::mount_setattr(root.as_fd(), recursive, attr)
                .map_err(|errno| RuntimeError::setup(Step::Rootfs, "propagation", errno))?;
        }
        Ok(())
    }

    /// Child, with its streams in place: those that are the host's `/dev/null` become the
    /// container's own. One that is of no mount inside cannot be found again by who restores
    /// a checkpoint of the container.
    pub(crate) fn reopen_null(&self) -> Result<(), RuntimeError> {
        let is_null = |fd: BorrowedFd<'_>| is_char_device(fd, 1, 3);
        let streams = [
            rustix::stdio::stdin(),
            rustix::stdio::stdout(),
            rustix::stdio::stderr(),
        ];
        if !self.devices.are_ours() || !streams.iter().any(|fd| is_null(*fd)) {
            return Ok(());
        }
        let fail = |errno| RuntimeError::setup(Step::Stdio, "/dev/null", errno);
        let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let root = RootFd::new(root.map_err(fail)?);
        let own = match root.open_with("/dev/null", OFlags::RDWR, ResolveFlags::NO_SYMLINKS) {
            Ok(own) if is_null(own.as_fd()) => own,
            // The configuration has another device there, or rules that forbid it: what the
            // caller has given still works.
            _ => return Ok(()),
        };
        for (number, _) in (0..).zip(streams).filter(|(_, fd)| is_null(*fd)) {
            sys::dup_to(own.as_fd(), number).map_err(fail)?;
        }
        Ok(())
    }

    /// Child: the terminal, also as `/dev/console`.
    pub(crate) fn console(
        &self,
        root: &RootFd,
        size: Option<TerminalSize>,
    ) -> Result<Console, RuntimeError> {
        let console = open_console(root, size)?;
        console.bind(root)?;
        Ok(console)
    }
}

/// Attaches the root, or moves it, over the old one.
fn over_the_old(root: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(root, "", CWD, "/", flags)
}

/// `shared`, `rslave` etc.: the flag, and whether for all mounts of the container.
fn root_propagation(name: &str) -> Result<(u64, bool), RuntimeError> {
    let (plain, recursive) = match name.strip_prefix('r') {
        Some(plain) => (plain, true),
        None => (name, false),
    };
    let flag = propagation_flag(plain).ok_or_else(|| {
        RuntimeError::spec("linux.rootfsPropagation", format!("{name:?} is not known"))
    })?;
    Ok((flag, recursive))
}

/// Whether a descriptor is the character device `major:minor`.
fn is_char_device(fd: BorrowedFd<'_>, major: u32, minor: u32) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| {
        rustix::fs::FileType::from_raw_mode(stat.st_mode).is_char_device()
            && stat.st_rdev == rustix::fs::makedev(major, minor)
    })
}
