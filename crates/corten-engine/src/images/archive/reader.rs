//! A tar, member by member, from anybody. Names and links are bounded, and only what an
//! archive of images can have is read: files, directories, links.

use std::io::{self, Read};

/// Size of a header, and what content is padded to.
const BLOCK: usize = 512;
/// Longest name or link, bytes.
const MAX_NAME: usize = 4096;
/// Largest block of PAX records, bytes.
const MAX_RECORDS: u64 = 64 * 1024;

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    /// To a name relative to the member's own directory.
    Symlink(Vec<u8>),
    /// To a name of the archive.
    HardLink(Vec<u8>),
}

/// One member; its content is read from the reader.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) name: Vec<u8>,
    pub(super) kind: Kind,
    /// Bytes of content.
    pub(super) size: u64,
}

/// Reads members; between two calls of [`next`](Self::next), a member's content.
pub(super) struct Reader<R> {
    inner: R,
    /// Content of the current member that was not read.
    left: u64,
    padding: usize,
    ended: bool,
}

/// What headers before a member's own say about it.
#[derive(Default)]
struct Extra {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

fn bad(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

impl<R: Read> Reader<R> {
    pub(super) fn new(inner: R) -> Self {
        Self {
            inner,
            left: 0,
            padding: 0,
            ended: false,
        }
    }

    /// The next member; `None` at the archive's end.
    pub(super) fn next(&mut self) -> io::Result<Option<Member>> {
        let mut extra = Extra::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let kind = header.entry_type().as_byte();
            let size = header.entry_size()?;
            self.begin(size);
            match kind {
                b'L' => extra.name = Some(self.long(size)?),
                b'K' => extra.link = Some(self.long(size)?),
                b'x' => self.records(size, &mut extra)?,
                b'g' => {}
                _ => return self.member(&header, extra).map(Some),
            }
        }
    }

    fn member(&mut self, header: &tar::Header, extra: Extra) -> io::Result<Member> {
        let name = extra.name.unwrap_or_else(|| header.path_bytes().into());
        let shown = || String::from_utf8_lossy(&name).into_owned();
        let link = || {
            let own = header.link_name_bytes().map(std::borrow::Cow::into_owned);
            let link = extra.link.clone().or(own).unwrap_or_default();
            if link.is_empty() || link.len() > MAX_NAME || link.contains(&0) {
                return Err(bad(format!("{}: a link without a usable target", shown())));
            }
            Ok(link)
        };
        let kind = match header.entry_type().as_byte() {
            b'0' | 0 | b'7' => Kind::File,
            b'5' => Kind::Directory,
            b'2' => Kind::Symlink(link()?),
            b'1' => Kind::HardLink(link()?),
            other => {
                return Err(bad(format!(
                    "{}: an archive of images has no entries of type {:?}",
                    shown(),
                    char::from(other)
                )));
            }
        };
        if name.is_empty() || name.len() > MAX_NAME || name.contains(&0) {
            return Err(bad("an entry without a usable name"));
        }
        // What is no file has no content, whatever its header says.
        let size = extra.size.unwrap_or(self.left);
        if kind == Kind::File {
            self.begin(size);
        }
        Ok(Member { name, kind, size })
    }

    fn begin(&mut self, size: u64) {
        self.left = size;
        let over = usize::try_from(size % BLOCK as u64).unwrap_or_default();
        self.padding = (BLOCK - over) % BLOCK;
    }

    fn skip(&mut self) -> io::Result<()> {
        let rest = self.left.saturating_add(self.padding as u64);
        let skipped = io::copy(&mut self.inner.by_ref().take(rest), &mut io::sink())?;
        (self.left, self.padding) = (0, 0);
        if skipped < rest {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    /// The next header; `None` at two empty blocks, or where the stream ends.
    fn header(&mut self) -> io::Result<Option<tar::Header>> {
        if self.ended {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if filled == 0 || (filled == BLOCK && block.iter().all(|b| *b == 0)) {
            self.ended = true;
            return Ok(None);
        }
        if filled < BLOCK {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let header = tar::Header::from_byte_slice(&block).clone();
        let sum: u32 = (0..BLOCK)
            .map(|at| {
                u32::from(if (148..156).contains(&at) {
                    b' '
                } else {
                    block[at]
                })
            })
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(bad("invalid tar header"));
        }
        Ok(Some(header))
    }

    fn long(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > MAX_NAME as u64 + 1 {
            return Err(bad(format!("a name of more than {MAX_NAME} bytes")));
        }
        let mut name = Vec::new();
        self.by_ref().read_to_end(&mut name)?;
        if name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    fn records(&mut self, size: u64, extra: &mut Extra) -> io::Result<()> {
        if size > MAX_RECORDS {
            return Err(bad(format!("PAX records of more than {MAX_RECORDS} bytes")));
        }
        let mut records = Vec::new();
        self.by_ref().read_to_end(&mut records)?;
        for record in tar::PaxExtensions::new(&records) {
            let record = record.map_err(|_| bad("malformed PAX records"))?;
            let value = record.value_bytes();
            match record.key_bytes() {
                b"path" => extra.name = Some(value.into()),
                b"linkpath" => extra.link = Some(value.into()),
                b"size" => {
                    let text = std::str::from_utf8(value).unwrap_or_default();
                    extra.size = Some(text.parse().map_err(|_| bad("malformed PAX size"))?);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let length = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(out.len());
        if length == 0 {
            return Ok(0);
        }
        let n = self.inner.read(&mut out[..length])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(archive: &[u8]) -> io::Result<Vec<(String, Kind, Vec<u8>)>> {
        let mut reader = Reader::new(archive);
        let mut found = Vec::new();
        while let Some(member) = reader.next()? {
            let mut content = Vec::new();
            reader.read_to_end(&mut content)?;
            let name = String::from_utf8_lossy(&member.name).into_owned();
            found.push((name, member.kind, content));
        }
        Ok(found)
    }

    fn archive() -> Vec<u8> {
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
        let link = Kind::Symlink(format!("../{long}").into_bytes());
        assert_eq!(
            all(&archive()).unwrap(),
            [
                (long, Kind::File, b"hello".to_vec()),
                ("b/layer.tar".into(), link, Vec::new()),
                ("renamed".into(), Kind::File, b"end".to_vec()),
            ]
        );
    }

    #[test]
    fn what_is_cut_off_or_damaged_is_an_error() {
        let whole = archive();
        assert!(all(&whole[..700]).is_err());
        let mut damaged = whole.clone();
        damaged[3] ^= 1;
        assert!(
            all(&damaged)
                .unwrap_err()
                .to_string()
                .contains("tar header")
        );
        assert!(all(b"").unwrap().is_empty());
        assert!(all(b"no archive").is_err());
    }

    #[test]
    fn lengths_are_bounded() {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_size(1 << 40);
        header.set_cksum();
        assert!(
            all(header.as_bytes())
                .unwrap_err()
                .to_string()
                .contains("4096")
        );
        header.set_entry_type(tar::EntryType::XHeader);
        header.set_cksum();
        assert!(
            all(header.as_bytes())
                .unwrap_err()
                .to_string()
                .contains("PAX")
        );
        header.set_entry_type(tar::EntryType::Char);
        header.set_path("device").unwrap();
        header.set_cksum();
        assert!(
            all(header.as_bytes())
                .unwrap_err()
                .to_string()
                .contains("device")
        );
    }
}
