//! `POST /build`, in Docker's classic form: the context is a tar in the body, or (only for
//! requests of this very process) a directory named by the header `X-Corten-Context`.
//!
//! The answer is the classic builder's stream of JSON lines; with `corten=1` it is the
//! build's own events, `{"corten": …}`, which show parallel steps as such.

mod answers;
mod caches;
mod classic;
mod history;
mod request;
mod shell;

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::post;
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use corten_build::{
    BuildError, BuildEvent, BuildRequest, Context, DockerfileSource, EventSink, FilesOutput,
    NamedContext, Secret,
};
use corten_engine::Engine;
use corten_engine::system::CacheSpace;
use corten_oci::Digest;
use http::{HeaderMap, Request};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{Answer, Query, request_body};
use crate::InProcess;
use crate::auth::credentials;
use crate::error::ApiError;
use crate::query::{filters, flag, number};
use crate::stream::JsonLines;
use classic::Classic;

/// Names the context's directory.
const CONTEXT: &str = "X-Corten-Context";
/// Names a Dockerfile outside it; `-`: the body is its text.
const DOCKERFILE: &str = "X-Corten-Dockerfile";
/// Named contexts.
const CONTEXTS: &str = "X-Corten-Contexts";
/// Outputs of files.
const FILES: &str = "X-Corten-Files";
/// Secrets.
const SECRETS: &str = "X-Corten-Secrets";
/// SSH agents.
const AGENTS: &str = "X-Corten-Ssh";
/// Largest Dockerfile in a body, bytes.
const MAX_DOCKERFILE: usize = 8 << 20;

