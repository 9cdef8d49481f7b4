//! The registry's files. Everything here blocks: the server calls it on worker threads.
//!
//! ```text
//! root/blobs/<alg>/<first two hex>/<hex>/data             the bytes, shared by all repositories
//! root/repositories/<name>/_layers/<alg>/<hex>            this repository holds that blob
//! root/repositories/<name>/_manifests/revisions/<alg>/<hex>   {"mediaType": …}
//! root/repositories/<name>/_manifests/tags/<tag>          a digest
//! root/repositories/<name>/_manifests/referrers/<alg>/<subject>/<alg>-<hex>   its descriptor
//! root/repositories/<name>/_uploads/<uuid>                an upload in progress
//! root/tmp/                                               files not yet in their place
//! root/locks/                                             see `locks`
//! ```
//!
//! Invariants: a file outside `tmp` and `_uploads` is complete from the instant it has its
//! name (written elsewhere on the same filesystem, synced, renamed, its folder synced); a
//! link is written after what it names; a repository shows a blob only if it has a link to
//! it. Paths are made of checked types only ([`crate::names`], [`Digest`]).

mod gc;
mod locks;
mod manifests;
mod uploads;
mod usage;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use corten_oci::Digest;

use crate::error::{IoContext as _, RegistrydError};
use crate::names::{RepoName, UploadId, is_name_part};

pub(crate) use gc::{GRACE, Policy};
pub(crate) use manifests::{Descriptor, ManifestRecord};
pub(crate) use uploads::{Finish, Upload};
pub use usage::Quota;

/// Uploads and temporary files untouched for this long are removed at start.
const STALE_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// A link that somebody looked at is given a new time if it is older than this.
const REFRESH_AFTER: Duration = Duration::from_secs(60 * 60);

type Result<T> = std::result::Result<T, RegistrydError>;

/// The files below one root.
#[derive(Debug)]
pub(crate) struct Storage {
    root: PathBuf,
    /// Hashes of uploads in progress, so that a blob sent in pieces is read once only.
    hashes: Mutex<HashMap<UploadId, uploads::Progress>>,
    usage: usage::Usage,
}

/// A blob opened for reading.
#[derive(Debug)]
pub(crate) struct OpenBlob {
    pub(crate) file: File,
    pub(crate) size: u64,
}

impl Storage {
    /// Opens, and unless `read_only` makes, the folders below `root`, and sweeps what a dead
    /// server left there.
    pub(crate) fn open(root: &Path, read_only: bool, quota: Quota) -> Result<Self> {
        if read_only {
            fs::read_dir(root).context("open the registry's root", root)?;
        } else {
            make_dir(root)?;
        }
        let storage = Self {
            root: root.to_owned(),
            hashes: Mutex::new(HashMap::new()),
            usage: usage::Usage::new(quota),
        };
        if read_only {
            return Ok(storage);
        }
        for folder in ["blobs", "repositories", "tmp", locks::FOLDER] {
            make_dir(&root.join(folder))?;
        }
        storage.sweep_uploads()?;
        Ok(storage)
    }

    /// Opens a root that has been served before.
    pub(crate) fn existing(root: &Path) -> Result<Self> {
        fs::read_dir(root.join("repositories")).context("open the registry's root", root)?;
        make_dir(&root.join(locks::FOLDER))?;
        Self::open(root, true, Quota::default())
    }

    /// Whether the files can be reached.
    pub(crate) fn check(&self) -> Result<()> {
        fs::read_dir(&self.root)
            .context("open the registry's root", &self.root)
            .map(drop)
    }

    /// The blob, if the repository has it.
    pub(crate) fn open_blob(&self, repo: &RepoName, digest: &Digest) -> Result<Option<OpenBlob>> {
        let link = self.layer_link(repo, digest);
        if !link.try_exists().context("look for", &link)? {
            return Ok(None);
        }
        self.open_data(digest)
    }

    /// True if the repository has the blob.
    pub(crate) fn has_blob(&self, repo: &RepoName, digest: &Digest) -> Result<bool> {
        let link = self.layer_link(repo, digest);
        let data = self.blob_data(digest);
        Ok(link.try_exists().context("look for", &link)?
            && data.try_exists().context("look for", &data)?)
    }

