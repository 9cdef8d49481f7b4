//! `registries.toml`, and what of Docker's and containerd's files stands in where it says
//! nothing: mirrors, plain HTTP, authorities (see docs/registries.md).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use corten_oci::reference::DEFAULT_DOMAIN;
use serde::Deserialize;

use crate::certs_d;
use crate::endpoint::Endpoint;
use crate::error::RegistryError;
use crate::stamp::Stamp;

/// Where settings are looked for when the engine's root has none.
const SYSTEM_FILE: &str = "/etc/corten/registries.toml";
/// Directories per registry, beside `certs.d` of the engine's root.
const CERTS_D: [&str; 3] = [
    "/etc/corten/certs.d",
    "/etc/containerd/certs.d",
    "/etc/docker/certs.d",
];
/// Docker's own settings, of which two words are read.
const DAEMON_JSON: &str = "/etc/docker/daemon.json";

/// Settings of all registries.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistriesConfig {
    #[serde(default)]
    registry: BTreeMap<String, RegistrySettings>,
    /// Mirrors of Docker Hub, as Docker's `daemon.json` has them.
    #[serde(rename = "registry-mirrors")]
    mirrors: Option<Vec<String>>,
    /// Hosts and networks without checked certificates, as Docker's `daemon.json` has them.
    #[serde(rename = "insecure-registries")]
    insecure: Option<Vec<String>>,
    /// Where to look for a directory per registry, instead of the usual places.
    certs_d: Option<Vec<PathBuf>>,
    /// The files it is from, or would be if they were there, and what they were then.
    #[serde(skip)]
    files: Vec<(PathBuf, Option<Stamp>)>,
}

/// Settings of one registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistrySettings {
    /// Tried in order before the registry itself.
    #[serde(default)]
    pub mirrors: Vec<Mirror>,
    /// HTTPS without checking the certificate, or plain HTTP.
    #[serde(default)]
    pub insecure: bool,
    /// Never try HTTPS.
    #[serde(default)]
    pub plain_http: bool,
    /// A further authority to trust (PEM).
    pub ca: Option<PathBuf>,
    /// TLS client certificate (PEM).
    pub client_cert: Option<PathBuf>,
    /// Its key (PEM).
    pub client_key: Option<PathBuf>,
}

/// A mirror of a registry.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// `https://host[:port]` or `http://host[:port]`.
    pub url: String,
    /// Takes pushes too.
    #[serde(default)]
    pub push: bool,
}

impl RegistriesConfig {
    /// Reads an engine's file, else the system's; missing ones are empty.
    ///
    /// # Errors
    /// The file cannot be read, or has a mistake: named with its line.
    pub fn load(path: &Path) -> Result<Self, RegistryError> {
        // Looked at first: a change in between makes the next look read them again.
        let look = |path: &Path| (path.to_owned(), Stamp::of(path));
        let files = vec![look(path), look(Path::new(SYSTEM_FILE))];
        let mut config = Self::read(path)?;
        config.files = files;
        if config.certs_d.is_none() {
            let own = path.parent().map(|root| root.join("certs.d"));
            let usual = CERTS_D.into_iter().map(PathBuf::from);
            config.certs_d = Some(own.into_iter().chain(usual).collect());
        }
        config.borrow_from(Path::new(DAEMON_JSON));
        Ok(config)
    }

