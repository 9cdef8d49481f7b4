//! The runtime-spec document of a container, made from its Docker configuration.
//!
//! Pure: everything that must be looked up (users, joined processes, where volumes are)
//! comes in as values. Starts from the runtime's statement of Docker's defaults and
//! changes only what the configuration asks for. Bind sources are returned beside the
//! document, to be opened by the caller and handed over as descriptors: the paths in the
//! document are for people.

mod mounts;
mod process;
mod seccomp;

use std::path::PathBuf;

use bollard_stubs::models::{ContainerConfig, HostConfig};
use corten_oci::runtime_spec::{
    Capabilities, Linux, LinuxDeviceCgroup, LinuxNamespace, LinuxNamespaceType, LinuxResources,
    Process, Root, Spec,
};
use corten_runtime::defaults;

use crate::error::EngineError;
use crate::parse::modes::{Modes, NetworkMode, Sharing};
use crate::parse::mounts::MountEntry;
use crate::parse::remap::Remap;
use crate::parse::security::{self, Seccomp, SecurityOptions};
use crate::parse::users::Identity;
use crate::parse::{bad, devices, limits};

pub(crate) use mounts::{BindSource, user_mount};
pub(crate) use process::{arguments, exec_process};

type Result<T> = std::result::Result<T, EngineError>;

/// What the document is made from.
#[derive(Debug)]
pub(crate) struct Input<'a> {
    pub(crate) config: &'a ContainerConfig,
    pub(crate) host: &'a HostConfig,
    pub(crate) mounts: &'a [MountEntry],
    pub(crate) identity: &'a Identity,
    /// Variables of the containers it is linked to.
    pub(crate) linked: &'a [String],
    /// Generated files to be mounted over the image's.
    pub(crate) files: &'a Files,
    /// Who its users are on the host, where they are others, and the namespace that says so.
    pub(crate) users: Option<(&'a Remap, PathBuf)>,
    /// The first process of the container whose IPC namespace is joined.
    pub(crate) ipc_of: Option<i32>,
    /// The first process of the container whose PID namespace is joined.
    pub(crate) pid_of: Option<i32>,
    /// How many processors this machine has.
    pub(crate) cpus: i64,
    /// How many capabilities this kernel has.
    pub(crate) capabilities: usize,
}

/// Where the files generated for a container are; `None`: the image's own is used.
#[derive(Debug, Clone, Default)]
pub(crate) struct Files {
    pub(crate) hostname: Option<PathBuf>,
    pub(crate) hosts: Option<PathBuf>,
    pub(crate) resolv_conf: Option<PathBuf>,
    /// The init program, where it is to be the first process.
    pub(crate) init: Option<PathBuf>,
}

/// The document, and what its bind mounts are bound to by index into its mounts.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) spec: Spec,
    pub(crate) binds: Vec<(usize, BindSource)>,
}

/// Makes the document.
pub(crate) fn build(input: &Input<'_>) -> Result<Output> {
    let modes = Modes::read(input.host)?;
    let privileged = input.host.privileged.unwrap_or(false);
    let options = security::options(input.host.security_opt.as_deref().unwrap_or_default())?;
    let capabilities = capability_set(input.host, input.capabilities)?;
    let (mounts, binds) = mounts::build(input, &modes, privileged);

    let mut spec = defaults::spec(arguments(input.config)?);
    let mut root = Root::default();
    root.set_path(PathBuf::from("rootfs"))
        .set_readonly(Some(input.host.readonly_rootfs.unwrap_or(false)));
    spec.set_root(Some(root));
    spec.set_mounts(Some(mounts));
    if !modes.host_uts {
        spec.set_hostname(input.config.hostname.clone());
        spec.set_domainname(input.config.domainname.clone().filter(|d| !d.is_empty()));
    }
    let annotations = input.host.annotations.clone().unwrap_or_default();
    spec.set_annotations((!annotations.is_empty()).then_some(annotations));
    spec.set_process(Some(process::first(input, &capabilities, &options)?));
    spec.set_linux(Some(linux(
        input,
        &modes,
        &options,
        &capabilities,
        privileged,
    )?));
    Ok(Output { spec, binds })
}

/// The container's first process alone, for others beside it.
pub(crate) fn first_process(
    config: &ContainerConfig,
    host: &HostConfig,
    identity: &Identity,
    known_capabilities: usize,
) -> Result<Process> {
    let options = security::options(host.security_opt.as_deref().unwrap_or_default())?;
    let capabilities = capability_set(host, known_capabilities)?;
    let input = Input {
        config,
        host,
        mounts: &[],
        identity,
        linked: &[],
        files: &Files::default(),
        users: None,
        ipc_of: None,
        pid_of: None,
        cpus: 0,
        capabilities: known_capabilities,
    };
    process::first(&input, &capabilities, &options)
}

/// The capabilities that `CapAdd`, `CapDrop` and `Privileged` leave.
fn capability_set(host: &HostConfig, known: usize) -> Result<Capabilities> {
    let base: Vec<String> = sorted_names(&defaults::capabilities());
    let names = security::capabilities(
        &base,
        host.cap_add.as_deref().unwrap_or_default(),
        host.cap_drop.as_deref().unwrap_or_default(),
        host.privileged.unwrap_or(false),
        known,
    )?;
    names
        .iter()
        .map(|name| {
            serde_json::from_value(serde_json::Value::String(name.clone()))
                .map_err(|_| bad(format!("unknown capability: \"{name}\"")))
        })
        .collect()
}

fn sorted_names(capabilities: &Capabilities) -> Vec<String> {
    let mut names: Vec<String> = capabilities.iter().map(|c| format!("CAP_{c}")).collect();
    names.sort_unstable();
    names
}

