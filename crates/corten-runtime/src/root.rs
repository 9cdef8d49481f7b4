//! The container's root directory as a descriptor. A path inside it can only be opened
//! through this type, which resolves with `openat2(RESOLVE_IN_ROOT)`: absolute links and
//! `..` stay inside, and a link exchanged at the wrong moment changes nothing of that
//! (CVE-2021-30465).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, readlinkat};
use rustix::io::Errno;

/// How often a look-up is tried again because something was renamed meanwhile: whoever
/// renames all the time must not keep us busy for ever.
const MAX_TRIES: u32 = 1000;

/// How many dangling links in a row are followed when creating.
const MAX_LINKS: u32 = 40;

/// What a missing path becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Node {
    /// A directory, mode 755.
    Directory,
    /// An empty file, mode 644.
    File,
}

/// A root directory.
#[derive(Debug)]
pub(crate) struct RootFd(OwnedFd);

impl RootFd {
    /// `fd` is (a descriptor of) the directory.
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// The directory itself.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Opens what `path` leads to, as `O_PATH`.
    pub(crate) fn open(&self, path: &str) -> Result<OwnedFd, Errno> {
        self.open_with(path, OFlags::PATH, ResolveFlags::empty())
    }

    /// Opens with further flags; links are followed inside the root only, magic ones not.
    pub(crate) fn open_with(
        &self,
        path: &str,
        flags: OFlags,
        resolve: ResolveFlags,
    ) -> Result<OwnedFd, Errno> {
        let resolve = resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let mut tries = 0;
        loop {
            match openat2(
                &self.0,
                path,
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                resolve,
            ) {
                // Something was renamed meanwhile and the kernel cannot tell that `..`
                // stayed inside.
                Err(Errno::AGAIN | Errno::INTR) if tries < MAX_TRIES => tries += 1,
                result => return result,
            }
        }
    }

    /// Opens `path`, creating what is missing: directories on the way, `node` at the end.
    pub(crate) fn ensure(&self, path: &str, node: Node) -> Result<OwnedFd, Errno> {
        match self.open(path) {
            Err(Errno::NOENT) => self.create(path, node, MAX_LINKS),
            result => result,
        }
    }

    /// Opens the directory at `path` through no symbolic link at all, creating it.
    pub(crate) fn ensure_plain_directory(&self, path: &str) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        match self.open_with(path, flags, ResolveFlags::NO_SYMLINKS) {
            Err(Errno::NOENT) => {
                self.create(path, Node::Directory, 0)?;
                self.open_with(path, flags, ResolveFlags::NO_SYMLINKS)
            }
            result => result,
        }
    }

    /// Opens the file at `path` through no symbolic link at all, creating it; a link or
    /// anything else that is there meanwhile is refused.
    pub(crate) fn ensure_plain_file(&self, path: &str) -> Result<OwnedFd, Errno> {
        match self.open_with(path, OFlags::PATH, ResolveFlags::NO_SYMLINKS) {
            Err(Errno::NOENT) => {
                let (parent, name) = self.plain_parent(path)?;
                make(parent.as_fd(), &name, Node::File)?;
                Self(parent).open_with(&name, OFlags::PATH, ResolveFlags::NO_SYMLINKS)
            }
            result => result,
        }
    }

    /// The directory `path` is in, reached through no symbolic link and created if it is
    /// missing, and its last component, for creating it.
    pub(crate) fn plain_parent(&self, path: &str) -> Result<(OwnedFd, String), Errno> {
        let clean = clean(path);
        let (parent, name) = clean.rsplit_once('/').unwrap_or(("", clean.as_str()));
        if name.is_empty() {
            return Err(Errno::INVAL);
        }
        let parent = if parent.is_empty() { "/" } else { parent };
        Ok((self.ensure_plain_directory(parent)?, name.to_owned()))
    }

    /// Component by component; each is created in a directory that has been resolved
    /// inside the root.
    fn create(&self, path: &str, node: Node, links: u32) -> Result<OwnedFd, Errno> {
        let mut here = self.open("/")?;
        let mut walked = String::new();
        let parts: Vec<&str> = path
            .split('/')
            .filter(|part| !matches!(*part, "" | "."))
            .collect();
        for (at, part) in parts.iter().enumerate() {
            let last = at + 1 == parts.len();
            walked.push('/');
            walked.push_str(part);
            here = match self.open(&walked) {
                Err(Errno::NOENT) if *part != ".." => {
                    let node = if last { node } else { Node::Directory };
                    match make(here.as_fd(), part, node) {
                        Ok(()) => self.open(&walked)?,
                        // A link that leads nowhere yet: make what it leads to.
                        Err(Errno::EXIST) => {
                            let links = links.checked_sub(1).ok_or(Errno::LOOP)?;
                            let target = readlinkat(&here, *part, Vec::new())?;
                            let target = target.to_string_lossy().into_owned();
                            let target = if target.starts_with('/') {
                                target
                            } else {
                                let parent =
                                    walked.rsplit_once('/').map_or("", |(parent, _)| parent);
                                format!("{parent}/{target}")
                            };
                            self.create(&target, node, links)?
                        }
                        Err(errno) => return Err(errno),
                    }
                }
                result => result?,
            };
        }
        Ok(here)
    }
}

