//! What collections and sweeps put out of use is deleted by a process beside them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{FlockOperation, IFlags, flock, ioctl_getflags, ioctl_setflags};

use crate::harness::{Done, Engine, binary, script, until};

/// What is called as the program that deletes: it tells of that, and deletes when it is let. What
/// else a slow machine hands over, it deletes.
const BETWEEN: &str = r#"#!/bin/sh
if ! find "$(readlink /proc/$$/fd/0)" -name heavy | grep -q .; then exec "$REAL" "$1"; fi
echo "$1" >>"$DIR/told"
exec 3<&0
(
  while [ ! -e "$DIR/go" ]; do
    if [ -e "$DIR/die" ]; then exit; fi
    sleep 0.02
  done
  exec "$REAL" "$1"
) <&3 3<&- >/dev/null 2>&1 &
"#;

/// An engine with an image whose only layer, a directory, nobody can delete yet: so whoever
/// tries to do so at once cannot have succeeded.
struct Stage {
    engine: Engine,
    /// Open, so that they are found wherever they are moved to.
    stuck: Vec<File>,
}

impl Stage {
    fn new() -> Self {
        let engine = Engine::new();
        let program = engine.path("between");
        script(&program, BETWEEN);
        let mut stage = Self {
            engine,
            stuck: Vec::new(),
        };
        let heavy = "x".repeat(1_500_000);
        let files = [
            ("Dockerfile", "FROM scratch\nCOPY heavy /\n"),
            ("heavy", &heavy),
        ];
        let context = stage.engine.context("heavy", &files);
        stage.ok(&["build", "-q", "-t", "heavy", context.to_str().unwrap()]);
        for layer in stage.entries("layers") {
            stage.stick(layer.join("heavy"));
        }
        assert_eq!(stage.stuck.len(), 1);
        stage
    }

    /// Makes a file one that cannot be deleted, if it is there.
    fn stick(&mut self, path: PathBuf) {
        if let Ok(file) = File::open(path) {
            let flags = ioctl_getflags(&file).unwrap();
            ioctl_setflags(&file, flags | IFlags::IMMUTABLE).unwrap();
            self.stuck.push(file);
        }
    }

    fn unstick(&mut self) {
        for file in self.stuck.drain(..) {
            if let Ok(flags) = ioctl_getflags(&file) {
                ioctl_setflags(&file, flags - IFlags::IMMUTABLE).ok();
            }
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.engine.command(args);
        command
            .env("CORTEN_LAYER_DRIVER", "overlay")
            .env("CORTEN_EXE", self.engine.path("between"))
            .env("DIR", self.engine.path(""))
            .env("REAL", binary());
        command
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let done: Done = self.command(args).output().unwrap().into();
        assert_eq!(done.code, 0, "{args:?}: {done:?}");
        done.stdout.trim_end().to_owned()
    }

    fn entries(&self, directory: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.engine.root().join(directory));
        let entries = entries.into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    }

    /// Where the layer waits to be deleted.
    fn rubbish(&self) -> Vec<PathBuf> {
        let mut all = self.entries("tmp");
        all.retain(|path| {
            let name = path.file_name().unwrap().to_string_lossy();
            name.starts_with("removed-") && has_heavy(path)
        });
        all
    }

    /// How often somebody was asked to delete.
    fn told(&self) -> usize {
        let told = fs::read_to_string(self.engine.path("told")).unwrap_or_default();
        assert!(told.lines().all(|line| line == "delete-rubbish"), "{told}");
        told.lines().count()
    }

    fn say(&self, word: &str) {
        fs::write(self.engine.path(word), "").unwrap();
    }

    /// What `system df` says of the disk that images take.
    fn used(&self) -> String {
        self.ok(&["system", "df", "--format", "{{.Type}} {{.Size}}"])
            .lines()
            .find_map(|line| line.strip_prefix("Images "))
            .unwrap()
            .to_owned()
    }

