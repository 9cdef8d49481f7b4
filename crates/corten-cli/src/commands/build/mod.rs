//! `build`, and the build cache.
//!
//! An engine in this process is given the context's directory by name and reads of it what
//! it needs. To any other engine the context travels as a tar; one that is Corten answers
//! with the same events, another with the classic builder's stream.

mod attest;
mod cache;
mod call;
mod context;
mod contexts;
mod flags;
mod history;
mod image_form;
mod output;
mod secrets;
mod tarball;
mod usage;

use std::collections::{BTreeMap, HashMap};
use std::os::unix::ffi::OsStringExt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;

use super::shared::{NO_PROMPT, PRUNE_FILTER, Pruned, confirm_or_end};
use crate::app::Cli;
use crate::client::Call;
use crate::command::{Command, action};
use crate::error::{CliError, Result};
use crate::flags::{Arity, Flag, Parsed};
use crate::opts::env;
use crate::progress::build::{self as progress, Mode, Showing};
use crate::term;
use attest::Attest;
use cache::Caches;
use call::Inquiry;
use context::{Dockerfile, Source};
use contexts::Named;
use output::Outputs;
use tarball::Tarball;

pub(crate) use usage::Record as CacheRecord;

/// `build`
pub(crate) static BUILD: Command = Command::new(
    "build",
    "PATH | -",
    "Build an image from a Dockerfile",
    action!(build),
)
.aliases(&["image build", "build", "builder build"])
.arity(Arity::Exact(1))
.fills()
.flags(&[flags::FLAGS, flags::UNSUPPORTED]);

/// `builder`
pub(crate) static GROUP: Command = Command::group(
    "builder",
    "Manage builds",
    &[&BUILD, &usage::DU, &history::GROUP, &PRUNE],
);

/// `buildx`, as far as it makes sense with one builder.
pub(crate) static BUILDX: Command = Command::group(
    "buildx",
    "Docker Buildx's commands for builds",
    &[&BUILD, &usage::DU, &history::GROUP, &PRUNE],
);

static PRUNE: Command = Command::new("prune", "", "Remove build cache", action!(prune))
    .arity(Arity::None)
    .flags(&[&[
        Flag::switch(
            "all",
            "Remove all unused build cache, not just dangling ones",
        )
        .short('a'),
        PRUNE_FILTER,
        Flag::bytes(
            "reserved-space",
            "Amount of disk space always allowed to keep for cache",
        ),
        Flag::bytes("keep-storage", "Amount of disk space to keep for cache").hidden(),
        Flag::bytes(
            "max-used-space",
            "Maximum amount of disk space allowed to keep for cache",
        ),
        Flag::bytes(
            "min-free-space",
            "Target amount of free disk space after pruning",
        ),
        NO_PROMPT,
    ]]);

