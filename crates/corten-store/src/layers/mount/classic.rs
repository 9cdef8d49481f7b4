//! mount(2), for kernels whose overlayfs does not take its layers one by one (before 6.7).
//!
//! The other way there, one fsconfig(2) string for all layers, ends at 255 bytes: 15 layers.
//! mount(2) takes a page, but attaches what it mounts. So a thread with a mount namespace of
//! its own mounts, takes a detached copy and ends, and the namespace with it: again nothing
//! is seen outside, and no crash leaves anything behind.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use rustix::fs::{CWD, fstat, readlink};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, OpenTreeFlags, mount, mount_change, open_tree,
};

use super::{OPTIONS, Upper, failed, open_dir, open_upper_dir};
use crate::error::StoreError;
use crate::sys;

/// What mount(2) takes as options, the ending NUL included.
const PAGE: usize = 4096;

/// Does what [`super::overlay`] says.
pub(super) fn overlay(lowers: &[BorrowedFd<'_>], upper: Upper<'_>) -> Result<OwnedFd, StoreError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("overlay".to_owned())
            .spawn_scoped(scope, || in_own_namespace(lowers, upper));
        let thread = thread.map_err(|source| StoreError::Mount {
            step: "start a thread",
            source,
        })?;
        thread.join().unwrap_or_else(|_| {
            Err(StoreError::Mount {
                step: "mount the overlay in a thread",
                source: io::ErrorKind::Other.into(),
            })
        })
    })
}

fn in_own_namespace(lowers: &[BorrowedFd<'_>], upper: Upper<'_>) -> Result<OwnedFd, StoreError> {
    sys::unshare_mounts().map_err(failed("unshare the mount namespace"))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(failed("make mounts private"))?;

    // Overlayfs refuses directories of mounts outside the caller's namespace.
    let lowers: Vec<(PathBuf, OwnedFd)> = lowers
        .iter()
        .map(reopen)
        .collect::<Result<_, _>>()
        .map_err(failed("open a layer again"))?;
    let mut options = String::from("lowerdir=");
    for (n, (_, lower)) in lowers.iter().enumerate() {
        let colon = if n == 0 { "" } else { ":" };
        options.push_str(&format!("{colon}{}", by_fd(lower.as_fd())));
    }
    let mut flags = MountFlags::RDONLY;
    let mut _open = None;
    if let Upper::Dir {
        upper,
        work,
        volatile,
    } = upper
    {
        let (upper, work) = (open_upper_dir(upper)?, open_upper_dir(work)?);
        options.push_str(&format!(
            ",upperdir={},workdir={}",
            by_fd(upper.as_fd()),
            by_fd(work.as_fd())
        ));
        if volatile {
            options.push_str(",volatile");
        }
        flags = MountFlags::empty();
        _open = Some((upper, work)); // until mounted
    }
    for (key, value) in OPTIONS {
        options.push_str(&format!(",{key}={value}"));
    }
    if options.len() >= PAGE {
        return Err(failed("fit all layers into one mount")(Errno::TOOBIG));
    }
    let options =
        CString::new(options).map_err(|_| failed("name the layers for the mount")(Errno::INVAL))?;

    // Anywhere will do, nobody else sees it; the topmost layer is sure to be there.
    let Some((target, _)) = lowers.first() else {
        return Err(failed("mount an overlay of no layers")(Errno::INVAL));
    };
    mount("overlay", target, "overlay", flags, options.as_c_str())
        .map_err(failed("mount the overlay"))?;
    let copy = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, target, copy).map_err(failed("detach the overlay"))
}

/// The same directory, by this namespace's mounts.
fn reopen(dir: &BorrowedFd<'_>) -> Result<(PathBuf, OwnedFd), Errno> {
    let path = readlink(by_fd(*dir), Vec::new())?;
    let path = PathBuf::from(OsString::from_vec(path.into_bytes()));
    let again = open_dir(&path)?;
    let (before, after) = (fstat(dir)?, fstat(again.as_fd())?);
    if (before.st_dev, before.st_ino) != (after.st_dev, after.st_ino) {
        return Err(Errno::STALE);
    }
    Ok((path, again))
}

fn by_fd(dir: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", dir.as_raw_fd())
}