    /// True if some repository has, or had, the blob.
    pub(crate) fn has_data(&self, digest: &Digest) -> Result<bool> {
        let data = self.blob_data(digest);
        data.try_exists().context("look for", &data)
    }

    /// Gives a repository a blob of another one; false if that one does not have it.
    pub(crate) fn mount_blob(
        &self,
        repo: &RepoName,
        from: &RepoName,
        digest: &Digest,
    ) -> Result<bool> {
        Ok(self.has_blob(from, digest)? && self.link_stored_blob(repo, digest)?)
    }

    /// Gives a repository a blob that is stored already; false if it is not.
    pub(crate) fn link_stored_blob(&self, repo: &RepoName, digest: &Digest) -> Result<bool> {
        let _repo = self.share_repo(repo)?;
        let _blobs = self.share_blobs()?;
        let data = self.blob_data(digest);
        let Some(blob) = self.open_data(digest)? else {
            return Ok(false);
        };
        let before = self.linked_bytes(repo, digest, blob.size)?;
        self.admit(repo, before, 0)?;
        // A collection that began before now leaves it alone.
        blob.file
            .set_modified(SystemTime::now())
            .context("set the time of", &data)?;
        self.link_blob(repo, digest)?;
        self.usage.added(repo, before, 0);
        Ok(true)
    }

    /// What a link to a blob of this size adds to a repository.
    fn linked_bytes(&self, repo: &RepoName, digest: &Digest, size: u64) -> Result<u64> {
        let link = self.layer_link(repo, digest);
        let known = link.try_exists().context("look for", &link)?;
        Ok(if known { 0 } else { size })
    }

    /// Links a blob that got the time of now, with the locks of both held.
    fn link_blob(&self, repo: &RepoName, digest: &Digest) -> Result<()> {
        let link = self.layer_link(repo, digest);
        self.write(&link, digest.as_str().as_bytes())
    }

