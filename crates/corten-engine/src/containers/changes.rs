//! `diff`: what a container changed below its root.

use std::path::{Path, PathBuf};

use bollard_stubs::models;
use corten_store::{Change, ChangeKind};

use super::state;
use crate::engine::Engine;
use crate::error::EngineError;

type Result<T> = std::result::Result<T, EngineError>;

/// Files that a start mounts over: generated ones and, where `/sbin` leads, the init program.
const MOUNTED_OVER: [&str; 5] = [
    "/etc/hostname",
    "/etc/hosts",
    "/etc/resolv.conf",
    corten_init::PATH,
    "/usr/sbin/docker-init",
];

/// The mount points that a start made, of files and of kernel file systems, and the
/// directories in which nothing else changed: no change of the container's.
pub(super) fn engine_made(upper: &Path, changed: &[Change]) -> Vec<PathBuf> {
    let mut ours: Vec<PathBuf> = MOUNTED_OVER
        .iter()
        .map(PathBuf::from)
        .filter(|path| {
            let inside = path.strip_prefix("/").unwrap_or(path);
            changed.iter().any(|change| change.path == *path)
                && std::fs::symlink_metadata(upper.join(inside))
                    .is_ok_and(|found| found.is_file() && found.len() == 0)
        })
        .collect();
    // Deepest first: a directory may be ours because those in it are.
    for directory in ["/etc", "/sbin", "/usr/sbin", "/usr"].map(Path::new) {
        let only_ours = |change: &Change| {
            change.path == directory
                || !change.path.starts_with(directory)
                || ours.contains(&change.path)
        };
        if ours.iter().any(|path| path.starts_with(directory)) && changed.iter().all(only_ours) {
            ours.push(directory.to_owned());
        }
    }
    let directories = ["dev", "proc", "sys"].iter().filter(|name| {
        std::fs::read_dir(upper.join(name)).is_ok_and(|mut entries| entries.next().is_none())
    });
    ours.extend(directories.map(|name| Path::new("/").join(name)));
    ours
}

/// What a container changed below its root. Blocks.
pub(super) fn changes(engine: &Engine, name: &str) -> Result<Vec<models::FilesystemChange>> {
    let container = state::find(engine, name)?;
    let upper = engine.layout().container(&container.id).join("upper");
    let changed = engine
        .store()
        .layers()
        .diff_upper(&upper, &container.setup.layers)?;
    let ours = engine_made(&upper, &changed);
    Ok(changed
        .into_iter()
        .filter(|change| !ours.contains(&change.path))
        .map(|change| models::FilesystemChange {
            path: change.path.to_string_lossy().into_owned(),
            kind: match change.kind {
                ChangeKind::Modified => models::ChangeType::_0,
                ChangeKind::Added => models::ChangeType::_1,
                ChangeKind::Deleted => models::ChangeType::_2,
            },
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(path: &str, kind: ChangeKind) -> Change {
        Change {
            path: path.into(),
            kind,
        }
    }

    #[test]
    fn mount_points_of_generated_files_are_no_changes() {
        let upper = tempfile::tempdir().unwrap();
        let etc = upper.path().join("etc");
        std::fs::create_dir(&etc).unwrap();
        std::fs::write(etc.join("hosts"), "").unwrap();
        std::fs::write(etc.join("hostname"), "written").unwrap();
        let made = [
            change("/etc", ChangeKind::Modified),
            change("/etc/hosts", ChangeKind::Added),
            change("/data", ChangeKind::Added),
        ];
        let ours = engine_made(upper.path(), &made);
        assert_eq!(ours, [PathBuf::from("/etc/hosts"), PathBuf::from("/etc")]);

        let mut more = made.to_vec();
        more.push(change("/etc/hostname", ChangeKind::Added));
        let ours = engine_made(upper.path(), &more);
        assert_eq!(ours, [PathBuf::from("/etc/hosts")]);

        std::fs::create_dir(upper.path().join("proc")).unwrap();
        std::fs::create_dir_all(upper.path().join("sys/own")).unwrap();
        assert_eq!(engine_made(upper.path(), &[]), [PathBuf::from("/proc")]);
    }
}
