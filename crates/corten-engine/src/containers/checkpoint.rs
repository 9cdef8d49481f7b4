//! Checkpoints: a running container's processes, saved by CRIU, and containers that go on from
//! one. The images are in the container's directory, or where the client says. This process calls
//! CRIU to save; the supervisor does to restore, so that it is the parent of what it gets.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use corten_runtime::{Cgroup, Checkpoint};

use super::row::Container;
use super::stop::{find, has_policy, mark_stopped};
use super::{refused, state, supervisor};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::{bad, names};

type Result<T> = std::result::Result<T, EngineError>;

/// How long the end of a container that has been saved is waited for.
const END: Duration = Duration::from_secs(10);

/// Which checkpoint.
#[derive(Debug, Clone)]
pub struct CheckpointName {
    /// Its name.
    pub name: String,
    /// The directory it is in; else the container's.
    pub directory: Option<PathBuf>,
}

impl CheckpointName {
    /// Where it is to be.
    fn path(&self, engine: &Engine, container: &Container) -> Result<PathBuf> {
        let name = &self.name;
        if !names::is_valid_name(name) {
            return Err(bad(format!(
                "Invalid checkpoint ID ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
            )));
        }
        Ok(directory(engine, container, self.directory.as_deref())?.join(name))
    }

    /// Where it is.
    pub(super) fn existing(
        &self,
        engine: &Engine,
        container: &Container,
        called: &str,
    ) -> Result<PathBuf> {
        // What is no name is none of a checkpoint, and no way to other directories.
        let path = self.path(engine, container).ok();
        let about = path.as_deref().map(std::fs::metadata);
        match (path, about) {
            (Some(path), Some(Ok(about))) if about.is_dir() => Ok(path),
            (Some(path), Some(Ok(_))) => Err(EngineError::Conflict(format!(
                "{} exists and is not a directory",
                path.display()
            ))),
            _ => Err(EngineError::NotFound(format!(
                "checkpoint {} does not exist for container {called}",
                self.name
            ))),
        }
    }
}

/// The directory of a container's checkpoints.
fn directory(engine: &Engine, container: &Container, given: Option<&Path>) -> Result<PathBuf> {
    let Some(given) = given else {
        return Ok(engine.layout().container(&container.id).join("checkpoints"));
    };
    std::path::absolute(given).map_err(|source| EngineError::Io {
        action: "find",
        path: given.to_owned(),
        source,
    })
}

/// Makes a directory for the images; one that is there is another checkpoint.
fn make(path: &Path, name: &str, called: &str) -> Result<()> {
    let io = |source| EngineError::Io {
        action: "create",
        path: path.to_owned(),
        source,
    };
    let mut builder = std::fs::DirBuilder::new();
    builder.mode(0o700);
    if let Some(parent) = path.parent() {
        builder.recursive(true).create(parent).map_err(io)?;
    }
    match builder.recursive(false).create(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            Err(EngineError::Conflict(format!(
                "cannot checkpoint container {called}: checkpoint with name {name} already \
                 exists for container {called}"
            )))
        }
        made => made.map_err(io),
    }
}

/// Saves a running container, which ends by that unless it is left running.
pub(super) async fn create(
    engine: &Engine,
    called: &str,
    checkpoint: CheckpointName,
    leave_running: bool,
) -> Result<()> {
    let container = find(engine, called).await?;
    if !container.status.is_live() {
        return Err(EngineError::Conflict(format!(
            "Container {called} not running"
        )));
    }
    let path = checkpoint.path(engine, &container)?;
    let client = supervisor(engine, &container)?;
    let mut ending = client.wait().await.map_err(|e| refused(&container, e))?;
    let saving = client
        .checkpoint(leave_running)
        .await
        .map_err(|e| refused(&container, e))?;
    let (spec, pid) = (saving.spec.clone(), saving.pid);
    let (about, name) = (container.clone(), called.to_owned());
    // Goes on to its end even if the client leaves: a saving that is begun has an outcome.
    let engine = engine.clone();
    let work = tokio::spawn(async move {
        let held = about.clone();
        let saved = engine
            .blocking(move |engine| {
                make(&path, &checkpoint.name, &name)?;
                let saved = save(engine, &held, &spec, pid, &path, leave_running);
                if saved.is_err()
                    && let Err(error) = std::fs::remove_dir_all(&path)
                {
                    tracing::warn!(path = %path.display(), %error, "a failed checkpoint is left");
                }
                saved.map_err(|error| match error {
                    EngineError::Other { source, .. } => EngineError::Other {
                        context: format!("Cannot checkpoint container {name}"),
                        source,
                    },
                    other => other,
                })
            })
            .await;
        saving.end(saved.is_ok()).await;
        saved?;
        if !leave_running {
            if has_policy(&about) {
                mark_stopped(&engine, &about).await?;
            }
            // Whoever starts it at once must not find it running.
            if tokio::time::timeout(END, ending.exit()).await.is_err() {
                tracing::warn!(container = %about.id, "saved, but it does not end");
            }
        }
        engine
            .blocking(move |engine| {
                super::event(engine, &about, "checkpoint", &[]);
                Ok(())
            })
            .await
    });
    work.await.map_err(|error| EngineError::Other {
        context: format!("Cannot checkpoint container {called}"),
        source: Box::new(error),
    })?
}

fn save(
    engine: &Engine,
    container: &Container,
    spec: &corten_oci::runtime_spec::Spec,
    pid: i32,
    images: &Path,
    leave_running: bool,
) -> Result<()> {
    let failed = |source| EngineError::Other {
        context: format!("container {}", container.id),
        source,
    };
    let cgroup = Cgroup::open(&state::cgroup_path(engine, container))
        .map_err(|error| failed(Box::new(error)))?;
    corten_runtime::save(&Checkpoint {
        spec,
        pid,
        cgroup: &cgroup,
        images,
        leave_running,
    })
    .map_err(|error| failed(Box::new(error)))
}

/// The names of a container's checkpoints, sorted.
pub(super) fn list(engine: &Engine, called: &str, given: Option<&Path>) -> Result<Vec<String>> {
    let container = state::find(engine, called)?;
    let path = directory(engine, &container, given)?;
    let io = |source| EngineError::Io {
        action: "read",
        path: path.clone(),
        source,
    };
    let entries = match std::fs::read_dir(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(io)?;
        if entry.file_type().map_err(io)?.is_dir() {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    found.sort();
    Ok(found)
}

/// Removes one.
pub(super) fn remove(engine: &Engine, called: &str, checkpoint: &CheckpointName) -> Result<()> {
    let container = state::find(engine, called)?;
    let path = checkpoint.existing(engine, &container, called)?;
    std::fs::remove_dir_all(&path).map_err(|source| EngineError::Io {
        action: "remove",
        path,
        source,
    })
}
