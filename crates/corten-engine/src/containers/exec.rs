//! Further processes in running containers.
//!
//! The container's supervisor executes them, and knows their state from their start on for as long as
//! it lives; a row tells which container an instance belongs to, what it is until it is started, and
//! how it ended after that.

use std::os::fd::AsFd;

use bollard_stubs::models::{ExecConfig, ExecInspectResponse, IdResponse, ProcessConfig};
use corten_db::Durability;
use corten_supervisor::client::{Client, ClientError};
use corten_supervisor::protocol::{ExecSpec, Refusal};
use corten_supervisor::{Size, Streams, cannot_start};
use rusqlite::{Connection, OptionalExtension, params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;

use super::attach::framed;
use super::row::{Container, Status};
use super::{Attached, ExecForm, ExecStart, StreamKind, refused_by, state};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::events::{self, Kind};
use crate::parse::{bad, names, time};
use crate::spec;
use crate::supervise::rooted;

/// How long rows of ended instances are kept at least, counted from their making.
const KEPT_NANOS: i64 = 60 * 60 * 1_000_000_000;

type Result<T> = std::result::Result<T, EngineError>;

/// What is kept of an instance; what it is to execute only until it is started. Whoever does not know
/// of the rest reads the first.
#[derive(Serialize)]
struct Kept<'a> {
    #[serde(flatten)]
    config: &'a ExecConfig,
    /// Which run of its container it was made for: when that one started.
    #[serde(rename = "CortenRun")]
    run: i64,
    #[serde(rename = "CortenSpec")]
    spec: &'a ExecSpec,
}

/// An exec instance's row.
struct Row {
    container: String,
    /// [`Kept`].
    text: String,
    config: ExecConfig,
    /// It was made in its container's present run, and nobody has written down that it was started.
    waits: bool,
    /// Its container is.
    paused: bool,
    pid: i64,
    exit_code: Option<i64>,
}

fn get(c: &Connection, id: &str) -> Result<Row> {
    let mut statement = c.prepare_cached(
        "SELECT e.container, e.config, e.status = 'created' AND c.status IN ('running', 'paused'), \
         e.pid, e.exit_code, c.started, c.status = 'paused' \
         FROM execs e JOIN containers c ON c.id = e.container WHERE e.id = ?",
    )?;
    let found = statement.query_row([id], |r| {
        let row = Row {
            container: r.get(0)?,
            text: String::new(),
            config: ExecConfig::default(),
            waits: r.get(2)?,
            paused: r.get(6)?,
            pid: r.get(3)?,
            exit_code: r.get(4)?,
        };
        Ok((row, r.get::<_, String>(1)?, r.get::<_, i64>(5)?))
    });
    let (row, text, started) = found
        .optional()?
        .ok_or_else(|| EngineError::NoSuchExec(id.to_owned()))?;
    #[derive(Deserialize)]
    struct Kept {
        #[serde(rename = "CortenRun")]
        run: Option<i64>,
    }
    // Not by when it was made: the clock may have been set since.
    let waits = row.waits && read::<Kept>(id, &text)?.run == Some(started);
    let config = read(id, &text)?;
    Ok(Row {
        config,
        waits,
        text,
        ..row
    })
}

fn read<T: DeserializeOwned>(id: &str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|source| EngineError::Document {
        what: "configuration",
        object: format!("exec {id}"),
        source,
    })
}

impl Row {
    /// What its supervisor is to be told with its start. One that has been started it knows, or has
    /// forgotten on purpose; so it has one of another run.
    fn spec(&self, id: &str) -> Result<Option<ExecSpec>> {
        #[derive(Deserialize)]
        struct Kept {
            #[serde(rename = "CortenSpec")]
            spec: Option<ExecSpec>,
        }
        match self.waits {
            true => Ok(read::<Kept>(id, &self.text)?.spec),
            false => Ok(None),
        }
    }
}

/// Records that an instance runs.
pub(crate) fn set_running(c: &Connection, id: &str, pid: i64) -> Result<()> {
    c.prepare_cached(
        "UPDATE execs SET status = 'running', pid = ?, \
         config = json_remove(config, '$.CortenSpec') WHERE id = ?",
    )?
    .execute(params![pid, id])?;
    Ok(())
}

