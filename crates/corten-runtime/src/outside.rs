//! Who users of a container are outside of its user namespace.

use std::os::fd::OwnedFd;

use corten_oci::runtime_spec::{LinuxIdMapping, Spec};
use rustix::fs::{FileType, Uid};

/// Who an id is by these mappings; `None`: nobody, or itself, where there are none.
#[must_use]
pub fn outside(mappings: &[LinuxIdMapping], id: u32) -> Option<u32> {
    mappings.iter().find_map(|map| {
        let offset = id.checked_sub(map.container_id())?;
        (offset < map.size()).then(|| map.host_id().checked_add(offset))?
    })
}

/// Gives pipes and sockets to whoever a process's user is on the host, so that `/dev/stdout` can be
/// opened by it: nobody can from inside a user namespace that does not know their owner.
pub fn give_streams(streams: &[OwnedFd; 3], user: u32, spec: &Spec) {
    let linux = spec.linux().as_ref();
    let uids = linux.and_then(|linux| linux.uid_mappings().as_deref());
    let Some(owner) = outside(uids.unwrap_or_default(), user) else {
        return;
    };
    for fd in streams {
        let kind = rustix::fs::fstat(fd).map(|stat| FileType::from_raw_mode(stat.st_mode));
        if matches!(kind, Ok(FileType::Fifo | FileType::Socket)) {
            rustix::fs::fchown(fd, Some(Uid::from_raw(owner)), None).ok();
        }
    }
}
