//! Credentials, with the field names of Docker's `AuthConfig`.

use std::fmt;

use corten_oci::ImageRef;
use corten_oci::reference::DEFAULT_DOMAIN;
use serde::{Deserialize, Serialize};

/// The key under which Docker keeps Docker Hub's credentials.
pub const HUB_KEY: &str = "https://index.docker.io/v1/";

/// A user's credentials for one registry.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// User name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub username: String,
    /// Password.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub password: String,
    /// OAuth2 refresh token, instead of a password.
    #[serde(
        default,
        rename = "identitytoken",
        skip_serializing_if = "String::is_empty"
    )]
    pub identity_token: String,
    /// Bearer token to be sent as it is.
    #[serde(
        default,
        rename = "registrytoken",
        skip_serializing_if = "String::is_empty"
    )]
    pub registry_token: String,
    /// Whose registry's.
    #[serde(
        default,
        rename = "serveraddress",
        skip_serializing_if = "String::is_empty"
    )]
    pub server_address: String,
    /// Base64 of `user:password`, as old clients send it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub auth: String,
    /// Unused; old clients send it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub email: String,
}

/// Secrets never show.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("username", &self.username)
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}

/// Where an image's credentials are kept in Docker's config.
#[must_use]
pub fn server_key(image: &ImageRef) -> String {
    auth_key(image.domain())
}

/// Where a registry's credentials are kept in Docker's config.
#[must_use]
pub fn auth_key(domain: &str) -> String {
    match domain {
        DEFAULT_DOMAIN | "index.docker.io" | "registry-1.docker.io" => HUB_KEY.to_owned(),
        other => other.to_owned(),
    }
}

/// A server as a user names it (`https://host/v2/`, `host:port`), as a registry domain.
#[must_use]
pub fn domain_of(server: &str) -> String {
    let bare = server
        .strip_prefix("https://")
        .or_else(|| server.strip_prefix("http://"));
    let host = bare.unwrap_or(server).split('/').next().unwrap_or_default();
    match host {
        "" | "index.docker.io" | "registry-1.docker.io" => DEFAULT_DOMAIN.to_owned(),
        host => host.to_owned(),
    }
}