async fn build(cli: &Cli, parsed: Parsed) -> Result {
    flags::refuse_unsupported(&parsed)?;
    let inquiry = Inquiry::of(&parsed)?;
    let quiet = parsed.on("quiet");
    let mode = if quiet {
        Mode::Quiet
    } else {
        Mode::of(parsed.text("progress"))?
    };
    let id_file = parsed.nonempty("iidfile");
    if let Some(path) = id_file {
        remove_old(path)?;
    }
    let argument = parsed.args.first().map(String::as_str).unwrap_or_default();
    let here = std::env::current_dir()?;
    let outputs = Outputs::of(&parsed, &here)?;
    let source = context::locate(argument, parsed.nonempty("file"), &here)?;
    let client = cli.client()?;
    let ours = client.in_process() || is_corten(cli).await?;
    if !ours && matches!(mode, Mode::RawJson) {
        return Err(CliError::message(
            "--progress=rawjson: this engine has the classic builder only",
        ));
    }
    if !ours && inquiry.is_some() {
        return Err(CliError::message(
            "--call: this engine has the classic builder only",
        ));
    }
    if !ours {
        refuse_foreign(&parsed, &outputs)?;
    }
    if !ours && !outputs.form().is_empty() {
        return Err(CliError::message(
            "--output: this engine has the classic builder only, which knows no form of images",
        ));
    }
    let attest = Attest::of(&parsed, &outputs)?;
    if !ours && !attest.is_empty() {
        return Err(CliError::message(
            "--annotation, --provenance, --sbom: this engine has the classic builder only",
        ));
    }
    let debug = parsed.on("debug") && inquiry.is_none();
    let shell = debug && ours && term::stdin_is_terminal() && term::stdout_is_terminal();
    let call = query(client.post("/build"), &parsed)?
        .flag("corten", ours)
        .query_opt(
            "call",
            inquiry.as_ref().map(|inquiry| inquiry.name.as_str()),
        )
        .query_opt(
            "attest",
            (!attest.is_empty()).then(|| serde_json::json!(attest).to_string()),
        )
        .query_opt(
            "rewritetimestamp",
            outputs.form().rewrite.map(|on| if on { "1" } else { "0" }),
        )
        .flag("shell", shell)
        .flag("q", quiet && !ours)
        .header("X-Registry-Config", registry_config(cli)?);
    let default = std::env::var_os("SSH_AUTH_SOCK").map(std::path::PathBuf::from);
    let agents = secrets::Agents::new(&parsed.list("ssh"), &here, default)?;
    let call = lent(call, &parsed, &agents, client.in_process())?;
    let call = named(call, &parsed, &outputs, &here, client.in_process())?;
    let (call, sending) = match source {
        Source::Directory { root, dockerfile } if client.in_process() => {
            (local(call, &root, dockerfile), None)
        }
        Source::Directory { root, dockerfile } => {
            let (sent, name) = Tarball::of_directory(root, dockerfile, parsed.on("compress"))?;
            let (chunks, sending) = sent.stream();
            (
                call.query("dockerfile", name)
                    .body_stream("application/x-tar", chunks),
                Some(sending),
            )
        }
        Source::Remote(url) => {
            let call = call.query_opt("dockerfile", parsed.nonempty("file"));
            (call.query("remote", url), None)
        }
        Source::Text(text) => {
            let (chunks, sending) = Tarball::of_dockerfile(text).stream();
            (call.body_stream("application/x-tar", chunks), Some(sending))
        }
        Source::Archive(start) => {
            let (chunks, sending) = Tarball::of_stdin(start).stream();
            let call = call.query_opt("dockerfile", parsed.nonempty("file"));
            (call.body_stream("application/x-tar", chunks), Some(sending))
        }
    };
    let showing = Showing {
        mode,
        ours,
        verbose: cli.globals.debug,
        shell,
    };
    let outcome = async {
        let lines = call.lines().await?;
        match &inquiry {
            None => progress::show(lines, client, showing).await,
            Some(inquiry) => {
                let answer = progress::answer(lines).await?;
                inquiry.print(cli, &answer)?;
                Ok(None)
            }
        }
    }
    .await;
    // Why the context could not be read says more than that the engine did not get it.
    if outcome.is_err()
        && let Some(sending) = sending
        && let Some(error) = sending.failure()
    {
        return Err(error);
    }
    if debug && !shell && outcome.is_err() {
        cli.complain(if ours {
            "--debug opens a shell in a failed step only on a terminal"
        } else {
            "--debug opens no shell in a failed step: this engine has the classic builder only"
        });
    }
    let image = outcome?;
    let mut tags: Vec<String> = parsed.list("tag").into_iter().map(str::to_owned).collect();
    tags.extend(outputs.names().map(str::to_owned));
    let pushed = match &image {
        Some(image) => outputs.finish(cli, image, &tags).await?,
        None => None,
    };
    if inquiry.is_none() {
        if let Some(path) = parsed.nonempty("metadata-file") {
            write_metadata(path, image.as_deref(), pushed.as_deref(), &tags)?;
        }
        // As with buildx, the file is there and empty where there is no image.
        if let Some(path) = id_file {
            std::fs::write(path, image.as_deref().unwrap_or_default()).map_err(|source| {
                CliError::File {
                    action: "write",
                    path: path.into(),
                    source,
                }
            })?;
        }
    }
    if let Some(image) = &image
        && quiet
    {
        cli.line(image)?;
    }
    Ok(())
}

