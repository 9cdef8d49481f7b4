//! The command line of `corten registry`; what asks other registries is in `remote`.

use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

use crate::auth;
use crate::error::{IoContext as _, RegistrydError};
use crate::remote::{self, CatalogArgs, ClientFiles, ReferrersArgs, RemoveArgs, TagsArgs};
use crate::server::{CollectConfig, Server};
use crate::settings::{LogFormat, Settings, Span, Store, Tls};
use crate::storage::{Policy, Quota, Storage};

/// What Docker's commands exit with after a wrong flag or argument.
const USAGE: u8 = 125;
/// What runs on worker threads at the end of the server gets this long.
const LAST: Duration = Duration::from_secs(1);
/// More than any password; keeps a wrong pipe from filling the memory.
const MAX_INPUT: u64 = 4096;

/// Run an OCI image registry
#[derive(Debug, Parser)]
#[command(
    name = "corten registry",
    bin_name = "corten registry",
    disable_version_flag = true
)]
pub struct RegistryArgs {
    /// What to do.
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a registry until SIGINT or SIGTERM
    Serve(ServeArgs),
    /// Print a line for a password file
    Htpasswd(HtpasswdArgs),
    /// Remove what no repository refers to, also beside a registry that serves the folder
    GarbageCollect(CollectArgs),
    /// List the repositories of a registry that tells
    Catalog(CatalogArgs),
    /// List the tags of a repository
    Tags(TagsArgs),
    /// List what refers to a manifest: signatures, attestations and the like
    Referrers(ReferrersArgs),
    /// Remove tags or manifests from a registry that allows it
    Rm(RemoveArgs),
}

/// Where a registry is.
#[derive(Debug, Args)]
struct PlaceArgs {
    /// Folder that holds the registry's files
    #[arg(long, value_name = "DIR", required_unless_present_any = ["config", "storage"])]
    root: Option<PathBuf>,
    /// Object store that holds it instead (s3://BUCKET/PREFIX, gs://…, az://…)
    #[arg(long, value_name = "URL", conflicts_with = "root")]
    storage: Option<String>,
    /// Settings of the server (TOML); flags win over them
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl PlaceArgs {
    /// The settings file's content, with what the flags say instead, of whichever kind that is.
    fn settings(self) -> Result<Settings, RegistrydError> {
        let mut settings = match &self.config {
            Some(path) => Settings::load(path)?,
            None => Settings::default(),
        };
        if self.root.is_some() || self.storage.is_some() {
            settings.root = self.root;
            settings.storage = self.storage.map(Store::Url);
        }
        Ok(settings)
    }
}

#[derive(Debug, Args)]
struct ServeArgs {
    /// Address to listen on (port 0 takes a free one) [default: 127.0.0.1:5000]
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    #[command(flatten)]
    place: PlaceArgs,
    /// Ask for a user of this password file (bcrypt entries)
    #[arg(long, value_name = "FILE")]
    htpasswd: Option<PathBuf>,
    /// Serve HTTPS with this certificate chain (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key of the certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Refuse pushes and deletions
    #[arg(long)]
    read_only: bool,
    /// Be a cache of another registry (docker.io, https://HOST:PORT)
    #[arg(long, value_name = "REGISTRY")]
    proxy: Option<String>,
    /// Serve /metrics, /healthz and /readyz on this address too, without authentication
    #[arg(long, value_name = "HOST:PORT")]
    metrics: Option<String>,
    /// How the log is written [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

#[derive(Debug, Args)]
struct HtpasswdArgs {
    /// Take the password from stdin
    #[arg(long)]
    password_stdin: bool,
    /// Name of the user
    #[arg(value_name = "USER")]
    user: String,
}

#[derive(Debug, Args)]
struct CollectArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Only print what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Keep blobs without a manifest that were pushed or asked for less than this ago, and
    /// manifests without a tag (30m, 12h, 7d)
    /// [default: as the settings say, or 24h]
    #[arg(long, value_name = "TIME")]
    grace: Option<Span>,
    /// Remove manifests that no tag, index or subject holds, too
    #[arg(long)]
    delete_untagged: bool,
}

impl ServeArgs {
    /// The settings file's content, with what the flags say instead.
    fn settings(self) -> Result<Settings, RegistrydError> {
        let mut settings = self.place.settings()?;
        settings.listen = self.listen.or(settings.listen);
        settings.htpasswd = self.htpasswd.or(settings.htpasswd);
        // clap lets neither come without the other.
        let tls = self.tls_cert.zip(self.tls_key);
        settings.tls = tls.map(|(cert, key)| Tls { cert, key }).or(settings.tls);
        settings.read_only |= self.read_only;
        settings.metrics = self.metrics.or(settings.metrics);
        settings.log_format = self.log_format.unwrap_or(settings.log_format);
        if let Some(upstream) = self.proxy {
            settings.proxy.get_or_insert_default().lead_to(upstream);
        }
        Ok(settings)
    }
}

/// Runs `corten registry` with these arguments (without the program's name).
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    main_with(args, &ClientFiles::default())
}

