//! Listening, TLS, and an orderly end: [`Server`].

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::auth::{Gate, Rule, TokenConfig};
use crate::error::RegistrydError;
use crate::handlers::{self, App, operations};
use crate::metrics::Metrics;
use crate::proxy::{Proxy, ProxyConfig};
use crate::storage::{LOCK_PATIENCE, Policy, Quota, Storage, StoreConfig};
use crate::watched::Watched;

/// Requests that run when the server is told to stop get this long, where not configured.
const GRACE: Duration = Duration::from_secs(10);
/// Between two looks whether a collection is due, also after one that failed.
const COLLECT_PAUSE: Duration = Duration::from_secs(60);
/// Between two looks for uploads that nobody finishes.
const SWEEP_PAUSE: Duration = Duration::from_secs(60 * 60);
/// A client has this long for its TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A client has this long for a request's head, and between two requests.
const HEAD: Duration = Duration::from_secs(120);
/// Bytes of a connection that wait to be sent, and of a request that are read at once. Much
/// more than what a blob is read by (`handlers::file_body`) would be memory without use.
const WAITING: usize = 128 << 10;
/// Connections that may wait for their `accept`.
const BACKLOG: u32 = 1024;
/// Pause after an `accept` that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a registry serves, and to whom.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// The folder of its files; made if missing, unless `read_only`. Not used with `storage`.
    pub root: PathBuf,
    /// An object store instead, which other servers may use at the same time.
    pub storage: Option<StoreConfig>,
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
    /// Be a cache of another registry.
    pub proxy: Option<ProxyConfig>,
    /// How much may be stored.
    pub quota: Quota,
    /// Collect garbage so often; never if absent.
    pub collect: Option<CollectConfig>,
    /// `HOST:PORT` for `/metrics`, `/healthz` and `/readyz` alone, without authentication.
    pub metrics: Option<String>,
    /// How long to go on accepting, no longer ready, when told to stop.
    pub drain: Duration,
    /// How long requests may run that run then; ten seconds if absent.
    pub grace: Option<Duration>,
    /// How long a request waits for another one that has its upload; ten seconds if absent.
    pub patience: Option<Duration>,
}

/// Garbage collections beside the serving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CollectConfig {
    /// From one to the next.
    pub interval: Duration,
    /// How long blobs without a manifest, and manifests without a tag, are kept.
    pub grace: Duration,
    /// Also remove manifests that no tag, index or subject holds.
    pub untagged: bool,
}

/// Whom a request came from; an extension of every request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    pub(crate) tls: bool,
}

impl Peer {
    /// Who connected by IPv4 to a socket of both families looks like an IPv6 address.
    fn new(address: SocketAddr, tls: bool) -> Self {
        let address = match address.ip().to_canonical() {
            ip if ip.is_ipv4() => SocketAddr::new(ip, address.port()),
            _ => address,
        };
        Self { address, tls }
    }
}

/// A registry that listens but does not answer yet.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<Certificate>,
    app: Arc<App>,
    metrics: Option<TcpListener>,
    collect: Option<CollectConfig>,
    drain: Duration,
    grace: Duration,
}

