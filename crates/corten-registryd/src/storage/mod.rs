//! What the registry stores, in a folder or an object store ([`place`]). Everything here
//! blocks: the server calls it on worker threads.
//!
//! ```text
//! blobs/<alg>/<first two hex>/<hex>/…                the bytes, shared by all repositories
//! repositories/<name>/_layers/<alg>/<hex>            this repository holds that blob
//! repositories/<name>/_manifests/revisions/<alg>/<hex>   {"mediaType": …}
//! repositories/<name>/_manifests/tags/<tag>          a digest
//! repositories/<name>/_manifests/referrers/<alg>/<subject>/<alg>-<hex>   its descriptor
//! repositories/<name>/_uploads/<uuid>                an upload in progress
//! ```
//!
//! A folder also has `tmp/` (files not yet in their place) and `locks/` (see [`locks`]); what
//! an object store has instead is in [`objects`].
//!
//! Invariants: what has its name is complete from that instant; a link is written after what
//! it names; a repository shows a blob only if it has a link to it. Keys are made of checked
//! types only ([`keys`]).

mod files;
mod gc;
mod keys;
mod locks;
mod manifests;
mod objects;
mod place;
mod running;
mod uploads;
mod usage;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use corten_oci::Digest;

use self::files::Files;
use self::objects::Objects;
use self::place::Place;
use self::running::Running;
use crate::error::RegistrydError;
use crate::names::{RepoName, UploadId, is_name_part};

pub(crate) use gc::{GRACE, Policy};
pub(crate) use manifests::{Descriptor, ManifestRecord, ReferrersPage};
pub use objects::StoreConfig;
pub(crate) use place::{OpenBlob, Source};
pub(crate) use uploads::{Finish, LOCK_PATIENCE, Upload};
pub use usage::Quota;

/// A link that somebody looked at is given a new time if it is older than this.
const REFRESH_AFTER: Duration = Duration::from_secs(60 * 60);

type Result<T> = std::result::Result<T, RegistrydError>;

/// All of it.
#[derive(Debug)]
pub(crate) struct Storage {
    place: Place,
    /// Hashes of uploads in progress, so that a blob sent in pieces is read once only.
    hashes: Mutex<HashMap<UploadId, uploads::Progress>>,
    usage: usage::Usage,
    running: Running,
    /// Collections are to end.
    stopping: AtomicBool,
}

impl Storage {
    /// Opens, and unless `read_only` makes, the folders below `root`, and sweeps what a dead
    /// server left there.
    pub(crate) fn open(root: &Path, read_only: bool, quota: Quota) -> Result<Self> {
        let storage = Self::of(Place::Files(Files::open(root, read_only)?), quota);
        if !read_only {
            storage.sweep_uploads()?;
            storage.note_uploads()?;
        }
        Ok(storage)
    }

    /// Opens a root that has been served before.
    pub(crate) fn existing(root: &Path) -> Result<Self> {
        let files = Files::existing(root)?;
        Ok(Self::of(Place::Files(files), Quota::default()))
    }

    /// Connects to an object store. To be called in a runtime, but on a thread that may wait.
    pub(crate) fn connect(store: &StoreConfig, quota: Quota) -> Result<Self> {
        let storage = Self::of(Place::Objects(Objects::open(store)?), quota);
        // A wrong name or password is better told now than to the first client.
        storage.check()?;
        Ok(storage)
    }

    fn of(place: Place, quota: Quota) -> Self {
        let patience = match &place {
            Place::Files(_) => None,
            Place::Objects(_) => Some(usage::RECOUNT),
        };
        Self {
            place,
            hashes: Mutex::new(HashMap::new()),
            usage: usage::Usage::new(quota),
            running: Running::forgetting_after(patience),
            stopping: AtomicBool::new(false),
        }
    }

    /// Whether its place can be reached.
    pub(crate) fn check(&self) -> Result<()> {
        self.place.check()
    }

    /// The blob, if the repository has it.
    pub(crate) fn open_blob(&self, repo: &RepoName, digest: &Digest) -> Result<Option<OpenBlob>> {
        if !self.place.exists(&keys::link(repo, digest))? {
            return Ok(None);
        }
        self.place.open_blob(digest)
    }

