//! Files without a name, for what must be whole before its size is known, and parts of files.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags};

/// A file that is gone when it is closed, among the machine's temporary ones (`TMPDIR`).
pub(super) fn nameless() -> io::Result<File> {
    let dir = std::env::temp_dir();
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    Ok(File::from(rustix::fs::openat(CWD, dir, flags, mode)?))
}

/// A part of a file, read by whoever has it, wherever others are reading.
#[derive(Debug, Clone)]
pub(super) struct Part {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Part {
    pub(super) fn new(file: &Arc<File>, at: u64, length: u64) -> Self {
        Self {
            file: file.clone(),
            at,
            end: at.saturating_add(length),
        }
    }
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let most = buffer.len().min(left);
        let read = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn parts_end_where_they_should() {
        let mut file = nameless().unwrap();
        file.write_all(b"0123456789").unwrap();
        let file = Arc::new(file);
        let mut text = String::new();
        Part::new(&file, 2, 5).read_to_string(&mut text).unwrap();
        assert_eq!(text, "23456");
    }
}
