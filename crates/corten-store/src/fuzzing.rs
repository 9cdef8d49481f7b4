//! What `fuzz/` needs of this crate and nobody else does.

use std::io::Write;
use std::path::Path;

/// Reads the EROFS image of a layer and writes its archive to `out`. The image is made at
/// `path`: its first block is in order, `input` says what comes after it.
///
/// # Errors
/// What is wrong with it, or why its archive could not be written.
pub fn erofs_image(input: &[u8], path: &Path, out: &mut dyn Write) -> Result<(), String> {
    crate::layers::fuzz_erofs_image(input, path, out)
}
