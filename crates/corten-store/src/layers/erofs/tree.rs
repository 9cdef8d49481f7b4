//! A layer's names and attributes in memory: what the unpacker builds, the writer lays out
//! and the reader finds. Content is not here, only where in the image it is.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::xattr::Xattr;
use crate::layers::xattr::OPAQUE;

/// Index of a node in its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::layers) struct NodeId(pub(super) usize);

/// Owner, mode, times, extended attributes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::layers) struct Attributes {
    /// Permission bits, without the file type.
    pub(in crate::layers) mode: u16,
    pub(in crate::layers) uid: u32,
    pub(in crate::layers) gid: u32,
    pub(in crate::layers) mtime: (i64, u32),
    /// Sorted by name.
    pub(in crate::layers) xattrs: Vec<Xattr>,
}

/// Consecutive blocks of a file that has holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::layers) struct Extent {
    /// Offset in the file, a multiple of the chunk's size.
    pub(in crate::layers) offset: u64,
    pub(in crate::layers) length: u64,
    /// First block in the image.
    pub(in crate::layers) block: u32,
}

/// Where a file's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::layers) enum Data {
    /// From this block on, but for the tail, which is short.
    Flat { block: u32, tail: Box<[u8]> },
    /// Only some chunks of `BLOCK << bits`; zeros elsewhere.
    Sparse { bits: u8, extents: Vec<Extent> },
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::layers) enum Kind {
    Directory(BTreeMap<Box<[u8]>, NodeId>),
    File {
        size: u64,
        data: Data,
    },
    Symlink(Box<[u8]>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
    /// A hard link to a file of a layer below; in no image.
    Foreign(PathBuf),
}

impl Kind {
    /// `S_IFMT` bits and the file type of directory entries.
    pub(super) fn types(&self) -> (u16, u8) {
        match self {
            Self::File { .. } | Self::Foreign(_) => (0o100_000, 1),
            Self::Directory(_) => (0o040_000, 2),
            Self::CharDevice(..) => (0o020_000, 3),
            Self::BlockDevice(..) => (0o060_000, 4),
            Self::Fifo => (0o010_000, 5),
            Self::Symlink(_) => (0o120_000, 7),
        }
    }
}

/// One inode to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::layers) struct Node {
    pub(in crate::layers) kind: Kind,
    pub(in crate::layers) attributes: Attributes,
    /// Made because something is in it: its attributes are those of the directory below.
    pub(in crate::layers) implied: bool,
}

/// All nodes; some may have no name any more.
#[derive(Debug, Clone)]
pub(in crate::layers) struct Tree {
    nodes: Vec<Node>,
}

impl Tree {
    pub(in crate::layers) const ROOT: NodeId = NodeId(0);

    /// An empty root directory, 0755.
    pub(in crate::layers) fn new() -> Self {
        let attributes = Attributes {
            mode: 0o755,
            ..Attributes::default()
        };
        Self {
            nodes: vec![Node {
                kind: Kind::Directory(BTreeMap::new()),
                attributes,
                implied: false,
            }],
        }
    }

    pub(in crate::layers) fn add(&mut self, kind: Kind, attributes: Attributes) -> NodeId {
        self.nodes.push(Node {
            kind,
            attributes,
            implied: false,
        });
        NodeId(self.nodes.len() - 1)
    }

    /// How many nodes there are, with and without a name.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(in crate::layers) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    pub(in crate::layers) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0]
    }

    /// What a directory has; empty where it is none.
    pub(in crate::layers) fn children(&self, id: NodeId) -> &BTreeMap<Box<[u8]>, NodeId> {
        static NONE: BTreeMap<Box<[u8]>, NodeId> = BTreeMap::new();
        match &self.node(id).kind {
            Kind::Directory(children) => children,
            _ => &NONE,
        }
    }

    pub(in crate::layers) fn child(&self, id: NodeId, name: &[u8]) -> Option<NodeId> {
        self.children(id).get(name).copied()
    }

    pub(in crate::layers) fn is_directory(&self, id: NodeId) -> bool {
        matches!(self.node(id).kind, Kind::Directory(_))
    }

    /// Gives a node a name in a directory, taking it from whatever had it.
    pub(in crate::layers) fn insert(&mut self, parent: NodeId, name: &[u8], id: NodeId) {
        if let Kind::Directory(children) = &mut self.node_mut(parent).kind {
            children.insert(name.into(), id);
        }
    }

    pub(in crate::layers) fn remove(&mut self, parent: NodeId, name: &[u8]) {
        if let Kind::Directory(children) = &mut self.node_mut(parent).kind {
            children.remove(name);
        }
    }

    pub(super) fn is_opaque(&self, id: NodeId) -> bool {
        let xattrs = &self.node(id).attributes.xattrs;
        xattrs.iter().any(|(key, _)| key == OPAQUE)
    }

    /// Marks a directory as hiding what lies below, in overlayfs's notation.
    pub(super) fn set_opaque(&mut self, id: NodeId) {
        set_xattr(
            &mut self.node_mut(id).attributes.xattrs,
            OPAQUE.into(),
            b"y".to_vec(),
        );
    }
}

/// Sets one attribute among sorted ones.
pub(super) fn set_xattr(xattrs: &mut Vec<Xattr>, key: std::ffi::OsString, value: Vec<u8>) {
    match xattrs.binary_search_by(|(known, _)| known.cmp(&key)) {
        Ok(at) => xattrs[at].1 = value,
        Err(at) => xattrs.insert(at, (key, value)),
    }
}
