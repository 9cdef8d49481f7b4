//! COPY, and WORKDIR, as a layer that is written at once: nothing is mounted to be written to, and
//! of many files none is made on the way. For each file that is made a disk's journal has more to
//! write than the file, and a mount takes longer than a small file.
//!
//! It is for the plain case, where of what is there already only directories matter, and files
//! that give way to files; whatever is less plain is written through an overlay (`write`). Both
//! ways lead to the same layer.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use corten_store::Bulk;
use corten_store::archive::{WHITEOUT, may_be_in_a_layer};
use corten_store::rooted::normal;
use rustix::fs::FileType;

use super::below::{Below, Node};
use super::tree::Entry;
use super::write::Manner;

/// Files, and bytes of them, from which on a layer is an image where that can be: a small one is
/// sooner mounted when it is a directory.
const MANY: usize = 256;
const MUCH: u64 = 64 << 20;
/// Bytes that are not worth threads.
const LITTLE: u64 = 1 << 20;
/// Files, and bytes of a name, that are well within what a layer may have that is unpacked from a
/// tar. What is written file by file has no such bounds.
const MOST: usize = 1_000_000;
const LONGEST: usize = 1024;
/// The mode bit of a directory that gives its group.
const SET_GROUP: u32 = 0o2000;
/// Links on the way to a destination that are followed.
const LINKS: usize = 40;

/// What a layer is to have: a directory before what is in it, and what is in one in the order of
/// names.
#[derive(Debug)]
pub(crate) struct Plan<'a>(pub(super) Vec<(PathBuf, Thing<'a>)>);

