//! `/containers/…`: life cycle and looking at them. Streams are in `streams`.

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Extension, Json, Router};
use corten_engine::containers::{
    CheckpointName, CommitOptions, ContainerUpdate, ListOptions, RemoveOptions, Samples,
    StopOptions, WaitCondition,
};
use corten_engine::{Engine, EngineError, models};
use corten_oci::{ImageRef, Platform};
use futures_util::StreamExt;
use http::{HeaderMap, StatusCode};
use serde::Deserialize;

use super::{Answer, Body, Query, checkpoints, no_content};
use crate::error::ApiError;
use crate::ordered::ordered;
use crate::query::{filters, flag, number, truthy};
use crate::version::ClientVersion;
use crate::{stream, whole};

/// The client starts the container at once. Heard from one in this process only, whose life
/// the engine can see.
const STARTS: &str = "X-Corten-Starts";

pub(super) fn routes() -> Router<Engine> {
    Router::new()
        .route("/containers/json", get(list))
        .route("/containers/create", post(create))
        .route("/containers/prune", post(prune))
        .route("/containers/{name}", delete(remove))
        .route("/containers/{name}/json", get(inspect))
        .route("/containers/{name}/start", post(start))
        .route("/containers/{name}/stop", post(stop))
        .route("/containers/{name}/restart", post(restart))
        .route("/containers/{name}/kill", post(kill))
        .route("/containers/{name}/pause", post(pause))
        .route("/containers/{name}/unpause", post(unpause))
        .route("/containers/{name}/rename", post(rename))
        .route("/containers/{name}/wait", post(wait))
        .route("/containers/{name}/resize", post(resize))
        .route("/containers/{name}/top", get(top))
        .route("/containers/{name}/stats", get(stats))
        .route("/containers/{name}/update", post(update))
        .route("/containers/{name}/changes", get(changes))
        .route("/containers/{name}/export", get(export))
        .route("/commit", post(commit))
}

#[derive(Deserialize)]
struct ListQuery {
    #[serde(default, deserialize_with = "flag")]
    all: bool,
    #[serde(default, deserialize_with = "number")]
    limit: Option<i64>,
    #[serde(default, deserialize_with = "flag")]
    size: bool,
    filters: Option<String>,
}

async fn list(State(engine): State<Engine>, Query(query): Query<ListQuery>) -> Answer {
    let options = ListOptions {
        all: query.all,
        // Docker: zero or less is no limit.
        limit: query
            .limit
            .and_then(|n| u64::try_from(n).ok())
            .filter(|n| *n > 0),
        size: query.size,
        filters: filters(query.filters.as_deref())?,
    };
    Ok(Json(engine.containers().list(options).await?).into_response())
}

#[derive(Deserialize)]
struct CreateQuery {
    name: Option<String>,
    platform: Option<String>,
}

async fn create(
    State(engine): State<Engine>,
    Query(query): Query<CreateQuery>,
    in_process: Option<Extension<crate::InProcess>>,
    headers: HeaderMap,
    body: Body<models::ContainerCreateBody>,
) -> Answer {
    let name = query.name.as_deref().filter(|n| !n.is_empty());
    let platform = platform(query.platform.as_deref())?;
    let starts = in_process.is_some() && headers.contains_key(STARTS);
    let created = engine
        .containers()
        .create(name, body.required()?, platform.as_ref(), starts)
        .await
        .map_err(|error| match error {
            // Not 404: clients take that for a missing image and pull it.
            EngineError::NoSuchNetwork(_) | EngineError::NoSuchContainer(_) => {
                ApiError::bad_parameter(error.to_string())
            }
            error => error.into(),
        })?;
    Ok((StatusCode::CREATED, Json(created)).into_response())
}

/// Parses a `platform` parameter; empty is absent.
pub(super) fn platform(text: Option<&str>) -> Result<Option<Platform>, ApiError> {
    text.filter(|p| !p.is_empty())
        .map(str::parse)
        .transpose()
        .map_err(|error: corten_oci::PlatformError| ApiError::bad_parameter(error.to_string()))
}

