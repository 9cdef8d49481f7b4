//! Headers of the deterministic tar of a layer: ustar with PAX records only where a value
//! does not fit (long names, large ids, nanoseconds, extended attributes). A diff id is the
//! digest of these bytes, so what is written here must never change.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;

use super::xattr;

pub(super) const BLOCK: usize = 512;
/// Largest value an 8-byte octal field holds.
const MAX_ID: u64 = 0o7_777_777;
/// Largest value a 12-byte octal field holds.
const MAX_SIZE: u64 = 0o77_777_777_777;
const NAME_FIELD: usize = 100;

/// What one entry is.
#[derive(Debug, Default)]
pub(super) struct Entry<'a> {
    /// The type, as ustar numbers them.
    pub(super) kind: u8,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: (i64, u32),
    pub(super) size: u64,
    /// Major and minor number.
    pub(super) device: (u32, u32),
    pub(super) link: &'a [u8],
    /// Sorted; those of overlayfs are left out.
    pub(super) xattrs: &'a [(OsString, Vec<u8>)],
    /// Those of overlayfs are attributes like others.
    pub(super) bookkeeping: bool,
    /// Further PAX records.
    pub(super) records: &'a [(&'a str, Vec<u8>)],
}

/// Writes a header, with what it takes before it.
pub(super) fn write(out: &mut dyn Write, path: &[u8], entry: &Entry<'_>) -> io::Result<()> {
    let mut records = Vec::new();
    let (uid, gid, size) = (u64::from(entry.uid), u64::from(entry.gid), entry.size);
    if uid > MAX_ID {
        record(&mut records, b"uid", uid.to_string().as_bytes());
    }
    if gid > MAX_ID {
        record(&mut records, b"gid", gid.to_string().as_bytes());
    }
    if size > MAX_SIZE {
        record(&mut records, b"size", size.to_string().as_bytes());
    }
    let seconds = u64::try_from(entry.mtime.0).ok();
    if entry.mtime.1 != 0 || seconds.is_none_or(|s| s > MAX_SIZE) {
        let time = pax_time(entry.mtime.0, entry.mtime.1.into());
        record(&mut records, b"mtime", time.as_bytes());
    }
    for (key, value) in entry
        .xattrs
        .iter()
        .filter(|(key, _)| entry.bookkeeping || !xattr::is_overlays(key))
    {
        record(
            &mut records,
            &[b"SCHILY.xattr.", key.as_bytes()].concat(),
            value,
        );
    }
    for (key, value) in entry.records {
        record(&mut records, key.as_bytes(), value);
    }
    let fields = Fields {
        mode: entry.mode & 0o7777,
        uid: uid.min(MAX_ID),
        gid: gid.min(MAX_ID),
        mtime: seconds.unwrap_or(0).min(MAX_SIZE),
        size: size.min(MAX_SIZE),
        device: matches!(entry.kind, b'3' | b'4').then_some(entry.device),
    };
    raw(out, path, entry.kind, entry.link, &fields, records)
}

/// A whiteout or opaque marker: an empty file whose attributes mean nothing.
pub(super) fn marker(out: &mut dyn Write, path: &[u8]) -> io::Result<()> {
    write(
        out,
        path,
        &Entry {
            kind: b'0',
            ..Entry::default()
        },
    )
}

/// The name of a whiteout: `.wh.` before the path's last component, which has that length.
pub(super) fn whiteout(out: &mut dyn Write, path: &mut Vec<u8>, name: usize) -> io::Result<()> {
    let at = path.len() - name;
    path.splice(at..at, b".wh.".iter().copied());
    marker(out, path)?;
    path.drain(at..at + 4);
    Ok(())
}

/// The marker of an opaque directory, whose path ends with a slash.
pub(super) fn opaque(out: &mut dyn Write, path: &mut Vec<u8>) -> io::Result<()> {
    let length = path.len();
    path.extend_from_slice(b".wh..wh..opq");
    let written = marker(out, path);
    path.truncate(length);
    written
}

/// Whether a directory's attributes say that it is opaque.
pub(super) fn is_opaque(xattrs: &[(OsString, Vec<u8>)]) -> bool {
    xattrs
        .iter()
        .any(|(key, value)| key == xattr::OPAQUE && value == b"y")
}

