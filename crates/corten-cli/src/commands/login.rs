//! `login`, `logout`.

use std::io::{BufRead as _, Read as _};
use std::path::Path;

use corten_registry::Credential;
use corten_registry::docker_config::DockerConfig;
use serde::Deserialize;

use super::shared::prompt;
use crate::app::Cli;
use crate::command::{Command, action};
use crate::error::{CliError, Result};
use crate::flags::{Arity, Flag, Parsed};
use crate::term;

/// Docker Hub, as `config.json` knows it.
const HUB: &str = "https://index.docker.io/v1/";

/// `login`
pub(crate) static LOGIN: Command = Command::new(
    "login",
    "[SERVER]",
    "Authenticate to a registry. Defaults to Docker Hub if no server is specified.",
    action!(login),
)
.arity(Arity::Max(1))
.flags(&[&[
    Flag::text("password", "Password or Personal Access Token (PAT)").short('p'),
    Flag::switch(
        "password-stdin",
        "Take the Password or Personal Access Token (PAT) from stdin",
    ),
    Flag::text("username", "Username").short('u'),
]]);

/// `logout`
pub(crate) static LOGOUT: Command = Command::new(
    "logout",
    "[SERVER]",
    "Log out from a registry. Defaults to Docker Hub if no server is specified.",
    action!(logout),
)
.arity(Arity::Max(1));

/// The key of a server in `config.json`: its host, or Docker Hub's URL.
fn key(server: Option<&str>) -> String {
    match server {
        None | Some("") => HUB.to_owned(),
        Some(server) => {
            let bare = server
                .strip_prefix("https://")
                .or_else(|| server.strip_prefix("http://"));
            let host = bare.unwrap_or(server).split('/').next().unwrap_or_default();
            match host {
                "docker.io" | "index.docker.io" | "registry-1.docker.io" => HUB.to_owned(),
                host => host.to_owned(),
            }
        }
    }
}

async fn login(cli: &Cli, flags: Parsed) -> Result {
    let server = key(flags.args.first().map(String::as_str));
    let given = password(cli, &flags)?;
    let mut config = DockerConfig::load(&cli.globals.config_dir)?;
    let stored = if flags.given("username") {
        None
    } else {
        // A damaged entry is about to be replaced.
        config.get(&server).unwrap_or_default()
    };
    // Without arguments the stored credential is tried first, as Docker does.
    if let Some(stored) = stored.as_ref().filter(|_| given.is_none()) {
        cli.complain("Authenticating with existing credentials...");
        if let Ok(answer) = authenticate(cli, stored).await {
            return finish(cli, &mut config, &server, stored.clone(), answer);
        }
        cli.complain("Login did not succeed, error: the stored credential is not accepted");
    }
    let known = stored
        .map(|credential| credential.username)
        .unwrap_or_default();
    let username = match flags.nonempty("username") {
        Some(name) => name.to_owned(),
        None => ask_username(&server, &known)?,
    };
    let password = match given {
        Some(password) => password,
        None => ask_password()?,
    };
    if password.is_empty() {
        return Err(CliError::message("password is empty"));
    }
    let credential = Credential {
        username: username.trim().to_owned(),
        password,
        server_address: server.clone(),
        ..Credential::default()
    };
    let answer = authenticate(cli, &credential).await?;
    finish(cli, &mut config, &server, credential, answer)
}

/// The password that flags give, if any.
fn password(cli: &Cli, flags: &Parsed) -> Result<Option<String>> {
    if flags.on("password-stdin") {
        if flags.given("password") {
            return Err(CliError::message(
                "conflicting options: cannot specify both --password and --password-stdin",
            ));
        }
        if flags.nonempty("username").is_none() {
            return Err(CliError::message(
                "the --password-stdin option requires --username to be set",
            ));
        }
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        let text = text.strip_suffix('\n').unwrap_or(&text);
        return Ok(Some(text.strip_suffix('\r').unwrap_or(text).to_owned()));
    }
    if !flags.given("password") {
        return Ok(None);
    }
    if flags.nonempty("password").is_none() {
        return Err(CliError::message("password is empty"));
    }
    cli.complain("WARNING! Using --password via the CLI is insecure. Use --password-stdin.");
    Ok(flags.text("password").map(str::to_owned))
}

fn needs_terminal() -> Result {
    if term::stdin_is_terminal() {
        return Ok(());
    }
    Err(CliError::message(
        "Error: Cannot perform an interactive login from a non TTY device",
    ))
}

fn ask_username(server: &str, known: &str) -> Result<String> {
    needs_terminal()?;
    if server == HUB {
        prompt(
            "Log in with your Docker ID or email address to push and pull images from Docker Hub.\n",
        )?;
    }
    if known.is_empty() {
        prompt("Username: ")?;
    } else {
        prompt(&format!("Username ({known}): "))?;
    }
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    let name = line.trim();
    let name = if name.is_empty() { known } else { name };
    if name.is_empty() {
        return Err(CliError::message("username is empty"));
    }
    Ok(name.to_owned())
}

fn ask_password() -> Result<String> {
    needs_terminal()?;
    Ok(rpassword::prompt_password("Password: ")?)
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Answer {
    status: String,
    identity_token: Option<String>,
}

async fn authenticate(cli: &Cli, credential: &Credential) -> Result<Answer> {
    Ok(cli
        .client()?
        .post("/auth")
        .body_json(credential)?
        .json()
        .await?)
}

fn finish(
    cli: &Cli,
    config: &mut DockerConfig,
    server: &str,
    mut credential: Credential,
    answer: Answer,
) -> Result {
    if let Some(token) = answer.identity_token.filter(|token| !token.is_empty()) {
        credential.password = String::new();
        credential.identity_token = token;
    }
    if config.store(server, &credential)? {
        cli.complain(unencrypted(&cli.globals.config_dir));
    }
    let status = if answer.status.is_empty() {
        "Login Succeeded"
    } else {
        answer.status.as_str()
    };
    cli.line(status)
}

fn unencrypted(directory: &Path) -> String {
    format!(
        "\nWARNING! Your credentials are stored unencrypted in '{}'.\n\
         Configure a credential helper to remove this warning. See\n\
         https://docs.docker.com/go/credential-store/\n",
        directory.join("config.json").display()
    )
}

async fn logout(cli: &Cli, flags: Parsed) -> Result {
    let server = key(flags.args.first().map(String::as_str));
    cli.line(format!("Removing login credentials for {server}"))?;
    let mut config = DockerConfig::load(&cli.globals.config_dir)?;
    // Older files have URLs as keys.
    let mut names = vec![server.clone()];
    if server != HUB {
        names.extend([format!("https://{server}"), format!("http://{server}")]);
    }
    let mut failures = Vec::new();
    for name in &names {
        if let Err(error) = config.erase(name) {
            failures.push(format!("{name}: {error}"));
        }
    }
    if failures.len() == names.len() {
        cli.complain(format!(
            "WARNING: could not erase credentials:\n{}",
            failures.join("\n")
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers() {
        for (server, expected) in [
            (None, HUB),
            (Some("docker.io"), HUB),
            (Some("https://index.docker.io/v1/"), HUB),
            (Some("https://reg.example.org/v2/"), "reg.example.org"),
            (Some("127.0.0.1:5000"), "127.0.0.1:5000"),
        ] {
            assert_eq!(key(server), expected);
        }
    }
}
