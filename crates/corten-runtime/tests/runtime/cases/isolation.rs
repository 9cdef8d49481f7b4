//! Namespaces, file systems, devices, protections, capabilities, seccomp.

use std::os::fd::AsFd as _;

use serde_json::json;

use crate::Case;
use crate::support::Container;

pub const CASES: &[Case] = &[
    ("namespaces_are_new", namespaces_are_new),
    ("default_capabilities", default_capabilities),
    ("default_mounts", default_mounts),
    ("devices", devices),
    ("masked_and_readonly_paths", masked_and_readonly_paths),
    ("readonly_root", readonly_root),
    ("binds", binds),
    ("detached_root_and_sources", detached_root_and_sources),
    ("mounts_stay_inside", mounts_stay_inside),
    ("proc_cannot_be_covered", proc_cannot_be_covered),
    ("tmpfs_copy_up", tmpfs_copy_up),
    ("tmpfs_mode", tmpfs_mode),
    ("seccomp_denies", seccomp_denies),
    ("seccomp_without_new_privs", seccomp_without_new_privs),
    ("names_and_sysctls", names_and_sysctls),
    (
        "host_mount_table_is_untouched",
        host_mount_table_is_untouched,
    ),
    ("user_namespace", user_namespace),
    ("joins_a_network_namespace", joins_a_network_namespace),
];

fn namespaces_are_new() {
    let output = Container::sh("for n in mnt pid net ipc uts cgroup user; do readlink /proc/self/ns/$n; done; hostname; echo $$; ip link show up").output();
    let mut lines = output.lines();
    for name in ["mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let ours = std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        let theirs = lines.next().unwrap();
        assert!(theirs.starts_with(name));
        assert_ne!(theirs, ours.to_str().unwrap());
    }
    let ours = std::fs::read_link("/proc/self/ns/user").unwrap();
    assert_eq!(lines.next().unwrap(), ours.to_str().unwrap());
    assert_eq!((lines.next(), lines.next()), (Some("box"), Some("1")));
    let rest: Vec<&str> = lines.collect();
    assert!(rest[0].contains("lo: <LOOPBACK,UP"), "{rest:?}");
}

fn default_capabilities() {
    let output = Container::sh("grep -E 'Cap|NoNewPrivs|Seccomp:' /proc/self/status").output();
    for line in [
        "CapInh:\t0000000000000000",
        "CapPrm:\t00000000a80425fb",
        "CapEff:\t00000000a80425fb",
        "CapBnd:\t00000000a80425fb",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t0",
        "Seccomp:\t2",
    ] {
        assert!(output.contains(line), "{line} in {output}");
    }
    // Ambient capabilities reach a user's program.
    let sets = json!({"bounding": ["CAP_NET_RAW"], "permitted": ["CAP_NET_RAW"], "effective": ["CAP_NET_RAW"], "inheritable": ["CAP_NET_RAW"], "ambient": ["CAP_NET_RAW"]});
    let container = Container::sh("grep Cap /proc/self/status")
        .set("/process/capabilities", sets)
        .set("/process/user", json!({"uid": 5, "gid": 5}));
    let output = container.output();
    for set in ["Inh", "Prm", "Eff", "Bnd", "Amb"] {
        assert!(
            output.contains(&format!("Cap{set}:\t0000000000002000")),
            "{output}"
        );
    }
}

fn default_mounts() {
    let output = Container::sh("cat /proc/self/mounts").output();
    for (at, kind, flags) in [
        ("/proc", "proc", "rw,nosuid,nodev,noexec"),
        ("/dev", "tmpfs", "rw,nosuid"),
        ("/dev/pts", "devpts", "rw,nosuid,noexec"),
        ("/sys", "sysfs", "ro,nosuid,nodev,noexec"),
        ("/dev/mqueue", "mqueue", "rw,nosuid,nodev,noexec"),
        ("/dev/shm", "tmpfs", "rw,nosuid,nodev,noexec"),
    ] {
        let found = output.lines().any(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            words[1] == at && words[2] == kind && words[3].starts_with(flags)
        });
        assert!(found, "{at}: {output}");
    }
    assert!(
        output
            .lines()
            .any(|line| line.contains(" /sys/fs/cgroup") && line.contains(" ro,")),
        "{output}"
    );
    // Nothing of the host's.
    assert!(
        !output.contains("/work") && !output.contains("/old"),
        "{output}"
    );
}

