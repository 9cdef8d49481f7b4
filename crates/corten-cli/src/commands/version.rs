//! `version`: ours and the engine's.

use serde_json::{Value, json};

use super::shared::OBJECT_FORMAT;
use crate::app::Cli;
use crate::client::context_name;
use crate::command::{Command, action};
use crate::error::{CliError, Result};
use crate::flags::{Arity, Parsed};
use crate::format::tabs::align_with;
use crate::template::{Data, Template};

/// `version`
pub(crate) static VERSION: Command = Command::new(
    "version",
    "",
    "Show the Docker version information",
    action!(version),
)
.arity(Arity::None)
.flags(&[&[OBJECT_FORMAT]]);

/// Docker's layout (`cli/command/system/version.go`), without what a Rust program has not.
const LAYOUT: &str = "\
{{with .Client}}Client:{{if .Platform.Name}} {{.Platform.Name}}{{end}}
 Version:\t{{.Version}}
 API version:\t{{.ApiVersion}}{{if ne .ApiVersion .DefaultAPIVersion}} (downgraded from {{.DefaultAPIVersion}}){{end}}
{{if .GitCommit}} Git commit:\t{{.GitCommit}}
{{end}} OS/Arch:\t{{.Os}}/{{.Arch}}
 Context:\t{{.Context}}
{{end}}";

const SERVER_LAYOUT: &str = "
Server:{{if .Platform.Name}} {{.Platform.Name}}{{end}}
{{range .Components}} {{.Name}}:
  Version:\t{{.Version}}
{{if .Details.ApiVersion}}  API version:\t{{.Details.ApiVersion}} (minimum version {{.Details.MinAPIVersion}})
{{end}}{{if .Details.GoVersion}}  Go version:\t{{.Details.GoVersion}}
{{end}}{{if .Details.GitCommit}}  Git commit:\t{{.Details.GitCommit}}
{{end}}{{if .Details.BuildTime}}  Built:\t{{.Details.BuildTime}}
{{end}}{{if .Details.Os}}  OS/Arch:\t{{.Details.Os}}/{{.Details.Arch}}
{{end}}{{if .Details.Experimental}}  Experimental:\t{{.Details.Experimental}}
{{end}}{{end}}";

/// Docker's settings for the table: cells of twenty, one space between.
const CELL: usize = 20;
const PADDING: usize = 1;

async fn version(cli: &Cli, flags: Parsed) -> Result {
    let template = match flags.nonempty("format") {
        None | Some("json") => None,
        Some(text) => Some(Template::parse(text).map_err(CliError::unreadable)?),
    };
    let server = server(cli).await;
    let client = client(cli)?;
    let (server, failure) = match server {
        Ok(server) => (server, None),
        Err(error) => (Value::Null, Some(error)),
    };
    let both = json!({ "Client": client, "Server": server });
    let text = match (flags.nonempty("format"), &template) {
        (_, Some(template)) => format!("{}\n", template.render(&Data::from(both))?),
        (Some(_), None) => format!("{both}\n"),
        (None, None) => render(&both)?,
    };
    cli.print(&text)?;
    failure.map_or(Ok(()), Err)
}

async fn server(cli: &Cli) -> Result<Value> {
    Ok(cli.client()?.get("/version").json().await?)
}

/// What this command line is.
fn client(cli: &Cli) -> Result<Value> {
    let default = corten_api::API_VERSION;
    let asked = cli
        .globals
        .api_version
        .as_deref()
        .map(|v| v.trim_start_matches('v'));
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    Ok(json!({
        "Platform": { "Name": "Corten" },
        "Version": env!("CARGO_PKG_VERSION"),
        "ApiVersion": asked.unwrap_or(default),
        "DefaultAPIVersion": default,
        "GitCommit": option_env!("CORTEN_GIT_COMMIT").unwrap_or_default(),
        "Os": "linux",
        "Arch": arch,
        "Context": context_name(&cli.globals, cli.config()),
    }))
}

fn render(both: &Value) -> Result<String> {
    let mut text = Template::parse(LAYOUT)?.render(&Data::from(both.clone()))?;
    if let Some(server) = both.get("Server").filter(|server| server.is_object()) {
        // An engine too old to list its components is one component itself.
        let mut server = server.clone();
        if server
            .get("Components")
            .and_then(Value::as_array)
            .is_none_or(Vec::is_empty)
        {
            server["Components"] =
                json!([{ "Name": "Engine", "Version": server["Version"], "Details": server }]);
        }
        if server.get("Platform").is_none_or(Value::is_null) {
            server["Platform"] = json!({ "Name": "" });
        }
        text.push_str(&Template::parse(SERVER_LAYOUT)?.render(&Data::from(server))?);
    }
    Ok(align_with(&text, CELL, PADDING))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout() {
        let client = json!({
            "Platform": { "Name": "Corten" }, "Version": "0.1.0", "ApiVersion": "1.50",
            "DefaultAPIVersion": "1.50", "GitCommit": "", "Os": "linux", "Arch": "amd64",
            "Context": "default",
        });
        let server = json!({
            "Platform": { "Name": "Corten" },
            "Components": [{ "Name": "Engine", "Version": "0.1.0", "Details": {
                "ApiVersion": "1.50", "MinAPIVersion": "1.24", "Os": "linux", "Arch": "amd64",
            }}],
        });
        let both = json!({ "Client": client, "Server": server });
        insta::assert_snapshot!(render(&both).unwrap(), @r"
        Client: Corten
         Version:           0.1.0
         API version:       1.50
         OS/Arch:           linux/amd64
         Context:           default

        Server: Corten
         Engine:
          Version:          0.1.0
          API version:      1.50 (minimum version 1.24)
          OS/Arch:          linux/amd64
        ");
    }
}
