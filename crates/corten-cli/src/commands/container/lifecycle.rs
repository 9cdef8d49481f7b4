//! `stop`, `restart`, `kill`, `pause`, `unpause`, `rename`.

use crate::app::Cli;
use crate::client::component;
use crate::command::{Command, action};
use crate::commands::shared::Failures;
use crate::error::{CliError, Result};
use crate::flags::{Arity, Flag, Parsed};

const SIGNAL: Flag = Flag::text("signal", "Signal to send to the container").short('s');

const TIMED: &[Flag] = &[
    SIGNAL,
    Flag::int("timeout", "Seconds to wait before killing the container").short('t'),
    // Docker's name of it before 28, which scripts still use.
    Flag::int("time", "Seconds to wait before killing the container").hidden(),
];

const MANY: &str = "CONTAINER [CONTAINER...]";

/// `stop`.
pub(crate) static STOP: Command = Command::new(
    "stop",
    MANY,
    "Stop one or more running containers",
    action!(stop),
)
.aliases(&["container stop", "stop"])
.flags(&[TIMED])
.arity(Arity::Min(1));

/// `restart`.
pub(crate) static RESTART: Command = Command::new(
    "restart",
    MANY,
    "Restart one or more containers",
    action!(restart),
)
.aliases(&["container restart", "restart"])
.flags(&[TIMED])
.arity(Arity::Min(1));

/// `kill`.
pub(crate) static KILL: Command = Command::new(
    "kill",
    MANY,
    "Kill one or more running containers",
    action!(kill),
)
.aliases(&["container kill", "kill"])
.flags(&[&[SIGNAL]])
.arity(Arity::Min(1));

/// `pause`.
pub(crate) static PAUSE: Command = Command::new(
    "pause",
    MANY,
    "Pause all processes within one or more containers",
    action!(pause),
)
.aliases(&["container pause", "pause"])
.arity(Arity::Min(1));

/// `unpause`.
pub(crate) static UNPAUSE: Command = Command::new(
    "unpause",
    MANY,
    "Unpause all processes within one or more containers",
    action!(unpause),
)
.aliases(&["container unpause", "unpause"])
.arity(Arity::Min(1));

/// `rename`.
pub(crate) static RENAME: Command = Command::new(
    "rename",
    "CONTAINER NEW_NAME",
    "Rename a container",
    action!(rename),
)
.aliases(&["container rename", "rename"])
.arity(Arity::Exact(2));

async fn stop(cli: &Cli, flags: Parsed) -> Result {
    let seconds = timeout(cli, &flags)?;
    let (client, signal) = (cli.client()?, flags.nonempty("signal"));
    super::each(cli, &flags.args, |name| async move {
        let warning = client
            .post(format!("/containers/{}/stop", component(name)))
            .query_opt("t", seconds)
            .query_opt("signal", signal)
            .warning()
            .await?;
        warn(cli, warning);
        Ok(())
    })
    .await
}

async fn restart(cli: &Cli, flags: Parsed) -> Result {
    let seconds = timeout(cli, &flags)?;
    let client = cli.client()?;
    let mut failures = Failures::default();
    // One after the other, as Docker does: containers may depend on one another.
    for name in &flags.args {
        let restarted = client
            .post(format!("/containers/{}/restart", component(name)))
            .query_opt("t", seconds)
            .query_opt("signal", flags.nonempty("signal"))
            .warning()
            .await;
        match restarted {
            Ok(warning) => {
                warn(cli, warning);
                cli.line(name)?;
            }
            Err(error) => failures.add(error),
        }
    }
    failures.result()
}

fn warn(cli: &Cli, warning: Option<String>) {
    if let Some(warning) = warning {
        cli.complain(format!("WARNING: {warning}"));
    }
}

/// Seconds to wait, as the query wants them.
fn timeout<'f>(cli: &Cli, flags: &'f Parsed) -> Result<Option<&'f str>> {
    if flags.given("time") {
        cli.line("Flag --time has been deprecated, use --timeout instead")?;
    }
    if flags.given("time") && flags.given("timeout") {
        return Err(CliError::message(
            "conflicting options: cannot specify both --timeout and --time",
        ));
    }
    Ok(flags.text("timeout").or_else(|| flags.text("time")))
}

async fn kill(cli: &Cli, flags: Parsed) -> Result {
    let (client, signal) = (cli.client()?, flags.nonempty("signal"));
    super::each(cli, &flags.args, |name| async move {
        Ok(client
            .post(format!("/containers/{}/kill", component(name)))
            .query_opt("signal", signal)
            .done()
            .await?)
    })
    .await
}

async fn pause(cli: &Cli, flags: Parsed) -> Result {
    plain(cli, &flags, "pause").await
}

async fn unpause(cli: &Cli, flags: Parsed) -> Result {
    plain(cli, &flags, "unpause").await
}

async fn plain(cli: &Cli, flags: &Parsed, verb: &str) -> Result {
    let client = cli.client()?;
    super::each(cli, &flags.args, |name| async move {
        Ok(client
            .post(format!("/containers/{}/{verb}", component(name)))
            .done()
            .await?)
    })
    .await
}

async fn rename(cli: &Cli, flags: Parsed) -> Result {
    let [old, new] = flags.args.as_slice() else {
        return Err(CliError::message("'rename' requires 2 arguments"));
    };
    let (old, new) = (old.trim(), new.trim());
    if old.is_empty() || new.is_empty() {
        return Err(CliError::message(
            "Error: Neither old nor new names may be empty",
        ));
    }
    let renamed = cli
        .client()?
        .post(format!("/containers/{}/rename", component(old)))
        .query("name", new)
        .done()
        .await;
    renamed.map_err(|error| {
        CliError::message(format!(
            "{error}\nError: failed to rename container named {old}"
        ))
    })
}
