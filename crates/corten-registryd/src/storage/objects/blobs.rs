//! Blobs in an object store. Each time one is stored it gets objects of its own, an
//! *incarnation*, whose name says what it is; one listing tells whether a blob is there and
//! how large it is. Which of several incarnations is read does not matter.

use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use corten_oci::Digest;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResult, ObjectMeta, ObjectStore, PutPayload};
use serde::{Deserialize, Serialize};

use super::{Objects, Result};
use crate::error::RegistrydError;
use crate::names::UploadId;
use crate::storage::keys;

/// Remembered lists of parts; past that all are read again.
const MAX_LISTS: usize = 1024;
/// How long the parts of a blob that is read are believed to be all there.
const BELIEVED: Duration = Duration::from_secs(60);

/// A piece of a blob: an object's name below `parts/<uuid>`, and its size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part(pub(super) String, pub(super) u64);

/// A large blob's list.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Parts {
    pub(super) parts: Vec<Part>,
}

/// What is remembered of a list: it never changes, only its parts may be lost.
#[derive(Debug, Clone)]
pub(super) struct KnownList {
    parts: Arc<Parts>,
    /// When all of them were there.
    whole: Option<Instant>,
}

/// The key of a part.
pub(super) fn part_key(upload: &UploadId, part: &Part) -> String {
    format!("{PARTS}/{}/{}", upload.as_str(), part.0)
}

/// Above all parts.
pub(super) const PARTS: &str = "parts";

/// One copy of a blob's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::storage) struct Incarnation {
    pub(super) key: String,
    pub(super) size: u64,
    /// Whose parts it is made of; `None` for one object with all the bytes.
    pub(super) upload: Option<UploadId>,
}

impl Incarnation {
    /// What an object below a blob's folder is; `None` for what was not written here.
    pub(super) fn parse(meta: &ObjectMeta) -> Option<Self> {
        let key = meta.location.to_string();
        let name = meta.location.filename()?;
        let words: Vec<&str> = name.split('.').collect();
        match words[..] {
            ["raw", _] => Some(Self {
                key,
                size: meta.size,
                upload: None,
            }),
            ["parts", upload, size, _] => Some(Self {
                key,
                size: size.parse().ok()?,
                upload: Some(UploadId::parse(upload)?),
            }),
            _ => None,
        }
    }
}

/// What makes a name that nobody else gives.
pub(super) fn nonce() -> String {
    UploadId::random().as_str()[..18].replace('-', "")
}

impl Objects {
    /// One that is whole. Who only reads believes that for a while, and saves a listing.
    async fn incarnation(&self, digest: &Digest, believe: bool) -> Result<Option<Incarnation>> {
        let folder = keys::blob(digest);
        let path = Path::from(folder.as_str());
        let listed = self.store.list_with_delimiter(Some(&path)).await;
        let listed = listed.map_err(|error| self.failed("list", &folder, error))?;
        for found in listed.objects.iter().filter_map(Incarnation::parse) {
            if believe && self.was_whole(&found) {
                return Ok(Some(found));
            }
            if self.is_whole(&found).await? {
                if believe && let Some(known) = self.lists().get_mut(&found.key) {
                    known.whole = Some(Instant::now());
                }
                return Ok(Some(found));
            }
            tracing::warn!(%digest, object = found.key, "parts of a stored blob are missing");
        }
        Ok(None)
    }

    fn was_whole(&self, incarnation: &Incarnation) -> bool {
        let known = self.lists().get(&incarnation.key).cloned();
        let whole = known.and_then(|known| known.whole);
        whole.is_some_and(|since| since.elapsed() < BELIEVED)
    }

    fn lists(&self) -> MutexGuard<'_, HashMap<String, KnownList>> {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether all of its parts are there. Nothing here removes parts of a blob; but if some
    /// are gone, a new push should mend it.
    async fn is_whole(&self, incarnation: &Incarnation) -> Result<bool> {
        let Some(upload) = &incarnation.upload else {
            return Ok(true);
        };
        let folder = format!("{PARTS}/{}", upload.as_str());
        let there = self.everything(&folder);
        let (list, there) = futures_util::join!(self.list_of(&incarnation.key), there);
        let Some(list) = list? else {
            return Ok(false);
        };
        let there: HashSet<(String, u64)> = there?
            .iter()
            .map(|meta| (meta.location.to_string(), meta.size))
            .collect();
        let mut parts = list.parts.iter();
        Ok(parts.all(|part| there.contains(&(part_key(upload, part), part.1))))
    }

    pub(in crate::storage) fn blob_size(&self, digest: &Digest) -> Result<Option<u64>> {
        let found = self.run(self.incarnation(digest, false))?;
        Ok(found.map(|incarnation| incarnation.size))
    }

    pub(in crate::storage) fn open_blob(
        &self,
        digest: &Digest,
    ) -> Result<Option<(BlobReader, u64)>> {
        self.run(async {
            let Some(found) = self.incarnation(digest, true).await? else {
                return Ok(None);
            };
            let (store, size) = (self.store.clone(), found.size);
            let segments = match &found.upload {
                None => vec![(found.key, size)],
                Some(upload) => {
                    let Some(list) = self.list_of(&found.key).await? else {
                        return Ok(None);
                    };
                    let key = |part: &Part| (part_key(upload, part), part.1);
                    list.parts.iter().map(key).collect()
                }
            };
            Ok(Some((BlobReader { store, segments }, size)))
        })
    }

