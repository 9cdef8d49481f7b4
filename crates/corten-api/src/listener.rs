//! Where `corten serve` listens: Unix sockets and TCP, plain or with TLS.
//!
//! A Unix socket is 0660 `root:docker` (group root where there is no group `docker`), as
//! Docker's. TCP without TLS gives root to everybody who can connect, so it must be asked
//! for by name. The socket file is removed at an orderly end; a stale one is replaced, a
//! living one is not.

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use corten_engine::Engine;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use crate::Service;

/// How long an orderly end waits for requests in flight.
const DRAIN: Duration = Duration::from_secs(5);
const SOCKET_MODE: u32 = 0o660;
const SOCKET_GROUP: &str = "docker";

/// Why a listener could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Not a form of address we know.
    #[error("invalid address \"{0}\": expected unix:///PATH or tcp://HOST:PORT")]
    Address(String),
    /// TCP without TLS and without saying that it is meant.
    #[error(
        "refusing to listen on {0} without TLS: whoever connects becomes root; give --tlsverify \
         with certificates, or --insecure-tcp if that is meant"
    )]
    InsecureTcp(Endpoint),
    /// Somebody serves there already.
    #[error("{0} is being served already")]
    InUse(Endpoint),
    /// The operating system refused.
    #[error("cannot listen on {endpoint}: {source}")]
    Bind {
        /// Where.
        endpoint: Endpoint,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A certificate or key could not be used.
    #[error("cannot use {path}: {reason}")]
    Tls {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A socket file.
    Unix(PathBuf),
    /// A TCP address.
    Tcp(SocketAddr),
}

impl FromStr for Endpoint {
    type Err = ListenError;

    fn from_str(s: &str) -> Result<Self, ListenError> {
        let invalid = || ListenError::Address(s.into());
        if let Some(path) = s.strip_prefix("unix://") {
            return if path.starts_with('/') {
                Ok(Self::Unix(path.into()))
            } else {
                Err(invalid())
            };
        }
        let address = s.strip_prefix("tcp://").ok_or_else(invalid)?;
        let address = address.replacen("localhost", "127.0.0.1", 1);
        let address = if address.starts_with(':') {
            format!("0.0.0.0{address}")
        } else {
            address
        };
        address.parse().map(Self::Tcp).map_err(|_| invalid())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

/// The files of a TLS server (PEM).
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// Server certificate chain.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authority whose client certificates are required (`--tlsverify`).
    pub client_ca: Option<PathBuf>,
}

impl TlsFiles {
    fn acceptor(&self) -> Result<TlsAcceptor, ListenError> {
        let failed = |path: &Path, reason: &dyn fmt::Display| ListenError::Tls {
            path: path.into(),
            reason: reason.to_string(),
        };
        let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>, ListenError> {
            CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect)
                .map_err(|e| failed(path, &e))
        };
        let chain = certificates(&self.cert)?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|e| failed(&self.key, &e))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| failed(&self.cert, &e))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let mut roots = rustls::RootCertStore::empty();
                for certificate in certificates(ca)? {
                    roots.add(certificate).map_err(|e| failed(ca, &e))?;
                }
                let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
                    Arc::new(roots),
                    provider,
                )
                .build()
                .map_err(|e| failed(ca, &e))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let config = builder
            .with_single_cert(chain, key)
            .map_err(|e| failed(&self.cert, &e))?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

enum Bound {
    Unix(UnixListener, SocketFile),
    Tcp(TcpListener, Option<TlsAcceptor>),
}

/// Removes a socket file when dropped.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.0.display(), %error, "socket file stays behind");
        }
    }
}

/// Bound listeners, ready to serve.
pub struct Server {
    listeners: Vec<Bound>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("listeners", &self.listeners.len())
            .finish()
    }
}

impl Server {
    /// Binds every endpoint, or none.
    ///
    /// # Errors
    /// An address in use, a refused permission, TLS files that cannot be used, or TCP
    /// without TLS while `insecure_tcp` is false.
    pub async fn bind(
        endpoints: &[Endpoint],
        tls: Option<&TlsFiles>,
        insecure_tcp: bool,
    ) -> Result<Self, ListenError> {
        let acceptor = tls.map(TlsFiles::acceptor).transpose()?;
        let mut listeners = Vec::new();
        for endpoint in endpoints {
            listeners.push(match endpoint {
                Endpoint::Unix(path) => bind_unix(endpoint, path).await?,
                Endpoint::Tcp(address) => {
                    if acceptor.is_none() && !insecure_tcp {
                        return Err(ListenError::InsecureTcp(endpoint.clone()));
                    }
                    let listener =
                        TcpListener::bind(address)
                            .await
                            .map_err(|source| ListenError::Bind {
                                endpoint: endpoint.clone(),
                                source,
                            })?;
                    Bound::Tcp(listener, acceptor.clone())
                }
            });
        }
        Ok(Self { listeners })
    }

