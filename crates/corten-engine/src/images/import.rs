//! `import`: an archive of files as an image of one layer.
//!
//! The archive is unpacked and kept at once: its bytes are the layer's blob, which is what
//! makes the image one that can be saved and pushed with its diff id.

use std::fs::File;
use std::io::{self, Read, Write};

use corten_build::Snapshot;
use corten_oci::media_type::{self as types, Compression};
use corten_oci::{Digester, ImageRef, Platform};
use corten_store::{ImageId, LayerBlob};

use super::event;
use crate::containers::refused_change;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::{bad, time};

type Result<T> = std::result::Result<T, EngineError>;

/// How to import.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// The image's name; `None`: it gets none.
    pub name: Option<ImageRef>,
    /// A line for its history.
    pub message: String,
    /// Dockerfile instructions that make its configuration.
    pub changes: Vec<String>,
    /// What it is for; the host's otherwise.
    pub platform: Option<Platform>,
}

/// Copies what is read through it into a file, hashed.
struct Kept<R> {
    inner: R,
    file: File,
    digester: Digester,
    size: u64,
    head: Vec<u8>,
}

impl<R: Read> Read for Kept<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(out)?;
        self.file.write_all(&out[..n])?;
        self.digester.update(&out[..n]);
        self.size += n as u64;
        if self.head.len() < HEAD {
            let more = n.min(HEAD - self.head.len());
            self.head.extend_from_slice(&out[..more]);
        }
        Ok(n)
    }
}

/// Bytes that tell a compression.
const HEAD: usize = 6;

/// Imports an archive. Blocks.
pub(super) fn import(
    engine: &Engine,
    mut archive: impl Read + Send,
    options: &ImportOptions,
) -> Result<ImageId> {
    let store = engine.store();
    let now = time::rfc3339(time::now_nanos());
    let snapshot = Snapshot {
        changes: &options.changes,
        comment: &options.message,
        created: &now,
        platform: options.platform.as_ref(),
        ..Snapshot::default()
    };
    snapshot.check().map_err(|error| refused_change(&error))?;
    if let Some(platform) = options.platform.as_ref().filter(|p| p.os != "linux") {
        return Err(bad(format!(
            "operating system is not supported: {}",
            platform.os
        )));
    }
    let unreadable = |source| EngineError::Other {
        context: "read the archive".to_owned(),
        source: Box::new(source),
    };
    let mut head = Vec::new();
    let start = (&mut archive).take(HEAD as u64).read_to_end(&mut head);
    start.map_err(unreadable)?;
    for (magic, name) in [(&b"BZh"[..], "bzip2"), (b"\xfd7zXZ", "xz")] {
        if head.starts_with(magic) {
            return Err(bad(format!(
                "archives compressed with {name} are not read: unpack it first, or use gzip or zstd"
            )));
        }
    }
    let _lease = store.leases().acquire()?;
    let tmp = store.tmp_dir("import")?;
    let path = tmp.path().join("archive");
    let file = File::create_new(&path).map_err(|source| EngineError::Io {
        action: "create",
        path: path.clone(),
        source,
    })?;
    let mut kept = Kept {
        inner: io::Cursor::new(head).chain(archive),
        file,
        digester: Digester::sha256(),
        size: 0,
        head: Vec::new(),
    };
    let layer = store.layers().apply(None, &mut kept)?;
    // Whatever stands behind the end of a compressed archive is part of the blob.
    io::copy(&mut kept, &mut io::sink()).map_err(unreadable)?;
    let digest = kept.digester.finish();
    store.blobs().adopt(&digest, &path)?;
    let blob = LayerBlob {
        digest,
        size: kept.size,
        media_type: match Compression::sniff(&kept.head) {
            Compression::None => types::DOCKER_LAYER,
            Compression::Gzip => types::DOCKER_LAYER_GZIP,
            Compression::Zstd => types::OCI_LAYER_ZSTD,
        }
        .to_owned(),
    };
    store.layers().record_blob(&layer.diff_id, &blob)?;
    let snapshot = Snapshot {
        layer: Some(&layer.diff_id),
        ..snapshot
    };
    let document = snapshot
        .document()
        .map_err(|error| refused_change(&error))?;
    let names = options.name.as_slice();
    let id = store.images().put_named(&document, None, names)?;
    event(engine, "import", id.as_str(), id.as_str());
    if let Some(name) = &options.name {
        event(engine, "tag", id.as_str(), &name.familiar());
    }
    Ok(id)
}
