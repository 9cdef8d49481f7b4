//! The `corten supervise` face: the engine's side of a container's supervisor.

mod host;
mod log;
mod network;
mod propagation;
pub(crate) mod rooted;
mod users;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use corten_supervisor::Launch;
pub use corten_supervisor::look_up;

use crate::engine::{Engine, EngineOptions};
pub(crate) use host::namespace_of;

/// Runs the supervisor of one container: `--root DIR <id>`. Must be called before any
/// thread exists.
#[must_use]
pub fn main(args: &[OsString]) -> ExitCode {
    // The host's binary stays out of the container's reach (CVE-2019-5736). Before anything
    // is received: this executes the program again.
    let sealed = corten_runtime::exe::seal_self();
    let launch = match Launch::receive() {
        Ok(launch) => launch,
        Err(error) => {
            // Somebody tries it by hand.
            tracing::error!(%error, "not started by the engine");
            return ExitCode::from(125);
        }
    };
    if let Err(error) = sealed {
        return give_up(launch, &error.to_string());
    }
    let (root, id) = match args {
        [flag, root, id] if flag == "--root" => (PathBuf::from(root), id.to_string_lossy()),
        _ => return give_up(launch, "supervise: expected --root DIR ID"),
    };
    // A container may have filled the disk; what is written of its end is little, and it may be
    // what frees the disk.
    crate::may_use_reserve();
    let engine = match Engine::open(EngineOptions {
        root: Some(root),
        anew: false,
    }) {
        Ok(engine) => engine,
        Err(error) => return give_up(launch, &error.to_string()),
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

fn give_up(launch: Launch, message: &str) -> ExitCode {
    if let Err(error) = launch.fail(125, message) {
        tracing::error!(message, %error, "the launcher is gone");
    }
    ExitCode::FAILURE
}
