//! `hosts.toml`: what containerd calls a registry host configuration
//! (containerd `docs/hosts.md`), one file per registry in a `certs.d` directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use serde::Deserialize;
use toml::{Table, Value};

use crate::config::{RegistrySettings, is_loopback};
use crate::endpoint::{Endpoint, HUB, Trust};
use crate::error::RegistryError;

/// The file's name.
pub(crate) const FILE: &str = "hosts.toml";

/// Settings of one host, and at the top of the file those of the registry itself.
#[derive(Debug, Default, Deserialize)]
struct HostSettings {
    #[serde(default)]
    capabilities: Vec<String>,
    ca: Option<Value>,
    client: Option<Value>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    override_path: bool,
    #[serde(default)]
    header: Table,
    dial_timeout: Option<String>,
    proxy: Option<String>,
}

/// The words a host may have; `server` and `host` only at the top.
const WORDS: [&str; 8] = [
    "capabilities",
    "ca",
    "client",
    "skip_verify",
    "override_path",
    "header",
    "dial_timeout",
    "proxy",
];

/// The endpoints of a registry, in order, as the file says. `None` if there is no such file.
pub(crate) fn load(directory: &Path, domain: &str) -> Result<Option<Vec<Endpoint>>, RegistryError> {
    let path = directory.join(FILE);
    match fs::read_to_string(&path) {
        Ok(text) => parse(&text, &path, domain).map(Some),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(wrong(&path, error.to_string())),
    }
}

fn wrong(path: &Path, reason: impl Into<String>) -> RegistryError {
    RegistryError::Config {
        path: path.to_owned(),
        reason: reason.into(),
    }
}

fn parse(text: &str, path: &Path, domain: &str) -> Result<Vec<Endpoint>, RegistryError> {
    let mut top: Table = toml::from_str(text).map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.unwrap_or_default().matches('\n').count() + 1;
        wrong(path, format!("line {line}: {}", error.message()))
    })?;
    let server = match top.remove("server") {
        None => None,
        Some(Value::String(url)) => Some(url),
        Some(_) => return Err(wrong(path, "server must be a URL")),
    };
    let hosts = match top.remove("host") {
        None => Table::new(),
        Some(Value::Table(hosts)) => hosts,
        Some(_) => return Err(wrong(path, "host must be a table of URLs")),
    };
    let mut endpoints = Vec::new();
    for (url, settings) in hosts {
        let Value::Table(settings) = settings else {
            return Err(wrong(path, format!("host \"{url}\" must be a table")));
        };
        endpoints.push(endpoint(&url, settings, path, domain)?);
    }
    let own = Endpoint::registry(domain, &RegistrySettings::default());
    endpoints.push(match server {
        Some(url) => endpoint(&url, top, path, domain)?,
        None => {
            let url = format!("{}://{}", own.schemes[0], own.host);
            let mut last = endpoint(&url, top, path, domain)?;
            last.schemes.clone_from(&own.schemes);
            last
        }
    });
    Ok(endpoints)
}

