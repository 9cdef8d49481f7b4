//! Garbage collection, beside whoever serves the same root.
//!
//! A blob is kept while a repository links it. A repository's link is kept while one of its
//! manifests names the blob, and for [`Policy::grace`] after a push or a look at it, which is
//! how long a push may take from its first blob to its manifest.
//!
//! Why nothing fresh is lost: every link is written under the blobs' lock, after the blob got
//! the time of that moment. A collection notes its beginning, then waits for the lock once, so
//! that what got its time earlier has its link; then it looks for links. A blob without one
//! that has a later time is left to the next collection. Links are only removed under the
//! repository's lock, which keeps manifests from being stored at that moment.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use corten_oci::Digest;
use corten_oci::digest::Algorithm;
use serde::Deserialize;

use super::{Result, Storage, list, read, remove, sweep};
use crate::error::{IoContext as _, RegistrydError};
use crate::names::{RepoName, Tag};

/// How long a link without a manifest is kept where it is not configured.
pub(crate) const GRACE: Duration = Duration::from_secs(24 * 60 * 60);
/// Blobs removed before pushes get a turn.
const BATCH: usize = 32;

/// What may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Policy {
    /// Change nothing, only tell.
    pub(crate) dry_run: bool,
    /// Links and untagged manifests younger than this stay.
    pub(crate) grace: Duration,
    /// Remove manifests that no tag, index or subject holds.
    pub(crate) untagged: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            dry_run: false,
            grace: GRACE,
            untagged: false,
        }
    }
}

/// What was, or with a dry run would be, removed.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub(crate) blobs: Vec<Digest>,
    pub(crate) bytes: u64,
    /// `repository@digest`.
    pub(crate) manifests: Vec<String>,
}

/// What a manifest names, as far as that keeps something.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Names {
    config: Option<Named>,
    layers: Vec<Named>,
    manifests: Vec<Named>,
    subject: Option<Named>,
}

#[derive(Debug, Deserialize)]
struct Named {
    digest: Digest,
}

impl Names {
    fn all(&self) -> impl Iterator<Item = &Digest> {
        let several = self.layers.iter().chain(&self.manifests);
        self.config.iter().chain(several).map(|named| &named.digest)
    }
}

