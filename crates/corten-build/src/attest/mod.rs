//! What goes out beside an image: annotations of its documents, and attestations, which are
//! documents about it in an index of its own (BuildKit's `attestation-storage.md`).
//!
//! An image of which either is wanted has a manifest and index of its own making, over layers
//! that are compressed at once. With SOURCE_DATE_EPOCH they depend on nothing but what the image
//! was made of.

mod carried;
mod packages;
mod provenance;
mod sbom;
mod stargz;
mod wanted;

use std::collections::BTreeMap;

use corten_oci::{DiffId, Digest, ImageRef, Platform, media_type};
use corten_store::{LayerBlob, Made, Stargz, Store};
use serde_json::{Value, json};

use crate::error::BuildError;

pub use wanted::{
    Annotation, AnnotationKind, Attest, Compressor, LayerCompression, Provenance, SlsaVersion,
};

pub(crate) use carried::Carried;
pub(crate) use provenance::{Facts, Material, predicate};
pub(crate) use sbom::scan;
pub(crate) use stargz::make as stargz;

/// In-toto's statements (in-toto attestation framework, `statement.md`).
const STATEMENT: &str = "https://in-toto.io/Statement/v1";
const IN_TOTO: &str = "application/vnd.in-toto+json";
const ARTIFACT: &str = "application/vnd.docker.attestation.manifest.v1+json";
/// Of layers that are eStargz: the digest of its table (containerd/stargz-snapshotter), and bytes
/// when it is unpacked (containers/storage, as BuildKit has it).
const TABLE: &str = "containerd.io/snapshot/stargz/toc.digest";
const SIZE: &str = "io.containers.estargz.uncompressed-size";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// A claim about an image.
pub(crate) struct Claim {
    /// The type of the predicate.
    pub(crate) kind: &'static str,
    pub(crate) predicate: Value,
}

/// An image of which something more than itself is to be stored.
pub(crate) struct Subject<'a> {
    pub(crate) document: &'a [u8],
    pub(crate) layers: &'a [DiffId],
    /// Those of the layers that were made eStargz.
    pub(crate) stargz: &'a [Stargz],
    /// What its bases say of the others.
    pub(crate) carried: &'a Carried,
    pub(crate) platform: &'a Platform,
    pub(crate) names: &'a [ImageRef],
}

/// Makes its manifest, and index where there are claims, and stores both. Blocks.
pub(crate) fn make(
    store: &Store,
    subject: &Subject<'_>,
    wanted: &Attest,
    claims: &[Claim],
) -> Result<Made, BuildError> {
    let annotations = wanted.annotations.as_slice();
    let of = |kind: AnnotationKind| chosen(annotations, kind, subject.platform);
    let (mut listed, _) = manifest(store, subject, wanted)?;
    let mut made = Made {
        manifest: Some((listed.digest, media_type::OCI_MANIFEST.to_owned())),
        ..Made::default()
    };
    let own = of(AnnotationKind::ManifestDescriptor);
    if claims.is_empty() {
        made.annotations = text(&own)?;
        return Ok(made);
    }
    listed.descriptor["platform"] = platform(subject.platform);
    let statement = about(store, subject, &listed.descriptor, claims, &mut made)?;
    annotate(&mut listed.descriptor, &own);
    let listed = vec![listed.descriptor, statement];
    finish(store, listed, annotations, subject.platform, made)
}

