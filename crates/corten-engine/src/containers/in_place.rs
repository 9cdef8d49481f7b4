//! Writing files that are mounted in containers: the same file each time, as a renamed one would be seen by
//! nobody. Who reads one meanwhile finds what was before, or what is to be; and if the disk is full, what
//! was before: there is room for all of it before the first byte is written.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::files::LONGEST;

/// What `st_blocks` counts.
const BLOCK: u64 = 512;

/// Writes a file that may be there already. A new one that cannot be written is not left.
pub(super) fn write(path: &Path, text: &str) -> io::Result<()> {
    match overwrite(path, text) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        written => return written,
    }
    let mut new = OpenOptions::new();
    let file = new.write(true).create_new(true).mode(0o644).open(path)?;
    let written = file.write_all_at(text.as_bytes(), 0);
    if written.is_err() {
        std::fs::remove_file(path).ok();
    }
    written
}

/// Writes a file that is there. Its end is cut off afterwards: nobody finds it empty, and ext4 writes a
/// file that was emptied to the disk when it is closed, which the next change would wait for.
pub(super) fn overwrite(path: &Path, text: &str) -> io::Result<()> {
    let file = open(path)?;
    let before = file.metadata()?.len();
    let bytes = covering(text, before);
    reserve(&file, bytes.len() as u64)?;
    let mut was = Vec::new();
    (&file).take(LONGEST).read_to_end(&mut was)?;
    // In one piece: who reads it meanwhile finds the one or the other.
    if let Err(error) = file.write_all_at(&bytes, 0) {
        // Where files are never written in place (btrfs), reserving says little.
        file.write_all_at(&was, 0).ok();
        file.set_len(before).ok();
        return Err(error);
    }
    file.set_len(text.len() as u64)
}

/// Makes sure that a file that is there can get so much longer. None there is, or one that the container
/// has made too long to be changed: nothing is to be written to it, either.
pub(super) fn make_room(path: &Path, more: u64) -> io::Result<()> {
    match open(path) {
        Ok(file) => match file.metadata()?.len() {
            length @ ..=LONGEST => reserve(&file, length + more),
            _ => Ok(()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// Has the file system set aside what a file of this length needs, if the file does not have it: its
/// length stays.
fn reserve(file: &File, length: u64) -> io::Result<()> {
    if file.metadata()?.blocks() * BLOCK >= length {
        return Ok(());
    }
    match fallocate(file, FallocateFlags::KEEP_SIZE, 0, length) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A text with empty lines over what a longer one before would have behind it: part of a line may be a line, too,
/// of another address.
fn covering(text: &str, before: u64) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    // The container may have made it of any length.
    if let Ok(before) = usize::try_from(before.min(LONGEST))
        && before > bytes.len()
    {
        bytes.resize(before, b'\n');
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_overwritten_in_place() {
        use std::os::unix::fs::MetadataExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts");
        std::fs::write(&path, "first\n").unwrap();
        let before = std::fs::metadata(&path).unwrap().ino();
        for text in ["longer than the first\n", "short\n", ""] {
            overwrite(&path, text).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(std::fs::metadata(&path).unwrap().ino(), before);
        assert!(overwrite(&directory.path().join("none"), "").is_err());
    }

    #[test]
    fn nothing_is_left_of_a_longer_text_before_its_end_is_cut_off() {
        let before = "10.0.0.2\tabc\n172.19.0.2\tabc\n";
        for text in [
            "172.19.0.2\tabc\n",
            "",
            before,
            "and longer\n".repeat(9).as_str(),
        ] {
            let bytes = covering(text, before.len() as u64);
            assert!(bytes.len() >= before.len());
            let written = String::from_utf8(bytes).unwrap();
            assert_eq!(written.trim_end_matches('\n'), text.trim_end_matches('\n'));
            assert!(written.starts_with(text), "{written:?}");
        }
        assert_eq!(covering("", u64::MAX).len() as u64, LONGEST);
    }

    #[test]
    fn a_new_file_is_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts");
        for text in ["first\n", "another\n", "x\n"] {
            write(&path, text).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        make_room(&path, 100_000).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "x\n");
        make_room(&directory.path().join("none"), 5).unwrap();
    }
}
