//! Mounting a stack of layers as a detached overlay (fsopen(2), fsmount(2)).
//!
//! The mount is never attached to the host's mount table: it exists as a descriptor, is
//! attached inside a container's own mount namespace, or used through the descriptor alone;
//! no crash can leave one behind.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_fd, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use crate::error::StoreError;
use crate::mapping::{Mapping, as_owner};

mod classic;
mod shared;

pub(super) use shared::{ImageKey, ImageMount};

/// Layers must be plain: whole files, no redirects, whatever the kernel's default.
const OPTIONS: [(&str, &str); 3] = [
    ("redirect_dir", "nofollow"),
    ("metacopy", "off"),
    ("index", "off"),
];

/// What is on top of a stack.
#[derive(Debug, Clone, Copy)]
pub enum Upper<'a> {
    /// Nothing: the mount is read-only.
    ReadOnly,
    /// A writable directory (and overlayfs's work directory beside it, on the same file
    /// system). `volatile`: never synced, for what is thrown away or synced otherwise.
    Dir {
        /// Where changes go.
        upper: &'a Path,
        /// Overlayfs's own directory.
        work: &'a Path,
        /// Skip all syncing.
        volatile: bool,
    },
}

fn failed(step: &'static str) -> impl FnOnce(Errno) -> StoreError {
    move |errno| StoreError::Mount {
        step,
        source: errno.into(),
    }
}

/// Mounts an EROFS image of a layer, from the file itself (kernel 6.12 and later; no loop
/// device), read-only and as detached as the overlay.
fn image(file: &File) -> Result<OwnedFd, StoreError> {
    // The kernel opens the name it is told: of this very file, whatever happens to its path.
    let source = format!("/proc/self/fd/{}", file.as_raw_fd());
    let fs = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("fsopen erofs"))?;
    fsconfig_set_string(fs.as_fd(), "source", source.as_str()).map_err(failed("set source"))?;
    fsconfig_create(fs.as_fd()).map_err(failed("mount an EROFS image"))?;
    fsmount(
        fs.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY,
    )
    .map_err(failed("fsmount"))
}