/// What follows content of that size.
pub(super) fn pad(out: &mut dyn Write, size: u64) -> io::Result<()> {
    let over = usize::try_from(size % BLOCK as u64).unwrap_or_default();
    if over != 0 {
        out.write_all(&[0; BLOCK][over..])?;
    }
    Ok(())
}

/// The end of the archive.
pub(super) fn end(out: &mut dyn Write) -> io::Result<()> {
    out.write_all(&[0; 2 * BLOCK])
}

fn raw(
    out: &mut dyn Write,
    path: &[u8],
    kind: u8,
    link: &[u8],
    fields: &Fields,
    mut records: Vec<u8>,
) -> io::Result<()> {
    let mut long = Vec::new();
    if path.len() > NAME_FIELD {
        record(&mut long, b"path", path);
    }
    if link.len() > NAME_FIELD {
        record(&mut long, b"linkpath", link);
    }
    long.append(&mut records);
    if !long.is_empty() {
        let size = long.len() as u64;
        let pax = Fields {
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 0,
            size,
            device: None,
        };
        out.write_all(&block(b"PaxHeaders/entry", b'x', &[], &pax))?;
        out.write_all(&long)?;
        pad(out, size)?;
    }
    out.write_all(&block(path, kind, link, fields))
}

struct Fields {
    mode: u32,
    uid: u64,
    gid: u64,
    mtime: u64,
    size: u64,
    device: Option<(u32, u32)>,
}

/// One ustar header (POSIX.1-1988); names that do not fit are cut, PAX has them whole.
fn block(path: &[u8], kind: u8, link: &[u8], fields: &Fields) -> [u8; BLOCK] {
    let mut header = [0_u8; BLOCK];
    let mut put = |at: usize, length: usize, value: &[u8]| {
        let n = value.len().min(length);
        header[at..at + n].copy_from_slice(&value[..n]);
    };
    let octal = |value: u64, digits: usize| format!("{value:0digits$o}\0").into_bytes();
    put(0, 100, path);
    put(100, 8, &octal(u64::from(fields.mode), 7));
    put(108, 8, &octal(fields.uid, 7));
    put(116, 8, &octal(fields.gid, 7));
    put(124, 12, &octal(fields.size, 11));
    put(136, 12, &octal(fields.mtime, 11));
    put(148, 8, b"        ");
    put(156, 1, &[kind]);
    put(157, 100, link);
    put(257, 8, b"ustar\x0000");
    if let Some((major, minor)) = fields.device {
        put(329, 8, &octal(u64::from(major), 7));
        put(337, 8, &octal(u64::from(minor), 7));
    }
    let sum: u64 = header.iter().map(|b| u64::from(*b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

/// A PAX record: its own decimal length, a space, `key=value`, a newline.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn pax_time(seconds: i64, nanos: i64) -> String {
    let (sign, seconds, nanos) = if seconds < 0 && nanos > 0 {
        ("-", -(seconds + 1), 1_000_000_000 - nanos)
    } else if seconds < 0 {
        ("-", -seconds, 0)
    } else {
        ("", seconds, nanos)
    };
    if nanos == 0 {
        return format!("{sign}{seconds}");
    }
    let fraction = format!("{nanos:09}");
    format!("{sign}{seconds}.{}", fraction.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_records_count_themselves() {
        for n in [1, 5, 88, 89, 90, 91, 985, 986, 987, 990] {
            let mut out = Vec::new();
            record(&mut out, b"key", &vec![b'x'; n]);
            let length: usize = String::from_utf8_lossy(&out)
                .split(' ')
                .next()
                .unwrap()
                .parse()
                .unwrap();
            assert_eq!(length, out.len(), "{n}");
        }
    }

    #[test]
    fn times_before_the_epoch() {
        assert_eq!(pax_time(5, 0), "5");
        assert_eq!(pax_time(5, 500_000_000), "5.5");
        assert_eq!(pax_time(-1, 500_000_000), "-0.5");
        assert_eq!(pax_time(-2, 0), "-2");
    }
}
