//! `load`: images from an archive that `save` wrote here or elsewhere, or from an OCI
//! layout.
//!
//! The archive is spooled first, because its lists may come last. Then each image's layers
//! are unpacked, and every one must have the diff id that the image's configuration names.
//! What the archive holds is kept as blobs, so that a push or another save sends the same
//! bytes. Whatever fails leaves nothing: no image has a name before it is whole.

use std::collections::{HashMap, HashSet};
use std::io::{BufReader, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use corten_oci::media_type as types;
use corten_oci::{DiffId, Digest, ImageRef, Platform};
use corten_store::archive::sniff;
use corten_store::{LayerBlob, StoreError};

use super::archive::{self, Descriptor, Index, Item, Kept, Manifest, Spool, Spooled, blob_path};
use super::documents::RawDocument;
use super::event;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::bad;

type Result<T> = std::result::Result<T, EngineError>;

/// Largest document of an archive, bytes.
const MAX_DOCUMENT: u64 = 8 << 20;
/// Indexes within indexes.
const MAX_DEPTH: usize = 4;
/// Layers unpacked at once, at most.
const THREADS: usize = 4;
/// Progress is told after so many bytes.
const TICK: u64 = 1 << 20;
/// Bytes of a layer read at once.
const PIECE: usize = 256 * 1024;

/// What a load tells while it goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadEvent {
    /// A line for the user.
    Line(String),
    /// How far a layer is.
    Layer {
        /// The layer, shortened.
        id: String,
        /// Bytes read.
        current: u64,
        /// Bytes there are.
        total: u64,
    },
}

/// Where that goes. Called from several threads.
pub type LoadSink = Arc<dyn Fn(LoadEvent) + Send + Sync>;

/// An image of an archive, all its parts found.
struct Found<'s> {
    raw_config: Vec<u8>,
    id: Digest,
    layers: Vec<(DiffId, Layer<'s>)>,
    tags: Vec<ImageRef>,
    /// The manifest's bytes and media type.
    manifest: Option<(Vec<u8>, String)>,
}

#[derive(Clone)]
struct Layer<'s> {
    file: &'s Spooled,
    /// What a manifest says it is.
    media_type: Option<String>,
}

/// Loads everything in an archive. Blocks.
pub(super) fn load(
    engine: &Engine,
    archive: impl Read + Send,
    platform: Option<&Platform>,
    sink: &LoadSink,
) -> Result<()> {
    let store = engine.store();
    let lease = store.leases().acquire()?;
    let outcome = store
        .tmp_dir("load")
        .map_err(EngineError::from)
        .and_then(|tmp| Spool::read(archive, tmp).map_err(unreadable))
        .and_then(|spool| {
            if spool.is_empty() {
                return Err(bad("invalid archive: it is empty"));
            }
            let found = find(&spool, platform)?;
            found.iter().try_for_each(|image| one(engine, image, sink))
        });
    drop(lease);
    if outcome.is_err()
        && let Err(error) = store.gc()
    {
        tracing::warn!(%error, "what a failed load left stays for the next collection");
    }
    outcome
}

fn unreadable(error: std::io::Error) -> EngineError {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::InvalidData | ErrorKind::InvalidInput | ErrorKind::Unsupported => {
            bad(format!("invalid archive: {error}"))
        }
        ErrorKind::UnexpectedEof => bad("invalid archive: unexpected EOF"),
        _ => EngineError::Other {
            context: "read the archive".to_owned(),
            source: Box::new(error),
        },
    }
}