fn devices() {
    let script = "for d in null zero full random urandom tty; do test -c /dev/$d || echo missing $d; done; \
        for l in fd stdin ptmx; do readlink /dev/$l; done; echo x > /dev/null; head -c 4 /dev/zero | wc -c; stat -c '%a %t %T' /dev/null; \
        mknod /tmp/kmsg c 1 11 && cat /tmp/kmsg; echo status $?";
    let outcome = Container::sh(script).run().unwrap();
    let output = outcome.stdout;
    assert!(!output.contains("missing"), "{output}");
    assert!(
        output.contains("/proc/self/fd\n/proc/self/fd/0\npts/ptmx\n4\n666 1 3\n"),
        "{output}"
    );
    // Making a node is allowed, opening it is not.
    assert!(
        outcome.stderr.contains("Operation not permitted"),
        "{}",
        outcome.stderr
    );
    let device = json!([{"path": "/dev/extra", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 3, "gid": 4}]);
    let output = Container::sh("stat -c '%a %t %T %u %g' /dev/extra")
        .set("/linux/devices", device)
        .output();
    assert_eq!(output, "640 1 5 3 4\n");
}

fn masked_and_readonly_paths() {
    let script = "cat /proc/keys /proc/timer_list | wc -c; ls -a /sys/firmware /proc/scsi; \
        echo x > /proc/sys/kernel/hostname; touch /sys/x; \
        grep -E ' /proc/| /sys/' /proc/self/mounts; true";
    let outcome = Container::sh(script).run().unwrap();
    assert!(outcome.stdout.starts_with("0\n"), "{outcome:?}");
    assert_eq!(
        outcome.stderr.matches("Read-only file system").count(),
        2,
        "{outcome:?}"
    );
    for path in corten_runtime::defaults::masked_paths() {
        let Ok(host) = std::fs::symlink_metadata(&path) else {
            continue;
        };
        let kind = if host.is_dir() {
            "tmpfs ro"
        } else {
            "devtmpfs"
        };
        let mounted = outcome.stdout.lines().any(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            words.get(1) == Some(&path.as_str())
                && (words[2] == kind
                    || host.is_dir() && words[3].starts_with("ro")
                    || !host.is_dir())
        });
        assert!(mounted, "{path}: {outcome:?}");
    }
    for path in corten_runtime::defaults::readonly_paths() {
        if std::path::Path::new(&path).exists() {
            let line = format!("proc {path} proc ro,");
            assert!(outcome.stdout.contains(&line), "{path}: {outcome:?}");
        }
    }
    // A container cannot take the masks away, nor write through another procfs mount.
    let outcome = Container::sh("umount /proc/kcore; mount -t proc proc /tmp")
        .run()
        .unwrap();
    assert!(!outcome.status.success());
}

fn readonly_root() {
    let outcome =
        Container::sh("touch /x; touch /dev/shm/x && echo shm; touch /new/x && echo tmpfs")
            .set("/root/readonly", json!(true))
            .mount("/new", "tmpfs", "tmpfs", &["size=1m"])
            .run()
            .unwrap();
    assert!(
        outcome.stderr.contains("/x: Read-only file system"),
        "{outcome:?}"
    );
    assert_eq!(outcome.stdout, "shm\ntmpfs\n");
}

