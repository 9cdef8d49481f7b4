//! A container's root with what the user mounted in it, put together out of sight.
//!
//! Of a container that runs these are copies of its own mounts, so what is seen and written is
//! what its processes see, memory included; of one that does not, its layers and the sources of
//! its mounts. Kernel file systems (`/proc`, `/sys`, `/dev`) are not in it, as with Docker.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use corten_build::Renumbered;
use corten_store::rooted::RootFd;
use corten_store::view::{self, Absent, Access, Part};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::super::row::{Container, Status};
use super::super::{files, root, size, state, users};
use super::{EngineError, Result, View};
use crate::engine::Engine;
use crate::parse::mounts::Source;
use crate::spec;
use crate::supervise::rooted::bind_source;
use crate::volumes::hold::Hold;

/// How long a container that starts, ends or is copied into is waited for.
const SETTLING: Duration = Duration::from_secs(30);
/// How often it is looked at meanwhile.
const AGAIN: Duration = Duration::from_millis(5);

/// Files that are generated for each container.
const GENERATED: [&str; 3] = ["/etc/resolv.conf", "/etc/hostname", "/etc/hosts"];

/// A container as it is seen.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) container: Container,
    view: View,
    /// Who its users are in the view, if they are others.
    renumbered: Option<Renumbered>,
    /// Nobody starts it meanwhile.
    _claimed: Option<root::InUse>,
    /// What its volumes need mounted stays so; of one that runs, its own mounts are seen.
    _volumes: Vec<Hold>,
}

impl Seen {
    pub(super) fn root(&self) -> &RootFd {
        self.view.root()
    }

    pub(super) fn renumbered(&self) -> Option<&Renumbered> {
        self.renumbered.as_ref()
    }
}

/// What can be read of a container.
pub(super) fn to_read(engine: &Engine, name: &str) -> Result<Seen> {
    see(engine, name, true)
}

/// What can be written in a container.
pub(super) fn to_write(engine: &Engine, name: &str) -> Result<Seen> {
    see(engine, name, false)
}

fn see(engine: &Engine, name: &str, only_read: bool) -> Result<Seen> {
    let deadline = Instant::now() + SETTLING;
    loop {
        let container = state::find(engine, name)?;
        let seen = match container.status {
            Status::Dead | Status::Removing => {
                return Err(EngineError::Conflict(format!(
                    "container {} is being removed",
                    container.id
                )));
            }
            Status::Running | Status::Paused => running(engine, container.clone(), only_read)?,
            _ => at_rest(engine, container.clone(), only_read)?,
        };
        if let Some(seen) = seen {
            return Ok(seen);
        }
        if Instant::now() > deadline {
            return Err(EngineError::Conflict(format!(
                "container {} is in use: it starts, ends, or files are being copied into it",
                container.id
            )));
        }
        std::thread::sleep(AGAIN);
    }
}

/// Of one that runs; `None`: it has just ended.
fn running(engine: &Engine, container: Container, only_read: bool) -> Result<Option<Seen>> {
    let Some(process) = first_process(engine, &container)? else {
        return Ok(None);
    };
    let Ok(renumbered) = users::of_process(container.pid) else {
        return Ok(None);
    };
    if only_read && renumbered.is_some() {
        return stored(engine, container).map(Some);
    }
    let mut places: Vec<PathBuf> = GENERATED.iter().map(PathBuf::from).collect();
    places.extend(ordered(&container).map(|mount| PathBuf::from(&mount.destination)));
    let assembled = view::copies_of(process.as_fd(), &places)
        .and_then(|(root, parts)| View::assemble(root, &parts, Absent::Skip, Access::AsMounted));
    match assembled {
        Ok(view) => Ok(view.map(|view| Seen {
            container,
            view,
            renumbered,
            _claimed: None,
            _volumes: Vec::new(),
        })),
        Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => Ok(None),
        Err(error) => Err(failed(&container, error)),
    }
}

/// Of one whose users are others on the host: what is on the disk, where the owners are those that
/// it sees itself.
fn stored(engine: &Engine, container: Container) -> Result<Seen> {
    let volumes = Hold::of_container(engine, &container)?;
    let upper = engine.layout().container(&container.id).join("upper");
    let layers = engine.store().layers();
    let root = layers.mount_merged(&container.setup.layers, &upper)?;
    let parts = parts(engine, &container, true)?;
    let view = View::assemble(root.into_mount(), &parts, Absent::Skip, Access::AsMounted)
        .and_then(|view| view.ok_or_else(|| io::Error::other("no view")))
        .map_err(|error| failed(&container, error))?;
    Ok(Seen {
        container,
        view,
        renumbered: None,
        _claimed: None,
        _volumes: volumes,
    })
}

/// A descriptor of a container's first process; `None`: it has ended. A pid alone may be somebody
/// else's by now: the container's group must have it, after it was opened.
fn first_process(engine: &Engine, container: &Container) -> Result<Option<OwnedFd>> {
    let Some(pid) = Pid::from_raw(container.pid) else {
        return Ok(None);
    };
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(Errno::SRCH) => return Ok(None),
        Err(errno) => return Err(failed(container, errno.into())),
    };
    let group = state::cgroup_path(engine, container);
    let theirs = crate::sweep::cgroup_pids(&group).contains(&container.pid);
    Ok(theirs.then_some(process))
}

