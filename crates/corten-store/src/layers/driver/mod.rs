//! How layers are kept on disk.
//!
//! Everything about a layer that depends on its form is behind [`Driver`]; rows, locks,
//! digests and blobs are not. There are two forms, a directory per layer ([`Directories`])
//! and an EROFS image per layer ([`Images`]), and [`Forms`] which has both: it unpacks into
//! the one that was chosen and uses each layer in the form it has.

mod directory;
mod few;
mod forms;
mod image;

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use corten_oci::digest::Algorithm;
use corten_oci::{ChainId, DiffId};

use super::mount::ImageMount;
use super::pending::Pending;
use super::{apply, make_root};
use crate::error::{StoreError, at};
use crate::rooted::RootFd;
use crate::tmp::TmpDir;

pub use forms::LayerForm;

pub(super) use directory::Directories;
pub(super) use forms::Forms;
pub(super) use image::Images;

/// A layer in the temporary directory, unpacked and synced, without a name yet. It goes away
/// unless it is published.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) tmp: TmpDir,
    /// Where in it the layer is.
    pub(super) path: PathBuf,
    /// Bytes of file content.
    pub(super) content: u64,
    /// What only a base can tell.
    pub(super) pending: Pending,
}

/// What overlayfs takes as a lower directory.
#[derive(Debug)]
pub(super) enum Lower {
    Directory(OwnedFd),
    Image(Arc<ImageMount>),
}

impl AsFd for Lower {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Directory(fd) => fd.as_fd(),
            Self::Image(mount) => mount.as_fd(),
        }
    }
}

/// What the names of settled layers have between the layer's and the base's digest, and the
/// end.
const SETTLED: &str = ".settled";

/// The name of what a layer was settled to on a base.
fn settled_name(diff_id: &DiffId, base: &ChainId) -> String {
    let (layer, base) = (diff_id.digest().hex(), base.digest().hex());
    format!("{layer}.{base}{SETTLED}")
}

/// The layer and base of such a name.
fn settled_of(name: &str) -> Option<(DiffId, ChainId)> {
    let (layer, base) = name.strip_suffix(SETTLED)?.split_once('.')?;
    Some((of_hex(layer)?, of_hex(base)?))
}

/// What was named by its digest's hexadecimals: their number tells the algorithm.
fn of_hex<T: std::str::FromStr>(hex: &str) -> Option<T> {
    let algorithm = if hex.len() == Algorithm::Sha512.hex_len() {
        Algorithm::Sha512
    } else {
        Algorithm::Sha256
    };
    format!("{}:{hex}", algorithm.as_str()).parse().ok()
}

/// The names of what is in a directory, which may be missing.
fn names(root: &Path) -> Result<Vec<String>, StoreError> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(at("read", root)(error)),
    };
    let names = entries
        .flatten()
        .map(|entry| entry.file_name().into_string());
    Ok(names.filter_map(Result::ok).collect())
}

/// A form of layers on disk.
pub(super) trait Driver: fmt::Debug + Send + Sync {
    /// The directory that holds the layers.
    fn root(&self) -> &Path;

    /// Unpacks a plain tar.
    ///
    /// # Errors
    /// An entry cannot be unpacked, or the disk is full; nothing is left then.
    fn unpack(&self, tar: &mut dyn Read) -> Result<Staged, StoreError>;

    /// Whether [`compose`](Self::compose) spares the making of files.
    ///
    /// # Errors
    /// It could not be tried.
    fn composes(&self) -> Result<bool, StoreError> {
        Ok(false)
    }

    /// As [`unpack`](Self::unpack), of a layer that is made here: it is read soon, and nothing of
    /// it is synced.
    ///
    /// # Errors
    /// As [`unpack`](Self::unpack).
    fn compose(&self, tar: &mut dyn Read) -> Result<Staged, StoreError> {
        self.unpack(tar)
    }

    /// As [`compose`](Self::compose), of few files, which become a directory where that can be.
    ///
    /// # Errors
    /// As [`unpack`](Self::unpack).
    fn compose_directory(&self, tar: &mut dyn Read) -> Result<Staged, StoreError> {
        self.compose(tar)
    }

    /// Makes a directory of a small tar, to be published; bytes of file content, and what only a
    /// base can tell. Nothing of it is synced.
    ///
    /// # Errors
    /// As [`unpack`](Self::unpack); what was made is left.
    fn compose_small(&self, tar: &mut dyn Read, path: &Path) -> Result<(u64, Pending), StoreError> {
        make_root(path)?;
        let root = RootFd::open(path).map_err(at("open", path))?;
        apply::unpack(&root, tar)
    }