    /// Something has put the layer out of use, and is done; it is deleted later, whoever dies.
    fn ends_deleted(mut self, how: &str) {
        assert_eq!(self.told(), 1, "{how}");
        let left = |stage: &Self| {
            let layers = stage.entries("layers");
            layers.iter().any(|layer| layer.join("heavy").exists())
        };
        assert!(!left(&self), "{how}: still in use");
        let rubbish = self.rubbish();
        assert_eq!(rubbish.len(), 1, "{how}");
        assert!(self.used().starts_with("1.5"), "{how}: {}", self.used());
        // Nobody else deletes what somebody is at.
        self.ok(&["image", "prune", "-f"]);
        assert_eq!(self.told(), 1, "{how}");
        self.say("die");
        let lock = File::open(&rubbish[0]).unwrap();
        until("the process that deletes has died", || {
            flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
        });
        drop(lock);
        fs::remove_file(self.engine.path("die")).unwrap();
        self.ok(&["image", "prune", "-f"]);
        assert_eq!(self.told(), 2, "{how}: it is left for ever");
        assert!(!self.rubbish().is_empty(), "{how}");
        self.unstick();
        self.say("go");
        until("it is deleted", || self.rubbish().is_empty());
        assert!(!self.used().starts_with("1.5"), "{how}: {}", self.used());
        self.engine.assert_clean();
    }
}

/// Whether it is anywhere below.
fn has_heavy(directory: &Path) -> bool {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .any(|path| path.ends_with("heavy") || (path.is_dir() && has_heavy(&path)))
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Whoever waits must not be waited for.
        fs::write(self.engine.path("die"), "").ok();
        self.unstick();
    }
}

#[test]
fn removals_and_prunes_do_not_wait_for_the_disk() {
    let cases: [(&[&str], &[&str]); 4] = [
        (&["builder", "prune", "-af"], &["rmi", "heavy"]),
        (&["builder", "prune", "-af"], &["image", "prune", "-af"]),
        (&["rmi", "heavy"], &["builder", "prune", "-af"]),
        (&["version"], &["system", "prune", "-af"]),
    ];
    for (before, command) in cases {
        let stage = Stage::new();
        stage.ok(before);
        assert_eq!(stage.told(), 0, "{before:?}");
        stage.ok(command);
        stage.ends_deleted(&command.join(" "));
    }
}

/// What a lease kept goes with the lease.
#[test]
fn the_end_of_a_lease_does_not_wait_for_the_disk() {
    let stage = Stage::new();
    stage.ok(&["builder", "prune", "-af"]);
    let mut load = stage.command(&["load"]);
    load.stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut load = load.spawn().unwrap();
    until("a load has begun", || {
        let named = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        stage
            .entries("tmp")
            .iter()
            .any(|path| named(path).starts_with("load-"))
    });
    stage.ok(&["rmi", "heavy"]);
    assert_eq!(stage.told(), 0, "somebody may count on it");
    drop(load.stdin.take());
    assert!(!load.wait().unwrap().success(), "it was sent nothing");
    stage.ends_deleted("the end of a lease");
}

/// What a dead process had begun is swept beside whoever finds it.
#[test]
fn a_sweep_does_not_wait_for_the_disk() {
    let mut stage = Stage::new();
    stage.ok(&["system", "prune", "-af"]);
    stage.unstick();
    stage.say("go");
    until("the layer is deleted", || stage.rubbish().is_empty());
    for name in ["go", "told"] {
        fs::remove_file(stage.engine.path(name)).unwrap();
    }
    let dead = stage.engine.root().join("tmp/layer-0123456789abcdef");
    fs::create_dir_all(dead.join("fs")).unwrap();
    fs::write(dead.join("fs/heavy"), "x".repeat(1_500_000)).unwrap();
    stage.stick(dead.join("fs/heavy"));
    let refused: Done = stage
        .command(&["pull", "127.0.0.1:1/x"])
        .output()
        .unwrap()
        .into();
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(!dead.exists());
    stage.ends_deleted("a sweep");
}