/// Of one that does not run; `None`: somebody else writes there.
fn at_rest(engine: &Engine, container: Container, only_read: bool) -> Result<Option<Seen>> {
    files::make_directory(engine, &container.id)?;
    size::apply(engine, &container)?;
    // Of one that was removed meanwhile nobody would remove it.
    if let Err(error) = state::find(engine, &container.id) {
        if matches!(error, EngineError::NoSuchContainer(_)) {
            files::remove_directory(engine, &container.id);
        }
        return Err(error);
    }
    let layers = engine.store().layers();
    let volumes = Hold::of_container(engine, &container)?;
    if only_read {
        let upper = engine.layout().container(&container.id).join("upper");
        let root = layers.mount_merged(&container.setup.layers, &upper)?;
        let parts = parts(engine, &container, only_read)?;
        // Where a place of a mount is missing yet, it must be made.
        let whole = View::assemble(root.into_mount(), &parts, Absent::GiveUp, Access::AsMounted);
        if let Some(view) = whole.map_err(|error| failed(&container, error))? {
            return Ok(Some(Seen {
                container,
                view,
                renumbered: None,
                _claimed: None,
                _volumes: volumes,
            }));
        }
    }
    let claimed = match root::try_use(engine, &container.id) {
        Ok(Some(claimed)) => claimed,
        Ok(None) => return Ok(None),
        // It is being removed.
        Err(EngineError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    // It may have started before it was claimed.
    let container = state::find(engine, &container.id)?;
    if matches!(container.status, Status::Running | Status::Paused) {
        return Ok(None);
    }
    let mounted = root::mount(engine, layers, &container, &claimed, None)?;
    let parts = parts(engine, &container, only_read)?;
    let access = if is_read_only(&container) {
        Access::ReadOnly
    } else {
        Access::AsMounted
    };
    let view = View::assemble(mounted, &parts, Absent::Make, access);
    let view = view.map_err(|error| failed(&container, error))?;
    Ok(view.map(|view| Seen {
        container,
        view,
        renumbered: None,
        _claimed: Some(claimed),
        _volumes: volumes,
    }))
}

/// Its mounts, the outer ones first.
fn ordered(container: &Container) -> impl Iterator<Item = &crate::parse::mounts::MountEntry> {
    let mut mounts: Vec<_> = container.setup.mounts.iter().collect();
    mounts.sort_by_key(|mount| mount.destination.matches('/').count());
    mounts.into_iter()
}

/// Whether its root may not be written to (`--read-only`).
pub(super) fn is_read_only(container: &Container) -> bool {
    container.host.readonly_rootfs == Some(true)
}

/// What a start would mount, but for memory, which would be empty. Who only reads makes no
/// directory of the host that a start would make.
fn parts(engine: &Engine, container: &Container, only_read: bool) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    let directory = engine.layout().container(&container.id);
    let access = ReadOnly::of(is_read_only(container), true);
    for place in GENERATED {
        let place = PathBuf::from(place);
        let file = directory.join(place.file_name().unwrap_or_default());
        if !file.is_file() {
            continue; // it has never run
        }
        let source = spec::BindSource::Generated(file);
        parts.push(part(engine, container, &source, place, (true, access))?);
    }
    for mount in ordered(container) {
        let (whole, below) = match &mount.source {
            Source::Bind {
                path, create: true, ..
            } if only_read && matches!(Path::new(path).try_exists(), Ok(false)) => continue,
            Source::Bind {
                recursive,
                read_only_top,
                ..
            } => (*recursive, !read_only_top),
            _ => (true, true),
        };
        if let (_, Some(source)) = spec::user_mount(mount) {
            let place = PathBuf::from(&mount.destination);
            let access = ReadOnly::of(mount.read_only, below);
            parts.push(part(engine, container, &source, place, (whole, access))?);
        }
    }
    Ok(parts)
}

/// What of a mount may not be written to.
#[derive(Debug, Clone, Copy)]
enum ReadOnly {
    Nothing,
    /// Not what is mounted below it.
    Itself,
    All,
}

impl ReadOnly {
    fn of(read_only: bool, below: bool) -> Self {
        match (read_only, below) {
            (false, _) => Self::Nothing,
            (true, false) => Self::Itself,
            (true, true) => Self::All,
        }
    }
}

/// A mount as a start makes it; `whole`: with what is mounted below its source.
fn part(
    engine: &Engine,
    container: &Container,
    source: &spec::BindSource,
    place: PathBuf,
    (whole, access): (bool, ReadOnly),
) -> Result<Part> {
    let opened = bind_source(engine, container, source)?;
    if matches!(source, spec::BindSource::Image { .. }) {
        // A mount of its own already, and read-only.
        return Ok(Part {
            mount: opened,
            place,
        });
    }
    let mount = view::copy_of(opened.as_fd(), whole)
        .and_then(|mount| {
            match access {
                ReadOnly::Nothing => {}
                ReadOnly::Itself => view::make_read_only(mount.as_fd(), false)?,
                ReadOnly::All => view::make_read_only(mount.as_fd(), true)?,
            }
            Ok(mount)
        })
        .map_err(|error| failed(container, error))?;
    Ok(Part { mount, place })
}

fn failed(container: &Container, error: io::Error) -> EngineError {
    EngineError::Other {
        context: format!("mount the files of container {}", container.id),
        source: Box::new(error),
    }
}
