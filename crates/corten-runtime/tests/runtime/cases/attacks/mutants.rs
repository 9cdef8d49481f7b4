//! Configurations thrown together at random, of paths that lead out of the root by every
//! kind of link and `..`, really carried out. Whatever becomes of the container: nothing
//! outside may change. (`src/fuzzing` has the same for what comes before there is a process.)

use std::cell::Cell;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, chown, symlink};
use std::path::Path;

use corten_runtime::{RuntimeError, Stdio, wait_pidfd};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use super::{in_user_namespace, without_dev};
use crate::Case;
use crate::support::Container;

pub const CASES: &[Case] = &[("attack_mutants_stay_inside", mutants_stay_inside)];

/// How many, unless `PROPTEST_CASES` says otherwise.
const RUNS: u32 = 48;

/// Stands for the directory on the host that nobody may touch.
const OUTSIDE: &str = "@";
const UP: &str = "../../../../../../../../..";

/// What the image has planted: name and target.
const LINKS: &[(&str, &str)] = &[
    ("abs", "@"),
    ("up", "../../../../../../../../..@"),
    ("dangling", "@/planted"),
    ("deep/dangling", "../../../../../../../../..@/planted"),
    ("in-vol", "/vol"),
    ("planted", "/vol/planted"),
    ("magic", "/proc/self/root"),
    ("cwd", "/proc/self/cwd"),
    ("fd", "/proc/self/fd/3"),
    ("kernel", "/proc/sys/kernel/core_pattern"),
    ("loop", "loop"),
];

/// Where configurations and the links in `/dev` point.
const PATHS: &[&str] = &[
    "/abs",
    "/abs/secret",
    "/up/directory",
    "/dangling",
    "/deep/dangling",
    "/deep/../../../../../../../..@/secret",
    "/in-vol/file",
    "/in-vol/new",
    "/planted",
    "/magic/etc",
    "/magic/..@/secret",
    "/cwd/new",
    "/fd/new",
    "/kernel",
    "/loop/new",
    "/vol",
    "/vol/file",
    "/vol/out",
    "/vol/out/secret",
    "/vol/up/directory",
    "/vol/../abs/new",
    "/proc/self/root/etc",
    "/proc/../abs",
    "/proc/sys/kernel",
    "/sys/kernel",
    "/dev/null",
    "/dev/node",
    "/dev/console",
    "/dev/shm/new",
    "/etc/passwd",
    "/tmp",
    "/",
    ".",
    "",
    "@/secret",
    "/..@/new",
];

/// Type, source and options of a mount.
const MOUNTS: &[(&str, &str, &[&str])] = &[
    ("tmpfs", "tmpfs", &["size=1m"]),
    ("tmpfs", "tmpfs", &["tmpcopyup", "ro"]),
    ("bind", "VOLUME", &["rbind"]),
    ("bind", "VOLUME", &["bind", "rro", "rslave"]),
    ("bind", "VOLUME/file", &["bind"]),
    ("bind", "VOLUME/out", &["bind", "ro"]),
    ("proc", "proc", &[]),
    ("sysfs", "sysfs", &["ro"]),
    ("mqueue", "mqueue", &[]),
    ("devpts", "devpts", &["newinstance"]),
    ("cgroup", "cgroup", &["ro"]),
    ("tmpfs", "", &["remount", "ro", "nosuid"]),
];

/// Type and number of a device.
const DEVICES: &[(&str, i64, i64)] = &[("c", 1, 3), ("c", 1, 5), ("c", 5, 0), ("p", 0, 0)];

/// Which namespaces there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Namespaces {
    Usual,
    User,
    /// No mount namespace: everything happens in the caller's.
    Host,
}

