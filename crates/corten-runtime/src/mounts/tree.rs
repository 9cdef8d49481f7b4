//! Detached copies of mounts that exist already: the root file system, the sources of bind
//! mounts, the host's device nodes.
//!
//! The caller opens them, so that a path is resolved once and before anything of the
//! container exists. An ordinary user may copy mounts only inside a user namespace of its
//! own; then the child opens them in its copy of the caller's mount namespace, before it
//! has changed its root.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, statat};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::mount::{OpenTreeFlags, open_tree};

use super::clone_tree;
use super::options::Options;
use crate::error::{RuntimeError, Step};
use crate::namespaces::Namespaces;
use crate::root::Node;
use crate::sys::{self, MountAttr};

/// A tree to be attached.
#[derive(Debug)]
pub(crate) enum Tree {
    /// Ready.
    Open(OwnedFd),
    /// To be opened by the child.
    Later {
        path: PathBuf,
        recursive: bool,
        options: Box<Options>,
    },
}

impl Tree {
    /// Of a path of the caller, private unless `options` say otherwise.
    fn new(
        path: &Path,
        recursive: bool,
        options: Options,
        namespaces: &Namespaces,
    ) -> Result<Self, Errno> {
        match open(path, recursive, &options) {
            Err(Errno::PERM) if namespaces.in_user_namespace() => Ok(Self::Later {
                path: path.to_owned(),
                recursive,
                options: Box::new(options),
            }),
            result => result.map(Self::Open),
        }
    }

    /// A path with all that is mounted below it.
    pub(crate) fn whole(
        path: &Path,
        propagation: u64,
        namespaces: &Namespaces,
    ) -> Result<Self, Errno> {
        let options = Options {
            propagation: Some((propagation, true)),
            ..Options::default()
        };
        Self::new(path, true, options, namespaces)
    }

    /// One file of the host, private.
    pub(crate) fn single(path: &Path, namespaces: &Namespaces) -> Result<Self, Errno> {
        Self::new(path, false, Options::default(), namespaces)
    }

    /// A bind mount's source with its attributes set.
    pub(super) fn of_bind(
        opened: Option<OwnedFd>,
        source: Option<&str>,
        recursive: bool,
        options: &Options,
        namespaces: &Namespaces,
    ) -> Result<Self, RuntimeError> {
        let name = source.unwrap_or("(descriptor)").to_owned();
        let fail = |errno| RuntimeError::setup(Step::Mount, format!("bind {name}"), errno);
        match (opened, source) {
            (Some(fd), _) => {
                let tree = match clone_tree(fd.as_fd(), recursive) {
                    // Already detached (kernels before 6.15 do not copy such a mount).
                    Err(Errno::INVAL) => fd,
                    result => result.map_err(fail)?,
                };
                set_attributes(tree.as_fd(), options).map_err(fail)?;
                Ok(Self::Open(tree))
            }
            (None, Some(path)) => {
                let path = Path::new(path);
                Self::new(path, recursive, options.clone(), namespaces).map_err(fail)
            }
            (None, None) => Err(RuntimeError::spec("mounts.source", "is missing")),
        }
    }

    /// Child: the tree.
    pub(crate) fn open(
        &self,
        fail: impl Fn(Errno) -> RuntimeError,
    ) -> Result<TreeFd<'_>, RuntimeError> {
        match self {
            Self::Open(tree) => Ok(TreeFd::Borrowed(tree.as_fd())),
            Self::Later {
                path,
                recursive,
                options,
            } => open(path, *recursive, options)
                .map(TreeFd::Owned)
                .map_err(fail),
        }
    }

    /// Child: a descriptor of its own.
    pub(crate) fn open_owned(
        &self,
        fail: impl Fn(Errno) -> RuntimeError,
    ) -> Result<OwnedFd, RuntimeError> {
        match self.open(&fail)? {
            TreeFd::Borrowed(fd) => fcntl_dupfd_cloexec(fd, 3).map_err(fail),
            TreeFd::Owned(fd) => Ok(fd),
        }
    }
}

/// A tree's descriptor, wherever it came from.
#[derive(Debug)]
pub(crate) enum TreeFd<'a> {
    /// Opened by the caller.
    Borrowed(BorrowedFd<'a>),
    /// Opened just now.
    Owned(OwnedFd),
}

impl AsFd for TreeFd<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Borrowed(fd) => fd.as_fd(),
            Self::Owned(fd) => fd.as_fd(),
        }
    }
}

/// What a missing destination for the tree becomes.
pub(super) fn node(tree: BorrowedFd<'_>) -> Result<Node, Errno> {
    let stat = statat(tree, "", AtFlags::EMPTY_PATH)?;
    Ok(if FileType::from_raw_mode(stat.st_mode).is_dir() {
        Node::Directory
    } else {
        Node::File
    })
}

fn open(path: &Path, recursive: bool, options: &Options) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    let tree = open_tree(CWD, path, flags)?;
    set_attributes(tree.as_fd(), options)?;
    Ok(tree)
}

/// Attributes and propagation. A tree is made private unless something else is asked for:
/// a copy of a shared mount would otherwise stay in its peer group. Where only the topmost
/// mount's propagation is given, those below become slaves at most, so that nothing the
/// container does reaches the host.
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
