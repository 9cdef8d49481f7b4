//! `checkpoint`, `restore` or CRIU itself is killed: the container goes on or is gone, `state`
//! tells which, and `delete --force` cleans up completely. With the stand-in for CRIU every
//! moment can be tried, on any machine; with CRIU itself, where it works, moments as they come.

use std::io::PipeReader;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::cli_checkpoint::{run_command as run, stand_in};
use crate::Case;
use crate::cli::Bundle;
use crate::support::{eventually, lacks};

pub const CASES: &[Case] = &[
    ("cli_crash_of_checkpoint", crash_of_checkpoint),
    ("cli_crash_of_restore", crash_of_restore),
    ("cli_crash_of_criu", crash_of_criu),
    ("cli_crash_with_criu", crash_with_criu),
];

const CHECKPOINT: [&str; 4] = ["checkpoint", "--image-path", "IMAGES", "ID"];
const RESTORE: [&str; 7] = [
    "restore",
    "--detach",
    "--image-path",
    "IMAGES",
    "--bundle",
    "BUNDLE",
    "ID",
];

/// A bundle, with a place for images.
struct Saved {
    bundle: Bundle,
    images: PathBuf,
    path: String,
    _stand_in: tempfile::TempDir,
}

impl Saved {
    fn new() -> Self {
        let bundle = Bundle::waiting();
        let (stand_in, path) = stand_in();
        Self {
            images: bundle.dir.path().join("images"),
            bundle,
            path,
            _stand_in: stand_in,
        }
    }

