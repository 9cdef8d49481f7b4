//! A disk that is full at any point of a layer's way: whatever fails leaves nothing, and what
//! succeeds is whole.

use std::os::fd::AsRawFd;

use corten_db::Database;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

use super::*;
use crate::Store;

/// A file system of so many pages, mounted nowhere.
fn disk(pages: usize) -> OwnedFd {
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    fsconfig_set_string(fs.as_fd(), "nr_blocks", pages.to_string().as_str()).unwrap();
    fsconfig_create(fs.as_fd()).unwrap();
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    fsmount(fs.as_fd(), flags, MountAttrFlags::empty()).unwrap()
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

/// Whether there was room.
fn try_with(pages: usize, form: LayerForm, tars: &[Vec<u8>]) -> bool {
    let rows = tempfile::tempdir().unwrap();
    let disk = disk(pages);
    let root = PathBuf::from(format!("/proc/self/fd/{}", disk.as_raw_fd()));
    let database = Database::open(&rows.path().join("db"), &[crate::SCHEMA]).unwrap();
    let store = Store::open_with(&root, database, form);
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
            .find(|pages| try_with(*pages, form, &tars));
        assert!(
            enough.is_some_and(|pages| pages > 60),
            "{form:?}: {enough:?}"
        );
    }
}
