//! Reading and writing files past the page cache, in whole blocks: what is written once and
//! read through something else needs no copy in memory, nor the time to make one (where a
//! virtual machine has to be given the memory first, that is most of the time of a write).

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, OFlags, StatxFlags};

/// What every file system's blocks divide that we read or write so.
pub(crate) const BLOCK: usize = 4096;

/// Whether a file can be read and written so, in aligned blocks of 4 KiB.
pub(crate) fn is_possible(file: impl AsFd) -> io::Result<bool> {
    let found = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)?;
    let takes_blocks = |align: u32| (1..=4096).contains(&align);
    Ok(takes_blocks(found.stx_dio_mem_align) && takes_blocks(found.stx_dio_offset_align))
}

/// Has an open file written so from now on; whether it is.
pub(crate) fn begin(file: &File) -> bool {
    let begun = || {
        if !is_possible(file)? {
            return Ok(false);
        }
        let flags = rustix::fs::fcntl_getfl(file)?;
        rustix::fs::fcntl_setfl(file, flags | OFlags::DIRECT)?;
        Ok::<_, io::Error>(true)
    };
    begun().unwrap_or_else(|error| {
        tracing::debug!(%error, "written through the page cache");
        false
    })
}

/// Has it written through the page cache again.
///
/// # Errors
/// As fcntl(2).
pub(crate) fn end(file: &File) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    Ok(rustix::fs::fcntl_setfl(file, flags - OFlags::DIRECT)?)
}

/// Memory at an address that is a multiple of the block's size.
#[derive(Debug)]
pub(crate) struct Aligned {
    memory: Box<[u8]>,
    start: usize,
    length: usize,
}

impl Aligned {
    /// Zeros.
    pub(crate) fn new(length: usize) -> Self {
        let memory: Box<[u8]> = vec![0; length + BLOCK].into();
        // It never moves: what is boxed stays where it is.
        let start = memory.as_ptr().align_offset(BLOCK);
        Self {
            memory,
            start,
            length,
        }
    }
}

impl Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _, Write as _};

    use super::*;

    #[test]
    fn what_is_written_so_is_there() {
        let mut buffer = Aligned::new(2 * BLOCK);
        assert_eq!(buffer.as_ptr().align_offset(BLOCK), 0);
        assert_eq!(buffer.len(), 2 * BLOCK);
        buffer[BLOCK..].fill(7);
        let mut file = tempfile::tempfile().unwrap();
        let direct = begin(&file);
        file.write_all(&buffer).unwrap();
        end(&file).unwrap();
        file.write_all(b"not a block").unwrap();
        file.rewind().unwrap();
        let mut back = Vec::new();
        file.read_to_end(&mut back).unwrap();
        assert!(back == [&buffer[..], b"not a block"].concat(), "{direct}");
    }
}
