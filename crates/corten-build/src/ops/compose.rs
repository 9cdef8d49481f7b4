//! COPY of many files as a layer that is written at once, without a file of it being made on the
//! way: for each file that is made, a disk's journal has more to write than the file.
//!
//! It is for the plain case, where nothing of what is there already matters but the directories
//! that lead to the destination; whatever is less plain is written through an overlay
//! (`write`). Both ways lead to the same layer.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use corten_store::archive::{WHITEOUT, may_be_in_a_layer};
use corten_store::rooted::{RootFd, normal};
use corten_store::{Composer, Described};
use rustix::fs::{FileType, Mode, OFlags, Stat};

use super::content;
use super::tree::{Entry, Tree};
use super::walk;
use super::write::{Failure, Writer, on};
use crate::cache::now;

/// Files, and bytes of them, from which on it is worth it: a small layer is sooner mounted when
/// it is a directory.
const MANY: usize = 256;
const MUCH: u64 = 64 << 20;
/// Files, and bytes of a name, that are well within what a layer may have that is unpacked from a
/// tar. What is written file by file has no such bounds.
const MOST: usize = 1_000_000;
const LONGEST: usize = 1024;
/// The mode bit of a directory that gives its group.
const SET_GROUP: u32 = 0o2000;

/// What a layer is to have: a directory before what is in it, and what is in one in the order of
/// names.
#[derive(Debug)]
pub(crate) struct Plan<'a>(Vec<(PathBuf, Thing<'a>)>);

#[derive(Debug)]
enum Thing<'a> {
    /// A directory of below that has something in it now, or leads to it; with its time, unless
    /// it is now.
    Below(Stat, Option<(i64, i64)>),
    /// One that is made to lead to what is copied; the same.
    Made(Option<(i64, i64)>),
    Copied(&'a Entry),
}

/// Whether files are so many that it is worth a look whether it can be done.
pub(crate) fn is_worth_it(entries: &[Entry]) -> bool {
    let bytes = || {
        let sizes = entries.iter().map(|entry| entry.id.size);
        sizes.fold(0, u64::saturating_add)
    };
    entries.len() <= MOST && (entries.len() >= MANY || bytes() >= MUCH)
}

/// Why it is not the plain case.
type NotPlain = &'static str;

/// What the layer will have. `below` is what it lies on; `owner`, whose everything is to be.
pub(crate) fn plan<'a>(
    below: &RootFd,
    entries: &'a [Entry],
    destination: &Path,
    owner: Option<(u32, u32)>,
) -> io::Result<Result<Plan<'a>, NotPlain>> {
    let destination = normal(destination);
    let existing = match existing(below, &destination)? {
        Ok(existing) => existing,
        Err(why) => return Ok(Err(why)),
    };
    let above = existing.last().map_or(Path::new(""), |(path, _)| path);
    if owner.is_none() && below.stat(above)?.st_mode & SET_GROUP != 0 {
        return Ok(Err("a directory gives its group to those made in it"));
    }
    let there = existing.len() == destination.components().count();
    let taken = match there {
        true => names(below, &destination)?,
        false => HashSet::new(),
    };
    let known: HashSet<PathBuf> = existing.iter().map(|(path, _)| path.clone()).collect();
    let mut things = Things {
        list: Vec::with_capacity(entries.len()),
        known,
    };
    let mut time = None;
    for entry in entries {
        let is_directory = entry.kind == FileType::Directory;
        if is_directory && entry.to.as_os_str().is_empty() {
            // What is copied is what is in it; of several the first one's time counts, as where
            // each is written by itself.
            if !entry.path.as_os_str().is_empty() {
                time.get_or_insert(entry.mtime);
            }
            things.lead_to(&destination);
            continue;
        }
        let target = normal(&destination.join(&entry.to));
        if !is_plain(entry, &target, &taken, there) {
            return Ok(Err(
                "something is in the place of another, or no plain file",
            ));
        }
        things.lead_to(target.parent().unwrap_or(Path::new("")));
        things.list.push((target, Thing::Copied(entry)));
    }
    let mut list = things.list;
    let last = existing.len();
    for (number, (path, stat)) in (1..).zip(existing) {
        // Something is put into the last one; the others only lead to it.
        let at = (number < last).then(|| mtime(&stat));
        list.push((path, Thing::Below(stat, at)));
    }
    if let Some(time) = time {
        let of = list.iter_mut().find(|(path, _)| *path == destination);
        if let Some((_, Thing::Below(_, at) | Thing::Made(at))) = of {
            *at = Some(time);
        }
    }
    // No name has a NUL in it, so what is in a directory comes right behind it.
    list.sort_by_cached_key(|(path, _)| {
        let bytes = path.as_os_str().as_bytes().iter();
        bytes
            .map(|b| if *b == b'/' { 0 } else { *b })
            .collect::<Vec<u8>>()
    });
    list.dedup_by(|later, first| {
        // One that was to lead to something is copied as well.
        let same = later.0 == first.0;
        let made = |thing: &Thing<'_>| matches!(thing, Thing::Made(None));
        let copied = |thing: &Thing<'_>| matches!(thing, Thing::Copied(entry) if entry.kind == FileType::Directory);
        if same && made(&first.1) && copied(&later.1) {
            std::mem::swap(later, first);
            return true;
        }
        same && copied(&first.1) && made(&later.1)
    });
    let unclear = list.windows(2).any(|two| {
        let [(first, thing), (next, _)] = two else {
            return false;
        };
        let is_file = matches!(thing, Thing::Copied(entry) if entry.kind != FileType::Directory);
        first == next || (is_file && next.starts_with(first))
    });
    Ok(match (unclear, list.is_empty()) {
        (true, _) => Err("several are to be in one place"),
        (_, true) => Err("there is nothing"),
        _ => Ok(Plan(list)),
    })
}

