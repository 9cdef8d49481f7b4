//! An archive's files under numbers of ours in a temporary directory, and the names the
//! archive gives them as data: no name of it ever becomes a path. Files are hashed while
//! they come, so that one that turns out to be a blob becomes one by rename.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use corten_oci::digest::Algorithm;
use corten_oci::media_type::Compression;
use corten_oci::{Digest, Digester};
use corten_store::TmpDir;
use corten_store::rooted::normal;

use super::reader::{Kind, Reader};

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
    /// Reads an archive to its end, compressed (gzip, zstd) or not.
    pub(in super::super) fn read(archive: impl Read, tmp: TmpDir) -> io::Result<Self> {
        let mut reader = Reader::new(inflate(archive)?);
        let mut names = HashMap::new();
        let (mut length, mut number) = (0, 0_usize);
        let mut buffer = vec![0; BUFFER];
        while let Some(member) = reader.next()? {
            let raw = Path::new(std::ffi::OsStr::from_bytes(&member.name));
            let name = normal(raw);
            number += 1;
            let link = match member.kind {
                Kind::Directory => continue,
                Kind::File => None,
                Kind::HardLink(target) => {
                    Some(normal(Path::new(std::ffi::OsStr::from_bytes(&target))))
                }
                Kind::Symlink(target) => {
                    let beside = name.parent().unwrap_or(Path::new(""));
                    Some(normal(&beside.join(std::ffi::OsStr::from_bytes(&target))))
                }
            };
            length += name.as_os_str().len() + link.as_ref().map_or(0, |l| l.as_os_str().len());
            if number > MAX_MEMBERS || length > MAX_NAMES {
                return Err(bad("it has too many entries"));
            }
            let named = match link {
                Some(target) => Named::Link(target),
                None => {
                    let path = tmp.path().join(number.to_string());
                    enough_room(&tmp, member.size)?;
                    let algorithm = if name.starts_with("blobs/sha512") {
                        Algorithm::Sha512
                    } else {
                        Algorithm::Sha256
                    };
                    let digest = copy(&mut reader, &path, algorithm, &mut buffer)?;
                    Named::File(Spooled {
                        path,
                        digest,
                        size: member.size,
                    })
                }
            };
            if let Some(Named::File(before)) = names.insert(name, named) {
                std::fs::remove_file(before.path)?;
            }
        }
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
    loop {
        let n = from.read(buffer)?;
        if n == 0 {
            return Ok(digester.finish());
        }
        digester.update(&buffer[..n]);
        file.write_all(&buffer[..n])?;
    }
}

/// The plain bytes of an archive.
fn inflate<'a>(mut archive: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut head = Vec::new();
    archive.by_ref().take(6).read_to_end(&mut head)?;
    for (magic, name) in [
        (&b"BZh"[..], "bzip2"),
        (&[0xfd, b'7', b'z', b'X', b'Z'], "xz"),
    ] {
        if head.starts_with(magic) {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!(
                    "archives compressed with {name} are not read: unpack it first, or use gzip or zstd"
                ),
            ));
        }
    }
    let compression = Compression::sniff(&head);
    let whole = BufReader::with_capacity(BUFFER, io::Cursor::new(head).chain(archive));
    Ok(match compression {
        Compression::None => Box::new(whole),
        Compression::Gzip => Box::new(BufReader::with_capacity(
            BUFFER,
            flate2::bufread::MultiGzDecoder::new(whole),
        )),
        Compression::Zstd => Box::new(BufReader::with_capacity(
            BUFFER,
            zstd::stream::read::Decoder::with_buffer(whole)?,
        )),
    })
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
        for (bytes, name) in [(&b"BZh91AY"[..], "bzip2"), (b"\xfd7zXZ\0\0", "xz")] {
            let refused = Spool::read(bytes, store.tmp_dir("load").unwrap()).unwrap_err();
            assert!(refused.to_string().contains(name), "{refused}");
        }
        assert!(Spool::read(&gzip[..40], store.tmp_dir("load").unwrap()).is_err());
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
