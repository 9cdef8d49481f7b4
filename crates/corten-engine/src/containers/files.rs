//! A container's directory, and the files generated in it: `hostname`, `hosts`,
//! `resolv.conf`, the init program.

use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard_stubs::models::HostConfig;
use corten_network::resolv::{self, DnsOptions, ExtraHost, Internal};
use corten_oci::Digest;

use super::in_place::{self, overwrite};
use super::row::Container;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::bad;
use crate::parse::modes::{Modes, NetworkMode, Sharing};
use crate::spec::Files;

type Result<T> = std::result::Result<T, EngineError>;

/// A running container's file that is longer is left alone.
pub(super) const LONGEST: u64 = 1024 * 1024;

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> EngineError {
    move |source| EngineError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// Makes a container's directory with its writable layer. Idempotent. Not the engine's own directory,
/// which may have been removed with all that was in it.
pub(crate) fn make_directory(engine: &Engine, id: &str) -> Result<()> {
    let directory = engine.layout().container(id);
    let make = |path: &Path, mode| match std::fs::DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    };
    let own = match make(&directory, 0o710) {
        // The first container.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let containers = engine.layout().containers();
            make(&containers, 0o710).map_err(io("create", &containers))?;
            make(&directory, 0o710)
        }
        made => made,
    };
    own.map_err(io("create", &directory))?;
    for (name, mode) in [("upper", 0o755), ("work", 0o700)] {
        let path = directory.join(name);
        make(&path, mode).map_err(io("create", &path))?;
    }
    Ok(())
}

/// How often, and after which pause, somebody is waited for who has a directory that is out of use.
const LOOKS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(1);

/// A directory that is out of use, and the lock that keeps sweepers off it.
#[derive(Debug)]
pub(crate) struct Aside {
    path: PathBuf,
    _lock: Option<std::fs::File>,
}

impl Aside {
    fn lock(path: &Path) -> Option<std::fs::File> {
        let lock = std::fs::File::open(path).ok()?;
        let operation = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        match rustix::fs::flock(&lock, operation) {
            Ok(()) => Some(lock),
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "somebody has it already");
                None
            }
        }
    }

    /// Moves a directory to where it is removed, locked before it is there if nobody has it.
    pub(crate) fn moved(from: &Path, to: PathBuf) -> std::io::Result<Self> {
        let lock = Self::lock(from);
        std::fs::rename(from, &to)?;
        // Who meant to use it, and finds now that it is gone, lets go of it.
        let lock = lock.or_else(|| {
            (0..LOOKS).find_map(|_| {
                std::thread::sleep(PAUSE);
                Self::lock(&to)
            })
        });
        Ok(Self {
            path: to,
            _lock: lock,
        })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it. What cannot be removed is left to be swept, and logged.
    pub(crate) fn remove(self) {
        if let Err(error) = corten_store::rooted::remove_path(&self.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            let path = self.path.display();
            tracing::warn!(%path, %error, "a directory is left to be swept");
        }
    }
}

/// Renames a container's directory away, so that a crash leaves only what sweeping finds.
pub(crate) fn put_aside(engine: &Engine, id: &str) -> Option<Aside> {
    out_of_use(engine, &engine.layout().container(id), id)
}

/// Removes a container's directory: renamed away first.
pub(crate) fn remove_directory(engine: &Engine, id: &str) {
    if let Some(doomed) = put_aside(engine, id) {
        doomed.remove();
    }
}

/// Renames a directory into the temporary directory and removes it there. What cannot be
/// removed is left to be swept, and logged.
pub(crate) fn discard(engine: &Engine, directory: &Path, name: &str) {
    if let Some(doomed) = out_of_use(engine, directory, name) {
        doomed.remove();
    }
}

fn out_of_use(engine: &Engine, directory: &Path, name: &str) -> Option<Aside> {
    let target = engine
        .layout()
        .tmp()
        .join(format!("remove-{name}-{}", std::process::id()));
    if let Err(error) = std::fs::create_dir_all(engine.layout().tmp()) {
        tracing::warn!(%error, "no temporary directory");
    }
    match Aside::moved(directory, target) {
        Ok(aside) => Some(aside),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(_) => Some(Aside {
            path: directory.to_owned(),
            _lock: Aside::lock(directory),
        }),
    }
}

/// Removes a directory that has been renamed away. What cannot be removed is left to be swept,
/// and logged.
pub(crate) fn remove_renamed(doomed: &Path) {
    let aside = Aside {
        path: doomed.to_owned(),
        _lock: Aside::lock(doomed),
    };
    aside.remove();
}

