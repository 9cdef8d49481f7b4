//! Layers as a whole: unpack, archive, commit, mount; and archives that mean harm.

mod collection;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use corten_db::{Database, Durability};
use corten_oci::{DiffId, Digest};
use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::rows::{SYNCED, boot_id};
use super::*;
use crate::Store;
use collection::*;

fn store(dir: &Path, form: LayerForm) -> Store {
    let database = Database::open(&dir.join("db"), &[crate::SCHEMA]).unwrap();
    Store::open_with(dir, database, form)
}

/// Every test of layers holds for either form.
macro_rules! in_both_forms {
    ($($name:ident),* $(,)?) => {
        mod directories {
            use crate::LayerForm;
            $(#[test] fn $name() { super::$name(LayerForm::Directory); })*
        }
        mod images {
            use crate::LayerForm;
            $(#[test] fn $name() { super::$name(LayerForm::Image); })*
        }
    };
}

fn header(kind: tar::EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header
}

/// An archive of raw names, which tar::Builder would refuse to write.
fn archive(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, content) in entries {
        let link = matches!(kind, tar::EntryType::Symlink | tar::EntryType::Link);
        let body = if link { "" } else { content };
        let mut header = header(*kind, body.len() as u64);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        if link {
            header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
        }
        header.set_cksum();
        builder.append(&header, body.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

in_both_forms!(
    unpacks_verifies_and_archives_again,
    hostile_archives_stay_inside,
    a_steps_changes_become_a_layer,
    what_a_layer_could_not_know_is_settled_on_each_base,
    settling_is_repeated_after_a_crash,
    a_layer_may_be_there_twice,
    the_same_layer_at_once_is_made_once,
    a_rotten_blob_is_refused_and_fetched_again,
    collection_keeps_what_is_needed,
    collection_runs_beside_leases,
    a_layer_goes_with_the_blob_of_its_name,
    blobs_of_a_lost_manifest_are_kept,
    a_layer_that_was_looked_at_keeps_its_blob,
    what_was_told_to_be_here_is_here,
    damage_is_found_beside_leases,
    a_layer_whose_bytes_are_gone_is_made_again,
    many_layers_are_collected_at_once,
    a_check_leaves_what_is_being_made,
    odd_names_are_pending_too,
    newlines_end_nothing,
    nothing_endless_follows_an_archive,
    a_damaged_layer_is_unpacked_again,
    what_a_check_cannot_mend_it_tells_again,
    round_trips
);

use tar::EntryType::{Char, Directory, Link, Regular, Symlink};

#[test]
fn more_layers_than_can_be_stacked_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), LayerForm::Directory);
    fs::create_dir_all(dir.path().join("layers")).unwrap();
    let layers: Vec<DiffId> = (0..=MAX_LOWERS)
        .map(|n| {
            let diff_id = DiffId(Digest::of(n.to_string().as_bytes()));
            fs::create_dir(store.layers().path(&diff_id)).unwrap();
            diff_id
        })
        .collect();
    let mount = |count: usize| store.layers().mount(&layers[..count], Upper::ReadOnly);
    mount(MAX_LOWERS).unwrap();
    let told = mount(MAX_LOWERS + 1).unwrap_err().to_string();
    assert!(told.contains("501 layers make 501 directories"), "{told}");
}

fn unpacks_verifies_and_archives_again(form: LayerForm) {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), form);
    let tar = archive(&[
        ("./", Directory, ""),
        ("./a/", Directory, ""),
        ("./a/f", Regular, "hello"),
        ("/abs", Regular, "x"),
        ("a/hard", Link, "a/f"),
        ("link", Symlink, "a/f"),
        ("a/f2", Regular, "first"),
        ("a/f2", Regular, "second"),
        ("a/.wh.gone", Regular, ""),
        ("opaque/", Directory, ""),
        ("opaque/.wh..wh..opq", Regular, ""),
    ]);
    let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    let gzip = gzip.finish().unwrap();
    let diff_id = DiffId(Digest::of(&tar));
    let info = store
        .layers()
        .apply(Some(&diff_id), gzip.as_slice())
        .unwrap();
    assert_eq!(info.diff_id, diff_id);
    let stack = std::slice::from_ref(&diff_id);
    let root = RootFd::from(store.layers().mount(stack, Upper::ReadOnly).unwrap());
    assert_eq!(root.read(Path::new("a/hard"), 9).unwrap(), b"hello");
    assert_eq!(root.read(Path::new("link"), 9).unwrap(), b"hello");
    assert_eq!(root.read(Path::new("abs"), 9).unwrap(), b"x");
    assert_eq!(root.read(Path::new("a/f2"), 9).unwrap(), b"second");
    assert_eq!(root.read_link(Path::new("link")).unwrap(), Path::new("a/f"));
    // The second time it is not read at all.
    assert_eq!(
        store.layers().apply(Some(&diff_id), io::empty()).unwrap(),
        info
    );
    let wrong = DiffId(Digest::of(b"other"));
    let refused = store.layers().apply(Some(&wrong), gzip.as_slice());
    assert!(matches!(refused, Err(StoreError::CorruptLayer { .. })));

    // Whatever was unpacked gives one archive, again and again, with the markers in it.
    let (mut once, mut twice) = (Vec::new(), Vec::new());
    store.layers().tar(&diff_id, &mut once).unwrap();
    let again = store.layers().apply(None, once.as_slice()).unwrap();
    store.layers().tar(&again.diff_id, &mut twice).unwrap();
    assert_eq!(once, twice);
    let names: Vec<String> = tar::Archive::new(once.as_slice())
        .entries()
        .unwrap()
        .map(|e| e.unwrap().path().unwrap().display().to_string())
        .collect();
    for expected in ["a/.wh.gone", "opaque/.wh..wh..opq"] {
        assert!(
            names.iter().any(|n| n == expected),
            "{expected} in {names:?}"
        );
    }
    assert!(store.sweep(false).unwrap().is_empty());
}

