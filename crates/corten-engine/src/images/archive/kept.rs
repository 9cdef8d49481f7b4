//! An archive that is unpacked and kept at once: its bytes become a layer's blob.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use corten_oci::Digester;
use corten_oci::media_type::DOCKER_LAYER;
use corten_store::archive::{Plain, decompress_buffered, sniff};
use corten_store::{LayerBlob, Store, WriteAhead};

use crate::error::EngineError;

/// Copies what is read through it into a file, hashed.
pub(in super::super) struct Kept<'a> {
    inner: Plain<'a>,
    path: PathBuf,
    file: File,
    ahead: WriteAhead,
    digester: Digester,
    size: u64,
    media_type: &'static str,
}

impl<'a> Kept<'a> {
    /// Reads an archive and keeps it in a new file: as it comes where layers may be compressed
    /// like that, else its plain bytes.
    pub(in super::super) fn new(archive: impl Read + Send + 'a, path: &Path) -> io::Result<Self> {
        let (compression, whole) = sniff(archive)?;
        let (inner, media_type) = match compression.layer_type() {
            Some(media_type) => (Box::new(whole) as Plain<'a>, media_type),
            None => (decompress_buffered(whole)?.1, DOCKER_LAYER),
        };
        Ok(Self {
            inner,
            path: path.to_owned(),
            file: File::create_new(path)?,
            ahead: WriteAhead::default(),
            digester: Digester::sha256(),
            size: 0,
            media_type,
        })
    }

    /// Reads what is left, as whatever stands behind the end of a compressed archive is part of
    /// the blob, and makes what was kept one of the store's. `unreadable`: what an archive that
    /// ends early, or is none, comes to.
    pub(in super::super) fn adopt(
        mut self,
        store: &Store,
        unreadable: impl FnOnce(io::Error) -> EngineError,
    ) -> Result<LayerBlob, EngineError> {
        io::copy(&mut self, &mut io::sink()).map_err(unreadable)?;
        let digest = self.digester.finish();
        store.blobs().adopt(&digest, &self.path)?;
        Ok(LayerBlob {
            digest,
            size: self.size,
            media_type: self.media_type.to_owned(),
        })
    }
}

impl Read for Kept<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(out)?;
        self.file.write_all(&out[..n])?;
        self.digester.update(&out[..n]);
        self.size += n as u64;
        self.ahead.written(&self.file, self.size);
        Ok(n)
    }
}
