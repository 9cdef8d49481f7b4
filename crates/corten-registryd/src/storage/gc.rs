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
//!
//! An object store has neither locks nor times that can be set: [`super::objects::collect`]
//! says what is done about blobs there. For the same reason what was taken from a repository
//! is given back if a manifest or a tag has come meanwhile that needs it; whoever stores one
//! looks for what it needs afterwards, so that one of the two sees the other.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use corten_oci::Digest;
use serde::Deserialize;

use super::files::{self, Files, STALE_AFTER};
use super::objects::Objects;
use super::place::Place;
use super::{Result, Storage, keys};
use crate::error::{IoContext as _, RegistrydError};
use crate::names::{RepoName, Tag};

/// How long a link without a manifest is kept where it is not configured.
pub(crate) const GRACE: Duration = Duration::from_secs(24 * 60 * 60);
/// Blobs removed before pushes get a turn.
const BATCH: usize = 32;
/// Blobs removed from an object store at once.
const REQUEST: usize = 500;

/// Asked before each thing is removed: an error if this collection has lost the right to, or
/// is to end.
type MayRemove<'a> = &'a dyn Fn() -> Result<()>;

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

/// What is held holds its parts, and what refers to it.
fn hold_parts<'a>(
    held: &mut HashSet<Digest>,
    manifests: impl Iterator<Item = &'a (Digest, Names)> + Clone,
) {
    loop {
        let before = held.len();
        for (digest, names) in manifests.clone() {
            let refers = names.subject.as_ref();
            if refers.is_some_and(|subject| held.contains(&subject.digest)) {
                held.insert(digest.clone());
            }
            if held.contains(digest) {
                held.extend(names.manifests.iter().map(|named| named.digest.clone()));
            }
        }
        if held.len() == before {
            break;
        }
    }
}

impl Storage {
    /// Removes what nothing refers to.
    pub(crate) fn collect(&self, policy: Policy) -> Result<Collected> {
        match &self.place {
            Place::Files(files) => self.collect_files(files, policy),
            Place::Objects(objects) if policy.dry_run => self.look_at_objects(objects, policy),
            Place::Objects(objects) => {
                let Some(mut lease) = objects.begin_collection()? else {
                    return Err(RegistrydError::Collecting(self.place.name("")));
                };
                let collected = self.collect_objects(objects, &mut lease, policy);
                let ended = objects.end_collection(lease);
                let collected = collected?;
                ended.map(|()| collected)
            }
        }
    }

    /// When a server last noted that it has collected; `None` if never.
    pub(crate) fn last_collected(&self) -> Result<Option<SystemTime>> {
        self.place.modified(keys::COLLECTED)
    }

    /// Notes that a server has collected, for those that come after it or work beside it.
    pub(crate) fn note_collected(&self) -> Result<()> {
        self.place.write(keys::COLLECTED, b"")
    }

