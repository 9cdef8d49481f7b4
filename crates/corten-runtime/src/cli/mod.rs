//! `corten runtime`: runc's command line over this crate, for container engines that
//! drive an OCI runtime as a program (runtime-spec, runtime "Operations"). Commands,
//! flags, defaults, exit codes and JSON are runc's, because engines depend on them; one
//! file per command.
//!
//! State is one directory per container below `--root` (see [`state`]). Whoever changes a
//! container holds the lock of its directory. Errors are one line on standard error and,
//! as engines expect it, in the file of `--log`.

mod args;
mod bundle;
mod checkpoint;
mod console;
mod create;
mod delete;
mod dir;
mod error;
mod events;
mod exec;
mod features;
mod files;
mod inherit;
mod kill;
mod list;
mod log;
mod notify;
mod pause;
mod ps;
mod recover;
mod restore;
mod run;
mod signals;
mod spec;
mod start;
mod state;
mod stream;
mod update;
mod users;
mod witness;
mod words;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use args::{Globals, parse};
pub(crate) use error::CliError;
use log::Log;

/// The runtime-spec this runtime implements.
const SPEC_VERSION: &str = "1.3.0";

/// What commands share.
#[derive(Debug)]
struct Context {
    /// Directory of the containers' directories; absolute.
    root: PathBuf,
    /// Control groups are made by systemd.
    systemd_cgroup: bool,
    /// Whether to go on without a control group if none may be made.
    rootless: Option<bool>,
    log: Log,
}

/// Runs the command line `args` (without the program's name). The process must be
/// single-threaded.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let (globals, name, rest) = match args::globals(args) {
        Ok(parsed) => parsed,
        Err(error) => return fail(&Log::default(), &error),
    };
    let log = globals.log();
    if let Err(error) = log.check() {
        return fail(&Log::default(), &error);
    }
    // The first face of a process that reports; another cannot have been there.
    tracing::subscriber::set_global_default(log::Events(log.clone())).ok();
    match dispatch(globals, &name, rest) {
        Ok(code) => code,
        Err(error) => fail(&log, &error),
    }
}

fn fail(log: &Log, error: &CliError) -> ExitCode {
    if let CliError::Help(text) = error {
        // Not an error: what `--help` and `--version` asked for.
        let printed = std::io::stdout().write_all(text.as_bytes());
        return ExitCode::from(u8::from(printed.is_err()));
    }
    log.error(error);
    ExitCode::from(error.exit_code())
}

fn dispatch(globals: Globals, name: &str, rest: Vec<OsString>) -> Result<ExitCode, CliError> {
    let is_help = |name: &str| matches!(name, "help" | "h");
    if is_help(name) {
        let asked = rest.first().map(|name| name.to_string_lossy().into_owned());
        return match asked.filter(|name| !is_help(name)) {
            Some(name) => dispatch(globals, &name, vec!["--help".into()]),
            None => Err(args::help()),
        };
    }
    let context = &globals.context()?;
    match name {
        "create" => create::create(context, parse(name, rest)?),
        "start" => start::start(context, &parse(name, rest)?),
        "run" => run::run(context, parse(name, rest)?),
        "state" => state::state(context, &parse(name, rest)?),
        "kill" => kill::kill(context, &parse(name, rest)?),
        "delete" => delete::delete(context, &parse(name, rest)?),
        "exec" => exec::exec(context, &parse(name, rest)?).map_err(CliError::of_exec),
        "ps" => ps::ps(context, &parse(name, rest)?),
        "list" => list::list(context, &parse(name, rest)?),
        "pause" => pause::pause(context, &parse(name, rest)?),
        "resume" => pause::resume(context, &parse(name, rest)?),
        "update" => update::update(context, &parse(name, rest)?),
        "events" => events::events(context, &parse(name, rest)?),
        "checkpoint" => checkpoint::checkpoint(context, parse(name, rest)?),
        "restore" => restore::restore(context, parse(name, rest)?),
        "spec" => spec::spec(&parse(name, rest)?),
        "features" => features::features(&parse(name, rest)?),
        _ => Err(CliError::NoCommand(name.to_owned())),
    }
}

/// Writes to standard output.
fn print(text: &str) -> Result<ExitCode, CliError> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| CliError::io("write to standard output", error))?;
    Ok(ExitCode::SUCCESS)
}

/// One document on a line of its own.
fn print_json(value: &impl serde::Serialize) -> Result<ExitCode, CliError> {
    let text = serde_json::to_string(value).map_err(|error| CliError::json("output", error))?;
    print(&format!("{text}\n"))
}
