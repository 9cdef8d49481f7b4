//! Archives from strangers: their plain bytes, whatever compressed them, and their entries.
//! Both are streams; what must be held of them is bounded here, what their content may amount
//! to is the caller's to bound.

mod entry;
mod pax;
mod sparse;

use std::cell::{Cell, RefCell};
use std::io::{self, BufRead, BufReader, Read};
use std::rc::Rc;

use corten_oci::Printable;
use corten_oci::media_type::Compression;

pub use crate::layers::{
    Attributes, WHITEOUT, attributes, may_be_in_a_layer, set_attribute, write_entry, write_exactly,
};
pub use entry::Entry;
pub use pax::{Pax, Records};
pub use sparse::{SparseFile, copy_with_holes, sparse};

/// Bytes read at once.
const BUFFER: usize = 256 * 1024;
/// First bytes that tell a compression.
const HEAD: u64 = 6;
/// Memory that an xz archive may ask for, KiB (`xz -9` asks for 65 MiB).
const XZ_MEMORY: u32 = 128 * 1024;
/// Size of a tar header, and what content is padded to.
const BLOCK: u64 = 512;

/// The plain bytes of an archive.
pub type Plain<'a> = Box<dyn Read + Send + 'a>;

/// The plain bytes of an archive, and how they were compressed: gzip, bzip2, xz, zstd (also of
/// several members), or not at all. The first bytes tell.
///
/// # Errors
/// The archive cannot be read.
pub fn decompress<'a>(archive: impl Read + Send + 'a) -> io::Result<(Compression, Plain<'a>)> {
    decompress_buffered(BufReader::with_capacity(BUFFER, archive))
}

/// As [`decompress`], of an archive that has memory of its own: nothing is copied to get at it.
///
/// # Errors
/// As [`decompress`].
pub fn decompress_buffered<'a>(
    archive: impl BufRead + Send + 'a,
) -> io::Result<(Compression, Plain<'a>)> {
    let (compression, whole) = sniff_buffered(archive)?;
    let plain: Plain<'a> = match compression {
        Compression::None => Box::new(whole),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
        Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(whole)),
        Compression::Xz => Box::new(Xz(lzma_rust2::XzReader::new_mem_limit(
            whole, true, XZ_MEMORY,
        ))),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(whole)?),
    };
    Ok((compression, plain))
}

/// How an archive is compressed, and the same archive from its beginning.
///
/// # Errors
/// The archive cannot be read.
pub fn sniff<'a>(
    archive: impl Read + Send + 'a,
) -> io::Result<(Compression, impl BufRead + Send + 'a)> {
    sniff_buffered(BufReader::with_capacity(BUFFER, archive))
}

fn sniff_buffered<'a>(
    mut archive: impl BufRead + Send + 'a,
) -> io::Result<(Compression, impl BufRead + Send + 'a)> {
    let mut head = Vec::new();
    archive.by_ref().take(HEAD).read_to_end(&mut head)?;
    let compression = Compression::sniff(&head);
    Ok((compression, io::Cursor::new(head).chain(archive)))
}

/// An xz stream; says how much memory it may ask for.
struct Xz<R: Read>(lzma_rust2::XzReader<R>);

impl<R: Read> Read for Xz<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.read(out).map_err(|error| match error.kind() {
            io::ErrorKind::OutOfMemory => invalid(format!(
                "unpacking the xz archive takes more than {} MiB of memory",
                XZ_MEMORY / 1024
            )),
            _ => error,
        })
    }
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// What is known of a tar while it is read.
#[derive(Debug, Default)]
struct Meter {
    /// Bytes read.
    read: Cell<u64>,
    /// Where reading ends; `None`: nowhere.
    end: Cell<Option<u64>>,
    /// Reading failed, or was ended.
    failed: Cell<bool>,
    /// The block of zeros that ends an archive was there.
    ended: Cell<bool>,
    /// Where the next header begins, while it is known.
    header: Cell<Option<u64>>,
    /// The PAX records before the entry that comes next.
    pax: RefCell<Pax>,
}

