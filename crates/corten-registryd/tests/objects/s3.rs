//! As much of S3 as a registry needs: objects with tags, ranges and conditional puts, listings
//! in small pages, deletion of many at once. It checks who asks, but no signatures. A second
//! bucket is as GCS has them, which anybody may use (its XML API): that differs from S3 in the
//! conditions of puts, which go by an object's generation, and has no deletion of many.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use http::request::Parts;
use http::{Method, StatusCode, header};
use http_body_util::BodyExt as _;
use percent_encoding::percent_decode_str;
use tokio::sync::Semaphore;

pub(crate) const BUCKET: &str = "test";
/// The one that is GCS's.
pub(crate) const GCS_BUCKET: &str = "test-gcs";
/// What an object of GCS was put as.
const GENERATION: &str = "x-goog-generation";
const IF_GENERATION: &str = "x-goog-if-generation-match";
/// One that is not there.
pub(crate) const MISSING_BUCKET: &str = "test-missing";
pub(crate) const KEY: &str = "the-key";
pub(crate) const SECRET: &str = "the-secret";
/// Entries of one listing's page.
const PAGE: usize = 20;

struct Object {
    bytes: Bytes,
    /// Of the puts, the one that made it.
    generation: u64,
    tag: String,
    changed: SystemTime,
}

impl Object {
    fn new(bytes: Bytes, generation: u64) -> Self {
        Self {
            bytes,
            generation,
            tag: format!("\"{generation}\""),
            changed: SystemTime::now(),
        }
    }
}

#[derive(Default)]
struct Bucket {
    objects: BTreeMap<String, Object>,
    puts: u64,
    held: Vec<Held>,
    /// The prefixes of all pages of lists that were asked for.
    listed: Vec<String>,
}

/// When a request is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    Before,
    /// It is done, but its client does not know.
    After,
}

struct Held {
    method: Method,
    prefix: String,
    when: When,
    gate: Arc<Gate>,
}

/// Where one request waits, so that a test can do something meanwhile.
pub(crate) struct Gate {
    arrived: Semaphore,
    opened: Semaphore,
}

impl Gate {
    /// Until the request is there.
    pub(crate) async fn reached(&self) {
        let arrived = tokio::time::timeout(Duration::from_secs(30), self.arrived.acquire()).await;
        // An error is that no such request has come.
        arrived.unwrap().unwrap().forget();
    }

    pub(crate) fn open(&self) {
        self.opened.add_permits(1);
    }

    async fn wait(&self) {
        self.arrived.add_permits(1);
        self.opened.acquire().await.unwrap().forget();
    }
}

pub(crate) struct S3 {
    address: SocketAddr,
    bucket: Arc<Mutex<Bucket>>,
}

impl S3 {
    /// Serves on threads of its own, until the process ends.
    pub(crate) fn start() -> Self {
        let bucket = Arc::new(Mutex::new(Bucket::default()));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let router = axum::Router::new()
            .fallback(serve)
            .with_state(bucket.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                axum::serve(listener, router).await.unwrap();
            });
        });
        Self { address, bucket }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock().unwrap()
    }

    /// Puts an object there.
    pub(crate) fn put(&self, key: &str) {
        let mut bucket = self.bucket();
        bucket.puts += 1;
        let object = Object::new(Bytes::new(), bucket.puts);
        bucket.objects.insert(key.to_owned(), object);
    }

    /// Makes what is below a prefix older.
    pub(crate) fn age(&self, prefix: &str, by: Duration) {
        for (key, object) in &mut self.bucket().objects {
            if key.starts_with(prefix) {
                object.changed -= by;
            }
        }
    }

    /// Removes what is below a prefix; how much that was.
    pub(crate) fn remove(&self, prefix: &str) -> usize {
        let mut bucket = self.bucket();
        let before = bucket.objects.len();
        bucket.objects.retain(|key, _| !key.starts_with(prefix));
        before - bucket.objects.len()
    }

    /// Holds the next request of a kind.
    pub(crate) fn hold(&self, method: Method, prefix: String, when: When) -> Arc<Gate> {
        let gate = Arc::new(Gate {
            arrived: Semaphore::new(0),
            opened: Semaphore::new(0),
        });
        self.bucket().held.push(Held {
            method,
            prefix,
            when,
            gate: gate.clone(),
        });
        gate
    }

    /// The pages of lists below a prefix that were asked for.
    pub(crate) fn listed(&self, prefix: &str) -> usize {
        let bucket = self.bucket();
        let listed = bucket.listed.iter();
        listed.filter(|listed| listed.starts_with(prefix)).count()
    }

    /// The keys below a prefix, without it.
    pub(crate) fn keys(&self, prefix: &str) -> Vec<String> {
        let bucket = self.bucket();
        let below = bucket.objects.keys();
        below
            .filter_map(|key| key.strip_prefix(prefix))
            .map(str::to_owned)
            .collect()
    }
}

