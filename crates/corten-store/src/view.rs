//! Mounts put together where nobody else sees them: in a mount namespace that no process is in.
//!
//! A thread makes the namespace, attaches everything in it and ends; a descriptor keeps the
//! namespace. Paths are then resolved from a descriptor of the root, by any thread, and lead
//! through what is mounted inside. When the view is dropped, or its process dies, it is gone.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_change, move_mount, open_tree,
};

use crate::rooted::{RootFd, normal};
use crate::sys::{self, Restriction};

/// A tree of mounts, attached nowhere, and where in the root it belongs.
#[derive(Debug)]
pub struct Part {
    /// The mounts.
    pub mount: OwnedFd,
    /// Absolute path in the root.
    pub place: PathBuf,
}

/// A root file system with what is mounted in it, for whoever holds this only.
#[derive(Debug)]
pub struct View {
    root: RootFd,
    /// As long as this is open everything stays mounted.
    _namespace: OwnedFd,
}

/// What may be done with the root itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// What its mount lets.
    AsMounted,
    /// It is read, once places for the parts are made.
    ReadOnly,
}

/// What to do where the root has no place for a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absent {
    /// Make it, as a start of a container does.
    Make,
    /// Leave the part out.
    Skip,
    /// Give up: [`View::assemble`] answers `None`.
    GiveUp,
}

impl View {
    /// What paths are resolved in.
    #[must_use]
    pub fn root(&self) -> &RootFd {
        &self.root
    }

    /// Puts a detached mount and its parts together, in this order. `None`: see
    /// [`Absent::GiveUp`].
    ///
    /// # Errors
    /// What the kernel refuses. Needs the right to mount.
    pub fn assemble(
        root: OwnedFd,
        parts: &[Part],
        absent: Absent,
        access: Access,
    ) -> io::Result<Option<Self>> {
        let root = RootFd::from(root);
        let namespace = in_own_namespace(|| {
            // A copy of a shared mount is a peer of it: what is mounted below would be passed on
            // to the host, and stay there.
            sys::make_private(root.as_fd())?;
            for part in parts {
                sys::make_private(part.mount.as_fd())?;
            }
            // Who looks at files never means to open a device.
            sys::restrict(root.as_fd(), true, Restriction::NoDevices)?;
            for part in parts {
                sys::restrict(part.mount.as_fd(), true, Restriction::NoDevices)?;
            }
            // Anywhere will do.
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            move_mount(root.as_fd(), "", CWD, "/", flags)?;
            for part in parts {
                let Some(target) = place(&root, part, absent)? else {
                    if absent == Absent::Skip {
                        continue;
                    }
                    return Ok(None);
                };
                let flags = flags | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
                move_mount(part.mount.as_fd(), "", &target, "", flags)?;
            }
            if access == Access::ReadOnly {
                sys::restrict(root.as_fd(), false, Restriction::ReadOnly)?;
            }
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let own = rustix::fs::open("/proc/thread-self/ns/mnt", flags, Mode::empty());
            Ok(Some(own?))
        })?;
        Ok(namespace.map(|namespace| Self {
            root,
            _namespace: namespace,
        }))
    }
}

/// Where a part is attached.
fn place(root: &RootFd, part: &Part, absent: Absent) -> io::Result<Option<OwnedFd>> {
    let path = normal(&part.place);
    match root.open_in_root(&path, OFlags::PATH, Mode::empty()) {
        Err(error) if absent == Absent::Skip && leads_nowhere(&error) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other.map(Some),
    }
    if absent != Absent::Make {
        return Ok(None);
    }
    let stat = rustix::fs::fstat(&part.mount)?;
    let mode = Mode::from_raw_mode(0o755);
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return root.mkdir_all(&path, mode).map(|(made, _)| Some(made));
    }
    root.mkdir_all(path.parent().unwrap_or(Path::new("")), mode)?;
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NOCTTY;
    root.open_in_root(&path, flags, Mode::from_raw_mode(0o644))?;
    root.open_in_root(&path, OFlags::PATH, Mode::empty())
        .map(Some)
}

