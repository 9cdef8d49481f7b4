//! A disk that is full: whoever frees room can go on, whoever takes some is told.

// A test's way to fail is to panic; the lint's own exemption covers only `#[test]` functions.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write as _;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use corten_db::{Database, DbError, Durability, Schema, may_use_reserve};
use rusqlite::Transaction;
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_remount, move_mount, unmount,
};

const FIRST: Schema = Schema {
    name: "t",
    migrations: &["CREATE TABLE t (x INTEGER UNIQUE) STRICT;"],
};

fn insert(database: &Database, x: i64) -> Result<(), DbError> {
    database.write(Durability::Synced, |t| {
        t.execute("INSERT INTO t (x) VALUES (?)", [x])?;
        Ok(())
    })
}

/// A file system, mounted until this is dropped.
struct Disk(tempfile::TempDir);

impl Disk {
    fn mount(kind: &str, option: (&str, &str)) -> Self {
        let fs = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        fsconfig_set_string(fs.as_fd(), option.0, option.1).unwrap();
        fsconfig_create(fs.as_fd()).unwrap();
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        let mount = fsmount(fs.as_fd(), flags, MountAttrFlags::empty()).unwrap();
        let disk = Self(tempfile::tempdir().unwrap());
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&mount, "", CWD, disk.0.path(), flags).unwrap();
        disk
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(self.0.path(), UnmountFlags::DETACH).unwrap();
    }
}

fn ext4(file: &Path, block: &str, features: &str) -> Disk {
    let tool = |name: &str, arguments: &[&str]| {
        let done = Command::new(name).args(arguments).output().unwrap();
        assert!(done.status.success(), "{name}: {done:?}");
        String::from_utf8(done.stdout).unwrap().trim().to_owned()
    };
    fs::File::create(file).unwrap().set_len(96 << 20).unwrap();
    let file = file.to_str().unwrap();
    tool(
        "mkfs.ext4",
        &["-q", "-F", "-b", block, "-O", features, file],
    );
    let device = tool("losetup", &["--find", "--show", file]);
    let made = std::panic::catch_unwind(|| Disk::mount("ext4", ("source", &device)));
    tool("losetup", &["--detach", &device]); // once nothing is mounted from it
    made.unwrap()
}

fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    for size in [65_536, 4096, 512] {
        let bytes = vec![1; size];
        while file.write_all(&bytes).is_ok() {}
    }
    drop(file.sync_all());
}

fn rows(database: &Database) -> i64 {
    database
        .read(|c| Ok::<_, DbError>(c.query_row("SELECT count(*) FROM t", [], |r| r.get(0))?))
        .unwrap()
}

/// Whether processes may use the reserve is said for good, so this is one test.
#[test]
fn a_full_disk_can_be_emptied() {
    let folder = tempfile::tempdir().unwrap();
    let disks = [
        ("tmpfs", Disk::mount("tmpfs", ("nr_blocks", "2048"))),
        (
            "ext4 of 4096",
            ext4(&folder.path().join("4"), "4096", "extent"),
        ),
        (
            "ext4 of 1024",
            ext4(&folder.path().join("1"), "1024", "extent"),
        ),
        // Nothing can be set apart there.
        (
            "as ext2",
            ext4(&folder.path().join("2"), "4096", "^extent,^64bit"),
        ),
    ];
    let reserve = |place: &Path| place.join("db-reserve").exists();
    for (kind, disk) in &disks {
        let (place, path) = (disk.0.path(), disk.0.path().join("db"));
        let database = Database::open(&path, &[FIRST]).unwrap();
        for x in 0..100 {
            insert(&database, x).unwrap();
        }
        drop(database);
        assert!(reserve(place), "{kind}");
        fill(&place.join("fill"));
        // Whoever takes room does not get the last.
        let error = Database::open(&path, &[FIRST]).unwrap_err();
        assert!(error.to_string().contains("no space left"), "{error}");
        assert!(reserve(place), "{kind}");
    }
    may_use_reserve();
    for (kind, disk) in &disks {
        let (place, path) = (disk.0.path(), disk.0.path().join("db"));
        let database = Database::open(&path, &[FIRST]).unwrap();
        assert_eq!(rows(&database), 100, "{kind}");
        assert!(reserve(place), "{kind}: reading needs but a part");
        let delete = |t: &Transaction<'_>| Ok::<_, DbError>(t.execute("DELETE FROM t", [])?);
        database.write(Durability::Synced, delete).unwrap();
        fs::remove_file(place.join("fill")).unwrap();
        drop(database);
        // As soon as there is room, it is kept again; none is needed where nothing is.
        assert!(reserve(place), "{kind}");
        let database = Database::open(&path, &[FIRST]).unwrap();
        assert_eq!(rows(&database), 0, "{kind}");
        // It was filled while this one had it open.
        fill(&place.join("fill"));
        insert(&database, 1).unwrap();
        assert!(!reserve(place), "{kind}");
        for name in ["db", "fill"] {
            fs::remove_file(place.join(name)).unwrap();
        }
        drop(database);
        assert!(!reserve(place), "{kind}");
    }
}

/// Reading needs no room where others have made it; an index that was left is given back.
#[test]
fn an_index_is_room_as_long_as_somebody_holds_it() {
    let folder = tempfile::tempdir().unwrap();
    for disk in [
        Disk::mount("tmpfs", ("nr_blocks", "2048")),
        ext4(&folder.path().join("1"), "1024", "extent"),
    ] {
        let path = disk.0.path().join("db");
        let index = || fs::metadata(disk.0.path().join("db-shm")).map(|index| index.len());
        let database = Database::open(&path, &[FIRST]).unwrap();
        insert(&database, 1).unwrap();
        fill(&disk.0.path().join("fill"));
        assert_eq!(rows(&Database::open(&path, &[FIRST]).unwrap()), 1);
        drop(database);
        assert_eq!(index().unwrap(), 32 << 10);
        let error = Database::open(&path, &[FIRST]).unwrap_err();
        assert!(matches!(error, DbError::Full(None)), "{error:?}");
    }
}

#[test]
fn a_disk_that_cannot_be_written_is_told() {
    let disk = Disk::mount("tmpfs", ("nr_blocks", "2048"));
    let path = disk.0.path().join("db");
    drop(Database::open(&path, &[FIRST]).unwrap());
    // What another test starts has our files open, until it is executed.
    let deadline = Instant::now() + Duration::from_secs(10);
    let flags = MountFlags::BIND | MountFlags::RDONLY;
    while let Err(error) = mount_remount(disk.0.path(), flags, "") {
        assert!(error == Errno::BUSY && Instant::now() < deadline, "{error}");
        std::thread::sleep(Duration::from_millis(1));
    }
    let error = Database::open(&path, &[FIRST]).unwrap_err();
    assert!(matches!(error, DbError::ReadOnly(_)), "{error}");
}
