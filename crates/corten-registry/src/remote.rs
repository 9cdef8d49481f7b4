//! What a registry has, as it is: manifests, blobs, tags, repositories, referrers
//! (distribution-spec). Nothing here touches a store; a caller's bytes are verified where they
//! are whole (manifests), and are the caller's to verify where they stream (blobs).

mod publish;

use std::pin::Pin;

use bytes::Bytes;
use corten_oci::{Digest, media_type};
use futures_util::{Stream, StreamExt as _};
use http::{Method, StatusCode, header};
use reqwest::Response;
use serde::Deserialize;
use serde_json::Value;
use url::Url;

use crate::document::{self, Wanted, words};
use crate::error::RegistryError;
use crate::http::{Access, Host, Scope, Target, innermost};
use crate::manifest::{self, RemoteManifest, announced_type, told_digest};
use crate::put::referrers_tag;
use crate::sources;

/// Largest page of a list, bytes.
const MAX_PAGE: usize = 16 << 20;
/// Largest list, bytes of all its pages.
const MAX_LIST: usize = 64 << 20;
/// Pages of one list; more is a registry that goes round in circles.
const MAX_PAGES: usize = 10_000;

/// A registry and its mirrors. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Remote {
    hosts: std::sync::Arc<Vec<Host>>,
}

/// A blob that arrives, not verified.
pub struct RemoteBlob {
    /// Of the whole blob, where the registry said so.
    pub size: Option<u64>,
    /// Where the bytes begin: what was asked for, or 0 from a registry without ranges.
    pub start: u64,
    /// The bytes.
    pub bytes: Pin<Box<dyn Stream<Item = Result<Bytes, RegistryError>> + Send>>,
}

impl std::fmt::Debug for RemoteBlob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteBlob")
            .field("size", &self.size)
            .field("start", &self.start)
            .finish_non_exhaustive()
    }
}

impl Remote {
    pub(crate) fn new(hosts: Vec<Host>) -> Self {
        Self {
            hosts: std::sync::Arc::new(hosts),
        }
    }

    /// Asks one host after the other.
    async fn first<T, F>(
        &self,
        may: impl Fn(&Host) -> bool,
        ask: impl Fn(Host) -> F,
    ) -> Result<T, RegistryError>
    where
        F: Future<Output = Result<T, RegistryError>>,
    {
        let answer = sources::first(&self.hosts, may, ask).await;
        answer.unwrap_or_else(|| Err(nobody()))
    }

    /// A manifest by tag or digest.
    ///
    /// # Errors
    /// No host has it, may be reached, or sends what it should.
    pub async fn manifest(
        &self,
        repository: &str,
        reference: &str,
    ) -> Result<RemoteManifest, RegistryError> {
        let expected = digest_in(reference);
        let may = |host: &Host| {
            let endpoint = host.endpoint();
            if expected.is_some() {
                endpoint.pull
            } else {
                endpoint.resolve
            }
        };
        let ask =
            async |host: Host| manifest(&host, repository, reference, expected.as_ref()).await;
        self.first(may, ask).await
    }

    /// What a tag or digest names, by `HEAD`.
    ///
    /// # Errors
    /// As [`manifest`](Self::manifest).
    pub async fn resolve(
        &self,
        repository: &str,
        reference: &str,
    ) -> Result<Digest, RegistryError> {
        resolve(&self.hosts, repository, reference).await
    }

    /// A blob from a place in it on.
    ///
    /// # Errors
    /// No host has it or can be reached. Errors on the way are in the stream.
    pub async fn blob(
        &self,
        repository: &str,
        digest: &Digest,
        offset: u64,
    ) -> Result<RemoteBlob, RegistryError> {
        let ask = async |host: Host| blob(&host, repository, digest, offset).await;
        self.first(|host| host.endpoint().pull, ask).await
    }

    /// A blob's size, by `HEAD`.
    ///
    /// # Errors
    /// No host has it or can be reached.
    pub async fn blob_size(&self, repository: &str, digest: &Digest) -> Result<u64, RegistryError> {
        let path = format!("/{repository}/blobs/{digest}");
        let ask = async |host: Host| {
            let answer = get(&host, Method::HEAD, &path, repository).await?;
            let answer = there(&host, answer, &blob_unknown(&host, digest)).await?;
            length(&answer).ok_or_else(|| host.protocol(format!("blob {digest}: no length")))
        };
        self.first(|host| host.endpoint().pull, ask).await
    }

