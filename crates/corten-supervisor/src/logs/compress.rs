//! Compressing rotated logs, a piece at a time between other work of the event loop: the
//! supervisor has no second thread to do it in.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::write::numbered;

/// Bytes compressed at once: a few milliseconds.
const PIECE: usize = 128 * 1024;

/// The compressed form of a rotated log.
pub(super) fn compressed(path: &Path, number: u32) -> PathBuf {
    let mut name = numbered(path, number).into_os_string();
    name.push(".gz");
    name.into()
}

/// Compresses every rotated log that is not yet, newest first.
pub(super) async fn rotated(path: PathBuf, max_file: u32) {
    for number in 1..max_file {
        if let Err(error) = one(&path, number).await
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), number, %error, "a log stays uncompressed");
        }
    }
}

async fn one(path: &Path, number: u32) -> io::Result<()> {
    let source = numbered(path, number);
    let mut input = File::open(&source)?;
    let target = compressed(path, number);
    let mut unfinished = Unfinished(target.with_extension("gz.part"));
    let output = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o640)
        .open(&unfinished.0)?;
    let mut encoder = GzEncoder::new(output, Compression::fast());
    let mut piece = vec![0; PIECE];
    loop {
        let n = input.read(&mut piece)?;
        if n == 0 {
            break;
        }
        encoder.write_all(&piece[..n])?;
        tokio::task::yield_now().await;
    }
    // The source goes: after a power cut the compressed form must be whole.
    encoder.finish()?.sync_data()?;
    // Both are there for a moment, and readers take the uncompressed one.
    fs::rename(&unfinished.0, &target)?;
    unfinished.0.clear();
    fs::remove_file(&source)
}

/// A file that goes if its making is broken off.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty()
            && let Err(error) = fs::remove_file(&self.0)
        {
            tracing::debug!(%error, "half of a compressed log is left");
        }
    }
}
