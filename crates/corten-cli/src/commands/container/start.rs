//! `start`.

use bollard_stubs::models::ContainerInspectResponse;

use crate::app::Cli;
use crate::attach::{self, Session};
use crate::client::{Client, component};
use crate::command::{Command, action};
use crate::error::{CliError, Result};
use crate::flags::{Arity, Flag, Parsed};
use crate::run;
use crate::run::create::Attach;

const FLAGS: &[Flag] = &[
    Flag::switch("attach", "Attach to its output and pass signals on").short('a'),
    Flag::text("checkpoint", "Go on from this checkpoint"),
    Flag::text("checkpoint-dir", "Directory of the checkpoint"),
    Flag::list(
        "depends-on",
        "Start and wait for this container first (name[:started|healthy|completed])",
    ),
    Flag::text("detach-keys", "Keys that detach from the container"),
    Flag::switch("interactive", "Attach to its standard input").short('i'),
];

/// `start`.
pub(crate) static START: Command = Command::new(
    "start",
    "CONTAINER [CONTAINER...]",
    "Start one or more stopped containers",
    action!(start),
)
.aliases(&["container start", "start"])
.flags(&[FLAGS])
.arity(Arity::Min(1));

async fn start(cli: &Cli, flags: Parsed) -> Result {
    let client = cli.client()?;
    match flags.args.as_slice() {
        [name] if flags.on("attach") || flags.on("interactive") => {
            attached(cli, &flags, name).await
        }
        _ if flags.on("attach") || flags.on("interactive") => Err(CliError::message(
            "you cannot start and attach multiple containers at once",
        )),
        [name] if flags.nonempty("checkpoint").is_some() => one(client, &flags, name).await,
        _ if flags.nonempty("checkpoint").is_some() => Err(CliError::message(
            "you cannot restore multiple containers at once",
        )),
        names => several(cli, &flags, names).await,
    }
}

/// One after the other; an error is told when it happens.
async fn several(cli: &Cli, flags: &Parsed, names: &[String]) -> Result {
    let client = cli.client()?;
    let mut failed: Vec<&str> = Vec::new();
    for name in names {
        match one(client, flags, name).await {
            Ok(()) => cli.line(name)?,
            Err(error) => {
                cli.complain(error);
                failed.push(name);
            }
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(CliError::message(format!(
        "Error: failed to start containers: {}",
        failed.join(", ")
    )))
}

/// What this start waits for, as the query wants it.
fn depends_on(flags: &Parsed) -> Option<String> {
    let list = flags.list("depends-on");
    (!list.is_empty()).then(|| list.join(","))
}

async fn one(client: &Client, flags: &Parsed, name: &str) -> Result {
    Ok(client
        .post(format!("/containers/{}/start", component(name)))
        .query_opt("checkpoint", flags.nonempty("checkpoint"))
        .query_opt("checkpoint-dir", flags.nonempty("checkpoint-dir"))
        .query_opt("depends-on", depends_on(flags))
        .done()
        .await?)
}

async fn attached(cli: &Cli, flags: &Parsed, name: &str) -> Result {
    let keys = run::detach_keys(cli, flags)?;
    let client = cli.client()?;
    let found: ContainerInspectResponse = client
        .get(format!("/containers/{}/json", component(name)))
        .json()
        .await?;
    let id = found.id.as_deref().unwrap_or(name);
    let config = found.config.unwrap_or_default();
    let tty = config.tty == Some(true);
    let removed = found.host_config.and_then(|host| host.auto_remove) == Some(true);
    let streams = Attach {
        stdin: flags.on("interactive") && config.open_stdin == Some(true),
        stdout: true,
        stderr: true,
    };
    let forwarding = (!tty).then(|| attach::forward(client, id));
    let work = async {
        let hijacked = run::attach_call(client, id, streams, run::chosen_keys(cli, flags)?)
            .hijack()
            .await?;
        let condition = if removed { "removed" } else { "next-exit" };
        let exit = run::exit_status(client, id, condition).await?;
        if let Err(error) = one(client, flags, id).await {
            if removed {
                run::await_removal(exit).await;
            }
            return Err(error);
        }
        let session = Session {
            tty,
            stdin: streams.stdin,
            detach_keys: keys,
        };
        run::until_end(client, id, session, Some(hijacked), exit).await
    };
    run::beside(forwarding, work).await
}
