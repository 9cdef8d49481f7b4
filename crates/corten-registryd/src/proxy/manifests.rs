//! Manifests, tags and lists of the upstream.

use std::sync::Arc;

use corten_registry::{RegistryError, RemoteManifest};
use http::StatusCode;
use serde_json::{Value, json};

use super::{DOWN, Proxy, is_final};
use crate::error::{ApiError, Code};
use crate::handlers::{App, Document, blocking, is_servable};
use crate::names::{RepoName, Tag};
use crate::route::Reference;
use crate::storage::{ManifestRecord, ReferrersPage};

impl Proxy {
    /// Makes the storage have what a reference names now, as far as the upstream says so.
    pub(crate) async fn refresh(
        &self,
        app: &Arc<App>,
        repo: &RepoName,
        reference: &Reference,
    ) -> Result<(), ApiError> {
        match reference {
            Reference::Digest(digest) => {
                let key = format!("{repo}@{digest}");
                if self.has(app, repo, reference).await? {
                    return Ok(());
                }
                let _alone = self.alone(&key).await;
                if self.has(app, repo, reference).await? {
                    return Ok(());
                }
                self.fetch(app, repo, digest.as_str(), None).await
            }
            Reference::Tag(tag) => {
                let key = format!("{repo}:{}", tag.as_str());
                let here = self.has(app, repo, reference).await?;
                if here && self.is_fresh(&key) {
                    return Ok(());
                }
                let _alone = self.alone(&key).await;
                let here = self.has(app, repo, reference).await?;
                if here && self.is_fresh(&key) {
                    return Ok(());
                }
                self.revalidate(app, repo, tag, &key, here).await
            }
        }
    }

    /// Asks what a tag stands for.
    async fn revalidate(
        &self,
        app: &Arc<App>,
        repo: &RepoName,
        tag: &Tag,
        key: &str,
        here: bool,
    ) -> Result<(), ApiError> {
        let name = self.name_there(repo);
        let outcome = match self
            .quiet
            .ask(self.remote.resolve(&name, tag.as_str()))
            .await
        {
            Ok(digest) => {
                let (of, wanted, pointer) = (repo.clone(), digest.clone(), tag.clone());
                let known = blocking(app, move |storage| {
                    let known = storage.has_manifest(&of, &wanted)?;
                    if known && storage.resolve_tag(&of, &pointer)?.as_ref() != Some(&wanted) {
                        storage.tag_manifest(&of, &wanted, &pointer)?;
                    }
                    Ok(known)
                })
                .await?;
                if known {
                    Ok(())
                } else {
                    let manifest = self.remote.manifest(&name, digest.as_str());
                    match self.quiet.ask(manifest).await {
                        Ok(found) => return self.keep(app, repo, found, Some(tag), key).await,
                        Err(error) => Err(error),
                    }
                }
            }
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => {
                self.believe(key, self.ttl);
                Ok(())
            }
            Err(error) if is_final(&error) => {
                let (of, gone) = (repo.clone(), tag.clone());
                if here && matches!(error, RegistryError::ManifestUnknown(_)) {
                    blocking(app, move |storage| storage.delete_tag(&of, &gone)).await?;
                }
                Err(self.refusal(&error, Code::ManifestUnknown))
            }
            Err(error) if here => {
                tracing::warn!(upstream = self.upstream, repository = %repo, tag = tag.as_str(), %error,
                    "the upstream does not answer: what is here is served");
                self.believe(key, DOWN.min(self.ttl));
                Ok(())
            }
            Err(error) => Err(self.refusal(&error, Code::ManifestUnknown)),
        }
    }

    async fn fetch(
        &self,
        app: &Arc<App>,
        repo: &RepoName,
        reference: &str,
        tag: Option<&Tag>,
    ) -> Result<(), ApiError> {
        let name = self.name_there(repo);
        let found = self.quiet.ask(self.remote.manifest(&name, reference)).await;
        let found = found.map_err(|error| self.refusal(&error, Code::ManifestUnknown))?;
        self.keep(app, repo, found, tag, "").await
    }

