//! Every flag of `run`: carried out, with what shows it, or refused, in words. A flag that is in
//! neither list fails the test, so none can be taken and forgotten.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::harness::{Engine, docker, script};

/// What a flag must lead to.
enum Want {
    /// The command in the container prints this.
    Prints(&'static [&'static str], &'static str),
    /// `inspect` has this at that place, and the container starts.
    Inspect(&'static str, &'static str),
    /// It is refused, with these words.
    Refused(&'static str),
    /// It is about the command line, and tested where that is.
    Elsewhere,
}
use Want::{Elsewhere, Inspect, Prints, Refused};

const SH: &str = "sh";

/// Flag, its arguments, what comes of it.
type Case = (&'static str, &'static [&'static str], Want);

fn cases() -> Vec<Case> {
    const CGROUP: &[&str] = &[SH, "-c", "cat /proc/self/cgroup"];
    vec![
        (
            "add-host",
            &["--add-host", "db:10.1.2.3"],
            Prints(&["cat", "/etc/hosts"], "10.1.2.3\tdb"),
        ),
        (
            "annotation",
            &["--annotation", "a.b=c"],
            Inspect("/HostConfig/Annotations/a.b", "\"c\""),
        ),
        ("attach", &["-a", "stdout"], Elsewhere),
        (
            "blkio-weight",
            &["--blkio-weight", "9"],
            Refused("from 10 to 1000"),
        ),
        (
            "blkio-weight-device",
            &["--blkio-weight-device", "/dev/null:100"],
            Refused("not a block device"),
        ),
        (
            "cap-add",
            &["--cap-add", "SYS_TIME"],
            Prints(&["grep", "CapEff", "/proc/self/status"], "00000000aa0425fb"),
        ),
        (
            "cap-drop",
            &["--cap-drop", "ALL"],
            Prints(&["grep", "CapEff", "/proc/self/status"], "0000000000000000"),
        ),
        (
            "cgroup-parent",
            &["--cgroup-parent", "../up"],
            Refused("invalid cgroup parent"),
        ),
        (
            "cgroupns",
            &["--cgroupns", "private"],
            Prints(CGROUP, ":/\n"),
        ),
        ("cidfile", &[], Elsewhere),
        (
            "cpu-count",
            &["--cpu-count", "1"],
            Refused("only Windows containers"),
        ),
        (
            "cpu-percent",
            &["--cpu-percent", "1"],
            Refused("only Windows containers"),
        ),
        (
            "cpu-period",
            &["--cpu-period", "50000"],
            Inspect("/HostConfig/CpuPeriod", "50000"),
        ),
        (
            "cpu-quota",
            &["--cpu-quota", "50000"],
            Inspect("/HostConfig/CpuQuota", "50000"),
        ),
        (
            "cpu-rt-period",
            &["--cpu-rt-period", "-1"],
            Refused("cannot be negative"),
        ),
        (
            "cpu-rt-runtime",
            &["--cpu-rt-runtime", "-1"],
            Refused("cannot be negative"),
        ),
        (
            "cpu-shares",
            &["-c", "300"],
            Inspect("/HostConfig/CpuShares", "300"),
        ),
        (
            "cpus",
            &["--cpus", "0.5"],
            Inspect("/HostConfig/NanoCpus", "500000000"),
        ),
        (
            "cpuset-cpus",
            &["--cpuset-cpus", "0"],
            Prints(&["grep", "Cpus_allowed_list", "/proc/self/status"], "\t0\n"),
        ),
        (
            "cpuset-mems",
            &["--cpuset-mems", "0"],
            Prints(&["grep", "Mems_allowed_list", "/proc/self/status"], "\t0\n"),
        ),
        ("depends-on", &[], Elsewhere),
        ("detach", &[], Elsewhere),
        ("detach-keys", &[], Elsewhere),
        (
            "device",
            &["--device", "/dev/null:/dev/nothing"],
            Prints(&["ls", "-l", "/dev/nothing"], "1,   3"),
        ),
        (
            "device-cgroup-rule",
            &["--device-cgroup-rule", "c 42:* rwm"],
            Inspect("/HostConfig/DeviceCgroupRules/0", "\"c 42:* rwm\""),
        ),
        (
            "device-read-bps",
            &["--device-read-bps", "/dev/null:1mb"],
            Refused("not a block device"),
        ),
        (
            "device-read-iops",
            &["--device-read-iops", "/dev/null:10"],
            Refused("not a block device"),
        ),
        (
            "device-write-bps",
            &["--device-write-bps", "/dev/null:1mb"],
            Refused("not a block device"),
        ),
        (
            "device-write-iops",
            &["--device-write-iops", "/dev/null:10"],
            Refused("not a block device"),
        ),
        (
            "disable-content-trust",
            &["--disable-content-trust=false"],
            Refused("images are not signed"),
        ),
        (
            "dns",
            &["--dns", "10.9.8.7"],
            Prints(&["cat", "/etc/resolv.conf"], "nameserver 10.9.8.7"),
        ),
        (
            "dns-opt",
            &["--dns-opt", "ndots:3"],
            Prints(&["cat", "/etc/resolv.conf"], "ndots:3"),
        ),
        (
            "dns-option",
            &["--dns-option", "ndots:3"],
            Prints(&["cat", "/etc/resolv.conf"], "ndots:3"),
        ),
        (
            "dns-search",
            &["--dns-search", "corp.test"],
            Prints(&["cat", "/etc/resolv.conf"], "search corp.test"),
        ),
        (
            "domainname",
            &["--domainname", "corp.test"],
            Prints(&["cat", "/proc/sys/kernel/domainname"], "corp.test"),
        ),
        (
            "entrypoint",
            &["--entrypoint", "echo"],
            Prints(&["said"], "said\n"),
        ),
        ("env", &["-e", "A=b"], Prints(&["env"], "A=b\n")),
        ("env-file", &["--env-file", "/nowhere"], Refused("/nowhere")),
        (
            "expose",
            &["--expose", "80"],
            Inspect("/Config/ExposedPorts", "{\"80/tcp\":{}}"),
        ),
        (
            "gpus",
            &["--gpus", "all"],
            Refused("could not select device driver"),
        ),
        (
            "group-add",
            &["--group-add", "4711"],
            Prints(&["id", "-G"], "4711"),
        ),
        (
            "health-cmd",
            &["--health-cmd", "true"],
            Inspect("/Config/Healthcheck/Test/1", "\"true\""),
        ),
        (
            "health-interval",
            &["--health-cmd", "true", "--health-interval", "9s"],
            Inspect("/Config/Healthcheck/Interval", "9000000000"),
        ),
        (
            "health-retries",
            &["--health-cmd", "true", "--health-retries", "9"],
            Inspect("/Config/Healthcheck/Retries", "9"),
        ),
        (
            "health-start-interval",
            &["--health-cmd", "true", "--health-start-interval", "9s"],
            Inspect("/Config/Healthcheck/StartInterval", "9000000000"),
        ),
        (
            "health-start-period",
            &["--health-cmd", "true", "--health-start-period", "9s"],
            Inspect("/Config/Healthcheck/StartPeriod", "9000000000"),
        ),
        (
            "health-timeout",
            &["--health-cmd", "true", "--health-timeout", "9s"],
            Inspect("/Config/Healthcheck/Timeout", "9000000000"),
        ),
        ("hostname", &["-h", "box"], Prints(&["hostname"], "box\n")),
        ("init", &[], Elsewhere),
        ("interactive", &[], Elsewhere),
        (
            "io-maxbandwidth",
            &["--io-maxbandwidth", "1"],
            Refused("only Windows containers"),
        ),
        (
            "io-maxiops",
            &["--io-maxiops", "1"],
            Refused("only Windows containers"),
        ),
        (
            "ip",
            &["--ip", "10.1.2.3"],
            Refused("user defined networks only"),
        ),
        (
            "ip6",
            &["--ip6", "2001:db8::3"],
            Refused("user defined networks only"),
        ),
        (
            "ipc",
            &["--ipc", "host"],
            Prints(&["readlink", "/proc/self/ns/ipc"], "ipc:"),
        ),
        (
            "isolation",
            &["--isolation", "hyperv"],
            Refused("invalid isolation"),
        ),
        (
            "kernel-memory",
            &["--kernel-memory", "9m"],
            Refused("does not offer it any more"),
        ),
        (
            "label",
            &["-l", "a=b"],
            Inspect("/Config/Labels/a", "\"b\""),
        ),
        (
            "label-file",
            &["--label-file", "/nowhere"],
            Refused("/nowhere"),
        ),
        (
            "link",
            &["--link", "other"],
            Refused("could not get container for other"),
        ),
        (
            "link-local-ip",
            &["--link-local-ip", "169.254.1.1"],
            Prints(&["ip", "addr"], "inet 169.254.1.1/"),
        ),
        (
            "log-driver",
            &["--log-driver", "none"],
            Inspect("/HostConfig/LogConfig/Type", "\"none\""),
        ),
        (
            "log-opt",
            &["--log-opt", "max-size=9k"],
            Inspect("/HostConfig/LogConfig/Config/max-size", "\"9k\""),
        ),
        (
            "mac-address",
            &["--mac-address", "92:d0:c6:0a:29:33"],
            Prints(&["cat", "/sys/class/net/eth0/address"], "92:d0:c6:0a:29:33"),
        ),
        (
            "memory",
            &["-m", "64m"],
            Inspect("/HostConfig/Memory", "67108864"),
        ),
        (
            "memory-reservation",
            &["--memory-reservation", "32m"],
            Inspect("/HostConfig/MemoryReservation", "33554432"),
        ),
        (
            "memory-swap",
            &["-m", "64m", "--memory-swap", "96m"],
            Inspect("/HostConfig/MemorySwap", "100663296"),
        ),
        (
            "memory-swappiness",
            &["--memory-swappiness", "101"],
            Refused("0-100"),
        ),
        (
            "mount",
            &["--mount", "type=tmpfs,dst=/m"],
            Prints(&["grep", " /m ", "/proc/mounts"], "tmpfs"),
        ),
        ("name", &[], Elsewhere),
        (
            "net",
            &["--net", "none"],
            Prints(&["ls", "/sys/class/net"], "lo\n"),
        ),
        (
            "net-alias",
            &["--net-alias", "x"],
            Refused("user-defined networks"),
        ),
        (
            "network",
            &["--network", "none"],
            Prints(&["ls", "/sys/class/net"], "lo\n"),
        ),
        (
            "network-alias",
            &["--network-alias", "x"],
            Refused("user-defined networks"),
        ),
        (
            "no-healthcheck",
            &["--no-healthcheck"],
            Inspect("/Config/Healthcheck/Test/0", "\"NONE\""),
        ),
        (
            "oom-kill-disable",
            &["-m", "64m", "--oom-kill-disable"],
            Prints(&["true"], ""),
        ),
        (
            "oom-score-adj",
            &["--oom-score-adj", "77"],
            Prints(&["cat", "/proc/self/oom_score_adj"], "77\n"),
        ),
        (
            "pid",
            &["--pid", "host"],
            Prints(&[SH, "-c", "test $$ -gt 1 && echo far"], "far\n"),
        ),
        (
            "pids-limit",
            &["--pids-limit", "77"],
            Inspect("/HostConfig/PidsLimit", "77"),
        ),
        (
            "platform",
            &["--platform", "linux/s390x"],
            Refused("linux/s390x"),
        ),
        (
            "privileged",
            &["--privileged"],
            Prints(&["ls", "/dev/kmsg"], "/dev/kmsg"),
        ),
        ("publish", &[], Elsewhere),
        (
            "publish-all",
            &["-P"],
            Inspect("/HostConfig/PublishAllPorts", "true"),
        ),
        ("pull", &["--pull", "sometimes"], Refused("invalid")),
        ("quiet", &[], Elsewhere),
        (
            "read-only",
            &["--read-only"],
            Prints(
                &[SH, "-c", "touch /x 2>&1 || true"],
                "Read-only file system",
            ),
        ),
        (
            "restart",
            &["--restart", "never"],
            Refused("invalid restart policy"),
        ),
        ("rm", &[], Elsewhere),
        (
            "runtime",
            &["--runtime", "other"],
            Refused("unknown or invalid runtime name: other"),
        ),
        (
            "security-opt",
            &["--security-opt", "no-new-privileges"],
            Prints(&["grep", "NoNewPrivs", "/proc/self/status"], "\t1\n"),
        ),
        (
            "shm-size",
            &["--shm-size", "8m"],
            Prints(&["grep", "/dev/shm", "/proc/mounts"], "size=8192k"),
        ),
        ("sig-proxy", &[], Elsewhere),
        (
            "stop-signal",
            &["--stop-signal", "SIGUSR1"],
            Inspect("/Config/StopSignal", "\"SIGUSR1\""),
        ),
        (
            "stop-timeout",
            &["--stop-timeout", "7"],
            Inspect("/Config/StopTimeout", "7"),
        ),
        (
            "storage-opt",
            &["--storage-opt", "size=1g"],
            Refused("supported only for overlay over xfs with 'pquota' mount option"),
        ),
        (
            "sysctl",
            &["--sysctl", "net.core.somaxconn=77"],
            Prints(&["cat", "/proc/sys/net/core/somaxconn"], "77\n"),
        ),
        (
            "tmpfs",
            &["--tmpfs", "/m:size=1m"],
            Prints(&["grep", " /m ", "/proc/mounts"], "size=1024k"),
        ),
        ("tty", &[], Elsewhere),
        (
            "ulimit",
            &["--ulimit", "nofile=77:78"],
            Prints(&[SH, "-c", "ulimit -n"], "77\n"),
        ),
        (
            "use-api-socket",
            &["--use-api-socket"],
            Refused("--volume instead"),
        ),
        ("user", &["-u", "7:8"], Prints(&["id", "-u"], "7\n")),
        (
            "userns",
            &["--userns", "private"],
            Refused("invalid USER mode"),
        ),
        (
            "uts",
            &["--uts", "host"],
            Prints(&["readlink", "/proc/self/ns/uts"], "uts:"),
        ),
        (
            "volume",
            &["-v", "/anonymous"],
            Prints(&["grep", " /anonymous ", "/proc/mounts"], "/anonymous"),
        ),
        (
            "volume-driver",
            &["--volume-driver", "other"],
            Refused("there is only \"local\""),
        ),
        (
            "volumes-from",
            &["--volumes-from", "none"],
            Refused("No such container: none"),
        ),
        ("workdir", &["-w", "/tmp"], Prints(&["pwd"], "/tmp\n")),
    ]
}

/// The flags that a help text lists, by their long names.
fn flags_of(help: &str) -> BTreeSet<String> {
    let flag = |line: &str| {
        let line = line.trim_start();
        let line = match line.split_once(", ") {
            Some((short, rest)) if short.len() == 2 => rest,
            _ => line,
        };
        let name = line.strip_prefix("--")?.split_whitespace().next()?;
        Some(name.to_owned())
    };
    help.lines().filter_map(flag).collect()
}

#[test]
fn every_flag_is_in_the_table() {
    let engine = Engine::new();
    let known: BTreeSet<String> = cases()
        .iter()
        .map(|(flag, _, _)| (*flag).to_owned())
        .collect();
    let ours = flags_of(&engine.ok(["run", "--help"]));
    assert!(ours.len() > 80, "{ours:?}");
    let missing: Vec<_> = ours.difference(&known).collect();
    assert!(missing.is_empty(), "flags without a case: {missing:?}");
    // And what Docker's command line has, where it is installed.
    if let Some(help) = docker(&engine, "unix:///nowhere", &["run", "--help"]) {
        let docker: BTreeSet<String> = flags_of(&help.stdout);
        let missing: Vec<_> = docker
            .iter()
            .filter(|f| *f != "help" && !known.contains(*f))
            .collect();
        assert!(
            missing.is_empty(),
            "flags of Docker's without a case: {missing:?}"
        );
    }
}

#[test]
fn flags_up_to_i_are_carried_out_or_refused() {
    try_all(cases().into_iter().filter(|(flag, _, _)| *flag < "i"));
}

#[test]
fn flags_from_i_on_are_carried_out_or_refused() {
    try_all(cases().into_iter().filter(|(flag, _, _)| *flag >= "i"));
}

fn try_all(cases: impl Iterator<Item = Case>) {
    let engine = Engine::with_alpine();
    let mut wrong = Vec::new();
    for (flag, args, want) in cases {
        let run = |before: &[&str], command: &[&str]| {
            let all = ["run"].iter().chain(before).chain(args);
            engine.run(all.chain(&["alpine"]).chain(command))
        };
        match want {
            Elsewhere => {}
            Refused(words) => {
                let done = run(&["--rm"], &["true"]);
                if done.code != 125 || !done.stderr.contains(words) {
                    wrong.push(format!("--{flag} is not refused with {words:?}: {done:?}"));
                }
            }
            Prints(command, text) => {
                let done = run(&["--rm"], command);
                if done.code != 0 || !done.stdout.contains(text) {
                    wrong.push(format!("--{flag}: {text:?} is not printed: {done:?}"));
                }
            }
            Inspect(pointer, expected) => {
                let started = run(&["--name", "looked-at"], &["true"]);
                let text = engine.ok(["inspect", "looked-at"]);
                let found: Value = serde_json::from_str(&text).unwrap();
                let found = found[0]
                    .pointer(pointer)
                    .cloned()
                    .unwrap_or_default()
                    .to_string();
                if found != expected || started.code != 0 {
                    wrong.push(format!("--{flag}: {pointer} is {found}: {started:?}"));
                }
                engine.ok(["rm", "-f", "-v", "looked-at"]);
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    engine.assert_clean();
}

#[test]
fn devices_are_those_that_cdi_describes() {
    let engine = Engine::with_alpine();
    let dir = engine.path("cdi");
    std::fs::create_dir(&dir).unwrap();
    let file = engine.path("driver.conf");
    std::fs::write(&file, "driver\n").unwrap();
    let text = format!(
        "cdiVersion: 0.6.0\nkind: nvidia.com/gpu\ncontainerEdits:\n  env: [DRIVER=here]\ndevices:\n\
         - name: \"0\"\n  containerEdits:\n    env: [GPU=0]\n    deviceNodes:\n    \
         - {{path: /dev/gpu0, hostPath: /dev/null}}\n    mounts:\n    \
         - {{hostPath: {}, containerPath: /etc/driver.conf, options: [ro]}}\n\
         - name: unknown\n  containerEdits:\n    hooks: [{{hookName: whenever, path: /x}}]\n",
        file.display()
    );
    std::fs::write(dir.join("gpu.yaml"), text).unwrap();
    let run = |args: &[&str]| {
        let mut all = vec!["run", "--rm"];
        all.extend(args);
        all.extend([
            "alpine",
            "sh",
            "-c",
            "echo $DRIVER $GPU; ls /dev/gpu0; cat /etc/driver.conf; echo x > /dev/gpu0",
        ]);
        let output = engine.command(all).env("CORTEN_CDI_DIRS", &dir).output();
        crate::harness::Done::from(output.unwrap())
    };
    for args in [
        ["--device", "nvidia.com/gpu=0"],
        ["--gpus", "1"],
        ["--gpus", "device=0"],
    ] {
        let done = run(&args);
        assert_eq!(
            (done.code, done.stdout.as_str()),
            (0, "here 0\n/dev/gpu0\ndriver\n"),
            "{done:?}"
        );
    }
    for (args, words) in [
        (["--device", "nvidia.com/gpu=7"], "is not registered"),
        (["--gpus", "2"], "\"nvidia.com/gpu=1\" is not registered"),
        (
            ["--device", "nvidia.com/gpu=unknown"],
            "its hooks of the name \"whenever\" are not supported",
        ),
    ] {
        let done = run(&args);
        assert!(
            done.code == 125 && done.stderr.contains(words),
            "{args:?}: {done:?}"
        );
    }
    engine.assert_clean();
}

/// A device with a hook for each moment, in `dir`. Each writes its state to a file there; those that
/// are called before the root is changed write into it, where `config.json` says it is.
fn device_with_hooks(dir: &std::path::Path) {
    let hook = dir.join("hook");
    let program = format!(
        "#!/usr/bin/env python3\nimport json, os, sys\nstate = json.load(sys.stdin)\n\
         config = json.load(open(state['bundle'] + '/config.json'))\n\
         if sys.argv[1] == 'createContainer':\n    \
         open(config['root']['path'] + '/from-hook', 'w').write(os.environ['WHAT'])\n\
         open('{}/' + sys.argv[1], 'w').write(state['status'])\n",
        dir.display()
    );
    script(&hook, &program);
    let hooks: String = [
        "prestart",
        "createRuntime",
        "createContainer",
        "poststart",
        "poststop",
    ]
    .map(|moment| {
        format!(
            "    - {{hookName: {moment}, path: {}, args: [hook, {moment}], env: [WHAT=linked, \
                 \"PATH=/usr/bin:/bin\"]}}\n",
            hook.display()
        )
    })
    .concat();
    let inside = "    - {hookName: startContainer, path: /bin/touch, args: [touch, /started]}\n";
    let text = format!(
        "cdiVersion: 0.6.0\nkind: test.example/hooked\ndevices:\n- name: one\n  containerEdits:\n    \
         hooks:\n{hooks}{inside}- name: failing\n  containerEdits:\n    hooks:\n    \
         - {{hookName: createRuntime, path: /bin/false}}\n    \
         - {{hookName: poststop, path: {}, args: [hook, poststop], env: [\"PATH=/usr/bin:/bin\"]}}\n",
        hook.display()
    );
    std::fs::write(dir.join("hooked.yaml"), text).unwrap();
}

const CALLED: [(&str, &str); 5] = [
    ("prestart", "created"),
    ("createRuntime", "creating"),
    ("createContainer", "creating"),
    ("poststart", "running"),
    ("poststop", "stopped"),
];

/// Each hook was called, with the state there is at its moment.
fn assert_called(dir: &std::path::Path) {
    for (moment, status) in CALLED {
        let path = dir.join(moment);
        crate::harness::until(moment, || path.exists());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), status, "{moment}");
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn hooks_of_devices_are_called() {
    let engine = Engine::with_alpine();
    let dir = engine.path("cdi");
    std::fs::create_dir(&dir).unwrap();
    device_with_hooks(&dir);
    let with = |args: &[&str]| {
        let output = engine.command(args).env("CORTEN_CDI_DIRS", &dir).output();
        crate::harness::Done::from(output.unwrap())
    };
    let device = "--device=test.example/hooked=one";
    let show = "cat /from-hook; ls /started";
    let done = with(&["run", "--rm", device, "alpine", "sh", "-c", show]);
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (0, "linked/started\n"),
        "{done:?}"
    );
    assert_called(&dir);

    // The last one is called where its supervisor was killed, but not by whoever only looks at it.
    let done = with(&["run", "-d", device, "alpine", "sleep", "1000"]);
    assert_eq!(done.code, 0, "{done:?}");
    crate::harness::until("it is started", || dir.join("poststart").exists());
    let id = done.stdout.trim();
    crate::crash::kill_9(&crate::crash::supervisor(id));
    // A process that is killed takes a moment to end.
    crate::harness::until("it has ended", || {
        let shown = engine.ok(["ps", "-a", "--format", "{{.State}}"]);
        shown.starts_with("exited")
    });
    assert!(!dir.join("poststop").exists());
    engine.ok(["rm", "-f", id]);
    assert_called(&dir);

    let dockerfile = format!("FROM alpine\nRUN {device} {show}\n");
    let context = engine.context("hooked", &[("Dockerfile", &dockerfile)]);
    let allowed = "--allow=device=test.example/hooked=one,alias=card";
    let build = ["build", "--progress=plain", "-t", "hooked", allowed];
    let done = with(&[&build[..], &[context.to_str().unwrap()]].concat());
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stderr.contains("linked/started"), "{done:?}");
    assert_called(&dir);
    let dockerfile = format!("FROM alpine\nRUN --device=card {show}; echo again\n");
    let context = engine.context("aliased", &[("Dockerfile", &dockerfile)]);
    let done = with(&[&build[..], &[context.to_str().unwrap()]].concat());
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stderr.contains("linked/started"), "{done:?}");

    let done = with(&[
        "run",
        "--device=test.example/hooked=failing",
        "alpine",
        "true",
    ]);
    assert_eq!(done.code, 125, "{done:?}");
    assert!(
        done.stderr.contains("createRuntime hook /bin/false"),
        "{done:?}"
    );
    assert!(dir.join("poststop").exists());
    engine.assert_clean();
}