#[derive(Debug)]
pub(super) enum Thing<'a> {
    /// A directory of below that has something in it now, or leads to it; with its time, unless
    /// it is now.
    Below(Node, Option<(i64, i64)>),
    /// One that is made to lead to what is copied; the same.
    Made(Option<(i64, i64)>),
    Copied(&'a Entry),
    /// A file whose content the Dockerfile gives.
    Inline(&'a str),
}

/// How much there is to be copied.
pub(crate) fn bulk(entries: &[Entry]) -> Bulk {
    let sizes = entries.iter().map(|entry| entry.id.size);
    let bytes = sizes.fold(0, u64::saturating_add);
    match bytes {
        _ if entries.len() >= MANY || bytes >= MUCH => Bulk::Large,
        0..=LITTLE => Bulk::Small,
        _ => Bulk::Medium,
    }
}

/// Why it is not the plain case.
pub(crate) type NotPlain = &'static str;

/// Where something is to be put.
#[derive(Debug)]
pub(crate) struct Destination {
    /// From the root, without links.
    path: PathBuf,
    root: Node,
    /// The directories on the way that are there, it itself included.
    there: Vec<(PathBuf, Node)>,
    /// It is there, and no directory.
    taken: bool,
}

impl Destination {
    /// Whether it is a directory that is there.
    pub(crate) fn is_directory(&self) -> bool {
        !self.taken && self.there.len() == self.path.components().count()
    }
}

/// Finds a destination; links that lead to directories are followed, in the root.
pub(crate) fn destination(below: &Below, path: &Path) -> io::Result<Result<Destination, NotPlain>> {
    let mut path = normal(path);
    let root = below.root()?;
    let mut there: Vec<(PathBuf, Node)> = Vec::new();
    // Components that have to be there, as a link leads to them.
    let (mut promised, mut links) = (0, 0);
    loop {
        let depth = there.len();
        let Some(next) = path.components().nth(depth) else {
            break;
        };
        let here = match there.last() {
            Some((above, _)) => above.join(next),
            None => PathBuf::from(next.as_os_str()),
        };
        let is_last = depth + 1 == path.components().count();
        match below.look(&here)? {
            None if depth < promised => return Ok(Err("a link on the way to it leads nowhere")),
            None => break,
            Some(node) if node.is_directory() => {
                if below.has_attributes(&here)? {
                    return Ok(Err("a directory on the way to it has attributes"));
                }
                there.push((here, node));
            }
            Some(node) if node.kind == FileType::Symlink => {
                let target = below.link(&here)?;
                let Some(target) = target.filter(|to| links < LINKS && is_followed(to)) else {
                    return Ok(Err("the way to it has a link that is not followed"));
                };
                links += 1;
                let rest: PathBuf = path.components().skip(depth + 1).collect();
                let leads = normal(&parent(&here).join(target));
                promised = leads.components().count() + promised.saturating_sub(depth + 1);
                path = leads.join(rest);
                there.clear();
            }
            Some(_) if is_last && depth >= promised => {
                return Ok(Ok(Destination {
                    path,
                    root,
                    there,
                    taken: true,
                }));
            }
            Some(_) => return Ok(Err("the way to it has something that is no directory")),
        }
    }
    Ok(Ok(Destination {
        path,
        root,
        there,
        taken: false,
    }))
}

/// Whether the target of a link, in a directory that is reached without any, is what is written:
/// `..` behind a name may lead elsewhere, if the name is a link.
fn is_followed(target: &Path) -> bool {
    let is_up = |part: &Component<'_>| *part == Component::ParentDir;
    let mut parts = target.components().skip_while(is_up);
    !parts.any(|part| is_up(&part))
}

/// What the layer of a COPY will have.
pub(crate) fn plan<'a>(
    below: &Below,
    destination: &Destination,
    entries: &'a [Entry],
    inline: &'a [(PathBuf, &'a str)],
    manner: &Manner<'_>,
) -> io::Result<Result<Plan<'a>, NotPlain>> {
    if entries.len() > MOST {
        return Ok(Err("there are too many"));
    }
    let mut things = Things::new(below, destination, manner, entries.len());
    let place = &destination.path;
    let mut time = None;
    for entry in entries {
        let is_directory = entry.kind == FileType::Directory;
        if is_directory && entry.to.as_os_str().is_empty() {
            if destination.taken {
                return Ok(Err("a directory is to be in the place of something else"));
            }
            // What is copied is what is in it; of several the first one's time counts, as where
            // each is written by itself.
            if !entry.path.as_os_str().is_empty() {
                time.get_or_insert(entry.mtime);
            }
            if let Err(why) = things.lead_to(place)? {
                return Ok(Err(why));
            }
            continue;
        }
        let target = normal(&place.join(&entry.to));
        if let Err(why) = things.put(target, Thing::Copied(entry))? {
            return Ok(Err(why));
        }
    }
    for (to, content) in inline {
        let target = normal(&place.join(to));
        if let Err(why) = things.put(target, Thing::Inline(content))? {
            return Ok(Err(why));
        }
    }
    Ok(things.plan(place, time))
}

/// What the layer of a WORKDIR will have; `None`: the directory is there.
pub(crate) fn plan_directory(
    below: &Below,
    destination: &Destination,
    manner: &Manner<'_>,
) -> io::Result<Result<Option<Plan<'static>>, NotPlain>> {
    if destination.taken {
        return Ok(Err("something else is in its place"));
    }
    if destination.is_directory() {
        return Ok(Ok(None));
    }
    let mut things = Things::new(below, destination, manner, 0);
    if let Err(why) = things.lead_to(&destination.path)? {
        return Ok(Err(why));
    }
    Ok(things.plan(&destination.path, None).map(Some))
}