/// A tar, of which no more is read than is allowed.
#[derive(Debug)]
pub struct Metered<R> {
    inner: R,
    meter: Rc<Meter>,
    before: u64,
    /// What was read to be looked at first, and how much of it was handed on.
    held: Vec<u8>,
    handed: usize,
}

impl<R: Read> Metered<R> {
    /// Reads a header, and PAX records with it if that is what it is about: `left` bytes at most.
    fn hold(&mut self, position: u64, left: u64) -> io::Result<()> {
        self.held.drain(..self.handed);
        self.handed = 0;
        self.meter.header.set(None);
        if left < BLOCK || !self.fill(BLOCK)? {
            return Ok(());
        }
        if self.block(0).iter().all(|byte| *byte == 0) {
            self.meter.ended.set(true);
            return Ok(());
        }
        let header = tar::Header::from_byte_slice(self.block(0));
        let Ok(size) = header.entry_size() else {
            return Ok(());
        };
        let is_pax = match header.entry_type() {
            tar::EntryType::XHeader => true,
            tar::EntryType::GNULongName | tar::EntryType::GNULongLink => false,
            kind => return self.correct_size(kind, size, left),
        };
        let whole = size.checked_next_multiple_of(BLOCK);
        let Some(whole) = whole.filter(|whole| *whole <= left - BLOCK) else {
            return Ok(()); // who reads on is told
        };
        if is_pax {
            if !self.fill(BLOCK + whole)? {
                return Ok(());
            }
            let start = BLOCK as usize;
            let end = start + usize::try_from(size).unwrap_or_default();
            *self.meter.pax.borrow_mut() = Pax::take(&mut self.held[start..end]);
        }
        self.meter.header.set(Some(position + BLOCK + whole));
        Ok(())
    }

    /// Has a header say the size that counts, if it does not: a PAX record's, which the `tar`
    /// crate is not shown; and of what has no content, 0.
    fn correct_size(&mut self, kind: tar::EntryType, said: u64, left: u64) -> io::Result<()> {
        use tar::EntryType::{GNUSparse, XGlobalHeader};
        let recorded = match kind {
            GNUSparse | XGlobalHeader => None,
            _ => self.meter.pax.borrow().size(),
        };
        let mut size = recorded.unwrap_or(said);
        if size > 0 && has_no_content(kind) && !self.has_content_still(kind, size, left)? {
            size = 0;
        }
        // A header that is damaged stays so.
        if size != said && is_header(self.block(0)) {
            let mut corrected = tar::Header::from_byte_slice(self.block(0)).clone();
            corrected.set_size(size);
            corrected.set_cksum();
            self.held[..BLOCK as usize].copy_from_slice(corrected.as_bytes());
        }
        Ok(())
    }

    /// Of a link, directory or device, some archivers say how large the file is, or how large the
    /// directory was, and no content follows. What follows tells. Zeros are the end of the
    /// archive, but for content of a hard link (POSIX) that ends where a header begins.
    fn has_content_still(
        &mut self,
        kind: tar::EntryType,
        size: u64,
        left: u64,
    ) -> io::Result<bool> {
        if !self.fill(2 * BLOCK)? {
            return Ok(!self.block(1).is_empty()); // it was cut off there
        }
        if is_header(self.block(1)) {
            return Ok(false);
        }
        if self.block(1).iter().any(|byte| *byte != 0) {
            return Ok(true);
        }
        let whole = size.checked_next_multiple_of(BLOCK);
        let whole = whole.filter(|whole| Some(*whole) <= left.checked_sub(2 * BLOCK));
        match whole {
            Some(whole) if kind == tar::EntryType::Link => {
                let is_whole = self.fill(BLOCK + whole + BLOCK)?;
                Ok(is_whole && is_header(self.block(1 + whole / BLOCK)))
            }
            _ => Ok(false),
        }
    }

