//! Reaching the host through a descriptor that the runtime left open (CVE-2024-21626,
//! CVE-2016-9962): as working directory, as program, as interpreter, or just by having it.

use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use corten_runtime::{RuntimeError, Step};
use rustix::fs::{Mode, OFlags, open};
use serde_json::json;

use super::{ATTACKER_FILE, Bundle, Victim, armed, attacker};
use crate::Case;
use crate::support::Container;

pub const CASES: &[Case] = &[
    ("attack_inherited_descriptors", inherited_descriptors),
    (
        "attack_descriptor_as_working_directory",
        descriptor_as_working_directory,
    ),
    ("attack_descriptor_as_program", descriptor_as_program),
    (
        "attack_descriptors_that_were_not_asked_for",
        descriptors_that_were_not_asked_for,
    ),
];

/// What a careless caller of the runtime might have open, none of it close-on-exec.
fn careless() -> Vec<OwnedFd> {
    let none = OFlags::empty();
    let open = |path: &str, flags: OFlags| open(path, flags, Mode::empty()).unwrap();
    vec![
        open("/", OFlags::RDONLY | OFlags::DIRECTORY),
        open("/", OFlags::PATH),
        open("/etc/passwd", OFlags::PATH),
        open("/etc/passwd", none),
        open("/sys/fs/cgroup", OFlags::RDONLY | OFlags::DIRECTORY),
        open("/proc", OFlags::PATH | OFlags::DIRECTORY),
        open("/proc/self/ns/mnt", none),
        rustix::net::socket(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::STREAM,
            None,
        )
        .unwrap(),
    ]
}

/// Of init and of an exec'd process, exactly the three streams are open, whatever the
/// caller has open and whatever the runtime itself opened meanwhile.
fn inherited_descriptors() {
    let _open = careless();
    let three = |outcome: crate::support::Outcome| {
        assert!(outcome.status.success(), "{outcome:?}");
        let open: Vec<(&str, &str)> = outcome
            .stdout
            .lines()
            .map(|line| line.split_once(' ').unwrap())
            .collect();
        let numbers: Vec<&str> = open.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, ["0", "1", "2"], "{open:?}");
        assert!(
            open.iter().all(|(_, what)| what.starts_with("pipe:")),
            "{open:?}"
        );
    };
    three(attacker(&["fds"]).run().unwrap());
    let container = armed(Container::args(&["sleep", "1000"]));
    let victim = Victim::start(&container);
    three(victim.exec(&[super::ATTACKER, "fds"]));
    victim.kill();
}

/// The directory was not entered, or was seen to be outside.
fn refused_cwd(error: &RuntimeError) -> bool {
    matches!(
        error,
        RuntimeError::CwdOutsideRoot { .. }
            | RuntimeError::Setup {
                step: Step::Cwd,
                ..
            }
    )
}

