//! `save`: images as one archive.
//!
//! A layer goes out as the blob it came as, where that is still here; its digest is compared
//! on the way. A layer made here has none: its tar is written again and must have the diff
//! id, which is found out before the first byte is sent, as is its size.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};

use corten_oci::media_type as types;
use corten_oci::{DiffId, Digest, Digester, ImageRef, Platform};
use corten_store::{Image, ImageId, LayerBlob, Lease};

use super::archive::{self, Descriptor, DescriptorPlatform, Index, Item, Manifest, blob_path};
use super::documents::ImageDocument;
use super::event;
use crate::engine::Engine;
use crate::error::EngineError;

type Result<T> = std::result::Result<T, EngineError>;

/// An archive whose every member is known, but not yet written.
pub(super) struct Plan {
    /// Nothing of it is collected before it is written.
    _lease: Lease,
    blobs: BTreeMap<String, Content>,
    documents: Vec<(&'static str, Vec<u8>)>,
    images: BTreeSet<ImageId>,
}

/// Where a member's bytes come from.
enum Content {
    Bytes(Vec<u8>),
    /// A blob of the store.
    Blob {
        digest: Digest,
        size: u64,
    },
    /// The tar of a layer that has no blob.
    Layer {
        diff_id: DiffId,
        size: u64,
    },
}

/// Finds everything that the names stand for. Blocks.
pub(super) fn plan(engine: &Engine, names: &[String], platform: Option<&Platform>) -> Result<Plan> {
    let lease = engine.store().leases().acquire()?;
    let mut plan = Plan {
        _lease: lease,
        blobs: BTreeMap::new(),
        documents: Vec::new(),
        images: BTreeSet::new(),
    };
    let (mut items, mut manifests) = (Vec::new(), Vec::new());
    let mut repositories: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for (image, tags) in chosen(engine, names)? {
        let document = ImageDocument::parse(&image)?;
        if let Some(wanted) = platform
            && !document.platform.satisfies(wanted)
        {
            return Err(EngineError::NotFound(format!(
                "no suitable export target found for platform {wanted}"
            )));
        }
        let (item, descriptor) = plan.image(engine, &image, &document, &tags)?;
        items.push(item);
        for tag in &tags {
            let name = tag.tag().unwrap_or_default().to_owned();
            if let Some(top) = image.layers.last() {
                repositories
                    .entry(tag.familiar_name())
                    .or_default()
                    .insert(name.clone(), top.digest().hex().to_owned());
            }
            let mut named = descriptor.clone();
            named.annotations.extend([
                (archive::IMAGE_NAME.to_owned(), tag.to_string()),
                (archive::REF_NAME.to_owned(), name),
            ]);
            manifests.push(named);
        }
        if tags.is_empty() {
            manifests.push(descriptor);
        }
        plan.images.insert(image.id);
    }
    let index = Index {
        schema_version: 2,
        media_type: types::OCI_INDEX.to_owned(),
        manifests,
    };
    plan.documents.push((archive::INDEX, json(&index)?));
    plan.documents.push((archive::MANIFEST, line(&items)?));
    let layout = b"{\"imageLayoutVersion\": \"1.0.0\"}".to_vec();
    plan.documents.push((archive::LAYOUT, layout));
    if !repositories.is_empty() {
        let text = line(&repositories)?;
        plan.documents.push((archive::REPOSITORIES, text));
    }
    Ok(plan)
}

fn json(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|source| EngineError::Other {
        context: "write an archive's documents".to_owned(),
        source: Box::new(source),
    })
}

fn line(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    let mut text = json(value)?;
    text.push(b'\n');
    Ok(text)
}

