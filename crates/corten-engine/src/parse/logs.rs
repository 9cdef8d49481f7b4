//! Log drivers and their options.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use bollard_stubs::models::HostConfigLogConfig;
use corten_supervisor::logs::{SyslogAddress, SyslogFormat, TlsFiles};
use regex_lite::Regex;

use super::bad;
use crate::error::EngineError;

type Result<T> = std::result::Result<T, EngineError>;

/// Options that any driver but `none` has.
const COMMON: [&str; 10] = [
    "mode",
    "max-buffer-size",
    "labels",
    "labels-regex",
    "env",
    "env-regex",
    "tag",
    "cache-disabled",
    "cache-max-size",
    "cache-max-file",
];
const CACHE_COMPRESS: &str = "cache-compress";

/// Bytes that wait for a log of others, unless `max-buffer-size` says otherwise (Docker's).
const BUFFER: u64 = 1 << 20;

/// Where a container's output goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LogDriver {
    /// Docker's json-file format.
    JsonFile(Rotation),
    /// A file of the same format in a place of its own, rotated and compressed.
    Local(Rotation),
    /// A syslog daemon; kept here too, to be read.
    Syslog {
        address: SyslogAddress,
        facility: u8,
        format: SyslogFormat,
        cache: Option<Rotation>,
    },
    /// systemd's journal; kept here too, to be read.
    Journald { cache: Option<Rotation> },
    /// Nowhere.
    None,
}

impl LogDriver {
    /// Whether what it keeps can be read.
    pub(crate) fn is_readable(&self) -> bool {
        match self {
            Self::JsonFile(_) | Self::Local(_) => true,
            Self::Syslog { cache, .. } | Self::Journald { cache } => cache.is_some(),
            Self::None => false,
        }
    }
}

/// How files are rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rotation {
    /// Bytes after which a file is rotated; `None`: never.
    pub(crate) max_size: Option<u64>,
    /// How many files are kept, the current one included.
    pub(crate) max_files: u32,
    /// Whether rotated files are compressed.
    pub(crate) compress: bool,
}

/// What a json-file log is without options. Docker's grows for ever; this one does not.
const JSON_FILE: Rotation = Rotation {
    max_size: Some(20 << 20),
    max_files: 5,
    compress: false,
};
/// Docker's for `local`, and for what is kept of the output to logs of others.
const LOCAL: Rotation = Rotation {
    max_size: Some(20 << 20),
    max_files: 5,
    compress: true,
};

/// Options of every driver, for when it is opened.
#[derive(Debug, Clone)]
pub(crate) struct Common {
    /// The container waits for a slow log.
    pub(crate) blocking: bool,
    /// Bytes that may wait.
    pub(crate) buffer: u64,
    labels: Vec<String>,
    labels_regex: Option<Regex>,
    env: Vec<String>,
    env_regex: Option<Regex>,
    /// A template.
    pub(crate) tag: Option<String>,
}

/// Reads a log configuration; absent is json-file.
pub(crate) fn driver(config: Option<&HostConfigLogConfig>) -> Result<LogDriver> {
    let none = HashMap::new();
    let name = config.and_then(|c| c.typ.as_deref()).unwrap_or("");
    let options = config.and_then(|c| c.config.as_ref()).unwrap_or(&none);
    let own: &[&str] = match name {
        "" | "default" | "json-file" | "local" => &["max-size", "max-file", "compress"],
        "syslog" => &[
            "syslog-address",
            "syslog-facility",
            "syslog-format",
            "syslog-tls-ca-cert",
            "syslog-tls-cert",
            "syslog-tls-key",
            "syslog-tls-skip-verify",
            CACHE_COMPRESS,
        ],
        "journald" => &[CACHE_COMPRESS],
        "none" => {
            return match options.keys().min() {
                None => Ok(LogDriver::None),
                Some(key) => Err(bad(format!("unknown log opt '{key}' for none log driver"))),
            };
        }
        other => {
            return Err(bad(format!(
                "error looking up logging plugin {other}: plugin \"{other}\" not found"
            )));
        }
    };
    let name = if matches!(name, "" | "default") {
        "json-file"
    } else {
        name
    };
    let allowed = |key: &str| own.contains(&key) || COMMON.contains(&key);
    let sorted: BTreeMap<_, _> = options.iter().collect();
    if let Some(key) = sorted.keys().find(|key| !allowed(key)) {
        return Err(bad(match name {
            "local" => format!("unknown log opt '{key}' for log driver local"),
            _ => format!("unknown log opt '{key}' for {name} log driver"),
        }));
    }
    common(options)?;
    let cache = || -> Result<Option<Rotation>> {
        if boolean(options, "cache-disabled")?.unwrap_or(false) {
            return Ok(None);
        }
        rotation(options, "cache-", LOCAL).map(Some)
    };
    Ok(match name {
        "local" => LogDriver::Local(rotation(options, "", LOCAL)?),
        "syslog" => LogDriver::Syslog {
            address: address(
                options.get("syslog-address").map_or("", String::as_str),
                tls(options)?,
            )?,
            facility: facility(options.get("syslog-facility").map_or("", String::as_str))?,
            format: format_of(options.get("syslog-format").map_or("", String::as_str))?,
            cache: cache()?,
        },
        "journald" => LogDriver::Journald { cache: cache()? },
        _ => LogDriver::JsonFile(json_file(options)?),
    })
}

