//! The user namespace of a container whose users are others on the host.
//!
//! What is the engine's (layers, the writable directory, generated files, volumes) is mounted through
//! the namespace's mapping, so that on disk it has the owners it would have without: images and
//! volumes are the same for all containers, and nothing is ever chowned. What users bind of the host
//! is as it is, and so is what a volume's options mount.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

use corten_store::Mapping;
use corten_supervisor as supervisor;
use rustix::fs::{AtFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use super::host::running;
use super::rooted;
use crate::containers::row::Container;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::bad;
use crate::parse::modes::{Modes, NetworkMode, Sharing};
use crate::parse::remap::{self, Remap};
use crate::settings::Settings;
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
pub(super) fn of(engine: &Engine, modes: &Modes, container: &Container) -> Result<Option<Users>> {
    if modes.host_users {
        return Ok(None);
    }
    let Some(remap) = Settings::load(engine)?.remap()? else {
        return Ok(None);
    };
    remap::check(&container.host, modes)?;
    // Whoever shares another namespace shares that one: it is the owner of the others.
    let shared = match (&modes.network, &modes.ipc, &modes.pid) {
        (NetworkMode::Container(other), ..) => Some((other, "network")),
        (_, Sharing::Container(other), _) => Some((other, "IPC")),
        (_, _, Sharing::Container(other)) => Some((other, "PID")),
        _ => None,
    };
    let (namespace, network) = match shared {
        Some((other, what)) => (of_another(engine, other, what)?, None),
        None => {
            let (user, network) = corten_runtime::user_namespace(&remap.uids, &remap.gids)
                .map_err(|source| EngineError::Other {
                    context: "userns-remap".to_owned(),
                    source: Box::new(source),
                })?;
            (user, Some(network))
        }
    };
    Ok(Some(Users {
        remap,
        namespace,
        network,
    }))
}

fn of_another(engine: &Engine, name: &str, what: &str) -> Result<OwnedFd> {
    let (other, pid) = running(engine, name, what)?;
    let open = |path: String| {
        File::open(&path).map_err(|source| EngineError::Io {
            action: "open",
            path: PathBuf::from(path),
            source,
        })
    };
    let theirs = open(format!("/proc/{pid}/ns/user"))?;
    let ours = open("/proc/self/ns/user".to_owned())?;
    let number = |file: &File| rustix::fs::fstat(file).map(|stat| stat.st_ino).ok();
    if number(&theirs) == number(&ours) {
        return Err(bad(format!(
            "cannot join {what} namespace of container {}, whose users are the host's: use --userns \
             host for this one, too",
            other.name
        )));
    }
    Ok(theirs.into())
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
            BindSource::Volume { name, .. } => !is_mounted(engine, name),
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

/// Whether a volume's options have something mounted on it: that is somebody else's.
fn is_mounted(engine: &Engine, name: &str) -> bool {
    let data = engine.layout().volume_data(name);
    let about = rustix::fs::statx(
        rustix::fs::CWD,
        &data,
        AtFlags::SYMLINK_NOFOLLOW,
        StatxFlags::empty(),
    );
    about.is_ok_and(|about| about.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}
