//! Blobs: immutable files named by their digest.
//!
//! A blob appears by rename after fsync, so a file under `blobs/` is whole. Names outlast a
//! power cut from [`Blobs::sync_names`] on, which storing an image calls. While a blob is
//! fetched it is `tmp/ingest-HEX`, locked by whoever fetches it; others wait and find the
//! blob there. A partial file survives its process: the next one goes on where it ended
//! (its bytes are hashed again, never trusted).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use corten_db::Database;
use corten_oci::digest::Algorithm;
use corten_oci::{Digest, Digester};
use rustix::fs::FlockOperation;

use crate::blob_writer::{BlobWriter, Started};
use crate::condemned;
use crate::error::{StoreError, at};
use crate::phases::Phases;
use crate::private;

const COPY_BUFFER: usize = 128 * 1024;

/// The blobs of a store.
#[derive(Debug, Clone)]
pub struct Blobs {
    root: PathBuf,
    tmp: PathBuf,
    /// Says what is condemned.
    database: Option<Database>,
    phases: Arc<Phases>,
}

/// What [`Blobs::writer`] found.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "made and taken apart at once, never stored"
)]
pub enum Ingest {
    /// The blob is here; another process may just have fetched it.
    Present,
    /// It is to be written.
    Writer(BlobWriter),
}

impl Blobs {
    pub(crate) fn new(root: &Path, database: Option<Database>) -> Self {
        Self {
            database,
            phases: Arc::default(),
            root: root.join("blobs"),
            tmp: root.join("tmp"),
        }
    }

    pub(crate) fn phases(&self) -> &Arc<Phases> {
        &self.phases
    }