/// Docker's rules, but for what is without any option.
fn json_file(options: &HashMap<String, String>) -> Result<Rotation> {
    let given = |key: &str| options.contains_key(key);
    if !given("max-size") && !given("max-file") {
        let wanted = rotation(options, "", JSON_FILE)?;
        return Ok(wanted);
    }
    // Files are counted where they are rotated: without a size of their own, at ours.
    let once = Rotation {
        max_size: JSON_FILE.max_size.filter(|_| !given("max-size")),
        max_files: 1,
        compress: false,
    };
    let rotation = rotation(options, "", once)?;
    if rotation.max_files > 1 && rotation.max_size.is_none() {
        return Err(bad("max-file cannot be set without max-size"));
    }
    if rotation.compress && (rotation.max_files < 2 || rotation.max_size.is_none()) {
        return Err(bad(
            "compress cannot be true when max-file is less than 2 or max-size is not set",
        ));
    }
    Ok(rotation)
}

/// Docker's words for a value that the driver cannot do with.
fn unusable(why: &str) -> EngineError {
    bad(format!("failed to initialize logging driver: {why}"))
}

/// The options about rotation whose names begin so.
fn rotation(options: &HashMap<String, String>, prefix: &str, base: Rotation) -> Result<Rotation> {
    let get = |key: &str| options.get(&format!("{prefix}{key}")).map(String::as_str);
    let max_size = match get("max-size") {
        None => base.max_size,
        Some("-1") => None,
        Some(text) => Some(
            size(text)
                .filter(|s| *s > 0)
                .ok_or_else(|| unusable(&format!("invalid size: '{text}'")))?,
        ),
    };
    let max_files = match get("max-file") {
        None => base.max_files,
        Some(text) => text
            .parse()
            .ok()
            .filter(|n| *n >= 1)
            .ok_or_else(|| unusable(&format!("{prefix}max-file cannot be less than 1")))?,
    };
    let compress = boolean(options, &format!("{prefix}compress"))?;
    Ok(Rotation {
        max_size,
        max_files,
        compress: compress.unwrap_or(base.compress && max_files > 1),
    })
}

fn boolean(options: &HashMap<String, String>, key: &str) -> Result<Option<bool>> {
    match options.get(key).map(String::as_str) {
        None => Ok(None),
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(Some(true)),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(Some(false)),
        Some(other) => Err(bad(format!("invalid value for {key}: {other}"))),
    }
}

/// Reads what every driver has.
pub(crate) fn common(options: &HashMap<String, String>) -> Result<Common> {
    let get = |key: &str| {
        options
            .get(key)
            .map(String::as_str)
            .filter(|v| !v.is_empty())
    };
    let mode = get("mode");
    if !matches!(mode, None | Some("blocking" | "non-blocking")) {
        return Err(bad(format!(
            "logger: logging mode not supported: {}",
            mode.unwrap_or_default()
        )));
    }
    let blocking = mode != Some("non-blocking");
    let buffer = match get("max-buffer-size") {
        None => BUFFER,
        Some(_) if blocking => {
            return Err(bad(
                "logger: max-buffer-size option is only supported with 'mode=non-blocking'",
            ));
        }
        Some(text) => size(text)
            .ok_or_else(|| bad(format!("error parsing option max-buffer-size: {text}")))?,
    };
    let list = |key: &str| -> Vec<String> {
        let words = get(key).unwrap_or_default().split(',');
        words.filter(|w| !w.is_empty()).map(str::to_owned).collect()
    };
    let regex = |key: &str| -> Result<Option<Regex>> {
        get(key)
            .map(|text| Regex::new(text).map_err(|error| bad(format!("{key}: {error}"))))
            .transpose()
    };
    let tag = get("tag").map(str::to_owned);
    if let Some(tag) = &tag {
        fill(tag, &|field| FIELDS.contains(&field).then(String::new))?;
    }
    Ok(Common {
        blocking,
        buffer,
        labels: list("labels"),
        labels_regex: regex("labels-regex")?,
        env: list("env"),
        env_regex: regex("env-regex")?,
        tag,
    })
}

