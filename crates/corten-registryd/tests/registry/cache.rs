//! A cache of another registry.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use corten_oci::Digest;
use corten_registryd::{Config, ProxyConfig, Quota, Server};
use http::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{Registry, image};

/// Stands before an upstream: counts, slows down, breaks off, lies.
#[derive(Default)]
struct Wire {
    /// Requests, by their first line.
    requests: std::sync::Mutex<Vec<String>>,
    /// Bytes that go on to the client until the connection breaks; 0 for never.
    cut_after: AtomicU64,
    cuts: AtomicUsize,
    /// Answers stop after this many bytes until released; 0 for never.
    hold_after: AtomicU64,
    /// Every answer with a body gets a wrong last byte.
    corrupt: AtomicBool,
    down: AtomicBool,
}

impl Wire {
    async fn before(upstream: SocketAddr) -> (Arc<Self>, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let wire = Arc::new(Self::default());
        let shared = wire.clone();
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                if shared.down.load(Ordering::Relaxed) {
                    continue;
                }
                tokio::spawn(shared.clone().serve(client, upstream));
            }
        });
        (wire, address)
    }

    async fn serve(self: Arc<Self>, client: TcpStream, upstream: SocketAddr) {
        let server = TcpStream::connect(upstream).await.unwrap();
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        let wire = self.clone();
        let requests = tokio::spawn(async move {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
                let text = String::from_utf8_lossy(&buffer[..count]);
                if let Some(line) = text.lines().next() {
                    wire.requests.lock().unwrap().push(line.to_owned());
                }
                if to_server.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
        });
        let mut sent = 0;
        let mut buffer = vec![0; 16 << 10];
        while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
            sent += count as u64;
            let hold = |limit: u64| limit > 0 && sent > limit;
            while hold(self.hold_after.load(Ordering::Relaxed)) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let cut = self.cut_after.load(Ordering::Relaxed);
            if cut > 0 && sent > cut && self.cuts.load(Ordering::Relaxed) > 0 {
                self.cuts.fetch_sub(1, Ordering::Relaxed);
                break;
            }
            if self.corrupt.load(Ordering::Relaxed) && sent > 100_000 {
                buffer[count - 1] ^= 1;
            }
            if self.down.load(Ordering::Relaxed)
                || to_client.write_all(&buffer[..count]).await.is_err()
            {
                break;
            }
        }
        requests.abort();
    }

    fn count(&self, part: &str) -> usize {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter(|line| line.contains(part)).count()
    }
}

struct Cached {
    upstream: Registry,
    wire: Arc<Wire>,
    cache: Registry,
}

async fn cached(ttl: Duration) -> Cached {
    let upstream = Registry::start().await;
    let (wire, address) = Wire::before(upstream.address).await;
    let folder = tempfile::tempdir().unwrap();
    let cache = Registry::with(config(folder.path(), address, ttl)).await;
    Cached {
        upstream,
        wire,
        cache: cache.owning(folder),
    }
}

fn config(folder: &Path, upstream: SocketAddr, ttl: Duration) -> Config {
    Config {
        root: folder.join("cache"),
        proxy: Some(ProxyConfig {
            upstream: format!("http://{upstream}"),
            ttl: Some(ttl),
            ..ProxyConfig::default()
        }),
        ..Config::default()
    }
}

const LONG: Duration = Duration::from_secs(3600);