fn linux(
    input: &Input<'_>,
    modes: &Modes,
    options: &SecurityOptions,
    capabilities: &Capabilities,
    privileged: bool,
) -> Result<Linux> {
    let mut linux = Linux::default();
    linux.set_namespaces(Some(namespaces(input, modes)));
    if let Some((remap, _)) = &input.users {
        linux
            .set_uid_mappings(Some(remap.uids.clone()))
            .set_gid_mappings(Some(remap.gids.clone()));
    }
    let resources = resources(input, privileged, &mut linux)?;
    linux.set_resources(Some(resources));
    let users = input.users.as_ref().map(|(remap, _)| *remap);
    linux.set_sysctl(sysctls(input.host, modes, users)?);
    let open = privileged || options.unmask;
    let paths = |asked: &Option<Vec<String>>, default: fn() -> Vec<String>| match asked {
        Some(list) => Some(list.clone()),
        None if open => None,
        None => Some(default()),
    };
    linux.set_masked_paths(paths(&input.host.masked_paths, defaults::masked_paths));
    linux.set_readonly_paths(paths(&input.host.readonly_paths, defaults::readonly_paths));
    linux.set_seccomp(match &options.seccomp {
        _ if privileged => None,
        Seccomp::Unconfined => None,
        Seccomp::Default => Some(defaults::seccomp(capabilities)),
        Seccomp::Profile(json) => Some(seccomp::profile(json, capabilities)?),
    });
    Ok(linux)
}

fn namespaces(input: &Input<'_>, modes: &Modes) -> Vec<LinuxNamespace> {
    use LinuxNamespaceType as N;
    let mut list = defaults::namespaces();
    list.retain(|n| match n.typ() {
        N::Network => modes.network != NetworkMode::Host,
        N::Uts => !modes.host_uts,
        N::Pid => modes.pid != Sharing::Host,
        N::Ipc => modes.ipc != Sharing::Host,
        N::Cgroup => !modes.host_cgroup,
        _ => true,
    });
    for namespace in &mut list {
        let joined = match namespace.typ() {
            N::Ipc => input.ipc_of.map(|pid| format!("/proc/{pid}/ns/ipc")),
            N::Pid => input.pid_of.map(|pid| format!("/proc/{pid}/ns/pid")),
            _ => None,
        };
        namespace.set_path(joined.map(PathBuf::from));
    }
    if let Some((_, path)) = &input.users {
        let mut users = LinuxNamespace::default();
        users.set_typ(N::User).set_path(Some(path.clone()));
        list.push(users);
    }
    list
}

fn resources(input: &Input<'_>, privileged: bool, linux: &mut Linux) -> Result<LinuxResources> {
    let mut resources = limits::resources(input.host, input.cpus)?;
    let mut rules = defaults::devices();
    if privileged {
        let mut everything = LinuxDeviceCgroup::default();
        everything
            .set_allow(true)
            .set_access(Some("rwm".to_owned()));
        rules = vec![everything];
        linux.set_devices(Some(devices::all()));
    } else {
        let mapped = devices::mapped(input.host.devices.as_deref().unwrap_or_default())?;
        rules.extend(mapped.rules);
        linux.set_devices((!mapped.nodes.is_empty()).then_some(mapped.nodes));
        rules.extend(devices::cgroup_rules(
            input
                .host
                .device_cgroup_rules
                .as_deref()
                .unwrap_or_default(),
        )?);
    }
    resources.set_devices(Some(rules));
    Ok(resources)
}

/// The kernel parameters asked for, each checked to be the container's own. Without any
/// about them, programs may bind ports below 1024 and ping without privileges, as Docker
/// sets it for containers with a network of their own.
fn sysctls(
    host: &HostConfig,
    modes: &Modes,
    users: Option<&Remap>,
) -> Result<Option<std::collections::HashMap<String, String>>> {
    let own_net = !matches!(modes.network, NetworkMode::Host | NetworkMode::Container(_));
    let own_ipc = modes.ipc == Sharing::Own;
    let mut map = host.sysctls.clone().unwrap_or_default();
    for key in map.keys() {
        limits::sysctl(key, own_ipc, own_net)?;
    }
    if own_net {
        map.entry("net.ipv4.ip_unprivileged_port_start".to_owned())
            .or_insert_with(|| "0".to_owned());
        // Groups that the container does not have are refused.
        let last = users
            .and_then(|users| users.gids.first())
            .map_or(0x7fff_ffff, |first| first.size() - 1);
        map.entry("net.ipv4.ping_group_range".to_owned())
            .or_insert_with(|| format!("0 {last}"));
    }
    Ok((!map.is_empty()).then_some(map))
}

/// Checks everything about a configuration that can be checked without its image, so that
/// a create request fails rather than a later start.
pub(crate) fn check(config: &ContainerConfig, host: &HostConfig, cpus: i64) -> Result<()> {
    let modes = Modes::read(host)?;
    security::options(host.security_opt.as_deref().unwrap_or_default()).and_then(|options| {
        match &options.seccomp {
            Seccomp::Profile(json) => seccomp::profile(json, &defaults::capabilities()).map(|_| ()),
            _ => Ok(()),
        }
    })?;
    capability_set(host, security::ALL_CAPABILITIES.len())?;
    limits::resources(host, cpus)?;
    limits::ulimits(host.ulimits.as_deref().unwrap_or_default())?;
    sysctls(host, &modes, None)?;
    devices::cgroup_rules(host.device_cgroup_rules.as_deref().unwrap_or_default())?;
    if !host.privileged.unwrap_or(false) {
        devices::mapped(host.devices.as_deref().unwrap_or_default())?;
    }
    process::oom_score(host)?;
    arguments(config).map(|_| ())
}

#[cfg(test)]
mod tests;
