//! Whether a bind mount can propagate as it was asked to: only what is on a shared mount of the host does
//! (mount_namespaces(7)). Docker refuses the rest, in these words.

use std::os::fd::AsFd;
use std::path::Path;

use corten_runtime::mountinfo;
use rustix::fs::{AtFlags, StatxFlags};

use crate::error::EngineError;
use crate::parse::bad;

/// Refuses `path`, opened as `source`, if mounts are to propagate by these options, and cannot.
pub(super) fn check(path: &Path, source: impl AsFd, options: &[String]) -> Result<(), EngineError> {
    let asked = |names: [&str; 2]| {
        options
            .iter()
            .any(|option| names.contains(&option.as_str()))
    };
    let kind = match (asked(["shared", "rshared"]), asked(["slave", "rslave"])) {
        (true, _) => "shared",
        (_, true) => "shared or slave",
        (false, false) => return Ok(()),
    };
    let io = |action, path: &Path| {
        let path = path.to_owned();
        move |source| EngineError::Io {
            action,
            path,
            source,
        }
    };
    let id = rustix::fs::statx(source, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)
        .map_err(|error| io("look at", path)(error.into()))?
        .stx_mnt_id;
    let list = mountinfo::OF_THREAD;
    let text = mountinfo::read(list).map_err(io("read", Path::new(list)))?;
    let Some(mount) = mountinfo::mounts(&text).find(|mount| mount.id == id) else {
        return Ok(());
    };
    let is = |tag: &[u8]| mount.tags().any(|t| t.starts_with(tag));
    if is(b"shared:") || (kind != "shared" && is(b"master:")) {
        return Ok(());
    }
    let point = mount.point();
    Err(bad(format!(
        "path {} is mounted on {} but it is not a {kind} mount",
        path.display(),
        point.display()
    )))
}
