//! What a container whose users are others on the host needs of the host: another runtime works as them
//! for a part of its way.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use corten_oci::runtime_spec::Spec;
use corten_runtime::outside;
use rustix::fs::{CWD, Gid};

/// How many directories are above a container's own that are the engine's.
const ABOVE: usize = 2;

/// Lets the container's root pass to a bundle: its group through the container's directories,
/// everybody through the engine's above, whose names tell nothing. Those above are somebody else's.
pub(super) fn open_way(bundle: &Path, spec: &Spec) -> io::Result<()> {
    let linux = spec.linux().as_ref();
    let gids = linux.and_then(|linux| linux.gid_mappings().as_deref());
    let Some(group) = outside(gids.unwrap_or_default(), 0) else {
        return Ok(());
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
        std::fs::set_permissions(path, Permissions::from_mode(0o710))?;
    }
    for (number, path) in above.enumerate() {
        let mode = std::fs::metadata(path)?.permissions().mode();
        if mode & 0o001 != 0 {
            continue;
        }
        if number >= ABOVE {
            return Err(io::Error::other(format!(
                "the users of the container cannot pass through {}: let everybody (chmod o+x)",
                path.display()
            )));
        }
        std::fs::set_permissions(path, Permissions::from_mode(0o711))?;
    }
    Ok(())
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
        let engines = dir.path().join("run");
        let bundle = engines.join("c/id/oci");
        std::fs::create_dir_all(&bundle).unwrap();
        let set = |path: &Path, mode| {
            std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        };
        set(&engines, 0o700);
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
        assert_eq!((about(&bundle), about(&engines)), (before, (0, 0o700)));
        // What is above the engine's is somebody else's.
        set(dir.path(), 0o700);
        let map = "{\"containerID\":0,\"hostID\":70000,\"size\":10}";
        let told = open_way(&bundle, &spec(map)).unwrap_err().to_string();
        let place = format!("pass through {}:", dir.path().display());
        assert!(told.contains(&place), "{told}");
        set(dir.path(), 0o751);
        open_way(&bundle, &spec(map)).unwrap();
        assert_eq!(about(&bundle), (70_000, 0o710));
        assert_eq!(about(bundle.parent().unwrap()), (70_000, 0o710));
        assert_eq!(about(&engines), (0, 0o711));
        assert_eq!(about(dir.path()), (0, 0o751));
    }
}
