//! `run` and `create`.

pub(crate) mod create;
pub(crate) mod flags;
pub(crate) mod image;

use std::net::IpAddr;
use std::path::PathBuf;

use bollard_stubs::models::ContainerCreateBody;
use serde::Deserialize;

use crate::app::Cli;
use crate::attach::{self, End, Session};
use crate::client::{Client, ClientError, Hijacked, component};
use crate::error::{CliError, Result};
use crate::flags::Parsed;
use crate::opts::{OptError, platform};
use crate::term;
use image::Show;

/// Exit codes with a meaning of their own (Docker's): the engine failed, the command cannot
/// be executed, the command was not found.
const ENGINE_FAILED: u8 = 125;
pub(crate) const NOT_EXECUTABLE: u8 = 126;
pub(crate) const NOT_FOUND: u8 = 127;

/// `create`.
pub(crate) async fn create(cli: &Cli, flags: Parsed) -> Result {
    let body = prepare(cli, &flags, "create")?;
    let id = create_container(cli, &flags, &body, false).await?;
    cli.line(id)
}

/// `run`.
pub(crate) async fn run(cli: &Cli, flags: Parsed) -> Result {
    if flags.on("detach") && !flags.list("attach").is_empty() {
        return Err(CliError::message(
            "conflicting options: cannot specify both --attach and --detach",
        ));
    }
    let mut body = prepare(cli, &flags, "run")?;
    let attached = !flags.on("detach");
    if attached {
        check_terminal(&body)?;
    } else {
        body.attach_stdin = Some(false);
        body.attach_stdout = Some(false);
        body.attach_stderr = Some(false);
        body.stdin_once = Some(false);
    }
    let id = create_container(cli, &flags, &body, true)
        .await
        .map_err(|error| start_failed(cli, &error))?;
    if attached {
        foreground(cli, &flags, &body, &id).await
    } else {
        start(cli.client()?, &id)
            .await
            .map_err(|error| start_failed(cli, &error))?;
        cli.line(id)
    }
}

/// What the flags ask to create. Those that make no sense end the command as an engine that
/// fails does.
fn prepare(cli: &Cli, flags: &Parsed, command: &str) -> Result<ContainerCreateBody> {
    let refused = |error: OptError| help_with(cli, command, &error.into(), ENGINE_FAILED);
    let policy = flags.text("pull").unwrap_or("missing");
    if !matches!(policy, "always" | "missing" | "never") {
        return Err(refused(OptError::new(format!(
            "invalid pull option: '{policy}': must be one of \"always\", \"missing\" or \"never\""
        ))));
    }
    create::body(flags, &here()).map_err(refused)
}

fn here() -> PathBuf {
    std::env::current_dir().unwrap_or_else(|_| "/".into())
}

fn check_terminal(body: &ContainerCreateBody) -> Result {
    let wants = body.tty == Some(true) && body.attach_stdin == Some(true);
    if wants && !term::stdin_is_terminal() {
        return Err(CliError::message("the input device is not a TTY"));
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Created {
    id: String,
    #[serde(default)]
    warnings: Option<Vec<String>>,
}

/// Creates the container, pulling its image as `--pull` says. `starts`: it is started next.
async fn create_container(
    cli: &Cli,
    flags: &Parsed,
    body: &ContainerCreateBody,
    starts: bool,
) -> Result<String> {
    let policy = flags.text("pull").unwrap_or("missing");
    let platform = flags.nonempty("platform");
    if let Some(platform) = platform {
        platform::check(platform)?;
    }
    let id_file = IdFile::new(flags.nonempty("cidfile"))?;
    let host = body.host_config.as_ref();
    let servers = host
        .and_then(|host| host.dns.as_deref())
        .unwrap_or_default();
    let is_local = |server: &&String| {
        let address = server.parse::<IpAddr>();
        address.is_ok_and(|address| address.is_loopback())
    };
    if let Some(server) = servers.iter().find(is_local) {
        cli.complain(format!(
            "WARNING: Localhost DNS ({server}) may fail in containers."
        ));
    }
    let name = body.image.as_deref().unwrap_or_default();
    // An image may also be named by its id, which is no reference.
    let reference = match image::reference(name) {
        Ok(reference) => Some(reference.or_latest()),
        Err(_) if is_id(name) => None,
        Err(error) => return Err(error),
    };
    let show = if flags.on("quiet") {
        Show::Nothing
    } else {
        Show::Stderr
    };
    if policy == "always"
        && let Some(reference) = &reference
    {
        image::pull(cli, reference, platform, show).await?;
    }
    let post = || -> std::result::Result<_, CliError> {
        let client = cli.client()?;
        let mut call = client
            .post("/containers/create")
            .query_opt("name", flags.nonempty("name"))
            .query_opt("platform", platform);
        if starts && client.in_process() {
            call = call.header("X-Corten-Starts", "1");
        }
        Ok(call.body_json(body)?)
    };
    let created: Created = match post()?.json().await {
        Err(error) if policy == "missing" && image_is_missing(&error) && reference.is_some() => {
            let Some(reference) = &reference else {
                return Err(error.into());
            };
            if !flags.on("quiet") {
                cli.complain(format!(
                    "Unable to find image '{}' locally",
                    reference.familiar()
                ));
            }
            image::pull(cli, reference, platform, show).await?;
            post()?.json().await?
        }
        other => other?,
    };
    for warning in created.warnings.iter().flatten() {
        cli.complain(format!("WARNING: {warning}"));
    }
    id_file.write(&created.id)?;
    Ok(created.id)
}

fn is_id(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    !hex.is_empty() && hex.len() <= 64 && hex.bytes().all(|b| b.is_ascii_hexdigit())
}

fn image_is_missing(error: &ClientError) -> bool {
    match error {
        ClientError::Api {
            status: 404,
            message,
        } => message.to_lowercase().contains("no such image"),
        _ => false,
    }
}

/// The file of `--cidfile`: made before the container, so that it cannot fail after; removed
/// again when there is no container.
struct IdFile {
    path: Option<PathBuf>,
    written: bool,
}

impl IdFile {
    fn new(path: Option<&str>) -> Result<Self> {
        let Some(path) = path else {
            return Ok(Self {
                path: None,
                written: false,
            });
        };
        let opened = std::fs::File::options()
            .write(true)
            .create_new(true)
            .open(path);
        match opened {
            Ok(_) => Ok(Self {
                path: Some(path.into()),
                written: false,
            }),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                Err(CliError::message(format!(
                    "container ID file found, make sure the other container isn't running or delete {path}"
                )))
            }
            Err(error) => Err(CliError::message(format!(
                "failed to create the container ID file: open {path}: {}",
                crate::error::reason(&error)
            ))),
        }
    }

    fn write(mut self, id: &str) -> Result {
        if let Some(path) = &self.path {
            std::fs::write(path, id).map_err(|source| CliError::File {
                action: "write",
                path: path.clone(),
                source,
            })?;
            self.written = true;
        }
        Ok(())
    }
}

impl Drop for IdFile {
    fn drop(&mut self) {
        if let (Some(path), false) = (&self.path, self.written)
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::warn!(path = %path.display(), %error, "the container ID file stays behind");
        }
    }
}

