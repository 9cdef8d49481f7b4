//! Uploads in progress. In a folder one file each, locked (`flock`) while a request writes to
//! it; its length is the upload's state, so a client goes on after any break, even of the
//! server. In an object store [`super::objects::Session`] says what they are. The running
//! hash is only an optimisation: without it what came is read once at the end.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use corten_oci::digest::Algorithm;
use corten_oci::{Digest, Digester};

use super::files::{list, make_dir, remove, stat};
use super::objects::{End, Objects, Session};
use super::place::Place;
use super::{Result, Storage, keys, lock, running};
use crate::error::{IoContext as _, RegistrydError};
use crate::names::{RepoName, UploadId};

/// A request that took over from one that broke waits this long for it to let go.
pub(crate) const LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// One that wants to end an upload as another just does looks for its blob so often, and takes
/// it over after as long as that.
const PAUSE: Duration = Duration::from_millis(100);
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
    repo: RepoName,
    id: UploadId,
    /// What it had when the request began.
    opening: u64,
    length: u64,
    /// `None` where the bytes so far were not hashed.
    hash: Option<Hash>,
    bytes: Received,
}

/// Where what came is.
#[derive(Debug)]
enum Received {
    File(Opened),
    Objects(Session),
}

/// A locked file.
#[derive(Debug)]
struct Opened {
    path: PathBuf,
    file: File,
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

    /// Its file once more, for reading what has come; `None` in an object store.
    pub(crate) fn reader(&self) -> Result<Option<File>> {
        match &self.bytes {
            Received::File(Opened { path, file }) => {
                file.try_clone().context("open", path).map(Some)
            }
            Received::Objects(_) => Ok(None),
        }
    }
}

impl Opened {
    /// Adds pieces at the end. After an error the file is as long as before.
    fn append(&mut self, length: u64, pieces: &[Bytes]) -> Result<()> {
        for piece in pieces {
            if let Err(error) = self.file.write_all(piece) {
                // The first error is the one to report; a longer file would only be refused
                // at its end.
                let _ = self.file.set_len(length);
                return Err(error).context("write", &self.path);
            }
        }
        Ok(())
    }

    fn truncate(&mut self, length: u64) -> Result<()> {
        self.file.set_len(length).context("shorten", &self.path)?;
        let end = self.file.seek(SeekFrom::Start(length));
        end.context("seek in", &self.path).map(drop)
    }

    fn hash(&mut self, mut digester: Digester) -> Result<Digest> {
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
        if self.running.count(repo) >= running::MOST {
            return Err(RegistrydError::TooManyUploads(repo.to_string()));
        }
        let id = UploadId::random();
        match &self.place {
            Place::Files(files) => {
                let path = files.path(&keys::upload(repo, &id));
                if let Some(folder) = path.parent() {
                    make_dir(folder)?;
                }
                File::create_new(&path).context("create", &path)?;
            }
            Place::Objects(objects) => objects.create_session(repo, &id)?,
        }
        self.running.note(repo, &id, 0);
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
        match &self.place {
            Place::Files(files) => {
                let found = stat(&files.path(&keys::upload(repo, id)))?;
                Ok(found.map(|(_, size)| size))
            }
            Place::Objects(objects) => {
                let session = objects.open_session(repo, id)?;
                Ok(session.map(|session| session.length()))
            }
        }
    }

    /// Opens an upload for this request alone, `None` if there is no such upload;
    /// [`RegistrydError::Busy`] if another one has it. To wait here would take a worker thread.
    pub(crate) fn open_upload(&self, repo: &RepoName, id: &UploadId) -> Result<Option<Upload>> {
        let (bytes, length) = match &self.place {
            Place::Files(files) => {
                let path = files.path(&keys::upload(repo, id));
                let opened = File::options().read(true).write(true).open(&path);
                let mut file = match opened {
                    Ok(file) => file,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(error).context("open", &path),
                };
                match file.try_lock() {
                    Ok(()) => {}
                    Err(fs::TryLockError::WouldBlock) => return Err(RegistrydError::Busy(path)),
                    Err(fs::TryLockError::Error(error)) => {
                        return Err(error).context("lock", &path);
                    }
                }
                if !is_still_at(&file, &path)? {
                    return Ok(None);
                }
                let length = file.seek(SeekFrom::End(0)).context("seek in", &path)?;
                (Received::File(Opened { path, file }), length)
            }
            Place::Objects(objects) => {
                let Some(session) = objects.open_session(repo, id)? else {
                    return Ok(None);
                };
                let length = session.length();
                (Received::Objects(session), length)
            }
        };
        let hash = match lock(&self.hashes).remove(id) {
            Some(progress) if progress.length == length => Some(progress.hash),
            _ => None,
        };
        Ok(Some(Upload {
            repo: repo.clone(),
            id: id.clone(),
            opening: length,
            length,
            hash,
            bytes,
        }))
    }

