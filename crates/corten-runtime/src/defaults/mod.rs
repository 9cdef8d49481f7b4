//! Docker's defaults in one place: capabilities, masked and read-only paths, devices,
//! mounts, namespaces, seccomp. Sources: `daemon/pkg/oci/defaults.go` and
//! `daemon/pkg/oci/caps/defaults.go` of github.com/moby/moby, `seccomp/default.json` of
//! github.com/moby/profiles, "Default Devices" of the runtime-spec.

mod seccomp;

use std::path::{Path, PathBuf};

use corten_oci::runtime_spec::{
    Capabilities, Capability, Linux, LinuxCapabilities, LinuxDeviceCgroup, LinuxDeviceType,
    LinuxNamespace, LinuxNamespaceType, LinuxResources, Mount, Process, Root, Spec, User,
};

pub use seccomp::seccomp;

/// `$PATH` of a process whose image sets none.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Size of `/dev/shm` in bytes.
pub const SHM_SIZE: u64 = 64 * 1024 * 1024;

/// The capabilities of an unprivileged container's root.
pub fn capabilities() -> Capabilities {
    use Capability as C;
    [
        C::Chown,
        C::DacOverride,
        C::Fsetid,
        C::Fowner,
        C::Mknod,
        C::NetRaw,
        C::Setgid,
        C::Setuid,
        C::Setfcap,
        C::Setpcap,
        C::NetBindService,
        C::SysChroot,
        C::Kill,
        C::AuditWrite,
    ]
    .into_iter()
    .collect()
}

/// Every capability the runtime-spec knows: `--privileged`.
pub fn all_capabilities() -> Capabilities {
    crate::caps::ALL
        .iter()
        .map(|(capability, _)| *capability)
        .collect()
}

/// `capabilities` as the five sets Docker gives: bounding, permitted and effective;
/// nothing inheritable or ambient (CVE-2022-24769).
pub fn capability_sets(capabilities: &Capabilities) -> LinuxCapabilities {
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(capabilities.clone()))
        .set_permitted(Some(capabilities.clone()))
        .set_effective(Some(capabilities.clone()))
        .set_inheritable(None)
        .set_ambient(None);
    sets
}

/// Paths hidden from a container.
pub fn masked_paths() -> Vec<String> {
    let mut paths: Vec<String> = [
        "/proc/acpi",
        "/proc/asound",
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/sys/devices/virtual/powercap",
        "/sys/firmware",
    ]
    .map(str::to_owned)
    .to_vec();
    // Side channel GHSA-6fw5-f8r9-fgfm: one directory per processor, where there are any.
    let throttle = |cpu: usize| format!("/sys/devices/system/cpu/cpu{cpu}/thermal_throttle");
    let mut cpu = 0;
    while Path::new(&throttle(cpu)).exists() {
        paths.push(throttle(cpu));
        cpu += 1;
    }
    paths
}

/// Paths a container sees read-only.
pub fn readonly_paths() -> Vec<String> {
    [
        "/proc/bus",
        "/proc/fs",
        "/proc/irq",
        "/proc/sys",
        "/proc/sysrq-trigger",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Device rules of a container without `--device`: nothing, then zero, null, urandom,
/// random, tty and console. The runtime itself adds what the spec prescribes (creating
/// nodes, full, the pseudo-terminals).
pub fn devices() -> Vec<LinuxDeviceCgroup> {
    let mut deny = LinuxDeviceCgroup::default();
    deny.set_allow(false).set_access(Some("rwm".into()));
    let mut rules = vec![deny];
    for (major, minor) in [(1, 5), (1, 3), (1, 9), (1, 8), (5, 0), (5, 1)] {
        rules.push(device_rule(true, LinuxDeviceType::C, major, minor));
    }
    rules.push(device_rule(false, LinuxDeviceType::C, 10, 229));
    rules
}

fn device_rule(allow: bool, typ: LinuxDeviceType, major: i64, minor: i64) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow)
        .set_typ(Some(typ))
        .set_major(Some(major))
        .set_minor(Some(minor))
        .set_access(Some("rwm".into()));
    rule
}

/// The mounts every container has, in order; `/dev/shm` of [`SHM_SIZE`].
pub fn mounts() -> Vec<Mount> {
    let shm_size = format!("size={SHM_SIZE}");
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", "ro"],
        ),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["ro", "nosuid", "noexec", "nodev"],
        ),
        mount(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", &shm_size],
        ),
    ]
}

/// A mount entry.
pub fn mount(destination: &str, typ: &str, source: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(PathBuf::from(destination))
        .set_typ(Some(typ.to_owned()))
        .set_source(Some(PathBuf::from(source)))
        .set_options(Some(
            options.iter().map(|&option| option.to_owned()).collect(),
        ));
    mount
}

/// New mount, network, uts, pid, ipc and cgroup namespaces.
pub fn namespaces() -> Vec<LinuxNamespace> {
    [
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Network,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Cgroup,
    ]
    .map(|typ| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(typ);
        namespace
    })
    .to_vec()
}

/// A whole spec with all of the above, running `args` as root in `/`.
pub fn spec(args: Vec<String>) -> Spec {
    let capabilities = capabilities();
    let mut process = Process::default();
    process
        .set_args(Some(args))
        .set_env(Some(vec![format!("PATH={PATH}")]))
        .set_cwd(PathBuf::from("/"))
        .set_user(User::default())
        .set_terminal(Some(false))
        .set_no_new_privileges(Some(false))
        .set_rlimits(None)
        .set_capabilities(Some(capability_sets(&capabilities)));
    let mut resources = LinuxResources::default();
    resources.set_devices(Some(devices()));
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces()))
        .set_resources(Some(resources))
        .set_seccomp(Some(seccomp(&capabilities)))
        .set_masked_paths(Some(masked_paths()))
        .set_readonly_paths(Some(readonly_paths()));
    let mut root = Root::default();
    root.set_path(PathBuf::from("rootfs"))
        .set_readonly(Some(false));
    let mut spec = Spec::default();
    spec.set_version("1.2.0".to_owned())
        .set_process(Some(process))
        .set_root(Some(root))
        .set_hostname(None)
        .set_mounts(Some(mounts()))
        .set_linux(Some(linux));
    spec
}
