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
mod decode;
mod driver;
mod entry;
mod erofs;
mod mount;
mod pending;
mod settle;
mod tar_header;
mod tar_write;
mod work;
mod xattr;

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use corten_db::{Database, Durability};
use corten_oci::{ChainId, DiffId, Digest, Digester, media_type};
use flate2::{Compression, GzBuilder};
use rusqlite::{Connection, OptionalExtension};
use rustix::fs::FlockOperation;

use driver::{Driver, Forms, Lower};
use mount::{ImageKey, ImageMount};
use pending::Pending;

use crate::blobs::Blobs;
use crate::condemned::{self, Kind};
use crate::error::{StoreError, at};
use crate::gc::Trash;
use crate::private;
use crate::rooted::RootFd;
use crate::tmp::TmpDir;

pub use changes::{Change, ChangeKind};
pub use driver::LayerForm;
pub use entry::numeric;
pub use mount::Upper;
pub use work::WorkDir;

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
        let kept = kept.0.lock().unwrap_or_else(PoisonError::into_inner);
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
        // Who holds a lease may count on it from now on.
        if found.is_none() || !condemned::spare(&self.database, Kind::Layer, object)? {
            return Ok(found);
        }
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
        archive: impl Read + Send,
    ) -> Result<bool, StoreError> {
        Ok(self.apply_or_find(Some(expected), archive)?.1)
    }

    fn apply_or_find(
        &self,
        expected: Option<&DiffId>,
        archive: impl Read + Send,
    ) -> Result<(LayerInfo, bool), StoreError> {
        let mut lock = None;
        if let Some(diff_id) = expected {
            lock = Some(self.lock(diff_id)?);
            if let Some(info) = self.info(diff_id)? {
                return Ok((info, false));
            }
        }
        let (digest, staged) = decode::tee(archive, |tar| self.driver.unpack(tar))?;
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
        self.publish(&staged.path, &diff_id, size, &staged.pending, true)?;
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

    /// Remembers that a blob of this store is a layer, once it is known to be: it is unpacked
    /// to nowhere and compared.
    ///
    /// # Errors
    /// [`StoreError::CorruptLayer`] where it is another; [`StoreError::CorruptBlob`] when it
    /// has rotten.
    pub fn compare_blob(&self, diff_id: &DiffId, blob: &LayerBlob) -> Result<(), StoreError> {
        if self
            .blobs_of(diff_id)?
            .iter()
            .any(|known| known.digest == blob.digest)
        {
            return Ok(());
        }
        let mut reader = decode::Verifying::new(self.blobs.open(&blob.digest)?, &blob.digest);
        let plain = decode::tee(&mut reader, |tar| {
            io::copy(tar, &mut io::sink()).map_err(StoreError::BadArchive)
        });
        if let Some(actual) = reader
            .finish()
            .map_err(at("read", self.blobs.path(&blob.digest)))?
        {
            self.blobs.verified(&blob.digest, actual)?;
        }
        let (actual, _) = plain?;
        if actual != *diff_id.digest() {
            return Err(StoreError::CorruptLayer {
                expected: diff_id.clone(),
                actual: DiffId(actual),
            });
        }
        self.record_blob(diff_id, blob)
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
        self.mount_below(None, stack, upper)
    }

    /// Mounts a stack, with a directory that is only read on top of it where there is one.
    fn mount_below(
        &self,
        top: Option<&Path>,
        stack: &[DiffId],
        upper: Upper<'_>,
    ) -> Result<OwnedFd, StoreError> {
        let bases = self.settle(stack)?;
        match self.try_mount(top, stack, &bases, upper) {
            Err(StoreError::Mount { .. }) if self.driver.has_other_lowers() => {
                let bases = self.settle(stack)?;
                self.try_mount(top, stack, &bases, upper)
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
        match self.try_mount(None, stack, bases, upper) {
            Err(StoreError::Mount { .. }) if self.driver.has_other_lowers() => {
                self.mount_below(None, stack, upper)
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
    ) -> Result<OwnedFd, StoreError> {
        let mut lowers = Vec::new();
        if let Some(directory) = top {
            lowers.push(Lower::Directory(mount::open_upper_dir(directory)?));
        }
        let offer = self.kept.is_some();
        for (height, diff_id) in stack.iter().enumerate().rev() {
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
        let fds: Vec<BorrowedFd<'_>> = lowers.iter().map(AsFd::as_fd).collect();
        let mounted = mount::overlay(&fds, upper)?;
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
        let (diff_id, size) = hash(work.upper())?;
        let info = LayerInfo { diff_id, size };
        let _lock = self.lock(&info.diff_id)?;
        if let Some(present) = self.info(&info.diff_id)? {
            return Ok(present);
        }
        let pending = Pending::default();
        self.publish(work.upper(), &info.diff_id, size, &pending, false)?;
        self.database.write(Durability::Relaxed, |db| {
            db.execute(
                "UPDATE layer SET made_here = 1 WHERE diff_id = ?",
                [info.diff_id.digest().as_str()],
            )?;
            Ok::<_, StoreError>(())
        })?;
        Ok(info)
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
        let root = self.mount_below(Some(upper), stack, Upper::ReadOnly)?;
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

    /// The blob a layer came as or was compressed to, if it is still here; a compressed one
    /// before a plain one.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn blob_for(&self, diff_id: &DiffId) -> Result<Option<LayerBlob>, StoreError> {
        let mut blobs = self.blobs_of(diff_id)?.into_iter();
        Ok(blobs.find(|blob| self.blobs.has(&blob.digest)))
    }

    /// Every blob that is known to be a layer, here or not; those that [`blob_for`] prefers
    /// first.
    ///
    /// [`blob_for`]: Self::blob_for
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn blobs_of(&self, diff_id: &DiffId) -> Result<Vec<LayerBlob>, StoreError> {
        let rows: Vec<(String, i64, String)> = self.database.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT blob, size, media_type FROM layer_blob WHERE diff_id = ?
                 ORDER BY blob = diff_id, rowid",
            )?;
            let rows = statement.query_map([diff_id.digest().as_str()], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })?;
            Ok::<_, StoreError>(rows.collect::<Result<_, _>>()?)
        })?;
        rows.into_iter()
            .map(|(digest, size, media_type)| {
                let digest: Digest = digest.parse().map_err(|e| StoreError::Damaged {
                    what: "blob digest",
                    object: diff_id.to_string(),
                    reason: format!("{e}"),
                })?;
                let size = u64::try_from(size).unwrap_or_default();
                Ok(LayerBlob {
                    digest,
                    size,
                    media_type,
                })
            })
            .collect()
    }

    /// The layers that a blob is known to be, with how it is known.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn of_blob(&self, digest: &Digest) -> Result<Vec<(DiffId, LayerBlob)>, StoreError> {
        let ids: Vec<String> = self.database.read(|db| {
            let mut statement =
                db.prepare_cached("SELECT diff_id FROM layer_blob WHERE blob = ?")?;
            let rows = statement.query_map([digest.as_str()], |row| row.get(0))?;
            Ok::<_, StoreError>(rows.collect::<Result<_, _>>()?)
        })?;
        let mut found = Vec::new();
        for diff_id in ids.iter().filter_map(|text| text.parse::<DiffId>().ok()) {
            let blobs = self.blobs_of(&diff_id)?.into_iter();
            let blobs = blobs.filter(|blob| blob.digest == *digest);
            found.extend(blobs.map(|blob| (diff_id.clone(), blob)));
        }
        Ok(found)
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
            let unpacked = decode::tee(&mut reader, |tar| self.driver.unpack(tar));
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
            self.publish(&staged.path, diff_id, size, &staged.pending, true)?;
            self.make_durable(std::slice::from_ref(diff_id))?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Makes (or finds) a compressed blob of a layer, for a push or save.
    ///
    /// # Errors
    /// The layer cannot be read or the store cannot be written;
    /// [`StoreError::CorruptLayer`] when the directory no longer is what it was.
    pub fn compress(&self, diff_id: &DiffId) -> Result<LayerBlob, StoreError> {
        let known = self.blob_for(diff_id)?;
        if let Some(blob) = &known
            && blob.digest != *diff_id.digest()
        {
            return Ok(blob.clone());
        }
        let tmp = TmpDir::create(&self.tmp, "compress")?;
        let path = tmp.path().join("blob");
        let file = File::create(&path).map_err(at("create", &path))?;
        let compressed = decode::Hashing::new(file);
        let gzip = GzBuilder::new()
            .mtime(0)
            .write(compressed, Compression::default());
        let mut plain = decode::Hashing::new(gzip);
        match known {
            // It came uncompressed, perhaps as no archive that we would write.
            Some(blob) => {
                let mut file = self.blobs.open(&blob.digest)?;
                io::copy(&mut file, &mut plain).map_err(at("compress", &path))?;
            }
            None => self.tar(diff_id, &mut plain)?,
        }
        let (gzip, actual, _) = plain.finish();
        if actual != *diff_id.digest() {
            return Err(StoreError::CorruptLayer {
                expected: diff_id.clone(),
                actual: DiffId(actual),
            });
        }
        let (_, digest, size) = gzip.finish().map_err(at("write", &path))?.finish();
        self.blobs.adopt(&digest, &path)?;
        let blob = LayerBlob {
            digest,
            size,
            media_type: media_type::DOCKER_LAYER_GZIP.to_owned(),
        };
        self.record_blob(diff_id, &blob)?;
        Ok(blob)
    }

    /// Where a layer is: a directory, or the file of an image.
    #[must_use]
    pub fn path(&self, diff_id: &DiffId) -> PathBuf {
        self.driver.path(diff_id)
    }

    /// Reads a layer and tells what is wrong with it, as far as its form lets that be seen: of
    /// a directory, where it was made here, so that its tar is what its diff id says.
    pub(crate) fn verify(&self, diff_id: &DiffId) -> Result<Option<String>, StoreError> {
        if let Some(reason) = self.driver.verify(diff_id)? {
            return Ok(Some(reason));
        }
        let made_here = self.database.read(|db| {
            Ok::<_, StoreError>(
                db.prepare_cached("SELECT 1 FROM layer WHERE diff_id = ? AND made_here")?
                    .exists([diff_id.digest().as_str()])?,
            )
        })?;
        if !made_here {
            return Ok(None);
        }
        let mut hashing = decode::Hashing::new(io::sink());
        match self.tar(diff_id, &mut hashing) {
            Ok(()) if hashing.finish().1 == *diff_id.digest() => Ok(None),
            Ok(()) => Ok(Some("its files are not those it was made of".to_owned())),
            Err(StoreError::Io { source, .. }) => Ok(Some(source.to_string())),
            Err(error) => Err(error),
        }
    }

    /// Remembers that a blob is a layer.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn record_blob(&self, diff_id: &DiffId, blob: &LayerBlob) -> Result<(), StoreError> {
        self.database.write(Durability::Relaxed, |db| {
            db.execute(
                "INSERT OR IGNORE INTO layer_blob (diff_id, blob, size, media_type)
                 VALUES (?, ?, ?, ?)",
                rusqlite::params![
                    diff_id.digest().as_str(),
                    blob.digest.as_str(),
                    i64::try_from(blob.size).unwrap_or(i64::MAX),
                    blob.media_type,
                ],
            )?;
            Ok(())
        })
    }

    /// Syncs those of these layers that are not yet durable: one `syncfs` for all where any
    /// content is not synced, else the directory of their names.
    ///
    /// # Errors
    /// The file system or the database fails.
    pub fn make_durable(&self, stack: &[DiffId]) -> Result<(), StoreError> {
        let mut waiting = Vec::new();
        let mut all_synced = true;
        self.database.read(|db| {
            let mut statement =
                db.prepare_cached("SELECT boot FROM layer WHERE diff_id = ? AND boot IS NOT NULL")?;
            for diff_id in stack {
                let boot: Option<String> = statement
                    .query_row([diff_id.digest().as_str()], |row| row.get(0))
                    .optional()?;
                if let Some(boot) = boot {
                    all_synced &= boot.ends_with(SYNCED);
                    waiting.push(diff_id);
                }
            }
            Ok::<_, StoreError>(())
        })?;
        if waiting.is_empty() {
            return Ok(());
        }
        if all_synced {
            self.driver.sync_names()?;
        } else {
            self.driver.sync()?;
        }
        self.database.write(Durability::Relaxed, |db| {
            for diff_id in waiting {
                db.execute(
                    "UPDATE layer SET boot = NULL WHERE diff_id = ?",
                    [diff_id.digest().as_str()],
                )?;
            }
            Ok(())
        })
    }

    /// Every layer on the disk.
    pub(crate) fn all(&self) -> Result<Vec<DiffId>, StoreError> {
        self.driver.list()
    }

    /// What its row says of a layer, if it is believed; a look that nobody counts on.
    pub(crate) fn peek(&self, diff_id: &DiffId) -> Result<Option<LayerInfo>, StoreError> {
        self.database.read(|db| believed(db, diff_id))
    }

    /// As [`peek`](Self::peek), in a transaction.
    pub(crate) fn peek_in(
        db: &Connection,
        diff_id: &DiffId,
    ) -> Result<Option<LayerInfo>, StoreError> {
        believed(db, diff_id)
    }

    /// Whether anything of a layer is on the disk, whatever its row says.
    pub(crate) fn is_on_disk(&self, diff_id: &DiffId) -> bool {
        self.driver.contains(diff_id)
    }

    /// Every layer that has a row, in a transaction.
    pub(crate) fn rows_in(db: &Connection) -> Result<Vec<DiffId>, StoreError> {
        let mut statement = db.prepare_cached("SELECT diff_id FROM layer")?;
        let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
        let rows = rows.collect::<Result<Vec<_>, _>>()?;
        Ok(rows.iter().filter_map(|text| text.parse().ok()).collect())
    }

    /// Moves a layer away that is locked and forgotten.
    pub(crate) fn carry_off(&self, diff_id: &DiffId, trash: &mut Trash) -> Result<(), StoreError> {
        for path in self.driver.paths(diff_id) {
            trash.take(&path)?;
        }
        Ok(())
    }

    /// Whether a layer is believed; `None` while somebody makes it.
    pub(crate) fn look(&self, diff_id: &DiffId) -> Result<Option<bool>, StoreError> {
        if self.peek(diff_id)?.is_some() {
            return Ok(Some(true));
        }
        let Some(_lock) = self.try_lock(diff_id)? else {
            return Ok(None);
        };
        Ok(Some(self.peek(diff_id)?.is_some()))
    }

    /// Removes a layer if that is still wanted once it is locked, where it is told whether the
    /// layer is believed; whether it was. Row first, so that nobody uses a half-removed
    /// directory.
    pub(crate) fn remove_if(
        &self,
        diff_id: &DiffId,
        wanted: impl FnOnce(bool) -> bool,
    ) -> Result<bool, StoreError> {
        let _lock = self.lock(diff_id)?;
        let believed = self.peek(diff_id)?.is_some() && self.is_on_disk(diff_id);
        if !wanted(believed) {
            return Ok(false);
        }
        self.database
            .write(Durability::Relaxed, |db| Self::forget_in(db, diff_id))?;
        self.driver.discard(diff_id)?;
        Ok(true)
    }

    /// Forgets a layer, and which blobs are it unless an image has it or somebody holds it: it
    /// may have to be made from them again.
    pub(crate) fn forget_in(db: &Connection, diff_id: &DiffId) -> Result<(), StoreError> {
        for statement in [
            "DELETE FROM layer WHERE diff_id = ?1",
            "DELETE FROM layer_blob WHERE diff_id = ?1
             AND NOT EXISTS (SELECT 1 FROM image_layer WHERE diff_id = ?1)
             AND NOT EXISTS (SELECT 1 FROM hold WHERE kind = 'layer' AND object = ?1)",
            "DELETE FROM settled WHERE diff_id = ?1",
        ] {
            db.prepare_cached(statement)?
                .execute([diff_id.digest().as_str()])?;
        }
        Ok(())
    }

    /// Takes the row of a layer away, before what it says is.
    fn disown(&self, diff_id: &DiffId) -> Result<(), StoreError> {
        self.database.write(Durability::Relaxed, |db| {
            db.execute(
                "DELETE FROM layer WHERE diff_id = ?",
                [diff_id.digest().as_str()],
            )?;
            Ok(())
        })
    }

    fn publish(
        &self,
        from: &Path,
        diff_id: &DiffId,
        size: u64,
        pending: &Pending,
        synced: bool,
    ) -> Result<(), StoreError> {
        // Before anything has a name.
        let pending = if pending.is_empty() {
            None
        } else {
            let text = serde_json::to_string(pending).map_err(|e| StoreError::Damaged {
                what: "pending record",
                object: diff_id.to_string(),
                reason: e.to_string(),
            })?;
            Some(text)
        };
        if self.driver.contains(diff_id) {
            if self.info(diff_id)?.is_some() {
                return Ok(()); // applied without `expected` while another was
            }
            self.driver.discard(diff_id)?;
        }
        self.driver.publish(from, diff_id, synced)?;
        let boot = format!("{}{}", boot_id(), if synced { SYNCED } else { "" });
        self.database.write(Durability::Relaxed, |db| {
            condemned::spare_in(db, Kind::Layer, diff_id.digest().as_str())?;
            db.execute(
                "INSERT OR REPLACE INTO layer (diff_id, size, boot, pending) VALUES (?, ?, ?, ?)",
                rusqlite::params![
                    diff_id.digest().as_str(),
                    i64::try_from(size).unwrap_or(i64::MAX),
                    boot,
                    pending,
                ],
            )?;
            Ok(())
        })
    }

    /// Only one process at a time makes or removes a layer; the others wait here.
    fn lock(&self, diff_id: &DiffId) -> Result<LayerLock, StoreError> {
        loop {
            if let Some(lock) = self.lock_with(diff_id, FlockOperation::LockExclusive)? {
                return Ok(lock);
            }
        }
    }

    /// As [`lock`](Self::lock); `None` while another has it.
    pub(crate) fn try_lock(&self, diff_id: &DiffId) -> Result<Option<LayerLock>, StoreError> {
        self.lock_with(diff_id, FlockOperation::NonBlockingLockExclusive)
    }

    fn lock_with(
        &self,
        diff_id: &DiffId,
        how: FlockOperation,
    ) -> Result<Option<LayerLock>, StoreError> {
        let path = self.tmp.join(format!("lock-{}", diff_id.digest().hex()));
        loop {
            let opened = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path);
            let file = match opened {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    private::make(&self.tmp).map_err(at("create", &self.tmp))?;
                    continue;
                }
                Err(error) => return Err(at("open", path)(error)),
            };
            match rustix::fs::flock(&file, how) {
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                other => other.map_err(at("lock", &path))?,
            }
            let ours = file.metadata().map_err(at("look at", &path))?;
            if fs::metadata(&path).is_ok_and(|named| named.ino() == ours.ino()) {
                return Ok(Some(LayerLock { path, _file: file }));
            }
        }
    }
}

