//! The corten binary: picks a face.
//!
//! Three faces are internal and must run before any thread exists, because processes are
//! cloned from them: `supervise` (beside each container), `build-step` (around each RUN) and
//! `delete-rubbish` (after the removal of an image). Two more do what supervisors cannot wait for:
//! `look-up` finds a log host's address, `lower-limit` lowers a limit of memory.
//! `runtime` (or the name `corten-runtime`) is the OCI runtime, `registry` the registry
//! server; everything else is the command line, which also serves the API (`serve`).

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal as _;
use std::path::Path;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    match args.get(1).and_then(|word| word.to_str()) {
        Some("supervise") => return corten_engine::supervise::main(&args[2..]),
        Some("build-step") => return corten_build::step::main(&args[2..]),
        Some(corten_engine::supervise::look_up::FACE) => {
            return corten_engine::supervise::look_up::main(&args[2..]);
        }
        Some(corten_engine::supervise::lower::FACE) => {
            return corten_engine::supervise::lower::main(&args[2..]);
        }
        Some(corten_engine::rubbish::FACE) => return corten_engine::rubbish::main(),
        // Without the command line's tables: engines start it for every container.
        Some("runtime") => return corten_runtime::cli::main(args.into_iter().skip(2).collect()),
        _ => {}
    }
    let program = args.first().map(Path::new).and_then(Path::file_name);
    if program == Some(OsStr::new("corten-runtime")) {
        return corten_runtime::cli::main(args.into_iter().skip(1).collect());
    }
    let faces = corten_cli::Faces {
        registry: |args, files| {
            let files = corten_registryd::ClientFiles {
                root: files.root,
                config: Some(files.config),
            };
            corten_registryd::main_with(args.into_iter().map(OsString::from), &files)
        },
        runtime: |args| corten_runtime::cli::main(args.into_iter().map(OsString::from).collect()),
        log: start_logging,
    };
    corten_cli::main(args, faces)
}

/// Logs to standard error at a level, or as `RUST_LOG` says.
fn start_logging(level: &str) {
    let filter = EnvFilter::try_from_default_env()
        .or_else(|_| EnvFilter::try_new(level))
        .unwrap_or_else(|_| EnvFilter::new("info"));
    let started = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .try_init();
    if started.is_err() {
        tracing::debug!("logging was started already");
    }
}