pub(super) fn routes() -> Router<Engine> {
    Router::new()
        .route("/build", post(build))
        .route("/build/prune", post(prune))
        .merge(history::routes())
        .merge(shell::routes())
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct PruneQuery {
    #[serde(default, deserialize_with = "flag")]
    all: bool,
    filters: Option<String>,
    #[serde(default, deserialize_with = "number")]
    reserved_space: Option<i64>,
    /// What `reserved-space` was called before API 1.48.
    #[serde(default, deserialize_with = "number")]
    keep_storage: Option<i64>,
    #[serde(default, deserialize_with = "number")]
    max_used_space: Option<i64>,
    #[serde(default, deserialize_with = "number")]
    min_free_space: Option<i64>,
}

async fn prune(State(engine): State<Engine>, Query(query): Query<PruneQuery>) -> Answer {
    let selected = filters(query.filters.as_deref())?;
    let bytes = |value: Option<i64>| {
        u64::try_from(value.unwrap_or_default())
            .map_err(|_| ApiError::bad_parameter("an amount of disk space is negative"))
    };
    let space = CacheSpace {
        reserved: bytes(query.reserved_space.or(query.keep_storage))?,
        max_used: bytes(query.max_used_space)?,
        min_free: bytes(query.min_free_space)?,
    };
    Ok(Json(
        engine
            .system()
            .prune_build_cache(query.all, selected, space)
            .await?,
    )
    .into_response())
}

async fn build(
    State(engine): State<Engine>,
    Query(pairs): Query<Vec<(String, String)>>,
    request: Request<axum::body::Body>,
) -> Answer {
    let wish = request::read(&pairs)?;
    let credentials = credentials(request.headers())?;
    let (parts, body) = request.into_parts();
    let mut wanted = wish.request;
    wanted.resources = corten_engine::step_resources(wish.host)?;
    wanted.secrets = secrets(&parts.headers)?;
    wanted.agents = agents(&parts)?;
    wanted.contexts = contexts(&parts)?;
    wanted.files = files(&parts)?;
    caches::read(&parts, &mut wanted)?;
    match directory(&parts.headers)? {
        Some(directory) => {
            in_process(&parts, CONTEXT, "a directory")?;
            wanted.context = Context::Dir(directory);
            if let Some(source) = outside(&parts.headers, body).await? {
                wanted.dockerfile = source;
            }
        }
        None if matches!(wanted.context, Context::Remote(_)) => {}
        None => wanted.context = Context::Tar(Box::new(request_body::reader(body))),
    }
    for (_, address) in &mut wanted.extra_hosts {
        if address == "host-gateway" {
            *address = engine.networks().host_gateway().await?.to_string();
        }
    }
    let builder = engine.builder(credentials);
    if wish.inquiry.is_none() && !wish.events {
        return classic(engine, builder, wanted, wish.quiet).await;
    }
    let (lines, response) = JsonLines::response();
    if let Some(inquiry) = wish.inquiry {
        tokio::spawn(async move {
            match builder.inquire(wanted, inquiry).await {
                Ok(answer) => _ = lines.send(&answers::line(&answer)).await,
                Err(error) => fail(&lines, &error, true).await,
            }
        });
        return Ok(response);
    }
    let mut offered = None;
    if wish.shell {
        let (offer, client) = shell::offer();
        wanted.shell = Some(offer);
        offered = Some(client);
    }
    tokio::spawn(async move {
        if let Some(Err(error)) = run(builder, wanted, View::Events, &lines, offered).await {
            fail(&lines, &error, true).await;
        }
        tidy(&engine).await;
    });
    Ok(response)
}

/// A build that answers as the classic builder does.
async fn classic(
    engine: Engine,
    builder: corten_build::Builder,
    wanted: BuildRequest,
    quiet: bool,
) -> Answer {
    let (lines, unsent) = JsonLines::channel();
    let work = tokio::spawn(async move {
        let view = View::Classic(Classic::new(quiet));
        let done = match run(builder, wanted, view, &lines, None).await {
            Some(Err(error)) if early(&error).is_some() => Err(Failed(error)),
            Some(Err(error)) => {
                fail(&lines, &error, false).await;
                Ok(())
            }
            Some(Ok(_)) | None => Ok(()),
        };
        tidy(&engine).await;
        done
    });
    unsent.answer(work, |failed| failure(&failed.0)).await
}

/// Collects the build cache, before the client sees the end, which may be this process's, too.
async fn tidy(engine: &Engine) {
    if let Err(error) = engine.system().tidy_build_cache().await {
        tracing::warn!(%error, "the build cache is not collected");
    }
}

/// A build that failed for what the classic builder finds before its first step: as long as
/// nothing was said, the status tells.
struct Failed(BuildError);

/// The status that the classic builder gives to errors before the first step.
fn early(error: &BuildError) -> Option<fn(String) -> ApiError> {
    match error {
        BuildError::Syntax { .. }
        | BuildError::NothingToBuild
        | BuildError::NoSuchTarget { .. }
        | BuildError::Invalid(_)
        | BuildError::Checks(_) => Some(ApiError::bad_parameter),
        BuildError::Dockerfile { .. } | BuildError::Context { .. } => Some(ApiError::internal),
        _ => None,
    }
}

impl From<Failed> for ApiError {
    fn from(failed: Failed) -> Self {
        let make = early(&failed.0).unwrap_or(Self::internal);
        make(failed.0.to_string())
    }
}

/// Contents of secrets, by id, in base64.
fn secrets(headers: &HeaderMap) -> Result<BTreeMap<String, Secret>, ApiError> {
    let Some(value) = headers.get(SECRETS) else {
        return Ok(BTreeMap::new());
    };
    let bad = || ApiError::bad_parameter(format!("{SECRETS}: not what it should be"));
    let encoded: BTreeMap<String, String> =
        serde_json::from_slice(value.as_bytes()).map_err(|_| bad())?;
    encoded
        .into_iter()
        .map(|(id, text)| {
            let bytes = STANDARD.decode(text).map_err(|_| bad())?;
            Ok((id, Secret::new(bytes)))
        })
        .collect()
}

/// Sockets of agents, by id.
fn agents(parts: &http::request::Parts) -> Result<BTreeMap<String, PathBuf>, ApiError> {
    let Some(value) = parts.headers.get(AGENTS) else {
        return Ok(BTreeMap::new());
    };
    in_process(parts, AGENTS, "a socket")?;
    serde_json::from_slice(value.as_bytes())
        .map_err(|error| ApiError::bad_parameter(format!("{AGENTS}: {error}")))
}

/// What a client says of a named context.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Named {
    Directory(PathBuf),
    Image(String),
    /// A repository or a file that is elsewhere.
    Url(String),
    Layout {
        dir: PathBuf,
        tag: Option<String>,
        digest: Option<Digest>,
    },
}

fn contexts(parts: &http::request::Parts) -> Result<BTreeMap<String, NamedContext>, ApiError> {
    let Some(value) = parts.headers.get(CONTEXTS) else {
        return Ok(BTreeMap::new());
    };
    let bad = |error: String| ApiError::bad_parameter(format!("{CONTEXTS}: {error}"));
    let named: BTreeMap<String, Named> =
        serde_json::from_slice(value.as_bytes()).map_err(|error| bad(error.to_string()))?;
    named
        .into_iter()
        .map(|(name, named)| {
            let context = match named {
                Named::Image(image) => {
                    let parsed = image.parse().map_err(|e| bad(format!("{image}: {e}")))?;
                    NamedContext::Image(parsed)
                }
                Named::Directory(path) => {
                    in_process(parts, CONTEXTS, "a directory")?;
                    NamedContext::Files(Context::Dir(path))
                }
                Named::Url(url) => NamedContext::Files(Context::Remote(url)),
                Named::Layout { dir, tag, digest } => {
                    in_process(parts, CONTEXTS, "a directory")?;
                    NamedContext::Layout { dir, tag, digest }
                }
            };
            Ok((name, context))
        })
        .collect()
}

