//! The arguments: global flags by one small parser, then the flags of the one command
//! that is called by its own. They may be written as Go's are: see [`words`].

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::BoolishValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Args, Command, FromArgMatches, Subcommand, ValueEnum};

use super::error::CliError;
use super::log::{self, Log};
use super::words::{self, Until};
use super::{Context, SPEC_VERSION};
use crate::namespaces::userns::in_user_namespace;

const NAME: &str = "corten runtime";

/// Flags before the command.
#[derive(Debug, Args)]
pub(super) struct Globals {
    /// Directory of the containers' state
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Append errors and warnings to this file, too
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Format of the log
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
    /// Log more
    #[arg(long)]
    debug: bool,
    /// Let systemd make the control groups; cgroupsPath is slice:prefix:name
    #[arg(long)]
    systemd_cgroup: bool,
    /// Go on without a control group where none may be made: true, false or auto
    /// (for others than root)
    #[arg(long, default_value = "auto", value_parser = parse_rootless)]
    rootless: Rootless,
    /// Deprecated: criu is looked for in PATH
    #[arg(long, value_name = "PATH", hide = true)]
    criu: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<External>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rootless(Option<bool>);

fn parse_rootless(text: &str) -> Result<Rootless, String> {
    match text.to_ascii_lowercase().as_str() {
        "" | "auto" => Ok(Rootless(None)),
        "1" | "t" | "true" => Ok(Rootless(Some(true))),
        "0" | "f" | "false" => Ok(Rootless(Some(false))),
        _ => Err("use true, false or auto".to_owned()),
    }
}

#[derive(Debug, Subcommand)]
enum External {
    #[command(external_subcommand)]
    Command(Vec<OsString>),
}

/// The global flags, the command's name, and its arguments.
pub(super) fn globals(args: Vec<OsString>) -> Result<(Globals, String, Vec<OsString>), CliError> {
    let command = Globals::augment_args(Command::new(NAME))
        .no_binary_name(true)
        .disable_help_subcommand(true)
        .about("An OCI runtime with runc's command line")
        .override_usage(format!("{NAME} [OPTIONS] COMMAND [ARGS]"))
        .after_help(COMMANDS)
        .arg(
            Arg::new("version")
                .short('v')
                .long("version")
                .help("Print the version")
                .action(ArgAction::SetTrue),
        );
    let mut command = prepared(command);
    let args = words::normal(&command, args, Until::Command)?;
    let matches = command.try_get_matches_from_mut(args).map_err(usage)?;
    if matches.get_flag("version") {
        let version = env!("CARGO_PKG_VERSION");
        return Err(CliError::Help(format!(
            "corten-runtime version {version}\nspec: {SPEC_VERSION}\n"
        )));
    }
    let mut globals = Globals::from_arg_matches(&matches).map_err(usage)?;
    let Some(External::Command(words)) = globals.command.take() else {
        return Err(CliError::Help(command.render_help().to_string()));
    };
    let mut words = words.into_iter();
    let name = words.next().unwrap_or_default();
    Ok((
        globals,
        name.to_string_lossy().into_owned(),
        words.collect(),
    ))
}

/// The flags of the command `name`. Those of `exec` and `ps` end at the container's id.
pub(super) fn parse<T: Args>(name: &str, args: Vec<OsString>) -> Result<T, CliError> {
    let command = T::augment_args(Command::new(format!("{NAME} {name}"))).no_binary_name(true);
    // Not what the structure's own comment says, which is for its readers.
    let command = prepared(command).about(about(name)).long_about(None);
    let until = match name {
        "exec" | "ps" => Until::FirstWord,
        _ => Until::Last,
    };
    let args = words::normal(&command, args, until)?;
    let matches = command.try_get_matches_from(args).map_err(usage)?;
    T::from_arg_matches(&matches).map_err(usage)
}

/// What there is to be said of the commands.
pub(super) fn help() -> CliError {
    match globals(vec!["--help".into()]) {
        Err(help) => help,
        Ok((_, name, _)) => CliError::NoCommand(name),
    }
}

/// A command's line of [`COMMANDS`].
fn about(name: &str) -> &'static str {
    let mut lines = COMMANDS
        .lines()
        .filter_map(|line| line.trim().split_once(' '));
    let found = lines.find(|(command, _)| *command == name);
    found.map_or("", |(_, text)| text.trim_start())
}

/// Go's booleans: `--flag`, `--flag=true`, `--flag=false`. Of several the last one counts.
fn prepared(command: Command) -> Command {
    command
        .args_override_self(true)
        .mut_args(|arg| match arg.get_action() {
            ArgAction::SetTrue => arg
                .action(ArgAction::Set)
                .num_args(0..=1)
                .require_equals(true)
                .default_value("false")
                .default_missing_value("true")
                .hide_default_value(true)
                .hide_possible_values(true)
                .value_name("BOOL")
                .value_parser(BoolishValueParser::new()),
            _ => arg,
        })
}

