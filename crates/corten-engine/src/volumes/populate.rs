//! Filling an empty volume: with what an image has in its place, or an archive.
//!
//! What comes in is put together in a directory beside the data (within it, where something is
//! mounted, or its size is bounded), which is given another name once it is complete; then its entries are moved, one rename
//! each. A process that is killed leaves either a part, which the next one discards, or something
//! complete, which the next one goes on to move. Whoever fills a volume holds a lock on its directory
//! ([`hold`](super::hold)'s gate), so two never do it at once.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use corten_store::rooted::remove_without_mounts;
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;

use super::tree::{copy, copy_attributes, names, open_directory, times};

/// What is not complete, beside the data.
const PARTIAL: &CStr = c"filling";
/// What is complete, beside the data.
const WHOLE: &CStr = c"filled";
/// The same, within the data.
const APART_WHOLE: &CStr = c".corten-filled";

/// Where a volume's data is, and where it is put together.
#[derive(Debug)]
pub(super) struct Place {
    /// The volume's directory, locked unless the caller has done so.
    _locked: OwnedFd,
    data: OwnedFd,
    /// What the next two are in.
    stage: OwnedFd,
    /// Not complete yet.
    partial: &'static CStr,
    /// Complete.
    whole: &'static CStr,
}

impl Place {
    /// Locks a volume for filling. `apart`: files are moved into it only from within. Blocks.
    pub(super) fn lock(data: &Path, apart: bool) -> io::Result<Self> {
        let parent = data
            .parent()
            .ok_or_else(|| io::Error::other("a volume without a directory"))?;
        let locked = open_directory(CWD, parent)?;
        rustix::fs::flock(&locked, FlockOperation::LockExclusive)?;
        Self::within(locked, data, apart)
    }

    /// The same, of a volume that the caller has locked.
    pub(super) fn of_locked(gate: &std::fs::File, data: &Path, apart: bool) -> io::Result<Self> {
        Self::within(gate.try_clone()?.into(), data, apart)
    }

    fn within(locked: OwnedFd, data: &Path, apart: bool) -> io::Result<Self> {
        let data = open_directory(CWD, data)?;
        let stage = match apart {
            // On the same file system.
            true => open_directory(data.as_fd(), c".")?,
            false => open_directory(locked.as_fd(), c".")?,
        };
        let (partial, whole) = match apart {
            true => (c".corten-filling", APART_WHOLE),
            false => (PARTIAL, WHOLE),
        };
        Ok(Self {
            _locked: locked,
            data,
            stage,
            partial,
            whole,
        })
    }