    /// All tags of a repository.
    ///
    /// # Errors
    /// There is no such repository, or no host can be reached.
    pub async fn tags(&self, repository: &str) -> Result<Vec<String>, RegistryError> {
        #[derive(Deserialize)]
        struct Page {
            tags: Option<Vec<String>>,
        }
        let path = format!("/{repository}/tags/list");
        let ask = async |host: Host| {
            let scope = Scope::Repository(repository, Access::Pull);
            let pages: Result<Vec<Page>, _> = pages(&host, &path, scope, repository, None).await;
            let pages = pages.map_err(|error| match error {
                RegistryError::ManifestUnknown(_) => RegistryError::RepositoryUnknown {
                    name: repository.to_owned(),
                    registry: host.name().to_owned(),
                },
                error => error,
            })?;
            Ok(pages
                .into_iter()
                .filter_map(|page| page.tags)
                .flatten()
                .collect())
        };
        self.first(|host| host.endpoint().resolve, ask).await
    }

    /// All repositories, where the registry tells.
    ///
    /// # Errors
    /// The registry does not tell or cannot be reached.
    pub async fn catalog(&self) -> Result<Vec<String>, RegistryError> {
        #[derive(Deserialize)]
        struct Page {
            repositories: Option<Vec<String>>,
        }
        let host = self.own()?;
        let pages: Vec<Page> = pages(host, "/_catalog", Scope::Catalog, "_catalog", None).await?;
        let names = pages.into_iter().filter_map(|page| page.repositories);
        Ok(names.flatten().collect())
    }

    /// The descriptors of what refers to a manifest, of one type or all. A registry without
    /// the referrers API is asked for the tag that stands in for it.
    ///
    /// # Errors
    /// No host can be reached.
    pub async fn referrers(
        &self,
        repository: &str,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Value>, RegistryError> {
        let mut found = self.referrers_anywhere(repository, subject).await?;
        // The registry may have left that to us.
        if let Some(wanted) = artifact_type {
            found.retain(|descriptor| descriptor["artifactType"] == wanted);
        }
        Ok(found)
    }

    /// Asks one host after the other. That nothing refers to it only the registry itself can
    /// say: a mirror without the API looks like one that knows of nothing.
    async fn referrers_anywhere(
        &self,
        repository: &str,
        subject: &Digest,
    ) -> Result<Vec<Value>, RegistryError> {
        let mut last = Err(nobody());
        for host in self.hosts.iter() {
            let endpoint = host.endpoint();
            if !endpoint.resolve && !endpoint.referrers {
                continue;
            }
            last = referrers(host, repository, subject).await;
            match &last {
                Ok(found) if found.is_empty() && !(endpoint.own && endpoint.referrers) => {}
                Err(error) if error.is_worth_another_source() => {
                    tracing::debug!(source = host.name(), %error, "trying the next source");
                }
                _ => break,
            }
        }
        last
    }

    /// Removes a manifest or a tag from the registry itself.
    ///
    /// # Errors
    /// It is not there, or the registry does not do that.
    pub async fn delete_manifest(
        &self,
        repository: &str,
        reference: &str,
    ) -> Result<(), RegistryError> {
        let path = format!("/{repository}/manifests/{reference}");
        let unknown = RegistryError::ManifestUnknown(named(repository, reference));
        let deleted = self.delete(repository, &path, &unknown).await;
        if deleted.is_err() && digest_in(reference).is_none() {
            // Registries before distribution-spec 1.1 know digests only, and answer as they like.
            let own = std::slice::from_ref(self.own()?);
            if let Ok(digest) = resolve(own, repository, reference).await {
                return Err(RegistryError::CannotRemove {
                    registry: own[0].name().to_owned(),
                    what: format!("tags: {repository}@{digest} may be removed, with all its tags"),
                });
            }
        }
        deleted
    }

    /// Removes a blob from a repository of the registry itself.
    ///
    /// # Errors
    /// It is not there, or the registry does not do that.
    pub async fn delete_blob(
        &self,
        repository: &str,
        digest: &Digest,
    ) -> Result<(), RegistryError> {
        let path = format!("/{repository}/blobs/{digest}");
        let unknown = blob_unknown(self.own()?, digest);
        self.delete(repository, &path, &unknown).await
    }

    async fn delete(
        &self,
        repository: &str,
        path: &str,
        unknown: &RegistryError,
    ) -> Result<(), RegistryError> {
        let host = self.own()?;
        let scope = Scope::Repository(repository, Access::Delete);
        let target = Target::Api(path);
        let answer = host
            .send(Method::DELETE, target, scope, &|request| request)
            .await?;
        if matches!(
            answer.status(),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
        ) {
            return Err(RegistryError::Unauthorized(format!(
                "{}: may not delete in {repository}",
                host.name()
            )));
        }
        there(host, answer, unknown).await.map(drop)
    }

    /// The registry itself, for what mirrors cannot answer.
    fn own(&self) -> Result<&Host, RegistryError> {
        self.hosts
            .iter()
            .find(|host| host.endpoint().own)
            .or(self.hosts.last())
            .ok_or_else(nobody)
    }
}

fn nobody() -> RegistryError {
    RegistryError::Protocol {
        registry: "registry".to_owned(),
        reason: "its settings name no host that may be asked".to_owned(),
    }
}

fn digest_in(reference: &str) -> Option<Digest> {
    reference
        .contains(':')
        .then(|| reference.parse().ok())
        .flatten()
}

pub(crate) fn named(repository: &str, reference: &str) -> String {
    let separator = if reference.contains(':') { '@' } else { ':' };
    format!("{repository}{separator}{reference}")
}

fn blob_unknown(host: &Host, digest: &Digest) -> RegistryError {
    RegistryError::BlobUnknown {
        registry: host.name().to_owned(),
        digest: digest.clone(),
    }
}

fn length(answer: &Response) -> Option<u64> {
    let value = answer.headers().get(header::CONTENT_LENGTH)?;
    value.to_str().ok()?.parse().ok()
}

async fn get(
    host: &Host,
    method: Method,
    path: &str,
    repository: &str,
) -> Result<Response, RegistryError> {
    let scope = Scope::Repository(repository, Access::Pull);
    let accept = media_type::MANIFEST_ACCEPT.join(", ");
    let manifest = path.contains("/manifests/");
    host.send(method, Target::Api(path), scope, &|request| {
        if manifest {
            request.header(header::ACCEPT, &accept)
        } else {
            request
        }
    })
    .await
}

/// An answer that is one; `unknown` is what a 404 means here.
async fn there(
    host: &Host,
    answer: Response,
    unknown: &RegistryError,
) -> Result<Response, RegistryError> {
    match answer.status() {
        status if status.is_success() => Ok(answer),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Err(RegistryError::PullDenied(match unknown {
                RegistryError::ManifestUnknown(name) => name.clone(),
                _ => host.name().to_owned(),
            }))
        }
        StatusCode::NOT_FOUND => Err(match unknown {
            RegistryError::BlobUnknown { digest, .. } => blob_unknown(host, digest),
            RegistryError::ManifestUnknown(name) => RegistryError::ManifestUnknown(name.clone()),
            _ => host.protocol("not found"),
        }),
        _ => Err(host.protocol(words(answer).await)),
    }
}