    /// Reads the files again if they have changed since. Settings stay if all files are gone.
    pub(crate) fn renewed(&self) -> Result<Option<Self>, RegistryError> {
        let stamp = |(path, _): &(PathBuf, Option<Stamp>)| Stamp::of(path);
        let now: Vec<Option<Stamp>> = self.files.iter().map(stamp).collect();
        let same = self
            .files
            .iter()
            .zip(&now)
            .all(|((_, old), now)| old == now);
        match self.files.first() {
            Some((path, _)) if !same && now.iter().any(Option::is_some) => {
                Self::load(path).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Settings of one registry and no other, with nothing taken from files.
    #[must_use]
    pub fn only(domain: &str, settings: RegistrySettings) -> Self {
        Self {
            registry: BTreeMap::from([(domain.to_owned(), settings)]),
            ..Self::default()
        }
    }

    fn read(path: &Path) -> Result<Self, RegistryError> {
        for file in [path, Path::new(SYSTEM_FILE)] {
            match fs::read_to_string(file) {
                Ok(text) => return Self::parse(&text, file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(RegistryError::Config {
                        path: file.into(),
                        reason: error.to_string(),
                    });
                }
            }
        }
        Ok(Self::default())
    }

    /// Takes from Docker's settings what ours leave open. They are not ours: a mistake in
    /// them is Docker's to refuse.
    fn borrow_from(&mut self, daemon_json: &Path) {
        #[derive(Default, Deserialize)]
        struct Daemon {
            #[serde(rename = "registry-mirrors")]
            mirrors: Option<Vec<String>>,
            #[serde(rename = "insecure-registries")]
            insecure: Option<Vec<String>>,
        }
        let Ok(text) = fs::read(daemon_json) else {
            return;
        };
        let daemon: Daemon = serde_json::from_slice(&text).unwrap_or_else(|error| {
            tracing::warn!(path = %daemon_json.display(), %error, "not used");
            Daemon::default()
        });
        if self.mirrors.is_none() {
            let (good, bad) = daemon
                .mirrors
                .unwrap_or_default()
                .into_iter()
                .partition::<Vec<_>, _>(|url| mirror_url(url).is_ok());
            for url in bad {
                tracing::warn!(path = %daemon_json.display(), url, "no mirror's URL: not used");
            }
            self.mirrors = Some(good);
        }
        if self.insecure.is_none() {
            self.insecure = daemon.insecure;
        }
    }

    fn parse(text: &str, path: &Path) -> Result<Self, RegistryError> {
        let wrong = |reason: String| RegistryError::Config {
            path: path.into(),
            reason,
        };
        let config: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| {
                text[..span.start.min(text.len())].matches('\n').count() + 1
            });
            wrong(format!("line {line}: {}", error.message()))
        })?;
        for (name, settings) in &config.registry {
            for mirror in &settings.mirrors {
                mirror_url(&mirror.url).map_err(|reason| {
                    wrong(format!(
                        "registry \"{name}\": mirror \"{}\": {reason}",
                        mirror.url
                    ))
                })?;
            }
            if settings.client_cert.is_some() != settings.client_key.is_some() {
                return Err(wrong(format!(
                    "registry \"{name}\": client_cert and client_key go together"
                )));
            }
        }
        for url in config.mirrors.iter().flatten() {
            mirror_url(url)
                .map_err(|reason| wrong(format!("registry-mirrors: \"{url}\": {reason}")))?;
        }
        Ok(config)
    }

    /// Settings of one registry, by its domain (`docker.io`, `host:5000`).
    #[must_use]
    pub fn of(&self, domain: &str) -> RegistrySettings {
        self.registry.get(domain).cloned().unwrap_or_default()
    }

    /// Where a registry can be reached, mirrors first: as `registries.toml` says, else a
    /// `hosts.toml`, else Docker's words.
    pub(crate) fn endpoints(&self, domain: &str) -> Result<Vec<Endpoint>, RegistryError> {
        let directories = self.certs_d.as_deref().unwrap_or_default();
        let named = self.registry.get(domain);
        if named.is_none()
            && let Some(endpoints) = certs_d::hosts(directories, domain)?
        {
            return Ok(endpoints);
        }
        let mut settings = named.cloned().unwrap_or_default();
        settings.insecure |= self.is_insecure(domain);
        let mut endpoints: Vec<Endpoint> = settings
            .mirrors
            .iter()
            .map(|mirror| Endpoint::mirror(&mirror.url, mirror.push, &settings))
            .collect();
        if named.is_none() && domain == DEFAULT_DOMAIN {
            for url in self.mirrors.iter().flatten() {
                let host = url.split_once("://").map_or(url.as_str(), |(_, host)| host);
                let plain = RegistrySettings {
                    insecure: self.is_insecure(host),
                    ..RegistrySettings::default()
                };
                endpoints.push(Endpoint::mirror(url, false, &plain));
            }
        }
        let mut own = Endpoint::registry(domain, &settings);
        if domain != own.host {
            certs_d::certificates(directories, domain)?.extend(&mut own.trust);
        }
        endpoints.push(own);
        for endpoint in &mut endpoints {
            certs_d::certificates(directories, &endpoint.host)?.extend(&mut endpoint.trust);
        }
        Ok(endpoints)
    }