    /// Ends what a killed process had only to move; whether there was something.
    pub(super) fn resume(&self) -> io::Result<bool> {
        let whole = match open_directory(self.stage.as_fd(), self.whole) {
            Ok(whole) => whole,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let stat = rustix::fs::fstat(&whole)?;
        for name in names(whole.as_fd())? {
            let flags = RenameFlags::NOREPLACE;
            match rustix::fs::renameat_with(&whole, &name, &self.data, &name, flags) {
                // Somebody who uses the volume was quicker, or it was moved just now.
                Ok(()) | Err(Errno::EXIST | Errno::NOENT) => {}
                // A file system without such renames; nobody else fills it.
                Err(Errno::INVAL) => match rustix::fs::statat(
                    &self.data,
                    &name,
                    rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
                ) {
                    Err(Errno::NOENT) => {
                        rustix::fs::renameat(&whole, &name, &self.data, &name)?;
                    }
                    other => drop(other?),
                },
                Err(error) => return Err(error.into()),
            }
        }
        copy_attributes(whole.as_fd(), self.data.as_fd())?;
        self.discard(self.whole)?;
        // Each move was a change of both directories.
        rustix::fs::futimens(&self.data, &times(&stat))?;
        Ok(true)
    }

    /// Whether there is nothing in it.
    pub(super) fn is_empty(&self) -> io::Result<bool> {
        let ours = [self.partial, self.whole];
        let names = names(self.data.as_fd())?;
        Ok(names.iter().all(|name| ours.contains(&name.as_c_str())))
    }

    /// Puts it together and moves it into the volume, which is empty.
    pub(super) fn fill(&self, put: impl FnOnce(&OwnedFd) -> io::Result<()>) -> io::Result<()> {
        // Under the lock nobody else is at it: what is there is a dead process's.
        self.discard(self.partial)?;
        let filled = (|| {
            rustix::fs::mkdirat(&self.stage, self.partial, Mode::RWXU)?;
            let made = open_directory(self.stage.as_fd(), self.partial)?;
            put(&made)?;
            // Nobody fills it again: what is said to be complete must outlast a loss of power.
            rustix::fs::syncfs(&made)?;
            let (stage, partial) = (&self.stage, self.partial);
            Ok(rustix::fs::renameat(stage, partial, stage, self.whole)?)
        })();
        if let Err(error) = filled {
            if let Err(error) = self.discard(self.partial) {
                tracing::warn!(%error, "a partial copy is left");
            }
            return Err(error);
        }
        self.resume().map(drop)
    }

    /// Moves in what has been put together under a name in the same directory. When that fails the
    /// volume is empty again.
    pub(super) fn adopt(&self, name: &std::ffi::OsStr) -> io::Result<()> {
        self.discard(self.whole)?;
        rustix::fs::renameat(&self.stage, name, &self.stage, self.whole)?;
        let whole = open_directory(self.stage.as_fd(), self.whole)?;
        let all = names(whole.as_fd())?;
        self.resume().map(drop).inspect_err(|_| {
            if let Err(error) = self.take_back(&whole, &all) {
                tracing::warn!(%error, "a part of what was brought in is left");
            }
        })
    }

    /// Removes what [`Place::resume`] has moved, and what it has not.
    fn take_back(&self, whole: &OwnedFd, all: &[CString]) -> io::Result<()> {
        let left = names(whole.as_fd())?;
        for name in all.iter().filter(|name| !left.contains(name)) {
            remove(&self.data, name)?;
        }
        self.discard(self.whole)
    }

    fn discard(&self, name: &CStr) -> io::Result<()> {
        remove(&self.stage, name)
    }
}

fn remove(directory: &OwnedFd, name: &CStr) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::OsStr::from_bytes(name.to_bytes());
    match remove_without_mounts(directory.as_fd(), name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Ends what a killed process had only to move into a volume, which the caller has locked: whoever
/// uses it finds all of it, and what replaces it does not get the rest later.
pub(super) fn resume(gate: &std::fs::File, data: &Path, apart: bool) -> io::Result<()> {
    let whole = match apart {
        true => data.join(APART_WHOLE.to_string_lossy().as_ref()),
        false => data.with_file_name(WHOLE.to_string_lossy().as_ref()),
    };
    match whole.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => Place::of_locked(gate, data, apart)?.resume().map(drop),
    }
}

/// Whether a volume, on which nothing is mounted, has all that it was filled with.
pub(super) fn is_done(data: &Path) -> bool {
    let filled = data.with_file_name(WHOLE.to_string_lossy().as_ref());
    let occupied = std::fs::read_dir(data).is_ok_and(|mut entries| entries.next().is_some());
    // In this order: what was whole is gone when all of it has been moved.
    occupied && matches!(filled.try_exists(), Ok(false))
}

/// Removes what a killed process had begun to put together beside a volume's data, if `remove` says
/// so; whether there is something. What is whole stays, for the next use to move.
pub(super) fn leftover(data: &Path, remove: bool) -> io::Result<bool> {
    let directory = match data.parent().map(|parent| open_directory(CWD, parent)) {
        Some(Ok(directory)) => directory,
        Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => return Ok(false),
    };
    match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(false), // perhaps it is being filled
        Err(error) => return Err(error.into()),
    }
    if let Err(error) = open_directory(directory.as_fd(), PARTIAL) {
        return match error.kind() {
            io::ErrorKind::NotFound => Ok(false),
            _ => Err(error),
        };
    }
    if remove {
        use std::os::unix::ffi::OsStrExt;
        let name = std::ffi::OsStr::from_bytes(PARTIAL.to_bytes());
        remove_without_mounts(directory.as_fd(), name)?;
    }
    Ok(true)
}

