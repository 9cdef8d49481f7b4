//! Syncing layers file by file. To sync a whole file system is to wait for whatever anybody has
//! written to it: on a machine that compiles something else, a second and more for a build that
//! wrote ten files.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};

/// More files than this are synced together with everything else.
const MOST: usize = 256;
/// So many at once, as each waits for the disk.
const THREADS: usize = 4;
/// So many directories within each other: two descriptors of each are open.
const DEEPEST: usize = 32;

/// Syncs what is in these directories, and the directories; `false`: there is too much, or a link,
/// device or the like, which cannot be synced by itself, so nothing was done.
pub(super) fn sync(layers: &[PathBuf]) -> io::Result<bool> {
    let mut left = MOST;
    for layer in layers {
        let dir = File::open(layer)?;
        if !walk(dir.as_fd(), &mut left, DEEPEST, false)? {
            return Ok(false);
        }
    }
    let next = AtomicUsize::new(0);
    let work = || -> io::Result<()> {
        while let Some(layer) = layers.get(next.fetch_add(1, Ordering::Relaxed)) {
            let dir = File::open(layer)?;
            let mut left = MOST;
            if !walk(dir.as_fd(), &mut left, DEEPEST, true)? {
                let changed = format!("{} changed while it was synced", layer.display());
                return Err(io::Error::other(changed));
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..THREADS.min(layers.len()))
            .map(|_| scope.spawn(work))
            .collect();
        let mut result = work();
        for other in others {
            let ended = other.join();
            let ended = ended.unwrap_or_else(|_| Err(io::Error::other("a thread panicked")));
            result = result.and(ended);
        }
        result
    })?;
    Ok(true)
}

/// Counts what is in a directory, and syncs it if `sync` is set; `false` as with [`sync`], or
/// where directories are within each other more than `depth` times.
fn walk(dir: BorrowedFd<'_>, left: &mut usize, depth: usize, sync: bool) -> io::Result<bool> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match left.checked_sub(1) {
            Some(rest) => *left = rest,
            None => return Ok(false),
        }
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let Some(deeper) = depth.checked_sub(1) else {
                    return Ok(false);
                };
                let flags = flags | OFlags::DIRECTORY;
                let below = rustix::fs::openat(dir, name, flags, Mode::empty())?;
                if !walk(below.as_fd(), left, deeper, sync)? {
                    return Ok(false);
                }
            }
            FileType::RegularFile => {
                if sync {
                    let flags = flags | OFlags::NONBLOCK;
                    let file = rustix::fs::openat(dir, name, flags, Mode::empty())?;
                    rustix::fs::fsync(&file)?;
                }
            }
            _ => return Ok(false),
        }
    }
    if sync {
        rustix::fs::fsync(dir)?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_is_deep_is_not_walked() {
        let dir = tempfile::tempdir().unwrap();
        let layers = [dir.path().to_owned()];
        let deep = dir.path().join("d/".repeat(DEEPEST));
        fs::create_dir_all(&deep).unwrap();
        assert!(sync(&layers).unwrap());
        fs::create_dir(deep.join("d")).unwrap();
        assert!(!sync(&layers).unwrap());
    }

    #[test]
    fn few_plain_files_are_synced_by_themselves() {
        let dir = tempfile::tempdir().unwrap();
        let layers = ["a", "b"].map(|name| dir.path().join(name));
        for layer in &layers {
            fs::create_dir_all(layer.join("d/e")).unwrap();
            fs::write(layer.join("d/e/f"), "f").unwrap();
        }
        assert!(sync(&layers).unwrap());
        assert!(sync(&[]).unwrap());
        symlink("f", layers[1].join("d/link")).unwrap();
        assert!(!sync(&layers).unwrap());
        fs::remove_file(layers[1].join("d/link")).unwrap();
        // Three in each layer so far.
        for n in 0..MOST - 6 {
            fs::write(layers[0].join(n.to_string()), "").unwrap();
        }
        assert!(sync(&layers).unwrap());
        fs::write(layers[1].join("more"), "").unwrap();
        assert!(!sync(&layers).unwrap());
        assert!(sync(&[dir.path().join("none")]).is_err());
    }
}