/// Its files are read again when they change.
type Certificate = Arc<Watched<TlsAcceptor>>;

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
        let metrics = config.metrics.clone();
        let (collect, drain) = (config.collect, config.drain);
        let grace = config.grace.unwrap_or(GRACE);
        let opened = tokio::task::spawn_blocking(move || open(&config)).await;
        let opened = opened.map_err(|error| RegistrydError::Internal(error.to_string()))?;
        let (app, tls) = opened?;
        let failed = |address: &str, source| RegistrydError::Listen {
            address: address.to_owned(),
            source,
        };
        let listener = match listen.strip_prefix(':') {
            Some(port) => listen_everywhere(port).await,
            None => TcpListener::bind(listen).await,
        };
        let listener = listener.map_err(|source| failed(listen, source))?;
        let address = listener.local_addr();
        let address = address.map_err(|source| failed(listen, source))?;
        let metrics = match metrics {
            Some(own) => {
                let bound = TcpListener::bind(&own).await;
                Some(bound.map_err(|source| failed(&own, source))?)
            }
            None => None,
        };
        Ok(Self {
            listener,
            address,
            tls,
            app: Arc::new(app),
            metrics,
            collect,
            drain,
            grace,
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

    /// Where the counters are served alone, if they are.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.as_ref()?.local_addr().ok()
    }

    /// Serves until `shutdown` is done: then it is no longer ready, but accepts for a while
    /// (`drain`), and requests that run after that are given some time more (`grace`).
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let router = Router::new()
            .fallback(handlers::handle)
            .with_state(self.app.clone());
        let (stop, stopped) = watch::channel(false);
        let mut beside = JoinSet::new();
        if let Some(listener) = self.metrics {
            let operations = Router::new()
                .fallback(operations::handle)
                .with_state(self.app.clone());
            beside.spawn(async move {
                if let Err(error) = axum::serve(listener, operations).await {
                    tracing::error!(%error, "the metrics are not served any more");
                }
            });
        }
        let mut collecting = JoinSet::new();
        if let Some(collect) = self.collect {
            collecting.spawn(collections(self.app.clone(), collect, stopped.clone()));
        }
        if !self.app.read_only {
            beside.spawn(sweeps(self.app.clone()));
        }
        let mut connections = JoinSet::new();
        let (app, drain) = (self.app.clone(), self.drain);
        let mut shutdown = std::pin::pin!(async move {
            shutdown.await;
            app.stopping.store(true, Ordering::Relaxed);
            app.storage.stop_collecting();
            tracing::info!("stopping");
            tokio::time::sleep(drain).await;
        });
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, peer)) => {
                        let tls = self.tls.clone();
                        let from = Peer::new(peer, tls.is_some());
                        let router = router.clone().layer(Extension(from));
                        let (stopped, app) = (stopped.clone(), self.app.clone());
                        connections.spawn(async move {
                            let _counted = app.metrics.connected();
                            if let Err(error) = connection(stream, tls, router, stopped).await {
                                tracing::debug!(peer = %from.address, error, "connection failed");
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
        // A collection ends after what it is at, and gives back the right to collect.
        let all = async {
            while connections.join_next().await.is_some() {}
            while collecting.join_next().await.is_some() {}
        };
        if tokio::time::timeout(self.grace, all).await.is_err() {
            tracing::warn!(
                connections = connections.len(),
                "requests cut off at shutdown"
            );
            connections.shutdown().await;
        }
    }
}

/// Collects garbage from time to time.
async fn collections(app: Arc<App>, config: CollectConfig, mut stopped: watch::Receiver<bool>) {
    let policy = Policy {
        dry_run: false,
        grace: config.grace,
        untagged: config.untagged,
    };
    let pause = config.interval.min(COLLECT_PAUSE);
    loop {
        let (storage, started) = (app.storage.clone(), std::time::Instant::now());
        let outcome = tokio::task::spawn_blocking(move || {
            if !is_due(storage.last_collected()?, config.interval) {
                return Ok(None);
            }
            let collected = storage.collect(policy)?;
            storage.note_collected()?;
            Ok(Some(collected))
        });
        match outcome.await {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(collected))) => {
                let blobs = collected.blobs.len() as u64;
                app.metrics.collected(blobs, collected.bytes);
                tracing::info!(
                    blobs,
                    bytes = collected.bytes,
                    manifests = collected.manifests.len(),
                    elapsed = ?started.elapsed(),
                    "garbage collected"
                );
            }
            Ok(Err(RegistrydError::Collecting(_))) => {
                tracing::info!("another process collects garbage here");
            }
            Ok(Err(error @ RegistrydError::Stopping)) => tracing::info!("{error}"),
            Ok(Err(error)) => tracing::error!(%error, "garbage collection failed"),
            Err(error) => tracing::error!(%error, "garbage collection died"),
        }
        // An error means that the server is gone, which is the end as well.
        let end = tokio::time::timeout(pause, stopped.wait_for(|stopped| *stopped));
        if end.await.is_ok() {
            return;
        }
    }
}

/// Whether so much time has passed since the last collection. An object store's clock may be
/// somewhat ahead of ours; a time far in the future is of one that was wrong.
fn is_due(last: Option<SystemTime>, interval: Duration) -> bool {
    last.is_none_or(|last| match SystemTime::now().duration_since(last) {
        Ok(since) => since >= interval,
        Err(ahead) => ahead.duration() > interval,
    })
}

/// Removes stale uploads from time to time, also where no garbage is collected.
async fn sweeps(app: Arc<App>) {
    loop {
        tokio::time::sleep(SWEEP_PAUSE).await;
        let storage = app.storage.clone();
        match tokio::task::spawn_blocking(move || storage.sweep_uploads()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot look for stale uploads"),
            Err(error) => tracing::error!(%error, "looking for stale uploads died"),
        }
    }
}

/// Listens on all addresses of IPv4, and of IPv6 where there is that.
async fn listen_everywhere(port: &str) -> io::Result<TcpListener> {
    let port: u16 = port
        .parse()
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "invalid port value"))?;
    if !has_ipv6() {
        return TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await;
    }
    let socket = TcpSocket::new_v6()?;
    socket.set_reuseaddr(true)?;
    // What it is otherwise is for the system to say (`net.ipv6.bindv6only`).
    rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
    socket.bind((Ipv6Addr::UNSPECIFIED, port).into())?;
    socket.listen(BACKLOG)
}

/// Whether this machine has IPv6 at all.
fn has_ipv6() -> bool {
    std::net::UdpSocket::bind("[::]:0").is_ok()
}

