//! Blobs that should be here and are not.
//!
//! What an image's rows name (its config, manifest, index and what that leads to) is always
//! here. The layers' blobs that a manifest names need not be, where a layer was here already when
//! the image came: then it has another blob, or never had one. Lost is such a blob only where it
//! has been here, and none is left to make the layer of. Without a manifest that names it, it is
//! lost where the layer cannot be written again as it was: its archive was not one of ours.

use std::collections::{HashMap, HashSet};

use corten_oci::{DiffId, Digest};
use rusqlite::Connection;

use crate::Store;
use crate::error::StoreError;
use crate::layers::Layers;

/// Blobs that rows of images name, and whether each is an image's manifest.
const NAMED_BY_ROWS: &str = "SELECT manifest, TRUE FROM image WHERE manifest IS NOT NULL
     UNION SELECT manifest, TRUE FROM tag_origin
     UNION SELECT id, FALSE FROM image
     UNION SELECT digest, FALSE FROM image_index WHERE digest IS NOT NULL
     UNION SELECT blob, FALSE FROM image_attached
     UNION SELECT list, FALSE FROM tag_origin WHERE list IS NOT NULL
     UNION SELECT blob, FALSE FROM tag_origin_blob";

/// Blobs that layers of images have been unpacked from, or been compressed to.
const OF_LAYERS: &str = "SELECT diff_id, blob FROM layer_blob
     WHERE diff_id IN (SELECT diff_id FROM image_layer) ORDER BY diff_id, blob";

type Lacking = (HashSet<Digest>, HashMap<DiffId, Digest>);

impl Store {
    /// Those blobs, in order.
    pub(crate) fn lacking(&self) -> Result<Vec<Digest>, StoreError> {
        let (mut lacking, doubtful) = self.database().read(|db| self.lacking_in(db))?;
        for (layer, blob) in doubtful {
            if !self.layers().can_be_written(&layer)? {
                lacking.insert(blob);
            }
        }
        let mut lacking: Vec<Digest> = lacking.into_iter().collect();
        lacking.sort();
        Ok(lacking)
    }

    /// Those that are, and one of each layer that may not be the same without.
    fn lacking_in(&self, db: &Connection) -> Result<Lacking, StoreError> {
        let mut statement = db.prepare_cached(NAMED_BY_ROWS)?;
        let mut rows = statement.query([])?;
        let (mut lacking, mut by_manifests) = (HashSet::new(), HashSet::new());
        while let Some(row) = rows.next()? {
            let Ok(digest) = row.get::<_, String>(0)?.parse::<Digest>() else {
                continue;
            };
            if !self.blobs().is_there(&digest) {
                lacking.insert(digest);
            } else if row.get(1)? {
                by_manifests.extend(self.images().named_by(&digest)?.unwrap_or_default());
            }
        }
        let mut statement = db.prepare_cached(OF_LAYERS)?;
        let mut rows = statement.query([])?;
        let (mut whole, mut gone) = (HashSet::new(), Vec::new());
        while let Some(row) = rows.next()? {
            let (layer, blob): (String, String) = (row.get(0)?, row.get(1)?);
            let (Ok(layer), Ok(blob)) = (layer.parse::<DiffId>(), blob.parse::<Digest>()) else {
                continue;
            };
            if self.blobs().is_there(&blob) {
                whole.insert(layer);
            } else {
                gone.push((layer, blob));
            }
        }
        let mut doubtful = HashMap::new();
        for (layer, blob) in gone {
            // Of a layer that is not here either, the layer is told.
            if whole.contains(&layer) || Layers::peek_in(db, &layer)?.is_none() {
                continue;
            }
            if by_manifests.contains(&blob) {
                whole.insert(layer);
                lacking.insert(blob);
            } else {
                doubtful.entry(layer).or_insert(blob);
            }
        }
        doubtful.retain(|layer, _| !whole.contains(layer));
        Ok((lacking, doubtful))
    }
}