fn hostile_archives_stay_inside(form: LayerForm) {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "untouched").unwrap();
    let target = outside.display().to_string();
    let store = store(&dir.path().join("root"), form);
    for (name, entries) in [
        ("dots", vec![("../../../../outside/file", Regular, "evil")]),
        ("absolute", vec![("/../outside/file", Regular, "evil")]),
        (
            "symlink",
            vec![("l", Symlink, target.as_str()), ("l/file", Regular, "evil")],
        ),
        (
            "link through",
            vec![
                ("l", Symlink, "../../../outside"),
                ("l/new", Regular, "evil"),
            ],
        ),
        (
            "hard link",
            vec![
                ("l", Symlink, target.as_str()),
                ("h", Link, "l/file"),
                ("h", Regular, "evil"),
            ],
        ),
        (
            "whiteout",
            vec![("l", Symlink, target.as_str()), ("l/.wh.file", Regular, "")],
        ),
        ("device", vec![("d", Char, "")]),
    ] {
        // Refused or made harmless: never outside.
        let _outcome = store.layers().apply(None, archive(&entries).as_slice());
        assert_eq!(
            fs::read_to_string(outside.join("file")).unwrap(),
            "untouched",
            "{name}"
        );
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "{name}");
    }
    assert!(
        store
            .layers()
            .apply(None, &b"not an archive at all"[..])
            .is_err()
    );
    let mut cut = archive(&[("f", Regular, "content of some length")]);
    cut.truncate(520);
    assert!(store.layers().apply(None, cut.as_slice()).is_err());
    assert!(
        store.sweep(false).unwrap().is_empty(),
        "refused archives leave nothing"
    );
}