/// A manifest or index by tag or digest, from one host.
pub(crate) async fn manifest(
    host: &Host,
    repository: &str,
    reference: &str,
    expected: Option<&Digest>,
) -> Result<RemoteManifest, RegistryError> {
    let unknown = RegistryError::ManifestUnknown(named(repository, reference));
    let found = |answer| there(host, answer, &unknown);
    manifest::fetch(host, repository, reference, expected, found).await
}

/// What a tag or digest names, as the first host says that may be asked.
pub(crate) async fn resolve(
    hosts: &[Host],
    repository: &str,
    reference: &str,
) -> Result<Digest, RegistryError> {
    let path = format!("/{repository}/manifests/{reference}");
    let unknown = RegistryError::ManifestUnknown(named(repository, reference));
    let ask = async |host: Host| {
        let answer = get(&host, Method::HEAD, &path, repository).await?;
        let answer = there(&host, answer, &unknown).await?;
        match told_digest(answer.headers()) {
            Some(digest) => Ok(digest),
            // A registry need not say; then the document does.
            None => manifest(&host, repository, reference, None)
                .await
                .map(|found| found.digest),
        }
    };
    let answer = sources::first(hosts, |host| host.endpoint().resolve, ask).await;
    answer.unwrap_or_else(|| Err(nobody()))
}

async fn blob(
    host: &Host,
    repository: &str,
    digest: &Digest,
    offset: u64,
) -> Result<RemoteBlob, RegistryError> {
    let path = format!("/{repository}/blobs/{digest}");
    let scope = Scope::Repository(repository, Access::Pull);
    let answer = host
        .send(Method::GET, Target::Content(&path), scope, &|request| {
            if offset > 0 {
                request.header(header::RANGE, format!("bytes={offset}-"))
            } else {
                request
            }
        })
        .await?;
    let answer = there(host, answer, &blob_unknown(host, digest)).await?;
    let (start, size) = if answer.status() == StatusCode::PARTIAL_CONTENT {
        let range = answer.headers().get(header::CONTENT_RANGE);
        let range = range.and_then(|value| value.to_str().ok()?.strip_prefix("bytes "));
        let (start, size) = range
            .and_then(|range| {
                let (span, size) = range.split_once('/')?;
                let start: u64 = span.split('-').next()?.trim().parse().ok()?;
                Some((start, size.trim().parse().ok()))
            })
            .unwrap_or((offset, None));
        if start != offset {
            return Err(host.protocol(format!("blob {digest}: another range was sent")));
        }
        (start, size)
    } else {
        (0, length(&answer))
    };
    let name = host.name().to_owned();
    let bytes = answer.bytes_stream().map(move |piece| {
        piece.map_err(|error| RegistryError::Unreachable {
            registry: name.clone(),
            reason: innermost(&error),
        })
    });
    Ok(RemoteBlob {
        size,
        start,
        bytes: Box::pin(bytes),
    })
}

