//! From arguments to an exit code: global flags, the command, its help, its errors.

use std::cell::OnceCell;
use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::client::Client;
use crate::command::{Action, Command, Face};
use crate::commands::ROOT;
use crate::config::ConfigFile;
use crate::error::{CliError, Result};
use crate::flags::{self, FlagError, Outcome, Parsed};
use crate::globals::{self, Globals};
use crate::term;

/// Exit code of a flag that could not be understood (Docker's).
const BAD_FLAG: u8 = 125;
/// How long the engine in this process may tidy up after a signal.
const TIDYING: Duration = Duration::from_secs(10);

/// Where the files are that commands speak to registries with.
#[derive(Debug)]
pub struct UserFiles {
    /// The engine's root, if one was named.
    pub root: Option<PathBuf>,
    /// The directory of Docker's `config.json`.
    pub config: PathBuf,
}

/// What the binary does for us.
#[derive(Debug, Clone, Copy)]
pub struct Faces {
    /// `registry …`: arguments after the word, and where the user's files are.
    pub registry: fn(Vec<String>, UserFiles) -> ExitCode,
    /// `runtime …`: arguments after the word.
    pub runtime: fn(Vec<String>) -> ExitCode,
    /// Starts logging at a level (`debug`, `info`, …).
    pub log: fn(&str),
}

/// What every command has at hand.
#[derive(Debug)]
pub struct Cli {
    /// Name we were called by: `corten`, or `docker`.
    pub program: String,
    pub(crate) globals: Globals,
    pub(crate) faces: Faces,
    client: OnceCell<Client>,
    config: OnceCell<ConfigFile>,
}

impl Cli {
    pub(crate) fn new(program: String, globals: Globals, faces: Faces) -> Self {
        Self {
            program,
            globals,
            faces,
            client: OnceCell::new(),
            config: OnceCell::new(),
        }
    }

    /// The client, made on first use.
    pub(crate) fn client(&self) -> Result<&Client> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let client = Client::from_globals(&self.globals, self.config())?;
        Ok(self.client.get_or_init(|| client))
    }

    /// The configuration file, read on first use.
    pub(crate) fn config(&self) -> &ConfigFile {
        self.config.get_or_init(|| {
            let config = ConfigFile::load(&self.globals.config_dir);
            if let Some(damage) = &config.damage {
                self.complain(format!("WARNING: Error {damage}"));
            }
            config
        })
    }

    /// Writes to standard output as it is.
    pub(crate) fn print(&self, text: &str) -> Result {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()?;
        Ok(())
    }

    /// Writes a line to standard output.
    pub(crate) fn line(&self, text: impl AsRef<str>) -> Result {
        self.print(&format!("{}\n", text.as_ref()))
    }

    /// Writes a line to standard error; whether anybody reads it does not matter.
    pub(crate) fn complain(&self, text: impl std::fmt::Display) {
        if writeln!(std::io::stderr(), "{text}").is_err() {
            tracing::debug!("standard error is closed");
        }
    }
}

/// Runs the command line.
pub fn main(args: impl IntoIterator<Item = OsString>, faces: Faces) -> ExitCode {
    let mut args = args.into_iter();
    let program = match args
        .next()
        .as_deref()
        .map(Path::new)
        .and_then(Path::file_name)
    {
        Some(name) if name == "docker" => "docker".to_owned(),
        _ => "corten".to_owned(),
    };
    let args: std::result::Result<Vec<String>, OsString> =
        args.map(OsString::into_string).collect();
    let code = match args {
        Ok(args) => dispatch(&program, args, faces),
        Err(arg) => {
            eprintln_line(&format!("{program}: argument {arg:?} is not UTF-8"));
            Exit(BAD_FLAG)
        }
    };
    match code {
        Exit(code) => ExitCode::from(code),
        Face_(code) => code,
    }
}

enum Code {
    Exit(u8),
    Face_(ExitCode),
}
use Code::{Exit, Face_};