    /// Ends a collection that runs, and every one that begins from now on, before it removes
    /// anything more.
    pub(crate) fn stop_collecting(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// An error if collections are to end.
    fn go_on(&self) -> Result<()> {
        if self.stopping.load(Ordering::Relaxed) {
            return Err(RegistrydError::Stopping);
        }
        Ok(())
    }

    fn collect_files(&self, files: &Files, policy: Policy) -> Result<Collected> {
        let Some(_collecting) = files.try_lock_collection()? else {
            return Err(RegistrydError::Collecting(files.root().to_owned()));
        };
        if !policy.dry_run {
            self.sweep_uploads()?;
        }
        let began = SystemTime::now();
        // Whoever is between a blob's time and its link gets done first.
        drop(self.lock_blobs()?);
        let mut collected = Collected::default();
        let go_on = || self.go_on();
        let live = self.look_through_all(began, policy, &go_on, &mut collected)?;
        let mut dead = files.blobs()?;
        dead.retain(|digest| !live.contains(digest));
        for batch in dead.chunks(BATCH) {
            self.go_on()?;
            let _alone = self.lock_blobs()?;
            for digest in batch {
                if let Some(size) = self.remove_data(files, digest, began, policy.dry_run)? {
                    collected.blobs.push(digest.clone());
                    collected.bytes += size;
                }
            }
        }
        Ok(collected)
    }

    fn look_at_objects(&self, objects: &Objects, policy: Policy) -> Result<Collected> {
        let mut collected = Collected::default();
        let began = SystemTime::now();
        let go_on = || self.go_on();
        let live = self.look_through_all(began, policy, &go_on, &mut collected)?;
        for (digest, incarnation) in objects.incarnations()? {
            if !live.contains(&digest) {
                collected.bytes += incarnation.size();
                collected.blobs.push(digest);
            }
        }
        Ok(collected)
    }

    fn collect_objects(
        &self,
        objects: &Objects,
        lease: &mut super::objects::Lease,
        policy: Policy,
    ) -> Result<Collected> {
        let parts = objects.parts()?;
        let mut uploads = HashSet::new();
        for repo in self.all_repositories()? {
            self.go_on()?;
            uploads.extend(objects.sweep_sessions(&repo, STALE_AFTER)?);
        }
        let mut collected = Collected::default();
        let keep = || {
            self.go_on()?;
            objects.keep_collecting(lease)
        };
        let live = self.look_through_all(SystemTime::now(), policy, &keep, &mut collected)?;
        let mut dead = objects.incarnations()?;
        dead.retain(|(digest, _)| !live.contains(digest));
        let digests = dead.iter().map(|(digest, _)| digest.clone()).collect();
        objects.mark(lease, &digests)?;
        let linked = if dead.is_empty() {
            HashSet::new()
        } else {
            self.linked()?
        };
        dead.retain(|(digest, _)| !linked.contains(digest));
        for batch in dead.chunks(REQUEST) {
            self.go_on()?;
            objects.keep_collecting(lease)?;
            objects.remove_incarnations(batch)?;
            for (digest, incarnation) in batch {
                self.usage.freed(incarnation.size());
                collected.bytes += incarnation.size();
                collected.blobs.push(digest.clone());
            }
        }
        objects.sweep_parts(lease, parts, &uploads)?;
        Ok(collected)
    }

    /// All blobs that some repository has, as a blob or as a manifest.
    fn linked(&self) -> Result<HashSet<Digest>> {
        let mut linked = HashSet::new();
        let repositories = self.all_repositories()?;
        for algorithm in keys::ALGORITHMS {
            let folders = |repo| [keys::layers(repo), keys::revisions(repo)];
            let folders = repositories.iter().flat_map(folders);
            let folders: Vec<String> = folders.map(|f| format!("{f}/{algorithm}")).collect();
            for name in self.place.list_all(&folders)?.into_iter().flatten() {
                linked.extend(format!("{algorithm}:{name}").parse::<Digest>());
            }
        }
        Ok(linked)
    }

    fn look_through_all(
        &self,
        began: SystemTime,
        policy: Policy,
        may_remove: MayRemove<'_>,
        collected: &mut Collected,
    ) -> Result<HashSet<Digest>> {
        let mut live = HashSet::new();
        for repo in self.all_repositories()? {
            self.go_on()?;
            self.look_through(&repo, began, policy, may_remove, &mut live, collected)?;
        }
        Ok(live)
    }

    /// Notes what a repository needs, and removes what it does not.
    fn look_through(
        &self,
        repo: &RepoName,
        began: SystemTime,
        policy: Policy,
        may_remove: MayRemove<'_>,
        live: &mut HashSet<Digest>,
        collected: &mut Collected,
    ) -> Result<()> {
        // Most of the work, before pushes have to wait for it: a digest's manifest stays as it is.
        let mut read = HashMap::new();
        for digest in self.digests_in(&keys::revisions(repo))? {
            self.go_on()?;
            if let Some(names) = self.names(repo, &digest)? {
                read.insert(digest, names);
            }
        }
        let _alone = self.lock_repo(repo)?;
        let mut manifests = Vec::new();
        let mut understood = true;
        for digest in self.digests_in(&keys::revisions(repo))? {
            let names = match read.remove(&digest) {
                Some(names) => Some(names),
                None => self.names(repo, &digest)?,
            };
            understood &= names.is_some();
            manifests.push((digest, names.unwrap_or_default()));
        }
        if policy.untagged && understood {
            self.drop_untagged(repo, began, policy, may_remove, &mut manifests, collected)?;
        }
        let mut named: HashSet<&Digest> = manifests.iter().flat_map(|(_, n)| n.all()).collect();
        named.extend(manifests.iter().map(|(digest, _)| digest));
        let mut taken = Vec::new();
        let mut done = Ok(());
        for digest in self.digests_in(&keys::layers(repo))? {
            let link = keys::link(repo, &digest);
            let keep = || {
                let named = !understood || named.contains(&digest);
                Ok(named || self.is_younger(&link, began, policy.grace)?)
            };
            let take = || {
                may_remove()?;
                self.place.remove(&link)
            };
            match keep() {
                Ok(true) => drop(live.insert(digest)),
                Ok(false) if policy.dry_run => {}
                Ok(false) => {
                    done = take().map(drop);
                    taken.push(digest);
                }
                Err(error) => done = Err(error),
            }
            if done.is_err() {
                // What was taken until now may have to be given back all the same.
                break;
            }
        }
        if matches!(self.place, Place::Objects(_)) && !taken.is_empty() {
            let known: Vec<&Digest> = manifests.iter().map(|(digest, _)| digest).collect();
            self.give_back(repo, &known, &taken, live)?;
        }
        done?;
        live.extend(manifests.into_iter().map(|(digest, _)| digest));
        Ok(())
    }

    /// What a manifest of a repository names; `None` where that cannot be known.
    fn names(&self, repo: &RepoName, digest: &Digest) -> Result<Option<Names>> {
        let bytes = self.place.read_blob(digest)?.unwrap_or_default();
        let names = serde_json::from_slice(&bytes);
        if let Err(error) = &names {
            tracing::warn!(repository = %repo, %digest, %error,
                "a manifest cannot be read: nothing of its repository is removed");
        }
        Ok(names.ok())
    }

    /// Links again what manifests need that are not among the `known` ones: they have come, or
    /// come back, since those were looked at.
    fn give_back(
        &self,
        repo: &RepoName,
        known: &[&Digest],
        taken: &[Digest],
        live: &mut HashSet<Digest>,
    ) -> Result<()> {
        let mut now = self.digests_in(&keys::revisions(repo))?;
        now.retain(|digest| !known.contains(&digest));
        let mut needed: HashSet<Digest> = HashSet::new();
        for digest in now {
            match self.names(repo, &digest)? {
                Some(names) => needed.extend(names.all().cloned()),
                None => needed.extend(taken.iter().cloned()),
            }
        }
        for digest in taken.iter().filter(|digest| needed.contains(digest)) {
            self.link_blob(repo, digest)?;
            live.insert(digest.clone());
        }
        Ok(())
    }

    /// Removes manifests that are old enough, and that neither a tag, nor an index, nor the
    /// thing they refer to holds.
    fn drop_untagged(
        &self,
        repo: &RepoName,
        began: SystemTime,
        policy: Policy,
        may_remove: MayRemove<'_>,
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
            if self.is_younger(&keys::revision(repo, digest), began, policy.grace)? {
                held.insert(digest.clone());
            }
        }
        hold_parts(&mut held, manifests.iter());
        let mut dropped = Vec::new();
        let mut done = Ok(());
        for (digest, _) in manifests
            .iter()
            .filter(|(digest, _)| !held.contains(digest))
        {
            if !policy.dry_run {
                match may_remove().and_then(|()| self.drop_manifest(repo, digest)) {
                    Ok(gone) => dropped.extend(gone),
                    Err(error) => {
                        // Some of the others may have to come back all the same.
                        done = Err(error);
                        break;
                    }
                }
            }
            collected.manifests.push(format!("{repo}@{digest}"));
        }
        if matches!(self.place, Place::Objects(_)) && !dropped.is_empty() {
            let wanted = self.wanted_again(repo, manifests, &held)?;
            for digest in self.restore(repo, &dropped, &wanted)? {
                collected
                    .manifests
                    .retain(|name| *name != format!("{repo}@{digest}"));
                held.insert(digest);
            }
        }
        manifests.retain(|(digest, _)| held.contains(digest));
        done
    }