fn remove_old(path: &str) -> Result {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(CliError::message(
            format!("removing image ID file: {}", crate::error::reason(&error)),
        )),
        _ => Ok(()),
    }
}

/// Refuses what another engine would not understand: it would leave out what was asked for, or
/// be told secrets that it has no use for.
fn refuse_foreign(flags: &Parsed, outputs: &Outputs) -> Result {
    let mut allowed = flags.list("allow").into_iter();
    if allowed.any(|allowed| allowed.starts_with("device")) {
        return Err(CliError::message(
            "--allow device: this engine has the classic builder only",
        ));
    }
    if !outputs.image() && outputs.files().is_empty() {
        return Err(CliError::message(
            "--output type=cacheonly: this engine has the classic builder only",
        ));
    }
    if outputs.by_digest() {
        return Err(CliError::message(
            "--output push-by-digest: this engine has the classic builder only",
        ));
    }
    const OURS: [&str; 6] = [
        "secret",
        "ssh",
        "build-context",
        "cache-from",
        "cache-to",
        "no-cache-filter",
    ];
    match OURS.iter().find(|flag| !flags.list(flag).is_empty()) {
        Some(flag) => Err(CliError::message(format!(
            "--{flag}: this engine has the classic builder only"
        ))),
        None => Ok(()),
    }
}

/// Whether the engine tells so of itself.
async fn is_corten(cli: &Cli) -> Result<bool> {
    let answer = cli.client()?.head("/_ping").send().await?;
    Ok(answer
        .header("Server")
        .is_some_and(|server| server.starts_with("Corten/")))
}

/// A request to the engine in this process.
fn local<'c>(call: Call<'c>, root: &std::path::Path, dockerfile: Dockerfile) -> Call<'c> {
    let call = call.header("X-Corten-Context", root.to_string_lossy());
    match dockerfile {
        Dockerfile::Inside(path) => call.query("dockerfile", path),
        Dockerfile::Outside(path) => call.header("X-Corten-Dockerfile", path.to_string_lossy()),
        Dockerfile::Text(text) => {
            let text = futures_util::stream::iter([Ok(Bytes::from(text))]);
            call.header("X-Corten-Dockerfile", "-")
                .body_stream("text/plain", text)
        }
    }
}

/// Secrets and agents.
fn lent<'c>(
    mut call: Call<'c>,
    flags: &Parsed,
    agents: &secrets::Agents,
    in_process: bool,
) -> Result<Call<'c>> {
    let variable = |name: &str| std::env::var_os(name).map(OsStringExt::into_vec);
    let secrets = secrets::secrets(&flags.list("secret"), variable)?;
    if !secrets.is_empty() {
        call = call.header("X-Corten-Secrets", serde_json::json!(secrets).to_string());
    }
    if let Some(agents) = agents.header() {
        if !in_process {
            return Err(CliError::message(
                "--ssh: an engine in another process cannot reach the agent",
            ));
        }
        call = call.header("X-Corten-Ssh", agents);
    }
    Ok(call)
}

/// Named contexts, and outputs of files: what an engine in this process does with paths.
fn named<'c>(
    mut call: Call<'c>,
    flags: &Parsed,
    outputs: &Outputs,
    here: &std::path::Path,
    in_process: bool,
) -> Result<Call<'c>> {
    for name in outputs.names() {
        call = call.query("t", name);
    }
    let contexts = contexts::named(&flags.list("build-context"), here)?;
    if !in_process && contexts.values().any(Named::is_here) {
        return Err(CliError::message(
            "--build-context: an engine in another process cannot read the directory",
        ));
    }
    if !contexts.is_empty() {
        call = call.header("X-Corten-Contexts", serde_json::json!(contexts).to_string());
    }
    let caches = Caches::of(flags, here)?;
    if !caches.is_empty() {
        if !in_process && caches.has_directory() {
            return Err(CliError::message(
                "--cache-from and --cache-to: an engine in another process cannot reach directories here",
            ));
        }
        call = call.header("X-Corten-Cache", serde_json::json!(caches).to_string());
    }
    let files = outputs.files();
    if files.is_empty() {
        return Ok(call.flag("noimage", !outputs.image()));
    }
    if !in_process {
        return Err(CliError::message(
            "--output: an engine in another process cannot write files here",
        ));
    }
    let call = call.header("X-Corten-Files", serde_json::json!(files).to_string());
    Ok(call.flag("noimage", !outputs.image()))
}

