//! A cache of another registry: what is missing is fetched there, verified, stored, and sent
//! to whoever asked while it arrives.
//!
//! Invariants: a miss that many ask for at once is fetched once; nothing is stored, and no
//! client gets the last byte of anything, before its digest is right; what is stored is served
//! whether the upstream can be reached or not. A digest never changes its meaning, so only
//! tags are asked for again, by `HEAD`, when they were last looked at too long ago.

mod blobs;
mod lists;
mod manifests;
mod quiet;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use corten_oci::Digest;
use corten_registry::{
    Client, Credential, RegistriesConfig, RegistryError, RegistrySettings, Remote,
};
use http::{StatusCode, header};
use serde_json::json;

use crate::error::{ApiError, Code, RegistrydError};
use crate::names::RepoName;

pub(crate) use blobs::{Fetch, Found};

/// How long a tag is believed that was looked at, where it is not configured.
const TTL: Duration = Duration::from_secs(300);
/// How long an upstream that could not be reached is left alone.
const DOWN: Duration = Duration::from_secs(15);
/// Tags whose time is remembered; past that all are looked at again.
const MAX_CHECKS: usize = 65_536;
/// Docker Hub, where official images have a part in their name that users leave out.
const HUB: &str = "docker.io";

/// A registry to be the cache of.
#[derive(Debug, Clone, Default)]
pub struct ProxyConfig {
    /// `docker.io`, `host:port`, or with `http://` or `https://` before it.
    pub upstream: String,
    /// Whom the upstream knows; nobody if empty.
    pub username: String,
    /// A file with the user's password, or an access token in its place.
    pub password_file: Option<PathBuf>,
    /// How long a tag is believed that was looked at; five minutes if absent.
    pub ttl: Option<Duration>,
    /// A further authority to trust (PEM).
    pub ca: Option<PathBuf>,
    /// TLS client certificate (PEM).
    pub client_cert: Option<PathBuf>,
    /// Its key (PEM).
    pub client_key: Option<PathBuf>,
    /// HTTPS without checking the certificate, or plain HTTP.
    pub insecure: bool,
}

/// The cache.
#[derive(Debug)]
pub(crate) struct Proxy {
    remote: Remote,
    /// For messages.
    upstream: String,
    hub: bool,
    ttl: Duration,
    fetches: Mutex<HashMap<(RepoName, Digest), Arc<blobs::Fetch>>>,
    /// Until when a blob is not fetched again for a part of it, and why.
    given_up: Mutex<HashMap<(RepoName, Digest), blobs::GivenUp>>,
    /// Until when a tag (`repository:tag`) is believed.
    checks: Mutex<HashMap<String, Instant>>,
    /// Lists of tags that are believed.
    lists: lists::Lists,
    /// One question about a manifest at a time, by what is asked for.
    asking: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    /// How long it is not to be asked for manifests and lists, and for blobs.
    quiet: quiet::Quiet,
    quiet_blobs: quiet::Quiet,
}

impl Proxy {
    pub(crate) fn open(config: &ProxyConfig) -> Result<Self, RegistrydError> {
        let (plain_http, domain) = match config.upstream.split_once("://") {
            Some(("http", rest)) => (true, rest),
            Some(("https", rest)) => (false, rest),
            Some(_) => {
                return Err(RegistrydError::Unsupported(
                    "the upstream's URL must begin with http:// or https://",
                ));
            }
            None => (false, config.upstream.as_str()),
        };
        let domain = match domain.trim_end_matches('/') {
            "registry-1.docker.io" | "index.docker.io" => HUB,
            "" => {
                return Err(RegistrydError::Unsupported(
                    "a cache needs an upstream: docker.io, or http(s)://HOST:PORT",
                ));
            }
            domain if domain.contains('/') => {
                return Err(RegistrydError::Unsupported(
                    "the upstream is a whole registry: its URL must have no path",
                ));
            }
            domain => domain,
        };
        let settings = RegistrySettings {
            plain_http,
            insecure: config.insecure,
            ca: config.ca.clone(),
            client_cert: config.client_cert.clone(),
            client_key: config.client_key.clone(),
            ..RegistrySettings::default()
        };
        let credential = credential(config)?;
        let client = Client::new(RegistriesConfig::only(domain, settings));
        let remote = client.and_then(|client| client.remote(domain, credential.as_ref()));
        let remote = remote.map_err(|error| RegistrydError::Upstream(error.to_string()))?;
        Ok(Self {
            remote,
            upstream: domain.to_owned(),
            hub: domain == HUB,
            ttl: config.ttl.unwrap_or(TTL),
            fetches: Mutex::default(),
            given_up: Mutex::default(),
            checks: Mutex::default(),
            lists: lists::Lists::default(),
            asking: Mutex::default(),
            quiet: quiet::Quiet::default(),
            quiet_blobs: quiet::Quiet::default(),
        })
    }

    /// What the upstream calls a repository.
    fn name_there(&self, repo: &RepoName) -> String {
        if self.hub && !repo.as_str().contains('/') {
            format!("library/{repo}")
        } else {
            repo.to_string()
        }
    }

    /// The upstream's registry, for messages.
    pub(crate) fn upstream(&self) -> &str {
        &self.upstream
    }

    /// Waits until nobody else asks the upstream for the same.
    async fn alone(&self, key: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let mutex = {
            let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
            asking.retain(|_, mutex| mutex.strong_count() > 0);
            match asking.get(key).and_then(Weak::upgrade) {
                Some(mutex) => mutex,
                None => {
                    let mutex = Arc::new(tokio::sync::Mutex::new(()));
                    asking.insert(key.to_owned(), Arc::downgrade(&mutex));
                    mutex
                }
            }
        };
        mutex.lock_owned().await
    }

