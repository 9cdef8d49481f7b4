//! Id-mapped mounts (runtime-spec, config "POSIX-platform Mounts", options `idmap` and
//! `ridmap`): the owners of files are shown through the mapping of a user namespace,
//! `mount_setattr(MOUNT_ATTR_IDMAP)`.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use corten_oci::runtime_spec::{LinuxIdMapping, Mount};

use super::options::Options;
use super::tree::Tree;
use crate::error::{RuntimeError, Step};
use crate::namespaces::{Namespaces, userns};
use crate::sys;

/// User namespaces by mappings: mounts usually share one.
#[derive(Debug, Default)]
pub(super) struct IdMaps {
    made: Vec<(Vec<LinuxIdMapping>, Vec<LinuxIdMapping>, OwnedFd)>,
}

/// Whether the mount wants a mapping at all.
pub(super) fn wanted(mount: &Mount, options: &Options) -> bool {
    let some = |mappings: &Option<Vec<LinuxIdMapping>>| {
        mappings
            .as_ref()
            .is_some_and(|mappings| !mappings.is_empty())
    };
    options.idmap.is_some() || some(mount.uid_mappings()) || some(mount.gid_mappings())
}

impl IdMaps {
    /// The tree of a bind mount with its attributes and, if it wants one, its mapping.
    pub(super) fn bind(
        &mut self,
        index: usize,
        mount: &Mount,
        options: &Options,
        opened: Option<OwnedFd>,
        namespaces: &Namespaces,
    ) -> Result<Tree, RuntimeError> {
        let field = format!("mounts[{index}]");
        let source = mount.source().as_deref().map(Path::to_string_lossy);
        let place = || format!("{} ({field})", mount.destination().display());
        let tree = Tree::of_bind(opened, source.as_deref(), options, namespaces, &place)?;
        if wanted(mount, options) {
            self.apply(&field, mount, options, namespaces, &tree)?;
        }
        Ok(tree)
    }

    /// Applies the mount's own mapping, else the container's, to a detached tree.
    fn apply(
        &mut self,
        field: &str,
        mount: &Mount,
        options: &Options,
        namespaces: &Namespaces,
        tree: &Tree,
    ) -> Result<(), RuntimeError> {
        let Tree::Open(tree) = tree else {
            let reason = "id-mapped mounts need root on the host";
            return Err(RuntimeError::spec(field, reason));
        };
        let tree = tree.as_fd();
        let recursive = options.idmap.unwrap_or(false);
        let uids = mount.uid_mappings().as_deref().unwrap_or_default();
        let gids = mount.gid_mappings().as_deref().unwrap_or_default();
        let (uids, gids) = match (uids, gids) {
            ([], []) => match namespaces.mappings() {
                ([], _) | (_, []) => {
                    let Some(joined) = namespaces.joined_user() else {
                        let reason = "idmap without uidMappings and gidMappings needs a \
                                      container with a user namespace";
                        return Err(RuntimeError::spec(field, reason));
                    };
                    return attach(mount, tree, recursive, joined);
                }
                own => own,
            },
            ([], _) | (_, []) => {
                let reason = "uidMappings and gidMappings must be given together";
                return Err(RuntimeError::spec(field, reason));
            }
            given => given,
        };
        let known = self
            .made
            .iter()
            .position(|(u, g, _)| u.as_slice() == uids && g.as_slice() == gids);
        let at = match known {
            Some(at) => at,
            None => {
                let made = userns::with_mappings(uids, gids)?;
                self.made.push((uids.to_vec(), gids.to_vec(), made));
                self.made.len() - 1
            }
        };
        match self.made.get(at) {
            Some((_, _, userns)) => attach(mount, tree, recursive, userns.as_fd()),
            None => Ok(()),
        }
    }
}

fn attach(
    mount: &Mount,
    tree: BorrowedFd<'_>,
    recursive: bool,
    userns: BorrowedFd<'_>,
) -> Result<(), RuntimeError> {
    sys::mount_idmap(tree, recursive, userns).map_err(|errno| {
        let mut target = format!("id-mapped {}", mount.destination().display());
        if errno == rustix::io::Errno::INVAL {
            target.push_str(if recursive {
                " (its source's file system, or one that is mounted below it, cannot map ids)"
            } else {
                " (its source's file system cannot map ids)"
            });
        }
        RuntimeError::setup(Step::Mount, target, errno)
    })
}
