//! The cache in the image itself: `type=inline`. The image's config has the records of its own
//! layers under a key of ours, beside BuildKit's `moby.buildkit.cache.v0`; others pass over it.
//!
//! What is there depends on what the image was made of and on nothing else, so that an image
//! that is built again is the same: of each step only the key by content is told, not those by
//! the stages that it took files from.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Record;

/// The key in the image's config.
pub(crate) const KEY: &str = "corten.buildcache.v1";

/// What the key has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Inline {
    records: Vec<Record>,
}

impl Inline {
    /// Of the steps of an image; `None` without any.
    pub(crate) fn of(records: Vec<Record>) -> Option<Self> {
        let first_key = |mut record: Record| {
            record.keys.truncate(1);
            record
        };
        let records: Vec<Record> = records.into_iter().map(first_key).collect();
        (!records.is_empty()).then_some(Self { records })
    }
}

/// The records in an image's config, and its layers' diff ids.
pub(super) fn read(config: &[u8]) -> Result<(Vec<Record>, Vec<String>), String> {
    let wrong = |error: serde_json::Error| format!("config: {error}");
    let mut config: Value = serde_json::from_slice(config).map_err(wrong)?;
    let inline = config.get_mut(KEY).map(Value::take);
    let inline = inline.ok_or_else(|| "it has no build cache of ours".to_owned())?;
    let inline: Inline = serde_json::from_value(inline).map_err(wrong)?;
    let layers = config["rootfs"]["diff_ids"].take();
    Ok((
        inline.records,
        serde_json::from_value(layers).map_err(wrong)?,
    ))
}
