//! Reading an image of ours back, without mounting it: to write its tar, to settle it, to
//! check it, and to use it where the kernel has no EROFS.
//!
//! It reads the part of the format that the writer writes, and refuses everything else;
//! every number is checked before it is used.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::inode::{self, Inode, Layout};
use super::sum::{Label, Sum};
use super::superblock::{Superblock, le32};
use super::tree::{Attributes, Data, Extent, Kind, NodeId, Tree};
use super::{BLOCK, SLOT, dirent, xattr};

/// Read at once: metadata, and content.
const WINDOW: u64 = 64 << 10;
const COPY: usize = 256 << 10;
/// Largest directory, in bytes of its entries.
const MAX_DIRECTORY: u64 = 1 << 30;

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub(in crate::layers) enum ImageError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{0}")]
    Malformed(String),
}

fn malformed(what: impl Into<String>) -> ImageError {
    ImageError::Malformed(what.into())
}

/// An image with its tree.
#[derive(Debug)]
pub(in crate::layers) struct Image {
    file: File,
    tree: Tree,
    label: Label,
    blocks: u64,
}

impl Image {
    /// Opens an image and reads its tree; everything about its structure is checked.
    ///
    /// # Errors
    /// It cannot be read, or is not one of ours, whole.
    pub(in crate::layers) fn open(path: &Path) -> Result<Self, ImageError> {
        let file = File::open(path)?;
        let mut first = vec![0; usize::try_from(BLOCK).unwrap_or(4096)];
        file.read_exact_at(&mut first, 0)?;
        let superblock = Superblock::decode(&first).map_err(malformed)?;
        let label = Label::decode(&first).ok_or_else(|| malformed("it has no label of ours"))?;
        let blocks = u64::from(superblock.blocks);
        if file.metadata()?.len() != blocks * BLOCK {
            return Err(malformed("its size is not what its superblock says"));
        }
        let mut reader = Reader {
            file: &file,
            window: Vec::new(),
            start: 0,
            meta: u64::from(superblock.meta) * BLOCK,
            end: blocks * BLOCK,
            time: (superblock.time.0.cast_signed(), superblock.time.1),
        };
        let tree = reader.tree(u64::from(superblock.root), superblock.inodes)?;
        Ok(Self {
            file,
            tree,
            label,
            blocks,
        })
    }

    pub(in crate::layers) fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Reads everything and compares it with the checksum.
    ///
    /// # Errors
    /// It cannot be read, or has changed since it was written.
    pub(in crate::layers) fn verify(&self) -> Result<(), ImageError> {
        let mut sum = Sum::new();
        let mut buffer = vec![0; COPY];
        let (mut at, end) = (BLOCK, self.blocks * BLOCK);
        while at < end {
            let length = usize::try_from(end - at).map_or(COPY, |left| left.min(COPY));
            self.file.read_exact_at(&mut buffer[..length], at)?;
            sum.update(&buffer[..length]);
            at += length as u64;
        }
        if sum.finish() == self.label.sum {
            Ok(())
        } else {
            Err(malformed("its content is not what was written"))
        }
    }

    /// Writes a file's content.
    ///
    /// # Errors
    /// The image cannot be read, or `out` fails.
    pub(in crate::layers) fn copy(
        &self,
        size: u64,
        data: &Data,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        match data {
            Data::Flat { block, tail } => {
                let whole = size - tail.len() as u64;
                self.copy_range(u64::from(*block) * BLOCK, whole, out)?;
                out.write_all(tail)
            }
            Data::Sparse { extents, .. } => {
                let mut at = 0;
                for extent in extents {
                    zeros(extent.offset - at, out)?;
                    self.copy_range(u64::from(extent.block) * BLOCK, extent.length, out)?;
                    at = extent.offset + extent.length;
                }
                zeros(size - at, out)
            }
        }
    }

    fn copy_range(&self, mut at: u64, mut left: u64, out: &mut dyn Write) -> io::Result<()> {
        let mut buffer = vec![0; usize::try_from(left).map_or(COPY, |n| n.min(COPY))];
        while left > 0 {
            let length = usize::try_from(left).map_or(buffer.len(), |n| n.min(buffer.len()));
            self.file.read_exact_at(&mut buffer[..length], at)?;
            out.write_all(&buffer[..length])?;
            at += length as u64;
            left -= length as u64;
        }
        Ok(())
    }
}

