//! The deterministic tar of a layer directory.
//!
//! The same directory always gives the same bytes: names sorted, numeric owners, ustar
//! headers with PAX records only where a value does not fit (long names, large ids,
//! nanoseconds, extended attributes, sorted). The overlay's own notation is turned into the
//! OCI one: character device 0:0 → `.wh.NAME`, opaque directory → `.wh..wh..opq`
//! (image-spec `layer.md`). A diff id is the digest of these bytes, so what is written here
//! must never change.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};

use super::xattr;

const BLOCK: usize = 512;
/// Largest value an 8-byte octal field holds.
const MAX_ID: u64 = 0o7_777_777;
/// Largest value a 12-byte octal field holds.
const MAX_SIZE: u64 = 0o77_777_777_777;
const NAME_FIELD: usize = 100;

/// Writes the tar of everything under `dir` and tells how many bytes of file content it has.
pub(super) fn write(dir: BorrowedFd<'_>, out: &mut impl Write) -> io::Result<u64> {
    let mut writer = Writer {
        out,
        links: HashMap::new(),
        content: 0,
    };
    writer.directory(dir, &mut Vec::new())?;
    writer.out.write_all(&[0; 2 * BLOCK])?;
    Ok(writer.content)
}

struct Writer<'a, W> {
    out: &'a mut W,
    /// First name of each file that has several.
    links: HashMap<(u64, u64), Vec<u8>>,
    content: u64,
}

/// What one entry is, besides its status.
#[derive(Default)]
struct Extra {
    link: Vec<u8>,
    xattrs: Vec<(OsString, Vec<u8>)>,
}

impl<W: Write> Writer<'_, W> {
    fn directory(&mut self, dir: BorrowedFd<'_>, prefix: &mut Vec<u8>) -> io::Result<()> {
        for name in sorted_names(dir)? {
            let length = prefix.len();
            prefix.extend_from_slice(name.as_bytes());
            self.entry(dir, &name, prefix)?;
            prefix.truncate(length);
        }
        Ok(())
    }

    fn entry(&mut self, dir: BorrowedFd<'_>, name: &OsStr, path: &mut Vec<u8>) -> io::Result<()> {
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            let at = path.len() - name.len();
            path.splice(at..at, b".wh.".iter().copied());
            return self.marker(path);
        }
        let xattrs = xattr::list(dir, name)?;
        let opaque = xattrs
            .iter()
            .any(|(key, value)| key == xattr::OPAQUE && value == b"y");
        let mut extra = Extra {
            link: Vec::new(),
            xattrs: xattrs
                .into_iter()
                .filter(|(key, _)| !xattr::is_overlays(key))
                .collect(),
        };
        if kind != FileType::Directory && stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                let link = Extra {
                    link: first.clone(),
                    xattrs: Vec::new(),
                };
                return self.header(path, b'1', &stat, 0, &link);
            }
            self.links.insert((stat.st_dev, stat.st_ino), path.clone());
        }
        match kind {
            FileType::RegularFile => self.file(dir, name, path, &stat, &extra),
            FileType::Directory => {
                path.push(b'/');
                self.header(path, b'5', &stat, 0, &extra)?;
                if opaque {
                    let length = path.len();
                    path.extend_from_slice(b".wh..wh..opq");
                    self.marker(path)?;
                    path.truncate(length);
                }
                let child = open_directory(dir, name)?;
                self.directory(child.as_fd(), path)
            }
            FileType::Symlink => {
                extra.link = rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes();
                self.header(path, b'2', &stat, 0, &extra)
            }
            FileType::CharacterDevice => self.header(path, b'3', &stat, 0, &extra),
            FileType::BlockDevice => self.header(path, b'4', &stat, 0, &extra),
            FileType::Fifo => self.header(path, b'6', &stat, 0, &extra),
            // A socket is an address of a living process: it has no meaning in an image.
            _ => Ok(()),
        }
    }

    fn file(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        path: &[u8],
        stat: &Stat,
        extra: &Extra,
    ) -> io::Result<()> {
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        self.header(path, b'0', stat, size, extra)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = std::fs::File::from(rustix::fs::openat(dir, name, flags, Mode::empty())?);
        let copied = io::copy(&mut file.take(size), self.out)?;
        if copied != size {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{} shrank while it was read", String::from_utf8_lossy(path)),
            ));
        }
        self.content += size;
        self.pad(size)
    }

    /// A whiteout or opaque marker: an empty file whose attributes mean nothing.
    fn marker(&mut self, path: &[u8]) -> io::Result<()> {
        let fields = Fields {
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: 0,
            size: 0,
            device: None,
        };
        self.raw(path, b'0', &[], &fields, Vec::new())
    }

    fn header(
        &mut self,
        path: &[u8],
        kind: u8,
        stat: &Stat,
        size: u64,
        extra: &Extra,
    ) -> io::Result<()> {
        let mut records = Vec::new();
        let (uid, gid) = (u64::from(stat.st_uid), u64::from(stat.st_gid));
        if uid > MAX_ID {
            record(&mut records, b"uid", uid.to_string().as_bytes());
        }
        if gid > MAX_ID {
            record(&mut records, b"gid", gid.to_string().as_bytes());
        }
        if size > MAX_SIZE {
            record(&mut records, b"size", size.to_string().as_bytes());
        }
        let seconds = u64::try_from(stat.st_mtime).ok();
        if stat.st_mtime_nsec != 0 || seconds.is_none_or(|s| s > MAX_SIZE) {
            let nanos = i64::try_from(stat.st_mtime_nsec).unwrap_or_default();
            record(
                &mut records,
                b"mtime",
                pax_time(stat.st_mtime, nanos).as_bytes(),
            );
        }
        for (key, value) in &extra.xattrs {
            record(
                &mut records,
                &[b"SCHILY.xattr.", key.as_bytes()].concat(),
                value,
            );
        }
        let device = matches!(kind, b'3' | b'4').then(|| {
            (
                rustix::fs::major(stat.st_rdev),
                rustix::fs::minor(stat.st_rdev),
            )
        });
        let fields = Fields {
            mode: stat.st_mode & 0o7777,
            uid: uid.min(MAX_ID),
            gid: gid.min(MAX_ID),
            mtime: seconds.unwrap_or(0).min(MAX_SIZE),
            size: size.min(MAX_SIZE),
            device,
        };
        self.raw(path, kind, &extra.link, &fields, records)
    }

    fn raw(
        &mut self,
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
            self.out
                .write_all(&block(b"PaxHeaders/entry", b'x', &[], &pax))?;
            self.out.write_all(&long)?;
            self.pad(size)?;
        }
        self.out.write_all(&block(path, kind, link, fields))
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let over = usize::try_from(size % BLOCK as u64).unwrap_or_default();
        if over != 0 {
            self.out.write_all(&[0; BLOCK][over..])?;
        }
        Ok(())
    }
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

pub(super) fn sorted_names(dir: BorrowedFd<'_>) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(open_directory(dir, OsStr::new("."))?)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    names.sort_unstable();
    Ok(names)
}

pub(super) fn open_directory(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?)
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
