//! `cp`: single files and trees of a container, out of it and into it, as tar archives.
//!
//! What is read and written is a `view` of the container: its root, and what the user mounted
//! in it, but none of the kernel's file systems. Every path is resolved inside (`openat2`,
//! `RESOLVE_IN_ROOT`), so links of the container lead nowhere else.

mod status;
mod view;

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;

use corten_build::{Owners, Replacing, Unpacking, unpack_archive};
use corten_store::rooted::RootFd;
use corten_store::view::View;
use rustix::fs::{Mode, OFlags};

use super::event;
use super::row::Container;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::outflow::{self, Outflow};
use crate::parse::{bad, paths};
use crate::supervise::rooted::identity;

pub use status::PathStatus;
use view::Seen;

type Result<T> = std::result::Result<T, EngineError>;

/// How an archive is unpacked in a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExtractOptions {
    /// A directory replaces only a directory, anything else no directory.
    pub keep_kinds: bool,
    /// Everything belongs to the container's user.
    pub own: bool,
}

/// A path as a client names it.
#[derive(Debug)]
struct Wanted<'a> {
    /// As it was sent.
    named: &'a str,
    /// Absolute, without `.` and `..`.
    clean: String,
    /// It must be a directory: the name ends in `/` or `/.`.
    directory: bool,
}

impl<'a> Wanted<'a> {
    fn new(named: &'a str) -> Self {
        let last = named.rsplit('/').next().unwrap_or_default();
        Self {
            named,
            clean: paths::clean_absolute(&format!("/{named}")).unwrap_or_default(),
            directory: matches!(last, "" | "."),
        }
    }

    /// The path, with the ending it came with.
    fn shown(&self) -> String {
        match self.named.rsplit('/').next() {
            Some(".") if self.clean == "/" => "/.".to_owned(),
            Some(".") => format!("{}/.", self.clean),
            Some("") if self.clean != "/" => format!("{}/", self.clean),
            _ => self.clean.clone(),
        }
    }

    /// Its last component, as Go's `filepath.Base` has it.
    fn base(&self) -> &str {
        match self.clean.rsplit('/').next() {
            _ if self.named.ends_with("/.") || self.named == "." => ".",
            Some("") | None => "/",
            Some(base) => base,
        }
    }

    /// An error about it, as the engine's clients know it.
    fn failed(&self, container: &str, action: &str, error: io::Error) -> EngineError {
        if error.kind() == io::ErrorKind::NotFound {
            return EngineError::NotFound(format!(
                "Could not find the file {} in container {container}",
                self.named
            ));
        }
        let reason = match error.kind() {
            io::ErrorKind::NotADirectory => "not a directory".to_owned(),
            _ => error.to_string(),
        };
        EngineError::Archive(format!("{action} {}: {reason}", self.shown()))
    }

    /// What it is; its last component is not followed unless it must be a directory.
    fn status(&self, root: &RootFd) -> io::Result<PathStatus> {
        let mut flags = OFlags::PATH;
        if self.directory {
            flags |= OFlags::DIRECTORY;
        } else {
            flags |= OFlags::NOFOLLOW;
        }
        let fd = root.open_in_root(Path::new(&self.clean), flags, Mode::empty())?;
        status::of(self.base(), &rustix::fs::fstat(fd)?, || {
            status::resolved(root, Path::new(&self.clean))
        })
    }
}

/// What a path of a container is. Blocks.
pub(super) fn status(engine: &Engine, name: &str, path: &str) -> Result<PathStatus> {
    let wanted = Wanted::new(path);
    let seen = view::to_read(engine, name)?;
    wanted
        .status(seen.root())
        .map_err(|error| wanted.failed(name, "lstat", error))
}

