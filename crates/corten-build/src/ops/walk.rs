//! What is in the directories that COPY names, in the order of names. Where there are many, the
//! cores share them: to ask for the status of 100,000 files is what a look at such a context
//! takes.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;

use corten_dockerfile::{IgnoreRules, RulesAbove};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};

use super::tree::{Entry, SelectError, Tree, failed};

/// Directories that wait to be looked at before another thread is worth its start.
const WORTH_A_THREAD: usize = 8;
/// More threads only wait for the kernel.
const MOST_THREADS: usize = 8;

/// Finds what is below a directory.
pub(super) struct Walk<'a> {
    tree: &'a Tree,
    exclude: &'a IgnoreRules,
    /// The directory that COPY names: where the patterns of `--exclude` begin.
    source: &'a Path,
    most_threads: usize,
    /// More names than this are not looked at.
    at_most: Option<usize>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What there is in each directory, by its number.
    found: Vec<Vec<Found>>,
    todo: Vec<Directory>,
    /// Directories that are being looked at.
    busy: usize,
    /// How many names have been looked at.
    seen: usize,
    threads: usize,
    most_threads: usize,
    failure: Option<(PathBuf, SelectError)>,
}

/// A directory that is to be looked at.
struct Directory {
    number: usize,
    path: PathBuf,
    to: PathBuf,
}

enum Found {
    File(Entry),
    /// A directory, its number, and whether it counts only for what is in it.
    Directory(Entry, usize, bool),
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        tree: &'a Tree,
        exclude: &'a IgnoreRules,
        source: &'a Path,
        at_most: Option<usize>,
    ) -> Self {
        // A few are nothing to be shared.
        let most_threads = at_most.map_or_else(threads, |_| 1);
        Self {
            tree,
            exclude,
            source,
            most_threads,
            at_most,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Everything below the directory, each directory before what is in it.
    pub(super) fn below(self, to: &Path, into: &mut Vec<Entry>) -> Result<(), SelectError> {
        {
            let mut state = self.lock();
            state.found.push(Vec::new());
            state.threads = 1;
            state.most_threads = self.most_threads;
            state.todo.push(Directory {
                number: 0,
                path: self.source.to_owned(),
                to: to.to_owned(),
            });
        }
        std::thread::scope(|scope| self.work(scope));
        let state = self.state.into_inner();
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        match state.failure.take() {
            Some((_, error)) => Err(error),
            None => {
                gather(&mut state.found, 0, into);
                Ok(())
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at directories until there are no more.
    fn work<'s>(&'s self, scope: &'s Scope<'s, '_>) {
        let mut state = self.lock();
        loop {
            let Some(directory) = state.todo.pop() else {
                if state.busy == 0 {
                    self.changed.notify_all();
                    return;
                }
                let waited = self.changed.wait(state);
                state = waited.unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.busy += 1;
            let more = state.todo.len() >= WORTH_A_THREAD && state.threads < state.most_threads;
            state.threads += usize::from(more);
            // Who counts is alone.
            let left = self.at_most.map(|most| most.saturating_sub(state.seen));
            drop(state);
            let busy = Busy(self);
            if more {
                let another = std::thread::Builder::new().name("look".to_owned());
                if let Err(error) = another.spawn_scoped(scope, || self.work(scope)) {
                    tracing::debug!(%error, "no more threads to look through directories");
                    let mut state = self.lock();
                    state.threads -= 1;
                    state.most_threads = state.threads;
                }
            }
            let looked = self.look(&directory, left);
            drop(busy);
            state = self.lock();
            state.busy -= 1;
            match looked {
                Ok((found, names)) => {
                    state.seen += names;
                    state.add(directory, found);
                }
                Err((path, error)) => state.fail(path, error),
            }
            if state.threads > 1 {
                self.changed.notify_all();
            }
        }
    }

    /// What is in one directory, and how many names that took; the numbers of directories in it
    /// are still to be given.
    fn look(
        &self,
        directory: &Directory,
        at_most: Option<usize>,
    ) -> Result<(Vec<Found>, usize), (PathBuf, SelectError)> {
        let Directory { path: dir, to, .. } = directory;
        let on = |path: &Path, error: io::Error| (path.to_owned(), failed(path, error));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK;
        let opened = self.tree.root.open_in_root(dir, flags, Mode::empty());
        let fd = opened.map_err(|error| on(dir, error))?;
        let names = names_at_most(&fd, at_most).map_err(|error| on(dir, error))?;
        let Some(names) = names else {
            return Err((dir.clone(), SelectError::Many));
        };
        let rules = Rules::of(self, dir);
        let count = names.len();
        let mut found = Vec::with_capacity(count);
        for (name, kind) in names {
            let path = dir.join(&name);
            let left_out = rules.leave_out(self, &path);
            // What is left out by what it is called need not be asked for; a directory may have
            // something in it that is not.
            let known = !matches!(kind, FileType::Unknown | FileType::Directory);
            if left_out && known {
                continue;
            }
            let stat = rustix::fs::statat(&fd, &name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| on(&path, error.into()))?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            if kind == FileType::Socket {
                continue; // belongs to a process, not to an image
            }
            let to = to.join(&name);
            if kind == FileType::Directory {
                if left_out && !self.may_keep_below(&path) {
                    continue;
                }
                let entry = self.tree.entry(path, to, &stat);
                found.push(Found::Directory(entry, 0, left_out));
            } else if !left_out {
                let mut entry = self.tree.entry(path, to, &stat);
                if kind == FileType::Symlink {
                    let target = rustix::fs::readlinkat(&fd, &name, Vec::new())
                        .map_err(|error| on(&entry.path, error.into()))?;
                    entry.target = PathBuf::from(OsStr::from_bytes(target.as_bytes()));
                }
                found.push(Found::File(entry));
            }
        }
        Ok((found, count))
    }

    /// Whether something below a directory that is left out may be kept.
    fn may_keep_below(&self, path: &Path) -> bool {
        let below = self.below_source(path);
        self.tree.ignore.may_keep_below(&path.to_string_lossy())
            || self.exclude.may_keep_below(&below.to_string_lossy())
    }

    fn below_source<'p>(&self, path: &'p Path) -> &'p Path {
        path.strip_prefix(self.source).unwrap_or(path)
    }
}

/// Who panics while looking at a directory does not come back: nobody is to wait for it.
struct Busy<'w, 'a>(&'w Walk<'a>);

impl Drop for Busy<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut state = self.0.lock();
            state.busy -= 1;
            state.todo.clear();
            self.0.changed.notify_all();
        }
    }
}