fn a_steps_changes_become_a_layer(form: LayerForm) {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), form);
    let base = store
        .layers()
        .apply(
            None,
            archive(&[
                ("keep", Regular, "k"),
                ("drop", Regular, "d"),
                ("d/x", Regular, "x"),
            ])
            .as_slice(),
        )
        .unwrap();
    let stack = [base.diff_id.clone()];
    let work = store.layers().begin().unwrap();
    let upper = Upper::Dir {
        upper: work.upper(),
        work: work.work(),
        volatile: true,
    };
    let root = RootFd::from(store.layers().mount(&stack, upper).unwrap());
    crate::rooted::remove_all(root.as_fd(), "drop".as_ref()).unwrap();
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CREATE;
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    root.open_in_root(Path::new("d/new"), flags, mode).unwrap();
    let changes: Vec<String> = store
        .layers()
        .diff_upper(work.upper(), &stack)
        .unwrap()
        .iter()
        .map(|c| format!("{:?} {}", c.kind, c.path.display()))
        .collect();
    assert_eq!(changes, ["Modified /d", "Added /d/new", "Deleted /drop"]);
    drop(root);
    let layer = store.layers().commit(work).unwrap();
    let mut tar = Vec::new();
    store.layers().tar(&layer.diff_id, &mut tar).unwrap();
    assert_eq!(
        Digest::of(&tar),
        *layer.diff_id.digest(),
        "the tar is what its diff id says"
    );
    let both = [base.diff_id, layer.diff_id.clone()];
    let merged = RootFd::from(store.layers().mount(&both, Upper::ReadOnly).unwrap());
    assert!(merged.lstat(Path::new("drop")).is_err());
    assert!(merged.lstat(Path::new("keep")).is_ok() && merged.lstat(Path::new("d/new")).is_ok());
    let blob = store.layers().compress(&layer.diff_id).unwrap();
    assert_eq!(store.layers().compress(&layer.diff_id).unwrap(), blob);
    store.layers().make_durable(&both).unwrap();
    assert!(store.sweep(false).unwrap().is_empty());
}

#[test]
fn until_its_name_is_synced_a_layer_is_believed_in_its_boot_only() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), LayerForm::Directory);
    let tar = archive(&[("f", Regular, "x")]);
    let layer = store.layers().apply(None, &tar[..]).unwrap().diff_id;
    let boot = || -> Option<String> {
        let read = |db: &rusqlite::Connection| {
            let boot = db.query_row("SELECT boot FROM layer", [], |row| row.get(0))?;
            Ok::<_, StoreError>(boot)
        };
        store.database().read(read).unwrap()
    };
    assert_eq!(boot(), Some(format!("{}{SYNCED}", boot_id())));
    assert!(store.layers().has(&layer).unwrap());
    let crashed = |db: &rusqlite::Transaction<'_>| {
        db.execute("UPDATE layer SET boot = 'before' || ?", [SYNCED])?;
        Ok::<_, StoreError>(())
    };
    store
        .database()
        .write(Durability::Relaxed, crashed)
        .unwrap();
    assert!(!store.layers().has(&layer).unwrap());
    store.layers().apply(Some(&layer), &tar[..]).unwrap();
    store
        .layers()
        .make_durable(std::slice::from_ref(&layer))
        .unwrap();
    assert_eq!(boot(), None);
}

fn what_a_layer_could_not_know_is_settled_on_each_base(form: LayerForm) {
    let base = |mode: u32, uid: u64, content: &str| {
        let mut builder = tar::Builder::new(Vec::new());
        let mut directory = header(Directory, 0);
        directory.set_mode(mode);
        directory.set_uid(uid);
        let body = content.as_bytes();
        builder
            .append_data(&mut directory, "d/", io::empty())
            .unwrap();
        builder
            .append_data(&mut header(Regular, body.len() as u64), "d/base", body)
            .unwrap();
        builder.into_inner().unwrap()
    };
    let top = archive(&[("d/new", Regular, "n"), ("d/linked", Link, "d/base")]);
    // Whichever is mounted first, even the layer alone, changes nothing for the others.
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), form);
        let apply = |tar: &[u8]| store.layers().apply(None, tar).unwrap().diff_id;
        let top = apply(&top);
        let bases = [(0o1770, 7, "good"), (0o777, 1000, "evil")];
        let stacks: Vec<Vec<DiffId>> = bases
            .iter()
            .map(|(mode, uid, content)| vec![apply(&base(*mode, *uid, content)), top.clone()])
            .chain([vec![top.clone()]])
            .collect();
        for _ in 0..2 {
            for number in order {
                let root = store
                    .layers()
                    .mount(&stacks[number], Upper::ReadOnly)
                    .unwrap();
                let root = RootFd::from(root);
                assert_eq!(root.read(Path::new("d/new"), 9).unwrap(), b"n");
                let Some((mode, uid, content)) = bases.get(number) else {
                    assert!(root.lstat(Path::new("d/linked")).is_err());
                    continue;
                };
                let stat = root.stat(Path::new("d")).unwrap();
                assert_eq!((stat.st_mode & 0o7777, stat.st_uid), (*mode, *uid as u32));
                let linked = root.read(Path::new("d/linked"), 100).unwrap();
                assert_eq!(linked, content.as_bytes());
            }
        }
        // What was settled goes with the stack it was for.
        let settled = || store.layers().driver.list_settled().unwrap();
        assert_eq!(settled().len(), 2);
        let kept = &stacks[0];
        store.leases().hold("container:x", kept, &[]).unwrap();
        store.gc().unwrap();
        assert_eq!(settled(), [(top.clone(), ChainId::of(&kept[..1]).unwrap())]);
        store.leases().release("container:x").unwrap();
        store.gc().unwrap();
        assert!(settled().is_empty() && store.layers().all().unwrap().is_empty());
    }
}

