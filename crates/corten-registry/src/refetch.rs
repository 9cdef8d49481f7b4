//! Fetching single blobs again that a store has lost.

use corten_oci::ImageRef;
use corten_store::{Arrival, LayerBlob, Store};

use crate::download;
use crate::error::RegistryError;
use crate::http::Host;
use crate::manifest::Descriptor;
use crate::progress::{Progress, Told};
use crate::sources;

/// Fetches a blob of a repository, by digest, from the first source that has it.
pub(crate) async fn blob(
    sources: &[Host],
    store: &Store,
    repository: &ImageRef,
    blob: &LayerBlob,
    progress: &dyn Progress,
) -> Result<(), RegistryError> {
    let descriptor = &Descriptor::of(blob);
    let ask = async |host: Host| {
        let mut told = Told::new(progress, &blob.digest);
        let arrival = Arrival::default();
        download::blob(&host, store, repository, descriptor, &arrival, &mut told).await
    };
    let answer = sources::first(sources, |host| host.endpoint().pull, ask).await;
    answer.unwrap_or_else(|| Err(RegistryError::ManifestUnknown(repository.familiar())))
}
