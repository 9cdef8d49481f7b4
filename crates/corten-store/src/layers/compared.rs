//! Both forms of layers must have one outcome, whatever a tar says: the same view when
//! mounted, the same tar again, the same things pending, and images that EROFS's own checker
//! accepts.

mod any;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use corten_db::Database;
use corten_oci::{DiffId, Digest};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};

use super::tar_header::{self, Entry};
use super::walk::{open_directory, walk};
use super::*;
use crate::Store;
use any::stacked;

fn store(dir: &Path, form: LayerForm) -> Store {
    let database = Database::open(&dir.join("db"), &[crate::SCHEMA]).unwrap();
    Store::open_with(dir, database, form)
}

/// One entry of an archive that need not make sense.
#[derive(Debug, Clone)]
struct Line {
    path: Vec<u8>,
    kind: u8,
    content: Vec<u8>,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, u32),
    device: (u32, u32),
    link: Vec<u8>,
    xattrs: Vec<(OsString, Vec<u8>)>,
}

use std::ffi::OsString;

fn archive(lines: &[Line]) -> Vec<u8> {
    let mut out = Vec::new();
    for line in lines {
        let entry = Entry {
            kind: line.kind,
            mode: line.mode,
            uid: line.owner.0,
            gid: line.owner.1,
            mtime: line.mtime,
            size: line.content.len() as u64,
            device: line.device,
            link: &line.link,
            xattrs: &line.xattrs,
            ..Entry::default()
        };
        tar_header::write(&mut out, &line.path, &entry).unwrap();
        out.write_all(&line.content).unwrap();
        tar_header::pad(&mut out, entry.size).unwrap();
    }
    tar_header::end(&mut out).unwrap();
    out
}

/// Everything a program can see of a mounted layer.
fn view(dir: BorrowedFd<'_>) -> BTreeMap<PathBuf, String> {
    let mut seen = BTreeMap::new();
    let here = OsStr::new(".");
    let stat = rustix::fs::statat(dir, here, AtFlags::empty()).unwrap();
    let xattrs = xattr::list(dir, here).unwrap();
    let root = format!(
        "{:o} {}:{} {}.{:09} {xattrs:?}",
        stat.st_mode, stat.st_uid, stat.st_gid, stat.st_mtime, stat.st_mtime_nsec
    );
    seen.insert(PathBuf::new(), root);
    let looked = walk(dir, false, |dir, name, path| {
        // Overlayfs lists whiteouts of a directory that is in one layer only.
        let Ok(stat) = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) else {
            return Ok(None);
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let content = match kind {
            FileType::RegularFile => {
                let file = rustix::fs::openat(dir, name, OFlags::RDONLY, Mode::empty()).unwrap();
                let mut bytes = Vec::new();
                File::from(file).read_to_end(&mut bytes).unwrap();
                Digest::of(&bytes).to_string()
            }
            FileType::Symlink => {
                format!(
                    "{:?}",
                    rustix::fs::readlinkat(dir, name, Vec::new()).unwrap()
                )
            }
            _ => String::new(),
        };
        let size = if kind == FileType::Directory {
            0
        } else {
            stat.st_size
        };
        let line = format!(
            "{:o} {}:{} {}.{:09} x{} {size} {} {:?} {content}",
            stat.st_mode,
            stat.st_uid,
            stat.st_gid,
            stat.st_mtime,
            stat.st_mtime_nsec,
            stat.st_nlink,
            stat.st_rdev,
            xattr::list(dir, name).unwrap(),
        );
        seen.insert(OsStr::from_bytes(path).into(), line);
        if kind != FileType::Directory {
            return Ok(None);
        }
        path.push(b'/');
        open_directory(dir, name).map(Some)
    });
    looked.unwrap();
    seen
}

#[derive(Debug, PartialEq)]
struct Outcome {
    view: BTreeMap<PathBuf, String>,
    tar: Vec<u8>,
    pending: pending::Pending,
    size: u64,
}

/// A store of each form.
struct Pair {
    _dir: tempfile::TempDir,
    directories: Store,
    images: Store,
}

