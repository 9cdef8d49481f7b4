//! Further processes in running containers.
//!
//! The container's supervisor executes them and knows their state while it lives; a row
//! tells which container an instance belongs to, and how it ended after that.

use std::os::fd::AsFd;

use bollard_stubs::models::{ExecConfig, ExecInspectResponse, IdResponse, ProcessConfig};
use corten_db::Durability;
use corten_supervisor::protocol::ExecSpec;
use corten_supervisor::{Size, Streams};
use rusqlite::{Connection, OptionalExtension, params};
use tokio::io::AsyncWriteExt;

use super::attach::framed;
use super::row::{Container, Status};
use super::{Attached, ExecStart, StreamKind, refused, state, supervisor};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::{names, time};
use crate::spec;
use crate::supervise::rooted;

/// How long rows of ended instances are kept at least, counted from their making.
const KEPT_NANOS: i64 = 60 * 60 * 1_000_000_000;

/// Exit code of an instance that could not be started, as Docker derives it from why not.
fn cannot_start(message: &str) -> i64 {
    if message.contains("no such file or directory") {
        127
    } else if message.contains("permission denied") {
        126
    } else {
        128
    }
}

type Result<T> = std::result::Result<T, EngineError>;

/// An exec instance's row.
struct Row {
    container: String,
    config: ExecConfig,
    exit_code: Option<i64>,
}

fn get(c: &Connection, id: &str) -> Result<Row> {
    let found: Option<(String, String, Option<i64>)> = c
        .prepare_cached("SELECT container, config, exit_code FROM execs WHERE id = ?")?
        .query_row([id], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))
        .optional()?;
    let (container, config, exit_code) =
        found.ok_or_else(|| EngineError::NoSuchExec(id.to_owned()))?;
    let config = serde_json::from_str(&config).map_err(|source| EngineError::Document {
        what: "configuration",
        object: format!("exec {id}"),
        source,
    })?;
    Ok(Row {
        container,
        config,
        exit_code,
    })
}

/// Records how an instance ended.
pub(crate) fn set_exit_code(c: &Connection, id: &str, code: i64) -> Result<()> {
    c.prepare_cached("UPDATE execs SET status = 'exited', exit_code = ? WHERE id = ?")?
        .execute(params![code, id])?;
    Ok(())
}

/// Prepares an instance.
pub(super) async fn create(engine: &Engine, name: &str, config: ExecConfig) -> Result<IdResponse> {
    let wanted = name.to_owned();
    let (container, spec, config) = engine
        .blocking(move |engine| {
            let container = state::find(engine, &wanted)?;
            let spec = prepare(engine, &container, &wanted, &config)?;
            Ok((container, spec, config))
        })
        .await?;
    let id = spec.id.clone();
    let client = supervisor(engine, &container)?;
    client
        .exec_create(spec)
        .await
        .map_err(|error| refused(&container, error))?;
    let exec = id.clone();
    engine
        .blocking(move |engine| {
            let text = serde_json::to_string(&config).map_err(|source| EngineError::Document {
                what: "configuration",
                object: format!("exec {exec}"),
                source,
            })?;
            engine.write(Durability::Relaxed, |c| {
                c.prepare_cached(
                    "DELETE FROM execs WHERE container = ? AND exit_code IS NOT NULL \
                     AND created < ?",
                )?
                .execute(params![container.id, time::now_nanos() - KEPT_NANOS])?;
                c.prepare_cached(
                    "INSERT INTO execs (id, container, created, config, status) \
                     VALUES (?,?,?,?,'created')",
                )?
                .execute(params![exec, container.id, time::now_nanos(), text])?;
                Ok(())
            })?;
            let command = config.cmd.unwrap_or_default().join(" ");
            super::event(
                engine,
                &container,
                &format!("exec_create: {command}"),
                &[("execID", exec.clone())],
            );
            Ok(())
        })
        .await?;
    Ok(IdResponse { id })
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
            return Err(EngineError::Conflict(format!(
                "Container {name} is paused, unpause the container before exec"
            )));
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
    let files = spec::Files::default();
    // Whom it was linked to may be gone by now; what runs already goes on without.
    let linked = super::links::environment(engine, container).unwrap_or_default();
    let base = spec::build(&spec::Input {
        config: &container.config,
        host: &container.host,
        mounts: &container.setup.mounts,
        identity: &identity,
        linked: &linked,
        files: &files,
        users: None,
        ipc_of: Some(container.pid),
        pid_of: Some(container.pid),
        cpus: super::cpus(),
        capabilities: super::known_capabilities(),
    })?;
    let base = base.spec.process().clone().unwrap_or_default();
    let process = spec::exec_process(
        &container.config,
        config,
        &base,
        &linked,
        &identity,
        container.host.privileged.unwrap_or(false),
        super::known_capabilities(),
    )?;
    Ok(ExecSpec {
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
    })
}