/// Finds the archive's images, of one platform if one is asked for.
fn find<'s>(spool: &'s Spool, platform: Option<&Platform>) -> Result<Vec<Found<'s>>> {
    let found = if let Some(file) = spool.find(archive::MANIFEST) {
        let items: Option<Vec<Item>> = document(spool, file, archive::MANIFEST)?;
        let items = items
            .ok_or_else(|| bad("invalid manifest, manifest cannot be null (but can be [])"))?;
        let manifests = manifests(spool)?;
        items
            .iter()
            .map(|item| of_item(spool, item, &manifests))
            .collect::<Result<Vec<_>>>()?
    } else if let Some(file) = spool.find(archive::INDEX) {
        let index: Index = document(spool, file, archive::INDEX)?;
        let mut found = Vec::new();
        of_index(spool, &index, platform, None, 0, &mut found)?;
        found
    } else if spool.find(archive::REPOSITORIES).is_some() {
        return Err(bad(
            "invalid archive: it has no manifest.json: archives of Docker before 1.10 are not read",
        ));
    } else {
        return Err(bad(
            "invalid archive: it has neither manifest.json (docker save) nor index.json (OCI layout); \
             file systems are taken by import",
        ));
    };
    let Some(wanted) = platform else {
        return Ok(found);
    };
    let mut fitting = Vec::new();
    for image in found {
        let raw = config(&image.raw_config, "the configuration")?;
        let has = Platform::normalised(&raw.os, &raw.architecture, raw.variant.as_deref());
        if has.satisfies(wanted) {
            fitting.push(image);
        }
    }
    if fitting.is_empty() {
        return Err(EngineError::NotFound(format!(
            "the archive has no image for the platform {wanted}"
        )));
    }
    Ok(fitting)
}

fn document<T: serde::de::DeserializeOwned>(
    spool: &Spool,
    file: &Spooled,
    name: &str,
) -> Result<T> {
    let bytes = spool
        .content(file, MAX_DOCUMENT)
        .map_err(|error| bad(format!("invalid archive: {name}: {error}")))?;
    serde_json::from_slice(&bytes).map_err(|error| bad(format!("invalid archive: {name}: {error}")))
}

fn config(raw: &[u8], name: &str) -> Result<RawDocument> {
    serde_json::from_slice(raw).map_err(|error| bad(format!("invalid archive: {name}: {error}")))
}

/// A member that must be there; one with a digest for a name must have it.
fn member<'s>(spool: &'s Spool, name: &str) -> Result<&'s Spooled> {
    let file = spool
        .find(name)
        .ok_or_else(|| bad(format!("invalid archive: it has no {name}")))?;
    let named: Option<Digest> = name
        .strip_prefix("blobs/")
        .and_then(|rest| rest.replacen('/', ":", 1).parse().ok());
    match named {
        Some(expected) if expected != file.digest => Err(StoreError::CorruptBlob {
            expected,
            actual: file.digest.clone(),
        }
        .into()),
        _ => Ok(file),
    }
}

/// The blob of a descriptor.
fn blob<'s>(spool: &'s Spool, descriptor: &Descriptor) -> Result<&'s Spooled> {
    let file = member(spool, &blob_path(&descriptor.digest))?;
    if file.size != descriptor.size {
        return Err(StoreError::WrongSize {
            digest: descriptor.digest.clone(),
            expected: descriptor.size,
            actual: file.size,
        }
        .into());
    }
    Ok(file)
}

fn of_item<'s>(spool: &'s Spool, item: &Item, manifests: &Manifests) -> Result<Found<'s>> {
    let file = member(spool, &item.config)?;
    let raw_config = spool
        .content(file, MAX_DOCUMENT)
        .map_err(|error| bad(format!("invalid archive: {}: {error}", item.config)))?;
    let raw = config(&raw_config, &item.config)?;
    let names = item.layers.as_deref().unwrap_or_default();
    let diff_ids = raw.rootfs.diff_ids;
    if names.len() != diff_ids.len() {
        return Err(bad(format!(
            "invalid manifest, layers length mismatch: expected {}, got {}",
            names.len(),
            diff_ids.len()
        )));
    }
    let mut layers = Vec::new();
    for (diff_id, name) in diff_ids.into_iter().zip(names) {
        let file = member(spool, name)?;
        let media_type = item
            .layer_sources
            .get(&diff_id)
            .map(|s| s.media_type.clone());
        let media_type = media_type.filter(|t| !t.is_empty());
        layers.push((diff_id, Layer { file, media_type }));
    }
    let mut tags = Vec::new();
    for text in item.repo_tags.iter().flatten() {
        let tag: ImageRef = text.parse().map_err(|error| bad(format!("{error}")))?;
        if tag.tag().is_none() || tag.digest().is_some() {
            return Err(bad(format!("invalid tag {text:?}")));
        }
        tags.push(tag);
    }
    let id = Digest::of(&raw_config);
    // Only if it is of these very layers.
    let manifest = manifests.get(&id).filter(|(manifest, ..)| {
        manifest.layers.len() == layers.len()
            && manifest
                .layers
                .iter()
                .zip(&layers)
                .all(|(a, (_, b))| a.digest == b.file.digest)
    });
    let manifest = manifest.map(|(_, bytes, kind)| (bytes.clone(), kind.clone()));
    Ok(Found {
        raw_config,
        id,
        layers,
        tags,
        manifest,
    })
}