/// The same for a command line that says where the user's files are.
pub fn main_with(args: impl IntoIterator<Item = OsString>, files: &ClientFiles) -> ExitCode {
    let words = std::iter::once(OsString::from("corten registry")).chain(args);
    let args = match RegistryArgs::try_parse_from(words) {
        Ok(args) => args,
        Err(error) => return usage(&error),
    };
    let done = match args.command {
        Command::Serve(args) => serve(args),
        Command::Htpasswd(args) => htpasswd(&args),
        Command::GarbageCollect(args) => collect(args),
        Command::Catalog(args) => remote::catalog(&args, files),
        Command::Tags(args) => remote::tags(&args, files),
        Command::Referrers(args) => remote::referrers(&args, files),
        Command::Rm(args) => remote::remove(&args, files),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn usage(error: &clap::Error) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    ) {
        // Help that nobody reads any more (`| head`) is no failure.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        complain(
            &"a command is needed: serve, htpasswd, garbage-collect, catalog, tags, referrers or rm",
        );
    } else {
        // clap's text has the usage below; the lines up to it say what is wrong.
        let text = error.render().to_string();
        let lines = text.lines().take_while(|line| !line.starts_with("Usage:"));
        let words: Vec<&str> = lines
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        let text = words.join(" ");
        complain(&text.strip_prefix("error: ").unwrap_or(&text));
    }
    ExitCode::from(USAGE)
}

/// One line on standard error; if that is closed there is nobody to tell.
pub(crate) fn complain(error: &dyn std::fmt::Display) {
    let _ = writeln!(io::stderr(), "corten registry: {error}");
}

fn serve(args: ServeArgs) -> Result<(), RegistrydError> {
    let settings = args.settings()?;
    log(settings.log_format);
    let (listen, config) = settings.config()?;
    open_many_files();
    let runtime = runtime()?;
    let served = runtime.block_on(async {
        let mut signals = signals()?;
        let server = Server::bind(&listen, config).await?;
        let mut output = io::stdout();
        writeln!(output, "{}", server.url())
            .and_then(|()| output.flush())
            .context("write to", Path::new("standard output"))?;
        let mut again = signals.clone();
        // An error means that nobody sends signals any more, so none has come.
        let told = async |signals: &mut watch::Receiver<u32>, times| {
            if signals.wait_for(|have| *have >= times).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = server.serve(told(&mut signals, 1)) => {}
            () = told(&mut again, 2) => {
                tracing::warn!("told to stop once more: requests are cut off");
            }
        }
        Ok(())
    });
    // Work on worker threads cannot be ended, but need not be waited for.
    runtime.shutdown_timeout(LAST);
    served
}

fn runtime() -> Result<tokio::runtime::Runtime, RegistrydError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the worker threads of", Path::new("corten registry"))
}

/// Writes the log to standard error.
fn log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    // Fails only where the caller has installed one already, which then gets our logs.
    let _ = match format {
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
}

/// A client takes two descriptors, and the usual limit of 1024 is for programs that use select(2).
fn open_many_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Counts SIGINT and SIGTERM, which are caught from now on, and SIGHUP where that says that the
/// terminal has gone. Elsewhere it asks for settings to be read again, which needs no asking.
fn signals() -> Result<watch::Receiver<u32>, RegistrydError> {
    let catch = |kind| signal(kind).context("catch signals of", Path::new("corten registry"));
    let mut interrupt = catch(SignalKind::interrupt())?;
    let mut terminate = catch(SignalKind::terminate())?;
    let mut hangup = catch(SignalKind::hangup())?;
    let has_terminal = io::stdin().is_terminal();
    let (count, counted) = watch::channel(0);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {
                    if !has_terminal {
                        tracing::warn!(
                            "SIGHUP: certificates, keys and the password file are read again \
                             when they change, settings only when the server starts"
                        );
                        continue;
                    }
                }
            }
            count.send_modify(|count| *count += 1);
        }
    });
    Ok(counted)
}

fn htpasswd(args: &HtpasswdArgs) -> Result<(), RegistrydError> {
    if !args.password_stdin {
        return Err(RegistrydError::Unsupported(
            "the password is read from standard input only: use --password-stdin",
        ));
    }
    let mut password = Vec::new();
    io::stdin()
        .take(MAX_INPUT)
        .read_to_end(&mut password)
        .context("read the password from", Path::new("standard input"))?;
    while password
        .last()
        .is_some_and(|byte| matches!(byte, b'\n' | b'\r'))
    {
        password.pop();
    }
    let line = auth::entry(&args.user, &password)?;
    writeln!(io::stdout(), "{line}").context("write to", Path::new("standard output"))
}

