//! `top`: a container's processes, in the columns that arguments of `ps` ask for. They are read from
//! procfs; for arguments that do more than choose columns the host's `ps` is run, never the container's.

mod columns;
mod process;
mod ps;

use bollard_stubs::models::ContainerTopResponse;

use super::row::Status;
use super::state;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::bad;
use columns::{Columns, Unknown};
use process::{Host, Process};

type Result<T> = std::result::Result<T, EngineError>;

/// Headers, and a row for each process.
#[derive(Debug)]
struct Table {
    titles: Vec<String>,
    rows: Vec<Vec<String>>,
}

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
    let arguments = args.unwrap_or("-ef");
    ps::renamed(arguments).map_err(bad)?;
    let columns = Columns::parse(arguments);
    let pids = crate::sweep::cgroup_pids(&state::cgroup_path(engine, &container));
    let table = match columns {
        Ok(columns) => shown(&columns, &pids),
        Err(Unknown::Wrong(why)) => return Err(bad(why)),
        Err(Unknown::ToUs) => ps::run(arguments, &pids).map_err(bad)?,
    };
    super::event(engine, &container, "top", &[]);
    Ok(ContainerTopResponse {
        titles: Some(table.titles),
        processes: Some(table.rows),
    })
}

fn shown(columns: &Columns, pids: &[i32]) -> Table {
    let host = Host::read();
    let processes = pids.iter().filter_map(|pid| Process::read(*pid, &host));
    Table {
        titles: columns.titles(),
        rows: processes
            .map(|process| columns.row(&process, &host))
            .collect(),
    }
}
