//! The deterministic tar of a layer directory.
//!
//! The same directory always gives the same bytes: names sorted, numeric owners, headers as
//! `tar_header` writes them, attributes sorted. The overlay's own notation is turned into the
//! OCI one: character device 0:0 → `.wh.NAME`, opaque directory → `.wh..wh..opq`
//! (image-spec `layer.md`). A diff id is the digest of these bytes, so what is written here
//! must never change.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT};

use super::walk::{open_directory, walk};
use super::{sparse_write, tar_header, xattr};
use crate::rooted::open_seen;

/// What `st_blocks` counts in.
const BLOCK: u64 = 512;

/// When the entries are said to have been changed. Times are in seconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dates {
    /// As the files say.
    Own,
    /// As the files say, but none later than this. Later files are given this time themselves,
    /// so that their tar is the same whenever it is written.
    Until(i64),
    /// All this.
    At(i64),
}

/// Writes the tar of everything under `dir` and tells how many bytes of file content it has.
pub(super) fn write(dir: BorrowedFd<'_>, out: &mut impl Write) -> io::Result<u64> {
    write_dated(dir, Dates::Own, out)
}

/// As [`write`], with these times.
pub(super) fn write_dated(
    dir: BorrowedFd<'_>,
    dates: Dates,
    out: &mut impl Write,
) -> io::Result<u64> {
    whole(dir, &[], false, dates, out)
}

/// As [`write`], of a directory that may change meanwhile: what has vanished is left out, and
/// what has shrunk ends in zeros, as with tar(1). `left_out`: absolute paths that are not
/// written, with what is below them.
pub(super) fn write_living(
    dir: BorrowedFd<'_>,
    left_out: &[PathBuf],
    out: &mut impl Write,
) -> io::Result<u64> {
    whole(dir, left_out, true, Dates::Own, out)
}

/// Writes the tar of one entry of a directory (`.`: the directory itself) that may change
/// meanwhile, and of everything below it. The entry is called `called`, and what is below it
/// accordingly; an empty name is that of the archive's own root.
pub(super) fn write_entry(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    called: &[u8],
    out: &mut impl Write,
) -> io::Result<()> {
    let mut writer = Writer {
        out,
        links: HashMap::new(),
        content: 0,
        left_out: &[],
        living: true,
        dates: Dates::Own,
        exact: false,
    };
    let mut prefix = called.to_vec();
    // A directory's name gets its slash.
    if let Some(below) = writer.entry(dir, name, &mut prefix)? {
        walk(below.as_fd(), true, |here, name, path| {
            let length = path.len();
            let mut whole = [prefix.as_slice(), path.as_slice()].concat();
            let child = writer.entry(here, name, &mut whole)?;
            path.extend_from_slice(&whole[prefix.len() + length..]);
            Ok(child)
        })?;
    }
    tar_header::end(writer.out)
}

/// Writes the tar of a directory that is no layer, and may change meanwhile: itself and everything
/// below it, whatever overlayfs would mean by that, and of files with holes only the data (GNU tar's
/// PAX form 1.0).
pub(super) fn write_exactly(dir: BorrowedFd<'_>, out: &mut impl Write) -> io::Result<()> {
    let mut writer = Writer {
        out,
        links: HashMap::new(),
        content: 0,
        left_out: &[],
        living: true,
        dates: Dates::Own,
        exact: true,
    };
    let mut root = b".".to_vec();
    if let Some(below) = writer.entry(dir, OsStr::new("."), &mut root)? {
        walk(below.as_fd(), true, |here, name, path| {
            let length = path.len();
            let mut whole = [b"./", path.as_slice()].concat();
            let child = writer.entry(here, name, &mut whole)?;
            path.extend_from_slice(&whole[2 + length..]);
            Ok(child)
        })?;
    }
    tar_header::end(writer.out)
}

fn whole(
    dir: BorrowedFd<'_>,
    left_out: &[PathBuf],
    living: bool,
    dates: Dates,
    out: &mut impl Write,
) -> io::Result<u64> {
    let mut writer = Writer {
        out,
        links: HashMap::new(),
        content: 0,
        left_out,
        living,
        dates,
        exact: false,
    };
    writer.tree(dir)?;
    tar_header::end(writer.out)?;
    Ok(writer.content)
}

struct Writer<'a> {
    out: &'a mut dyn Write,
    /// First name of each file that has several.
    links: HashMap<(u64, u64), Vec<u8>>,
    content: u64,
    left_out: &'a [PathBuf],
    /// The directory may change while it is read.
    living: bool,
    dates: Dates,
    /// It is no layer: whiteouts are devices, and holes are kept.
    exact: bool,
}