impl State {
    /// Notes what a directory has in it; what is in those of them is to be looked at next.
    fn add(&mut self, directory: Directory, mut found: Vec<Found>) {
        if self.failure.is_some() {
            return;
        }
        for entry in found.iter_mut().rev() {
            if let Found::Directory(entry, number, _) = entry {
                *number = self.found.len();
                self.found.push(Vec::new());
                self.todo.push(Directory {
                    number: *number,
                    path: entry.path.clone(),
                    to: entry.to.clone(),
                });
            }
        }
        self.found[directory.number] = found;
    }

    /// Of several failures the first in the order of names is told of.
    fn fail(&mut self, path: PathBuf, error: SelectError) {
        self.todo.clear();
        if self.failure.as_ref().is_none_or(|(first, _)| path < *first) {
            self.failure = Some((path, error));
        }
    }
}

/// Puts everything in one list.
fn gather(found: &mut [Vec<Found>], number: usize, into: &mut Vec<Entry>) {
    for entry in std::mem::take(&mut found[number]) {
        match entry {
            Found::File(entry) => into.push(entry),
            Found::Directory(entry, number, left_out) => {
                let before = into.len();
                into.push(entry);
                gather(found, number, into);
                if left_out && into.len() == before + 1 {
                    into.truncate(before); // nothing in it was kept
                }
            }
        }
    }
}

/// The rules of `.dockerignore` and `--exclude`, as seen from one directory.
struct Rules {
    ignore: RulesAbove,
    exclude: RulesAbove,
}

impl Rules {
    fn of(walk: &Walk<'_>, dir: &Path) -> Self {
        let below = walk.below_source(dir);
        Self {
            ignore: walk.tree.ignore.above(&dir.to_string_lossy()),
            exclude: walk.exclude.above(&below.to_string_lossy()),
        }
    }

    /// Whether something in the directory is left out.
    fn leave_out(&self, walk: &Walk<'_>, path: &Path) -> bool {
        let (ignore, exclude) = (&walk.tree.ignore, walk.exclude);
        (!ignore.is_empty() && ignore.ignores_in(&self.ignore, &path.to_string_lossy()))
            || (!exclude.is_empty()
                && exclude.ignores_in(&self.exclude, &walk.below_source(path).to_string_lossy()))
    }
}

