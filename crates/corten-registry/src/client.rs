//! The client: one per engine, connections made on first use.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use corten_oci::{ImageRef, Platform};
use corten_store::{ImageId, Store};
use http::{Method, StatusCode};

use crate::config::{RegistriesConfig, RegistrySettings, is_loopback};
use crate::credential::{Credential, domain_of};
use crate::error::RegistryError;
use crate::http::{Connections, Host, connect, words};
use crate::progress::Progress;
use crate::pull::{self, Pulled};
use crate::push::{self, Pushed};

/// Talks to registries. Cheap to clone.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    config: RegistriesConfig,
    /// By domain, for they differ in certificates, and whether on this machine.
    http: Mutex<HashMap<(String, bool), Connections>>,
}

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
            config,
            http: Mutex::default(),
        })))
    }

    /// Connections to a host that stands for a registry: itself or a mirror.
    fn http(&self, domain: &str, host: &str) -> Result<Connections, RegistryError> {
        let bare = host.split_once("://").map_or(host, |(_, rest)| rest);
        let local = is_loopback(bare.trim_end_matches('/'));
        let key = (domain.to_owned(), local);
        let mut known = self.0.http.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connections) = known.get(&key) {
            return Ok(connections.clone());
        }
        let made = connect(&self.0.config.of(domain), local)?;
        known.insert(key, made.clone());
        Ok(made)
    }

    /// A mirror. It gets no credentials: those are the registry's.
    fn mirror(
        &self,
        domain: &str,
        settings: &RegistrySettings,
        url: &str,
    ) -> Result<Host, RegistryError> {
        Ok(Host::new(self.http(domain, url)?, url, settings, None))
    }

    /// A registry by its domain.
    fn registry(
        &self,
        domain: &str,
        credential: Option<&Credential>,
    ) -> Result<Host, RegistryError> {
        let settings = self.0.config.of(domain);
        Ok(Host::new(
            self.http(domain, domain)?,
            domain,
            &settings,
            credential.cloned(),
        ))
    }

    /// Where to pull from, in order: mirrors, then the registry itself.
    fn sources(
        &self,
        image: &ImageRef,
        credential: Option<&Credential>,
    ) -> Result<Vec<Host>, RegistryError> {
        let domain = image.domain();
        let settings = self.0.config.of(domain);
        let mut hosts = Vec::new();
        for mirror in &settings.mirrors {
            hosts.push(self.mirror(domain, &settings, &mirror.url)?);
        }
        hosts.push(self.registry(domain, credential)?);
        Ok(hosts)
    }

    /// Where to push to: the first mirror that takes pushes, else the registry itself.
    fn target(
        &self,
        image: &ImageRef,
        credential: Option<&Credential>,
    ) -> Result<Host, RegistryError> {
        let domain = image.domain();
        let settings = self.0.config.of(domain);
        match settings.mirrors.iter().find(|mirror| mirror.push) {
            Some(mirror) => self.mirror(domain, &settings, &mirror.url),
            None => self.registry(domain, credential),
        }
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
        let response = host
            .send(Method::GET, "/v2/", None, &|request| request)
            .await?;
        match response.status() {
            status if status.is_success() => Ok(LoginOutcome {
                status: "Login Succeeded".to_owned(),
                identity_token: None,
            }),
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                Err(RegistryError::Unauthorized(format!(
                    "login attempt to {} failed with status: {status}: incorrect username or password",
                    host.url("/v2/")
                )))
            }
            StatusCode::NOT_FOUND => Err(host.protocol("this is no registry: it has no /v2/")),
            _ => Err(host.protocol(words(response).await)),
        }
    }

    /// Pulls one tag or digest into a store.
    ///
    /// # Errors
    /// No source can be reached, all refuse, none has the image; or what was sent is not what
    /// it was announced as, twice.
    pub async fn pull(
        &self,
        store: &Store,
        image: &ImageRef,
        platform: &Platform,
        credential: Option<&Credential>,
        progress: &dyn Progress,
    ) -> Result<Pulled, RegistryError> {
        let sources = self.sources(image, credential)?;
        pull::pull(&sources, store, image, platform, progress).await
    }

    /// Pushes an image of a store under a name.
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
