//! Descriptors for what a container is made of: bind sources, files of its root.
//!
//! Paths inside a root or a volume are resolved there (`openat2`, `RESOLVE_IN_ROOT`), never
//! joined to a path of the host.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use corten_oci::DiffId;
use corten_store::{Mapping, Upper};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::containers::row::Container;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::mounts::Source;
use crate::parse::users::{self, Identity};
use crate::spec::BindSource;

type Result<T> = std::result::Result<T, EngineError>;

/// The largest `passwd` or `group` that is read, bytes.
const ACCOUNTS_LIMIT: u64 = 16 << 20;

fn io(action: &'static str, path: &Path) -> impl FnOnce(Errno) -> EngineError {
    move |source| EngineError::Io {
        action,
        path: path.to_owned(),
        source: source.into(),
    }
}

/// Opens a path inside a root.
pub(crate) fn open_in(
    root: BorrowedFd<'_>,
    path: &str,
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    let relative = path.trim_start_matches('/');
    rustix::fs::openat2(
        root,
        if relative.is_empty() { "." } else { relative },
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
}

/// A small text file of a root; empty when absent or not a file.
fn read_text(root: BorrowedFd<'_>, path: &str) -> String {
    // Not blocking: what an image has there may be a pipe.
    let Ok(fd) = open_in(root, path, OFlags::RDONLY | OFlags::NONBLOCK) else {
        return String::new();
    };
    let file = std::fs::File::from(fd);
    if !file.metadata().is_ok_and(|m| m.is_file()) {
        return String::new();
    }
    let mut bytes = Vec::new();
    if let Err(error) = file.take(ACCOUNTS_LIMIT).read_to_end(&mut bytes) {
        tracing::warn!(path, %error, "cannot be read in the container's root");
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Who `user[:group]` is in a root.
pub(crate) fn identity(
    root: BorrowedFd<'_>,
    user: &str,
    additional: &[String],
) -> Result<Identity> {
    let passwd = read_text(root, "etc/passwd");
    let group = read_text(root, "etc/group");
    users::resolve(user, additional, &passwd, &group)
}

/// The root of a running process.
pub(crate) fn root_of(pid: i32) -> Result<OwnedFd> {
    let path = format!("/proc/{pid}/root");
    rustix::fs::open(
        &path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(io("open", Path::new(&path)))
}

/// Opens what a bind mount is bound to.
pub(crate) fn bind_source(
    engine: &Engine,
    container: &Container,
    source: &BindSource,
) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    match source {
        BindSource::Host(path) => match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
            Err(Errno::NOENT) if may_create(container, path) => {
                let created = std::fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o755)
                    .create(path);
                created.map_err(|source| EngineError::Io {
                    action: "create mount source",
                    path: path.clone(),
                    source,
                })?;
                rustix::fs::openat(CWD, path, flags, Mode::empty())
            }
            other => other,
        }
        .map_err(io("open mount source", path)),
        BindSource::Generated(path) => {
            rustix::fs::openat(CWD, path, flags | OFlags::NOFOLLOW, Mode::empty())
                .map_err(io("open", path))
        }
        BindSource::Volume { name, subpath } => {
            crate::volumes::store::ensure_directory(engine, name)?;
            let path = engine.layout().volume_data(name);
            let flags = flags | OFlags::NOFOLLOW | OFlags::DIRECTORY;
            let data =
                rustix::fs::openat(CWD, &path, flags, Mode::empty()).map_err(io("open", &path))?;
            match subpath {
                None => Ok(data),
                Some(subpath) => open_in(data.as_fd(), subpath, OFlags::PATH)
                    .map_err(io("open volume subpath", &path.join(subpath))),
            }
        }
        BindSource::Image { layers, subpath } => image(engine, layers, subpath.as_deref(), None),
        BindSource::SharedMemoryOf(pid) => shared_memory_of(*pid),
        BindSource::HostsQueues => queues().map_err(io("mount", Path::new("mqueue"))),
    }
}

/// A copy of what a process has at `/dev/shm`.
fn shared_memory_of(pid: i32) -> Result<OwnedFd> {
    let place = Path::new("/dev/shm");
    let failed = |source: std::io::Error| EngineError::Io {
        action: "open shared memory",
        path: place.to_owned(),
        source,
    };
    let pid = Pid::from_raw(pid).ok_or_else(|| failed(Errno::SRCH.into()))?;
    let process = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| failed(error.into()))?;
    let copied = corten_store::view::copies_of(process.as_fd(), &[place.to_owned()]);
    let (_, parts) = copied.map_err(failed)?;
    let part = parts.into_iter().next();
    part.map(|part| part.mount)
        .ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))
}

/// The message queues of the IPC namespace that this process is in, attached nowhere.
fn queues() -> rustix::io::Result<OwnedFd> {
    let made = fsopen("mqueue", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&made)?;
    let closed = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&made, FsMountFlags::FSMOUNT_CLOEXEC, closed)
}

/// A mount, attached nowhere, of an image's files or of what is at a path of them.
pub(super) fn image(
    engine: &Engine,
    images: &[DiffId],
    subpath: Option<&str>,
    mapping: Option<Mapping<'_>>,
) -> Result<OwnedFd> {
    let layers = engine.store().layers();
    let whole = match mapping {
        None => layers.mount(images, Upper::ReadOnly)?,
        Some(mapping) => layers.mount_mapped(images, Upper::ReadOnly, mapping)?,
    };
    let subpath = subpath.unwrap_or("");
    let failed = || io("open in the mounted image", Path::new(subpath));
    let part = open_in(whole.as_fd(), subpath, OFlags::PATH).map_err(failed())?;
    corten_store::part_of_mount(whole.as_fd(), part.as_fd()).map_err(|source| EngineError::Io {
        action: "mount of an image",
        path: subpath.into(),
        source,
    })
}

/// Whether an absent source is to be made (`-v` makes it, `--mount` does not).
fn may_create(container: &Container, path: &Path) -> bool {
    container.setup.mounts.iter().any(
        |m| matches!(&m.source, Source::Bind { path: p, create: true, .. } if Path::new(p) == path),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_read_inside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("real")).unwrap();
        std::fs::write(
            dir.path().join("real/passwd"),
            "app:x:7:8::/home/app:/bin/sh\n",
        )
        .unwrap();
        // An absolute link of the image means the image's root, not the host's.
        std::os::unix::fs::symlink("/real", dir.path().join("etc")).unwrap();
        let root = rustix::fs::open(dir.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
        let root = root.unwrap();
        let found = identity(root.as_fd(), "app", &[]).unwrap();
        assert_eq!(
            (found.uid, found.gid, found.home.as_str()),
            (7, 8, "/home/app")
        );
        assert!(identity(root.as_fd(), "root", &[]).is_err());
        assert_eq!(identity(root.as_fd(), "", &[]).unwrap().uid, 0);
    }

    #[test]
    fn a_pipe_as_passwd_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(
            CWD,
            dir.path().join("etc/passwd"),
            rustix::fs::FileType::Fifo,
            mode,
            0,
        )
        .unwrap();
        let root = rustix::fs::open(dir.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
        assert_eq!(identity(root.unwrap().as_fd(), "0", &[]).unwrap().uid, 0);
    }
}