fn collect(args: CollectArgs) -> Result<(), RegistrydError> {
    let (_, config) = args.place.settings()?.config()?;
    let policy = policy(
        config.collect,
        args.grace,
        args.delete_untagged,
        args.dry_run,
    );
    // An object store's requests run on it.
    let runtime = runtime()?;
    let _entered = runtime.enter();
    let storage = match &config.storage {
        Some(store) => Storage::connect(store, Quota::default())?,
        None => Storage::existing(&config.root)?,
    };
    let collected = storage.collect(policy)?;
    let verb = if args.dry_run {
        "would delete"
    } else {
        "deleted"
    };
    let mut text = String::new();
    for manifest in &collected.manifests {
        text.push_str(&format!("{verb}: {manifest}\n"));
    }
    for digest in &collected.blobs {
        text.push_str(&format!("{verb}: {digest}\n"));
    }
    text.push_str(&format!(
        "Total reclaimed space: {}\n",
        human(collected.bytes)
    ));
    io::stdout()
        .write_all(text.as_bytes())
        .context("write to", Path::new("standard output"))
}

/// What a collection does that is begun by hand: what the server's own would do, unless flags
/// say otherwise.
fn policy(
    settings: Option<CollectConfig>,
    grace: Option<Span>,
    untagged: bool,
    dry_run: bool,
) -> Policy {
    let ours = Policy::default();
    let grace = grace.map(|span| span.0);
    Policy {
        dry_run,
        grace: grace
            .or(settings.map(|settings| settings.grace))
            .unwrap_or(ours.grace),
        untagged: untagged || settings.is_some_and(|settings| settings.untagged),
    }
}

/// As Docker writes sizes: decimal units, four significant digits.
fn human(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"]
        .into_iter()
        .peekable();
    let mut unit = units.next().unwrap_or_default();
    while value >= 1000.0 && units.peek().is_some() {
        value /= 1000.0;
        unit = units.next().unwrap_or_default();
    }
    let decimals = match value {
        value if value >= 100.0 => 1,
        value if value >= 10.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<RegistryArgs, clap::Error> {
        RegistryArgs::try_parse_from(std::iter::once(&"corten registry").chain(words))
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        RegistryArgs::command().debug_assert();
    }

    #[test]
    fn certificate_and_key_come_together() {
        let serve = ["serve", "--root", "/r"];
        let with = |more: &[&str]| parse(&[&serve[..], more].concat());
        assert!(with(&[]).is_ok());
        assert!(with(&["--tls-cert", "c", "--tls-key", "k"]).is_ok());
        assert!(with(&["--tls-cert", "c"]).is_err());
        assert!(with(&["--tls-key", "k"]).is_err());
        assert!(parse(&["serve"]).is_err());
        assert!(parse(&["htpasswd", "--password-stdin", "ann"]).is_ok());
    }

    #[test]
    fn sizes_as_docker_writes_them() {
        let table = [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (1_234_567, "1.235MB"),
            (12_300_000, "12.3MB"),
            (123_456_789_012, "123.5GB"),
        ];
        for (bytes, text) in table {
            assert_eq!(human(bytes), text);
        }
    }

    #[test]
    fn a_collection_by_hand_does_what_the_servers_own_does() {
        let hours = |hours: u64| Duration::from_secs(hours * 60 * 60);
        let settings = CollectConfig {
            interval: hours(1),
            grace: hours(7 * 24),
            untagged: true,
        };
        let of = |settings, grace: Option<&str>, untagged| {
            let grace = grace.map(|text| text.parse::<Span>().unwrap());
            let policy = policy(settings, grace, untagged, false);
            (policy.grace, policy.untagged)
        };
        assert_eq!(of(None, None, false), (hours(24), false));
        assert_eq!(of(Some(settings), None, false), (hours(7 * 24), true));
        assert_eq!(of(Some(settings), Some("1h"), false), (hours(1), true));
        assert_eq!(of(None, Some("2h"), true), (hours(2), true));
    }

    #[test]
    fn a_flag_takes_no_credentials_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("r.toml");
        let text = "root = \"/r\"\n[proxy]\nupstream = \"https://one.example.org\"\n\
                    username = \"me\"\npassword_file = \"/p\"\nttl = \"1h\"\ninsecure = true\n";
        std::fs::write(&file, text).unwrap();
        let proxy = |upstream: &str| {
            let words = [
                "serve",
                "--config",
                file.to_str().unwrap(),
                "--proxy",
                upstream,
            ];
            let Command::Serve(args) = parse(&words).unwrap().command else {
                panic!("another command");
            };
            let (_, config) = args.settings().unwrap().config().unwrap();
            config.proxy.unwrap()
        };
        let same = proxy("https://one.example.org/");
        assert_eq!((same.username.as_str(), same.insecure), ("me", true));
        let other = proxy("https://two.example.org");
        assert_eq!((other.username.as_str(), other.insecure), ("", false));
        assert_eq!(other.password_file, None);
        assert_eq!(other.ttl, Some(Duration::from_secs(3600)));
    }

    #[test]
    fn usage_errors_have_dockers_code() {
        let run = |words: &[&str]| main(words.iter().map(OsString::from));
        for words in [&["serve"][..], &["serve", "--bogus"], &["bogus"], &[]] {
            assert_eq!(run(words), ExitCode::from(USAGE), "{words:?}");
        }
    }
}
