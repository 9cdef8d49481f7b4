//! A disk that is full, or a quota that is used up, at any point of a layer's way: whatever fails
//! leaves nothing, and what succeeds is whole.

use std::os::fd::AsRawFd;
use std::process::Command;

use corten_db::Database;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

use super::*;
use crate::Store;
use crate::{direct, sys};

/// A file system, mounted nowhere.
fn disk(kind: &str, option: (&str, &str)) -> OwnedFd {
    let fs = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    fsconfig_set_string(fs.as_fd(), option.0, option.1).unwrap();
    fsconfig_create(fs.as_fd()).unwrap();
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    fsmount(fs.as_fd(), flags, MountAttrFlags::empty()).unwrap()
}

/// One in memory, of so many pages. It cannot be written past the page cache.
fn memory(pages: usize) -> OwnedFd {
    let disk = disk("tmpfs", ("nr_blocks", &pages.to_string()));
    assert!(!is_direct(&disk));
    disk
}

/// One on blocks, which can, in a file of 4 MiB.
fn blocks(file: &Path) -> OwnedFd {
    let tool = |name: &str, arguments: &[&str]| {
        let mut command = Command::new(name);
        let done = command.args(arguments).output().unwrap();
        assert!(done.status.success(), "{name}: {done:?}");
        String::from_utf8(done.stdout).unwrap().trim().to_owned()
    };
    File::create(file).unwrap().set_len(4 << 20).unwrap();
    let file = file.to_str().unwrap();
    let format = "-q -F -b 4096 -m 0 -N 256 -O ^has_journal";
    let arguments: Vec<&str> = format.split(' ').chain([file]).collect();
    tool("mkfs.ext4", &arguments);
    let device = tool("losetup", &["--find", "--show", file]);
    let made = std::panic::catch_unwind(|| disk("ext4", ("source", &device)));
    tool("losetup", &["--detach", &device]); // once nothing is mounted from it
    let disk = made.unwrap();
    assert!(is_direct(&disk));
    disk
}

fn place(disk: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", disk.as_raw_fd()))
}

/// Whether files can be written past the page cache.
fn is_direct(disk: &OwnedFd) -> bool {
    let path = place(disk).join("probe");
    let possible = direct::is_possible(File::create(&path).unwrap()).unwrap();
    fs::remove_file(path).unwrap();
    possible
}

/// Takes all of a disk but for so many blocks.
fn take_all_but(disk: &OwnedFd, blocks: usize) -> PathBuf {
    let path = place(disk).join("taken");
    let free = rustix::fs::fstatvfs(disk).unwrap().f_bavail;
    let length = (free - blocks as u64) * 4096;
    let flags = rustix::fs::FallocateFlags::empty();
    rustix::fs::fallocate(File::create(&path).unwrap(), flags, 0, length).unwrap();
    path
}

/// A base, and a layer on it that links to a file which only the base has.
fn stack() -> [Vec<u8>; 2] {
    let add = |tar: &mut tar::Builder<Vec<u8>>, name: &str, content: &[u8], link: &str| {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(content.len() as u64);
        if link.is_empty() {
            tar.append_data(&mut header, name, content).unwrap();
        } else {
            header.set_entry_type(tar::EntryType::Link);
            tar.append_link(&mut header, name, link).unwrap();
        }
    };
    let mut base = tar::Builder::new(Vec::new());
    add(&mut base, "d/below", &[7; 30_000], "");
    let mut top = tar::Builder::new(Vec::new());
    for n in 0..20 {
        let content = vec![n; usize::from(n) * 1000];
        add(&mut top, &format!("d/{n}"), &content, "");
    }
    add(&mut top, "d/link", &[], "d/below");
    [base, top].map(|tar| tar.into_inner().unwrap())
}

fn fill(store: &Store, tars: &[Vec<u8>]) -> Result<(), StoreError> {
    let mut layers = Vec::new();
    for tar in tars {
        layers.push(store.layers().apply(None, tar.as_slice())?.diff_id);
    }
    let root = RootFd::from(store.layers().mount(&layers, Upper::ReadOnly)?);
    for n in 0..20_u8 {
        let read = root.read(Path::new(&format!("d/{n}")), 1 << 20);
        let read = read.map_err(at("read", "d"))?;
        assert_eq!(read, vec![n; usize::from(n) * 1000]);
    }
    let linked = root.read(Path::new("d/link"), 1 << 20);
    assert_eq!(linked.map_err(at("read", "d"))?, vec![7; 30_000]);
    Ok(())
}

/// Whether there was room in this directory.
fn try_in(root: &Path, pages: usize, form: LayerForm, tars: &[Vec<u8>]) -> bool {
    let rows = tempfile::tempdir().unwrap();
    let database = Database::open(&rows.path().join("db"), &[crate::SCHEMA]).unwrap();
    let store = Store::open_with(root, database, form);
    let filled = fill(&store, tars);
    if let Err(error) = &filled {
        let told = format!("{error} {:?}", std::error::Error::source(error));
        assert!(
            told.to_lowercase().contains("no space"),
            "{form:?} {pages}: {told}"
        );
    }
    let left = fs::read_dir(root.join("tmp")).into_iter().flatten();
    assert_eq!(left.count(), 0, "{form:?} {pages}: in tmp");
    for diff_id in store.layers().all().unwrap() {
        let known = store.layers().peek(&diff_id).unwrap().is_some();
        assert!(known, "{form:?} {pages}: half of {diff_id} is left");
        let reason = store.layers().verify(&diff_id).unwrap();
        assert_eq!(reason, None, "{form:?} {pages}");
    }
    store.gc().unwrap();
    let left = store.check(false).unwrap();
    assert!(left.is_empty(), "{form:?} {pages}: {left:?}");
    filled.is_ok()
}

