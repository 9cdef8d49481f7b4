//! Digests of selected files. A file of the context that stat(2) says is the one that was read
//! by an earlier build is not read again.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use corten_dockerfile::ModeChange;
use corten_oci::Digest;
use rustix::fs::{FileType, Mode, OFlags};
use sha2::{Digest as _, Sha256};

use super::tree::{Entry, Tree};
use super::walk::cores;
use crate::cache::{Cache, now};
use crate::cancel::Cancel;
use crate::error::BuildError;
use crate::file_index::{FileId, nanoseconds};
use crate::keys::KeyBuilder;

/// A file whose status changed so short a time before it was read may have changed since
/// without showing it: the kernel's clock for files ticks every few milliseconds.
const RACY: i64 = 50_000_000;

/// The one extended attribute that means something for what is executed.
pub(super) const CAPABILITY: &str = "security.capability";

/// How the files will be written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Appearance<'a> {
    /// `--chown` is part of the key by itself.
    pub(crate) chown: bool,
    /// `--chmod`.
    pub(crate) chmod: Option<&'a ModeChange>,
    /// The directory that is selected itself is where the files go, and takes after nothing.
    pub(crate) destination: bool,
}

/// What to say of a file that cannot be read.
pub(crate) type Failed<'a> = &'a (dyn Fn(&Entry, io::Error) -> BuildError + Sync);

/// One digest for everything selected: paths, types, modes, owners, contents; not times.
pub(crate) fn digest(
    tree: &Tree,
    entries: &[Entry],
    appearance: Appearance<'_>,
    cache: &Cache,
    cancel: &Cancel,
    failed: Failed<'_>,
) -> Result<Digest, BuildError> {
    let contents = contents(tree, entries, (cache, cancel), failed)?;
    Ok(digest_of(entries, &contents, appearance))
}

/// The same, if all files have been read by earlier builds.
pub(crate) fn known(
    tree: &Tree,
    entries: &[Entry],
    appearance: Appearance<'_>,
    cache: &Cache,
) -> Result<Option<Digest>, BuildError> {
    let (contents, unread) = known_contents(tree, entries, cache)?;
    Ok(unread
        .is_empty()
        .then(|| digest_of(entries, &contents, appearance)))
}

fn digest_of(entries: &[Entry], contents: &[[u8; 32]], appearance: Appearance<'_>) -> Digest {
    let mut key = KeyBuilder::new("files");
    let mut said = String::new();
    for (entry, content) in entries.iter().zip(contents) {
        let is_directory = entry.kind == FileType::Directory;
        let whole = entry.path.as_os_str().is_empty();
        let destination =
            is_directory && entry.to.as_os_str().is_empty() && (appearance.destination || whole);
        let mode = match appearance.chmod {
            _ if destination => 0,
            Some(mode) if entry.kind != FileType::Symlink => mode.apply(entry.mode, is_directory),
            _ => entry.mode,
        };
        let (uid, gid) = if appearance.chown || destination {
            (0, 0)
        } else {
            (entry.uid, entry.gid)
        };
        said.clear();
        let (kind, rdev) = (entry.kind, entry.rdev);
        // A string takes everything.
        _ = write!(said, "{kind:?} {mode:o} {uid} {gid} {rdev}");
        key.add(entry.to.as_os_str().as_bytes())
            .add(&said)
            .add(entry.target.as_os_str().as_bytes())
            .add(content);
        if entry.named {
            key.add(entry.path.file_name().unwrap_or_default().as_bytes());
        }
    }
    key.finish()
}

/// The contents of files that earlier builds have read, and the places of those they have not.
fn known_contents(
    tree: &Tree,
    entries: &[Entry],
    cache: &Cache,
) -> Result<(Vec<[u8; 32]>, Vec<usize>), BuildError> {
    let mut contents = vec![[0; 32]; entries.len()];
    let files: Vec<usize> = (0..entries.len())
        .filter(|&i| entries[i].kind == FileType::RegularFile)
        .collect();
    if !tree.remember {
        return Ok((contents, files));
    }
    let ids: Vec<FileId> = files.iter().map(|&i| entries[i].id).collect();
    let mut unread = Vec::new();
    for (&i, known) in files.iter().zip(cache.files(&ids)?) {
        match known {
            Some(known) => contents[i] = known,
            None => unread.push(i),
        }
    }
    Ok((contents, unread))
}

