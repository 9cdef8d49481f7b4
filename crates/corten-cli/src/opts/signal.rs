//! Key sequences that detach from a container (`ctrl-p,ctrl-q`).

use super::{OptError, Result};

/// What detaches when nothing else is configured.
pub const DEFAULT_DETACH_KEYS: &str = "ctrl-p,ctrl-q";

/// The bytes of a key sequence.
///
/// # Errors
/// A key that is neither one character nor `ctrl-X`.
pub fn detach_keys(text: &str) -> Result<Vec<u8>> {
    text.split(',')
        .map(|key| {
            let unknown = || OptError::new(format!("Unknown character: '{key}'"));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences() {
        assert_eq!(detach_keys(DEFAULT_DETACH_KEYS).unwrap(), [16, 17]);
        assert_eq!(detach_keys("a,ctrl-@,ctrl-[").unwrap(), [b'a', 0, 27]);
        assert_eq!(
            detach_keys("ctrl-").unwrap_err().0,
            "Unknown character: 'ctrl-'"
        );
        assert!(detach_keys("").is_err() && detach_keys("ab").is_err());
    }
}