    /// What of the manifests that were dropped, as nothing `held` them, something holds after
    /// all: a tag, or a manifest that has come, or come back, since the others were looked at.
    fn wanted_again(
        &self,
        repo: &RepoName,
        manifests: &[(Digest, Names)],
        held: &HashSet<Digest>,
    ) -> Result<HashSet<Digest>> {
        let dropped = || {
            manifests
                .iter()
                .filter(|(digest, _)| !held.contains(digest))
        };
        // Before the tags: who sets one looks for its manifest afterwards.
        let mut wanted = HashSet::new();
        for digest in self.digests_in(&keys::revisions(repo))? {
            if held.contains(&digest) {
                continue;
            }
            match self.names(repo, &digest)? {
                Some(names) => wanted.extend(names.manifests.into_iter().map(|n| n.digest)),
                None => wanted.extend(dropped().map(|(digest, _)| digest.clone())),
            }
            wanted.insert(digest);
        }
        for name in self.tags(repo)? {
            if let Some(tag) = Tag::parse(&name) {
                wanted.extend(self.resolve_tag(repo, &tag)?);
            }
        }
        hold_parts(&mut wanted, dropped());
        Ok(wanted)
    }

    /// Removes a blob that has no link, unless it got its time after the beginning; its size.
    fn remove_data(
        &self,
        files: &Files,
        digest: &Digest,
        began: SystemTime,
        dry_run: bool,
    ) -> Result<Option<u64>> {
        let data = files.blob(digest);
        let Some((changed, size)) = files::stat(&data)? else {
            return Ok(None);
        };
        if changed >= began {
            return Ok(None);
        }
        if !dry_run {
            files::remove(&data)?;
            self.usage.freed(size);
            if let Some(folder) = data.parent() {
                std::fs::remove_dir(folder).context("remove", folder)?;
            }
        }
        Ok(Some(size))
    }

