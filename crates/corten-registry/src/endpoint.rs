//! Where a registry can be reached: the registry itself and its mirrors, each with how it is
//! spoken to. Made of `registries.toml`, `hosts.toml` and `certs.d`; used by `http`.

use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use crate::config::{RegistrySettings, is_loopback};

/// Docker Hub's API is elsewhere than its name.
pub(crate) const HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// Whom to trust, and how to connect. Endpoints with the same share their connections.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Trust {
    /// Authorities beside the system's (PEM).
    pub(crate) authorities: Vec<PathBuf>,
    /// TLS client certificate and key (PEM).
    pub(crate) client: Option<(PathBuf, PathBuf)>,
    /// Certificates are not checked.
    pub(crate) insecure: bool,
    /// On this machine: never through a proxy.
    pub(crate) local: bool,
    /// Patience for a connection.
    pub(crate) dial_timeout: Option<Duration>,
    /// A proxy to go through, whatever the environment says.
    pub(crate) proxy: Option<String>,
}

impl Trust {
    /// The files it is made of.
    pub(crate) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let client = self.client.iter().flat_map(|(cert, key)| [cert, key]);
        self.authorities.iter().chain(client)
    }
}

/// One place that answers for a registry.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    /// To be tried in this order.
    pub(crate) schemes: Vec<&'static str>,
    /// `host` or `host:port`.
    pub(crate) host: String,
    /// What stands before a repository's name: `/v2`, or what a mirror says instead.
    pub(crate) base: String,
    /// Blobs, and manifests by digest.
    pub(crate) pull: bool,
    /// Tags.
    pub(crate) resolve: bool,
    /// Takes pushes.
    pub(crate) push: bool,
    /// Lists referrers, by the API for it.
    pub(crate) referrers: bool,
    pub(crate) trust: Trust,
    /// Sent with every request to it, and only to it.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// The registry it stands for, where it is to be told (`ns=`).
    pub(crate) namespace: Option<String>,
    /// The registry itself, which alone gets credentials.
    pub(crate) own: bool,
}

impl Endpoint {
    /// The registry itself.
    pub(crate) fn registry(domain: &str, settings: &RegistrySettings) -> Self {
        let schemes = if settings.plain_http {
            vec!["http"]
        } else if settings.insecure || is_loopback(domain) {
            vec!["https", "http"]
        } else {
            vec!["https"]
        };
        let host = if domain == HUB.0 { HUB.1 } else { domain };
        Self {
            schemes,
            host: host.to_owned(),
            base: "/v2".to_owned(),
            pull: true,
            resolve: true,
            push: true,
            referrers: true,
            trust: trust(domain, settings),
            headers: Vec::new(),
            namespace: None,
            own: true,
        }
    }

    /// A mirror by its URL, which has neither path nor query.
    pub(crate) fn mirror(url: &str, push: bool, settings: &RegistrySettings) -> Self {
        let (scheme, rest) = match url.split_once("://") {
            Some(("http", rest)) => ("http", rest),
            Some((_, rest)) => ("https", rest),
            None => ("https", url),
        };
        let host = rest.trim_end_matches('/');
        Self {
            schemes: vec![scheme],
            host: host.to_owned(),
            base: "/v2".to_owned(),
            pull: true,
            resolve: true,
            push,
            referrers: true,
            trust: trust(host, settings),
            headers: Vec::new(),
            namespace: None,
            own: false,
        }
    }
}

fn trust(host: &str, settings: &RegistrySettings) -> Trust {
    Trust {
        authorities: settings.ca.iter().cloned().collect(),
        client: settings
            .client_cert
            .clone()
            .zip(settings.client_key.clone()),
        insecure: settings.insecure,
        local: is_loopback(host),
        dial_timeout: None,
        proxy: None,
    }
}
