//! `volume export`, `import` and `copy`: all of a volume, or nothing.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::harness::Engine;

/// Makes of everything something, in `/d`.
const MAKE: &str = "cd /d && mkdir -p sub/deep && echo text > sub/deep/f && ln sub/deep/f again && \
    ln -s /nowhere link && mkfifo pipe && mknod null c 1 3 && mknod zero c 0 0 && \
    truncate -s 50M sparse && printf mid | dd of=sparse bs=1 seek=20000000 conv=notrunc 2>/dev/null && \
    echo tool > tool && chown 5:6 tool && chmod 6711 tool && touch -d '2001-02-03 04:05:06' tool && \
    chown 7:8 . && chmod 1750 .";
/// Tells of all of it.
const LOOK: &str = "cd /d && find . | sort | while read f; do \
    stat -c '%n %F %u:%g %a %h %s %t,%T %Y' \"$f\"; done | grep -v '^./sub ' ; readlink link; \
    cat again; dd if=sparse bs=1 skip=20000000 count=3 2>/dev/null";

fn with_volume() -> Engine {
    let engine = Engine::with_alpine();
    engine.ok([
        "run",
        "--rm",
        "-v",
        "data:/d",
        "--cap-add",
        "MKNOD",
        "alpine",
        "sh",
        "-c",
        MAKE,
    ]);
    engine
}

fn look(engine: &Engine, volume: &str) -> String {
    let mount = format!("{volume}:/d:nocopy");
    engine.ok(["run", "--rm", "-v", &mount, "alpine", "sh", "-c", LOOK])
}

fn data(engine: &Engine, volume: &str) -> PathBuf {
    engine.root().join("volumes").join(volume).join("_data")
}

#[test]
fn a_volume_comes_back_from_its_archive_as_it_was() {
    let engine = with_volume();
    let before = look(&engine, "data");
    let note = |volume: &str, name: &str| {
        let file = data(&engine, volume).join("sub");
        let mut value = [0; 64];
        rustix::fs::getxattr(file, name, &mut value[..]).map(|n| value[..n].to_vec())
    };
    let sub = data(&engine, "data").join("sub");
    for (name, value) in [("user.note", "kept"), ("trusted.overlay.opaque", "y")] {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&sub, name, value.as_bytes(), flags).unwrap();
    }
    let file = engine.path("data.tar");
    let path = file.to_str().unwrap();
    engine.ok(["volume", "export", "data", "-o", path]);
    // Of holes nothing is in it.
    assert!(fs::metadata(&file).unwrap().len() < 1 << 20);
    assert_eq!(engine.ok(["volume", "import", "back", path]), "back");
    assert_eq!(look(&engine, "back"), before);
    let sparse = fs::metadata(data(&engine, "back").join("sparse")).unwrap();
    assert!(sparse.blocks() * 512 < 1 << 20, "{}", sparse.blocks());
    assert_eq!(engine.ok(["volume", "copy", "data", "twin"]), "twin");
    assert_eq!(look(&engine, "twin"), before);
    for volume in ["back", "twin"] {
        assert_eq!(note(volume, "user.note").unwrap(), b"kept");
        assert_eq!(note(volume, "trusted.overlay.opaque").unwrap(), b"y");
    }
    // GNU tar reads it, and what gzip makes of it is read by us, from standard input.
    let listed = std::process::Command::new("tar")
        .args(["-tvf", path])
        .output()
        .unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(
        listed.contains("52428800") && listed.contains("./sparse"),
        "{listed}"
    );
    let zipped = std::process::Command::new("gzip")
        .args(["-c", path])
        .output()
        .unwrap();
    let done = engine.run_with_input(["volume", "import", "-"], &zipped.stdout);
    assert_eq!(done.code, 0, "{done:?}");
    let anonymous = done.stdout.trim_end();
    assert_eq!(anonymous.len(), 64);
    assert_eq!(look(&engine, anonymous), before);
    engine.ok(["volume", "prune", "-f"]);
    assert_eq!(engine.ok(["volume", "ls", "-q"]), "back\ndata\ntwin");
    engine.assert_clean();
}