/// All pages of a list (`Link: <…>; rel="next"`, RFC 8288). Where a page is not of the `kind`
/// that is given, the list does not exist.
async fn pages<T: serde::de::DeserializeOwned>(
    host: &Host,
    path: &str,
    scope: Scope<'_>,
    name: &str,
    kind: Option<&str>,
) -> Result<Vec<T>, RegistryError> {
    let unknown = RegistryError::ManifestUnknown(name.to_owned());
    let mut found = Vec::new();
    let mut next: Option<Url> = None;
    let mut size = 0;
    for _ in 0..MAX_PAGES {
        let wanted = Wanted {
            target: next.as_ref().map_or(Target::Api(path), Target::Location),
            scope,
            accept: &[],
            limit: MAX_PAGE,
            what: "list",
        };
        let listed = |answer| there(host, answer, &unknown);
        let answer = document::fetch(host, &wanted, listed).await?;
        if kind.is_some_and(|kind| kind != announced_type(&answer.headers)) {
            return Err(RegistryError::ManifestUnknown(name.to_owned()));
        }
        size += answer.bytes.len();
        if size > MAX_LIST {
            return Err(host.protocol(format!("{path}: a list of more than {MAX_LIST} bytes")));
        }
        let link = answer.headers.get(header::LINK);
        let link = link.and_then(|value| next_page(value.to_str().ok()?));
        let following = link
            .map(|link| host.follow(&answer.url, link))
            .transpose()?;
        let page = serde_json::from_slice(&answer.bytes)
            .map_err(|error| host.protocol(format!("{path}: {error}")))?;
        found.push(page);
        match following {
            Some(url) if next.as_ref() != Some(&url) => next = Some(url),
            _ => return Ok(found),
        }
    }
    Err(host.protocol(format!("{path}: a list without end")))
}

/// The target of a `Link` header's `next`.
fn next_page(value: &str) -> Option<&str> {
    value.split(',').find_map(|link| {
        let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let next = parameters.split(';').any(|parameter| {
            let parameter = parameter.trim();
            let value = parameter.strip_prefix("rel=").unwrap_or_default();
            value.trim_matches('"').eq_ignore_ascii_case("next")
        });
        next.then_some(target)
    })
}

async fn referrers(
    host: &Host,
    repository: &str,
    subject: &Digest,
) -> Result<Vec<Value>, RegistryError> {
    #[derive(Deserialize)]
    struct Index {
        manifests: Option<Vec<Value>>,
    }
    let path = format!("/{repository}/referrers/{subject}");
    let scope = Scope::Repository(repository, Access::Pull);
    let listed: Result<Vec<Index>, _> = if host.endpoint().referrers {
        pages(host, &path, scope, repository, Some(media_type::OCI_INDEX)).await
    } else {
        Err(RegistryError::ManifestUnknown(repository.to_owned()))
    };
    match listed {
        Ok(listed) => Ok(listed
            .into_iter()
            .filter_map(|page| page.manifests)
            .flatten()
            .collect()),
        // distribution-spec "Unavailable Referrers API".
        Err(RegistryError::ManifestUnknown(_)) if host.endpoint().resolve => {
            let tag = referrers_tag(subject);
            match manifest(host, repository, &tag, None).await {
                Ok(found) => {
                    let index: Index = serde_json::from_slice(&found.bytes)
                        .map_err(|error| host.protocol(format!("index {tag}: {error}")))?;
                    Ok(index.manifests.unwrap_or_default())
                }
                Err(RegistryError::ManifestUnknown(_)) => Ok(Vec::new()),
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links() {
        for (value, expected) in [
            (
                "</v2/_catalog?last=a&n=1>; rel=\"next\"",
                Some("/v2/_catalog?last=a&n=1"),
            ),
            ("<a>; rel=prev, <b>; title=x; rel=next", Some("b")),
            ("<a>; rel=prev", None),
            ("a; rel=next", None),
            ("", None),
        ] {
            assert_eq!(next_page(value), expected, "{value}");
        }
    }
}
