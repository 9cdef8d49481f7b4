//! An archive's files under numbers of ours in a temporary directory, and the names the
//! archive gives them as data: no name of it ever becomes a path. Files are hashed while
//! they come, so that one that turns out to be a blob becomes one by rename.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use corten_oci::digest::Algorithm;
use corten_oci::{Digest, Digester};
use corten_store::archive::{Entry, decompress, entries};
use corten_store::rooted::normal;
use corten_store::{TmpDir, WriteAhead};
use tar::EntryType;

/// Longest name or link, bytes.
const MAX_NAME: usize = 4096;
/// Bytes of headers, names and PAX records before one entry.
const MAX_BEFORE: u64 = 80 * 1024;
/// Members one archive may have.
const MAX_MEMBERS: usize = 200_000;
/// Bytes of all names and links together.
const MAX_NAMES: usize = 64 << 20;
/// Links one name may lead through.
const MAX_LINKS: usize = 16;
/// Bytes of all documents that are read, together.
const MAX_DOCUMENTS: u64 = 256 << 20;
/// Bytes copied at once.
const BUFFER: usize = 256 * 1024;

/// A file of the archive.
#[derive(Debug, Clone)]
pub(in super::super) struct Spooled {
    /// Where it is now.
    pub(in super::super) path: PathBuf,
    /// Of its content.
    pub(in super::super) digest: Digest,
    /// In bytes.
    pub(in super::super) size: u64,
}

#[derive(Debug)]
enum Named {
    File(Spooled),
    Link(PathBuf),
}

/// An archive that has been read.
#[derive(Debug)]
pub(in super::super) struct Spool {
    names: HashMap<PathBuf, Named>,
    documents: Cell<u64>,
    /// Where the files are, until they are taken.
    tmp: TmpDir,
}

