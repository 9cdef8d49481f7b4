//! The EROFS image of a layer, as it may be found on a damaged disk, is read or refused. Its
//! first block, which has checksums, is always in order (`erofs/fuzzing.rs`).
#![no_main]

use std::io::{self, Write};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

static DIR: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a temporary directory"));

/// Full after so many bytes: a damaged size may claim any number.
struct Limited(usize);

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.0);
        self.0 -= taken;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fuzz_target!(|input: &[u8]| {
    let path = DIR.path().join("image");
    if let Err(reason) = corten_store::fuzzing::erofs_image(input, &path, &mut Limited(1 << 20)) {
        assert!(!reason.is_empty());
    }
});
