//! Writing an image: content as it comes, then directories and inodes, the first block last.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Bound;
use std::os::unix::fs::FileExt;

use super::inode::{self, Inode, Layout};
use super::sum::{Label, Sum};
use super::superblock::{INCOMPAT_CHUNKED, Superblock};
use super::tree::{Attributes, Data, Extent, Kind, NodeId, Tree};
use super::{BLOCK, SLOT, blocks, dirent, xattr};
use crate::ahead::WriteAhead;
use crate::direct::{self, Aligned};

/// Bytes written at once.
const BUFFER: usize = 1 << 20;
/// Files from this size on may have holes.
const MAYBE_SPARSE: u64 = 64 << 10;
/// Chunks a file is divided into at the most, unless they would be larger than `BUFFER`.
const CHUNKS: u64 = 16_384;
/// What is kept behind an inode at the most, and in memory of all files together.
const INLINE: usize = 1024;
const INLINE_TOTAL: usize = 8 << 20;
/// The same for directories, which are in memory anyway.
const INLINE_DIRECTORY: u64 = 2048;
/// Where the first inode is in the metadata: 0 is no number for an inode.
const FIRST: u64 = 64;

/// An image being written.
#[derive(Debug)]
pub(in crate::layers) struct ImageWriter {
    file: File,
    /// How much of it is filled.
    buffer: Aligned,
    /// The file is written past the page cache.
    direct: bool,
    filled: usize,
    /// Bytes of the image that are in the file.
    written: u64,
    ahead: WriteAhead,
    inline: usize,
    sum: Sum,
}