fn contents(
    tree: &Tree,
    entries: &[Entry],
    (cache, cancel): (&Cache, &Cancel),
    failed: Failed<'_>,
) -> Result<Vec<[u8; 32]>, BuildError> {
    let (mut contents, unread) = known_contents(tree, entries, cache)?;
    let read = read_all(tree, entries, &unread, (cancel, failed))?;
    let mut learnt = Vec::new();
    for (i, digest) in read {
        contents[i] = digest;
        let id = entries[i].id;
        if tree.remember && now().saturating_sub(id.ctime.max(id.mtime)) > RACY {
            learnt.push((id, digest));
        }
    }
    cache.remember(&learnt)?;
    Ok(contents)
}

/// So many files are worth more than one thread.
const MANY: usize = 16;

/// Reads files with as many threads as there are cores.
fn read_all(
    tree: &Tree,
    entries: &[Entry],
    files: &[usize],
    (cancel, failed): (&Cancel, Failed<'_>),
) -> Result<Vec<(usize, [u8; 32])>, BuildError> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(files.len()));
    let work = || -> Result<(), BuildError> {
        loop {
            let Some(&i) = files.get(next.fetch_add(1, Ordering::Relaxed)) else {
                return Ok(());
            };
            cancel.check()?;
            let entry = &entries[i];
            let digest = read_one(tree, entry).map_err(|error| failed(entry, error))?;
            done.lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .push((i, digest));
        }
    };
    let threads = if files.len() < MANY { 1 } else { cores() };
    if threads < 2 {
        work()?;
    } else {
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mut result = work();
            for other in others {
                let ended = other
                    .join()
                    .unwrap_or_else(|_| Err(BuildError::Internal("a reader panicked".into())));
                result = result.and(ended);
            }
            result
        })?;
    }
    Ok(done
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner))
}

fn read_one(tree: &Tree, entry: &Entry) -> io::Result<[u8; 32]> {
    let mut file = open(tree, entry)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    if !tree.foreign {
        for (name, value) in attributes(&file)? {
            hasher.update(name.as_bytes());
            hasher.update(&value);
        }
    }
    unchanged(entry, &file)?;
    Ok(hasher.finalize().into())
}

/// Opens a selected file; only one that was named by itself may be a link.
pub(super) fn open(tree: &Tree, entry: &Entry) -> io::Result<File> {
    let mut flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    if !entry.named {
        flags |= OFlags::NOFOLLOW;
    }
    let fd: OwnedFd = match tree.root.open_in_root(&entry.path, flags, Mode::empty()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(io::Error::other(Changed));
        }
        other => other?,
    };
    let file = File::from(fd);
    unchanged(entry, &file)?;
    Ok(file)
}

/// Why a file could not be read as it was selected.
#[derive(Debug, thiserror::Error)]
#[error("the file changed while it was read")]
pub(crate) struct Changed;

/// Whether a file could not be read because it is not any more what was selected.
pub(crate) fn has_changed(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Changed>())
}

/// What is read must be what was selected, or the key would belong to something else.
pub(super) fn unchanged(entry: &Entry, file: &File) -> io::Result<()> {
    let stat = rustix::fs::fstat(file)?;
    #[allow(clippy::unnecessary_cast)] // the fields' types differ by architecture
    let (mtime, ctime) = (
        (stat.st_mtime as i64, stat.st_mtime_nsec as i64),
        nanoseconds(stat.st_ctime as i64, stat.st_ctime_nsec as i64),
    );
    if u64::try_from(stat.st_size) != Ok(entry.id.size)
        || stat.st_ino != entry.id.ino
        || mtime != entry.mtime
        // Which nobody can set back.
        || ctime != entry.id.ctime
    {
        return Err(io::Error::other(Changed));
    }
    Ok(())
}

