//! Plain file operations on control group file systems. Errors name the file and the
//! value. A path given by a caller is checked once, here, because it decides what gets
//! killed and removed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::error::RuntimeError;
pub(super) use crate::error::os;

/// A path below the hierarchies' roots and nothing else.
pub(super) fn validate(path: &str) -> Result<(), RuntimeError> {
    let sound = !path.is_empty()
        && !path.starts_with('/')
        && path
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..")
        && !path.contains('\0');
    if sound {
        Ok(())
    } else {
        Err(RuntimeError::spec(
            "linux.cgroupsPath",
            format!("{path:?} is not a relative path of plain names"),
        ))
    }
}

/// How often parents that somebody removes at that moment are made again.
const MAX_TRIES: u32 = 100;

/// Makes `dir` below `root` with its parents, calling `made` for each directory created,
/// outermost first. Usually only the last one is missing, so that is tried first.
pub(super) fn make_dirs(
    root: &Path,
    dir: &Path,
    made: &mut dyn FnMut(&Path) -> Result<(), RuntimeError>,
) -> Result<(), RuntimeError> {
    let mut tries = 0;
    'again: loop {
        let mut missing = Vec::new();
        let mut at = dir;
        loop {
            match rustix::fs::mkdir(at, Mode::from_raw_mode(0o755)) {
                Ok(()) => {
                    made(at)?;
                    break;
                }
                Err(Errno::EXIST) => break,
                Err(Errno::NOENT) if at != root => {
                    missing.push(at);
                    at = at.parent().unwrap_or(root);
                }
                Err(errno) => return Err(cannot_create(at, errno)),
            }
        }
        for dir in missing.into_iter().rev() {
            match rustix::fs::mkdir(dir, Mode::from_raw_mode(0o755)) {
                Ok(()) => made(dir)?,
                Err(Errno::EXIST) => {}
                // Its parent was empty, and went with another container just now.
                Err(Errno::NOENT) if tries < MAX_TRIES => {
                    tries += 1;
                    continue 'again;
                }
                Err(errno) => return Err(cannot_create(dir, errno)),
            }
        }
        return Ok(());
    }
}

fn cannot_create(dir: &Path, errno: Errno) -> RuntimeError {
    let path = dir.display().to_string();
    match errno {
        Errno::ACCESS | Errno::PERM | Errno::ROFS => RuntimeError::CgroupDenied { path, errno },
        _ => RuntimeError::Cgroup {
            path,
            action: "create",
            errno,
        },
    }
}

/// One `write`, as these files want it. The file must exist.
pub(super) fn write_file(path: &Path, value: &str) -> Result<(), Errno> {
    // A lower `memory.max` has the writer free what is too much, which may take minutes; so opened
    // (Linux 6.16), it is those inside who do that when they next want memory.
    let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
    rustix::io::write(&file, value.as_bytes()).map(drop)
}

/// Like [`write_file`], with the file and value in the error.
pub(super) fn set(dir: &Path, file: &str, value: &str) -> Result<(), RuntimeError> {
    write_file(&dir.join(file), value).map_err(|errno| not_written(dir, file, value, errno))
}

/// The error for a value the kernel refused.
pub(super) fn not_written(dir: &Path, file: &str, value: &str, errno: Errno) -> RuntimeError {
    RuntimeError::Cgroup {
        path: format!("{} = {value:?}", dir.join(file).display()),
        action: "write",
        errno,
    }
}

/// The processes of a group and those below it.
pub(super) fn collect_pids(dir: &Path, pids: &mut Vec<i32>) -> io::Result<()> {
    let gone = |error: &io::Error| matches!(os(error), Errno::NOENT | Errno::NODEV);
    let text = match fs::read_to_string(dir.join("cgroup.procs")) {
        // A threaded v2 group lists threads only.
        Err(error) if os(&error) == Errno::OPNOTSUPP => {
            fs::read_to_string(dir.join("cgroup.threads"))
        }
        other => other,
    };
    let text = match text {
        Ok(text) => text,
        Err(error) if gone(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    pids.extend(
        text.lines()
            .filter_map(|line| line.trim().parse::<i32>().ok()),
    );
    for child in subdirs(dir) {
        collect_pids(&child, pids)?;
    }
    Ok(())
}

/// The groups directly below.
pub(super) fn subdirs(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// rmdir, deepest first. A group without children, the usual case, is one system call.
pub(super) fn remove_tree(dir: &Path) -> Result<(), Errno> {
    match rustix::fs::rmdir(dir) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::BUSY | Errno::NOTEMPTY) => {}
        // A read-only mount says so even of what does not exist.
        Err(Errno::ROFS | Errno::ACCESS | Errno::PERM) if !dir.exists() => return Ok(()),
        Err(errno) => return Err(errno),
    }
    for child in subdirs(dir) {
        remove_tree(&child)?;
    }
    match rustix::fs::rmdir(dir) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_plain() {
        for (path, sound) in [
            ("corten/abc", true),
            ("a", true),
            ("", false),
            ("/corten", false),
            ("corten//x", false),
            ("corten/../process_api", false),
            ("./x", false),
            ("x/", false),
        ] {
            assert_eq!(validate(path).is_ok(), sound, "{path:?}");
        }
    }

    #[test]
    fn directories_are_made_outermost_first() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a/b/c");
        let mut made = Vec::new();
        let mut note = |path: &Path| {
            made.push(path.strip_prefix(root.path()).unwrap().to_owned());
            Ok(())
        };
        make_dirs(root.path(), &dir, &mut note).unwrap();
        make_dirs(root.path(), &dir, &mut note).unwrap();
        assert_eq!(made, [Path::new("a"), Path::new("a/b"), Path::new("a/b/c")]);
        remove_tree(&root.path().join("a")).unwrap();
        assert!(!root.path().join("a").exists());
    }
}
