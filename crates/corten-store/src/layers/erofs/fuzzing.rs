//! What `fuzz/` needs: an image whose first block is in order, whatever comes after it.

use super::sum::{Label, Sum};
use super::superblock::Superblock;
use super::{BLOCK, blocks};

/// The image that `input` stands for: number of the root, of inodes (two bytes each, little
/// end first), first block of the inodes (one byte), then everything behind the first block.
pub(in crate::layers) fn image(input: &[u8]) -> Option<Vec<u8>> {
    let ([r0, r1, i0, i1, meta], content) = input.split_first_chunk()?;
    let count = 1 + blocks(content.len() as u64);
    let superblock = Superblock {
        root: u16::from_le_bytes([*r0, *r1]),
        inodes: u64::from(u16::from_le_bytes([*i0, *i1])),
        time: (0, 0),
        blocks: u32::try_from(count).ok()?,
        meta: u32::from(*meta),
        uuid: [0; 16],
        incompatible: super::superblock::INCOMPAT_CHUNKED,
    };
    let mut image = superblock.encode();
    image.extend(content);
    image.resize(usize::try_from(count * BLOCK).ok()?, 0);
    let mut sum = Sum::new();
    sum.update(image.get(usize::try_from(BLOCK).ok()?..)?);
    Label { sum: sum.finish() }.encode(&mut image);
    // The label is not under the superblock's checksum, which begins at byte 1024.
    Some(image)
}
