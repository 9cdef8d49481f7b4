//! `import`: an archive of files as an image of one layer.
//!
//! The archive is unpacked and kept at once: its bytes are the layer's blob, which is what
//! makes the image one that can be saved and pushed with its diff id. Of compressions that
//! layers cannot have (bzip2, xz), the plain bytes are kept.

use std::io::Read;

use corten_build::Snapshot;
use corten_oci::{ImageRef, Platform};
use corten_store::ImageId;

use super::archive::Kept;
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

/// Imports an archive. Blocks.
pub(super) fn import(
    engine: &Engine,
    archive: impl Read + Send,
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
    let _lease = store.leases().acquire()?;
    let tmp = store.tmp_dir("import")?;
    let mut kept = Kept::new(archive, &tmp.path().join("archive")).map_err(unreadable)?;
    let layer = store.layers().apply(None, &mut kept)?;
    let blob = kept.adopt(store, unreadable)?;
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