fn bad(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

impl Spool {
    /// Reads an archive to its end, compressed (gzip, bzip2, xz, zstd) or not.
    pub(in super::super) fn read(archive: impl Read + Send, tmp: TmpDir) -> io::Result<Self> {
        let (_, plain) = decompress(archive)?;
        let mut names = HashMap::new();
        let (mut length, mut number) = (0, 0_usize);
        let mut buffer = vec![0; BUFFER];
        entries(plain, MAX_BEFORE, |entry| {
            let Some(member) = member(entry)? else {
                return Ok(());
            };
            number += 1;
            let link = match &member {
                Member::File(_) => None,
                Member::Link(_, target) => Some(target),
            };
            length += member.name().as_os_str().len() + link.map_or(0, |l| l.as_os_str().len());
            if number > MAX_MEMBERS || length > MAX_NAMES {
                return Err(bad("it has too many entries"));
            }
            let (name, named) = match member {
                Member::Link(name, target) => (name, Named::Link(target)),
                Member::File(name) => {
                    let path = tmp.path().join(number.to_string());
                    let size = entry.size();
                    enough_room(&tmp, size)?;
                    let algorithm = if name.starts_with("blobs/sha512") {
                        Algorithm::Sha512
                    } else {
                        Algorithm::Sha256
                    };
                    let digest = copy(entry, &path, algorithm, &mut buffer)?;
                    (name, Named::File(Spooled { path, digest, size }))
                }
            };
            if let Some(Named::File(before)) = names.insert(name, named) {
                std::fs::remove_file(before.path)?;
            }
            Ok::<_, io::Error>(())
        })?;
        Ok(Self {
            names,
            documents: Cell::new(0),
            tmp,
        })
    }

    /// The file of a name, through links.
    pub(in super::super) fn find(&self, name: &str) -> Option<&Spooled> {
        let mut name = &normal(Path::new(name));
        for _ in 0..MAX_LINKS {
            match self.names.get(name)? {
                Named::File(file) => return Some(file),
                Named::Link(target) => name = target,
            }
        }
        None
    }

    /// A small file's content. What an archive makes us read is bounded in all.
    pub(in super::super) fn content(&self, file: &Spooled, limit: u64) -> io::Result<Vec<u8>> {
        if file.size > limit {
            return Err(bad(format!(
                "a document of {} bytes, more than the {limit} allowed",
                file.size
            )));
        }
        self.documents.set(self.documents.get() + file.size);
        if self.documents.get() > MAX_DOCUMENTS {
            return Err(bad("its documents refer to each other too often"));
        }
        debug_assert!(file.path.starts_with(self.tmp.path()));
        std::fs::read(&file.path)
    }

    /// Whether there is anything in it.
    pub(in super::super) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

/// What an entry is, of those that an archive of images can have.
enum Member {
    File(PathBuf),
    /// A name for another name.
    Link(PathBuf, PathBuf),
}

impl Member {
    fn name(&self) -> &Path {
        match self {
            Self::File(name) | Self::Link(name, _) => name,
        }
    }
}

/// Reads what an entry's header says; `None`: nothing that counts.
fn member(entry: &Entry<'_, '_, impl Read>) -> io::Result<Option<Member>> {
    let raw = entry.path_bytes();
    let shown = || String::from_utf8_lossy(&raw).into_owned();
    let name = || {
        if raw.is_empty() || raw.len() > MAX_NAME || raw.contains(&0) {
            return Err(bad("an entry without a usable name"));
        }
        Ok(normal(Path::new(OsStr::from_bytes(&raw))))
    };
    let target = || {
        let link = entry.link_name_bytes().unwrap_or_default();
        if link.is_empty() || link.len() > MAX_NAME || link.contains(&0) {
            return Err(bad(format!("{}: a link without a usable target", shown())));
        }
        Ok(PathBuf::from(OsStr::from_bytes(&link)))
    };
    Ok(match entry.header().entry_type() {
        EntryType::XGlobalHeader => None,
        EntryType::Directory => name().map(|_| None)?,
        EntryType::Regular | EntryType::Continuous => Some(Member::File(name()?)),
        // To a name of the archive.
        EntryType::Link => Some(Member::Link(name()?, normal(&target()?))),
        // To a name relative to the entry's own directory.
        EntryType::Symlink => {
            let (name, target) = (name()?, target()?);
            let beside = name.parent().unwrap_or(Path::new(""));
            let target = normal(&beside.join(target));
            Some(Member::Link(name, target))
        }
        other => {
            return Err(bad(format!(
                "{}: an archive of images has no entries of type {:?}",
                shown(),
                char::from(other.as_byte())
            )));
        }
    })
}

/// What a header claims must fit on the disk before a byte of it is written.
fn enough_room(tmp: &TmpDir, size: u64) -> io::Result<()> {
    let room = rustix::fs::statvfs(tmp.path())?;
    let free = room.f_bavail.saturating_mul(room.f_frsize);
    if size > free {
        return Err(io::Error::new(
            io::ErrorKind::StorageFull,
            format!("no space left on device: an entry of {size} bytes, {free} are free"),
        ));
    }
    Ok(())
}

fn copy(
    from: &mut impl Read,
    to: &Path,
    algorithm: Algorithm,
    buffer: &mut [u8],
) -> io::Result<Digest> {
    let mut file = File::create_new(to)?;
    let mut digester = Digester::new(algorithm);
    let (mut ahead, mut length) = (WriteAhead::default(), 0);
    loop {
        let n = from.read(buffer)?;
        if n == 0 {
            return Ok(digester.finish());
        }
        digester.update(&buffer[..n]);
        file.write_all(&buffer[..n])?;
        // It may become a blob, which is synced.
        length += n as u64;
        ahead.written(&file, length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, corten_store::Store) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let database = corten_db::Database::open(&path, &[corten_store::SCHEMA]).unwrap();
        let store = corten_store::Store::open(dir.path(), database);
        (dir, store)
    }

    fn archive(members: &[(&str, char, &str)]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, kind, text) in members {
            let mut header = tar::Header::new_gnu();
            // Names that `set_path` refuses are the point here.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(tar::EntryType::new(*kind as u8));
            let content = if *kind == '0' { *text } else { "" };
            header.as_old_mut().linkname[..text.len()].copy_from_slice(text.as_bytes());
            header.set_size(content.len() as u64);
            header.set_cksum();
            tar.append(&header, content.as_bytes()).unwrap();
        }
        tar.into_inner().unwrap()
    }

    #[test]
    fn names_are_only_data() {
        let (dir, store) = store();
        let archive = archive(&[
            ("../../escape", '0', "one"),
            ("/etc/absolute", '0', "two"),
            ("a/b", '2', "../../../escape"),
            ("hard", '1', "a/b"),
            ("round", '2', "round"),
            ("twice", '0', "first"),
            ("./twice", '0', "second"),
        ]);
        let spool = Spool::read(&archive[..], store.tmp_dir("load").unwrap()).unwrap();
        let text = |name: &str| {
            spool
                .find(name)
                .map(|file| String::from_utf8(spool.content(file, 100).unwrap()).unwrap())
        };
        assert_eq!(text("escape").as_deref(), Some("one"));
        assert_eq!(text("etc/absolute").as_deref(), Some("two"));
        assert_eq!(text("hard").as_deref(), Some("one"));
        assert_eq!(text("twice").as_deref(), Some("second"));
        assert_eq!(text("round"), None);
        let file = spool.find("escape").unwrap();
        assert_eq!(file.digest, Digest::of(b"one"));
        assert!(spool.content(file, 2).is_err());
        assert!(!dir.path().join("escape").exists() && !Path::new("/etc/absolute").exists());
        drop(spool);
        let left = std::fs::read_dir(dir.path().join("tmp")).unwrap().count();
        assert_eq!(left, 0);
    }

    #[test]
    fn compressed_archives() {
        let (_dir, store) = store();
        let plain = archive(&[("f", '0', "content")]);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).unwrap();
        let gzip = gzip.finish().unwrap();
        let zstd = zstd::encode_all(&plain[..], 1).unwrap();
        for bytes in [&plain, &gzip, &zstd] {
            let spool = Spool::read(&bytes[..], store.tmp_dir("load").unwrap()).unwrap();
            assert_eq!(spool.find("f").unwrap().size, 7);
        }
        for cut in [&gzip[..40], b"BZh91AY", b"\xfd7zXZ\0\0"] {
            assert!(Spool::read(cut, store.tmp_dir("load").unwrap()).is_err());
        }
    }

    /// What an archive has under these names.
    fn all(archive: impl Read + Send, names: &[&str]) -> io::Result<Vec<Option<String>>> {
        let (_dir, store) = store();
        let spool = Spool::read(archive, store.tmp_dir("load").unwrap())?;
        let text = |name: &&str| {
            let file = spool.find(name)?;
            Some(String::from_utf8(spool.content(file, 100).unwrap()).unwrap())
        };
        Ok(names.iter().map(text).collect())
    }

    fn with_long_names() -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(5);
        let long = format!("{}/layer.tar", "a".repeat(200));
        tar.append_data(&mut header, &long, &b"hello"[..]).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, "b/layer.tar", format!("../{long}"))
            .unwrap();
        tar.append_pax_extensions([("path", &b"renamed"[..]), ("size", b"3")])
            .unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_path("short").unwrap();
        header.set_size(3);
        header.set_cksum();
        tar.append(&header, &b"end"[..]).unwrap();
        tar.into_inner().unwrap()
    }

    #[test]
    fn reads_long_names_links_and_records() {
        let long = format!("{}/layer.tar", "a".repeat(200));
        let names = [long.as_str(), "b/layer.tar", "renamed", "short"];
        let found = all(&with_long_names()[..], &names).unwrap();
        let found: Vec<_> = found.iter().map(Option::as_deref).collect();
        assert_eq!(found, [Some("hello"), Some("hello"), Some("end"), None]);
    }

    #[test]
    fn what_is_cut_off_or_damaged_is_an_error() {
        let whole = with_long_names();
        let fails = |archive: &[u8]| all(archive, &[]).unwrap_err();
        for cut in [100, 700, 1600] {
            assert_eq!(fails(&whole[..cut]).kind(), io::ErrorKind::InvalidData);
        }
        let mut damaged = whole.clone();
        damaged[3] ^= 1;
        assert!(fails(&damaged).to_string().contains("tar header"));
        assert_eq!(fails(b"no archive").kind(), io::ErrorKind::InvalidData);
        assert!(all(&b""[..], &[]).unwrap().is_empty());
    }

    #[test]
    fn lengths_are_bounded() {
        let mut header = tar::Header::new_gnu();
        let refused = |header: &tar::Header| {
            let archive = io::Cursor::new(header.as_bytes().to_vec()).chain(io::repeat(b'a'));
            all(archive, &[]).unwrap_err().to_string()
        };
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_size(1 << 40);
        header.set_cksum();
        assert!(refused(&header).contains("names and PAX records of more than"));
        header.set_entry_type(tar::EntryType::XHeader);
        header.set_cksum();
        assert!(refused(&header).contains("PAX"));
        header.set_entry_type(tar::EntryType::Char);
        header.set_path("device").unwrap();
        header.set_cksum();
        assert!(refused(&header).contains("device"));
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        let long = "n/".repeat(MAX_NAME / 2) + "n";
        tar.append_data(&mut header, &long, io::empty()).unwrap();
        let named = all(&tar.into_inner().unwrap()[..], &[]);
        assert!(named.unwrap_err().to_string().contains("usable name"));
    }

    #[test]
    fn claims_beyond_the_disk_are_refused_at_once() {
        let (_dir, store) = store();
        let mut header = tar::Header::new_gnu();
        header.set_path("big").unwrap();
        header.set_size(1 << 60);
        header.set_cksum();
        let refused = Spool::read(&header.as_bytes()[..], store.tmp_dir("load").unwrap());
        assert!(refused.unwrap_err().to_string().contains("no space left"));
    }
}