    /// Base URLs of what is asked for images of Docker Hub before itself, as `docker info` shows
    /// them.
    #[must_use]
    pub fn hub_mirrors(&self) -> Vec<String> {
        let endpoints = self.endpoints(DEFAULT_DOMAIN).unwrap_or_default();
        let mirrors = endpoints.iter().filter(|endpoint| !endpoint.own);
        mirrors
            .filter(|endpoint| endpoint.pull)
            .filter_map(|endpoint| {
                let scheme = endpoint.schemes.first()?;
                Some(format!("{scheme}://{}/", endpoint.host))
            })
            .collect()
    }

    /// Whether Docker's words call a host insecure: by name, or by a network it is in.
    fn is_insecure(&self, host: &str) -> bool {
        let host = host.trim_end_matches('/');
        let address = without_port(host).parse::<IpAddr>().ok();
        self.insecure.iter().flatten().any(|entry| {
            let in_network = || address.is_some_and(|address| network_has(entry, address));
            entry == host || in_network()
        })
    }
}

/// Whether a text is a mirror's URL: a scheme, a host and a port.
fn mirror_url(text: &str) -> Result<(), String> {
    let url = url::Url::parse(text).map_err(|error| error.to_string())?;
    let bare = matches!(url.path(), "" | "/") && url.query().is_none();
    // It would be shown with every error.
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a mirror gets no credentials: leave out the user".to_owned());
    }
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() || !bare {
        return Err("expected http://HOST or https://HOST".to_owned());
    }
    Ok(())
}

/// Whether an address is in a network written as `10.0.0.0/8`.
fn network_has(network: &str, address: IpAddr) -> bool {
    let Some((base, length)) = network.split_once('/') else {
        return false;
    };
    let (Ok(base), Ok(length)) = (base.parse::<IpAddr>(), length.parse::<u32>()) else {
        return false;
    };
    // Shifted out to the right: a shift by all the bits leaves nothing to compare.
    match (base, address) {
        (IpAddr::V4(base), IpAddr::V4(address)) if length <= 32 => {
            let difference = u32::from(base) ^ u32::from(address);
            difference.checked_shr(32 - length).unwrap_or(0) == 0
        }
        (IpAddr::V6(base), IpAddr::V6(address)) if length <= 128 => {
            let difference = u128::from(base) ^ u128::from(address);
            difference.checked_shr(128 - length).unwrap_or(0) == 0
        }
        _ => false,
    }
}

/// A host without its port, if it has one.
fn without_port(host: &str) -> &str {
    let name = host
        .rsplit_once(':')
        .filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
    name.map_or(host, |(name, _)| name).trim_matches(['[', ']'])
}

