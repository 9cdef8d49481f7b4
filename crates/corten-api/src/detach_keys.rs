//! The keys that detach a client from a container's terminal (`ctrl-p,ctrl-q`).

/// What detaches when nothing else is configured.
pub const DEFAULT_DETACH_KEYS: &str = "ctrl-p,ctrl-q";

/// A key that is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("Unknown character: '{0}'")]
pub struct UnknownKey(String);

/// The bytes of a key sequence.
///
/// # Errors
/// A key that is neither one character nor `ctrl-X`.
pub fn detach_keys(text: &str) -> Result<Vec<u8>, UnknownKey> {
    text.split(',')
        .map(|key| {
            let unknown = || UnknownKey(key.to_owned());
            let bytes = key.as_bytes();
            if let [byte] = bytes {
                return Ok(*byte);
            }
            let Some([control]) = key.strip_prefix("ctrl-").map(str::as_bytes) else {
                return Err(unknown());
            };
            match control {
                b'a'..=b'z' => Ok(control - b'a' + 1),
                b'@' => Ok(0),
                b'[' => Ok(27),
                b'\\' => Ok(28),
                b']' => Ok(29),
                b'^' => Ok(30),
                b'_' => Ok(31),
                _ => Err(unknown()),
            }
        })
        .collect()
}

/// Looks for the keys in what a client types.
#[derive(Debug)]
pub(crate) struct Watch {
    keys: Vec<u8>,
    /// How many of them have come.
    matched: usize,
}

impl Watch {
    pub(crate) fn new(keys: Vec<u8>) -> Self {
        Self { keys, matched: 0 }
    }

    /// Adds to `out` what is for the program; `true` once the client wants to go. Keys that
    /// may yet become the whole sequence are held back.
    pub(crate) fn pass(&mut self, typed: &[u8], out: &mut Vec<u8>) -> bool {
        for byte in typed {
            if self.keys.get(self.matched) != Some(byte) {
                out.extend_from_slice(&self.keys[..self.matched]);
                self.matched = 0;
            }
            if self.keys.get(self.matched) == Some(byte) {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    return true;
                }
            } else {
                out.push(*byte);
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences() {
        assert_eq!(detach_keys(DEFAULT_DETACH_KEYS).unwrap(), [16, 17]);
        assert_eq!(detach_keys("a,ctrl-@,ctrl-[").unwrap(), [b'a', 0, 27]);
        assert_eq!(
            detach_keys("ctrl-").unwrap_err().to_string(),
            "Unknown character: 'ctrl-'"
        );
        assert!(detach_keys("").is_err() && detach_keys("ab").is_err());
    }

    #[test]
    fn keys_are_found_wherever_they_are_torn() {
        for (pieces, seen, gone) in [
            (vec!["abc"], "abc", false),
            (vec!["a\u{10}", "\u{11}b"], "a", true),
            (vec!["\u{10}", "b"], "\u{10}b", false),
            (vec!["\u{10}\u{10}\u{11}"], "\u{10}", true),
            (vec!["\u{11}\u{10}"], "\u{11}", false),
        ] {
            let mut watch = Watch::new(vec![16, 17]);
            let mut out = Vec::new();
            let left = pieces
                .iter()
                .any(|piece| watch.pass(piece.as_bytes(), &mut out));
            assert_eq!(
                (out.as_slice(), left),
                (seen.as_bytes(), gone),
                "{pieces:?}"
            );
        }
    }
}
