//! The superblock: 128 bytes at byte 1024 of the image, with a checksum over the rest of
//! its block.

use super::{BLOCK, BLOCK_BITS};

/// Where it is in the image.
pub(super) const OFFSET: usize = 1024;
const SIZE: usize = 128;
const MAGIC: u32 = 0xe0f5_e1e2;

const COMPAT_CHECKSUM: u32 = 0x1;
const COMPAT_MTIME: u32 = 0x2;
/// Some file's blocks are listed one by one.
pub(super) const INCOMPAT_CHUNKED: u32 = 0x4;

/// What an image says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Superblock {
    /// Number of the root directory's inode; it has 16 bits.
    pub(super) root: u16,
    pub(super) inodes: u64,
    /// The time of all compact inodes.
    pub(super) time: (u64, u32),
    /// Blocks of the whole image.
    pub(super) blocks: u32,
    /// Block where inode 0 would be.
    pub(super) meta: u32,
    pub(super) uuid: [u8; 16],
    pub(super) incompatible: u32,
}

impl Superblock {
    /// The image's first block.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut block = vec![0; usize::try_from(BLOCK).unwrap_or(4096)];
        let mut put = |at: usize, bytes: &[u8]| {
            block[OFFSET + at..OFFSET + at + bytes.len()].copy_from_slice(bytes);
        };
        put(0, &MAGIC.to_le_bytes());
        put(8, &(COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        put(12, &[BLOCK_BITS]);
        put(14, &self.root.to_le_bytes());
        put(16, &self.inodes.to_le_bytes());
        put(24, &self.time.0.to_le_bytes());
        put(32, &self.time.1.to_le_bytes());
        put(36, &self.blocks.to_le_bytes());
        put(40, &self.meta.to_le_bytes());
        put(48, &self.uuid);
        put(64, b"corten");
        put(80, &self.incompatible.to_le_bytes());
        let sum = crc32c(&block[OFFSET..]);
        block[OFFSET + 4..OFFSET + 8].copy_from_slice(&sum.to_le_bytes());
        block
    }

    /// Reads the first block of an image of ours.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn decode(block: &[u8]) -> Result<Self, &'static str> {
        if block.len() as u64 != BLOCK {
            return Err("it has no whole block");
        }
        let mut covered = block[OFFSET..].to_vec();
        covered[4..8].fill(0);
        let u32_at = |at: usize| le32(block, OFFSET + at);
        if u32_at(0) != MAGIC {
            return Err("it has no EROFS magic number");
        }
        if u32_at(4) != crc32c(&covered) {
            return Err("its superblock's checksum is wrong");
        }
        if u32_at(8) != COMPAT_CHECKSUM | COMPAT_MTIME
            || block[OFFSET + 12] != BLOCK_BITS
            || u32_at(80) & !INCOMPAT_CHUNKED != 0
            || block[OFFSET + 90] != 0
        {
            return Err("it has features that no image of ours has");
        }
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&block[OFFSET + 48..OFFSET + 64]);
        Ok(Self {
            root: le16(block, OFFSET + 14),
            inodes: le64(block, OFFSET + 16),
            time: (le64(block, OFFSET + 24), u32_at(32)),
            blocks: u32_at(36),
            meta: u32_at(40),
            uuid,
            incompatible: u32_at(80),
        })
    }
}

const _: () = assert!(OFFSET + SIZE <= 4096);

/// Numbers in a buffer whose length the caller has checked.
pub(super) fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from(le16(bytes, at)) | u32::from(le16(bytes, at + 2)) << 16
}

pub(super) fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from(le32(bytes, at)) | u64::from(le32(bytes, at + 4)) << 32
}

/// CRC-32C (Castagnoli) without the final inversion, as the kernel keeps it.
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            let odd = crc & 1;
            (crc >> 1) ^ (POLYNOMIAL & odd.wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_is_castagnolis() {
        // RFC 3720, B.4: the CRC of 32 zero bytes; published with the final inversion.
        assert_eq!(!crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_changed_superblock_is_refused() {
        let superblock = Superblock {
            root: 2,
            inodes: 7,
            time: (1_700_000_000, 5),
            blocks: 9,
            meta: 8,
            uuid: [3; 16],
            incompatible: INCOMPAT_CHUNKED,
        };
        let block = superblock.encode();
        assert_eq!(Superblock::decode(&block).as_ref(), Ok(&superblock));
        for at in [OFFSET, OFFSET + 4, OFFSET + 36, OFFSET + 100, 4095] {
            let mut bad = block.clone();
            bad[at] ^= 1;
            assert!(Superblock::decode(&bad).is_err(), "byte {at}");
        }
        assert!(Superblock::decode(&block[..100]).is_err());
    }
}
