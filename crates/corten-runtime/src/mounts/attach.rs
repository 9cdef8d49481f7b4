//! The child's side: making file systems and attaching mounts below the root.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, StatxAttributes, StatxFlags, fstatfs, statx};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MoveMountFlags, fsconfig_create,
    fsconfig_reconfigure, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, fspick,
    move_mount,
};

use super::listing::Listing;
use super::options::{Options, RDONLY, Setting, own_superblock};
use super::{Kind, MountPlan, clone_tree, copyup, long, tree};
use crate::error::{RuntimeError, Step};
use crate::namespaces::MountNamespace;
use crate::procfs::PROC_MAGIC;
use crate::root::{Node, RootFd};
use crate::sys::{self, MountAttr};

/// Attaches all mounts in order. What is returned is needed to finish them.
pub(crate) fn attach_all(
    root: &RootFd,
    plans: &[MountPlan],
    mut listing: Listing,
    namespace: MountNamespace,
) -> Result<Attached, RuntimeError> {
    let mut later = Vec::new();
    let mut kernel = Kernel::default();
    // The mounts of file systems that are the container's to remount.
    let mut own = Vec::new();
    let remounts = plans.iter().any(|plan| matches!(plan.kind, Kind::Remount));
    for plan in plans {
        let fail = |errno| RuntimeError::setup(Step::Mount, plan.destination.clone(), errno);
        match &plan.kind {
            Kind::Bind(tree) => {
                let tree = tree.open(fail)?;
                let node = tree::node(tree.as_fd()).map_err(fail)?;
                let destination = root.ensure(&plan.destination, node).map_err(fail)?;
                check_covered(&plan.destination, destination.as_fd(), Some(tree.as_fd()))?;
                let tree = listing.in_order(tree, node, &plan.options);
                attach_to(tree.as_fd(), destination.as_fd()).map_err(|errno| {
                    match (node, tree::node(destination.as_fd())) {
                        (Node::Directory, Ok(Node::File)) => unlike(plan, "a directory, it a file"),
                        (Node::File, Ok(Node::Directory)) => unlike(plan, "a file, it a directory"),
                        _ => fail(errno),
                    }
                })?;
                kernel.note(&plan.destination, tree.as_fd()).map_err(fail)?;
            }
            Kind::FileSystem { kind, source } => {
                let (mount, late) = file_system(root, plan, kind, source, namespace)?;
                listing.made();
                kernel
                    .note(&plan.destination, mount.as_fd())
                    .map_err(fail)?;
                if remounts && own_superblock(kind) {
                    own.push(mount_id(mount.as_fd()).map_err(fail)?);
                }
                if late {
                    later.push((mount, plan.destination.clone()));
                }
            }
            Kind::Cgroup(cgroup) => {
                cgroup.attach(root, &plan.destination, &plan.options)?;
                listing.made();
            }
            Kind::Remount => {
                let there = root.open(&plan.destination).map_err(fail)?;
                let id = mount_id(there.as_fd()).map_err(fail)?;
                remount(there.as_fd(), own.contains(&id), &plan.options).map_err(fail)?;
            }
        }
    }
    Ok(Attached { kernel, later })
}

/// The kernel's answer to that depends on its version, and does not say what is what.
fn unlike(plan: &MountPlan, what: &str) -> RuntimeError {
    let target = format!("{}: its source is {what}", plan.destination);
    RuntimeError::setup(Step::Mount, target, Errno::NOTDIR)
}

/// Mounts that have something left to be done to them.
#[derive(Debug)]
pub(crate) struct Attached {
    /// For protecting what is in them.
    pub(crate) kernel: Kernel,
    later: Vec<(OwnedFd, String)>,
}

impl Attached {
    /// Write-protects what had to wait until everything below it was mounted and made: a
    /// read-only `/dev` gets its devices, and the console, first.
    pub(crate) fn write_protect(&self) -> Result<(), RuntimeError> {
        // What lies deeper was mounted later, and must not be covered before.
        for (mount, destination) in self.later.iter().rev() {
            let attr = MountAttr {
                set: RDONLY,
                ..MountAttr::default()
            };
            alter(mount.as_fd(), false, attr)
                .map_err(|errno| RuntimeError::setup(Step::Mount, destination.clone(), errno))?;
        }
        Ok(())
    }
}

