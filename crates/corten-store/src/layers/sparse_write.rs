//! Files with holes in a tar: only their data, after a list of where it belongs (GNU tar's PAX form
//! 1.0; tar's manual, "Storing Sparse Files").

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use super::tar_header;
use crate::holes::{Next, next_data};

/// Pieces that a file is written in; one of more is written with its holes filled. Readers have
/// bounds, too.
pub(super) const MAX_PIECES: usize = 1 << 16;

/// Offset and length of each piece of data in a file, which is at its beginning afterwards; `None`:
/// its holes are not known, or there are more than `most` pieces.
pub(super) fn pieces(
    mut file: &File,
    size: u64,
    most: usize,
) -> io::Result<Option<Vec<(u64, u64)>>> {
    let pieces = looked_for(file, size, most)?;
    // Looking for them has moved it.
    file.rewind()?;
    Ok(pieces)
}

fn looked_for(file: &File, size: u64, most: usize) -> io::Result<Option<Vec<(u64, u64)>>> {
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < size {
        let (start, end) = match next_data(file, at, size)? {
            Next::Data(start, end) if pieces.len() < most => (start, end),
            Next::Data(..) | Next::Unknown => return Ok(None),
            Next::Hole => break,
        };
        pieces.push((start, end - start));
        at = end;
    }
    if pieces
        .last()
        .is_none_or(|(start, length)| start + length < size)
    {
        pieces.push((size, 0)); // says where the file ends
    }
    Ok(Some(pieces))
}

/// Writes a file's header, list and data. What has been cut off meanwhile is zeros.
pub(super) fn write(
    out: &mut dyn Write,
    path: &[u8],
    mut file: &File,
    pieces: &[(u64, u64)],
    entry: tar_header::Entry<'_>,
) -> io::Result<()> {
    let mut list = format!("{}\n", pieces.len());
    for (start, length) in pieces {
        list.push_str(&format!("{start}\n{length}\n"));
    }
    let listed = list.len().next_multiple_of(tar_header::BLOCK);
    let data: u64 = pieces.iter().map(|(_, length)| length).sum();
    let records = [
        ("GNU.sparse.major", b"1".to_vec()),
        ("GNU.sparse.minor", b"0".to_vec()),
        ("GNU.sparse.name", path.to_vec()),
        ("GNU.sparse.realsize", entry.size.to_string().into_bytes()),
    ];
    let entry = tar_header::Entry {
        size: listed as u64 + data,
        records: &records,
        ..entry
    };
    // Who does not know the form sees that it is not the file itself.
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    tar_header::write(out, &[b"./GNUSparseFile.0/", name].concat(), &entry)?;
    out.write_all(list.as_bytes())?;
    tar_header::pad(out, list.len() as u64)?;
    for (start, length) in pieces {
        file.seek(SeekFrom::Start(*start))?;
        let copied = io::copy(&mut file.take(*length), out)?;
        io::copy(&mut io::repeat(0).take(length - copied), out)?;
    }
    tar_header::pad(out, data)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_file_of_too_many_pieces_is_read_from_its_beginning() {
        const APART: u64 = 1 << 20;
        let dir = tempfile::tempdir().unwrap();
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(dir.path().join("sparse"))
            .unwrap();
        for n in 0..4 {
            file.write_all_at(b"data", n * APART).unwrap();
        }
        let size = file.metadata().unwrap().len();
        assert_eq!(pieces(&file, size, 4).unwrap().unwrap().len(), 4);
        assert!(pieces(&file, size, 3).unwrap().is_none());
        let mut whole = Vec::new();
        (&file).read_to_end(&mut whole).unwrap();
        assert_eq!(whole.len() as u64, size);
        let found: Vec<usize> = whole
            .windows(4)
            .enumerate()
            .filter(|(_, bytes)| bytes == b"data")
            .map(|(at, _)| at >> 20)
            .collect();
        assert_eq!(found, [0, 1, 2, 3]);
    }
}