    /// Removes uploads and temporary files of a folder that nobody has touched for long.
    pub(crate) fn sweep_uploads(&self) -> Result<()> {
        if let Place::Files(files) = &self.place {
            files.sweep_temporary();
            for name in self.all_repositories()? {
                files::sweep(&files.path(&keys::uploads(&name)));
            }
            self.running.retain(|repo, id| {
                let left = files::stat(&files.path(&keys::upload(repo, id)));
                !matches!(left, Ok(None))
            });
        }
        Ok(())
    }

    /// Whether a thing was written less than this before a moment. One that is gone is not.
    fn is_younger(&self, key: &str, moment: SystemTime, age: Duration) -> Result<bool> {
        let limit = moment.checked_sub(age);
        let changed = self.place.modified(key)?;
        Ok(changed.is_some_and(|changed| limit.is_none_or(|limit| changed > limit)))
    }

    /// The digests below a key with a part for each algorithm.
    pub(super) fn digests_in(&self, folder: &str) -> Result<Vec<Digest>> {
        let folders = keys::ALGORITHMS.map(|algorithm| format!("{folder}/{algorithm}"));
        let listed = self.place.list_all(&folders)?;
        let mut found = Vec::new();
        for (algorithm, names) in keys::ALGORITHMS.iter().zip(listed) {
            let digests = names.iter().map(|hex| format!("{algorithm}:{hex}"));
            found.extend(digests.filter_map(|text| text.parse::<Digest>().ok()));
        }
        Ok(found)
    }
}
