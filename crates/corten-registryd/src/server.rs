//! Listening, TLS, and an orderly end: [`Server`].

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::auth::{Gate, Rule, TokenConfig};
use crate::error::RegistrydError;
use crate::handlers::{self, App};
use crate::storage::Storage;

/// Requests that run when the server is told to stop get this long.
const GRACE: Duration = Duration::from_secs(10);
/// A client has this long for its TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A client has this long for a request's head, and between two requests.
const HEAD: Duration = Duration::from_secs(120);
/// Pause after an `accept` that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a registry serves, and to whom.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// The folder of its files; made if missing, unless `read_only`.
    pub root: PathBuf,
    /// Apache password file with bcrypt entries; without one everybody may do everything.
    pub htpasswd: Option<PathBuf>,
    /// PEM files of the certificate chain and its private key; without them plain HTTP.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Refuse every request that changes something.
    pub read_only: bool,
    /// Bearer tokens, instead of or beside passwords.
    pub token: Option<TokenConfig>,
    /// Who may do what; without any every user may do everything.
    pub rules: Vec<Rule>,
}

/// Whom a request came from; an extension of every request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    pub(crate) tls: bool,
}

/// A registry that listens but does not answer yet.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    app: Arc<App>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("address", &self.address)
            .field("tls", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Opens the files of `config` and listens on `listen` (`HOST:PORT`, or `:PORT` for all
    /// addresses; port 0 takes a free one).
    pub async fn bind(listen: &str, config: Config) -> Result<Self, RegistrydError> {
        let address = match listen.strip_prefix(':') {
            Some(port) => format!("0.0.0.0:{port}"),
            None => listen.to_owned(),
        };
        let opened = tokio::task::spawn_blocking(move || open(&config)).await;
        let opened = opened.map_err(|error| RegistrydError::Internal(error.to_string()))?;
        let (app, tls) = opened?;
        let failed = |source| RegistrydError::Listen {
            address: listen.to_owned(),
            source,
        };
        let listener = TcpListener::bind(&address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self {
            listener,
            address,
            tls,
            app: Arc::new(app),
        })
    }

    /// Where it listens, with the port it got.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://ADDRESS` or `https://ADDRESS`.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Serves until `shutdown` is done; requests that run then are given ten seconds more.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let router = Router::new()
            .fallback(handlers::handle)
            .with_state(self.app);
        let (stop, stopped) = watch::channel(false);
        let mut connections = JoinSet::new();
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, peer)) => {
                        let tls = self.tls.clone();
                        let from = Peer { address: peer, tls: tls.is_some() };
                        let router = router.clone().layer(Extension(from));
                        let stopped = stopped.clone();
                        connections.spawn(async move {
                            if let Err(error) = connection(stream, tls, router, stopped).await {
                                tracing::debug!(%peer, error, "connection failed");
                            }
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        }
        drop(self.listener);
        stop.send_replace(true);
        let all = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(GRACE, all).await.is_err() {
            tracing::warn!(
                connections = connections.len(),
                "requests cut off at shutdown"
            );
            connections.shutdown().await;
        }
    }
}

fn open(config: &Config) -> Result<(App, Option<TlsAcceptor>), RegistrydError> {
    let tls = match &config.tls {
        Some((cert, key)) => Some(acceptor(cert, key)?),
        None => None,
    };
    let storage = Arc::new(Storage::open(&config.root, config.read_only)?);
    // After the storage, which makes the root: the token key may be there.
    let gate = Gate::open(config)?;
    let app = App {
        storage,
        gate,
        read_only: config.read_only,
    };
    Ok((app, tls))
}

async fn connection(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    router: Router,
    stopped: watch::Receiver<bool>,
) -> Result<(), String> {
    // Answers are small and many; waiting to fill a segment only delays them.
    stream
        .set_nodelay(true)
        .map_err(|error| error.to_string())?;
    let Some(tls) = tls else {
        return http(stream, router, stopped).await;
    };
    match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
        Ok(Ok(stream)) => http(stream, router, stopped).await,
        Ok(Err(error)) => Err(format!("TLS handshake: {error}")),
        Err(_) => Err("TLS handshake took too long".to_owned()),
    }
}

async fn http(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), String> {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        done = &mut connection => return done.map_err(|error| error.to_string()),
        // An error means that the server is gone, which is the end as well.
        _ = stopped.wait_for(|stopped| *stopped) => {}
    }
    connection.as_mut().graceful_shutdown();
    connection.await.map_err(|error| error.to_string())
}

fn acceptor(cert: &Path, key: &Path) -> Result<TlsAcceptor, RegistrydError> {
    let failed = |path: &Path, reason: String| RegistrydError::Tls {
        path: path.to_owned(),
        reason,
    };
    let pem_error = |path: &Path, error: pem::Error| {
        let reason = match error {
            pem::Error::Io(error) => format!("cannot read: {error}"),
            pem::Error::NoItemsFound => "no PEM block of the needed kind in it".to_owned(),
            other => format!("not valid PEM: {other}"),
        };
        failed(path, reason)
    };
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| pem_error(cert, error))?;
    if chain.is_empty() {
        return Err(pem_error(cert, pem::Error::NoItemsFound));
    }
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| pem_error(key, error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(chain, secret)
        })
        .map_err(|error| failed(cert, format!("cannot be used with its key: {error}")))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
