//! Layers, by diff id. What they are on disk is a `driver`'s business; rows, locks and blobs
//! are kept here.
//!
//! A layer is unpacked once, by one process at a time, and appears by rename. Its row says
//! whether it is durable. The content of a layer that arrives is synced before it gets its name;
//! the names of all of an image, and all of a build step's layers, are synced together when the
//! image is stored ([`Layers::make_durable`]), and until then they are believed only within the
//! boot that made them.

mod apply;
mod changes;
mod compose;
mod decode;
mod driver;
mod entry;
mod erofs;
mod known_blobs;
mod mount;
mod pending;
mod rows;
mod settle;
mod shared_sum;
mod sparse_write;
mod squeeze;
mod stargz;
mod tar_header;
mod tar_write;
mod walk;
mod work;
mod xattr;

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use corten_db::Database;
use corten_oci::digest::Algorithm;
use corten_oci::{ChainId, DiffId, Digest, Digester};
use rustix::fs::FlockOperation;

use driver::{Driver, Forms, Lower};
use mount::{ImageKey, ImageMount};
use pending::Pending;
use rows::believed;
use tar_write::Dates;

use crate::blobs::Blobs;
use crate::condemned::{self, Kind};
use crate::error::{StoreError, at};
use crate::mapping::Mapping;
use crate::rooted::RootFd;
use crate::tmp::{NameLock, TmpDir};

pub use changes::{Change, ChangeKind};
pub use compose::{Bulk, Composer, Described};
pub use driver::LayerForm;
pub use entry::{Attributes, WHITEOUT, attributes};
pub use mount::Upper;
pub use squeeze::{Squeeze, Squeezer};
pub use stargz::Stargz;
pub use work::WorkDir;
pub use xattr::{may_be_in_a_layer, set as set_attribute};

/// Writes the tar of one entry of a directory (`.`: the directory itself), with everything below
/// it, under another name. The tree may change meanwhile: what has vanished is left out.
///
/// # Errors
/// The entry cannot be read, or `out` fails.
pub fn write_entry(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    called: &OsStr,
    mut out: impl Write,
) -> io::Result<()> {
    tar_write::write_entry(dir, name, called.as_bytes(), &mut out)
}

/// Writes the tar of a directory and of everything below it, as a copy of it would be: attributes and
/// devices that mean something in a layer are like any others, and files keep their holes. The tree
/// may change meanwhile: what has vanished is left out.
///
/// # Errors
/// Something cannot be read, or `out` fails.
pub fn write_exactly(dir: BorrowedFd<'_>, mut out: impl Write) -> io::Result<()> {
    tar_write::write_exactly(dir, &mut out)
}

/// Lower directories of one overlay, at most (`OVL_MAX_STACK`).
const MAX_LOWERS: usize = 500;

/// A layer that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerInfo {
    /// Its identity: digest of its uncompressed tar.
    pub diff_id: DiffId,
    /// Bytes of file content.
    pub size: u64,
}

/// See [`crate::fuzzing::erofs_image`].
pub(crate) fn fuzz_erofs_image(
    input: &[u8],
    path: &Path,
    out: &mut dyn Write,
) -> Result<(), String> {
    let image = erofs::fuzz_image(input).ok_or("too short")?;
    fs::write(path, image).map_err(|error| error.to_string())?;
    let image = erofs::Image::open(path).map_err(|error| error.to_string())?;
    image.verify().map_err(|error| error.to_string())?;
    erofs::write_tar(&[image], out).map_err(|error| error.to_string())
}

/// A layer as a blob that can leave the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerBlob {
    /// Digest of the blob.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Its media type.
    pub media_type: String,
}

/// The layers of a store.
#[derive(Debug, Clone)]
pub struct Layers {
    driver: Arc<dyn Driver>,
    /// Mounts that live as long as this handle.
    kept: Option<Arc<Kept>>,
    tmp: PathBuf,
    database: Database,
    blobs: Blobs,
}

