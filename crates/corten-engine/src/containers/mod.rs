//! Containers: everything the Engine API's `/containers` and `/exec` do.
//!
//! `create` and `remove` change rows and files; `start` launches a supervisor; everything
//! that concerns a running container is asked of its supervisor; what it left behind when it
//! died is put right by `state` before anybody is told of it.

mod archive;
mod attach;
mod changes;
mod checkpoint;
mod commit;
mod create;
mod depends;
pub(crate) mod endpoints;
mod exec;
pub(crate) mod files;
mod foreign;
mod in_place;
mod inspect;
pub(crate) mod links;
mod list;
mod logs;
mod merge;
pub(crate) mod networking;
mod options;
mod pending;
pub(crate) mod remove;
mod restore;
pub(crate) mod root;
pub(crate) mod row;
pub(crate) mod size;
mod start;
pub(crate) mod state;
mod stats;
mod stop;
mod top;
pub(crate) mod turn;
mod unfinished;
mod update;
pub(crate) mod users;
mod wait;

use std::collections::HashMap;
use std::path::PathBuf;

use bollard_stubs::models;
use corten_db::Durability;
use corten_oci::Platform;
use corten_supervisor::client::{Client, ClientError};
use corten_supervisor::protocol::Refusal;
use futures_util::future::BoxFuture;

use crate::engine::Engine;
use crate::error::EngineError;
use crate::events::{self, Kind};
use row::Container;

pub use archive::{ExtractOptions, PathStatus};
pub use attach::framed;
pub use checkpoint::CheckpointName;
pub use commit::CommitOptions;
pub(crate) use commit::refused as refused_change;
pub(crate) use exec::{set_exit_code as set_exec_exit_code, set_running as set_exec_running};
pub(crate) use networking::parse_mac;
pub use options::{
    AttachOptions, Attached, ByteStream, ExecForm, ExecStart, ListOptions, LogOptions, LogStream,
    RemoveOptions, StopOptions, StreamKind, WaitCondition,
};
pub(crate) use pending::Pending;
pub(crate) use restore::restore;
pub use stats::{SampleStream, Samples};
pub use update::ContainerUpdate;

type Result<T> = std::result::Result<T, EngineError>;

/// The container service. `name` arguments take an id, an unambiguous prefix, or a name.
#[derive(Debug, Clone)]
pub struct Containers(pub(crate) Engine);

/// What events tell of a container: its labels, image and name.
pub(crate) fn attributes(container: &Container) -> HashMap<String, String> {
    let mut attributes = container.config.labels.clone().unwrap_or_default();
    attributes.insert("image".to_owned(), container.image_name.clone());
    attributes.insert("name".to_owned(), container.name.clone());
    attributes
}

/// What owners of containers' leases begin with.
pub(crate) const LEASE_PREFIX: &str = "container:";

/// The owner's name under which the store keeps a container's layers.
pub(crate) fn lease(id: &str) -> String {
    format!("{LEASE_PREFIX}{id}")
}

/// How many processors this machine has.
pub(crate) fn cpus() -> i64 {
    std::thread::available_parallelism().map_or(1, |n| i64::try_from(n.get()).unwrap_or(1))
}

/// How many capabilities this kernel knows.
pub(crate) fn known_capabilities() -> usize {
    // CAP_CHECKPOINT_RESTORE is the newest since Linux 5.9.
    const NEWEST: usize = 40;
    let text = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap");
    text.ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(NEWEST)
        + 1
}

/// Writes a container's event in a transaction of its own.
pub(crate) fn event(engine: &Engine, container: &Container, action: &str, more: &[(&str, String)]) {
    let mut all = attributes(container);
    all.extend(
        more.iter()
            .map(|(key, value)| ((*key).to_owned(), value.clone())),
    );
    let written = engine.write(Durability::Relaxed, |c| {
        events::record(c, Kind::Container, action, &container.id, &all)
    });
    if let Err(error) = written {
        tracing::warn!(container = %container.id, %error, action, "an event was not recorded");
    }
}