fn zeros(mut left: u64, out: &mut dyn Write) -> io::Result<()> {
    const ZEROS: [u8; 4096] = [0; 4096];
    while left > 0 {
        let length = usize::try_from(left).map_or(ZEROS.len(), |n| n.min(ZEROS.len()));
        out.write_all(&ZEROS[..length])?;
        left -= length as u64;
    }
    Ok(())
}

struct Reader<'a> {
    file: &'a File,
    window: Vec<u8>,
    start: u64,
    /// Where inode 0 would be.
    meta: u64,
    end: u64,
    time: (i64, u32),
}

impl Reader<'_> {
    /// Reads all inodes that have a name.
    fn tree(&mut self, root: u64, inodes: u64) -> Result<Tree, ImageError> {
        let mut tree = Tree::new();
        let mut known = HashMap::from([(root, Tree::ROOT)]);
        let mut links: HashMap<NodeId, (u32, u32)> = HashMap::new();
        let mut todo = VecDeque::from([(root, root, Tree::ROOT)]);
        while let Some((nid, parent, id)) = todo.pop_front() {
            let (kind, attributes, nlink, entries) = self.inode(nid)?;
            let node = tree.node_mut(id);
            (node.kind, node.attributes) = (kind, attributes);
            links.entry(id).or_default().0 = nlink;
            let Some(entries) = entries else { continue };
            links.entry(id).or_default().1 += 2;
            for (name, child) in entries {
                match name.as_slice() {
                    b"." if child == nid => continue,
                    b".." if child == parent => continue,
                    b"." | b".." => return Err(malformed(format!("inode {nid}: wrong dots"))),
                    _ => {}
                }
                let there = known.get(&child).copied();
                let is_directory = there.is_some_and(|there| tree.is_directory(there));
                if is_directory || known.len() as u64 > inodes {
                    return Err(malformed(format!("inode {child} has names it cannot have")));
                }
                let child_id = there.unwrap_or_else(|| {
                    let made = tree.add(Kind::Fifo, Attributes::default());
                    known.insert(child, made);
                    todo.push_back((child, nid, made));
                    made
                });
                tree.insert(id, &name, child_id);
                links.entry(child_id).or_default().1 += 1;
            }
        }
        self.names(&tree, &mut links)?;
        if known.len() as u64 != inodes {
            return Err(malformed(
                "it has not as many inodes as its superblock says",
            ));
        }
        Ok(tree)
    }

    /// Every inode has as many names as it says; only directories below count their parents.
    fn names(
        &self,
        tree: &Tree,
        links: &mut HashMap<NodeId, (u32, u32)>,
    ) -> Result<(), ImageError> {
        for n in 0..tree.len() {
            let id = NodeId(n);
            let below = tree.children(id).values();
            let directories = below.filter(|child| tree.is_directory(**child)).count();
            let (said, mut found) = links.get(&id).copied().unwrap_or_default();
            if tree.is_directory(id) {
                // A name, "." and the ".." of those below; the root is its own parent.
                found = found - u32::from(id != Tree::ROOT)
                    + u32::try_from(directories).unwrap_or(u32::MAX);
            }
            if said != found {
                return Err(malformed(format!(
                    "an inode says {said} links, has {found}"
                )));
            }
        }
        Ok(())
    }

    #[allow(clippy::type_complexity, reason = "taken apart at once")]
    fn inode(
        &mut self,
        nid: u64,
    ) -> Result<(Kind, Attributes, u32, Option<Vec<(Vec<u8>, u64)>>), ImageError> {
        let bad = |what: &str| malformed(format!("inode {nid}: {what}"));
        let at = nid
            .checked_mul(SLOT)
            .and_then(|offset| offset.checked_add(self.meta))
            .ok_or_else(|| bad("out of bounds"))?;
        let length = inode::EXTENDED.min(usize::try_from(self.end.saturating_sub(at)).unwrap_or(0));
        let bytes = self.bytes(at, length)?;
        let (inode, length) = Inode::decode(&bytes, self.time).ok_or_else(|| bad("malformed"))?;
        let xattrs = xattr::size_of(inode.xattrs);
        let at = at + length as u64;
        let attributes = Attributes {
            mode: inode.mode & 0o7777,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            xattrs: xattr::decode(&self.bytes(at, xattrs)?)
                .ok_or_else(|| bad("malformed attributes"))?,
        };
        let behind = at + xattrs as u64;
        let mut entries = None;
        let number = match inode.layout {
            Layout::Device { number } => inode::major_minor(number),
            _ => (0, 0),
        };
        let kind = match inode.mode & 0o170_000 {
            0o100_000 => Kind::File {
                size: inode.size,
                data: self.data(&inode, behind)?,
            },
            0o040_000 => {
                let bytes = self.content(&inode, behind, MAX_DIRECTORY)?;
                entries = Some(dirent::decode(&bytes).ok_or_else(|| bad("malformed directory"))?);
                Kind::Directory(Default::default())
            }
            0o120_000 => Kind::Symlink(self.content(&inode, behind, BLOCK)?.into()),
            0o020_000 => Kind::CharDevice(number.0, number.1),
            0o060_000 => Kind::BlockDevice(number.0, number.1),
            0o010_000 => Kind::Fifo,
            _ => return Err(bad("a type that no layer has")),
        };
        Ok((kind, attributes, inode.nlink, entries))
    }

    /// Where a file's content is, all of it inside the image.
    fn data(&mut self, inode: &Inode, behind: u64) -> Result<Data, ImageError> {
        let inside = |block: u32, bytes: u64| {
            u64::from(block) * BLOCK <= self.end && bytes <= self.end - u64::from(block) * BLOCK
        };
        let outside = || malformed("content lies outside the image");
        match inode.layout {
            Layout::Plain { block } if inside(block, inode.size) => Ok(Data::Flat {
                block,
                tail: Box::default(),
            }),
            Layout::Inline { block } if inside(block, inode.size) => {
                let tail = usize::try_from(inode.size % BLOCK).unwrap_or_default();
                let tail = self.bytes(behind, tail)?.into();
                Ok(Data::Flat { block, tail })
            }
            Layout::Chunked { bits } => {
                let chunk = BLOCK << bits;
                let mut extents: Vec<Extent> = Vec::new();
                let chunks = inode.size.div_ceil(chunk);
                if chunks > (self.end - behind.min(self.end)) / 4 {
                    return Err(outside());
                }
                for n in 0..chunks {
                    let block = le32(&self.bytes(behind + n * 4, 4)?, 0);
                    let offset = n * chunk;
                    let length = chunk.min(inode.size - offset);
                    if block == u32::MAX {
                        continue;
                    }
                    if u64::from(block) * BLOCK + length > self.end {
                        return Err(outside());
                    }
                    super::writer::extend(&mut extents, offset, length, block);
                }
                Ok(Data::Sparse { bits, extents })
            }
            _ => Err(outside()),
        }
    }

    /// The content of a directory or link.
    fn content(&mut self, inode: &Inode, behind: u64, limit: u64) -> Result<Vec<u8>, ImageError> {
        if inode.size > limit.min(self.end) {
            return Err(malformed("a directory or link is too large"));
        }
        let Data::Flat { block, tail } = self.data(inode, behind)? else {
            return Err(malformed("a directory or link in chunks"));
        };
        let whole = usize::try_from(inode.size).unwrap_or_default() - tail.len();
        let mut bytes = self.bytes(u64::from(block) * BLOCK, whole)?;
        bytes.extend_from_slice(&tail);
        Ok(bytes)
    }

    /// Bytes of the image; what lies near is read along.
    fn bytes(&mut self, at: u64, length: usize) -> Result<Vec<u8>, ImageError> {
        if at > self.end || length as u64 > self.end - at {
            return Err(malformed("it refers to what lies outside"));
        }
        if length as u64 > WINDOW {
            let mut bytes = vec![0; length];
            self.file.read_exact_at(&mut bytes, at)?;
            return Ok(bytes);
        }
        let within =
            at >= self.start && at + length as u64 <= self.start + self.window.len() as u64;
        if !within {
            let size = usize::try_from(WINDOW.min(self.end - at)).unwrap_or_default();
            self.window.resize(size, 0);
            self.file.read_exact_at(&mut self.window, at)?;
            self.start = at;
        }
        let from = usize::try_from(at - self.start).unwrap_or_default();
        Ok(self.window[from..from + length].to_vec())
    }
}