/// A detached, private copy of the mount that a descriptor leads into, from there on; `whole`:
/// with everything mounted below.
///
/// # Errors
/// What the kernel refuses.
pub fn copy_of(part: BorrowedFd<'_>, whole: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if whole {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let copy = open_tree(part, "", flags)?;
    sys::make_private(copy.as_fd())?;
    Ok(copy)
}

/// Makes a mount read-only; `whole`: with everything mounted below it.
///
/// # Errors
/// What the kernel refuses.
pub fn make_read_only(mount: BorrowedFd<'_>, whole: bool) -> io::Result<()> {
    Ok(sys::restrict(mount, whole, Restriction::ReadOnly)?)
}

/// Copies of what a process has mounted, attached nowhere: the root of its mount namespace without
/// anything mounted in it, and what is at these places in the root. Places that are not there are
/// left out. The process is told by a descriptor of it (`pidfd_open(2)`): its number may be
/// another one's by now.
///
/// # Errors
/// The process is gone (`ESRCH`); what the kernel refuses.
pub fn copies_of(process: BorrowedFd<'_>, places: &[PathBuf]) -> io::Result<(OwnedFd, Vec<Part>)> {
    on_own_thread(|| {
        // A mount can be copied from inside its own namespace only.
        sys::join_mounts(process)?;
        // Not the process's: it may have chosen a directory of its own (`chroot(2)`).
        let root = RootFd::open(Path::new("/"))?;
        let bare = copy_of(root.as_fd(), false)?;
        let mut parts = Vec::new();
        for place in places {
            match root.open_in_root(&normal(place), OFlags::PATH, Mode::empty()) {
                // Links of the container may have led there.
                Ok(there) if is_kernels(there.as_fd())? => {}
                Ok(there) => parts.push(Part {
                    mount: copy_of(there.as_fd(), true)?,
                    place: place.clone(),
                }),
                Err(error) if leads_nowhere(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((bare, parts))
    })
}

/// File systems that show the kernel, not files (`linux/magic.h`).
const KERNELS: [i64; 9] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0xcafe_4a11, // bpf
    0x1cd1,      // devpts
];

fn is_kernels(place: BorrowedFd<'_>) -> io::Result<bool> {
    let kind = rustix::fs::fstatfs(place)?.f_type;
    // Its width differs from machine to machine.
    #[allow(clippy::unnecessary_cast)]
    Ok(KERNELS.contains(&(kind as i64)))
}

/// Whether there is nothing at a path, or no path: what is in a root is its owner's choice.
fn leads_nowhere(error: &io::Error) -> bool {
    let number = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(number, Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP))
}

/// Runs something on a thread in a mount namespace of its own, where it may attach mounts
/// that nobody sees. Needs the right to mount.
pub(crate) fn in_own_namespace<T: Send>(
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    on_own_thread(|| {
        sys::unshare_mounts()?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private)?;
        work()
    })
}