impl ImageWriter {
    /// Begins an image in an empty file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(in crate::layers) fn new(file: File) -> io::Result<Self> {
        let direct = direct::begin(&file);
        Self::begin(file, direct)
    }

    /// As [`new`](Self::new), of an image that is read soon: it is written through the page
    /// cache.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub(in crate::layers) fn cached(file: File) -> io::Result<Self> {
        Self::begin(file, false)
    }

    fn begin(mut file: File, direct: bool) -> io::Result<Self> {
        file.seek(SeekFrom::Start(BLOCK))?;
        Ok(Self {
            direct,
            file,
            buffer: Aligned::new(BUFFER),
            filled: 0,
            written: BLOCK,
            ahead: WriteAhead::default(),
            inline: 0,
            sum: Sum::new(),
        })
    }

    /// Takes in a file's content.
    ///
    /// # Errors
    /// `content` is not of that size; it cannot be read, or the image not be written.
    pub(in crate::layers) fn file(
        &mut self,
        size: u64,
        mut content: impl Read,
    ) -> io::Result<Data> {
        let data = if size >= MAYBE_SPARSE {
            self.large(size, &mut content)?
        } else {
            self.small(usize::try_from(size).unwrap_or_default(), &mut content)?
        };
        if content.read(&mut [0])? != 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(data)
    }

    fn small(&mut self, size: usize, content: &mut impl Read) -> io::Result<Data> {
        let block = self.block()?;
        let tail = size % self.block_size();
        let inline = tail <= INLINE && self.inline + tail <= INLINE_TOTAL;
        let whole = if inline { size - tail } else { size };
        self.read(whole, content)?;
        self.pad()?;
        let mut rest = vec![0; size - whole];
        content.read_exact(&mut rest)?;
        self.inline += rest.len();
        Ok(Data::Flat {
            block,
            tail: rest.into(),
        })
    }

    fn large(&mut self, size: u64, content: &mut impl Read) -> io::Result<Data> {
        let bits = chunk_bits(size);
        let chunk = self.block_size() << bits;
        let first = self.block()?;
        let mut extents: Vec<Extent> = Vec::new();
        let (mut offset, mut holes) = (0, false);
        while offset < size {
            if BUFFER - self.filled < chunk {
                self.flush()?;
            }
            let start = self.filled;
            let room = (BUFFER - start) / chunk * chunk;
            let length = usize::try_from(size - offset).map_or(room, |left| left.min(room));
            self.read(length, content)?;
            self.align();
            // Chunks of zeros are left out, and the later ones move up.
            let mut kept = start;
            for from in (start..start + length).step_by(chunk) {
                let to = (from + chunk).min(self.filled);
                let bytes = chunk.min(start + length - from) as u64;
                if self.buffer[from..to].iter().all(|byte| *byte == 0) {
                    holes = true;
                } else {
                    let block = block_number(self.written + kept as u64)?;
                    extend(&mut extents, offset, bytes, block);
                    self.buffer.copy_within(from..to, kept);
                    kept += to - from;
                }
                offset += bytes;
            }
            self.filled = kept;
        }
        Ok(if holes {
            Data::Sparse { bits, extents }
        } else {
            Data::Flat {
                block: first,
                tail: Box::default(),
            }
        })
    }

    /// Writes everything but content; the file is whole then, but not synced.
    ///
    /// # Errors
    /// The image cannot be written, or is larger than images can be.
    pub(in crate::layers) fn finish(mut self, tree: &Tree) -> io::Result<File> {
        let plan = Plan::new(tree, self.block()?)?;
        for id in &plan.order {
            self.put(&plan.outside(tree, *id))?;
            self.pad()?;
        }
        let meta = self.block()?;
        let mut at = 0;
        for (serial, id) in (1..).zip(&plan.order) {
            let place = &plan.places[id];
            self.put(&vec![
                0;
                usize::try_from(place.offset - at).unwrap_or_default()
            ])?;
            let bytes = plan.inode(tree, *id, serial);
            self.put(&bytes)?;
            at = place.offset + bytes.len() as u64;
        }
        // Checkers read an attributes' header behind every inode, whether it has any or not.
        self.put(&[0; SLOT as usize])?;
        self.pad()?;
        self.flush()?;
        let sum = self.sum.finish();
        let root = plan.places[&Tree::ROOT].offset / SLOT;
        let superblock = Superblock {
            root: u16::try_from(root).map_err(io::Error::other)?,
            inodes: plan.order.len() as u64,
            time: (plan.time.0.cast_unsigned(), plan.time.1),
            blocks: block_number(self.written)?,
            meta,
            uuid: sum,
            incompatible: if plan.chunked { INCOMPAT_CHUNKED } else { 0 },
        };
        let mut block = superblock.encode();
        Label { sum }.encode(&mut block);
        let first = &mut self.buffer[..block.len()];
        first.copy_from_slice(&block);
        self.file.write_all_at(first, 0)?;
        Ok(self.file)
    }

    #[allow(clippy::unused_self, reason = "BLOCK as usize")]
    fn block_size(&self) -> usize {
        usize::try_from(BLOCK).unwrap_or(4096)
    }

    /// The number of the block that comes next.
    fn block(&self) -> io::Result<u32> {
        block_number(self.written + self.filled as u64)
    }

    /// Reads exactly so much into the buffer.
    fn read(&mut self, length: usize, content: &mut impl Read) -> io::Result<()> {
        let mut left = length;
        while left > 0 {
            if self.filled == BUFFER {
                self.flush()?;
            }
            let end = BUFFER.min(self.filled + left);
            content.read_exact(&mut self.buffer[self.filled..end])?;
            left -= end - self.filled;
            self.filled = end;
        }
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.read(bytes.len(), &mut &bytes[..])
    }

    /// Zeros to the end of the block.
    fn align(&mut self) {
        // The buffer is of whole blocks, and flushed as a whole.
        let end = self.filled.next_multiple_of(self.block_size());
        self.buffer[self.filled..end].fill(0);
        self.filled = end;
    }

    fn pad(&mut self) -> io::Result<()> {
        self.align();
        if self.filled == BUFFER {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let bytes = &self.buffer[..self.filled];
        self.sum.update(bytes);
        match self.file.write_all(bytes) {
            // A file system may say so only now, before anything of it is written.
            Err(error) if self.direct && error.kind() == io::ErrorKind::InvalidInput => {
                direct::end(&self.file)?;
                self.direct = false;
                self.file.seek(SeekFrom::Start(self.written))?;
                self.file.write_all(bytes)?;
            }
            other => other?,
        }
        self.written += self.filled as u64;
        self.filled = 0;
        if !self.direct {
            self.ahead.written(&self.file, self.written);
        }
        Ok(())
    }
}

