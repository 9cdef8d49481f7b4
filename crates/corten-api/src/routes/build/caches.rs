//! Caches that a build reads and writes elsewhere, as a client names them.

use std::path::PathBuf;

use corten_build::{BuildRequest, CacheExport, CacheImport, CacheTarget};
use corten_oci::ImageRef;
use serde::Deserialize;

use super::in_process;
use crate::error::ApiError;

const CACHE: &str = "X-Corten-Cache";

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Place {
    Directory(PathBuf),
    Registry(String),
    Inline,
}

#[derive(Deserialize)]
struct Export {
    to: Place,
    all: bool,
    ignore_error: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Caches {
    from: Vec<Place>,
    to: Vec<Export>,
}

/// Reads the header.
pub(super) fn read(
    parts: &http::request::Parts,
    wanted: &mut BuildRequest,
) -> Result<(), ApiError> {
    let Some(value) = parts.headers.get(CACHE) else {
        return Ok(());
    };
    let bad = |error: String| ApiError::bad_parameter(format!("{CACHE}: {error}"));
    let caches: Caches =
        serde_json::from_slice(value.as_bytes()).map_err(|error| bad(error.to_string()))?;
    let name = |text: &str| {
        let name: Result<ImageRef, _> = text.parse();
        name.map(ImageRef::or_latest)
            .map_err(|error| bad(format!("{text}: {error}")))
    };
    for place in caches.from {
        wanted.cache_from.push(match place {
            Place::Directory(dir) => {
                in_process(parts, CACHE, "directories")?;
                CacheImport::Directory(dir)
            }
            Place::Registry(text) => CacheImport::Registry(name(&text)?),
            Place::Inline => return Err(bad("an image's own cache has a name".to_owned())),
        });
    }
    for export in caches.to {
        let to = match export.to {
            Place::Directory(dir) => {
                in_process(parts, CACHE, "directories")?;
                CacheTarget::Directory(dir)
            }
            Place::Registry(text) => CacheTarget::Registry(name(&text)?),
            Place::Inline => CacheTarget::Inline,
        };
        wanted.cache_to.push(CacheExport {
            to,
            all: export.all,
            ignore_error: export.ignore_error,
        });
    }
    Ok(())
}
