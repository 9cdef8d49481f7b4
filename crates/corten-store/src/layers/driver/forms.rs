//! Both forms of layers in one store.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::OnceLock;

use corten_oci::{ChainId, DiffId};
use rustix::io::Errno;

use super::{Directories, Driver, Images, Lower, Staged};
use crate::error::{StoreError, at};
use crate::layers::pending::Pending;
use crate::rooted::RootFd;

/// In which form layers are unpacked. Those that are here already stay as they are, and are
/// used as they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LayerForm {
    /// Images where the kernel can mount them, else directories.
    #[default]
    Auto,
    /// Directories: what every kernel with overlayfs can use.
    Directory,
    /// EROFS images. Where the kernel cannot mount them, directories all the same.
    Image,
}

impl FromStr for LayerForm {
    type Err = String;

    /// `auto`, `overlay` or `erofs`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "overlay" => Ok(Self::Directory),
            "erofs" => Ok(Self::Image),
            other => Err(format!(
                "there is no layer driver \"{other}\": use auto, overlay or erofs"
            )),
        }
    }
}

/// Whether an attempt to mount failed of something else than what the kernel can do.
fn says_nothing(error: &StoreError) -> bool {
    let StoreError::Mount { source, .. } = error else {
        return true;
    };
    let busy = [
        Errno::NOMEM,
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOSPC,
        Errno::IO,
        Errno::INTR,
    ];
    busy.iter()
        .any(|errno| source.raw_os_error() == Some(errno.raw_os_error()))
}

/// A store's layers, of whatever form.
#[derive(Debug)]
pub(in crate::layers) struct Forms {
    directories: Directories,
    images: Images,
    form: LayerForm,
    /// Whether this kernel mounts images here, once that was tried.
    mounts: OnceLock<bool>,
}

impl Forms {
    /// `root` holds the layers; `tmp` is on the same file system.
    pub(in crate::layers) fn new(root: &Path, tmp: &Path, form: LayerForm) -> Self {
        Self {
            directories: Directories::new(root.into(), tmp.into()),
            images: Images::new(root.into(), tmp.into()),
            form,
            mounts: OnceLock::new(),
        }
    }

    /// # Errors
    /// It could not be tried: a full disk says nothing of the kernel.
    fn mounts(&self) -> Result<bool, StoreError> {
        if let Some(known) = self.mounts.get() {
            return Ok(*known);
        }
        let can = match self.images.probe() {
            Ok(()) => true,
            Err(error) if says_nothing(&error) => return Err(error),
            Err(error) => {
                if self.form == LayerForm::Image {
                    tracing::warn!(%error, "no EROFS images here: layers are directories");
                } else {
                    tracing::debug!(%error, "no EROFS images here: layers are directories");
                }
                false
            }
        };
        Ok(*self.mounts.get_or_init(|| can))
    }

    /// The form a layer has.
    fn of(&self, diff_id: &DiffId) -> &dyn Driver {
        if !self.directories.contains(diff_id) && self.images.contains(diff_id) {
            &self.images
        } else {
            &self.directories
        }
    }

    /// The form a layer has, and one that can be mounted: an image that another kernel wrote
    /// becomes a directory where this one has no EROFS.
    fn usable(&self, diff_id: &DiffId) -> Result<&dyn Driver, StoreError> {
        if self.directories.contains(diff_id) || !self.images.contains(diff_id) {
            return Ok(&self.directories);
        }
        // Not tried for that: mounting the image itself is.
        if self.mounts.get() == Some(&false) {
            self.convert(diff_id)?;
            return Ok(&self.directories);
        }
        Ok(&self.images)
    }

    fn convert(&self, diff_id: &DiffId) -> Result<(), StoreError> {
        let image = self.images.path(diff_id);
        let (mut reader, mut writer) = io::pipe().map_err(at("make a pipe for", &image))?;
        let staged = std::thread::scope(|scope| {
            let feed = scope.spawn(move || self.images.write_tar(diff_id, &mut writer));
            let staged = self.directories.unpack(&mut reader);
            drop(reader);
            match feed.join() {
                Ok(Err(error)) if staged.is_ok() => Err(error),
                _ => staged,
            }
        })?;
        match self.directories.publish(&staged.path, diff_id, true) {
            // Another process did the same.
            Err(_) if self.directories.contains(diff_id) => {}
            other => other?,
        }
        // The image goes only when the directory is there to stay.
        self.sync_names()?;
        self.images.discard(diff_id)
    }
}

impl Driver for Forms {
    fn root(&self) -> &Path {
        self.directories.root() // the images' as well
    }