    /// A block of those that are held; of what is not, nothing.
    fn block(&self, n: u64) -> &[u8] {
        let start = usize::try_from(n * BLOCK).unwrap_or(usize::MAX);
        let held = self.held.get(start..).unwrap_or_default();
        &held[..held.len().min(BLOCK as usize)]
    }

    /// Reads until so many bytes are held; `false`: there are not so many.
    fn fill(&mut self, length: u64) -> io::Result<bool> {
        let more = length.saturating_sub(self.held.len() as u64);
        let read = (&mut self.inner).take(more).read_to_end(&mut self.held);
        let read = read.inspect_err(|_| self.meter.failed.set(true))?;
        Ok(read as u64 == more)
    }
}

/// Whether nothing of that type has content.
fn has_no_content(kind: tar::EntryType) -> bool {
    use tar::EntryType::{Block, Char, Directory, Fifo, Link, Symlink};
    matches!(kind, Link | Symlink | Char | Block | Directory | Fifo)
}

/// Whether a block is a tar header, as its checksum says.
#[must_use]
pub fn is_header(block: &[u8]) -> bool {
    if block.len() as u64 != BLOCK {
        return false;
    }
    let said = tar::Header::from_byte_slice(block).cksum();
    // Its own field counts as blanks.
    let is_sum = |at: usize| (148..156).contains(&at);
    let bytes = block.iter().enumerate();
    let sum = bytes.map(|(at, byte)| if is_sum(at) { 32 } else { u32::from(*byte) });
    said.is_ok_and(|said| said == sum.sum::<u32>())
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.meter.read.get();
        let left = self.meter.end.get().map_or(u64::MAX, |end| end - read);
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(out.len());
        if length == 0 && !out.is_empty() {
            self.meter.failed.set(true);
            return Err(invalid(format!(
                "names and PAX records of more than {} bytes before an entry",
                self.before
            )));
        }
        if self.meter.header.get() == Some(read) {
            self.hold(read, left)?;
        }
        let held = &self.held[self.handed..];
        if !held.is_empty() {
            let n = held.len().min(length);
            out[..n].copy_from_slice(&held[..n]);
            self.handed += n;
            self.meter.read.set(read + n as u64);
            return Ok(n);
        }
        loop {
            match self.inner.read(&mut out[..length]) {
                Ok(n) => {
                    self.meter.read.set(read + n as u64);
                    return Ok(n);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.meter.failed.set(true);
                    return Err(error);
                }
            }
        }
    }
}

/// Reads a tar and hands over every entry. Long names, PAX records and the maps of sparse files,
/// which stand before what they are about, are held in memory: of these and of headers, no
/// more than `before` bytes are read for one entry.
///
/// # Errors
/// The archive is malformed ([`io::ErrorKind::InvalidData`]) or cannot be read, or what `visit`
/// says.
pub fn entries<R: Read, E: From<io::Error>>(
    tar: R,
    before: u64,
    visit: impl FnMut(&mut Entry<'_, '_, Metered<R>>) -> Result<(), E>,
) -> Result<(), E> {
    entries_of(tar, before, false, visit)
}

