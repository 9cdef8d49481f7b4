//! From the runtime-spec's resources to what is written into which file: pure functions,
//! one per generation of control groups ([`legacy`], [`unified`]), and carrying the writes
//! out ([`apply`]). What can be said without them is said first ([`check`]). -1 means
//! unlimited; zero means "not set" wherever Docker and runc read it so.

mod apply;
mod check;
mod legacy;
#[cfg(test)]
mod tests;
mod unified;

use corten_oci::runtime_spec::{LinuxBlockIo, LinuxResources, LinuxThrottleDevice};

use super::devices::Filter;
use super::hosts::{Hosts, LegacyMount};
use crate::error::RuntimeError;
pub(super) use apply::{Undo, write_all};
pub(super) use check::{check, warn};
pub(super) use legacy::legacy_writes;
pub(super) use unified::{Current, check_usage, checks_usage, swap_max, unified_writes, weight};

/// One value for one controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) controller: String,
    /// The v1 controller that takes a value for v2 on a hybrid host; empty for an entry of
    /// the `unified` map, which means v2 and nothing else.
    pub(super) legacy: &'static str,
    /// File and value; where kernels differ, the first file that exists is taken.
    pub(super) choices: Vec<(String, String)>,
    pub(super) missing: Missing,
}

/// What it means that the kernel has no such file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// The limit cannot be had.
    Fail,
    /// Nothing: what it limits does not exist then.
    Moot,
    /// It is advice, or obsolete: say so and go on.
    Warn,
}

impl Write {
    fn new(controller: &str, file: impl Into<String>, value: impl ToString) -> Self {
        Self {
            controller: controller.to_owned(),
            legacy: "",
            choices: vec![(file.into(), value.to_string())],
            missing: Missing::Fail,
        }
    }

    fn or(mut self, file: &str, value: impl ToString) -> Self {
        self.choices.push((file.to_owned(), value.to_string()));
        self
    }

    fn if_missing(mut self, missing: Missing) -> Self {
        self.missing = missing;
        self
    }

    fn on_hybrid(mut self, legacy: &'static str) -> Self {
        self.legacy = legacy;
        self
    }
}

/// The v1 hierarchies a container with these resources has to be in, the one of a device
/// filter included if asked for.
pub(super) fn legacy_controllers<'a>(
    resources: &LinuxResources,
    hosts: &'a Hosts,
    filter: Option<&Filter>,
) -> Result<Vec<&'a LegacyMount>, RuntimeError> {
    let writes = legacy_writes(resources)?;
    let mut controllers: Vec<&str> = Vec::new();
    // That the OOM killer works is so without a group.
    let asks = |write: &&Write| {
        write
            .choices
            .iter()
            .all(|(file, value)| (file.as_str(), value.as_str()) != ("memory.oom_control", "0"))
    };
    let asking = writes.iter().filter(asks);
    controllers.extend(asking.map(|write| write.controller.as_str()));
    if filter.is_some_and(|filter| legacy_filter(filter, hosts)) {
        controllers.push("devices");
    }
    if hosts.unified().is_none() {
        if let Some(filter) = filter.filter(|filter| !filter.allows_everything()) {
            check_legacy_filter(filter)?;
            controllers.push("devices");
        }
        if resources
            .unified()
            .as_ref()
            .is_some_and(|map| !map.is_empty())
        {
            let reason = "needs cgroup v2, which is not mounted on this host";
            return Err(RuntimeError::spec("linux.resources.unified", reason));
        }
        // Nothing else could kill, freeze or list the processes.
        controllers.push("freezer");
        // Nor count their CPU time.
        if hosts.controller("cpuacct").is_some() {
            controllers.push("cpuacct");
        }
    }
    let mut mounts: Vec<&LegacyMount> = Vec::new();
    for controller in controllers {
        match hosts.controller(controller) {
            Some(mount) if mounts.iter().any(|known| known.dir == mount.dir) => {}
            Some(mount) => mounts.push(mount),
            None if hosts.unified().is_some() => {} // v2 takes it, or says that it cannot
            None => {
                let controller = controller.to_owned();
                return Err(RuntimeError::NoController { controller });
            }
        }
    }
    Ok(mounts)
}

/// The v1 controller would ignore an exception to an exception in silence.
pub(super) fn check_legacy_filter(filter: &Filter) -> Result<(), RuntimeError> {
    if filter.suits_legacy() {
        return Ok(());
    }
    Err(RuntimeError::spec(
        "linux.resources.devices",
        "denies a part of what a wildcard allows (or the other way round), which cgroup v1 cannot",
    ))
}

/// Whether the v1 controller filters devices; else it is a program on the v2 group.
pub(super) fn legacy_filter(filter: &Filter, hosts: &Hosts) -> bool {
    !filter.allows_everything() && hosts.controller("devices").is_some() && filter.suits_legacy()
}

/// How a throttle is called on v1 and v2.
struct Throttle {
    legacy: &'static str,
    unified: &'static str,
}

fn throttles(io: &LinuxBlockIo) -> impl Iterator<Item = (Throttle, &LinuxThrottleDevice)> {
    let all = [
        (io.throttle_read_bps_device(), "read_bps", "rbps"),
        (io.throttle_write_bps_device(), "write_bps", "wbps"),
        (io.throttle_read_iops_device(), "read_iops", "riops"),
        (io.throttle_write_iops_device(), "write_iops", "wiops"),
    ];
    all.into_iter().flat_map(|(devices, legacy, unified)| {
        devices
            .iter()
            .flatten()
            .map(move |device| (Throttle { legacy, unified }, device))
    })
}

fn rdma_writes(resources: &LinuxResources) -> Vec<Write> {
    let mut writes = Vec::new();
    for (name, limit) in resources.rdma().iter().flatten() {
        let mut line = name.clone();
        for (key, value) in [
            ("hca_handle", limit.hca_handles()),
            ("hca_object", limit.hca_objects()),
        ] {
            if let Some(value) = value {
                line.push_str(&format!(" {key}={value}"));
            }
        }
        writes.push(Write::new("rdma", "rdma.max", line).on_hybrid("rdma"));
    }
    writes
}

/// No process at all could not even be the container's first; systemd refuses zero, too.
fn pids_max(limit: i64) -> String {
    match limit {
        ..0 => "max".to_owned(),
        0 => "1".to_owned(),
        _ => limit.to_string(),
    }
}

fn text(value: &Option<String>) -> Option<&str> {
    value.as_deref().filter(|value| !value.is_empty())
}

/// A size of huge pages names a file.
fn page_size(size: &str) -> Result<&str, RuntimeError> {
    let plain = size.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if plain && size.ends_with('B') {
        Ok(size)
    } else {
        let reason = format!("{size:?} is not a size like 2MB");
        Err(RuntimeError::spec(
            "linux.resources.hugepageLimits.pageSize",
            reason,
        ))
    }
}

/// memory.swap may not be less than memory.limit, on either generation.
fn swap_too_small() -> RuntimeError {
    RuntimeError::spec(
        "linux.resources.memory.swap",
        "is less than the memory limit, which it includes",
    )
}
