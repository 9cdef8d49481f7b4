//! Manifests, tags and referrers of a repository. A manifest's bytes are a blob that no
//! `_layers` link shows; its revision record makes it a manifest of the repository.

use std::path::PathBuf;

use corten_oci::Digest;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::locks::Lock;
use super::{Result, Storage, list, read, remove};
use crate::error::{IoContext as _, RegistrydError};
use crate::names::{RepoName, Tag};

/// A manifest as it was pushed.
#[derive(Debug)]
pub(crate) struct ManifestRecord {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    pub(crate) bytes: Vec<u8>,
}

/// An entry of a referrers index (image-spec `descriptor.md`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(crate) annotations: Map<String, Value>,
}

/// What a revision file holds.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Revision {
    media_type: String,
    /// What the manifest refers to, so that its referrers entry can be removed with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subject: Option<Digest>,
}

impl Storage {
    /// Stores a manifest, then its place among its subject's referrers, then its tags. The
    /// repository's lock is held since what it names was looked for.
    pub(crate) fn put_manifest(
        &self,
        _alone: &Lock,
        repo: &RepoName,
        record: &ManifestRecord,
        subject: Option<(&Digest, &Descriptor)>,
        tags: &[Tag],
    ) -> Result<()> {
        let size = record.bytes.len() as u64;
        let linked = if self.has_manifest(repo, &record.digest)? {
            0
        } else {
            size
        };
        let new = if self.has_data(&record.digest)? {
            0
        } else {
            size
        };
        self.admit(repo, linked, new)?;
        let _blobs = self.share_blobs()?;
        self.write(&self.blob_data(&record.digest), &record.bytes)?;
        if let Some((subject, descriptor)) = subject {
            let path = self.referrer(repo, subject, &record.digest);
            self.write_json(path, descriptor)?;
        }
        let revision = Revision {
            media_type: record.media_type.clone(),
            subject: subject.map(|(digest, _)| digest.clone()),
        };
        self.write_json(self.revision(repo, &record.digest), &revision)?;
        for tag in tags {
            self.write_tag(repo, tag, &record.digest)?;
        }
        self.usage.added(repo, linked, new);
        Ok(())
    }

    /// Makes a tag point to a manifest that the repository has.
    pub(crate) fn tag_manifest(&self, repo: &RepoName, digest: &Digest, tag: &Tag) -> Result<()> {
        let _alone = self.lock_repo(repo)?;
        self.write_tag(repo, tag, digest)
    }

    fn write_tag(&self, repo: &RepoName, tag: &Tag, digest: &Digest) -> Result<()> {
        let path = self.tags_dir(repo).join(tag.as_str());
        self.write(&path, digest.as_str().as_bytes())
    }

    /// The manifest with this digest, if the repository has it.
    pub(crate) fn manifest(
        &self,
        repo: &RepoName,
        digest: &Digest,
    ) -> Result<Option<ManifestRecord>> {
        let Some(revision) = self.read_json::<Revision>(self.revision(repo, digest))? else {
            return Ok(None);
        };
        let bytes = read(&self.blob_data(digest))?;
        Ok(bytes.map(|bytes| ManifestRecord {
            digest: digest.clone(),
            media_type: revision.media_type,
            bytes,
        }))
    }

    /// True if the repository has a manifest with this digest.
    pub(crate) fn has_manifest(&self, repo: &RepoName, digest: &Digest) -> Result<bool> {
        let path = self.revision(repo, digest);
        path.try_exists().context("look for", &path)
    }

    /// What a tag points to.
    pub(crate) fn resolve_tag(&self, repo: &RepoName, tag: &Tag) -> Result<Option<Digest>> {
        let path = self.tags_dir(repo).join(tag.as_str());
        let Some(bytes) = read(&path)? else {
            return Ok(None);
        };
        match std::str::from_utf8(&bytes)
            .unwrap_or_default()
            .trim_end()
            .parse()
        {
            Ok(digest) => Ok(Some(digest)),
            Err(error) => Err(damaged(path, &error)),
        }
    }

    /// A repository's tags, in no order.
    pub(crate) fn tags(&self, repo: &RepoName) -> Result<Vec<String>> {
        let names = list(&self.tags_dir(repo))?;
        Ok(names
            .into_iter()
            .filter(|name| Tag::parse(name).is_some())
            .collect())
    }