    fn unpack(&self, tar: &mut dyn Read) -> Result<Staged, StoreError> {
        if self.form != LayerForm::Directory && self.mounts()? {
            self.images.unpack(tar)
        } else {
            self.directories.unpack(tar)
        }
    }

    fn composes(&self) -> Result<bool, StoreError> {
        Ok(self.form != LayerForm::Directory && self.mounts()?)
    }

    fn compose(&self, tar: &mut dyn Read) -> Result<Staged, StoreError> {
        if self.composes()? {
            self.images.compose(tar)
        } else {
            self.directories.compose(tar)
        }
    }

    fn compose_directory(&self, tar: &mut dyn Read) -> Result<Staged, StoreError> {
        self.directories.compose(tar)
    }

    fn publish(&self, from: &Path, diff_id: &DiffId, synced: bool) -> Result<(), StoreError> {
        if from.is_dir() {
            self.directories.publish(from, diff_id, synced)
        } else {
            self.images.publish(from, diff_id, synced)
        }
    }

    fn contains(&self, diff_id: &DiffId) -> bool {
        self.of(diff_id).contains(diff_id)
    }

    fn path(&self, diff_id: &DiffId) -> PathBuf {
        self.of(diff_id).path(diff_id)
    }

    fn paths(&self, diff_id: &DiffId) -> Vec<PathBuf> {
        let mut paths = self.images.paths(diff_id);
        paths.extend(self.directories.paths(diff_id));
        paths
    }

    fn lowers(&self, diff_id: &DiffId, offer: bool) -> Result<Vec<Lower>, StoreError> {
        self.usable(diff_id)?.lowers(diff_id, offer)
    }

    fn has_other_lowers(&self) -> bool {
        // An image or two were to be mounted, and perhaps that was why it failed.
        self.mounts.get().is_none() && matches!(self.mounts(), Ok(false))
    }

    fn empty(&self, n: u8) -> Result<Lower, StoreError> {
        self.directories.empty(n)
    }

    fn settle(
        &self,
        diff_id: &DiffId,
        base: &ChainId,
        below: &RootFd,
        pending: &Pending,
    ) -> Result<bool, StoreError> {
        self.usable(diff_id)?.settle(diff_id, base, below, pending)
    }

    fn has_settled(&self, diff_id: &DiffId, base: &ChainId) -> bool {
        let images = || self.mounts.get() != Some(&false);
        self.directories.has_settled(diff_id, base)
            || (images() && self.images.has_settled(diff_id, base))
    }

    fn settled(&self, diff_id: &DiffId, base: &ChainId, offer: bool) -> Result<Lower, StoreError> {
        if self.directories.has_settled(diff_id, base) {
            self.directories.settled(diff_id, base, offer)
        } else {
            self.images.settled(diff_id, base, offer)
        }
    }

    fn settled_paths(&self, diff_id: &DiffId, base: &ChainId) -> Vec<PathBuf> {
        let mut paths = self.images.settled_paths(diff_id, base);
        paths.extend(self.directories.settled_paths(diff_id, base));
        paths
    }

    fn list_settled(&self) -> Result<Vec<(DiffId, ChainId)>, StoreError> {
        let mut all = self.directories.list_settled()?;
        all.extend(self.images.list_settled()?);
        Ok(all)
    }

    fn write_tar(&self, diff_id: &DiffId, out: &mut dyn Write) -> Result<(), StoreError> {
        self.of(diff_id).write_tar(diff_id, out)
    }

    fn verify(&self, diff_id: &DiffId) -> Result<Option<String>, StoreError> {
        self.of(diff_id).verify(diff_id)
    }

    fn discard(&self, diff_id: &DiffId) -> Result<(), StoreError> {
        // Both may be there after a conversion that was cut off.
        self.images.discard(diff_id)?;
        self.directories.discard(diff_id)
    }

    fn list(&self) -> Result<Vec<DiffId>, StoreError> {
        let mut all = self.directories.list()?;
        for diff_id in self.images.list()? {
            if !all.contains(&diff_id) {
                all.push(diff_id);
            }
        }
        Ok(all)
    }

    fn sync(&self, layers: &[&DiffId]) -> Result<(), StoreError> {
        let (directories, images): (Vec<&DiffId>, Vec<&DiffId>) = layers
            .iter()
            .copied()
            .partition(|layer| self.directories.path(layer).is_dir());
        if directories.is_empty() {
            return self.images.sync(&images);
        }
        for image in images {
            self.images.sync_content(image)?;
        }
        self.directories.sync(&directories)
    }
}
