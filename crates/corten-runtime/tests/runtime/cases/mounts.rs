//! Id-mapped mounts, recursive options, remounts, propagation; what a host must have.

use std::os::unix::fs::chown;

use corten_runtime::{Stdio, wait_pidfd};
use serde_json::json;

use crate::Case;
use crate::cases::attacks::in_user_namespace;
use crate::support::{Container, finish, lacks, older_than};

pub const CASES: &[Case] = &[
    ("idmapped_mounts", idmapped_mounts),
    ("recursive_options", recursive_options),
    ("mounts_are_listed_in_order", mounts_are_listed_in_order),
    ("remounts", remounts),
    ("root_propagation", root_propagation),
    ("readonly_dev", readonly_dev),
    ("mounts_over_devices", mounts_over_devices),
    ("readonly_superblocks", readonly_superblocks),
    ("long_mount_options", long_mount_options),
    ("missing_host_features", missing_host_features),
];

/// On a tmpfs: not every file system's mounts can be mapped.
fn source() -> tempfile::TempDir {
    // Linux 6.3 is the first with other ids on a tmpfs; before, a disk has to do.
    let place = if older_than(6, 3) {
        std::env::temp_dir()
    } else {
        "/dev/shm".into()
    };
    let dir = tempfile::Builder::new()
        .prefix("corten-rt-")
        .tempdir_in(place)
        .unwrap();
    for (name, id) in [("zero", 0), ("seven", 7)] {
        std::fs::write(dir.path().join(name), "").unwrap();
        chown(dir.path().join(name), Some(id), Some(id)).unwrap();
    }
    dir
}

fn with_mount(container: Container, mount: serde_json::Value) -> Container {
    let mut mounts = serde_json::to_value(container.spec.mounts()).unwrap();
    mounts.as_array_mut().unwrap().push(mount);
    container.set("/mounts", mounts)
}

/// Mounts of each kind after one another, with each propagation; and none of it reaches
/// the peers of a shared source.
fn mounts_are_listed_in_order() {
    #[allow(deprecated)] // Its successor is unsafe because of threads and memory; this is neither.
    rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNS).unwrap();
    let dir = source();
    let path = dir.path().to_str().unwrap();
    let mount = |args: &[&str]| {
        let done = std::process::Command::new("mount").args(args).status();
        assert!(done.unwrap().success(), "{args:?}");
    };
    mount(&["--make-rprivate", "/"]);
    mount(&["-t", "tmpfs", "source", path]);
    mount(&["--make-shared", path]);
    std::fs::create_dir(dir.path().join("below")).unwrap();
    mount(&["-t", "tmpfs", "below", &format!("{path}/below")]);
    std::fs::write(dir.path().join("file"), "file\n").unwrap();
    let file = format!("{path}/file");
    let mountinfo = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = mountinfo();

    let mut container = Container::sh(
        "while read id parent device root point options; do echo $point $options; done \
         < /proc/self/mountinfo; cat /f1 /f2; read line",
    );
    let mut expected = Vec::new();
    for (number, options) in ["bind", "rbind rshared", "bind shared", "rbind rslave"]
        .into_iter()
        .chain([
            "bind unbindable",
            "rbind runbindable",
            "bind private",
            "rbind",
        ])
        .enumerate()
    {
        let (bound, other) = (format!("/bound{number}"), format!("/made{number}"));
        let options: Vec<&str> = options.split(' ').collect();
        container =
            container
                .mount(&bound, "bind", path, &options)
                .mount(&other, "tmpfs", "made", &[]);
        expected.extend([(bound, options), (other, vec![])]);
    }
    for place in ["/f1", "/f2"] {
        container = container.mount(place, "bind", &file, &["bind", "ro"]);
        expected.push((place.to_owned(), vec![]));
    }
    let (running, [mut stdin, stdout, stderr]) = container.start().unwrap();
    assert_eq!(mountinfo(), before);
    std::io::Write::write_all(&mut stdin, b"go\n").unwrap();
    let output = finish(&running.pidfd, stdout, stderr).stdout;
    running.cgroup.remove().unwrap();
    assert_eq!(mountinfo(), before);

    let lines: Vec<Vec<&str>> = output.lines().map(|l| l.split(' ').collect()).collect();
    let mut at = 0;
    for (place, options) in expected {
        let found = lines.iter().position(|words| words[0] == place).unwrap();
        assert!(found >= at, "{place} in {output}");
        at = found;
        let says = |word: &str| lines[found].iter().any(|given| given.starts_with(word));
        let asked = |word: &str| options.iter().any(|given| given.ends_with(word));
        assert_eq!(says("shared:"), asked("shared"), "{place} in {output}");
        assert_eq!(says("master:"), asked("slave"), "{place} in {output}");
        assert_eq!(
            says("unbindable"),
            asked("unbindable"),
            "{place} in {output}"
        );
        let below = lines
            .iter()
            .any(|words| words[0] == format!("{place}/below"));
        let recursive = options.first() == Some(&"rbind");
        assert_eq!(below, recursive, "{place}/below in {output}");
    }
    assert!(output.ends_with("file\nfile\n"), "{output}");
    rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH).unwrap();
}

