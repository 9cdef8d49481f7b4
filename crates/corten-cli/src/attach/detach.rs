//! Watches input for the keys that detach.

/// Passes input through until the key sequence has been typed. Bytes that might begin the
/// sequence are held back until it is clear whether they do.
#[derive(Debug)]
pub(crate) struct DetachFilter {
    keys: Vec<u8>,
    matched: usize,
}

impl DetachFilter {
    /// A filter for a sequence; an empty one never matches.
    pub(crate) fn new(keys: Vec<u8>) -> Self {
        Self { keys, matched: 0 }
    }

    /// What of `input` goes on, and whether the sequence is complete.
    pub(crate) fn feed(&mut self, input: &[u8]) -> (Vec<u8>, bool) {
        let mut out = Vec::with_capacity(input.len());
        for &byte in input {
            if self.keys.get(self.matched) == Some(&byte) {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    return (out, true);
                }
                continue;
            }
            out.extend_from_slice(&self.keys[..self.matched]);
            self.matched = 0;
            if self.keys.first() == Some(&byte) {
                self.matched = 1;
                if self.keys.len() == 1 {
                    return (out, true);
                }
            } else {
                out.push(byte);
            }
        }
        (out, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detaches_on_the_sequence_only() {
        let mut filter = DetachFilter::new(vec![16, 17]);
        assert_eq!(filter.feed(b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(filter.feed(b"c"), (b"\x10c".to_vec(), false));
        assert_eq!(filter.feed(b"\x10\x10\x11more"), (b"\x10".to_vec(), true));
        let mut none = DetachFilter::new(Vec::new());
        assert_eq!(none.feed(b"\x10\x11"), (b"\x10\x11".to_vec(), false));
        let mut one = DetachFilter::new(vec![b'x']);
        assert_eq!(one.feed(b"ax"), (b"a".to_vec(), true));
    }
}
