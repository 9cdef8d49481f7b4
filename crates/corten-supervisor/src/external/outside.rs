//! What a container whose users are others on the host needs of the host: another runtime works as them
//! for a part of its way.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use corten_oci::runtime_spec::{LinuxIdMapping, Process, Spec};
use rustix::fs::{CWD, Gid, Uid};

/// How many directories are above a bundle that are ours alone, but for the container's own.
const ABOVE: usize = 2;

/// Who an id is outside; `None`: itself.
fn outside(mappings: Option<&[LinuxIdMapping]>, id: u32) -> Option<u32> {
    mappings?.iter().find_map(|map| {
        let offset = id.checked_sub(map.container_id())?;
        (offset < map.size()).then(|| map.host_id().checked_add(offset))?
    })
}

/// Lets the container's root pass to a bundle: its group through the container's directories,
/// everybody through those above, whose names tell nothing.
pub(super) fn open_way(bundle: &Path, spec: &Spec) -> io::Result<()> {
    let linux = spec.linux().as_ref();
    let gids = linux.and_then(|linux| linux.gid_mappings().as_deref());
    let Some(group) = outside(gids, 0) else {
        return Ok(());
    };
    let set = |path: &Path, mode: u32| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
    };
    let mut above = bundle.ancestors();
    for path in above.by_ref().take(2) {
        rustix::fs::chownat(
            CWD,
            path,
            None,
            Some(Gid::from_raw(group)),
            rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
        )?;
        set(path, 0o710)?;
    }
    for path in above.take(ABOVE) {
        set(path, 0o711)?;
    }
    Ok(())
}

/// Gives streams to whoever the process's user is outside.
pub(super) fn give(streams: &[OwnedFd; 3], process: Option<&Process>, spec: &Spec) {
    let linux = spec.linux().as_ref();
    let uids = linux.and_then(|linux| linux.uid_mappings().as_deref());
    let Some(owner) = process.and_then(|process| outside(uids, process.user().uid())) else {
        return;
    };
    for stream in streams {
        let pipe = rustix::fs::fstat(stream).is_ok_and(|stat| {
            rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Fifo
        });
        if pipe && let Err(error) = rustix::fs::fchown(stream, Some(Uid::from_raw(owner)), None) {
            tracing::debug!(%error, "a stream stays root's");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_is_open_to_the_containers_root_only() {
        use std::os::unix::fs::MetadataExt as _;
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let bundle = dir.path().join("c/id/oci");
        std::fs::create_dir_all(&bundle).unwrap();
        let spec = |maps: &str| -> Spec {
            serde_json::from_str(&format!(
                "{{\"ociVersion\":\"1.0.2\",\"linux\":{{\"gidMappings\":[{maps}]}}}}"
            ))
            .unwrap()
        };
        let about = |path: &Path| {
            let found = std::fs::metadata(path).unwrap();
            (found.gid(), found.mode() & 0o777)
        };
        let before = about(&bundle);
        open_way(&bundle, &spec("")).unwrap();
        assert_eq!(about(&bundle), before);
        let map = "{\"containerID\":0,\"hostID\":70000,\"size\":10}";
        open_way(&bundle, &spec(map)).unwrap();
        assert_eq!(about(&bundle), (70_000, 0o710));
        assert_eq!(about(bundle.parent().unwrap()), (70_000, 0o710));
        assert_eq!(about(&dir.path().join("c")), (0, 0o711));
        assert_eq!(about(dir.path()), (0, 0o711));
    }
}
