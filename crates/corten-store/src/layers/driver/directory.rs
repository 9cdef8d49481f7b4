//! One directory per layer, in overlayfs's own notation (whiteouts as 0/0 devices, opaque
//! directories by extended attribute): what every kernel with overlayfs mounts.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use corten_oci::{ChainId, DiffId};
use rustix::fs::{CWD, IFlags, Mode, OFlags};
use rustix::io::Errno;

use super::{Driver, Lower, Staged, few, names, of_hex, settled_name, settled_of};
use crate::error::{StoreError, at};
use crate::layers::apply;
use crate::layers::pending::Pending;
use crate::layers::{make_root, settle, tar_write};
use crate::private;
use crate::rooted::RootFd;
use crate::rubbish;
use crate::tmp::TmpDir;

/// Layers as directories.
#[derive(Debug)]
pub(in crate::layers) struct Directories {
    root: PathBuf,
    tmp: PathBuf,
}

impl Directories {
    /// `root` holds the layers; `tmp` is on the same file system.
    pub(in crate::layers) fn new(root: PathBuf, tmp: PathBuf) -> Self {
        Self { root, tmp }
    }

    fn settled_path(&self, diff_id: &DiffId, base: &ChainId) -> PathBuf {
        self.root.join(settled_name(diff_id, base))
    }

    fn move_away(&self, path: &Path) -> Result<(), StoreError> {
        if fs::symlink_metadata(path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
            return Ok(());
        }
        let tmp = TmpDir::create(&self.tmp, rubbish::PREFIX)?;
        match fs::rename(path, tmp.path().join("fs")) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(at("move away", path)(error)),
        }
    }
}

fn lower(path: &Path, diff_id: &DiffId) -> Result<Lower, StoreError> {
    match open_directory(path) {
        Ok(fd) => Ok(Lower::Directory(fd)),
        Err(Errno::NOENT) => Err(StoreError::NoSuchLayer(diff_id.clone())),
        Err(errno) => Err(at("open", path)(errno)),
    }
}

/// Has directories that are made in this one put somewhere else on the disk (`chattr +T`), and
/// names one. ext4 would put a layer's files where those of one that was just removed were. Without
/// a journal it does not use their inodes again for some minutes, but looks through them for every
/// file. Where it begins to look for a place comes of the name: one that is always the same would
/// be put where the last one was. Best effort.
fn apart(path: &Path) -> PathBuf {
    let set = || {
        let directory = File::open(path)?;
        let flags = rustix::fs::ioctl_getflags(&directory)?;
        rustix::fs::ioctl_setflags(&directory, flags | IFlags::TOPDIR)?;
        Ok::<_, io::Error>(())
    };
    if let Err(error) = set() {
        tracing::trace!(%error, "not on this file system");
    }
    path.join(format!("fs-{:016x}", rand::random::<u64>()))
}

fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
}

impl Driver for Directories {
    fn root(&self) -> &Path {
        &self.root
    }

    fn unpack(&self, tar: &mut dyn Read) -> Result<Staged, StoreError> {
        let tmp = TmpDir::create(&self.tmp, "layer")?;
        let path = apart(tmp.path());
        make_root(&path)?;
        let root = RootFd::open(&path).map_err(at("open", &path))?;
        let (content, pending) = apply::unpack(&root, tar)?;
        Ok(Staged {
            tmp,
            path,
            content,
            pending,
        })
    }

    fn publish(&self, from: &Path, diff_id: &DiffId, synced: bool) -> Result<(), StoreError> {
        private::make(&self.root).map_err(at("create", &self.root))?;
        if synced {
            let file = File::open(from).map_err(at("open", from))?;
            rustix::fs::syncfs(&file).map_err(at("sync", from))?;
        }
        let target = self.path(diff_id);
        fs::rename(from, &target).map_err(at("rename to", &target))
    }

    fn contains(&self, diff_id: &DiffId) -> bool {
        self.path(diff_id).exists()
    }

    fn path(&self, diff_id: &DiffId) -> PathBuf {
        self.root.join(diff_id.digest().hex())
    }

    fn paths(&self, diff_id: &DiffId) -> Vec<PathBuf> {
        vec![self.path(diff_id)]
    }

    fn lowers(&self, diff_id: &DiffId, _: bool) -> Result<Vec<Lower>, StoreError> {
        Ok(vec![lower(&self.path(diff_id), diff_id)?])
    }