/// Reads `Dns`, `DnsSearch`, `DnsOptions`.
pub(crate) fn dns_options(host: &HostConfig) -> Result<DnsOptions> {
    let servers = host
        .dns
        .iter()
        .flatten()
        .map(|text| {
            text.parse::<IpAddr>()
                .map_err(|_| bad(format!("invalid IP address: {text}")))
        })
        .collect::<Result<_>>()?;
    let words = |list: &Option<Vec<String>>, what: &str| -> Result<Vec<String>> {
        let list = list.clone().unwrap_or_default();
        match list
            .iter()
            .find(|w| w.is_empty() || w.contains(char::is_whitespace))
        {
            Some(word) => Err(bad(format!("invalid {what}: \"{word}\""))),
            None => Ok(list),
        }
    };
    Ok(DnsOptions {
        servers,
        search: words(&host.dns_search, "DNS search domain")?,
        options: words(&host.dns_options, "DNS option")?,
        ipv6: false,
    })
}

/// Reads `ExtraHosts`.
pub(crate) fn extra_hosts(host: &HostConfig) -> Result<Vec<ExtraHost>> {
    host.extra_hosts
        .iter()
        .flatten()
        .map(|text| text.parse().map_err(|error| bad(format!("{error}"))))
        .collect()
}

/// How a container resolves names that has a name server of its own.
pub(crate) fn name_server(container: &Container) -> Result<Internal> {
    let options = dns_options(&container.host)?;
    Ok(resolv::internal(&resolv::host_resolv_conf()?, &options))
}

/// Writes the generated files of a container about to start. `addresses`, `gateway`: on its
/// networks, if it has any of its own. `names`: its [`name_server`], if it is to have one.
pub(crate) fn generate(
    engine: &Engine,
    container: &Container,
    modes: &Modes,
    addresses: &[IpAddr],
    gateway: Option<IpAddr>,
    names: Option<&Internal>,
) -> Result<Files> {
    let init = init(engine, container, modes)?;
    // Joined networks come with the other container's files.
    if let NetworkMode::Container(other) = &modes.network {
        let directory = engine.layout().container(other);
        let file = |name: &str| Some(directory.join(name)).filter(|p| p.exists());
        return Ok(Files {
            hostname: file("hostname"),
            hosts: file("hosts"),
            resolv_conf: file("resolv.conf"),
            init,
        });
    }
    let directory = engine.layout().container(&container.id);
    let hostname = container.config.hostname.as_deref().unwrap_or("");
    let domain = container.config.domainname.as_deref().unwrap_or("");
    let write = |name: &str, text: &str| -> Result<_> {
        let path = directory.join(name);
        in_place::write(&path, text).map_err(io("write", &path))?;
        Ok(Some(path))
    };
    let mut extra = extra_hosts(&container.host)?;
    extra.extend(super::links::hosts(engine, container)?);
    let host_network = modes.network == NetworkMode::Host;
    let hosts = if host_network && extra.is_empty() {
        read_or_empty(Path::new("/etc/hosts"))?
    } else {
        resolv::hosts(&resolv::Hosts {
            addresses,
            hostname,
            domain,
            extra: &extra,
            gateway,
        })
    };
    let options = dns_options(&container.host)?;
    let resolv_conf = if let Some(names) = names {
        names.text.clone()
    } else if host_network && options == DnsOptions::default() {
        read_or_empty(Path::new("/etc/resolv.conf"))?
    } else {
        resolv::resolv_conf(&resolv::host_resolv_conf()?, &options)
    };
    Ok(Files {
        hostname: write("hostname", &resolv::hostname(hostname))?,
        hosts: write("hosts", &hosts)?,
        resolv_conf: write("resolv.conf", &resolv_conf)?,
        init,
    })
}

/// Takes the lines of addresses out of a running container's `hosts` and puts others in. What else
/// is in it, and may be the container's own, stays.
pub(crate) fn change_hosts(
    engine: &Engine,
    id: &str,
    gone: &[IpAddr],
    new: &[IpAddr],
) -> Result<()> {
    let Some(container) = engine.database().read(|c| super::row::get(c, id))? else {
        return Ok(());
    };
    let hostname = container.config.hostname.as_deref().unwrap_or("");
    let domain = container.config.domainname.as_deref().unwrap_or("");
    let path = engine.layout().container(id).join("hosts");
    let Some(text) = read_of_container(&path)? else {
        return Ok(());
    };
    let is_gone = |line: &&str| {
        let address = line.split_whitespace().next().and_then(|a| a.parse().ok());
        address.is_some_and(|address| gone.contains(&address))
    };
    let mut changed: String = text
        .split_inclusive('\n')
        .filter(|line| !is_gone(line))
        .collect();
    if !changed.is_empty() && !changed.ends_with('\n') {
        changed.push('\n');
    }
    changed += &resolv::own_hosts(new, hostname, domain);
    overwrite(&path, &changed).map_err(io("write", &path))
}

