//! Inodes: 32 bytes where everything fits and the time is the superblock's, else 64.

use super::superblock::{le16, le32, le64};

pub(super) const COMPACT: usize = 32;
pub(super) const EXTENDED: usize = 64;

/// Where an inode's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// In consecutive blocks.
    Plain { block: u32 },
    /// As `Plain`, but what does not fill a block is behind the inode.
    Inline { block: u32 },
    /// In chunks of `BLOCK << bits` whose addresses are behind the inode.
    Chunked { bits: u8 },
    /// Nowhere; of devices, their number in the kernel's form.
    Device { number: u32 },
}

/// An inode as it is on disk, but for what follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inode {
    pub(super) layout: Layout,
    /// As in `i_xattr_icount`.
    pub(super) xattrs: u16,
    /// With the file type.
    pub(super) mode: u16,
    pub(super) size: u64,
    /// A serial number, for 32-bit systems.
    pub(super) serial: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: (i64, u32),
    pub(super) nlink: u32,
}

impl Inode {
    /// Whether 32 bytes are enough, in an image of that time.
    pub(super) fn is_compact(&self, time: (i64, u32)) -> bool {
        self.mtime == time
            && u32::try_from(self.size).is_ok()
            && [self.uid, self.gid, self.nlink]
                .iter()
                .all(|n| u16::try_from(*n).is_ok())
    }

    pub(super) fn encode(&self, compact: bool, out: &mut Vec<u8>) {
        let (layout, union) = match self.layout {
            Layout::Plain { block } => (0_u16, block),
            Layout::Device { number } => (0, number),
            Layout::Inline { block } => (2, block),
            Layout::Chunked { bits } => (4, u32::from(bits)),
        };
        let format = layout << 1 | u16::from(!compact);
        for field in [format, self.xattrs, self.mode] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        // Truncates nothing where `is_compact` said yes.
        let short = |value: u32| u16::try_from(value).unwrap_or(u16::MAX).to_le_bytes();
        if compact {
            out.extend_from_slice(&short(self.nlink));
            out.extend_from_slice(&u32::try_from(self.size).unwrap_or(u32::MAX).to_le_bytes());
            out.extend_from_slice(&[0; 4]);
            out.extend_from_slice(&union.to_le_bytes());
            out.extend_from_slice(&self.serial.to_le_bytes());
            out.extend_from_slice(&short(self.uid));
            out.extend_from_slice(&short(self.gid));
            out.extend_from_slice(&[0; 4]);
        } else {
            out.extend_from_slice(&[0; 2]);
            out.extend_from_slice(&self.size.to_le_bytes());
            for field in [union, self.serial, self.uid, self.gid] {
                out.extend_from_slice(&field.to_le_bytes());
            }
            out.extend_from_slice(&self.mtime.0.to_le_bytes());
            out.extend_from_slice(&self.mtime.1.to_le_bytes());
            out.extend_from_slice(&self.nlink.to_le_bytes());
            out.extend_from_slice(&[0; 16]);
        }
    }

    /// Reads an inode at the beginning of `bytes`, and how many bytes it takes.
    pub(super) fn decode(bytes: &[u8], time: (i64, u32)) -> Option<(Self, usize)> {
        let format = le16(bytes.get(..COMPACT)?, 0);
        let (layout, compact) = (format >> 1, format & 1 == 0);
        let length = if compact { COMPACT } else { EXTENDED };
        let bytes = bytes.get(..length)?;
        let mode = le16(bytes, 4);
        let union = le32(bytes, 16);
        let has_content = matches!(mode & 0o170_000, 0o100_000 | 0o040_000 | 0o120_000);
        let layout = match layout {
            0 if has_content => Layout::Plain { block: union },
            0 => Layout::Device { number: union },
            2 if has_content => Layout::Inline { block: union },
            4 if has_content && union < 20 => Layout::Chunked {
                bits: u8::try_from(union).ok()?,
            },
            _ => return None,
        };
        let inode = if compact {
            Self {
                layout,
                xattrs: le16(bytes, 2),
                mode,
                size: le32(bytes, 8).into(),
                serial: le32(bytes, 20),
                uid: le16(bytes, 24).into(),
                gid: le16(bytes, 26).into(),
                mtime: time,
                nlink: le16(bytes, 6).into(),
            }
        } else {
            Self {
                layout,
                xattrs: le16(bytes, 2),
                mode,
                size: le64(bytes, 8),
                serial: le32(bytes, 20),
                uid: le32(bytes, 24),
                gid: le32(bytes, 28),
                mtime: (
                    i64::from_ne_bytes(le64(bytes, 32).to_ne_bytes()),
                    le32(bytes, 40),
                ),
                nlink: le32(bytes, 44),
            }
        };
        Some((inode, length))
    }
}

/// A device number in the kernel's 32-bit form; `None` where it does not fit.
pub(super) fn device(major: u32, minor: u32) -> Option<u32> {
    (major < 1 << 12 && minor < 1 << 20)
        .then_some((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

/// Major and minor of that form.
pub(super) fn major_minor(number: u32) -> (u32, u32) {
    (
        (number >> 8) & 0xfff,
        (number & 0xff) | ((number >> 12) & 0xf_ff00),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_as_written() {
        let small = Inode {
            layout: Layout::Inline { block: 77 },
            xattrs: 9,
            mode: 0o104_755,
            size: 5000,
            serial: 4,
            uid: 65_535,
            gid: 3,
            mtime: (1_700_000_000, 9),
            nlink: 2,
        };
        let large = Inode {
            layout: Layout::Chunked { bits: 3 },
            size: 1 << 40,
            uid: 70_000,
            mtime: (-5, 999_999_999),
            nlink: 100_000,
            ..small.clone()
        };
        let time = small.mtime;
        assert!(small.is_compact(time) && !large.is_compact(time));
        assert!(!small.is_compact((1_700_000_000, 8)));
        for (inode, compact, length) in [
            (&small, true, COMPACT),
            (&small, false, EXTENDED),
            (&large, false, EXTENDED),
        ] {
            let mut bytes = Vec::new();
            inode.encode(compact, &mut bytes);
            assert_eq!(bytes.len(), length);
            assert_eq!(Inode::decode(&bytes, time), Some((inode.clone(), length)));
            assert_eq!(Inode::decode(&bytes[..length - 1], time), None);
        }
    }

    #[test]
    fn device_numbers() {
        for (major, minor) in [(0, 0), (1, 3), (4095, (1 << 20) - 1), (259, 300)] {
            let number = device(major, minor).unwrap();
            assert_eq!(major_minor(number), (major, minor));
            assert_eq!(
                u64::from(number),
                u64::from((minor & 0xff) | (major << 8) | ((minor >> 8) << 20))
            );
        }
        assert_eq!(device(4096, 0), None);
        assert_eq!(device(0, 1 << 20), None);
    }
}