    /// The file of a blob, whether it is there or not.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.root
            .join(digest.algorithm().as_str())
            .join(digest.hex())
    }

    /// Whether the blob is here; who holds a lease may count on it then.
    #[must_use]
    pub fn has(&self, digest: &Digest) -> bool {
        if !self.is_there(digest) {
            return false;
        }
        self.spare(digest);
        // A collection may have taken it between these two, and then it is not condemned either.
        self.is_there(digest)
    }

    pub(crate) fn is_there(&self, digest: &Digest) -> bool {
        self.path(digest).exists()
    }

    /// A collection that waits to remove it shall not.
    pub(crate) fn spare(&self, digest: &Digest) {
        let Some(database) = &self.database else {
            return;
        };
        if let Err(error) = condemned::spare(database, condemned::Kind::Blob, digest.as_str()) {
            tracing::warn!(blob = %digest, %error, "a blob may be collected");
        }
    }

    /// Size in bytes, if it is here.
    ///
    /// # Errors
    /// The file cannot be looked at.
    pub fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let path = self.path(digest);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(at("look at", path)(error)),
        }
    }

    /// Opens a blob for reading. Its content is not verified here: readers that turn it into
    /// something else (layers, documents) verify while they read.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBlob`], or the file cannot be opened.
    pub fn open(&self, digest: &Digest) -> Result<File, StoreError> {
        let path = self.path(digest);
        match File::open(&path) {
            Ok(file) => Ok(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(StoreError::NoSuchBlob(digest.clone()))
            }
            Err(error) => Err(at("open", path)(error)),
        }
    }

    /// Reads a small blob whole, verified.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBlob`]; [`StoreError::TooLarge`]; [`StoreError::CorruptBlob`],
    /// after removing it so that it can be fetched again.
    pub fn read_to_vec(&self, digest: &Digest, limit: usize) -> Result<Vec<u8>, StoreError> {
        let file = self.open(digest)?;
        let size = file
            .metadata()
            .map_err(at("look at", self.path(digest)))?
            .len();
        if size > limit as u64 {
            return Err(StoreError::TooLarge {
                digest: digest.clone(),
                size,
                limit,
            });
        }
        let mut content = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
        file.take(limit as u64)
            .read_to_end(&mut content)
            .map_err(at("read", self.path(digest)))?;
        let mut digester = Digester::new(digest.algorithm());
        digester.update(&content);
        self.verified(digest, digester.finish())?;
        Ok(content)
    }

    /// Compares a digest found while reading; a corrupt blob is removed.
    pub(crate) fn verified(&self, expected: &Digest, actual: Digest) -> Result<(), StoreError> {
        if *expected == actual {
            return Ok(());
        }
        self.remove(expected)?;
        Err(StoreError::CorruptBlob {
            expected: expected.clone(),
            actual,
        })
    }

    /// Stores bytes that are at hand.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        match self.writer(&digest, Some(bytes.len() as u64))? {
            Ingest::Present => {}
            Ingest::Writer(writer) => writer.commit_all(bytes)?,
        }
        Ok(digest)
    }

    /// Stores a document that is to have this digest, durably.
    ///
    /// # Errors
    /// [`StoreError::CorruptBlob`], or the store cannot be written.
    pub fn put_expected(&self, digest: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
        match self.writer(digest, Some(bytes.len() as u64))? {
            Ingest::Present => {}
            Ingest::Writer(writer) => writer.commit_all(bytes)?,
        }
        self.sync_names()
    }

    /// Begins (or resumes) writing a blob; waits while another process writes the same one.
    ///
    /// # Errors
    /// The store cannot be written, or a partial file cannot be read again.
    pub fn writer(&self, expected: &Digest, size: Option<u64>) -> Result<Ingest, StoreError> {
        let partial = self.tmp.join(format!("ingest-{}", expected.hex()));
        loop {
            if self.has(expected) {
                return Ok(Ingest::Present);
            }
            let opened = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&partial);
            let mut file = match opened {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    private::make(&self.tmp).map_err(at("create", &self.tmp))?;
                    continue;
                }
                Err(error) => return Err(at("open", partial)(error)),
            };
            rustix::fs::flock(&file, FlockOperation::LockExclusive)
                .map_err(at("lock", &partial))?;
            // The one before us may have finished it, or given it up.
            let ours = file.metadata().map_err(at("look at", &partial))?;
            if ours.nlink() == 0 || fs::metadata(&partial).map_or(true, |n| n.ino() != ours.ino()) {
                continue;
            }
            if self.has(expected) {
                fs::remove_file(&partial).map_err(at("remove", &partial))?;
                return Ok(Ingest::Present);
            }
            let mut digester = Digester::new(expected.algorithm());
            let offset = rehash(&mut file, &mut digester).map_err(at("read", &partial))?;
            let started = Started {
                partial,
                file,
                digester,
                offset,
            };
            let writer = BlobWriter::new(self.clone(), expected.clone(), size, started);
            return Ok(Ingest::Writer(writer));
        }
    }

    /// Takes a file on the store's file system for a blob, by rename. Its digest is one that
    /// the caller has just computed from what it wrote.
    ///
    /// # Errors
    /// The file cannot be synced or renamed.
    pub fn adopt(&self, digest: &Digest, file: &Path) -> Result<(), StoreError> {
        let target = self.path(digest);
        File::open(file)
            .and_then(|f| f.sync_all())
            .map_err(at("sync", file))?;
        self.spare(digest);
        publish(file, &target)
    }

    /// Removes a blob; missing is fine.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(&self, digest: &Digest) -> Result<(), StoreError> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(at("remove", path)(error)),
        }
    }

    /// Makes the names of all blobs durable.
    ///
    /// # Errors
    /// The file system fails.
    pub(crate) fn sync_names(&self) -> Result<(), StoreError> {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let directory = self.root.join(algorithm.as_str());
            match File::open(&directory).and_then(|d| d.sync_all()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(at("sync", directory)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether a blob has had its name since then, in seconds since the epoch: a rename counts as
    /// a change of the file's status. That very second counts as well, in which most blobs are
    /// named and synced before their image is stored: one that is lost and made again within it is
    /// taken for older, and so is one that is made after the clock was set back.
    pub(crate) fn was_named_by(&self, digest: &Digest, time: i64) -> bool {
        fs::metadata(self.path(digest)).is_ok_and(|blob| blob.ctime() <= time)
    }

    /// Every blob here.
    pub(crate) fn all(&self) -> Result<Vec<Digest>, StoreError> {
        let mut digests = Vec::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let directory = self.root.join(algorithm.as_str());
            let entries = match fs::read_dir(&directory) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(at("read", directory)(error)),
            };
            for entry in entries.flatten() {
                let name = entry.file_name();
                let text = format!("{}:{}", algorithm.as_str(), name.to_string_lossy());
                if let Ok(digest) = text.parse() {
                    digests.push(digest);
                }
            }
        }
        Ok(digests)
    }
}

