//! `top`: a container's processes, read from procfs, in the columns that arguments of `ps` ask
//! for. No `ps` is run, neither the host's nor the container's.

mod columns;
mod process;

use bollard_stubs::models::ContainerTopResponse;

use super::row::Status;
use super::state;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::bad;
use columns::Columns;
use process::{Host, Process};

type Result<T> = std::result::Result<T, EngineError>;

/// The processes of a container. Blocks.
pub(super) fn top(engine: &Engine, name: &str, args: Option<&str>) -> Result<ContainerTopResponse> {
    let container = state::find(engine, name)?;
    if container.status == Status::Restarting {
        return Err(EngineError::Conflict(format!(
            "Container {} is restarting, wait until the container is running",
            container.id
        )));
    }
    if !container.status.is_live() {
        return Err(EngineError::NotRunning(container.id));
    }
    let columns = Columns::parse(args.unwrap_or("-ef")).map_err(bad)?;
    let pids = crate::sweep::cgroup_pids(&state::cgroup_path(engine, &container));
    let host = Host::read();
    let processes = pids
        .into_iter()
        .filter_map(|pid| Process::read(pid, &host))
        .map(|process| columns.row(&process, &host))
        .collect();
    super::event(engine, &container, "top", &[]);
    Ok(ContainerTopResponse {
        titles: Some(columns.titles()),
        processes: Some(processes),
    })
}
