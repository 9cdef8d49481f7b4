//! Directories: blocks of 12-byte entries followed by their names, sorted by bytes, `.` and
//! `..` among them. No name crosses a block; the last one of a block ends with the block or
//! at a NUL.

use super::superblock::{le16, le64};
use super::{BLOCK, MAX_NAME};

const ENTRY: usize = 12;
const SIZE: usize = 4096;
const _: () = assert!(SIZE as u64 == BLOCK);

/// How many bytes the entries take, names in their order.
pub(super) fn size<'a>(names: impl Iterator<Item = &'a [u8]>) -> u64 {
    let (mut whole, mut used) = (0, 0);
    for name in names {
        let needed = ENTRY + name.len();
        if used + needed > SIZE {
            whole += BLOCK;
            used = 0;
        }
        used += needed;
    }
    whole + used as u64
}

/// One entry: name, inode number, file type.
pub(super) type Entry<'a> = (&'a [u8], u64, u8);

/// The bytes of a directory; the last block is not padded.
pub(super) fn encode(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        out.resize(out.len().next_multiple_of(SIZE), 0);
        let mut used = 0;
        let fit = rest
            .iter()
            .take_while(|(name, ..)| {
                used += ENTRY + name.len();
                used <= SIZE
            })
            .count();
        let (block, later) = rest.split_at(fit);
        let mut offset = ENTRY * block.len();
        for (name, nid, kind) in block {
            out.extend_from_slice(&nid.to_le_bytes());
            out.extend_from_slice(&u16::try_from(offset).unwrap_or(u16::MAX).to_le_bytes());
            out.extend_from_slice(&[*kind, 0]);
            offset += name.len();
        }
        for (name, ..) in block {
            out.extend_from_slice(name);
        }
        rest = later;
    }
    out
}

/// Reads a directory's bytes: names with inode numbers, in order; `None` when malformed.
pub(super) fn decode(bytes: &[u8]) -> Option<Vec<(Vec<u8>, u64)>> {
    let mut found: Vec<(Vec<u8>, u64)> = Vec::new();
    for block in bytes.chunks(SIZE) {
        let first = usize::from(le16(block.get(..ENTRY)?, 8));
        if first == 0 || first % ENTRY != 0 {
            return None;
        }
        let offset = |n: usize| Some(usize::from(le16(block.get(n * ENTRY..(n + 1) * ENTRY)?, 8)));
        let count = first / ENTRY;
        for n in 0..count {
            let start = offset(n)?;
            let name = if n + 1 < count {
                block.get(start..offset(n + 1)?)?
            } else {
                let rest = block.get(start..)?;
                let end = rest.iter().position(|byte| *byte == 0);
                &rest[..end.unwrap_or(rest.len())]
            };
            let sorted = found.last().is_none_or(|(last, _)| last.as_slice() < name);
            if name.is_empty() || name.len() > MAX_NAME || name.contains(&b'/') || !sorted {
                return None;
            }
            found.push((name.to_vec(), le64(block, n * ENTRY)));
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_names_in_several_blocks() {
        for count in [0, 1, 30, 31, 300, 3000] {
            let mut names: Vec<String> = (0..count)
                .map(|n| format!("{n:04}{}", "x".repeat(n * 7 % 250)))
                .collect();
            names.extend([".".into(), "..".into()]);
            names.sort_unstable();
            let entries: Vec<Entry<'_>> = names
                .iter()
                .zip(9..)
                .map(|(name, nid)| (name.as_bytes(), nid, 1))
                .collect();
            let bytes = encode(&entries);
            let total = size(names.iter().map(String::as_bytes));
            assert_eq!(total, bytes.len() as u64, "{count}");
            let read = decode(&bytes).unwrap();
            assert!(
                read.iter()
                    .map(|(name, nid)| (name.as_slice(), *nid, 1))
                    .eq(entries),
                "{count}"
            );
        }
    }

    #[test]
    fn malformed_directories_are_refused() {
        let good = encode(&[(b".", 1, 2), (b"..", 1, 2), (b"a", 2, 1)]);
        assert!(decode(&good).is_some());
        assert!(decode(&good[..11]).is_none());
        for (at, value) in [(8, 0), (8, 13), (20, 200), (20, 36), (32, 0)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert!(decode(&bad).is_none(), "byte {at} = {value}");
        }
        assert!(decode(&encode(&[(b"b", 1, 1), (b"a", 2, 1)])).is_none());
        assert!(decode(&encode(&[(b"a/b", 1, 1)])).is_none());
    }
}
