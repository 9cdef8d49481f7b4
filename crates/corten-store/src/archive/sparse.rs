//! Files with holes: GNU tar's PAX forms 0.0, 0.1 and 1.0 (tar's manual, "Storing Sparse
//! Files"), read, and written to disk with their holes.
//!
//! What stands in such an entry is the file's data alone; where it belongs is said by PAX
//! records, or (1.0) by a list in front of the data. The old GNU form is the `tar` crate's.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use super::{BLOCK, Entry, invalid};

/// Pieces a file may be in: 16 MiB of memory.
const MAX_PIECES: usize = 1 << 20;
/// Longest number in a list.
const MAX_DIGITS: usize = 20;
/// What is all zeros is left out in units of this.
const HOLE: usize = 4096;

/// A file with holes, as an archive describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SparseFile {
    /// Its name; the entry's own is made up.
    pub name: Option<Vec<u8>>,
    /// Its size, holes and all.
    pub size: u64,
    /// Offset and length of each piece of data, ascending.
    pieces: Vec<(u64, u64)>,
}

/// Whether an entry is a file with holes in one of the PAX forms; its data is what is left to
/// read of the entry then.
///
/// # Errors
/// What describes it is malformed, or beyond the bounds.
pub fn sparse<R: Read>(entry: &mut Entry<'_, '_, R>) -> io::Result<Option<SparseFile>> {
    let (mut version, mut name, mut size) = ((None, None), None, None);
    let mut list: Vec<u64> = Vec::new();
    for record in entry.records() {
        let (key, value) = record?;
        let Some(key) = key.strip_prefix(b"GNU.sparse.") else {
            continue;
        };
        match key {
            b"major" => version.0 = Some(number(value)?),
            b"minor" => version.1 = Some(number(value)?),
            b"name" => name = Some(value.to_vec()),
            b"size" | b"realsize" => size = Some(number(value)?),
            // 0.0: one record for each number, offset and length in turn.
            b"offset" | b"numbytes" => {
                if (list.len() & 1 == 0) != (key == b"offset") {
                    return Err(invalid("its map of holes is out of order"));
                }
                push(&mut list, number(value)?)?;
            }
            b"map" => {
                list.clear();
                for text in value.split(|byte| *byte == b',').filter(|t| !t.is_empty()) {
                    push(&mut list, number(text)?)?;
                }
            }
            _ => {}
        }
    }
    let stored = entry.size();
    let (list, data) = match version {
        (Some(1), Some(0)) => {
            let (list, read) = leading_list(entry)?;
            (list, stored.saturating_sub(read))
        }
        (None | Some(0), _) if size.is_some() || !list.is_empty() => (list, stored),
        (None, _) => return Ok(None),
        (Some(major), minor) => {
            let minor = minor.unwrap_or_default();
            return Err(invalid(format!(
                "sparse files of form {major}.{minor} are unknown"
            )));
        }
    };
    let size = size.ok_or_else(|| invalid("a sparse file without a size"))?;
    let pieces = pieces(&list, size, data)?;
    Ok(Some(SparseFile { name, size, pieces }))
}

fn push(list: &mut Vec<u64>, number: u64) -> io::Result<()> {
    if list.len() >= MAX_PIECES * 2 {
        return Err(invalid(format!(
            "a sparse file of more than {MAX_PIECES} pieces"
        )));
    }
    list.push(number);
    Ok(())
}

fn number(text: &[u8]) -> io::Result<u64> {
    std::str::from_utf8(text)
        .ok()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| invalid("its map of holes has something that is no number"))
}

/// The list that form 1.0 has in front of the data, each number on a line; and the bytes it
/// takes, whole blocks.
fn leading_list(data: &mut impl Read) -> io::Result<(Vec<u64>, u64)> {
    let (mut list, mut wanted) = (Vec::new(), None);
    let mut digits = Vec::new();
    let mut read = 0;
    loop {
        let mut block = [0; BLOCK as usize];
        data.read_exact(&mut block)?;
        read += BLOCK;
        for byte in block {
            if byte != b'\n' {
                digits.push(byte);
                if digits.len() > MAX_DIGITS {
                    return Err(invalid("its map of holes has something that is no number"));
                }
                continue;
            }
            let number = number(&digits)?;
            digits.clear();
            // The first number says how many pieces follow.
            match wanted {
                None => wanted = Some(usize::try_from(number).unwrap_or(usize::MAX)),
                Some(_) => push(&mut list, number)?,
            }
            if wanted.is_some_and(|pieces| pieces.saturating_mul(2) == list.len()) {
                return Ok((list, read));
            }
        }
    }
}

