//! Flags before the command, as Docker's, plus `--root`.

use std::path::PathBuf;

use crate::error::{CliError, Result};
use crate::flags::{Flag, Parsed};

/// The global flags.
pub(crate) const FLAGS: &[Flag] = &[
    Flag::text(
        "config",
        "Directory with client settings and credentials (DOCKER_CONFIG, else ~/.docker)",
    ),
    Flag::text(
        "context",
        "Context that says which engine to talk to (wins over DOCKER_HOST)",
    )
    .short('c'),
    Flag::switch("debug", "Log debugging output").short('D'),
    Flag::list(
        "host",
        "Engine socket to talk to; without one, the engine runs in this process",
    )
    .short('H'),
    Flag::text(
        "log-level",
        "What to log: \"debug\", \"info\", \"warn\", \"error\" or \"fatal\"",
    )
    .short('l')
    .default("info")
    .typed("string", check_level),
    Flag::text(
        "root",
        "Root directory of the engine in this process (CORTEN_ROOT, else /var/lib/corten)",
    ),
    Flag::switch("tls", "Use TLS; implied by --tlsverify"),
    Flag::text(
        "tlscacert",
        "Authority that signed the engine's certificate (CONFIG/ca.pem)",
    ),
    Flag::text("tlscert", "Client certificate (CONFIG/cert.pem)"),
    Flag::text("tlskey", "Key of the client certificate (CONFIG/key.pem)"),
    Flag::switch("tlsverify", "Use TLS and check the engine's certificate"),
    Flag::switch("version", "Print the version and quit").short('v'),
];

fn check_level(text: &str) -> std::result::Result<(), String> {
    match text {
        "debug" | "info" | "warn" | "error" | "fatal" | "trace" => Ok(()),
        _ => Err(format!("unable to parse logging level: {text}")),
    }
}

/// TLS as asked for by flags and environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TlsFlags {
    /// Use TLS at all.
    pub(crate) on: bool,
    /// Check the other side's certificate.
    pub(crate) verify: bool,
    /// Authority, certificate, key; the files may be missing unless named by a flag.
    pub(crate) ca: Option<PathBuf>,
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
}

/// The global flags' values, environment included.
#[derive(Debug, Clone, Default)]
pub(crate) struct Globals {
    pub(crate) config_dir: PathBuf,
    pub(crate) context: Option<String>,
    pub(crate) host: Option<String>,
    pub(crate) root: Option<PathBuf>,
    pub(crate) debug: bool,
    pub(crate) log_level: Option<String>,
    pub(crate) tls: TlsFlags,
    /// `DOCKER_API_VERSION`: the API version to insist on.
    pub(crate) api_version: Option<String>,
}

impl Globals {
    pub(crate) fn from_flags(flags: &Parsed) -> Result<Self> {
        let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let hosts = flags.list("host");
        if hosts.len() > 1 {
            return Err(CliError::message("specify only one -H"));
        }
        let context = flags.nonempty("context").map(str::to_owned);
        if !hosts.is_empty() && context.is_some() {
            return Err(CliError::message(
                "conflicting options: cannot specify both --host and --context",
            ));
        }
        let config_dir = flags
            .nonempty("config")
            .map(PathBuf::from)
            .or_else(|| env("DOCKER_CONFIG").map(PathBuf::from))
            .unwrap_or_else(|| {
                PathBuf::from(env("HOME").unwrap_or_else(|| "/".into())).join(".docker")
            });
        let host = hosts.first().map(|host| (*host).to_owned());
        let host = match &context {
            Some(_) => None,
            None => host.or_else(|| env("DOCKER_HOST")),
        };
        let context = context.or_else(|| match host {
            Some(_) => None,
            None => env("DOCKER_CONTEXT"),
        });
        let certificates =
            env("DOCKER_CERT_PATH").map_or_else(|| config_dir.clone(), PathBuf::from);
        let file = |flag: &str, name: &str| {
            flags.nonempty(flag).map(PathBuf::from).or_else(|| {
                let path = certificates.join(name);
                path.exists().then_some(path)
            })
        };
        let verify = if flags.given("tlsverify") {
            flags.on("tlsverify")
        } else {
            env("DOCKER_TLS_VERIFY").is_some()
        };
        let on = verify || flags.on("tls") || env("DOCKER_TLS").is_some();
        let tls = if on {
            TlsFlags {
                on,
                verify,
                ca: file("tlscacert", "ca.pem"),
                cert: file("tlscert", "cert.pem"),
                key: file("tlskey", "key.pem"),
            }
        } else {
            TlsFlags::default()
        };
        Ok(Self {
            config_dir,
            context,
            host,
            root: flags.nonempty("root").map(PathBuf::from),
            debug: flags.on("debug"),
            log_level: flags
                .given("log-level")
                .then(|| flags.text("log-level").map(str::to_owned))
                .flatten(),
            tls,
            api_version: env("DOCKER_API_VERSION"),
        })
    }
}
