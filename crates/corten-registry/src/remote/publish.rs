//! Writing to a registry what is no image of ours: documents as they are, and blobs that one
//! repository of it has and another is to have.

use corten_oci::Digest;
use http::StatusCode;

use super::Remote;
use crate::error::RegistryError;
use crate::http::Host;
use crate::put;
use crate::upload::{accepted, ask_for_mount};

impl Remote {
    /// Stores a manifest or index under a tag or its digest. What it is about is told to
    /// registries without the referrers API in the way they need.
    ///
    /// # Errors
    /// The registry cannot be reached, refuses, or lacks what the document names.
    pub async fn put_manifest(
        &self,
        repository: &str,
        reference: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Digest, RegistryError> {
        let host = self.own()?;
        let place = put::Place {
            host,
            repository,
            name: &full_name(host, repository),
        };
        put::manifest(&place, reference, media_type, bytes).await?;
        Ok(Digest::of(bytes))
    }

    /// Makes a blob of one repository one of another, without moving it; `false` when the
    /// registry did not do that.
    ///
    /// # Errors
    /// The registry cannot be reached or refuses.
    pub async fn mount(
        &self,
        repository: &str,
        digest: &Digest,
        from: &str,
    ) -> Result<bool, RegistryError> {
        let host = self.own()?;
        let answer = ask_for_mount(host, repository, digest, from).await?;
        // 202 begins an upload instead (end-11), which the registry ends by itself.
        let answer = accepted(host, answer, &full_name(host, repository)).await?;
        Ok(answer.status() == StatusCode::CREATED)
    }
}

/// A repository's name with its registry's, for a refusal.
fn full_name(host: &Host, repository: &str) -> String {
    format!("{}/{repository}", host.name())
}
