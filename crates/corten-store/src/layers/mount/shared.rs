//! Image mounts that processes share.
//!
//! Every mount of an image file is a file system of its own, with a page cache of its own. So
//! that containers of one image have their files in memory once, whoever stays beside a
//! container keeps the mounts of its images, and others take those (`pidfd_getfd(2)`) instead
//! of mounting anew.
//!
//! Who has one is said by a lock on the image file itself: a process whose descriptor N is a
//! mount of the file holds a read lock on its byte N (`fcntl(2)`, F_SETLK). The kernel tells
//! whose lock it is, and lets it go with its process: nothing is written anywhere, and nothing
//! is left after a crash.
//!
//! Only root can open an image, so nobody else's word is taken; and what was taken must be
//! the root of an EROFS with the UUID that the file has, which is a checksum of its content.
//! Whatever does not work out (no such system call, not permitted, a PID namespace between),
//! the image is mounted anew: as correct, but not shared.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Advice, CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsPickFlags, fsconfig_reconfigure, fsconfig_set_flag, fspick};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::image;
use crate::direct;
use crate::error::{StoreError, at};
use crate::sys;

/// How many that have the mount are asked for it.
const ASKED: usize = 3;
/// How long another process that mounts the same image now is waited for: milliseconds, and
/// how often. It needs less than one.
const PATIENCE: (Duration, u32) = (Duration::from_millis(1), 50);
/// `EROFS_SUPER_MAGIC_V1`.
const EROFS_MAGIC: u64 = 0xe0f5_e1e2;
/// Where the superblock has the root's number, and the UUID (kernel, `erofs_fs.h`).
const ROOT_AT: u64 = 1024 + 14;
const UUID_AT: u64 = 1024 + 48;

/// Which file an image is: device and inode.
pub(in crate::layers) type ImageKey = (u64, u64);

/// A mounted image. Others can have the mount for as long as this lives, if that was wished.
#[derive(Debug)]
pub(in crate::layers) struct ImageMount {
    // First, so that it is closed first, and the lock says nothing of a closed descriptor.
    file: File,
    mount: OwnedFd,
    key: ImageKey,
}

impl ImageMount {
    /// Mounts an image, or takes the mount of a process that has it. With `offer` others may
    /// take it from this process.
    pub(in crate::layers) fn new(path: &Path, offer: bool) -> Result<Self, StoreError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(at("open", path))?;
        let file = File::from(file);
        let metadata = file.metadata().map_err(at("look at", path))?;
        if metadata.mode() & 0o077 != 0 {
            // Whoever can read it reads every file in it, and could answer for its mounts.
            file.set_permissions(Permissions::from_mode(0o600))
                .map_err(at("chmod", path))?;
        }
        // Or several that start at once would each mount it.
        let alone = offer && alone(&file);
        let mount = match take(&file) {
            Some(mount) => mount,
            None => image(&file)?,
        };
        if offer && let Err(errno) = sys::lock_byte(file.as_fd(), byte(&mount)) {
            tracing::debug!(path = %path.display(), %errno, "the mount is not shared");
        }
        if alone && let Err(errno) = rustix::fs::flock(&file, FlockOperation::Unlock) {
            tracing::debug!(path = %path.display(), %errno, "unlock");
        }
        Ok(Self {
            file,
            mount,
            key: (metadata.dev(), metadata.ino()),
        })
    }

    /// Which file it is.
    pub(in crate::layers) fn key(&self) -> ImageKey {
        self.key
    }

    /// Reads past the page cache of the image's file from now on, which would have everything
    /// a second time, and gives back what is there already.
    ///
    /// # Errors
    /// The kernel, or the file system that the image is on, cannot do it.
    pub(in crate::layers) fn read_directly(&self) -> io::Result<()> {
        // The kernel would report errors of reading otherwise, not read in another way.
        if !direct::is_possible(&self.file)? {
            return Err(Errno::OPNOTSUPP.into());
        }
        let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
        let fs = fspick(&self.mount, "", flags)?;
        fsconfig_set_flag(fs.as_fd(), "directio")?;
        fsconfig_reconfigure(fs.as_fd())?;
        rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed)?;
        Ok(())
    }
}

impl AsFd for ImageMount {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.mount.as_fd()
    }
}

fn byte(fd: &OwnedFd) -> u64 {
    u64::from(fd.as_raw_fd().unsigned_abs())
}

/// Waits until nobody else mounts the image. Only a hint: a process may have been stopped.
fn alone(file: &File) -> bool {
    let (pause, tries) = PATIENCE;
    for _ in 0..tries {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => std::thread::sleep(pause),
            other => return other.is_ok(),
        }
    }
    false
}

/// The mount of a process that has it.
fn take(file: &File) -> Option<OwnedFd> {
    let mut from = 0;
    for _ in 0..ASKED {
        let (pid, fd) = match sys::locked_byte(file.as_fd(), from) {
            Ok(holder) => holder?,
            Err(errno) => {
                tracing::debug!(%errno, "who has an image mounted is not known");
                return None;
            }
        };
        match receive(file, pid, fd) {
            Ok(mount) => return Some(mount),
            Err(error) => tracing::debug!(pid, fd, %error, "a mount is not to be had"),
        }
        from = fd + 1;
    }
    None
}

