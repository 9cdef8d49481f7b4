//! Where the data of a file with holes is.

use std::fs::File;
use std::io;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// What comes next in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Data, from there to there.
    Data(u64, u64),
    /// A hole up to the end.
    Hole,
    /// It is not known where its holes are.
    Unknown,
}

/// Looks for the next data at or after `at` of a file that had `size` bytes when it was looked at. This moves
/// the file.
///
/// # Errors
/// It cannot be read.
pub fn next_data(file: &File, at: u64, size: u64) -> io::Result<Next> {
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(Next::Hole),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Next::Unknown),
        Err(error) => return Err(error.into()),
    };
    let end = match seek(file, SeekFrom::Hole(start)) {
        Ok(end) => end.min(size),
        // It was cut off meanwhile.
        Err(Errno::NXIO) => return Ok(Next::Hole),
        Err(error) => return Err(error.into()),
    };
    Ok(match start < end {
        true => Next::Data(start, end),
        // It has grown meanwhile.
        false => Next::Unknown,
    })
}