impl Common {
    /// The labels and variables of a container that its log is to have.
    pub(crate) fn attributes(
        &self,
        labels: &HashMap<String, String>,
        env: &[String],
    ) -> BTreeMap<String, String> {
        let wanted = |names: &[String], regex: &Option<Regex>, key: &str| {
            names.iter().any(|name| name == key) || regex.as_ref().is_some_and(|r| r.is_match(key))
        };
        let labels = labels
            .iter()
            .filter(|(key, _)| wanted(&self.labels, &self.labels_regex, key))
            .map(|(key, value)| (key.clone(), value.clone()));
        let env = env
            .iter()
            .filter_map(|entry| entry.split_once('='))
            .filter(|(key, _)| wanted(&self.env, &self.env_regex, key))
            .map(|(key, value)| (key.to_owned(), value.to_owned()));
        labels.chain(env).collect()
    }
}

/// What a tag may name.
pub(crate) const FIELDS: [&str; 7] = [
    "ID",
    "FullID",
    "Name",
    "ImageID",
    "ImageFullID",
    "ImageName",
    "DaemonName",
];

/// Fills the `{{.Field}}`s of a tag.
pub(crate) fn fill(tag: &str, value: &dyn Fn(&str) -> Option<String>) -> Result<String> {
    let mut filled = String::new();
    let mut rest = tag;
    while let Some((before, after)) = rest.split_once("{{") {
        filled.push_str(before);
        let wrong = || {
            bad(format!(
                "invalid log tag \"{tag}\": fields are {}",
                FIELDS.map(|field| format!("{{{{.{field}}}}}")).join(", ")
            ))
        };
        let (field, behind) = after.split_once("}}").ok_or_else(wrong)?;
        let field = field.trim().strip_prefix('.').ok_or_else(wrong)?;
        filled.push_str(&value(field).ok_or_else(wrong)?);
        rest = behind;
    }
    filled.push_str(rest);
    Ok(filled)
}

/// Reads what is of use with `tcp+tls` only; paths are the engine's.
fn tls(options: &HashMap<String, String>) -> Result<TlsFiles> {
    let path = |key: &str| -> Result<Option<PathBuf>> {
        let Some(path) = options.get(key).filter(|path| !path.is_empty()) else {
            return Ok(None);
        };
        match std::path::Path::new(path) {
            path if path.is_absolute() => Ok(Some(path.to_owned())),
            _ => Err(bad(format!("{key}: {path} is not an absolute path"))),
        }
    };
    let skip = "syslog-tls-skip-verify";
    let files = TlsFiles {
        authorities: path("syslog-tls-ca-cert")?,
        certificate: path("syslog-tls-cert")?,
        key: path("syslog-tls-key")?,
        // Its mere presence means yes, too.
        any: match options.get(skip).map(String::as_str) {
            Some("") => true,
            _ => boolean(options, skip)?.unwrap_or(false),
        },
    };
    if files.certificate.is_some() != files.key.is_some() {
        return Err(bad("syslog-tls-cert and syslog-tls-key go together"));
    }
    Ok(files)
}

