//! The command line: checkpoint and restore. CRIU itself works only where kernel and its
//! version fit together, so a program that speaks its protocol stands in for it: it kills
//! the process it is to save, and makes a process where it is to restore one.

use std::os::unix::fs::PermissionsExt as _;

use crate::Case;
use crate::cli::Bundle;
use crate::support::lacks;

pub const CASES: &[Case] = &[
    ("cli_checkpoint_and_restore", checkpoint_and_restore),
    ("cli_checkpoint_left_running", left_running),
    ("cli_checkpoint_failures", failures),
];

/// Reads a request, writes what it was told to `criu.log`, and does the least.
const STAND_IN: &str = include_str!("../../criu-stand-in.py");

/// A directory for `$PATH` before the others.
pub fn stand_in() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("criu");
    std::fs::write(&file, STAND_IN).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!(
        "{}:{}",
        dir.path().display(),
        std::env::var("PATH").unwrap()
    );
    (dir, path)
}

fn run(bundle: &Bundle, path: &str, args: &[&str]) -> (bool, String) {
    run_command(bundle.command(args).env("PATH", path))
}

/// Whether it succeeds, and its errors.
pub fn run_command(command: &mut std::process::Command) -> (bool, String) {
    let mut errors = tempfile::tempfile().unwrap();
    let status = command
        .stdout(std::process::Stdio::null())
        .stderr(errors.try_clone().unwrap())
        .status()
        .unwrap();
    let mut text = String::new();
    std::io::Seek::rewind(&mut errors).unwrap();
    std::io::Read::read_to_string(&mut errors, &mut text).unwrap();
    (status.success(), text)
}

fn told(images: &std::path::Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(images.join("criu.log")).unwrap()).unwrap()
}

