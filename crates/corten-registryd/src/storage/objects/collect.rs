//! What a collection needs of a store without locks.
//!
//! **One at a time.** The collector holds a lease, an object that is made and renewed by
//! conditional puts. It stops removing things before its lease ends; who finds an ended one
//! takes it over.
//!
//! **No blob is lost to a push.** The collector lists the blobs that no repository links,
//! *marks* them, looks for links once more, and removes the incarnations it had listed of
//! those that still have none. Who links a blob looks for its mark afterwards ([`Objects::at_rest`]).
//! One of the two comes later in the store's order of things: either the collector sees the
//! link, or the other sees the mark (or, when the collection was quicker still, that the blob
//! is gone), and then stores a new incarnation, which the collector has not listed. A mount,
//! which has no bytes to store, waits until the mark is gone; if the blob is, too, the client
//! has to upload it.
//!
//! **Parts** are listed first, then the uploads, then what is left of the blobs. An upload's
//! state is there before its parts and goes after the blob that is made of them is there, so
//! parts that neither names are nobody's.
//!
//! This relies on listings that show what was written before (S3, GCS and Azure do) and on
//! conditional puts.

use std::collections::HashSet;
use std::time::{Duration, Instant, SystemTime};

use corten_oci::Digest;
use object_store::path::Path;
use object_store::{PutMode, UpdateVersion};

use super::blobs::{Incarnation, PARTS};
use super::{Objects, Result};
use crate::error::RegistrydError;
use crate::names::{RepoName, UploadId};
use crate::storage::keys;

const LEASE: &str = "locks/collection";
const MARKS: &str = "marks";
/// An older lease is its holder's no more.
const TERM: Duration = Duration::from_secs(600);
/// It is renewed before something is removed when so much has passed. What is left of it
/// covers requests that are on their way, and clocks that differ.
const RENEW: Duration = Duration::from_secs(120);
/// How long a mount waits for a collection that has marked its blob, and how often it looks.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(200);

/// The right to collect. Given back by [`Objects::end_collection`].
#[derive(Debug)]
pub(in crate::storage) struct Lease {
    version: UpdateVersion,
    since: Instant,
}

fn mark(digest: &Digest) -> String {
    format!("{MARKS}/{}/{}", digest.algorithm().as_str(), digest.hex())
}

impl Objects {
    /// Takes the lease, and removes what a collector that died left. `None` if somebody
    /// collects.
    pub(in crate::storage) fn begin_collection(&self) -> Result<Option<Lease>> {
        let mode = match self.run(self.meta(LEASE))? {
            None => PutMode::Create,
            Some(meta) => {
                let age = SystemTime::now().duration_since(meta.last_modified.into());
                // One from the future is of a clock that differs, and as good as new.
                if age.is_ok_and(|age| age > TERM) {
                    PutMode::Update(UpdateVersion {
                        e_tag: meta.e_tag,
                        version: meta.version,
                    })
                } else {
                    return Ok(None);
                }
            }
        };
        let Some(lease) = self.put_lease(mode)? else {
            return Ok(None);
        };
        self.clear_marks()?;
        Ok(Some(lease))
    }

    fn put_lease(&self, mode: PutMode) -> Result<Option<Lease>> {
        let since = Instant::now();
        // Different each time, so that its tag is.
        let text = super::blobs::nonce();
        let path = Path::from(LEASE);
        let put = self.store.put_opts(&path, text.into(), mode.into());
        match self.run(put) {
            Ok(done) => Ok(Some(Lease {
                version: done.into(),
                since,
            })),
            Err(
                object_store::Error::AlreadyExists { .. }
                | object_store::Error::Precondition { .. }
                | object_store::Error::NotFound { .. },
            ) => Ok(None),
            Err(error) => Err(self.failed("write", LEASE, error)),
        }
    }

    /// To be called before things are removed: an error if it is too late for that.
    pub(in crate::storage) fn keep_collecting(&self, lease: &mut Lease) -> Result<()> {
        if lease.since.elapsed() < RENEW {
            return Ok(());
        }
        let mode = PutMode::Update(lease.version.clone());
        match self.put_lease(mode)? {
            Some(renewed) => {
                *lease = renewed;
                Ok(())
            }
            None => Err(RegistrydError::Collecting(self.name(LEASE))),
        }
    }

    pub(in crate::storage) fn end_collection(&self) -> Result<()> {
        self.clear_marks()?;
        self.run(self.delete(LEASE))
    }