fn open(config: &Config) -> Result<(App, Option<Certificate>), RegistrydError> {
    let tls = match &config.tls {
        Some((cert, key)) => {
            let files = vec![cert.clone(), key.clone()];
            Some(Arc::new(Watched::open(files, |files| match files {
                [cert, key] => acceptor(cert, key),
                _ => Err(RegistrydError::Internal("no certificate".to_owned())),
            })?))
        }
        None => None,
    };
    let refuse = |reason| Err(RegistrydError::Unsupported(reason));
    let quotas = config.quota != Quota::default();
    match &config.proxy {
        Some(_) if config.read_only => {
            return refuse("a cache has to write: it cannot be read-only");
        }
        Some(_) if quotas => return refuse("a cache has no quota: collect its garbage instead"),
        _ => {}
    }
    if config.collect.is_some() && config.read_only {
        return refuse("a read-only registry does not collect garbage");
    }
    let proxy = config.proxy.as_ref().map(Proxy::open).transpose()?;
    let storage = match &config.storage {
        Some(store) => Storage::connect(store, config.quota)?,
        None => Storage::open(&config.root, config.read_only, config.quota)?,
    };
    let storage = Arc::new(storage);
    // After the storage, which makes the root: the token key may be there.
    let gate = Gate::open(config)?;
    let app = App {
        storage,
        gate,
        read_only: config.read_only,
        proxy: proxy.map(Arc::new),
        metrics: Metrics::default(),
        stopping: AtomicBool::new(false),
        changes: Semaphore::new(handlers::CHANGES),
        patience: config.patience.unwrap_or(LOCK_PATIENCE),
        counts_bytes: config.quota.total.is_some(),
    };
    Ok((app, tls))
}

async fn connection(
    stream: TcpStream,
    tls: Option<Certificate>,
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
    let tls = tls.current().await;
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
        .max_buf_size(WAITING)
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn collections_are_due_by_the_time_of_the_last() {
        let ago = |seconds| SystemTime::now().checked_sub(Duration::from_secs(seconds));
        let hour = Duration::from_secs(3600);
        assert!(is_due(None, hour));
        assert!(is_due(ago(3700), hour));
        assert!(!is_due(ago(60), hour));
        assert!(!is_due(Some(SystemTime::now() + hour / 2), hour));
        assert!(is_due(Some(SystemTime::now() + 2 * hour), hour));
    }

    #[tokio::test]
    async fn a_server_that_stops_ends_its_collection() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config {
            root: folder.path().to_owned(),
            ..Config::default()
        };
        let server = Server::bind("127.0.0.1:0", config).await.unwrap();
        let storage = server.app.storage.clone();
        let repo = crate::names::RepoName::parse("app").unwrap();
        let digest = corten_oci::Digest::of(b"x");
        let data = folder.path().join("blobs/sha256").join(&digest.hex()[..2]);
        let data = data.join(digest.hex());
        std::fs::create_dir_all(&data).unwrap();
        std::fs::write(data.join("data"), b"x").unwrap();
        assert!(storage.link_stored_blob(&repo, &digest).unwrap());
        let policy = Policy {
            grace: Duration::ZERO,
            ..Policy::default()
        };
        server.serve(std::future::ready(())).await;
        let refused = storage.collect(policy);
        assert!(
            matches!(refused, Err(RegistrydError::Stopping)),
            "{refused:?}"
        );
        assert!(storage.has_blob(&repo, &digest).unwrap());
    }

    #[tokio::test]
    async fn all_addresses_are_those_of_both_families() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config {
            root: folder.path().to_owned(),
            ..Config::default()
        };
        let server = Server::bind(":0", config).await.unwrap();
        let port = server.address().port();
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let (_, peer) = server.listener.accept().await.unwrap();
        let peer = Peer::new(peer, false);
        assert_eq!(peer.address, stream.local_addr().unwrap());
        // Where `lo` has an IPv6 address.
        let ipv6 = async {
            let listener = TcpListener::bind("[::1]:0").await?;
            TcpStream::connect(listener.local_addr()?).await
        };
        if ipv6.await.is_ok() {
            let stream = TcpStream::connect(("::1", port)).await.unwrap();
            let (_, peer) = server.listener.accept().await.unwrap();
            let peer = Peer::new(peer, false);
            assert_eq!(peer.address, stream.local_addr().unwrap());
        }
    }

    #[tokio::test]
    async fn not_every_port_is_one() {
        for wrong in ["", "65536", "http", "-1"] {
            let refused = listen_everywhere(wrong).await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput, "{wrong:?}");
        }
    }

    /// The test above in a network namespace where IPv6 sockets are for IPv6 only.
    #[test]
    fn ipv4_is_served_whatever_the_system_says() {
        let prepare = "echo 1 > /proc/sys/net/ipv6/bindv6only && ip link set lo up";
        let inside = |script: &str| {
            let mut command = std::process::Command::new("unshare");
            command.args(["-rn", "sh", "-c", script]);
            command
        };
        let can = inside(prepare).output();
        if !can.is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: no network namespace with IPv6 can be made here");
            return;
        }
        let output = inside(&format!("{prepare} && exec \"$TEST\" --exact \"$NAME\""))
            .env("TEST", std::env::current_exe().unwrap())
            .env(
                "NAME",
                "server::tests::all_addresses_are_those_of_both_families",
            )
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{output:?}"
        );
    }
}