/// Makes the manifests and the index of one image for several platforms. In the store it is the
/// image of the platform with that number, to which the others are attached. Blocks.
pub(crate) fn make_several(
    store: &Store,
    images: &[(Subject<'_>, Vec<Claim>)],
    own: usize,
    wanted: &Attest,
) -> Result<Made, BuildError> {
    let annotations = wanted.annotations.as_slice();
    let mut made = Made::default();
    let (mut listed, mut statements) = (Vec::new(), Vec::new());
    for (number, (subject, claims)) in images.iter().enumerate() {
        let (mut stored, blobs) = manifest(store, subject, wanted)?;
        stored.descriptor["platform"] = platform(subject.platform);
        if !claims.is_empty() {
            let statement = about(store, subject, &stored.descriptor, claims, &mut made)?;
            statements.push(statement);
        }
        let kind = AnnotationKind::ManifestDescriptor;
        let words = chosen(annotations, kind, subject.platform);
        annotate(&mut stored.descriptor, &words);
        listed.push(stored.descriptor);
        if number == own {
            made.manifest = Some((stored.digest, media_type::OCI_MANIFEST.to_owned()));
        } else {
            made.attached.extend(blobs);
            made.attached.push(stored.digest);
        }
    }
    // As BuildKit has them: images first.
    listed.append(&mut statements);
    let Some((first, _)) = images.first() else {
        return Ok(made);
    };
    finish(store, listed, annotations, first.platform, made)
}

/// The annotations of a document of a platform.
fn chosen<'a>(
    annotations: &'a [Annotation],
    kind: AnnotationKind,
    platform: &Platform,
) -> BTreeMap<&'a str, &'a str> {
    let platform = platform.to_string();
    annotations
        .iter()
        .filter(|a| a.kind == kind && a.platform.as_ref().is_none_or(|of| *of == platform))
        .map(|a| (a.key.as_str(), a.value.as_str()))
        .collect()
}

/// Stores an image's manifest and config; tells all that the manifest lists.
fn manifest(
    store: &Store,
    subject: &Subject<'_>,
    wanted: &Attest,
) -> Result<(Stored, Vec<Digest>), BuildError> {
    let (mut layers, mut blobs) = (Vec::new(), Vec::new());
    for layer in subject.layers {
        let stargz = subject.stargz.iter().find(|made| made.diff_id == *layer);
        let blob = match stargz {
            Some(made) => made.blob.clone(),
            None => store.layers().compress_as(layer, wanted.squeeze())?,
        };
        let mut descriptor = described(&blob);
        match stargz {
            Some(made) => {
                let size = made.uncompressed.to_string();
                let words = [(TABLE, made.table.as_str()), (SIZE, size.as_str())];
                annotate(&mut descriptor, &words.into());
            }
            None => annotate(&mut descriptor, &subject.carried.of_blob(&blob.digest)),
        }
        layers.push(descriptor);
        blobs.push(blob.digest);
    }
    let config = store.blobs().put_bytes(subject.document)?;
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": {
            "mediaType": media_type::OCI_CONFIG,
            "digest": config.as_str(),
            "size": subject.document.len(),
        },
        "layers": layers,
    });
    blobs.push(config);
    let words = chosen(
        &wanted.annotations,
        AnnotationKind::Manifest,
        subject.platform,
    );
    annotate(&mut manifest, &words);
    Ok((put(store, &manifest, media_type::OCI_MANIFEST)?, blobs))
}

/// Stores the index.
fn finish(
    store: &Store,
    listed: Vec<Value>,
    annotations: &[Annotation],
    platform: &Platform,
    mut made: Made,
) -> Result<Made, BuildError> {
    let mut index = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_INDEX,
        "manifests": listed,
    });
    annotate(
        &mut index,
        &chosen(annotations, AnnotationKind::Index, platform),
    );
    made.index = Some(put(store, &index, media_type::OCI_INDEX)?.digest);
    made.annotations = text(&chosen(
        annotations,
        AnnotationKind::IndexDescriptor,
        platform,
    ))?;
    Ok(made)
}

/// Makes the manifest of claims; its descriptor in the index.
fn about(
    store: &Store,
    subject: &Subject<'_>,
    manifest: &Value,
    claims: &[Claim],
    made: &mut Made,
) -> Result<Value, BuildError> {
    let digest = manifest["digest"].as_str().unwrap_or_default();
    let (algorithm, hex) = digest.split_once(':').unwrap_or_default();
    let names: Vec<String> = match subject.names {
        [] => vec!["_".to_owned()],
        names => names
            .iter()
            .map(|name| provenance::package_url(name, Some(subject.platform)))
            .collect(),
    };
    let subjects: Vec<Value> = names
        .iter()
        .map(|name| json!({ "name": name, "digest": { algorithm: hex } }))
        .collect();
    let mut layers = Vec::new();
    for claim in claims {
        let statement = json!({
            "_type": STATEMENT,
            "predicateType": claim.kind,
            "subject": subjects,
            "predicate": claim.predicate,
        });
        let mut stored = put(store, &statement, IN_TOTO)?;
        annotate(
            &mut stored.descriptor,
            &[("in-toto.io/predicate-type", claim.kind)].into(),
        );
        layers.push(stored.descriptor);
        made.attached.push(stored.digest);
    }
    let empty = put(store, &json!({}), EMPTY)?;
    made.attached.push(empty.digest);
    let document = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "artifactType": ARTIFACT,
        "config": empty.descriptor,
        "layers": layers,
        "subject": {
            "mediaType": manifest["mediaType"],
            "digest": manifest["digest"],
            "size": manifest["size"],
        },
    });
    let mut stored = put(store, &document, media_type::OCI_MANIFEST)?;
    made.attached.push(stored.digest);
    let marks = [
        ("vnd.docker.reference.digest", digest),
        ("vnd.docker.reference.type", "attestation-manifest"),
    ];
    annotate(&mut stored.descriptor, &marks.into());
    // Nobody takes it for an image.
    stored.descriptor["platform"] = json!({ "architecture": "unknown", "os": "unknown" });
    Ok(stored.descriptor)
}