    fn is_fresh(&self, key: &str) -> bool {
        let checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        checks.get(key).is_some_and(|until| *until > Instant::now())
    }

    /// Believes a tag for a while.
    fn believe(&self, key: &str, while_: Duration) {
        let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        if checks.len() >= MAX_CHECKS {
            checks.clear();
        }
        checks.insert(key.to_owned(), Instant::now() + while_);
    }

    /// What a client is told that asked for something the upstream does not give.
    fn refusal(&self, error: &RegistryError, code: Code) -> ApiError {
        match error {
            RegistryError::ManifestUnknown(_)
            | RegistryError::RepositoryUnknown { .. }
            | RegistryError::BlobUnknown { .. } => {
                ApiError::new(code, json!({"upstream": self.upstream}))
            }
            // Registries say that of what does not exist, too.
            RegistryError::PullDenied(_) | RegistryError::Unauthorized(_) => {
                tracing::info!(upstream = self.upstream, %error, "the upstream refuses");
                let detail = json!({"upstream": self.upstream, "reason": "denied there"});
                ApiError::new(Code::NameUnknown, detail)
            }
            RegistryError::RateLimited { reason, after, .. } => {
                let detail = json!({"upstream": self.upstream, "reason": reason});
                let refusal = ApiError::new(Code::TooManyRequests, detail);
                match after {
                    Some(after) => {
                        // Not a moment too early.
                        let seconds = after.as_millis().div_ceil(1000);
                        refusal.header(header::RETRY_AFTER, &seconds.to_string())
                    }
                    None => refusal,
                }
            }
            RegistryError::OldManifest { .. } => {
                tracing::warn!(upstream = self.upstream, %error, "a manifest of the upstream cannot be used");
                ApiError::new(Code::Unknown, json!({"upstream": self.upstream}))
                    .status(StatusCode::BAD_GATEWAY)
                    .message(format!(
                        "the upstream {} sends a manifest of an old kind",
                        self.upstream
                    ))
            }
            error => {
                tracing::warn!(upstream = self.upstream, %error, "the upstream does not answer");
                ApiError::new(Code::Unknown, json!({"upstream": self.upstream}))
                    .status(StatusCode::BAD_GATEWAY)
                    .message(format!("the upstream {} does not answer", self.upstream))
            }
        }
    }
}

/// Whether a thing is certainly not to be had there, and not merely now.
fn is_final(error: &RegistryError) -> bool {
    matches!(
        error,
        RegistryError::ManifestUnknown(_)
            | RegistryError::RepositoryUnknown { .. }
            | RegistryError::BlobUnknown { .. }
            | RegistryError::PullDenied(_)
            | RegistryError::Unauthorized(_)
    )
}

fn credential(config: &ProxyConfig) -> Result<Option<Credential>, RegistrydError> {
    use crate::error::IoContext as _;
    let Some(path) = &config.password_file else {
        if config.username.is_empty() {
            return Ok(None);
        }
        return Err(RegistrydError::Unsupported(
            "the upstream's user needs a password: set password_file",
        ));
    };
    if config.username.is_empty() {
        return Err(RegistrydError::Unsupported(
            "the upstream's password needs a user: set username",
        ));
    }
    let text = std::fs::read_to_string(path).context("read the upstream's password", path)?;
    Ok(Some(Credential {
        username: config.username.clone(),
        password: text.trim_end_matches(['\r', '\n']).to_owned(),
        ..Credential::default()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(upstream: &str) -> Result<Proxy, String> {
        let config = ProxyConfig {
            upstream: upstream.to_owned(),
            ..ProxyConfig::default()
        };
        Proxy::open(&config).map_err(|error| error.to_string())
    }

    #[test]
    fn official_images_have_their_full_name_there() {
        let app = RepoName::parse("app").unwrap();
        for (upstream, name) in [
            ("docker.io", "library/app"),
            ("https://registry-1.docker.io/", "library/app"),
            ("https://quay.io", "app"),
            ("http://127.0.0.1:5000", "app"),
        ] {
            assert_eq!(open(upstream).unwrap().name_there(&app), name, "{upstream}");
        }
        for bad in ["", "ftp://x", "https://x/path"] {
            assert!(open(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn user_and_password_go_together() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        std::fs::write(&file, "secret\n").unwrap();
        let of = |username: &str, password_file| {
            credential(&ProxyConfig {
                username: username.to_owned(),
                password_file,
                ..ProxyConfig::default()
            })
        };
        assert!(of("", None).unwrap().is_none());
        assert_eq!(
            of("me", Some(file.clone())).unwrap().unwrap().password,
            "secret"
        );
        assert!(of("me", None).is_err());
        assert!(of("", Some(file)).is_err());
    }

    #[tokio::test]
    async fn one_asks_and_the_others_wait() {
        let proxy = open("http://127.0.0.1:1").unwrap();
        let first = proxy.alone("a").await;
        let other = tokio::time::timeout(Duration::from_secs(5), proxy.alone("b")).await;
        assert!(other.is_ok(), "another thing is asked for at once");
        let mut second = std::pin::pin!(proxy.alone("a"));
        let waited = tokio::time::timeout(Duration::from_millis(50), &mut second).await;
        assert!(waited.is_err());
        drop(first);
        assert!(
            tokio::time::timeout(Duration::from_secs(5), second)
                .await
                .is_ok()
        );
    }
}