/// Records how an instance ended.
pub(crate) fn set_exit_code(c: &Connection, id: &str, code: i64) -> Result<()> {
    c.prepare_cached(
        "UPDATE execs SET status = 'exited', exit_code = ?, \
         config = json_remove(config, '$.CortenSpec') WHERE id = ?",
    )?
    .execute(params![code, id])?;
    Ok(())
}

/// Deletes the rows of instances made before a moment that have ended, or went with an earlier run.
fn forget(c: &Connection, container: &str, started: i64, before: i64) -> Result<()> {
    c.prepare_cached(
        "DELETE FROM execs WHERE container = ? AND created < ? AND (exit_code IS NOT NULL \
         OR json_extract(config, '$.CortenRun') <> ?)",
    )?
    .execute(params![container, before, started])?;
    Ok(())
}

/// Prepares an instance.
pub(super) async fn create(engine: &Engine, name: &str, config: ExecConfig) -> Result<IdResponse> {
    let wanted = name.to_owned();
    engine
        .brief(move |engine| {
            let container = state::find(engine, &wanted)?;
            let spec = prepare(engine, &container, &wanted, &config)?;
            let exec = &spec.id;
            let kept = Kept {
                config: &config,
                run: container.started,
                spec: &spec,
            };
            let text = serde_json::to_string(&kept).map_err(|source| EngineError::Document {
                what: "configuration",
                object: format!("exec {exec}"),
                source,
            })?;
            engine.write(Durability::Relaxed, |c| {
                let now = time::now_nanos();
                // It looks at all of the container's: not each time.
                if exec.starts_with('0') {
                    forget(c, &container.id, container.started, now - KEPT_NANOS)?;
                }
                c.prepare_cached(
                    "INSERT INTO execs (id, container, created, config, status) \
                     VALUES (?,?,?,?,'created')",
                )?
                .execute(params![exec, container.id, now, text])?;
                let mut attributes = super::attributes(&container);
                attributes.insert("execID".to_owned(), exec.clone());
                let command = config.cmd.as_deref().unwrap_or_default().join(" ");
                let action = format!("exec_create: {command}");
                events::record(c, Kind::Container, &action, &container.id, &attributes)
            })?;
            Ok(IdResponse { id: spec.id })
        })
        .await
}

/// Checks the request and makes the process document. Blocks.
fn prepare(
    engine: &Engine,
    container: &Container,
    name: &str,
    config: &ExecConfig,
) -> Result<ExecSpec> {
    match container.status {
        Status::Running => {}
        Status::Paused => {
            return Err(paused(name));
        }
        Status::Restarting => {
            return Err(EngineError::Conflict(format!(
                "Container {} is restarting, wait until the container is running",
                container.id
            )));
        }
        _ => return Err(EngineError::NotRunning(container.id.clone())),
    }
    let root = rooted::root_of(container.pid)?;
    let groups = container.host.group_add.as_deref().unwrap_or_default();
    let own = container.config.user.as_deref().unwrap_or("");
    let asked = config
        .user
        .as_deref()
        .filter(|u| !u.is_empty())
        .unwrap_or(own);
    let identity = rooted::identity(root.as_fd(), asked, groups)?;
    // Whom it was linked to may be gone by now; what runs already goes on without.
    let linked = super::links::environment(engine, container).unwrap_or_default();
    let known = super::known_capabilities();
    let base = spec::first_process(&container.config, &container.host, &identity, known)?;
    let process = spec::exec_process(
        &container.config,
        config,
        &base,
        &linked,
        &identity,
        container.host.privileged.unwrap_or(false),
        known,
    )?;
    let spec = ExecSpec {
        id: names::new_id(),
        process,
        streams: Streams {
            stdin: config.attach_stdin.unwrap_or(false),
            stdout: config.attach_stdout.unwrap_or(false),
            stderr: config.attach_stderr.unwrap_or(false),
        },
        size: config.console_size.as_deref().and_then(|size| match size {
            [rows, cols] => Some(Size {
                rows: u16::try_from(*rows).ok()?,
                cols: u16::try_from(*cols).ok()?,
            }),
            _ => None,
        }),
    };
    if !spec.fits() {
        return Err(bad(
            "the command and the environment of an exec are too long: 4 MiB is the most",
        ));
    }
    Ok(spec)
}