/// A document of the store.
struct Stored {
    digest: Digest,
    descriptor: Value,
}

fn put(store: &Store, document: &Value, kind: &str) -> Result<Stored, BuildError> {
    let bytes = serde_json::to_vec(document).map_err(|e| BuildError::Internal(e.to_string()))?;
    let digest = store.blobs().put_bytes(&bytes)?;
    let descriptor = json!({
        "mediaType": kind,
        "digest": digest.as_str(),
        "size": bytes.len(),
    });
    Ok(Stored { digest, descriptor })
}

fn described(layer: &LayerBlob) -> Value {
    json!({
        "mediaType": media_type::oci_layer(&layer.media_type),
        "digest": layer.digest.as_str(),
        "size": layer.size,
    })
}

fn annotate(document: &mut Value, annotations: &BTreeMap<&str, &str>) {
    if !annotations.is_empty() {
        document["annotations"] = json!(annotations);
    }
}

fn text(annotations: &BTreeMap<&str, &str>) -> Result<Option<String>, BuildError> {
    if annotations.is_empty() {
        return Ok(None);
    }
    let text = serde_json::to_string(annotations);
    text.map(Some)
        .map_err(|e| BuildError::Internal(e.to_string()))
}

fn platform(platform: &Platform) -> Value {
    let mut value = json!({ "architecture": platform.architecture, "os": platform.os });
    if let Some(variant) = &platform.variant {
        value["variant"] = json!(variant);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_has_the_image_and_what_is_said_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let database = corten_db::Database::open(&path, &[corten_store::SCHEMA]).unwrap();
        let store = Store::open(dir.path(), database);
        let work = store.layers().begin().unwrap();
        std::fs::write(work.upper().join("f"), "content").unwrap();
        let layers = [store.layers().commit(work).unwrap().diff_id];
        let names = ["example.org/app:1".parse().unwrap()];
        let host = Platform::normalised("linux", "amd64", None);
        let subject = Subject {
            stargz: &[],
            carried: &Carried::default(),
            document: b"{}",
            layers: &layers,
            platform: &host,
            names: &names,
        };
        let annotation = |kind, key: &str| Annotation {
            kind,
            platform: None,
            key: key.to_owned(),
            value: "v".to_owned(),
        };
        let annotations = [
            annotation(AnnotationKind::Manifest, "m"),
            annotation(AnnotationKind::ManifestDescriptor, "md"),
            annotation(AnnotationKind::Index, "i"),
            annotation(AnnotationKind::IndexDescriptor, "id"),
        ];
        let claims = [Claim {
            kind: "https://example.org/claim",
            predicate: json!({ "good": true }),
        }];
        let read = |digest: &Digest| -> Value {
            let bytes = store.blobs().read_to_vec(digest, 1 << 20).unwrap();
            serde_json::from_slice(&bytes).unwrap()
        };
        let wanted = Attest {
            annotations: annotations.to_vec(),
            ..Attest::default()
        };
        let made = make(&store, &subject, &wanted, &claims).unwrap();
        let index = read(made.index.as_ref().unwrap());
        assert_eq!(index["annotations"], json!({ "i": "v" }));
        assert_eq!(made.annotations.as_deref(), Some(r#"{"id":"v"}"#));
        let image = &index["manifests"][0];
        assert_eq!(image["annotations"], json!({ "md": "v" }));
        assert_eq!(image["platform"]["architecture"], "amd64");
        let manifest = read(&made.manifest.as_ref().unwrap().0);
        assert_eq!(manifest["annotations"], json!({ "m": "v" }));
        assert_eq!(
            manifest["layers"][0]["mediaType"],
            media_type::OCI_LAYER_GZIP
        );
        let about = &index["manifests"][1];
        assert_eq!(
            about["annotations"]["vnd.docker.reference.digest"],
            image["digest"]
        );
        let about = read(&about["digest"].as_str().unwrap().parse().unwrap());
        assert_eq!(about["subject"]["digest"], image["digest"]);
        let layer = &about["layers"][0];
        assert_eq!(
            layer["annotations"]["in-toto.io/predicate-type"],
            "https://example.org/claim"
        );
        let statement = read(&layer["digest"].as_str().unwrap().parse().unwrap());
        assert_eq!(statement["predicate"], json!({ "good": true }));
        assert_eq!(
            statement["subject"][0]["name"],
            "pkg:docker/example.org/app@1?platform=linux%2Famd64"
        );
        // All that the index leads to is kept with the image.
        assert_eq!(made.attached.len(), 3);

        // Without claims there is no index.
        let of_manifest = Attest {
            annotations: annotations[..2].to_vec(),
            ..Attest::default()
        };
        let made = make(&store, &subject, &of_manifest, &[]).unwrap();
        assert_eq!(made.index, None);
        assert_eq!(made.annotations.as_deref(), Some(r#"{"md":"v"}"#));
    }

    #[test]
    fn what_a_base_says_of_its_layers_is_said_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let database = corten_db::Database::open(&path, &[corten_store::SCHEMA]).unwrap();
        let store = Store::open(dir.path(), database);
        let layer = |content: &str| {
            let work = store.layers().begin().unwrap();
            std::fs::write(work.upper().join("f"), content).unwrap();
            store.layers().commit(work).unwrap().diff_id
        };
        let layers = [layer("of the base"), layer("other")];
        let blob = store.layers().compress(&layers[0]).unwrap();
        let host = Platform::normalised("linux", "amd64", None);
        let config = json!({
            "os": "linux",
            "architecture": "amd64",
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": [layers[0].digest().as_str()] },
        });
        let config = config.to_string();
        let mut descriptor = described(&blob);
        descriptor["annotations"] = json!({ TABLE: "sha256:of-the-table", SIZE: "5" });
        let manifest = json!({
            "schemaVersion": 2,
            "config": {
                "mediaType": media_type::OCI_CONFIG,
                "digest": Digest::of(config.as_bytes()).as_str(),
                "size": config.len(),
            },
            "layers": [descriptor, { "digest": blob.digest.as_str(), "annotations": null }],
        });
        let digest = store.blobs().put_bytes(manifest.to_string().as_bytes());
        let manifest = digest.unwrap();
        let with = Some((&manifest, media_type::OCI_MANIFEST));
        let base = store.images().put(config.as_bytes(), with).unwrap();
        let nobody = Digest::of(b"an image of a layout");
        let subject = Subject {
            stargz: &[],
            carried: &Carried::of(&store, &[nobody, base]).unwrap(),
            document: b"{}",
            layers: &layers,
            platform: &host,
            names: &[],
        };
        let made = make(&store, &subject, &Attest::default(), &[]).unwrap();
        let bytes = store
            .blobs()
            .read_to_vec(&made.manifest.unwrap().0, 1 << 20);
        let manifest: Value = serde_json::from_slice(&bytes.unwrap()).unwrap();
        assert_eq!(manifest["layers"][0], descriptor);
        assert!(manifest["layers"][1].get("annotations").is_none());
        // Compressed in another way, it is another blob.
        let wanted = Attest {
            layers: Some(LayerCompression {
                with: Compressor::Zstd,
                level: None,
                force: true,
            }),
            ..Attest::default()
        };
        let made = make(&store, &subject, &wanted, &[]).unwrap();
        let bytes = store
            .blobs()
            .read_to_vec(&made.manifest.unwrap().0, 1 << 20);
        let manifest: Value = serde_json::from_slice(&bytes.unwrap()).unwrap();
        assert!(manifest["layers"][0].get("annotations").is_none());
    }
}