/// A container's whole file system, to be read while the container may go on changing it.
#[derive(Debug)]
pub struct Merged {
    root: OwnedFd,
    upper: PathBuf,
}

impl Merged {
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
}

/// Images that stay mounted.
#[derive(Debug, Default)]
struct Kept(Mutex<HashMap<ImageKey, Arc<ImageMount>>>);

impl Kept {
    fn add(&self, lowers: Vec<Lower>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(lowers.into_iter().filter_map(|lower| match lower {
            Lower::Image(mount) => Some((mount.key(), mount)),
            Lower::Directory(_) => None,
        }));
    }
}

/// Held while a layer is made; its file goes away with it.
pub(crate) struct LayerLock {
    path: PathBuf,
    _file: File,
}

impl Drop for LayerLock {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "lock file stays for the sweep");
        }
    }
}

/// A layer's top directory is 0755 whatever this process's umask says.
pub(crate) fn make_root(path: &Path) -> Result<(), StoreError> {
    fs::create_dir(path).map_err(at("create", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(at("chmod", path))
}

fn hash(upper: &Path) -> Result<(DiffId, u64), StoreError> {
    let dir = File::open(upper).map_err(at("open", upper))?;
    let mut digester = io::BufWriter::with_capacity(1 << 16, Digester::sha256());
    let size = tar_write::write(dir.as_fd(), &mut digester).map_err(at("read", upper))?;
    let digester = digester
        .into_inner()
        .map_err(|e| at("hash", upper)(e.into_error()))?;
    Ok((DiffId(digester.finish()), size))
}

/// After the boot in a layer's row: its content is synced, its name is not.
const SYNCED: &str = " synced";

/// The row of a layer, if it is believed.
fn believed(db: &Connection, diff_id: &DiffId) -> Result<Option<LayerInfo>, StoreError> {
    let row: Option<(i64, Option<String>)> = db
        .prepare_cached("SELECT size, boot FROM layer WHERE diff_id = ?")?
        .query_row([diff_id.digest().as_str()], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    Ok(row
        .filter(|(_, boot)| boot.as_deref().is_none_or(is_this_boot))
        .map(|(size, _)| LayerInfo {
            diff_id: diff_id.clone(),
            size: u64::try_from(size).unwrap_or_default(),
        }))
}

/// Whether a layer's row is of this boot.
fn is_this_boot(boot: &str) -> bool {
    boot.strip_suffix(SYNCED).unwrap_or(boot) == boot_id()
}

/// Which boot this is (proc(5), `/proc/sys/kernel/random/boot_id`).
fn boot_id() -> &'static str {
    static BOOT: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    BOOT.get_or_init(|| {
        fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map(|id| id.trim().to_owned())
            // Without procfs nothing but this process's own layers is believed.
            .unwrap_or_else(|_| {
                format!("process-{}-{:x}", std::process::id(), rand::random::<u64>())
            })
    })
}

#[cfg(test)]
mod compared;
#[cfg(test)]
mod full_disk;
#[cfg(test)]
mod tests;
