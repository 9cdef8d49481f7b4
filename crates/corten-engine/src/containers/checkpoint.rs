//! Checkpoints: a running container's processes, saved by CRIU, and containers that go on from
//! one. The images are in the container's directory, or where the client says. This process calls
//! CRIU to save; the supervisor does to restore, so that it is the parent of what it gets.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use corten_runtime::{Cgroup, Checkpoint};
use rustix::fs::{CWD, Mode, OFlags};

use super::row::Container;
use super::stop::{find, has_policy, mark_stopped};
use super::{refused, state, supervisor, users};
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

    /// Where it is. What has no images in it is none.
    pub(super) fn existing(
        &self,
        engine: &Engine,
        container: &Container,
        called: &str,
    ) -> Result<PathBuf> {
        // What is no name is none of a checkpoint, and no way to other directories.
        let path = self.path(engine, container).ok();
        let about = path.as_deref().map(std::fs::symlink_metadata);
        match (path, about) {
            (Some(path), Some(Ok(about))) if about.is_dir() && is_checkpoint(&path) => Ok(path),
            (Some(path), Some(Ok(about))) if !about.is_dir() => Err(EngineError::Conflict(
                format!("{} exists and is not a directory", path.display()),
            )),
            _ => Err(EngineError::NotFound(format!(
                "checkpoint {} does not exist for container {called}",
                self.name
            ))),
        }
    }
}

impl CheckpointName {
    /// Where it is, to start from it: images say what runs, with which rights.
    pub(super) fn images(
        &self,
        engine: &Engine,
        container: &Container,
        called: &str,
    ) -> Result<PathBuf> {
        let path = self.existing(engine, container, called)?;
        let io = |source| EngineError::Io {
            action: "look at",
            path: path.clone(),
            source,
        };
        let own = rustix::process::geteuid().as_raw();
        let check = |looked: &Path| {
            let about = std::fs::symlink_metadata(looked).map_err(io)?;
            // Or by a group other than root's.
            let others =
                about.mode() & 0o002 != 0 || (about.mode() & 0o020 != 0 && about.gid() != 0);
            if others || ![0, own].contains(&about.uid()) {
                return Err(EngineError::Forbidden(format!(
                    "{} can be changed by others than root: no container is started from it",
                    looked.display()
                )));
            }
            Ok(())
        };
        check(&path)?;
        for image in std::fs::read_dir(&path).map_err(io)? {
            check(&image.map_err(io)?.path())?;
        }
        Ok(path)
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

/// Whether a directory is one that has been made here, or by runc, for a checkpoint.
fn is_checkpoint(path: &Path) -> bool {
    let directory = std::fs::symlink_metadata(path).is_ok_and(|there| there.is_dir());
    let images = std::fs::symlink_metadata(path.join(corten_runtime::CHECKPOINT_DESCRIPTORS));
    directory && images.is_ok_and(|file| file.is_file())
}

/// Images that are being written, beside the place they get when they are whole. Without that they
/// are removed, at the latest by the container's next checkpoint.
#[derive(Debug)]
struct Images {
    directory: OwnedFd,
    partial: PathBuf,
    path: PathBuf,
}

impl Images {
    /// A directory for them; what is at their place is another checkpoint. Nobody else may be
    /// saving the container.
    fn new(path: PathBuf, container: &Container, name: &str, called: &str) -> Result<Self> {
        let io = |source| EngineError::Io {
            action: "create",
            path: path.clone(),
            source,
        };
        let mut builder = std::fs::DirBuilder::new();
        builder.mode(0o700);
        let parent = path.parent().unwrap_or(Path::new("/"));
        builder.recursive(true).create(parent).map_err(io)?;
        if std::fs::symlink_metadata(&path).is_ok() {
            return Err(EngineError::Conflict(format!(
                "cannot checkpoint container {called}: checkpoint with name {name} already \
                 exists for container {called}"
            )));
        }
        // Whoever wrote it was killed.
        let partial = parent.join(format!(".{}.partial", container.id));
        match std::fs::remove_dir_all(&partial) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
        builder.recursive(false).create(&partial).map_err(io)?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&partial, flags, Mode::empty());
        let directory = directory.map_err(|errno| io(errno.into()))?;
        let there = rustix::fs::fstat(&directory).map_err(|errno| io(errno.into()))?;
        if there.st_uid != rustix::process::geteuid().as_raw() {
            // Put in its place by whom the directory above belongs to.
            return Err(io(std::io::ErrorKind::PermissionDenied.into()));
        }
        Ok(Self {
            directory,
            partial,
            path,
        })
    }

    /// By descriptor: whatever is at its place by then.
    fn place(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.directory.as_raw_fd()).into()
    }

    /// They are whole.
    fn complete(&self) -> std::io::Result<()> {
        rustix::fs::syncfs(&self.directory)?;
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        rustix::fs::renameat_with(CWD, &self.partial, CWD, &self.path, flags)?;
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        std::fs::File::open(parent)?.sync_all()
    }

    /// The container has not been saved.
    fn discard(&self) {
        for path in [&self.partial, &self.path] {
            let same = std::fs::symlink_metadata(path).is_ok_and(|there| {
                let ours = rustix::fs::fstat(&self.directory);
                ours.is_ok_and(|ours| (ours.st_dev, ours.st_ino) == (there.dev(), there.ino()))
            });
            if same && let Err(error) = std::fs::remove_dir_all(path) {
                tracing::warn!(path = %path.display(), %error, "a failed checkpoint is left");
            }
        }
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
    if users::of_process(container.pid).is_ok_and(|ids| ids.is_some()) {
        return Err(EngineError::Conflict(format!(
            "Cannot checkpoint container {called}: its users are others on the host (userns-remap); \
             run it with --userns host"
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
    let open = saving.held().map_err(|source| EngineError::Other {
        context: format!("Cannot checkpoint container {called}"),
        source: Box::new(source),
    })?;
    let (about, name) = (container.clone(), called.to_owned());
    // Goes on to its end even if the client leaves: a saving that is begun has an outcome.
    let engine = engine.clone();
    let work = tokio::spawn(async move {
        let held = about.clone();
        let saved = engine
            .blocking(move |engine| {
                let images = Images::new(path, &held, &checkpoint.name, &name)?;
                let saved = save(engine, &held, &spec, pid, &images, open, leave_running);
                if saved.is_err() {
                    images.discard();
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
    images: &Images,
    open: OwnedFd,
    leave_running: bool,
) -> Result<()> {
    let failed = |source| EngineError::Other {
        context: format!("container {}", container.id),
        source,
    };
    let cgroup = Cgroup::open(&state::cgroup_path(engine, container))
        .map_err(|error| failed(Box::new(error)))?;
    let container = Checkpoint {
        spec,
        pid,
        cgroup: &cgroup,
        images: &images.place(),
        leave_running,
    };
    corten_runtime::save(&container, open, &mut || images.complete())
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
        let name = entry.file_name().to_string_lossy().into_owned();
        if names::is_valid_name(&name) && is_checkpoint(&entry.path()) {
            found.push(name);
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