/// BuildKit's images have an empty layer several times; the upper place is what counts.
fn a_layer_may_be_there_twice(form: LayerForm) {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), form);
    let apply = |tar: &[u8]| store.layers().apply(None, tar).unwrap().diff_id;
    let empty = apply(&archive(&[]));
    let base = apply(&archive(&[
        ("gone", Regular, ""),
        ("d/", Directory, ""),
        ("d/hidden", Regular, ""),
        ("target", Regular, "old"),
    ]));
    let twice = apply(&archive(&[
        ("x", Regular, "twice"),
        (".wh.gone", Regular, ""),
        ("d/.wh..wh..opq", Regular, ""),
        ("link", Link, "target"),
    ]));
    let between = apply(&archive(&[
        ("x", Regular, "between"),
        ("gone", Regular, ""),
        ("d/between", Regular, ""),
        ("y", Regular, "y"),
        ("target", Regular, "new"),
    ]));
    let stack = [
        &empty, &empty, &base, &twice, &empty, &between, &twice, &empty,
    ]
    .map(Clone::clone);
    let root = store.layers().mount(&stack, Upper::ReadOnly).unwrap();
    let root = RootFd::from(root);
    for (path, content) in [("x", "twice"), ("y", "y"), ("link", "new")] {
        let read = root.read(Path::new(path), 9).unwrap();
        assert_eq!(read, content.as_bytes(), "{path}");
    }
    for path in ["gone", "d/hidden", "d/between"] {
        assert!(root.lstat(Path::new(path)).is_err(), "{path}");
    }
    let same = [empty.clone(), empty];
    store.layers().mount(&same, Upper::ReadOnly).unwrap();
}

/// As after a power cut between the rename and the row, and half-way before.
fn settling_is_repeated_after_a_crash(form: LayerForm) {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), form);
    let apply = |entries| {
        store
            .layers()
            .apply(None, archive(entries).as_slice())
            .unwrap()
            .diff_id
    };
    let stack = [
        apply(&[("d/base", Symlink, "to"), ("d/file", Regular, "f")]),
        apply(&[("d/l", Link, "d/base"), ("d/m", Link, "d/file")]),
    ];
    for _ in 0..2 {
        let root = RootFd::from(store.layers().mount(&stack, Upper::ReadOnly).unwrap());
        assert_eq!(root.read_link(Path::new("d/l")).unwrap(), Path::new("to"));
        assert_eq!(root.read(Path::new("d/m"), 9).unwrap(), b"f");
        drop(root);
        let lose = |db: &rusqlite::Transaction<'_>| {
            db.execute("DELETE FROM settled", [])?;
            Ok::<_, StoreError>(())
        };
        store.database().write(Durability::Relaxed, lose).unwrap();
    }
}

fn the_same_layer_at_once_is_made_once(form: LayerForm) {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), form);
    let tar = archive(&[("f", Regular, "x")]);
    let diff_id = DiffId(Digest::of(&tar));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                store
                    .layers()
                    .apply(Some(&diff_id), tar.as_slice())
                    .unwrap()
            });
        }
    });
    assert!(store.layers().has(&diff_id).unwrap());
    assert!(store.sweep(false).unwrap().is_empty());
}