/// `--metadata-file`, with BuildKit's keys. As with Docker's own store the image's digest is its
/// id until a registry has given it another.
fn write_metadata(
    path: &str,
    image: Option<&str>,
    pushed: Option<&str>,
    tags: &[String],
) -> Result {
    let mut metadata = serde_json::json!({});
    if let Some(image) = image {
        metadata["containerimage.config.digest"] = serde_json::json!(image);
        metadata["containerimage.digest"] = serde_json::json!(pushed.unwrap_or(image));
    }
    if image.is_some() && !tags.is_empty() {
        let names: Vec<String> = tags
            .iter()
            .map(|tag| Ok(crate::run::image::reference(tag)?.or_latest().to_string()))
            .collect::<Result<_>>()?;
        metadata["image.name"] = serde_json::json!(names.join(","));
    }
    let text = serde_json::to_vec_pretty(&metadata).map_err(crate::client::ClientError::from)?;
    std::fs::write(path, text).map_err(|source| CliError::File {
        action: "write",
        path: path.into(),
        source,
    })
}

/// Everything that flags say, as the Engine API takes it.
fn query<'c>(mut call: Call<'c>, flags: &Parsed) -> Result<Call<'c>> {
    for tag in flags.list("tag") {
        call = call.query("t", tag);
    }
    let arguments = build_args(&flags.list("build-arg"), |name| std::env::var(name).ok());
    let labels: HashMap<String, String> = env::labels(&[], &flags.list("label"))?;
    let hosts: Vec<String> = flags
        .list("add-host")
        .into_iter()
        .map(crate::opts::hosts::add_host)
        .collect::<std::result::Result<_, _>>()?;
    let platforms: Vec<String> = flags
        .list("platform")
        .into_iter()
        .flat_map(|list| list.split(','))
        .map(str::trim)
        .filter(|platform| !platform.is_empty())
        .map(|platform| match platform {
            "local" => corten_oci::Platform::host().to_string(),
            other => other.to_owned(),
        })
        .collect();
    for platform in &platforms {
        crate::opts::platform::check(platform)?;
    }
    let allowed = flags.list("allow");
    if allowed
        .iter()
        .any(|allowed| matches!(*allowed, "device" | "device="))
    {
        call = call.query("allowdevice", "*");
    } else {
        for name in allowed
            .iter()
            .filter_map(|text| text.strip_prefix("device="))
        {
            call = call.query("allowdevice", name);
        }
    }
    let limits: Vec<_> = flags
        .list("ulimit")
        .into_iter()
        .map(crate::opts::ulimit::parse)
        .collect::<std::result::Result<_, _>>()?;
    let limits = (!limits.is_empty()).then(|| serde_json::json!(limits).to_string());
    let uncached = flags.list("no-cache-filter");
    let shm_size = flags.bytes("shm-size").filter(|size| *size > 0);
    for (parameter, number) in [
        ("memory", flags.bytes("memory")),
        ("memswap", flags.bytes("memory-swap")),
        ("cpushares", flags.int("cpu-shares")),
        ("cpuperiod", flags.int("cpu-period")),
        ("cpuquota", flags.int("cpu-quota")),
    ] {
        let number = number.filter(|number| *number != 0);
        call = call.query_opt(parameter, number.map(|number| number.to_string()));
    }
    let network = flags
        .nonempty("network")
        .filter(|network| *network != "default");
    Ok(call
        .query("version", "1")
        .query("rm", "1")
        .query("buildargs", serde_json::json!(arguments).to_string())
        .query("labels", serde_json::json!(labels).to_string())
        .query_opt("target", flags.nonempty("target"))
        .query_opt(
            "platform",
            (!platforms.is_empty()).then(|| platforms.join(",")),
        )
        .query_opt("networkmode", network)
        .query_opt("cpusetcpus", flags.nonempty("cpuset-cpus"))
        .query_opt("cpusetmems", flags.nonempty("cpuset-mems"))
        .query_opt("ulimits", limits)
        .query_opt("cgroupparent", flags.nonempty("cgroup-parent"))
        .query_opt(
            "nocachefilter",
            (!uncached.is_empty()).then(|| uncached.join(",")),
        )
        .query_opt("shmsize", shm_size.map(|size| size.to_string()))
        .flag(
            "insecure",
            flags.list("allow").contains(&"security.insecure"),
        )
        .query_opt("extrahosts", (!hosts.is_empty()).then(|| hosts.join(",")))
        .flag("nocache", flags.on("no-cache"))
        .flag("pull", flags.on("pull")))
}