/// A layout's manifests by their image.
type Manifests = HashMap<Digest, (Manifest, Vec<u8>, String)>;

/// Those of an archive that is a layout, too. What cannot be read is passed over: the
/// archive's other list is what counts.
fn manifests(spool: &Spool) -> Result<Manifests> {
    let Some(file) = spool.find(archive::INDEX) else {
        return Ok(Manifests::new());
    };
    let index: Index = document(spool, file, archive::INDEX)?;
    let mut found = Manifests::new();
    let mut waiting: Vec<(Descriptor, usize)> =
        index.manifests.into_iter().map(|d| (d, 0)).collect();
    let mut seen = HashSet::new();
    while let Some((descriptor, depth)) = waiting.pop() {
        if !seen.insert(descriptor.digest.clone()) {
            continue;
        }
        let Ok(file) = blob(spool, &descriptor) else {
            continue;
        };
        let bytes = spool.content(file, MAX_DOCUMENT).unwrap_or_default();
        if types::is_index(&descriptor.media_type) && depth < MAX_DEPTH {
            if let Ok(inner) = serde_json::from_slice::<Index>(&bytes) {
                waiting.extend(inner.manifests.into_iter().map(|d| (d, depth + 1)));
            }
        } else if types::is_manifest(&descriptor.media_type)
            && !is_attestation(&descriptor)
            && let Ok(manifest) = serde_json::from_slice::<Manifest>(&bytes)
        {
            let id = manifest.config.digest.clone();
            found.insert(id, (manifest, bytes, descriptor.media_type));
        }
    }
    Ok(found)
}

/// Images of an index: of those that differ only in their platform, the one that is wanted.
fn of_index<'s>(
    spool: &'s Spool,
    index: &Index,
    platform: Option<&Platform>,
    name: Option<&ImageRef>,
    depth: usize,
    found: &mut Vec<Found<'s>>,
) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(bad("invalid archive: indexes are nested too deeply"));
    }
    let own: Vec<&Descriptor> = if depth == 0 {
        index.manifests.iter().collect()
    } else {
        let wanted = platform.cloned().unwrap_or_else(Platform::host);
        let fitting = index.manifests.iter().find(|d| fits(d, &wanted));
        let images = index.manifests.iter().filter(|d| !is_attestation(d));
        // An image for a single other platform is that image.
        let chosen = fitting.or_else(|| match images.collect::<Vec<_>>().as_slice() {
            [only] if platform.is_none() => Some(*only),
            _ => None,
        });
        let chosen = chosen.ok_or_else(|| {
            EngineError::NotFound(format!(
                "the archive has no image for the platform {wanted}"
            ))
        })?;
        vec![chosen]
    };
    for descriptor in own {
        if is_attestation(descriptor) {
            continue;
        }
        let own_name = named(descriptor).or_else(|| name.cloned());
        if types::is_index(&descriptor.media_type) {
            let file = blob(spool, descriptor)?;
            let inner: Index = document(spool, file, descriptor.digest.as_str())?;
            of_index(spool, &inner, platform, own_name.as_ref(), depth + 1, found)?;
            continue;
        }
        if !types::is_manifest(&descriptor.media_type) {
            return Err(bad(format!(
                "invalid archive: {} is no image: its type is \"{}\"",
                descriptor.digest, descriptor.media_type
            )));
        }
        let image = of_manifest(spool, descriptor, own_name)?;
        // An image under several names is listed once for each.
        match found.iter_mut().find(|known| known.id == image.id) {
            Some(known) => known.tags.extend(image.tags),
            None => found.push(image),
        }
    }
    Ok(())
}

