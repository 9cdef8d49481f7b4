//! What a collection needs of a store without locks.
//!
//! **One at a time.** The collector holds a lease, an object that is made and renewed by
//! conditional puts, by a task of its own, so that no phase can take too long. It looks at the
//! lease before it removes anything, and stops well before it ends; who finds an ended one
//! takes it over. Marks are named after the lease, and a collector that ends removes its own
//! lease and marks only: it may have a successor.
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
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use corten_oci::Digest;
use object_store::path::Path;
use object_store::{ObjectStore, PutMode, UpdateVersion};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::blobs::{Incarnation, PARTS};
use super::{Objects, Result};
use crate::error::RegistrydError;
use crate::names::{RepoName, UploadId};
use crate::storage::keys;

const LEASE: &str = "locks/collection";
const MARKS: &str = "marks";
/// An older lease is its holder's no more.
const TERM: Duration = Duration::from_secs(600);
/// Nothing is removed if its last renewal is longer ago. What is left of it covers requests
/// that are on their way, and clocks that differ.
const SAFE: Duration = Duration::from_secs(300);
/// How often it is renewed.
pub(super) const RENEW: Duration = Duration::from_secs(60);
/// Parts removed between two looks at the lease.
const BATCH: usize = 1000;
/// How long a mount waits for a collection that has marked its blob, and how often it looks.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(200);

/// The right to collect. Given back by [`Objects::end_collection`].
#[derive(Debug)]
pub(in crate::storage) struct Lease {
    /// What its marks are called.
    id: String,
    marks: Vec<String>,
    /// When it was last renewed; `None` if somebody has taken it over.
    held: Arc<Mutex<Option<Instant>>>,
    /// Renews it until this is dropped, then tells its version.
    renewal: JoinHandle<Option<UpdateVersion>>,
    stop: oneshot::Sender<()>,
}

/// The folder of a blob's marks.
fn marks(digest: &Digest) -> String {
    format!("{MARKS}/{}/{}", digest.algorithm().as_str(), digest.hex())
}

