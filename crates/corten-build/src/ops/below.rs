//! What a step's files are put on, for whoever only looks at it: a stack of layers that is mounted
//! to be read, and what has been put on that by layers which were composed since. Their content is
//! known, so that a step after them needs no mount of its own.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use corten_oci::DiffId;
use corten_store::rooted::RootFd;
use corten_store::{Store, StoreError, Upper};
use rustix::fs::{FileType, OFlags, Stat};
use rustix::io::Errno;

use super::compose::has_attributes;

/// Stacks that stay mounted: a build's stages mostly go on from few.
const MOUNTS: usize = 4;
/// Entries of all listings together, and of one: who has put more on something mounts it.
const LISTED: usize = 100_000;
const LISTED_OF_ONE: usize = 1000;

/// What there is in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) kind: FileType,
    /// Permission bits.
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: (i64, i64),
}

impl Node {
    #[allow(clippy::unnecessary_cast)] // the fields' types differ by architecture
    fn of(stat: &Stat) -> Self {
        Self {
            kind: FileType::from_raw_mode(stat.st_mode),
            mode: stat.st_mode & 0o7777,
            owner: (stat.st_uid, stat.st_gid),
            mtime: (stat.st_mtime as i64, stat.st_mtime_nsec as i64),
        }
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.kind == FileType::Directory
    }
}

/// All that a layer has.
pub(crate) type Listing = HashMap<PathBuf, Node>;

/// What is below a step, bottom first. A layer of `--link` knows nothing of what it is put on: it
/// may have a directory in the place of a link or a file, or the other way round, and then hides
/// what that leads to or has in it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Below {
    mount: Option<Arc<RootFd>>,
    listed: Vec<Arc<Listing>>,
}

/// What listings tell of a path.
enum Listed<'a> {
    Node(&'a Node),
    /// There is nothing, whatever is mounted has.
    Hidden,
    /// It is as in what is mounted.
    Not,
}

impl Below {
    fn listed(&self, path: &Path) -> Listed<'_> {
        for list in self.listed.iter().rev() {
            if let Some(node) = list.get(path) {
                return Listed::Node(node);
            }
            let is_leaf = |above: &Path| list.get(above).is_some_and(|node| !node.is_directory());
            if path.ancestors().skip(1).any(is_leaf) {
                return Listed::Hidden;
            }
        }
        Listed::Not
    }

    /// Opens what is mounted, if the listings tell nothing of it.
    fn mounted(&self, path: &Path, flags: OFlags) -> Option<io::Result<OwnedFd>> {
        let mount = self.mount.as_ref()?;
        matches!(self.listed(path), Listed::Not).then(|| mount.open_without_links(path, flags))
    }

    /// The root itself, which no layer has.
    pub(super) fn root(&self) -> io::Result<Node> {
        const NEW: Node = Node {
            kind: FileType::Directory,
            mode: 0o755,
            owner: (0, 0),
            mtime: (0, 0),
        };
        match &self.mount {
            Some(mount) => Ok(Node::of(&mount.stat(Path::new(""))?)),
            None => Ok(NEW),
        }
    }

    /// What has a path whose parent is a directory, reached without any link.
    pub(super) fn look(&self, path: &Path) -> io::Result<Option<Node>> {
        if let Listed::Node(node) = self.listed(path) {
            return Ok(Some(*node));
        }
        match self.mounted(path, OFlags::PATH | OFlags::NOFOLLOW) {
            None => Ok(None),
            Some(Ok(found)) => Ok(Some(Node::of(&rustix::fs::fstat(found)?))),
            // Its parent is of a listing alone.
            Some(Err(error)) if is_elsewhere(&error) => Ok(None),
            Some(Err(error)) => Err(error),
        }
    }

    /// Where a link leads that was found by [`look`](Self::look); `None`: that is not known.
    pub(super) fn link(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        let Some(link) = self.mounted(path, OFlags::PATH | OFlags::NOFOLLOW) else {
            return Ok(None);
        };
        let target = rustix::fs::readlinkat(link?, "", Vec::new())?;
        Ok(Some(OsString::from_vec(target.into_bytes()).into()))
    }

    /// Whether a directory that was found by [`look`](Self::look) has attributes that a layer
    /// would have to repeat.
    pub(super) fn has_attributes(&self, path: &Path) -> io::Result<bool> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        match self.mounted(path, flags) {
            None => Ok(false),
            Some(directory) => has_attributes(directory?),
        }
    }

    /// Where the files that have the names of users and groups can be read as they are.
    pub(crate) fn accounts(&self) -> Option<&RootFd> {
        let mount = self.mount.as_deref()?;
        let within = |list: &Arc<Listing>| list.keys().any(|path| path.starts_with("etc"));
        // What a link leads to may be in a listing.
        let is_link = |path: &str| {
            let stat = mount.lstat(Path::new(path));
            stat.is_ok_and(|stat| Node::of(&stat).kind == FileType::Symlink)
        };
        let places = ["etc", "etc/passwd", "etc/group"];
        let as_mounted = self.listed.is_empty()
            || !(self.listed.iter().any(within) || places.into_iter().any(is_link));
        as_mounted.then_some(mount)
    }
}

/// There is no such path, or something that is no directory on the way to it.
fn is_elsewhere(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP))
}

/// What a build knows of stacks.
#[derive(Debug, Default)]
pub(crate) struct Stacks(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// The last used at the end.
    mounts: Vec<(Vec<DiffId>, Arc<RootFd>)>,
    listings: HashMap<DiffId, Arc<Listing>>,
    listed: usize,
}

impl Known {
    /// What is known from the top of a stack down, and the number of layers below that are to be
    /// mounted.
    fn below(&mut self, stack: &[DiffId]) -> (Below, usize) {
        let mut below = Below::default();
        let mut height = stack.len();
        while height > 0 {
            if let Some(at) = self
                .mounts
                .iter()
                .position(|(of, _)| *of == stack[..height])
            {
                let used = self.mounts.remove(at);
                below.mount = Some(used.1.clone());
                self.mounts.push(used);
                height = 0;
                break;
            }
            let Some(listing) = self.listings.get(&stack[height - 1]) else {
                break;
            };
            below.listed.push(listing.clone());
            height -= 1;
        }
        below.listed.reverse();
        (below, height)
    }
}

impl Stacks {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is on a stack; of it is mounted only what is not known.
    pub(crate) fn below(&self, store: &Store, stack: &[DiffId]) -> Result<Below, StoreError> {
        let (mut below, height) = self.lock().below(stack);
        if height == 0 {
            return Ok(below);
        }
        let unknown = &stack[..height];
        let mount = store.layers().mount(unknown, Upper::ReadOnly)?;
        let mount = Arc::new(RootFd::from(mount));
        below.mount = Some(mount.clone());
        let mut known = self.lock();
        known.mounts.push((unknown.to_vec(), mount));
        if known.mounts.len() > MOUNTS {
            known.mounts.remove(0);
        }
        Ok(below)
    }

    /// Takes note of what a composed layer has.
    pub(crate) fn learn(&self, layer: &DiffId, listing: Listing) {
        let mut known = self.lock();
        let more = listing.len();
        if more <= LISTED_OF_ONE
            && known.listed + more <= LISTED
            && !known.listings.contains_key(layer)
        {
            known.listed += more;
            known.listings.insert(layer.clone(), Arc::new(listing));
        }
    }
}
