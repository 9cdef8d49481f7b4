//! Writing to a registry what is no image of ours: documents as they are, and blobs that one
//! repository of it has and another is to have.

use corten_oci::Digest;
use http::{Method, StatusCode, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Response;

use super::Remote;
use crate::error::RegistryError;
use crate::http::{Access, Host, Scope, Target, words};

impl Remote {
    /// Stores a manifest or index under a tag or its digest.
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
        let path = format!("/{repository}/manifests/{reference}");
        let scope = Scope::Repository(repository, Access::PullPush);
        let answer = host
            .send(Method::PUT, Target::Api(&path), scope, &|request| {
                request
                    .header(header::CONTENT_TYPE, media_type)
                    .body(bytes.to_vec())
            })
            .await?;
        taken(host, answer, repository).await?;
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
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let path = format!(
            "/{repository}/blobs/uploads/?mount={}&from={}",
            encode(digest.as_str()),
            encode(from)
        );
        let scope = Scope::Repository(repository, Access::Mount(from));
        let answer = host
            .send(Method::POST, Target::Api(&path), scope, &|request| {
                request.header(header::CONTENT_LENGTH, 0)
            })
            .await?;
        // 202 begins an upload instead (end-11), which the registry ends by itself.
        let answer = taken(host, answer, repository).await?;
        Ok(answer.status() == StatusCode::CREATED)
    }
}

/// An answer to something that writes.
async fn taken(host: &Host, answer: Response, repository: &str) -> Result<Response, RegistryError> {
    match answer.status() {
        status if status.is_success() => Ok(answer),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(RegistryError::PushDenied(
            format!("{}/{repository}", host.name()),
        )),
        _ => Err(host.protocol(words(answer).await)),
    }
}