/// The images that names stand for, each once, with the tags it was asked for by. A name
/// without tag stands for all tags of the repository.
fn chosen(engine: &Engine, names: &[String]) -> Result<Vec<(Image, Vec<ImageRef>)>> {
    let images = engine.store().images();
    let mut found: Vec<(Image, Vec<ImageRef>)> = Vec::new();
    let mut add = |id: &ImageId, tag: Option<ImageRef>| -> Result<()> {
        let at = match found.iter().position(|(image, _)| image.id == *id) {
            Some(at) => at,
            None => {
                found.push((images.get(id)?, Vec::new()));
                found.len() - 1
            }
        };
        if let Some(tag) = tag
            && !found[at].1.contains(&tag)
        {
            found[at].1.push(tag);
        }
        Ok(())
    };
    // In the words of the request: a name without tag stands for all of them.
    let find = |name: &String| {
        super::find(engine, name).map_err(|error| match error {
            EngineError::NoSuchImage(_) => EngineError::NoSuchImage(name.clone()),
            other => other,
        })
    };
    for name in names {
        let reference: Option<ImageRef> = match name.parse() {
            Ok(reference) if !name.starts_with("sha256:") => Some(reference),
            Ok(_) => None,
            Err(corten_oci::ReferenceError::LooksLikeId(_)) => None,
            Err(error) => return Err(EngineError::BadParameter(error.to_string())),
        };
        match reference {
            Some(reference) if reference.digest().is_some() => {
                let id = images.named(&reference)?;
                add(&id.ok_or_else(absent)?, None)?;
            }
            Some(reference) if reference.tag().is_some() => {
                let id = images.named(&reference)?;
                add(&id.ok_or_else(absent)?, Some(reference))?;
            }
            Some(reference) => {
                let mut tags = 0;
                for image in images.list()? {
                    for tag in image.repo_tags {
                        if tag.name() == reference.name() {
                            add(&image.id, Some(tag))?;
                            tags += 1;
                        }
                    }
                }
                if tags == 0 {
                    add(&find(name)?.id, None)?;
                }
            }
            None => add(&find(name)?.id, None)?,
        }
    }
    Ok(found)
}

fn absent() -> EngineError {
    EngineError::NotFound("reference does not exist".to_owned())
}

impl Plan {
    /// Adds an image's blobs; its places in both lists.
    fn image(
        &mut self,
        engine: &Engine,
        image: &Image,
        document: &ImageDocument,
        tags: &[ImageRef],
    ) -> Result<(Item, Descriptor)> {
        self.add(&image.id, Content::Bytes(image.raw_config.clone()));
        // The manifest it came with, so that it has the same digest where it is loaded.
        let known = engine.store().images().known_manifest(image)?;
        let (bytes, media_type, layers) = match known {
            Some(known) => (known.manifest, known.media_type, known.layers),
            None => {
                let mut layers = Vec::new();
                for diff_id in &image.layers {
                    layers.push(self.layer(engine, image, diff_id)?);
                }
                let manifest = new_manifest(image, &layers);
                (json(&manifest)?, types::OCI_MANIFEST.to_owned(), layers)
            }
        };
        for layer in &layers {
            if !self.blobs.contains_key(&blob_path(&layer.digest)) {
                let (digest, size) = (layer.digest.clone(), layer.size);
                self.add(&layer.digest, Content::Blob { digest, size });
            }
        }
        let descriptor = Descriptor {
            media_type,
            digest: Digest::of(&bytes),
            size: bytes.len() as u64,
            annotations: BTreeMap::new(),
            platform: Some(DescriptorPlatform {
                architecture: document.raw.architecture.clone(),
                os: document.raw.os.clone(),
                variant: document.raw.variant.clone().filter(|v| !v.is_empty()),
            }),
        };
        self.add(&descriptor.digest, Content::Bytes(bytes));
        let descriptor = self.listed(engine, image, descriptor)?;
        let tags: Vec<String> = tags.iter().map(ImageRef::familiar).collect();
        let item = Item {
            config: blob_path(&image.id),
            repo_tags: (!tags.is_empty()).then_some(tags),
            layers: Some(layers.iter().map(|l| blob_path(&l.digest)).collect()),
            layer_sources: image
                .layers
                .iter()
                .cloned()
                .zip(layers.iter().map(described))
                .collect(),
        };
        Ok((item, descriptor))
    }