impl Pair {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [directories, images] = [LayerForm::Directory, LayerForm::Image].map(|form| {
            let root = dir.path().join(format!("{form:?}"));
            fs::create_dir(&root).unwrap();
            store(&root, form)
        });
        Self {
            _dir: dir,
            directories,
            images,
        }
    }
}

/// Unpacks with one form, mounts, archives again. Not through the rows, and without syncing:
/// that takes long, and is tested elsewhere.
fn outcome(store: &Store, tar: &[u8]) -> Result<Outcome, String> {
    let layers = store.layers();
    let staged = match layers.driver.unpack(&mut &*tar) {
        Ok(staged) => staged,
        Err(error) => {
            let left = fs::read_dir(&layers.tmp).unwrap().count();
            assert_eq!(left, 0, "{error}");
            return Err(error.to_string());
        }
    };
    let diff_id = DiffId(Digest::of(tar));
    layers
        .driver
        .publish(&staged.path, &diff_id, false)
        .unwrap();
    let path = layers.path(&diff_id);
    if path.is_file() {
        assert_eq!(layers.verify(&diff_id).unwrap(), None);
        fsck(&path);
    }
    let stack = std::slice::from_ref(&diff_id);
    let root = layers.mount_settled(stack, &[], Upper::ReadOnly).unwrap();
    let seen = view(root.as_fd());
    let mut again = Vec::new();
    layers.tar(&diff_id, &mut again).unwrap();
    layers.driver.discard(&diff_id).unwrap();
    assert!(layers.driver.list().unwrap().is_empty());
    Ok(Outcome {
        view: seen,
        tar: again,
        pending: staged.pending.clone(),
        size: staged.content,
    })
}

/// EROFS's own checker, which reads every file, too.
fn fsck(image: &Path) {
    let output = Command::new("fsck.erofs")
        .arg("--extract")
        .arg(image)
        .output()
        .expect("fsck.erofs runs: scripts/install-deps.sh test installs it");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", image.display());
}

fn both(lines: &[Line]) -> Result<Outcome, String> {
    compare(&Pair::new(), lines)
}

fn compare(pair: &Pair, lines: &[Line]) -> Result<Outcome, String> {
    let tar = archive(lines);
    let directory = outcome(&pair.directories, &tar);
    let image = outcome(&pair.images, &tar);
    match (directory, image) {
        (Ok(directory), Ok(image)) => {
            assert_eq!(directory.view, image.view);
            assert!(directory.tar == image.tar, "the archives differ");
            assert_eq!(directory.pending, image.pending);
            assert_eq!(directory, image);
            Ok(image)
        }
        (Err(directory), Err(image)) => {
            assert_eq!(directory, image);
            Err(directory)
        }
        (directory, image) => panic!(
            "one is refused: {:?} {:?}",
            directory.map(|_| ()),
            image.map(|_| ())
        ),
    }
}

fn line(path: &str, kind: u8) -> Line {
    Line {
        path: path.into(),
        kind,
        content: Vec::new(),
        mode: 0o644,
        owner: (0, 0),
        mtime: (1_700_000_000, 0),
        device: (0, 0),
        link: Vec::new(),
        xattrs: Vec::new(),
    }
}

fn file(path: &str, content: Vec<u8>) -> Line {
    Line {
        content,
        ..line(path, b'0')
    }
}

#[test]
fn files_of_all_sizes() {
    let pattern = |n: usize| -> Vec<u8> { (0..n).map(|i| (i * 31 % 251) as u8 + 1).collect() };
    let mut lines: Vec<Line> = [
        0,
        1,
        1023,
        1024,
        1025,
        4095,
        4096,
        4097,
        5120,
        5121,
        65_535,
        65_536,
        65_537,
        1 << 20,
        (1 << 20) + 1,
        3_000_000,
    ]
    .iter()
    .map(|n| file(&format!("f{n}"), pattern(*n)))
    .collect();
    let both = both(&lines).unwrap();
    assert_eq!(
        both.size,
        lines.iter().map(|l| l.content.len() as u64).sum::<u64>()
    );
    // Holes at the beginning, within, and at the end; and nothing but a hole.
    let holes = |parts: &[(usize, bool)]| -> Vec<u8> {
        parts
            .iter()
            .flat_map(|(n, data)| if *data { pattern(*n) } else { vec![0; *n] })
            .collect()
    };
    lines = vec![
        file("begin", holes(&[(100_000, false), (5000, true)])),
        file(
            "within",
            holes(&[(70_000, true), (300_000, false), (1, true), (8191, false)]),
        ),
        file("end", holes(&[(10, true), (2_000_001, false)])),
        file("hole", holes(&[(1 << 20, false)])),
        file("odd", holes(&[(65_537, false)])),
        file("many", holes(&[(4096, true), (4096, false)].repeat(40))),
    ];
    super::compared::both(&lines).unwrap();
}