impl Layers {
    pub(crate) fn new(root: &Path, database: Database, blobs: Blobs, form: LayerForm) -> Self {
        let tmp = root.join("tmp");
        Self {
            driver: Arc::new(Forms::new(&root.join("layers"), &tmp, form)),
            kept: None,
            tmp,
            database,
            blobs,
        }
    }

    /// The same layers, through a handle that keeps what it mounts of images: mounted again
    /// they are the same file systems, with what is in memory of them, also for other
    /// processes. For whoever stays beside a container or a build.
    #[must_use]
    pub fn keeping(&self) -> Self {
        Self {
            kept: Some(Arc::default()),
            ..self.clone()
        }
    }

    /// Has the kept images read past the page cache of their files from now on, where each
    /// byte that is read would be in memory a second time. Best effort.
    pub fn read_directly(&self) {
        let Some(kept) = &self.kept else { return };
        let kept = kept.images.lock().unwrap_or_else(PoisonError::into_inner);
        for image in kept.values() {
            if let Err(error) = image.read_directly() {
                tracing::debug!(%error, "an image is read through its file's page cache");
            }
        }
    }

    /// Whether the layer is here.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn has(&self, diff_id: &DiffId) -> Result<bool, StoreError> {
        Ok(self.info(diff_id)?.is_some())
    }

    /// What is known of a layer that is here.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn info(&self, diff_id: &DiffId) -> Result<Option<LayerInfo>, StoreError> {
        let object = diff_id.digest().as_str();
        let found = self.database.read(|db| believed(db, diff_id))?;
        if found.is_none() {
            return Ok(None);
        }
        // Who holds a lease may count on it from now on. A collection may have taken it between these
        // two, and then it is not condemned either.
        condemned::spare(&self.database, Kind::Layer, object)?;
        self.database.read(|db| believed(db, diff_id))
    }

    /// Unpacks a layer's tar, compressed (gzip, zstd) or not. With `expected`, a layer that
    /// is here already is not read again, and content that differs is refused.
    ///
    /// # Errors
    /// [`StoreError::CorruptLayer`]; an archive that cannot be unpacked; a full disk.
    /// Nothing is left behind then.
    pub fn apply(
        &self,
        expected: Option<&DiffId>,
        archive: impl Read + Send,
    ) -> Result<LayerInfo, StoreError> {
        let archive = BufReader::with_capacity(decode::CHUNK, archive);
        Ok(self.apply_or_find(expected, archive)?.0)
    }

    /// As [`apply`](Self::apply); tells whether the archive was read, and so is known to be
    /// the layer. It is not when the layer is here, or another process has just made it.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub fn apply_compared(
        &self,
        expected: &DiffId,
        archive: impl BufRead + Send,
    ) -> Result<bool, StoreError> {
        Ok(self.apply_or_find(Some(expected), archive)?.1)
    }

    fn apply_or_find(
        &self,
        expected: Option<&DiffId>,
        archive: impl BufRead + Send,
    ) -> Result<(LayerInfo, bool), StoreError> {
        let mut lock = None;
        if let Some(diff_id) = expected {
            lock = Some(self.lock(diff_id)?);
            if let Some(info) = self.info(diff_id)? {
                return Ok((info, false));
            }
        }
        let phases = self.blobs.phases();
        let algorithm = expected.map_or(Algorithm::Sha256, |id| id.digest().algorithm());
        let (digest, staged) =
            decode::tee(archive, algorithm, phases, |tar| self.driver.unpack(tar))?;
        let diff_id = DiffId(digest);
        if let Some(expected) = expected
            && *expected != diff_id
        {
            return Err(StoreError::CorruptLayer {
                expected: expected.clone(),
                actual: diff_id,
            });
        }
        let _lock = match lock {
            Some(lock) => lock,
            None => self.lock(&diff_id)?,
        };
        let size = staged.content;
        self.publish(&staged.path, &diff_id, size, &staged.pending, false)?;
        drop(staged.tmp);
        Ok((LayerInfo { diff_id, size }, true))
    }

    /// Unpacks a blob of this store and remembers that it is the layer, so that pushing the
    /// layer sends the very same bytes.
    ///
    /// # Errors
    /// As [`apply`](Self::apply); [`StoreError::CorruptBlob`] when the blob on disk has
    /// rotten (it is then gone, to be fetched again).
    pub fn apply_blob(&self, blob: &LayerBlob, expected: &DiffId) -> Result<LayerInfo, StoreError> {
        if let Some(info) = self.info(expected)? {
            self.compare_blob(expected, blob)?;
            return Ok(info);
        }
        let mut reader = decode::Verifying::new(self.blobs.open(&blob.digest)?, &blob.digest);
        let applied = self.apply_or_find(Some(expected), &mut reader);
        // Whatever went wrong: if the blob itself is not what it should be, that is why.
        if let Some(actual) = reader
            .finish()
            .map_err(at("read", self.blobs.path(&blob.digest)))?
        {
            self.blobs.verified(&blob.digest, actual)?;
        }
        let (info, read) = applied?;
        if read {
            self.record_blob(expected, blob)?;
        } else {
            self.compare_blob(expected, blob)?;
        }
        Ok(info)
    }

    /// A fresh pair of directories for a build step.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn begin(&self) -> Result<WorkDir, StoreError> {
        WorkDir::create(&self.tmp)
    }

    /// Mounts a stack of layers (bottom first), out of sight of the host's mount table.
    ///
    /// # Errors
    /// A layer is missing, or the kernel refuses.
    pub fn mount(&self, stack: &[DiffId], upper: Upper<'_>) -> Result<OwnedFd, StoreError> {
        self.mount_below(None, stack, upper, None)
    }

    /// As [`mount`](Self::mount), with the owners of all files shown through a mapping. What is
    /// written has the owners in the upper directory that it would have without one.
    ///
    /// # Errors
    /// As [`mount`](Self::mount); a file system, or kernel, that cannot map owners.
    pub fn mount_mapped(
        &self,
        stack: &[DiffId],
        upper: Upper<'_>,
        mapping: Mapping<'_>,
    ) -> Result<OwnedFd, StoreError> {
        self.mount_below(None, stack, upper, Some(mapping))
    }

    /// Mounts a stack, with a directory that is only read on top of it where there is one.
    fn mount_below(
        &self,
        top: Option<&Path>,
        stack: &[DiffId],
        upper: Upper<'_>,
        mapping: Option<Mapping<'_>>,
    ) -> Result<OwnedFd, StoreError> {
        let bases = self.settle(stack)?;
        match self.try_mount(top, stack, &bases, upper, mapping) {
            Err(StoreError::Mount { .. }) if self.driver.has_other_lowers() => {
                let bases = self.settle(stack)?;
                self.try_mount(top, stack, &bases, upper, mapping)
            }
            other => other,
        }
    }

    /// Mounts a stack that is settled on these bases.
    fn mount_settled(
        &self,
        stack: &[DiffId],
        bases: &[Option<ChainId>],
        upper: Upper<'_>,
    ) -> Result<OwnedFd, StoreError> {
        match self.try_mount(None, stack, bases, upper, None) {
            Err(StoreError::Mount { .. }) if self.driver.has_other_lowers() => {
                self.mount_below(None, stack, upper, None)
            }
            other => other,
        }
    }

    fn try_mount(
        &self,
        top: Option<&Path>,
        stack: &[DiffId],
        bases: &[Option<ChainId>],
        upper: Upper<'_>,
        mapping: Option<Mapping<'_>>,
    ) -> Result<OwnedFd, StoreError> {
        let mut lowers = Vec::new();
        if let Some(directory) = top {
            lowers.push(Lower::Directory(mount::open_upper_dir(directory)?));
        }
        let offer = self.kept.is_some();
        // overlayfs takes no directory twice (ELOOP). Nothing of a repeated layer's lower place is
        // seen: its upper one has, hides and empties the same.
        let mut stacked = HashSet::new();
        for (height, diff_id) in stack.iter().enumerate().rev() {
            if !stacked.insert(diff_id) {
                continue;
            }
            if let Some(Some(base)) = bases.get(height) {
                lowers.push(self.driver.settled(diff_id, base, offer)?);
            }
            lowers.extend(self.driver.lowers(diff_id, offer)?);
        }
        let enough = if matches!(upper, Upper::ReadOnly) {
            2
        } else {
            1
        };
        for n in 0..2 {
            if lowers.len() < enough {
                lowers.push(self.driver.empty(n)?);
            }
        }
        if lowers.len() > MAX_LOWERS {
            return Err(StoreError::TooManyLayers {
                layers: stack.len(),
                lowers: lowers.len(),
                limit: MAX_LOWERS,
            });
        }
        let fds: Vec<BorrowedFd<'_>> = lowers.iter().map(AsFd::as_fd).collect();
        let mounted = match mapping {
            None => mount::overlay(&fds, upper)?,
            Some(mapping) => mount::mapped(&fds, upper, mapping)?,
        };
        if let Some(kept) = &self.kept {
            kept.add(lowers);
        }
        Ok(mounted)
    }

    /// Turns a build step's changes into a layer: by rename, nothing is copied.
    ///
    /// # Errors
    /// The changes cannot be read, or the store cannot be written.
    pub fn commit(&self, work: WorkDir) -> Result<LayerInfo, StoreError> {
        self.commit_until(&work, None)
    }

    /// As [`commit`](Self::commit); what was changed later than `last`, in seconds since the
    /// epoch, is said to have been changed then. What is left of the step's directories goes when
    /// `work` is dropped, which may take the longest: some file systems wait for the disk then.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub fn commit_until(&self, work: &WorkDir, last: Option<i64>) -> Result<LayerInfo, StoreError> {
        let (diff_id, size) = hash(work.upper(), last.map_or(Dates::Own, Dates::Until))?;
        let info = LayerInfo { diff_id, size };
        self.publish_made(work.upper(), &info, &Pending::default())
    }

    /// Copies the changes in a container's upper directory into a layer; the container keeps
    /// them. `left_out`: absolute paths that are no changes, with what is below them.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub fn commit_copy(&self, upper: &Path, left_out: &[PathBuf]) -> Result<LayerInfo, StoreError> {
        let dir = File::open(upper).map_err(at("open", upper))?;
        let (reader, mut writer) = io::pipe().map_err(at("make a pipe for", upper))?;
        std::thread::scope(|scope| {
            let feed =
                scope.spawn(move || tar_write::write_living(dir.as_fd(), left_out, &mut writer));
            let applied = self.apply(None, reader);
            match feed.join() {
                Ok(Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => {
                    Err(at("read", upper)(error))
                }
                _ => applied,
            }
        })
    }

    /// A stack of layers with a writable directory on top that may be in use elsewhere, to be
    /// read.
    ///
    /// # Errors
    /// As [`mount`](Self::mount).
    pub fn mount_merged(&self, stack: &[DiffId], upper: &Path) -> Result<Merged, StoreError> {
        let root = self.mount_below(Some(upper), stack, Upper::ReadOnly, None)?;
        Ok(Merged {
            root,
            upper: upper.to_owned(),
        })
    }

    /// What a writable directory changes in the stack below it.
    ///
    /// # Errors
    /// The directories cannot be read.
    pub fn diff_upper(&self, upper: &Path, stack: &[DiffId]) -> Result<Vec<Change>, StoreError> {
        let below = RootFd::from(self.mount(stack, Upper::ReadOnly)?);
        let dir = File::open(upper).map_err(at("open", upper))?;
        changes::list(dir.as_fd(), &below).map_err(at("read", upper))
    }

    /// Writes a layer's tar: always the same bytes, those its diff id is the digest of where
    /// the layer was made here.
    ///
    /// # Errors
    /// The layer is missing or cannot be read, or `out` fails.
    pub fn tar(&self, diff_id: &DiffId, mut out: impl Write) -> Result<(), StoreError> {
        self.driver.write_tar(diff_id, &mut out)
    }

    /// Makes a layer anew from a blob of it, whatever is here of it; only when it is unpacked
    /// and compared is it put in the other's place. Tells whether there was such a blob.
    pub(crate) fn unpack_again(&self, diff_id: &DiffId) -> Result<bool, StoreError> {
        for blob in self.blobs_of(diff_id)? {
            let file = match self.blobs.open(&blob.digest) {
                Ok(file) => file,
                Err(StoreError::NoSuchBlob(_)) => continue,
                Err(error) => return Err(error),
            };
            let _lock = self.lock(diff_id)?;
            let mut reader = decode::Verifying::new(file, &blob.digest);
            let phases = self.blobs.phases();
            let algorithm = diff_id.digest().algorithm();
            let unpacked = decode::tee(&mut reader, algorithm, phases, |tar| {
                self.driver.unpack(tar)
            });
            let path = self.blobs.path(&blob.digest);
            if let Some(actual) = reader.finish().map_err(at("read", path))?
                && actual != blob.digest
            {
                self.blobs.remove(&blob.digest)?;
                continue;
            }
            let (digest, staged) = match unpacked {
                Ok(unpacked) => unpacked,
                Err(error @ StoreError::Io { .. }) => return Err(error),
                Err(error) => {
                    tracing::warn!(%diff_id, blob = %blob.digest, %error, "no layer");
                    continue;
                }
            };
            if digest != *diff_id.digest() {
                tracing::warn!(%diff_id, blob = %blob.digest, "is another layer");
                continue;
            }
            self.disown(diff_id)?;
            self.driver.discard(diff_id)?;
            let size = staged.content;
            self.publish(&staged.path, diff_id, size, &staged.pending, false)?;
            self.make_durable(std::slice::from_ref(diff_id))?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Where a layer is: a directory, or the file of an image.
    #[must_use]
    pub fn path(&self, diff_id: &DiffId) -> PathBuf {
        self.driver.path(diff_id)
    }

    /// Reads a layer and tells what is wrong with it, as far as its form lets that be seen; of one
    /// that was made here, also whether its tar is what its diff id says.
    pub(crate) fn verify(&self, diff_id: &DiffId) -> Result<Option<String>, StoreError> {
        if let Some(reason) = self.driver.verify(diff_id)? {
            return Ok(Some(reason));
        }
        if !self.is_made_here(diff_id)? {
            return Ok(None);
        }
        let mut hashing = decode::Hashing::like(io::sink(), diff_id.digest());
        match self.tar(diff_id, &mut hashing) {
            Ok(()) if hashing.finish().1 == *diff_id.digest() => Ok(None),
            Ok(()) => Ok(Some("its files are not those it was made of".to_owned())),
            Err(StoreError::Io { source, .. }) => Ok(Some(source.to_string())),
            Err(error) => Err(error),
        }
    }

    /// Whether it is what a build step wrote.
    fn is_made_here(&self, diff_id: &DiffId) -> Result<bool, StoreError> {
        self.database.read(|db| {
            Ok::<_, StoreError>(
                db.prepare_cached("SELECT 1 FROM layer WHERE diff_id = ? AND made_here")?
                    .exists([diff_id.digest().as_str()])?,
            )
        })
    }

    /// Only one process at a time makes or removes a layer; the others wait here.
    fn lock(&self, diff_id: &DiffId) -> Result<NameLock, StoreError> {
        loop {
            if let Some(lock) = self.lock_with(diff_id, FlockOperation::LockExclusive)? {
                return Ok(lock);
            }
        }
    }

    /// As [`lock`](Self::lock); `None` while another has it.
    pub(crate) fn try_lock(&self, diff_id: &DiffId) -> Result<Option<NameLock>, StoreError> {
        self.lock_with(diff_id, FlockOperation::NonBlockingLockExclusive)
    }

    fn lock_with(
        &self,
        diff_id: &DiffId,
        how: FlockOperation,
    ) -> Result<Option<NameLock>, StoreError> {
        let name = format!("lock-{}", diff_id.digest().hex());
        NameLock::take(&self.tmp, &name, how)
    }
}

/// A container's whole file system, to be read while the container may go on changing it.
#[derive(Debug)]
pub struct Merged {
    root: OwnedFd,
    upper: PathBuf,
}

impl Merged {
    /// The read-only mount itself.
    #[must_use]
    pub fn into_mount(self) -> OwnedFd {
        self.root
    }

    /// Writes all of it as a tar, in which nothing is hidden: deleted files are not in it.
    /// What vanishes while it is read is left out.
    ///
    /// # Errors
    /// It cannot be read, or `out` fails.
    pub fn write_tar(&self, mut out: impl Write) -> Result<(), StoreError> {
        tar_write::write_living(self.root.as_fd(), &[], &mut out)
            .map(drop)
            .map_err(at("read", &self.upper))
    }

    /// As [`write_tar`](Self::write_tar), of what nothing changes meanwhile. With a `date`, in
    /// seconds since the epoch, every entry is said to be of then.
    ///
    /// # Errors
    /// It cannot be read, or `out` fails.
    pub fn write_dated_tar(
        &self,
        date: Option<i64>,
        mut out: impl Write,
    ) -> Result<(), StoreError> {
        let dates = date.map_or(Dates::Own, Dates::At);
        tar_write::write_dated(self.root.as_fd(), dates, &mut out)
            .map(drop)
            .map_err(at("read", &self.upper))
    }
}

/// What need not be found out again from step to step.
#[derive(Debug, Default)]
struct Kept {
    /// Images that stay mounted.
    images: Mutex<HashMap<ImageKey, Arc<ImageMount>>>,
    /// Layers that lack nothing on any base: that is for good.
    settled: Mutex<HashSet<DiffId>>,
    /// Where small layers are made.
    workbench: Mutex<Option<Arc<TmpDir>>>,
}

impl Kept {
    fn add(&self, lowers: Vec<Lower>) {
        let mut kept = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(lowers.into_iter().filter_map(|lower| match lower {
            Lower::Image(mount) => Some((mount.key(), mount)),
            Lower::Directory(_) => None,
        }));
    }

    fn is_settled(&self, diff_id: &DiffId) -> bool {
        let settled = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        settled.contains(diff_id)
    }

    fn note_settled(&self, diff_id: &DiffId) {
        let mut settled = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        settled.insert(diff_id.clone());
    }
}

/// A layer's top directory is 0755 whatever this process's umask says.
pub(crate) fn make_root(path: &Path) -> Result<(), StoreError> {
    fs::create_dir(path).map_err(at("create", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(at("chmod", path))
}

fn hash(upper: &Path, dates: Dates) -> Result<(DiffId, u64), StoreError> {
    let dir = File::open(upper).map_err(at("open", upper))?;
    let mut digester = io::BufWriter::with_capacity(1 << 16, Digester::sha256());
    let size = tar_write::write_dated(dir.as_fd(), dates, &mut digester);
    let size = size.map_err(at("read", upper))?;
    let digester = digester
        .into_inner()
        .map_err(|e| at("hash", upper)(e.into_error()))?;
    Ok((DiffId(digester.finish()), size))
}

#[cfg(test)]
mod compared;
#[cfg(test)]
mod full_disk;
#[cfg(test)]
mod tests;
