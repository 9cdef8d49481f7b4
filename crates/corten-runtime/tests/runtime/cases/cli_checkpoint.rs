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
const STAND_IN: &str = r#"#!/usr/bin/env python3
import ctypes, json, os, signal, socket, sys

def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at

def fields(data):
    at, found = 0, {}
    while at < len(data):
        key, at = varint(data, at)
        if key & 7 == 0:
            value, at = varint(data, at)
        else:
            length, at = varint(data, at)
            value, at = data[at:at + length], at + length
        found.setdefault(key >> 3, []).append(value)
    return found

def number(field, value):
    out = bytes([field << 3]) if field < 16 else b''
    while value >= 128:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])

def text(field, value):
    return bytes([field << 3 | 2, len(value)]) + value

# For crash tests: what happens at which moment.
caller = os.getppid()
when, _, what = os.environ.get('CRIU_MOMENT', '').partition(' ')
def at(moment):
    if when == moment:
        os.kill(os.getpid() if what == 'die' else caller, signal.SIGKILL)
        while what == 'hang':
            signal.pause()

def tell(script, pid):
    notice = text(1, script) + number(2, pid)
    if when == script.decode() and what != 'die':
        os.kill(caller, signal.SIGSTOP)  # it must not answer before it is killed
    service.send(number(1, 6) + number(2, 1) + text(5, notice))
    at(script.decode())
    answer = fields(service.recv(4096))
    assert answer[1] == [6] and answer[3] == [1], answer

assert sys.argv[1] == 'swrk'
service = socket.socket(fileno=int(sys.argv[2]))
at('called')
request = fields(service.recv(65536))
kind, options = request[1][0], fields(request[2][0])
images = os.path.realpath('/proc/%d/fd/%d' % (caller, options[1][0]))
say = {
    'kind': kind, 'root': options[13][0].decode(),
    'flags': sorted(field for field, values in options.items() if values == [1]),
    'mounts': [{k: v[0].decode() for k, v in fields(m).items()} for m in options.get(23, [])],
    'groups': [fields(g)[2][0].decode() for g in options.get(25, [])],
    'mode': options[34][0],
}
with open(images + '/criu.log', 'w') as log:
    json.dump(say, log)
if os.path.exists(images + '/fail'):
    with open(images + '/' + options[10][0].decode(), 'w') as log:
        log.write('(00.1) fine\n(00.2) Error (criu/x.c:1): the reason\n(00.3) Error (late)\n')
    service.send(number(1, kind) + number(2, 0) + number(7, 22))
    sys.exit(1)
at('asked')
if kind == 1:
    tell(b'pre-dump', 0)
    group = options[44][0].decode()
    file, on, off = next(one for one in [
        ('/cgroup.freeze', '1', '0'), ('/freezer.state', 'FROZEN', 'THAWED'),
    ] if os.path.exists(group + one[0]))
    with open(group + file, 'w', buffering=1) as freezer:
        freezer.write(on + '\n')
        try:
            at('frozen')
            tell(b'network-lock', 0)
        finally:
            freezer.write(off + '\n')
if kind == 1 and 3 not in options:
    os.kill(options[2][0], signal.SIGKILL)
    at('saved')
made = []
if kind == 2:
    name = '%06x' % os.getpid()
    made = [images + '/.criu.cgyard.' + name, '/tmp/.criu.mntns.' + name]
    for path in made:
        os.mkdir(path)
    with open(images + '/' + options[10][0].decode(), 'w') as log:
        log.write('(00.1) cg: Opening .criu.cgyard.%s as cg yard\n' % name)
        log.write('(00.2) mnt: Start with 0:/tmp/.criu.mntns.%s\n' % name)
    CLONE_PARENT, CLONE = 0x8000, {'x86_64': 56, 'aarch64': 220}[os.uname().machine]
    pid = ctypes.CDLL(None).syscall(CLONE, CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        service.close()
        os.execv('/bin/sleep', ['sleep', '1000'])
    try:
        at('made')
        tell(b'post-restore', pid)
    except:
        os.kill(pid, signal.SIGKILL)
        for path in made:
            os.rmdir(path)
        raise
    at('agreed')
for path in made:
    os.rmdir(path)
service.send(number(1, kind) + number(2, 1))
at('answered')
"#;

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