#[test]
fn holes_take_no_space() {
    for form in [LayerForm::Image, LayerForm::Directory] {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), form);
        let mut content = vec![0; 200 << 20];
        content[150 << 20] = 1;
        let tar = archive(&[file("sparse", content)]);
        let info = store.layers().apply(None, tar.as_slice()).unwrap();
        assert_eq!(info.size, 200 << 20);
        let path = store.layers().path(&info.diff_id);
        let file = if path.is_dir() {
            path.join("sparse")
        } else {
            path
        };
        let taken = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(file).unwrap()) * 512;
        assert!(taken < 1 << 20, "{taken} bytes");
    }
}

/// GNU tar's every form of files with holes.
#[test]
fn sparse_archives_are_what_was_packed() {
    let dir = tempfile::tempdir().unwrap();
    let (source, name) = (dir.path().join("source"), "d/sparse");
    fs::create_dir_all(source.join("d")).unwrap();
    let mut content = vec![0; 2 << 20];
    for start in [0, 300_000, 1 << 20, (2 << 20) - 10] {
        content[start..start + 10].fill(7);
    }
    let mut made = File::create(source.join(name)).unwrap();
    crate::archive::copy_with_holes(content.as_slice(), &mut made).unwrap();
    let hole = File::create(source.join("d/hole")).unwrap();
    hole.set_len(1 << 20).unwrap();
    let packed = |format: &[&str]| {
        let output = Command::new("tar")
            .args(["--create", "--sparse", "--directory"])
            .arg(&source)
            .args(format)
            .arg("d")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(
            output.stdout.len() < content.len(),
            "{format:?} has no holes"
        );
        output.stdout
    };
    for format in [
        &["--format=gnu"][..],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        let tar = packed(format);
        let pair = Pair::new();
        for store in [&pair.directories, &pair.images] {
            let seen = outcome(store, &tar).unwrap();
            let files: Vec<&Path> = seen.view.keys().map(PathBuf::as_path).collect();
            assert_eq!(
                files,
                ["", "d", "d/hole", name].map(Path::new),
                "{format:?}"
            );
            let line = &seen.view[Path::new(name)];
            assert!(
                line.ends_with(&Digest::of(&content).to_string()),
                "{format:?}: {line}"
            );
        }
    }
}

/// A whiteout hides what is below, also beside a directory of its name.
#[test]
fn whiteouts_beside_directories() {
    let base = [
        file("foo/old", b"old".to_vec()),
        file("foo/sub/old", b"old".to_vec()),
    ];
    let whiteout = || line(".wh.foo", b'0');
    let new = || file("foo/new", b"new".to_vec());
    let deep = || file("foo/sub/new", b"new".to_vec());
    let listed = || line("foo/", b'5');
    let a_file = || file("foo", b"x".to_vec());
    for (lines, expected) in [
        (vec![whiteout(), listed(), new()], &["foo", "foo/new"][..]),
        (vec![listed(), new(), whiteout()], &["foo", "foo/new"]),
        (vec![whiteout(), new()], &["foo", "foo/new"]),
        (vec![new(), whiteout()], &["foo", "foo/new"]),
        (vec![whiteout(), deep()], &["foo", "foo/sub", "foo/sub/new"]),
        (vec![a_file(), listed(), new()], &["foo", "foo/new"]),
        (vec![listed(), whiteout()], &["foo"]),
        (vec![whiteout()], &[]),
        (vec![whiteout(), a_file()], &["foo"]),
        (
            vec![listed(), new()],
            &["foo", "foo/new", "foo/old", "foo/sub", "foo/sub/old"],
        ),
    ] {
        let pair = Pair::new();
        for store in [&pair.directories, &pair.images] {
            let seen = stacked(store, &[archive(&base), archive(&lines)]).unwrap();
            let seen: Vec<&str> = seen.keys().map(|path| path.to_str().unwrap()).collect();
            assert_eq!(seen[1..], *expected, "{lines:?}");
        }
    }
}