    /// What the layout lists: the image's index where it has one that lists this manifest, else
    /// the manifest.
    fn listed(
        &mut self,
        engine: &Engine,
        image: &Image,
        manifest: Descriptor,
    ) -> Result<Descriptor> {
        let images = engine.store().images();
        let mut listed = manifest;
        if image.manifest.as_ref() == Some(&listed.digest)
            && let Some(index) = images.index_of(image)?
        {
            for attached in index.attached {
                self.add(&attached.digest, Content::Bytes(attached.manifest));
                for (digest, size) in attached.blobs {
                    self.add(&digest.clone(), Content::Blob { digest, size });
                }
            }
            listed = Descriptor {
                media_type: index.media_type,
                digest: index.digest.clone(),
                size: index.bytes.len() as u64,
                annotations: BTreeMap::new(),
                platform: None,
            };
            self.add(&index.digest, Content::Bytes(index.bytes));
        }
        if let Some(text) = images.descriptor_annotations(&image.id)? {
            listed.annotations =
                serde_json::from_str(&text).map_err(|source| EngineError::Other {
                    context: format!("annotations of {}", image.id.short()),
                    source: Box::new(source),
                })?;
        }
        Ok(listed)
    }

    fn add(&mut self, digest: &Digest, content: Content) {
        self.blobs.entry(blob_path(digest)).or_insert(content);
    }

    /// A layer as the blob it will be in the archive.
    fn layer(&mut self, engine: &Engine, image: &Image, diff_id: &DiffId) -> Result<LayerBlob> {
        let layers = engine.store().layers();
        if let Some(blob) = layers.blob_for(diff_id)? {
            return Ok(blob);
        }
        let path = blob_path(diff_id.digest());
        let size = match self.blobs.get(&path) {
            Some(Content::Layer { size, .. }) => *size,
            _ => {
                let mut sum = Counted::of(io::sink(), diff_id.digest());
                layers.tar(diff_id, io::BufWriter::with_capacity(1 << 16, &mut sum))?;
                let (actual, size) = sum.finish();
                if actual != *diff_id.digest() {
                    return Err(lost(image, diff_id, &actual));
                }
                let diff_id = diff_id.clone();
                self.blobs.insert(path, Content::Layer { diff_id, size });
                size
            }
        };
        Ok(LayerBlob {
            digest: diff_id.digest().clone(),
            size,
            media_type: types::OCI_LAYER.to_owned(),
        })
    }

    /// Writes the archive. Blocks.
    pub(super) fn write(self, engine: &Engine, out: &mut impl Write) -> Result<()> {
        let failed = |source: io::Error| EngineError::Other {
            context: "write the archive".to_owned(),
            source: Box::new(source),
        };
        let mut directories = BTreeSet::from(["blobs".to_owned()]);
        directories.extend(self.blobs.keys().filter_map(|path| {
            let (directory, _) = path.rsplit_once('/')?;
            Some(directory.to_owned())
        }));
        for directory in directories {
            let header = header(&format!("{directory}/"), b'5', 0o755, 0).map_err(failed)?;
            out.write_all(header.as_bytes()).map_err(failed)?;
        }
        for (path, content) in &self.blobs {
            let size = content.size();
            let header = header(path, b'0', 0o644, size).map_err(failed)?;
            out.write_all(header.as_bytes()).map_err(failed)?;
            content.write(engine, out)?;
            pad(out, size).map_err(failed)?;
        }
        for (name, text) in &self.documents {
            let header = header(name, b'0', 0o644, text.len() as u64).map_err(failed)?;
            out.write_all(header.as_bytes()).map_err(failed)?;
            out.write_all(text).map_err(failed)?;
            pad(out, text.len() as u64).map_err(failed)?;
        }
        out.write_all(&[0; 2 * BLOCK]).map_err(failed)?;
        for id in &self.images {
            event(engine, "save", id.as_str(), id.as_str());
        }
        Ok(())
    }
}

/// A tar's block.
const BLOCK: usize = 512;