fn block_number(bytes: u64) -> io::Result<u32> {
    u32::try_from(bytes / BLOCK).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

/// So that a file has at most `CHUNKS` chunks, none larger than the buffer.
fn chunk_bits(size: u64) -> u8 {
    (0..8)
        .find(|bits| size.div_ceil(BLOCK << bits) <= CHUNKS)
        .unwrap_or(8)
}

pub(super) fn extend(extents: &mut Vec<Extent>, offset: u64, length: u64, block: u32) {
    if let Some(last) = extents.last_mut()
        && last.offset + last.length == offset
        && u64::from(last.block) + last.length / BLOCK == u64::from(block)
    {
        last.length += length;
        return;
    }
    extents.push(Extent {
        offset,
        length,
        block,
    });
}

/// Where every inode goes.
struct Plan {
    /// Breadth first, so that what `ls -l` looks at lies together.
    order: Vec<NodeId>,
    places: HashMap<NodeId, Place>,
    /// What most inodes have, which are then compact.
    time: (i64, u32),
    chunked: bool,
}

struct Place {
    parent: NodeId,
    nlink: u32,
    compact: bool,
    /// In the metadata.
    offset: u64,
    /// Of a directory or link target: where its blocks are.
    block: u32,
}

impl Plan {
    fn new(tree: &Tree, first_block: u32) -> io::Result<Self> {
        let mut plan = Self {
            order: Vec::new(),
            places: HashMap::new(),
            time: (0, 0),
            chunked: false,
        };
        plan.walk(tree);
        plan.time = most_common(plan.order.iter().map(|id| tree.node(*id).attributes.mtime));
        let (mut at, mut block) = (FIRST, u64::from(first_block));
        for n in 0..plan.order.len() {
            let id = plan.order[n];
            let (inode, behind) = plan.shape(tree, id);
            let compact = inode.is_compact(plan.time);
            let length = if compact {
                inode::COMPACT
            } else {
                inode::EXTENDED
            };
            let xattrs = xattr::size_of(inode.xattrs);
            while !fits(at, length, xattrs, behind) {
                at += SLOT;
            }
            plan.chunked |= matches!(inode.layout, Layout::Chunked { .. });
            if let Some(place) = plan.places.get_mut(&id) {
                place.compact = compact;
                place.offset = at;
                place.block = u32::try_from(block).map_err(|_| io::ErrorKind::FileTooLarge)?;
            }
            at = (at + (length + xattrs + behind.bytes) as u64).next_multiple_of(SLOT);
            block += blocks(outside_size(tree, id));
        }
        Ok(plan)
    }

    fn walk(&mut self, tree: &Tree) {
        let mut todo = VecDeque::from([(Tree::ROOT, Tree::ROOT)]);
        while let Some((parent, id)) = todo.pop_front() {
            let place = self.places.entry(id).or_insert_with(|| {
                self.order.push(id);
                Place {
                    parent,
                    nlink: 0,
                    compact: false,
                    offset: 0,
                    block: 0,
                }
            });
            place.nlink += 1;
            if tree.is_directory(id) {
                place.nlink += 1;
                if id != Tree::ROOT
                    && let Some(parent) = self.places.get_mut(&parent)
                {
                    parent.nlink += 1;
                }
                todo.extend(tree.children(id).values().map(|child| (id, *child)));
            }
        }
    }

    /// An inode but for its place, and what is behind it and its attributes.
    fn shape(&self, tree: &Tree, id: NodeId) -> (Inode, Behind) {
        let node = tree.node(id);
        let place = &self.places[&id];
        let flat = |size: u64, tail: usize, block: u32| {
            let layout = if tail > 0 {
                Layout::Inline { block }
            } else {
                Layout::Plain { block }
            };
            (layout, size, Behind::tail(tail))
        };
        let (layout, size, behind) = match &node.kind {
            Kind::Directory(_) => {
                let size = directory_size(tree, id);
                let whole = outside_size(tree, id).min(size);
                let tail = usize::try_from(size - whole).unwrap_or_default();
                flat(size, tail, place.block)
            }
            Kind::Symlink(target) => {
                let tail = if target.len() <= INLINE {
                    target.len()
                } else {
                    0
                };
                flat(target.len() as u64, tail, place.block)
            }
            Kind::File {
                size,
                data: Data::Flat { block, tail },
            } => flat(*size, tail.len(), *block),
            Kind::File {
                size,
                data: Data::Sparse { bits, .. },
            } => {
                let chunks = size.div_ceil(BLOCK << bits);
                let table = Behind {
                    bytes: usize::try_from(chunks * 4).unwrap_or(usize::MAX),
                    in_one_block: false,
                };
                (Layout::Chunked { bits: *bits }, *size, table)
            }
            Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor) => {
                let number = inode::device(*major, *minor).unwrap_or_default();
                (Layout::Device { number }, 0, Behind::tail(0))
            }
            Kind::Fifo | Kind::Foreign(_) => (Layout::Device { number: 0 }, 0, Behind::tail(0)),
        };
        let Attributes {
            mode,
            uid,
            gid,
            mtime,
            xattrs,
        } = &node.attributes;
        let inode = Inode {
            layout,
            xattrs: xattr::count(xattr::size(xattrs).unwrap_or_default()),
            mode: node.kind.types().0 | mode,
            size,
            serial: 0,
            uid: *uid,
            gid: *gid,
            mtime: *mtime,
            nlink: place.nlink,
        };
        (inode, behind)
    }

    /// An inode and all that follows it.
    fn inode(&self, tree: &Tree, id: NodeId, serial: u32) -> Vec<u8> {
        let (mut inode, _) = self.shape(tree, id);
        inode.serial = serial;
        let node = tree.node(id);
        let mut out = Vec::new();
        inode.encode(self.places[&id].compact, &mut out);
        xattr::encode(&node.attributes.xattrs, &mut out);
        match (&node.kind, inode.layout) {
            (Kind::Directory(_), Layout::Inline { .. }) => {
                let entries = self.directory(tree, id);
                let whole = usize::try_from(outside_size(tree, id)).unwrap_or_default();
                out.extend_from_slice(entries.get(whole..).unwrap_or_default());
            }
            (Kind::Symlink(target), Layout::Inline { .. }) => out.extend_from_slice(target),
            (
                Kind::File {
                    data: Data::Flat { tail, .. },
                    ..
                },
                _,
            ) => out.extend_from_slice(tail),
            (
                Kind::File {
                    size,
                    data: Data::Sparse { bits, extents },
                },
                _,
            ) => chunk_table(*size, *bits, extents, &mut out),
            _ => {}
        }
        out
    }

    /// What of a directory or link is in blocks of its own.
    fn outside(&self, tree: &Tree, id: NodeId) -> Vec<u8> {
        let length = usize::try_from(outside_size(tree, id)).unwrap_or_default();
        let mut bytes = match &tree.node(id).kind {
            Kind::Symlink(target) if length > 0 => target.to_vec(),
            Kind::Directory(_) if length > 0 => self.directory(tree, id),
            _ => Vec::new(),
        };
        bytes.truncate(length);
        bytes
    }

    fn directory(&self, tree: &Tree, id: NodeId) -> Vec<u8> {
        let number = |id: NodeId| self.places[&id].offset / SLOT;
        let mut entries: BTreeMap<&[u8], (u64, u8)> = tree
            .children(id)
            .iter()
            .map(|(name, child)| {
                let kind = tree.node(*child).kind.types().1;
                (&**name, (number(*child), kind))
            })
            .collect();
        entries.insert(b".", (number(id), 2));
        entries.insert(b"..", (number(self.places[&id].parent), 2));
        let entries: Vec<dirent::Entry<'_>> = entries
            .into_iter()
            .map(|(name, (nid, kind))| (name, nid, kind))
            .collect();
        dirent::encode(&entries)
    }
}

