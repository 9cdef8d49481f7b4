//! Masked and read-only paths (runtime-spec, config-linux). What covers a path comes
//! from the host, opened and verified before the container exists (a container's own
//! `/dev/null` may be anything, CVE-2025-31133), and is attached to the descriptor of
//! what was found there.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use corten_oci::runtime_spec::Spec;
use rustix::fs::{FileType, fstat};
use rustix::io::Errno;

use super::is_char_device;
use crate::error::{RuntimeError, Step};
use crate::mounts::{Kernel, RDONLY, Tree, TreeFd, attach_to, clone_tree, new_file_system};
use crate::namespaces::Namespaces;
use crate::root::RootFd;
use crate::sys::{self, MountAttr};

/// What is hidden and what is write-protected.
#[derive(Debug)]
pub(super) struct ProtectPlan {
    masked: Vec<String>,
    readonly: Vec<String>,
    /// The host's `/dev/null`, detached.
    null: Option<Tree>,
}

impl ProtectPlan {
    pub(super) fn new(spec: &Spec, namespaces: &Namespaces) -> Result<Self, RuntimeError> {
        let linux = spec.linux().as_ref();
        let list = |list: Option<&Vec<String>>| list.cloned().unwrap_or_default();
        let masked = list(linux.and_then(|linux| linux.masked_paths().as_ref()));
        let readonly = list(linux.and_then(|linux| linux.readonly_paths().as_ref()));
        let null = if masked.is_empty() {
            None
        } else {
            Some(host_null(namespaces)?)
        };
        Ok(Self {
            masked,
            readonly,
            null,
        })
    }

    /// Child: applies both lists; paths that do not exist need no protection.
    pub(super) fn apply(&self, root: &RootFd, kernel: &Kernel) -> Result<(), RuntimeError> {
        let null = self.null.as_ref().map(open_null).transpose()?;
        let mut covers = Covers {
            null: null.as_ref().map(AsFd::as_fd),
            null_used: false,
            directory: None,
        };
        for path in &self.readonly {
            let (from, name) = kernel.find(root, path);
            make_readonly(from, &name)
                .map_err(|errno| RuntimeError::setup(Step::Readonly, path.clone(), errno))?;
        }
        for path in &self.masked {
            let (from, name) = kernel.find(root, path);
            covers
                .mask(from, &name)
                .map_err(|errno| RuntimeError::setup(Step::Mask, path.clone(), errno))?;
        }
        Ok(())
    }
}

/// The two things paths are covered with. Each is attached once and then copied: a copy
/// of a mount is much cheaper than a new file system.
struct Covers<'a> {
    null: Option<BorrowedFd<'a>>,
    null_used: bool,
    directory: Option<OwnedFd>,
}

impl Covers<'_> {
    fn mask(&mut self, root: &RootFd, path: &str) -> Result<(), Errno> {
        let Some(there) = find(root, path)? else {
            return Ok(());
        };
        if FileType::from_raw_mode(fstat(&there)?.st_mode).is_dir() {
            match &self.directory {
                Some(first) => attach_to(clone_tree(first.as_fd(), false)?.as_fd(), there.as_fd()),
                None => {
                    let data = [
                        ("mode".to_owned(), Some("755".to_owned())),
                        ("nr_blocks".to_owned(), Some("1".to_owned())),
                        ("nr_inodes".to_owned(), Some("1".to_owned())),
                    ];
                    let empty = new_file_system("tmpfs", "tmpfs", &data, RDONLY)?;
                    attach_to(empty.as_fd(), there.as_fd())?;
                    self.directory = Some(empty);
                    Ok(())
                }
            }
        } else {
            let null = self.null.ok_or(Errno::NOENT)?;
            if std::mem::replace(&mut self.null_used, true) {
                return attach_to(clone_tree(null, false)?.as_fd(), there.as_fd());
            }
            attach_to(null, there.as_fd())
        }
    }
}

/// The path itself becomes a mount of its own, read-only with all below it.
fn make_readonly(root: &RootFd, path: &str) -> Result<(), Errno> {
    let Some(there) = find(root, path)? else {
        return Ok(());
    };
    let tree = clone_tree(there.as_fd(), true)?;
    let attr = MountAttr {
        set: RDONLY,
        ..MountAttr::default()
    };
    sys::mount_setattr(tree.as_fd(), true, attr)?;
    attach_to(tree.as_fd(), there.as_fd())
}

fn find(root: &RootFd, path: &str) -> Result<Option<OwnedFd>, Errno> {
    match root.open(path) {
        Ok(there) => Ok(Some(there)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// The host's `/dev/null` as a detached mount.
fn host_null(namespaces: &Namespaces) -> Result<Tree, RuntimeError> {
    Tree::single(NULL.as_ref(), namespaces).map_err(null_failed)
}

/// Child: verified to be the null device.
fn open_null(null: &Tree) -> Result<TreeFd<'_>, RuntimeError> {
    let null = null.open(null_failed)?;
    if is_char_device(null.as_fd(), 1, 3) {
        Ok(null)
    } else {
        Err(null_failed(Errno::NODEV))
    }
}

const NULL: &str = "/dev/null";

fn null_failed(errno: Errno) -> RuntimeError {
    RuntimeError::setup(Step::Mask, "/dev/null of the host", errno)
}