    fn empty(&self, n: u8) -> Result<Lower, StoreError> {
        let path = match n {
            0 => self.root.join("empty"),
            _ => self.root.join(format!("empty{}", n + 1)),
        };
        private::make(&self.root).map_err(at("create", &self.root))?;
        fs::create_dir_all(&path).map_err(at("create", &path))?;
        let fd = open_directory(&path).map_err(at("open", &path))?;
        Ok(Lower::Directory(fd))
    }

    fn settle(
        &self,
        diff_id: &DiffId,
        base: &ChainId,
        below: &RootFd,
        pending: &Pending,
    ) -> Result<bool, StoreError> {
        let of = self.path(diff_id);
        let layer = RootFd::open(&of).map_err(at("open", &of))?;
        let tmp = TmpDir::create(&self.tmp, "settled")?;
        let path = tmp.path().join("fs");
        make_root(&path)?;
        let into = RootFd::open(&path).map_err(at("open", &path))?;
        if !settle::write(&into, &layer, below, pending).map_err(at("settle", &of))? {
            return Ok(false);
        }
        let file = File::open(&path).map_err(at("open", &path))?;
        rustix::fs::syncfs(&file).map_err(at("sync", &path))?;
        // Of one whose row was lost in a crash.
        let target = self.settled_path(diff_id, base);
        self.move_away(&target)?;
        fs::rename(&path, &target).map_err(at("rename to", &target))?;
        self.sync_names()?;
        Ok(true)
    }

    fn has_settled(&self, diff_id: &DiffId, base: &ChainId) -> bool {
        self.settled_path(diff_id, base).exists()
    }

    fn settled(&self, diff_id: &DiffId, base: &ChainId, _: bool) -> Result<Lower, StoreError> {
        lower(&self.settled_path(diff_id, base), diff_id)
    }

    fn settled_paths(&self, diff_id: &DiffId, base: &ChainId) -> Vec<PathBuf> {
        vec![self.settled_path(diff_id, base)]
    }

    fn list_settled(&self) -> Result<Vec<(DiffId, ChainId)>, StoreError> {
        let names = names(&self.root)?;
        Ok(names.iter().filter_map(|name| settled_of(name)).collect())
    }

    fn write_tar(&self, diff_id: &DiffId, mut out: &mut dyn Write) -> Result<(), StoreError> {
        let path = self.path(diff_id);
        let dir = match File::open(&path) {
            Ok(dir) => dir,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::NoSuchLayer(diff_id.clone()));
            }
            Err(error) => return Err(at("open", path)(error)),
        };
        tar_write::write(dir.as_fd(), &mut out).map_err(at("archive", path))?;
        Ok(())
    }

    fn verify(&self, _: &DiffId) -> Result<Option<String>, StoreError> {
        Ok(None) // nothing was remembered of its content
    }

    fn discard(&self, diff_id: &DiffId) -> Result<(), StoreError> {
        self.move_away(&self.path(diff_id))
    }

    fn list(&self) -> Result<Vec<DiffId>, StoreError> {
        let names = names(&self.root)?.into_iter();
        Ok(names.filter_map(|hex| of_hex(&hex)).collect())
    }

    fn sync(&self, layers: &[&DiffId]) -> Result<(), StoreError> {
        let paths: Vec<PathBuf> = layers.iter().map(|layer| self.path(layer)).collect();
        if few::sync(&paths).map_err(at("sync the layers in", &self.root))? {
            return self.sync_names();
        }
        let dir = File::open(&self.root).map_err(at("open", &self.root))?;
        rustix::fs::syncfs(&dir).map_err(at("sync", &self.root))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_put_apart_without_it_being_seen() {
        const EXT4: u64 = 0xef53;
        let dir = tempfile::tempdir().unwrap();
        let flags = |path: &Path| rustix::fs::ioctl_getflags(File::open(path).unwrap()).unwrap();
        let (one, other) = (apart(dir.path()), apart(dir.path()));
        assert!(one != other && one.parent() == Some(dir.path()));
        let found = rustix::fs::statfs(dir.path()).unwrap();
        if u64::try_from(found.f_type) != Ok(EXT4) {
            return; // it is told nothing, and that is no error
        }
        let below = dir.path().join("layer");
        fs::create_dir(&below).unwrap();
        assert!(flags(dir.path()).contains(IFlags::TOPDIR));
        assert!(!flags(&below).contains(IFlags::TOPDIR));
    }
}
