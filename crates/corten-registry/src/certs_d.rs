//! `certs.d`: a directory per registry with what is needed to trust it, as Docker
//! (`*.crt`, `*.cert` with `*.key`) and containerd (`hosts.toml`) have it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::endpoint::{Endpoint, Trust};
use crate::error::RegistryError;
use crate::hosts_toml;

/// For registries without a directory of their own; `hosts.toml` only.
const DEFAULT: &str = "_default";

/// Certificates of one registry.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Certificates {
    authorities: Vec<PathBuf>,
    client: Option<(PathBuf, PathBuf)>,
}

impl Certificates {
    /// Adds them to what is trusted; what is configured otherwise stays.
    pub(crate) fn extend(self, trust: &mut Trust) {
        trust.authorities.extend(self.authorities);
        if trust.client.is_none() {
            trust.client = self.client;
        }
    }
}

/// The names a registry's directory may have: `host:port`, and containerd's `host_port_`.
fn names(host: &str) -> Vec<String> {
    let mut names = vec![host.to_owned()];
    if let Some((name, port)) = host.rsplit_once(':')
        && port.bytes().all(|byte| byte.is_ascii_digit())
    {
        names.push(format!("{name}_{port}_"));
    }
    // A host is one name in a directory, whatever a reference made of it.
    names.retain(|name| !name.contains('/') && !matches!(name.as_str(), "" | "." | ".."));
    names
}

/// What the first `hosts.toml` for a registry says, `None` if there is none. What is for all
/// registries is for those only that no directory has anything for.
pub(crate) fn hosts(
    directories: &[PathBuf],
    domain: &str,
) -> Result<Option<Vec<Endpoint>>, RegistryError> {
    for directory in directories {
        for name in names(domain) {
            if let Some(endpoints) = hosts_toml::load(&directory.join(name), domain)? {
                return Ok(Some(endpoints));
            }
        }
    }
    let own = certificates(directories, domain);
    if own
        .as_ref()
        .is_ok_and(|own| *own != Certificates::default())
    {
        return Ok(None);
    }
    for directory in directories {
        if let Some(endpoints) = hosts_toml::load(&directory.join(DEFAULT), domain)? {
            // It may be another program's, and nobody's who reads `_default`.
            if let Err(error) = own {
                tracing::warn!(%error, registry = domain, "what is for all registries is used");
            }
            return Ok(Some(endpoints));
        }
    }
    Ok(None)
}

/// The certificates of the first directory for a host.
pub(crate) fn certificates(
    directories: &[PathBuf],
    host: &str,
) -> Result<Certificates, RegistryError> {
    for directory in directories {
        for name in names(host) {
            let found = read(&directory.join(name))?;
            if found != Certificates::default() {
                return Ok(found);
            }
        }
    }
    Ok(Certificates::default())
}

fn read(directory: &Path) -> Result<Certificates, RegistryError> {
    let failed = |error: io::Error| RegistryError::Config {
        path: directory.to_owned(),
        reason: error.to_string(),
    };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(Certificates::default());
        }
        Err(error) => return Err(failed(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.sort();
    let mut found = Certificates::default();
    for path in &paths {
        match path.extension().and_then(|word| word.to_str()) {
            Some("crt") => found.authorities.push(path.clone()),
            Some("cert") => {
                let key = path.with_extension("key");
                if !paths.contains(&key) {
                    return Err(RegistryError::Config {
                        path: path.clone(),
                        reason: format!("its key {} is missing", key.display()),
                    });
                }
                if found.client.is_some() {
                    tracing::warn!(path = %path.display(), "a second client certificate is not used");
                } else {
                    found.client = Some((path.clone(), key));
                }
            }
            Some("key") if !paths.contains(&path.with_extension("cert")) => {
                return Err(RegistryError::Config {
                    path: path.clone(),
                    reason: format!(
                        "its certificate {} is missing",
                        path.with_extension("cert").display()
                    ),
                });
            }
            _ => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_docker_and_containerd_keep() {
        let top = tempfile::tempdir().unwrap();
        let (first, second) = (top.path().join("first"), top.path().join("second"));
        let write = |path: PathBuf, text: &str| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let docker = second.join("reg.example.org:5000");
        for name in ["b.crt", "a.crt", "client.cert", "client.key", "README"] {
            write(docker.join(name), "");
        }
        let directories = [first.clone(), second.clone()];
        let found = certificates(&directories, "reg.example.org:5000").unwrap();
        assert_eq!(
            found,
            Certificates {
                authorities: vec![docker.join("a.crt"), docker.join("b.crt")],
                client: Some((docker.join("client.cert"), docker.join("client.key"))),
            }
        );
        for host in ["reg.example.org", "..", "", "a/b"] {
            let none = certificates(&directories, host).unwrap();
            assert_eq!(none, Certificates::default(), "{host}");
        }
        assert!(
            hosts(&directories, "reg.example.org:5000")
                .unwrap()
                .is_none()
        );
        write(second.join("_default/hosts.toml"), "[host.\"https://d\"]");
        write(
            second.join("reg.example.org_5000_/hosts.toml"),
            "[host.\"https://m\"]",
        );
        let first_host = |domain: &str| {
            let found = hosts(&directories, domain).unwrap().unwrap();
            found[0].host.clone()
        };
        assert_eq!(first_host("reg.example.org:5000"), "m");
        assert_eq!(first_host("other"), "d");
        // What is for all comes after what is for one, wherever that is.
        write(first.join("_default/hosts.toml"), "[host.\"https://f\"]");
        assert_eq!(first_host("reg.example.org:5000"), "m");
        assert_eq!(first_host("other"), "f");
        write(second.join("own.example.org/ca.crt"), "");
        let own = hosts(&directories, "own.example.org").unwrap();
        assert!(own.is_none(), "{own:?}");
        fs::remove_file(docker.join("client.key")).unwrap();
        let error = certificates(&directories, "reg.example.org:5000").unwrap_err();
        assert!(error.to_string().contains("client.key"), "{error}");
        // What cannot be used takes no registry out of what is for all.
        write(second.join("broken.example.org/client.cert"), "");
        assert!(certificates(&directories, "broken.example.org").is_err());
        assert_eq!(first_host("broken.example.org"), "f");
    }
}
