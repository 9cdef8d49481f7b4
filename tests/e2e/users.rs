//! `userns-remap`: containers whose root is an unprivileged user of the host.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::harness::{Done, Engine, binary};

/// Where the container's root is on the host.
const ROOT: u32 = 1_600_000_000;

/// An engine with the setting; its commands see `/etc/subuid` and `/etc/subgid` with a range of
/// `dockremap`, in a mount namespace of their own.
struct Remapped(Engine);

impl Remapped {
    fn new() -> Self {
        let engine = Engine::with_alpine();
        fs::write(engine.path("ids"), format!("dockremap:{ROOT}:65536\n")).unwrap();
        let mut text = "userns-remap = \"default\"\n".to_owned();
        text += &format!(
            "[runtimes.ours]\npath = {:?}\nargs = [\"runtime\"]\n[runtimes.runcs]\npath = \"runc\"\n",
            binary()
        );
        fs::write(engine.root().join("engine.toml"), text).unwrap();
        Self(engine)
    }

    fn run(&self, args: &[&str]) -> Done {
        let see =
            "for file in /etc/subuid /etc/subgid; do mount --bind \"$0\" $file || exit 99; done
                   exec \"$@\"";
        let mut command = self.0.program("unshare");
        command
            .args(["--mount", "--propagation", "slave", "sh", "-c", see])
            .arg(self.0.path("ids"))
            .arg(binary())
            .args(args);
        command.output().unwrap().into()
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let done = self.run(args);
        assert_eq!(done.code, 0, "corten {args:?} failed: {done:?}");
        done.stdout.trim_end().to_owned()
    }

    #[track_caller]
    fn fails(&self, code: i32, args: &[&str]) -> String {
        let done = self.run(args);
        assert_eq!(done.code, code, "corten {args:?}: {done:?}");
        done.stderr
    }
}

/// Whether this machine has the files that the tests stand in for, and a kernel that maps owners.
fn possible() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|n| n.parse::<u32>().ok());
    let new = (numbers.next(), numbers.next()) >= (Some(6), Some(15));
    let files = ["/etc/subuid", "/etc/subgid"]
        .iter()
        .all(|f| Path::new(f).exists());
    if !new || !files {
        eprintln!("no Linux 6.15, or no /etc/subuid: this test saw nothing");
    }
    new && files
}

fn owner(path: &Path) -> (u32, u32) {
    use std::os::unix::fs::MetadataExt;
    let found = fs::symlink_metadata(path).unwrap();
    (found.uid(), found.gid())
}