    /// Removes a tag; false if there was none.
    pub(crate) fn delete_tag(&self, repo: &RepoName, tag: &Tag) -> Result<bool> {
        let _alone = self.lock_repo(repo)?;
        remove(&self.tags_dir(repo).join(tag.as_str()))
    }

    /// Removes a manifest and every tag that points to it; false if there was none. The tags
    /// go first: at no instant does one point to nothing.
    pub(crate) fn delete_manifest(&self, repo: &RepoName, digest: &Digest) -> Result<bool> {
        let _alone = self.lock_repo(repo)?;
        self.delete_locked(repo, digest)
    }

    /// As [`Self::delete_manifest`], with the repository's lock held.
    pub(super) fn delete_locked(&self, repo: &RepoName, digest: &Digest) -> Result<bool> {
        let Some(revision) = self.read_json::<Revision>(self.revision(repo, digest))? else {
            return Ok(false);
        };
        for name in self.tags(repo)? {
            if let Some(tag) = Tag::parse(&name)
                && self.resolve_tag(repo, &tag)?.as_ref() == Some(digest)
            {
                remove(&self.tags_dir(repo).join(name))?;
            }
        }
        remove(&self.revision(repo, digest))?;
        if let Some(subject) = &revision.subject {
            remove(&self.referrer(repo, subject, digest))?;
        }
        self.usage.forget(repo);
        Ok(true)
    }

    /// The manifests whose subject has this digest, by digest.
    pub(crate) fn referrers(&self, repo: &RepoName, subject: &Digest) -> Result<Vec<Descriptor>> {
        let folder = self.referrers_dir(repo, subject);
        let mut names = list(&folder)?;
        names.sort();
        let mut found = Vec::new();
        for name in names {
            // A server killed between two writes may have left an entry without its manifest.
            if let Some(descriptor) = self.read_json::<Descriptor>(folder.join(name))?
                && self.has_manifest(repo, &descriptor.digest)?
            {
                found.push(descriptor);
            }
        }
        Ok(found)
    }

    pub(super) fn has_revisions(&self, repo: &RepoName) -> Result<bool> {
        let folder = self.manifests_dir(repo).join("revisions");
        for algorithm in ["sha256", "sha512"] {
            if !list(&folder.join(algorithm))?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn manifests_dir(&self, repo: &RepoName) -> PathBuf {
        self.repo(repo).join("_manifests")
    }

    fn tags_dir(&self, repo: &RepoName) -> PathBuf {
        self.manifests_dir(repo).join("tags")
    }

    pub(super) fn revision(&self, repo: &RepoName, digest: &Digest) -> PathBuf {
        self.manifests_dir(repo)
            .join("revisions")
            .join(digest.algorithm().as_str())
            .join(digest.hex())
    }

    fn referrers_dir(&self, repo: &RepoName, subject: &Digest) -> PathBuf {
        self.manifests_dir(repo)
            .join("referrers")
            .join(subject.algorithm().as_str())
            .join(subject.hex())
    }

    fn referrer(&self, repo: &RepoName, subject: &Digest, digest: &Digest) -> PathBuf {
        let name = format!("{}-{}", digest.algorithm().as_str(), digest.hex());
        self.referrers_dir(repo, subject).join(name)
    }

    fn write_json(&self, path: PathBuf, value: &impl Serialize) -> Result<()> {
        let bytes = serde_json::to_vec(value).map_err(|error| damaged(path.clone(), &error))?;
        self.write(&path, &bytes)
    }

    fn read_json<T: for<'de> Deserialize<'de>>(&self, path: PathBuf) -> Result<Option<T>> {
        let Some(bytes) = read(&path)? else {
            return Ok(None);
        };
        match serde_json::from_slice(&bytes) {
            Ok(value) => Ok(Some(value)),
            Err(error) => Err(damaged(path, &error)),
        }
    }
}

fn damaged(path: PathBuf, reason: &dyn std::fmt::Display) -> RegistrydError {
    RegistrydError::Damaged {
        path,
        reason: reason.to_string(),
    }
}
