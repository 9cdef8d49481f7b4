//! Shell completion and man pages, from the same tables the parser reads.

use std::path::Path;

use clap_complete::Shell;

use crate::app::Cli;
use crate::command::{Action, Command, action};
use crate::commands::ROOT;
use crate::error::{CliError, Result};
use crate::flags::{Arity, Flag, Kind, Parsed};
use crate::globals;

/// `completion`
pub(crate) static COMPLETION: Command = Command::new(
    "completion",
    "bash|zsh|fish",
    "Print the completion script for a shell",
    action!(completion),
)
.arity(Arity::Exact(1));

/// `man`
pub(crate) static MAN: Command = Command::new(
    "man",
    "DIRECTORY",
    "Write man pages into a directory",
    action!(man),
)
.arity(Arity::Exact(1))
.hidden();

async fn completion(cli: &Cli, flags: Parsed) -> Result {
    let name = flags.args.first().map(String::as_str).unwrap_or_default();
    let shell = match name {
        "bash" => Shell::Bash,
        "zsh" => Shell::Zsh,
        "fish" => Shell::Fish,
        _ => {
            return Err(CliError::message(format!(
                "unknown shell {name:?}: must be one of \"bash\", \"zsh\" or \"fish\""
            )));
        }
    };
    cli.print(&script(shell, &cli.program))
}

fn script(shell: Shell, program: &str) -> String {
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut described(program), program, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

async fn man(cli: &Cli, flags: Parsed) -> Result {
    let directory = flags.args.first().map(String::as_str).unwrap_or_default();
    write_pages(Path::new(directory), &cli.program)
}

fn write_pages(directory: &Path, program: &str) -> Result {
    let failed = |action| {
        let path = directory.to_owned();
        move |source| CliError::File {
            action,
            path,
            source,
        }
    };
    std::fs::create_dir_all(directory).map_err(failed("create"))?;
    clap_mangen::generate_to(described(program), directory).map_err(failed("write"))
}

/// The command line as clap describes one; it is never used to parse.
fn described(program: &str) -> clap::Command {
    describe(&ROOT, &[globals::FLAGS])
        .name(program.to_owned())
        .bin_name(program.to_owned())
        .version(env!("CARGO_PKG_VERSION"))
        .disable_version_flag(true)
}

fn describe(command: &Command, tables: &[&'static [Flag]]) -> clap::Command {
    let mut described = clap::Command::new(command.name)
        .about(command.about)
        .hide(command.hidden)
        .disable_help_flag(true)
        .disable_help_subcommand(true)
        .visible_aliases(command.alternatives.iter().copied());
    let flags = tables
        .iter()
        .chain(command.flags)
        .flat_map(|table| table.iter());
    for flag in flags.filter(|flag| !flag.hidden) {
        described = described.arg(argument(flag));
    }
    described = described.arg(
        clap::Arg::new("help")
            .long("help")
            .action(clap::ArgAction::SetTrue)
            .help("Print help"),
    );
    match command.action {
        Action::Group(children) => {
            for child in children {
                described = described.subcommand(describe(child, &[]));
            }
        }
        Action::Run(_) | Action::Face(_) => {
            let takes_files = matches!(command.name, "build" | "man");
            if command.arity != Arity::None && !command.usage.is_empty() {
                let hint = if takes_files {
                    clap::ValueHint::AnyPath
                } else {
                    clap::ValueHint::Other
                };
                let mut argument = clap::Arg::new("arguments")
                    .value_name(command.usage)
                    .num_args(0..)
                    .value_hint(hint);
                if command.name == "completion" {
                    argument = argument.value_parser(["bash", "zsh", "fish"]);
                }
                described = described.arg(argument);
            }
        }
    }
    described
}

fn argument(flag: &Flag) -> clap::Arg {
    let argument = clap::Arg::new(flag.long).long(flag.long).help(flag.help);
    let argument = match flag.short {
        Some(short) => argument.short(short),
        None => argument,
    };
    match flag.kind {
        Kind::Switch => argument.action(clap::ArgAction::SetTrue),
        Kind::Single | Kind::List => {
            let files = [
                "file",
                "cidfile",
                "iidfile",
                "env-file",
                "label-file",
                "config",
                "root",
            ];
            let hint = if files.contains(&flag.long) || flag.long.starts_with("tls") {
                clap::ValueHint::AnyPath
            } else {
                clap::ValueHint::Other
            };
            argument
                .action(clap::ArgAction::Append)
                .value_name(flag.value)
                .value_hint(hint)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_is_consistent() {
        described("corten").debug_assert();
    }

    #[test]
    fn scripts_know_commands_and_flags() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = script(shell, "corten");
            for word in ["publish", "iidfile", "volume", "corten"] {
                assert!(script.contains(word), "{word} for {shell}");
            }
        }
    }

    #[test]
    fn a_page_per_command() {
        let dir = tempfile::tempdir().unwrap();
        write_pages(dir.path(), "corten").unwrap();
        for page in ["corten.1", "corten-run.1", "corten-image-ls.1"] {
            let text = std::fs::read_to_string(dir.path().join(page)).unwrap();
            assert!(text.contains(".TH"), "{page}");
        }
    }
}
