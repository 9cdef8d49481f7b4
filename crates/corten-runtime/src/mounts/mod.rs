//! Mounts (runtime-spec, config "Mounts"). The caller parses every entry and opens the
//! sources of bind mounts as detached trees in its own mount namespace ([`plan`]); the
//! child makes the file systems of its own namespaces and attaches everything, in order,
//! to destinations resolved inside the root ([`attach`]). No path is ever resolved twice.

mod attach;
mod cgroup;
mod copyup;
mod options;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use corten_oci::runtime_spec::{LinuxNamespaceType, Spec};
use rustix::fs::{AtFlags, CWD, FileType, statat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::cgroup::Cgroup;
use crate::error::{RuntimeError, Step};
use crate::sys::{self, MountAttr};
pub(crate) use attach::{attach_all, attach_to, new_file_system};
use cgroup::CgroupMount;
use options::Options;
#[cfg(test)]
pub(crate) use options::knows_option;
pub(crate) use options::{RDONLY, propagation_flag};

/// A mount, ready to be attached.
#[derive(Debug)]
pub(crate) struct MountPlan {
    /// Inside the root.
    pub(crate) destination: String,
    kind: Kind,
    options: Options,
}

#[derive(Debug)]
enum Kind {
    /// A detached tree; whether it is a directory decides what a missing destination
    /// becomes.
    Bind { tree: OwnedFd, directory: bool },
    /// A file system of the container's namespaces.
    FileSystem { kind: String, source: String },
    /// The control groups.
    Cgroup(CgroupMount),
    /// Only new attributes for what is mounted there already.
    Remount,
}

/// Parses all mounts and opens all bind sources.
pub(crate) fn plan(
    spec: &Spec,
    opened: &mut BTreeMap<usize, OwnedFd>,
    cgroup: &Cgroup,
) -> Result<Vec<MountPlan>, RuntimeError> {
    let mut plans = Vec::new();
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let destination = mount.destination().to_string_lossy().into_owned();
        let given = mount.options().as_deref().unwrap_or_default();
        let options = Options::parse(given)?;
        if mount.uid_mappings().is_some() || mount.gid_mappings().is_some() || options.idmapped {
            let field = format!("mounts[{index}]");
            return Err(RuntimeError::spec(
                field,
                "id-mapped mounts are not supported",
            ));
        }
        let typ = mount.typ().as_deref().unwrap_or_default();
        let source = mount
            .source()
            .as_ref()
            .map(|source| source.to_string_lossy().into_owned());
        let kind = if options.remount {
            Kind::Remount
        } else if options.bind || typ == "bind" {
            let recursive = options.bind_recursive || !options.bind;
            bind(
                opened.remove(&index),
                source.as_deref(),
                recursive,
                &options,
            )?
        } else if typ == "cgroup" || typ == "cgroup2" {
            Kind::Cgroup(CgroupMount::plan(cgroup, new_cgroup_namespace(spec))?)
        } else if typ.is_empty() {
            return Err(RuntimeError::spec(
                format!("mounts[{index}].type"),
                "is missing",
            ));
        } else {
            let source = source.unwrap_or_else(|| typ.to_owned());
            Kind::FileSystem {
                kind: typ.to_owned(),
                source,
            }
        };
        plans.push(MountPlan {
            destination,
            kind,
            options,
        });
    }
    Ok(plans)
}

/// Whether the container gets its own cgroup namespace.
fn new_cgroup_namespace(spec: &Spec) -> bool {
    let linux = spec.linux().as_ref();
    let namespaces = linux.and_then(|linux| linux.namespaces().as_ref());
    namespaces.into_iter().flatten().any(|namespace| {
        namespace.typ() == LinuxNamespaceType::Cgroup && namespace.path().is_none()
    })
}

/// A bind mount's source as a detached tree with its attributes set.
fn bind(
    opened: Option<OwnedFd>,
    source: Option<&str>,
    recursive: bool,
    options: &Options,
) -> Result<Kind, RuntimeError> {
    let name = source.unwrap_or("(descriptor)").to_owned();
    let fail = |errno| RuntimeError::setup(Step::Mount, format!("bind {name}"), errno);
    let tree = match (opened, source) {
        (Some(fd), _) => match clone_tree(fd.as_fd(), recursive) {
            // Already detached (kernels before 6.15 do not copy such a mount).
            Err(Errno::INVAL) => fd,
            result => result.map_err(fail)?,
        },
        (None, Some(path)) => {
            let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
            open_tree(CWD, path, flags).map_err(fail)?
        }
        (None, None) => return Err(RuntimeError::spec("mounts.source", "is missing")),
    };
    let stat = statat(&tree, "", AtFlags::EMPTY_PATH).map_err(fail)?;
    let directory = FileType::from_raw_mode(stat.st_mode).is_dir();
    set_attributes(tree.as_fd(), options).map_err(fail)?;
    Ok(Kind::Bind { tree, directory })
}

/// A copy of the mount (tree) that `fd` is on, rooted at `fd`.
pub(crate) fn clone_tree(fd: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    open_tree(fd, "", flags)
}

/// Attributes and propagation of a bind mount. It is made private unless something else
/// is asked for: a copy of a shared mount would otherwise stay in its peer group. Where
/// only the topmost mount's propagation is given, those below become slaves at most, so
/// that nothing the container does reaches the host.
fn set_attributes(tree: BorrowedFd<'_>, options: &Options) -> Result<(), Errno> {
    let set = |recursive, propagation| {
        sys::mount_setattr(
            tree,
            recursive,
            MountAttr {
                propagation,
                ..MountAttr::default()
            },
        )
    };
    match options.propagation {
        None => set(true, libc::MS_PRIVATE)?,
        Some((propagation, true)) => set(true, propagation)?,
        Some((libc::MS_SHARED, false)) => set(false, libc::MS_SHARED)?,
        Some((propagation, false)) => {
            set(true, libc::MS_SLAVE)?;
            set(false, propagation)?;
        }
    }
    if !options.attr.is_empty() {
        sys::mount_setattr(tree, false, options.attr)?;
    }
    if !options.recursive_attr.is_empty() {
        sys::mount_setattr(tree, true, options.recursive_attr)?;
    }
    Ok(())
}
