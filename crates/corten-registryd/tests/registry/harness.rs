//! A registry of one test, and a client without opinions of its own. Where it keeps things is
//! for `backend` to say: a folder, or an object store that stands for one.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bytes::Bytes;
use corten_oci::{Digest, media_type};
use corten_registryd::{Config, Server};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Stops when dropped.
pub(crate) struct Registry {
    pub(crate) root: PathBuf,
    pub(crate) client: Http,
    _folder: Option<tempfile::TempDir>,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<()>>,
}

impl Registry {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = Config {
            root: folder.path().join("registry"),
            ..Config::default()
        };
        Self::with(config).await.owning(folder)
    }

    pub(crate) async fn with(config: Config) -> Self {
        let root = config.root.clone();
        let config = crate::backend::adapt(config);
        let server = Server::bind("127.0.0.1:0", config).await.unwrap();
        let client = Http::new(server.address());
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(server.serve(async {
            let _ = stopped.await;
        }));
        Self {
            root,
            client,
            _folder: None,
            stop: Some(stop),
            task: Some(task),
        }
    }

    /// Removes the folder with the registry.
    pub(crate) fn owning(mut self, folder: tempfile::TempDir) -> Self {
        self._folder = Some(folder);
        self
    }

    /// Stops, and waits until nothing runs any more.
    pub(crate) async fn stop(&mut self) {
        drop(self.stop.take());
        self.task.take().unwrap().await.unwrap();
    }

    /// How often a blob is stored.
    pub(crate) fn blobs(&self) -> usize {
        crate::backend::blobs(&self.root)
    }

    /// Uploads in progress, and what of others is not gone yet.
    pub(crate) fn leftovers(&self, repo: &str) -> usize {
        crate::backend::leftovers(&self.root, repo)
    }
}

impl std::ops::Deref for Registry {
    type Target = Http;

    fn deref(&self) -> &Http {
        &self.client
    }
}

/// The client.
pub(crate) struct Http {
    pub(crate) address: SocketAddr,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Http {
    pub(crate) fn new(address: SocketAddr) -> Self {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { address, client }
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let uri = format!("http://{}{path}", self.address);
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        let (parts, body) = self.client.request(request).await.unwrap().into_parts();
        let answer = Answer {
            status: parts.status,
            headers: parts.headers,
            body: body.collect().await.unwrap().to_bytes(),
        };
        assert_eq!(
            answer.header("docker-distribution-api-version"),
            "registry/2.0"
        );
        answer
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }

    pub(crate) async fn head(&self, path: &str) -> Answer {
        self.send("HEAD", path, &[], "").await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, &[], "").await
    }

    /// Pushes a blob in one request.
    pub(crate) async fn push_blob(&self, repo: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let path = format!("/v2/{repo}/blobs/uploads/?digest={digest}");
        let answer = self.send("POST", &path, &[], bytes.to_vec()).await;
        answer.expect(StatusCode::CREATED);
        digest
    }

    /// Starts an upload; where it goes on.
    pub(crate) async fn start_upload(&self, repo: &str) -> String {
        let answer = self
            .send("POST", &format!("/v2/{repo}/blobs/uploads/"), &[], "")
            .await;
        answer.expect(StatusCode::ACCEPTED);
        answer.header("location").to_owned()
    }

    pub(crate) async fn push_manifest(&self, repo: &str, reference: &str, json: &Value) -> Answer {
        let kind = json["mediaType"].as_str().unwrap();
        let path = format!("/v2/{repo}/manifests/{reference}");
        self.send("PUT", &path, &[("content-type", kind)], json.to_string())
            .await
    }

    /// Pushes a config, a layer and their manifest, all made of `seed`; the manifest's digest.
    pub(crate) async fn push_image(&self, repo: &str, tag: &str, seed: &str) -> Digest {
        let config = self
            .push_blob(repo, format!("{{\"seed\":\"{seed}\"}}").as_bytes())
            .await;
        let layer = self
            .push_blob(repo, format!("layer {seed}").as_bytes())
            .await;
        let manifest = image(&config, &layer);
        self.push_manifest(repo, tag, &manifest)
            .await
            .expect(StatusCode::CREATED);
        Digest::of(manifest.to_string().as_bytes())
    }

    /// Sends exactly this text as the request's target, and returns the reply's status.
    #[allow(dead_code, reason = "not every test program has hostile paths")]
    pub(crate) async fn raw(&self, method: &str, target: &str) -> u16 {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let text = format!(
            "{method} {target} HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\nconnection: close\r\n\r\nx"
        );
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).await.unwrap();
        let reply = String::from_utf8_lossy(&reply);
        reply.split(' ').nth(1).unwrap_or_default().parse().unwrap()
    }
}

/// A reply, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    #[track_caller]
    pub(crate) fn expect(&self, status: StatusCode) -> &Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }

    /// A refusal with this code.
    #[track_caller]
    pub(crate) fn refused(&self, status: StatusCode, code: &str) {
        self.expect(status);
        assert_eq!(self.json()["errors"][0]["code"], code, "{self:?}");
    }

    /// A header's text, empty if it is missing.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

pub(crate) fn descriptor(kind: &str, digest: &Digest) -> Value {
    json!({"mediaType": kind, "digest": digest, "size": 1})
}

pub(crate) fn image(config: &Digest, layer: &Digest) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": descriptor(media_type::OCI_CONFIG, config),
        "layers": [descriptor(media_type::OCI_LAYER_GZIP, layer)],
    })
}

/// Collects garbage, as the command does.
pub(crate) fn collect(root: &Path, more: &[&str]) -> ExitCode {
    let mut words = vec!["garbage-collect".into()];
    words.extend(crate::backend::flags(root));
    words.extend(more.iter().map(Into::into));
    // In a thread that is none of a runtime's, as the command's own is.
    let collecting = std::thread::spawn(move || corten_registryd::main(words));
    collecting.join().unwrap()
}

/// The files at any depth.
#[allow(dead_code, reason = "one of the two backends has files")]
pub(crate) fn files(folder: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    entries
        .map(|entry| entry.unwrap().path())
        .map(|path| if path.is_dir() { files(&path) } else { 1 })
        .sum()
}