async fn find(engine: &Engine, id: &str) -> Result<(Row, Container)> {
    let wanted = id.to_owned();
    engine
        .blocking(move |engine| {
            let row = engine.database().read(|c| get(c, &wanted))?;
            let container =
                state::find(engine, &row.container).map_err(|_| EngineError::NoSuchExec(wanted))?;
            Ok((row, container))
        })
        .await
}

/// Starts an instance.
pub(super) async fn start(engine: &Engine, id: &str, start: ExecStart) -> Result<Option<Attached>> {
    let (row, container) = find(engine, id).await?;
    let tty = row.config.tty.unwrap_or(false);
    let client = supervisor(engine, &container)?;
    let size = start.console_size.map(|(rows, cols)| Size { rows, cols });
    match client.exec_start(id, start.detach, size).await {
        Ok(None) => Ok(None),
        Ok(Some((tty, stream))) => Ok(Some(Attached {
            tty,
            stream: Box::pin(stream),
        })),
        Err(error) => match refused(&container, error) {
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
                failed(engine, id, cannot_start(&message)).await?;
                match start.detach {
                    true => Err(EngineError::Unavailable(message)),
                    false => Ok(Some(told(&message, tty).await)),
                }
            }
            other => Err(other),
        },
    }
}

/// Records that an instance could not be started.
async fn failed(engine: &Engine, id: &str, code: i64) -> Result<()> {
    let exec = id.to_owned();
    engine
        .blocking(move |engine| {
            engine.write(Durability::Relaxed, |c| set_exit_code(c, &exec, code))
        })
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
    let (row, container) = find(engine, id).await?;
    let status = match supervisor(engine, &container) {
        Ok(client) => client.exec_inspect(id).await.ok(),
        Err(_) => None,
    };
    // The row may have been written since it was read.
    let exec = id.to_owned();
    let exit_code = match &status {
        Some(status) if row.exit_code.is_none() => status.exit_code.map(i64::from),
        _ => engine.read(move |c| get(c, &exec)).await?.exit_code,
    };
    // An instance that its container took along was killed with it.
    let lost = status.is_none() && exit_code.is_none();
    let command = row.config.cmd.clone().unwrap_or_default();
    Ok(ExecInspectResponse {
        can_remove: Some(false),
        detach_keys: row.config.detach_keys.clone(),
        id: Some(id.to_owned()),
        running: Some(status.as_ref().is_some_and(|s| s.running)),
        exit_code: if lost { Some(137) } else { exit_code },
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
        container_id: Some(container.id),
        pid: status.map(|s| i64::from(s.pid)),
    })
}

/// Sets the size of an instance's terminal.
pub(super) async fn resize(engine: &Engine, id: &str, rows: u16, columns: u16) -> Result<()> {
    let (_, container) = find(engine, id).await?;
    supervisor(engine, &container)?
        .exec_resize(
            id,
            Size {
                rows,
                cols: columns,
            },
        )
        .await
        .map_err(|error| refused(&container, error))
}
