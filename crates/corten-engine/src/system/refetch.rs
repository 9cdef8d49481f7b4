//! What images have lost, fetched again from where they came from.

use std::collections::BTreeMap;

use corten_oci::{DiffId, Digest};
use corten_registry::{Credential, Progress, ProgressEvent};
use corten_store::Image;

use super::Finding;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::images::documents::ImageDocument;

/// Nobody watches.
struct Silent;

impl Progress for Silent {
    fn event(&self, _: ProgressEvent) {}
}

/// Fetches what images lack, and notes in the findings what is there again. Images that no
/// registry knows, or that cannot be reached now, are left as they are.
pub(super) async fn lost(
    engine: &Engine,
    findings: &mut [Finding],
    credentials: &BTreeMap<String, Credential>,
) -> Result<(), EngineError> {
    let lacking = |engine: &Engine| Ok(engine.store().images().lacking()?);
    for image in engine.blocking(lacking).await? {
        if let Err(error) = complete(engine, &image, credentials).await {
            tracing::warn!(image = %image.id, %error, "what it lacks could not be fetched");
        }
    }
    for finding in findings.iter_mut() {
        let there = match finding.kind.as_str() {
            "layer" => match finding.object.parse::<DiffId>() {
                Ok(diff_id) => engine.store().layers().has(&diff_id)?,
                Err(_) => false,
            },
            "blob" => finding
                .object
                .parse::<Digest>()
                .is_ok_and(|digest| engine.store().blobs().has(&digest)),
            _ => false,
        };
        finding.repaired |= there;
    }
    Ok(())
}

async fn complete(
    engine: &Engine,
    image: &Image,
    credentials: &BTreeMap<String, Credential>,
) -> Result<(), EngineError> {
    let platform = ImageDocument::parse(image)?.platform;
    let client = engine.registry()?;
    let mut outcome = Err(EngineError::NotFound("no registry is known for it".into()));
    for name in &image.repo_digests {
        let credential = credentials
            .get(&corten_registry::server_key(name))
            .or_else(|| credentials.get(name.domain()));
        let store = engine.store();
        match client
            .complete(store, name, &platform, credential, &Silent)
            .await
        {
            Ok(_) => return Ok(()),
            Err(error) => outcome = Err(error.into()),
        }
    }
    outcome
}