impl Writer<'_> {
    /// Everything under a directory. Of what vanishes meanwhile nothing is in the tar, or a
    /// directory without what was in it.
    fn tree(&mut self, dir: BorrowedFd<'_>) -> io::Result<()> {
        walk(dir, self.living, |here, name, path| {
            let left_out = |left_out: &PathBuf| {
                left_out.as_os_str().as_bytes().strip_prefix(b"/") == Some(path.as_slice())
            };
            if self.left_out.iter().any(left_out) {
                return Ok(None);
            }
            self.entry(here, name, path)
        })
    }

    /// Writes an entry; a directory is opened, to be gone through next.
    fn entry(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        path: &mut Vec<u8>,
    ) -> io::Result<Option<OwnedFd>> {
        let mut stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::CharacterDevice && stat.st_rdev == 0 && !self.exact {
            return tar_header::whiteout(self.out, path, name.len()).map(|()| None);
        }
        self.date(dir, name, &mut stat)?;
        let xattrs = xattr::list(dir, name)?;
        let mut entry = described(&stat);
        if kind != FileType::Directory && stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                let (kind, link) = (b'1', first.as_slice());
                let entry = tar_header::Entry {
                    kind,
                    link,
                    ..entry
                };
                return tar_header::write(self.out, path, &entry).map(|()| None);
            }
            self.links.insert((stat.st_dev, stat.st_ino), path.clone());
        }
        entry.xattrs = &xattrs;
        entry.bookkeeping = self.exact;
        let target;
        entry.kind = match kind {
            FileType::RegularFile => {
                return self.file(dir, name, path, &stat, entry).map(|()| None);
            }
            FileType::Directory => b'5',
            FileType::Symlink => {
                target = rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes();
                entry.link = &target;
                b'2'
            }
            FileType::CharacterDevice => b'3',
            FileType::BlockDevice => b'4',
            FileType::Fifo => b'6',
            // A socket is an address of a living process: it has no meaning in an image.
            _ => return Ok(None),
        };
        if kind != FileType::Directory {
            return tar_header::write(self.out, path, &entry).map(|()| None);
        }
        path.push(b'/');
        tar_header::write(self.out, path, &entry)?;
        if !self.exact && tar_header::is_opaque(&xattrs) {
            tar_header::opaque(self.out, path)?;
        }
        open_directory(dir, name).map(Some)
    }

    /// Settles when a file was changed.
    fn date(&self, dir: BorrowedFd<'_>, name: &OsStr, stat: &mut Stat) -> io::Result<()> {
        let date = match self.dates {
            Dates::Own => return Ok(()),
            Dates::At(date) => date,
            Dates::Until(last) if (stat.st_mtime, stat.st_mtime_nsec) <= (last, 0) => {
                return Ok(());
            }
            Dates::Until(last) => {
                let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
                let times = Timestamps {
                    last_access: time(0, UTIME_OMIT),
                    last_modification: time(last, 0),
                };
                rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
                last
            }
        };
        (stat.st_mtime, stat.st_mtime_nsec) = (date, 0);
        Ok(())
    }

    fn file(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        path: &[u8],
        stat: &Stat,
        mut entry: tar_header::Entry<'_>,
    ) -> io::Result<()> {
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        (entry.kind, entry.size) = (b'0', size);
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = if self.living {
            open_seen(dir, name, stat)?
        } else {
            rustix::fs::openat(dir, name, flags | OFlags::RDONLY, Mode::empty())?
        };
        let file = std::fs::File::from(file);
        let blocks = u64::try_from(stat.st_blocks).unwrap_or_default();
        if self.exact
            && blocks * BLOCK < size
            && let Some(pieces) = sparse_write::pieces(&file, size, sparse_write::MAX_PIECES)?
        {
            return sparse_write::write(self.out, path, &file, &pieces, entry);
        }
        tar_header::write(self.out, path, &entry)?;
        let copied = io::copy(&mut file.take(size), &mut self.out)?;
        if copied != size && self.living {
            io::copy(&mut io::repeat(0).take(size - copied), &mut self.out)?;
        } else if copied != size {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{} shrank while it was read", String::from_utf8_lossy(path)),
            ));
        }
        self.content += size;
        tar_header::pad(self.out, size)
    }
}

fn described(stat: &Stat) -> tar_header::Entry<'static> {
    tar_header::Entry {
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (
            stat.st_mtime,
            u32::try_from(stat.st_mtime_nsec).unwrap_or_default(),
        ),
        device: (
            rustix::fs::major(stat.st_rdev),
            rustix::fs::minor(stat.st_rdev),
        ),
        ..tar_header::Entry::default()
    }
}