#[test]
fn root_is_nobody_on_the_host_and_files_are_as_they_would_be() {
    if !possible() {
        return;
    }
    let engine = Remapped::new();
    let info: Value =
        serde_json::from_str(&engine.ok(&["info", "--format", "{{json .}}"])).unwrap();
    let options = info["SecurityOptions"].as_array().unwrap();
    assert!(options.contains(&"name=userns".into()), "{options:?}");

    let host = engine.0.path("host");
    fs::create_dir(&host).unwrap();
    fs::write(host.join("secret"), "x").unwrap();
    let bind = format!("{}:/host", host.display());
    engine.ok(&[
        "run",
        "-d",
        "--name",
        "web",
        "-v",
        "data:/data",
        "-v",
        &bind,
        "--ulimit",
        "nofile=4096:8192",
        "--tmpfs",
        "/scratch",
        "alpine",
        "sh",
        "-c",
        "echo up; exec sleep 600",
    ]);
    // Who it is: inside, and on the host.
    let pid = engine.ok(&["inspect", "-f", "{{.State.Pid}}", "web"]);
    assert_eq!(owner(Path::new(&format!("/proc/{pid}"))), (ROOT, ROOT));
    let inside = |script: &str| engine.ok(&["exec", "web", "sh", "-c", script]);
    assert_eq!(
        inside("id -u; cat /proc/self/uid_map | tr -s ' '"),
        format!("0\n 0 {ROOT} 65536")
    );
    assert_eq!(inside("ulimit -n; ulimit -Hn"), "4096\n8192");
    assert_eq!(
        inside("stat -c %u /etc/passwd /etc/hosts /data /proc/1 /dev/null")
            .lines()
            .take(4)
            .collect::<Vec<_>>(),
        ["0", "0", "0", "0"]
    );
    assert_eq!(
        inside("stat -c %u /host/secret; touch /host/mine 2>&1 || echo refused")
            .lines()
            .last(),
        Some("refused")
    );

    // What it makes is root's in the image and in the volume, on disk too.
    inside(
        "echo 127.9.9.9 own >> /etc/hosts && echo x > /made && chown 5:6 /made && rm /bin/tty \
            && echo y > /data/file && echo z > /scratch/z && echo said >/dev/stderr",
    );
    let id = engine.ok(&["inspect", "-f", "{{.Id}}", "web"]);
    let upper = engine.0.root().join("containers").join(&id).join("upper");
    assert_eq!(owner(&upper.join("made")), (5, 6));
    assert_eq!(
        owner(&engine.0.root().join("volumes/data/_data/file")),
        (0, 0)
    );
    assert_eq!(
        engine
            .ok(&["diff", "web"])
            .lines()
            .filter(|l| l.ends_with("/made"))
            .count(),
        1
    );

    // The network is its own, with what its root may do there.
    assert_eq!(
        inside("cat /proc/sys/net/ipv4/ip_unprivileged_port_start"),
        "0"
    );
    assert!(inside("ip -4 addr show eth0").contains("inet "));
    inside("ping -c 1 -W 5 127.0.0.1");

    // Copies have the owners that it sees.
    let made = engine.0.path("made.tar");
    let tar = engine.run(&["cp", "web:/made", "-"]);
    fs::write(&made, tar.stdout.as_bytes()).unwrap();
    let mut archive = tar::Archive::new(fs::File::open(&made).unwrap());
    let header = archive
        .entries()
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .header()
        .clone();
    assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (5, 6));
    fs::write(engine.0.path("in"), "copied").unwrap();
    engine.ok(&["cp", engine.0.path("in").to_str().unwrap(), "web:/copied"]);
    assert_eq!(inside("stat -c %u:%g /copied; cat /copied"), "0:0\ncopied");
    assert_eq!(owner(&upper.join("copied")), (0, 0));

    // So has an image, which another container uses as the host's root, and the volume, too.
    engine.ok(&["commit", "web", "saved"]);
    let plain = |script: &str| {
        let args = [
            "run",
            "--rm",
            "--userns",
            "host",
            "-v",
            "data:/data",
            "saved",
            "sh",
            "-c",
        ];
        engine.ok(&[&args[..], &[script]].concat())
    };
    assert_eq!(
        plain("stat -c %u:%g /made /data/file; [ -e /bin/tty ] || echo gone"),
        "5:6\n0:0\ngone"
    );
    assert_eq!(
        plain("wc -l < /proc/self/uid_map; grep -c 4294967295 /proc/self/uid_map"),
        "1\n1"
    );

    // Whoever joins another's namespace is in its user namespace.
    let users = engine.ok(&["exec", "web", "readlink", "/proc/1/ns/user"]);
    let joined = [
        "run",
        "--rm",
        "--network",
        "container:web",
        "alpine",
        "readlink",
        "/proc/1/ns/user",
    ];
    assert_eq!(engine.ok(&joined), users);
    engine.ok(&[
        "run", "-d", "--userns", "host", "--name", "plain", "alpine", "sleep", "600",
    ]);
    let told = engine.fails(
        125,
        &[
            "run",
            "--rm",
            "--network",
            "container:plain",
            "alpine",
            "true",
        ],
    );
    assert!(told.contains("whose users are the host's"), "{told}");

    // It starts again as it was.
    engine.ok(&["restart", "-t", "0", "web"]);
    assert_eq!(inside("cat /made /data/file; stat -c %u /made"), "x\ny\n5");
    engine.0.assert_clean();
}

#[test]
fn whoever_joins_a_namespace_has_the_users_that_are_in_it() {
    if !possible() {
        return;
    }
    let engine = Remapped::new();
    for name in ["web", "other"] {
        let wait = "echo shared > /dev/shm/file; echo up; exec sleep 600";
        let run = ["run", "-d", "--name", name, "--ipc", "shareable"];
        engine.ok(&[&run[..], &["alpine", "sh", "-c", wait]].concat());
        crate::harness::until("it is up", || engine.ok(&["logs", name]) == "up");
    }
    let users = engine.ok(&["exec", "web", "readlink", "/proc/1/ns/user"]);
    let run = |flags: &[&str], script: &str| {
        let args = [&["run", "--rm"], flags, &["alpine", "sh", "-c", script]].concat();
        engine.ok(&args)
    };
    let who = "readlink /proc/self/ns/user; tr -s ' ' < /proc/self/uid_map";
    let expected = format!("{users}\n 0 {ROOT} 65536");
    // With a network of its own, in which its root has its rights.
    let own =
        format!("{who}; ip addr add 10.9.9.9/32 dev lo 2>&1; ip -4 addr show eth0 | grep -c inet");
    let pid = format!("{own}; tr '\\0' ' ' < /proc/1/cmdline");
    assert_eq!(
        run(&["--cap-add", "NET_ADMIN", "--pid", "container:web"], &pid),
        format!("{expected}\n1\nsleep 600")
    );
    let ipc = format!("{own}; cat /dev/shm/file; ls -d /dev/mqueue");
    assert_eq!(
        run(&["--cap-add", "NET_ADMIN", "--ipc", "container:web"], &ipc),
        format!("{expected}\n1\nshared\n/dev/mqueue")
    );
    run(&["--ipc", "host"], "ls -d /dev/mqueue /dev/shm");
    let told = engine.fails(
        125,
        &[
            "run",
            "--rm",
            "--network",
            "container:web",
            "--pid",
            "container:other",
            "alpine",
            "true",
        ],
    );
    assert!(
        told.contains("users are not the same on the host"),
        "{told}"
    );
    let told = engine.fails(125, &["run", "--rm", "-u", "70000", "alpine", "true"]);
    assert!(told.contains("70000 is not mapped"), "{told}");

    // What is set later is about others.
    fs::write(engine.0.path("ids"), "dockremap:1500000000:65536\n").unwrap();
    let write = format!("{who}; echo own >> /etc/hostname; touch /made; stat -c %u /made");
    let joined = run(&["--pid", "container:web"], &write);
    assert_eq!(joined, format!("{expected}\n0"));
    let settings = engine.0.root().join("engine.toml");
    let text = fs::read_to_string(&settings).unwrap();
    let (_, rest) = text.split_once('\n').unwrap();
    fs::write(&settings, rest).unwrap();
    assert_eq!(run(&["--network", "container:web"], who), expected);
    assert_ne!(run(&[], who), expected);
    engine.ok(&["rm", "-f", "web", "other"]);
    engine.0.assert_clean();
}