    /// Where the server listens, with the ports the kernel chose.
    #[must_use]
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.listeners
            .iter()
            .filter_map(|bound| match bound {
                Bound::Unix(_, file) => Some(Endpoint::Unix(file.0.clone())),
                Bound::Tcp(listener, _) => listener.local_addr().ok().map(Endpoint::Tcp),
            })
            .collect()
    }

    /// Serves until `shutdown` resolves, then lets requests in flight finish for a few
    /// seconds. Containers do not notice.
    pub async fn serve(self, engine: Engine, shutdown: impl Future<Output = ()>) {
        let connections = TaskTracker::new();
        let service = crate::service(engine);
        let accepting: Vec<_> = self
            .listeners
            .into_iter()
            .map(|bound| tokio::spawn(accept(bound, service.clone(), connections.clone())))
            .collect();
        shutdown.await;
        for task in accepting {
            task.abort();
        }
        connections.close();
        if tokio::time::timeout(DRAIN, connections.wait())
            .await
            .is_err()
        {
            tracing::info!(open = connections.len(), "ending with requests in flight");
        }
    }
}

async fn bind_unix(endpoint: &Endpoint, path: &Path) -> Result<Bound, ListenError> {
    let failed = |source| ListenError::Bind {
        endpoint: endpoint.clone(),
        source,
    };
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {
            if tokio::net::UnixStream::connect(path).await.is_ok() {
                return Err(ListenError::InUse(endpoint.clone()));
            }
            fs::remove_file(path).map_err(failed)?;
        }
        Ok(_) => return Err(failed(io::ErrorKind::AlreadyExists.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(failed)?;
            }
        }
        Err(error) => return Err(failed(error)),
    }
    // Nobody but the owner gets in between bind and chown.
    let previous = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(path);
    rustix::process::umask(previous);
    let listener = bound.map_err(failed)?;
    let file = SocketFile(path.into());
    if let Some(group) = group_id(SOCKET_GROUP) {
        std::os::unix::fs::chown(path, None, Some(group)).map_err(failed)?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE)).map_err(failed)?;
    Ok(Bound::Unix(listener, file))
}

/// Looks a group up in `/etc/group` (a static binary has no NSS).
fn group_id(name: &str) -> Option<u32> {
    let groups = fs::read_to_string("/etc/group").ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

async fn accept(bound: Bound, service: Service, connections: TaskTracker) {
    loop {
        let accepted = match &bound {
            Bound::Unix(listener, _) => listener.accept().await.map(|(stream, _)| {
                connections.spawn(serve_connection(stream, service.clone()));
            }),
            Bound::Tcp(listener, tls) => listener.accept().await.map(|(stream, peer)| {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%peer, %error, "no TCP_NODELAY");
                }
                let service = service.clone();
                match tls.clone() {
                    None => {
                        connections.spawn(serve_connection(stream, service));
                    }
                    Some(tls) => {
                        connections.spawn(async move {
                            match tls.accept(stream).await {
                                Ok(stream) => serve_connection(stream, service).await,
                                Err(error) => tracing::info!(%peer, %error, "TLS refused"),
                            }
                        });
                    }
                }
            }),
        };
        if let Err(error) = accepted {
            // Out of descriptors, most likely: others must be allowed to end first.
            tracing::warn!(%error, "cannot accept a connection");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    service: Service,
) {
    let served = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_addresses() {
        assert_eq!(
            "unix:///a".parse::<Endpoint>().unwrap(),
            Endpoint::Unix("/a".into())
        );
        assert_eq!(
            "tcp://localhost:2375"
                .parse::<Endpoint>()
                .unwrap()
                .to_string(),
            "tcp://127.0.0.1:2375"
        );
        assert_eq!(
            "tcp://:1".parse::<Endpoint>().unwrap().to_string(),
            "tcp://0.0.0.0:1"
        );
        for bad in ["", "/a", "unix://a", "tcp://", "tcp://x", "fd://"] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
    }
}
