//! The systemd driver, where systemd is the first process (in the virtual machine of
//! `make test-vm`); elsewhere that it says so.

use corten_oci::runtime_spec::LinuxResources;
use corten_runtime::{Cgroup, CgroupSpec, wait_pidfd};
use serde_json::json;

use crate::Case;
use crate::support::{Container, eventually, group_dirs, own_mounts};

pub const CASES: &[Case] = &[
    ("systemd_scope", systemd_scope),
    ("systemd_scope_of_a_failure", systemd_scope_of_a_failure),
    ("systemd_scope_of_another", systemd_scope_of_another),
    ("systemd_scope_not_started", systemd_scope_not_started),
];

fn booted() -> bool {
    std::path::Path::new("/run/systemd/private").exists()
}

/// Without systemd the driver says what to do.
fn refused(container: &Container) {
    let error = container.run().unwrap_err().to_string();
    assert!(error.contains("systemd cannot be reached"), "{error}");
    assert!(error.contains("use the cgroupfs driver"), "{error}");
}

fn systemd_scope() {
    let mut container = Container::args(&["sleep", "1000"])
        .set("/linux/resources/memory", json!({"limit": 64 << 20}))
        .set("/linux/resources/pids", json!({"limit": 40}))
        .set(
            "/linux/resources/cpu",
            json!({"quota": 30_000, "period": 100_000, "cpus": "0"}),
        )
        .set(
            "/annotations",
            json!({"org.systemd.property.TimeoutStopSec": "uint32 77",
                   "org.systemd.property.Description": "'of the test'"}),
        );
    container.scope = true;
    if !booted() {
        return refused(&container);
    }
    let spec = container.cgroup();
    assert_eq!(
        spec.path,
        format!("system.slice/corten-test-{}.scope", container.id)
    );
    let (running, _ends) = container.start().unwrap();
    let read = |names: [&str; 2]| {
        let dirs = group_dirs(&spec.path);
        let files = dirs.iter().flat_map(|dir| names.map(|name| dir.join(name)));
        let text = files
            .filter_map(|file| std::fs::read_to_string(file).ok())
            .next();
        text.unwrap_or_else(|| panic!("none of {names:?}"))
            .trim()
            .to_owned()
    };
    // The placeholder is gone, and the scope has not gone with it.
    assert_eq!(running.cgroup.pids().unwrap(), [running.pid]);
    let limits = || {
        [
            read(["memory.max", "memory.limit_in_bytes"]),
            read(["pids.max", "-"]),
            read(["cpuset.cpus", "-"]),
        ]
    };
    assert_eq!(limits(), ["67108864", "40", "0"]);
    assert!(read(["cpu.max", "cpu.cfs_quota_us"]).starts_with("30000"));
    let shown = std::process::Command::new("systemctl")
        .args(["show", "-P", "Description", "-P", "TimeoutStopUSec"])
        .arg(spec.path.rsplit('/').next().unwrap())
        .output();
    let shown = String::from_utf8(shown.unwrap().stdout).unwrap();
    assert!(
        shown.contains("of the test") && shown.contains("1min 17s"),
        "{shown}"
    );
    // From the saved state, as `update` and `delete` do.
    let state = serde_json::to_string(&spec).unwrap();
    let saved: CgroupSpec = serde_json::from_str(&state).unwrap();
    let cgroup = Cgroup::open_spec(&saved).unwrap();
    let change =
        json!({"memory": {"limit": 96 << 20}, "pids": {"limit": 50}, "cpu": {"quota": 20_000}});
    let change: LinuxResources = serde_json::from_value(change).unwrap();
    cgroup.update(&change).unwrap();
    assert_eq!(limits(), ["100663296", "50", "0"]);
    assert!(read(["cpu.max", "cpu.cfs_quota_us"]).starts_with("20000"));
    cgroup.freeze().unwrap();
    assert!(cgroup.is_frozen());
    cgroup.thaw().unwrap();
    cgroup.kill_all().unwrap();
    wait_pidfd(&running.pidfd).unwrap();
    cgroup.remove().unwrap();
    assert!(group_dirs(&spec.path).is_empty());
    cgroup.remove().unwrap();
}

/// A container that does not come into being takes its scope with it.
fn systemd_scope_of_a_failure() {
    let mut container = Container::args(&["/no/such/program"]);
    container.scope = true;
    if !booted() {
        return refused(&container);
    }
    let error = container.run().unwrap_err();
    assert_eq!(error.exit_code(), 127, "{error}");
    let path = container.cgroup().path;
    eventually("the scope goes", || group_dirs(&path).is_empty());
    // And the name is free again.
    let mut again = Container::sh("true");
    again.scope = true;
    again.id.clone_from(&container.id);
    assert!(again.run().unwrap().status.success());
}

/// Names of scopes are the host's, whatever slice they are in: another container's is left
/// alone.
fn systemd_scope_of_another() {
    if !booted() {
        return;
    }
    let mut first = Container::args(&["sleep", "1000"]);
    first.scope = true;
    let (running, _ends) = first.start().unwrap();
    let bundle = crate::cli::Bundle::sh("true").set(
        "/linux/cgroupsPath",
        json!(format!("other.slice:corten-test:{}", first.id)),
    );
    let error = bundle.fail(&["--systemd-cgroup", "run", "--bundle", "BUNDLE", "ID"]);
    assert!(error.contains("UnitExists"), "{error}");
    assert_eq!(running.cgroup.pids().unwrap(), [running.pid]);
    running.cgroup.kill_all().unwrap();
    wait_pidfd(&running.pidfd).unwrap();
    running.cgroup.remove().unwrap();
}

/// A unit that could not be started is not stopped either: it is not ours. (This systemd
/// hangs up on everybody.)
fn systemd_scope_not_started() {
    use rustix::mount::{MountFlags, mount};
    use std::sync::atomic::{AtomicU32, Ordering};
    own_mounts();
    mount(c"tmpfs", "/run", c"tmpfs", MountFlags::empty(), None).unwrap();
    std::fs::create_dir("/run/systemd").unwrap();
    let listener = std::os::unix::net::UnixListener::bind("/run/systemd/private").unwrap();
    let bundle =
        crate::cli::Bundle::sh("true").set("/linux/cgroupsPath", json!("x.slice:corten-test:none"));
    static CONNECTIONS: AtomicU32 = AtomicU32::new(0);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            CONNECTIONS.fetch_add(1, Ordering::SeqCst);
            drop(stream);
        }
    });
    let error = bundle.fail(&["--systemd-cgroup", "run", "--bundle", "BUNDLE", "ID"]);
    assert!(error.contains("systemd cannot be reached"), "{error}");
    assert_eq!(CONNECTIONS.load(Ordering::SeqCst), 1);
    assert!(!bundle.state_dir().exists());
}
