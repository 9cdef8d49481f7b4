//! Manifests, tags and referrers of a repository. A manifest's bytes are a blob that no
//! `_layers` link shows; its revision record makes it a manifest of the repository.

use std::collections::HashSet;

use corten_oci::Digest;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::locks::Lock;
use super::place::Place;
use super::{Result, Storage, keys};
use crate::error::RegistrydError;
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

/// A part of a list of referrers that is small enough to be sent at once.
#[derive(Debug, Default)]
pub(crate) struct ReferrersPage {
    /// Only what comes after this name.
    pub(crate) after: Option<String>,
    /// Only what is of this type.
    pub(crate) artifact_type: Option<String>,
    /// The entries, as they are sent.
    pub(crate) entries: Vec<Value>,
    /// The last name on this page, where more follow.
    pub(crate) next: Option<String>,
    last: String,
    size: usize,
}

impl ReferrersPage {
    /// Bytes of a page, unless one entry alone has more: what clients read of a manifest.
    const LIMIT: usize = 4 << 20;

    /// An empty page of what comes after a name and is of a type.
    pub(crate) fn asked_for(after: Option<String>, artifact_type: Option<String>) -> Self {
        Self {
            after,
            artifact_type,
            ..Self::default()
        }
    }

    /// The name by which entries are sorted.
    pub(crate) fn name(digest: &Digest) -> String {
        format!("{}-{}", digest.algorithm().as_str(), digest.hex())
    }

    pub(crate) fn is_after(&self, name: &str) -> bool {
        self.after.as_deref().is_none_or(|after| name > after)
    }

    /// Adds the next entry, if it is wanted; false if the page is full.
    pub(crate) fn takes(&mut self, name: &str, entry: Value) -> bool {
        let wanted = self.artifact_type.as_deref();
        if wanted.is_some_and(|wanted| entry["artifactType"] != wanted) {
            return true;
        }
        let size = entry.to_string().len();
        if !self.entries.is_empty() && self.size + size > Self::LIMIT {
            self.next = Some(self.last.clone());
            return false;
        }
        self.size += size;
        name.clone_into(&mut self.last);
        self.entries.push(entry);
        true
    }
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

/// A manifest that a collection removed.
pub(super) struct Dropped {
    digest: Digest,
    revision: Revision,
    referrer: Option<Descriptor>,
}

impl Storage {
    /// Stores a manifest, after its place among its subject's referrers. The repository's lock
    /// is held since what it names was looked for.
    pub(crate) fn put_manifest(
        &self,
        _alone: &Lock,
        repo: &RepoName,
        record: &ManifestRecord,
        subject: Option<(&Digest, &Descriptor)>,
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
        self.store_bytes(record)?;
        if let Some((subject, descriptor)) = subject {
            let key = keys::referrer(repo, subject, &record.digest);
            self.write_json(&key, descriptor)?;
        }
        let revision = Revision {
            media_type: record.media_type.clone(),
            subject: subject.map(|(digest, _)| digest.clone()),
        };
        let key = keys::revision(repo, &record.digest);
        self.write_json(&key, &revision)?;
        // Nothing kept a collection of an object store from taking the bytes meanwhile.
        if let Place::Objects(objects) = &self.place
            && !objects.at_rest(&record.digest)?
        {
            objects.write_raw(&record.digest, record.bytes.clone().into())?;
        }
        self.usage.added(repo, linked, new);
        Ok(())
    }

    fn store_bytes(&self, record: &ManifestRecord) -> Result<()> {
        match &self.place {
            Place::Files(files) => files.write(&files.blob(&record.digest), &record.bytes),
            Place::Objects(_) if self.has_data(&record.digest)? => Ok(()),
            Place::Objects(objects) => {
                objects.write_raw(&record.digest, record.bytes.clone().into())
            }
        }
    }

    /// What of the blobs and manifests that a stored manifest needs has gone while it was
    /// stored. In a folder that cannot be: the repository's lock is held. A collection of an
    /// object store looks once more at the manifests after it took links or manifests, and this
    /// is the other half.
    pub(crate) fn confirm(
        &self,
        repo: &RepoName,
        blobs: &[Digest],
        manifests: &[Digest],
    ) -> Result<Vec<Digest>> {
        let mut gone = Vec::new();
        if matches!(self.place, Place::Files(_)) {
            return Ok(gone);
        }
        for digest in blobs {
            if !self.place.exists(&keys::link(repo, digest))?
                && !self.link_stored_blob(repo, digest)?
            {
                gone.push(digest.clone());
            }
        }
        for digest in manifests {
            if !self.has_manifest(repo, digest)? {
                gone.push(digest.clone());
            }
        }
        Ok(gone)
    }