/// The mounts of procfs and sysfs at their usual places, by descriptor. What is masked or
/// write-protected in them is looked up from there: whoever shares the directory that is
/// the root may have renamed `/proc` meanwhile (mounts go along), and put another in its
/// place, so that the names would lead to the wrong one (CVE-2025-31133, -52881).
#[derive(Debug, Default)]
pub(crate) struct Kernel(Vec<(&'static str, RootFd)>);

impl Kernel {
    fn note(&mut self, destination: &str, mount: BorrowedFd<'_>) -> Result<(), Errno> {
        let clean = crate::root::clean(destination);
        let Some(place) = ["/proc", "/sys"].into_iter().find(|place| *place == clean) else {
            return Ok(());
        };
        let mount = rustix::io::fcntl_dupfd_cloexec(mount, 3)?;
        self.0.retain(|(other, _)| *other != place);
        self.0.push((place, RootFd::new(mount)));
        Ok(())
    }

    /// From where to look `path` up, and as what.
    pub(crate) fn find<'a>(&'a self, root: &'a RootFd, path: &str) -> (&'a RootFd, String) {
        let clean = crate::root::clean(path);
        for (place, mount) in &self.0 {
            if let Some(rest) = clean.strip_prefix(place)
                && (rest.is_empty() || rest.starts_with('/'))
            {
                let rest = if rest.is_empty() { "/" } else { rest };
                return (mount, rest.to_owned());
            }
        }
        (root, path.to_owned())
    }
}

/// Attaches a detached mount to the place a descriptor names.
pub(crate) fn attach_to(tree: BorrowedFd<'_>, destination: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", destination, "", flags)
}

/// A new detached file system of the caller's namespaces.
pub(crate) fn new_file_system(
    kind: &str,
    source: &str,
    data: &[Setting],
    attr: u64,
) -> Result<OwnedFd, Errno> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", source)?;
    configure(context.as_fd(), data)?;
    fsconfig_create(context.as_fd())?;
    let attr = MountAttrFlags::from_bits_retain(u32::try_from(attr).unwrap_or(0));
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attr)
}

/// Makes and attaches one. `true` if it becomes read-only only when all is done: a tmpfs
/// that holds the mount points of later mounts, such as `/dev`.
fn file_system(
    root: &RootFd,
    plan: &MountPlan,
    kind: &str,
    source: &str,
    namespace: MountNamespace,
) -> Result<(OwnedFd, bool), RuntimeError> {
    let fail = |errno| RuntimeError::setup(Step::Mount, plan.destination.clone(), errno);
    let pseudo = matches!(kind, "proc" | "sysfs");
    let mut missing = false;
    let destination = if pseudo {
        // Through no symbolic link: they must end up where their protections are applied.
        root.ensure_plain_directory(&plan.destination)
    } else {
        match root.open(&plan.destination) {
            Err(Errno::NOENT) => {
                missing = true;
                root.ensure(&plan.destination, Node::Directory)
            }
            result => result,
        }
    };
    let destination = destination.map_err(fail)?;
    let place = crate::root::clean(&plan.destination);
    if !matches!(
        (kind, place.as_str()),
        ("proc", "/proc") | ("sysfs", "/sys")
    ) {
        check_covered(&plan.destination, destination.as_fd(), None)?;
    }
    let options = &plan.options;
    let attr = options.whole_attr().set;
    let late = kind == "tmpfs" && attr & RDONLY != 0;
    let now = if late { attr & !RDONLY } else { attr };
    let mut data = options.data.clone();
    if kind == "devpts" && !data.iter().any(|(key, _)| key == "newinstance") {
        data.push(("newinstance".to_owned(), None));
    }
    if kind == "tmpfs" && !missing && !options.says("mode") {
        // As runc has it: who may use `/run` does not change with what it is on.
        let stat = rustix::fs::fstat(&destination).map_err(fail)?;
        let mode = format!("{:04o}", stat.st_mode & 0o7777);
        data.push(("mode".to_owned(), Some(mode)));
    }
    let readonly = now & RDONLY != 0 && own_superblock(kind);
    if readonly {
        data.push(("ro".to_owned(), None));
    }
    let make = |data: &[Setting]| {
        if long::is_too_long(source, data) {
            return long::new_file_system(kind, source, data, now, namespace);
        }
        new_file_system(kind, source, data, now)
    };
    let mount = match make(&data) {
        // Somebody has it mounted writable: then only this mount is not.
        Err(Errno::BUSY) if readonly => {
            data.pop();
            make(&data)
        }
        made => made,
    };
    let mount = mount.map_err(|errno| match errno {
        Errno::NAMETOOLONG if namespace == MountNamespace::Host => {
            let place = &plan.destination;
            let reason = format!(
                "{place}: without a mount namespace none may be longer than {} bytes",
                long::LONGEST
            );
            RuntimeError::spec("mounts.options", reason)
        }
        errno => fail(errno),
    })?;
    if options.copy_up {
        copyup::copy_up(destination.as_fd(), mount.as_fd(), options).map_err(fail)?;
    }
    if kind == "mqueue"
        && let Some(label) = &options.label
    {
        super::label::set(mount.as_fd(), label).map_err(fail)?;
    }
    attach_to(mount.as_fd(), destination.as_fd()).map_err(fail)?;
    set_propagation(mount.as_fd(), options).map_err(fail)?;
    Ok((mount, late))
}