fn open_dir(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(
        CWD,
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Mounts `lowers` (top layer first, two at least where there is no upper) with `upper` on top.
pub(super) fn overlay(lowers: &[BorrowedFd<'_>], upper: Upper<'_>) -> Result<OwnedFd, StoreError> {
    // Asking instead of trying: a refused option is logged by the kernel, every time.
    if takes_layers_singly(&rustix::system::uname().release().to_string_lossy()) {
        layer_by_layer(lowers, upper)
    } else {
        classic::overlay(lowers, upper)
    }
}

/// Whether this release of Linux has `lowerdir+` (6.7). A name that tells nothing is new.
fn takes_layers_singly(release: &str) -> bool {
    at_least(release, (6, 7))
}

/// Whether this release of Linux copies mounts that are attached nowhere (6.15).
fn copies_detached(release: &str) -> bool {
    at_least(release, (6, 15))
}

fn at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next().and_then(|part| part.parse::<u32>().ok());
    match (number(), number()) {
        (Some(major), Some(minor)) => (major, minor) >= wanted,
        _ => true,
    }
}

/// As [`overlay`], with owners shown through a mapping: of the layers, whose mounts are copied for
/// that, and of the upper directory, which keeps the owners that an image would have.
///
/// Overlayfs works in its directories as whoever mounts it, so that must be somebody who is
/// somebody there.
pub(super) fn mapped(
    lowers: &[BorrowedFd<'_>],
    upper: Upper<'_>,
    mapping: Mapping<'_>,
) -> Result<OwnedFd, StoreError> {
    let unmappable = |source| StoreError::Mount {
        step: "map the owners of files",
        source,
    };
    if !copies_detached(&rustix::system::uname().release().to_string_lossy()) {
        return Err(unmappable(std::io::Error::other(
            "user namespaces need Linux 6.15 or newer",
        )));
    }
    let copy = |fd: &BorrowedFd<'_>| mapping.copy(*fd, false);
    let lowers: Vec<OwnedFd> = lowers
        .iter()
        .map(copy)
        .collect::<Result<_, _>>()
        .map_err(unmappable)?;
    let lowers: Vec<BorrowedFd<'_>> = lowers.iter().map(AsFd::as_fd).collect();
    // The copy of the mount is there until its own descriptor is closed.
    let mut _above = None;
    let directories = match upper {
        Upper::ReadOnly => None,
        // Of one mount, as overlayfs wants them.
        Upper::Dir { upper, work, .. } => {
            let above = upper.parent().filter(|above| work.parent() == Some(above));
            let above = above.ok_or_else(|| {
                unmappable(std::io::Error::other(format!(
                    "{} and {} are not beside each other",
                    upper.display(),
                    work.display()
                )))
            })?;
            let above = open_upper_dir(above)?;
            let above = mapping.copy(above.as_fd(), false).map_err(unmappable)?;
            let inside = |path: &Path| {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let name = path.file_name().unwrap_or_default();
                rustix::fs::openat(&above, name, flags, Mode::empty()).map_err(failed("open"))
            };
            let both = (inside(upper)?, inside(work)?);
            _above = Some(above);
            Some(both)
        }
    };
    as_owner(mapping.root, || {
        assemble(&lowers, directories.as_ref(), upper)
    })
    .map_err(unmappable)?
}

/// With `lowerdir+`, which neither limits nor parses names.
fn layer_by_layer(lowers: &[BorrowedFd<'_>], upper: Upper<'_>) -> Result<OwnedFd, StoreError> {
    let directories = match upper {
        Upper::ReadOnly => None,
        Upper::Dir { upper, work, .. } => Some((open_upper_dir(upper)?, open_upper_dir(work)?)),
    };
    assemble(lowers, directories.as_ref(), upper)
}

/// Mounts it. `directories`: those of `upper`, and of overlayfs, where there is one.
fn assemble(
    lowers: &[BorrowedFd<'_>],
    directories: Option<&(OwnedFd, OwnedFd)>,
    upper: Upper<'_>,
) -> Result<OwnedFd, StoreError> {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("fsopen overlay"))?;
    let set = |key: &'static str, value: &str| fsconfig_set_string(fs.as_fd(), key, value);
    set("source", "overlay").map_err(failed("set source"))?;
    for lower in lowers {
        set_fd(&fs, "lowerdir+", *lower)?;
    }
    if let Some((upper, work)) = directories {
        set_fd(&fs, "upperdir", upper.as_fd())?;
        set_fd(&fs, "workdir", work.as_fd())?;
    }
    if let Upper::Dir { volatile: true, .. } = upper {
        fsconfig_set_flag(fs.as_fd(), "volatile").map_err(failed("set volatile"))?;
    }
    for (key, value) in OPTIONS {
        set(key, value).map_err(failed("set an overlay option"))?;
    }
    fsconfig_create(fs.as_fd()).map_err(failed("create the overlay"))?;
    let attributes = match upper {
        Upper::ReadOnly => MountAttrFlags::MOUNT_ATTR_RDONLY,
        Upper::Dir { .. } => MountAttrFlags::empty(),
    };
    fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed("fsmount"))
}

pub(super) fn open_upper_dir(path: &Path) -> Result<OwnedFd, StoreError> {
    open_dir(path).map_err(|errno| StoreError::Io {
        action: "open",
        path: path.into(),
        source: errno.into(),
    })
}

/// By descriptor where the kernel can (6.13), else by the path procfs has for it.
fn set_fd(fs: &OwnedFd, key: &'static str, dir: BorrowedFd<'_>) -> Result<(), StoreError> {
    match fsconfig_set_fd(fs.as_fd(), key, dir) {
        Ok(()) => Ok(()),
        // Before 6.13 it wants a descriptor that was opened for more than its path.
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::BADF) => {
            let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
            fsconfig_set_string(fs.as_fd(), key, &path).map_err(failed("set a directory"))
        }
        Err(errno) => Err(failed("set a directory")(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rooted::RootFd;
    use std::fs;

    type Mounting = fn(&[BorrowedFd<'_>], Upper<'_>) -> Result<OwnedFd, StoreError>;

    #[test]
    fn stacks_layers_out_of_sight() {
        out_of_sight(overlay);
    }

    #[test]
    fn old_kernels_stack_layers_out_of_sight() {
        out_of_sight(classic::overlay);
    }

    fn out_of_sight(mounting: Mounting) {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b", "upper", "work"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("a/f"), "a").unwrap();
        fs::write(dir.path().join("b/f"), "b").unwrap();
        fs::write(dir.path().join("a/only"), "a").unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let open = [open_dir(&b).unwrap(), open_dir(&a).unwrap()];
        let lowers = open.each_ref().map(AsFd::as_fd);
        let (upper, work) = (dir.path().join("upper"), dir.path().join("work"));
        let before = fs::read_to_string("/proc/self/mounts").unwrap();
        let top = Upper::Dir {
            upper: &upper,
            work: &work,
            volatile: true,
        };
        let mount = RootFd::from(mounting(&lowers, top).unwrap());
        assert_eq!(mount.read(Path::new("f"), 9).unwrap(), b"b");
        assert_eq!(mount.read(Path::new("only"), 9).unwrap(), b"a");
        mount
            .open_in_root(
                Path::new("new"),
                OFlags::WRONLY | OFlags::CREATE,
                Mode::from_raw_mode(0o644),
            )
            .unwrap();
        assert!(upper.join("new").exists());
        assert_eq!(fs::read_to_string("/proc/self/mounts").unwrap(), before);
        let plain = RootFd::from(mounting(&lowers, Upper::ReadOnly).unwrap());
        let write = OFlags::WRONLY | OFlags::CREATE;
        let refused = plain.open_in_root(Path::new("x"), write, Mode::from_raw_mode(0o644));
        assert_eq!(
            refused.unwrap_err().kind(),
            std::io::ErrorKind::ReadOnlyFilesystem
        );
    }

    #[test]
    fn releases_with_single_layers() {
        for (release, expected) in [
            ("6.1.0-56-cloud-amd64", false),
            ("5.14.0-503.el9.x86_64", false),
            ("6.6.87.2-microsoft-standard-WSL2", false),
            ("6.7.0", true),
            ("6.12.95+deb12-cloud-amd64", true),
            ("7.0-rc1", true),
            ("odd", true),
        ] {
            assert_eq!(takes_layers_singly(release), expected, "{release}");
        }
    }

    #[test]
    fn old_kernels_stack_as_many_layers_as_images_may_have() {
        let dir = tempfile::tempdir().unwrap();
        let open: Vec<OwnedFd> = (0..128)
            .map(|n| {
                let layer = dir.path().join(format!("{n}"));
                fs::create_dir(&layer).unwrap();
                fs::write(layer.join("f"), format!("{n}")).unwrap();
                fs::write(layer.join(format!("only-{n}")), "").unwrap();
                open_dir(&layer).unwrap()
            })
            .collect();
        let lowers: Vec<BorrowedFd<'_>> = open.iter().map(AsFd::as_fd).collect();
        let mount = RootFd::from(classic::overlay(&lowers, Upper::ReadOnly).unwrap());
        assert_eq!(mount.read(Path::new("f"), 9).unwrap(), b"0");
        assert!(mount.read(Path::new("only-127"), 9).is_ok());
    }
}
