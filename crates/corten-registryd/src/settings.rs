//! The settings file of `serve --config` (TOML; docs/registries.md has all of it). A word that
//! is not known is an error that names its line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::auth::{Rule, TokenConfig};
use crate::error::{IoContext as _, RegistrydError};
use crate::proxy::ProxyConfig;
use crate::server::{CollectConfig, Config};
use crate::storage::{GRACE, Quota, StoreConfig};

/// Where a server listens that is told nothing.
const LISTEN: &str = "127.0.0.1:5000";

/// The file's content.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    pub(crate) root: Option<PathBuf>,
    pub(crate) storage: Option<Store>,
    pub(crate) listen: Option<String>,
    pub(crate) read_only: bool,
    pub(crate) htpasswd: Option<PathBuf>,
    pub(crate) tls: Option<Tls>,
    pub(crate) token: Option<Token>,
    pub(crate) access: Vec<Rule>,
    pub(crate) proxy: Option<Upstream>,
    pub(crate) quota: Quotas,
    pub(crate) gc: Option<Collect>,
    pub(crate) metrics: Option<String>,
    pub(crate) log_format: LogFormat,
    pub(crate) drain: Option<Span>,
    pub(crate) grace: Option<Span>,
}

/// An object store: its URL alone, or a table with `url` and the options.
#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "storage is a URL, or a table with url and text options"
)]
pub(crate) enum Store {
    Url(String),
    Table {
        url: String,
        #[serde(flatten)]
        options: BTreeMap<String, String>,
    },
}

impl From<Store> for StoreConfig {
    fn from(store: Store) -> Self {
        let (url, options) = match store {
            Store::Url(url) => (url, BTreeMap::new()),
            Store::Table { url, options } => (url, options),
        };
        Self { url, options }
    }
}

/// How the log is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// An object for each line.
    Json,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Upstream {
    pub(crate) upstream: String,
    username: String,
    password_file: Option<PathBuf>,
    ttl: Option<Span>,
    ca: Option<PathBuf>,
    client_cert: Option<PathBuf>,
    client_key: Option<PathBuf>,
    insecure: bool,
}