/// Everything has the same time: an image's archive is always the same bytes.
fn header(path: &str, kind: u8, mode: u32, size: u64) -> io::Result<tar::Header> {
    let mut header = tar::Header::new_ustar();
    header.set_path(path)?;
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    Ok(header)
}

fn pad(out: &mut impl Write, size: u64) -> io::Result<()> {
    let over = usize::try_from(size % BLOCK as u64).unwrap_or_default();
    match over {
        0 => Ok(()),
        over => out.write_all(&[0; BLOCK][over..]),
    }
}

impl Content {
    fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Blob { size, .. } | Self::Layer { size, .. } => *size,
        }
    }

    fn write(&self, engine: &Engine, out: &mut impl Write) -> Result<()> {
        let expected = match self {
            Self::Bytes(bytes) => {
                return out.write_all(bytes).map_err(|source| EngineError::Other {
                    context: "write the archive".to_owned(),
                    source: Box::new(source),
                });
            }
            Self::Blob { digest, .. } => digest,
            Self::Layer { diff_id, .. } => diff_id.digest(),
        };
        let mut sum = Counted::of(out, expected);
        match self {
            Self::Layer { diff_id, .. } => engine.store().layers().tar(diff_id, &mut sum)?,
            _ => {
                let mut file = engine
                    .store()
                    .blobs()
                    .open(expected)
                    .map_err(|error| damaged(expected, &error.to_string()))?;
                copy(&mut file, &mut sum).map_err(|source| EngineError::Other {
                    context: format!("write blob {expected}"),
                    source: Box::new(source),
                })?;
            }
        }
        let (actual, written) = sum.finish();
        if actual != *expected || written != self.size() {
            // Too late for an answer: the archive ends here, without its end.
            return Err(damaged(expected, &format!("it is {actual} by now")));
        }
        Ok(())
    }
}

/// Bytes read at once.
const COPY: usize = 256 * 1024;

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; COPY];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            n => to.write_all(&buffer[..n])?,
        }
    }
}

fn described(layer: &LayerBlob) -> Descriptor {
    Descriptor {
        media_type: layer.media_type.clone(),
        digest: layer.digest.clone(),
        size: layer.size,
        annotations: BTreeMap::new(),
        platform: None,
    }
}

/// A manifest for an image that has none whose blobs are all here.
fn new_manifest(image: &Image, layers: &[LayerBlob]) -> Manifest {
    let described = |layer: &LayerBlob| Descriptor {
        media_type: types::oci_layer(&layer.media_type).to_owned(),
        ..described(layer)
    };
    Manifest {
        schema_version: 2,
        media_type: types::OCI_MANIFEST.to_owned(),
        config: Descriptor {
            media_type: types::OCI_CONFIG.to_owned(),
            digest: image.id.clone(),
            size: image.raw_config.len() as u64,
            annotations: BTreeMap::new(),
            platform: None,
        },
        layers: layers.iter().map(described).collect(),
    }
}

/// A layer that cannot be written as it came.
fn lost(image: &Image, diff_id: &DiffId, actual: &Digest) -> EngineError {
    EngineError::Unavailable(format!(
        "image {} cannot be saved: the blob of its layer {diff_id} is gone, and the layer's files \
         make another tar ({actual}); pull or load the image again",
        image.id.short()
    ))
}

/// A blob that is not what it was.
fn damaged(digest: &Digest, why: &str) -> EngineError {
    EngineError::Unavailable(format!(
        "the archive is not whole: blob {digest} is damaged ({why}); corten system check --repair \
         fetches it again"
    ))
}

/// Counts and hashes what is written through it.
struct Counted<W> {
    inner: W,
    digester: Digester,
    count: u64,
}

impl<W: Write> Counted<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            digester: Digester::sha256(),
            count: 0,
        }
    }

    fn of(inner: W, expected: &Digest) -> Self {
        Self {
            digester: Digester::new(expected.algorithm()),
            ..Self::new(inner)
        }
    }

    fn finish(self) -> (Digest, u64) {
        (self.digester.finish(), self.count)
    }
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.digester.update(&bytes[..n]);
        self.count += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
