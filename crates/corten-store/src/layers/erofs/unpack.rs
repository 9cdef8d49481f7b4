//! Unpacking a layer's tar into an image: content goes straight to the file, names and
//! attributes into a tree.
//!
//! What the tar says has the same outcome as with a directory (`layers/apply.rs`): later
//! entries win, names go through the layer's own symbolic links, nothing leaves the root.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use tar::EntryType;

use super::resolve::Nowhere;
use super::tree::{self, Attributes, Kind, NodeId, Tree};
use super::writer::ImageWriter;
use super::{MAX_NAME, inode, xattr};
use crate::archive;
use crate::error::StoreError;
use crate::layers::entry::{self, Budget, MAX_PATH, OPAQUE_MARKER, WHITEOUT, invalid, link_name};
use crate::layers::pending::Pending;
use crate::rooted::normal;

/// Unpacks `tar`; the tree is to be written with [`ImageWriter::finish`].
pub(in crate::layers) fn unpack(
    tar: impl Read,
    image: &mut ImageWriter,
) -> Result<(Tree, u64, Pending), StoreError> {
    let mut unpacker = Unpacker {
        tree: Tree::new(),
        image,
        content: 0,
        budget: Budget::default(),
        parent: None,
    };
    entry::each(tar, |path, entry, attributes| {
        unpacker.entry(path, entry, attributes)
    })?;
    let mut tree = unpacker.tree;
    let content = unpacker.content;
    let pending = take_pending(&mut tree);
    Ok((tree, content, pending))
}

struct Unpacker<'a> {
    tree: Tree,
    image: &'a mut ImageWriter,
    content: u64,
    budget: Budget,
    /// The directory of the last entry, until something that may have led to it is replaced.
    parent: Option<(PathBuf, NodeId)>,
}

impl Unpacker<'_> {
    fn entry<R: Read>(
        &mut self,
        path: &Path,
        entry: &mut archive::Entry<'_, '_, R>,
        attributes: entry::Attributes,
    ) -> io::Result<()> {
        self.account(path, &attributes)?;
        let kind = entry.header().entry_type();
        let Some(name) = path.file_name() else {
            return self.root(kind, attributes);
        };
        let name = name.as_bytes();
        let parent = self.parent(path.parent().unwrap_or(Path::new("")))?;
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            self.whiteout(parent, name, hidden);
            return Ok(());
        }
        if kind == EntryType::Directory {
            return self.directory(parent, name, attributes);
        }
        let made = match kind {
            EntryType::Symlink => {
                let target = link_name(entry)?;
                if target.len() > MAX_PATH {
                    return Err(io::ErrorKind::InvalidFilename.into());
                }
                self.budget.node(target.len())?;
                Kind::Symlink(target.into())
            }
            EntryType::Link => {
                let target = normal(Path::new(OsStr::from_bytes(&link_name(entry)?)));
                return self.link(parent, name, path, &target);
            }
            EntryType::Char | EntryType::Block => {
                let (major, minor) = entry::device(entry)?;
                if inode::device(major, minor).is_none() {
                    return Err(invalid(format!("device {major}:{minor} cannot be")));
                }
                if kind == EntryType::Char {
                    Kind::CharDevice(major, minor)
                } else {
                    Kind::BlockDevice(major, minor)
                }
            }
            EntryType::Fifo => Kind::Fifo,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let (size, content) = entry::content(entry, &attributes);
                let data = self.image.file(size, content)?;
                self.content += size;
                Kind::File { size, data }
            }
            other => return Err(entry::unknown(other)),
        };
        let attributes = converted(attributes, &made)?;
        let id = self.tree.add(made, attributes);
        self.put(parent, name, id);
        Ok(())
    }

    /// Bounds what one entry keeps in memory, and what all do.
    fn account(&mut self, path: &Path, attributes: &entry::Attributes) -> io::Result<()> {
        let length = path.as_os_str().len();
        let name = path.file_name().map_or(0, OsStr::len);
        if length > MAX_PATH || name > MAX_NAME {
            return Err(io::ErrorKind::InvalidFilename.into());
        }
        let xattrs = attributes.xattrs.iter();
        let xattrs: usize = xattrs.map(|(k, v)| k.len() + v.len()).sum();
        self.budget.node(length + xattrs)
    }

    fn root(&mut self, kind: EntryType, attributes: entry::Attributes) -> io::Result<()> {
        if kind != EntryType::Directory {
            return Err(invalid("the root is no directory"));
        }
        self.attribute(Tree::ROOT, attributes)
    }

    fn directory(
        &mut self,
        parent: NodeId,
        name: &[u8],
        attributes: entry::Attributes,
    ) -> io::Result<()> {
        let id = match self.tree.child(parent, name) {
            Some(there) if self.tree.is_directory(there) => there,
            there => {
                let kind = Kind::Directory(Default::default());
                let id = self.tree.add(kind, Attributes::default());
                self.put(parent, name, id);
                if there.is_some() {
                    // A whiteout or a file of that name took away what is below.
                    self.tree.set_opaque(id);
                }
                id
            }
        };
        self.attribute(id, attributes)
    }

    /// Gives a directory, perhaps one that was there before, its attributes.
    fn attribute(&mut self, id: NodeId, attributes: entry::Attributes) -> io::Result<()> {
        let new = converted(attributes, &self.tree.node(id).kind)?;
        let node = self.tree.node_mut(id);
        node.implied = false;
        let mut xattrs = std::mem::take(&mut node.attributes.xattrs);
        for (key, value) in new.xattrs {
            tree::set_xattr(&mut xattrs, key, value);
        }
        node.attributes = Attributes { xattrs, ..new };
        storable(&node.attributes.xattrs)
    }

    fn whiteout(&mut self, parent: NodeId, name: &[u8], hidden: &[u8]) {
        if name == OPAQUE_MARKER {
            self.tree.set_opaque(parent);
        } else if let Some(there) = self.tree.child(parent, hidden)
            && self.tree.is_directory(there)
        {
            // What the layer itself has in it stays; of below there is nothing.
            self.tree.set_opaque(there);
            self.tree.node_mut(there).implied = false;
        } else if !(matches!(hidden, b"" | b"." | b"..")
            // AUFS's own bookkeeping (.wh..wh.plnk, …), which image-spec says to ignore.
            || hidden.starts_with(WHITEOUT)
            // The layer itself has something of that name: only what is below is hidden.
            || self.tree.child(parent, hidden).is_some())
        {
            let id = self.tree.add(Kind::CharDevice(0, 0), Attributes::default());
            self.tree.insert(parent, hidden, id);
        }
    }

    fn link(&mut self, parent: NodeId, name: &[u8], path: &Path, target: &Path) -> io::Result<()> {
        if target == path {
            return Ok(());
        }
        let Some(file) = target.file_name() else {
            return Err(invalid("a hard link to the root"));
        };
        let there = match self
            .tree
            .directory(target.parent().unwrap_or(Path::new("")))
        {
            Ok(directory) => self.tree.child(directory, file.as_bytes()),
            Err(Nowhere::Missing) => None,
            Err(other) => return Err(other.into()),
        };
        let id = match there {
            None => {
                let (from, to) = (path.as_os_str().len(), target.as_os_str().len());
                self.budget.node(to)?;
                self.budget.pending(from + to)?;
                let kind = Kind::Foreign(target.to_owned());
                self.tree.add(kind, Attributes::default())
            }
            Some(id) if self.tree.is_directory(id) => {
                return Err(invalid("a hard link to a directory"));
            }
            Some(id) => id,
        };
        self.put(parent, name, id);
        Ok(())
    }

    /// Names a node; whatever had the name is gone.
    fn put(&mut self, parent: NodeId, name: &[u8], id: NodeId) {
        if self.tree.child(parent, name).is_some() {
            self.parent = None;
        }
        self.tree.insert(parent, name, id);
    }

    fn parent(&mut self, path: &Path) -> io::Result<NodeId> {
        if let Some((cached, id)) = &self.parent
            && cached == path
        {
            return Ok(*id);
        }
        let budget = &mut self.budget;
        let id = self.tree.make_directory(path, |implied| {
            budget.node(implied)?;
            budget.pending(implied)
        })?;
        self.parent = Some((path.to_owned(), id));
        Ok(id)
    }
}

