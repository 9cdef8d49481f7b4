//! The client: one per engine, connections made on first use.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use corten_oci::ImageRef;
use corten_store::{ImageId, LayerBlob, Store};
use http::{Method, StatusCode};

use crate::config::RegistriesConfig;
use crate::connections::{Connections, connect};
use crate::credential::{Credential, domain_of};
use crate::document::words;
use crate::endpoint::{Endpoint, Trust};
use crate::error::RegistryError;
use crate::http::{Host, Scope, Target};
use crate::progress::Progress;
use crate::pull::{self, Naming, PullRequest, Pulled};
use crate::push::{self, Pushed};
use crate::refetch;
use crate::remote::Remote;
use crate::stamp::Stamp;

/// Talks to registries. Cheap to clone.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    /// Read again when its files change.
    config: Mutex<RegistriesConfig>,
    /// Shared by all endpoints that are trusted in the same way, as long as the files that say
    /// whom to trust stay as they are.
    http: Mutex<HashMap<Trust, (Files, Connections)>>,
}

/// What the files of a trust were when its connections were made.
type Files = Vec<Option<Stamp>>;

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("config", &self.0.config)
            .finish_non_exhaustive()
    }
}

/// What a login came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginOutcome {
    /// For the user.
    pub status: String,
    /// To be kept instead of the password, if the registry gave one.
    pub identity_token: Option<String>,
}

impl Client {
    /// A client with these settings.
    ///
    /// # Errors
    /// None today: settings are checked when they are read, certificates on first use.
    pub fn new(config: RegistriesConfig) -> Result<Self, RegistryError> {
        Ok(Self(Arc::new(Inner {
            config: Mutex::new(config),
            http: Mutex::default(),
        })))
    }

    /// Connections with this trust.
    pub(crate) fn http(&self, trust: &Trust) -> Result<Connections, RegistryError> {
        let mut known = self.0.http.lock().unwrap_or_else(PoisonError::into_inner);
        let files: Files = trust.files().map(|path| Stamp::of(path)).collect();
        match known.get(trust) {
            Some((then, connections)) if *then == files => return Ok(connections.clone()),
            _ => {}
        }
        let made = connect(trust)?;
        known.insert(trust.clone(), (files, made.clone()));
        Ok(made)
    }

    /// Everywhere a registry can be reached, mirrors first.
    pub(crate) fn hosts(
        &self,
        domain: &str,
        credential: Option<&Credential>,
    ) -> Result<Vec<Host>, RegistryError> {
        let endpoints = {
            let mut config = self.0.config.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(renewed) = config.renewed()? {
                *config = renewed;
            }
            config.endpoints(domain)?
        };
        let host =
            |endpoint: Endpoint| Ok(Host::new(self.http(&endpoint.trust)?, endpoint, credential));
        endpoints.into_iter().map(host).collect()
    }

    /// The registry itself.
    fn registry(
        &self,
        domain: &str,
        credential: Option<&Credential>,
    ) -> Result<Host, RegistryError> {
        let mut hosts = self.hosts(domain, credential)?;
        match hosts.iter().position(|host| host.endpoint().own) {
            Some(at) => Ok(hosts.swap_remove(at)),
            None => Err(RegistryError::Protocol {
                registry: domain.to_owned(),
                reason: "its hosts.toml leaves only mirrors, which get no credentials".to_owned(),
            }),
        }
    }

    /// Where to push to: the first endpoint that says so, else the registry itself.
    pub(crate) fn target(
        &self,
        image: &ImageRef,
        credential: Option<&Credential>,
    ) -> Result<Host, RegistryError> {
        let hosts = self.hosts(image.domain(), credential)?;
        hosts
            .into_iter()
            .find(|host| host.endpoint().push)
            .ok_or_else(|| RegistryError::Protocol {
                registry: image.domain().to_owned(),
                reason: "its hosts.toml names no host that takes pushes".to_owned(),
            })
    }

    /// A registry's documents and blobs, as they are.
    ///
    /// # Errors
    /// The registry's settings or certificates cannot be used.
    pub fn remote(
        &self,
        domain: &str,
        credential: Option<&Credential>,
    ) -> Result<Remote, RegistryError> {
        Ok(Remote::new(self.hosts(domain, credential)?))
    }

