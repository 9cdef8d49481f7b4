//! `/sys/fs/cgroup`: what a container sees of its control groups. If only the v2
//! hierarchy has a group of it, that hierarchy is mounted there. If v1 hierarchies have
//! too, it is a small tmpfs with one directory per hierarchy, as on the host.
//!
//! With a cgroup namespace the file systems are mounted anew and begin at the container's
//! own group; without one, the group's own directories are bound, so that nothing above
//! them is visible either way.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::attach::{alter, attach_to, check_covered, new_file_system, set_propagation};
use super::options::{NODEV, NOEXEC, NOSUID, Options, RDONLY};
use crate::cgroup::Cgroup;
use crate::error::{RuntimeError, Step};
use crate::root::{Node, RootFd};
use crate::sys::{self, MountAttr};

/// One hierarchy's mount.
#[derive(Debug)]
enum View {
    /// A new mount: file system type and options.
    New {
        kind: &'static str,
        data: Vec<(String, Option<String>)>,
    },
    /// The group's directory, already detached.
    Bound(OwnedFd),
}

/// All of them: names below the mount point, empty for the whole.
#[derive(Debug)]
pub(crate) struct CgroupMount {
    views: Vec<(String, View)>,
}

impl CgroupMount {
    /// Decides what is shown, and opens what is bound.
    pub(super) fn plan(cgroup: &Cgroup, namespace: bool) -> Result<Self, RuntimeError> {
        let mut views = Vec::new();
        let bound = |dir: &std::path::Path| {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let fail = |errno| RuntimeError::setup(Step::Mount, dir.display().to_string(), errno);
            open_tree(CWD, dir, flags).map(View::Bound).map_err(fail)
        };
        for legacy in cgroup.legacy_views() {
            let view = if namespace {
                let option = |option: &String| match option.split_once('=') {
                    Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                    None => (option.clone(), None),
                };
                View::New {
                    kind: "cgroup",
                    data: legacy.options.iter().map(option).collect(),
                }
            } else {
                bound(legacy.dir)?
            };
            views.push((legacy.name.to_owned(), view));
        }
        if let Some(dir) = cgroup.unified_dir() {
            let name = if views.is_empty() { "" } else { "unified" };
            let view = if namespace {
                View::New {
                    kind: "cgroup2",
                    data: Vec::new(),
                }
            } else {
                bound(dir)?
            };
            views.push((name.to_owned(), view));
        }
        Ok(Self { views })
    }

    /// Mounts it all at `destination`.
    pub(super) fn attach(
        &self,
        root: &RootFd,
        destination: &str,
        options: &Options,
    ) -> Result<(), RuntimeError> {
        let fail = |errno| RuntimeError::setup(Step::Mount, destination.to_owned(), errno);
        let at = root.ensure(destination, Node::Directory).map_err(fail)?;
        check_covered(destination, at.as_fd(), None)?;
        let attr = options.whole_attr().set;
        if let [(name, view)] = self.views.as_slice()
            && name.is_empty()
        {
            let mount = mount(view, attr).map_err(fail)?;
            attach_to(mount.as_fd(), at.as_fd()).map_err(fail)?;
            return set_propagation(mount.as_fd(), options).map_err(fail);
        }
        let data = [("mode".to_owned(), Some("755".to_owned()))];
        let flags = NOSUID | NODEV | NOEXEC;
        let tmpfs = new_file_system("tmpfs", "cgroup", &data, flags).map_err(fail)?;
        attach_to(tmpfs.as_fd(), at.as_fd()).map_err(fail)?;
        let tmpfs_root = RootFd::new(rustix::io::fcntl_dupfd_cloexec(&tmpfs, 3).map_err(fail)?);
        for (name, view) in &self.views {
            let fail =
                |errno| RuntimeError::setup(Step::Mount, format!("{destination}/{name}"), errno);
            // In the file system just made, not by a name that may lead elsewhere by now.
            let directory = tmpfs_root.ensure(name, Node::Directory).map_err(fail)?;
            let mount = mount(view, attr).map_err(fail)?;
            attach_to(mount.as_fd(), directory.as_fd()).map_err(fail)?;
        }
        set_propagation(tmpfs.as_fd(), options).map_err(fail)?;
        if attr & RDONLY != 0 {
            let attr = MountAttr {
                set: RDONLY,
                ..MountAttr::default()
            };
            alter(tmpfs.as_fd(), false, attr).map_err(fail)?;
        }
        Ok(())
    }
}

fn mount(view: &View, attr: u64) -> Result<OwnedFd, rustix::io::Errno> {
    match view {
        View::New { kind, data } => new_file_system(kind, "cgroup", data, attr),
        View::Bound(tree) => {
            let change = MountAttr {
                set: attr,
                clear: 0,
                propagation: libc::MS_PRIVATE,
            };
            sys::mount_setattr(tree.as_fd(), true, change)?;
            rustix::io::fcntl_dupfd_cloexec(tree, 3)
        }
    }
}
