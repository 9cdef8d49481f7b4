//! Removing containers, and everything, while somebody starts them.

use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::harness::{Engine, until};

/// A file of a container's run directory, if it is there.
fn run_file(id: &str, name: &str) -> Option<PathBuf> {
    let engines = std::fs::read_dir("/run").unwrap().flatten();
    let mut files = engines.map(|engine| engine.path().join("c").join(id).join(name));
    files.find(|file| file.exists())
}

#[test]
fn what_is_started_meanwhile_is_removed() {
    let engine = Engine::with_alpine();
    let id = engine.ok(["create", "--name", "box", "alpine", "sleep", "1000"]);
    // As somebody has it who copies files into it.
    let work = engine.root().join("containers").join(&id).join("work");
    let copying = std::fs::File::open(work).unwrap();
    flock(&copying, FlockOperation::LockExclusive).unwrap();
    let removing = engine.spawn(["rm", "-f", "box"]);
    // It has looked whether anybody starts it before it wants the lock.
    until("it is to be removed", || run_file(&id, "lock").is_some());
    let starting = engine.spawn(["start", "box"]);
    until("it is to be started", || run_file(&id, "sock").is_some());
    drop(copying);
    let removed = removing.finish();
    assert_eq!(removed.code, 0, "{removed:?}");
    starting.finish();
    assert_eq!(engine.ok(["ps", "-aq"]), "");
    engine.assert_clean();
}

/// The control groups of an engine, by one of its containers.
fn groups_of(engine: &Engine, container: &str) -> Vec<PathBuf> {
    let pid = engine.told("{{.State.Pid}}", container);
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let ours = groups.lines().filter_map(|line| line.split(':').nth(2));
    let parent = ours.filter_map(|group| Path::new(group).parent());
    let parent = parent
        .max_by_key(|parent| parent.as_os_str().len())
        .unwrap();
    let name = parent.strip_prefix("/").unwrap();
    assert!(name.to_str().unwrap().starts_with("corten-"), "{groups}");
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
    let places = hierarchies
        .map(|dir| dir.path())
        .chain(["/sys/fs/cgroup".into()]);
    places.map(|hierarchy| hierarchy.join(name)).collect()
}

#[test]
fn a_reset_ends_what_is_started_before_it_is_done() {
    let engine = Engine::with_alpine();
    let id = engine.ok(["run", "-d", "--name", "box", "alpine", "sleep", "1000"]);
    let groups = groups_of(&engine, "box");
    assert!(groups.iter().any(|group| group.exists()), "{groups:?}");
    let run = run_file(&id, "lock").unwrap();
    let network = run.ancestors().nth(3).unwrap().join("network.lock");
    engine.ok(["rm", "-f", "box"]);
    // It has looked for containers before it wants the network for itself.
    let using = std::fs::File::open(&network).unwrap();
    flock(&using, FlockOperation::LockShared).unwrap();
    let resetting = engine.spawn(["system", "reset", "--force"]);
    until("it waits for the network", || {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", resetting.0.id())).unwrap();
        let mut files = fds
            .flatten()
            .filter_map(|fd| std::fs::read_link(fd.path()).ok());
        files.any(|file| file == network)
    });
    let run = ["run", "-d", "--restart", "always", "--network", "none"];
    let id = engine.ok([&run[..], &["alpine", "sleep", "1000"]].concat());
    drop(using);
    let reset = resetting.finish();
    assert_eq!(reset.code, 0, "{reset:?}");
    assert_eq!(run_file(&id, "lock"), None);
    let left: Vec<_> = groups.iter().filter(|group| group.exists()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_reset_keeps_what_its_user_wrote() {
    let engine = Engine::with_alpine();
    let files = ["engine.toml", "registries.toml"].map(|name| engine.root().join(name));
    for file in &files {
        std::fs::write(file, "# mine\n").unwrap();
    }
    engine.ok(["system", "reset", "--force"]);
    for file in &files {
        assert_eq!(std::fs::read_to_string(file).unwrap(), "# mine\n");
    }
    let all = std::fs::read_dir(engine.root()).unwrap();
    assert_eq!(all.count(), files.len());
}
