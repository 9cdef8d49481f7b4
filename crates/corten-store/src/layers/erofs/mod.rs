//! EROFS images of layers: one file per layer that the kernel mounts as it is.
//!
//! The on-disk format is that of the kernel's `Documentation/filesystems/erofs.rst` and of
//! erofs.docs.kernel.org ("Core on-disk format"); of it we write what uncompressed images on
//! one device need. An image is laid out as
//!
//! ```text
//! block 0       superblock, at byte 1024, written last
//! blocks 1..n   file data, as the tar stream brings it, each file from a block's start
//! blocks n..m   whole blocks of directories, and long link targets
//! blocks m..    inodes, each followed by its extended attributes and its inline tail
//! ```
//!
//! so that a layer's data is written once, forwards, and only names and attributes are kept
//! in memory ([`Tree`]). The same tree always gives the same bytes. Nothing in an image is
//! ever changed: it is written, named and unlinked.

mod dirent;
mod fuzzing;
mod inode;
mod read;
mod resolve;
mod settled;
mod sum;
mod superblock;
mod tar;
mod tree;
mod unpack;
mod writer;
mod xattr;

pub(super) use fuzzing::image as fuzz_image;
pub(super) use read::{Image, ImageError};
pub(super) use tar::write as write_tar;
pub(super) use tree::{Kind, Tree};
pub(super) use unpack::unpack;
pub(super) use writer::ImageWriter;

/// Block size; the only one every kernel with EROFS takes.
const BLOCK: u64 = 4096;
const BLOCK_BITS: u8 = 12;
/// Inodes are at multiples of this, and numbered by it.
const SLOT: u64 = 32;
/// `EROFS_NAME_LEN`.
const MAX_NAME: usize = 255;

fn blocks(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK)
}