#[test]
fn capabilities_of_a_file_that_is_copied_in_are_of_its_root() {
    if !possible() {
        return;
    }
    let engine = Remapped::new();
    let file = engine.0.path("program");
    fs::write(&file, "#!/bin/sh\n").unwrap();
    let attribute = "security.capability";
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::lsetxattr(&file, attribute, capability, flags).unwrap();
    engine.ok(&["run", "-d", "--name", "web", "alpine", "sleep", "600"]);
    let id = engine.ok(&["inspect", "-f", "{{.Id}}", "web"]);
    engine.ok(&["cp", "-a", file.to_str().unwrap(), "web:/program"]);
    let there = engine
        .0
        .root()
        .join("containers")
        .join(&id)
        .join("upper/program");
    // Of root's on disk, as if it had been copied without the setting.
    let mut value = [0; 64];
    let read = rustix::fs::lgetxattr(&there, attribute, &mut value[..]).unwrap();
    assert_eq!(&value[..read], capability);
    engine.ok(&["rm", "-f", "web"]);
    engine.0.assert_clean();
}

#[test]
fn what_only_the_hosts_root_can_have_is_refused() {
    if !possible() {
        return;
    }
    let engine = Remapped::new();
    for (flags, words) in [
        (
            &["--privileged"][..],
            "privileged mode is incompatible with user namespaces",
        ),
        (
            &["--network", "host"],
            "cannot share the host's network namespace",
        ),
        (&["--pid", "host"], "cannot share the host PID namespace"),
    ] {
        let args = [&["run", "--rm"], flags, &["alpine", "true"]].concat();
        let told = engine.fails(125, &args);
        assert!(told.contains(words), "{told}");
        let args = [
            &["run", "--rm", "--userns", "host"],
            flags,
            &["alpine", "true"],
        ]
        .concat();
        engine.ok(&args);
    }
    // Other runtimes get as far.
    let runc = std::process::Command::new("runc").arg("--version").output();
    for (runtime, there) in [("ours", true), ("runcs", runc.is_ok())] {
        if !there {
            eprintln!("runc is not installed: it was not tried");
            continue;
        }
        let look = "echo said >/dev/stderr; cat /proc/self/uid_map | tr -s ' '; touch /x /data/y; \
                    stat -c %u /x /data/y /etc/hosts; echo own >> /etc/hosts; \
                    cat /proc/sys/net/ipv4/ip_unprivileged_port_start";
        let run = [
            "run",
            "--rm",
            "--runtime",
            runtime,
            "-v",
            "data:/data",
            "alpine",
            "sh",
            "-c",
            look,
        ];
        let done = engine.run(&run);
        let expected = format!(" 0 {ROOT} 65536\n0\n0\n0\n0\n");
        assert_eq!(
            (done.stderr.as_str(), done.stdout),
            ("said\n", expected),
            "{runtime}"
        );
    }
    // Whose ranges are not there.
    fs::write(engine.0.path("ids"), "").unwrap();
    let told = engine.fails(125, &["run", "--rm", "alpine", "true"]);
    assert!(
        told.contains("/etc/subuid has no ids for dockremap"),
        "{told}"
    );
    engine.ok(&["run", "--rm", "--userns", "host", "alpine", "true"]);
    let told = engine.run(&["info"]).stderr;
    assert!(
        told.contains("WARNING: userns-remap: /etc/subuid has no ids"),
        "{told}"
    );
    let told = engine.fails(125, &["run", "--rm", "--userns", "keep", "alpine", "true"]);
    assert!(told.contains("invalid USER mode"), "{told}");
}