/// CVE-2024-21626: `process.cwd` of an image or an exec is `/proc/self/fd/N`, or leads up
/// from there.
fn descriptor_as_working_directory() {
    let open = careless();
    let highest = open.iter().map(|fd| fd.as_raw_fd()).max().unwrap() + 24;
    let mut cwds: Vec<String> = (3..highest)
        .map(|fd| format!("/proc/self/fd/{fd}"))
        .collect();
    let root = open[0].as_raw_fd();
    cwds.push(format!("/proc/self/fd/{root}/etc"));
    cwds.push(format!("/proc/self/fd/{}/../../..", open[4].as_raw_fd()));
    cwds.push(format!("/proc/thread-self/fd/{root}"));
    cwds.push("/link".to_owned());
    let container = Container::args(&["sleep", "1000"]);
    let link = format!("/proc/self/fd/{root}");
    std::os::unix::fs::symlink(&link, container.path().join("link")).unwrap();
    let victim = Victim::start(&container);
    let inside = std::fs::metadata(container.path()).unwrap();
    for cwd in &cwds {
        let mut process = victim.process(&["stat", "-c", "%d %i", "."]);
        process.set_cwd(cwd.into());
        match victim.try_exec(&process) {
            Err(error) => assert!(refused_cwd(&error), "{cwd}: {error}"),
            Ok(outcome) => panic!("{cwd}: {outcome:?}, inside is {inside:?}"),
        }
    }
    victim.kill();
    // A first process pays for a whole container each time: the likely ones only.
    for cwd in cwds.iter().rev().take(6) {
        let container = Container::sh("cat etc/hostname").set("/process/cwd", json!(cwd));
        std::os::unix::fs::symlink(&link, container.path().join("link")).unwrap();
        match container.run() {
            Err(error) => assert!(refused_cwd(&error), "{cwd}: {error}"),
            Ok(outcome) => panic!("{cwd}: {outcome:?}"),
        }
    }
    // A descriptor that is passed on purpose leads there, and is seen to lead outside.
    let container = Container::sh("true").set("/process/cwd", json!("/proc/self/fd/3"));
    let bundle = Bundle::new(&container);
    let output = bundle.try_run_with_descriptor(Path::new("/etc"), &["--preserve-fds", "1"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{errors}");
    assert!(
        errors.contains("outside of the container's root"),
        "{errors}"
    );
}

/// CVE-2024-21626 ("attack 3"): the program, or a script's interpreter, is named through a
/// descriptor of a host directory. Close-on-exec does not help: it closes after the name
/// has been looked up. A program of the host that runs inside could be overwritten there
/// through its own `/proc/self/exe`.
fn descriptor_as_program() {
    let host = tempfile::tempdir().unwrap();
    let attacker = std::env::var(ATTACKER_FILE).unwrap();
    std::fs::copy(&attacker, host.path().join("attacker")).unwrap();
    let directory: OwnedFd = File::open(host.path()).unwrap().into();
    let program = format!("/proc/self/fd/{}/attacker", directory.as_raw_fd());
    let script = |root: &Path| {
        let path = root.join("script");
        std::fs::write(&path, format!("#!{program} fds\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    let container = Container::args(&["sleep", "1000"]);
    script(container.path());
    let victim = Victim::start(&container);
    for args in [vec![program.as_str(), "fds"], vec!["/script"]] {
        let error = victim.try_exec(&victim.process(&args)).unwrap_err();
        assert!(error.exit_code() >= 126, "{args:?}: {error}");
        let first = Container::args(&args);
        script(first.path());
        let error = first.run().unwrap_err();
        assert!(error.exit_code() >= 126, "{args:?}: {error}");
    }
    victim.kill();
    // The positive control: a caller that passes the directory on purpose.
    let container = Container::args(&["/proc/self/fd/3/attacker", "fds"]);
    let bundle = Bundle::new(&container);
    let said = bundle.run_with_descriptor(host.path(), &["--preserve-fds", "1"]);
    assert!(
        said.contains(&format!("3 {}", host.path().display())),
        "{said}"
    );
}

/// `--preserve-fds` passes what the caller has passed, and nothing of the runtime's own
/// that happens to have a number in the range; without it, nothing is passed.
fn descriptors_that_were_not_asked_for() {
    for (flags, expected) in [
        (&[][..], &["0", "1", "2"][..]),
        (&["--preserve-fds", "1"], &["0", "1", "2", "3"]),
    ] {
        let container = attacker(&["fds"]);
        let bundle = Bundle::new(&container);
        let said = bundle.run_with_descriptor(container.path(), flags);
        let numbers: Vec<&str> = said
            .lines()
            .filter_map(|line| line.split(' ').next())
            .collect();
        assert_eq!(numbers, expected, "{flags:?}: {said}");
    }
    // More than was passed: refused, or it would be whatever the runtime opens next.
    for more in ["2", "40", "4294967295"] {
        let container = attacker(&["fds"]);
        let flags = ["--preserve-fds", more];
        let output = Bundle::new(&container).try_run_with_descriptor(container.path(), &flags);
        assert!(!output.status.success(), "{output:?}");
    }
}
