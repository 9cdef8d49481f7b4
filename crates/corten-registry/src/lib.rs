//! OCI registry client: authentication, pull, push, mirrors.
//!
//! `config` is `registries.toml`, with what it borrows from `certs_d` and `hosts_toml`;
//! `docker_config` is Docker's `config.json`, `http` one endpoint with its authentication and
//! retries; `pull` and `push` move images between a registry and a store, `artifact` documents
//! with layers that are no images; `remote` is for everything else one can ask a registry; `web`
//! fetches files from elsewhere. Invariants: every byte from a registry is verified before it is
//! used; credentials go only to the registry they are for; a pull that is cut off leaves only
//! partial downloads, which the next one resumes.

mod artifact;
mod attestations;
mod certs_d;
mod challenge;
mod client;
mod config;
mod connections;
mod credential;
pub mod docker_config;
mod document;
mod download;
mod endpoint;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod hosts_toml;
mod http;
mod manifest;
mod progress;
mod pull;
mod push;
mod put;
mod refetch;
mod remote;
mod retry;
mod sources;
mod stamp;
mod task_lease;
mod token;
mod upload;
mod web;

pub use artifact::{LocalBlob, RemoteDocument};
pub use client::{Client, LoginOutcome};
pub use config::{Mirror, RegistriesConfig, RegistrySettings};
pub use credential::{Credential, HUB_KEY, auth_key, domain_of, server_key};
pub use docker_config::DockerConfig;
pub use error::RegistryError;
pub use manifest::RemoteManifest;
pub use progress::{Progress, ProgressEvent, Silent};
pub use pull::{Naming, PullRequest, Pulled};
pub use push::Pushed;
pub use remote::{Remote, RemoteBlob};
pub use task_lease::TaskLease;
pub use web::Download;
