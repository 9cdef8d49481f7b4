//! Where the things are: a folder, or an object store. What both can do is here, by key
//! ([`super::keys`]); what only one can (locks, marks) its users ask of it directly.

use std::collections::HashSet;
use std::fs::File;
use std::path::PathBuf;
use std::time::SystemTime;

use corten_oci::Digest;

use super::Result;
use super::files::{self, Files};
use super::objects::{BlobReader, Objects};
use crate::names::UploadId;

/// One of the two.
#[derive(Debug)]
pub(super) enum Place {
    /// Plain files below a root.
    Files(Files),
    /// An object store that other servers may use at the same time.
    Objects(Objects),
}

/// A blob opened for reading.
#[derive(Debug)]
pub(crate) struct OpenBlob {
    pub(crate) source: Source,
    pub(crate) size: u64,
}

/// Where its bytes come from.
#[derive(Debug)]
pub(crate) enum Source {
    File(File),
    Objects(BlobReader),
}

impl Place {
    /// Whether it can be reached.
    pub(super) fn check(&self) -> Result<()> {
        match self {
            Self::Files(files) => files.check(),
            Self::Objects(objects) => objects.check(),
        }
    }

    /// What a key is called in messages.
    pub(super) fn name(&self, key: &str) -> PathBuf {
        match self {
            Self::Files(files) => files.path(key),
            Self::Objects(objects) => objects.name(key),
        }
    }

    /// A small thing's content, `None` if there is none.
    pub(super) fn read(&self, key: &str) -> Result<Option<Vec<u8>>> {
        match self {
            Self::Files(files) => files::read(&files.path(key)),
            Self::Objects(objects) => objects.read(key),
        }
    }

    /// Writes a small thing so that it appears at once or not at all.
    pub(super) fn write(&self, key: &str, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Files(files) => files.write(&files.path(key), bytes),
            Self::Objects(objects) => objects.write(key, bytes),
        }
    }

    /// Removes a thing for good; false if there was none.
    pub(super) fn remove(&self, key: &str) -> Result<bool> {
        match self {
            Self::Files(files) => files::remove(&files.path(key)),
            Self::Objects(objects) => objects.remove(key),
        }
    }

    pub(super) fn exists(&self, key: &str) -> Result<bool> {
        Ok(self.modified(key)?.is_some())
    }

    /// When a thing was written, `None` if there is none.
    pub(super) fn modified(&self, key: &str) -> Result<Option<SystemTime>> {
        match self {
            Self::Files(files) => Ok(files::stat(&files.path(key))?.map(|(time, _)| time)),
            Self::Objects(objects) => objects.modified(key),
        }
    }

    /// Makes a thing look as if written now, if it is there.
    pub(super) fn touch(&self, key: &str) -> Result<()> {
        match self {
            Self::Files(files) => files::touch(&files.path(key)),
            Self::Objects(objects) => objects.touch(key),
        }
    }

    /// The names right below a key, in no order.
    pub(super) fn list(&self, folder: &str) -> Result<Vec<String>> {
        match self {
            Self::Files(files) => files::list(&files.path(folder)),
            Self::Objects(objects) => objects.list(folder),
        }
    }

    /// The same of many, in their order.
    pub(super) fn list_all(&self, folders: &[String]) -> Result<Vec<Vec<String>>> {
        match self {
            Self::Files(files) => {
                let listed = folders.iter().map(|key| files::list(&files.path(key)));
                listed.collect()
            }
            Self::Objects(objects) => objects.list_all(folders),
        }
    }

    /// A blob's size, `None` if it is not stored.
    pub(super) fn blob_size(&self, digest: &Digest) -> Result<Option<u64>> {
        match self {
            Self::Files(files) => Ok(files::stat(&files.blob(digest))?.map(|(_, size)| size)),
            Self::Objects(objects) => objects.blob_size(digest),
        }
    }

    pub(super) fn open_blob(&self, digest: &Digest) -> Result<Option<OpenBlob>> {
        match self {
            Self::Files(files) => {
                let opened = files.open_blob(digest)?;
                Ok(opened.map(|(file, size)| OpenBlob {
                    source: Source::File(file),
                    size,
                }))
            }
            Self::Objects(objects) => {
                let opened = objects.open_blob(digest)?;
                Ok(opened.map(|(reader, size)| OpenBlob {
                    source: Source::Objects(reader),
                    size,
                }))
            }
        }
    }

    /// All of a small blob.
    pub(super) fn read_blob(&self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        match self {
            Self::Files(files) => files::read(&files.blob(digest)),
            Self::Objects(objects) => objects.read_blob(digest),
        }
    }

    /// Bytes of all blobs; in an object store also of uploads but those that `left_out` names.
    pub(super) fn bytes(&self, left_out: impl FnOnce() -> HashSet<UploadId>) -> Result<u64> {
        match self {
            Self::Files(files) => files.bytes(),
            Self::Objects(objects) => objects.bytes(left_out),
        }
    }
}