    /// Adds pieces at the end.
    pub(crate) fn append(&self, mut upload: Upload, pieces: &[Bytes]) -> Result<Upload> {
        let appended = match (&self.place, &mut upload.bytes) {
            (_, Received::File(opened)) => opened.append(upload.length, pieces),
            (Place::Objects(objects), Received::Objects(session)) => {
                objects.append(session, pieces)
            }
            (Place::Files(_), Received::Objects(_)) => Err(elsewhere()),
        };
        if let Err(error) = appended {
            self.running.note(&upload.repo, &upload.id, upload.length);
            return Err(error);
        }
        for piece in pieces {
            if let Some(hash) = &mut upload.hash {
                hash.digester.update(piece);
            }
            upload.length += piece.len() as u64;
        }
        Ok(upload)
    }

    /// Takes back what this request added.
    pub(crate) fn roll_back(&self, upload: &mut Upload) -> Result<()> {
        match (&self.place, &mut upload.bytes) {
            (_, Received::File(opened)) => opened.truncate(upload.opening)?,
            (Place::Objects(objects), Received::Objects(session)) => objects.roll_back(session)?,
            (Place::Files(_), Received::Objects(_)) => return Err(elsewhere()),
        }
        upload.length = upload.opening;
        upload.hash = None;
        self.running.note(&upload.repo, &upload.id, upload.length);
        Ok(())
    }

    /// Lets go of an upload that goes on later.
    pub(crate) fn pause_upload(&self, upload: Upload) -> Result<()> {
        if let (Place::Objects(objects), Received::Objects(session)) = (&self.place, upload.bytes) {
            objects.pause(session)?;
        }
        if let Some(hash) = upload.hash {
            let length = upload.length;
            self.remember(&upload.id, Progress { length, hash });
        }
        Ok(())
    }

    fn digest_of(&self, upload: &mut Upload, algorithm: Algorithm) -> Result<Digest> {
        if let Some(hash) = upload.hash.take_if(|hash| hash.algorithm == algorithm) {
            return Ok(hash.digester.finish());
        }
        let digester = Digester::new(algorithm);
        match (&self.place, &mut upload.bytes) {
            (_, Received::File(opened)) => opened.hash(digester),
            (Place::Objects(objects), Received::Objects(session)) => {
                objects.hash(session, digester)
            }
            (Place::Files(_), Received::Objects(_)) => Err(elsewhere()),
        }
    }

    /// Ends an upload: checks its digest, then makes it a blob of the repository.
    pub(crate) fn finish_upload(
        &self,
        repo: &RepoName,
        upload: Upload,
        expected: &Digest,
    ) -> Result<Finish> {
        let id = upload.id.clone();
        let finished = self.finish(repo, upload, expected);
        if let Err(error) = &finished
            && error.is_full()
        {
            // It would only keep the disk full. The first error is the one to report.
            if let Err(error) = self.cancel_upload(repo, &id) {
                tracing::warn!(%error, "an upload could not be thrown away");
            }
        }
        // After other errors it is there yet.
        if matches!(finished, Ok(_) | Err(RegistrydError::Quota { .. })) {
            self.running.ended(repo, &id);
        }
        finished
    }