/// Not a test: a store to try things with, until standard input ends.
#[test]
#[ignore = "for use by hand"]
fn stands_alone() {
    println!("{}", S3::start().url());
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
}

fn header_text(parts: &Parts, name: impl header::AsHeaderName) -> Option<String> {
    let value = parts.headers.get(name);
    value.map(|value| value.to_str().unwrap().to_owned())
}

async fn serve(State(bucket): State<Arc<Mutex<Bucket>>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = percent_decode_str(parts.uri.path()).decode_utf8().unwrap();
    let (name, key) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
    let allowed = match (name, header_text(&parts, header::AUTHORIZATION)) {
        (BUCKET, Some(sent)) => sent.starts_with(&format!("AWS4-HMAC-SHA256 Credential={KEY}/")),
        (GCS_BUCKET, sent) => sent.is_none_or(|sent| sent.trim_end() == "Bearer"),
        _ => false,
    };
    if name == MISSING_BUCKET {
        return answer(StatusCode::NOT_FOUND, error("NoSuchBucket"));
    }
    if !allowed {
        return answer(StatusCode::FORBIDDEN, error("AccessDenied"));
    }
    // Both are kept in one map, where their keys do not meet.
    let (gcs, key) = (name == GCS_BUCKET, key.to_owned());
    let query = parts.uri.query().unwrap_or_default();
    let query: BTreeMap<String, String> = url::form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .collect();
    let body = body.collect().await.unwrap().to_bytes();
    let method = parts.method.clone();
    if let Some(gate) = held(&bucket, &method, &key, When::Before) {
        gate.wait().await;
    }
    let answer = act(&bucket, gcs, &parts, &key, &query, body);
    if let Some(gate) = held(&bucket, &method, &key, When::After) {
        gate.wait().await;
    }
    answer
}

fn held(bucket: &Mutex<Bucket>, method: &Method, key: &str, when: When) -> Option<Arc<Gate>> {
    let held = &mut bucket.lock().unwrap().held;
    let found = held.iter().position(|held| {
        held.when == when && held.method == *method && key.starts_with(&held.prefix)
    });
    found.map(|index| held.remove(index).gate)
}

fn act(
    bucket: &Mutex<Bucket>,
    gcs: bool,
    parts: &Parts,
    key: &str,
    query: &BTreeMap<String, String>,
    body: Bytes,
) -> Response {
    let text = |name| header_text(parts, name);
    let mut bucket = bucket.lock().unwrap();
    match (parts.method.clone(), key) {
        (Method::GET, "") => {
            let prefix = query.get("prefix").cloned().unwrap_or_default();
            bucket.listed.push(prefix);
            answer(StatusCode::OK, list(&bucket, query))
        }
        (Method::POST, "") if !gcs && query.contains_key("delete") => {
            let body = String::from_utf8(body.to_vec()).unwrap();
            let keys = body.split("<Key>").skip(1);
            let mut gone = String::new();
            for key in keys.map(|rest| rest.split("</Key>").next().unwrap()) {
                bucket.objects.remove(key);
                gone += &format!("<Deleted><Key>{key}</Key></Deleted>");
            }
            answer(
                StatusCode::OK,
                format!("<DeleteResult>{gone}</DeleteResult>"),
            )
        }
        (Method::PUT, _) => {
            let there = bucket.objects.get(key);
            let refused = if gcs {
                // 0: there must be none.
                let generation = there.map_or(0, |object| object.generation).to_string();
                header_text(parts, IF_GENERATION).is_some_and(|wanted| wanted != generation)
            } else {
                let tag = there.map(|object| &object.tag);
                text(header::IF_NONE_MATCH).is_some_and(|_| tag.is_some())
                    || text(header::IF_MATCH).is_some_and(|wanted| tag != Some(&wanted))
            };
            if refused {
                return answer(StatusCode::PRECONDITION_FAILED, error("PreconditionFailed"));
            }
            bucket.puts += 1;
            let object = Object::new(body, bucket.puts);
            let response = Response::builder()
                .header(header::ETAG, &object.tag)
                .header(GENERATION, object.generation);
            bucket.objects.insert(key.to_owned(), object);
            response.body(Body::empty()).unwrap()
        }
        (Method::DELETE, _) => {
            bucket.objects.remove(key);
            answer(StatusCode::NO_CONTENT, String::new())
        }
        (method @ (Method::GET | Method::HEAD), _) => {
            let Some(object) = bucket.objects.get(key) else {
                return answer(StatusCode::NOT_FOUND, error("NoSuchKey"));
            };
            get(object, text(header::RANGE), method == Method::HEAD)
        }
        (method, _) => panic!("{method} {key} {query:?}"),
    }
}