/// When everything is said to be made: taken from the environment unasked, as buildx does.
const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// `NAME=VALUE`, or `NAME` with the value of the environment; without one, none is given.
fn build_args(
    values: &[&str],
    environment: impl Fn(&str) -> Option<String>,
) -> BTreeMap<String, Option<String>> {
    let mut arguments: BTreeMap<String, Option<String>> = values
        .iter()
        .map(|text| match text.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => ((*text).to_owned(), environment(text)),
        })
        .collect();
    if !arguments.contains_key(EPOCH)
        && let Some(epoch) = environment(EPOCH)
    {
        arguments.insert(EPOCH.to_owned(), Some(epoch));
    }
    arguments
}

/// The credentials of all registries: a Dockerfile may name any. A helper that fails must not
/// keep anybody from building with public images.
fn registry_config(cli: &Cli) -> Result<String> {
    let (credentials, failures) =
        crate::run::image::stored(cli).map_or_else(Default::default, |stored| stored.get_all());
    for error in failures {
        cli.complain(format!("WARNING: building without credentials: {error}"));
    }
    let json = serde_json::to_vec(&credentials).map_err(crate::client::ClientError::from)?;
    Ok(URL_SAFE.encode(json))
}

async fn prune(cli: &Cli, flags: Parsed) -> Result {
    let warning = if flags.on("all") {
        "WARNING! This will remove all build cache."
    } else {
        "WARNING! This will remove all dangling build cache."
    };
    confirm_or_end(cli, &flags, warning)?;
    // The build cache has no labels; the engine refuses those that are asked for.
    let given = flags.list("filter");
    let filters = cli.config().with_prune_filters_but_labels(&given);
    let all = flags.on("all");
    let mut space: Vec<_> = ["reserved-space", "max-used-space", "min-free-space"]
        .into_iter()
        .filter_map(|name| Some((name, flags.bytes(name)?)))
        .collect();
    // The name of other times; the new one counts where both are given.
    if let Some(bytes) = flags.bytes("keep-storage") {
        space.insert(0, ("keep-storage", bytes));
    }
    prune_to(cli, all, &filters, &space).await?.print(cli)
}

/// Removes build cache.
pub(crate) async fn run_prune(cli: &Cli, all: bool, filters: &[String]) -> Result<Pruned> {
    prune_to(cli, all, filters, &[]).await
}

/// As much of it as bounds of space ask for, by the API's names for them.
async fn prune_to(
    cli: &Cli,
    all: bool,
    filters: &[String],
    space: &[(&'static str, i64)],
) -> Result<Pruned> {
    let mut call = cli.client()?.post("/build/prune").flag("all", all);
    for (name, bytes) in space {
        call = call.query(name, bytes.to_string());
    }
    Ok(call.filters(filters).json().await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_from_the_environment() {
        let environment = |name: &str| (name == "SET").then(|| "yes".to_owned());
        let arguments = build_args(&["A=1", "B=x=y", "SET", "UNSET"], environment);
        assert_eq!(
            serde_json::json!(arguments).to_string(),
            r#"{"A":"1","B":"x=y","SET":"yes","UNSET":null}"#
        );
        let dated = |name: &str| (name == EPOCH).then(|| "7".to_owned());
        assert_eq!(build_args(&[], dated)[EPOCH].as_deref(), Some("7"));
        assert_eq!(
            build_args(&["SOURCE_DATE_EPOCH=1"], dated)[EPOCH].as_deref(),
            Some("1")
        );
    }
}
