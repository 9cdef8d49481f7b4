//! A volume's data goes only when its removal is written.

use crate::harness::{Engine, until};

/// Runs Python with the engine's database as `c`, and its root as `root`.
fn database(engine: &Engine, script: &str) {
    let head = "import hashlib, os, sqlite3, sys; root = sys.argv[1]; \
                c = sqlite3.connect(root + '/corten.db'); ";
    let done = std::process::Command::new("python3")
        .args(["-c", &format!("{head}{script}; c.commit()")])
        .arg(engine.root())
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
}

fn filled(engine: &Engine, volume: &str) {
    let mount = format!("{volume}:/d");
    let write = ["sh", "-c", "echo kept > /d/f"];
    let run = ["run", "--rm", "-v", &mount, "alpine"];
    engine.ok([&run[..], &write].concat());
}

fn kept(engine: &Engine, volume: &str) -> String {
    let mount = format!("{volume}:/d");
    engine.ok(["run", "--rm", "-v", &mount, "alpine", "cat", "/d/f"])
}

#[test]
fn a_removal_that_is_not_written_loses_nothing() {
    let engine = Engine::with_alpine();
    filled(&engine, "data");
    engine.ok([
        "run",
        "-d",
        "--name",
        "box",
        "-v",
        "/d",
        "alpine",
        "sh",
        "-c",
        "echo kept > /d/f",
    ]);
    engine.ok(["wait", "box"]);
    // What no commit passes.
    database(
        &engine,
        "c.executescript('CREATE TABLE never (id TEXT REFERENCES networks (id) DEFERRABLE INITIALLY \
         DEFERRED); CREATE TRIGGER never_t AFTER DELETE ON volumes BEGIN INSERT INTO never \
         VALUES (1); END')",
    );
    let told = engine.fails(1, ["volume", "rm", "data"]);
    assert!(told.contains("FOREIGN KEY"), "{told}");
    assert!(engine.root().join("volumes/data/_data/f").exists());
    engine.fails(1, ["rm", "-v", "box"]);
    let mounted = "{{range .Mounts}}{{.Source}}{{end}}";
    let anonymous = engine.ok(["inspect", "-f", mounted, "box"]);
    let file = std::path::Path::new(&anonymous).join("f");
    assert_eq!(std::fs::read_to_string(file).unwrap(), "kept\n");
    database(&engine, "c.execute('DROP TRIGGER never_t')");
    database(&engine, "c.execute('DROP TABLE never')");
    assert_eq!(kept(&engine, "data"), "kept");
    engine.ok(["rm", "-v", "box"]);
    engine.ok(["volume", "rm", "data"]);
    let left = |place: &str| {
        std::fs::read_dir(engine.root().join(place))
            .unwrap()
            .count()
    };
    assert_eq!((left("volumes"), left("removing")), (0, 0));
    engine.assert_clean();
}

#[test]
fn what_a_killed_removal_has_moved_comes_back_with_its_row() {
    let engine = Engine::with_alpine();
    let aside = "[(os.makedirs(root + '/removing', exist_ok=True), os.rename(root + '/volumes/' + n, \
                 root + '/removing/' + hashlib.sha256(f'{t} {n}'.encode()).hexdigest())) \
                 for t, n in c.execute('SELECT created, name FROM volumes')]";
    for volume in ["one", "two"] {
        filled(&engine, volume);
    }
    // Killed before it was written …
    database(&engine, aside);
    assert!(!engine.root().join("volumes/one").exists());
    assert_eq!(kept(&engine, "one"), "kept");
    assert_eq!(kept(&engine, "two"), "kept");
    // … by an engine that is followed by an older one, which makes an empty directory …
    database(&engine, aside);
    std::fs::create_dir_all(engine.root().join("volumes/one/_data")).unwrap();
    assert_eq!(kept(&engine, "one"), "kept");
    // … or one in which something is by now, which stays; it can be removed all the same.
    database(&engine, aside);
    std::fs::create_dir_all(engine.root().join("volumes/one/_data")).unwrap();
    std::fs::write(engine.root().join("volumes/one/_data/f"), "new").unwrap();
    assert_eq!(kept(&engine, "one"), "new");
    engine.ok(["volume", "rm", "one"]);
    filled(&engine, "one");
    let removing = std::fs::read_dir(engine.root().join("removing")).unwrap();
    assert_eq!(removing.count(), 0);
    assert_eq!(kept(&engine, "two"), "kept");
    // … and after.
    database(
        &engine,
        &format!("{aside}; c.execute(\"DELETE FROM volumes WHERE name = 'two'\")"),
    );
    assert_eq!(kept(&engine, "one"), "kept");
    filled(&engine, "two");
    engine.ok(["volume", "rm", "one", "two"]);
    let removing = std::fs::read_dir(engine.root().join("removing")).unwrap();
    assert_eq!(removing.count(), 0);
    engine.assert_clean();
}

/// They are out of everybody's way as soon as the command says that the container is gone.
#[test]
fn anonymous_volumes_are_deleted_by_who_removes_them() {
    let engine = Engine::with_alpine();
    let entries = |directory: &str| {
        let entries = std::fs::read_dir(engine.root().join(directory));
        entries.into_iter().flatten().flatten().count()
    };
    for _ in 0..3 {
        let script = "for n in 1 2 3 4 5 6 7 8 9; do echo > /data/$n; done";
        engine.ok(["run", "--rm", "-v", "/data", "alpine", "sh", "-c", script]);
        assert_eq!(entries("removing"), 0);
    }
    until("all is deleted", || entries("tmp") == 0);
    // As a supervisor leaves them that is killed while it deletes, and as one has them that lives.
    let tmp = engine.root().join("tmp");
    let left = |name: &str| {
        std::fs::create_dir_all(tmp.join(name).join("_data")).unwrap();
        std::fs::write(tmp.join(name).join("_data/file"), "").unwrap();
        tmp.join(name)
    };
    let (killed, own) = (left("remove-volume-a"), left("remove-c-1"));
    let kept = left("remove-volume-b");
    let lock = std::fs::File::open(&kept).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    engine.ok(["run", "--rm", "alpine", "true"]);
    until("they are swept", || !killed.exists() && !own.exists());
    assert!(kept.join("_data/file").exists());
    drop(lock);
    engine.ok(["run", "--rm", "alpine", "true"]);
    until("it is swept", || !kept.exists());
    engine.assert_clean();
}