    /// Makes tags point to a stored manifest; what they pointed to. In an object store it may
    /// have been taken for untagged until now: look for it afterwards.
    pub(crate) fn set_tags(
        &self,
        _alone: &Lock,
        repo: &RepoName,
        digest: &Digest,
        tags: &[Tag],
    ) -> Result<Vec<Option<Vec<u8>>>> {
        let mut before = Vec::new();
        for tag in tags {
            before.push(self.place.read(&keys::tag(repo, tag))?);
            self.write_tag(repo, tag, digest)?;
        }
        Ok(before)
    }

    /// Makes the tags that a push has set, which fails after all, point to what they did
    /// `before`. The manifest may be another push's as well: it stays, for a collection to
    /// remove.
    pub(crate) fn reset_tags(
        &self,
        _alone: &Lock,
        repo: &RepoName,
        digest: &Digest,
        tags: &[Tag],
        before: &[Option<Vec<u8>>],
    ) -> Result<()> {
        for (tag, before) in tags.iter().zip(before) {
            if self.resolve_tag(repo, tag)?.as_ref() != Some(digest) {
                continue;
            }
            let key = keys::tag(repo, tag);
            match before {
                Some(before) => self.place.write(&key, before)?,
                None => drop(self.place.remove(&key)?),
            }
        }
        Ok(())
    }

    /// Makes a tag point to a manifest that the repository has.
    pub(crate) fn tag_manifest(&self, repo: &RepoName, digest: &Digest, tag: &Tag) -> Result<()> {
        let _alone = self.lock_repo(repo)?;
        self.write_tag(repo, tag, digest)
    }

    fn write_tag(&self, repo: &RepoName, tag: &Tag, digest: &Digest) -> Result<()> {
        let key = keys::tag(repo, tag);
        self.place.write(&key, digest.as_str().as_bytes())
    }

    /// The manifest with this digest, if the repository has it.
    pub(crate) fn manifest(
        &self,
        repo: &RepoName,
        digest: &Digest,
    ) -> Result<Option<ManifestRecord>> {
        let Some(revision) = self.revision(repo, digest)? else {
            return Ok(None);
        };
        let bytes = self.place.read_blob(digest)?;
        Ok(bytes.map(|bytes| ManifestRecord {
            digest: digest.clone(),
            media_type: revision.media_type,
            bytes,
        }))
    }

    /// True if the repository has a manifest with this digest.
    pub(crate) fn has_manifest(&self, repo: &RepoName, digest: &Digest) -> Result<bool> {
        self.place.exists(&keys::revision(repo, digest))
    }

    /// What a tag points to.
    pub(crate) fn resolve_tag(&self, repo: &RepoName, tag: &Tag) -> Result<Option<Digest>> {
        let key = keys::tag(repo, tag);
        let Some(bytes) = self.place.read(&key)? else {
            return Ok(None);
        };
        match std::str::from_utf8(&bytes)
            .unwrap_or_default()
            .trim_end()
            .parse()
        {
            Ok(digest) => Ok(Some(digest)),
            Err(error) => Err(self.damaged(&key, &error)),
        }
    }

    /// A repository's tags, in no order.
    pub(crate) fn tags(&self, repo: &RepoName) -> Result<Vec<String>> {
        let names = self.place.list(&keys::tags(repo))?;
        Ok(names
            .into_iter()
            .filter(|name| Tag::parse(name).is_some())
            .collect())
    }

    /// Removes a tag; false if there was none.
    pub(crate) fn delete_tag(&self, repo: &RepoName, tag: &Tag) -> Result<bool> {
        let _alone = self.lock_repo(repo)?;
        self.place.remove(&keys::tag(repo, tag))
    }

