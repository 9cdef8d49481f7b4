//! The flags that `run` and `create` share: everything that describes a container.

use crate::flags::Flag;
use crate::opts::{self, blkio, check, device, env, hosts, mount, network, security, ulimit};

fn here() -> std::path::PathBuf {
    std::env::current_dir().unwrap_or_else(|_| "/".into())
}

fn check_mount(text: &str) -> Result<(), String> {
    check(mount::parse(text, &here()))
}

fn check_attach(text: &str) -> Result<(), String> {
    match text.to_ascii_lowercase().as_str() {
        "stdin" | "stdout" | "stderr" => Ok(()),
        _ => Err("valid streams are STDIN, STDOUT and STDERR".into()),
    }
}

pub(crate) fn check_cpus(text: &str) -> Result<(), String> {
    check(super::create::nano_cpus(text))
}

pub(crate) fn check_u16(text: &str) -> Result<(), String> {
    text.parse::<u16>()
        .map(drop)
        .map_err(|_| format!("strconv.ParseUint: parsing {text:?}: invalid syntax"))
}

/// Container flags, by name.
pub(crate) const CONTAINER: &[Flag] = &[
    Flag::list("add-host", "Add a line to /etc/hosts (host:ip)")
        .typed("list", |t| check(hosts::add_host(t))),
    Flag::list("annotation", "Annotation for the OCI runtime (key=value)")
        .typed("map", opts::env::check),
    Flag::list("attach", "Attach to STDIN, STDOUT or STDERR")
        .short('a')
        .typed("list", check_attach),
    Flag::text(
        "blkio-weight",
        "Relative weight of block I/O, 10 to 1000, or 0 for none",
    )
    .typed("uint16", check_u16),
    Flag::list(
        "blkio-weight-device",
        "Relative weight of block I/O on one device",
    )
    .typed("list", |t| check(blkio::weight(t))),
    Flag::list("cap-add", "Add a Linux capability"),
    Flag::list("cap-drop", "Drop a Linux capability"),
    Flag::text("cgroup-parent", "Parent of the container's cgroup"),
    Flag::text("cgroupns", "Cgroup namespace: 'host' or 'private'"),
    Flag::text("cidfile", "Write the container's id to this file"),
    Flag::int("cpu-count", "Number of CPUs (Windows only)").hidden(),
    Flag::int("cpu-percent", "Percentage of the CPU (Windows only)").hidden(),
    Flag::int("cpu-period", "Period of the CFS quota, in microseconds"),
    Flag::int("cpu-quota", "CFS quota within a period, in microseconds"),
    Flag::int(
        "cpu-rt-period",
        "Period of the real-time quota, in microseconds",
    ),
    Flag::int(
        "cpu-rt-runtime",
        "Real-time quota within a period, in microseconds",
    ),
    Flag::int("cpu-shares", "Relative weight of the CPU").short('c'),
    Flag::text("cpus", "How many CPUs the container may use (1.5)").typed("decimal", check_cpus),
    Flag::text("cpuset-cpus", "The CPUs to run on (0-3, 0,1)"),
    Flag::text("cpuset-mems", "The memory nodes to use (0-3, 0,1)"),
    Flag::list(
        "depends-on",
        "Start and wait for this container first (name[:started|healthy|completed])",
    ),
    Flag::list("device", "Give the container a device of the host"),
    Flag::list("device-cgroup-rule", "Allow devices by rule (c 1:3 rwm)")
        .typed("list", device::check_rule),
    Flag::list(
        "device-read-bps",
        "Limit reading from a device, in bytes per second",
    )
    .typed("list", |t| check(blkio::bps(t))),
    Flag::list(
        "device-read-iops",
        "Limit reading from a device, in operations per second",
    )
    .typed("list", |t| check(blkio::iops(t))),
    Flag::list(
        "device-write-bps",
        "Limit writing to a device, in bytes per second",
    )
    .typed("list", |t| check(blkio::bps(t))),
    Flag::list(
        "device-write-iops",
        "Limit writing to a device, in operations per second",
    )
    .typed("list", |t| check(blkio::iops(t))),
    Flag::switch(
        "disable-content-trust",
        "Do not verify the image's signature",
    )
    .default("true")
    .hidden(),
    Flag::list("dns", "Use this name server").typed("list", |t| check(hosts::address(t))),
    Flag::list("dns-opt", "Set a resolver option").hidden(),
    Flag::list("dns-option", "Set a resolver option"),
    Flag::list("dns-search", "Search names in this domain")
        .typed("list", |t| check(hosts::search_domain(t))),
    Flag::text("domainname", "NIS domain name of the container"),
    Flag::text("entrypoint", "Use this instead of the image's ENTRYPOINT"),
    Flag::list("env", "Set an environment variable")
        .short('e')
        .typed("list", env::check),
    Flag::list("env-file", "Set the environment variables of a file"),
    Flag::list("expose", "Expose a port or a range of ports"),
    Flag::text("gpus", "Give the container GPUs ('all' for all of them)")
        .typed("gpu-request", |t| check(device::gpus(t))),
    Flag::list("group-add", "Join another group"),
    Flag::text("health-cmd", "Command that checks the container's health"),
    Flag::duration("health-interval", "Time between checks (ms|s|m|h)"),
    Flag::int("health-retries", "Failures in a row that mean unhealthy"),
    Flag::duration(
        "health-start-interval",
        "Time between checks while starting (ms|s|m|h)",
    ),
    Flag::duration(
        "health-start-period",
        "Time to start in which failures do not count (ms|s|m|h)",
    ),
    Flag::duration(
        "health-timeout",
        "Longest time one check may take (ms|s|m|h)",
    ),
    Flag::text("hostname", "Host name of the container").short('h'),
    Flag::switch(
        "init",
        "Run an init that passes signals on and reaps processes",
    ),
    Flag::switch("interactive", "Keep standard input open").short('i'),
    Flag::bytes(
        "io-maxbandwidth",
        "I/O bandwidth of the system drive (Windows only)",
    )
    .hidden(),
    Flag::int(
        "io-maxiops",
        "I/O operations of the system drive (Windows only)",
    )
    .hidden(),
    Flag::text("ip", "IPv4 address of the container").typed("string", |t| check(hosts::address(t))),
    Flag::text("ip6", "IPv6 address of the container")
        .typed("string", |t| check(hosts::address(t))),
    Flag::text(
        "ipc",
        "IPC namespace: 'private', 'shareable', 'host', 'none' or 'container:NAME'",
    ),
    Flag::text("isolation", "Isolation technology (Windows only)").hidden(),
    Flag::bytes("kernel-memory", "Limit of kernel memory").hidden(),
    Flag::list("label", "Label the container")
        .short('l')
        .typed("list", env::check_label),
    Flag::list("label-file", "Set the labels of a file"),
    Flag::list("link", "Link to another container"),
    Flag::list("link-local-ip", "Link-local address of the container")
        .typed("list", |t| check(hosts::address(t))),
    Flag::text("log-driver", "What keeps the container's output"),
    Flag::list("log-opt", "Option of the log driver"),
    Flag::text(
        "mac-address",
        "MAC address of the container (92:d0:c6:0a:29:33)",
    ),
    Flag::positive_bytes("memory", "Limit of memory").short('m'),
    Flag::positive_bytes("memory-reservation", "Soft limit of memory"),
    Flag::bytes(
        "memory-swap",
        "Limit of memory and swap together; -1 for unlimited swap",
    ),
    Flag::int("memory-swappiness", "How readily to swap, 0 to 100").default("-1"),
    Flag::list(
        "mount",
        "Mount a volume, a directory or a tmpfs (type=…,src=…,dst=…)",
    )
    .typed("mount", check_mount),
    Flag::text("name", "Name of the container"),
    Flag::list("net", "Connect to a network")
        .hidden()
        .typed("network", |t| check(network::parse(t))),
    Flag::list("net-alias", "Name in the network").hidden(),
    Flag::list("network", "Connect to a network").typed("network", |t| check(network::parse(t))),
    Flag::list(
        "network-alias",
        "Another name of the container in its network",
    ),
    Flag::switch(
        "no-healthcheck",
        "Run no health check, whatever the image says",
    ),
    Flag::switch(
        "oom-kill-disable",
        "Do not kill the container when memory runs out",
    ),
    Flag::int(
        "oom-score-adj",
        "How readily the host kills the container, -1000 to 1000",
    ),
    Flag::text("pid", "PID namespace: 'host' or 'container:NAME'"),
    Flag::int("pids-limit", "Most processes at a time; -1 for no limit"),
    Flag::text("platform", "Platform of the image (linux/arm64)"),
    Flag::switch("privileged", "Give the container every privilege"),
    Flag::list(
        "publish",
        "Publish a port of the container on the host ([ip:][port:]port[/proto])",
    )
    .short('p'),
    Flag::switch(
        "publish-all",
        "Publish every exposed port on a free port of the host",
    )
    .short('P'),
    Flag::text(
        "pull",
        "Pull the image first: 'always', 'missing' or 'never'",
    )
    .default("missing"),
    Flag::switch("quiet", "Do not show how the image is pulled").short('q'),
    Flag::switch("read-only", "Mount the root file system read-only"),
    Flag::text(
        "restart",
        "When to start again: 'no', 'on-failure[:N]', 'always', 'unless-stopped'",
    )
    .default("no"),
    Flag::switch(
        "rm",
        "Remove the container and its anonymous volumes when it ends",
    ),
    Flag::text("runtime", "OCI runtime to use"),
    Flag::list(
        "security-opt",
        "Security option (seccomp=FILE, no-new-privileges, …)",
    ),
    Flag::positive_bytes("shm-size", "Size of /dev/shm"),
    Flag::text("stop-signal", "Signal that stops the container"),
    Flag::int(
        "stop-timeout",
        "Seconds to wait before the container is killed",
    ),
    Flag::list("storage-opt", "Option of the storage driver"),
    Flag::list("sysctl", "Set a kernel parameter of the container")
        .typed("map", security::check_sysctl),
    Flag::list("tmpfs", "Mount a tmpfs (dir[:options])"),
    Flag::switch("tty", "Give the container a terminal").short('t'),
    Flag::list("ulimit", "Set a resource limit (nofile=1024:2048)")
        .typed("ulimit", |t| check(ulimit::parse(t))),
    Flag::switch("use-api-socket", "Give the container the API's socket").hidden(),
    Flag::text("user", "User and group, by name or number (user[:group])").short('u'),
    Flag::text("userns", "User namespace: 'host'"),
    Flag::text("uts", "UTS namespace: 'host'"),
    Flag::list(
        "volume",
        "Mount a volume or a directory ([source:]dir[:options])",
    )
    .short('v'),
    Flag::text("volume-driver", "Volume driver of the container's volumes"),
    Flag::list("volumes-from", "Mount the volumes of another container"),
    Flag::text("workdir", "Working directory in the container").short('w'),
];

/// The flags of `run` alone.
pub(crate) const RUN: &[Flag] = &[
    Flag::switch(
        "detach",
        "Leave the container in the background and print its id",
    )
    .short('d'),
    Flag::text("detach-keys", "Keys that detach from the container"),
    Flag::switch("sig-proxy", "Pass signals on to the container").default("true"),
];