impl Storage {
    /// Removes what nothing refers to.
    pub(crate) fn collect(&self, policy: Policy) -> Result<Collected> {
        let Some(_collecting) = self.try_lock_collection()? else {
            return Err(RegistrydError::Collecting(self.root.clone()));
        };
        if !policy.dry_run {
            self.sweep_uploads()?;
        }
        let began = SystemTime::now();
        // Whoever is between a blob's time and its link gets done first.
        drop(self.lock_blobs()?);
        let mut collected = Collected::default();
        let mut live = HashSet::new();
        for repo in self.all_repositories()? {
            self.look_through(&repo, began, policy, &mut live, &mut collected)?;
        }
        let mut dead = Vec::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let top = self.root.join("blobs").join(algorithm.as_str());
            for prefix in list(&top)? {
                let found = digests(&top.join(prefix), algorithm)?;
                dead.extend(found.into_iter().filter(|digest| !live.contains(digest)));
            }
        }
        for batch in dead.chunks(BATCH) {
            let _alone = self.lock_blobs()?;
            for digest in batch {
                if let Some(size) = self.remove_data(digest, began, policy.dry_run)? {
                    collected.blobs.push(digest.clone());
                    collected.bytes += size;
                }
            }
        }
        Ok(collected)
    }

    /// Notes what a repository needs, and removes what it does not.
    fn look_through(
        &self,
        repo: &RepoName,
        began: SystemTime,
        policy: Policy,
        live: &mut HashSet<Digest>,
        collected: &mut Collected,
    ) -> Result<()> {
        let _alone = self.lock_repo(repo)?;
        let revisions = self.digests_in(&self.repo(repo).join("_manifests/revisions"))?;
        let mut manifests = Vec::new();
        let mut understood = true;
        for digest in revisions {
            let bytes = read(&self.blob_data(&digest))?.unwrap_or_default();
            let names: Names = serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(repository = %repo, %digest, %error,
                    "a manifest cannot be read: nothing of its repository is removed");
                understood = false;
                Names::default()
            });
            manifests.push((digest, names));
        }
        if policy.untagged && understood {
            self.drop_untagged(repo, began, policy, &mut manifests, collected)?;
        }
        let mut named: HashSet<&Digest> = manifests.iter().flat_map(|(_, n)| n.all()).collect();
        named.extend(manifests.iter().map(|(digest, _)| digest));
        for digest in self.digests_in(&self.repo(repo).join("_layers"))? {
            let link = self.layer_link(repo, &digest);
            let keep =
                !understood || named.contains(&digest) || is_younger(&link, began, policy.grace)?;
            if keep {
                live.insert(digest);
            } else if !policy.dry_run {
                remove(&link)?;
            }
        }
        live.extend(manifests.into_iter().map(|(digest, _)| digest));
        Ok(())
    }

    /// Removes manifests that are old enough, and that neither a tag, nor an index, nor the
    /// thing they refer to holds.
    fn drop_untagged(
        &self,
        repo: &RepoName,
        began: SystemTime,
        policy: Policy,
        manifests: &mut Vec<(Digest, Names)>,
        collected: &mut Collected,
    ) -> Result<()> {
        let mut held = HashSet::new();
        for name in self.tags(repo)? {
            if let Some(tag) = Tag::parse(&name) {
                held.extend(self.resolve_tag(repo, &tag)?);
            }
        }
        for (digest, _) in manifests.iter() {
            if is_younger(&self.revision(repo, digest), began, policy.grace)? {
                held.insert(digest.clone());
            }
        }
        // What is held holds its parts, and what refers to it.
        loop {
            let before = held.len();
            for (digest, names) in manifests.iter() {
                if held.contains(digest) {
                    held.extend(names.manifests.iter().map(|named| named.digest.clone()));
                } else if let Some(subject) = &names.subject
                    && held.contains(&subject.digest)
                {
                    held.insert(digest.clone());
                }
            }
            if held.len() == before {
                break;
            }
        }
        for (digest, _) in manifests
            .iter()
            .filter(|(digest, _)| !held.contains(digest))
        {
            collected.manifests.push(format!("{repo}@{digest}"));
            if !policy.dry_run {
                self.delete_locked(repo, digest)?;
            }
        }
        manifests.retain(|(digest, _)| held.contains(digest));
        Ok(())
    }

    /// Removes a blob that has no link, unless it got its time after the beginning; its size.
    fn remove_data(
        &self,
        digest: &Digest,
        began: SystemTime,
        dry_run: bool,
    ) -> Result<Option<u64>> {
        let data = self.blob_data(digest);
        let metadata = match fs::metadata(&data) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context("look at", &data),
        };
        if metadata.modified().context("look at", &data)? >= began {
            return Ok(None);
        }
        if !dry_run {
            remove(&data)?;
            self.usage.freed(metadata.len());
            if let Some(folder) = data.parent() {
                fs::remove_dir(folder).context("remove", folder)?;
            }
        }
        Ok(Some(metadata.len()))
    }

    /// Removes uploads and temporary files that nobody has touched for long.
    pub(super) fn sweep_uploads(&self) -> Result<()> {
        sweep(&self.root.join("tmp"));
        for name in self.all_repositories()? {
            sweep(&self.repo(&name).join("_uploads"));
        }
        Ok(())
    }

    /// The digests below a folder with one for each algorithm.
    fn digests_in(&self, folder: &Path) -> Result<Vec<Digest>> {
        let mut found = Vec::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            found.extend(digests(&folder.join(algorithm.as_str()), algorithm)?);
        }
        Ok(found)
    }
}

/// Whether a file was changed less than this before a moment. One that is gone is not.
fn is_younger(path: &Path, moment: SystemTime, age: Duration) -> Result<bool> {
    match fs::metadata(path) {
        Ok(metadata) => {
            let changed = metadata.modified().context("look at", path)?;
            Ok(moment.checked_sub(age).is_none_or(|limit| changed > limit))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).context("look at", path),
    }
}

/// The digests whose hex parts are names in a folder.
fn digests(folder: &Path, algorithm: Algorithm) -> Result<Vec<Digest>> {
    let mut found = Vec::new();
    for name in list(folder)? {
        found.extend(format!("{}:{name}", algorithm.as_str()).parse::<Digest>());
    }
    Ok(found)
}