    fn command(&self, args: &[&str], moment: &str) -> Command {
        let images = self.images.to_str().unwrap();
        let args: Vec<&str> = args
            .iter()
            .map(|arg| if *arg == "IMAGES" { images } else { arg })
            .collect();
        let mut command = self.bundle.command(&args);
        command
            .env("PATH", &self.path)
            .env("CRIU_MOMENT", moment)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    fn start(&self) {
        self.bundle.create();
        self.bundle.start();
    }

    /// Images, and no container.
    fn checkpointed(&self) {
        self.start();
        let (ok, errors) = run(&mut self.command(&CHECKPOINT, ""));
        assert!(ok, "{errors}");
    }

    /// By `delete` alone if the container has ended.
    fn clean(&self, what: &str, force: bool) {
        let args = ["delete", "--force", "ID"];
        let args = if force { &args[..] } else { &["delete", "ID"] };
        let (ok, errors) = self.bundle.try_detached(args);
        assert!(ok, "{what}: {errors}");
        self.gone(what);
    }

    fn gone(&self, what: &str) {
        self.bundle.assert_gone();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let rootfs = self.bundle.rootfs().display().to_string();
        assert!(!mounts.contains(&rootfs), "{what}: mounts left");
        assert!(self.bundle.rootfs().join("bin/busybox").exists());
        self.tidied_up(what);
    }

    /// Nothing is left of the directories a restore has said it made.
    fn tidied_up(&self, what: &str) {
        let log = std::fs::read_to_string(self.images.join("restore.log")).unwrap_or_default();
        for (word, place) in [
            (".criu.cgyard.", self.images.as_path()),
            (".criu.mntns.", Path::new("/tmp")),
        ] {
            for (at, _) in log.match_indices(word) {
                let left = place.join(&log[at..at + word.len() + 6]);
                assert!(!left.exists(), "{what}: {} left", left.display());
            }
        }
    }

    /// Nobody who could still change the container's status.
    fn left_alone(&self) {
        eventually("criu ends", || self.bundle.commands().is_empty());
    }
}

fn crash_of_checkpoint() {
    if lacks("python3") {
        return;
    }
    let saved = Saved::new();
    for (moment, hangs, then) in [
        ("called", false, "running"),
        ("asked", false, "running"),
        ("frozen", false, "running"),
        ("frozen", true, "paused"),
        ("network-lock", false, "running"),
        ("saved", false, "stopped"),
        ("answered", false, "stopped"),
    ] {
        let what = format!("killed when {moment}, criu hangs: {hangs}");
        saved.start();
        let moment = format!("{moment} {}", if hangs { "hang" } else { "go on" });
        let (ok, _) = run(&mut saved.command(&CHECKPOINT, &moment));
        assert!(!ok, "{what}");
        if hangs {
            assert_eq!(saved.bundle.status(), then, "{what}");
            saved.clean(&what, true);
            continue;
        }
        if !moment.starts_with("called") {
            // `checkpoint` was waiting for an answer, so it had said whom to wait for.
            assert!(saved.bundle.state_dir().join("criu").exists(), "{what}");
        }
        saved.left_alone();
        saved.bundle.until_status(then);
        if then == "running" {
            let (ok, errors) = run(&mut saved.command(&CHECKPOINT, ""));
            assert!(ok, "{what}: {errors}");
            saved.gone(&what);
        } else {
            saved.clean(&what, false);
        }
    }
    at_any_time(&saved, &CHECKPOINT, || saved.start());
}

fn crash_of_restore() {
    if lacks("python3") {
        return;
    }
    let saved = Saved::new();
    saved.checkpointed();
    for (moment, hangs, then) in [
        ("called", false, "stopped"),
        ("asked", false, "stopped"),
        ("made", false, "stopped"),
        ("made", true, "stopped"),
        ("post-restore", false, "stopped"),
        ("agreed", false, "running"),
        ("agreed", true, "running"),
        ("answered", false, "running"),
    ] {
        let what = format!("killed when {moment}, criu hangs: {hangs}");
        let moment = format!("{moment} {}", if hangs { "hang" } else { "go on" });
        let (ok, _) = run(&mut saved.command(&RESTORE, &moment));
        assert!(!ok, "{what}");
        if hangs {
            assert_eq!(saved.bundle.status(), then, "{what}");
            saved.clean(&what, true);
            continue;
        }
        if then == "stopped" {
            saved.left_alone();
        }
        saved.bundle.until_status(then);
        saved.clean(&what, then == "running");
    }
    at_any_time(&saved, &RESTORE, || {});
}

/// Runs the command once, and then kills it at moments spread over the time that took.
fn at_any_time(saved: &Saved, args: &[&str], before: impl Fn()) {
    const ROUNDS: u32 = 8;
    before();
    let start = Instant::now();
    let (ok, errors) = run(&mut saved.command(args, ""));
    assert!(ok, "{errors}");
    let whole = start.elapsed();
    saved.bundle.run(&["delete", "--force", "ID"]);
    for round in 0..ROUNDS {
        before();
        let moment = whole * round / (ROUNDS * 4 / 5);
        let mut command = saved.command(args, "").spawn().unwrap();
        std::thread::sleep(moment);
        command.kill().unwrap();
        command.wait().unwrap();
        let (ok, errors) = saved.bundle.try_detached(&["delete", "--force", "ID"]);
        assert!(ok, "after {moment:?}: {errors}");
        // One that was called but not yet asked for anything ends by itself.
        saved.left_alone();
        saved.gone(&format!("after {moment:?}"));
    }
}

/// The command then says so, and the container goes on, thawed.
fn crash_of_criu() {
    if lacks("python3") {
        return;
    }
    let saved = Saved::new();
    for moment in ["called die", "asked die", "pre-dump die", "frozen die"] {
        saved.start();
        let (ok, errors) = run(&mut saved.command(&CHECKPOINT, moment));
        assert!(!ok && errors.contains("criu ended"), "{moment}: {errors}");
        assert_eq!(saved.bundle.status(), "running", "{moment}");
        let (ok, errors) = run(&mut saved.command(&CHECKPOINT, ""));
        assert!(ok, "{moment}: {errors}");
        saved.gone(moment);
    }
    for moment in ["called die", "asked die", "made die", "post-restore die"] {
        let (ok, errors) = run(&mut saved.command(&RESTORE, moment));
        assert!(!ok && errors.contains("criu ended"), "{moment}: {errors}");
        saved.gone(moment);
    }
}

/// Names of CRIU's working files and directories.
fn working_files(images: &Path) -> Vec<PathBuf> {
    let dirs = [images, Path::new("/tmp"), Path::new("/")];
    let entries = dirs.iter().filter_map(|dir| std::fs::read_dir(dir).ok());
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let name = path.file_name().unwrap().to_string_lossy();
            name.starts_with(".criu.")
        })
        .collect();
    found.sort();
    found
}