struct Things<'a, 'b> {
    below: &'b Below,
    manner: &'b Manner<'b>,
    list: Vec<(PathBuf, Thing<'a>)>,
    /// Directories that are there, or are made.
    known: HashSet<PathBuf>,
    /// Those that are there, and whether they have something new in them.
    old: HashMap<PathBuf, (Node, bool)>,
    /// Those that give their group to what is made in them.
    giving: HashSet<PathBuf>,
}

impl<'a, 'b> Things<'a, 'b> {
    fn new(
        below: &'b Below,
        destination: &Destination,
        manner: &'b Manner<'b>,
        count: usize,
    ) -> Self {
        let mut things = Self {
            below,
            manner,
            list: Vec::with_capacity(count),
            known: HashSet::new(),
            old: HashMap::new(),
            giving: HashSet::new(),
        };
        things.was_there(PathBuf::new(), destination.root);
        for (path, node) in &destination.there {
            things.was_there(path.clone(), *node);
        }
        things
    }

    fn was_there(&mut self, path: PathBuf, node: Node) {
        if node.mode & SET_GROUP != 0 {
            self.giving.insert(path.clone());
        }
        self.known.insert(path.clone());
        self.old.insert(path, (node, false));
    }

    /// What is in a place whose parent is known.
    fn look(&self, path: &Path) -> io::Result<Option<Node>> {
        match self.old.contains_key(parent(path)) {
            true => self.below.look(path),
            false => Ok(None), // its parent is new
        }
    }

    /// Something new is in a directory.
    fn changes(&mut self, directory: &Path) {
        if let Some((_, changed)) = self.old.get_mut(directory) {
            *changed = true;
        }
    }

    /// Has a directory made, and those above it.
    fn lead_to(&mut self, directory: &Path) -> io::Result<Result<(), NotPlain>> {
        let unknown = directory
            .ancestors()
            .take_while(|path| !path.as_os_str().is_empty() && !self.known.contains(*path));
        let unknown: Vec<&Path> = unknown.collect();
        for path in unknown.into_iter().rev() {
            match self.look(path)? {
                Some(node) if !node.is_directory() => {
                    return Ok(Err("the way to something has what is no directory"));
                }
                Some(_) if self.below.has_attributes(path)? => {
                    return Ok(Err("a directory on the way to something has attributes"));
                }
                Some(node) => self.was_there(path.to_owned(), node),
                None => {
                    let above = parent(path);
                    if self.manner.owner.is_none() && self.giving.contains(above) {
                        return Ok(Err("a directory gives its group to those made in it"));
                    }
                    self.changes(above);
                    self.known.insert(path.to_owned());
                    self.list.push((path.to_owned(), Thing::Made(None)));
                }
            }
        }
        Ok(Ok(()))
    }

    /// Has something made, and what leads to it.
    fn put(&mut self, target: PathBuf, thing: Thing<'a>) -> io::Result<Result<(), NotPlain>> {
        let kind = match &thing {
            Thing::Copied(entry) => entry.kind,
            _ => FileType::RegularFile,
        };
        if !is_plain(kind, &target) {
            return Ok(Err("something is no plain file"));
        }
        let above = parent(&target);
        if let Err(why) = self.lead_to(above)? {
            return Ok(Err(why));
        }
        let is_directory = kind == FileType::Directory;
        let there = match self.known.contains(&target) {
            // Made before it was copied: what becomes of that is seen in the end.
            true if !self.old.contains_key(&target) => None,
            _ => self.look(&target)?,
        };
        let follows = matches!(&thing, Thing::Copied(entry) if entry.named && !is_directory);
        match there {
            Some(node) if node.is_directory() != is_directory => {
                return Ok(Err("something is in the place of another"));
            }
            Some(node) if node.kind == FileType::Symlink && follows => {
                return Ok(Err("a link is in the place of what would follow it"));
            }
            Some(node) if is_directory => {
                if self.below.has_attributes(&target)? {
                    return Ok(Err("a directory that is copied to has attributes"));
                }
                self.was_there(target.clone(), node);
            }
            _ => self.changes(parent(&target)),
        }
        if let Thing::Copied(entry) = &thing
            && is_directory
        {
            // As it is from now on.
            match self.manner.mode_of(entry) & SET_GROUP {
                0 => self.giving.remove(&target),
                _ => self.giving.insert(target.clone()),
            };
            self.known.insert(target.clone());
        }
        self.list.push((target, thing));
        Ok(Ok(()))
    }