/// Attach, register the wait, start, copy streams, exit as the container does.
async fn foreground(cli: &Cli, flags: &Parsed, body: &ContainerCreateBody, id: &str) -> Result {
    let client = cli.client()?;
    let tty = body.tty == Some(true);
    let keys = detach_keys(cli, flags)?;
    let attach = create::Attach {
        stdin: body.attach_stdin == Some(true),
        stdout: body.attach_stdout == Some(true),
        stderr: body.attach_stderr == Some(true),
    };
    let proxy = flags.on("sig-proxy") && !tty;
    // Signals are caught from before the container runs, so that none is lost.
    let forwarding = proxy.then(|| attach::forward(client, id));
    let work = async {
        let hijacked = if attach.any() {
            let call = attach_call(client, id, attach, chosen_keys(cli, flags)?);
            Some(
                call.hijack()
                    .await
                    .map_err(|e| with_help(cli, &e.into(), ENGINE_FAILED))?,
            )
        } else {
            None
        };
        let condition = if flags.on("rm") {
            "removed"
        } else {
            "next-exit"
        };
        let exit = exit_status(client, id, condition)
            .await
            .map_err(|error| with_help(cli, &error, ENGINE_FAILED))?;
        if let Err(error) = start(client, id).await {
            if flags.on("rm") {
                await_removal(exit).await;
            }
            return Err(start_failed(cli, &error));
        }
        let session = Session {
            tty,
            stdin: attach.stdin,
            detach_keys: keys,
        };
        until_end(client, id, session, hijacked, exit).await
    };
    beside(forwarding, work).await
}

/// Copies an attached container's streams until the user detaches or it ends; then ends as
/// the container did.
pub(crate) async fn until_end(
    client: &Client,
    id: &str,
    session: Session,
    hijacked: Option<Hijacked>,
    exit: impl Future<Output = Result<u8>>,
) -> Result {
    let path = format!("/containers/{}", component(id));
    let resize = session.tty.then_some(path.as_str());
    if copy(client, session, hijacked, resize).await? == End::Detached {
        return Ok(());
    }
    match exit.await? {
        0 => Ok(()),
        code => Err(CliError::status(code)),
    }
}

/// Works while signals are forwarded, if they are.
pub(crate) async fn beside(
    forwarding: Option<impl Future<Output = ()>>,
    work: impl Future<Output = Result>,
) -> Result {
    match forwarding {
        None => work.await,
        Some(forwarding) => tokio::select! {
            result = work => result,
            () = forwarding => Ok(()),
        },
    }
}

/// With `--rm` the engine removes a container that did not start; leaving before would race
/// with what comes next.
pub(crate) async fn await_removal(exit: impl Future<Output = Result<u8>>) {
    let removed = tokio::time::timeout(std::time::Duration::from_secs(10), exit).await;
    tracing::debug!(done = removed.is_ok(), "waited for the removal");
}

