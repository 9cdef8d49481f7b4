//! What a process inside holds: capabilities, groups, keys, environment; and the system
//! calls, files and signals by which root inside would become root outside.

use std::os::fd::AsFd as _;

use corten_runtime::Stdio;
use serde_json::json;

use super::{ATTACKER, Bundle, Victim, almighty, armed, attacker, program, sys};
use crate::Case;
use crate::support::{Container, Outcome, eventually, finish};

pub const CASES: &[Case] = &[
    ("attack_leftover_capabilities", leftover_capabilities),
    ("attack_added_capabilities_leak", added_capabilities_leak),
    (
        "attack_leftover_groups_and_environment",
        leftover_groups_and_environment,
    ),
    ("attack_session_keyring", session_keyring),
    (
        "attack_session_keyring_without_quota",
        session_keyring_without_quota,
    ),
    ("attack_system_calls", system_calls),
    ("attack_release_agent", release_agent),
    ("attack_kernel_files", kernel_files),
    ("attack_terminal_injection", terminal_injection),
    (
        "attack_processes_and_sockets_of_the_host",
        processes_and_sockets_of_the_host,
    ),
];

const NONE: &str = "0000000000000000";

/// CVE-2022-24769, CVE-2022-29162: inheritable and ambient capabilities that nobody asked
/// for. A document that does not speak of capabilities gives none.
fn leftover_capabilities() {
    let script = "grep -E 'Cap(Inh|Amb|Eff|Bnd)' /proc/self/status";
    let has = |said: &str, set: &str, value: &str| {
        assert!(
            said.contains(&format!("Cap{set}:\t{value}")),
            "{set}: {said}"
        );
    };
    let container = Container::args(&["sleep", "1000"]);
    let victim = Victim::start(&container);
    for said in [
        Container::sh(script).output(),
        victim.exec(&["sh", "-c", script]).stdout,
    ] {
        has(&said, "Inh", NONE);
        has(&said, "Amb", NONE);
        has(&said, "Eff", "00000000a80425fb");
    }
    victim.kill();
    let mut container = Container::sh(script);
    let mut process = container.spec.process().clone().unwrap();
    process.set_capabilities(None);
    container.spec.set_process(Some(process));
    let said = container.output();
    for set in ["Inh", "Amb", "Eff", "Bnd"] {
        has(&said, set, NONE);
    }
}