fn make(parent: BorrowedFd<'_>, name: &str, node: Node) -> Result<(), Errno> {
    match node {
        Node::Directory => mkdirat(parent, name, Mode::from_raw_mode(0o755)),
        Node::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
        }
    }
}

/// `path` made absolute, without empty, `.` and `..` components. For comparing names
/// only: where a path leads is for the kernel to say.
pub(crate) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, RootFd) {
        let dir = tempfile::tempdir().unwrap();
        let fd = rustix::fs::open(dir.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
        (dir, RootFd::new(fd.unwrap()))
    }

    #[test]
    fn creates_inside_only() {
        let (dir, root) = root();
        root.ensure("/a/b/../../../../c", Node::Directory).unwrap();
        assert!(dir.path().join("c").is_dir());
        root.ensure("/x/y/file", Node::File).unwrap();
        assert!(dir.path().join("x/y/file").is_file());
        symlink("/run", dir.path().join("var-run")).unwrap();
        root.ensure("/var-run/docker.sock", Node::File).unwrap();
        assert!(dir.path().join("run/docker.sock").is_file());
        symlink("../../../../escape", dir.path().join("x/up")).unwrap();
        root.ensure("/x/up/d", Node::Directory).unwrap();
        assert!(dir.path().join("escape/d").is_dir());
        symlink("loop", dir.path().join("loop")).unwrap();
        assert!(root.ensure("/loop/x", Node::Directory).is_err());
    }

    #[test]
    fn plain_directories_refuse_links() {
        let (dir, root) = root();
        std::fs::create_dir(dir.path().join("real")).unwrap();
        symlink("real", dir.path().join("proc")).unwrap();
        assert_eq!(
            root.ensure_plain_directory("/proc").unwrap_err(),
            Errno::LOOP
        );
        root.ensure_plain_directory("/sys").unwrap();
    }

    #[test]
    fn plain_files_refuse_links() {
        let (dir, root) = root();
        root.ensure_plain_file("/dev/sub/null").unwrap();
        root.ensure_plain_file("/dev/../dev/sub/null").unwrap();
        assert!(dir.path().join("dev/sub/null").is_file());
        // To a file, to nothing, to a directory on the way.
        symlink("sub/null", dir.path().join("dev/one")).unwrap();
        symlink("/planted", dir.path().join("dev/two")).unwrap();
        symlink("/", dir.path().join("dev/up")).unwrap();
        for path in ["/dev/one", "/dev/two", "/dev/up/planted"] {
            let refused = root.ensure_plain_file(path).unwrap_err();
            assert_eq!(refused, Errno::LOOP, "{path}");
        }
        assert!(!dir.path().join("planted").exists());
    }

    #[test]
    fn cleaning() {
        for (path, expected) in [
            ("proc", "/proc"),
            ("/proc/./x/..", "/proc"),
            ("//a//b/", "/a/b"),
            ("/../..", "/"),
        ] {
            assert_eq!(clean(path), expected);
        }
    }
}