fn usage(error: clap::Error) -> CliError {
    if !error.use_stderr() {
        return CliError::Help(error.to_string());
    }
    if let Some(flag) = with_nothing(&error) {
        return CliError::Usage(format!("the value of {flag} is empty"));
    }
    // clap's first paragraph says what is wrong; the rest is usage.
    let text = error.to_string();
    let words: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.is_empty())
        .collect();
    let text = words.join(" ");
    CliError::Usage(text.strip_prefix("error: ").unwrap_or(&text).to_owned())
}

/// The flag that was given an empty value. (What lacks one altogether is found before.)
fn with_nothing(error: &clap::Error) -> Option<String> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let kinds = [ErrorKind::InvalidValue, ErrorKind::ValueValidation];
    let empty =
        kinds.contains(&error.kind()) && text(ContextKind::InvalidValue).is_none_or(str::is_empty);
    let flag = text(ContextKind::InvalidArg).filter(|flag| flag.starts_with('-'))?;
    empty.then(|| flag.split(' ').next().unwrap_or(flag).to_owned())
}

impl Globals {
    pub(super) fn log(&self) -> Log {
        Log {
            file: self
                .log
                .clone()
                .filter(|path| !path.as_os_str().is_empty())
                .map(|path| std::path::absolute(&path).unwrap_or(path)),
            format: match self.log_format {
                LogFormat::Text => log::Format::Text,
                LogFormat::Json => log::Format::Json,
            },
            verbose: self.debug,
        }
    }

    pub(super) fn context(self) -> Result<Context, CliError> {
        let log = self.log();
        if self.criu.is_some() {
            log.warn(&"--criu is ignored: criu is looked for in PATH");
        }
        let root = match &self.root {
            Some(root) => given_root(root)?,
            None => default_root()?,
        };
        Ok(Context {
            root,
            systemd_cgroup: self.systemd_cgroup,
            rootless: self.rootless.0,
            log,
        })
    }
}

fn given_root(root: &Path) -> Result<PathBuf, CliError> {
    let absolute = std::path::absolute(root)
        .map_err(|error| CliError::io(format!("--root {}", root.display()), error))?;
    let text = absolute.to_string_lossy();
    let clean = crate::root::clean(&text);
    if clean == "/" {
        return Err(CliError::Usage("--root must not be /".into()));
    }
    Ok(PathBuf::from(clean))
}

/// `/run/corten-runtime` for root, else below `$XDG_RUNTIME_DIR`. There the sticky bit
/// keeps it from being cleaned up (XDG Base Directory Specification).
fn default_root() -> Result<PathBuf, CliError> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    let base = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
    let Some(base) = base.filter(|_| wants_own_directory()) else {
        return Ok(PathBuf::from("/run/corten-runtime"));
    };
    let root = PathBuf::from(base).join("corten-runtime");
    let fail = |error| CliError::io(format_args!("create {}", root.display()), error);
    let mut builder = std::fs::DirBuilder::new();
    builder.mode(0o700).recursive(true);
    builder.create(&root).map_err(fail)?;
    let sticky = std::fs::Permissions::from_mode(0o1700);
    std::fs::set_permissions(&root, sticky).map_err(fail)?;
    Ok(root)
}

/// Whether the caller is not the host's real root.
fn wants_own_directory() -> bool {
    if !rustix::process::geteuid().is_root() {
        return true;
    }
    in_user_namespace() && std::env::var_os("USER").is_none_or(|user| user != "root")
}

const COMMANDS: &str = "\
Commands:
  create      Create a container; its process waits for `start`
  start       Start a created container
  run         Create and start a container
  state       Print the state of a container
  kill        Send a signal to a container
  delete      Delete a container
  exec        Execute a process in a running container
  ps          List the processes of a container
  list        List containers
  pause       Suspend all processes of a container
  resume      Resume a paused container
  update      Change the limits of a container
  events      Print a container's resource usage and out-of-memory events
  checkpoint  Save a running container with CRIU
  restore     Restore a saved container with CRIU
  spec        Write a config.json to start from
  features    Print what this runtime supports
  help        Print the help of a command";

#[cfg(test)]
mod tests {
    use super::*;

