//! The user namespace of a container whose users are others on the host.
//!
//! What is the engine's (layers, the writable directory, generated files, volumes) is mounted through
//! the namespace's mapping, so that on disk it has the owners it would have without: images and
//! volumes are the same for all containers, and nothing is ever chowned. What users bind of the host
//! is as it is, and so is what a volume's options mount.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use corten_store::Mapping;
use corten_supervisor as supervisor;
use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::Errno;

use super::host::running;
use super::rooted;
use crate::containers::{self, row::Container};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::bad;
use crate::parse::modes::{Modes, NetworkMode, Sharing};
use crate::parse::remap::{self, Remap};
use crate::settings::WhenWanted;
use crate::spec::BindSource;

type Result<T> = std::result::Result<T, EngineError>;

/// Who a container's users are, and the namespaces that say so.
#[derive(Debug)]
pub(super) struct Users {
    pub(super) remap: Remap,
    namespace: OwnedFd,
    network: Option<OwnedFd>,
}

/// The namespaces of a container that is about to start; `None`: its users are the host's. The
/// caller must be single-threaded.
pub(super) fn of(
    engine: &Engine,
    settings: &WhenWanted<'_>,
    modes: &Modes,
    container: &Container,
) -> Result<Option<Users>> {
    if modes.host_users {
        return Ok(None);
    }
    let own_network = matches!(modes.network, NetworkMode::Bridge | NetworkMode::Named(_));
    // Whoever shares a namespace is in the user namespace that it belongs to, whatever is set by now.
    let users = match of_others(engine, modes)? {
        Some(Joined::Remapped(remap, namespace)) => {
            let network = own_network
                .then(|| corten_runtime::network_namespace_in(namespace.as_fd()))
                .transpose()
                .map_err(failed)?;
            Users {
                remap,
                namespace,
                network,
            }
        }
        joined => {
            let Some(remap) = settings.get()?.remap()? else {
                return Ok(None);
            };
            if let Some(Joined::Host(other, what)) = joined {
                return Err(bad(format!(
                    "cannot join {what} namespace of container {other}, whose users are the \
                     host's: use --userns host for this one, too"
                )));
            }
            let (namespace, network) =
                corten_runtime::user_namespace(&remap.uids, &remap.gids, own_network)
                    .map_err(failed)?;
            Users {
                remap,
                namespace,
                network,
            }
        }
    };
    remap::check(&container.host, modes)?;
    Ok(Some(users))
}

fn failed(source: corten_runtime::RuntimeError) -> EngineError {
    EngineError::Other {
        context: "userns-remap".to_owned(),
        source: Box::new(source),
    }
}