#[test]
fn attributes_of_every_kind() {
    let acl = |version: u32| -> Vec<u8> {
        // acl(5) as an attribute: user::rw-, user:7:r--, group::r--, mask::r--, other::---
        let entries: [(u16, u16, u32); 5] = [
            (1, 6, u32::MAX),
            (2, 4, 7),
            (4, 4, u32::MAX),
            (0x10, 4, u32::MAX),
            (0x20, 0, u32::MAX),
        ];
        let mut out = version.to_le_bytes().to_vec();
        for (tag, perm, id) in entries {
            out.extend_from_slice(&tag.to_le_bytes());
            out.extend_from_slice(&perm.to_le_bytes());
            out.extend_from_slice(&id.to_le_bytes());
        }
        out
    };
    // A file capability of version 2: cap_net_raw, effective.
    let capability =
        b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let mut lines = vec![
        Line {
            mode: 0o1777,
            owner: (5, 6),
            mtime: (-5, 250_000_000),
            xattrs: vec![
                ("system.posix_acl_default".into(), acl(2)),
                ("user.root".into(), b"r".to_vec()),
            ],
            ..line("./", b'5')
        },
        Line {
            mode: 0o4755,
            owner: (70_000, 4_000_000_000),
            mtime: (1, 1),
            ..file("setuid", b"x".to_vec())
        },
        Line {
            mode: 0o0,
            mtime: (1 << 33, 999_999_999),
            ..file("nothing", Vec::new())
        },
        Line {
            xattrs: vec![("security.capability".into(), capability.to_vec())],
            ..file("ping", b"elf".to_vec())
        },
        Line {
            mode: 0o640,
            xattrs: vec![
                ("system.posix_acl_access".into(), acl(2)),
                ("trusted.mine".into(), b"t".to_vec()),
                ("user.a".into(), Vec::new()),
                ("user.long".into(), vec![b'v'; 900]),
            ],
            ..file("acl", vec![7; 5000])
        },
        Line {
            mode: 0o740,
            xattrs: vec![("system.posix_acl_default".into(), acl(2))],
            ..line("acls/", b'5')
        },
        // A directory's ACL for what is made in it is nothing to what the archive lists.
        Line {
            mode: 0o604,
            ..file("acls/file", b"f".to_vec())
        },
        line("acls/d/", b'5'),
        file("acls/e/f", b"f".to_vec()),
        Line {
            device: (1, 3),
            ..line("acls/null", b'3')
        },
        Line {
            link: b"a/b/../c".to_vec(),
            ..line("short", b'2')
        },
        Line {
            link: vec![b'l'; 1500],
            owner: (1, 1),
            ..line("long", b'2')
        },
        Line {
            link: vec![b'l'; 4095],
            ..line("longest", b'2')
        },
        Line {
            device: (1, 3),
            mode: 0o666,
            ..line("null", b'3')
        },
        Line {
            device: (259, 70_000),
            ..line("disk", b'4')
        },
        Line {
            mode: 0o600,
            ..line("pipe", b'6')
        },
        // Not root's, by whom it was unpacked.
        Line {
            mode: 0o6755,
            owner: (u32::MAX, u32::MAX),
            ..file("nobody", b"x".to_vec())
        },
        Line {
            owner: (u32::MAX - 1, u32::MAX),
            link: b"nobody".to_vec(),
            ..line("nobodys", b'2')
        },
        Line {
            link: b"setuid".to_vec(),
            ..line("hard", b'1')
        },
        Line {
            link: b"pipe".to_vec(),
            ..line("harder", b'1')
        },
        line("d/.wh.gone", b'0'),
        line("d/.wh..wh..opq", b'0'),
        line("d/.wh..wh.plnk", b'0'),
        line(&format!("{}/x", "n".repeat(255)), b'0'),
    ];
    let outcome = both(&lines).unwrap();
    let told = &outcome.view[Path::new("nobody")];
    assert!(told.starts_with("106755 65534:65534 "), "{told}");
    for path in ["!before", ".hidden", ".-between", "..", "...", "a\nb"] {
        lines.push(line(path, if path == ".." { b'5' } else { b'0' }));
    }
    both(&lines).unwrap();
}