fn endpoint(
    url: &str,
    settings: Table,
    path: &Path,
    domain: &str,
) -> Result<Endpoint, RegistryError> {
    let bad = |reason: String| wrong(path, format!("host \"{url}\": {reason}"));
    if let Some(word) = settings.keys().find(|key| !WORDS.contains(&key.as_str())) {
        return Err(bad(format!("unknown field `{word}`")));
    }
    let settings: HostSettings = Value::Table(settings)
        .try_into()
        .map_err(|error| bad(first_line(&error)))?;
    let full = if url.contains("://") {
        url.to_owned()
    } else if is_loopback(url) {
        format!("http://{url}")
    } else {
        format!("https://{url}")
    };
    let parsed = url::Url::parse(&full).map_err(|error| bad(error.to_string()))?;
    let scheme = match parsed.scheme() {
        "http" => "http",
        "https" => "https",
        other => return Err(bad(format!("the scheme {other} is not http or https"))),
    };
    let Some(name) = parsed.host_str() else {
        return Err(bad("no host".to_owned()));
    };
    // What stands for another host is a mirror, even if it is called the server.
    let own = is_registry(&parsed, domain);
    let host = match parsed.port() {
        _ if own && domain == HUB.0 => HUB.1.to_owned(),
        Some(port) => format!("{name}:{port}"),
        None => name.to_owned(),
    };
    let mut base = parsed.path().trim_end_matches('/').to_owned();
    if !settings.override_path && !base.ends_with("/v2") {
        base.push_str("/v2");
    }
    let may = |word: &str| {
        settings.capabilities.is_empty() || settings.capabilities.iter().any(|have| have == word)
    };
    for word in &settings.capabilities {
        if !["pull", "resolve", "push", "referrers", "dialer"].contains(&word.as_str()) {
            return Err(bad(format!("unknown capability \"{word}\"")));
        }
    }
    let directory = path.parent().unwrap_or(Path::new("."));
    let clients = clients(settings.client.as_ref(), directory).map_err(bad)?;
    if clients.len() > 1 {
        tracing::warn!(path = %path.display(), host = url, "of several client certificates only the first is used");
    }
    let mut headers = Vec::new();
    for (name, value) in &settings.header {
        let parsed: HeaderName = name
            .parse()
            .map_err(|_| bad(format!("\"{name}\" is no name of a header")))?;
        for text in strings(value).ok_or_else(|| bad(format!("header {name} must be text")))? {
            let value = HeaderValue::from_str(&text)
                .map_err(|_| bad(format!("the value of header {name} cannot be sent")))?;
            headers.push((parsed.clone(), value));
        }
    }
    let authorities = match &settings.ca {
        None => Vec::new(),
        Some(value) => strings(value)
            .ok_or_else(|| bad("ca must be a path or a list of paths".to_owned()))?
            .iter()
            .map(|text| directory.join(text))
            .collect(),
    };
    let dial_timeout = match &settings.dial_timeout {
        None => None,
        Some(text) => {
            let time = duration(text);
            let time = time.ok_or_else(|| bad(format!("dial_timeout \"{text}\" is no time")))?;
            // To Go no limit.
            Some(time).filter(|time| !time.is_zero())
        }
    };
    let proxy = settings
        .proxy
        .map(|url| proxy(url).map_err(bad))
        .transpose()?;
    Ok(Endpoint {
        schemes: vec![scheme],
        trust: Trust {
            authorities,
            client: clients.into_iter().next(),
            insecure: settings.skip_verify,
            local: is_loopback(&host),
            dial_timeout,
            proxy,
        },
        host,
        base,
        pull: may("pull"),
        resolve: may("resolve"),
        push: may("push"),
        referrers: may("referrers"),
        headers,
        namespace: (!own).then(|| domain.to_owned()),
        own,
    })
}

/// Whether a host is the registry itself, by name and port.
fn is_registry(url: &url::Url, domain: &str) -> bool {
    let name = url.host_str().unwrap_or_default();
    if domain == HUB.0 {
        let port = url.port_or_known_default();
        return [HUB.0, HUB.1].contains(&name) && port == Some(443);
    }
    let with_port = domain.rsplit_once(':').and_then(|(name, port)| {
        let port: u16 = port.parse().ok()?;
        Some((name, port))
    });
    match with_port {
        Some((own, port)) => {
            name.eq_ignore_ascii_case(own) && url.port_or_known_default() == Some(port)
        }
        None => name.eq_ignore_ascii_case(domain) && url.port().is_none(),
    }
}

/// A proxy's URL (containerd `docs/hosts.md`, "proxy field").
fn proxy(url: String) -> Result<String, String> {
    let wrong = |why: &str| format!("proxy \"{url}\": {why}");
    let parsed = url::Url::parse(&url).map_err(|error| wrong(&error.to_string()))?;
    let bare = matches!(parsed.path(), "" | "/")
        && parsed.query().is_none()
        && parsed.fragment().is_none();
    if !matches!(parsed.scheme(), "http" | "https") {
        return Err(wrong("only http:// and https:// proxies are supported"));
    }
    if parsed.host_str().is_none() || !bare {
        return Err(wrong("expected http://HOST:PORT or https://HOST:PORT"));
    }
    Ok(url)
}

fn first_line(error: &toml::de::Error) -> String {
    error
        .message()
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// A string, or a list of strings.
fn strings(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(list) => list
            .iter()
            .map(|value| value.as_str().map(str::to_owned))
            .collect(),
        _ => None,
    }
}

