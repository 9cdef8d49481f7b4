//! `attach`.

use bollard_stubs::models::ContainerInspectResponse;

use crate::app::Cli;
use crate::attach::{self, End, Session};
use crate::client::{Client, component};
use crate::command::{Command, action};
use crate::error::{CliError, Result};
use crate::flags::{Arity, Flag, Parsed};
use crate::run::create::Attach;
use crate::{run, term};

const FLAGS: &[Flag] = &[
    Flag::text("detach-keys", "Keys that detach from the container"),
    Flag::switch("no-stdin", "Do not attach standard input"),
    Flag::switch("sig-proxy", "Pass signals on to the process").default("true"),
];

/// `attach`.
pub(crate) static ATTACH: Command = Command::new(
    "attach",
    "CONTAINER",
    "Attach local standard input, output, and error streams to a running container",
    action!(attach),
)
.aliases(&["container attach", "attach"])
.flags(&[FLAGS])
.arity(Arity::Exact(1));

async fn attach(cli: &Cli, flags: Parsed) -> Result {
    let Some(name) = flags.args.first() else {
        return Ok(());
    };
    let keys = run::detach_keys(cli, &flags)?;
    let client = cli.client()?;
    let found = running(client, name).await?;
    let id = found.id.as_deref().unwrap_or(name);
    let config = found.config.unwrap_or_default();
    let tty = config.tty == Some(true);
    if tty && !flags.on("no-stdin") && !term::stdin_is_terminal() {
        return Err(CliError::message("the input device is not a TTY"));
    }
    let streams = Attach {
        stdin: !flags.on("no-stdin") && config.open_stdin == Some(true),
        stdout: true,
        stderr: true,
    };
    let forwarding = (flags.on("sig-proxy") && !tty).then(|| attach::forward(client, id));
    let work = async {
        let exit = run::exit_status(client, id, "not-running").await?;
        let hijacked = run::attach_call(client, id, streams, run::chosen_keys(cli, &flags)?)
            .hijack()
            .await?;
        // It may have ended in the meantime; then there would be nothing to wait for.
        running(client, id).await?;
        let path = format!("/containers/{}", component(id));
        if tty && term::stdout_is_terminal() {
            attach::redraw(client, &path).await;
        }
        let session = Session {
            tty,
            stdin: streams.stdin,
            detach_keys: keys,
        };
        match run::copy(
            client,
            session,
            Some(hijacked),
            tty.then_some(path.as_str()),
        )
        .await?
        {
            End::Detached => return Err(CliError::message("read escape sequence")),
            End::Finished => {}
        }
        match exit.await? {
            0 => Ok(()),
            code => Err(CliError::status(code)),
        }
    };
    run::beside(forwarding, work).await
}

/// The container, if one can attach to it.
async fn running(client: &Client, name: &str) -> Result<ContainerInspectResponse> {
    let found: ContainerInspectResponse = client
        .get(format!("/containers/{}/json", component(name)))
        .json()
        .await?;
    let state = found.state.clone().unwrap_or_default();
    let refused = if state.running != Some(true) {
        "You cannot attach to a stopped container, start it first"
    } else if state.paused == Some(true) {
        "You cannot attach to a paused container, unpause it first"
    } else if state.restarting == Some(true) {
        "You cannot attach to a restarting container, wait until it is running"
    } else {
        return Ok(found);
    };
    Err(CliError::message(refused))
}
