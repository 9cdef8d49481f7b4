//! How many bytes directories take.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bytes allocated below a directory; files with several names count once. What vanishes
/// meanwhile, or is mounted there, counts as nothing.
pub(crate) fn directory(path: &Path) -> i64 {
    let mut seen = HashSet::new();
    let mut total = 0_u64;
    let mut pending = vec![path.to_owned()];
    let Ok(device) = std::fs::symlink_metadata(path).map(|meta| meta.dev()) else {
        return 0;
    };
    while let Some(directory) = pending.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries.flatten() {
            // Of the entry itself: links are not followed.
            let Ok(meta) = entry.metadata() else { continue };
            if meta.nlink() > 1 && !meta.is_dir() && !seen.insert((meta.dev(), meta.ino())) {
                continue;
            }
            if meta.is_dir() && meta.dev() == device {
                pending.push(entry.path());
            } else if !meta.is_dir() {
                total += meta.len().min(meta.blocks() * 512);
            }
        }
    }
    i64::try_from(total).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_files_once() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join("sub/a"), vec![1; 5000]).unwrap();
        std::fs::hard_link(dir.path().join("sub/a"), dir.path().join("b")).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("link")).unwrap();
        let size = directory(dir.path());
        assert!((5000..9000).contains(&size), "{size}");
        assert_eq!(directory(&dir.path().join("none")), 0);
    }
}
