//! Mounts (runtime-spec, config "Mounts"). The caller parses every entry and opens the
//! sources of bind mounts as detached trees in its own mount namespace ([`plan`]); the
//! child makes the file systems of its own namespaces and attaches everything, in order,
//! to destinations resolved inside the root ([`attach`]). No path is ever resolved twice.

mod attach;
mod cgroup;
mod copyup;
mod idmap;
mod label;
mod listing;
mod long;
mod options;
mod tree;

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use corten_oci::runtime_spec::{Mount, Spec};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::cgroup::Cgroup;
use crate::error::{RuntimeError, Step};
use crate::namespaces::Namespaces;
pub(crate) use attach::{
    Attached, Kernel, attach_all, attach_to, is_mount_root, mount_id, new_file_system,
};
use cgroup::CgroupMount;
use idmap::IdMaps;
pub(crate) use listing::Listing;
use options::Options;
#[cfg(test)]
pub(crate) use options::knows_option;
pub(crate) use options::{RDONLY, propagation_flag};
pub(crate) use tree::{Tree, TreeFd, is_directory};

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
    /// A tree of what exists already.
    Bind(Tree),
    /// A file system of the container's namespaces.
    FileSystem { kind: String, source: String },
    /// The control groups.
    Cgroup(CgroupMount),
    /// Only new attributes for what is mounted there already.
    Remount,
}

/// Whether these options are known and go together.
pub(crate) fn check_options(given: &[String]) -> Result<(), RuntimeError> {
    Options::parse(given).map(drop)
}

/// Parses all mounts and opens all bind sources.
pub(crate) fn plan(
    spec: &Spec,
    opened: &mut BTreeMap<usize, OwnedFd>,
    cgroup: &Cgroup,
    namespaces: &Namespaces,
) -> Result<Vec<MountPlan>, RuntimeError> {
    let mut plans = Vec::new();
    let mut maps = IdMaps::default();
    let context = label::context(spec)?;
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let destination = mount.destination().to_string_lossy().into_owned();
        let given = mount.options().as_deref().unwrap_or_default();
        let mut options = Options::parse(given)?;
        if destination.is_empty() {
            let field = format!("mounts[{index}].destination");
            return Err(RuntimeError::spec(field, "is missing"));
        }
        if !destination.starts_with('/') {
            tracing::warn!(
                destination,
                "mounts[{index}].destination is relative, which is deprecated: taken from /"
            );
        }
        let idmapped = idmap::wanted(mount, &options);
        let typ = mount.typ().as_deref().unwrap_or_default();
        let source = mount
            .source()
            .as_ref()
            .map(|source| source.to_string_lossy().into_owned());
        let kind = if options.remount {
            Kind::Remount
        } else if is_bind(mount) {
            if !options.data.is_empty() {
                tracing::warn!(
                    destination,
                    "options for a file system mean nothing to a bind mount"
                );
            }
            let opened = opened.remove(&index);
            Kind::Bind(maps.bind(index, mount, &options, opened, namespaces)?)
        } else if typ == "cgroup" || typ == "cgroup2" {
            Kind::Cgroup(CgroupMount::plan(cgroup, namespaces.new_cgroup)?)
        } else if typ.is_empty() {
            return Err(RuntimeError::spec(
                format!("mounts[{index}].type"),
                "is missing",
            ));
        } else {
            if let Some(context) = &context {
                context.add_to(typ, &mut options);
            }
            let source = source.unwrap_or_else(|| typ.to_owned());
            Kind::FileSystem {
                kind: typ.to_owned(),
                source,
            }
        };
        if options.copy_up && typ != "tmpfs" {
            let field = format!("mounts[{index}].options");
            return Err(RuntimeError::spec(field, "tmpcopyup is for a tmpfs only"));
        }
        if idmapped && !matches!(kind, Kind::Bind(_)) {
            let reason = "only a bind mount can be id-mapped";
            return Err(RuntimeError::spec(format!("mounts[{index}]"), reason));
        }
        tracing::debug!(destination, typ, ?given, "mount planned");
        plans.push(MountPlan {
            destination,
            kind,
            options,
        });
    }
    Ok(plans)
}

/// The bind mounts alone, by their index, opened as for [`plan`].
pub(crate) fn binds(
    spec: &Spec,
    mut opened: BTreeMap<usize, OwnedFd>,
    namespaces: &Namespaces,
) -> Result<BTreeMap<usize, OwnedFd>, RuntimeError> {
    let mut maps = IdMaps::default();
    let mut trees = BTreeMap::new();
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let options = Options::parse(mount.options().as_deref().unwrap_or_default())?;
        if options.remount || !is_bind(mount) {
            continue;
        }
        let tree = maps.bind(index, mount, &options, opened.remove(&index), namespaces)?;
        let place = mount.destination().display();
        let fail = |errno| RuntimeError::setup(Step::Mount, place.to_string(), errno);
        trees.insert(index, tree.open_owned(fail)?);
    }
    Ok(trees)
}

/// The place of a bind mount that passes what is mounted in it on to the host.
pub(crate) fn shared_with_the_host(spec: &Spec) -> Option<&Path> {
    let shared = |mount: &&Mount| {
        let given = mount.options().as_deref().unwrap_or_default();
        let options = Options::parse(given).unwrap_or_default();
        is_bind(mount) && matches!(options.propagation, Some((libc::MS_SHARED, _)))
    };
    let found = spec.mounts().iter().flatten().find(shared)?;
    Some(found.destination())
}

/// Whether it shows what is mounted elsewhere already.
pub(crate) fn is_bind(mount: &Mount) -> bool {
    let options = mount.options().as_deref().unwrap_or_default();
    mount.typ().as_deref() == Some("bind") || options.iter().any(|o| o == "bind" || o == "rbind")
}

/// A copy of the mount (tree) that `fd` is on, rooted at `fd`.
pub(crate) fn clone_tree(fd: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    open_tree(fd, "", flags)
}