async fn export(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Answer {
    let archive = engine.containers().export(&name).await?;
    let kind = "application/octet-stream";
    Ok(stream::archive(kind, archive, &headers))
}

async fn commit(
    State(engine): State<Engine>,
    Query(pairs): Query<Vec<(String, String)>>,
    body: Body<models::ContainerConfig>,
) -> Answer {
    let value = |wanted: &str| {
        let found = pairs.iter().find(|(key, _)| key == wanted);
        found
            .map(|(_, value)| value.as_str())
            .filter(|v| !v.is_empty())
    };
    let container = value("container").unwrap_or_default();
    let options = CommitOptions {
        name: new_name(value("repo"), value("tag"))?,
        author: value("author").unwrap_or_default().to_owned(),
        comment: value("comment").unwrap_or_default().to_owned(),
        changes: changes_of(&pairs),
        config: body.0,
        pause: value("pause").is_none_or(truthy),
    };
    let id = engine.containers().commit(container, options).await?;
    let id = serde_json::json!({ "Id": id });
    Ok((StatusCode::CREATED, Json(id)).into_response())
}

/// Instructions that change a configuration.
pub(super) fn changes_of(pairs: &[(String, String)]) -> Vec<String> {
    let changes = pairs.iter().filter(|(key, _)| key == "changes");
    changes.map(|(_, value)| value.clone()).collect()
}

/// The name of an image that is to be made.
pub(super) fn new_name(
    repo: Option<&str>,
    tag: Option<&str>,
) -> Result<Option<ImageRef>, ApiError> {
    let invalid = |error: corten_oci::ReferenceError| ApiError::bad_parameter(error.to_string());
    let Some(repo) = repo else { return Ok(None) };
    let name: ImageRef = repo.parse().map_err(invalid)?;
    if name.digest().is_some() {
        return Err(ApiError::bad_parameter("cannot import digest reference"));
    }
    let name = match tag {
        Some(tag) => name.with_tag(tag).map_err(invalid)?,
        None => name,
    };
    Ok(Some(name.or_latest()))
}

#[derive(Deserialize)]
struct FiltersQuery {
    filters: Option<String>,
}

async fn prune(State(engine): State<Engine>, Query(query): Query<FiltersQuery>) -> Answer {
    let selected = filters(query.filters.as_deref())?;
    Ok(Json(engine.containers().prune(selected).await?).into_response())
}

#[derive(Deserialize)]
struct RemoveQuery {
    #[serde(default, deserialize_with = "flag")]
    v: bool,
    #[serde(default, deserialize_with = "flag")]
    force: bool,
    #[serde(default, deserialize_with = "flag")]
    link: bool,
}

async fn remove(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    Query(query): Query<RemoveQuery>,
) -> Answer {
    let options = RemoveOptions {
        force: query.force,
        volumes: query.v,
        link: query.link,
    };
    engine.containers().remove(&name, options).await?;
    Ok(no_content())
}

#[derive(Deserialize)]
struct InspectQuery {
    #[serde(default, deserialize_with = "flag")]
    size: bool,
}

async fn inspect(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    version: Option<Extension<ClientVersion>>,
    Query(query): Query<InspectQuery>,
) -> Answer {
    let container = engine.containers().inspect(&name, query.size).await?;
    let mut document = serde_json::to_value(container)
        .map_err(|error| ApiError::internal(format!("container {name}: {error}")))?;
    flatten_bridge(&mut document);
    if version.is_some_and(|Extension(version)| !version.at_least(1, 45)) {
        add_short_id(&mut document);
    }
    whole::complete(&mut document, &whole::container());
    whole::null_if_empty(&mut document, &["/Config/Volumes", "/HostConfig/Binds"]);
    Ok(ordered(document)?.into_response())
}

/// Up to API 1.44 the short id is among the aliases on networks where names are looked up. Older
/// Composes take one without it for not connected.
fn add_short_id(document: &mut serde_json::Value) {
    let id = document["Id"].as_str().and_then(|id| id.get(..12));
    let Some(id) = id.map(str::to_owned) else {
        return;
    };
    let networks = &mut document["NetworkSettings"]["Networks"];
    for place in networks.as_object_mut().into_iter().flatten() {
        let has_names = place.1["DNSNames"].is_array();
        let aliases = &mut place.1["Aliases"];
        if has_names {
            let mut all = aliases.as_array().cloned().unwrap_or_default();
            all.push(id.clone().into());
            *aliases = all.into();
        }
    }
}

/// Up to API 1.51 the default bridge's settings are also found beside `Networks`; today's
/// models no longer have these fields, and many clients still read them.
fn flatten_bridge(document: &mut serde_json::Value) {
    const FIELDS: [&str; 8] = [
        "EndpointID",
        "Gateway",
        "GlobalIPv6Address",
        "GlobalIPv6PrefixLen",
        "IPAddress",
        "IPPrefixLen",
        "IPv6Gateway",
        "MacAddress",
    ];
    let settings = &mut document["NetworkSettings"];
    let bridge = settings["Networks"]["bridge"].clone();
    let Some(settings) = settings.as_object_mut() else {
        return;
    };
    settings.insert("Bridge".to_owned(), "".into());
    for field in FIELDS {
        let number = field.ends_with("PrefixLen");
        let empty = if number { 0.into() } else { "".into() };
        let value = bridge
            .get(field)
            .filter(|v| !v.is_null())
            .cloned()
            .unwrap_or(empty);
        settings.insert(field.to_owned(), value);
    }
}

#[derive(Deserialize)]
struct StartQuery {
    /// Ours: what this start waits for.
    #[serde(default, rename = "depends-on")]
    depends_on: String,
    #[serde(default)]
    checkpoint: String,
    #[serde(default, rename = "checkpoint-dir")]
    checkpoint_dir: String,
}

async fn start(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    Query(query): Query<StartQuery>,
) -> Answer {
    let from = (!query.checkpoint.is_empty()).then(|| CheckpointName {
        name: query.checkpoint,
        directory: checkpoints::directory(query.checkpoint_dir),
    });
    let containers = engine.containers();
    containers.start(&name, &query.depends_on, from).await?;
    Ok(no_content())
}

#[derive(Deserialize)]
struct StopQuery {
    signal: Option<String>,
    #[serde(default, deserialize_with = "number")]
    t: Option<i64>,
}

impl StopQuery {
    fn options(self) -> StopOptions {
        StopOptions {
            signal: self.signal.filter(|s| !s.is_empty()),
            timeout: self.t,
        }
    }
}

async fn stop(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    Query(query): Query<StopQuery>,
) -> Answer {
    let warning = engine.containers().stop(&name, query.options()).await?;
    Ok(warned(no_content(), warning))
}

async fn restart(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    Query(query): Query<StopQuery>,
) -> Answer {
    let warning = engine.containers().restart(&name, query.options()).await?;
    Ok(warned(no_content(), warning))
}

/// An answer that has no room for a warning carries it in a header.
fn warned(mut answer: Response, warning: Option<String>) -> Response {
    let value = warning.and_then(|text| http::HeaderValue::from_str(&text).ok());
    if let Some(value) = value {
        answer.headers_mut().insert("corten-warning", value);
    }
    answer
}

#[derive(Deserialize)]
struct KillQuery {
    signal: Option<String>,
}

async fn kill(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    Query(query): Query<KillQuery>,
) -> Answer {
    let signal = query.signal.as_deref().filter(|s| !s.is_empty());
    let killed = engine.containers().kill(&name, signal).await;
    killed
        .map_err(|error| ApiError::from(error).within(&format!("cannot kill container: {name}")))?;
    Ok(no_content())
}

async fn pause(State(engine): State<Engine>, Path(name): Path<String>) -> Answer {
    engine.containers().pause(&name).await?;
    Ok(no_content())
}

async fn unpause(State(engine): State<Engine>, Path(name): Path<String>) -> Answer {
    engine.containers().unpause(&name).await?;
    Ok(no_content())
}

#[derive(Deserialize)]
struct RenameQuery {
    #[serde(default)]
    name: String,
}

async fn rename(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    Query(query): Query<RenameQuery>,
) -> Answer {
    engine.containers().rename(&name, &query.name).await?;
    Ok(no_content())
}

#[derive(Deserialize)]
struct WaitQuery {
    condition: Option<String>,
}

/// Answers its headers as soon as the wait is registered, the body when the condition is
/// met: clients wait for the headers before they start the container.
async fn wait(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    Query(query): Query<WaitQuery>,
) -> Answer {
    let condition = match query.condition.as_deref() {
        None | Some("" | "not-running") => WaitCondition::NotRunning,
        Some("next-exit") => WaitCondition::NextExit,
        Some("removed") => WaitCondition::Removed,
        Some(other) => {
            return Err(ApiError::bad_parameter(format!(
                "invalid condition: \"{other}\""
            )));
        }
    };
    let met = engine.containers().wait(&name, condition).await?;
    let body = futures_util::stream::once(async move {
        let response = met
            .await
            .unwrap_or_else(|error| models::ContainerWaitResponse {
                status_code: 125,
                error: Some(models::ContainerWaitExitError {
                    message: Some(error.to_string()),
                }),
            });
        serde_json::to_vec(&response).map(bytes::Bytes::from)
    });
    Ok(crate::stream::body("application/json", body))
}

#[derive(Deserialize)]
pub(super) struct ResizeQuery {
    #[serde(default, deserialize_with = "number")]
    h: Option<i64>,
    #[serde(default, deserialize_with = "number")]
    w: Option<i64>,
}

impl ResizeQuery {
    /// Rows and columns.
    pub(super) fn size(&self) -> Result<(u16, u16), ApiError> {
        let parse = |what: &str, value: Option<i64>| {
            value
                .and_then(|n| u16::try_from(n).ok())
                .ok_or_else(|| ApiError::bad_parameter(format!("invalid resize {what}: {value:?}")))
        };
        Ok((parse("height", self.h)?, parse("width", self.w)?))
    }
}

async fn resize(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    Query(query): Query<ResizeQuery>,
) -> Answer {
    let (rows, columns) = query.size()?;
    engine.containers().resize(&name, rows, columns).await?;
    Ok(StatusCode::OK.into_response())
}

#[derive(Deserialize)]
struct TopQuery {
    ps_args: Option<String>,
}

async fn top(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    Query(query): Query<TopQuery>,
) -> Answer {
    let args = query.ps_args.as_deref().filter(|a| !a.is_empty());
    Ok(Json(engine.containers().top(&name, args).await?).into_response())
}

#[derive(Deserialize)]
struct StatsQuery {
    stream: Option<String>,
    #[serde(default, rename = "one-shot", deserialize_with = "flag")]
    one_shot: bool,
}

async fn stats(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    Query(query): Query<StatsQuery>,
) -> Answer {
    let samples = match (query.stream.as_deref().is_none_or(truthy), query.one_shot) {
        (true, true) => {
            return Err(ApiError::bad_parameter(
                "cannot have stream=true and one-shot=true",
            ));
        }
        (true, false) => Samples::Stream,
        (false, true) => Samples::One,
        (false, false) => Samples::Compared,
    };
    let samples = engine.containers().stats(&name, samples).await?;
    let lines = samples.map(|sample| {
        let mut line = serde_json::to_vec(&sample?).map_err(|source| EngineError::Other {
            context: "write samples".to_owned(),
            source: Box::new(source),
        })?;
        line.push(b'\n');
        Ok::<_, EngineError>(bytes::Bytes::from(line))
    });
    Ok(stream::body("application/json", lines))
}

async fn update(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    body: Body<ContainerUpdate>,
) -> Answer {
    let updated = engine.containers().update(&name, body.required()?).await?;
    Ok(Json(updated).into_response())
}

async fn changes(State(engine): State<Engine>, Path(name): Path<String>) -> Answer {
    Ok(Json(engine.containers().changes(&name).await?).into_response())
}
