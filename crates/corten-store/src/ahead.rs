//! Keeping the disk busy while a large file is written, so that little is left to be waited for
//! when it is synced.

use std::os::fd::AsFd;

use crate::sys;

/// Bytes after which the disk is asked to begin.
const STEP: u64 = 8 << 20;

/// How far the disk has been asked to write a file.
#[derive(Debug, Default)]
pub struct WriteAhead {
    started: u64,
}

impl WriteAhead {
    /// To be told now and then up to where the file has been written, in order.
    pub fn written(&mut self, file: impl AsFd, end: u64) {
        // A file that was cut off begins again.
        self.started = self.started.min(end);
        if end - self.started >= STEP {
            sys::start_writing(file.as_fd(), self.started, end);
            self.started = end;
        }
    }
}
