//! A file as a reply's body. What is in the page cache, as a blob that many pull is, is read
//! by the thread that sends it, at once (`RWF_NOWAIT`); only what would wait for a disk goes
//! to a worker thread. Buffers are used again as soon as their bytes are sent.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use tokio::task::JoinHandle;

/// Read at once from the page cache: little enough to be still in the processor's cache when
/// it is written to the socket.
pub(super) const PIECE: usize = 64 << 10;
/// Read at once from a disk.
const FROM_DISK: usize = 256 << 10;

/// So many bytes of a file from an offset on.
#[derive(Debug)]
pub(super) struct FileBody {
    file: Arc<File>,
    at: u64,
    end: u64,
    /// Buffers handed out, in order, each of [`PIECE`] bytes.
    sent: VecDeque<Bytes>,
    /// A worker that reads what was not in memory.
    reading: Option<JoinHandle<io::Result<Bytes>>>,
}

impl FileBody {
    pub(super) fn new(file: File, first: u64, length: u64) -> Self {
        Self {
            file: Arc::new(file),
            at: first,
            end: first + length,
            sent: VecDeque::new(),
            reading: None,
        }
    }

    /// A buffer that nobody reads any more, or a new one.
    fn buffer(&mut self) -> BytesMut {
        match self.sent.pop_front().map(Bytes::try_into_mut) {
            Some(Ok(buffer)) => buffer,
            Some(Err(in_use)) => {
                self.sent.push_front(in_use);
                BytesMut::zeroed(PIECE)
            }
            None => BytesMut::zeroed(PIECE),
        }
    }

    /// What can be had without waiting; `None` where that is nothing.
    fn take_cached(&mut self) -> io::Result<Option<Bytes>> {
        let mut buffer = self.buffer();
        // At most a piece, which fits.
        let want = (self.end - self.at).min(PIECE as u64) as usize;
        let mut into = [IoSliceMut::new(&mut buffer[..want])];
        let read = preadv2(&self.file, &mut into, self.at, ReadWriteFlags::NOWAIT);
        let whole = buffer.freeze();
        let piece = match read {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => Some(whole.slice(..count)),
            // Not in memory, or a filesystem that cannot tell.
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::INTR) => None,
            Err(error) => return Err(error.into()),
        };
        self.sent.push_back(whole);
        Ok(piece)
    }

    fn read(&self) -> JoinHandle<io::Result<Bytes>> {
        let (file, at) = (self.file.clone(), self.at);
        let want = (self.end - at).min(FROM_DISK as u64) as usize;
        tokio::task::spawn_blocking(move || {
            let mut buffer = vec![0; want];
            file.read_exact_at(&mut buffer, at)?;
            Ok(buffer.into())
        })
    }
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.at == self.end {
            return Poll::Ready(None);
        }
        if self.reading.is_none() {
            match self.take_cached() {
                Ok(Some(piece)) => {
                    self.at += piece.len() as u64;
                    return Poll::Ready(Some(Ok(Frame::data(piece))));
                }
                Ok(None) => self.reading = Some(self.read()),
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
        let Some(reading) = &mut self.reading else {
            return Poll::Pending;
        };
        let done = ready!(Pin::new(reading).poll(context));
        self.reading = None;
        let piece = done.map_err(io::Error::other).flatten();
        if let Ok(piece) = &piece {
            self.at += piece.len() as u64;
        }
        Poll::Ready(Some(piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.at == self.end
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.end - self.at)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn sends_the_range_and_nothing_else() {
        let bytes: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        for (first, length) in [
            (0, 1_000_000),
            (0, 0),
            (3, 7),
            (65_536, 65_536),
            (999_999, 1),
        ] {
            let body = FileBody::new(file.try_clone().unwrap(), first as u64, length as u64);
            assert_eq!(body.size_hint().exact(), Some(length as u64));
            let sent = body.collect().await.unwrap().to_bytes();
            assert!(sent == bytes[first..first + length], "{first} {length}");
        }
        let beyond = FileBody::new(file, 999_990, 20);
        assert!(beyond.collect().await.is_err(), "a file that lost its end");
    }

    #[tokio::test]
    async fn buffers_are_used_again() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![1; 2_000_000]).unwrap();
        let mut body = FileBody::new(file, 0, 2_000_000);
        while let Some(frame) = body.frame().await {
            drop(frame.unwrap());
            assert!(body.sent.len() <= 1);
        }
    }
}