/// Bytes that are not all the same.
fn bytes(count: u32) -> Vec<u8> {
    (0..count).map(|n| (n % 251) as u8).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_fetched_once_is_here() {
    let Cached {
        upstream,
        wire,
        cache,
        ..
    } = cached(LONG).await;
    let digest = upstream.push_image("team/app", "v1", "x").await;
    let manifest = cache.get("/v2/team/app/manifests/v1").await;
    let manifest = manifest.expect(StatusCode::OK);
    assert_eq!(manifest.header("docker-content-digest"), digest.to_string());
    let layer = manifest.json()["layers"][0]["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = format!("/v2/team/app/blobs/{layer}");
    let size = cache.head(&path).await.header("content-length").to_owned();
    let there = upstream.get(&path).await.body;
    assert_eq!(size, there.len().to_string());
    for _ in 0..3 {
        assert_eq!(cache.get(&path).await.expect(StatusCode::OK).body, there);
        cache
            .get("/v2/team/app/manifests/v1")
            .await
            .expect(StatusCode::OK);
    }
    assert_eq!(wire.count(&format!("GET {path}")), 1);
    assert_eq!(
        wire.count("/manifests/v1"),
        1,
        "a HEAD, and then the digest"
    );
    assert_eq!(wire.count("GET /v2/team/app/manifests/"), 1);
    let tags = cache.get("/v2/team/app/tags/list").await;
    assert_eq!(tags.json()["tags"], serde_json::json!(["v1"]));

    // Without the upstream: all the same, but for what was never asked for.
    wire.down.store(true, Ordering::Relaxed);
    cache
        .get("/v2/team/app/manifests/v1")
        .await
        .expect(StatusCode::OK);
    assert_eq!(cache.get(&path).await.expect(StatusCode::OK).body, there);
    let tags = cache.get("/v2/team/app/tags/list").await;
    assert_eq!(tags.json()["tags"], serde_json::json!(["v1"]));
    let other = cache.get("/v2/team/app/manifests/other").await;
    other.refused(StatusCode::BAD_GATEWAY, "UNKNOWN");
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_are_asked_for_again() {
    let Cached {
        upstream,
        wire,
        cache,
        ..
    } = cached(Duration::ZERO).await;
    let first = upstream.push_image("app", "v", "one").await;
    let digest = async || {
        let answer = cache.get("/v2/app/manifests/v").await;
        answer
            .expect(StatusCode::OK)
            .header("docker-content-digest")
            .to_owned()
    };
    assert_eq!(digest().await, first.to_string());
    assert_eq!(digest().await, first.to_string());
    assert_eq!(
        wire.count("GET /v2/app/manifests/"),
        1,
        "the same is not fetched again"
    );
    assert_eq!(wire.count("HEAD /v2/app/manifests/v"), 2);
    let second = upstream.push_image("app", "v", "two").await;
    assert_eq!(digest().await, second.to_string());
    // Gone there is gone here; but not where the upstream is just not to be reached.
    upstream
        .delete("/v2/app/manifests/v")
        .await
        .expect(StatusCode::ACCEPTED);
    let gone = cache.get("/v2/app/manifests/v").await;
    gone.refused(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN");
    let by_digest = cache.get(&format!("/v2/app/manifests/{second}")).await;
    by_digest.expect(StatusCode::OK);
    upstream.push_image("app", "v", "two").await;
    assert_eq!(digest().await, second.to_string());
    wire.down.store(true, Ordering::Relaxed);
    assert_eq!(digest().await, second.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_miss_of_many_is_fetched_once_and_streams() {
    let Cached {
        upstream,
        wire,
        cache,
        ..
    } = cached(LONG).await;
    let content = bytes(3_000_000);
    let digest = upstream.push_blob("app", &content).await;
    let path = format!("/v2/app/blobs/{digest}");
    wire.hold_after.store(1_500_000, Ordering::Relaxed);
    // One client reads by hand: it gets bytes before the upstream has sent all.
    let mut reader = TcpStream::connect(cache.address).await.unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    reader.write_all(head.as_bytes()).await.unwrap();
    let mut first = vec![0; 500_000];
    let early = tokio::time::timeout(Duration::from_secs(20), reader.read_exact(&mut first));
    early.await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&first[..400]).into_owned();
    assert!(
        text.starts_with("HTTP/1.1 200 ") && text.contains("content-length: 3000000"),
        "{text}"
    );
    let others: Vec<_> = (0..8).map(|_| cache.get(&path)).collect();
    let others = futures_util::future::join_all(others);
    let release = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        wire.hold_after.store(0, Ordering::Relaxed);
    };
    let (others, ()) = tokio::join!(others, release);
    for other in others {
        assert!(other.expect(StatusCode::OK).body == content);
    }
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).await.unwrap();
    first.extend(rest);
    assert!(first.ends_with(&content));
    assert_eq!(wire.count(&format!("GET {path}")), 1);
    assert_eq!(cache.leftovers("app"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_goes_on_when_the_upstream_breaks_off_or_the_client_leaves() {
    let Cached {
        upstream,
        wire,
        cache,
        ..
    } = cached(LONG).await;
    let content = bytes(2_000_000);
    let digest = upstream.push_blob("app", &content).await;
    let path = format!("/v2/app/blobs/{digest}");
    wire.cut_after.store(700_000, Ordering::Relaxed);
    wire.cuts.store(2, Ordering::Relaxed);
    assert!(cache.get(&path).await.expect(StatusCode::OK).body == content);
    assert_eq!(wire.count(&format!("GET {path}")), 3);

    let other = bytes(2_500_000);
    let digest = upstream.push_blob("app", &other).await;
    let path = format!("/v2/app/blobs/{digest}");
    let mut leaves = TcpStream::connect(cache.address).await.unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
    leaves.write_all(head.as_bytes()).await.unwrap();
    leaves.read_exact(&mut [0; 1000]).await.unwrap();
    drop(leaves);
    // A range is answered of what is stored.
    let range = [("range", "bytes=10-19")];
    let part = cache.send("GET", &path, &range, "").await;
    assert_eq!(part.expect(StatusCode::PARTIAL_CONTENT).body, other[10..20]);
    assert_eq!(wire.count(&format!("GET {path}")), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_what_it_should_be_is_neither_stored_nor_ended() {
    let Cached {
        upstream,
        wire,
        cache,
        ..
    } = cached(LONG).await;
    let content = bytes(1_000_000);
    let digest = upstream.push_blob("app", &content).await;
    let path = format!("/v2/app/blobs/{digest}");
    wire.corrupt.store(true, Ordering::Relaxed);
    let mut reader = TcpStream::connect(cache.address).await.unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    reader.write_all(head.as_bytes()).await.unwrap();
    let mut reply = Vec::new();
    let _ = reader.read_to_end(&mut reply).await;
    let body = reply
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap()
        + 4;
    assert!(
        reply.len() - body < content.len(),
        "the last byte must not come"
    );
    assert_eq!((cache.blobs(), cache.leftovers("app")), (0, 0));
    // Whoever goes on where that ended is told what is wrong, and not by fetching it each time.
    for _ in 0..3 {
        let rest = [("range", "bytes=999999-")];
        let told = cache.send("GET", &path, &rest, "").await;
        told.refused(StatusCode::BAD_GATEWAY, "UNKNOWN");
        let told = told.json()["errors"][0]["message"].to_string();
        assert!(told.contains("what came has the digest sha256:"), "{told}");
    }
    assert_eq!(wire.count(&format!("GET {path}")), 1);
    wire.corrupt.store(false, Ordering::Relaxed);
    assert!(cache.get(&path).await.expect(StatusCode::OK).body == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_shows_only_what_it_has_there() {
    let Cached {
        upstream,
        wire,
        cache,
        ..
    } = cached(LONG).await;
    let digest = upstream.push_blob("one", b"shared").await;
    let path = |repo: &str| format!("/v2/{repo}/blobs/{digest}");
    cache.get(&path("one")).await.expect(StatusCode::OK);
    let other = cache.get(&path("two")).await;
    other.refused(StatusCode::NOT_FOUND, "BLOB_UNKNOWN");
    upstream.push_blob("two", b"shared").await;
    assert_eq!(
        cache.get(&path("two")).await.expect(StatusCode::OK).body,
        "shared"
    );
    assert_eq!(
        wire.count(&format!("GET {}", path("two"))),
        0,
        "its bytes are here"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_takes_no_pushes() {
    let Cached { cache, .. } = cached(LONG).await;
    let digest = Digest::of(b"x");
    for (method, path) in [
        ("POST", "/v2/app/blobs/uploads/".to_owned()),
        ("PUT", "/v2/app/manifests/t".to_owned()),
        ("DELETE", format!("/v2/app/blobs/{digest}")),
    ] {
        let answer = cache
            .send(method, &path, &[], image(&digest, &digest).to_string())
            .await;
        answer.refused(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED");
        let message = answer.json()["errors"][0]["message"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(
            message.starts_with("this registry is a cache of 127.0.0.1:"),
            "{message}"
        );
    }
    let folder = tempfile::tempdir().unwrap();
    let plain = config(folder.path(), cache.address, LONG);
    let total = Some(5);
    for config in [
        Config {
            read_only: true,
            ..plain.clone()
        },
        Config {
            quota: Quota {
                total,
                repository: None,
            },
            ..plain.clone()
        },
    ] {
        assert!(Server::bind("127.0.0.1:0", config).await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn referrers_come_from_there() {
    let Cached {
        upstream,
        wire,
        cache,
        ..
    } = cached(LONG).await;
    let subject = upstream.push_image("app", "v", "x").await;
    let empty = upstream.push_blob("app", b"{}").await;
    let mut artifact = image(&empty, &empty);
    artifact["artifactType"] = "application/x-test".into();
    artifact["subject"] =
        crate::harness::descriptor(corten_oci::media_type::OCI_MANIFEST, &subject);
    let pushed = upstream.push_manifest("app", "sig", &artifact).await;
    pushed.expect(StatusCode::CREATED);
    let path = format!("/v2/app/referrers/{subject}?artifactType=application/x-test");
    let expected = upstream.get(&path).await.json()["manifests"].clone();
    assert_eq!(expected.as_array().unwrap().len(), 1);
    assert_eq!(cache.get(&path).await.json()["manifests"], expected);
    cache
        .get("/v2/app/manifests/sig")
        .await
        .expect(StatusCode::OK);
    wire.down.store(true, Ordering::Relaxed);
    assert_eq!(cache.get(&path).await.json()["manifests"], expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_tags_is_believed_as_long_as_a_tag() {
    for (ttl, asked) in [(LONG, 1), (Duration::ZERO, 3)] {
        let Cached {
            upstream,
            wire,
            cache,
            ..
        } = cached(ttl).await;
        upstream.push_image("app", "v1", "x").await;
        upstream.push_image("app", "v2", "x").await;
        for last in ["", "&last=v1", ""] {
            let path = format!("/v2/app/tags/list?n=1{last}");
            cache.get(&path).await.expect(StatusCode::OK);
        }
        assert_eq!(wire.count("/v2/app/tags/list"), asked, "{ttl:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_manifests_are_served_as_such() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 4096];
            let count = stream.read(&mut head).await.unwrap();
            let head = String::from_utf8_lossy(&head[..count]);
            let kind = match &head {
                head if head.contains("/html") => "text/html",
                head if head.contains("/odd") => "application/\\u0001json",
                _ => corten_oci::media_type::OCI_INDEX,
            };
            let version = if head.contains("/old") { 1 } else { 2 };
            let body = format!(
                "{{\"schemaVersion\":{version},\"mediaType\":\"{kind}\",\"manifests\":[]}}"
            );
            let reply = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(reply.as_bytes()).await.unwrap();
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let cache = Registry::with(config(folder.path(), upstream, LONG)).await;
    for tag in ["html", "odd", "old"] {
        let answer = cache.get(&format!("/v2/app/manifests/{tag}")).await;
        answer.expect(StatusCode::BAD_GATEWAY);
    }
    assert_eq!(cache.blobs(), 0);
    let good = cache.get("/v2/app/manifests/good").await;
    good.expect(StatusCode::OK);
}

/// The digest of a signed one is not that of its bytes.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_an_old_kind_is_called_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 4096];
            assert_ne!(stream.read(&mut head).await.unwrap(), 0);
            let body = r#"{"schemaVersion":1,"name":"app","signatures":[{}]}"#;
            let reply = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\ndocker-content-digest: {}\r\n\
                 content-type: application/vnd.docker.distribution.manifest.v1+prettyjws\r\n\
                 connection: close\r\n\r\n{body}",
                body.len(),
                Digest::of(b"payload"),
            );
            stream.write_all(reply.as_bytes()).await.unwrap();
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let cache = Registry::with(config(folder.path(), upstream, LONG)).await;
    let answer = cache.get("/v2/app/manifests/latest").await;
    answer.expect(StatusCode::BAD_GATEWAY);
    let said = answer.json()["errors"][0]["message"].to_string();
    assert!(said.contains("a manifest of an old kind"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_told_how_long_the_upstream_wants_to_be_left_alone() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::Relaxed);
            let mut head = [0; 4096];
            assert_ne!(stream.read(&mut head).await.unwrap(), 0);
            let reply = "HTTP/1.1 429 Too Many Requests\r\nretry-after: 3600\r\n\
                         content-length: 0\r\nconnection: close\r\n\r\n";
            stream.write_all(reply.as_bytes()).await.unwrap();
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let cache = Registry::with(config(folder.path(), upstream, LONG)).await;
    let answer = cache.get("/v2/app/manifests/latest").await;
    answer.expect(StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(answer.header("retry-after"), "3600");
    // And it is left alone, whoever asks.
    let before = asked.load(Ordering::Relaxed);
    for path in ["latest", "other"] {
        let answer = cache.get(&format!("/v2/app/manifests/{path}")).await;
        answer.expect(StatusCode::TOO_MANY_REQUESTS);
        let left: u64 = answer.header("retry-after").parse().unwrap();
        assert!((3500..=3600).contains(&left), "{left}");
    }
    assert_eq!(asked.load(Ordering::Relaxed), before);
    // Registries count by kinds: blobs may come all the same.
    let blob = format!("/v2/app/blobs/{}", Digest::of(b"x"));
    let answer = cache.get(&blob).await;
    answer.expect(StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(asked.load(Ordering::Relaxed), before + 1);
}