fn idmapped_mounts() {
    let dir = source();
    let map = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
    let own = json!({"destination": "/data", "source": dir.path(), "type": "none",
                     "options": ["rbind", "ridmap"], "uidMappings": map, "gidMappings": map});
    let script = "stat -c '%u %g' /data/zero /data/seven; cat /proc/self/uid_map | wc -l";
    let container = with_mount(Container::sh(script), own.clone());
    assert_eq!(container.output(), "1000 1000\n1007 1007\n1\n");
    // Without a mapping of its own it is the container's.
    let theirs = json!({"destination": "/data", "source": dir.path(),
                        "options": ["bind", "idmap"]});
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    let container = with_mount(Container::sh(script), theirs.clone())
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map)
        .set(
            "/linux/namespaces",
            json!([{"type": "mount"}, {"type": "pid"}, {"type": "uts"}, {"type": "ipc"},
                   {"type": "user"}]),
        );
    for dir in [".", "tmp", "dev", "proc", "sys"] {
        chown(container.path().join(dir), Some(100_000), Some(100_000)).unwrap();
    }
    assert_eq!(container.output(), "0 0\n7 7\n1\n");
    let mut half = own;
    half.as_object_mut().unwrap().remove("gidMappings");
    let tmpfs = json!({"destination": "/data", "type": "tmpfs", "options": ["idmap"]});
    for (mount, words) in [
        (theirs, "needs a container with a user namespace"),
        (half, "must be given together"),
        (tmpfs, "only a bind mount can be id-mapped"),
    ] {
        let error = with_mount(Container::sh("true"), mount)
            .run()
            .unwrap_err()
            .to_string();
        assert!(error.contains(words), "{error}");
    }
}

/// The host's /dev has mounts below it.
fn recursive_options() {
    let name = format!("corten-rt-{}", std::process::id());
    let script = format!("grep ' /hostdev' /proc/self/mounts; echo x > /hostdev/shm/{name}");
    let mount = |options: &[&str]| {
        let container = Container::sh(&script).mount("/hostdev", "bind", "/dev", options);
        container.run().unwrap()
    };
    let outcome = mount(&["rbind", "rro", "rnoexec", "rnosymfollow", "rnoatime"]);
    assert!(
        outcome.stderr.contains("Read-only file system"),
        "{outcome:?}"
    );
    let output = outcome.stdout;
    let lines: Vec<&str> = output
        .lines()
        .filter(|line| line.contains(" /hostdev"))
        .collect();
    assert!(lines.len() > 1, "{output}");
    for line in lines {
        for option in ["ro,", "noexec", "nosymfollow", "noatime"] {
            assert!(line.contains(option), "{option} in {line}");
        }
    }
    // Only the topmost one.
    let output = mount(&["rbind", "ro", "noexec", "nosymfollow"]).stdout;
    let lines = output.lines().filter(|line| line.contains("nosymfollow"));
    assert_eq!(lines.count(), 1, "{output}");
    // What is mounted below is there only if it is asked for.
    let count = |options: &[&str]| {
        let output = mount(options).stdout;
        output
            .lines()
            .filter(|line| line.contains(" /hostdev"))
            .count()
    };
    assert!(count(&["rbind", "ro"]) > 1);
    assert_eq!(count(&["ro"]), 1);
    // A single file system takes them, too.
    let output = Container::sh("grep ' /x ' /proc/self/mounts")
        .mount(
            "/x",
            "tmpfs",
            "tmpfs",
            &["rnosuid", "rnoexec", "strictatime"],
        )
        .output();
    assert!(output.contains("rw,nosuid,noexec"), "{output}");
    assert!(!output.contains("relatime"), "{output}");
    // What the second container could write.
    std::fs::remove_file(std::path::Path::new("/dev/shm").join(name)).unwrap();
}