#[derive(Debug, Clone)]
struct Mutant {
    namespaces: Namespaces,
    terminal: bool,
    /// Links in a `/dev` of the image's own.
    dev: Option<Vec<(&'static str, String)>>,
    mounts: Vec<(String, usize)>,
    devices: Vec<(String, usize)>,
    cwd: Option<String>,
    masked: Vec<String>,
    readonly: Vec<String>,
}

fn a_path() -> impl Strategy<Value = String> {
    let further = select(&["/new", "/../new", "/new/deeper", "/..", "/."][..]);
    prop_oneof![
        8 => select(PATHS).prop_map(str::to_owned),
        3 => (select(PATHS), further).prop_map(|(path, more)| format!("{path}{more}")),
        1 => "[a-z./]{0,12}",
    ]
}

fn a_mutant() -> impl Strategy<Value = Mutant> {
    let namespaces = prop_oneof![
        3 => Just(Namespaces::Usual),
        2 => Just(Namespaces::User),
        1 => Just(Namespaces::Host),
    ];
    let names = select(&["null", "null", "console", "console", "node", "pts", "fd"][..]);
    let into_volume = select(&["/vol/planted", "/planted", "/vol/new/deeper"][..]);
    let target = prop_oneof![2 => into_volume.prop_map(str::to_owned), 1 => a_path()];
    let dev = proptest::option::weighted(0.3, vec((names, target), 1..3));
    // Few at a time: most are refused, and then the rest is not tried.
    let some = |kinds: usize| vec((a_path(), 0..kinds), 0..2);
    (
        (namespaces, proptest::bool::weighted(0.3), dev),
        (some(MOUNTS.len()), some(DEVICES.len())),
        proptest::option::weighted(0.3, a_path()),
        (vec(a_path(), 0..2), vec(a_path(), 0..2)),
    )
        .prop_map(
            |((namespaces, terminal, dev), (mounts, devices), cwd, (masked, readonly))| Mutant {
                namespaces,
                terminal,
                dev,
                mounts,
                devices,
                cwd,
                masked,
                readonly,
            },
        )
}

/// The host, as far as it could be hit.
struct Host {
    outside: tempfile::TempDir,
    volume: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let [outside, volume] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        std::fs::write(outside.path().join("secret"), "secret").unwrap();
        std::fs::create_dir(outside.path().join("directory")).unwrap();
        std::fs::write(volume.path().join("file"), "file").unwrap();
        symlink(outside.path(), volume.path().join("out")).unwrap();
        let up = format!("{UP}{}", outside.path().display());
        symlink(up, volume.path().join("up")).unwrap();
        // Who is root in a user namespace could write all of it.
        for path in [outside.path(), volume.path()] {
            chown(path, Some(100_000), Some(100_000)).unwrap();
        }
        Self { outside, volume }
    }

    /// With what stands for the directories replaced.
    fn real(&self, path: &str) -> String {
        let outside = self.outside.path().to_str().unwrap();
        let volume = self.volume.path().to_str().unwrap();
        path.replace(OUTSIDE, outside).replace("VOLUME", volume)
    }

    fn container(&self, mutant: &Mutant) -> Container {
        let mut container = Container::args(&["true"]);
        let plant = |container: &Container, name: &str, target: &str| {
            let link = container.path().join(name);
            std::fs::create_dir_all(link.parent().unwrap()).unwrap();
            std::fs::remove_file(&link).ok();
            symlink(self.real(target), link).unwrap();
        };
        for (name, target) in LINKS {
            plant(&container, name, target);
        }
        if let Some(links) = &mutant.dev {
            container = without_dev(container);
            for (name, target) in links.iter().filter(|(_, target)| !target.is_empty()) {
                plant(&container, &format!("dev/{name}"), target);
            }
        }
        let volume = self.real("VOLUME");
        container = container.mount("/vol", "bind", &volume, &["rbind", "rw"]);
        for (path, kind) in &mutant.mounts {
            let (typ, source, options) = MOUNTS[*kind];
            container = container.mount(&self.real(path), typ, &self.real(source), options);
        }
        let device = |(path, kind): &(String, usize)| {
            let (typ, major, minor) = DEVICES[*kind];
            json!({"path": self.real(path), "type": typ, "major": major, "minor": minor,
                   "fileMode": 0o622, "uid": 7, "gid": 8})
        };
        let devices: Vec<Value> = mutant.devices.iter().map(device).collect();
        container = container.set("/linux/devices", json!(devices));
        // Beside the usual ones, which would not all be there.
        for (field, paths) in [
            ("maskedPaths", &mutant.masked),
            ("readonlyPaths", &mutant.readonly),
        ] {
            let mut linux = serde_json::to_value(container.spec.linux()).unwrap();
            let all = linux[field].as_array_mut().unwrap();
            all.extend(paths.iter().map(|path| json!(self.real(path))));
            container = container.set(&format!("/linux/{field}"), linux[field].take());
        }
        if let Some(cwd) = &mutant.cwd {
            container = container.set("/process/cwd", json!(self.real(cwd)));
        }
        match mutant.namespaces {
            Namespaces::Usual => container,
            Namespaces::User => in_user_namespace(container),
            Namespaces::Host => {
                let linux = serde_json::to_value(container.spec.linux()).unwrap();
                let mut kinds = linux["namespaces"].clone();
                let listed = kinds.as_array_mut().unwrap();
                listed.retain(|namespace| namespace["type"] != "mount");
                container.set("/linux/namespaces", kinds)
            }
        }
    }
}

impl Mutant {
    /// Whether it asks for a node in the volume itself, by a name without links.
    fn names_the_volume(&self) -> bool {
        self.devices.iter().any(|(path, _)| {
            let mut parts = Vec::new();
            for part in path.split('/').filter(|part| !matches!(*part, "" | ".")) {
                if part == ".." {
                    parts.pop();
                } else {
                    parts.push(part);
                }
            }
            parts.first() == Some(&"vol")
        })
    }
}