fn binds() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "content\n").unwrap();
    let source = dir.path().to_str().unwrap();
    let file = dir.path().join("file");
    let container = Container::sh("cat /a/deep/place/file /single; echo new > /a/deep/place/new; echo no > /ro/x; echo no > /single; true")
        .mount("/a/deep/place", "bind", source, &["rbind", "rw"])
        .mount("/ro", "bind", source, &["rbind", "ro", "rprivate"])
        .mount("/single", "bind", file.to_str().unwrap(), &["bind", "ro"]);
    let outcome = container.run().unwrap();
    assert_eq!(outcome.stdout, "content\ncontent\n", "{outcome:?}");
    assert_eq!(
        outcome.stderr.matches("Read-only file system").count(),
        2,
        "{outcome:?}"
    );
    assert_eq!(
        std::fs::read_to_string(dir.path().join("new")).unwrap(),
        "new\n"
    );
}

fn detached_root_and_sources() {
    use corten_runtime::{CgroupSpec, NetNs, Rootfs, Sandbox, create};
    use rustix::mount::{OpenTreeFlags, open_tree};
    let container = Container::sh("cat /opened/f /detached/f /file")
        .mount("/opened", "bind", "x", &["rbind"])
        .mount("/detached", "bind", "x", &["rbind", "ro"])
        .mount("/file", "bind", "x", &["bind"]);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f"), "f\n").unwrap();
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let detached = |path: &std::path::Path| open_tree(rustix::fs::CWD, path, flags).unwrap();
    let opened = rustix::fs::open(
        dir.path(),
        rustix::fs::OFlags::PATH,
        rustix::fs::Mode::empty(),
    );
    let index = container.spec.mounts().as_ref().unwrap().len() - 3;
    let (stdio, [stdin, stdout, stderr]) = crate::support::pipes();
    drop(stdin);
    let running = create(Sandbox {
        id: &container.id,
        spec: &container.spec,
        rootfs: Rootfs::Detached(detached(container.path())),
        mounts: [
            (index, opened.unwrap()),
            (index + 1, detached(dir.path())),
            (index + 2, detached(&dir.path().join("f"))),
        ]
        .into(),
        netns: NetNs::New,
        stdio,
        cgroup: CgroupSpec::new(container.cgroup_path()),
    })
    .unwrap()
    .start()
    .unwrap();
    let outcome = crate::support::finish(&running.pidfd, stdout, stderr);
    running.cgroup.remove().unwrap();
    assert_eq!(outcome.stdout, "f\nf\nf\n", "{outcome:?}");
}

/// Links in the image must not lead a mount out of the root (CVE-2021-30465).
fn mounts_stay_inside() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().join("victim");
    std::fs::create_dir(&target).unwrap();
    let container = Container::sh("echo x > /link/f; echo y > /up/victim/f; true")
        .mount("/link", "tmpfs", "tmpfs", &[])
        .mount("/up/victim", "tmpfs", "tmpfs", &[]);
    std::os::unix::fs::symlink(&target, container.path().join("link")).unwrap();
    let up = format!("../../../../../../../../..{}", outside.path().display());
    std::os::unix::fs::symlink(up, container.path().join("up")).unwrap();
    container.run().unwrap();
    assert_eq!(std::fs::read_dir(&target).unwrap().count(), 0);
    // The same path exists inside now, as the image's link says.
    assert!(
        container
            .path()
            .join(target.strip_prefix("/").unwrap())
            .is_dir()
    );
}

