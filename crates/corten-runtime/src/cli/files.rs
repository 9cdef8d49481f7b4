//! Documents that are given: of any kind of file, but of no size.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// The largest there are take some hundred KiB.
const MAX: u64 = 16 << 20;

/// A file that must be one: nobody waits for the other end of a FIFO.
pub(super) fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    let mut options = File::options();
    let file = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("is not a regular file"));
    }
    if metadata.len() > MAX {
        return Err(too_large());
    }
    let size = usize::try_from(metadata.len()).unwrap_or(0);
    // One more, or the end of the file would be looked for in a larger buffer.
    bounded(file, Vec::with_capacity(size.saturating_add(1)))
}

/// Whatever it is, a pipe for example; `-` is standard input.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    if path.as_os_str() == "-" {
        return bounded(io::stdin(), Vec::new());
    }
    bounded(File::open(path)?, Vec::new())
}

fn bounded(file: impl Read, mut text: Vec<u8>) -> io::Result<Vec<u8>> {
    file.take(MAX + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX {
        return Err(too_large());
    }
    Ok(text)
}

fn too_large() -> io::Error {
    io::Error::other(format!(
        "is larger than {} MiB, which no such document is",
        MAX >> 20
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_document_is_not_waited_for() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
        let error = read_regular(&path).unwrap_err().to_string();
        assert!(error.contains("regular file"), "{error}");
        assert!(read_regular(dir.path()).is_err());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "text").unwrap();
        assert_eq!(read_regular(&path).unwrap(), b"text");
        assert_eq!(read(&path).unwrap(), b"text");
        File::create(&path).unwrap().set_len(8 << 30).unwrap();
        for read in [read_regular, read] {
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains("larger than 16 MiB"), "{error}");
        }
    }
}