/// Everything about the files in a directory, by name.
fn picture(directory: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(path) = left.pop() {
        let stat = std::fs::symlink_metadata(&path).unwrap();
        let content = match stat.file_type() {
            kind if kind.is_dir() => {
                let entries = std::fs::read_dir(&path).unwrap();
                left.extend(entries.map(|entry| entry.unwrap().path()));
                String::new()
            }
            kind if kind.is_file() => std::fs::read_to_string(&path).unwrap(),
            kind if kind.is_symlink() => std::fs::read_link(&path).unwrap().display().to_string(),
            _ => format!("device {}", stat.rdev()),
        };
        lines.push(format!(
            "{} {:o} {} {} {} {} {content}",
            path.display(),
            stat.mode(),
            stat.uid(),
            stat.gid(),
            stat.ctime(),
            stat.ctime_nsec(),
        ));
    }
    lines.sort();
    lines
}

/// In a volume mount points and working directories may be made, as everywhere; nothing else.
fn only_places_were_made(volume: &Path) -> bool {
    let known = |path: &Path| {
        let name = path.strip_prefix(volume).unwrap();
        ["", "file", "out", "up"]
            .iter()
            .any(|known| Path::new(known) == name)
    };
    let mut left = vec![volume.to_owned()];
    let mut sound = std::fs::read_to_string(volume.join("file")).unwrap() == "file";
    while let Some(path) = left.pop() {
        let stat = std::fs::symlink_metadata(&path).unwrap();
        let kind = stat.file_type();
        if kind.is_dir() {
            left.extend(
                std::fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
        let node = kind.is_char_device() || kind.is_block_device() || kind.is_fifo();
        let place = kind.is_dir() || kind.is_file() && stat.len() == 0;
        sound &= !node && (place || known(&path));
    }
    sound
}

fn carry_out(container: &Container, terminal: bool) -> Result<(), RuntimeError> {
    if !terminal {
        return container.run().map(drop);
    }
    let mut created = container.create(Stdio::Terminal { size: None })?;
    let console = created.console();
    let running = created.start()?;
    wait_pidfd(&running.pidfd).unwrap();
    drop(console);
    running.cgroup.remove().unwrap();
    Ok(())
}

fn mutants_stay_inside() {
    #[allow(deprecated)] // Its successor is unsafe because of threads and memory; this is neither.
    rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNS).unwrap();
    // A namespace of the case's own, so that nobody else mounts in it; with every mount
    // shared, so that whatever a container lets propagate arrives.
    for propagation in ["--make-rprivate", "--make-rshared"] {
        let mut command = std::process::Command::new("mount");
        assert!(command.args([propagation, "/"]).status().unwrap().success());
    }
    let mountinfo = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mounts = mountinfo();
    let given = std::env::var("PROPTEST_CASES").ok();
    let config = Config {
        failure_persistence: None,
        max_shrink_iters: 100,
        ..Config::with_cases(given.and_then(|text| text.parse().ok()).unwrap_or(RUNS))
    };
    let (ran, refused) = (Cell::new(0), Cell::new(0));
    let result = TestRunner::new(config).run(&a_mutant(), |mutant| {
        let host = Host::new();
        let [outside, volume] = [&host.outside, &host.volume].map(|dir| dir.path());
        let before = [outside, volume].map(picture);
        let outcome = carry_out(&host.container(&mutant), mutant.terminal);
        let count = if outcome.is_ok() { &ran } else { &refused };
        count.set(count.get() + 1);
        let after = [outside, volume].map(picture);
        prop_assert_eq!(&before[0], &after[0], "{:?}", outcome);
        // Devices, masks and terminals have no business in a volume.
        if !mutant.names_the_volume() {
            if mutant.mounts.is_empty() && mutant.cwd.is_none() {
                prop_assert_eq!(&before[1], &after[1], "{:?}", outcome);
            }
            let sound = only_places_were_made(volume);
            prop_assert!(sound, "{:?} {:#?}", outcome, after[1]);
        }
        prop_assert_eq!(&mounts, &mountinfo(), "{:?}", outcome);
        Ok(())
    });
    println!("{} ran, {} were refused", ran.get(), refused.get());
    if let Err(error) = result {
        panic!("{error}");
    }
    // Most are refused; those that run show that it is not for all the same reason.
    assert!(ran.get() > 0 && refused.get() > 0);
    // The positive control: what is looked at would tell.
    let host = Host::new();
    let before = picture(host.outside.path());
    std::fs::write(host.outside.path().join("planted"), "").unwrap();
    assert_ne!(before, picture(host.outside.path()));
}