fn proc_cannot_be_covered() {
    for (container, destination) in [
        (
            Container::sh("true").mount("/proc", "tmpfs", "tmpfs", &[]),
            "/proc",
        ),
        (
            Container::sh("true").mount("/proc/sys", "tmpfs", "tmpfs", &[]),
            "/proc/sys",
        ),
        (
            Container::sh("true").mount("/proc/self/attr", "bind", "/tmp", &["bind"]),
            "attr",
        ),
        (
            Container::sh("true").mount("/alias/sys", "tmpfs", "tmpfs", &[]),
            "/alias/sys",
        ),
    ] {
        std::os::unix::fs::symlink("/proc", container.path().join("alias")).unwrap();
        let error = container.run().unwrap_err().to_string();
        assert!(error.contains("is inside /proc"), "{destination}: {error}");
    }
    // A link where the file system itself should go is refused, too.
    let container = Container::sh("true");
    std::fs::remove_dir(container.path().join("proc")).unwrap();
    std::os::unix::fs::symlink("/tmp", container.path().join("proc")).unwrap();
    assert!(container.run().is_err());
    // What lxcfs provides is allowed.
    let container =
        Container::sh("cat /proc/uptime").mount("/proc/uptime", "bind", "/etc/hostname", &["bind"]);
    assert_eq!(
        container.output(),
        std::fs::read_to_string("/etc/hostname").unwrap()
    );
}

fn tmpfs_copy_up() {
    let container = Container::sh(
        "cat /data/sub/f; echo more > /data/sub/f; readlink /data/l; stat -c %a /data/sub",
    )
    .mount("/data", "tmpfs", "tmpfs", &["tmpcopyup", "size=1m"]);
    let data = container.path().join("data");
    std::fs::create_dir_all(data.join("sub")).unwrap();
    std::fs::write(data.join("sub/f"), "from the image\n").unwrap();
    std::os::unix::fs::symlink("sub", data.join("l")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o711);
    std::fs::set_permissions(data.join("sub"), mode).unwrap();
    assert_eq!(container.output(), "from the image\nsub\n711\n");
    assert_eq!(
        std::fs::read_to_string(data.join("sub/f")).unwrap(),
        "from the image\n"
    );
}

/// What nothing is said about is as it was where it is mounted (runc does the same).
fn tmpfs_mode() {
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o750);
    for (options, mode) in [
        (&["size=1m"] as &[&str], "750"),
        (&["mode=711"], "711"),
        (&["tmpcopyup"], "750"),
        (&["tmpcopyup", "mode=711"], "711"),
    ] {
        let container = Container::sh("stat -c %a /data").mount("/data", "tmpfs", "x", options);
        let data = container.path().join("data");
        std::fs::create_dir(&data).unwrap();
        std::fs::set_permissions(&data, Clone::clone(&permissions)).unwrap();
        assert_eq!(container.output(), format!("{mode}\n"), "{options:?}");
    }
    let container = Container::sh("stat -c %a /data").mount("/data", "tmpfs", "x", &[]);
    assert_eq!(container.output(), "1777\n");
    let container = Container::sh("stat -c '%u %g' /data").mount(
        "/data",
        "tmpfs",
        "x",
        &["tmpcopyup", "uid=7"],
    );
    let data = container.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::os::unix::fs::chown(&data, Some(8), Some(9)).unwrap();
    assert_eq!(container.output(), "7 9\n");
}

fn seccomp_denies() {
    for script in [
        "unshare -U true",
        "unshare -m true",
        "mount -t tmpfs x /tmp",
    ] {
        let outcome = Container::sh(script).run().unwrap();
        assert!(!outcome.status.success(), "{script}");
        assert!(
            outcome.stderr.contains("ot permitted") || outcome.stderr.contains("denied"),
            "{outcome:?}"
        );
    }
    // The capability alone would allow it; the profile for it does, too.
    let mut admin = Container::sh("mount -t tmpfs x /tmp && echo mounted");
    let caps = corten_runtime::defaults::all_capabilities();
    let mut process = admin.spec.process().clone().unwrap();
    process.set_capabilities(Some(corten_runtime::defaults::capability_sets(&caps)));
    admin.spec.set_process(Some(process));
    assert!(!admin.run().unwrap().status.success());
    let mut linux = admin.spec.linux().clone().unwrap();
    linux.set_seccomp(Some(corten_runtime::defaults::seccomp(&caps)));
    admin.spec.set_linux(Some(linux));
    assert_eq!(admin.output(), "mounted\n");
}