    /// `None` if it was removed meanwhile.
    async fn list_of(&self, key: &str) -> Result<Option<Arc<Parts>>> {
        let known = self.lists().get(key).cloned();
        if let Some(known) = known {
            return Ok(Some(known.parts));
        }
        let got = match self
            .store
            .get_opts(&Path::from(key), GetOptions::default())
            .await
        {
            Ok(got) => got.bytes().await,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => Err(error),
        };
        let bytes = got.map_err(|error| self.failed("read", key, error))?;
        let list: Parts =
            serde_json::from_slice(&bytes).map_err(|error| RegistrydError::Damaged {
                path: self.name(key),
                reason: error.to_string(),
            })?;
        let list = Arc::new(list);
        let mut lists = self.lists();
        if lists.len() >= MAX_LISTS {
            lists.clear();
        }
        let parts = list.clone();
        lists.insert(key.to_owned(), KnownList { parts, whole: None });
        Ok(Some(list))
    }

    pub(in crate::storage) fn read_blob(&self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        let Some((reader, size)) = self.open_blob(digest)? else {
            return Ok(None);
        };
        let read = async {
            let pieces: Vec<Bytes> = reader.read(0..size).await?.try_collect().await?;
            Ok(pieces.concat())
        };
        let read: object_store::Result<Vec<u8>> = self.run(read);
        read.map(Some)
            .map_err(|error| self.failed("read", &keys::blob(digest), error))
    }

    /// Stores a blob in one object of its own.
    pub(in crate::storage) fn write_raw(&self, digest: &Digest, payload: PutPayload) -> Result<()> {
        let key = format!("{}/raw.{}", keys::blob(digest), nonce());
        self.run(self.put(&key, payload))
    }

    /// Makes an upload's parts a blob.
    pub(super) fn write_parts(
        &self,
        digest: &Digest,
        upload: &UploadId,
        size: u64,
        list: &Parts,
    ) -> Result<()> {
        let (folder, id) = (keys::blob(digest), upload.as_str());
        let key = format!("{folder}/parts.{id}.{size}.{}", nonce());
        self.write(&key, &self.encode(&key, list)?)
    }

    pub(super) fn encode(&self, key: &str, record: &impl Serialize) -> Result<Vec<u8>> {
        serde_json::to_vec(record).map_err(|error| RegistrydError::Damaged {
            path: self.name(key),
            reason: error.to_string(),
        })
    }

    /// Bytes of all blobs, and of uploads but those that `left_out` names.
    pub(in crate::storage) fn bytes(
        &self,
        left_out: impl FnOnce() -> HashSet<UploadId>,
    ) -> Result<u64> {
        let (blobs, parts) = self.run(async {
            let blobs = self.everything(keys::BLOBS).await?;
            Ok::<_, RegistrydError>((blobs, self.everything(PARTS).await?))
        })?;
        // Asked last, for those, too, that began while this listed.
        let left_out = left_out();
        let counts = |meta: &&ObjectMeta| {
            let upload = meta.location.parts().nth(1);
            let upload = upload.and_then(|id| UploadId::parse(id.as_ref()));
            upload.is_none_or(|id| !left_out.contains(&id))
        };
        let parts: u64 = parts.iter().filter(counts).map(|meta| meta.size).sum();
        Ok(parts + blobs.iter().map(|meta| meta.size).sum::<u64>())
    }
}

/// A blob's objects in their order.
#[derive(Debug)]
pub(crate) struct BlobReader {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) segments: Vec<(String, u64)>,
}

type Pieces = BoxStream<'static, object_store::Result<Bytes>>;

impl BlobReader {
    /// The bytes of a range. The first object is asked for at once, so that what is not there
    /// is an error here.
    pub(crate) async fn read(self, range: Range<u64>) -> object_store::Result<Pieces> {
        let mut wanted = Vec::new();
        let mut start = 0;
        for (key, size) in self.segments {
            let end = start + size;
            let (from, to) = (range.start.max(start), range.end.min(end));
            if from < to {
                wanted.push((Path::from(key), from - start..to - start));
            }
            start = end;
        }
        let mut wanted = wanted.into_iter();
        let Some((key, part)) = wanted.next() else {
            return Ok(futures_util::stream::empty().boxed());
        };
        let first = get(self.store.clone(), key, part).await?;
        Ok(first.into_stream().chain(rest(self.store, wanted)).boxed())
    }

    /// The same for a reply's body.
    pub(crate) async fn body(
        self,
        range: Range<u64>,
    ) -> object_store::Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static> {
        let pieces = self.read(range).await?;
        Ok(pieces.map_err(io::Error::from))
    }
}

/// Each object is asked for when the one before it begins to be read, so that no time passes
/// between them; its bytes wait in the connection.
fn rest(
    store: Arc<dyn ObjectStore>,
    mut wanted: impl Iterator<Item = (Path, Range<u64>)> + Send + 'static,
) -> impl Stream<Item = object_store::Result<Bytes>> + Send {
    let ask = |store: &Arc<dyn ObjectStore>, next: Option<(Path, Range<u64>)>| {
        next.map(|(key, range)| tokio::spawn(get(store.clone(), key, range)))
    };
    let first = ask(&store, wanted.next());
    let state = (store, wanted, first);
    futures_util::stream::try_unfold(state, move |(store, mut wanted, asked)| async move {
        let Some(asked) = asked else {
            return Ok(None);
        };
        let got: GetResult = asked.await??;
        let next = ask(&store, wanted.next());
        Ok::<_, object_store::Error>(Some((got.into_stream(), (store, wanted, next))))
    })
    .try_flatten()
}

async fn get(
    store: Arc<dyn ObjectStore>,
    key: Path,
    range: Range<u64>,
) -> object_store::Result<GetResult> {
    let options = GetOptions {
        range: Some(GetRange::Bounded(range)),
        ..GetOptions::default()
    };
    store.get_opts(&key, options).await
}
