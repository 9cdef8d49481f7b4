//! Our own label in the first kilobyte, which EROFS leaves free: a checksum of everything
//! behind the first block, so that an image that has rotten on disk is found. The first block itself has the superblock's checksum.
//!
//! The checksum is against accidents, not against malice (nobody but us writes to the
//! store), so it need not be cryptographic and costs next to nothing.

const MAGIC: &[u8; 16] = b"corten layer v1\n";

/// What a label says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Label {
    pub(super) sum: [u8; 16],
}

impl Label {
    /// Writes it to the beginning of the first block.
    pub(super) fn encode(&self, block: &mut [u8]) {
        block[..16].copy_from_slice(MAGIC);
        block[16..32].copy_from_slice(&self.sum);
    }

    /// Reads it; `None` where there is none.
    pub(super) fn decode(block: &[u8]) -> Option<Self> {
        if block.get(..16)? != MAGIC {
            return None;
        }
        Some(Self {
            sum: block.get(16..32)?.try_into().ok()?,
        })
    }
}

/// Four lanes of 64 bits, each step of which can be undone: no single changed word goes
/// unnoticed.
#[derive(Debug, Clone)]
pub(super) struct Sum {
    lanes: [u64; 4],
    length: u64,
}

/// Odd, so that multiplying by it loses nothing (the golden ratio's bits).
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

impl Sum {
    pub(super) fn new() -> Self {
        Self {
            lanes: [1, 2, 3, 4],
            length: 0,
        }
    }

    /// Takes in bytes, a multiple of 32 of them.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        debug_assert_eq!(bytes.len() % 32, 0);
        let (words, _) = bytes.as_chunks::<8>();
        for row in words.as_chunks::<4>().0 {
            for (lane, word) in self.lanes.iter_mut().zip(row) {
                *lane = (*lane ^ u64::from_le_bytes(*word))
                    .wrapping_mul(FACTOR)
                    .rotate_left(29);
            }
        }
        self.length += bytes.len() as u64;
    }

    pub(super) fn finish(&self) -> [u8; 16] {
        let [a, b, c, d] = self.lanes;
        let mix = |x: u64, y: u64| {
            let mixed = (x ^ y.rotate_left(32)).wrapping_mul(FACTOR) ^ self.length;
            (mixed ^ (mixed >> 31)).wrapping_mul(FACTOR)
        };
        let mut out = [0; 16];
        out[..8].copy_from_slice(&mix(a, b).to_le_bytes());
        out[8..].copy_from_slice(&mix(c, d).to_le_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_changed_bit_is_noticed() {
        let bytes: Vec<u8> = (0..=255).cycle().take(4096).collect();
        let of = |bytes: &[u8]| {
            let mut sum = Sum::new();
            for piece in bytes.chunks(96) {
                sum.update(piece);
            }
            sum.finish()
        };
        let good = of(&bytes);
        let mut whole = Sum::new();
        whole.update(&bytes);
        assert_eq!(good, whole.finish(), "however it is cut");
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << (at % 8);
            assert_ne!(of(&bad), good, "byte {at}");
        }
        assert_ne!(of(&bytes[..4064]), good);
    }

    #[test]
    fn labels_are_read_as_written() {
        let label = Label { sum: [9; 16] };
        let mut block = vec![0; 4096];
        assert_eq!(Label::decode(&block), None);
        label.encode(&mut block);
        assert_eq!(Label::decode(&block), Some(label));
    }
}