/// `client`: one file with both, a list of such files, or a list of pairs of files.
fn clients(value: Option<&Value>, directory: &Path) -> Result<Vec<(PathBuf, PathBuf)>, String> {
    let both = |text: &String| (directory.join(text), directory.join(text));
    let wrong = || "client must be a path, a list of paths, or a list of pairs of paths".to_owned();
    match value {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) if list.iter().any(Value::is_array) => list
            .iter()
            .map(|pair| match strings(pair).as_deref() {
                Some([file]) => Ok(both(file)),
                Some([cert, key]) if key.is_empty() => Ok(both(cert)),
                Some([cert, key]) => Ok((directory.join(cert), directory.join(key))),
                _ => Err(wrong()),
            })
            .collect(),
        Some(value) => {
            let files = strings(value).ok_or_else(wrong)?;
            Ok(files.iter().map(both).collect())
        }
    }
}

/// A time as Go writes it, but none that is over: `500ms`, `3s`, `1.5s`, `1m30s`, `0`.
fn duration(text: &str) -> Option<Duration> {
    let text = text.strip_prefix('+').unwrap_or(text);
    if text == "0" {
        return Some(Duration::ZERO);
    }
    if text.is_empty() {
        return None;
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let is_number = |c: char| c.is_ascii_digit() || c == '.';
        let number = rest.find(|c| !is_number(c))?;
        let (number, after) = rest.split_at(number);
        let unit = after.find(is_number).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let seconds = match unit {
            "ns" => 1e-9,
            // Micro is two characters of Unicode.
            "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let number: f64 = number.parse().ok()?;
        let part = Duration::try_from_secs_f64(number * seconds).ok()?;
        total = total.checked_add(part)?;
        rest = after;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Endpoint>, String> {
        parse(text, Path::new("/certs/docker.io/hosts.toml"), "docker.io")
            .map_err(|error| error.to_string())
    }

    #[test]
    fn hosts_in_their_order_then_the_server() {
        let endpoints = read(
            r#"
server = "https://registry-1.docker.io"
ca = "server.pem"

[host."https://z.example.org"]
capabilities = ["pull"]
ca = ["a.pem", "/b.pem"]
client = [["c.cert", "c.key"]]
dial_timeout = "500ms"
  [host."https://z.example.org".header]
  x-one = "1"
  x-many = ["a", "b"]

[host."http://10.0.0.1:5000/prefix"]
capabilities = ["pull", "resolve", "push"]
skip_verify = true

[host."https://a.example.org/api/mirror"]
override_path = true
client = "both.pem"

[host."localhost:5001"]
"#,
        )
        .unwrap();
        let hosts: Vec<_> = endpoints
            .iter()
            .map(|e| format!("{}://{}{}", e.schemes[0], e.host, e.base))
            .collect();
        assert_eq!(
            hosts,
            [
                "https://z.example.org/v2",
                "http://10.0.0.1:5000/prefix/v2",
                "https://a.example.org/api/mirror",
                "http://localhost:5001/v2",
                "https://registry-1.docker.io/v2",
            ]
        );
        let [z, ten, a, local, server] = endpoints.as_slice() else {
            panic!("{hosts:?}");
        };
        assert!(z.pull && !z.resolve && !z.push && !z.own);
        assert_eq!(
            z.trust.authorities,
            [Path::new("/certs/docker.io/a.pem"), Path::new("/b.pem")]
        );
        let pair = z.trust.client.clone().unwrap();
        assert_eq!(pair.0, Path::new("/certs/docker.io/c.cert"));
        assert_eq!(pair.1, Path::new("/certs/docker.io/c.key"));
        assert_eq!(z.trust.dial_timeout, Some(Duration::from_millis(500)));
        assert_eq!(z.headers.len(), 3);
        assert_eq!(z.namespace.as_deref(), Some("docker.io"));
        assert!(ten.push && ten.trust.insecure);
        let both = a.trust.client.clone().unwrap();
        assert_eq!(both.0, both.1);
        assert!(local.trust.local);
        assert!(server.own && server.resolve && server.namespace.is_none());
        assert_eq!(
            server.trust.authorities,
            [Path::new("/certs/docker.io/server.pem")]
        );
    }

    #[test]
    fn another_server_is_a_mirror() {
        let endpoints = read("server = \"https://elsewhere.example.org\"\n").unwrap();
        assert_eq!(endpoints.len(), 1);
        assert!(!endpoints[0].own, "it must not get Docker Hub's password");
        let endpoints = read("").unwrap();
        assert!(endpoints[0].own);
        assert_eq!(endpoints[0].host, "registry-1.docker.io");
    }

    #[test]
    fn the_registry_itself_may_be_a_host() {
        let of = |domain: &str, text: &str| -> Vec<(String, bool, bool)> {
            let path = Path::new("/certs/x/hosts.toml");
            let found = parse(text, path, domain).unwrap().into_iter();
            found
                .map(|e| (e.host, e.own, e.namespace.is_none()))
                .collect()
        };
        // containerd's first example.
        let text = "server = \"https://docker.io\"\n\
                    [host.\"https://registry-1.docker.io\"]\ncapabilities = [\"pull\", \"resolve\"]\n";
        let hub = ("registry-1.docker.io".to_owned(), true, true);
        assert_eq!(of("docker.io", text), [hub.clone(), hub]);
        for (domain, url, own) in [
            ("reg.example.org", "https://reg.example.org", true),
            ("reg.example.org", "https://reg.example.org:443", true),
            ("reg.example.org:443", "https://reg.example.org", true),
            ("reg.example.org", "https://REG.example.org/prefix", true),
            ("reg.example.org:5000", "https://reg.example.org:5000", true),
            ("[::1]:5000", "http://[::1]:5000", true),
            ("reg.example.org:5000", "https://reg.example.org", false),
            ("reg.example.org", "https://reg.example.org:5000", false),
            ("reg.example.org", "https://registry-1.docker.io", false),
            ("docker.io", "https://docker.io.example.org", false),
        ] {
            let found = of(
                domain,
                &format!("server = \"https://s.example.org\"\n[host.\"{url}\"]"),
            );
            assert_eq!((found[0].1, found[0].2), (own, own), "{domain} {url}");
            assert!(!found[1].1, "{domain}");
        }
    }

    #[test]
    fn a_host_may_have_a_proxy() {
        let text = "server = \"https://s\"\nproxy = \"http://p:8080\"\n\
                    [host.\"https://m\"]\nproxy = \"https://q/\"\n[host.\"https://n\"]";
        let proxies: Vec<_> = read(text)
            .unwrap()
            .into_iter()
            .map(|e| e.trust.proxy)
            .collect();
        let expected = [Some("https://q/"), None, Some("http://p:8080")];
        assert_eq!(proxies, expected.map(|url| url.map(str::to_owned)));
        for bad in [
            "p:8080",
            "socks5://p",
            "http://p/path",
            "http://p?q",
            "http://",
        ] {
            let error = read(&format!("proxy = \"{bad}\"")).unwrap_err();
            assert!(error.contains("proxy"), "{bad}: {error}");
        }
    }

    #[test]
    fn times_are_as_go_writes_them() {
        for (text, expected) in [
            ("500ms", Some(500)),
            ("3s", Some(3000)),
            ("1.5s", Some(1500)),
            ("1m30s", Some(90_000)),
            ("1h0m1s", Some(3_601_000)),
            ("0", Some(0)),
            ("+0s", Some(0)),
            ("+3s", Some(3000)),
            ("2000us", Some(2)),
            ("2000\u{b5}s", Some(2)),
            ("1ms2000\u{3bc}s", Some(3)),
            ("5000000ns", Some(5)),
            ("", None),
            ("+", None),
            ("+-1s", None),
            ("00", None),
            ("3", None),
            ("s", None),
            ("3s4", None),
            ("1d", None),
            ("-1s", None),
            ("1..5s", None),
        ] {
            assert_eq!(
                duration(text),
                expected.map(Duration::from_millis),
                "{text}"
            );
        }
    }

    #[test]
    fn no_time_is_no_limit() {
        let endpoints = read("[host.\"https://m\"]\ndial_timeout = \"0s\"").unwrap();
        assert_eq!(endpoints[0].trust.dial_timeout, None);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("server = 5", "server"),
            ("x = ", "line 1"),
            ("[host.\"https://m\"]\ncapabilites = []", "capabilites"),
            ("[host.\"https://m\"]\ncapabilities = [\"read\"]", "read"),
            ("[host.\"ftp://m\"]", "ftp"),
            ("[host.\"https://m\"]\nca = 5", "ca"),
            (
                "[host.\"https://m\"]\nclient = [[\"a\",\"b\",\"c\"]]",
                "client",
            ),
            ("[host.\"https://m\"]\ndial_timeout = \"soon\"", "soon"),
            ("[host.\"https://m\".header]\n\"a b\" = \"x\"", "a b"),
            (
                "[host.\"https://m\"]\nskip_verify = 3",
                "host \"https://m\"",
            ),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