    fn split(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn global_flags_end_at_the_command() {
        let line =
            "--root /r --log-format json --systemd-cgroup=true --rootless false run --root x";
        let (globals, name, rest) = globals(split(line)).unwrap();
        assert_eq!(globals.root.as_deref(), Some(Path::new("/r")));
        assert!(globals.systemd_cgroup);
        assert_eq!(globals.rootless, Rootless(Some(false)));
        assert_eq!(name, "run");
        assert_eq!(rest, ["--root", "x"]);
    }

    #[test]
    fn bad_usage_is_one_line() {
        for line in ["--nope state x", "--log-format xml state x", "--root"] {
            let error = globals(split(line)).unwrap_err().to_string();
            assert!(!error.contains('\n'), "{error}");
        }
        assert!(given_root(Path::new("/a/..")).is_err());
    }

    #[test]
    fn missing_values_are_told_as_runc_tells_them() {
        let said = globals(split("--root")).unwrap_err().to_string();
        assert_eq!(said, "flag needs an argument: --root");
        let args = split("--lsm-mount-context");
        let said = parse::<super::super::restore::RestoreArgs>("restore", args);
        let said = said.unwrap_err().to_string();
        assert_eq!(said, "flag needs an argument: --lsm-mount-context");
        let said = globals(split("--log-format xml state x")).unwrap_err();
        assert!(said.to_string().contains("xml"), "{said}");
        type Update = super::super::update::UpdateArgs;
        let said = parse::<Update>("update", split("--pids-limit  x")).unwrap_err();
        assert_eq!(said.to_string(), "the value of --pids-limit is empty");
    }

    #[test]
    fn empty_texts_are_not_given_as_in_runc() {
        let (globals, name, _) = globals(split("--log  --root= state x")).unwrap();
        assert_eq!((globals.log, globals.root), (None, None));
        assert_eq!(name, "state");
        type Update = super::super::update::UpdateArgs;
        let update = |line| format!("{:?}", parse::<Update>("update", split(line)).unwrap());
        let line = "--memory  --cpu-quota  --cpuset-cpus  --cpu-period= x";
        assert_eq!(update(line), update("x"));
    }

    #[test]
    fn one_dash_and_repetition_are_as_in_go() {
        let line = "-root /a --root=/b -systemd-cgroup=false -log-format json run -root x";
        let (globals, name, rest) = globals(split(line)).unwrap();
        assert_eq!(globals.root.as_deref(), Some(Path::new("/b")));
        assert_eq!(globals.log_format, LogFormat::Json);
        assert_eq!((name.as_str(), rest.len()), ("run", 2));
        type Exec = super::super::exec::ExecArgs;
        let exec = |line| parse::<Exec>("exec", split(line)).map(|args| format!("{args:?}"));
        let same = |line, other| assert_eq!(exec(line).unwrap(), exec(other).unwrap(), "{line}");
        same("-tty -env A=1 c p", "--tty --env A=1 c p");
        same("-td -cwd=/x c p", "-t -d --cwd /x c p");
        same("-tu 5 c p", "--tty -u=5 c p");
        same("-u 4 --user 5 c p", "--user 5 c p");
        same("--pid-file -x -- c p", "--pid-file=-x c p");
        same("--cap A -e  --cap B c p", "--env= --cap A --cap B c p");
        let words = exec("-d c -t --bogus -- -root").unwrap();
        assert!(
            words.contains(r#"["c", "-t", "--bogus", "--", "-root"]"#),
            "{words}"
        );
        for line in ["--bogus c p", "-ti c p", "-bogus c p", "-x c p"] {
            let error = exec(line).unwrap_err().to_string();
            assert!(error.contains("unexpected argument"), "{line}: {error}");
        }
        assert!(parse::<super::super::ps::PsArgs>("ps", split("--foo c")).is_err());
        parse::<super::super::ps::PsArgs>("ps", split("c --foo -f")).unwrap();
    }

    #[test]
    fn every_command_has_its_line() {
        let text = help().to_string();
        for name in ["create", "exec", "features", "help"] {
            assert!(text.contains(about(name)), "{text}");
            assert!(about(name).len() > 10, "{name}");
        }
        let state = parse::<super::super::state::IdArgs>("pause", split("--help"));
        let text = state.unwrap_err().to_string();
        assert!(text.starts_with("Suspend all processes"), "{text}");
        assert!(matches!(globals(Vec::new()), Err(CliError::Help(_))));
    }

    #[test]
    fn version_names_the_spec() {
        for flag in ["-v", "--version"] {
            let text = globals(split(flag)).unwrap_err().to_string();
            assert!(text.starts_with("corten-runtime version "), "{text}");
            assert!(text.contains("\nspec: 1."), "{text}");
        }
    }

    #[test]
    fn booleans_take_values() {
        #[derive(Args)]
        struct Some {
            #[arg(short, long)]
            force: bool,
            #[arg(short, long)]
            tty: bool,
            id: String,
        }
        for (line, expected) in [
            ("--force x", (true, false)),
            ("--force=false -t x", (false, true)),
            ("-ft x", (true, true)),
            ("x --tty=true", (false, true)),
        ] {
            let parsed: Some = parse("x", split(line)).unwrap();
            assert_eq!((parsed.force, parsed.tty), expected, "{line}");
            assert_eq!(parsed.id, "x");
        }
    }
}