/// Whether Docker talks to this host without TLS unasked: loopback.
pub(crate) fn is_loopback(host: &str) -> bool {
    let name = without_port(host);
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RegistriesConfig, String> {
        RegistriesConfig::parse(text, Path::new("r.toml")).map_err(|e| e.to_string())
    }

    #[test]
    fn reads_the_documented_format() {
        let config = parse(
            "[registry.\"docker.io\"]\nmirrors = [{ url = \"https://m\" }, { url = \"http://127.0.0.1:5\", push = true }]\n\
             [registry.\"10.0.0.5:5000\"]\nplain_http = true\n",
        )
        .unwrap();
        assert_eq!(config.of("docker.io").mirrors.len(), 2);
        assert!(config.of("docker.io").mirrors[1].push);
        assert_eq!(config.hub_mirrors(), ["https://m/", "http://127.0.0.1:5/"]);
        assert!(config.of("10.0.0.5:5000").plain_http);
        assert_eq!(config.of("other"), RegistrySettings::default());
    }

    #[test]
    fn mistakes_name_the_line() {
        let error = parse("[registry.\"a\"]\nmirors = []\n").unwrap_err();
        assert!(
            error.contains("r.toml: line 2") && error.contains("mirors"),
            "{error}"
        );
        assert!(parse("[registry.a]\nmirrors = [{ url = \"ftp://x\" }]\n").is_err());
        assert!(parse("[registry.a]\nclient_cert = \"/x\"\n").is_err());
        let error = parse("registry-mirrors = [\"https://me:secret@m\"]\n").unwrap_err();
        assert!(error.contains("credentials"), "{error}");
    }

    #[test]
    fn dockers_words() {
        let text = "registry-mirrors = [\"https://m.example.org\"]\n\
                    insecure-registries = [\"reg:5000\", \"10.0.0.0/8\", \"fd00::/16\"]\n";
        let config = parse(text).unwrap();
        let hosts = |domain: &str| -> Vec<String> {
            let found = config.endpoints(domain).unwrap();
            found.into_iter().map(|endpoint| endpoint.host).collect()
        };
        assert_eq!(
            hosts("docker.io"),
            ["m.example.org", "registry-1.docker.io"]
        );
        assert_eq!(hosts("quay.io"), ["quay.io"]);
        for (domain, insecure) in [
            ("reg:5000", true),
            ("reg", false),
            ("10.1.2.3:5000", true),
            ("10.1.2.3", true),
            ("11.1.2.3", false),
            ("[fd01::1]:5000", false),
            ("[fd00::1]:5000", true),
        ] {
            let own = config.endpoints(domain).unwrap().pop().unwrap();
            assert_eq!(own.trust.insecure, insecure, "{domain}");
            assert_eq!(own.schemes.contains(&"http"), insecure, "{domain}");
        }
        assert!(parse("registry-mirrors = [\"m\"]\n").is_err());
    }

    #[test]
    fn docker_stands_in_where_nothing_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("daemon.json");
        let text =
            r#"{"registry-mirrors":["https://d","nonsense"],"insecure-registries":["i"],"x":1}"#;
        fs::write(&file, text).unwrap();
        let mut config = RegistriesConfig::default();
        config.borrow_from(&file);
        assert_eq!(
            config.mirrors.as_deref(),
            Some(&["https://d".to_owned()][..])
        );
        assert!(config.is_insecure("i"));
        let mut own = parse("registry-mirrors = []\ninsecure-registries = [\"j\"]\n").unwrap();
        own.borrow_from(&file);
        assert!(own.mirrors.unwrap().is_empty());
        assert_eq!(own.insecure.unwrap(), ["j"]);
        fs::write(&file, "{").unwrap();
        RegistriesConfig::default().borrow_from(&file);
    }

    #[test]
    fn our_words_win_over_a_hosts_file() {
        let top = tempfile::tempdir().unwrap();
        let directory = top.path().join("docker.io");
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("hosts.toml"), "[host.\"https://h\"]").unwrap();
        let text = format!("certs_d = [{:?}]\n", top.path());
        let first = |text: &str| {
            let endpoints = parse(text).unwrap().endpoints("docker.io").unwrap();
            endpoints[0].host.clone()
        };
        assert_eq!(first(&text), "h");
        let more = "[registry.\"docker.io\"]\nmirrors = [{ url = \"https://t\" }]\n";
        assert_eq!(first(&format!("{text}{more}")), "t");
    }

    #[test]
    fn loopback() {
        for host in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:5000",
            "127.3.4.5",
            "[::1]:80",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["example.org", "10.0.0.1:80", "128.0.0.1"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
