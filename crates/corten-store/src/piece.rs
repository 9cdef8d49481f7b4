//! A piece of a blob in memory, between whoever fetches it, the disk and whoever unpacks it.

use std::sync::Arc;

use crate::direct::{Aligned, BLOCK};

/// Bytes of a piece: where one ends in the file, and so how much of a blob a process that is
/// killed takes along.
pub(crate) const PIECE: usize = 256 * 1024;

/// Bytes of a blob from some place on.
#[derive(Debug)]
pub(crate) struct Piece {
    start: u64,
    /// How many it is to have: the next one begins at a multiple of [`PIECE`].
    room: usize,
    memory: Aligned,
    filled: usize,
}

impl Piece {
    /// An empty piece, in memory that was another's where there is some. `left`: so many bytes
    /// will come at the most, if anybody knows.
    pub(crate) fn new(start: u64, left: Option<u64>, spare: Option<Aligned>) -> Self {
        let over = usize::try_from(start % PIECE as u64).unwrap_or_default();
        let room = PIECE - over;
        let wanted = left.map_or(room, |left| {
            usize::try_from(left).map_or(room, |n| n.min(room))
        });
        // A blob that is longer than it should be fills the piece before that is found out.
        let room = wanted.max(1).next_multiple_of(BLOCK).min(room);
        let memory = match spare {
            Some(memory) if memory.len() >= room => memory,
            _ => Aligned::new(room),
        };
        Self {
            start,
            room,
            memory,
            filled: 0,
        }
    }

    /// Takes in as much as there is room for; how much that was.
    pub(crate) fn fill(&mut self, bytes: &[u8]) -> usize {
        let n = bytes.len().min(self.room - self.filled);
        self.memory[self.filled..self.filled + n].copy_from_slice(&bytes[..n]);
        self.filled += n;
        n
    }

    pub(crate) fn is_full(&self) -> bool {
        self.filled == self.room
    }

    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    pub(crate) fn end(&self) -> u64 {
        self.start + self.filled as u64
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory[..self.filled]
    }

    /// Whether it can be written past the page cache.
    pub(crate) fn is_of_blocks(&self) -> bool {
        self.start.is_multiple_of(BLOCK as u64) && self.filled.is_multiple_of(BLOCK)
    }

    /// Its memory, unless somebody else still has it.
    pub(crate) fn into_memory(piece: Arc<Self>) -> Option<Aligned> {
        Arc::into_inner(piece).map(|piece| piece.memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_where_the_next_one_is_aligned() {
        let whole = PIECE as u64;
        for (start, room) in [
            (0, PIECE),
            (100, PIECE - 100),
            (whole - 1, 1),
            (whole, PIECE),
        ] {
            let mut piece = Piece::new(start, None, None);
            assert_eq!(piece.fill(&vec![7; PIECE + 1]), room, "{start}");
            assert!(piece.is_full() && piece.end().is_multiple_of(whole));
            assert_eq!(piece.is_of_blocks(), start.is_multiple_of(4096), "{start}");
        }
    }

    #[test]
    fn small_ones_take_little_memory_and_memory_is_used_again() {
        let mut small = Piece::new(0, Some(5), None);
        assert_eq!(small.memory.len(), 4096);
        assert_eq!(small.fill(b"hello"), 5);
        assert!(!small.is_full() && !small.is_of_blocks());
        assert_eq!((small.bytes(), small.end()), (&b"hello"[..], 5));

        let memory = Piece::into_memory(Arc::new(Piece::new(0, None, None))).unwrap();
        let at = memory.as_ptr();
        let mut again = Piece::new(PIECE as u64, Some(1 << 30), Some(memory));
        again.fill(b"x");
        assert_eq!(again.bytes().as_ptr(), at);
        let held = Arc::new(again);
        let reader = held.clone();
        assert!(Piece::into_memory(held).is_none());
        assert_eq!(reader.bytes(), b"x");
    }
}
