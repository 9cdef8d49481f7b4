//! Detached copies of mounts that exist already: the root file system, the sources of bind
//! mounts, the host's device nodes.
//!
//! The caller opens them, so that a path is resolved once and before anything of the
//! container exists. An ordinary user may copy mounts only inside a user namespace of its
//! own; then the child opens them in its copy of the caller's mount namespace, before it
//! has changed its root.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fstat, statat};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::mount::{OpenTreeFlags, open_tree};

use super::clone_tree;
use super::options::Options;
use crate::error::{RuntimeError, Step};
use crate::namespaces::Namespaces;
use crate::namespaces::userns::in_user_namespace;
use crate::root::Node;
use crate::sys::{self, MountAttr};

/// A tree to be attached.
#[derive(Debug)]
pub(crate) enum Tree {
    /// Ready.
    Open(OwnedFd),
    /// To be opened by the child.
    Later {
        source: Source,
        recursive: bool,
        options: Box<Options>,
    },
}

/// What is copied.
#[derive(Debug)]
pub(crate) enum Source {
    /// Wherever it leads.
    Path(PathBuf),
    /// A directory itself, no link to one.
    Directory(PathBuf),
}

impl Tree {
    /// Of a path of the caller, private unless `options` say otherwise.
    fn new(
        source: Source,
        recursive: bool,
        options: Options,
        namespaces: &Namespaces,
    ) -> Result<Self, Errno> {
        match open(&source, recursive, &options) {
            // The caller's user namespace may have no mount namespace of its own yet.
            Err(Errno::PERM) if namespaces.in_user_namespace() || in_user_namespace() => {
                Ok(Self::Later {
                    source,
                    recursive,
                    options: Box::new(options),
                })
            }
            result => result.map(Self::Open),
        }
    }

    /// A directory with all that is mounted below it. Its last component must not be a link
    /// (`ELOOP`): what is looked at is what is copied.
    pub(crate) fn root(
        path: &Path,
        propagation: u64,
        namespaces: &Namespaces,
    ) -> Result<Self, Errno> {
        let options = Options {
            propagation: Some((propagation, true)),
            ..Options::default()
        };
        // Without a slash at the end, which would follow a link.
        let path: PathBuf = path.components().collect();
        let source = Source::Directory(path);
        Self::new(source, true, options, namespaces)
    }

    /// One file of the host, private.
    pub(crate) fn single(path: &Path, namespaces: &Namespaces) -> Result<Self, Errno> {
        let source = Source::Path(path.to_owned());
        Self::new(source, false, Options::default(), namespaces)
    }

    /// The same, opened only when it is needed.
    pub(crate) fn single_later(path: &Path) -> Self {
        Self::Later {
            source: Source::Path(path.to_owned()),
            recursive: false,
            options: Box::default(),
        }
    }

    /// A bind mount's source with its attributes set. `place` is where it is to be, for
    /// messages.
    pub(super) fn of_bind(
        opened: Option<OwnedFd>,
        source: Option<&str>,
        options: &Options,
        namespaces: &Namespaces,
        place: &dyn Fn() -> String,
    ) -> Result<Self, RuntimeError> {
        let recursive = options.bind_recursive;
        let fail = |errno| {
            let name = source.unwrap_or("(descriptor)");
            let target = format!("{}: bind {name}", place());
            RuntimeError::setup(Step::Mount, target, errno)
        };
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
                let source = Source::Path(path.into());
                Self::new(source, recursive, options.clone(), namespaces).map_err(fail)
            }
            (None, None) => {
                let reason = format!("{}: has no source", place());
                Err(RuntimeError::spec("mounts.source", reason))
            }
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
                source,
                recursive,
                options,
            } => open(source, *recursive, options)
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

/// Whether the tree is of a directory.
pub(crate) fn is_directory(tree: BorrowedFd<'_>) -> Result<bool, Errno> {
    let stat = statat(tree, "", AtFlags::EMPTY_PATH)?;
    Ok(FileType::from_raw_mode(stat.st_mode).is_dir())
}

/// What a missing destination for the tree becomes.
pub(super) fn node(tree: BorrowedFd<'_>) -> Result<Node, Errno> {
    Ok(if is_directory(tree)? {
        Node::Directory
    } else {
        Node::File
    })
}

fn open(source: &Source, recursive: bool, options: &Options) -> Result<OwnedFd, Errno> {
    let tree = match source {
        Source::Path(path) => {
            let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
            open_tree(CWD, path, flags)?
        }
        Source::Directory(path) => {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let there = rustix::fs::open(path, flags, Mode::empty())?;
            match FileType::from_raw_mode(fstat(&there)?.st_mode) {
                FileType::Directory => clone_tree(there.as_fd(), recursive)?,
                FileType::Symlink => return Err(Errno::LOOP),
                _ => return Err(Errno::NOTDIR),
            }
        }
    };
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