fn get(object: &Object, range: Option<String>, head: bool) -> Response {
    let size = object.bytes.len();
    let mut response = Response::builder()
        .header(header::ETAG, &object.tag)
        .header(GENERATION, object.generation)
        .header(
            header::LAST_MODIFIED,
            httpdate::fmt_http_date(object.changed),
        );
    let mut bytes = object.bytes.clone();
    if let Some(range) = range {
        let (first, last) = range
            .strip_prefix("bytes=")
            .unwrap()
            .split_once('-')
            .unwrap();
        let first: usize = first.parse().unwrap();
        let last = last.parse::<usize>().unwrap().min(size - 1);
        bytes = bytes.slice(first..=last);
        let sent = format!("bytes {first}-{last}/{size}");
        response = response
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, sent);
    }
    response = response.header(header::CONTENT_LENGTH, bytes.len());
    let body = if head { Body::empty() } else { bytes.into() };
    response.body(body).unwrap()
}

/// ListObjectsV2.
fn list(bucket: &Bucket, query: &BTreeMap<String, String>) -> String {
    let word = |name: &str| query.get(name).map_or("", String::as_str);
    let (prefix, delimiter) = (word("prefix"), word("delimiter"));
    let after = word("continuation-token").max(word("start-after"));
    let mut xml = String::from("<ListBucketResult>");
    let (mut count, mut last) = (0, after.to_owned());
    let mut more = false;
    for (key, object) in &bucket.objects {
        let Some(rest) = key.strip_prefix(prefix) else {
            continue;
        };
        // All keys below a prefix that was listed are done.
        if *key <= last || (last.ends_with('/') && key.starts_with(&last)) {
            continue;
        }
        if count == PAGE {
            more = true;
            break;
        }
        count += 1;
        let split = (!delimiter.is_empty()).then(|| rest.split_once(delimiter));
        if let Some(Some((part, _))) = split {
            let common = format!("{prefix}{part}{delimiter}");
            xml += &format!("<CommonPrefixes><Prefix>{common}</Prefix></CommonPrefixes>");
            last = common;
        } else {
            let changed = time(object.changed);
            let (tag, size) = (object.tag.replace('"', "&quot;"), object.bytes.len());
            xml += &format!(
                "<Contents><Key>{key}</Key><LastModified>{changed}</LastModified><ETag>{tag}</ETag><Size>{size}</Size></Contents>"
            );
            last = key.clone();
        }
    }
    if more {
        xml += &format!("<NextContinuationToken>{last}</NextContinuationToken>");
    }
    xml + &format!("<IsTruncated>{more}</IsTruncated></ListBucketResult>")
}

fn error(code: &str) -> String {
    format!("<Error><Code>{code}</Code>\n<Message>as a test wants it</Message></Error>")
}

fn answer(status: StatusCode, xml: String) -> Response {
    let response = Response::builder().status(status);
    response.body(xml.into()).unwrap()
}

/// As in a listing: with parts of a second.
fn time(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).unwrap().to_string()
}