fn dispatch(program: &str, args: Vec<String>, faces: Faces) -> Code {
    let flags = match flags::parse(&[globals::FLAGS], false, args) {
        Ok(Outcome::Parsed(flags)) => flags,
        Ok(Outcome::Help) => return print_help(&root_help(program)),
        Err(error) => {
            return complain(
                &format!(
                    "{error}\n\nUsage:  {program} [OPTIONS] COMMAND [ARG...]\n\nRun '{program} --help' for more information"
                ),
                BAD_FLAG,
            );
        }
    };
    let globals = match Globals::from_flags(&flags) {
        Ok(globals) => globals,
        Err(error) => return complain(&format!("{program}: {error}"), 1),
    };
    if flags.on("version") {
        return print_help(&format!(
            "{} version {}\n",
            title(program),
            env!("CARGO_PKG_VERSION")
        ));
    }
    let mut words = flags.args;
    if words.is_empty() {
        return print_help(&root_help(program));
    }
    let asked_for_help = words[0] == "help";
    if asked_for_help {
        words.remove(0);
    }
    let (path, command, rest) = match find(program, words) {
        Ok(found) => found,
        Err(message) => return complain(&message, 1),
    };
    if asked_for_help {
        return print_help(&help(&path, command));
    }
    match command.action {
        Action::Group(_) => print_help(&help(&path, command)),
        Action::Face(Face::Registry) => {
            let files = UserFiles {
                root: globals.root,
                config: globals.config_dir,
            };
            Face_((faces.registry)(rest, files))
        }
        Action::Face(Face::Runtime) => Face_((faces.runtime)(rest)),
        Action::Run(run) => {
            let parsed = match flags::parse(command.flags, command.interspersed, rest) {
                Ok(Outcome::Parsed(parsed)) => parsed,
                Ok(Outcome::Help) => return print_help(&help(&path, command)),
                Err(error) => return bad_flag(&path, command, &error),
            };
            if let Some((complaint, word)) = command.arity.complaint(parsed.args.len()) {
                return complain(
                    &format!(
                        "{program}: '{path}' {complaint}\n\n{}\n\n{word} '{path} --help' for more information",
                        usage_line(&path, command)
                    ),
                    1,
                );
            }
            Exit(execute(
                Cli::new(program.to_owned(), globals, faces),
                command,
                run,
                parsed,
            ))
        }
    }
}

fn execute(
    cli: Cli,
    command: &Command,
    run: for<'a> fn(&'a Cli, Parsed) -> crate::command::Running<'a>,
    parsed: Parsed,
) -> u8 {
    start_logging(&cli, command);
    if !command.fills {
        corten_engine::may_use_reserve();
    }
    let mut builder = if command.heavy {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            cli.complain(format!("{}: cannot start: {error}", cli.program));
            return 1;
        }
    };
    let result = runtime.block_on(run(&cli, parsed));
    match &result {
        // The engine in this process ends what it does and takes away what it made for it.
        Err(CliError::Interrupted { .. }) => corten_build::end_threads(runtime, TIDYING),
        // A thread may be blocked reading standard input; nobody waits for it.
        _ => runtime.shutdown_background(),
    }
    match result {
        Ok(()) => 0,
        Err(error) if error.is_broken_pipe() => 1,
        Err(error) => {
            let text = error.to_string();
            if !text.is_empty() {
                cli.complain(text);
            }
            error.code()
        }
    }
}

/// A server logs; a command line does so only when asked.
fn start_logging(cli: &Cli, command: &Command) {
    let asked = cli
        .globals
        .debug
        .then(|| "debug".to_owned())
        .or_else(|| cli.globals.log_level.clone());
    let asked = asked.or_else(|| (command.name == "serve").then(|| "info".to_owned()));
    if let Some(level) = asked {
        (cli.faces.log)(&level);
    } else if std::env::var_os("RUST_LOG").is_some() {
        (cli.faces.log)("warn");
    }
}

