//! `info` and `version`.

use std::collections::HashMap;
use std::path::Path;

use bollard_stubs::models::{
    Commit, FirewallInfo, IndexInfo, LocalNodeState, PluginsInfo, RegistryServiceConfig, Runtime,
    SwarmInfo, SystemInfo, SystemInfoCgroupDriverEnum, SystemInfoCgroupVersionEnum, SystemVersion,
    SystemVersionComponents, SystemVersionPlatform,
};

use super::{API_VERSION, MIN_API_VERSION, STORAGE_DRIVER};
use crate::containers::row::{self, Status};
use crate::containers::state;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::settings::Settings;

type Result<T> = std::result::Result<T, EngineError>;

/// This program's version.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Go's name of this machine's architecture.
const ARCH: &str = if cfg!(target_arch = "aarch64") {
    "arm64"
} else {
    "amd64"
};

fn kernel() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}

/// `docker version`'s server side.
pub(super) fn version() -> SystemVersion {
    let details: HashMap<String, String> = [
        ("ApiVersion", API_VERSION),
        ("MinAPIVersion", MIN_API_VERSION),
        ("Os", "linux"),
        ("Arch", ARCH),
        ("KernelVersion", &kernel()),
        ("Experimental", "false"),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect();
    SystemVersion {
        platform: Some(SystemVersionPlatform {
            name: "Corten".to_owned(),
        }),
        components: Some(vec![SystemVersionComponents {
            name: "Engine".to_owned(),
            version: VERSION.to_owned(),
            details: Some(details),
        }]),
        version: Some(VERSION.to_owned()),
        api_version: Some(API_VERSION.to_owned()),
        min_api_version: Some(MIN_API_VERSION.to_owned()),
        os: Some("linux".to_owned()),
        arch: Some(ARCH.to_owned()),
        kernel_version: Some(kernel()),
        ..Default::default()
    }
}

/// `docker info`. Blocks.
pub(super) fn info(engine: &Engine) -> Result<SystemInfo> {
    let mut containers = engine.database().read(|c| row::all(c, false))?;
    for container in &mut containers {
        state::reconcile(engine, container)?;
    }
    let count = |wanted: fn(Status) -> bool| {
        i64::try_from(containers.iter().filter(|c| wanted(c.status)).count()).ok()
    };
    let images = engine.store().images().count()?;
    let id = engine.id()?;
    let on = Some(true);
    let cgroup2 = cgroup2();
    // What cannot be read is told by whatever needs it.
    let registries = corten_registry::RegistriesConfig::load(&engine.layout().registries());
    let mirrors = registries.map_or_else(|_| Vec::new(), |config| config.hub_mirrors());
    let mut security_options = vec!["name=seccomp,profile=builtin".to_owned()];
    // As with those: whatever needs them fails with it; here it is only told.
    let mut warnings = Vec::new();
    let settings = Settings::load(engine).unwrap_or_else(|error| {
        warnings.push(format!("WARNING: {error}"));
        Settings::default()
    });
    match settings.remap() {
        Ok(None) => {}
        Ok(Some(_)) => security_options.push("name=userns".to_owned()),
        Err(error) => warnings.push(format!("WARNING: {error}")),
    }
    security_options.push("name=cgroupns".to_owned());
    let index = IndexInfo {
        name: Some("docker.io".to_owned()),
        mirrors: Some(mirrors.clone()),
        secure: on,
        official: on,
    };
    Ok(SystemInfo {
        id: Some(id),
        containers: i64::try_from(containers.len()).ok(),
        containers_running: count(|s| matches!(s, Status::Running | Status::Restarting)),
        containers_paused: count(|s| s == Status::Paused),
        containers_stopped: count(|s| !s.is_live()),
        images: i64::try_from(images).ok(),
        driver: Some(STORAGE_DRIVER.to_owned()),
        driver_status: Some(vec![vec!["Daemonless".to_owned(), "true".to_owned()]]),
        docker_root_dir: Some(engine.layout().root().display().to_string()),
        plugins: Some(PluginsInfo {
            volume: Some(crate::volumes::driver::names()),
            network: Some(
                ["bridge", "host", "ipvlan", "macvlan", "null"]
                    .map(str::to_owned)
                    .to_vec(),
            ),
            authorization: None,
            log: Some(
                ["journald", "json-file", "local", "none", "syslog"]
                    .map(str::to_owned)
                    .to_vec(),
            ),
        }),
        memory_limit: on,
        swap_limit: on,
        cpu_cfs_period: on,
        cpu_cfs_quota: on,
        cpu_shares: on,
        cpu_set: on,
        pids_limit: on,
        oom_kill_disable: Some(false),
        ipv4_forwarding: Some(
            std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward")
                .is_ok_and(|text| text.trim() == "1"),
        ),
        debug: Some(false),
        nfd: Some(0),
        n_goroutines: Some(0),
        system_time: Some(jiff::Timestamp::now().to_string()),
        logging_driver: Some("json-file".to_owned()),
        cgroup_driver: Some(SystemInfoCgroupDriverEnum::CGROUPFS),
        cgroup_version: Some(if cgroup2 {
            SystemInfoCgroupVersionEnum::_2
        } else {
            SystemInfoCgroupVersionEnum::_1
        }),
        n_events_listener: Some(0),
        kernel_version: Some(kernel()),
        operating_system: Some(os_release("PRETTY_NAME").unwrap_or_else(|| "Linux".to_owned())),
        os_version: Some(os_release("VERSION_ID").unwrap_or_default()),
        os_type: Some("linux".to_owned()),
        architecture: Some(std::env::consts::ARCH.to_owned()),
        ncpu: Some(crate::containers::cpus()),
        mem_total: Some(memory_total()),
        index_server_address: Some("https://index.docker.io/v1/".to_owned()),
        registry_config: Some(RegistryServiceConfig {
            insecure_registry_cidrs: Some(vec!["127.0.0.0/8".to_owned(), "::1/128".to_owned()]),
            index_configs: Some([("docker.io".to_owned(), index)].into()),
            mirrors: Some(mirrors),
        }),
        http_proxy: Some(environment("http_proxy")),
        https_proxy: Some(environment("https_proxy")),
        no_proxy: Some(environment("no_proxy")),
        name: Some(
            rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned(),
        ),
        labels: Some(Vec::new()),
        experimental_build: Some(false),
        swarm: Some(SwarmInfo {
            local_node_state: Some(LocalNodeState::INACTIVE),
            ..Default::default()
        }),
        server_version: Some(VERSION.to_owned()),
        runtimes: Some(settings.runtimes().map(runtime).collect()),
        default_runtime: Some(settings.default_runtime().to_owned()),
        live_restore_enabled: on,
        firewall_backend: Some(FirewallInfo {
            driver: Some("nftables".to_owned()),
            info: None,
        }),
        init_binary: Some("docker-init".to_owned()),
        containerd_commit: Some(Commit {
            id: Some(String::new()),
        }),
        runc_commit: Some(Commit {
            id: Some(String::new()),
        }),
        init_commit: Some(Commit {
            id: Some(String::new()),
        }),
        security_options: Some(security_options),
        warnings: Some(warnings),
        ..Default::default()
    })
}

fn runtime((name, program, args): (&str, Option<&Path>, &[String])) -> (String, Runtime) {
    let runtime = Runtime {
        path: program.map(|path| path.display().to_string()),
        runtime_args: (!args.is_empty()).then(|| args.to_vec()),
        ..Default::default()
    };
    (name.to_owned(), runtime)
}

/// Whether this machine has control groups of version 2 alone.
pub(crate) fn cgroup2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// A proxy setting of this process, without its password.
fn environment(name: &str) -> String {
    let value = std::env::var(name).or_else(|_| std::env::var(name.to_ascii_uppercase()));
    let value = value.unwrap_or_default();
    match (value.find("://"), value.rfind('@')) {
        (Some(scheme), Some(at)) if scheme + 3 <= at => {
            format!("{}xxxxx:xxxxx{}", &value[..scheme + 3], &value[at..])
        }
        _ => value,
    }
}

fn os_release(key: &str) -> Option<String> {
    let text = std::fs::read_to_string("/etc/os-release").ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
        .map(|value| value.trim_matches('"').to_owned())
}

fn memory_total() -> i64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<i64>().ok())
        .map_or(0, |kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_names_the_api() {
        let version = version();
        assert_eq!(version.api_version.as_deref(), Some("1.50"));
        assert_eq!(version.version.as_deref(), Some(env!("CARGO_PKG_VERSION")));
        assert!(memory_total() > 0);
    }
}