/// The supervisor of a container that must be running.
pub(crate) fn supervisor(engine: &Engine, container: &Container) -> Result<Client> {
    Client::find(engine.layout().run(), &container.id)
        .map_err(|error| refused(container, error))?
        .ok_or_else(|| EngineError::NotRunning(container.id.clone()))
}

/// What a supervisor's refusal means to a client of the engine.
pub(crate) fn refused(container: &Container, error: ClientError) -> EngineError {
    refused_by(&container.id, error)
}

/// As [`refused`], of a container by its id.
fn refused_by(id: &str, error: ClientError) -> EngineError {
    match error {
        ClientError::Refused { why, message } => match why {
            Refusal::NoSuchExec => EngineError::NotFound(message),
            Refusal::NotRunning => EngineError::NotRunning(id.to_owned()),
            Refusal::Conflict | Refusal::Busy => EngineError::Conflict(message),
            Refusal::NotExecutable => EngineError::Start { message, code: 126 },
            Refusal::NotFound => EngineError::Start { message, code: 127 },
            Refusal::Failed => EngineError::Unavailable(message),
        },
        // It ended between being found and being asked.
        ClientError::Io { ref source, .. }
            if matches!(
                source.kind(),
                std::io::ErrorKind::NotFound
                    | std::io::ErrorKind::ConnectionRefused
                    | std::io::ErrorKind::ConnectionReset
                    | std::io::ErrorKind::BrokenPipe
                    | std::io::ErrorKind::UnexpectedEof
            ) =>
        {
            EngineError::NotRunning(id.to_owned())
        }
        ClientError::Silent { .. } => EngineError::Unavailable(error.to_string()),
        other => EngineError::Other {
            context: format!("container {id}"),
            source: Box::new(other),
        },
    }
}