    /// Stores a manifest of the upstream, without what it names: that comes when asked for.
    async fn keep(
        &self,
        app: &Arc<App>,
        repo: &RepoName,
        found: RemoteManifest,
        tag: Option<&Tag>,
        key: &str,
    ) -> Result<(), ApiError> {
        let unusable = |why: &str| {
            tracing::warn!(upstream = self.upstream, repository = %repo, digest = %found.digest,
                kind = found.media_type, why, "a manifest of the upstream cannot be used");
            ApiError::new(Code::Unknown, json!({"upstream": self.upstream}))
                .status(StatusCode::BAD_GATEWAY)
                .message(format!(
                    "the upstream {} sends a manifest {why}",
                    self.upstream
                ))
        };
        // The client did nothing wrong.
        let document = Document::parse(&found.bytes)
            .map_err(|_| unusable("that is none, or of an old kind"))?;
        if !is_servable(&found.media_type) {
            return Err(unusable("of an unsupported type"));
        }
        let record = ManifestRecord {
            digest: found.digest,
            media_type: found.media_type,
            bytes: found.bytes,
        };
        let (of, tags) = (repo.clone(), tag.cloned());
        blocking(app, move |storage| {
            let referrer = document.referrer(&record);
            let subject = document.subject().map(|subject| (subject, &referrer));
            let alone = storage.lock_repo(&of)?;
            storage.put_manifest(&alone, &of, &record, subject)?;
            let set = storage.set_tags(&alone, &of, &record.digest, tags.as_slice());
            set.map(drop)
        })
        .await?;
        app.metrics.cache_fetched("manifest");
        if tag.is_some() {
            self.believe(key, self.ttl);
        }
        Ok(())
    }

    async fn has(
        &self,
        app: &Arc<App>,
        repo: &RepoName,
        reference: &Reference,
    ) -> Result<bool, ApiError> {
        let (repo, reference) = (repo.clone(), reference.clone());
        blocking(app, move |storage| match &reference {
            Reference::Digest(digest) => storage.has_manifest(&repo, digest),
            Reference::Tag(tag) => match storage.resolve_tag(&repo, tag)? {
                Some(digest) => storage.has_manifest(&repo, &digest),
                None => Ok(false),
            },
        })
        .await
    }

    /// The upstream's tags; `None` where it cannot be asked, and what is here has to do. A list
    /// is believed as long as a tag.
    pub(crate) async fn tags(&self, repo: &RepoName) -> Result<Option<Vec<String>>, ApiError> {
        let _alone = self.alone(&format!("{repo} tags")).await;
        if let Some(known) = self.lists.get(repo) {
            return Ok(Some(known));
        }
        let name = self.name_there(repo);
        match self.quiet.ask(self.remote.tags(&name)).await {
            Ok(mut tags) => {
                tags.retain(|tag| Tag::parse(tag).is_some());
                self.lists.keep(repo, &tags, self.ttl);
                Ok(Some(tags))
            }
            Err(error) if is_final(&error) => Err(self.refusal(&error, Code::NameUnknown)),
            Err(error) => {
                tracing::warn!(upstream = self.upstream, %error, "cannot list the upstream's tags");
                Ok(None)
            }
        }
    }

    /// The upstream's referrers; `None` where it cannot be asked.
    pub(crate) async fn referrers(
        &self,
        repo: &RepoName,
        subject: &corten_oci::Digest,
    ) -> Option<Vec<(String, Value)>> {
        let name = self.name_there(repo);
        let asked = self.remote.referrers(&name, subject, None);
        let found = self.quiet.ask(asked).await;
        match found {
            Ok(found) => {
                // What names no digest is no descriptor.
                let named = |entry: Value| {
                    let digest: corten_oci::Digest = entry["digest"].as_str()?.parse().ok()?;
                    Some((ReferrersPage::name(&digest), entry))
                };
                Some(found.into_iter().filter_map(named).collect())
            }
            Err(error) => {
                tracing::warn!(upstream = self.upstream, %error, "cannot list the upstream's referrers");
                None
            }
        }
    }
}
