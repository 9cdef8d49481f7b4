//! `exec`.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::app::Cli;
use crate::attach::{self, End, Session};
use crate::client::{Client, ClientError, component};
use crate::command::{Command, action};
use crate::error::{CliError, Result};
use crate::flags::{Arity, Flag, Parsed};
use crate::opts::env;
use crate::{run, term};

const FLAGS: &[Flag] = &[
    Flag::switch("detach", "Run the command in the background").short('d'),
    Flag::text("detach-keys", "Keys that detach from the container"),
    Flag::list("env", "Set an environment variable")
        .short('e')
        .typed("list", env::check),
    Flag::list("env-file", "Set the environment variables of a file"),
    Flag::switch("interactive", "Keep standard input open").short('i'),
    Flag::switch("privileged", "Give the command every privilege"),
    Flag::switch("tty", "Give the command a terminal").short('t'),
    Flag::text("user", "User and group, by name or number (user[:group])").short('u'),
    Flag::text("workdir", "Working directory in the container").short('w'),
];

/// `exec`.
pub(crate) static EXEC: Command = Command::new(
    "exec",
    "CONTAINER COMMAND [ARG...]",
    "Execute a command in a running container",
    action!(exec),
)
.aliases(&["container exec", "exec"])
.flags(&[FLAGS])
.arity(Arity::Min(2))
.flags_first();

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Created {
    id: String,
}

async fn exec(cli: &Cli, flags: Parsed) -> Result {
    let Some((name, command)) = flags.args.split_first() else {
        return Ok(());
    };
    let keys = run::detach_keys(cli, &flags)?;
    let mut body = body(&flags, command, |name| std::env::var(name).ok())?;
    body["DetachKeys"] = json!(run::chosen_keys(cli, &flags)?.unwrap_or_default());
    let client = cli.client()?;
    let (tty, stdin) = (
        flags.on("tty"),
        flags.on("interactive") && !flags.on("detach"),
    );
    if tty && stdin && !term::stdin_is_terminal() {
        // That there is no such container is to be said first.
        client
            .get(format!("/containers/{}/json", component(name)))
            .done()
            .await?;
        return Err(CliError::message("the input device is not a TTY"));
    }
    let created: Created = client
        .post(format!("/containers/{}/exec", component(name)))
        .body_json(&body)?
        .json()
        .await?;
    let path = format!("/exec/{}", component(&created.id));
    let start = client
        .post(format!("{path}/start"))
        .body_json(&start_body(&flags))?;
    if flags.on("detach") {
        return Ok(start.done().await?);
    }
    let hijacked = start.hijack().await.map_err(start_failed)?;
    let session = Session {
        tty,
        stdin,
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
        End::Detached => Err(CliError::message("read escape sequence")),
        End::Finished => exit(client, &path).await,
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    #[serde(default)]
    running: bool,
    exit_code: Option<i64>,
}

impl Inspected {
    fn code(&self) -> i64 {
        // What has not been started has told why in its stream.
        self.exit_code.unwrap_or(i64::from(!self.running))
    }
}

/// Exits as the command did.
async fn exit(client: &Client, path: &str) -> Result {
    let found: Inspected = client.get(format!("{path}/json")).json().await?;
    match found.code() {
        0 => Ok(()),
        code => Err(CliError::status(run::exit_code(code))),
    }
}

/// An engine may refuse to start what it cannot find or may not execute, instead of letting
/// it end with the code that says so.
fn start_failed(error: ClientError) -> CliError {
    match (&error, run::start_code(&error.to_string())) {
        (ClientError::Api { .. }, code @ (run::NOT_EXECUTABLE | run::NOT_FOUND)) => {
            CliError::Status {
                code,
                message: error.to_string(),
            }
        }
        _ => error.into(),
    }
}

/// What to execute.
fn body(
    flags: &Parsed,
    command: &[String],
    lookup: impl Fn(&str) -> Option<String>,
) -> Result<Value> {
    let environment = env::environment(&flags.list("env-file"), &flags.list("env"), lookup)?;
    let attach = !flags.on("detach");
    let mut body = json!({
        "User": flags.text("user").unwrap_or_default(),
        "Privileged": flags.on("privileged"),
        "Tty": flags.on("tty"),
        "AttachStdin": attach && flags.on("interactive"),
        "AttachStdout": attach,
        "AttachStderr": attach,
        "Detach": !attach,
        "Env": if environment.is_empty() { Value::Null } else { json!(environment) },
        "WorkingDir": flags.text("workdir").unwrap_or_default(),
        "Cmd": command,
    });
    console_size(flags, &mut body);
    Ok(body)
}

fn start_body(flags: &Parsed) -> Value {
    let mut body = json!({ "Detach": flags.on("detach"), "Tty": flags.on("tty") });
    console_size(flags, &mut body);
    body
}

fn console_size(flags: &Parsed, body: &mut Value) {
    if flags.on("tty")
        && let Some(size) = attach::initial_size()
    {
        body["ConsoleSize"] = json!(size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::{Outcome, parse};

    fn parsed(args: &str) -> Parsed {
        match parse(&[FLAGS], false, args.split(' ').map(String::from)).unwrap() {
            Outcome::Parsed(parsed) => parsed,
            Outcome::Help => panic!("help"),
        }
    }

    #[test]
    fn asks_for_what_the_flags_say() {
        let flags = parsed("-i -e A=1 -e HOME -u 1:2 -w /tmp --privileged web sh -c -x");
        let body = body(&flags, &flags.args[1..], |_| None).unwrap();
        assert_eq!(
            body,
            json!({
                "User": "1:2", "Privileged": true, "Tty": false, "AttachStdin": true,
                "AttachStdout": true, "AttachStderr": true, "Detach": false,
                "Env": ["A=1", "HOME"], "WorkingDir": "/tmp", "Cmd": ["sh", "-c", "-x"],
            })
        );
        let detached = parsed("-di web true");
        let body = super::body(&detached, &detached.args[1..], |_| None).unwrap();
        assert_eq!(
            (&body["AttachStdin"], &body["AttachStdout"]),
            (&json!(false), &json!(false))
        );
        assert_eq!(
            start_body(&detached),
            json!({ "Detach": true, "Tty": false })
        );
    }

    #[test]
    fn what_was_never_started_has_failed() {
        for (found, code) in [
            (json!({"Running": false, "ExitCode": 0}), 0),
            (json!({"Running": false, "ExitCode": 127}), 127),
            // Its streams are closed, and it goes on.
            (json!({"Running": true, "ExitCode": null}), 0),
            (json!({"Running": false, "ExitCode": null}), 1),
            (json!({}), 1),
        ] {
            let inspected: Inspected = serde_json::from_value(found.clone()).unwrap();
            assert_eq!(inspected.code(), code, "{found}");
        }
    }

    #[test]
    fn refusals_have_exit_codes() {
        let refused = |message: &str| {
            start_failed(ClientError::Api {
                status: 400,
                message: message.into(),
            })
            .code()
        };
        assert_eq!(
            refused("exec: \"x\": executable file not found in $PATH"),
            127
        );
        assert_eq!(refused("exec: \"/etc\": permission denied"), 126);
        assert_eq!(refused("container is paused"), 1);
    }
}
