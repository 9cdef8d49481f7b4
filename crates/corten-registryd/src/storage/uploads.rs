//! Uploads in progress. One file each, locked (`flock`) while a request writes to it; its
//! length is the upload's state, so a client goes on after any break, even of the server.
//! The running hash is only an optimisation: without it the file is read once at the end.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use corten_oci::digest::Algorithm;
use corten_oci::{Digest, Digester};

use super::{Result, Storage, lock, make_dir, remove};
use crate::error::{IoContext as _, RegistrydError};
use crate::names::{RepoName, UploadId};

/// A request that took over from one that broke waits this long for it to let go.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// Kept hashes; past that the uploads are hashed at their end.
const MAX_HASHES: usize = 1024;

/// A hash of an upload's first `length` bytes.
#[derive(Debug)]
pub(super) struct Progress {
    length: u64,
    hash: Hash,
}

#[derive(Debug)]
struct Hash {
    algorithm: Algorithm,
    digester: Digester,
}

impl Hash {
    fn new(algorithm: Algorithm) -> Self {
        Self {
            algorithm,
            digester: Digester::new(algorithm),
        }
    }
}

/// An upload that this request alone may change.
#[derive(Debug)]
pub(crate) struct Upload {
    id: UploadId,
    path: PathBuf,
    file: File,
    length: u64,
    /// `None` where the bytes so far were not hashed.
    hash: Option<Hash>,
}

/// How an upload ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    /// The blob is stored and belongs to the repository.
    Stored,
    /// The bytes have another digest, and are gone.
    Mismatch(Digest),
}

impl Upload {
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    pub(crate) fn id(&self) -> &UploadId {
        &self.id
    }

    /// Its file once more, for reading what has come.
    pub(crate) fn reader(&self) -> Result<File> {
        self.file.try_clone().context("open", &self.path)
    }

    /// Adds pieces at the end. After an error the file is as long as before.
    pub(crate) fn append(mut self, pieces: &[Bytes]) -> Result<Self> {
        for piece in pieces {
            if let Err(error) = self.file.write_all(piece) {
                // The first error is the one to report; a longer file would only be refused
                // at its end.
                let _ = self.file.set_len(self.length);
                return Err(error).context("write", &self.path);
            }
            if let Some(hash) = &mut self.hash {
                hash.digester.update(piece);
            }
            self.length += piece.len() as u64;
        }
        Ok(self)
    }

    /// Takes back what was added after the first `length` bytes.
    pub(crate) fn truncate(&mut self, length: u64) -> Result<()> {
        self.file.set_len(length).context("shorten", &self.path)?;
        self.file
            .seek(SeekFrom::Start(length))
            .context("seek in", &self.path)?;
        self.length = length;
        self.hash = None;
        Ok(())
    }

    fn digest(&mut self, algorithm: Algorithm) -> Result<Digest> {
        if let Some(hash) = self.hash.take_if(|hash| hash.algorithm == algorithm) {
            return Ok(hash.digester.finish());
        }
        let mut digester = Digester::new(algorithm);
        self.file.rewind().context("seek in", &self.path)?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match self.file.read(&mut buffer) {
                Ok(0) => return Ok(digester.finish()),
                Ok(count) => digester.update(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("read", &self.path),
            }
        }
    }
}

impl Storage {
    /// Starts an upload; `algorithm` is what its digest will probably be of.
    pub(crate) fn create_upload(&self, repo: &RepoName, algorithm: Algorithm) -> Result<UploadId> {
        let id = UploadId::random();
        let path = self.upload_path(repo, &id);
        if let Some(folder) = path.parent() {
            make_dir(folder)?;
        }
        File::create_new(&path).context("create", &path)?;
        self.remember(
            &id,
            Progress {
                length: 0,
                hash: Hash::new(algorithm),
            },
        );
        Ok(id)
    }