impl Upstream {
    /// What a flag says instead. How another registry is spoken to is not known from the
    /// settings; above all it gets no credentials that are meant for this one.
    pub(crate) fn lead_to(&mut self, upstream: String) {
        if self.upstream.trim_end_matches('/') != upstream.trim_end_matches('/') {
            *self = Self {
                ttl: self.ttl,
                ..Self::default()
            };
        }
        self.upstream = upstream;
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Quotas {
    total: Option<Bytes>,
    repository: Option<Bytes>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Collect {
    interval: Option<Span>,
    grace: Option<Span>,
    untagged: bool,
}

/// How often garbage is collected where a table asks for it and does not say.
const INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

/// An amount of bytes: a number, or with a unit as in `500MB` or `2GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Bytes(pub(crate) u64);

impl TryFrom<String> for Bytes {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl std::str::FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is no amount of bytes: write 500MB, 20GB or 2GiB");
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let factor = match unit {
            "" | "B" => 1,
            "kB" => 1000,
            "MB" => 1000_u64.pow(2),
            "GB" => 1000_u64.pow(3),
            "TB" => 1000_u64.pow(4),
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            _ => return Err(wrong()),
        };
        number.checked_mul(factor).map(Self).ok_or_else(wrong)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tls {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Token {
    realm: Option<String>,
    service: String,
    issuer: String,
    keys: Vec<PathBuf>,
    signing_key: Option<PathBuf>,
    lifetime: Option<Span>,
}

/// A length of time: `30s`, `5m`, `12h`, `7d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Span(pub(crate) Duration);

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl std::str::FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is no length of time: write 30s, 5m, 12h or 7d");
        let (number, unit) =
            text.split_at(text.len() - text.chars().last().map_or(0, char::len_utf8));
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 60 * 60,
            "d" => 24 * 60 * 60,
            _ => return Err(wrong()),
        };
        let seconds = number.checked_mul(seconds).ok_or_else(wrong)?;
        Ok(Self(Duration::from_secs(seconds)))
    }
}

impl Settings {
    /// Reads a file.
    pub(crate) fn load(path: &Path) -> Result<Self, RegistrydError> {
        let text = std::fs::read_to_string(path).context("read the settings", path)?;
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, RegistrydError> {
        toml::from_str(text).map_err(|error| {
            let before = error
                .span()
                .map_or("", |span| text.get(..span.start).unwrap_or(""));
            RegistrydError::Settings {
                path: path.to_owned(),
                line: before.matches('\n').count() + 1,
                reason: error.message().to_owned(),
            }
        })
    }

    /// Where to listen, and what to serve.
    pub(crate) fn config(self) -> Result<(String, Config), RegistrydError> {
        let root = match (self.root, &self.storage) {
            (Some(_), Some(_)) => {
                return Err(RegistrydError::Unsupported(
                    "both root and storage: a registry is in a folder or in an object store",
                ));
            }
            (Some(root), None) => root,
            (None, Some(_)) => PathBuf::new(),
            (None, None) => {
                return Err(RegistrydError::Unsupported(
                    "no place for the registry: give --root DIR or --storage URL, or root or \
                     storage in the settings",
                ));
            }
        };
        let token = self.token.map(|token| TokenConfig {
            realm: token.realm,
            service: token.service,
            issuer: token.issuer,
            keys: token.keys,
            signing_key: token.signing_key,
            lifetime: token.lifetime.map(|span| span.0),
        });
        let config = Config {
            root,
            storage: self.storage.map(StoreConfig::from),
            htpasswd: self.htpasswd,
            tls: self.tls.map(|tls| (tls.cert, tls.key)),
            read_only: self.read_only,
            token,
            rules: self.access,
            proxy: self.proxy.map(|upstream| ProxyConfig {
                upstream: upstream.upstream,
                username: upstream.username,
                password_file: upstream.password_file,
                ttl: upstream.ttl.map(|span| span.0),
                ca: upstream.ca,
                client_cert: upstream.client_cert,
                client_key: upstream.client_key,
                insecure: upstream.insecure,
            }),
            quota: Quota {
                total: self.quota.total.map(|bytes| bytes.0),
                repository: self.quota.repository.map(|bytes| bytes.0),
            },
            collect: self.gc.map(|collect| CollectConfig {
                interval: collect.interval.map_or(INTERVAL, |span| span.0),
                grace: collect.grace.map_or(GRACE, |span| span.0),
                untagged: collect.untagged,
            }),
            metrics: self.metrics,
            drain: self.drain.map_or(Duration::ZERO, |span| span.0),
            grace: self.grace.map(|span| span.0),
            patience: None,
        };
        let listen = self.listen.unwrap_or_else(|| LISTEN.to_owned());
        Ok((listen, config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, String> {
        Settings::parse(text, Path::new("r.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn spans() {
        for (text, seconds) in [("30s", 30), ("5m", 300), ("2h", 7200), ("1d", 86_400)] {
            assert_eq!(
                text.parse(),
                Ok(Span(Duration::from_secs(seconds))),
                "{text}"
            );
        }
        for bad in ["", "5", "m", "5 m", "-1s", "5ü", "99999999999999999999d"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }

    #[test]
    fn amounts() {
        for (text, bytes) in [
            ("7", 7),
            ("5kB", 5000),
            ("2GiB", 2 << 30),
            ("3TB", 3_000_000_000_000),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for bad in ["", "GB", "1 GB", "-1", "1.5GB", "1gb", "99999999TB"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
    }

    #[test]
    fn all_of_it() {
        let text = r#"
root = "/r"
listen = ":5000"
metrics = "127.0.0.1:9000"
log_format = "json"
drain = "5s"
grace = "1m"
[token]
[proxy]
upstream = "docker.io"
ttl = "1m"
[quota]
total = "10GB"
[gc]
interval = "12h"
untagged = true
"#;
        let (listen, config) = parse(text).unwrap().config().unwrap();
        assert_eq!(listen, ":5000");
        assert_eq!(config.quota.total, Some(10_000_000_000));
        let collect = config.collect.unwrap();
        assert_eq!(collect.interval, Duration::from_secs(12 * 60 * 60));
        assert!(collect.untagged && collect.grace == GRACE);
        assert_eq!(config.proxy.unwrap().ttl, Some(Duration::from_secs(60)));
        assert_eq!(config.grace, Some(Duration::from_secs(60)));
        assert!(config.token.is_some());
    }

    #[test]
    fn object_stores() {
        let store = |text: &str| parse(text).unwrap().config().unwrap().1.storage.unwrap();
        let bare = store("storage = \"s3://b/p\"\n");
        assert_eq!((bare.url.as_str(), bare.options.len()), ("s3://b/p", 0));
        let table = store("[storage]\nurl = \"gs://b\"\nservice_account = \"/k.json\"\n");
        assert_eq!(table.url, "gs://b");
        assert_eq!(table.options["service_account"], "/k.json");
        let both = parse("root = \"/r\"\nstorage = \"s3://b\"\n").unwrap();
        assert!(both.config().is_err());
    }

    #[test]
    fn mistakes_name_the_line() {
        for (text, line, word) in [
            ("root = \"/r\"\nlisen = \":5\"\n", 2, "lisen"),
            ("[tls]\ncert = \"c\"\n", 1, "key"),
            ("listen = \":5\"\nstorage = 7\n", 2, "storage is a URL"),
            ("[token]\nlifetime = \"5\"\n", 2, "length of time"),
            (
                "[[access]]\nrepositories = []\nusers = []\nactions = [\"read\"]\n",
                4,
                "read",
            ),
        ] {
            let error = parse(text).unwrap_err();
            let place = format!("r.toml: line {line}: ");
            assert!(error.starts_with(&place) && error.contains(word), "{error}");
        }
        assert!(parse("").unwrap().config().is_err(), "no root");
    }
}