fn receive(file: &File, pid: i32, fd: u64) -> io::Result<OwnedFd> {
    // 0: of a PID namespace that is not seen from here; negative: of another machine.
    let pid = Pid::from_raw(pid.max(0)).ok_or(Errno::SRCH)?;
    let fd = i32::try_from(fd).map_err(|_| Errno::BADF)?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let mount = pidfd_getfd(&process, fd, PidfdGetfdFlags::empty())?;
    if rustix::fs::fstatfs(&mount)?.f_type.cast_unsigned() != EROFS_MAGIC {
        return Err(Errno::STALE.into());
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(&mount, ".", flags, Mode::empty())?;
    let (mut uuid, mut nid) = ([0; 16], [0; 2]);
    file.read_exact_at(&mut uuid, UUID_AT)?;
    file.read_exact_at(&mut nid, ROOT_AT)?;
    let same = sys::file_system_uuid(root.as_fd())? == uuid
        && rustix::fs::fstat(&root)?.st_ino == u64::from(u16::from_le_bytes(nid));
    if same {
        Ok(mount)
    } else {
        Err(Errno::STALE.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::erofs::{ImageWriter, Kind, Tree};
    use std::fs::OpenOptions;
    use std::process::Command;

    /// Says to the child which image to mount.
    const ASK: &str = "CORTEN_TEST_IMAGE";

    fn write(path: &Path, content: &[u8]) {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path)
            .unwrap();
        let mut image = ImageWriter::new(file).unwrap();
        let size = content.len() as u64;
        let data = image.file(size, content).unwrap();
        let mut tree = Tree::new();
        let id = tree.add(Kind::File { size, data }, Default::default());
        tree.insert(Tree::ROOT, b"f", id);
        image.finish(&tree).unwrap();
    }

    fn device(mount: &impl AsFd) -> u64 {
        rustix::fs::fstat(mount).unwrap().st_dev
    }

    /// The device another process sees an image's mount on, and what is in `f`.
    fn in_a_child(image: &Path) -> (u64, String) {
        let this = std::env::current_exe().unwrap();
        let name = "layers::mount::shared::tests::child";
        let mut command = Command::new(this);
        command.args(["--exact", name, "--nocapture"]);
        let output = command.env(ASK, image).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text
            .lines()
            .find(|line| line.starts_with("child "))
            .unwrap();
        let mut words = line.split(' ').skip(1);
        let device = words.next().unwrap().parse().unwrap();
        (device, words.next().unwrap().to_owned())
    }

    #[test]
    fn child() {
        let Ok(image) = std::env::var(ASK) else {
            return;
        };
        let mount = ImageMount::new(Path::new(&image), true).unwrap();
        let file = rustix::fs::openat(&mount, "f", OFlags::RDONLY, Mode::empty()).unwrap();
        let content = std::io::read_to_string(File::from(file)).unwrap();
        println!("\nchild {} {content}", device(&mount));
    }

    #[test]
    fn a_kept_mount_is_used_by_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        write(&path, b"content");
        let kept = ImageMount::new(&path, true).unwrap();
        let shared = (device(&kept), "content".to_owned());
        assert_eq!(in_a_child(&path), shared);
        assert_eq!(
            in_a_child(&path),
            shared,
            "also when one that took it is gone"
        );

        let own = ImageMount::new(&path, false).unwrap();
        drop(kept);
        let (other, content) = in_a_child(&path);
        assert_ne!(other, device(&own), "what is not offered is not taken");
        assert_eq!(content, "content");
        let metadata = path.metadata().unwrap();
        assert_eq!(metadata.mode() & 0o777, 0o600);
    }

    #[test]
    fn what_is_no_mount_of_the_image_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("image"), dir.path().join("other"));
        write(&path, b"content");
        write(&other, b"lies");
        let other = ImageMount::new(&other, false).unwrap();
        let directory = File::open(dir.path()).unwrap();
        let below = OFlags::PATH | OFlags::CLOEXEC;
        let below = rustix::fs::openat(&other, "f", below, Mode::empty()).unwrap();
        // Of numbers that are descriptors of something else, and of none.
        let claims = [directory.as_raw_fd(), below.as_raw_fd(), 1 << 20];
        for claim in claims
            .into_iter()
            .chain([other.mount.as_raw_fd()])
            .map(|fd| u64::from(fd.unsigned_abs()))
        {
            let image = File::open(&path).unwrap();
            sys::lock_byte(image.as_fd(), claim).unwrap();
            let (found, content) = in_a_child(&path);
            assert_eq!(content, "content");
            assert_ne!(found, device(&other));
        }
    }

    #[test]
    fn reading_directly_is_reading_the_same() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = dir.path().join("image");
        let content: Vec<u8> = (0..3_000_001_u32).flat_map(u32::to_le_bytes).collect();
        write(&path, &content);
        let mount = ImageMount::new(&path, false).unwrap();
        let read = || {
            let file = rustix::fs::openat(&mount, "f", OFlags::RDONLY, Mode::empty()).unwrap();
            let file = File::from(file);
            let mut half = vec![0; 1_500_000];
            file.read_exact_at(&mut half, 7).unwrap();
            assert!(half == content[7..1_500_007]);
            file
        };
        read();
        mount.read_directly().unwrap();
        let file = read();
        let mut all = Vec::new();
        std::io::Read::read_to_end(&mut &file, &mut all).unwrap();
        assert!(all == content);
    }
}