    /// Removes a manifest and every tag that points to it; false if there was none. The tags
    /// go first: at no instant does one point to nothing.
    pub(crate) fn delete_manifest(&self, repo: &RepoName, digest: &Digest) -> Result<bool> {
        let _alone = self.lock_repo(repo)?;
        let Some(revision) = self.revision(repo, digest)? else {
            return Ok(false);
        };
        for name in self.tags(repo)? {
            if let Some(tag) = Tag::parse(&name)
                && self.resolve_tag(repo, &tag)?.as_ref() == Some(digest)
            {
                self.place.remove(&keys::tag(repo, &tag))?;
            }
        }
        self.remove_revision(repo, digest, &revision)?;
        Ok(true)
    }

    fn remove_revision(&self, repo: &RepoName, digest: &Digest, revision: &Revision) -> Result<()> {
        self.place.remove(&keys::revision(repo, digest))?;
        if let Some(subject) = &revision.subject {
            self.place.remove(&keys::referrer(repo, subject, digest))?;
        }
        self.usage.forget(repo);
        Ok(())
    }

    /// Removes a manifest that a collection found nothing to hold, with the repository's lock
    /// held; what [`Self::restore`] needs to bring it back.
    pub(super) fn drop_manifest(
        &self,
        repo: &RepoName,
        digest: &Digest,
    ) -> Result<Option<Dropped>> {
        let Some(revision) = self.revision(repo, digest)? else {
            return Ok(None);
        };
        let referrer = match &revision.subject {
            Some(subject) => self.read_json(&keys::referrer(repo, subject, digest))?,
            None => None,
        };
        // A tag that has come since the collection looked stays.
        self.remove_revision(repo, digest, &revision)?;
        Ok(Some(Dropped {
            digest: digest.clone(),
            revision,
            referrer,
        }))
    }

    /// Brings back those that are wanted after all, which only happens in an object store.
    pub(super) fn restore(
        &self,
        repo: &RepoName,
        dropped: &[Dropped],
        wanted: &HashSet<Digest>,
    ) -> Result<Vec<Digest>> {
        let mut restored = Vec::new();
        for gone in dropped.iter().filter(|gone| wanted.contains(&gone.digest)) {
            if let (Some(subject), Some(descriptor)) = (&gone.revision.subject, &gone.referrer) {
                self.write_json(&keys::referrer(repo, subject, &gone.digest), descriptor)?;
            }
            self.write_json(&keys::revision(repo, &gone.digest), &gone.revision)?;
            restored.push(gone.digest.clone());
        }
        Ok(restored)
    }

    /// The manifests whose subject has this digest, by digest: those that follow `after`, as
    /// far as `page` takes them.
    pub(crate) fn referrers(
        &self,
        repo: &RepoName,
        subject: &Digest,
        page: &mut ReferrersPage,
    ) -> Result<()> {
        let folder = keys::referrers(repo, subject);
        let mut names = self.place.list(&folder)?;
        names.sort();
        for name in names {
            if !page.is_after(&name) {
                continue;
            }
            // A server killed between two writes may have left an entry without its manifest.
            if let Some(descriptor) = self.read_json::<Descriptor>(&format!("{folder}/{name}"))?
                && self.has_manifest(repo, &descriptor.digest)?
            {
                let value = serde_json::to_value(&descriptor);
                let value = value.map_err(|error| self.damaged(&name, &error))?;
                if !page.takes(&name, value) {
                    break;
                }
            }
        }
        Ok(())
    }

    fn revision(&self, repo: &RepoName, digest: &Digest) -> Result<Option<Revision>> {
        self.read_json(&keys::revision(repo, digest))
    }

    fn write_json(&self, key: &str, value: &impl Serialize) -> Result<()> {
        let bytes = serde_json::to_vec(value).map_err(|error| self.damaged(key, &error))?;
        self.place.write(key, &bytes)
    }

    fn read_json<T: for<'de> Deserialize<'de>>(&self, key: &str) -> Result<Option<T>> {
        let Some(bytes) = self.place.read(key)? else {
            return Ok(None);
        };
        match serde_json::from_slice(&bytes) {
            Ok(value) => Ok(Some(value)),
            Err(error) => Err(self.damaged(key, &error)),
        }
    }

    fn damaged(&self, key: &str, reason: &dyn std::fmt::Display) -> RegistrydError {
        RegistrydError::Damaged {
            path: self.place.name(key),
            reason: reason.to_string(),
        }
    }
}