fn storable(xattrs: &[xattr::Xattr]) -> io::Result<()> {
    match xattr::size(xattrs) {
        Some(_) => Ok(()),
        None => Err(invalid("its extended attributes are too large")),
    }
}

fn converted(attributes: entry::Attributes, kind: &Kind) -> io::Result<Attributes> {
    // user.* is for files and directories, as everywhere.
    let user = matches!(kind, Kind::File { .. } | Kind::Directory(_));
    let mut xattrs = Vec::new();
    for (key, value) in attributes.xattrs {
        if user || !key.as_bytes().starts_with(b"user.") {
            tree::set_xattr(&mut xattrs, key, value);
        }
    }
    storable(&xattrs)?;
    Ok(Attributes {
        mode: u16::try_from(attributes.mode & 0o7777).unwrap_or_default(),
        uid: attributes.uid,
        gid: attributes.gid,
        mtime: attributes.mtime,
        xattrs,
    })
}

/// What only a base can tell; links to it leave the tree.
fn take_pending(tree: &mut Tree) -> Pending {
    let mut pending = Pending {
        implied: BTreeSet::new(),
        links: Vec::new(),
    };
    let mut foreign = Vec::new();
    let mut todo = vec![(PathBuf::new(), Tree::ROOT, false)];
    while let Some((path, directory, hidden)) = todo.pop() {
        // In what hides everything below, nothing is of below.
        let hidden = hidden || tree.is_opaque(directory);
        for (name, id) in tree.children(directory) {
            let path = path.join(OsStr::from_bytes(name));
            let node = tree.node(*id);
            if let Kind::Foreign(target) = &node.kind {
                foreign.push((directory, name.clone()));
                pending.links.push((path, target.clone()));
            } else if tree.is_directory(*id) {
                if node.implied && !hidden {
                    pending.implied.insert(path.clone());
                }
                todo.push((path, *id, hidden));
            }
        }
    }
    for (directory, name) in foreign {
        tree.remove(directory, &name);
    }
    pending.links.sort_unstable();
    pending
}
