//! Mounts of a part of a mount that is attached nowhere.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use crate::view::in_own_namespace;

/// A detached mount of what `part`, a descriptor of a place in `mount`, leads to. `mount` is
/// attached nowhere; kernels before 6.15 copy no part of such a mount, so a thread with a mount
/// namespace of its own attaches it, takes the copy and ends, and with it the namespace: nothing
/// is seen outside. Needs the right to mount.
///
/// # Errors
/// What the kernel refuses.
pub fn part_of_mount(mount: BorrowedFd<'_>, part: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    in_own_namespace(|| {
        // Anywhere will do.
        move_mount(mount, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        let copy = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        Ok(open_tree(part, "", copy)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, OFlags, openat};
    use rustix::mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen,
    };
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsFd as _;

    #[test]
    fn a_file_of_a_file_system_in_memory() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        fsconfig_create(&fs).unwrap();
        let root = fsmount(
            &fs,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::MOUNT_ATTR_NOEXEC,
        )
        .unwrap();
        let flags = OFlags::RDWR | OFlags::CREATE;
        let file = openat(&root, "f", flags, Mode::from_raw_mode(0o600)).unwrap();
        std::fs::File::from(file).write_all(b"secret").unwrap();
        let part = openat(&root, "f", OFlags::PATH, Mode::empty()).unwrap();
        let copy = part_of_mount(root.as_fd(), part.as_fd()).unwrap();
        drop((fs, root, part));
        // Still there, a mount of that one file.
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&copy));
        let mut text = String::new();
        std::fs::File::open(path)
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "secret");
    }
}