/// Copies an attached process's streams, keeping its terminal as big as ours.
pub(crate) async fn copy(
    client: &Client,
    session: Session,
    hijacked: Option<Hijacked>,
    resize: Option<&str>,
) -> Result<End> {
    let Some(hijacked) = hijacked else {
        return Ok(End::Finished);
    };
    let sizes = async {
        match resize {
            Some(path) if term::stdout_is_terminal() => attach::monitor_size(client, path).await,
            _ => std::future::pending().await,
        }
    };
    tokio::select! {
        end = session.run(hijacked) => end,
        () = sizes => Ok(End::Finished),
    }
}

/// The request that attaches to a container.
pub(crate) fn attach_call<'c>(
    client: &'c Client,
    id: &str,
    attach: create::Attach,
    keys: Option<&str>,
) -> crate::client::Call<'c> {
    client
        .post(format!("/containers/{}/attach", component(id)))
        .flag("stream", true)
        .flag("stdin", attach.stdin)
        .flag("stdout", attach.stdout)
        .flag("stderr", attach.stderr)
        .query_opt("detachKeys", keys)
}

/// The keys that detach, from a flag, the configuration, or Docker's.
pub(crate) fn detach_keys(cli: &Cli, flags: &Parsed) -> Result<Vec<u8>> {
    let text = chosen_keys(cli, flags)?.unwrap_or(corten_api::DEFAULT_DETACH_KEYS);
    corten_api::detach_keys(text)
        .map_err(|error| CliError::message(format!("invalid detach keys ({text}): {error}")))
}

/// The keys that detach where they are not the usual ones; the engine is to know them, too.
pub(crate) fn chosen_keys<'a>(cli: &'a Cli, flags: &'a Parsed) -> Result<Option<&'a str>> {
    let configured = Some(cli.config().detach_keys.as_str());
    Ok(flags
        .nonempty("detach-keys")
        .or(configured.filter(|keys| !keys.is_empty())))
}

/// Starts a container.
pub(crate) async fn start(client: &Client, id: &str) -> Result {
    Ok(client
        .post(format!("/containers/{}/start", component(id)))
        .done()
        .await?)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Waited {
    status_code: i64,
    #[serde(default)]
    error: Option<WaitError>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct WaitError {
    #[serde(default)]
    message: String,
}

/// Registers a wait (when this returns, the engine waits) and gives the future exit code.
pub(crate) async fn exit_status<'c>(
    client: &'c Client,
    id: &str,
    condition: &str,
) -> Result<impl Future<Output = Result<u8>> + 'c> {
    let answer = client
        .post(format!("/containers/{}/wait", component(id)))
        .query("condition", condition)
        .send()
        .await?;
    Ok(async move {
        let bytes = answer.bytes().await?;
        let waited: Waited = serde_json::from_slice(&bytes).map_err(ClientError::from)?;
        if let Some(error) = waited.error.filter(|e| !e.message.is_empty()) {
            return Err(CliError::Status {
                code: ENGINE_FAILED,
                message: format!("Error waiting for container: {}", error.message),
            });
        }
        Ok(exit_code(waited.status_code))
    })
}

/// An exit code as a process can have it.
pub(crate) fn exit_code(status: i64) -> u8 {
    u8::try_from(status & 0xff).unwrap_or(u8::MAX)
}

fn start_failed(cli: &Cli, error: &CliError) -> CliError {
    with_help(cli, error, start_code(&error.to_string()))
}

/// The exit code of a process that could not be started, told by the engine's words as
/// Docker does.
pub(crate) fn start_code(message: &str) -> u8 {
    let has = |text: &str| message.contains(text);
    if has("executable file not found")
        || has("no such file or directory")
        || has("system cannot find the file specified")
    {
        NOT_FOUND
    } else if has("permission denied") || has("is a directory") {
        NOT_EXECUTABLE
    } else {
        ENGINE_FAILED
    }
}

/// A failure of `run`, with a pointer to its help.
fn with_help(cli: &Cli, error: &CliError, code: u8) -> CliError {
    help_with(cli, "run", error, code)
}

/// `corten: …` with a pointer to the help, as Docker words failures of `run` and `create`.
fn help_with(cli: &Cli, command: &str, error: &CliError, code: u8) -> CliError {
    let code = match error {
        CliError::Status { code, message } if message.is_empty() => return CliError::status(*code),
        _ => code,
    };
    CliError::Status {
        code,
        message: format!(
            "{p}: {error}\n\nRun '{p} {command} --help' for more information",
            p = cli.program
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes() {
        for (message, code) in [
            ("exec: \"x\": executable file not found in $PATH", 127),
            ("exec: \"/x\": stat /x: no such file or directory", 127),
            ("exec: \"/x\": permission denied", 126),
            ("exec: \"/etc\": is a directory", 126),
            ("port is already allocated", 125),
        ] {
            assert_eq!(start_code(message), code, "{message}");
        }
        assert_eq!(
            (exit_code(137), exit_code(256), exit_code(-1)),
            (137, 0, 255)
        );
    }

    #[test]
    fn image_ids_are_no_references() {
        assert!(is_id("sha256:0123456789ab") && is_id("abcdef") && !is_id("alpine"));
    }
}