fn threads() -> usize {
    cores().min(MOST_THREADS)
}

/// Cores of this process: to say how many takes a dozen system calls.
pub(super) fn cores() -> usize {
    static CORES: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// Names in an open directory, sorted, with what they are as far as the directory tells.
pub(super) fn names(fd: impl AsFd) -> io::Result<Vec<(OsString, FileType)>> {
    Ok(names_at_most(fd, None)?.unwrap_or_default())
}

/// The same, but nothing where there are more.
pub(super) fn names_at_most(
    fd: impl AsFd,
    most: Option<usize>,
) -> io::Result<Option<Vec<(OsString, FileType)>>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(fd)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            if most == Some(names.len()) {
                return Ok(None);
            }
            names.push((OsStr::from_bytes(name).to_owned(), entry.file_type()));
        }
    }
    names.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok(Some(names))
}

#[cfg(test)]
mod tests {
    use corten_store::rooted::RootFd;

    use super::*;
    use crate::ops::tree::Selection;

    #[test]
    fn many_directories_are_one_list() {
        let dir = tempfile::tempdir().unwrap();
        let mut expected = Vec::new();
        for n in 0..300 {
            let path = format!("d{}/e{}/f{}", n % 40, n % 3, n);
            let file = dir.path().join(&path);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, "x").unwrap();
            if n % 40 != 7 || n % 3 == 1 {
                expected.push(PathBuf::from(path));
            }
        }
        expected.sort();
        let tree = Tree {
            root: RootFd::open(dir.path()).unwrap(),
            ignore: IgnoreRules::parse("d7\n!d7/e1\n**/e0/f1\n").unwrap(),
            foreign: true,
            remember: false,
        };
        let whole = String::new();
        let found = tree.select(&Selection::of(&whole, true)).unwrap();
        let files = found.iter().filter(|e| e.kind == FileType::RegularFile);
        let files: Vec<_> = files.map(|entry| entry.to.clone()).collect();
        assert_eq!(files, expected);
        // Each directory before what is in it, and none that has nothing.
        for file in &files {
            let place = |path: &Path| found.iter().position(|entry| entry.to == path);
            let parent = file.parent().unwrap();
            assert!(place(parent).unwrap() < place(file).unwrap());
        }
        assert!(!found.iter().any(|entry| entry.to.ends_with("d7/e0")));
        let whole = |threads| {
            let none = IgnoreRules::default();
            let mut walk = Walk::new(&tree, &none, Path::new(""), None);
            walk.most_threads = threads;
            let mut into = Vec::new();
            walk.below(Path::new(""), &mut into).map(|()| into)
        };
        let list = |entries: &[Entry]| -> Vec<_> {
            let paths = entries.iter().map(|entry| entry.path.clone());
            paths.collect()
        };
        let alone = whole(1).unwrap();
        let few = |most| {
            let none = IgnoreRules::default();
            let mut into = Vec::new();
            Walk::new(&tree, &none, Path::new(""), Some(most))
                .below(Path::new(""), &mut into)
                .map(|()| into)
        };
        // What is left out is looked at, too.
        let all = {
            let (mut count, mut dirs) = (0, vec![dir.path().to_owned()]);
            while let Some(dir) = dirs.pop() {
                for entry in std::fs::read_dir(dir).unwrap().flatten() {
                    let path = entry.path();
                    // Nothing of these is ever kept, so they are not gone into.
                    let closed = [Path::new("d7/e0"), Path::new("d7/e2")];
                    let is_closed = closed.iter().any(|closed| path.ends_with(closed));
                    count += 1;
                    if entry.file_type().unwrap().is_dir() && !is_closed {
                        dirs.push(path);
                    }
                }
            }
            count
        };
        assert!(all > alone.len());
        assert_eq!(list(&few(all).unwrap()), list(&alone));
        assert!(matches!(few(all - 1), Err(SelectError::Many)));
        assert_eq!(list(&whole(5).unwrap()), list(&alone));
        assert!(alone.len() > files.len());
        // One fails, whose path is too long for the kernel: all end.
        let mut deep = std::os::fd::OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        for _ in 0..20 {
            let name = "n".repeat(250);
            rustix::fs::mkdirat(&deep, &name, Mode::RWXU).unwrap();
            deep = rustix::fs::openat(&deep, &name, OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        for threads in [1, 5] {
            whole(threads).unwrap_err();
        }
    }
}