/// As [`entries`]. `entire`: an archive without an end, as one that was cut off between two entries,
/// is malformed.
///
/// # Errors
/// As [`entries`].
pub fn entries_of<R: Read, E: From<io::Error>>(
    tar: R,
    before: u64,
    entire: bool,
    mut visit: impl FnMut(&mut Entry<'_, '_, Metered<R>>) -> Result<(), E>,
) -> Result<(), E> {
    let meter = Rc::new(Meter::default());
    let mut archive = tar::Archive::new(Metered {
        inner: tar,
        meter: meter.clone(),
        before,
        held: Vec::new(),
        handed: 0,
    });
    let begun = Cell::new(false);
    let malformed = |error: io::Error| {
        if meter.failed.get() {
            error
        } else if entire && !begun.get() {
            invalid("this is no tar archive, nor one compressed by gzip, bzip2, xz or zstd")
        } else {
            // It repeats what it found.
            let error = Printable(error);
            invalid(format!("bad tar header or length: {error}"))
        }
    };
    let mut entries = archive.entries().map_err(malformed)?;
    // What the entry before has left to be passed over.
    let mut unread = 0_u64;
    meter.header.set(Some(0));
    loop {
        let end = meter
            .read
            .get()
            .saturating_add(unread)
            .saturating_add(before);
        meter.end.set(Some(end));
        let Some(entry) = entries.next() else {
            return match (entire && !meter.ended.get(), begun.get()) {
                (false, _) => Ok(()),
                (true, false) => Err(invalid("the archive is empty, without even an end").into()),
                (true, true) => {
                    Err(invalid("the archive has no end: it was cut off after an entry").into())
                }
            };
        };
        let mut entry = entry.map_err(malformed)?;
        begun.set(true);
        meter.end.set(None);
        meter.header.set(None);
        let start = meter.read.get();
        let pax = meter.pax.take();
        visit(&mut Entry::new(&mut entry, &pax))?;
        let stored = entry.header().entry_size().unwrap_or_default();
        let (stored, next) = match entry.header().entry_type() {
            // Its size is that of the file, holes and all; or what a record says.
            // No archiver writes both, and where the next header is would be a guess.
            tar::EntryType::GNUSparse if pax.has(b"size") => {
                return Err(malformed(invalid("a sparse file says its size twice")).into());
            }
            tar::EntryType::GNUSparse => (stored, Some(stored)),
            _ => (stored.max(entry.size()), Some(entry.size())),
        };
        let next = next.and_then(|size| size.checked_next_multiple_of(BLOCK));
        let next = next.and_then(|size| start.checked_add(size));
        meter.header.set(next);
        let read = meter.read.get() - start;
        unread = stored.saturating_sub(read).saturating_add(BLOCK);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// `echo hello archive | xz --check=sha256`, and the same through bzip2.
    const XZ: &[u8] = include_bytes!("archive/hello.xz");
    const BZIP2: &[u8] = include_bytes!("archive/hello.bz2");

    fn plain(archive: &[u8]) -> io::Result<(Compression, Vec<u8>)> {
        let (compression, mut plain) = decompress(archive)?;
        let mut found = Vec::new();
        plain.read_to_end(&mut found)?;
        Ok((compression, found))
    }

    #[test]
    fn every_compression_is_read() {
        let text = b"hello archive\n";
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(text).unwrap();
        let gzip = gzip.finish().unwrap();
        let zstd = zstd::encode_all(&text[..], 1).unwrap();
        for (archive, compression) in [
            (&text[..], Compression::None),
            (&gzip, Compression::Gzip),
            (BZIP2, Compression::Bzip2),
            (XZ, Compression::Xz),
            (&zstd, Compression::Zstd),
        ] {
            assert_eq!(plain(archive).unwrap(), (compression, text.to_vec()));
            if compression == Compression::None {
                continue;
            }
            // Members follow one another, as parallel compressors write them.
            let twice = [archive, archive].concat();
            assert_eq!(plain(&twice).unwrap().1, text.repeat(2), "{compression:?}");
            // What is cut off is an error wherever the cut is.
            for length in HEAD as usize..archive.len() {
                let cut = plain(&archive[..length]);
                assert!(cut.is_err(), "{compression:?} of {length} bytes: {cut:?}");
            }
        }
        assert_eq!(plain(b"").unwrap(), (Compression::None, Vec::new()));
    }

    #[test]
    fn what_is_no_archive_gives_a_terminal_no_orders() {
        let tar = b"\x1b[2J\x02\x01".repeat(200);
        let told = entries(&tar[..], 4096, |_| Ok::<_, io::Error>(())).unwrap_err();
        let told = told.to_string();
        assert!(told.starts_with("bad tar header or length: "), "{told}");
        assert!(told.contains("\\u{1b}[2J"), "{told}");
        assert!(!told.contains(char::is_control), "{told:?}");
    }

    #[test]
    fn an_entire_archive_has_an_end() {
        let mut builder = tar::Builder::new(Vec::new());
        for name in ["a", "b"] {
            let mut header = tar::Header::new_gnu();
            header.set_size(512);
            builder
                .append_data(&mut header, name, &[0; 512][..])
                .unwrap();
        }
        let archive = builder.into_inner().unwrap();
        let read = |archive: &[u8], entire| {
            let mut found = 0;
            let done = entries_of(archive, 4096, entire, |_| {
                found += 1;
                Ok::<_, io::Error>(())
            });
            done.map(|()| found).map_err(|error| error.to_string())
        };
        assert_eq!(read(&archive, true), Ok(2));
        assert_eq!(read(&[0; 1024], true), Ok(0));
        // Zeros that are a file's are no end.
        for (length, entries, told) in [(0, 0, "empty"), (1024, 1, "no end"), (2048, 2, "no end")] {
            let cut = &archive[..length];
            assert_eq!(read(cut, false), Ok(entries));
            assert!(read(cut, true).unwrap_err().contains(told), "{length}");
        }
        for other in [&b"root:x:0:0:\n".repeat(100)[..], b"short\n"] {
            let told = read(other, true).unwrap_err();
            assert!(told.starts_with("this is no tar archive"), "{told}");
        }
    }

    /// What eStargz and zstd:chunked add for those who fetch pieces is passed over.
    #[test]
    fn indexes_of_archives_are_passed_over() {
        let skipped = [&b"\x5a\x2a\x4d\x18\x05\0\0\0"[..], b"index"].concat();
        let frame = |text: &[u8]| zstd::encode_all(text, 1).unwrap();
        let chunked = [&skipped, &*frame(b"one "), &frame(b"two"), &skipped].concat();
        let expected = (Compression::Zstd, b"one two".to_vec());
        assert_eq!(plain(&chunked).unwrap(), expected);

        let member = |text: &[u8], extra: &[u8]| {
            let builder = flate2::GzBuilder::new().extra(extra);
            let mut gzip = builder.write(Vec::new(), flate2::Compression::fast());
            gzip.write_all(text).unwrap();
            gzip.finish().unwrap()
        };
        let footer = member(b"", b"SG\x16\x000000000000000007STARGZ");
        let stargz = [member(b"one ", b""), member(b"two", b""), footer].concat();
        let expected = (Compression::Gzip, b"one two".to_vec());
        assert_eq!(plain(&stargz).unwrap(), expected);
    }

    #[test]
    fn damage_is_an_error_and_nothing_worse() {
        for archive in [BZIP2, XZ] {
            for at in 0..archive.len() {
                for bit in 0..8 {
                    let mut damaged = archive.to_vec();
                    damaged[at] ^= 1 << bit;
                    if let Ok((Compression::Xz | Compression::Bzip2, found)) = plain(&damaged) {
                        assert_eq!(found, b"hello archive\n", "bit {bit} of byte {at}");
                    }
                }
            }
        }
    }

    #[test]
    fn an_xz_archive_cannot_ask_for_any_memory() {
        let refused = plain(include_bytes!("archive/dictionary.xz")).unwrap_err();
        assert!(refused.to_string().contains("128 MiB"), "{refused}");
    }

    /// A tar header with a correct checksum.
    fn header(kind: u8, size: u64) -> Vec<u8> {
        let mut header = tar::Header::new_gnu();
        header.set_path("file").unwrap();
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_size(size);
        header.set_cksum();
        header.as_bytes().to_vec()
    }

    /// Names of the entries, none of which is read.
    fn names(archive: impl Read, before: u64) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        entries(archive, before, |entry| {
            names.push(String::from_utf8_lossy(&entry.path_bytes()).into_owned());
            Ok::<_, io::Error>(())
        })?;
        Ok(names)
    }

    #[test]
    fn what_stands_before_an_entry_is_bounded() {
        for kind in [b'L', b'K', b'x'] {
            let endless = io::Cursor::new(header(kind, 1 << 40)).chain(io::repeat(b'a'));
            let refused = names(endless, 1 << 20).unwrap_err();
            assert!(refused.to_string().contains("1048576 bytes"), "{refused}");
        }
        // Content is none of it, read or passed over.
        let mut archive = [header(b'0', 1 << 20), vec![0; 1 << 20]].concat();
        archive.extend([header(b'L', 600), vec![b'n'; 600], vec![0; 424]].concat());
        archive.extend([header(b'0', 1), vec![1; 512], vec![0; 1024]].concat());
        assert_eq!(
            names(&archive[..], 4096).unwrap(),
            ["file".into(), "n".repeat(600)]
        );
        assert!(names(&archive[..], 1024).is_err());
    }

    /// Of records of one key the last counts, as with other archivers.
    #[test]
    fn the_last_record_counts() {
        let record = |text: &str| format!("{} {text}\n", text.len() + 4).into_bytes();
        let records = [
            record("path=one\nx"),
            record("path=two\ny"),
            record("size=9000"),
            b"9 size=3\n".to_vec(),
        ]
        .concat();
        let mut archive = [header(b'x', records.len() as u64), records].concat();
        archive.resize(1024, 0);
        archive.extend([header(b'0', 0), b"abc".to_vec(), vec![0; 509 + 1024]].concat());
        assert_eq!(names(&archive[..], 8192).unwrap(), ["two\ny"]);
    }

    /// Archivers differ in whether what has no content has a size.
    #[test]
    fn sizes_of_what_has_no_content() {
        let end = vec![0; 1024];
        let file = [header(b'0', 3), b"abc".to_vec(), vec![0; 509]].concat();
        for kind in [b'1', b'2', b'3', b'4', b'5', b'6'] {
            let odd = header(kind, 1000);
            for (archive, expected) in [
                ([&odd[..], &file, &end].concat(), 2),
                ([&odd[..], &odd, &file].concat(), 3),
                ([&file[..], &odd, &end].concat(), 2),
                (odd.clone(), 1),
                // POSIX lets a link carry what it is a link to.
                ([&odd[..], &[7; 1000], &[0; 24], &file, &end].concat(), 2),
            ] {
                let found = names(&archive[..], 8192).unwrap();
                assert_eq!(found.len(), expected, "{}", char::from(kind));
            }
            let mut damaged = odd;
            damaged[3] ^= 1;
            assert!(names(&[damaged, end.clone()].concat()[..], 8192).is_err());
        }
    }

    /// How large each entry is, of an archive with an end.
    fn sizes(archive: &[u8]) -> io::Result<Vec<u64>> {
        let mut sizes = Vec::new();
        entries_of(archive, 8 << 20, true, |entry| {
            sizes.push(entry.size());
            Ok::<_, io::Error>(())
        })?;
        Ok(sizes)
    }

    /// A PAX record of a size, before an entry.
    fn recorded(size: &str) -> Vec<u8> {
        let length = size.len() + 8;
        let record = format!("{} size={size}\n", length + usize::from(length > 9));
        let mut records = [header(b'x', record.len() as u64), record.into_bytes()].concat();
        records.resize(1024, 0);
        records
    }

    const NO_CONTENT: [u8; 6] = [b'1', b'2', b'3', b'4', b'5', b'6'];

    #[test]
    fn large_sizes_of_what_has_no_content() {
        let file = [header(b'0', 3), b"abc".to_vec(), vec![0; 509]].concat();
        for kind in NO_CONTENT {
            for size in [9 << 20, 1 << 40] {
                let odd = header(kind, size);
                let archive = [&odd[..], &file, &odd, &odd, &file, &[0; 1024]].concat();
                assert_eq!(sizes(&archive).unwrap(), [0, 3, 0, 0, 3], "{kind} {size}");
            }
        }
    }

    #[test]
    fn recorded_sizes_of_what_has_no_content() {
        let file = [header(b'0', 3), b"abc".to_vec(), vec![0; 509]].concat();
        let long = [recorded("3"), file.clone()].concat();
        for kind in NO_CONTENT {
            for (record, size) in [("1000", 0), ("1000", 1000), ("1", 9 << 20), ("9999999", 0)] {
                let odd = [recorded(record), header(kind, size)].concat();
                let archive = [&odd[..], &file, &odd, &long, &[0; 1024]].concat();
                assert_eq!(sizes(&archive).unwrap(), [0, 3, 0, 3], "{kind} {record}");
            }
        }
    }

    /// Zeros behind a link end the archive, unless they are as long as it says and more follows.
    #[test]
    fn links_at_the_end() {
        let file = [header(b'0', 3), b"abc".to_vec(), vec![0; 509]].concat();
        for kind in NO_CONTENT {
            for size in [1, 1000, 1024, 5000, 9 << 20] {
                let odd = header(kind, size);
                for end in [1024, 10240] {
                    let archive = [&file[..], &odd, &vec![0; end]].concat();
                    assert_eq!(sizes(&archive).unwrap(), [3, 0], "{kind} {size} {end}");
                }
            }
            let odd = header(kind, 1000);
            let archive = [&odd[..], &[0; 1024], &file, &[0; 1024]].concat();
            let expected: &[u64] = if kind == b'1' { &[1000, 3] } else { &[0] };
            assert_eq!(sizes(&archive).unwrap(), expected, "{kind}");
        }
    }

    #[test]
    fn only_records_before_an_entry_are_looked_at() {
        // A file that has such records in it.
        let inner = {
            let mut builder = tar::Builder::new(Vec::new());
            let records = [("path", &b"a\n12 path=bcd\n"[..]), ("size", b"3")];
            builder.append_pax_extensions(records).unwrap();
            [
                builder.get_ref().clone(),
                header(b'0', 0),
                b"abc".to_vec(),
                vec![0; 509],
            ]
            .concat()
        };
        let outer = [
            header(b'0', inner.len() as u64),
            inner.clone(),
            inner.clone(),
        ]
        .concat();
        for read_it in [true, false] {
            let (mut found, mut contents) = (Vec::new(), Vec::new());
            entries(&outer[..], 4096, |entry| {
                found.push(entry.path_bytes().into_owned());
                let records: io::Result<Vec<_>> = entry.records().collect();
                assert_eq!(records?.len(), (found.len() - 1) * 2);
                let mut content = Vec::new();
                if read_it {
                    entry.read_to_end(&mut content)?;
                }
                contents.push(content);
                Ok::<_, io::Error>(())
            })
            .unwrap();
            assert_eq!(found, [&b"file"[..], b"a\n12 path=bcd\n"]);
            if read_it {
                assert!(contents == [inner.clone(), b"abc".to_vec()]);
            }
        }
    }

    #[test]
    fn damaged_archives_are_told_from_broken_streams() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("the line went dead"))
            }
        }
        let whole = [header(b'0', 600), vec![1; 1024]].concat();
        let mut wrong = whole.clone();
        wrong[3] ^= 1;
        for damaged in [&wrong[..], &whole[..1000], &whole[..300]] {
            let error = names(damaged, 1024).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
            assert!(error.to_string().contains("tar header"), "{error}");
        }
        let error = names((&whole[..]).chain(Broken), 1024).unwrap_err();
        assert_eq!(error.to_string(), "the line went dead");
        assert!(
            names(&whole[..], 1024).is_ok(),
            "the end marker may be missing"
        );
    }
}