/// With pipes as streams, as engines have it: CRIU does not save the host's files as such.
fn piped(command: &mut Command) -> (bool, [PipeReader; 2]) {
    let (input, keep) = std::io::pipe().unwrap();
    let (output, to_output) = std::io::pipe().unwrap();
    let (errors, to_errors) = std::io::pipe().unwrap();
    command.stdin(input).stdout(to_output).stderr(to_errors);
    let ok = command.status().unwrap().success();
    // Open for as long as this case lives.
    std::mem::forget(keep);
    (ok, [output, errors])
}

fn crash_with_criu() {
    const ROUNDS: u32 = 5;
    let works = Command::new("criu").arg("check").output();
    if !works.is_ok_and(|output| output.status.success()) {
        println!("skipped: criu is not there, or does not work with this kernel");
        return;
    }
    let mut saved = Saved::new();
    saved.path = std::env::var("PATH").unwrap();
    let count = saved.bundle.rootfs().join("tmp/count");
    saved.bundle.config["process"]["args"][2] =
        "while :; do echo >>/tmp/count; usleep 10000; done".into();
    saved.bundle.config["root"]["readonly"] = false.into();
    let counts = || {
        let size = || std::fs::metadata(&count).map_or(0, |data| data.len());
        let before = size();
        eventually("it goes on counting", || size() > before);
    };
    let start = || {
        let (ok, ends) = piped(&mut saved.command(&["create", "--bundle", "BUNDLE", "ID"], ""));
        assert!(ok);
        saved.bundle.start();
        counts();
        ends
    };
    let files = working_files(&saved.images);
    let killed_after = |args: &[&str], moment: Duration| {
        let (input, _keep) = std::io::pipe().unwrap();
        let (_output, to_output) = std::io::pipe().unwrap();
        let mut command = saved.command(args, "");
        let to_errors = to_output.try_clone().unwrap();
        command.stdin(input).stdout(to_output).stderr(to_errors);
        let mut command = command.spawn().unwrap();
        std::thread::sleep(moment);
        command.kill().unwrap();
        command.wait().unwrap();
    };
    let cleaned = |moment: Duration| {
        let (ok, errors) = saved.bundle.try_detached(&["delete", "--force", "ID"]);
        assert!(ok, "after {moment:?}: {errors}");
        saved.left_alone();
        saved.gone(&format!("after {moment:?}"));
        assert_eq!(working_files(&saved.images), files, "after {moment:?}");
    };
    let ends = start();
    let begin = Instant::now();
    let (ok, errors) = run(&mut saved.command(&CHECKPOINT, ""));
    assert!(ok, "{errors}");
    let whole = begin.elapsed();
    saved.gone("checkpoint");
    let kept = saved.bundle.dir.path().join("kept");
    std::fs::rename(&saved.images, &kept).unwrap();
    drop(ends);
    for round in 0..ROUNDS {
        let ends = start();
        let moment = whole * round / (ROUNDS - 1);
        killed_after(&CHECKPOINT, moment);
        saved.left_alone();
        if saved.bundle.state_dir().exists() {
            eventually("it is running or has ended", || {
                ["running", "stopped"].contains(&saved.bundle.status().as_str())
            });
            if saved.bundle.status() == "running" {
                counts();
            }
        }
        cleaned(moment);
        drop(ends);
    }
    std::fs::remove_dir_all(&saved.images).ok();
    std::fs::rename(&kept, &saved.images).unwrap();
    let begin = Instant::now();
    let (ok, ends) = piped(&mut saved.command(&RESTORE, ""));
    let log = || std::fs::read_to_string(saved.images.join("restore.log")).unwrap_or_default();
    assert!(ok, "{}", log());
    let whole = begin.elapsed();
    counts();
    cleaned(whole);
    drop(ends);
    for round in 0..ROUNDS {
        let moment = whole * round / (ROUNDS - 1);
        killed_after(&RESTORE, moment);
        cleaned(moment);
    }
}