    /// All of it in its order. `time`: the destination's, where it takes after what is copied.
    fn plan(self, destination: &Path, time: Option<(i64, i64)>) -> Result<Plan<'a>, NotPlain> {
        let mut list = self.list;
        let listed: HashSet<PathBuf> = list.iter().map(|(path, _)| path.clone()).collect();
        let mut leading: HashSet<&Path> = HashSet::new();
        // A destination takes the time of what is copied to it, even where that is empty.
        let dated = time.map(|_| destination);
        for path in listed.iter().map(PathBuf::as_path).chain(dated) {
            let above = path.ancestors();
            leading.extend(above.take_while(|path| !path.as_os_str().is_empty()));
        }
        for (path, (node, changed)) in self.old {
            // One that nothing is in is not in the layer.
            if leading.contains(&*path) && !listed.contains(&path) {
                // What only leads to something keeps its time.
                let at = (!changed).then_some(node.mtime);
                list.push((path, Thing::Below(node, at)));
            }
        }
        if let Some(time) = time {
            let of = list.iter_mut().find(|(path, _)| path == destination);
            if let Some((_, Thing::Below(_, at) | Thing::Made(at))) = of {
                *at = Some(time);
            }
        }
        in_order(&mut list);
        let unclear = list.windows(2).any(|two| {
            let [(first, thing), (next, _)] = two else {
                return false;
            };
            let is_file = match thing {
                Thing::Copied(entry) => entry.kind != FileType::Directory,
                Thing::Inline(_) => true,
                Thing::Below(..) | Thing::Made(_) => false,
            };
            first == next || (is_file && next.starts_with(first))
        });
        match (unclear, list.is_empty()) {
            (true, _) => Err("several are to be in one place"),
            (_, true) => Err("there is nothing"),
            _ => Ok(Plan(list)),
        }
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// Sorts things; a directory that was to lead to something and is copied as well is one.
fn in_order(list: &mut Vec<(PathBuf, Thing<'_>)>) {
    // No name has a NUL in it, so what is in a directory comes right behind it.
    list.sort_by_cached_key(|(path, _)| {
        let bytes = path.as_os_str().as_bytes().iter();
        bytes
            .map(|b| if *b == b'/' { 0 } else { *b })
            .collect::<Vec<u8>>()
    });
    list.dedup_by(|later, first| {
        let same = later.0 == first.0;
        let made = |thing: &Thing<'_>| matches!(thing, Thing::Made(None));
        let copied = |thing: &Thing<'_>| matches!(thing, Thing::Copied(entry) if entry.kind == FileType::Directory);
        if same && made(&first.1) && copied(&later.1) {
            std::mem::swap(later, first);
            return true;
        }
        same && copied(&first.1) && made(&later.1)
    });
}

/// Whether something is what it is wherever it is put.
fn is_plain(kind: FileType, target: &Path) -> bool {
    let kinds = [
        FileType::Directory,
        FileType::RegularFile,
        FileType::Symlink,
    ];
    let is_marker = |part: Component<'_>| part.as_os_str().as_bytes().starts_with(WHITEOUT);
    kinds.contains(&kind)
        && (1..=LONGEST).contains(&target.as_os_str().len())
        && !target.components().any(is_marker)
}

/// Whether there are attributes that a layer has to have; the labels that a host gives to every
/// file are none.
pub(super) fn has_attributes(directory: impl AsFd) -> io::Result<bool> {
    let mut names = vec![0; 1 << 16];
    let length = match rustix::fs::flistxattr(&directory, &mut names) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(errno) => return Err(errno.into()),
    };
    let mut names = names[..length].split(|byte| *byte == 0);
    Ok(names.any(|name| may_be_in_a_layer(OsStr::from_bytes(name))))
}