/// Reads `proto://address`.
fn address(text: &str, tls: TlsFiles) -> Result<SyslogAddress> {
    if text.is_empty() {
        return Ok(SyslogAddress::Local);
    }
    let wrong = || {
        bad(format!(
            "syslog-address should be in form proto://address, got {text}"
        ))
    };
    let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
    let with_port = || {
        let has_port = match rest.rsplit_once(']') {
            Some((_, after)) => after.starts_with(':'),
            None => rest.contains(':'),
        };
        if has_port {
            rest.to_owned()
        } else {
            format!("{rest}:514")
        }
    };
    match scheme {
        _ if rest.is_empty() => Err(wrong()),
        "udp" => Ok(SyslogAddress::Udp(with_port())),
        "tcp" => Ok(SyslogAddress::Tcp(with_port())),
        "tcp+tls" => Ok(SyslogAddress::Tls(with_port(), tls)),
        "unix" | "unixgram" => {
            let path = PathBuf::from(rest);
            if let Err(error) = std::fs::metadata(&path) {
                return Err(bad(format!("syslog-address: {rest}: {error}")));
            }
            Ok(if scheme == "unix" {
                SyslogAddress::Unix(path)
            } else {
                SyslogAddress::Unixgram(path)
            })
        }
        _ => Err(wrong()),
    }
}

/// Facilities by their names, in the order of their numbers; nothing between 12 and 15 has one.
const FACILITIES: [&str; 12] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv",
    "ftp",
];

fn facility(text: &str) -> Result<u8> {
    let text = if text.is_empty() { "daemon" } else { text };
    let named = FACILITIES.iter().position(|name| *name == text);
    let number = match (named, text.strip_prefix("local")) {
        (Some(position), _) => u8::try_from(position).ok(),
        (None, Some(local)) => local.parse().ok().filter(|n| *n < 8).map(|n: u8| n + 16),
        (None, None) => text.parse().ok().filter(|n| *n < 24),
    };
    number.ok_or_else(|| bad("invalid syslog facility"))
}

fn format_of(text: &str) -> Result<SyslogFormat> {
    match text {
        "" => Ok(SyslogFormat::Local),
        "rfc3164" => Ok(SyslogFormat::Rfc3164),
        "rfc5424" => Ok(SyslogFormat::Rfc5424),
        "rfc5424micro" => Ok(SyslogFormat::Rfc5424Micro),
        _ => Err(bad("Invalid syslog format")),
    }
}