    fn clear_marks(&self) -> Result<()> {
        self.run(async {
            let left = self.everything(MARKS).await?;
            let left: Vec<String> = left.iter().map(|meta| meta.location.to_string()).collect();
            self.delete_all(&left).await
        })
    }

    /// Says that these blobs may go.
    pub(in crate::storage) fn mark(&self, digests: &HashSet<Digest>) -> Result<()> {
        let marks: Vec<String> = digests.iter().map(mark).collect();
        self.run(async {
            use futures_util::{StreamExt as _, TryStreamExt as _};
            let marked = marks.iter().map(|key| self.put(key, "".into()));
            let marked = futures_util::stream::iter(marked).buffer_unordered(super::AT_ONCE);
            marked.try_collect().await
        })
    }

    /// Whether a blob that was just linked is there, and will stay.
    pub(in crate::storage) fn at_rest(&self, digest: &Digest) -> Result<bool> {
        // In this order.
        Ok(self.modified(&mark(digest))?.is_none() && self.blob_size(digest)?.is_some())
    }

    /// The same for who has no bytes to store it once more, and waits for the collection to
    /// decide about it instead; false if that takes too long, too.
    pub(in crate::storage) fn comes_to_rest(&self, digest: &Digest) -> Result<bool> {
        let deadline = Instant::now() + PATIENCE;
        while !self.at_rest(digest)? {
            if self.blob_size(digest)?.is_none() || Instant::now() > deadline {
                return Ok(false);
            }
            std::thread::sleep(PAUSE);
        }
        Ok(true)
    }

    /// All incarnations of all blobs.
    pub(in crate::storage) fn incarnations(&self) -> Result<Vec<(Digest, Incarnation)>> {
        let all = self.run(self.everything(keys::BLOBS))?;
        let found = all.iter().filter_map(|meta| {
            let parts: Vec<_> = meta.location.parts().collect();
            let [.., algorithm, _, hex, _] = &parts[..] else {
                return None;
            };
            let digest = format!("{}:{}", algorithm.as_ref(), hex.as_ref());
            Some((digest.parse().ok()?, Incarnation::parse(meta)?))
        });
        Ok(found.collect())
    }

    /// Removes these; their parts are swept later.
    pub(in crate::storage) fn remove_incarnations(
        &self,
        dead: &[(Digest, Incarnation)],
    ) -> Result<()> {
        let keys: Vec<String> = dead.iter().map(|(_, found)| found.key.clone()).collect();
        self.run(self.delete_all(&keys))
    }

    /// The keys of all parts, with their uploads.
    pub(in crate::storage) fn parts(&self) -> Result<Vec<(UploadId, String)>> {
        let all = self.run(self.everything(PARTS))?;
        let found = all.iter().filter_map(|meta| {
            let mut words = meta.location.parts().skip(1);
            let upload = UploadId::parse(words.next()?.as_ref())?;
            Some((upload, meta.location.to_string()))
        });
        Ok(found.collect())
    }

    /// Removes those parts that neither an upload nor a blob has.
    pub(in crate::storage) fn sweep_parts(
        &self,
        parts: Vec<(UploadId, String)>,
        uploads: &HashSet<UploadId>,
    ) -> Result<()> {
        let blobs = self.incarnations()?.into_iter();
        let of_blobs: HashSet<UploadId> = blobs.filter_map(|(_, found)| found.upload).collect();
        let orphans = parts
            .into_iter()
            .filter(|(upload, _)| !uploads.contains(upload) && !of_blobs.contains(upload));
        let orphans: Vec<String> = orphans.map(|(_, key)| key).collect();
        self.run(self.delete_all(&orphans))
    }

    /// The uploads of a repository that somebody may go on with; older ones are removed.
    pub(in crate::storage) fn sweep_sessions(
        &self,
        repo: &RepoName,
        stale_after: Duration,
    ) -> Result<Vec<UploadId>> {
        let now = SystemTime::now();
        let mut live = Vec::new();
        for meta in self.run(self.everything(&keys::uploads(repo)))? {
            let Some(id) = meta.location.filename().and_then(UploadId::parse) else {
                continue;
            };
            let age = now.duration_since(meta.last_modified.into());
            if age.is_ok_and(|age| age > stale_after) && self.discard_listed(repo, &id, &meta)? {
                tracing::info!(repository = %repo, upload = id.as_str(), "removed a stale upload");
            } else {
                live.push(id);
            }
        }
        Ok(live)
    }
}

impl Incarnation {
    pub(in crate::storage) fn size(&self) -> u64 {
        self.size
    }
}