fn paused(name: &str) -> EngineError {
    EngineError::Conflict(format!(
        "Container {name} is paused, unpause the container before exec"
    ))
}

async fn find(engine: &Engine, id: &str) -> Result<Row> {
    let id = id.to_owned();
    engine.read(move |c| get(c, &id)).await
}

/// The supervisor of an instance's container.
async fn supervisor_of(engine: &Engine, id: &str, row: &Row) -> Result<Client> {
    let found = Client::find(engine.layout().run(), &row.container);
    if let Some(client) = found.map_err(|error| refused_by(&row.container, error))? {
        return Ok(client);
    }
    let (id, container) = (id.to_owned(), row.container.clone());
    engine
        .brief(move |engine| match state::find(engine, &container) {
            Ok(_) => Err(EngineError::NotRunning(container)),
            Err(_) => Err(EngineError::NoSuchExec(id)),
        })
        .await
}

/// What whoever is about to start an instance has to know of it.
pub(super) async fn form(engine: &Engine, id: &str) -> Result<ExecForm> {
    let row = find(engine, id).await?;
    // While it can still be told with a status: a client that has its stream reads the words there, and
    // takes what has no exit code for a success.
    if row.paused && state::has_supervisor(engine, &row.container) {
        return Err(paused(&row.container));
    }
    Ok(ExecForm {
        waits: row.waits && state::has_supervisor(engine, &row.container),
        tty: row.config.tty.unwrap_or(false),
        detach_keys: row.config.detach_keys,
    })
}

/// Starts an instance.
pub(super) async fn start(engine: &Engine, id: &str, start: ExecStart) -> Result<Option<Attached>> {
    let row = find(engine, id).await?;
    let tty = row.config.tty.unwrap_or(false);
    let client = supervisor_of(engine, id, &row).await?;
    let size = start.console_size.map(|(rows, cols)| Size { rows, cols });
    match begin(engine, &client, id, &row, (start.detach, size)).await? {
        Ok(None) => Ok(None),
        Ok(Some((tty, stream))) => Ok(Some(Attached {
            tty,
            stream: Box::pin(stream),
        })),
        Err(error) => match refused_by(&row.container, error) {
            EngineError::Start { message, code } => {
                failed(engine, id, i64::from(code)).await?;
                if start.detach {
                    return Err(EngineError::Start { message, code });
                }
                // The client has its stream already as far as it knows: it reads the error
                // there, and then asks for the exit code.
                Ok(Some(told(&message, tty).await))
            }
            EngineError::Unavailable(message) => {
                failed(engine, id, i64::from(cannot_start(&message))).await?;
                match start.detach {
                    true => Err(EngineError::Unavailable(message)),
                    false => Ok(Some(told(&message, tty).await)),
                }
            }
            other => Err(other),
        },
    }
}

type Begun = std::result::Result<Option<(bool, tokio::net::UnixStream)>, ClientError>;

/// Has an instance started that its supervisor may never have heard of.
async fn begin(
    engine: &Engine,
    client: &Client,
    id: &str,
    row: &Row,
    (detach, size): (bool, Option<Size>),
) -> Result<Begun> {
    let Some(spec) = row.spec(id)? else {
        return Ok(client.exec_start(id, detach, size, None).await);
    };
    let begun = client
        .exec_start(id, detach, size, Some(spec.clone()))
        .await;
    if !begun.as_ref().is_err_and(is_unknown) {
        return Ok(begun);
    }
    // One started by an older corten, which writes down no start either: nobody may take it for one
    // that waits once it has been forgotten.
    mark(engine, id, "created", "running").await?;
    let begun = match client.exec_create(spec).await {
        Ok(()) => client.exec_start(id, detach, size, None).await,
        Err(error) => Err(error),
    };
    if begun.as_ref().is_err_and(is_too_early) {
        mark(engine, id, "running", "created").await?;
    }
    Ok(begun)
}