#[test]
fn a_disk_may_be_full_at_any_point() {
    let tars = stack();
    for form in [LayerForm::Directory, LayerForm::Image] {
        let enough = (8..400)
            .step_by(3)
            .find(|pages| try_in(&place(&memory(*pages)), *pages, form, &tars));
        assert!(
            enough.is_some_and(|pages| pages > 60),
            "{form:?}: {enough:?}"
        );
    }
    if !Path::new("/dev/loop-control").exists() {
        println!("skipped: a disk on blocks; there are no loop devices");
        return;
    }
    let file = tempfile::tempdir().unwrap();
    let disk = blocks(&file.path().join("disk"));
    let enough = (8..400).step_by(5).find(|free| {
        let taken = take_all_but(&disk, *free);
        let root = place(&disk).join("root");
        fs::create_dir(&root).unwrap();
        let enough = try_in(&root, *free, LayerForm::Image, &tars);
        fs::remove_dir_all(&root).unwrap();
        fs::remove_file(taken).unwrap();
        enough
    });
    assert!(enough.is_some_and(|free| free > 60), "{enough:?}");
}

#[test]
fn a_document_that_does_not_fit_leaves_nothing() {
    let document = vec![b' '; 20_000];
    let rows = tempfile::tempdir().unwrap();
    let enough = (2..40).find(|pages| {
        let disk = memory(*pages);
        let root = place(&disk);
        let database = Database::open(&rows.path().join("db"), &[crate::SCHEMA]).unwrap();
        let store = Store::open_with(&root, database, LayerForm::Directory);
        let stored = store.blobs().put_bytes(&document);
        let left = fs::read_dir(root.join("tmp")).into_iter().flatten();
        assert_eq!(left.count(), 0, "{pages}: {stored:?}");
        assert_eq!(
            store.blobs().all().unwrap().len(),
            usize::from(stored.is_ok())
        );
        stored.is_ok()
    });
    assert!(enough.is_some_and(|pages| pages >= 5), "{enough:?}");
}

/// An archive that is read to this point when the quota is used up.
struct Until<'t> {
    tar: &'t [u8],
    left: usize,
}

impl Read for Until<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            self.left = usize::MAX;
            sys::use_up_quota()?;
        }
        let length = into.len().min(self.left);
        let read = self.tar.read(&mut into[..length])?;
        self.left -= read;
        Ok(read)
    }
}

/// Seen by the process that has the quota: it is told so, and leaves nothing.
fn under_quota(root: &Path, form: LayerForm, left: usize) {
    let database = Database::open(&root.join("db"), &[crate::SCHEMA]).unwrap();
    let store = Store::open_with(root, database, form);
    let tar = large();
    let error = store.layers().apply(None, Until { tar: &tar, left });
    let told = format!("{:?}", error.unwrap_err());
    assert!(told.contains("QuotaExceeded"), "{told}");
    assert_eq!(fs::read_dir(root.join("tmp")).unwrap().count(), 0);
    assert!(store.layers().all().unwrap().is_empty());
}

/// More than is written at once, and then something small.
fn large() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, size) in [("large", 3 << 20), ("small", 5000)] {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(size as u64);
        let content = vec![7; size];
        tar.append_data(&mut header, name, content.as_slice())
            .unwrap();
    }
    tar.into_inner().unwrap()
}

#[test]
fn a_quota_may_be_used_up_at_any_point() {
    // A filter of system calls says so, to all of a process: kernels need not have quotas.
    const HERE: &str = "layers::full_disk::a_quota_may_be_used_up_at_any_point";
    let said = |name: &str| std::env::var(name).ok();
    if let (Some(root), Some(left)) = (said("UNDER_QUOTA"), said("LEFT")) {
        let form = match said("FORM").as_deref() {
            Some("image") => LayerForm::Image,
            _ => LayerForm::Directory,
        };
        return under_quota(Path::new(&root), form, left.parse().unwrap());
    }
    let tar = large();
    for (name, form) in [
        ("image", LayerForm::Image),
        ("directory", LayerForm::Directory),
    ] {
        for left in [1 << 20, 2 << 20, tar.len() - 2000] {
            let dir = tempfile::tempdir().unwrap();
            let mut child = Command::new(std::env::current_exe().unwrap());
            child.args(["--exact", HERE]).env("UNDER_QUOTA", dir.path());
            let done = child
                .env("LEFT", left.to_string())
                .env("FORM", name)
                .output();
            let done = done.unwrap();
            let told = String::from_utf8_lossy(&done.stdout);
            assert!(
                done.status.success() && told.contains("1 passed"),
                "{name} {left}: {told}"
            );
            // Once there is room, nothing is in the way.
            let database = Database::open(&dir.path().join("db"), &[crate::SCHEMA]).unwrap();
            let store = Store::open_with(dir.path(), database, form);
            assert!(store.check(false).unwrap().is_empty(), "{name} {left}");
            let layer = store.layers().apply(None, tar.as_slice()).unwrap().diff_id;
            assert_eq!(store.layers().verify(&layer).unwrap(), None);
        }
    }
}