struct Things<'a> {
    list: Vec<(PathBuf, Thing<'a>)>,
    /// Directories that are there, or are made.
    known: HashSet<PathBuf>,
}

impl Things<'_> {
    /// Has a directory made, and those above it.
    fn lead_to(&mut self, directory: &Path) {
        for above in directory.ancestors() {
            if above.as_os_str().is_empty() || self.known.contains(above) {
                return;
            }
            self.known.insert(above.to_owned());
            self.list.push((above.to_owned(), Thing::Made(None)));
        }
    }
}

/// Whether something is what it is wherever it is put, and in nothing's place.
fn is_plain(entry: &Entry, target: &Path, taken: &HashSet<OsString>, there: bool) -> bool {
    let kinds = [
        FileType::Directory,
        FileType::RegularFile,
        FileType::Symlink,
    ];
    let in_place_of = match entry.to.components().next() {
        Some(first) => taken.contains(first.as_os_str()),
        None => there,
    };
    let is_marker = |part: Component<'_>| part.as_os_str().as_bytes().starts_with(WHITEOUT);
    kinds.contains(&entry.kind)
        && !in_place_of
        && (1..=LONGEST).contains(&target.as_os_str().len())
        && !target.components().any(is_marker)
}

/// The directories on the way to the destination that are there, unless something else is, or they
/// have what a layer would have to repeat.
fn existing(
    below: &RootFd,
    destination: &Path,
) -> io::Result<Result<Vec<(PathBuf, Stat)>, NotPlain>> {
    let mut found = Vec::new();
    let mut path = PathBuf::new();
    for component in destination.components() {
        path.push(component);
        let stat = match below.lstat(&path) {
            Ok(stat) => stat,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Ok(Err("the way to it has something that is no directory"));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let directory = below.open_in_root(&path, flags, Mode::empty())?;
        if has_attributes(&directory)? {
            return Ok(Err("a directory on the way to it has attributes"));
        }
        found.push((path.clone(), stat));
    }
    Ok(Ok(found))
}

/// Whether there are attributes that a layer has to have; the labels that a host gives to every
/// file are none.
fn has_attributes(directory: impl AsFd) -> io::Result<bool> {
    let mut names = vec![0; 1 << 16];
    let length = match rustix::fs::flistxattr(&directory, &mut names) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(errno) => return Err(errno.into()),
    };
    let mut names = names[..length].split(|byte| *byte == 0);
    Ok(names.any(|name| may_be_in_a_layer(OsStr::from_bytes(name))))
}

fn names(below: &RootFd, dir: &Path) -> io::Result<HashSet<OsString>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let names = walk::names(below.open_in_root(dir, flags, Mode::empty())?)?;
    Ok(names.into_iter().map(|(name, _)| name).collect())
}

#[allow(clippy::unnecessary_cast)] // the fields' types differ by architecture
fn mtime(stat: &Stat) -> (i64, i64) {
    (stat.st_mtime as i64, stat.st_mtime_nsec as i64)
}

/// How, and when at the latest, in seconds since the epoch.
#[derive(Debug)]
pub(crate) struct Composing<'a> {
    pub(crate) writer: &'a Writer<'a>,
    pub(crate) last: Option<i64>,
}