/// Whose users those of other containers are, of which namespaces are joined.
enum Joined {
    /// The host's: a container, and what is joined of it.
    Host(String, &'static str),
    Remapped(Remap, OwnedFd),
}

fn of_others(engine: &Engine, modes: &Modes) -> Result<Option<Joined>> {
    fn shared(sharing: &Sharing) -> Option<&String> {
        match sharing {
            Sharing::Container(other) => Some(other),
            Sharing::Own | Sharing::Host => None,
        }
    }
    let network = match &modes.network {
        NetworkMode::Container(other) => Some(other),
        _ => None,
    };
    let all = [
        (network, "network", "net"),
        (shared(&modes.ipc), "IPC", "ipc"),
        (shared(&modes.pid), "PID", "pid"),
    ];
    let mut first: Option<(OwnedFd, String, &str, i32)> = None;
    for (other, what, kind) in all {
        let Some(other) = other else { continue };
        let (other, pid) = running(engine, other, what)?;
        let joined = open(format!("/proc/{pid}/ns/{kind}"))?;
        let owner = corten_runtime::owner_of(joined.as_fd());
        let owner = owner.map_err(|source| EngineError::Io {
            action: "find the owner of",
            path: PathBuf::from(format!("/proc/{pid}/ns/{kind}")),
            source,
        })?;
        match &first {
            None => first = Some((owner, other.name, what, pid)),
            Some((of_first, ..)) if is_same(of_first, &owner)? => {}
            Some((_, name, of_first, _)) => {
                return Err(bad(format!(
                    "cannot join {of_first} namespace of container {name} and {what} namespace of \
                     container {}: their users are not the same on the host",
                    other.name
                )));
            }
        }
    }
    let Some((owner, name, what, pid)) = first else {
        return Ok(None);
    };
    if is_same(&owner, &open("/proc/self/ns/user".to_owned())?)? {
        return Ok(Some(Joined::Host(name, what)));
    }
    // What is known of a namespace is told of a process in it.
    let mapped = match is_same(&owner, &open(format!("/proc/{pid}/ns/user"))?)? {
        true => containers::users::of_process(pid).map_err(|source| EngineError::Io {
            action: "read the mappings of",
            path: PathBuf::from(format!("/proc/{pid}")),
            source,
        })?,
        false => None,
    };
    let remap = mapped.and_then(|mapped| Remap::of(&mapped.users, &mapped.groups));
    let remap = remap.ok_or_else(|| {
        bad(format!(
            "cannot join {what} namespace of container {name}: who its users are on the host is not \
             known, as its first process has left their namespace"
        ))
    })?;
    Ok(Some(Joined::Remapped(remap, owner)))
}

fn open(path: String) -> Result<OwnedFd> {
    match File::open(&path) {
        Ok(file) => Ok(file.into()),
        Err(source) => Err(EngineError::Io {
            action: "open",
            path: PathBuf::from(path),
            source,
        }),
    }
}

fn is_same(one: &OwnedFd, other: &OwnedFd) -> Result<bool> {
    let number = |namespace: &OwnedFd| {
        let stat = rustix::fs::fstat(namespace).map_err(|error| EngineError::Io {
            action: "look at",
            path: PathBuf::from("/proc/self/ns"),
            source: error.into(),
        })?;
        Ok::<_, EngineError>((stat.st_dev, stat.st_ino))
    };
    Ok(number(one)? == number(other)?)
}

impl Users {
    /// What the document calls the namespace.
    pub(super) fn path(&self) -> PathBuf {
        let fd = self.namespace.as_raw_fd();
        PathBuf::from(format!("/proc/{}/fd/{fd}", std::process::id()))
    }

    pub(super) fn mapping(&self) -> Mapping<'_> {
        Mapping {
            namespace: self.namespace.as_fd(),
            root: self.remap.root(),
        }
    }

    /// As [`rooted::bind_source`]; what is the engine's own belongs to the container's users.
    pub(super) fn bind_source(
        &self,
        engine: &Engine,
        container: &Container,
        source: &BindSource,
    ) -> Result<OwnedFd> {
        if let BindSource::Image { layers, subpath } = source {
            return rooted::image(engine, layers, subpath.as_deref(), Some(self.mapping()));
        }
        let opened = rooted::bind_source(engine, container, source)?;
        let own = match source {
            BindSource::Generated(_) => true,
            BindSource::Volume { name, .. } => is_engines(engine, name, &opened),
            _ => false,
        };
        if !own {
            return Ok(opened);
        }
        match self.mapping().copy(opened.as_fd(), true) {
            Ok(mapped) => Ok(mapped),
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                Err(bad(format!(
                    "userns-remap: the file system of {} cannot map owners",
                    engine.layout().root().display()
                )))
            }
            Err(source) => Err(EngineError::Other {
                context: "map the owners of a mount".to_owned(),
                source: Box::new(source),
            }),
        }
    }

    /// For the supervisor.
    pub(super) fn hand_over(self) -> supervisor::Users {
        supervisor::Users {
            namespace: self.namespace,
            network: self.network,
        }
    }
}

/// Whether what was opened of a volume is the engine's own: what a volume's options have mounted there
/// is somebody else's.
fn is_engines(engine: &Engine, name: &str, opened: &OwnedFd) -> bool {
    let data = engine.layout().volume_data(name);
    let above = data.parent().unwrap_or(&data);
    let mount = |place: BorrowedFd<'_>, path: &Path, flags| {
        let about = rustix::fs::statx(place, path, flags, StatxFlags::MNT_ID);
        about.ok().map(|about| about.stx_mnt_id)
    };
    let opened = mount(opened.as_fd(), Path::new(""), AtFlags::EMPTY_PATH);
    opened.is_some() && opened == mount(rustix::fs::CWD, above, AtFlags::SYMLINK_NOFOLLOW)
}
