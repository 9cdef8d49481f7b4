//! Where an engine is and how to get a connection to it.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::patient::Patient;
use super::{Body, Client, ClientError, tls};
use crate::globals::TlsFlags;

const PLAIN_PORT: u16 = 2375;
const TLS_PORT: u16 = 2376;

/// Where an engine is.
#[derive(Clone)]
pub enum Target {
    /// In this very process.
    InProcess,
    /// A socket file.
    Unix(PathBuf),
    /// A TCP address.
    Tcp {
        /// Name or address, without brackets.
        host: String,
        /// Port.
        port: u16,
        /// What comes before every path.
        base: String,
        /// TLS settings, if it is spoken.
        tls: Option<Arc<rustls::ClientConfig>>,
    },
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InProcess => f.write_str("this process"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp {
                host, port, base, ..
            } if host.contains(':') => {
                write!(f, "tcp://[{host}]:{port}{base}")
            }
            Self::Tcp {
                host, port, base, ..
            } => write!(f, "tcp://{host}:{port}{base}"),
        }
    }
}

impl Target {
    /// Understands a value of `-H`.
    pub(crate) fn parse(text: &str, tls: &TlsFlags) -> Result<Self, ClientError> {
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (scheme, rest),
            None => ("tcp", text),
        };
        match scheme {
            "unix" if rest.is_empty() => Ok(Self::Unix("/var/run/docker.sock".into())),
            "unix" => Ok(Self::Unix(rest.into())),
            "tcp" | "http" | "https" => {
                let config = if tls.on || scheme == "https" {
                    Some(Arc::new(tls::client_config(tls)?))
                } else {
                    None
                };
                let (address, base) = match rest.split_once('/') {
                    Some((address, base)) => (address, format!("/{base}")),
                    None => (rest, String::new()),
                };
                let (host, port) =
                    split_port(address).ok_or_else(|| ClientError::Host(text.into()))?;
                let default = if config.is_some() {
                    TLS_PORT
                } else {
                    PLAIN_PORT
                };
                Ok(Self::Tcp {
                    host: if host.is_empty() {
                        "localhost".into()
                    } else {
                        host
                    },
                    port: port.unwrap_or(default),
                    base: base.trim_end_matches('/').into(),
                    tls: config,
                })
            }
            "ssh" | "npipe" | "fd" => Err(ClientError::Scheme(format!("{scheme}://"))),
            _ => Err(ClientError::Host(text.into())),
        }
    }

    /// What comes before every path.
    pub(super) fn base(&self) -> &str {
        match self {
            Self::Tcp { base, .. } => base,
            _ => "",
        }
    }

    /// For the `Host` header.
    pub(super) fn host_header(&self) -> String {
        match self {
            Self::Tcp { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            Self::Tcp { host, port, .. } => format!("{host}:{port}"),
            _ => "docker".into(),
        }
    }

    fn failed(&self, source: io::Error) -> ClientError {
        let host = self.to_string();
        match source.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Denied { host, source },
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::Unreachable { host, source }
            }
            _ => ClientError::Connect {
                host,
                reason: crate::error::reason(&source),
            },
        }
    }
}

/// `host:port`, `[v6]:port`, `host`; `None` when it is neither.
fn split_port(address: &str) -> Option<(String, Option<u16>)> {
    if let Some(rest) = address.strip_prefix('[') {
        let (host, after) = rest.split_once(']')?;
        return match after.strip_prefix(':') {
            Some(port) => Some((host.into(), Some(port.parse().ok()?))),
            None if after.is_empty() => Some((host.into(), None)),
            None => None,
        };
    }
    match address.split_once(':') {
        Some((host, port)) => Some((host.into(), Some(port.parse().ok()?))),
        None => Some((address.into(), None)),
    }
}

impl Client {
    /// A fresh connection that takes a request.
    pub(super) async fn ready(&self) -> Result<SendRequest<Body>, ClientError> {
        let mut sender = self.connect().await?;
        sender.ready().await?;
        Ok(sender)
    }

    /// A fresh connection, driven by a task of its own.
    async fn connect(&self) -> Result<SendRequest<Body>, ClientError> {
        match &self.target {
            Target::InProcess => handshake(corten_api::connect_in_process(self.service()?)).await,
            Target::Unix(path) => {
                let stream = UnixStream::connect(path)
                    .await
                    .map_err(|e| self.target.failed(e))?;
                handshake(stream).await
            }
            Target::Tcp {
                host, port, tls, ..
            } => {
                let stream = TcpStream::connect((host.as_str(), *port))
                    .await
                    .map_err(|e| self.target.failed(e))?;
                stream
                    .set_nodelay(true)
                    .map_err(|e| self.target.failed(e))?;
                let Some(config) = tls else {
                    return handshake(stream).await;
                };
                let name = ServerName::try_from(host.clone())
                    .map_err(|_| ClientError::Host(self.target.to_string()))?;
                let stream = tokio_rustls::TlsConnector::from(config.clone())
                    .connect(name, stream)
                    .await
                    .map_err(|e| self.target.failed(e))?;
                handshake(stream).await
            }
        }
    }
}

async fn handshake<S>(stream: S) -> Result<SendRequest<Body>, ClientError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(Patient::new(stream))).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection ended");
        }
    });
    Ok(sender)
}