impl Containers {
    /// Removes every container, running or not. Part of a reset.
    pub(crate) async fn remove_all(&self) -> Result<()> {
        let all = self.0.read(|c| row::all(c, false)).await?;
        for container in all {
            let options = RemoveOptions {
                force: true,
                volumes: true,
                link: false,
            };
            match remove::remove(&self.0, &container.id, options).await {
                Ok(()) | Err(EngineError::NoSuchContainer(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Finds a container, and makes what is known of it true.
    async fn find(&self, name: &str) -> Result<Container> {
        let name = name.to_owned();
        self.0.brief(move |engine| state::find(engine, &name)).await
    }

    /// Creates a container from an image that is present (404 otherwise).
    ///
    /// # Errors
    /// When the image is missing, the name taken, or the request wrong.
    pub async fn create(
        &self,
        name: Option<&str>,
        body: models::ContainerCreateBody,
        platform: Option<&Platform>,
        starts: bool,
    ) -> Result<models::ContainerCreateResponse> {
        let (name, platform) = (name.map(str::to_owned), platform.cloned());
        // New volumes are filled.
        let is_brief = !create::asks_for_volumes(&body);
        self.0
            .brief_if(is_brief, move |engine| {
                create::create(engine, name.as_deref(), &body, platform.as_ref(), starts)
            })
            .await
    }

    /// Starts it, after what it depends on and what `depends_on` names besides
    /// (`NAME[:started|healthy|completed],…`); `NotModified` when it runs already. `from`: it
    /// goes on from that checkpoint.
    ///
    /// # Errors
    /// [`EngineError::Start`] with the exit code when its program cannot be started.
    pub async fn start(
        &self,
        name: &str,
        depends_on: &str,
        from: Option<CheckpointName>,
    ) -> Result<()> {
        start::start_after(&self.0, name, depends_on, &[], from.as_ref()).await
    }

    /// Saves it, with CRIU; unless it is left running, it ends by that.
    ///
    /// # Errors
    /// When it does not run, there is a checkpoint of that name, or CRIU cannot save it.
    pub async fn checkpoint(
        &self,
        name: &str,
        checkpoint: CheckpointName,
        leave_running: bool,
    ) -> Result<()> {
        checkpoint::create(&self.0, name, checkpoint, leave_running).await
    }

    /// The names of its checkpoints, in its directory or in another.
    ///
    /// # Errors
    /// When there is no such container.
    pub async fn checkpoints(&self, name: &str, within: Option<PathBuf>) -> Result<Vec<String>> {
        let name = name.to_owned();
        self.0
            .blocking(move |engine| checkpoint::list(engine, &name, within.as_deref()))
            .await
    }

    /// Removes a checkpoint.
    ///
    /// # Errors
    /// When there is no such checkpoint, or container.
    pub async fn remove_checkpoint(&self, name: &str, checkpoint: CheckpointName) -> Result<()> {
        let name = name.to_owned();
        self.0
            .blocking(move |engine| checkpoint::remove(engine, &name, &checkpoint))
            .await
    }

    /// Stops it; `NotModified` when it does not run. A warning if it had to be killed, with the
    /// reason and what to do about it.
    ///
    /// # Errors
    /// When there is no such container, or it cannot be killed.
    pub async fn stop(&self, name: &str, options: StopOptions) -> Result<Option<String>> {
        stop::stop(&self.0, name, &options).await
    }

    /// Stops it if it runs, and starts it. A warning as of [`Self::stop`].
    ///
    /// # Errors
    /// As for [`Self::stop`] and [`Self::start`].
    pub async fn restart(&self, name: &str, options: StopOptions) -> Result<Option<String>> {
        stop::restart(&self.0, name, &options).await
    }

    /// Sends a signal (`KILL` when `None`): a name with or without `SIG`, or a number.
    ///
    /// # Errors
    /// A conflict when it does not run.
    pub async fn kill(&self, name: &str, signal: Option<&str>) -> Result<()> {
        stop::kill(&self.0, name, signal).await
    }

    /// Freezes all its processes.
    ///
    /// # Errors
    /// A conflict when it does not run, or is paused already.
    pub async fn pause(&self, name: &str) -> Result<()> {
        stop::pause(&self.0, name).await
    }

    /// Thaws all its processes.
    ///
    /// # Errors
    /// A conflict when it is not paused.
    pub async fn unpause(&self, name: &str) -> Result<()> {
        stop::unpause(&self.0, name).await
    }

    /// Gives it another name.
    ///
    /// # Errors
    /// When the name is taken or is none.
    pub async fn rename(&self, name: &str, new_name: &str) -> Result<()> {
        let (name, new_name) = (name.to_owned(), new_name.to_owned());
        self.0
            .brief(move |engine| rename(engine, &name, &new_name))
            .await
    }

    /// Removes it with its writable layer, log and (on request) anonymous volumes.
    ///
    /// # Errors
    /// A conflict when it runs and `force` is not set.
    pub async fn remove(&self, name: &str, options: RemoveOptions) -> Result<()> {
        remove::remove(&self.0, name, options).await
    }

    /// Registers a wait; when this returns, no exit from now on is missed. The future in
    /// it resolves when the condition is met.
    ///
    /// # Errors
    /// When there is no such container.
    pub async fn wait(
        &self,
        name: &str,
        condition: WaitCondition,
    ) -> Result<BoxFuture<'static, Result<models::ContainerWaitResponse>>> {
        wait::wait(&self.0, name, condition).await
    }

    /// Lists containers, newest first.
    ///
    /// # Errors
    /// When a filter is wrong.
    pub async fn list(&self, options: ListOptions) -> Result<Vec<models::ContainerSummary>> {
        self.0
            .brief_if(!options.size, move |engine| list::list(engine, &options))
            .await
    }

    /// Everything about one container; `size` computes its disk usage too.
    ///
    /// # Errors
    /// When there is no such container.
    pub async fn inspect(
        &self,
        name: &str,
        size: bool,
    ) -> Result<models::ContainerInspectResponse> {
        let name = name.to_owned();
        self.0
            .brief_if(!size, move |engine| inspect::inspect(engine, &name, size))
            .await
    }

    /// Its logged output.
    ///
    /// # Errors
    /// When its logging driver keeps nothing that could be read.
    pub async fn logs(&self, name: &str, options: LogOptions) -> Result<LogStream> {
        logs::logs(&self.0, name, options).await
    }

    /// Attaches to its streams. A container that does not run yet may be attached to: the
    /// stream comes alive with its start, and misses nothing.
    ///
    /// # Errors
    /// When there is no such container, or it is paused or restarting.
    pub async fn attach(&self, name: &str, options: AttachOptions) -> Result<Attached> {
        attach::attach(&self.0, name, options).await
    }

    /// Tells its terminal how many rows and columns it has.
    ///
    /// # Errors
    /// A conflict when it does not run or has no terminal.
    pub async fn resize(&self, name: &str, rows: u16, columns: u16) -> Result<()> {
        let container = self.find(name).await?;
        let size = corten_supervisor::Size {
            rows,
            cols: columns,
        };
        supervisor(&self.0, &container)?
            .resize(size)
            .await
            .map_err(|error| refused(&container, error))
    }

    /// Its processes, as `ps` with these arguments would show them (`-ef` when `None`).
    ///
    /// # Errors
    /// When it does not run.
    pub async fn top(
        &self,
        name: &str,
        args: Option<&str>,
    ) -> Result<models::ContainerTopResponse> {
        let (name, args) = (name.to_owned(), args.map(str::to_owned));
        self.0
            .blocking(move |engine| top::top(engine, &name, args.as_deref()))
            .await
    }

    /// What it uses.
    ///
    /// # Errors
    /// When there is no such container.
    pub async fn stats(&self, name: &str, samples: Samples) -> Result<SampleStream> {
        stats::stats(&self.0, name, samples).await
    }

    /// Gives it other limits, another restart policy or other published ports; what is not mentioned
    /// stays.
    ///
    /// # Errors
    /// When a limit is wrong or cannot be enforced; then nothing has changed. When a port is taken; then
    /// the ports are what they were.
    pub async fn update(
        &self,
        name: &str,
        update: ContainerUpdate,
    ) -> Result<models::ContainerUpdateResponse> {
        update::update(&self.0, name, update).await
    }

    /// What it changed in its file system.
    ///
    /// # Errors
    /// When its writable layer cannot be read.
    pub async fn changes(&self, name: &str) -> Result<Vec<models::FilesystemChange>> {
        let name = name.to_owned();
        self.0
            .blocking(move |engine| changes::changes(engine, &name))
            .await
    }

    /// Makes an image of it: its image's layers, and one of what it changed.
    ///
    /// # Errors
    /// A conflict when it is being removed; when an instruction is not allowed, or its
    /// writable layer cannot be read.
    pub async fn commit(
        &self,
        name: &str,
        options: CommitOptions,
    ) -> Result<corten_store::ImageId> {
        commit::commit(&self.0, name, options).await
    }

    /// All its files as a tar; volumes are empty directories in it.
    ///
    /// # Errors
    /// When there is no such container, or its layers cannot be mounted.
    pub async fn export(&self, name: &str) -> Result<crate::Outflow> {
        commit::export(&self.0, name).await
    }

    /// What is at a path in it.
    ///
    /// # Errors
    /// When there is nothing, or its files cannot be mounted.
    pub async fn path_status(&self, name: &str, path: &str) -> Result<PathStatus> {
        let (name, path) = (name.to_owned(), path.to_owned());
        self.0
            .blocking(move |engine| archive::status(engine, &name, &path))
            .await
    }

    /// What is at a path in it, as a tar; a name that ends in `/.` stands for a directory's
    /// content.
    ///
    /// # Errors
    /// As for [`Self::path_status`].
    pub async fn archive(&self, name: &str, path: &str) -> Result<(PathStatus, crate::Outflow)> {
        let (name, path) = (name.to_owned(), path.to_owned());
        self.0
            .blocking(move |engine| archive::archive(engine, &name, &path))
            .await
    }

    /// Unpacks a tar, compressed or not, in a directory of it.
    ///
    /// # Errors
    /// When there is no such directory, it may not be written to, or the tar is damaged.
    pub async fn extract(
        &self,
        name: &str,
        path: &str,
        tar: impl std::io::Read + Send + 'static,
        options: ExtractOptions,
    ) -> Result<()> {
        let (name, path) = (name.to_owned(), path.to_owned());
        self.0
            .blocking(move |engine| archive::extract(engine, &name, &path, tar, options))
            .await
    }

    /// Removes every stopped container that the filters (`until`, `label`) select.
    ///
    /// # Errors
    /// When a filter is wrong.
    pub async fn prune(&self, filters: crate::Filters) -> Result<models::ContainerPruneResponse> {
        self.0
            .blocking(move |engine| remove::prune(engine, &filters))
            .await
    }

    /// Prepares a further process in a running container.
    ///
    /// # Errors
    /// A conflict when it does not run or is paused.
    pub async fn exec_create(
        &self,
        name: &str,
        config: models::ExecConfig,
    ) -> Result<models::IdResponse> {
        exec::create(&self.0, name, config).await
    }

    /// Starts it; the streams unless detached.
    ///
    /// # Errors
    /// When there is no such exec instance, or its container has ended.
    pub async fn exec_start(&self, exec: &str, start: ExecStart) -> Result<Option<Attached>> {
        exec::start(&self.0, exec, start).await
    }

    /// What is to be known before it is started.
    ///
    /// # Errors
    /// When there is no such exec instance.
    pub async fn exec_form(&self, exec: &str) -> Result<ExecForm> {
        exec::form(&self.0, exec).await
    }

    /// Its state and exit code.
    ///
    /// # Errors
    /// When there is no such exec instance.
    pub async fn exec_inspect(&self, exec: &str) -> Result<models::ExecInspectResponse> {
        exec::inspect(&self.0, exec).await
    }

    /// Tells its terminal how many rows and columns it has.
    ///
    /// # Errors
    /// When there is no such exec instance, or it has no terminal.
    pub async fn exec_resize(&self, exec: &str, rows: u16, columns: u16) -> Result<()> {
        exec::resize(&self.0, exec, rows, columns).await
    }
}

/// Renames a container. Blocks.
fn rename(engine: &Engine, name: &str, new_name: &str) -> Result<()> {
    use crate::parse::{bad, names};
    if new_name.is_empty() {
        return Err(bad("Neither old nor new names may be empty"));
    }
    let refused = |error: EngineError| {
        let message = format!("Error when allocating new name: {error}");
        match error {
            EngineError::NameInUse { .. } => EngineError::Conflict(message),
            _ => bad(message),
        }
    };
    engine.write(Durability::Synced, |c| {
        let container = row::find(c, name)?;
        if container.name == new_name.strip_prefix('/').unwrap_or(new_name) {
            return Err(bad(
                "Renaming a container with the same name as its current name",
            ));
        }
        let slashed = format!("/{}", new_name.strip_prefix('/').unwrap_or(new_name));
        let new_name = names::container_name(&slashed).map_err(refused)?.to_owned();
        match row::rename(c, &container.id, &new_name) {
            Err(error @ EngineError::NameInUse { .. }) => return Err(refused(error)),
            other => other?,
        }
        let renamed = row::Container {
            name: new_name.clone(),
            ..container.clone()
        };
        endpoints::rename(c, &renamed)?;
        let mut attributes = attributes(&container);
        attributes.insert("name".to_owned(), new_name.clone());
        attributes.insert("oldName".to_owned(), format!("/{}", container.name));
        events::record(c, Kind::Container, "rename", &container.id, &attributes)
    })
}