/// Extended attributes that are copied: the capability and the user's own.
pub(super) fn attributes(file: impl AsFd) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut list = vec![0; 1 << 16];
    let length = match rustix::fs::flistxattr(&file, &mut list) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(errno) => return Err(errno.into()),
    };
    let mut found = Vec::new();
    for name in list[..length].split(|&b| b == 0) {
        let Ok(name) = std::str::from_utf8(name) else {
            continue;
        };
        if name != CAPABILITY && !name.starts_with("user.") {
            continue;
        }
        let mut value = vec![0; 1 << 16];
        let length = rustix::fs::fgetxattr(&file, name, &mut value)?;
        value.truncate(length);
        found.push((name.to_owned(), value));
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use corten_dockerfile::IgnoreRules;
    use corten_store::rooted::RootFd;

    use corten_db::Database;
    use corten_store::Store;

    use super::*;
    use crate::ops::tree::Selection;

    #[test]
    fn what_is_known_is_what_was_read() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(
            &dir.path().join("db"),
            &[corten_store::SCHEMA, crate::SCHEMA],
        );
        let database = database.unwrap();
        let cache = Cache::new(database.clone(), Store::open(dir.path(), database));
        let context = dir.path().join("context");
        std::fs::create_dir_all(context.join("d")).unwrap();
        std::fs::write(context.join("d/f"), "text").unwrap();
        let tree = |remember| Tree {
            root: RootFd::open(&context).unwrap(),
            ignore: IgnoreRules::default(),
            foreign: true,
            remember,
        };
        let name = "d".to_owned();
        let select = || tree(true).select(&Selection::of(&name, true)).unwrap();
        let mode = ModeChange::parse("600").unwrap();
        let of = |chmod| Appearance {
            chown: false,
            chmod,
            destination: true,
        };
        let read = |chmod| {
            let failed = |_: &Entry, error| panic!("{error}");
            let cancel = Cancel::default();
            digest(&tree(true), &select(), of(chmod), &cache, &cancel, &failed).unwrap()
        };
        let found = |remember, chmod| known(&tree(remember), &select(), of(chmod), &cache).unwrap();
        assert_eq!(found(true, None), None, "never read");
        // Until it has not just been written.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let first = loop {
            let first = read(None);
            if let Some(known) = found(true, None) {
                assert_eq!(known, first);
                break first;
            }
            assert!(std::time::Instant::now() < deadline);
            std::thread::sleep(std::time::Duration::from_millis(10));
        };
        let other = found(true, Some(&mode)).unwrap();
        assert_eq!(other, read(Some(&mode)));
        assert_ne!(other, first);
        assert_eq!(found(false, None), None, "nothing is said by its status");
        std::fs::write(context.join("d/f"), "other").unwrap();
        assert_eq!(found(true, None), None, "another file");
        // One that may have changed since without showing it is read each time.
        let file = File::options().write(true).open(context.join("d/f"));
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(600);
        file.unwrap().set_modified(later).unwrap();
        assert_ne!(read(None), first);
        assert_eq!(found(true, None), None, "of now");
        // All of them, or nothing.
        std::fs::write(context.join("d/g"), "more").unwrap();
        assert_eq!(found(true, None), None);
    }

    #[test]
    fn what_is_read_is_what_was_selected() {
        let dir = tempfile::tempdir().unwrap();
        let write = |text: &str| std::fs::write(dir.path().join("f"), text).unwrap();
        write("one");
        let tree = Tree {
            root: RootFd::open(dir.path()).unwrap(),
            ignore: IgnoreRules::default(),
            foreign: true,
            remember: true,
        };
        let name = "f".to_owned();
        let entries = tree.select(&Selection::of(&name, true)).unwrap();
        assert!(read_one(&tree, &entries[0]).is_ok());
        let modified = std::fs::metadata(dir.path().join("f")).unwrap().modified();
        let modified = modified.unwrap();
        while tree.select(&Selection::of(&name, true)).unwrap()[0].id == entries[0].id {
            write("two");
            let mut options = std::fs::File::options();
            let file = options.append(true).open(dir.path().join("f")).unwrap();
            file.set_modified(modified).unwrap();
        }
        let error = read_one(&tree, &entries[0]).unwrap_err();
        assert!(has_changed(&error), "{error}");
        write("longer");
        let error = read_one(&tree, &entries[0]).unwrap_err();
        assert!(has_changed(&error), "{error}");
        std::fs::remove_file(dir.path().join("f")).unwrap();
        let error = read_one(&tree, &entries[0]).unwrap_err();
        assert!(has_changed(&error), "{error}");
        // Anything else is what it is.
        std::os::unix::fs::symlink("f", dir.path().join("f")).unwrap();
        let error = read_one(&tree, &entries[0]).unwrap_err();
        assert!(!has_changed(&error), "{error}");
    }
}