/// What is asked for, and nothing else.
pub(super) fn set_propagation(mount: BorrowedFd<'_>, options: &Options) -> Result<(), Errno> {
    let Some((propagation, recursive)) = options.propagation else {
        return Ok(());
    };
    let attr = MountAttr {
        propagation,
        ..MountAttr::default()
    };
    alter(mount, recursive, attr)
}

/// Changes a mount that has been attached. Inside a detached tree (a container without a
/// mount namespace) only the topmost one can be changed; others are covered by changed
/// copies of themselves.
pub(super) fn alter(mount: BorrowedFd<'_>, recursive: bool, attr: MountAttr) -> Result<(), Errno> {
    match sys::mount_setattr(mount, recursive, attr) {
        Err(Errno::INVAL) if is_mount_root(mount, "") => {
            let copy = clone_tree(mount, true)?;
            sys::mount_setattr(copy.as_fd(), recursive, attr)?;
            attach_to(copy.as_fd(), mount)
        }
        result => result,
    }
}

/// Whether something is mounted just there: at `name` in a directory, or, without a name,
/// at what the descriptor is of.
pub(crate) fn is_mount_root(fd: BorrowedFd<'_>, name: &str) -> bool {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
    statx(fd, name, flags, StatxFlags::empty())
        .is_ok_and(|stat| stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// The number of the mount a descriptor is on.
pub(crate) fn mount_id(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let stat = statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    let known = stat.stx_mask & StatxFlags::MNT_ID.bits() != 0;
    known.then_some(stat.stx_mnt_id).ok_or(Errno::NOSYS)
}

/// New attributes for the mount at a place, and, unless it is a bind mount, new options
/// for its file system. Whether that can be written is among them only if the file system
/// was mounted for the container (`own`): it might be the host's.
fn remount(there: BorrowedFd<'_>, own: bool, options: &Options) -> Result<(), Errno> {
    let mut data = options.data.clone();
    if let (true, Some(readonly)) = (own, options.readonly()) {
        let name = if readonly { "ro" } else { "rw" };
        data.push((name.to_owned(), None));
    }
    if !data.is_empty() && !options.bind {
        let context = fspick(
            there,
            "",
            FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH,
        )?;
        configure(context.as_fd(), &data)?;
        fsconfig_reconfigure(context.as_fd())?;
    }
    if !options.attr.is_empty() {
        alter(there, false, options.attr)?;
    }
    if !options.recursive_attr.is_empty() {
        alter(there, true, options.recursive_attr)?;
    }
    set_propagation(there, options)
}

fn configure(context: BorrowedFd<'_>, data: &[Setting]) -> Result<(), Errno> {
    for (key, value) in data {
        match value {
            Some(value) => fsconfig_set_string(context, key, value)?,
            None => fsconfig_set_flag(context, key)?,
        }
    }
    Ok(())
}

/// `SYSFS_MAGIC`.
const SYSFS_MAGIC: i64 = 0x6265_6572;
/// The inode number of a sysfs root (`kernfs` counts from there).
const SYSFS_ROOT_INO: u64 = 1;

/// Files of `/proc` that may be covered by a bind mount (what lxcfs provides, and what
/// runc allows).
const PROC_FILES: &[&str] = &[
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// Nothing may hide procfs or sysfs from the protections that are applied to them, nor
/// from the programs that believe them: inside procfs only the files above may be covered;
/// `/proc` and `/sys` themselves only by their like. What counts is what is there, by the
/// descriptor that will be mounted on: a name may be a link into `/proc`, and may have
/// become one just now.
pub(super) fn check_covered(
    destination: &str,
    there: BorrowedFd<'_>,
    tree: Option<BorrowedFd<'_>>,
) -> Result<(), RuntimeError> {
    let kind = |fd| fstatfs(fd).map_or(0, |stat| stat.f_type);
    let with = tree.map_or(0, kind);
    let refuse = |what: &str| {
        let reason = format!("{destination} is {what}");
        Err(RuntimeError::spec("mounts.destination", reason))
    };
    let clean = crate::root::clean(destination);
    let covered = kind(there);
    let allowed = PROC_FILES.contains(&clean.as_str()) || (clean == "/proc" && with == PROC_MAGIC);
    let proc = covered == PROC_MAGIC || clean == "/proc" || clean.starts_with("/proc/");
    if proc && !allowed {
        return refuse("inside /proc");
    }
    let root_of_sysfs = covered == SYSFS_MAGIC
        && rustix::fs::fstat(there).is_ok_and(|stat| stat.st_ino == SYSFS_ROOT_INO);
    if (root_of_sysfs || clean == "/sys") && with != SYSFS_MAGIC {
        return refuse("the place of sysfs");
    }
    Ok(())
}