/// Reads a size in binary units as Docker does: `10m`, `1g`, `512kb`, `1024`.
pub(crate) fn size(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(lower.len());
    let number: f64 = lower[..digits].parse().ok()?;
    let factor = match lower[digits..].trim() {
        "" | "b" => 1.0,
        "k" | "kb" | "kib" => 1024.0,
        "m" | "mb" | "mib" => 1024.0 * 1024.0,
        "g" | "gb" | "gib" => 1024.0 * 1024.0 * 1024.0,
        "t" | "tb" | "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    // Bounded by what a file can be; fractions of a byte are dropped as Docker does.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Some((number * factor) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(driver: &str, options: &[(&str, &str)]) -> HostConfigLogConfig {
        HostConfigLogConfig {
            typ: Some(driver.to_owned()),
            config: Some(
                options
                    .iter()
                    .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                    .collect(),
            ),
        }
    }

    #[test]
    fn drivers_and_options() {
        let json = |max_size, max_files, compress| {
            LogDriver::JsonFile(Rotation {
                max_size,
                max_files,
                compress,
            })
        };
        let syslog = |address, facility, format| LogDriver::Syslog {
            address,
            facility,
            format,
            cache: Some(LOCAL),
        };
        for (config, expected) in [
            (
                config("json-file", &[]),
                Some(LogDriver::JsonFile(JSON_FILE)),
            ),
            (
                config("", &[("max-size", "10m"), ("max-file", "3")]),
                Some(json(Some(10 << 20), 3, false)),
            ),
            (
                config("json-file", &[("max-size", "1m")]),
                Some(json(Some(1 << 20), 1, false)),
            ),
            (
                config("json-file", &[("max-size", "-1")]),
                Some(json(None, 1, false)),
            ),
            (
                config(
                    "json-file",
                    &[("max-size", "1k"), ("max-file", "2"), ("compress", "true")],
                ),
                Some(json(Some(1024), 2, true)),
            ),
            (
                config("json-file", &[("compress", "true"), ("max-size", "1k")]),
                None,
            ),
            (config("none", &[]), Some(LogDriver::None)),
            (config("none", &[("max-size", "1m")]), None),
            (
                config("json-file", &[("max-file", "3")]),
                Some(json(JSON_FILE.max_size, 3, false)),
            ),
            (
                config("json-file", &[("max-file", "2"), ("compress", "true")]),
                Some(json(JSON_FILE.max_size, 2, true)),
            ),
            (
                config("json-file", &[("max-size", "-1"), ("max-file", "3")]),
                None,
            ),
            (config("json-file", &[("max-size", "x")]), None),
            (config("json-file", &[("syslog-address", "udp://a")]), None),
            (
                config("json-file", &[("labels", "a"), ("tag", "{{.Name}}")]),
                Some(LogDriver::JsonFile(JSON_FILE)),
            ),
            (config("json-file", &[("tag", "{{.Nope}}")]), None),
            (config("json-file", &[("env-regex", "(")]), None),
            (config("local", &[]), Some(LogDriver::Local(LOCAL))),
            (
                config("syslog", &[]),
                Some(syslog(SyslogAddress::Local, 3, SyslogFormat::Local)),
            ),
            (
                config(
                    "syslog",
                    &[
                        ("syslog-address", "udp://10.0.0.1"),
                        ("syslog-facility", "local7"),
                        ("syslog-format", "rfc5424"),
                    ],
                ),
                Some(syslog(
                    SyslogAddress::Udp("10.0.0.1:514".to_owned()),
                    23,
                    SyslogFormat::Rfc5424,
                )),
            ),
            (
                config(
                    "syslog",
                    &[
                        ("syslog-address", "tcp+tls://a:1"),
                        ("syslog-tls-ca-cert", "/ca"),
                        ("syslog-tls-skip-verify", ""),
                    ],
                ),
                Some(syslog(
                    SyslogAddress::Tls(
                        "a:1".to_owned(),
                        TlsFiles {
                            authorities: Some("/ca".into()),
                            any: true,
                            ..TlsFiles::default()
                        },
                    ),
                    3,
                    SyslogFormat::Local,
                )),
            ),
            (config("syslog", &[("syslog-tls-ca-cert", "ca")]), None),
            (
                config("syslog", &[("syslog-tls-skip-verify", "perhaps")]),
                None,
            ),
            (config("syslog", &[("syslog-address", "a:1")]), None),
            (config("syslog", &[("syslog-facility", "local8")]), None),
            (config("syslog", &[("syslog-tls-key", "/k")]), None),
            (config("syslog", &[("max-size", "1m")]), None),
            (
                config("journald", &[("cache-disabled", "true")]),
                Some(LogDriver::Journald { cache: None }),
            ),
            (config("fluentd", &[]), None),
            (config("local", &[("mode", "sometimes")]), None),
            (config("local", &[("max-buffer-size", "1m")]), None),
        ] {
            assert_eq!(driver(Some(&config)).ok(), expected, "{config:?}");
        }
        let error = |c: HostConfigLogConfig| driver(Some(&c)).unwrap_err().to_string();
        assert_eq!(
            error(config("journald", &[("nope", "1")])),
            "unknown log opt 'nope' for journald log driver"
        );
        assert_eq!(
            error(config("gelf", &[])),
            "error looking up logging plugin gelf: plugin \"gelf\" not found"
        );
    }

    #[test]
    fn attributes_and_tags() {
        let options = config(
            "json-file",
            &[("labels", "a,b"), ("env-regex", "^X_"), ("env", "HOME")],
        );
        let common = common(options.config.as_ref().unwrap()).unwrap();
        let labels = [
            ("a".to_owned(), "1".to_owned()),
            ("c".to_owned(), "3".to_owned()),
        ]
        .into();
        let env = ["HOME=/root", "X_Y=2", "PATH=/bin"].map(str::to_owned);
        let found: Vec<_> = common.attributes(&labels, &env).into_iter().collect();
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(
            found,
            [pair("HOME", "/root"), pair("X_Y", "2"), pair("a", "1")]
        );
        let value = |field: &str| (field == "Name").then(|| "web".to_owned());
        assert_eq!(fill("app/{{ .Name }}!", &value).unwrap(), "app/web!");
        for wrong in ["{{.Name", "{{Name}}", "{{.Other}}"] {
            assert!(fill(wrong, &value).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(size("1.5k"), Some(1536));
        assert_eq!(size("2GB"), Some(2 << 30));
        assert_eq!(size("12"), Some(12));
        assert_eq!(size("m"), None);
        assert_eq!(size("1x"), None);
    }
}