fn remounts() {
    let output = Container::sh("grep ' /x ' /proc/self/mounts; touch /x/f")
        .mount("/x", "tmpfs", "tmpfs", &["size=1m"])
        .mount(
            "/x",
            "tmpfs",
            "tmpfs",
            &["remount", "size=2m", "ro", "nosuid"],
        )
        .run()
        .unwrap();
    assert!(output.stdout.contains("ro,nosuid"), "{output:?}");
    assert!(output.stdout.contains("size=2048k"), "{output:?}");
    assert!(
        output.stderr.contains("Read-only file system"),
        "{output:?}"
    );
}

fn root_propagation() {
    for (propagation, words, everywhere) in [
        ("shared", "shared:", false),
        ("rshared", "shared:", true),
        ("unbindable", "unbindable", false),
        ("private", "", false),
        ("slave", "", false),
    ] {
        let output = Container::sh("cat /proc/self/mountinfo")
            .set("/linux/rootfsPropagation", json!(propagation))
            .output();
        let has = |line: &str| !words.is_empty() && line.contains(words);
        let root = output
            .lines()
            .find(|line| line.split(' ').nth(4) == Some("/"))
            .unwrap();
        assert_eq!(has(root), !words.is_empty(), "{propagation}: {root}");
        let proc = output
            .lines()
            .find(|line| line.split(' ').nth(4) == Some("/proc"))
            .unwrap();
        assert_eq!(has(proc), everywhere, "{propagation}: {proc}");
    }
    let wrong = Container::sh("true").set("/linux/rootfsPropagation", json!("sideways"));
    assert!(
        wrong
            .run()
            .unwrap_err()
            .to_string()
            .contains("linux.rootfsPropagation")
    );
}

/// It becomes read-only when the devices and the console are in it.
fn readonly_dev() {
    let script = "echo x > /dev/null && touch /dev/x; test -c /dev/console && echo console";
    let container = Container::sh(script);
    let mut mounts = serde_json::to_value(container.spec.mounts()).unwrap();
    for mount in mounts.as_array_mut().unwrap() {
        if mount["destination"] == "/dev" {
            mount["options"].as_array_mut().unwrap().push(json!("ro"));
        }
    }
    let container = container.set("/mounts", mounts);
    let mut created = container.create(Stdio::Terminal { size: None }).unwrap();
    let mut console = std::fs::File::from(created.console().unwrap());
    let running = created.start().unwrap();
    let mut output = String::new();
    // A terminal whose last user is gone ends with an error.
    std::io::Read::read_to_string(&mut console, &mut output).unwrap_err();
    assert!(output.contains("Read-only file system"), "{output}");
    assert!(output.contains("console\r\n"), "{output}");
    wait_pidfd(&running.pidfd).unwrap();
    running.cgroup.remove().unwrap();
}

/// What the caller has mounted over a default device, or over one of `devices`, stays.
fn mounts_over_devices() {
    let script = "stat -c '%n %t:%T %a %u' /dev/random /dev/null";
    let container =
        || Container::sh(script).mount("/dev/random", "bind", "/dev/urandom", &["bind"]);
    let expected = "/dev/random 1:9 666 0\n/dev/null 1:3 666 0\n";
    assert_eq!(container().output(), expected);
    // Nobody of the user namespace owns the nodes there.
    let nobodys = expected.replace(" 0\n", " 65534\n");
    assert_eq!(in_user_namespace(container()).output(), nobodys);
    // The very device, but neither its mode nor its owner is changed: it is the host's.
    let dir = source();
    let node = dir.path().join("node");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let kind = rustix::fs::FileType::CharacterDevice;
    let device = rustix::fs::makedev(5, 0);
    rustix::fs::mknodat(rustix::fs::CWD, &node, kind, mode, device).unwrap();
    let given = json!([{"path": "/dev/tty", "type": "c", "major": 5, "minor": 0,
                        "fileMode": 0o620, "uid": 7, "gid": 8}]);
    let output = Container::sh("stat -c '%t:%T %a %u' /dev/tty")
        .set("/linux/devices", given)
        .mount("/dev/tty", "bind", node.to_str().unwrap(), &["bind"])
        .output();
    assert_eq!(output, "5:0 600 0\n");
    let stat = rustix::fs::stat(&node).unwrap();
    assert_eq!((stat.st_mode & 0o777, stat.st_uid), (0o600, 0));
}

/// A loop device with an ext4 on it; gone when dropped.
struct Disk {
    device: String,
    _image: tempfile::NamedTempFile,
}