    /// Checks a credential with a registry, named as users do (`https://host/v2/`, `host:1`).
    ///
    /// # Errors
    /// The registry cannot be reached or refuses the credential.
    pub async fn login(
        &self,
        server: &str,
        credential: &Credential,
    ) -> Result<LoginOutcome, RegistryError> {
        let host = self.registry(&domain_of(server), Some(credential))?;
        // What a later login needs instead of the password, where the registry has such a thing.
        if credential.identity_token.is_empty() {
            host.want_refresh_token();
        }
        let response = host
            .send(Method::GET, Target::Api(""), Scope::None, &|request| {
                request
            })
            .await?;
        match response.status() {
            status if status.is_success() => Ok(LoginOutcome {
                status: "Login Succeeded".to_owned(),
                identity_token: host.refresh_token(),
            }),
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                Err(RegistryError::Unauthorized(format!(
                    "login attempt to {} failed with status: {status}: incorrect username or password",
                    host.base_url()
                )))
            }
            StatusCode::NOT_FOUND => Err(host.protocol("this is no registry: it has no /v2/")),
            _ => Err(host.protocol(words(response).await)),
        }
    }

    /// Pulls one tag or digest.
    ///
    /// # Errors
    /// No source can be reached, all refuse, none has the image; or what was sent is not what
    /// it was announced as, twice.
    pub async fn pull(&self, request: &PullRequest<'_>) -> Result<Pulled, RegistryError> {
        let sources = self.hosts(request.image.domain(), request.credential)?;
        let pulled = pull::pull(&sources, request).await?;
        if request.naming == Naming::Names {
            pull::summarise(request.progress, request.image, pulled.up_to_date);
        }
        Ok(pulled)
    }

    /// Pulls every tag of a repository, one after the other.
    ///
    /// # Errors
    /// There is no such repository, or as [`pull`](Self::pull) for one of its tags; the tags
    /// before that one are here.
    pub async fn pull_all(&self, request: &PullRequest<'_>) -> Result<(), RegistryError> {
        let repository = request.image;
        let sources = self.hosts(repository.domain(), request.credential)?;
        let remote = Remote::new(sources.clone());
        let tags = remote.tags(repository.path()).await;
        let tags = tags.map_err(|error| match error {
            RegistryError::RepositoryUnknown { .. } | RegistryError::PullDenied(_) => {
                RegistryError::PullDenied(repository.familiar_name())
            }
            other => other,
        })?;
        let mut up_to_date = true;
        for tag in tags {
            let invalid = |error| RegistryError::Protocol {
                registry: repository.domain().to_owned(),
                reason: format!("its list of tags has {tag:?}: {error}"),
            };
            let image = &repository.with_tag(&tag).map_err(invalid)?;
            let pulled = pull::pull(&sources, &PullRequest { image, ..*request }).await?;
            up_to_date &= pulled.up_to_date;
        }
        pull::summarise(request.progress, repository, up_to_date);
        Ok(())
    }

    /// Fetches one blob of a repository, by its digest, into a store.
    ///
    /// # Errors
    /// No source can be reached, or none has it.
    pub async fn fetch_blob(
        &self,
        store: &Store,
        repository: &ImageRef,
        blob: &LayerBlob,
        credential: Option<&Credential>,
        progress: &dyn Progress,
    ) -> Result<(), RegistryError> {
        let sources = self.hosts(repository.domain(), credential)?;
        refetch::blob(&sources, store, repository, blob, progress).await
    }

    /// Pushes an image of a store under a name; under its digest alone, where that has no tag.
    ///
    /// # Errors
    /// The registry cannot be reached or refuses; the image is not whole.
    pub async fn push(
        &self,
        store: &Store,
        image: &ImageRef,
        id: &ImageId,
        credential: Option<&Credential>,
        progress: &dyn Progress,
    ) -> Result<Pushed, RegistryError> {
        let host = self.target(image, credential)?;
        push::push(&host, store, image, id, progress).await
    }
}
