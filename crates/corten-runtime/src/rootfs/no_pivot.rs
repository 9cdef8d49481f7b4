//! `--no-pivot`: the root where the host's cannot be pivoted away from (an initramfs). The
//! container's root has been attached over the host's, as `MS_MOVE` would have it, and is
//! entered with `chroot`. No path leads below it: `..` ends in what is mounted topmost on
//! `/`, from wherever one climbs.
//!
//! What is below stays in the mount namespace, though, and that counts: the kernel lets a
//! user namespace mount procfs and sysfs anew, without the container's masks, as long as
//! there is one without masks in its mount namespace. So the host's mounts go, as far as the
//! kernel lets them; where they are locked (in a user namespace) those two are covered.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::error::os;
use crate::mountinfo;
use crate::mounts::mount_id;

/// Makes the working directory the root, which is the one attached over the host's.
pub(super) fn enter(root: BorrowedFd<'_>) -> Result<(), Errno> {
    let top = mount_id(root)?;
    // Paths begin at the host's root still, and are not led into what is mounted on it.
    let text = mountinfo::read(mountinfo::OF_PROCESS).map_err(|error| os(&error))?;
    // Of two at one place the later one has to go first.
    for line in below(&text, top).iter().rev() {
        let gone = unmount(&*line.place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        if gone.is_err() && line.kernel {
            match mount(c"tmpfs", &*line.place, c"tmpfs", MountFlags::RDONLY, None) {
                // It has gone together with what it was mounted on.
                Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    rustix::process::chroot(".")
}

/// A mount of the host.
#[derive(Debug, PartialEq, Eq)]
struct Below {
    place: PathBuf,
    /// A whole procfs or sysfs.
    kernel: bool,
}

/// Those that do not belong to the tree of the mount `top`, but the host's root.
fn below(text: &[u8], top: u64) -> Vec<Below> {
    let mounts = || mountinfo::mounts(text);
    let parents: HashMap<u64, u64> = mounts().map(|mount| (mount.id, mount.parent)).collect();
    let is_inside = |id: u64| {
        let chain = std::iter::successors(Some(id), |id| parents.get(id).copied());
        chain.take(parents.len() + 1).any(|id| id == top)
    };
    let others = mounts().filter(|mount| !mount.is_at(Path::new("/")) && !is_inside(mount.id));
    let below = others.map(|mount| Below {
        place: mount.point().into_owned(),
        kernel: mount.root() == Path::new("/") && matches!(mount.kind, b"proc" | b"sysfs"),
    });
    below.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_containers_own_are_left() {
        let text = b"1 0 0:1 / / rw - rootfs none rw\n\
                    20 1 0:22 / /proc rw - proc proc rw\n\
                    21 20 0:22 /sys /proc/sys rw - proc proc rw\n\
                    22 1 0:23 / /a\\040b rw shared:5 - tmpfs tmpfs rw\n\
                    33 32 0:40 / /proc/own rw - tmpfs tmpfs rw\n\
                    32 30 0:41 / /proc rw - proc proc rw\n\
                    30 1 0:42 / / rw - ext4 /dev/vda rw\n";
        let mount = |place: &str, kernel| Below {
            place: place.into(),
            kernel,
        };
        let expected = [
            mount("/proc", true),
            mount("/proc/sys", false),
            mount("/a b", false),
        ];
        assert_eq!(below(text, 30), expected);
        assert_eq!(
            below(b"1 1 x\n\n - \n1 2 3 4 /x rw - \n", 7),
            [mount("/x", false)]
        );
    }
}
