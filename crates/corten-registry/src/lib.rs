//! OCI registry client: authentication, pull, push, mirrors.
//!
//! `config` is `registries.toml`, `docker_config` Docker's `config.json`, `http` one host with
//! its authentication and retries; `pull` and `push` move images between a registry and a
//! store. Invariants: every byte is verified before it is used; credentials go only to the
//! registry they are for; a pull that is cut off leaves only partial downloads, which the
//! next one resumes.

mod client;
mod config;
mod credential;
pub mod docker_config;
mod download;
mod error;
mod http;
mod manifest;
mod progress;
mod pull;
mod push;

pub use client::{Client, LoginOutcome};
pub use config::{Mirror, RegistriesConfig, RegistrySettings};
pub use credential::{Credential, HUB_KEY, auth_key, domain_of, server_key};
pub use docker_config::DockerConfig;
pub use error::RegistryError;
pub use progress::{Progress, ProgressEvent};
pub use pull::Pulled;
pub use push::Pushed;
