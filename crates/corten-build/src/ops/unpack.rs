//! Unpacking tar archives of a user: ADD, and contexts that come as a stream. Archives are
//! hostile: every name and link target is resolved inside the directory, and nothing that is
//! there already is written through.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use corten_store::archive::{
    Entry, Plain, SparseFile, attributes, copy_with_holes, decompress, entries, set_attribute,
    sparse,
};
use corten_store::rooted::{RootFd, normal};
use rustix::fs::{AtFlags, FileType, Mode};
use tar::EntryType;

use super::write::{create, make_directory, replace, set_mode, set_owner, set_time};
use crate::cancel::Cancel;

/// Whose the unpacked files are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owners {
    /// Those the archive names.
    pub(crate) keep: bool,
    /// This one, for all.
    pub(crate) instead: Option<(u32, u32)>,
}

/// Bytes of names and PAX records before one entry.
const MAX_BEFORE: u64 = 8 << 20;
/// Size of a tar header.
const BLOCK: usize = 512;

/// The archive in a file, inflated; `None`: the file is none.
pub(crate) fn open(mut file: File) -> io::Result<Option<Plain<'static>>> {
    let mut head = Vec::new();
    let Ok((_, plain)) = decompress(&file) else {
        return Ok(None);
    };
    if plain.take(BLOCK as u64).read_to_end(&mut head).is_err() || !is_header(&head) {
        return Ok(None); // only looks like something compressed
    }
    file.rewind()?;
    decompress(file).map(|(_, plain)| Some(plain))
}

/// A tar header tells itself by its checksum.
fn is_header(block: &[u8]) -> bool {
    if block.len() < BLOCK || block.iter().all(|&b| b == 0) {
        return false;
    }
    let header = tar::Header::from_byte_slice(block);
    let sum: u32 = block
        .iter()
        .enumerate()
        .map(|(at, &byte)| u32::from(if (148..156).contains(&at) { b' ' } else { byte }))
        .sum();
    header.cksum().is_ok_and(|expected| expected == sum)
}

/// Unpacks everything into a directory.
pub(crate) fn unpack(
    archive: Plain<'_>,
    inside: &RootFd,
    owners: Owners,
    cancel: &Cancel,
) -> io::Result<()> {
    let mut times = Vec::new();
    entries(archive, MAX_BEFORE, |entry| {
        if cancel.is_cancelled() {
            return Err(io::Error::from(io::ErrorKind::Interrupted));
        }
        let holes = match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => sparse(entry)?,
            _ => None,
        };
        let named = holes.as_ref().and_then(|holes| holes.name.clone());
        let named = named.unwrap_or_else(|| entry.path_bytes().into_owned());
        let path = normal(Path::new(OsStr::from_bytes(&named)));
        one(entry, &path, holes.as_ref(), inside, owners, &mut times)
            .map_err(|e| io::Error::new(e.kind(), format!("entry \"{}\": {e}", path.display())))
    })?;
    for (path, time) in times.into_iter().rev() {
        if let Some((dir, name)) = inside.parent(&path)? {
            set_time(dir.as_fd(), &name, time)?;
        }
    }
    Ok(())
}

fn one(
    entry: &mut Entry<'_, '_, impl Read>,
    path: &Path,
    holes: Option<&SparseFile>,
    inside: &RootFd,
    owners: Owners,
    times: &mut Vec<(PathBuf, (i64, i64))>,
) -> io::Result<()> {
    let header = entry.header().clone();
    let kind = header.entry_type();
    if matches!(kind, EntryType::XGlobalHeader) {
        return Ok(());
    }
    let Some(name) = path.file_name() else {
        return Ok(()); // the directory itself
    };
    let above = path.parent().unwrap_or(Path::new(""));
    let dir = make_directory(inside, above, owners.instead, 0o755)?;
    let dir = dir.as_fd();
    let said = attributes(entry)?;
    let (mode, time) = (said.mode, (said.mtime.0, i64::from(said.mtime.1)));
    let owner = owners.instead.unwrap_or(if owners.keep {
        (said.uid, said.gid)
    } else {
        (0, 0)
    });
    match kind {
        EntryType::Directory => {
            match rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
            let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                replace(dir, name)?;
                rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755))?;
            }
            set_owner(dir, name, owner)?;
            set_mode(dir, name, mode)?;
            set_xattrs(dir, name, &said.xattrs)?;
            times.push((path.to_owned(), time));
            return Ok(());
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let mut file = create(dir, name)?;
            match holes {
                Some(holes) => copy_with_holes(holes.expanded(entry), &mut file)?,
                None => copy_with_holes(entry, &mut file)?,
            };
        }
        EntryType::Symlink => {
            let target = link_name(entry)?;
            replace(dir, name)?;
            rustix::fs::symlinkat(&target, dir, name)?;
            set_owner(dir, name, owner)?;
            set_xattrs(dir, name, &said.xattrs)?;
            return set_time(dir, name, time);
        }
        EntryType::Link => {
            let target = link_name(entry)?;
            let Some((from, old)) = inside.parent(&target)? else {
                return Err(io::Error::other("a link to a directory"));
            };
            replace(dir, name)?;
            rustix::fs::linkat(&from, &old, dir, name, AtFlags::empty())?;
            return Ok(());
        }
        EntryType::Fifo | EntryType::Char | EntryType::Block => {
            let file_type = match kind {
                EntryType::Fifo => FileType::Fifo,
                EntryType::Char => FileType::CharacterDevice,
                _ => FileType::BlockDevice,
            };
            let major = header.device_major()?.unwrap_or(0);
            let minor = header.device_minor()?.unwrap_or(0);
            replace(dir, name)?;
            let device = rustix::fs::makedev(major, minor);
            rustix::fs::mknodat(dir, name, file_type, Mode::from_raw_mode(0o600), device)?;
        }
        other => {
            return Err(io::Error::other(format!(
                "unknown type {:?}",
                other.as_byte() as char
            )));
        }
    }
    set_owner(dir, name, owner)?;
    set_mode(dir, name, mode)?;
    // After the owner: a change of it takes capabilities away.
    set_xattrs(dir, name, &said.xattrs)?;
    set_time(dir, name, time)
}