    fn finish(&self, repo: &RepoName, mut upload: Upload, expected: &Digest) -> Result<Finish> {
        // Another has claimed it, and not ended it.
        let mut abandoned = false;
        if let (Place::Objects(objects), Received::Objects(session)) = (&self.place, &upload.bytes)
            && session.end() == Some(&End::Blob(expected.clone()))
            && upload.length == upload.opening
        {
            if self.await_blob(objects, repo, &upload.id, expected)? {
                return Ok(Finish::Stored);
            }
            abandoned = true;
        }
        let actual = self.digest_of(&mut upload, expected.algorithm())?;
        if actual != *expected {
            self.discard(upload)?;
            return Ok(Finish::Mismatch(actual));
        }
        if let Received::File(Opened { path, file }) = &upload.bytes {
            // Most of the work, before others have to wait for it.
            file.sync_all().context("sync", path)?;
        }
        let _repo = self.share_repo(repo)?;
        let linked = self.linked_bytes(repo, expected, upload.length)?;
        let stored = self.has_data(expected)?;
        let new = if stored { 0 } else { upload.length };
        if let Err(error) = self.admit(repo, linked, new) {
            self.discard(upload)?;
            return Err(error);
        }
        let _blobs = self.share_blobs()?;
        match (&self.place, upload.bytes) {
            (Place::Files(files), Received::File(Opened { path, file })) => {
                // A collection that began before now leaves it alone.
                file.set_modified(SystemTime::now())
                    .and_then(|()| file.sync_all())
                    .context("set the time of", &path)?;
                files.place(&path, &files.blob(expected))?;
                self.link_blob(repo, expected)?;
            }
            (Place::Objects(objects), Received::Objects(mut session)) => {
                if !abandoned {
                    match objects.claim(&mut session, End::Blob(expected.clone())) {
                        Err(RegistrydError::Busy(_)) => {
                            if self.await_blob(objects, repo, &upload.id, expected)? {
                                return Ok(Finish::Stored);
                            }
                            abandoned = true;
                        }
                        other => other?,
                    }
                }
                if abandoned {
                    objects.take_over(repo, &mut session, expected)?;
                }
                let mut keep = !stored;
                if !stored {
                    objects.incarnate(&session, expected)?;
                }
                self.link_blob(repo, expected)?;
                if !objects.at_rest(expected)? {
                    objects.incarnate(&session, expected)?;
                    keep = true;
                }
                objects.end_session(session, keep)?;
            }
            _ => return Err(elsewhere()),
        }
        self.usage.added(repo, linked, new);
        Ok(Finish::Stored)
    }

    /// Another request has claimed an upload before this one could. If it is the same request
    /// once more, as a proxy sends it that got no answer in time, the blob will be there. False
    /// if that takes so long that its server must have died.
    fn await_blob(
        &self,
        objects: &Objects,
        repo: &RepoName,
        id: &UploadId,
        expected: &Digest,
    ) -> Result<bool> {
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            let session = objects.open_session(repo, id)?;
            let ends = match &session {
                Some(session) => session.end() == Some(&End::Blob(expected.clone())),
                None => false,
            };
            // In this order: the blob is there before the upload goes.
            if self.has_blob(repo, expected)? {
                return Ok(true);
            }
            if !ends {
                return Err(RegistrydError::Busy(objects.name(&keys::upload(repo, id))));
            }
            if Instant::now() > deadline {
                return Ok(false);
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Throws an upload away; false if there was none.
    pub(crate) fn cancel_upload(&self, repo: &RepoName, id: &UploadId) -> Result<bool> {
        lock(&self.hashes).remove(id);
        self.running.ended(repo, id);
        match &self.place {
            Place::Files(files) => remove(&files.path(&keys::upload(repo, id))),
            Place::Objects(objects) => match objects.open_session(repo, id)? {
                Some(session) => objects.discard(session).map(|()| true),
                None => Ok(false),
            },
        }
    }

    /// Throws away what came.
    fn discard(&self, upload: Upload) -> Result<()> {
        match (&self.place, upload.bytes) {
            (_, Received::File(Opened { path, .. })) => remove(&path).map(drop),
            (Place::Objects(objects), Received::Objects(session)) => objects.discard(session),
            (Place::Files(_), Received::Objects(_)) => Err(elsewhere()),
        }
    }

    /// Counts the uploads that an earlier server left in a folder.
    pub(super) fn note_uploads(&self) -> Result<()> {
        let Place::Files(files) = &self.place else {
            return Ok(());
        };
        for repo in self.all_repositories()? {
            let folder = files.path(&keys::uploads(&repo));
            for id in list(&folder)?
                .iter()
                .filter_map(|name| UploadId::parse(name))
            {
                if let Some((_, length)) = stat(&folder.join(id.as_str()))? {
                    self.running.note(&repo, &id, length);
                }
            }
        }
        Ok(())
    }

    fn remember(&self, id: &UploadId, progress: Progress) {
        let mut hashes = lock(&self.hashes);
        if hashes.len() >= MAX_HASHES {
            hashes.clear();
        }
        hashes.insert(id.clone(), progress);
    }
}

/// An upload came from another storage, which no caller does.
fn elsewhere() -> RegistrydError {
    RegistrydError::Internal("an upload of another storage".to_owned())
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