/// Runs something on a thread that ends with it.
fn on_own_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("mount".to_owned())
            .spawn_scoped(scope, work)?;
        thread
            .join()
            .map_err(|_| io::Error::other("the thread that mounts panicked"))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen,
    };

    fn memory() -> OwnedFd {
        let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        fsconfig_create(&fs).unwrap();
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        fsmount(&fs, flags, MountAttrFlags::empty()).unwrap()
    }

    fn write(root: &RootFd, path: &str) {
        let flags = OFlags::CREATE | OFlags::WRONLY;
        let mode = Mode::from_raw_mode(0o600);
        root.open_in_root(Path::new(path), flags, mode).unwrap();
    }

    #[test]
    fn paths_lead_through_what_is_mounted_inside() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let part = || Part {
            mount: memory(),
            place: PathBuf::from("/a/link/data"),
        };
        let root = memory();
        let given_up = View::assemble(root, &[part()], Absent::GiveUp, Access::AsMounted).unwrap();
        assert!(given_up.is_none());
        let root = memory();
        rustix::fs::mkdirat(&root, "a", Mode::RWXU).unwrap();
        rustix::fs::mkdirat(&root, "b", Mode::RWXU).unwrap();
        // Absolute: of the root, not the host's.
        rustix::fs::symlinkat("/b", &root, "a/link").unwrap();
        let view = View::assemble(root, &[part()], Absent::Make, Access::ReadOnly)
            .unwrap()
            .unwrap();
        write(view.root(), "b/data/file");
        assert!(view.root().stat(Path::new("/a/link/data/file")).is_ok());
        // It is in the part, not in what is below it.
        let device = |path: &str| view.root().stat(Path::new(path)).unwrap().st_dev;
        assert_ne!(device("b/data"), device("b"));
        assert_eq!(device("b/data/file"), device("b/data"));
        // The root was written to for that place only.
        let refused = view.root().mkdir_all(Path::new("b/more"), Mode::RWXU);
        assert_eq!(
            refused.unwrap_err().kind(),
            io::ErrorKind::ReadOnlyFilesystem
        );
        // A device is only a file.
        let dir = view.root().directory(Path::new("b/data")).unwrap();
        let null = rustix::fs::makedev(1, 3);
        rustix::fs::mknodat(&dir, "null", FileType::CharacterDevice, Mode::RUSR, null).unwrap();
        let opened =
            view.root()
                .open_in_root(Path::new("b/data/null"), OFlags::RDONLY, Mode::empty());
        assert_eq!(opened.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains("/b/data"), "{mounts}");
    }

    #[test]
    fn what_is_mounted_in_a_copy_is_not_passed_on_to_its_shared_original() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let mounts = || std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (before, after) = on_own_thread(|| {
            sys::unshare_mounts()?;
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount_change("/", private)?;
            // As all of a host's are that systemd has started.
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            move_mount(memory(), "", CWD, dir.path(), flags)?;
            mount_change(dir.path(), MountPropagationFlags::SHARED)?;
            for name in ["root", "outer", "outer/inner", "other"] {
                std::fs::create_dir(dir.path().join(name))?;
            }
            let copy = |name: &str| {
                let dir = rustix::fs::open(dir.path().join(name), OFlags::PATH, Mode::empty())?;
                copy_of(dir.as_fd(), true)
            };
            let part = |name: &str, place: &str| {
                let mount = copy(name)?;
                let place = PathBuf::from(place);
                io::Result::Ok(Part { mount, place })
            };
            let parts = [part("outer", "/data")?, part("other", "/data/inner")?];
            let before = mounts();
            let view =
                View::assemble(copy("root")?, &parts, Absent::Make, Access::ReadOnly)?.unwrap();
            write(view.root(), "data/inner/file");
            assert!(dir.path().join("other/file").exists());
            assert!(!dir.path().join("outer/inner/file").exists());
            drop((view, parts));
            Ok((before, mounts()))
        })
        .unwrap();
        assert!(before.contains(" shared:"), "{before}");
        assert_eq!(before, after);
    }

    #[test]
    fn a_process_own_mounts_are_copied() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("loop", dir.path().join("loop")).unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let below = |name: &str| dir.path().join(name).join("x");
        let mut process = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let pid = rustix::process::Pid::from_child(&process);
        let flags = rustix::process::PidfdFlags::empty();
        let descriptor = rustix::process::pidfd_open(pid, flags).unwrap();
        let places = [
            "/dev".into(),
            // The kernel's.
            "/proc".into(),
            "/no/such/place".into(),
            below("loop"),
            below("file"),
        ];
        let copied = copies_of(descriptor.as_fd(), &places);
        process.kill().unwrap();
        process.wait().unwrap();
        let (root, parts) = copied.unwrap();
        let gone = copies_of(descriptor.as_fd(), &places).unwrap_err();
        assert_eq!(gone.raw_os_error(), Some(Errno::SRCH.raw_os_error()));
        let copied: Vec<_> = parts.iter().map(|part| &part.place).collect();
        assert_eq!(copied, [&places[0]]);
        let root = RootFd::from(root);
        // The root alone.
        assert!(root.stat(Path::new("proc/self")).is_err());
        assert!(root.stat(Path::new("usr")).is_ok());
    }
}