fn checkpoint_and_restore() {
    if lacks("python3") {
        return;
    }
    let bundle = Bundle::waiting();
    let (_dir, path) = stand_in();
    let volume = tempfile::tempdir().unwrap();
    let mut mounts = bundle.config["mounts"].clone();
    mounts.as_array_mut().unwrap().push(serde_json::json!({
        "destination": "/data", "type": "bind", "source": volume.path(), "options": ["rbind"],
    }));
    let bundle = bundle.set("/mounts", mounts);
    bundle.create();
    bundle.start();
    let images = bundle.dir.path().join("images");
    let image_path = images.to_str().unwrap();
    let (ok, errors) = run(
        &bundle,
        &path,
        &[
            "checkpoint",
            "--image-path",
            image_path,
            "--shell-job",
            "--file-locks",
            "ID",
        ],
    );
    assert!(ok, "{errors}");
    bundle.assert_gone();
    let told_first = told(&images);
    assert_eq!(told_first["kind"], 1);
    // Of rpc.proto: shell_job, file_locks, notify_scripts, manage_cgroups, orphan_pts_master.
    assert_eq!(told_first["flags"], serde_json::json!([7, 8, 12, 24, 50]));
    let places = told_first["mounts"].to_string();
    assert!(places.contains(r#"{"1":"/data","2":"/data"}"#), "{places}");
    assert!(
        places.contains(r#"{"1":"/proc/timer_list","2":"/dev/null"}"#),
        "{places}"
    );
    let descriptors = std::fs::read(images.join("descriptors.json")).unwrap();
    let descriptors: Vec<String> = serde_json::from_slice(&descriptors).unwrap();
    // Standard error is the file this test reads.
    assert_eq!(
        (&descriptors[..2], descriptors.len()),
        (&["/dev/null".to_owned(), "/dev/null".to_owned()][..], 3)
    );

    let (ok, errors) = run(
        &bundle,
        &path,
        &[
            "restore",
            "--detach",
            "--image-path",
            image_path,
            "--bundle",
            "BUNDLE",
            "--manage-cgroups-mode",
            "strict",
            "ID",
        ],
    );
    assert!(ok, "{errors}");
    assert_eq!(bundle.status(), "running");
    let told_then = told(&images);
    assert_eq!(
        (&told_then["kind"], &told_then["mode"]),
        (&2.into(), &5.into())
    );
    let source = volume.path().display().to_string();
    let places = told_then["mounts"].to_string();
    assert!(
        places.contains(&format!(r#"{{"1":"/data","2":"{source}"}}"#)),
        "{places}"
    );
    let group = format!("/{}", bundle.cgroup_path());
    assert!(
        told_then["groups"]
            .as_array()
            .unwrap()
            .contains(&group.clone().into()),
        "{group}"
    );
    assert!(bundle.cgroup().pids().unwrap().contains(&bundle.pid()));
    // Nothing of the root's mount shows on the host, and deleting leaves the root alone.
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&bundle.rootfs().display().to_string()));
    bundle.run(&["delete", "--force", "ID"]);
    bundle.assert_gone();
    assert!(bundle.rootfs().join("bin/busybox").exists());
}

fn left_running() {
    if lacks("python3") {
        return;
    }
    let bundle = Bundle::waiting();
    let (_dir, path) = stand_in();
    bundle.create();
    bundle.start();
    let images = bundle.dir.path().join("images");
    let image_path = images.to_str().unwrap();
    for (flag, kind) in [("--leave-running", 1), ("--pre-dump", 4)] {
        let (ok, errors) = run(
            &bundle,
            &path,
            &["checkpoint", "--image-path", image_path, flag, "ID"],
        );
        assert!(ok, "{errors}");
        assert_eq!(told(&images)["kind"], kind);
        assert_eq!(bundle.status(), "running");
    }
    bundle.run(&["delete", "--force", "ID"]);
}

fn failures() {
    if lacks("python3") {
        return;
    }
    let bundle = Bundle::waiting();
    let (_dir, path) = stand_in();
    let images = bundle.dir.path().join("images");
    std::fs::create_dir(&images).unwrap();
    std::fs::write(images.join("fail"), "").unwrap();
    let image_path = images.to_str().unwrap();
    let checkpoint = ["checkpoint", "--image-path", image_path, "ID"];
    let restore = [
        "restore",
        "--image-path",
        image_path,
        "--bundle",
        "BUNDLE",
        "ID",
    ];
    bundle.create();
    let (_, error) = run(&bundle, &path, &checkpoint);
    assert!(error.contains("in created state"), "{error}");
    bundle.start();
    let (ok, error) = run(&bundle, &path, &checkpoint);
    assert!(
        !ok && error.contains("the reason") && error.contains("dump.log"),
        "{error}"
    );
    assert_eq!(bundle.status(), "running");
    let (_, error) = run(&bundle, "/nonesuch", &checkpoint);
    assert!(error.contains("criu is not installed"), "{error}");
    let (_, error) = run(
        &bundle,
        &path,
        &[
            "checkpoint",
            "--image-path",
            image_path,
            "--parent-path",
            "/abs",
            "ID",
        ],
    );
    assert!(error.contains("--parent-path must be relative"), "{error}");
    bundle.run(&["delete", "--force", "ID"]);
    let (ok, error) = run(&bundle, &path, &restore);
    assert!(
        !ok && error.contains("the reason") && error.contains("restore.log"),
        "{error}"
    );
    bundle.assert_gone();
    // What fails once there is a process takes the process along.
    std::fs::remove_file(images.join("fail")).unwrap();
    std::fs::write(images.join("descriptors.json"), "[]").unwrap();
    let undone = bundle.dir.path().join("undone");
    let line = format!("touch {}", undone.display());
    let bundle = bundle.set(
        "/hooks/poststop",
        serde_json::json!([{"path": "/bin/sh", "args": ["sh", "-c", line], "env": ["PATH=/bin:/usr/bin"]}]),
    );
    let mut with_pid_file = restore.to_vec();
    with_pid_file.splice(1..1, ["--detach", "--pid-file", "/nonexistent/pid"]);
    let (ok, error) = run(&bundle, &path, &with_pid_file);
    assert!(!ok && error.contains("/nonexistent/pid"), "{error}");
    bundle.assert_gone();
    assert!(undone.exists());
    assert!(bundle.rootfs().join("bin/busybox").exists());
}
