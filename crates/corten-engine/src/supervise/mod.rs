//! The `corten supervise` face: the engine's side of a container's supervisor.

use std::process::ExitCode;

/// Runs the supervisor of one container: `--root DIR <id>`. Must be called before any
/// thread exists.
#[must_use]
pub fn main(args: &[std::ffi::OsString]) -> ExitCode {
    let _ = args;
    todo!()
}