/// Writes the lease; `None` if it is not as the mode says.
async fn put_lease(
    store: &dyn ObjectStore,
    mode: PutMode,
) -> object_store::Result<Option<UpdateVersion>> {
    // Different each time, so that its tag is.
    let text = super::blobs::nonce();
    let path = Path::from(LEASE);
    match store.put_opts(&path, text.into(), mode.into()).await {
        Ok(done) => Ok(Some(done.into())),
        Err(
            object_store::Error::AlreadyExists { .. }
            | object_store::Error::Precondition { .. }
            | object_store::Error::NotFound { .. },
        ) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Renews a lease until it is lost (`None`) or this is to stop.
async fn renew(
    store: Arc<dyn ObjectStore>,
    mut version: UpdateVersion,
    held: Arc<Mutex<Option<Instant>>>,
    every: Duration,
    mut stop: oneshot::Receiver<()>,
) -> Option<UpdateVersion> {
    while tokio::time::timeout(every, &mut stop).await.is_err() {
        let since = Instant::now();
        match put_lease(&*store, PutMode::Update(version.clone())).await {
            Ok(Some(renewed)) => {
                version = renewed;
                *lock(&held) = Some(since);
            }
            Ok(None) => {
                *lock(&held) = None;
                return None;
            }
            // It holds for a while yet.
            Err(error) => tracing::warn!(%error, "cannot renew the lease of a collection"),
        }
    }
    Some(version)
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
        let since = Instant::now();
        let Some(version) = self.put_lease(mode)? else {
            return Ok(None);
        };
        let held = Arc::new(Mutex::new(Some(since)));
        let (stop, stopped) = oneshot::channel();
        let (store, every) = (self.store.clone(), self.renew_every);
        let renewal = renew(store, version, held.clone(), every, stopped);
        let lease = Lease {
            id: super::blobs::nonce(),
            marks: Vec::new(),
            held,
            renewal: self.runtime.spawn(renewal),
            stop,
        };
        if let Err(error) = self.clear_marks() {
            // Better free at once than after its term.
            let _ = self.end_collection(lease);
            return Err(error);
        }
        Ok(Some(lease))
    }

    fn put_lease(&self, mode: PutMode) -> Result<Option<UpdateVersion>> {
        let put = self.run(put_lease(&*self.store, mode));
        put.map_err(|error| self.failed("write", LEASE, error))
    }

    /// To be called before things are removed: an error if it is too late for that.
    pub(in crate::storage) fn keep_collecting(&self, lease: &Lease) -> Result<()> {
        let since = *lock(&lease.held);
        if since.is_some_and(|since| since.elapsed() < SAFE) {
            return Ok(());
        }
        Err(RegistrydError::Collecting(self.name(LEASE)))
    }

    /// Gives the lease back; an error if it was lost.
    pub(in crate::storage) fn end_collection(&self, lease: Lease) -> Result<()> {
        let cleared = self.run(self.delete_all(&lease.marks));
        drop(lease.stop);
        let lost = || RegistrydError::Collecting(self.name(LEASE));
        let version = self.run(lease.renewal).ok().flatten().ok_or_else(lost)?;
        // A store removes whatever is there; once this put has gone well, nobody replaces it
        // before it is gone.
        let ours = self.put_lease(PutMode::Update(version))?;
        ours.ok_or_else(lost)?;
        self.run(self.delete(LEASE))?;
        cleared
    }

    /// Removes the marks of collectors that died. To be called before any is made.
    fn clear_marks(&self) -> Result<()> {
        self.run(async {
            let left = self.everything(MARKS).await?;
            let left: Vec<String> = left.iter().map(|meta| meta.location.to_string()).collect();
            self.delete_all(&left).await
        })
    }

    /// Says that these blobs may go.
    pub(in crate::storage) fn mark(
        &self,
        lease: &mut Lease,
        digests: &HashSet<Digest>,
    ) -> Result<()> {
        self.keep_collecting(lease)?;
        let mark = |digest| format!("{}/{}", marks(digest), lease.id);
        lease.marks = digests.iter().map(mark).collect();
        self.run(async {
            use futures_util::{StreamExt as _, TryStreamExt as _};
            let marked = lease.marks.iter().map(|key| self.put(key, "".into()));
            let marked = futures_util::stream::iter(marked).buffer_unordered(super::AT_ONCE);
            marked.try_collect().await
        })
    }

    /// Whether a blob that was just linked is there, and will stay.
    pub(in crate::storage) fn at_rest(&self, digest: &Digest) -> Result<bool> {
        // In this order.
        Ok(self.list(&marks(digest))?.is_empty() && self.blob_size(digest)?.is_some())
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
        lease: &Lease,
        parts: Vec<(UploadId, String)>,
        uploads: &HashSet<UploadId>,
    ) -> Result<()> {
        let blobs = self.incarnations()?.into_iter();
        let of_blobs: HashSet<UploadId> = blobs.filter_map(|(_, found)| found.upload).collect();
        let orphans = parts
            .into_iter()
            .filter(|(upload, _)| !uploads.contains(upload) && !of_blobs.contains(upload));
        let orphans: Vec<String> = orphans.map(|(_, key)| key).collect();
        for batch in orphans.chunks(BATCH) {
            self.keep_collecting(lease)?;
            self.run(self.delete_all(batch))?;
        }
        Ok(())
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

fn lock(held: &Mutex<Option<Instant>>) -> std::sync::MutexGuard<'_, Option<Instant>> {
    held.lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Incarnation {
    pub(in crate::storage) fn size(&self) -> u64 {
        self.size
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    fn objects(runtime: &tokio::runtime::Runtime) -> Objects {
        let _entered = runtime.enter();
        let mut objects = Objects::new(Arc::new(InMemory::new()), "memory://".to_owned());
        objects.renew_every = Duration::from_millis(20);
        objects
    }

    /// Waits for what the renewal does.
    fn becomes(mut is: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !is() {
            assert!(Instant::now() < deadline, "it never comes");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn a_lease_is_renewed_however_long_a_phase_takes() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let objects = objects(&runtime);
        let lease = objects.begin_collection().unwrap().unwrap();
        let before = objects.read(LEASE).unwrap();
        becomes(|| objects.read(LEASE).unwrap() != before);
        objects.keep_collecting(&lease).unwrap();
        assert!(objects.begin_collection().unwrap().is_none());
        objects.end_collection(lease).unwrap();
        assert_eq!(objects.read(LEASE).unwrap(), None);
    }

    #[test]
    fn who_lost_its_lease_removes_nothing_of_its_successor() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let objects = objects(&runtime);
        let digest = Digest::of(b"garbage");
        let mut lease = objects.begin_collection().unwrap().unwrap();
        objects.mark(&mut lease, &[digest.clone()].into()).unwrap();
        objects.write(LEASE, b"its successor's").unwrap();
        let mark = format!("{}/its-successors", marks(&digest));
        objects.write(&mark, b"").unwrap();
        becomes(|| objects.keep_collecting(&lease).is_err());
        assert!(objects.mark(&mut lease, &HashSet::new()).is_err());
        let lost = objects.end_collection(lease);
        assert!(matches!(lost, Err(RegistrydError::Collecting(_))));
        let left = objects.read(LEASE).unwrap().unwrap();
        assert_eq!(left, b"its successor's");
        assert_eq!(objects.list(&marks(&digest)).unwrap(), ["its-successors"]);
        assert!(!objects.at_rest(&digest).unwrap());
    }

    #[test]
    fn a_lease_that_is_not_renewed_ends() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let mut objects = objects(&runtime);
        objects.renew_every = TERM;
        let lease = objects.begin_collection().unwrap().unwrap();
        objects.keep_collecting(&lease).unwrap();
        *lock(&lease.held) = Instant::now().checked_sub(SAFE);
        assert!(objects.keep_collecting(&lease).is_err());
    }
}