/// Makes sure that a running container's `hosts` can take the lines of further addresses: before it has
/// them.
pub(crate) fn make_room_in_hosts(
    engine: &Engine,
    container: &Container,
    new: &[IpAddr],
) -> Result<()> {
    if new.is_empty() {
        return Ok(());
    }
    let hostname = container.config.hostname.as_deref().unwrap_or("");
    let domain = container.config.domainname.as_deref().unwrap_or("");
    let more = resolv::own_hosts(new, hostname, domain).len();
    let path = engine.layout().container(&container.id).join("hosts");
    in_place::make_room(&path, more as u64).map_err(io("write", &path))
}

/// What a container's `resolv.conf` is by now.
pub(crate) fn digest_of_resolv_conf(engine: &Engine, id: &str) -> Result<Option<Digest>> {
    let path = engine.layout().container(id).join("resolv.conf");
    Ok(read_of_container(&path)?.map(|text| Digest::of(text.as_bytes())))
}

/// Makes a running container's `resolv.conf` name its name server, unless the container has made
/// something else of it than was `generated` at its start.
pub(crate) fn change_resolv_conf(engine: &Engine, id: &str, generated: &Digest) -> Result<()> {
    let Some(container) = engine.database().read(|c| super::row::get(c, id))? else {
        return Ok(());
    };
    if digest_of_resolv_conf(engine, id)?.as_ref() != Some(generated) {
        tracing::warn!(
            container = id,
            "its resolv.conf is its own: it stays without the name server"
        );
        return Ok(());
    }
    let path = engine.layout().container(id).join("resolv.conf");
    let text = name_server(&container)?.text;
    overwrite(&path, &text).map_err(io("write", &path))
}

/// Puts the init program into the directory of a container that wants it. A copy for each
/// start and for itself alone: whatever a container does to it, others do not see.
fn init(engine: &Engine, container: &Container, modes: &Modes) -> Result<Option<PathBuf>> {
    // In somebody else's PID namespace it would be nobody's first process.
    if container.host.init != Some(true) || modes.pid != Sharing::Own {
        return Ok(None);
    }
    let path = engine.layout().container(&container.id).join("init");
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(io("remove", &path)(error));
        }
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o555)
        .open(&path)
        .map_err(io("write", &path))?;
    file.write_all(corten_init::PROGRAM)
        .map_err(io("write", &path))?;
    // Whatever the caller's file mode creation mask: any user of the container executes it.
    file.set_permissions(std::fs::Permissions::from_mode(0o555))
        .map_err(io("write", &path))?;
    Ok(Some(path))
}

/// Reads a file that the container writes; `None` if it is too long to be changed.
fn read_of_container(path: &Path) -> Result<Option<String>> {
    let mut bytes = Vec::new();
    match std::fs::File::open(path) {
        Ok(file) => file.take(LONGEST + 1).read_to_end(&mut bytes),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
    .map_err(io("read", path))?;
    if bytes.len() as u64 > LONGEST {
        tracing::warn!(path = %path.display(), "the container has made it too long to be changed");
        return Ok(None);
    }
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

fn read_or_empty(path: &Path) -> Result<String> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(io("read", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_moved_aside_with_a_lock_that_is_one() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        std::fs::create_dir(&from).unwrap();
        let other = std::fs::File::open(&from).unwrap();
        let is_free = || corten_store::try_lock(&other, true).unwrap();
        let aside = Aside::moved(&from, to.clone()).unwrap();
        assert!(aside._lock.is_some() && !is_free());
        drop(aside);
        assert!(is_free());
        let aside = Aside::moved(&to, from.clone()).unwrap();
        assert!(aside._lock.is_none() && aside.path() == from);
    }

    #[test]
    fn what_a_container_has_made_too_long_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts");
        assert_eq!(read_of_container(&path).unwrap().as_deref(), Some(""));
        std::fs::write(&path, "127.0.0.1 localhost\n").unwrap();
        let text = read_of_container(&path).unwrap();
        assert_eq!(text.as_deref(), Some("127.0.0.1 localhost\n"));
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(LONGEST).unwrap();
        assert_eq!(
            read_of_container(&path).unwrap().unwrap().len() as u64,
            LONGEST
        );
        // Sparse, and longer than there is memory.
        file.set_len(1 << 42).unwrap();
        assert_eq!(read_of_container(&path).unwrap(), None);
    }
}
