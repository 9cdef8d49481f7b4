//! Who listens for all of an engine: a pipe with a name, whose writer has the lock on it. That a reader
//! has no writer any more is what tells it that the post is free.
//!
//! Nothing is ever written to it. Whoever leaves the post takes the name away; when it was killed, the pipe is
//! still at its place. Whoever has the post and wants the others to look after their own puts another pipe in
//! the place of the first, so that there is no moment in which nobody has it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, FlockOperation, Mode, OFlags};

/// Where the posts are. They mean nothing after a reboot.
pub(super) const POSTS: &str = "/run/corten-network";

/// The mark of a pipe whose end tells the others to look. (Whoever reads what is written to it takes it from
/// all others.)
const CALLED: Mode = Mode::XUSR;

#[derive(Debug)]
pub(super) enum Post {
    Ours(Held),
    Taken(Taken),
}

/// The post, held.
#[derive(Debug)]
pub(super) struct Held {
    path: PathBuf,
    /// Locked.
    writer: File,
}

/// What the end of a pipe means to those who wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The post is free, and nothing else is to be done.
    Left,
    /// The post is free, as whoever had it was killed.
    Killed,
    /// Somebody has it, who wants the others to look after their own.
    Called,
}

/// Of a post that somebody has: the pipe's end that is read.
#[derive(Debug)]
pub(super) struct Taken {
    path: PathBuf,
    reader: OwnedFd,
}

impl Post {
    /// Takes the post of a table of this network namespace, if nobody has it.
    pub(super) fn of(table: &str) -> io::Result<Self> {
        let path = path(table)?;
        loop {
            match Self::at(&path)? {
                Some(post) => return Ok(post),
                None => make(&path)?,
            }
        }
    }