fn files(parts: &http::request::Parts) -> Result<Vec<FilesOutput>, ApiError> {
    let Some(value) = parts.headers.get(FILES) else {
        return Ok(Vec::new());
    };
    in_process(parts, FILES, "files to be written")?;
    let bad = |error: String| ApiError::bad_parameter(format!("{FILES}: {error}"));
    let files: Vec<(String, PathBuf)> =
        serde_json::from_slice(value.as_bytes()).map_err(|error| bad(error.to_string()))?;
    files
        .into_iter()
        .map(|(kind, path)| match kind.as_str() {
            "directory" => Ok(FilesOutput::Directory(path)),
            "tar" => Ok(FilesOutput::Tar(path)),
            "stdout" => Ok(FilesOutput::Stdout),
            other => Err(bad(format!("unknown kind {other}"))),
        })
        .collect()
}

/// Only a client in the engine's own process may name paths of the host.
fn in_process(parts: &http::request::Parts, header: &str, what: &str) -> Result<(), ApiError> {
    if parts.extensions.get::<InProcess>().is_some() {
        return Ok(());
    }
    Err(ApiError::forbidden(format!(
        "{header}: only a client in the engine's own process may name {what}"
    )))
}

fn directory(headers: &HeaderMap) -> Result<Option<PathBuf>, ApiError> {
    let Some(value) = headers.get(CONTEXT) else {
        return Ok(None);
    };
    absolute(value.as_bytes(), CONTEXT).map(Some)
}

fn absolute(bytes: &[u8], name: &str) -> Result<PathBuf, ApiError> {
    let path = PathBuf::from(std::ffi::OsStr::from_bytes(bytes));
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(ApiError::bad_parameter(format!(
            "{name}: not an absolute path: {}",
            path.display()
        )))
    }
}

/// A Dockerfile that is not in the context.
async fn outside(
    headers: &HeaderMap,
    body: axum::body::Body,
) -> Result<Option<DockerfileSource>, ApiError> {
    let Some(value) = headers.get(DOCKERFILE) else {
        return Ok(None);
    };
    if value.as_bytes() != b"-" {
        return Ok(Some(DockerfileSource::File(absolute(
            value.as_bytes(),
            DOCKERFILE,
        )?)));
    }
    let bytes = axum::body::to_bytes(body, MAX_DOCKERFILE)
        .await
        .map_err(|error| ApiError::bad_parameter(format!("the Dockerfile: {error}")))?;
    let text = String::from_utf8(bytes.to_vec())
        .map_err(|_| ApiError::bad_parameter("the Dockerfile is not UTF-8"))?;
    Ok(Some(DockerfileSource::Inline(text)))
}

/// How events become lines.
enum View {
    Events,
    Classic(Classic),
}

/// A line that is an event.
#[derive(Serialize)]
struct Told {
    corten: BuildEvent,
}

impl View {
    async fn tell(&mut self, event: BuildEvent, lines: &JsonLines) {
        match self {
            Self::Events => _ = lines.send(&Told { corten: event }).await,
            Self::Classic(classic) => {
                for line in classic.event(event) {
                    lines.send(&line).await;
                }
            }
        }
    }
}

/// Builds, telling the client; `None` when the client left, which ends the build.
async fn run(
    builder: corten_build::Builder,
    request: BuildRequest,
    mut view: View,
    lines: &JsonLines,
    mut shell: Option<shell::Offered>,
) -> Option<Result<Digest, BuildError>> {
    let (send, mut receive) = mpsc::unbounded_channel();
    // The sink is dropped with the build, which ends the channel.
    let send = Arc::new(Mutex::new(send));
    let sink: EventSink = Arc::new(move |event| {
        let sender = send.lock().unwrap_or_else(PoisonError::into_inner);
        if sender.send(event).is_err() {
            tracing::trace!("a build's event came after its end");
        }
    });
    let mut building = std::pin::pin!(builder.build(request, sink));
    let outcome = loop {
        tokio::select! {
            biased;
            Some(event) = receive.recv() => {
                view.tell(event, lines).await;
            }
            opened = opened(&mut shell) => {
                lines.send(&json!({ "corten_shell": opened })).await;
            }
            outcome = &mut building => break outcome,
            () = lines.closed() => return None,
        }
    };
    while let Ok(event) = receive.try_recv() {
        view.tell(event, lines).await;
    }
    Some(outcome)
}

/// Resolves when a shell is open that was asked for.
async fn opened(shell: &mut Option<shell::Offered>) -> shell::Opened {
    match shell {
        Some(shell) => shell.opened().await,
        None => std::future::pending().await,
    }
}

async fn fail(lines: &JsonLines, error: &BuildError, events: bool) {
    let report = error.report();
    if !report.is_empty() {
        let line = if events {
            json!({ "corten_report": report })
        } else {
            json!({ "stream": format!("{}\n", report.trim_end()) })
        };
        lines.send(&line).await;
    }
    lines.send(&failure(error)).await;
}

/// The last line of a build that failed.
fn failure(error: &BuildError) -> Value {
    let message = error.to_string();
    let mut detail = json!({ "message": message });
    if let Some(code) = error.exit_code() {
        detail["code"] = json!(code);
    }
    json!({ "errorDetail": detail, "error": message })
}
