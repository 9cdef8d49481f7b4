//! OCI registry server (distribution-spec 1.1), on plain files or an object store.
//!
//! [`main`] is `corten registry …`; [`Server`] runs a registry inside another program, such
//! as the tests of a registry client. Requests go `server` → `handlers` → `storage`; client
//! text becomes names and digests in `route` and `names`, and only those reach the files.

mod auth;
mod cli;
mod error;
mod handlers;
mod metrics;
mod names;
mod proxy;
mod remote;
mod route;
mod server;
mod settings;
mod storage;
mod watched;

pub use auth::{Action, Rule, TokenConfig};
pub use cli::{RegistryArgs, main, main_with};
pub use error::RegistrydError;
pub use proxy::ProxyConfig;
pub use remote::ClientFiles;
pub use server::{CollectConfig, Config, Server};
pub use storage::{Quota, StoreConfig};
