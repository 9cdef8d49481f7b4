//! `wait`.

use serde::Deserialize;

use crate::app::Cli;
use crate::client::component;
use crate::command::{Command, action};
use crate::commands::shared::Failures;
use crate::error::Result;
use crate::flags::{Arity, Parsed};

/// `wait`.
pub(crate) static WAIT: Command = Command::new(
    "wait",
    "CONTAINER [CONTAINER...]",
    "Block until one or more containers stop, then print their exit codes",
    action!(wait),
)
.aliases(&["container wait", "wait"])
.arity(Arity::Min(1));

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Waited {
    status_code: i64,
}

async fn wait(cli: &Cli, flags: Parsed) -> Result {
    let client = cli.client()?;
    let mut failures = Failures::default();
    for name in &flags.args {
        let waited = client
            .post(format!("/containers/{}/wait", component(name)))
            .json()
            .await;
        match waited {
            Ok(Waited { status_code }) => cli.line(status_code.to_string())?,
            Err(error) => failures.add(error),
        }
    }
    failures.result()
}