fn is_attestation(descriptor: &Descriptor) -> bool {
    descriptor
        .annotations
        .contains_key("vnd.docker.reference.type")
        || descriptor
            .platform
            .as_ref()
            .is_some_and(|p| p.os == "unknown" && p.architecture == "unknown")
}

fn fits(descriptor: &Descriptor, wanted: &Platform) -> bool {
    !is_attestation(descriptor)
        && descriptor.platform.as_ref().is_some_and(|p| {
            Platform::normalised(&p.os, &p.architecture, p.variant.as_deref()).satisfies(wanted)
        })
}

/// The name that annotations give, where it is more than a tag.
fn named(descriptor: &Descriptor) -> Option<ImageRef> {
    let annotation = |key: &str| descriptor.annotations.get(key);
    let text = annotation(archive::IMAGE_NAME)
        .or_else(|| annotation(archive::REF_NAME).filter(|text| text.contains(['/', ':'])))?;
    let name: ImageRef = text.parse().ok()?;
    match name.digest() {
        Some(_) => None,
        None => Some(name.or_latest()),
    }
}

fn of_manifest<'s>(
    spool: &'s Spool,
    descriptor: &Descriptor,
    name: Option<ImageRef>,
) -> Result<Found<'s>> {
    let text = descriptor.digest.as_str();
    let file = blob(spool, descriptor)?;
    let bytes = spool
        .content(file, MAX_DOCUMENT)
        .map_err(|error| bad(format!("invalid archive: {text}: {error}")))?;
    let manifest: Manifest = serde_json::from_slice(&bytes)
        .map_err(|error| bad(format!("invalid archive: {text}: {error}")))?;
    let file = blob(spool, &manifest.config)?;
    let shown = manifest.config.digest.as_str();
    let raw_config = spool
        .content(file, MAX_DOCUMENT)
        .map_err(|error| bad(format!("invalid archive: {shown}: {error}")))?;
    let diff_ids = config(&raw_config, shown)?.rootfs.diff_ids;
    if diff_ids.len() != manifest.layers.len() {
        return Err(bad(format!(
            "invalid manifest, layers length mismatch: expected {}, got {}",
            manifest.layers.len(),
            diff_ids.len()
        )));
    }
    let mut layers = Vec::new();
    for (diff_id, layer) in diff_ids.into_iter().zip(&manifest.layers) {
        let file = blob(spool, layer)?;
        let media_type = Some(layer.media_type.clone());
        layers.push((diff_id, Layer { file, media_type }));
    }
    Ok(Found {
        id: manifest.config.digest,
        raw_config,
        layers,
        tags: name.into_iter().collect(),
        manifest: Some((bytes, descriptor.media_type.clone())),
    })
}

