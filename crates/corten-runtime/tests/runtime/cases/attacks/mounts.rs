//! Leading mounts astray: links in the image, and somebody who exchanges directories for
//! links in a shared volume while a container starts (CVE-2021-30465, CVE-2023-27561,
//! CVE-2019-19921).

use std::os::unix::fs::symlink;
use std::path::Path;

use super::{Racer, attacker};
use crate::Case;
use crate::support::Container;

pub const CASES: &[Case] = &[
    (
        "attack_exchange_of_mount_destinations",
        exchange_of_mount_destinations,
    ),
    ("attack_exchange_into_proc", exchange_into_proc),
    ("attack_covering_kernel_files", covering_kernel_files),
    ("attack_renaming_proc_while_it_is_masked", renaming_proc),
];

const ROUNDS: u32 = 20;

/// A volume with a directory `dir` and a link `link` to a directory outside, and somebody
/// who exchanges them all the time.
fn volume(outside: &Path) -> (tempfile::TempDir, Racer) {
    let volume = tempfile::tempdir().unwrap();
    std::fs::create_dir(volume.path().join("dir")).unwrap();
    symlink(outside, volume.path().join("link")).unwrap();
    let racer = Racer::start(&volume.path().join("dir"), &volume.path().join("link"));
    (volume, racer)
}

/// CVE-2021-30465: mounts below a directory of a volume that another container turns into
/// a link just then. Were a name resolved on the host, its directory would come into
/// being there.
fn exchange_of_mount_destinations() {
    let outside = tempfile::tempdir().unwrap();
    let (volume, racer) = volume(outside.path());
    // The positive control: what resolves a name twice loses this race.
    let dir = volume.path().join("dir");
    let mut tries = 0;
    while !outside.path().join("made").exists() {
        if std::fs::symlink_metadata(&dir).is_ok_and(|there| there.is_dir()) {
            std::fs::create_dir_all(dir.join("made")).ok();
        }
        tries += 1;
        assert!(tries < 2_000_000, "the racer does not race");
    }
    std::fs::remove_dir(outside.path().join("made")).unwrap();
    let mut started = 0;
    for round in 0..ROUNDS {
        let source = volume.path().to_str().unwrap();
        let container = Container::sh("true")
            .mount("/vol", "bind", source, &["rbind", "rw"])
            .mount("/vol/dir/tmpfs", "tmpfs", "tmpfs", &[])
            .mount("/vol/dir/bind/below", "bind", "/etc", &["bind", "ro"])
            .mount("/vol/dir/file", "bind", "/etc/hostname", &["bind", "ro"]);
        // A name that has just changed may make the start fail; it never leads out.
        if container.run().is_ok() {
            started += 1;
        }
        let found: Vec<_> = std::fs::read_dir(outside.path()).unwrap().collect();
        assert!(found.is_empty(), "round {round}: {found:?}");
    }
    racer.stop();
    assert!(started > 0, "no container has started at all");
}

/// The same race, towards the container's own `/proc`: whatever was checked must be what
/// is mounted on.
fn exchange_into_proc() {
    let run = |source: &Path| {
        Container::sh("cat /proc/self/comm")
            .mount("/vol", "bind", source.to_str().unwrap(), &["rbind", "rw"])
            .mount("/vol/dir", "tmpfs", "tmpfs", &[])
            .run()
    };
    // The two ways the race may go, without one.
    let still = tempfile::tempdir().unwrap();
    std::fs::create_dir(still.path().join("dir")).unwrap();
    assert_eq!(run(still.path()).unwrap().stdout, "cat\n");
    std::fs::remove_dir(still.path().join("dir")).unwrap();
    symlink("/proc", still.path().join("dir")).unwrap();
    let error = run(still.path()).unwrap_err().to_string();
    assert!(error.contains("/proc"), "{error}");

    let (volume, racer) = volume(Path::new("/proc"));
    for round in 0..ROUNDS {
        match run(volume.path()) {
            Ok(outcome) => assert_eq!(outcome.stdout, "cat\n", "round {round}: {outcome:?}"),
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains("/proc"), "round {round}: {error}");
            }
        }
    }
    racer.stop();
}

/// CVE-2019-16884, CVE-2019-19921: a mount that hides `/proc` or `/sys`, or a part of
/// them, and with it what protects them; however the place is spelled.
fn covering_kernel_files() {
    for (destination, typ) in [
        ("/proc", "tmpfs"),
        ("/proc/", "bind"),
        ("/tmp/../proc", "bind"),
        ("/proc/sys/kernel", "tmpfs"),
        ("/proc/self/attr", "bind"),
        ("/to-proc", "tmpfs"),
        ("/to-proc", "bind"),
        ("/to-proc/sys", "tmpfs"),
        ("/up/proc", "tmpfs"),
        ("/to-proc", "cgroup"),
        ("/sys", "tmpfs"),
        ("/sys", "bind"),
        ("/to-sys", "tmpfs"),
        ("/up/sys/.", "bind"),
        ("/proc", "sysfs"),
        ("/proc/sys", "proc"),
        ("/proc/sys/kernel", "sysfs"),
        ("/sys", "proc"),
    ] {
        let container = Container::sh("true").mount(destination, typ, "/tmp", &[]);
        symlink("/proc", container.path().join("to-proc")).unwrap();
        symlink("../../sys", container.path().join("to-sys")).unwrap();
        symlink("tmp/..", container.path().join("up")).unwrap();
        let error = container.run().unwrap_err().to_string();
        assert!(
            error.contains("inside /proc") || error.contains("place of sysfs"),
            "{destination} {typ}: {error}"
        );
    }
    // What is no attack: below /sys, and sysfs or procfs themselves from the host.
    Container::sh("true")
        .mount("/sys/fs/cgroup", "tmpfs", "tmpfs", &[])
        .mount("/sys", "bind", "/sys", &["rbind", "ro"])
        .output();
}

/// CVE-2025-31133 and its kin ("racing containers with shared mounts"): two containers
/// share a root file system, and one exchanges `/proc` for a directory of its own while the
/// other one starts. The mount goes along with the directory's name, so that masks looked
/// up by name would end up in the fake, and leave the real one bare.
fn renaming_proc() {
    let mut seen = 0;
    let container = attacker(&["bare", "/proc", "/fake"]);
    let fake = container.path().join("fake");
    std::fs::create_dir_all(fake.join("sys")).unwrap();
    for file in ["keys", "kcore", "timer_list", "sysrq-trigger"] {
        std::fs::write(fake.join(file), "").unwrap();
    }
    let racer = Racer::start(&container.path().join("proc"), &fake);
    for round in 0..ROUNDS {
        let Ok(outcome) = container.run() else {
            continue;
        };
        assert!(outcome.status.success(), "round {round}: {outcome:?}");
        assert!(
            !outcome.stdout.contains("bare"),
            "round {round}: {outcome:?}"
        );
        seen += u32::from(outcome.stdout.contains("guarded"));
    }
    racer.stop();
    assert!(seen > 0, "no container has started at all");
    // The positive control: what has no masks is seen to be bare.
    let mut bare = attacker(&["bare", "/proc", "/fake"]);
    let mut linux = bare.spec.linux().clone().unwrap();
    linux.set_masked_paths(None).set_readonly_paths(None);
    bare.spec.set_linux(Some(linux));
    assert!(bare.output().contains("bare"));
}