#[test]
fn what_is_there_is_replaced_at_once_or_not_at_all() {
    let engine = Engine::with_alpine();
    let write = |volume: &str, text: &str| {
        let mount = format!("{volume}:/d");
        let script = format!("echo {text} > /d/{text}");
        engine.ok(["run", "--rm", "-v", &mount, "alpine", "sh", "-c", &script]);
    };
    write("old", "old");
    write("new", "new");
    let names = |volume: &str| -> Vec<_> {
        let entries = fs::read_dir(data(&engine, volume)).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect()
    };
    let told = engine.fails(1, ["volume", "copy", "new", "old"]);
    assert!(told.contains("volume old is not empty"), "{told}");
    // One that is used cannot be replaced, but read.
    engine.ok([
        "run", "-d", "--name", "user", "-v", "old:/d", "alpine", "sleep", "1000",
    ]);
    let told = engine.fails(1, ["volume", "copy", "--replace", "new", "old"]);
    assert!(
        told.contains("in use by containers that run") && told.contains("[user]"),
        "{told}"
    );
    engine.ok(["volume", "copy", "old", "saved"]);
    assert_eq!(names("saved"), ["old"]);
    engine.ok(["rm", "-f", "user"]);

    // Archives that lead out, or end in the middle, change nothing.
    let archive = engine.path("bad.tar");
    let path = archive.to_str().unwrap();
    let mut builder = tar::Builder::new(Vec::new());
    let mut append = |name: &str, link: Option<&str>| {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        if let Some(link) = link {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_link_name_literal(link).unwrap();
        }
        header.set_cksum();
        builder.append(&header, &b""[..]).unwrap();
    };
    let outside = engine.path("outside");
    append("fine", None);
    append("link", Some(outside.parent().unwrap().to_str().unwrap()));
    append("link/outside", None);
    append("../../outside", None);
    let hostile = builder.into_inner().unwrap();
    // One without its top directory leaves that as it is.
    fs::write(&archive, [&hostile[..512], &[0; 1024]].concat()).unwrap();
    engine.ok(["volume", "import", "plain", path]);
    let top = fs::metadata(data(&engine, "plain")).unwrap();
    assert_eq!(top.mode() & 0o7777, 0o755);
    assert_eq!(names("plain"), ["fine"]);
    engine.ok(["volume", "rm", "plain"]);
    fs::write(&archive, &hostile).unwrap();
    let told = engine.fails(1, ["volume", "import", "--replace", "old", path]);
    assert!(
        told.contains("import to volume old") && told.contains("outside"),
        "{told}"
    );
    engine.ok(["volume", "export", "new", "-o", path]);
    let whole = fs::read(&archive).unwrap();
    // In an entry, between two, and before the first one.
    for length in [700, 1536, 0] {
        fs::write(&archive, &whole[..length]).unwrap();
        engine.fails(1, ["volume", "import", "--replace", "old", path]);
        assert_eq!(names("old"), ["old"]);
    }
    fs::write(
        &archive,
        "no archive at all, however long it may be".repeat(100),
    )
    .unwrap();
    engine.fails(1, ["volume", "import", "fresh", path]);
    assert!(!outside.exists());
    assert_eq!(names("old"), ["old"]);
    engine.fails(1, ["volume", "import", "fresh", "/no/such/file"]);
    engine.fails(1, ["volume", "export", "absent"]);
    engine.fails(1, ["volume", "copy", "absent", "fresh"]);
    assert_eq!(engine.ok(["volume", "ls", "-q"]), "new\nold\nsaved");

    assert_eq!(
        engine.ok(["volume", "copy", "--replace", "new", "old"]),
        "old"
    );
    assert_eq!(names("old"), ["new"]);
    assert_eq!(
        fs::read_dir(data(&engine, "old").parent().unwrap())
            .unwrap()
            .count(),
        2
    );
    engine.assert_clean();
}

#[test]
fn a_killed_import_leaves_the_volume_as_it_was() {
    let engine = Engine::with_alpine();
    engine.ok(["volume", "create", "data"]);
    let mut import = engine
        .command(["volume", "import", "data"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(1000);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    builder
        .append_data(&mut header, "f", &[7; 1000][..])
        .unwrap();
    let mut archive = builder.into_inner().unwrap();
    archive.truncate(1536);
    let mut input = import.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, &archive).unwrap();
    let incoming = engine.root().join("volumes/data/incoming");
    crate::harness::until("it is unpacked", || incoming.join("f").exists());
    // Neither used nor removed meanwhile.
    let told = engine.fails(1, ["volume", "rm", "data"]);
    assert!(
        told.contains("being exported, imported or copied"),
        "{told}"
    );
    let told = engine.fails(1, ["volume", "import", "data", "/dev/null"]);
    assert!(told.contains("something else is being imported"), "{told}");
    import.kill().unwrap();
    import.wait().unwrap();
    drop(input);
    assert_eq!(fs::read_dir(data(&engine, "data")).unwrap().count(), 0);
    let told = engine.run(["system", "check"]).stdout;
    assert!(told.contains("volume-part data"), "{told}");
    engine.ok(["system", "check", "--repair"]);
    assert!(!incoming.exists());
    engine.ok(["volume", "rm", "data"]);
    engine.assert_clean();
}