impl Composing<'_> {
    /// Tells everything there is to be in the layer.
    pub(crate) fn write(
        &self,
        tree: &Tree,
        plan: &Plan<'_>,
        out: &mut Composer<'_>,
    ) -> Result<(), Failure> {
        let writer = self.writer;
        let now = now();
        let now = (now.div_euclid(1_000_000_000), now.rem_euclid(1_000_000_000));
        let mut links: HashMap<(u64, u64), &Path> = HashMap::new();
        for (path, thing) in &plan.0 {
            if writer.cancel.is_cancelled() {
                return Err((path.clone(), io::ErrorKind::Interrupted.into()));
            }
            match thing {
                Thing::Below(stat, at) => {
                    let owner = (stat.st_uid, stat.st_gid);
                    let described = self.described(stat.st_mode, owner, at.unwrap_or(now));
                    out.directory(path, &described)
                }
                Thing::Made(at) => {
                    let owner = writer.owner.unwrap_or((0, 0));
                    let described = self.described(writer.made(), owner, at.unwrap_or(now));
                    out.directory(path, &described)
                }
                Thing::Copied(entry) => {
                    let key = (entry.id.dev, entry.id.ino);
                    let is_file = entry.kind == FileType::RegularFile;
                    match links.get(&key).filter(|_| entry.linked && is_file) {
                        Some(first) => out.link(path, &self.of(entry), first),
                        None => {
                            links.extend((entry.linked && is_file).then_some((key, &**path)));
                            self.copy(tree, entry, path, out)
                        }
                    }
                }
            }
            .map_err(on(path))?;
        }
        Ok(())
    }

    fn copy(
        &self,
        tree: &Tree,
        entry: &Entry,
        path: &Path,
        out: &mut Composer<'_>,
    ) -> io::Result<()> {
        let described = self.of(entry);
        match entry.kind {
            FileType::Directory => out.directory(path, &described),
            FileType::Symlink => out.symlink(path, &described, &entry.target),
            _ => {
                let mut file = content::open(tree, entry)?;
                let mut xattrs: Vec<(OsString, Vec<u8>)> = Vec::new();
                if !tree.foreign {
                    let attributes = content::attributes(&file)?.into_iter();
                    xattrs.extend(attributes.map(|(key, value)| (key.into(), value)));
                }
                let described = Described {
                    xattrs: &xattrs,
                    ..described
                };
                out.file(path, &described, entry.id.size, &mut file)
                    .map_err(|error| match error.kind() {
                        io::ErrorKind::UnexpectedEof => io::Error::other(content::Changed),
                        _ => error,
                    })?;
                content::unchanged(entry, &file)
            }
        }
    }

    fn of(&self, entry: &Entry) -> Described<'static> {
        let mode = match entry.kind {
            FileType::Symlink => 0o777,
            _ => self.writer.mode_of(entry),
        };
        self.described(mode, self.writer.owner_of(entry), entry.mtime)
    }

    fn described(&self, mode: u32, (uid, gid): (u32, u32), time: (i64, i64)) -> Described<'static> {
        let (seconds, nanos) = match self.last {
            Some(last) if time > (last, 0) => (last, 0),
            _ => time,
        };
        Described {
            mode: mode & 0o7777,
            uid,
            gid,
            mtime: (seconds, u32::try_from(nanos).unwrap_or_default()),
            xattrs: &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use corten_dockerfile::IgnoreRules;
    use corten_store::{LayerForm, Store};

    use super::*;
    use crate::cancel::Cancel;
    use crate::ops::tree::Selection;

    #[test]
    fn what_ends_early_leaves_nothing() {
        if !rustix::process::geteuid().is_root() {
            return; // owners cannot be set
        }
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::create_dir_all(from.join("d")).unwrap();
        std::fs::create_dir_all(to.join("there")).unwrap();
        std::fs::write(from.join("d/f"), "one").unwrap();
        let tree = Tree {
            root: RootFd::open(&from).unwrap(),
            ignore: IgnoreRules::default(),
            foreign: true,
            remember: false,
        };
        let below = RootFd::open(&to).unwrap();
        let entries = tree.select(&Selection::of(&String::new(), true)).unwrap();
        let into = |path: &str, owner| plan(&below, &entries, Path::new(path), owner).unwrap();

        let database = dir.path().join("db");
        let database = corten_db::Database::open(&database, &[corten_store::SCHEMA]).unwrap();
        let store = Store::open_with(&dir.path().join("store"), database, LayerForm::Directory);
        let layers = store.layers();
        let compose = |cancel: &Cancel| {
            let writer = Writer::plain(&below, cancel);
            let composing = Composing {
                writer: &writer,
                last: None,
            };
            let plan = into("/there/new", None).unwrap();
            let made = layers.compose(|out| composing.write(&tree, &plan, out));
            made.unwrap().map_err(|(_, error)| error)
        };
        let cancel = Cancel::default();
        assert_eq!(compose(&cancel).unwrap().size, 3);
        let names_in = |name: &str| {
            let path = dir.path().join("store").join(name);
            std::fs::read_dir(path).unwrap().count()
        };
        let one = names_in("layers");
        std::fs::write(from.join("d/f"), "grown").unwrap();
        let error = compose(&cancel).unwrap_err();
        assert!(content::has_changed(&error), "{error}");
        cancel.cancel();
        let error = compose(&cancel).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        assert_eq!((names_in("tmp"), names_in("layers")), (0, one));

        let mode = |path: &Path, mode| {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(path, mode).unwrap();
        };
        for place in [to.join("there"), to.clone()] {
            mode(&place, 0o2755);
            for path in ["/there/new", "/other"] {
                let gives = (path == "/other") == (place == to);
                assert_eq!(into(path, None).is_err(), gives, "{path}");
                assert!(into(path, Some((0, 0))).is_ok());
            }
            mode(&place, 0o755);
        }
        assert!(plan(&below, &[], Path::new("/"), None).unwrap().is_err());
    }
}