/// What follows an inode and its attributes.
#[derive(Clone, Copy)]
struct Behind {
    bytes: usize,
    in_one_block: bool,
}

impl Behind {
    fn tail(bytes: usize) -> Self {
        Self {
            bytes,
            in_one_block: true,
        }
    }
}

/// Neither an inode nor an inline tail crosses a block.
fn fits(at: u64, inode: usize, xattrs: usize, behind: Behind) -> bool {
    let within = |from: u64, length: usize| from % BLOCK + length as u64 <= BLOCK;
    let tail = at + (inode + xattrs) as u64;
    within(at, inode) && (!behind.in_one_block || within(tail, behind.bytes))
}

fn directory_size(tree: &Tree, id: NodeId) -> u64 {
    const DOT: &[u8] = b".";
    const DOTS: &[u8] = b"..";
    let between = |from: Bound<&[u8]>, to: Bound<&[u8]>| {
        let children = tree.children(id).range::<[u8], _>((from, to));
        children.map(|(name, _)| &**name)
    };
    let names = between(Bound::Unbounded, Bound::Excluded(DOT))
        .chain([DOT])
        .chain(between(Bound::Excluded(DOT), Bound::Excluded(DOTS)))
        .chain([DOTS])
        .chain(between(Bound::Excluded(DOTS), Bound::Unbounded));
    dirent::size(names)
}

/// Bytes of a directory or link that are in blocks of its own.
fn outside_size(tree: &Tree, id: NodeId) -> u64 {
    match &tree.node(id).kind {
        Kind::Directory(_) => {
            let size = directory_size(tree, id);
            let tail = size % BLOCK;
            if tail <= INLINE_DIRECTORY {
                size - tail
            } else {
                size
            }
        }
        Kind::Symlink(target) if target.len() > INLINE => target.len() as u64,
        _ => 0,
    }
}

fn chunk_table(size: u64, bits: u8, extents: &[Extent], out: &mut Vec<u8>) {
    let chunk = BLOCK << bits;
    let mut extents = extents.iter().peekable();
    for n in 0..size.div_ceil(chunk) {
        let offset = n * chunk;
        while extents.next_if(|e| e.offset + e.length <= offset).is_some() {}
        let address = match extents.peek() {
            Some(extent) if extent.offset <= offset => {
                let beyond = (offset - extent.offset) / BLOCK;
                u32::try_from(u64::from(extent.block) + beyond).unwrap_or(u32::MAX)
            }
            _ => u32::MAX,
        };
        out.extend_from_slice(&address.to_le_bytes());
    }
}

/// The smallest of the most frequent.
fn most_common(times: impl Iterator<Item = (i64, u32)>) -> (i64, u32) {
    let mut counts: BTreeMap<(i64, u32), usize> = BTreeMap::new();
    for time in times.filter(|time| time.0 >= 0) {
        *counts.entry(time).or_default() += 1;
    }
    let mut best = ((0, 0), 0);
    for (time, count) in counts {
        if count > best.1 {
            best = (time, count);
        }
    }
    best.0
}