fn a_rotten_blob_is_refused_and_fetched_again(form: LayerForm) {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), form);
    let tar = archive(&[("f", Regular, "x")]);
    let diff_id = DiffId(Digest::of(&tar));
    let digest = store.blobs().put_bytes(&tar).unwrap();
    let blob = LayerBlob {
        digest: digest.clone(),
        size: tar.len() as u64,
        media_type: String::new(),
    };
    let mut bytes = tar.clone();
    bytes[600] ^= 1;
    fs::write(store.blobs().path(&digest), &bytes).unwrap();
    let refused = store.layers().apply_blob(&blob, &diff_id);
    assert!(
        matches!(refused, Err(StoreError::CorruptBlob { .. })),
        "{refused:?}"
    );
    assert!(!store.blobs().has(&digest) && !store.layers().has(&diff_id).unwrap());
}

#[test]
fn a_blob_is_a_layer_only_when_it_was_compared() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), LayerForm::Directory);
    let put = |content: &str| {
        let tar = archive(&[("f", Regular, content)]);
        let digest = store.blobs().put_bytes(&tar).unwrap();
        let size = tar.len() as u64;
        let media_type = String::new();
        (
            tar,
            LayerBlob {
                digest,
                size,
                media_type,
            },
        )
    };
    let ((tar, _), (_, lie)) = (put("honest"), put("lie"));
    let layer = store.layers().apply(None, tar.as_slice()).unwrap().diff_id;
    assert!(!store.layers().apply_compared(&layer, io::empty()).unwrap());
    let refused = store.layers().apply_blob(&lie, &layer);
    assert!(
        matches!(refused, Err(StoreError::CorruptLayer { .. })),
        "{refused:?}"
    );
    assert!(store.layers().blobs_of(&layer).unwrap().is_empty());
    let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    let gzip = gzip.finish().unwrap();
    let blob = LayerBlob {
        digest: store.blobs().put_bytes(&gzip).unwrap(),
        size: gzip.len() as u64,
        media_type: String::new(),
    };
    store.layers().apply_blob(&blob, &layer).unwrap();
    assert_eq!(store.layers().blobs_of(&layer).unwrap(), [blob]);
}

#[test]
fn a_changed_directory_that_was_built_here_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), LayerForm::Directory);
    let work = store.layers().begin().unwrap();
    fs::write(work.upper().join("f"), "built").unwrap();
    let layer = store.layers().commit(work).unwrap().diff_id;
    image_of(&store, &[&layer]);
    assert!(store.check(false).unwrap().is_empty());
    fs::write(store.layers().path(&layer).join("f"), "other").unwrap();
    let findings = store.check(false).unwrap();
    assert!(
        findings[0].detail.contains("not those it was made of"),
        "{findings:?}"
    );
}

fn odd_names_are_pending_too(form: LayerForm) {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), form);
    let mut header = header(Regular, 1);
    header.as_old_mut().name[..6].copy_from_slice(b"caf\xe9/x");
    header.set_cksum();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&header, &b"x"[..]).unwrap();
    let tar = builder.into_inner().unwrap();
    let layer = store.layers().apply(None, tar.as_slice()).unwrap().diff_id;
    let base = archive(&[("b", Regular, "")]);
    let base = store.layers().apply(None, base.as_slice()).unwrap().diff_id;
    let root = RootFd::from(
        store
            .layers()
            .mount(&[base, layer], Upper::ReadOnly)
            .unwrap(),
    );
    let name = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"caf\xe9/x");
    assert_eq!(root.read(Path::new(name), 9).unwrap(), b"x");
}

fn newlines_end_nothing(form: LayerForm) {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), form);
    let name = format!("{}\n14 path=other\n", "n".repeat(120));
    let target = format!("{}\n\n", "t".repeat(120));
    // cap_dac_override,cap_fowner=ep: 0x0a
    let capability = b"\x01\0\0\x02\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
    let xattrs = [
        ("security.capability".into(), capability.clone()),
        ("user.note".into(), b"one\n8 uid=5\n11 size=99\n".to_vec()),
    ];
    let made = tar_header::Entry {
        kind: b'0',
        mode: 0o755,
        xattrs: &xattrs,
        size: 5,
        ..tar_header::Entry::default()
    };
    let mut tar = Vec::new();
    tar_header::write(&mut tar, name.as_bytes(), &made).unwrap();
    tar.extend_from_slice(b"hello");
    tar_header::pad(&mut tar, 5).unwrap();
    let link = tar_header::Entry {
        kind: b'2',
        mode: 0o777,
        link: target.as_bytes(),
        ..tar_header::Entry::default()
    };
    tar_header::write(&mut tar, b"to", &link).unwrap();
    tar_header::end(&mut tar).unwrap();
    let layer = store.layers().apply(None, tar.as_slice()).unwrap().diff_id;
    let stack = std::slice::from_ref(&layer);
    let root = RootFd::from(store.layers().mount(stack, Upper::ReadOnly).unwrap());
    assert_eq!(root.read(Path::new(&name), 9).unwrap(), b"hello");
    let read = root.read_link(Path::new("to")).unwrap();
    assert_eq!(read, Path::new(&target));
    let stat = root.lstat(Path::new(&name)).unwrap();
    assert_eq!((stat.st_uid, stat.st_size), (0, 5));
    // What is pushed can be taken back.
    let mut again = Vec::new();
    store.layers().tar(&layer, &mut again).unwrap();
    assert!(tar == again);
}