    /// The same of a pipe; none if it is not there.
    fn at(path: &Path) -> io::Result<Option<Self>> {
        loop {
            let Some(reader) = open(path)? else {
                return Ok(None);
            };
            // Of the very same pipe. Before the lock, so that none who sees it taken misses the end.
            let same = format!("/proc/self/fd/{}", reader.as_raw_fd());
            let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let writer = File::from(rustix::fs::open(same, flags, Mode::empty())?);
            let path = path.to_owned();
            match rustix::fs::flock(&writer, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if is_at(&path, &writer) => {
                    return Ok(Some(Self::Ours(Held { path, writer })));
                }
                // Whoever had it has removed it.
                Ok(()) | Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Ok(Some(Self::Taken(Taken { path, reader })));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Held {
    /// Whether somebody was killed here who was about to call the others: they may wait for it still.
    pub(super) fn owes_a_call(&self) -> io::Result<bool> {
        is_marked(&self.writer)
    }

    /// Has all others look after their own, and keeps the post. Where that fails, they do it when this is
    /// dropped.
    pub(super) fn call(&mut self) -> io::Result<()> {
        // First: whoever is killed meanwhile leaves it to the next to call them.
        rustix::fs::fchmod(&self.writer, Mode::RUSR | Mode::WUSR | CALLED)?;
        if !is_at(&self.path, &self.writer) {
            // It may be another's by now, who is not to lose it.
            return Err(io::Error::other("its pipe was removed by hand"));
        }
        let mut new = self.path.clone().into_os_string();
        new.push(format!("-{}", std::process::id()));
        let new = PathBuf::from(new);
        // Of a process of the same number that was killed here.
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let replaced = make(&new).and_then(|()| locked(&new)).and_then(|writer| {
            std::fs::rename(&new, &self.path)?;
            Ok(writer)
        });
        match replaced {
            Ok(writer) => {
                // The others wait for the end of its last writer, and then see the mark.
                self.writer = writer;
                Ok(())
            }
            Err(error) => {
                let _gone = std::fs::remove_file(&new);
                Err(error)
            }
        }
    }
}

fn is_marked(pipe: &File) -> io::Result<bool> {
    Ok(pipe.metadata()?.mode() & CALLED.bits() != 0)
}

/// The writer of a pipe that nobody else knows of yet, locked.
fn locked(path: &Path) -> io::Result<File> {
    // A pipe is not opened for writing where nobody reads.
    let reader = open(path)?.ok_or(io::ErrorKind::NotFound)?;
    let same = format!("/proc/self/fd/{}", reader.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let writer = File::from(rustix::fs::open(same, flags, Mode::empty())?);
    rustix::fs::flock(&writer, FlockOperation::NonBlockingLockExclusive)?;
    Ok(writer)
}

impl Drop for Held {
    fn drop(&mut self) {
        // Those who wait are told when it is closed. Its name may be another's by now, if somebody has
        // removed it by hand.
        if is_at(&self.path, &self.writer)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::debug!(path = %self.path.display(), %error, "it stays");
        }
    }
}

impl Taken {
    /// The post of a table of this network namespace, if somebody has it (or tries to take it).
    pub(super) fn of(table: &str) -> io::Result<Option<Self>> {
        let path = path(table)?;
        let reader = open(&path)?.map(File::from);
        let taken = reader.filter(|reader| !is_free(reader));
        Ok(taken.map(|reader| Self {
            path,
            reader: reader.into(),
        }))
    }

    /// Waits until whoever has the post leaves it, or calls.
    pub(super) async fn end(self) -> io::Result<End> {
        let reader = crate::sys::watch(self.reader)?;
        loop {
            let mut ready = reader.readable().await?;
            let pipe = File::from(reader.get_ref().try_clone()?);
            if is_free(&pipe) {
                let called = is_marked(&pipe)?;
                return Ok(match is_at(&self.path, &pipe) {
                    true => End::Killed,
                    false if called => End::Called,
                    false => End::Left,
                });
            }
            ready.clear_ready();
        }
    }
}

/// Removes the posts of a table that nobody has, as whoever had them was killed; those of other network
/// namespaces as well, which may be gone.
pub(crate) fn forget(table: &str) {
    let entries = std::fs::read_dir(POSTS).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let namespace = name.to_str().and_then(|name| name.strip_prefix(table));
        let namespace = namespace.and_then(|rest| rest.strip_prefix('.'));
        // Of a call that was not finished: with the number of a process.
        let number = |b: u8| b.is_ascii_digit() || b == b'-';
        if !namespace.is_some_and(|n| n.bytes().all(number)) {
            continue;
        }
        match Post::at(&entry.path()) {
            // Dropping it removes it.
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(path = %entry.path().display(), %error, "it stays");
            }
        }
    }
}

/// The pipe of a table of this network namespace.
fn path(table: &str) -> io::Result<PathBuf> {
    let namespace = std::fs::metadata("/proc/thread-self/ns/net")?.ino();
    Ok(Path::new(POSTS).join(format!("{table}.{namespace}")))
}

/// Its end that is read; none if it is not there.
fn open(path: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => Ok(None),
        opened => Ok(Some(opened?)),
    }
}

fn make(path: &Path) -> io::Result<()> {
    let mut directory = std::fs::DirBuilder::new();
    directory.recursive(true).mode(0o700).create(POSTS)?;
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::mknodat(CWD, path, FileType::Fifo, mode, 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn is_at(path: &Path, file: &File) -> bool {
    let there = std::fs::symlink_metadata(path);
    let ours = file.metadata();
    matches!((there, ours), (Ok(a), Ok(b)) if (a.dev(), a.ino()) == (b.dev(), b.ino()))
}

/// Has the pipe no writer?
fn is_free(mut reader: &File) -> bool {
    // Nothing is ever written to it.
    matches!(reader.read(&mut [0; 1]), Ok(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(pipe: &str) -> String {
        format!("corten_test_{pipe}_{}", std::process::id())
    }

    fn held(table: &str) -> Held {
        match Post::of(table).unwrap() {
            Post::Ours(held) => held,
            Post::Taken(taken) => panic!("{taken:?}"),
        }
    }

    #[test]
    fn what_is_forgotten_or_removed_by_hand_is_not_taken_from_another() {
        let table = name("post");
        let first = held(&table);
        let path = path(&table).unwrap();
        forget(&table);
        assert!(path.exists() && Taken::of(&table).unwrap().is_some());
        // By hand: from then on there may be two, of whom the first takes nothing from the second.
        std::fs::remove_file(&path).unwrap();
        let second = held(&table);
        drop(first);
        assert!(path.exists() && Taken::of(&table).unwrap().is_some());
        kill(second);
        assert!(path.exists() && Taken::of(&table).unwrap().is_none());
        // Another's, whose name begins with the same.
        let other = held(&format!("{table}.x"));
        forget(&table);
        assert!(!path.exists() && other.path.exists());
    }

    /// As if its process had been killed: the pipe stays where it is.
    fn kill(held: Held) {
        let path = held.path.clone();
        let aside = path.with_extension("aside");
        std::fs::rename(&path, &aside).unwrap();
        drop(held);
        std::fs::rename(aside, path).unwrap();
    }

    #[test]
    fn whoever_waits_is_told_of_the_end_and_what_it_was() {
        let table = name("told");
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        runtime.block_on(async {
            for end in [End::Left, End::Killed] {
                let post = held(&table);
                assert!(matches!(Post::of(&table).unwrap(), Post::Taken(_)));
                let waiting = Taken::of(&table).unwrap().unwrap();
                match end {
                    End::Killed => kill(post),
                    _ => drop(post),
                }
                assert_eq!(waiting.end().await.unwrap(), end);
            }
            forget(&table);
        });
    }

    #[test]
    fn whoever_calls_keeps_the_post() {
        let table = name("call");
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        runtime.block_on(async {
            let mut post = held(&table);
            for _ in 0..3 {
                let waiting = [(); 3].map(|()| Taken::of(&table).unwrap().unwrap());
                post.call().unwrap();
                for waiting in waiting {
                    assert_eq!(waiting.end().await.unwrap(), End::Called);
                    assert!(matches!(Post::of(&table).unwrap(), Post::Taken(_)));
                }
            }
            let waiting = Taken::of(&table).unwrap().unwrap();
            let path = post.path.clone();
            drop(post);
            assert_eq!(waiting.end().await.unwrap(), End::Left);
            // Removed by hand, with another in its place or not: that is not called from, but who waits at the
            // first is.
            for another in [true, false] {
                let mut post = held(&table);
                let waiting = Taken::of(&table).unwrap().unwrap();
                std::fs::remove_file(&path).unwrap();
                let other = another.then(|| held(&table));
                post.call().unwrap_err();
                drop(post);
                assert_eq!(waiting.end().await.unwrap(), End::Called);
                assert_eq!(path.exists(), another);
                assert!(other.is_none_or(|other| is_at(&path, &other.writer)));
                assert!(!path.exists());
            }
        });
    }

    #[test]
    fn whoever_is_killed_in_a_call_has_called() {
        let table = name("killed");
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        runtime.block_on(async {
            // Before the other pipe is at its place.
            let post = held(&table);
            assert!(!post.owes_a_call().unwrap());
            let waiting = [(); 2].map(|()| Taken::of(&table).unwrap().unwrap());
            let [quick, slow] = waiting;
            let called = Mode::RUSR | Mode::WUSR | CALLED;
            rustix::fs::fchmod(&post.writer, called).unwrap();
            kill(post);
            assert_eq!(quick.end().await.unwrap(), End::Killed);
            // Whoever comes next does it, for those who have not seen the end.
            let mut post = held(&table);
            assert!(post.owes_a_call().unwrap());
            post.call().unwrap();
            assert!(!post.owes_a_call().unwrap());
            assert_eq!(slow.end().await.unwrap(), End::Called);
            // When it is: as after a call that went well.
            let waiting = Taken::of(&table).unwrap().unwrap();
            post.call().unwrap();
            kill(post);
            assert_eq!(waiting.end().await.unwrap(), End::Called);
            forget(&table);
        });
    }
}
