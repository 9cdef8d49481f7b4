//! What is at a path of a container, as `X-Docker-Container-Path-Stat` tells it.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use corten_store::rooted::RootFd;
use rustix::fs::{FileType, Stat};
use serde::Serialize;

use crate::parse::time;

/// Links that are followed on one way, as the kernel does.
const LINKS: usize = 40;

/// Go's `fs.FileMode` bits.
const DIRECTORY: u32 = 1 << 31;
const SYMLINK: u32 = 1 << 27;
const DEVICE: u32 = 1 << 26;
const NAMED_PIPE: u32 = 1 << 25;
const SOCKET: u32 = 1 << 24;
const SET_UID: u32 = 1 << 23;
const SET_GID: u32 = 1 << 22;
const CHARACTER: u32 = 1 << 21;
const STICKY: u32 = 1 << 20;

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PathStatus {
    name: String,
    size: i64,
    mode: u32,
    mtime: String,
    #[serde(rename = "linkTarget")]
    link_target: String,
}

impl PathStatus {
    pub(super) fn is_directory(&self) -> bool {
        self.mode & DIRECTORY != 0
    }
}

pub(super) fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Of a file called `name`; `target` tells where it leads if it is a link.
pub(super) fn of(
    name: &str,
    stat: &Stat,
    target: impl FnOnce() -> PathBuf,
) -> io::Result<PathStatus> {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let link_target = if kind == FileType::Symlink {
        target().to_string_lossy().into_owned()
    } else {
        String::new()
    };
    let nanos = i64::try_from(stat.st_mtime_nsec).unwrap_or_default();
    Ok(PathStatus {
        name: name.to_owned(),
        size: stat.st_size,
        mode: mode(stat.st_mode, kind),
        mtime: match stat.st_mtime.saturating_mul(1_000_000_000) {
            0 if nanos == 0 => "1970-01-01T00:00:00Z".to_owned(),
            seconds => time::rfc3339(seconds.saturating_add(nanos)),
        },
        link_target,
    })
}

fn mode(raw: u32, kind: FileType) -> u32 {
    let kind = match kind {
        FileType::Directory => DIRECTORY,
        FileType::Symlink => SYMLINK,
        FileType::BlockDevice => DEVICE,
        FileType::CharacterDevice => DEVICE | CHARACTER,
        FileType::Fifo => NAMED_PIPE,
        FileType::Socket => SOCKET,
        _ => 0,
    };
    [(0o4000, SET_UID), (0o2000, SET_GID), (0o1000, STICKY)]
        .into_iter()
        .filter(|(bit, _)| raw & bit != 0)
        .fold(raw & 0o777 | kind, |mode, (_, bit)| mode | bit)
}

/// The path without links that a path leads to, as far as it leads anywhere. For people and
/// clients: whoever opens it resolves it again.
pub(super) fn resolved(root: &RootFd, path: &Path) -> PathBuf {
    let mut left: Vec<OsString> = components(path);
    let mut sofar = PathBuf::from("/");
    let mut links = 0;
    while let Some(next) = left.pop() {
        if next == ".." {
            sofar.pop();
            continue;
        }
        let here = sofar.join(&next);
        match root.read_link(&here) {
            Ok(target) if links < LINKS => {
                links += 1;
                if target.is_absolute() {
                    sofar = PathBuf::from("/");
                }
                left.extend(components(&target));
            }
            _ => sofar = here,
        }
    }
    sofar
}

/// Its components, the last one first.
fn components(path: &Path) -> Vec<OsString> {
    path.components()
        .rev()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsString::from_vec(b"..".to_vec())),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_are_followed_inside() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        symlink("/a", dir.path().join("abs")).unwrap();
        symlink("../../../a/b", dir.path().join("a/up")).unwrap();
        symlink("nowhere/x", dir.path().join("broken")).unwrap();
        symlink("loop", dir.path().join("loop")).unwrap();
        let root = RootFd::open(dir.path()).unwrap();
        for (path, target) in [
            ("/abs/b", "/a/b"),
            ("/abs/up", "/a/b"),
            ("/broken", "/nowhere/x"),
            ("/loop", "/loop"),
            ("/", "/"),
        ] {
            let found = resolved(&root, Path::new(path));
            assert_eq!(found, Path::new(target), "{path}");
        }
    }

    #[test]
    fn modes_are_gos() {
        assert_eq!(mode(0o40755, FileType::Directory), 0x8000_01ed);
        assert_eq!(mode(0o41777, FileType::Directory), 0x8010_01ff);
        assert_eq!(mode(0o100_644, FileType::RegularFile), 0o644);
        assert_eq!(mode(0o104_755, FileType::RegularFile), 0x0080_01ed);
        assert_eq!(mode(0o120_777, FileType::Symlink), 0x0800_01ff);
        assert_eq!(mode(0o020_666, FileType::CharacterDevice), 0x0420_01b6);
    }
}
