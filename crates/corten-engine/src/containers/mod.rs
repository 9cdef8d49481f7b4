//! Containers: everything the Engine API's `/containers` and `/exec` do.

mod options;

use bollard_stubs::models;
use corten_oci::Platform;
use futures_util::future::BoxFuture;

use crate::engine::Engine;
use crate::error::EngineError;

pub use options::{
    AttachOptions, Attached, ByteStream, ExecStart, ListOptions, LogOptions, LogStream,
    RemoveOptions, StopOptions, StreamKind, WaitCondition,
};

type Result<T> = std::result::Result<T, EngineError>;

/// The container service. `name` arguments take an id, an unambiguous prefix, or a name.
#[derive(Debug, Clone)]
pub struct Containers(pub(crate) Engine);

impl Containers {
    /// Creates a container from an image that is present (404 otherwise).
    pub async fn create(
        &self,
        name: Option<&str>,
        body: models::ContainerCreateBody,
        platform: Option<&Platform>,
    ) -> Result<models::ContainerCreateResponse> {
        let _ = (name, body, platform);
        todo!()
    }
    /// Starts it; `NotModified` when it runs already.
    pub async fn start(&self, name: &str) -> Result<()> {
        let _ = name;
        todo!()
    }
    /// Stops it; `NotModified` when it does not run.
    pub async fn stop(&self, name: &str, options: StopOptions) -> Result<()> {
        let _ = (name, options);
        todo!()
    }
    /// Stops it if it runs, and starts it.
    pub async fn restart(&self, name: &str, options: StopOptions) -> Result<()> {
        let _ = (name, options);
        todo!()
    }
    /// Sends a signal (`KILL` when `None`): a name with or without `SIG`, or a number.
    pub async fn kill(&self, name: &str, signal: Option<&str>) -> Result<()> {
        let _ = (name, signal);
        todo!()
    }
    /// Freezes all its processes.
    pub async fn pause(&self, name: &str) -> Result<()> {
        let _ = name;
        todo!()
    }
    /// Thaws all its processes.
    pub async fn unpause(&self, name: &str) -> Result<()> {
        let _ = name;
        todo!()
    }
    /// Gives it another name.
    pub async fn rename(&self, name: &str, new_name: &str) -> Result<()> {
        let _ = (name, new_name);
        todo!()
    }
    /// Removes it with its writable layer, log and (on request) anonymous volumes.
    pub async fn remove(&self, name: &str, options: RemoveOptions) -> Result<()> {
        let _ = (name, options);
        todo!()
    }
    /// Registers a wait; when this returns, no exit from now on is missed. The future in
    /// it resolves when the condition is met.
    pub async fn wait(
        &self,
        name: &str,
        condition: WaitCondition,
    ) -> Result<BoxFuture<'static, Result<models::ContainerWaitResponse>>> {
        let _ = (name, condition);
        todo!()
    }
    /// Lists containers, newest first.
    pub async fn list(&self, options: ListOptions) -> Result<Vec<models::ContainerSummary>> {
        let _ = options;
        todo!()
    }
    /// Everything about one container; `size` computes its disk usage too.
    pub async fn inspect(
        &self,
        name: &str,
        size: bool,
    ) -> Result<models::ContainerInspectResponse> {
        let _ = (name, size);
        todo!()
    }
    /// Its logged output.
    pub async fn logs(&self, name: &str, options: LogOptions) -> Result<LogStream> {
        let _ = (name, options);
        todo!()
    }
    /// Attaches to its streams. A container that does not run yet may be attached to: the
    /// stream comes alive with its start, and misses nothing.
    pub async fn attach(&self, name: &str, options: AttachOptions) -> Result<Attached> {
        let _ = (name, options);
        todo!()
    }
    /// Tells its terminal how many rows and columns it has.
    pub async fn resize(&self, name: &str, rows: u16, columns: u16) -> Result<()> {
        let _ = (name, rows, columns);
        todo!()
    }
    /// Its processes, as `ps` with these arguments would show them (`-ef` when `None`).
    pub async fn top(
        &self,
        name: &str,
        args: Option<&str>,
    ) -> Result<models::ContainerTopResponse> {
        let _ = (name, args);
        todo!()
    }
    /// What it changed in its file system.
    pub async fn changes(&self, name: &str) -> Result<Vec<models::FilesystemChange>> {
        let _ = name;
        todo!()
    }
    /// Removes every stopped container that the filters (`until`, `label`) select.
    pub async fn prune(&self, filters: crate::Filters) -> Result<models::ContainerPruneResponse> {
        let _ = filters;
        todo!()
    }
    /// Prepares a further process in a running container.
    pub async fn exec_create(
        &self,
        name: &str,
        config: models::ExecConfig,
    ) -> Result<models::IdResponse> {
        let _ = (name, config);
        todo!()
    }
    /// Starts it; the streams unless detached.
    pub async fn exec_start(&self, exec: &str, start: ExecStart) -> Result<Option<Attached>> {
        let _ = (exec, start);
        todo!()
    }
    /// Its state and exit code.
    pub async fn exec_inspect(&self, exec: &str) -> Result<models::ExecInspectResponse> {
        let _ = exec;
        todo!()
    }
    /// Tells its terminal how many rows and columns it has.
    pub async fn exec_resize(&self, exec: &str, rows: u16, columns: u16) -> Result<()> {
        let _ = (exec, rows, columns);
        todo!()
    }
}
