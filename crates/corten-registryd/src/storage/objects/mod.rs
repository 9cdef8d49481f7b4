//! An object store (S3, GCS, Azure) that any number of servers use at the same time.
//!
//! ```text
//! repositories/…                                  as in a folder (`super`), but uploads:
//! repositories/<name>/_uploads/<uuid>             {"parts":[[name, size], …], "end": …}
//! parts/<uuid>/<name>                             a piece of an upload, then of its blob
//! blobs/<alg>/<2>/<hex>/raw.<nonce>               a small blob's bytes
//! blobs/<alg>/<2>/<hex>/parts.<uuid>.<size>.<nonce>   a large one's list of parts
//! marks/<alg>/<hex>/<nonce>                       a collection wants to remove this blob
//! locks/collection                                whose turn it is to collect
//! ```
//!
//! Nothing here is locked, and no server remembers anything that another would need. What is
//! written is written whole, under a name that nobody else gives (nonces), or by a conditional
//! put where two could write the same (an upload's state). A blob may be there several times,
//! which is as good as once. How a collection and a push keep out of each other's way is told
//! in [`collect`].
//!
//! Methods block: they are called on worker threads, and run the store's futures on the
//! server's runtime.

mod blobs;
mod collect;
mod connect;
mod session;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt as _, PutPayload};
use tokio::runtime::Handle;

use super::Result;
use crate::error::RegistrydError;

pub(crate) use blobs::BlobReader;
pub(super) use collect::Lease;
pub use connect::StoreConfig;
pub(super) use session::{End, Session};

/// Requests of one piece of work that run at once.
const AT_ONCE: usize = 32;

/// The store, below its prefix.
#[derive(Debug)]
pub(crate) struct Objects {
    store: Arc<dyn ObjectStore>,
    /// For messages.
    url: String,
    runtime: Handle,
    /// How often the lease of a collection is.
    renew_every: Duration,
    /// Lists of parts that were read, by their key.
    lists: Mutex<HashMap<String, blobs::KnownList>>,
}

impl Objects {
    /// Uses a store; to be called in a runtime, on which its futures run from then on.
    pub(super) fn new(store: Arc<dyn ObjectStore>, url: String) -> Self {
        Self {
            store,
            url,
            runtime: Handle::current(),
            renew_every: collect::RENEW,
            lists: Mutex::default(),
        }
    }

    /// Connects to what the configuration names.
    pub(super) fn open(config: &StoreConfig) -> Result<Self> {
        Ok(Self::new(config.connect()?, config.shown()))
    }

    fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    pub(super) fn name(&self, key: &str) -> PathBuf {
        PathBuf::from(format!("{}/{key}", self.url))
    }

    fn failed(
        &self,
        action: &'static str,
        key: &str,
        error: object_store::Error,
    ) -> RegistrydError {
        RegistrydError::Store {
            action,
            key: format!("{}/{key}", self.url),
            source: Box::new(error),
        }
    }

    /// Whether the store answers us.
    pub(super) fn check(&self) -> Result<()> {
        // Anything there or not will do; without the right to ask it is an error.
        const ANY: &str = "locks/collection";
        self.modified(ANY)?;
        // Of a bucket that is not there only a list says so. Nothing is below an object: one page
        // is all there is of this list, however much the bucket has.
        self.list(ANY).map(drop)
    }

    pub(super) fn read(&self, key: &str) -> Result<Option<Vec<u8>>> {
        self.run(async {
            let got = match self.store.get(&Path::from(key)).await {
                Ok(got) => got.bytes().await,
                Err(object_store::Error::NotFound { .. }) => return Ok(None),
                Err(error) => Err(error),
            };
            let bytes = got.map_err(|error| self.failed("read", key, error))?;
            Ok(Some(bytes.into()))
        })
    }

    pub(super) fn write(&self, key: &str, bytes: &[u8]) -> Result<()> {
        self.run(self.put(key, bytes.to_vec().into()))
    }

    async fn put(&self, key: &str, payload: PutPayload) -> Result<()> {
        let done = self.store.put(&Path::from(key), payload).await;
        done.map(drop)
            .map_err(|error| self.failed("write", key, error))
    }

    async fn meta(&self, key: &str) -> Result<Option<ObjectMeta>> {
        match self.store.head(&Path::from(key)).await {
            Ok(meta) => Ok(Some(meta)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed("look at", key, error)),
        }
    }

    pub(super) fn modified(&self, key: &str) -> Result<Option<SystemTime>> {
        let meta = self.run(self.meta(key))?;
        Ok(meta.map(|meta| meta.last_modified.into()))
    }

    /// Writes a small object again: there is no other way to change its time.
    pub(super) fn touch(&self, key: &str) -> Result<()> {
        match self.read(key)? {
            Some(bytes) => self.write(key, &bytes),
            None => Ok(()),
        }
    }

    /// False if there was none: a store says the same whether it had something to remove.
    pub(super) fn remove(&self, key: &str) -> Result<bool> {
        self.run(async {
            let there = self.meta(key).await?.is_some();
            if there {
                self.delete(key).await?;
            }
            Ok(there)
        })
    }

    async fn delete(&self, key: &str) -> Result<()> {
        match self.store.delete(&Path::from(key)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed("remove", key, error)),
        }
    }

    /// The same for many, in as few requests as the store allows.
    async fn delete_all(&self, keys: &[String]) -> Result<()> {
        let paths: Vec<_> = keys
            .iter()
            .map(|key| Ok(Path::from(key.as_str())))
            .collect();
        let paths = futures_util::stream::iter(paths).boxed();
        let mut gone = self.store.delete_stream(paths);
        while let Some(done) = gone.next().await {
            match done {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(self.failed("remove", "", error)),
            }
        }
        Ok(())
    }

    pub(super) fn list(&self, folder: &str) -> Result<Vec<String>> {
        self.run(self.names(folder))
    }

    pub(super) fn list_all(&self, folders: &[String]) -> Result<Vec<Vec<String>>> {
        let listed = folders.iter().map(|folder| self.names(folder));
        let listed = futures_util::stream::iter(listed).buffered(AT_ONCE);
        self.run(listed.try_collect())
    }

    async fn names(&self, folder: &str) -> Result<Vec<String>> {
        let path = Path::from(folder);
        let listed = self.store.list_with_delimiter(Some(&path)).await;
        let listed = listed.map_err(|error| self.failed("list", folder, error))?;
        let objects = listed.objects.iter().map(|meta| &meta.location);
        let all = listed.common_prefixes.iter().chain(objects);
        Ok(all.filter_map(Path::filename).map(str::to_owned).collect())
    }

    /// All objects below a key, at any depth.
    async fn everything(&self, folder: &str) -> Result<Vec<ObjectMeta>> {
        let listed = self.store.list(Some(&Path::from(folder)));
        let listed = listed.try_collect().await;
        listed.map_err(|error| self.failed("list", folder, error))
    }
}