/// Stores one image and tells of it.
fn one(engine: &Engine, image: &Found<'_>, sink: &LoadSink) -> Result<()> {
    let raw = config(&image.raw_config, "the configuration")?;
    if !raw.os.is_empty() && raw.os != "linux" {
        return Err(bad(format!("cannot load {} image on linux", raw.os)));
    }
    layers(engine, image, sink)?;
    let store = engine.store();
    // A manifest is believed where all of it is here: a layer that was here before may have
    // come as another blob, or as none.
    let whole = |(_, layer): &(DiffId, Layer<'_>)| store.blobs().has(&layer.file.digest);
    let manifest = match &image.manifest {
        Some((bytes, media_type)) if image.layers.iter().all(whole) => {
            Some((store.blobs().put_bytes(bytes)?, media_type.as_str()))
        }
        _ => None,
    };
    let manifest = manifest.as_ref().map(|(digest, kind)| (digest, *kind));
    let mut before = Vec::new();
    for tag in &image.tags {
        before.push(store.images().named(tag)?);
    }
    let id = store
        .images()
        .put_named(&image.raw_config, manifest, &image.tags)?;
    for (tag, before) in image.tags.iter().zip(before) {
        if let Some(before) = before.filter(|before| *before != id) {
            sink(LoadEvent::Line(format!(
                "The image {} already exists, renaming the old one with ID {before} to empty string",
                tag.familiar()
            )));
        }
        sink(LoadEvent::Line(format!("Loaded image: {}", tag.familiar())));
    }
    if image.tags.is_empty() {
        sink(LoadEvent::Line(format!("Loaded image ID: {id}")));
    }
    event(engine, "load", id.as_str(), id.as_str());
    Ok(())
}

/// Unpacks the layers that are not here, several at once; of those that are here and could not be
/// sent or saved, the blob is kept.
fn layers(engine: &Engine, image: &Found<'_>, sink: &LoadSink) -> Result<()> {
    let mut wanted: Vec<(usize, &DiffId, &Layer<'_>)> = Vec::new();
    for (at, (diff_id, layer)) in image.layers.iter().enumerate() {
        let again = wanted.iter().any(|(_, known, _)| *known == diff_id);
        if !again && !engine.store().layers().has_to_send(diff_id)? {
            wanted.push((at, diff_id, layer));
        }
    }
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = threads.min(THREADS).min(wanted.len());
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((at, diff_id, layer)) =
                    wanted.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    if let Err(error) = unpack(engine, *at, diff_id, layer, sink) {
                        next.store(wanted.len(), Ordering::Relaxed);
                        let mut first = failed.lock().unwrap_or_else(PoisonError::into_inner);
                        first.get_or_insert(error);
                    }
                }
            });
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn unpack(
    engine: &Engine,
    at: usize,
    diff_id: &DiffId,
    layer: &Layer<'_>,
    sink: &LoadSink,
) -> Result<()> {
    let (store, file) = (engine.store(), layer.file);
    // The same file may be the layer of two images under two names; it is a blob by then.
    let path = if file.path.exists() {
        file.path.clone()
    } else {
        store.blobs().path(&file.digest)
    };
    let io = |source| EngineError::Io {
        action: "open",
        path: path.clone(),
        source,
    };
    let opened = std::fs::File::open(&path).map_err(io)?;
    let (compression, _) = sniff(&opened).map_err(io)?;
    let reading = Told {
        inner: std::fs::File::open(&path).map_err(io)?,
        id: diff_id.digest().short().to_owned(),
        current: 0,
        told: 0,
        total: file.size,
        sink,
    };
    let wrong = |error| match error {
        StoreError::CorruptLayer { expected, actual } => bad(format!(
            "invalid diffID for layer {at}: expected \"{expected}\", got \"{actual}\""
        )),
        other => other.into(),
    };
    let said = layer.media_type.as_deref();
    let Some(media_type) = said.or(compression.layer_type()) else {
        // No registry would know what it is: its plain bytes are what is kept.
        let tmp = store.tmp_dir("load")?;
        let mut kept = Kept::new(reading, &tmp.path().join("layer")).map_err(io)?;
        store
            .layers()
            .apply(Some(diff_id), &mut kept)
            .map_err(wrong)?;
        let blob = kept.adopt(store, unreadable)?;
        // Another process may have had the layer already: then nobody has compared this.
        if blob.digest == *diff_id.digest() {
            store.layers().record_blob(diff_id, &blob)?;
        }
        return Ok(());
    };
    let compared = store
        .layers()
        .apply_compared(diff_id, BufReader::with_capacity(PIECE, reading))
        .map_err(wrong)?;
    if path == file.path {
        store.blobs().adopt(&file.digest, &path)?;
    }
    let blob = LayerBlob {
        digest: file.digest.clone(),
        size: file.size,
        media_type: media_type.to_owned(),
    };
    if compared {
        store.layers().record_blob(diff_id, &blob)?;
    } else {
        store.layers().compare_blob(diff_id, &blob)?;
    }
    Ok(())
}

/// Tells how far a file has been read.
struct Told<'a> {
    inner: std::fs::File,
    id: String,
    current: u64,
    told: u64,
    total: u64,
    sink: &'a LoadSink,
}

impl Read for Told<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(out)?;
        self.current += n as u64;
        if self.current - self.told >= TICK || (n == 0 && self.told < self.total) {
            self.told = self.current;
            (self.sink)(LoadEvent::Layer {
                id: self.id.clone(),
                current: self.current,
                total: self.total,
            });
        }
        Ok(n)
    }
}