/// CVE-2022-29162: `exec --cap` must add nothing inheritable, or a program of another user
/// with file capabilities inherits it.
fn added_capabilities_leak() {
    let container = Container::args(&["sleep", "1000"]);
    let bundle = Bundle::new(&container);
    let said = bundle.exec_in_running(
        &["--cap", "CAP_NET_ADMIN"],
        &["grep", "-E", "Cap(Inh|Amb|Eff)", "/proc/self/status"],
    );
    for line in [
        "CapInh:\t0000000000000000",
        "CapEff:\t00000000a80435fb",
        "CapAmb:\t0000000000000000",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
}

/// The caller's supplementary groups (`root` is in many) and environment stay outside.
fn leftover_groups_and_environment() {
    let groups = [4242, 4243].map(rustix::fs::Gid::from_raw);
    rustix::thread::set_thread_groups(&groups).unwrap();
    let container = Container::args(&["sleep", "1000"]);
    let victim = Victim::start(&container);
    let script = "grep Groups /proc/self/status; env";
    for said in [
        Container::sh(script).output(),
        victim.exec(&["sh", "-c", script]).stdout,
    ] {
        assert!(said.starts_with("Groups:\t \n"), "{said}");
        // What the harness sets for this very case.
        assert!(!said.contains("CORTEN_"), "{said}");
    }
    victim.kill();
}

/// The caller's session keyring (with its Kerberos tickets, disk passwords) is not the
/// container's, nor that of what is executed inside. Without a system call filter.
fn session_keyring() {
    if sys::add_key_to_new_session(c"corten-attack") == libc::ENOSYS {
        return; // a kernel without keys
    }
    // The positive control: the caller itself finds it.
    assert_eq!(sys::find_key(c"corten-attack"), 0);
    let container = armed(almighty(Container::args(&["sleep", "1000"])));
    let victim = Victim::start(&container);
    let look = [ATTACKER, "key", "corten-attack"];
    for outcome in [
        almighty(attacker(&look[1..])).run().unwrap(),
        victim.exec(&look),
    ] {
        assert_eq!(outcome.stdout, format!("{}\n", libc::ENOKEY), "{outcome:?}");
    }
    victim.kill();
    // Unless that is asked for.
    let container = almighty(attacker(&look[1..]));
    let bundle = Bundle::new(&container);
    for (flags, errno) in [(&[][..], libc::ENOKEY), (&["--no-new-keyring"], 0)] {
        let output = bundle.run(flags);
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(said, format!("{errno}\n"), "{flags:?}: {output:?}");
    }
}

/// A user who uses up the keys its containers' roots may have does not get them to run with
/// the keyring of the runtime's caller.
fn session_keyring_without_quota() {
    let uid = 1_900_000_000 + std::process::id();
    let used = sys::use_up_keys(uid);
    if used == libc::ENOSYS {
        return; // a kernel without keys
    }
    assert_eq!(used, 0);
    let map = json!([{"containerID": 0, "hostID": uid, "size": 1}]);
    let container = Container::args(&["true"]);
    for dir in [".", "tmp", "dev", "proc", "sys"] {
        std::os::unix::fs::chown(container.path().join(dir), Some(uid), Some(uid)).unwrap();
    }
    let mut namespaces = serde_json::to_value(container.spec.linux()).unwrap();
    let namespaces = namespaces["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({"type": "user"}));
    let container = container
        .set("/linux/namespaces", json!(namespaces))
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map);
    let error = container.run().unwrap_err().to_string();
    assert!(error.contains("join session keyring"), "{error}");
    assert!(error.contains("kernel.keys.maxkeys"), "{error}");
}

fn numbers(outcome: Outcome) -> Vec<(String, i32)> {
    assert!(outcome.status.success(), "{outcome:?}");
    let pair = |line: &str| {
        let (name, errno) = line.split_once(' ')?;
        Some((name.to_owned(), errno.parse().ok()?))
    };
    outcome.stdout.lines().filter_map(pair).collect()
}

/// New and foreign namespaces, mounts old and new, `open_by_handle_at` ("shocker"), BPF,
/// keys, modules, rings: refused to root with Docker's default capabilities, by the first
/// process and by what is executed.
fn system_calls() {
    let container = armed(Container::args(&["sleep", "1000"]));
    let victim = Victim::start(&container);
    for outcome in [
        attacker(&["calls"]).run().unwrap(),
        victim.exec(&[ATTACKER, "calls"]),
    ] {
        let results = numbers(outcome);
        assert!(results.len() > 20, "{results:?}");
        for (name, errno) in results {
            assert!(errno != 0, "{name} got through");
        }
    }
    victim.kill();
    // The positive control: the capabilities and no filter.
    let through = numbers(almighty(attacker(&["calls"])).run().unwrap());
    for name in ["unshare-user", "unshare-mount", "fsopen", "mount"] {
        assert!(
            through.contains(&(name.to_owned(), 0)),
            "{name}: {through:?}"
        );
    }
}

/// CVE-2022-0492: a user namespace and a cgroup v1 mount of one's own, and a program for
/// the host's kernel to run in its `release_agent`. By default there is no way to the
/// first step; without the system call filter, the last one must be refused.
fn release_agent() {
    let steps = numbers(attacker(&["release-agent"]).run().unwrap());
    assert_eq!(steps, [("unshare".to_owned(), libc::EPERM)]);
    let mut container = attacker(&["release-agent"]);
    let mut linux = container.spec.linux().clone().unwrap();
    linux.set_seccomp(None);
    container.spec.set_linux(Some(linux));
    let steps = numbers(container.run().unwrap());
    assert_eq!(steps[0], ("unshare".to_owned(), 0), "{steps:?}");
    let done = |step: &str| {
        let mut steps = steps.iter().filter(|(name, _)| name.starts_with(step));
        steps.any(|(_, errno)| *errno == 0)
    };
    assert!(!done("written"), "{steps:?}");
    // It got as far as that, wherever there is a hierarchy to be mounted. The container's
    // own group is all of it that is there.
    let cgroups = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let names = program::CONTROLLERS.iter();
    let mut names = names.map(|name| format!(":{name}:"));
    assert_eq!(
        done("mount-"),
        names.any(|name| cgroups.contains(&name)),
        "{steps:?}"
    );
    // What the container is given of its groups is read-only, release agents and all.
    let outcome = Container::sh(
        "for f in $(ls -d /sys/fs/cgroup/*/release_agent /sys/fs/cgroup/release_agent \
         /sys/fs/cgroup/*/notify_on_release /sys/fs/cgroup/cgroup.procs 2>/dev/null); do \
         (: >> $f) 2>/dev/null && echo writable $f; done; (: >> /sys/fs/cgroup/x) 2>&1",
    )
    .set("/linux/resources/pids", json!({"limit": 50}))
    .run()
    .unwrap();
    assert!(!outcome.stdout.contains("writable"), "{outcome:?}");
}

/// Files of the kernel that would give the host away: not there, empty, or read-only.
/// Nothing is written, only opened for writing.
fn kernel_files() {
    let writable = "for f in /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe \
        /proc/sysrq-trigger /proc/sys/vm/panic_on_oom /proc/sys/fs/binfmt_misc/register \
        /proc/irq/default_smp_affinity /proc/bus/pci/00/00.0 /sys/kernel/uevent_helper \
        /sys/kernel/mm/transparent_hugepage/enabled /sys/power/state /proc/1/ns/../oom_adj_x \
        /dev/mem /dev/kmem /dev/kmsg /dev/port /dev/sda /dev/loop-control /dev/fuse /dev/null; do \
        case $f in /dev/*) test -c $f || test -b $f || continue;; esac; \
        (: >> $f) 2>/dev/null && echo writable $f; done; \
        for f in /proc/kcore /proc/keys /proc/timer_list /proc/sched_debug /proc/interrupts; do \
        test $(head -c 10 $f 2>/dev/null | wc -c) = 0 || echo readable $f; done; \
        ls /sys/firmware /proc/scsi /proc/acpi 2>/dev/null; echo done";
    let container = Container::args(&["sleep", "1000"]);
    let victim = Victim::start(&container);
    for outcome in [
        Container::sh(writable).run().unwrap(),
        victim.exec(&["sh", "-c", writable]),
    ] {
        // `ls` names the directories; whatever else it says is in them.
        let said: Vec<&str> = outcome.stdout.lines().collect();
        let rest = said
            .iter()
            .filter(|line| !line.is_empty() && !line.ends_with(':'));
        let rest: Vec<_> = rest.collect();
        // A device it has is the positive control.
        assert_eq!(rest, [&"writable /dev/null", &"done"], "{outcome:?}");
    }
    victim.kill();
}

/// `TIOCSTI`: typing into the caller's terminal from inside. The terminal is not the
/// process's controlling one, and it cannot make it that.
fn terminal_injection() {
    let master =
        rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY)
            .unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).unwrap();
    // The positive control: the caller itself may.
    assert_eq!(sys::type_into(slave.as_fd(), b'x'), 0);
    // It is the controlling terminal of a session of the host's.
    let mut owner = sys::own_terminal(slave.as_fd());
    let (stdio, [stdin, stdout, stderr]) = crate::support::pipes();
    drop(stdin);
    let Stdio::Pipes {
        stdout: out,
        stderr: err,
        ..
    } = stdio
    else {
        unreachable!()
    };
    let stdio = Stdio::Pipes {
        stdin: slave,
        stdout: out,
        stderr: err,
    };
    let container = attacker(&["type"]);
    let running = container.create(stdio).unwrap().start().unwrap();
    let outcome = finish(&running.pidfd, stdout, stderr);
    running.cgroup.remove().unwrap();
    owner.kill().unwrap();
    owner.wait().unwrap();
    let results = numbers(outcome);
    assert_eq!(results.len(), 3, "{results:?}");
    assert!(results.iter().all(|(_, errno)| *errno != 0), "{results:?}");
}

/// Processes of the host cannot be signalled or seen; its abstract sockets not reached.
fn processes_and_sockets_of_the_host() {
    let name = format!("corten-attack-{}", std::process::id());
    let address =
        <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(
            &name,
        );
    let address: std::os::unix::net::SocketAddr = address.unwrap();
    let _listener = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
    let pid = std::process::id();
    let script = format!(
        "kill -0 {pid} && echo signalled; ls -d /proc/{pid} && echo seen; {ATTACKER} connect {name}"
    );
    let container = armed(Container::args(&["sleep", "1000"]));
    let victim = Victim::start(&container);
    let refused = format!("{}\n", libc::ECONNREFUSED);
    for outcome in [
        armed(Container::sh(&script)).run().unwrap(),
        victim.exec(&["sh", "-c", &script]),
    ] {
        assert_eq!(outcome.stdout, refused, "{outcome:?}");
    }
    victim.kill();
    // The positive control: a container in the host's network namespace gets there.
    let mut container = attacker(&["connect", &name]);
    container.network = false;
    assert_eq!(container.output(), "0\n");
    eventually("nothing is left", || !super::group_exists(&container));
}
