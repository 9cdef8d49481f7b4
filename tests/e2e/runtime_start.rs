//! `corten runtime` begins without a Rust program's `main` (`sys/start.rs` of
//! corten-runtime): what that would have done has been done.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::binary;

#[test]
fn a_reader_that_is_gone_is_an_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(binary());
    let command = command.args(["runtime", "features"]).stdout(writer);
    let status = command.stderr(Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(1), "{status}");
}

#[test]
fn what_is_printed_without_a_line_end_arrives() {
    let bundle = tempfile::tempdir().unwrap();
    let path = bundle.path();
    prepare(path, &["/bin/busybox", "true"]);
    let runtime = |args: &[&str]| {
        let mut command = Command::new(binary());
        command.args(["runtime", "--root"]).arg(path.join("state"));
        command.args(args).stdin(Stdio::null());
        command
    };
    let mut create = runtime(&["create", "told", "--bundle"]);
    let created = create.arg(path).stdout(Stdio::null()).status();
    let state = runtime(&["state", "told"]).output().unwrap();
    let deleted = runtime(&["delete", "--force", "told"]).status();
    assert!(created.unwrap().success() && deleted.unwrap().success());
    assert_ne!(state.stdout.last(), Some(&b'\n'));
    let state: serde_json::Value = serde_json::from_slice(&state.stdout).unwrap();
    assert_eq!(state["status"], "created");
}

#[test]
fn closed_descriptors_are_opened() {
    let bundle = tempfile::tempdir().unwrap();
    let path = bundle.path();
    let check = "for n in 0 1 2; do \
                 [ \"$(readlink /proc/$$/fd/$n)\" = /dev/null ] || exit $((70 + n)); done";
    prepare(path, &["/bin/busybox", "sh", "-c", check]);
    let shell = "exec \"$@\" <&- >&- 2>&-";
    let status = Command::new("sh")
        .args(["-c", shell, "sh"])
        .arg(binary())
        .args(["runtime", "--root"])
        .arg(path.join("state"))
        .args(["run", "--bundle"])
        .arg(path)
        .arg("closed")
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(0), "{status}");
}

fn prepare(bundle: &Path, args: &[&str]) {
    let bin = bundle.join("rootfs/bin");
    fs::create_dir_all(&bin).unwrap();
    let busybox = ["/bin/busybox", "/usr/bin/busybox"];
    let busybox = busybox.iter().find(|path| Path::new(path).exists());
    fs::copy(busybox.expect("busybox-static"), bin.join("busybox")).unwrap();
    std::os::unix::fs::symlink("busybox", bin.join("readlink")).unwrap();
    let made = Command::new(binary())
        .args(["runtime", "spec", "--bundle"])
        .arg(bundle)
        .status()
        .unwrap();
    assert!(made.success());
    let config = bundle.join("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    spec["process"]["terminal"] = false.into();
    spec["process"]["args"] = args.into();
    spec["process"].as_object_mut().unwrap().remove("rlimits"); // needs CAP_SYS_RESOURCE
    let name = bundle.file_name().unwrap().to_str().unwrap();
    spec["linux"]["cgroupsPath"] = format!("/corten-e2e{name}").into();
    fs::write(&config, spec.to_string()).unwrap();
}
