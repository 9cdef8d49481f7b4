//! Removing blobs that no repository links any more. Only while no server writes below the
//! same root: a blob is in its place shortly before its first link is.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::Path;

use corten_oci::Digest;
use corten_oci::digest::Algorithm;

use super::{Result, Storage, list, remove};
use crate::error::{IoContext as _, RegistrydError};

/// Locked (`flock`) below the root: shared by servers that write, alone by a collection.
const LOCK: &str = "lock";

/// What was, or with a dry run would be, removed.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub(crate) blobs: Vec<Digest>,
    pub(crate) bytes: u64,
}

impl Storage {
    /// Removes the blobs nothing refers to.
    pub(crate) fn collect(&self, dry_run: bool) -> Result<Collected> {
        let path = self.root.join(LOCK);
        let file = open_lock(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                return Err(RegistrydError::Served(self.root.clone()));
            }
            Err(fs::TryLockError::Error(error)) => return Err(error).context("lock", &path),
        }
        let live = self.linked()?;
        let mut collected = Collected::default();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let top = self.root.join("blobs").join(algorithm.as_str());
            for prefix in list(&top)? {
                for digest in digests(&top.join(prefix), algorithm)? {
                    if live.contains(&digest) {
                        continue;
                    }
                    let data = self.blob_data(&digest);
                    let size = fs::metadata(&data).map_or(0, |metadata| metadata.len());
                    if !dry_run {
                        remove(&data)?;
                        if let Some(folder) = data.parent() {
                            fs::remove_dir(folder).context("remove", folder)?;
                        }
                    }
                    collected.blobs.push(digest);
                    collected.bytes += size;
                }
            }
        }
        Ok(collected)
    }

    /// Keeps collections away until dropped.
    pub(super) fn share(root: &Path) -> Result<File> {
        let path = root.join(LOCK);
        let file = open_lock(&path)?;
        match file.try_lock_shared() {
            Ok(()) => Ok(file),
            Err(fs::TryLockError::WouldBlock) => Err(RegistrydError::Collecting(root.to_owned())),
            Err(fs::TryLockError::Error(error)) => Err(error).context("lock", &path),
        }
    }

    /// Every blob that some repository has, manifests included.
    fn linked(&self) -> Result<HashSet<Digest>> {
        let mut live = HashSet::new();
        for name in self.all_repositories()? {
            let repo = self.repo(&name);
            for folder in [repo.join("_layers"), repo.join("_manifests/revisions")] {
                for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
                    live.extend(digests(&folder.join(algorithm.as_str()), algorithm)?);
                }
            }
        }
        Ok(live)
    }
}

fn open_lock(path: &Path) -> Result<File> {
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .context("open", path)
}

/// The digests whose hex parts are names in a folder.
fn digests(folder: &Path, algorithm: Algorithm) -> Result<Vec<Digest>> {
    let mut found = Vec::new();
    for name in list(folder)? {
        found.extend(format!("{}:{name}", algorithm.as_str()).parse::<Digest>());
    }
    Ok(found)
}
