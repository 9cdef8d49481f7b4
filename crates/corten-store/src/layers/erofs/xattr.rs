//! Extended attributes of an inode, all of them inline (none shared): a header, then entries
//! of prefix number, rest of the name, value, each padded to four bytes.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::superblock::le16;

/// Name prefixes that have numbers; the longest that fits is taken.
const PREFIXES: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];
const HEADER: usize = 12;

/// One attribute.
pub(super) type Xattr = (OsString, Vec<u8>);

/// Bytes that attributes take behind their inode; `None` where they cannot be stored.
pub(super) fn size(xattrs: &[Xattr]) -> Option<usize> {
    if xattrs.is_empty() {
        return Some(0);
    }
    let mut total = HEADER;
    for (key, value) in xattrs {
        let (_, rest) = split(key)?;
        if rest.len() > 255 || u16::try_from(value.len()).is_err() {
            return None;
        }
        total += (4 + rest.len() + value.len()).next_multiple_of(4);
    }
    u16::try_from((total - HEADER) / 4 + 1).ok()?;
    Some(total)
}

/// What the inode has as `i_xattr_icount`, for a size that [`size`] told.
pub(super) fn count(size: usize) -> u16 {
    if size == 0 {
        return 0;
    }
    u16::try_from((size - HEADER) / 4 + 1).unwrap_or(u16::MAX)
}

/// The size that an `i_xattr_icount` stands for.
pub(super) fn size_of(count: u16) -> usize {
    match usize::from(count) {
        0 => 0,
        n => HEADER + (n - 1) * 4,
    }
}

/// The bytes behind the inode. Only what [`size`] accepts.
pub(super) fn encode(xattrs: &[Xattr], out: &mut Vec<u8>) {
    if xattrs.is_empty() {
        return;
    }
    out.extend_from_slice(&[0; HEADER]);
    for (key, value) in xattrs {
        let Some((index, rest)) = split(key) else {
            continue;
        };
        let start = out.len();
        out.push(u8::try_from(rest.len()).unwrap_or(u8::MAX));
        out.push(index);
        out.extend_from_slice(&u16::try_from(value.len()).unwrap_or(u16::MAX).to_le_bytes());
        out.extend_from_slice(rest);
        out.extend_from_slice(value);
        let length = (out.len() - start).next_multiple_of(4);
        out.resize(start + length, 0);
    }
}

/// Reads what [`encode`] wrote; `None` when it is malformed.
pub(super) fn decode(bytes: &[u8]) -> Option<Vec<Xattr>> {
    let mut found = Vec::new();
    if bytes.is_empty() {
        return Some(found);
    }
    if bytes.get(..HEADER)?.iter().any(|byte| *byte != 0) {
        return None; // shared attributes, or a filter: not ours
    }
    let mut rest = &bytes[HEADER..];
    while !rest.is_empty() {
        let head = rest.get(..4)?;
        let (name, value) = (usize::from(head[0]), usize::from(le16(head, 2)));
        let prefix = PREFIXES.iter().find(|(index, _)| *index == head[1])?.1;
        let body = rest.get(4..4 + name + value)?;
        let key = [prefix, &body[..name]].concat();
        found.push((OsString::from_vec(key), body[name..].to_vec()));
        rest = rest.get((4 + name + value).next_multiple_of(4)..)?;
    }
    Some(found)
}

fn split(key: &OsStr) -> Option<(u8, &[u8])> {
    let key = key.as_bytes();
    PREFIXES
        .iter()
        .find_map(|(index, prefix)| Some((*index, key.strip_prefix(*prefix)?)))
        // The ACLs' names are whole; the others' prefix alone names nothing.
        .filter(|(index, rest)| matches!(index, 2 | 3) == rest.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let xattrs: Vec<Xattr> = [
            ("security.capability", &b"\x01\x00\x00\x02"[..]),
            ("system.posix_acl_access", b"acl"),
            ("trusted.overlay.opaque", b"y"),
            ("user.empty", b""),
            ("user.long", &[7; 3000]),
        ]
        .map(|(key, value)| (OsString::from(key), value.to_vec()))
        .to_vec();
        let mut bytes = Vec::new();
        encode(&xattrs, &mut bytes);
        assert_eq!(Some(bytes.len()), size(&xattrs));
        assert_eq!(size_of(count(bytes.len())), bytes.len());
        assert_eq!(decode(&bytes), Some(xattrs));
        for cut in 1..bytes.len() {
            assert!(cut % 4 == 0 || decode(&bytes[..cut]).is_none(), "{cut}");
        }
    }

    #[test]
    fn what_cannot_be_stored() {
        let none = |key: &str, length: usize| size(&[(key.into(), vec![0; length])]).is_none();
        assert!(none("system.other", 1) && none("user.", 1) && none("user.x", 70_000));
        assert!(none(&format!("user.{}", "x".repeat(256)), 1));
        let many: Vec<Xattr> = (0..5)
            .map(|n| (format!("user.{n}").into(), vec![0; 65_000]))
            .collect();
        assert!(
            size(&many).is_none(),
            "together more than an inode can count"
        );
    }
}
