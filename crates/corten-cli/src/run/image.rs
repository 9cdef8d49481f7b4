//! Images that are not here yet: pulling, with credentials.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use corten_oci::ImageRef;
use corten_registry::Credential;
use corten_registry::docker_config::DockerConfig;

use crate::app::Cli;
use crate::error::{CliError, Result};
use crate::progress::stream::{self, Sink};

/// Where progress goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Show {
    /// Nowhere.
    Nothing,
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Parses an image's name, in Docker's words when it is none.
pub(crate) fn reference(text: &str) -> Result<ImageRef> {
    text.parse::<ImageRef>()
        .map_err(|error| CliError::message(error.to_string()))
}

/// `X-Registry-Auth` for an image's registry.
pub(crate) fn auth_header(cli: &Cli, image: &ImageRef) -> String {
    encode(credential(cli, image).as_ref())
}

/// The user's credential for an image's registry. What keeps it from being read is only warned
/// of: the registry may not ask for any.
pub(crate) fn credential(cli: &Cli, image: &ImageRef) -> Option<Credential> {
    let server = corten_registry::server_key(image);
    let found = stored(cli)?.get(&server);
    found.unwrap_or_else(|error| {
        cli.complain(format!(
            "WARNING: going on without credentials for {server}: {error}"
        ));
        None
    })
}

/// The stored credentials; none, after a warning, where the file is damaged.
pub(crate) fn stored(cli: &Cli) -> Option<DockerConfig> {
    let warned = cli.config().damage.is_some();
    DockerConfig::load(&cli.globals.config_dir)
        .inspect_err(|error| {
            if !warned {
                cli.complain(format!("WARNING: going on without credentials: {error}"));
            }
        })
        .ok()
}

/// A credential as the Engine API takes it; `{}` for none.
pub(crate) fn encode(credential: Option<&Credential>) -> String {
    let json = credential.map_or_else(|| Ok("{}".to_owned()), serde_json::to_string);
    URL_SAFE.encode(json.unwrap_or_else(|_| "{}".into()))
}

/// Pulls an image; every tag of its repository where the name has neither tag nor digest.
pub(crate) async fn pull(
    cli: &Cli,
    image: &ImageRef,
    platform: Option<&str>,
    show: Show,
) -> Result {
    let reference = match (image.digest(), image.tag()) {
        (Some(digest), _) => Some(digest.to_string()),
        (None, tag) => tag.map(str::to_owned),
    };
    let lines = cli
        .client()?
        .post("/images/create")
        .query("fromImage", image.familiar_name())
        .query_opt("tag", reference)
        .query_opt("platform", platform)
        .header("X-Registry-Auth", auth_header(cli, image))
        .lines()
        .await?;
    let sink = match show {
        Show::Nothing => Sink::nothing(),
        Show::Stdout => Sink::stdout(),
        Show::Stderr => Sink::stderr(),
    };
    stream::show(lines, sink).await
}