/// A path's archive, and what it is. Blocks until the archive begins.
pub(super) fn archive(engine: &Engine, name: &str, path: &str) -> Result<(PathStatus, Outflow)> {
    let wanted = Wanted::new(path);
    let seen = view::to_read(engine, name)?;
    let failed = |error| wanted.failed(name, "lstat", error);
    let found = wanted.status(seen.root()).map_err(failed)?;
    let at = Path::new(&wanted.clean);
    let (dir, entry, called) = if found.is_directory() {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let dir = seen.root().open_in_root(at, flags, Mode::empty());
        // All of the root has no name.
        let called = Some(wanted.base()).filter(|base| *base != "/");
        (dir.map_err(failed)?, ".".into(), called.unwrap_or_default())
    } else {
        let parent = seen.root().parent(at).map_err(failed)?;
        let (dir, entry) = parent.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        (dir, entry, wanted.base())
    };
    let called = called.to_owned();
    event(engine, &seen.container, "archive-path", &[]);
    let flow = outflow::stream(move |out| {
        // The view stands for as long as it is read.
        let Seen { container, .. } = &seen;
        corten_store::archive::write_entry(dir.as_fd(), &entry, OsStr::new(&called), out).map_err(
            |error| EngineError::Other {
                context: format!("copy from container {}", container.id),
                source: Box::new(error),
            },
        )
    });
    Ok((found, flow))
}

/// Unpacks an archive in a directory of a container. Blocks.
pub(super) fn extract(
    engine: &Engine,
    name: &str,
    path: &str,
    archive: impl Read + Send,
    options: ExtractOptions,
) -> Result<()> {
    let wanted = Wanted::new(path);
    let seen = view::to_write(engine, name)?;
    let root = seen.root();
    let at = Path::new(&wanted.clean);
    match root.stat(at) {
        Ok(stat) if status::is_directory(&stat) => {}
        Ok(_) => return Err(bad("extraction point is not a directory")),
        Err(error) => return Err(wanted.failed(name, "lstat", error)),
    }
    let below = status::resolved(root, at);
    writable(root, &seen.container, &below)?;
    let user = seen.container.config.user.as_deref().unwrap_or_default();
    let owners = if options.own && !user.is_empty() {
        let identity = identity(root.as_fd(), user, &[])?;
        Owners::All(identity.uid, identity.gid)
    } else {
        Owners::Archive
    };
    let to = Unpacking {
        root,
        below: &below,
        renamed: None,
        owners,
        renumbered: seen.renumbered(),
        replacing: if options.keep_kinds {
            Replacing::SameKind
        } else {
            Replacing::Anything
        },
        called: &below,
        strict: true,
        whole: false,
    };
    let unpack = || unpack_archive(archive, to);
    let unpacked = match seen.renumbered() {
        None => unpack(),
        // Nobody else can make files where owners are mapped.
        Some(ids) => ids
            .of((0, 0))
            .and_then(|root| corten_store::as_owner(root, unpack)?),
    };
    unpacked.map_err(|error| EngineError::Archive(error.to_string()))?;
    event(engine, &seen.container, "extract-to-dir", &[]);
    Ok(())
}

/// Whether a place, a path without links, may be written to, in Docker's words. What may not be is
/// mounted read-only in any case: links in it lead elsewhere.
fn writable(root: &RootFd, container: &Container, path: &Path) -> Result<()> {
    let mounts = container.setup.mounts.iter();
    let inside = mounts
        .map(|mount| (mount, status::resolved(root, Path::new(&mount.destination))))
        .filter(|(_, place)| path.starts_with(place))
        .max_by_key(|(_, place)| place.components().count());
    match inside {
        Some((mount, _)) if mount.read_only => Err(bad("mounted volume is marked read-only")),
        None if view::is_read_only(container) => Err(bad("container rootfs is marked read-only")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_docker_reads_them() {
        for (named, clean, directory, base, shown) in [
            ("/", "/", true, "/", "/"),
            ("/.", "/", true, ".", "/."),
            ("a", "/a", false, "a", "/a"),
            ("/a/b/", "/a/b", true, "b", "/a/b/"),
            ("/a/b/.", "/a/b", true, ".", "/a/b/."),
            ("/a/../../b", "/b", false, "b", "/b"),
            (".", "/", true, ".", "/."),
        ] {
            let wanted = Wanted::new(named);
            let read = (
                wanted.clean.as_str(),
                wanted.directory,
                wanted.base(),
                wanted.shown(),
            );
            assert_eq!(read, (clean, directory, base, shown.to_owned()), "{named}");
        }
    }
}