fn nothing_endless_follows_an_archive(form: LayerForm) {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), form);
    let endless = io::Read::chain(
        io::Cursor::new(archive(&[("f", Regular, "x")])),
        io::repeat(0),
    );
    let refused = store.layers().apply(None, endless).unwrap_err().to_string();
    assert!(refused.contains("after its end"), "{refused}");
    assert!(store.sweep(false).unwrap().is_empty());
}

#[test]
fn directories_that_are_not_listed_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), LayerForm::Image);
    let mut builder = tar::Builder::new(Vec::new());
    for number in 0..40 {
        let name = format!("{number}/{}f", "d/".repeat(1000));
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, io::empty()).unwrap();
    }
    let tar = builder.into_inner().unwrap();
    let refused = store
        .layers()
        .apply(None, tar.as_slice())
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("bytes of names that it does not list"),
        "{refused}"
    );
}

#[derive(Debug, Clone)]
enum Node {
    File(Vec<u8>, u32),
    Dir(Vec<(String, Node)>, u32),
    Link(String),
    Fifo,
}

fn node() -> impl Strategy<Value = Node> {
    let leaf = prop_oneof![
        (
            proptest::collection::vec(any::<u8>(), 0..2000),
            0..0o7777_u32
        )
            .prop_map(|(content, mode)| Node::File(content, mode | 0o400)),
        "[a-z/.]{1,150}".prop_map(Node::Link),
        Just(Node::Fifo),
    ];
    leaf.prop_recursive(4, 24, 5, |inner| {
        (
            proptest::collection::vec(("[a-zA-Z0-9 ]{1,120}", inner), 0..5),
            0..0o7777_u32,
        )
            .prop_map(|(children, mode)| Node::Dir(children, mode | 0o700))
    })
}

fn write_tree(path: &Path, node: &Node) {
    if fs::symlink_metadata(path).is_ok() {
        return;
    }
    match node {
        Node::File(content, mode) => {
            fs::write(path, content).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(*mode)).unwrap();
        }
        Node::Dir(children, mode) => {
            fs::create_dir(path).unwrap();
            for (name, child) in children {
                write_tree(&path.join(name), child);
            }
            fs::set_permissions(path, fs::Permissions::from_mode(*mode)).unwrap();
        }
        Node::Link(target) => symlink(target, path).unwrap(),
        Node::Fifo => {
            let kind = rustix::fs::FileType::Fifo;
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, 0).unwrap();
        }
    }
}

/// tree → archive → unpack → archive gives the same bytes.
fn round_trips(form: LayerForm) {
    let trees = proptest::collection::vec(("[a-z]{1,8}", node()), 0..5);
    proptest!(ProptestConfig::with_cases(32), |(children in trees)| {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), form);
        let work = store.layers().begin().unwrap();
        for (name, child) in &children {
            write_tree(&work.upper().join(name), child);
        }
        let layer = store.layers().commit(work).unwrap();
        let mut first = Vec::new();
        store.layers().tar(&layer.diff_id, &mut first).unwrap();
        prop_assert_eq!(layer.diff_id.digest(), &Digest::of(&first));
        let removed = store.layers().remove_if(&layer.diff_id, |_| true);
        assert!(removed.unwrap());
        let again = store.layers().apply(Some(&layer.diff_id), first.as_slice()).unwrap();
        let mut second = Vec::new();
        store.layers().tar(&again.diff_id, &mut second).unwrap();
        prop_assert!(first == second);
    });
}