/// Finds the command that the words name; the words left over are its arguments.
fn find(
    program: &str,
    words: Vec<String>,
) -> std::result::Result<(String, &'static Command, Vec<String>), String> {
    let mut command: &'static Command = &ROOT;
    let mut path = program.to_owned();
    let mut words = words.into_iter().peekable();
    while let Action::Group(commands) = command.action {
        let Some(word) = words.peek() else { break };
        if word.starts_with('-') {
            if word == "--help" || word == "-h" {
                return Ok((path, command, Vec::new()));
            }
            return Err(format!(
                "unknown flag: {word}\n\n{}\n\nRun '{path} --help' for more information",
                usage_line(&path, command)
            ));
        }
        let Some(found) = commands.iter().copied().find(|c| c.answers_to(word)) else {
            let usage = if path == program {
                String::new()
            } else {
                format!("Usage:  {path}\n\n")
            };
            return Err(format!(
                "{program}: unknown command: {path} {word}{}\n\n{usage}Run '{path} --help' for more information",
                did_you_mean(commands, word)
            ));
        };
        command = found;
        path = format!("{path} {}", found.name);
        words.next();
    }
    Ok((path, command, words.collect()))
}

fn did_you_mean(commands: &[&Command], word: &str) -> String {
    commands
        .iter()
        .filter(|c| !c.hidden)
        .map(|c| (strsim::damerau_levenshtein(c.name, word), c.name))
        .filter(|(distance, _)| *distance <= 2)
        .min()
        .map_or_else(String::new, |(_, name)| {
            format!("\n\nDid you mean '{name}'?")
        })
}

fn bad_flag(path: &str, command: &Command, error: &FlagError) -> Code {
    complain(
        &format!(
            "{error}\n\n{}\n\nRun '{path} --help' for more information",
            usage_line(path, command)
        ),
        BAD_FLAG,
    )
}

fn complain(text: &str, code: u8) -> Code {
    eprintln_line(text);
    Exit(code)
}

fn eprintln_line(text: &str) {
    if writeln!(std::io::stderr(), "{text}").is_err() {
        tracing::debug!("standard error is closed");
    }
}

fn print_help(text: &str) -> Code {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => Exit(0),
        Err(_) => Exit(1),
    }
}

fn title(program: &str) -> String {
    let mut chars = program.chars();
    chars
        .next()
        .map_or_else(String::new, |c| c.to_uppercase().chain(chars).collect())
}

fn usage_line(path: &str, command: &Command) -> String {
    let options = if command.flags.iter().any(|t| t.iter().any(|f| !f.hidden)) {
        " [OPTIONS]"
    } else {
        ""
    };
    let usage = if command.usage.is_empty() {
        String::new()
    } else {
        format!(" {}", command.usage)
    };
    format!("Usage:  {path}{options}{usage}")
}

fn listing(commands: &[&Command]) -> String {
    let width = commands
        .iter()
        .map(|c| c.name.len())
        .max()
        .unwrap_or(0)
        .max(11);
    commands
        .iter()
        .map(|c| format!("  {:width$} {}\n", c.name, c.about))
        .collect()
}

/// The help of one command.
pub(crate) fn help(path: &str, command: &Command) -> String {
    let program = path.split(' ').next().unwrap_or_default();
    if path == program {
        return root_help(program);
    }
    let mut out = format!("{}\n\n{}\n", usage_line(path, command), command.about);
    if command.aliases.len() > 1 {
        let names: Vec<String> = command
            .aliases
            .iter()
            .map(|alias| format!("{program} {alias}"))
            .collect();
        out.push_str(&format!("\nAliases:\n  {}\n", names.join(", ")));
    }
    let flags = flags::usage_of(command.flags, term::columns());
    if !flags.is_empty() {
        out.push_str(&format!("\nOptions:\n{flags}"));
    }
    if matches!(command.action, Action::Group(_)) {
        out.push_str(&format!(
            "\nCommands:\n{}\nRun '{path} COMMAND --help' for more information on a command.\n",
            listing(&command.children())
        ));
    }
    out
}

/// The commands people use first, in this order.
const COMMON: &[&str] = &[
    "run", "exec", "ps", "build", "pull", "push", "images", "login", "logout", "version", "info",
];
const SERVERS: &[&str] = &["serve", "registry", "runtime"];

