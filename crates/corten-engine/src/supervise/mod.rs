//! The `corten supervise` face: the engine's side of a container's supervisor.

mod host;
mod log;
mod network;
mod propagation;
pub(crate) mod rooted;
mod users;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use corten_supervisor::{Launch, Summons};
pub use corten_supervisor::{look_up, lower};

use crate::engine::Engine;
pub(crate) use host::namespace_of;
pub(crate) use network::request;

/// Runs the supervisor of one container: `--root DIR <id>`. Must be called before any
/// thread exists.
#[must_use]
pub fn main(args: &[OsString]) -> ExitCode {
    // The host's binary stays out of the container's reach (CVE-2019-5736). Before anything
    // is received: this executes the program again.
    let sealed = corten_runtime::exe::seal_self();
    let summons = match Summons::answer() {
        Ok(summons) => summons,
        Err(error) => {
            // Somebody tries it by hand.
            tracing::error!(%error, "not started by the engine");
            return ExitCode::from(125);
        }
    };
    // Before anything is opened: the root may be gone as well.
    if !summons.is_open() {
        tracing::debug!("not needed after all");
        return ExitCode::from(125);
    }
    let prepared = match (sealed, args) {
        (Err(error), _) => Err(error.to_string()),
        (Ok(()), [flag, root, id]) if flag == "--root" => {
            open(root.as_ref()).map(|engine| (engine, id.to_string_lossy()))
        }
        _ => Err("supervise: expected --root DIR ID".to_owned()),
    };
    // It may have been summoned before its container was made.
    let launch = match summons.wait() {
        Ok(launch) => launch,
        Err(error) => {
            tracing::debug!(%error, "not needed after all");
            return ExitCode::from(125);
        }
    };
    let (engine, id) = match prepared {
        Ok(prepared) => prepared,
        Err(message) => return give_up(launch, &message),
    };
    let run = engine.layout().run().to_owned();
    let host = host::EngineHost::new(engine, id.clone().into_owned());
    match corten_supervisor::supervise(Box::new(host), &run, &id, launch) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(container = %id, %error, "supervisor failed");
            ExitCode::FAILURE
        }
    }
}

fn open(root: &Path) -> Result<Engine, String> {
    // A container may have filled the disk; what is written of its end is little, and it may be
    // what frees the disk.
    crate::may_use_reserve();
    Engine::open_existing(root).map_err(|error| error.to_string())
}

fn give_up(launch: Launch, message: &str) -> ExitCode {
    if let Err(error) = launch.fail(125, message) {
        tracing::error!(message, %error, "the launcher is gone");
    }
    ExitCode::FAILURE
}