    /// True if the repository has the blob.
    pub(crate) fn has_blob(&self, repo: &RepoName, digest: &Digest) -> Result<bool> {
        Ok(self.place.exists(&keys::link(repo, digest))? && self.has_data(digest)?)
    }

    /// True if some repository has, or had, the blob.
    pub(crate) fn has_data(&self, digest: &Digest) -> Result<bool> {
        Ok(self.place.blob_size(digest)?.is_some())
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
        let Some(size) = self.place.blob_size(digest)? else {
            return Ok(false);
        };
        let before = self.linked_bytes(repo, digest, size)?;
        self.admit(repo, before, 0)?;
        match &self.place {
            Place::Files(files) => {
                // A collection that began before now leaves it alone.
                files::touch(&files.blob(digest))?;
                self.link_blob(repo, digest)?;
            }
            Place::Objects(objects) => {
                self.link_blob(repo, digest)?;
                // Without it the link shows nothing, and is garbage after a while.
                if !objects.comes_to_rest(digest)? {
                    return Ok(false);
                }
            }
        }
        self.usage.added(repo, before, 0);
        Ok(true)
    }

    /// What a link to a blob of this size adds to a repository.
    fn linked_bytes(&self, repo: &RepoName, digest: &Digest, size: u64) -> Result<u64> {
        let known = self.place.exists(&keys::link(repo, digest))?;
        Ok(if known { 0 } else { size })
    }

    /// Links a blob that got the time of now, with the locks of both held.
    fn link_blob(&self, repo: &RepoName, digest: &Digest) -> Result<()> {
        let link = keys::link(repo, digest);
        self.place.write(&link, digest.as_str().as_bytes())
    }

    /// Somebody was told that the repository has the blob, and may rely on it in a push.
    pub(crate) fn refresh_link(&self, repo: &RepoName, digest: &Digest) -> Result<()> {
        let link = keys::link(repo, digest);
        let is_old = |changed: SystemTime| {
            let age = SystemTime::now().duration_since(changed);
            age.is_ok_and(|age| age > REFRESH_AFTER)
        };
        if !self.place.modified(&link)?.is_some_and(is_old) {
            return Ok(());
        }
        let _repo = self.share_repo(repo)?;
        self.place.touch(&link)
    }

    /// Takes the blob from the repository; false if it did not have it.
    pub(crate) fn unlink_blob(&self, repo: &RepoName, digest: &Digest) -> Result<bool> {
        let _alone = self.lock_repo(repo)?;
        let removed = self.place.remove(&keys::link(repo, digest))?;
        self.usage.forget(repo);
        Ok(removed)
    }

    /// True if anything was ever pushed there.
    pub(crate) fn repo_exists(&self, repo: &RepoName) -> Result<bool> {
        let parts = self.place.list(&keys::repo(repo))?;
        let is_ours = |name: &String| matches!(name.as_str(), "_manifests" | "_layers");
        Ok(parts.iter().any(is_ours))
    }

    /// All repositories that hold a manifest, sorted.
    pub(crate) fn repositories(&self) -> Result<Vec<RepoName>> {
        let mut names = self.all_repositories()?;
        let mut hold = vec![false; names.len()];
        for algorithm in keys::ALGORITHMS {
            let folder = |name| format!("{}/{algorithm}", keys::revisions(name));
            let folders: Vec<String> = names.iter().map(folder).collect();
            for (hold, found) in hold.iter_mut().zip(self.place.list_all(&folders)?) {
                *hold |= !found.is_empty();
            }
        }
        let mut hold = hold.into_iter();
        names.retain(|_| hold.next().unwrap_or_default());
        names.sort();
        Ok(names)
    }

    fn all_repositories(&self) -> Result<Vec<RepoName>> {
        let mut found = Vec::new();
        let mut level = vec![String::new()];
        while !level.is_empty() {
            let folder = |prefix: &String| match prefix.as_str() {
                "" => keys::REPOSITORIES.to_owned(),
                prefix => format!("{}/{prefix}", keys::REPOSITORIES),
            };
            let folders: Vec<String> = level.iter().map(folder).collect();
            let listed = self.place.list_all(&folders)?;
            let mut below = Vec::new();
            for (prefix, parts) in level.iter().zip(listed) {
                for part in parts {
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
                        below.push(name);
                    }
                }
            }
            level = below;
        }
        Ok(found)
    }
}

/// Nothing here leaves data half changed under a lock, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