    /// Gives what was staged (or a build step's upper directory) its name. Nothing of that
    /// name is there. `synced`: its content must outlast a power cut once it has the name;
    /// the name itself does with [`sync_names`](Self::sync_names).
    ///
    /// # Errors
    /// It cannot be renamed or synced.
    fn publish(&self, from: &Path, diff_id: &DiffId, synced: bool) -> Result<(), StoreError>;

    /// Whether something of that name is there, whole or not believed.
    fn contains(&self, diff_id: &DiffId) -> bool;

    /// Where the layer is, for people.
    fn path(&self, diff_id: &DiffId) -> PathBuf;

    /// Everything on the disk that is the layer, there or not; but for what it was settled to.
    fn paths(&self, diff_id: &DiffId) -> Vec<PathBuf>;

    /// The layer as directories that overlayfs takes as lower ones, topmost first. `offer`:
    /// other processes may use the mounts, for as long as they are kept.
    ///
    /// # Errors
    /// [`StoreError::NoSuchLayer`], or it cannot be opened.
    fn lowers(&self, diff_id: &DiffId, offer: bool) -> Result<Vec<Lower>, StoreError>;

    /// Asked when a stack could not be mounted: whether it is worth another try, with lower
    /// directories of another form.
    fn has_other_lowers(&self) -> bool {
        false
    }

    /// An empty lower directory (`n`: overlayfs wants different ones), where a stack has too
    /// few layers to be mounted.
    ///
    /// # Errors
    /// It cannot be made.
    fn empty(&self, n: u8) -> Result<Lower, StoreError>;

    /// Writes what a layer lacks on this base, durably, beside the layer; whether it lacks
    /// anything.
    ///
    /// # Errors
    /// It cannot be written, or the base not be read.
    fn settle(
        &self,
        diff_id: &DiffId,
        base: &ChainId,
        below: &RootFd,
        pending: &Pending,
    ) -> Result<bool, StoreError>;

    /// Whether something was written for the layer on this base, in a form that can be used.
    fn has_settled(&self, diff_id: &DiffId, base: &ChainId) -> bool;

    /// What lies on the layer where it is on this base.
    ///
    /// # Errors
    /// [`StoreError::NoSuchLayer`], or it cannot be opened.
    fn settled(&self, diff_id: &DiffId, base: &ChainId, offer: bool) -> Result<Lower, StoreError>;

    /// Everything on the disk that the layer was settled to on this base, there or not.
    fn settled_paths(&self, diff_id: &DiffId, base: &ChainId) -> Vec<PathBuf>;

    /// Everything that layers were settled to.
    ///
    /// # Errors
    /// The directory cannot be read.
    fn list_settled(&self) -> Result<Vec<(DiffId, ChainId)>, StoreError>;

    /// Writes the layer's tar, always the same bytes.
    ///
    /// # Errors
    /// [`StoreError::NoSuchLayer`]; it cannot be read, or `out` fails.
    fn write_tar(&self, diff_id: &DiffId, out: &mut dyn Write) -> Result<(), StoreError>;

    /// Reads the layer and tells what is wrong with it, as far as its form lets that be seen.
    ///
    /// # Errors
    /// The disk cannot be read.
    fn verify(&self, diff_id: &DiffId) -> Result<Option<String>, StoreError>;

    /// Takes the layer away, atomically. Missing is fine.
    ///
    /// # Errors
    /// It cannot be moved away.
    fn discard(&self, diff_id: &DiffId) -> Result<(), StoreError>;

    /// Everything here by name.
    ///
    /// # Errors
    /// The directory cannot be read.
    fn list(&self) -> Result<Vec<DiffId>, StoreError>;

    /// Syncs the names of all layers.
    ///
    /// # Errors
    /// The file system fails.
    fn sync_names(&self) -> Result<(), StoreError> {
        let root = self.root();
        let synced = File::open(root).and_then(|directory| directory.sync_all());
        synced.map_err(at("sync", root))
    }

    /// Syncs the contents of these layers, and the names of all.
    ///
    /// # Errors
    /// The file system fails.
    fn sync(&self, layers: &[&DiffId]) -> Result<(), StoreError>;
}
