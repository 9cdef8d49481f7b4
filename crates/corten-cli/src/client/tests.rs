//! The client against a small server on a socket.

use std::convert::Infallible;

use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use super::*;
use crate::globals::TlsFlags;

async fn answer(
    mut request: Request<Incoming>,
) -> std::result::Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path_and_query().unwrap().to_string();
    let body = |text: &str| Full::new(Bytes::from(text.to_owned()));
    let response = match path.as_str() {
        "/_ping" => Response::new(body("OK")),
        "/missing" => {
            let mut r = Response::new(body("{\"message\":\"No such container: x\"}"));
            *r.status_mut() = StatusCode::NOT_FOUND;
            r
        }
        "/plain" => {
            let mut r = Response::new(body("page not found\n"));
            *r.status_mut() = StatusCode::NOT_FOUND;
            r
        }
        "/lines" => Response::new(body("{\"a\":1}\r\n{\"a\":2}{\"a\":3}\n\n{\"a\":4}")),
        "/attach" => {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut io = TokioIo::new(upgrade.await.unwrap());
                let mut got = Vec::new();
                io.read_to_end(&mut got).await.unwrap();
                io.write_all(b"got ").await.unwrap();
                io.write_all(&got).await.unwrap();
                io.shutdown().await.unwrap();
            });
            Response::builder()
                .status(101)
                .header("Connection", "Upgrade")
                .header("Upgrade", "tcp")
                .header("Content-Type", "application/vnd.docker.multiplexed-stream")
                .body(body(""))
                .unwrap()
        }
        other => Response::new(body(other)),
    };
    Ok(response)
}

use hyper_util::rt::TokioIo;

async fn client() -> (tempfile::TempDir, Client) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service_fn(answer))
                    .with_upgrades(),
            );
        }
    });
    (dir, Client::new(Target::Unix(path)))
}

/// A server that answers each connection with `text` once it has read a request's head, and
/// closes; its other words stay unread.
async fn hasty(text: &'static str) -> (tempfile::TempDir, Client) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 1024];
            let _ = stream.read(&mut head).await.unwrap();
            stream.write_all(text.as_bytes()).await.unwrap();
        }
    });
    (dir, Client::new(Target::Unix(path)))
}

fn pieces(count: usize) -> impl futures_util::Stream<Item = io::Result<Bytes>> + Send + 'static {
    futures_util::stream::iter((0..count).map(|_| Ok(Bytes::from(vec![0; 64 << 10]))))
}

#[tokio::test]
async fn an_answer_before_the_body_was_read_is_heard() {
    let (_dir, client) = hasty(
        "HTTP/1.1 400 Bad Request\r\nContent-Length: 23\r\nConnection: close\r\n\r\n\
         {\"message\":\"no such x\"}",
    )
    .await;
    for _ in 0..20 {
        let call = client
            .post("/x")
            .body_stream("application/x-tar", pieces(64));
        let error = call.send().await.unwrap_err().to_string();
        assert_eq!(error, "Error response from daemon: no such x");
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_the_reason() {
    let (_dir, client) = client().await;
    let broken = || io::Error::new(io::ErrorKind::IsADirectory, "read /tmp: is a directory");
    let body = futures_util::stream::once(async move { Err(broken()) });
    let call = client.post("/x").body_stream("application/x-tar", body);
    let error = call.send().await.unwrap_err().to_string();
    assert_eq!(error, "read /tmp: is a directory");
}

#[tokio::test]
async fn an_answer_that_ends_early_says_why() {
    let (_dir, client) = hasty(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-corten-failure\r\n\r\n\
         3\r\nabc\r\n0\r\nx-corten-failure: blob x is damaged\r\n\r\n",
    )
    .await;
    let mut reader = client.get("/x").send().await.unwrap().reader();
    assert_eq!(reader.next().await.unwrap().unwrap(), "abc");
    let error = reader.next().await.unwrap_err().to_string();
    assert_eq!(error, "Error response from daemon: blob x is damaged");
}

#[tokio::test]
async fn requests_and_refusals() {
    let (_dir, client) = client().await;
    for _ in 0..3 {
        assert_eq!(
            client
                .get("/_ping")
                .send()
                .await
                .unwrap()
                .bytes()
                .await
                .unwrap(),
            "OK"
        );
    }
    let refused = client.get("/missing").done().await.unwrap_err();
    assert!(refused.is_not_found());
    assert_eq!(
        refused.to_string(),
        "Error response from daemon: No such container: x"
    );
    let refused = client.get("/plain").done().await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "Error response from daemon: page not found"
    );
    let echoed = client
        .get(format!("/{}", component("a/b c")))
        .query("x", "1&2")
        .flag("no", false)
        .flag("all", true)
        .filters(&["label=a=b", "Label=c"])
        .send()
        .await
        .unwrap()
        .bytes()
        .await
        .unwrap();
    assert_eq!(
        std::str::from_utf8(&echoed).unwrap(),
        "/a%2Fb%20c?x=1%262&all=1&filters=%7B%22label%22%3A%7B%22a%3Db%22%3Atrue%2C%22c%22%3Atrue%7D%7D"
    );
}

#[tokio::test]
async fn values_one_by_one() {
    let (_dir, client) = client().await;
    let mut lines = client.get("/lines").lines().await.unwrap();
    let mut seen = Vec::new();
    while let Some(value) = lines.next::<serde_json::Value>().await.unwrap() {
        seen.push(value["a"].as_i64().unwrap());
    }
    assert_eq!(seen, [1, 2, 3, 4]);
}

#[tokio::test]
async fn hijacking_and_half_closing() {
    let (_dir, client) = client().await;
    let mut hijacked = client.post("/attach").hijack().await.unwrap();
    assert_eq!(hijacked.multiplexed, Some(true));
    hijacked.io.write_all(b"input").await.unwrap();
    hijacked.io.shutdown().await.unwrap();
    let mut out = String::new();
    hijacked.io.read_to_string(&mut out).await.unwrap();
    assert_eq!(out, "got input");
}

#[tokio::test]
async fn nobody_there() {
    let client = Client::new(Target::Unix("/nonexistent/docker.sock".into()));
    assert_eq!(
        client.get("/").done().await.unwrap_err().to_string(),
        "Cannot connect to the Docker daemon at unix:///nonexistent/docker.sock. Is the docker daemon running?"
    );
}

#[test]
fn hosts() {
    let parse = |text: &str| match Target::parse(text, &TlsFlags::default()) {
        Ok(target) => target.to_string(),
        Err(error) => error.to_string(),
    };
    for (text, expected) in [
        ("unix:///run/x.sock", "unix:///run/x.sock"),
        ("tcp://1.2.3.4", "tcp://1.2.3.4:2375"),
        ("tcp://[::1]:99/base/", "tcp://[::1]:99/base"),
        ("tcp://:2375", "tcp://localhost:2375"),
        ("host:1", "tcp://host:1"),
        ("tcp://a:b", "unable to parse docker host `tcp://a:b`"),
        ("foo://x", "unable to parse docker host `foo://x`"),
        (
            "ssh://x",
            "connections of the form ssh:// are not offered; use unix:// or tcp://",
        ),
    ] {
        assert_eq!(parse(text), expected, "{text}");
    }
}