fn rehash(file: &mut File, digester: &mut Digester) -> io::Result<u64> {
    file.seek(SeekFrom::Start(0))?;
    let mut buffer = vec![0; COPY_BUFFER];
    let mut offset = 0;
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(offset);
        }
        digester.update(&buffer[..n]);
        offset += n as u64;
    }
}

/// Renames into place.
pub(crate) fn publish(from: &Path, to: &Path) -> Result<(), StoreError> {
    let directory = to.parent().unwrap_or(Path::new("/"));
    private::make(directory).map_err(at("create", directory))?;
    fs::rename(from, to).map_err(at("rename to", to))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn writer(blobs: &Blobs, digest: &Digest, size: u64) -> BlobWriter {
        match blobs.writer(digest, Some(size)).unwrap() {
            Ingest::Writer(writer) => writer,
            Ingest::Present => panic!("already there"),
        }
    }

    #[test]
    fn names_are_as_old_as_their_last_making() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::new(dir.path(), None);
        let digest = blobs.put_bytes(b"content").unwrap();
        let ctime = |path: &Path| fs::metadata(path).unwrap().ctime();
        let path = blobs.path(&digest);
        let made = ctime(&path);
        assert!(blobs.was_named_by(&digest, made));
        assert!(!blobs.was_named_by(&digest, made - 1), "made after that");
        blobs.remove(&digest).unwrap();
        assert!(!blobs.was_named_by(&digest, made), "not here");
        // Made again once the second is over.
        while blobs.was_named_by(&digest, made) || !path.exists() {
            blobs.remove(&digest).unwrap();
            blobs.put_bytes(b"content").unwrap();
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        assert!(ctime(&path) > made);
    }

    #[test]
    fn resumes_where_a_dead_process_ended() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::new(dir.path(), None);
        let digest = Digest::of(b"hello world");
        let mut first = writer(&blobs, &digest, 11);
        first.write_all(b"hello ").unwrap();
        drop(first);
        let mut second = writer(&blobs, &digest, 11);
        assert_eq!(second.offset(), 6);
        second.write_all(b"world").unwrap();
        second.commit().unwrap();
        assert_eq!(blobs.read_to_vec(&digest, 100).unwrap(), b"hello world");
        assert!(matches!(
            blobs.writer(&digest, None).unwrap(),
            Ingest::Present
        ));
        assert!(
            fs::read_dir(dir.path().join("tmp"))
                .unwrap()
                .next()
                .is_none()
        );
    }

    #[test]
    fn corrupt_content_is_never_published_nor_read() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::new(dir.path(), None);
        let digest = Digest::of(b"right");
        let mut bad = writer(&blobs, &digest, 5);
        bad.write_all(b"wrong").unwrap();
        assert!(matches!(bad.commit(), Err(StoreError::CorruptBlob { .. })));
        assert_eq!(writer(&blobs, &digest, 5).offset(), 0);
        let mut short = writer(&blobs, &digest, 5);
        short.write_all(b"rig").unwrap();
        assert!(matches!(
            short.commit(),
            Err(StoreError::WrongSize { actual: 3, .. })
        ));
        blobs.put_bytes(b"right").unwrap();
        fs::write(blobs.path(&digest), b"rotten").unwrap();
        assert!(matches!(
            blobs.read_to_vec(&digest, 100),
            Err(StoreError::CorruptBlob { .. })
        ));
        assert!(!blobs.has(&digest), "it can be fetched again");
    }

    #[test]
    fn two_writers_fetch_once() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::new(dir.path(), None);
        let digest = Digest::of(b"once");
        let mut first = writer(&blobs, &digest, 4);
        let waiting = {
            let (blobs, digest) = (blobs.clone(), digest.clone());
            std::thread::spawn(move || {
                matches!(blobs.writer(&digest, Some(4)).unwrap(), Ingest::Present)
            })
        };
        first.write_all(b"once").unwrap();
        first.commit().unwrap();
        assert!(waiting.join().unwrap());
    }
}