fn root_help(program: &str) -> String {
    let commands = ROOT.children();
    let pick = |names: &[&str]| -> Vec<&Command> {
        names
            .iter()
            .filter_map(|n| commands.iter().copied().find(|c| c.name == *n))
            .collect()
    };
    let servers = pick(SERVERS);
    let groups: Vec<&Command> = commands
        .iter()
        .copied()
        .filter(|c| matches!(c.action, Action::Group(_)))
        .collect();
    let others: Vec<&Command> = commands
        .iter()
        .copied()
        .filter(|c| matches!(c.action, Action::Run(_)))
        .filter(|c| !COMMON.contains(&c.name) && !SERVERS.contains(&c.name))
        .collect();
    format!(
        "Usage:  {program} [OPTIONS] COMMAND\n\nContainers without a daemon\n\n\
         Common Commands:\n{}\nManagement Commands:\n{}\nOther Faces:\n{}\nCommands:\n{}\n\
         Global Options:\n{}\nRun '{program} COMMAND --help' for more information on a command.\n",
        listing(&pick(COMMON)),
        listing(&groups),
        listing(&servers),
        listing(&others),
        flags::usage_of(&[globals::FLAGS], term::columns()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(String::from).collect()
    }

    #[test]
    fn finds_commands_and_says_what_is_unknown() {
        let (path, command, rest) = find("corten", words("container ls -a")).unwrap();
        assert_eq!(
            (path.as_str(), command.name, rest),
            ("corten container ls", "ls", words("-a"))
        );
        let (path, _, rest) = find("docker", words("run --rm alpine ps --help")).unwrap();
        assert_eq!((path.as_str(), rest.len()), ("docker run", 4));
        assert_eq!(
            find("docker", words("frobnicate")).unwrap_err(),
            "docker: unknown command: docker frobnicate\n\nRun 'docker --help' for more information"
        );
        assert!(
            find("docker", words("container frob"))
                .unwrap_err()
                .contains("docker container frob")
        );
        assert!(
            find("docker", words("rnu"))
                .unwrap_err()
                .contains("Did you mean 'run'?")
        );
    }

    #[test]
    fn what_fills_the_disk_does_not_get_its_last_room() {
        for (words_of, takes) in [
            ("build .", true),
            ("buildx build .", true),
            ("run alpine", true),
            ("pull alpine", true),
            ("import a", true),
            ("load", true),
            ("commit c", true),
            ("create alpine", true),
            ("save alpine", false),
            ("export c", false),
            ("push alpine", false),
            // Each request says it for itself.
            ("serve", true),
            ("rm x", false),
            ("builder prune", false),
            ("system prune", false),
            ("system check", false),
        ] {
            let (path, command, _) = find("corten", words(words_of)).unwrap();
            assert_eq!(command.fills, takes, "{path}");
        }
    }

    #[test]
    fn every_command_has_help_and_no_flag_twice() {
        fn walk(path: &str, command: &Command) {
            let text = help(path, command);
            assert!(text.starts_with("Usage:  "), "{path}");
            let flags: Vec<_> = command.flags.iter().flat_map(|t| t.iter()).collect();
            for (i, flag) in flags.iter().enumerate() {
                assert!(
                    !flag.help.is_empty() || flag.hidden,
                    "{path} --{}",
                    flag.long
                );
                for other in &flags[i + 1..] {
                    assert_ne!(flag.long, other.long, "{path}");
                    assert!(
                        flag.short.is_none() || flag.short != other.short,
                        "{path} {other:?}"
                    );
                }
            }
            assert!(!command.about.is_empty(), "{path}");
            if let Action::Group(commands) = command.action {
                for (i, child) in commands.iter().enumerate() {
                    assert!(
                        commands[i + 1..].iter().all(|c| !c.answers_to(child.name)),
                        "{path} {} twice",
                        child.name
                    );
                    walk(&format!("{path} {}", child.name), child);
                }
            }
        }
        walk("corten", &ROOT);
    }
}