    /// Somebody was told that the repository has the blob, and may rely on it in a push.
    pub(crate) fn refresh_link(&self, repo: &RepoName, digest: &Digest) -> Result<()> {
        let link = self.layer_link(repo, digest);
        let now = SystemTime::now();
        let is_old = |path: &Path| {
            let changed = fs::metadata(path).and_then(|metadata| metadata.modified());
            changed.is_ok_and(|changed| {
                now.duration_since(changed)
                    .is_ok_and(|age| age > REFRESH_AFTER)
            })
        };
        if !is_old(&link) {
            return Ok(());
        }
        let _repo = self.share_repo(repo)?;
        match File::open(&link).and_then(|file| file.set_modified(now)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).context("set the time of", &link)
            }
            _ => Ok(()),
        }
    }

    /// Takes the blob from the repository; false if it did not have it.
    pub(crate) fn unlink_blob(&self, repo: &RepoName, digest: &Digest) -> Result<bool> {
        let _alone = self.lock_repo(repo)?;
        let removed = remove(&self.layer_link(repo, digest))?;
        self.usage.forget(repo);
        Ok(removed)
    }

    /// True if anything was ever pushed there.
    pub(crate) fn repo_exists(&self, repo: &RepoName) -> Result<bool> {
        let folder = self.repo(repo);
        for part in ["_manifests", "_layers"] {
            let path = folder.join(part);
            if path.try_exists().context("look for", &path)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// All repositories that hold a manifest, sorted.
    pub(crate) fn repositories(&self) -> Result<Vec<RepoName>> {
        let mut names = Vec::new();
        for name in self.all_repositories()? {
            if self.has_revisions(&name)? {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn all_repositories(&self) -> Result<Vec<RepoName>> {
        let top = self.root.join("repositories");
        let mut found = Vec::new();
        let mut queue = vec![String::new()];
        while let Some(prefix) = queue.pop() {
            let folder = top.join(&prefix);
            for part in list(&folder)? {
                if !is_name_part(&part) {
                    continue;
                }
                let name = if prefix.is_empty() {
                    part
                } else {
                    format!("{prefix}/{part}")
                };
                if let Some(repo) = RepoName::parse(&name) {
                    found.push(repo);
                    queue.push(name);
                }
            }
        }
        Ok(found)
    }

    fn open_data(&self, digest: &Digest) -> Result<Option<OpenBlob>> {
        let path = self.blob_data(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context("open", &path),
        };
        let size = file.metadata().context("read the size of", &path)?.len();
        Ok(Some(OpenBlob { file, size }))
    }

    fn blob_data(&self, digest: &Digest) -> PathBuf {
        self.root
            .join("blobs")
            .join(digest.algorithm().as_str())
            .join(&digest.hex()[..2])
            .join(digest.hex())
            .join("data")
    }

    fn repo(&self, repo: &RepoName) -> PathBuf {
        self.root.join("repositories").join(repo.as_str())
    }

    fn layer_link(&self, repo: &RepoName, digest: &Digest) -> PathBuf {
        self.repo(repo)
            .join("_layers")
            .join(digest.algorithm().as_str())
            .join(digest.hex())
    }

    /// Writes a whole file so that it appears at once or not at all.
    fn write(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let temporary = self.root.join("tmp").join(UploadId::random().as_str());
        let _guard = RemoveOnDrop(&temporary);
        let mut file = File::create_new(&temporary).context("create", &temporary)?;
        file.write_all(bytes).context("write", &temporary)?;
        // The kernel's own stamp may be some milliseconds old, which a collection could mistake.
        file.set_modified(SystemTime::now())
            .context("set the time of", &temporary)?;
        file.sync_all().context("sync", &temporary)?;
        self.place(&temporary, path)?;
        Ok(())
    }

    /// Moves a complete and synced file to its place, replacing what is there.
    fn place(&self, from: &Path, to: &Path) -> Result<()> {
        let folder = to.parent().unwrap_or(&self.root);
        make_dir(folder)?;
        fs::rename(from, to).context("move a file to", to)?;
        sync_dir(folder)
    }
}

/// Nothing here leaves data half changed under a lock, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes a temporary file that did not get to its place (where it did, nothing has its name).
struct RemoveOnDrop<'a>(&'a Path);

impl Drop for RemoveOnDrop<'_> {
    fn drop(&mut self) {
        // Best effort: what stays is swept at a later start.
        let _ = fs::remove_file(self.0);
    }
}

/// Makes a folder and its parents, each one synced into the folder above it.
fn make_dir(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Ok(()) => match path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            Some(parent) => sync_dir(parent),
            None => Ok(()),
        },
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => {
                make_dir(parent)?;
                make_dir(path)
            }
            _ => Err(error).context("create", path),
        },
        Err(error) => Err(error).context("create", path),
    }
}

fn sync_dir(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .context("sync", path)
}

/// Removes a file for good; false if there was none.
fn remove(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => {
            if let Some(folder) = path.parent() {
                sync_dir(folder)?;
            }
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).context("remove", path),
    }
}

/// The names in a folder, none if there is no such folder. Names that are not UTF-8 were not
/// written here and are left out.
fn list(path: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error).context("list", path),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.context("list", path)?;
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}

/// The content of a small file, `None` if there is no such file.
fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("read", path),
    }
}

/// Removes files untouched for [`STALE_AFTER`]. A file that cannot be removed is logged: it
/// wastes space but hinders nothing.
fn sweep(folder: &Path) {
    let Some(limit) = SystemTime::now().checked_sub(STALE_AFTER) else {
        return;
    };
    let names = match list(folder) {
        Ok(names) => names,
        Err(error) => {
            tracing::warn!(%error, "cannot look for stale files");
            return;
        }
    };
    for name in names {
        let path = folder.join(name);
        let stale = fs::symlink_metadata(&path)
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|modified| modified < limit);
        if !stale {
            continue;
        }
        match fs::remove_file(&path) {
            Ok(()) => tracing::info!(path = %path.display(), "removed a stale upload"),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot remove a stale upload");
            }
        }
    }
}