fn seccomp_without_new_privs() {
    let container =
        Container::sh("grep -E 'NoNewPrivs|Seccomp:' /proc/self/status; unshare -U true")
            .set("/process/noNewPrivileges", json!(true));
    let outcome = container.run().unwrap();
    assert_eq!(outcome.stdout, "NoNewPrivs:\t1\nSeccomp:\t2\n");
    assert!(!outcome.status.success());
}

fn names_and_sysctls() {
    let container = Container::sh("hostname; cat /proc/sys/kernel/domainname /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced")
        .set("/domainname", json!("example.test"))
        .set("/linux/sysctl", json!({"net.ipv4.ip_unprivileged_port_start": "0", "kernel.shm_rmid_forced": "1"}));
    assert_eq!(container.output(), "box\nexample.test\n0\n1\n");
    for name in ["kernel.panic", "vm.swappiness", "net/../kernel/panic"] {
        let container = Container::sh("true").set("/linux/sysctl", json!({name: "1"}));
        assert!(
            container
                .run()
                .unwrap_err()
                .to_string()
                .contains("linux.sysctl"),
            "{name}"
        );
    }
}

fn host_mount_table_is_untouched() {
    crate::support::own_shared_mounts();
    let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let container = Container::args(&["sleep", "1000"]);
    let (running, _ends) = container.start().unwrap();
    assert_eq!(
        std::fs::read_to_string("/proc/self/mountinfo").unwrap(),
        before
    );
    running.cgroup.kill_all().unwrap();
    corten_runtime::wait_pidfd(running.pidfd.as_fd()).unwrap();
    running.cgroup.remove().unwrap();
}

fn user_namespace() {
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    let mut container = Container::sh("id -u; cat /proc/self/uid_map; test -c /dev/null && echo x > /dev/null && echo null; readlink /proc/self/ns/user; touch /tmp/made")
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map);
    let mut linux = container.spec.linux().clone().unwrap();
    let mut namespaces = linux.namespaces().clone().unwrap();
    let mut user = corten_oci::runtime_spec::LinuxNamespace::default();
    user.set_typ(corten_oci::runtime_spec::LinuxNamespaceType::User);
    namespaces.push(user);
    linux.set_namespaces(Some(namespaces));
    container.spec.set_linux(Some(linux));
    for dir in [".", "tmp", "bin"] {
        std::os::unix::fs::chown(container.path().join(dir), Some(100_000), Some(100_000)).unwrap();
    }
    let output = container.output();
    assert!(output.starts_with("0\n"), "{output}");
    assert!(output.contains("100000"), "{output}");
    assert!(output.contains("null\n"), "{output}");
    let made = std::fs::metadata(container.path().join("tmp/made")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), 100_000);
}

fn joins_a_network_namespace() {
    use corten_runtime::{CgroupSpec, NetNs, Rootfs, Sandbox, create};
    let first = Container::args(&["sleep", "1000"]);
    let (running, _ends) = first.start().unwrap();
    let path = format!("/proc/{}/ns/net", running.pid);
    let expected = std::fs::read_link(&path).unwrap();
    let second = Container::sh("readlink /proc/self/ns/net");
    let (stdio, [stdin, stdout, stderr]) = crate::support::pipes();
    drop(stdin);
    let joined = create(Sandbox {
        id: &second.id,
        spec: &second.spec,
        rootfs: Rootfs::Path(second.path().to_owned()),
        mounts: Default::default(),
        netns: NetNs::Join(std::fs::File::open(path).unwrap().into()),
        stdio,
        cgroup: CgroupSpec::new(second.cgroup_path()),
    })
    .unwrap()
    .start()
    .unwrap();
    let outcome = crate::support::finish(&joined.pidfd, stdout, stderr);
    joined.cgroup.remove().unwrap();
    assert_eq!(outcome.stdout.trim(), expected.to_str().unwrap());
    running.cgroup.kill_all().unwrap();
    corten_runtime::wait_pidfd(&running.pidfd).unwrap();
    running.cgroup.remove().unwrap();
}