/// The directory that an image has at a path, if it has one there.
pub(super) fn source(root: &OwnedFd, path: &str) -> io::Result<Option<OwnedFd>> {
    let opened = rustix::fs::openat2(
        root,
        path.trim_start_matches('/'),
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    );
    match opened {
        Ok(source) => Ok(Some(source)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Copies a directory of an image into a volume, which is empty.
pub(super) fn from_image(source: &OwnedFd, place: &Place) -> io::Result<()> {
    place.fill(|target| copy(source.as_fd(), target.as_fd(), false))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::PathBuf;

    use super::*;

    fn volume(dir: &Path) -> PathBuf {
        let volume = dir.join("volume/_data");
        std::fs::create_dir_all(&volume).unwrap();
        volume
    }

    fn fill(root: &Path, path: &str, data: &Path, mounted: bool) {
        let root = open_directory(CWD, root).unwrap();
        let place = Place::lock(data, mounted).unwrap();
        if !place.resume().unwrap()
            && place.is_empty().unwrap()
            && let Some(source) = source(&root, path).unwrap()
        {
            from_image(&source, &place).unwrap();
        }
    }

    #[test]
    fn a_volume_is_filled_once_with_its_attributes() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        let inside = image.join("srv/data");
        std::fs::create_dir_all(inside.join("sub")).unwrap();
        std::fs::write(inside.join("sub/file"), "hello").unwrap();
        std::fs::write(inside.join("again"), "").unwrap();
        std::fs::set_permissions(&inside, std::fs::Permissions::from_mode(0o1770)).unwrap();
        // The image's path leads through a link that must stay inside.
        symlink("/srv", image.join("var")).unwrap();
        for mounted in [false, true] {
            let data = volume(&dir.path().join(mounted.to_string()));
            let inode = std::fs::metadata(&data).unwrap().ino();
            fill(&image, "/var/data", &data, mounted);
            let text = std::fs::read_to_string(data.join("sub/file")).unwrap();
            assert_eq!(text, "hello");
            let there = std::fs::metadata(&data).unwrap();
            // Whoever has it open already sees the same.
            assert_eq!((there.mode() & 0o7777, there.ino()), (0o1770, inode));
            assert_eq!(std::fs::read_dir(&data).unwrap().count(), 2);

            // Not empty any more: nothing is copied again.
            std::fs::remove_file(data.join("again")).unwrap();
            fill(&image, "/srv/data", &data, mounted);
            assert!(!data.join("again").exists());
        }
    }

    #[test]
    fn a_part_is_found_unless_somebody_is_at_it() {
        let dir = tempfile::tempdir().unwrap();
        let data = volume(dir.path());
        assert!(!leftover(&data, true).unwrap());
        let part = data.with_file_name("filling");
        std::fs::create_dir_all(part.join("sub")).unwrap();
        let place = Place::lock(&data, false).unwrap();
        assert!(!leftover(&data, true).unwrap());
        drop(place);
        assert!(leftover(&data, false).unwrap());
        assert!(leftover(&data, true).unwrap());
        assert!(!part.exists());
        assert!(!leftover(&dir.path().join("none/_data"), true).unwrap());
    }

    #[test]
    fn whoever_uses_a_volume_finds_what_a_dead_process_had_put_together() {
        let dir = tempfile::tempdir().unwrap();
        for (apart, whole) in [(false, "../filled"), (true, ".corten-filled")] {
            let data = volume(&dir.path().join(apart.to_string()));
            let gate = std::fs::File::open(data.parent().unwrap()).unwrap();
            resume(&gate, &data, apart).unwrap();
            std::fs::create_dir(data.join(whole)).unwrap();
            std::fs::write(data.join(whole).join("file"), "").unwrap();
            resume(&gate, &data, apart).unwrap();
            assert!(data.join("file").exists() && !data.join(whole).exists());
        }
    }

    #[test]
    fn what_could_not_be_moved_in_as_a_whole_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let data = volume(dir.path());
        let gate = std::fs::File::open(data.parent().unwrap()).unwrap();
        let place = Place::of_locked(&gate, &data, true).unwrap();
        let whole = data.join(".corten-filled");
        for made in [&data.join("lost+found"), &data.join("moved"), &whole] {
            std::fs::create_dir(made).unwrap();
        }
        std::fs::write(data.join("moved/file"), "").unwrap();
        std::fs::write(whole.join("left"), "").unwrap();
        let opened = open_directory(CWD, &whole).unwrap();
        let all = [c"moved".to_owned(), c"left".to_owned()];
        place.take_back(&opened, &all).unwrap();
        assert_eq!(
            names(place.data.as_fd()).unwrap(),
            [c"lost+found".to_owned()]
        );
    }

    #[test]
    fn what_the_image_does_not_have_leaves_the_volume_empty() {
        let dir = tempfile::tempdir().unwrap();
        let data = volume(dir.path());
        std::fs::write(dir.path().join("file"), "").unwrap();
        for path in ["/none", "/file", "/../../etc/none"] {
            fill(dir.path(), path, &data, false);
            assert_eq!(std::fs::read_dir(&data).unwrap().count(), 0, "{path}");
        }
    }

    #[test]
    fn a_dead_process_part_is_discarded_and_its_whole_moved() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        std::fs::create_dir_all(image.join("d")).unwrap();
        std::fs::write(image.join("d/new"), "new").unwrap();
        for (mounted, partial, whole) in [
            (false, "../filling", "../filled"),
            (true, ".corten-filling", ".corten-filled"),
        ] {
            let data = volume(&dir.path().join(mounted.to_string()));
            std::fs::create_dir_all(data.join(partial).join("junk")).unwrap();
            fill(&image, "/d", &data, mounted);
            let names = |data: &Path| -> Vec<String> {
                let entries = std::fs::read_dir(data).unwrap();
                let mut names: Vec<String> = entries
                    .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                    .collect();
                names.sort();
                names
            };
            assert_eq!(names(&data), ["new"]);
            // One was moved when the process died.
            std::fs::create_dir(data.join(whole)).unwrap();
            std::fs::write(data.join(whole).join("other"), "other").unwrap();
            fill(&image, "/d", &data, mounted);
            assert_eq!(names(&data), ["new", "other"]);
            let left = std::fs::read_dir(data.parent().unwrap()).unwrap().count();
            assert_eq!(left, 1);
        }
    }
}