/// Sets the status of an instance that has no process yet.
async fn mark(engine: &Engine, id: &str, from: &'static str, to: &'static str) -> Result<()> {
    let exec = id.to_owned();
    engine
        .brief(move |engine| {
            engine.write(Durability::Relaxed, |c| {
                c.prepare_cached(
                    "UPDATE execs SET status = ? WHERE id = ? AND status = ? AND pid = 0 \
                     AND exit_code IS NULL",
                )?
                .execute(params![to, exec, from])?;
                Ok(())
            })
        })
        .await
}

/// Whether an instance may yet be started that was not: its container is paused, or about to end.
fn is_too_early(error: &ClientError) -> bool {
    let ClientError::Refused { why, message } = error else {
        return false;
    };
    *why == Refusal::NotRunning || (*why == Refusal::Conflict && message.contains(" is paused"))
}

/// Records that an instance could not be started.
async fn failed(engine: &Engine, id: &str, code: i64) -> Result<()> {
    let exec = id.to_owned();
    engine
        .brief(move |engine| engine.write(Durability::Relaxed, |c| set_exit_code(c, &exec, code)))
        .await
}

/// A stream that holds one message.
async fn told(message: &str, tty: bool) -> Attached {
    let line = format!("{message}\r\n");
    let bytes = if tty {
        line.into_bytes().into()
    } else {
        framed(StreamKind::Stdout, line.as_bytes())
    };
    let (ours, mut theirs) = tokio::io::duplex(bytes.len() + 1);
    // There is room for all of it.
    if let Err(error) = theirs.write_all(&bytes).await {
        tracing::debug!(%error, "a message is lost");
    }
    Attached {
        tty,
        stream: Box::pin(ours),
    }
}

/// The state of an instance.
pub(super) async fn inspect(engine: &Engine, id: &str) -> Result<ExecInspectResponse> {
    let row = find(engine, id).await?;
    let (running, exit_code, pid) = match row.exit_code {
        // Written before anybody could see its end.
        Some(code) => (false, Some(code), Some(row.pid)),
        None => progress(engine, id, &row).await?,
    };
    let command = row.config.cmd.clone().unwrap_or_default();
    Ok(ExecInspectResponse {
        can_remove: Some(false),
        detach_keys: row.config.detach_keys.clone(),
        id: Some(id.to_owned()),
        running: Some(running),
        exit_code,
        process_config: Some(ProcessConfig {
            privileged: row.config.privileged,
            user: row.config.user.clone(),
            tty: row.config.tty,
            entrypoint: command.first().cloned(),
            arguments: Some(command.into_iter().skip(1).collect()),
        }),
        open_stdin: row.config.attach_stdin,
        open_stderr: row.config.attach_stderr,
        open_stdout: row.config.attach_stdout,
        container_id: Some(row.container),
        pid,
    })
}

/// Whether an instance runs that has not ended yet as far as its row knows, how it ended, its
/// process.
async fn progress(
    engine: &Engine,
    id: &str,
    row: &Row,
) -> Result<(bool, Option<i64>, Option<i64>)> {
    let status = match supervisor_of(engine, id, row).await {
        Ok(client) => match client.exec_inspect(id).await {
            // It will hear of it with its start.
            Err(error) if row.waits && is_unknown(&error) => return Ok((false, None, Some(0))),
            status => status.ok(),
        },
        Err(EngineError::NoSuchExec(id)) => return Err(EngineError::NoSuchExec(id)),
        Err(_) => None,
    };
    // The row may have been written since it was read.
    let exit_code = match &status {
        Some(status) => status.exit_code.map(i64::from),
        None => find(engine, id).await?.exit_code,
    };
    // An instance that its container took along was killed with it.
    let lost = status.is_none() && exit_code.is_none();
    Ok((
        status.as_ref().is_some_and(|s| s.running),
        if lost { Some(137) } else { exit_code },
        status.map(|s| i64::from(s.pid)),
    ))
}

/// Whether a supervisor does not know an instance.
fn is_unknown(error: &ClientError) -> bool {
    let unknown = Refusal::NoSuchExec;
    matches!(error, ClientError::Refused { why, .. } if *why == unknown)
}

