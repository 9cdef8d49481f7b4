//! Images of eStargz layers. Such a layer has more in it than the one it is made of, so the image
//! is of other layers than the build's.

use corten_oci::{DiffId, Digest, media_type};
use corten_store::{Stargz, Store};

use crate::cache::{Cache, Output, now};
use crate::config::ImageDocument;
use crate::error::BuildError;
use crate::keys::KeyBuilder;

/// Makes the layers of an image eStargz, and has its document say so; those that were made, now or
/// before. Without `force`, what is compressed already stays as it is. Blocks.
pub(crate) fn make(
    (store, cache): (&Store, &Cache),
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
                let stargz = known_or_made((store, cache), layer, level)?;
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

/// A record of the cache tells what a layer was made to, as it does of a step's result.
fn known_or_made(
    (store, cache): (&Store, &Cache),
    layer: &DiffId,
    level: Option<u32>,
) -> Result<Stargz, BuildError> {
    let key = key(layer, level);
    if let Some(known) = cache.get(&key)?.and_then(|output| output.layer)
        && let Some(stargz) = store.layers().made_stargz(&known)?
    {
        cache.touch(&[key])?;
        return Ok(stargz);
    }
    let stargz = store.layers().stargz(layer, level)?;
    let output = Output {
        layer: Some(stargz.diff_id.clone()),
        created: now(),
    };
    cache.put(&[&key], &output, &format!("[estargz] {layer}"))?;
    Ok(stargz)
}

fn key(layer: &DiffId, level: Option<u32>) -> Digest {
    let mut key = KeyBuilder::new("estargz");
    key.add(layer.digest().as_str());
    key.add(level.map_or(String::new(), |level| level.to_string()));
    key.finish()
}

fn is_compressed(store: &Store, layer: &DiffId) -> Result<bool, BuildError> {
    let blob = store.layers().blob_for(layer)?;
    Ok(blob.is_some_and(|blob| {
        let plain = media_type::oci_layer(media_type::DOCKER_LAYER);
        media_type::oci_layer(&blob.media_type) != plain
    }))
}

#[cfg(test)]
mod tests {
    use corten_db::Database;

    use super::*;

    #[test]
    fn what_was_made_before_is_not_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let schemas = [corten_store::SCHEMA, crate::cache::SCHEMA];
        let database = Database::open(&path, &schemas).unwrap();
        let store = Store::open(dir.path(), database.clone());
        let cache = Cache::new(database, store.clone());
        let commit = || {
            let work = store.layers().begin().unwrap();
            std::fs::write(work.upper().join("f"), "content").unwrap();
            let layer = store.layers().commit_until(&work, Some(1)).unwrap();
            layer.diff_id
        };
        let plain = commit();
        let make = |level| {
            let mut document = br#"{"os":"linux","architecture":"amd64"}"#.to_vec();
            let mut layers = [plain.clone()];
            let made = make((&store, &cache), &mut document, &mut layers, (level, true)).unwrap();
            assert_eq!(layers[0], made[0].diff_id);
            assert!(
                String::from_utf8(document)
                    .unwrap()
                    .contains(made[0].diff_id.digest().as_str())
            );
            made
        };
        let first = make(None);
        assert_eq!(cache.usage().unwrap().len(), 1);
        // Nothing is left that it could be made of.
        assert_eq!(store.gc().unwrap().layers, std::slice::from_ref(&plain));
        assert_eq!(make(None), first);
        // Without its archive it is made anew.
        std::fs::remove_file(store.blobs().path(&first[0].blob.digest)).unwrap();
        assert_eq!(commit(), plain);
        assert_eq!(make(None), first);
        assert_eq!(cache.usage().unwrap().len(), 1);
        make(Some(9));
        assert_eq!(cache.usage().unwrap().len(), 2);
    }
}