impl Disk {
    /// `None` on hosts that cannot.
    fn new(flags: &[&str]) -> Option<Self> {
        if lacks("mkfs.ext4") || lacks("losetup") {
            return None;
        }
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(4 << 20).unwrap();
        let run = |program: &str, args: &[&str]| {
            let mut command = std::process::Command::new(program);
            let output = command.args(args).arg(image.path()).output().unwrap();
            let said = String::from_utf8(output.stdout).unwrap();
            output.status.success().then(|| said.trim().to_owned())
        };
        run("mkfs.ext4", &["-q"]).unwrap();
        let Some(device) = run("losetup", &[flags, &["--find", "--show"]].concat()) else {
            println!("skipped: there are no loop devices");
            return None;
        };
        Some(Self {
            device,
            _image: image,
        })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let mut command = std::process::Command::new("losetup");
        command.args(["--detach", &self.device]).status().ok();
    }
}

/// `ro` is for the file system itself, not only for the mount: a journal is replayed
/// otherwise, and a disk that cannot be written not mounted at all.
fn readonly_superblocks() {
    #[allow(deprecated)] // Its successor is unsafe because of threads and memory; this is neither.
    rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNS).unwrap();
    let mount = |args: &[&str]| {
        let done = std::process::Command::new("mount").args(args).status();
        assert!(done.unwrap().success(), "{args:?}");
    };
    mount(&["--make-rprivate", "/"]);
    let script = "grep ' /data ' /proc/self/mountinfo; touch /data/x && echo written";
    let run = |disk: &str, options: &[&[&str]]| {
        let all = json!([{"allow": true, "access": "rwm"}]);
        let mut container = Container::sh(script).set("/linux/resources/devices", all);
        for options in options {
            container = container.mount("/data", "ext4", disk, options);
        }
        container.run().unwrap()
    };
    // proc_pid_mountinfo(5): the options of the mount, and those of the superblock.
    let modes = |said: &str| {
        let line = said.lines().next().unwrap();
        let first = |options: &str| options.split(',').next().unwrap().to_owned();
        let mut words = line.split(' ');
        (
            first(words.nth(5).unwrap()),
            first(words.next_back().unwrap()),
        )
    };
    let is = |own: &str, superblock: &str| (own.to_owned(), superblock.to_owned());
    let Some(disk) = Disk::new(&["--read-only"]) else {
        return;
    };
    let outcome = run(&disk.device, &[&["ro"]]);
    assert_eq!(modes(&outcome.stdout), is("ro", "ro"), "{outcome:?}");
    drop(disk);

    let disk = Disk::new(&[]).unwrap();
    for (options, expected, written) in [
        (&[&["ro"][..]][..], is("ro", "ro"), false),
        (&[&["rro"]], is("ro", "ro"), false),
        (&[&["rw"]], is("rw", "rw"), true),
        (&[&["rw"], &["remount", "ro"]], is("ro", "ro"), false),
        (&[&["ro"], &["remount", "rw"]], is("rw", "rw"), true),
        // A mount of something that is mounted there; not the file system.
        (
            &[&["rw"], &["remount", "bind", "ro"]],
            is("ro", "rw"),
            false,
        ),
    ] {
        let outcome = run(&disk.device, options);
        assert_eq!(modes(&outcome.stdout), expected, "{options:?}: {outcome:?}");
        let said = outcome.stdout.contains("written");
        assert_eq!(said, written, "{options:?}: {outcome:?}");
    }
    // Where the host has it writable already, that stays so; the mount is read-only.
    let dir = source();
    let path = dir.path().to_str().unwrap();
    mount(&[&disk.device, path]);
    let outcome = run(&disk.device, &[&["ro"]]);
    assert_eq!(modes(&outcome.stdout), is("ro", "rw"), "{outcome:?}");
    std::fs::write(dir.path().join("by the host"), "").unwrap();
    // Nor does a remount of what is bound from the host touch the host's.
    let outcome = Container::sh(script)
        .mount("/data", "bind", path, &["bind"])
        .mount("/data", "ext4", path, &["remount", "ro"])
        .run()
        .unwrap();
    assert_eq!(modes(&outcome.stdout), is("ro", "rw"), "{outcome:?}");
    std::fs::write(dir.path().join("by the host"), "").unwrap();
    rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH).unwrap();
}

