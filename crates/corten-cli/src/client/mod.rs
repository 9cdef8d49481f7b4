//! The Engine API client: HTTP/1.1 over a Unix socket, TCP, TLS, or a connection to the
//! engine in this process.
//!
//! Paths carry no version unless `DOCKER_API_VERSION` insists on one: an engine then answers
//! in its newest. Connections are reused for requests that follow one another; streams and
//! hijacked connections have one of their own.

mod call;
mod connect;
mod patient;
mod stream;
mod tls;

use std::cell::{OnceCell, RefCell};
use std::io;

use bytes::Bytes;
use corten_engine::{Engine, EngineOptions};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::client::conn::http1::SendRequest;

use crate::config::ConfigFile;
use crate::context;
use crate::error::Result;
use crate::globals::Globals;

pub use call::{Answer, Call, Query};
pub use connect::Target;
pub use stream::{BodyReader, Hijacked, JsonLines};

/// A request's body.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// `-H` that cannot be used.
    #[error("unable to parse docker host `{0}`")]
    Host(String),
    /// A way of connecting that we do not have.
    #[error("connections of the form {0} are not offered; use unix:// or tcp://")]
    Scheme(String),
    /// TLS files that cannot be used.
    #[error("failed to set up TLS: {0}")]
    Tls(String),
    /// Nobody there.
    #[error("Cannot connect to the Docker daemon at {host}. Is the docker daemon running?")]
    Unreachable {
        /// Where.
        host: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody there who does not want us.
    #[error(
        "permission denied while trying to connect to the Docker daemon socket at {host}: {}",
        crate::error::reason(source)
    )]
    Denied {
        /// Where.
        host: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Any other failure to connect.
    #[error("error during connect: {host}: {reason}")]
    Connect {
        /// Where.
        host: String,
        /// Why.
        reason: String,
    },
    /// The engine in this process could not be opened.
    #[error(transparent)]
    Engine(#[from] corten_engine::EngineError),
    /// The engine said no.
    #[error("Error response from daemon: {message}")]
    Api {
        /// HTTP status.
        status: u16,
        /// Its words.
        message: String,
    },
    /// The connection broke in the middle.
    #[error("error during connect: {0}")]
    Http(#[from] hyper::Error),
    /// What a request was to send could not be read.
    #[error("{}", crate::error::reason(.0))]
    Body(io::Error),
    /// A request that cannot be made.
    #[error("invalid request: {0}")]
    Request(#[from] http::Error),
    /// An answer that is not what it should be.
    #[error("unexpected answer from the engine: {0}")]
    Answer(#[from] serde_json::Error),
    /// The engine does not turn the connection into a stream.
    #[error("unable to upgrade to tcp, received {0}")]
    Upgrade(u16),
}

impl ClientError {
    /// Whether the engine said that something does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Api { status: 404, .. })
    }
}

/// A client of one engine.
pub struct Client {
    target: Target,
    /// `/v1.43`, or nothing.
    prefix: String,
    headers: Vec<(String, String)>,
    root: Option<std::path::PathBuf>,
    /// The API over the engine in this process, opened on first use.
    service: OnceCell<corten_api::Service>,
    /// A connection that waits for the next request.
    idle: RefCell<Option<SendRequest<Body>>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// A client of a target.
    #[must_use]
    pub fn new(target: Target) -> Self {
        Self {
            target,
            prefix: String::new(),
            headers: Vec::new(),
            root: None,
            service: OnceCell::new(),
            idle: RefCell::new(None),
        }
    }

    /// The client that flags, environment, contexts and configuration ask for.
    pub(crate) fn from_globals(globals: &Globals, config: &ConfigFile) -> Result<Self> {
        let chosen = context_name(globals, config);
        let (host, tls) = match (&globals.host, chosen.as_str()) {
            (Some(host), _) => (Some(host.clone()), globals.tls.clone()),
            (None, context::DEFAULT) => (None, globals.tls.clone()),
            (None, name) => {
                let context = context::load(&globals.config_dir, name)?;
                let tls = context::tls(&globals.config_dir, &context);
                let host = context.docker().host;
                let tls = if globals.tls.on {
                    globals.tls.clone()
                } else {
                    tls
                };
                ((!host.is_empty()).then_some(host), tls)
            }
        };
        let target = match host {
            None => Target::InProcess,
            Some(host) => Target::parse(&host, &tls)?,
        };
        let mut client = Self::new(target);
        client.root.clone_from(&globals.root);
        client.headers = config
            .http_headers
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if let Some(version) = &globals.api_version {
            client.prefix = format!("/v{}", version.trim_start_matches('v'));
        }
        Ok(client)
    }

    /// Where the engine is.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Whether the engine is in this process.
    #[must_use]
    pub fn in_process(&self) -> bool {
        matches!(self.target, Target::InProcess)
    }

    fn service(&self) -> std::result::Result<&corten_api::Service, ClientError> {
        if let Some(service) = self.service.get() {
            return Ok(service);
        }
        self.open_engine(false)
    }

    fn open_engine(&self, anew: bool) -> std::result::Result<&corten_api::Service, ClientError> {
        let engine = Engine::open(EngineOptions {
            root: self.root.clone(),
            anew,
        })?;
        Ok(self.service.get_or_init(|| corten_api::service(engine)))
    }

    /// Opens the engine in this process, if there is one here, also where its database is lost.
    pub(crate) fn open_anew(&self) -> std::result::Result<(), ClientError> {
        if self.in_process() {
            self.open_engine(true)?;
        }
        Ok(())
    }

    /// Starts a GET.
    pub fn get(&self, path: impl Into<String>) -> Call<'_> {
        Call::new(self, http::Method::GET, path.into())
    }

    /// Starts a HEAD.
    pub fn head(&self, path: impl Into<String>) -> Call<'_> {
        Call::new(self, http::Method::HEAD, path.into())
    }

    /// Starts a POST.
    pub fn post(&self, path: impl Into<String>) -> Call<'_> {
        Call::new(self, http::Method::POST, path.into())
    }

    /// Starts a PUT.
    pub fn put(&self, path: impl Into<String>) -> Call<'_> {
        Call::new(self, http::Method::PUT, path.into())
    }

    /// Starts a DELETE.
    pub fn delete(&self, path: impl Into<String>) -> Call<'_> {
        Call::new(self, http::Method::DELETE, path.into())
    }
}

/// The name of the context in force.
pub(crate) fn context_name(globals: &Globals, config: &ConfigFile) -> String {
    match (&globals.context, &globals.host) {
        (Some(name), _) => name.clone(),
        (None, Some(_)) => context::DEFAULT.into(),
        (None, None) if !config.current_context.is_empty() => config.current_context.clone(),
        (None, None) => context::DEFAULT.into(),
    }
}

/// Escapes one component of a path.
#[must_use]
pub fn component(text: &str) -> String {
    escape(text, false)
}

/// Escapes an image name, whose slashes separate components.
#[must_use]
pub fn name(text: &str) -> String {
    escape(text, true)
}

fn escape(text: &str, slashes: bool) -> String {
    use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
    const COMPONENT: &AsciiSet = &NON_ALPHANUMERIC
        .remove(b'-')
        .remove(b'_')
        .remove(b'.')
        .remove(b'~')
        .remove(b':')
        .remove(b'@');
    const NAME: &AsciiSet = &COMPONENT.remove(b'/');
    utf8_percent_encode(text, if slashes { NAME } else { COMPONENT }).to_string()
}

#[cfg(test)]
mod tests;