/// Names that no file can have are hidden by nothing, and lead nowhere.
#[test]
fn whiteouts_of_no_name() {
    let base = [file("foo/old", b"old".to_vec()), file("old", Vec::new())];
    let pair = Pair::new();
    for odd in [".wh.", ".wh..", ".wh..."] {
        let lines = [
            line(odd, b'0'),
            line(&format!("foo/{odd}"), b'0'),
            line(&format!("foo/bar/{odd}"), b'0'),
        ];
        both(&lines).unwrap();
        for store in [&pair.directories, &pair.images] {
            let seen = stacked(store, &[archive(&base), archive(&lines)]).unwrap();
            let seen: Vec<&str> = seen.keys().map(|path| path.to_str().unwrap()).collect();
            assert_eq!(seen, ["", "foo", "foo/bar", "foo/old", "old"], "{odd}");
        }
    }
}

/// A directory that is replaced by another has nothing of the first.
#[test]
fn default_acls_go_with_their_directory() {
    let acl = b"\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x04\x00\x05\x00\xff\xff\xff\xff\
        \x20\x00\x00\x00\xff\xff\xff\xff";
    let with_acl = || Line {
        xattrs: vec![("system.posix_acl_default".into(), acl.to_vec())],
        ..line("d/", b'5')
    };
    let a_file = || file("d", b"x".to_vec());
    for (lines, has) in [
        (vec![with_acl(), file("d/f", Vec::new())], true),
        (vec![with_acl(), line("d/", b'5')], true),
        (vec![with_acl(), a_file(), line("d/", b'5')], false),
        (vec![with_acl(), a_file(), file("d/f", Vec::new())], false),
        (vec![with_acl(), a_file()], false),
    ] {
        let outcome = both(&lines).unwrap();
        let told = &outcome.view[Path::new("d")];
        assert_eq!(told.contains("posix_acl_default"), has, "{lines:?}: {told}");
    }
}

#[test]
fn directories_of_many_entries() {
    let lines: Vec<Line> = (0..3000)
        .rev()
        .map(|n| {
            let name = format!("d{}/{n}{}", n % 3, "x".repeat(n * 13 % 200));
            Line {
                owner: (n as u32 % 5, 70_000 * (n as u32 % 2)),
                ..line(&name, b'0')
            }
        })
        .collect();
    both(&lines).unwrap();
}

#[test]
fn what_no_form_takes() {
    for lines in [
        vec![line(&format!("{}/", "n".repeat(256)), b'5')],
        vec![line(&"d/".repeat(1100), b'5')],
        vec![line(
            &format!("{}{}", ("d".repeat(200) + "/").repeat(20), "f".repeat(180)),
            b'0',
        )],
        vec![
            Line {
                link: b"d".to_vec(),
                ..line("h", b'1')
            },
            line("d/", b'5'),
            Line {
                link: b"d".to_vec(),
                ..line("h", b'1')
            },
        ],
        vec![line("c", b'3')],
        vec![line("odd", b'Z')],
        vec![line(".", b'0')],
        vec![
            Line {
                link: b"l".to_vec(),
                ..line("l", b'2')
            },
            line("l/x", b'0'),
        ],
        vec![Line {
            link: vec![b'l'; 5000],
            ..line("l", b'2')
        }],
    ] {
        both(&lines).unwrap_err();
    }
}

