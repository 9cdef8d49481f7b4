//! A registry that keeps everything in memory and misbehaves when told to.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use corten_oci::{Digest, media_type};
use corten_store::ImageId;
use futures_util::StreamExt as _;
use http::request::Parts;
use http::{Method, StatusCode, header};
use serde_json::json;

use crate::harness::TestStore;

const TOKEN: &str = "the-token";

/// A request as the stub saw it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
    /// A header that settings add.
    pub(crate) key: Option<String>,
    pub(crate) length: usize,
}

#[derive(Default)]
pub(crate) struct Inner {
    pub(crate) address: String,
    pub(crate) blobs: Mutex<HashMap<String, Bytes>>,
    /// By `repository/reference`: media type and bytes.
    pub(crate) manifests: Mutex<HashMap<String, (String, Bytes)>>,
    pub(crate) seen: Mutex<Vec<Seen>>,
    /// Blobs, and manifests (by `repository/reference`), whose transfer ends after so many bytes, so many times.
    pub(crate) cut: Mutex<HashMap<String, (usize, u32)>>,
    /// Blobs that are sent with a wrong byte.
    pub(crate) corrupt: Mutex<HashSet<String>>,
    /// Uploads that fail yet.
    pub(crate) failing_uploads: Mutex<u32>,
    /// The next requests are too many; `Retry-After` of each, empty for none.
    pub(crate) too_many: Mutex<Vec<String>>,
    /// Blobs are elsewhere: at this URL's `/v2/…`.
    pub(crate) elsewhere: Mutex<Option<String>>,
    /// Larger request bodies are refused.
    pub(crate) max_body: Mutex<Option<usize>>,
    /// What chunks have brought.
    pub(crate) chunks: Mutex<Vec<u8>>,
    /// Mounts are refused, not just declined.
    pub(crate) refuse_mounts: Mutex<bool>,
    /// What the API for referrers answers: status, type, body. There is none without.
    pub(crate) referrers: Mutex<Option<(StatusCode, &'static str, String)>>,
    /// Uploads come in chunks, and nothing of them is kept.
    pub(crate) forgetful: Mutex<bool>,
    /// Manifests are refused with this message.
    pub(crate) refusal: Mutex<Option<&'static str>>,
    /// The list of tags has no end; each page has a tag of this length.
    pub(crate) endless_tags: Mutex<Option<usize>>,
    /// What is not there is refused at such length (bytes), and how much of that was sent.
    pub(crate) wordy: Mutex<u64>,
    pub(crate) said: Arc<AtomicU64>,
    /// What the registry calls its manifests (`Docker-Content-Digest`), whatever they are.
    pub(crate) called: Mutex<Option<Digest>>,
    /// The token server is busy: statuses of its next answers, with `Retry-After` (empty for none).
    pub(crate) busy_tokens: Mutex<Vec<(StatusCode, &'static str)>>,
    /// The token is not taken any more once this is asked for, and the server of new ones is busy.
    pub(crate) spent_at: Mutex<Option<String>>,
    /// The next uploads' bodies are too many requests; as `too_many`.
    pub(crate) too_many_uploads: Mutex<Vec<String>>,
    /// Whoever wants in shows the token server this name and password.
    pub(crate) account: Option<(&'static str, &'static str)>,
}

/// A running stub.
#[derive(Clone)]
pub(crate) struct Stub(pub(crate) Arc<Inner>);

impl std::ops::Deref for Stub {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Stub {
    pub(crate) async fn start() -> Self {
        Self::with(Inner::default()).await
    }

    pub(crate) async fn with(inner: Inner) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let stub = Self(Arc::new(Inner { address, ..inner }));
        let app = Router::new().fallback(answer).with_state(stub.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        stub
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Takes over an image of a store; the digests of its layers' blobs.
    pub(crate) fn publish(&self, from: &TestStore, id: &ImageId, repository: &str) -> Vec<Digest> {
        let plan = from.store.images().manifest_for_push(id).unwrap();
        let layers: Vec<Digest> = plan.layers.iter().map(|l| l.digest.clone()).collect();
        for digest in layers.iter().chain([&plan.config]) {
            let bytes = std::fs::read(from.store.blobs().path(digest)).unwrap();
            self.blobs
                .lock()
                .unwrap()
                .insert(digest.to_string(), bytes.into());
        }
        let manifest = (plan.media_type.clone(), Bytes::from(plan.manifest.clone()));
        let mut manifests = self.manifests.lock().unwrap();
        for reference in ["latest", plan.digest.as_str()] {
            manifests.insert(format!("{repository}/{reference}"), manifest.clone());
        }
        layers
    }

    /// Makes `latest` an index of the manifest that is `latest` now.
    pub(crate) fn index(&self, repository: &str, architecture: &str) -> Digest {
        let mut manifests = self.manifests.lock().unwrap();
        let (media_type, bytes) = manifests[&format!("{repository}/latest")].clone();
        let index = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_INDEX,
            "manifests": [{
                "mediaType": media_type,
                "digest": Digest::of(&bytes),
                "size": bytes.len(),
                "platform": { "os": "linux", "architecture": architecture },
            }],
        });
        let bytes = index.to_string().into_bytes();
        let digest = Digest::of(&bytes);
        let entry = (media_type::OCI_INDEX.to_owned(), bytes.into());
        manifests.insert(format!("{repository}/latest"), entry);
        digest
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The requests for a blob.
    pub(crate) fn fetched(&self, digest: &Digest) -> Vec<Seen> {
        let mut seen = self.seen();
        seen.retain(|s| s.method == Method::GET && s.path.ends_with(digest.as_str()));
        seen
    }

    fn blob(&self, digest: &str, range: Option<&str>) -> Response {
        let Some(blob) = self.blobs.lock().unwrap().get(digest).cloned() else {
            return plain(StatusCode::NOT_FOUND, errors("BLOB_UNKNOWN"));
        };
        let start: usize = range.map_or(0, |range| {
            let range = range.strip_prefix("bytes=").unwrap();
            range.trim_end_matches('-').parse().unwrap()
        });
        let mut bytes = blob.to_vec();
        if self.corrupt.lock().unwrap().contains(digest) {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0xff;
        }
        let bytes = bytes.split_off(start);
        let mut response = Response::builder().header(header::CONTENT_LENGTH, bytes.len());
        if range.is_some() {
            let content_range = format!("bytes {start}-{}/{}", blob.len() - 1, blob.len());
            response = response
                .status(StatusCode::PARTIAL_CONTENT)
                .header(header::CONTENT_RANGE, content_range);
        }
        response.body(self.body(digest, bytes)).unwrap()
    }

    /// All of it, unless it is to be cut off.
    fn body(&self, key: &str, bytes: Vec<u8>) -> Body {
        let mut cut = self.cut.lock().unwrap();
        match cut.get_mut(key) {
            Some((after, times)) if *times > 0 => {
                *times -= 1;
                let some = Bytes::from(bytes[..*after].to_vec());
                // A while later, so that what came before has left.
                let broken = async {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    Err(std::io::Error::other("cut off"))
                };
                let pieces = futures_util::stream::iter([Ok(some)]);
                Body::from_stream(pieces.chain(futures_util::stream::once(broken)))
            }
            _ => Body::from(bytes),
        }
    }

    /// A refusal without end, almost.
    fn refuse_at_length(&self, length: u64) -> Response {
        const PIECE: usize = 64 << 10;
        let said = self.said.clone();
        let pieces = (0..length / PIECE as u64).map(move |_| {
            said.fetch_add(PIECE as u64, Ordering::Relaxed);
            Ok::<_, std::io::Error>(Bytes::from(vec![b' '; PIECE]))
        });
        plain(
            StatusCode::BAD_REQUEST,
            Body::from_stream(futures_util::stream::iter(pieces)),
        )
    }

    fn token(&self, authorization: Option<&str>) -> Response {
        if let Some((status, after)) = self.busy_tokens.lock().unwrap().pop() {
            let mut refused = plain(status, "busy");
            if !after.is_empty() {
                let headers = refused.headers_mut();
                headers.insert(header::RETRY_AFTER, after.parse().unwrap());
            }
            return refused;
        }
        let expected = self.account.map(|(user, password)| {
            format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
        });
        if authorization != expected.as_deref() {
            return plain(StatusCode::UNAUTHORIZED, errors("UNAUTHORIZED"));
        }
        plain(StatusCode::OK, json!({ "token": TOKEN }).to_string())
    }
}

fn errors(code: &str) -> String {
    json!({ "errors": [{ "code": code, "message": "said the stub" }] }).to_string()
}

fn plain(status: StatusCode, body: impl Into<Body>) -> Response {
    let response = Response::builder().status(status);
    response.body(body.into()).unwrap()
}

async fn answer(State(stub): State<Stub>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 64 << 20).await;
    handle(&stub, &parts, body.unwrap_or_default())
}

fn handle(stub: &Stub, request: &Parts, body: Bytes) -> Response {
    let head = |name| {
        let value = request.headers.get(name);
        value.map(|value| value.to_str().unwrap().to_owned())
    };
    let (range, authorization) = (head(header::RANGE), head(header::AUTHORIZATION));
    let content_type = head(header::CONTENT_TYPE).unwrap_or_default();
    let (method, path) = (request.method.clone(), request.uri.path().to_owned());
    let query = request.uri.query().unwrap_or_default().to_owned();
    stub.seen.lock().unwrap().push(Seen {
        method: method.clone(),
        path: request.uri.to_string(),
        range: range.clone(),
        authorization: authorization.clone(),
        key: head(header::HeaderName::from_static("x-key")),
        length: body.len(),
    });
    let mut too_many = stub.too_many.lock().unwrap().pop();
    if method == Method::PUT && query.contains("digest=") {
        too_many = too_many.or_else(|| stub.too_many_uploads.lock().unwrap().pop());
    }
    if let Some(after) = too_many {
        let mut refused = plain(StatusCode::TOO_MANY_REQUESTS, errors("TOOMANYREQUESTS"));
        if !after.is_empty() {
            let headers = refused.headers_mut();
            headers.insert(header::RETRY_AFTER, after.parse().unwrap());
        }
        return refused;
    }
    if stub
        .max_body
        .lock()
        .unwrap()
        .is_some_and(|most| body.len() > most)
    {
        return plain(StatusCode::PAYLOAD_TOO_LARGE, "");
    }
    if path == "/token" {
        return stub.token(authorization.as_deref());
    }
    let mut spent_at = stub.spent_at.lock().unwrap();
    let spent = spent_at.take_if(|at| path.ends_with(at.as_str())).is_some();
    if spent {
        *stub.busy_tokens.lock().unwrap() = vec![(StatusCode::SERVICE_UNAVAILABLE, ""); 64];
    }
    if spent || stub.account.is_some() && authorization != Some(format!("Bearer {TOKEN}")) {
        let challenge = format!(
            "Bearer realm=\"http://{}/token\",service=\"stub\"",
            stub.address
        );
        let mut refused = plain(StatusCode::UNAUTHORIZED, errors("UNAUTHORIZED"));
        let headers = refused.headers_mut();
        headers.insert(header::WWW_AUTHENTICATE, challenge.parse().unwrap());
        return refused;
    }
    let rest = path.strip_prefix("/v2/").unwrap();
    if rest.is_empty() {
        return plain(StatusCode::OK, "{}");
    }
    if let Some((repository, reference)) = rest.split_once("/manifests/") {
        let key = format!("{repository}/{reference}");
        let mut manifests = stub.manifests.lock().unwrap();
        if method == Method::PUT {
            if let Some(message) = *stub.refusal.lock().unwrap() {
                let said = json!({ "errors": [{ "code": "DENIED", "message": message }] });
                return plain(StatusCode::FORBIDDEN, said.to_string());
            }
            manifests.insert(key, (content_type, body));
            return plain(StatusCode::CREATED, "");
        }
        let wordy = *stub.wordy.lock().unwrap();
        return match manifests.get(&key) {
            None if wordy > 0 => stub.refuse_at_length(wordy),
            None => plain(StatusCode::NOT_FOUND, errors("MANIFEST_UNKNOWN")),
            Some((media_type, bytes)) => {
                let called = stub.called.lock().unwrap();
                let mut found = Response::builder()
                    .header(header::CONTENT_TYPE, media_type)
                    .header(header::CONTENT_LENGTH, bytes.len());
                if let Some(called) = called.as_ref() {
                    found = found.header("docker-content-digest", called.as_str());
                }
                found.body(stub.body(&key, bytes.to_vec())).unwrap()
            }
        };
    }
    if rest.contains("/referrers/") {
        return match stub.referrers.lock().unwrap().clone() {
            None => plain(StatusCode::NOT_FOUND, "no such API"),
            Some((status, kind, body)) => Response::builder()
                .status(status)
                .header(header::CONTENT_TYPE, kind)
                .body(body.into())
                .unwrap(),
        };
    }
    let endless = *stub.endless_tags.lock().unwrap();
    if let (Some(repository), Some(length)) = (rest.strip_suffix("/tags/list"), endless) {
        let page = stub.seen.lock().unwrap().len();
        let list = json!({ "name": repository, "tags": ["t".repeat(length)] });
        let mut answer = plain(StatusCode::OK, list.to_string());
        let next = format!("</v2/{repository}/tags/list?last={page}>; rel=\"next\"");
        let headers = answer.headers_mut();
        headers.insert(header::LINK, next.parse().unwrap());
        return answer;
    }
    let Some((repository, rest)) = rest.split_once("/blobs/") else {
        return plain(StatusCode::NOT_FOUND, "no such API");
    };
    if method == Method::POST {
        if *stub.refuse_mounts.lock().unwrap() && query.contains("mount=") {
            return plain(StatusCode::FORBIDDEN, errors("DENIED"));
        }
        let location = format!("/v2/{repository}/blobs/uploads/1?state=x");
        let mut begun = plain(StatusCode::ACCEPTED, "");
        let headers = begun.headers_mut();
        headers.insert(header::LOCATION, location.parse().unwrap());
        return begun;
    }
    let forgetful = *stub.forgetful.lock().unwrap();
    if forgetful && method == Method::PUT && !body.is_empty() {
        return plain(StatusCode::PAYLOAD_TOO_LARGE, "");
    }
    if forgetful && method == Method::PATCH {
        let patches = stub.seen.lock().unwrap().clone();
        let patches = patches.iter().filter(|seen| seen.method == Method::PATCH);
        // Not for ever: the test is to end.
        if patches.count() > 50 {
            return plain(StatusCode::BAD_REQUEST, "");
        }
        let mut taken = plain(StatusCode::ACCEPTED, "");
        let headers = taken.headers_mut();
        headers.insert(header::RANGE, "0-0".parse().unwrap());
        return taken;
    }
    if method == Method::PATCH {
        let mut chunks = stub.chunks.lock().unwrap();
        let first = head(header::CONTENT_RANGE).unwrap();
        assert!(first.starts_with(&format!("{}-", chunks.len())), "{first}");
        chunks.extend_from_slice(&body);
        let mut taken = plain(StatusCode::ACCEPTED, "");
        let location = format!("/v2/{repository}/blobs/uploads/1?state=y");
        let headers = taken.headers_mut();
        headers.insert(header::LOCATION, location.parse().unwrap());
        let range = format!("0-{}", chunks.len() - 1);
        headers.insert(header::RANGE, range.parse().unwrap());
        return taken;
    }
    let elsewhere = stub.elsewhere.lock().unwrap().clone();
    if method == Method::GET
        && let Some(base) = elsewhere
    {
        let mut moved = plain(StatusCode::TEMPORARY_REDIRECT, "");
        let location = format!("{base}{path}");
        let headers = moved.headers_mut();
        headers.insert(header::LOCATION, location.parse().unwrap());
        return moved;
    }
    if method == Method::PUT {
        let body = match std::mem::take(&mut *stub.chunks.lock().unwrap()) {
            chunks if chunks.is_empty() => body,
            mut chunks => {
                chunks.extend_from_slice(&body);
                chunks.into()
            }
        };
        let mut failing = stub.failing_uploads.lock().unwrap();
        if *failing > 0 {
            *failing -= 1;
            return plain(StatusCode::SERVICE_UNAVAILABLE, "");
        }
        let digest = query.split_once("digest=").unwrap().1.to_owned();
        assert_eq!(Digest::of(&body).to_string(), digest);
        stub.blobs.lock().unwrap().insert(digest, body);
        return plain(StatusCode::CREATED, "");
    }
    stub.blob(rest, range.as_deref())
}