    /// How many bytes an upload has, `None` if there is no such upload.
    pub(crate) fn upload_length(&self, repo: &RepoName, id: &UploadId) -> Result<Option<u64>> {
        let path = self.upload_path(repo, id);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context("look at", &path),
        }
    }

    /// Opens an upload for this request alone, `None` if there is no such upload.
    pub(crate) fn open_upload(&self, repo: &RepoName, id: &UploadId) -> Result<Option<Upload>> {
        let path = self.upload_path(repo, id);
        let opened = File::options().read(true).write(true).open(&path);
        let mut file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context("open", &path),
        };
        lock_file(&file, &path)?;
        if !is_still_at(&file, &path)? {
            return Ok(None);
        }
        let length = file.seek(SeekFrom::End(0)).context("seek in", &path)?;
        let hash = match lock(&self.hashes).remove(id) {
            Some(progress) if progress.length == length => Some(progress.hash),
            _ => None,
        };
        Ok(Some(Upload {
            id: id.clone(),
            path,
            file,
            length,
            hash,
        }))
    }

    /// Lets go of an upload that goes on later.
    pub(crate) fn pause_upload(&self, upload: Upload) {
        if let Some(hash) = upload.hash {
            let length = upload.length;
            self.remember(&upload.id, Progress { length, hash });
        }
    }

    /// Ends an upload: checks its digest, then makes it a blob of the repository.
    pub(crate) fn finish_upload(
        &self,
        repo: &RepoName,
        mut upload: Upload,
        expected: &Digest,
    ) -> Result<Finish> {
        let actual = upload.digest(expected.algorithm())?;
        if actual != *expected {
            remove(&upload.path)?;
            return Ok(Finish::Mismatch(actual));
        }
        // Most of the work, before others have to wait for it.
        upload.file.sync_all().context("sync", &upload.path)?;
        let _repo = self.share_repo(repo)?;
        let linked = self.linked_bytes(repo, expected, upload.length)?;
        let new = if self.has_data(expected)? {
            0
        } else {
            upload.length
        };
        if let Err(error) = self.admit(repo, linked, new) {
            remove(&upload.path)?;
            return Err(error);
        }
        let _blobs = self.share_blobs()?;
        // A collection that began before now leaves it alone.
        upload
            .file
            .set_modified(SystemTime::now())
            .and_then(|()| upload.file.sync_all())
            .context("set the time of", &upload.path)?;
        self.place(&upload.path, &self.blob_data(expected))?;
        self.link_blob(repo, expected)?;
        self.usage.added(repo, linked, new);
        Ok(Finish::Stored)
    }

    /// Throws an upload away; false if there was none.
    pub(crate) fn cancel_upload(&self, repo: &RepoName, id: &UploadId) -> Result<bool> {
        lock(&self.hashes).remove(id);
        remove(&self.upload_path(repo, id))
    }

    fn remember(&self, id: &UploadId, progress: Progress) {
        let mut hashes = lock(&self.hashes);
        if hashes.len() >= MAX_HASHES {
            hashes.clear();
        }
        hashes.insert(id.clone(), progress);
    }

    fn upload_path(&self, repo: &RepoName, id: &UploadId) -> PathBuf {
        self.repo(repo).join("_uploads").join(id.as_str())
    }
}

fn lock_file(file: &File, path: &Path) -> Result<()> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(fs::TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(fs::TryLockError::WouldBlock) => {
                return Err(RegistrydError::Busy(path.to_owned()));
            }
            Err(fs::TryLockError::Error(error)) => return Err(error).context("lock", path),
        }
    }
}

/// False if the file was finished or cancelled between opening and locking it.
fn is_still_at(file: &File, path: &Path) -> Result<bool> {
    let ours = file.metadata().context("look at", path)?;
    match fs::metadata(path) {
        Ok(theirs) => Ok(ours.ino() == theirs.ino() && ours.dev() == theirs.dev()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).context("look at", path),
    }
}