/// Sets the size of an instance's terminal.
pub(super) async fn resize(engine: &Engine, id: &str, rows: u16, columns: u16) -> Result<()> {
    let row = find(engine, id).await?;
    let client = supervisor_of(engine, id, &row).await?;
    let size = Size {
        rows,
        cols: columns,
    };
    client.exec_resize(id, size).await.map_err(|error| {
        if row.waits && is_unknown(&error) {
            return EngineError::Conflict(format!("exec {id} has no terminal"));
        }
        refused_by(&row.container, error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A container that runs, and instances of it: id, when made, for which run.
    fn connection(started: i64, instances: &[(&str, i64, i64)]) -> Connection {
        let c = Connection::open_in_memory().unwrap();
        for migration in crate::schema::SCHEMA.migrations {
            c.execute_batch(migration).unwrap();
        }
        c.execute(
            "INSERT INTO containers (id, name, created, image_id, image_name, config, host_config, \
             setup, auto_remove, status, started) \
             VALUES ('web', 'web', 1, '', '', '{}', '{}', '{}', 0, 'running', ?)",
            [started],
        )
        .unwrap();
        for (id, created, run) in instances {
            let config = ExecConfig {
                cmd: Some(vec!["id".to_owned()]),
                ..ExecConfig::default()
            };
            let spec = ExecSpec {
                id: (*id).to_owned(),
                process: corten_oci::runtime_spec::Process::default(),
                streams: Streams::default(),
                size: None,
            };
            let kept = Kept {
                config: &config,
                run: *run,
                spec: &spec,
            };
            c.execute(
                "INSERT INTO execs (id, container, created, config, status) \
                 VALUES (?, 'web', ?, ?, 'created')",
                params![id, created, serde_json::to_string(&kept).unwrap()],
            )
            .unwrap();
        }
        c
    }

    #[test]
    fn an_instance_waits_in_its_run_whatever_the_clock_says() {
        let c = connection(100, &[("mine", 7, 100), ("earlier", 200, 50)]);
        let mine = get(&c, "mine").unwrap();
        assert!(mine.waits && mine.spec("mine").unwrap().is_some());
        let earlier = get(&c, "earlier").unwrap();
        assert!(!earlier.waits && earlier.spec("earlier").unwrap().is_none());
        let listed = || crate::containers::inspect::exec_ids(&c, "web").unwrap();
        assert_eq!(listed(), ["mine"]);
        // Made by an older corten: its supervisor is asked.
        c.execute(
            "INSERT INTO execs (id, container, created, config, status) \
             VALUES ('old', 'web', 200, '{}', 'created')",
            [],
        )
        .unwrap();
        assert!(!get(&c, "old").unwrap().waits);
        assert_eq!(listed(), ["mine", "old"]);
    }

    #[test]
    fn what_it_is_to_execute_is_kept_until_it_is_started() {
        let c = connection(100, &[("a", 101, 100), ("b", 102, 100)]);
        set_running(&c, "a", 42).unwrap();
        set_exit_code(&c, "b", 127).unwrap();
        for id in ["a", "b"] {
            let row = get(&c, id).unwrap();
            assert!(!row.text.contains("CortenSpec"), "{}", row.text);
            assert_eq!(row.config.cmd.unwrap(), ["id"]);
        }
    }

    #[test]
    fn old_instances_are_forgotten_but_those_that_may_run() {
        let c = connection(100, &[("ended", 101, 100), ("lost", 90, 50)]);
        for (id, created, run) in [("runs", 101, 100), ("new", 900, 50)] {
            c.execute(
                "INSERT INTO execs (id, container, created, config, status) \
                 VALUES (?, 'web', ?, json_object('CortenRun', ?), 'running')",
                params![id, created, run],
            )
            .unwrap();
        }
        c.execute(
            "INSERT INTO execs (id, container, created, config, status) \
             VALUES ('old', 'web', 101, '{}', 'running')",
            [],
        )
        .unwrap();
        set_exit_code(&c, "ended", 0).unwrap();
        forget(&c, "web", 100, 800).unwrap();
        let mut left = c.prepare("SELECT id FROM execs ORDER BY id").unwrap();
        let left: Vec<String> = left
            .query_map([], |r| r.get(0))
            .unwrap()
            .collect::<rusqlite::Result<_>>()
            .unwrap();
        assert_eq!(left, ["new", "old", "runs"]);
    }
}
