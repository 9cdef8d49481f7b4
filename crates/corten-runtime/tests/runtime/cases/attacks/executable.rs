//! Overwriting the host's runtime through `/proc/<pid>/exe` (CVE-2019-5736).

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::Command;

use corten_runtime::exe;

use super::{Victim, almighty, attacker, program_name};
use crate::Case;
use crate::support::{Container, eventually, group_of};

pub const CASES: &[Case] = &[
    (
        "attack_executable_is_overwritten_after_exec",
        executable_is_overwritten_after_exec,
    ),
    (
        "attack_own_executable_as_program",
        own_executable_as_program,
    ),
];

/// Set in the process that is the attack's victim: how it runs.
const ROLE: &str = "CORTEN_ATTACK_ROLE";

/// CVE-2019-5736, the way of the published exploit: somebody inside opens `/proc/<pid>/exe`
/// of the runtime that joins for an exec, keeps the descriptor, and writes when the
/// runtime has ended. The container has every capability (so that nothing but the seal is
/// in the way). Without the seal, that succeeds; with it, the write is refused.
fn executable_is_overwritten_after_exec() {
    if let Ok(role) = std::env::var(ROLE) {
        return victim(&role);
    }
    for (role, said, overwritten) in [
        ("unsealed", "overwritten", true),
        ("sealed", "refused: Read-only file system", false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("victim");
        std::fs::copy(std::env::current_exe().unwrap(), &file).unwrap();
        let before = file.metadata().unwrap().len();
        let mut child = Command::new(&file)
            .env(ROLE, role)
            // All that it leaves behind goes with the directory.
            .env("TMPDIR", dir.path())
            .spawn()
            .unwrap();
        assert!(child.wait().unwrap().success());
        let heard = || std::fs::read_to_string(dir.path().join("said")).unwrap_or_default();
        eventually("an answer of the attacker", || heard().contains(said));
        let after = file.metadata().unwrap().len();
        let group = corten_runtime::Cgroup::open(&group_of(child.id())).unwrap();
        group.kill_all().unwrap();
        group.remove().unwrap();
        assert_eq!(after != before, overwritten, "{role}: {}", heard());
    }
}

/// The host's side: executes in the attacker's container until it has got hold of
/// something, and ends.
fn victim(role: &str) {
    if role == "sealed" {
        exe::seal_self().unwrap();
        assert!(exe::is_sealed());
    } else {
        assert!(!exe::is_sealed());
    }
    let shared = std::env::temp_dir();
    let container = almighty(attacker(&["overwrite", &program_name()])).mount(
        "/shared",
        "bind",
        shared.to_str().unwrap(),
        &["bind"],
    );
    let mut victim = Victim::start(&container);
    victim.wait_for_line("waiting");
    eventually("the attacker holds the executable", || {
        victim.exec(&["true"]);
        std::fs::exists(shared.join("holding")).unwrap()
    });
    // The container goes on, and is the parent's to remove.
    std::mem::forget(victim);
    std::mem::forget(container);
}

/// CVE-2019-5736, the way of an image: its program, or an exec'd one, leads to the
/// runtime's own file, directly, through a link, or as a script's interpreter.
fn own_executable_as_program() {
    let container = Container::args(&["sleep", "1000"]);
    let path = |name: &str| container.path().join(name);
    symlink("/proc/self/exe", path("link")).unwrap();
    for (name, interpreter) in [
        ("script", "/proc/self/exe"),
        ("nested", "/script"),
        ("spaced", " \t/link -x"),
    ] {
        std::fs::write(path(name), format!("#!{interpreter}\n")).unwrap();
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(path(name), mode).unwrap();
    }
    let victim = Victim::start(&container);
    for program in [
        "/proc/self/exe",
        "/proc/thread-self/exe",
        "/proc/self/task/../exe",
        "/link",
        "/script",
        "/nested",
        "/spaced",
    ] {
        let error = victim.try_exec(&victim.process(&[program])).unwrap_err();
        assert_eq!(error.exit_code(), 126, "{program}: {error}");
    }
    // By its bare name, through the search path.
    let mut process = victim.process(&["exe"]);
    process.set_env(Some(vec!["PATH=/proc/self".to_owned()]));
    let error = victim.try_exec(&process).unwrap_err();
    assert_eq!(error.exit_code(), 126, "{error}");
    victim.kill();
}