#[test]
fn a_rotten_image_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), LayerForm::Image);
    let tar = archive(&[file("f", vec![3; 50_000]), line("d/e/", b'5')]);
    let diff_id = store.layers().apply(None, tar.as_slice()).unwrap().diff_id;
    store
        .leases()
        .hold("test", std::slice::from_ref(&diff_id), &[])
        .unwrap();
    assert!(store.check(false).unwrap().is_empty());
    let path = store.layers().path(&diff_id);
    let good = fs::read(&path).unwrap();
    for at in [1024 + 37, 2000, 4096, 30_000, good.len() - 4000] {
        let mut bad = good.clone();
        bad[at] ^= 4;
        fs::write(&path, &bad).unwrap();
        let findings = store.check(false).unwrap();
        assert_eq!(findings.len(), 1, "byte {at}: {findings:?}");
    }
    fs::write(&path, &good[..good.len() - 1]).unwrap();
    let findings = store.check(true).unwrap();
    assert!(findings[0].detail.contains("corrupt"), "{findings:?}");
    // No blob of it is here.
    assert_eq!(findings[0].lost, Some(crate::Lost::Layer(diff_id.clone())));
    assert!(!store.layers().has(&diff_id).unwrap() && !path.exists());
}

#[test]
fn a_malformed_image_never_misleads_the_reader() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let lines = [
        file("big", [vec![1; 70_000], vec![0; 70_000]].concat()),
        Line {
            link: b"x".repeat(1100),
            ..line("l", b'2')
        },
        Line {
            xattrs: vec![("user.x".into(), b"y".to_vec())],
            ..file("d/f", vec![1; 10])
        },
    ];
    let mut image = erofs::ImageWriter::new(File::create(&path).unwrap()).unwrap();
    let (tree, ..) = erofs::unpack(archive(&lines).as_slice(), &mut image).unwrap();
    image.finish(&tree).unwrap();
    let good = fs::read(&path).unwrap();
    erofs::Image::open(&path).unwrap().verify().unwrap();
    // Any one byte of the metadata: refused, or read as something, but never out of bounds.
    let meta = good.len() - 4096;
    for at in (meta..good.len()).filter(|at| at % 3 == 0 || good[*at] != 0) {
        for change in [1, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[at] ^= change;
            fs::write(&path, &bad).unwrap();
            if let Ok(image) = erofs::Image::open(&path) {
                image.verify().unwrap_err();
                let _outcome = erofs::write_tar(&[image], &mut Limited(1 << 20));
            }
        }
    }
}

/// A sink that is full after so many bytes: a damaged size may claim any number.
struct Limited(usize);

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(self.0);
        self.0 -= n;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn layers_of_both_forms_in_one_stack() {
    let dir = tempfile::tempdir().unwrap();
    let directories = store(dir.path(), LayerForm::Directory);
    let images = store(dir.path(), LayerForm::Image);
    let apply = |store: &Store, lines: &[Line]| {
        let tar = archive(lines);
        store.layers().apply(None, tar.as_slice()).unwrap().diff_id
    };
    let stack = [
        apply(
            &directories,
            &[
                Line {
                    mode: 0o700,
                    owner: (9, 9),
                    ..line("d/", b'5')
                },
                Line {
                    xattrs: vec![("user.x".into(), b"y".to_vec())],
                    ..file("d/base", b"base".to_vec())
                },
                file("d/gone", b"g".to_vec()),
                file("o/hidden", b"h".to_vec()),
            ],
        ),
        apply(
            &images,
            &[
                line("d/.wh.gone", b'0'),
                Line {
                    link: b"d/base".to_vec(),
                    ..line("d/copy", b'1')
                },
                line("o/.wh..wh..opq", b'0'),
                file("o/seen", b"s".to_vec()),
            ],
        ),
        apply(&directories, &[file("d/top", b"top".to_vec())]),
    ];
    assert!(images.layers().path(&stack[1]).is_file());
    assert!(images.layers().path(&stack[2]).is_dir());
    let mut views = Vec::new();
    for store in [&images, &directories] {
        let root = store.layers().mount(&stack, Upper::ReadOnly).unwrap();
        views.push(view(root.as_fd()));
    }
    assert_eq!(views[0], views[1]);
    let names: Vec<&str> = views[0].keys().map(|p| p.to_str().unwrap()).collect();
    assert_eq!(names, ["", "d", "d/base", "d/copy", "d/top", "o", "o/seen"]);
    assert!(
        views[0][Path::new("d")].starts_with("40700 9:9 "),
        "{:?}",
        views[0]
    );
    let copy = &views[0][Path::new("d/copy")];
    assert!(copy.contains("user.x"), "{copy}");
}
