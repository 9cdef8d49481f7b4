//! Fetching single blobs again that a store has lost.

use corten_oci::ImageRef;
use corten_store::{Arrival, LayerBlob, Store};

use crate::download;
use crate::error::RegistryError;
use crate::http::Host;
use crate::manifest::Descriptor;
use crate::progress::{Progress, Told};

/// Fetches a blob of a repository, by digest, from the first source that has it.
pub(crate) async fn blob(
    sources: &[Host],
    store: &Store,
    repository: &ImageRef,
    blob: &LayerBlob,
    progress: &dyn Progress,
) -> Result<(), RegistryError> {
    let descriptor = Descriptor::of(blob);
    let mut last = None;
    for host in sources.iter().filter(|host| host.endpoint().pull) {
        let mut told = Told::new(progress, &blob.digest);
        let arrival = Arrival::default();
        match download::blob(host, store, repository, &descriptor, &arrival, &mut told).await {
            Ok(()) => return Ok(()),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| RegistryError::ManifestUnknown(repository.familiar())))
}