/// Checks that the pieces are a file's, and the data all of theirs.
fn pieces(list: &[u64], size: u64, data: u64) -> io::Result<Vec<(u64, u64)>> {
    let (mut end, mut sum) = (0_u64, 0_u64);
    let mut pieces = Vec::new();
    if list.len() & 1 == 1 {
        return Err(invalid("its map of holes is cut off"));
    }
    for piece in list.chunks_exact(2) {
        let (offset, length) = (piece[0], piece[1]);
        let until = offset.checked_add(length).filter(|until| *until <= size);
        let Some(until) = until.filter(|_| offset >= end) else {
            return Err(invalid(
                "its map of holes is out of order or beyond its end",
            ));
        };
        end = until;
        sum += length;
        if length > 0 {
            pieces.push((offset, length));
        }
    }
    if sum != data {
        return Err(invalid("its map of holes does not fit its data"));
    }
    Ok(pieces)
}

impl SparseFile {
    /// The file's bytes, holes as zeros, from its data.
    pub fn expanded<R: Read>(&self, data: R) -> impl Read + use<R> {
        Expanded {
            data,
            pieces: self.pieces.clone().into_iter(),
            piece: (0, 0),
            at: 0,
            size: self.size,
        }
    }
}

struct Expanded<R> {
    data: R,
    pieces: std::vec::IntoIter<(u64, u64)>,
    /// What is left of the piece that comes next.
    piece: (u64, u64),
    at: u64,
    size: u64,
}

impl<R: Read> Read for Expanded<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.piece.1 == 0 {
            self.piece = self.pieces.next().unwrap_or((self.size, 0));
        }
        let (offset, length) = self.piece;
        let hole = offset.saturating_sub(self.at);
        let limit = if hole > 0 { hole } else { length };
        let n = usize::try_from(limit).unwrap_or(usize::MAX).min(out.len());
        if n == 0 {
            return Ok(0);
        }
        let n = if hole > 0 {
            out[..n].fill(0);
            n
        } else {
            let n = self.data.read(&mut out[..n])?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.piece = (offset + n as u64, length - n as u64);
            n
        };
        self.at += n as u64;
        Ok(n)
    }
}

/// Copies into a new file, leaving holes where there are only zeros; how many bytes it has.
///
/// # Errors
/// `from` cannot be read, or the file not be written.
pub fn copy_with_holes(mut from: impl Read, file: &mut File) -> io::Result<u64> {
    let mut buffer = vec![0; HOLE * 16];
    let (mut size, mut written) = (0_u64, 0_u64);
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match from.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        // Runs of blocks with something in them are written at once.
        let blocks: Vec<&[u8]> = buffer[..filled].chunks(HOLE).collect();
        let mut start = 0;
        for run in blocks.chunk_by(|one, next| is_hole(one) == is_hole(next)) {
            let end = start + run.iter().map(|block| block.len()).sum::<usize>();
            if !is_hole(run[0]) {
                put(file, &buffer[start..end], size + start as u64, &mut written)?;
            }
            start = end;
        }
        size += filled as u64;
        if filled < buffer.len() {
            break;
        }
    }
    if written < size {
        file.set_len(size)?;
    }
    Ok(size)
}

fn is_hole(block: &[u8]) -> bool {
    block.iter().all(|byte| *byte == 0)
}

fn put(file: &mut File, bytes: &[u8], at: u64, written: &mut u64) -> io::Result<()> {
    if *written != at {
        file.seek(SeekFrom::Start(at))?;
    }
    file.write_all(bytes)?;
    *written = at + bytes.len() as u64;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_checked() {
        assert_eq!(
            pieces(&[0, 5, 10, 5, 20, 0], 20, 10).unwrap(),
            [(0, 5), (10, 5)]
        );
        for (list, size, data) in [
            (&[0, 5][..], 4, 5),
            (&[0, 5, 3, 5], 20, 10),
            (&[0, 5, 10], 20, 5),
            (&[0, 5], 20, 6),
            (&[1, u64::MAX], u64::MAX, 7),
        ] {
            assert!(pieces(list, size, data).is_err(), "{list:?}");
        }
        assert!(leading_list(&mut io::repeat(b'1')).is_err());
        let many = b"1\n".repeat(2 * MAX_PIECES + 3);
        let many = [b"99999999\n", many.as_slice()].concat();
        assert!(leading_list(&mut many.as_slice()).is_err());
    }

    #[test]
    fn holes_stay_holes() {
        let mut content = vec![0; 300_000];
        content[100_000..100_010].fill(1);
        content[299_000] = 2;
        for end in [300_000, 100_005, 90_000, 4096, 1, 0] {
            let mut file = tempfile::tempfile().unwrap();
            let copied = copy_with_holes(&content[..end], &mut file).unwrap();
            assert_eq!(copied, end as u64);
            let mut back = Vec::new();
            file.rewind().unwrap();
            file.read_to_end(&mut back).unwrap();
            assert!(back == content[..end]);
        }
    }
}