/// The kernel takes at most 255 bytes for an option of a file system that is made by
/// descriptor; `mount(2)` takes a page for all of them.
fn long_mount_options() {
    let dir = tempfile::Builder::new()
        .prefix("corten-rt-")
        .tempdir()
        .unwrap();
    let directory = |name: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path.into_os_string().into_string().unwrap()
    };
    let deep = |name: &str| format!("{name}/{}/{}", "x".repeat(150), "y".repeat(150));
    let layer = |path: String, name: &str| {
        std::fs::write(format!("{path}/{name}"), format!("{name}\n")).unwrap();
        path
    };
    // Together too long, and one that is by itself.
    let short = ["one", "two", "three"].map(|name| {
        let path = directory(&format!("{name}-{}", "z".repeat(150)));
        layer(path, name)
    });
    let long = layer(directory(&deep("four")), "four");
    let run = |options: &[&str]| {
        let script = "cat /data/*; echo new > /data/new; grep -c ' /data ' /proc/self/mountinfo; \
                      grep ' /data ' /proc/self/mounts";
        Container::sh(script)
            .mount("/data", "overlay", "overlay", options)
            .run()
            .unwrap()
    };
    let lower = format!("lowerdir={}", short.join(":"));
    let outcome = run(&[&lower, "nosuid", "nodev"]);
    let mut lines = outcome.stdout.lines();
    let mut next = |count| lines.by_ref().take(count).collect::<Vec<_>>();
    assert_eq!(next(4), ["one", "three", "two", "1"], "{outcome:?}");
    assert!(next(1)[0].contains("nosuid,nodev"), "{outcome:?}");
    assert!(outcome.stderr.contains("Read-only"), "{outcome:?}");
    let lower = format!("{lower}:{long}");
    let upper = directory(&deep("upper"));
    let work = format!("workdir={}", directory(&deep("work")));
    let outcome = run(&[
        &lower,
        &format!("upperdir={upper}"),
        &work,
        "nosuid",
        "noatime",
    ]);
    let expected = "four\none\nthree\ntwo\n1\noverlay /data overlay rw,nosuid,noatime,";
    assert!(outcome.stdout.starts_with(expected), "{outcome:?}");
    let new = std::fs::read_to_string(format!("{upper}/new"));
    assert_eq!(new.unwrap(), "new\n", "{outcome:?}");
    // In a mount namespace that is there already, and without one, where nothing may be
    // attached on the way: then layers go one by one, and nothing else goes.
    let here = dir.path().to_str().unwrap();
    let first = Container::args(&["sleep", "1000"]).mount(here, "bind", here, &["rbind"]);
    let (running, _ends) = first.start().unwrap();
    let joined = format!("/proc/{}/ns/mnt", running.pid);
    let among = |namespaces: serde_json::Value, lower: &str| {
        let container = Container::sh("cat /data/*")
            .mount("/data", "overlay", "overlay", &[lower])
            .set("/linux/namespaces", namespaces);
        container.run()
    };
    let namespaces = json!([{"type": "pid"}, {"type": "uts"}, {"type": "mount", "path": joined}]);
    let outcome = among(namespaces, &lower).unwrap();
    let expected = "four\none\nthree\ntwo\n";
    assert!(outcome.stdout.starts_with(expected), "{outcome:?}");
    running.cgroup.kill_all().unwrap();
    wait_pidfd(&running.pidfd).unwrap();
    running.cgroup.remove().unwrap();
    let namespaces = json!([{"type": "pid"}, {"type": "uts"}]);
    let few = format!("lowerdir={}", short.join(":"));
    match among(namespaces.clone(), &few) {
        Err(error) if error.to_string().contains("Linux 6.15") => {
            println!("skipped: without a mount namespace, as {error}");
        }
        outcome => {
            let outcome = outcome.unwrap();
            assert!(
                outcome.stdout.starts_with("one\nthree\ntwo\n"),
                "{outcome:?}"
            );
            let error = among(namespaces, &lower).unwrap_err().to_string();
            assert!(error.contains("longer than 255 bytes"), "{error}");
        }
    }
    // More than even `mount(2)` takes, with the host untouched.
    let endless = format!("lowerdir={}", [long.as_str(); 20].join(":"));
    let error = Container::sh("true")
        .mount("/data", "overlay", "overlay", &[&endless])
        .run();
    let error = error.unwrap_err().to_string();
    assert!(error.starts_with("mount /data: "), "{error}");
}

/// Neither is there on a usual test machine; then the refusal must say so.
fn missing_host_features() {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    if !mounts.contains(" - resctrl ") {
        let container = Container::sh("true").set("/linux/intelRdt", json!({"closID": "gold"}));
        let error = container.run().unwrap_err().to_string();
        assert!(
            error.contains("no resctrl file system is mounted"),
            "{error}"
        );
    }
    if !std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        let container = Container::sh("true").set("/linux/mountLabel", json!("u:r:t:s0"));
        let error = container.run().unwrap_err().to_string();
        assert!(error.contains("SELinux is not enabled"), "{error}");
    }
}
