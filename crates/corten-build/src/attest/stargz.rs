//! Images of eStargz layers. Such a layer has more in it than the one it is made of, so the image
//! is of other layers than the build's.

use corten_oci::{DiffId, media_type};
use corten_store::{Stargz, Store};

use crate::config::ImageDocument;
use crate::error::BuildError;

/// Makes the layers of an image eStargz, and has its document say so; those that were made.
/// Without `force`, what is compressed already stays as it is. Blocks.
pub(crate) fn make(
    store: &Store,
    document: &mut Vec<u8>,
    layers: &mut [DiffId],
    (level, force): (Option<u32>, bool),
) -> Result<Vec<Stargz>, BuildError> {
    let mut made: Vec<(DiffId, Stargz)> = Vec::new();
    for layer in layers.iter_mut() {
        if !force && is_compressed(store, layer)? {
            continue;
        }
        // One may be there several times.
        let known = made.iter().find(|(of, _)| of == layer);
        let stargz = match known {
            Some((_, stargz)) => stargz.clone(),
            None => {
                let stargz = store.layers().stargz(layer, level)?;
                made.push((layer.clone(), stargz.clone()));
                stargz
            }
        };
        *layer = stargz.diff_id;
    }
    let mut parsed = ImageDocument::parse(document)
        .map_err(|error| BuildError::Internal(format!("the image's document: {error}")))?;
    let ids = layers.iter().map(|layer| layer.digest().to_string());
    parsed.rootfs.diff_ids = ids.collect();
    *document = serde_json::to_vec(&parsed)
        .map_err(|error| BuildError::Internal(format!("the image's document: {error}")))?;
    Ok(made.into_iter().map(|(_, stargz)| stargz).collect())
}

fn is_compressed(store: &Store, layer: &DiffId) -> Result<bool, BuildError> {
    let blob = store.layers().blob_for(layer)?;
    Ok(blob.is_some_and(|blob| {
        let plain = media_type::oci_layer(media_type::DOCKER_LAYER);
        media_type::oci_layer(&blob.media_type) != plain
    }))
}