/// Extended attributes, file capabilities among them.
fn set_xattrs(dir: BorrowedFd<'_>, name: &OsStr, all: &[(OsString, Vec<u8>)]) -> io::Result<()> {
    all.iter()
        .try_for_each(|(key, value)| set_attribute(dir, name, key, value))
}

fn link_name(entry: &Entry<'_, '_, impl Read>) -> io::Result<PathBuf> {
    let name = entry
        .link_name_bytes()
        .ok_or_else(|| io::Error::other("a link without a target"))?;
    Ok(PathBuf::from(OsStr::from_bytes(&name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            header.set_mtime(1);
            header.set_uid(0);
            header.set_gid(0);
            if *kind == EntryType::Regular {
                header.set_size(content.len() as u64);
            } else {
                header.set_link_name_literal(content).unwrap();
                header.set_size(0);
            }
            header.set_cksum();
            let body = if *kind == EntryType::Regular {
                content.as_bytes()
            } else {
                b""
            };
            builder.append(&header, body).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn nothing_leaves_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let inside = RootFd::open(&root).unwrap();
        let tar = archive(&[
            ("../up", EntryType::Regular, "a"),
            ("/abs", EntryType::Regular, "b"),
            ("out", EntryType::Symlink, "../.."),
            ("out/x", EntryType::Regular, "c"),
            ("hard", EntryType::Link, "up"),
        ]);
        let owners = Owners {
            keep: false,
            instead: Some((0, 0)),
        };
        let (_, plain) = decompress(tar.as_slice()).unwrap();
        let done = unpack(plain, &inside, owners, &Cancel::default());
        if !rustix::process::geteuid().is_root() {
            return; // owners cannot be set
        }
        done.unwrap();
        assert_eq!(std::fs::read(root.join("up")).unwrap(), b"a");
        assert_eq!(std::fs::read(root.join("abs")).unwrap(), b"b");
        assert_eq!(std::fs::read(root.join("x")).unwrap(), b"c");
        assert_eq!(std::fs::read(root.join("hard")).unwrap(), b"a");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn attributes_and_times_are_kept() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let inside = RootFd::open(dir.path()).unwrap();
        let mut builder = tar::Builder::new(Vec::new());
        // cap_net_raw=ep
        let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        builder
            .append_pax_extensions([
                ("SCHILY.xattr.security.capability", &capability[..]),
                ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                ("uid", b"7"),
                ("mtime", b"12.5"),
            ])
            .unwrap();
        let entry = archive(&[("ping", EntryType::Regular, "x")]);
        let mut header = tar::Header::from_byte_slice(&entry[..BLOCK]).clone();
        header.set_mode(0o755);
        header.set_cksum();
        builder.append(&header, &b"x"[..]).unwrap();
        let tar = builder.into_inner().unwrap();
        let (_, plain) = decompress(tar.as_slice()).unwrap();
        let owners = Owners {
            keep: true,
            instead: None,
        };
        unpack(plain, &inside, owners, &Cancel::default()).unwrap();
        let path = dir.path().join("ping");
        let mut value = [0; 64];
        let read = rustix::fs::lgetxattr(&path, "security.capability", &mut value[..]).unwrap();
        assert_eq!(&value[..read], capability);
        assert!(rustix::fs::lgetxattr(&path, "trusted.overlay.opaque", &mut value[..]).is_err());
        let stat = rustix::fs::stat(&path).unwrap();
        assert_eq!(
            (stat.st_uid, stat.st_mtime, stat.st_mtime_nsec),
            (7, 12, 500_000_000)
        );
    }

    #[test]
    fn only_archives_are_archives() {
        assert!(is_header(
            &archive(&[("f", EntryType::Regular, "x")])[..BLOCK]
        ));
        assert!(!is_header(&[b'x'; BLOCK]) && !is_header(&[0; BLOCK]) && !is_header(b"x"));
    }
}
