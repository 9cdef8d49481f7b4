//! From flags to the Engine API's `ContainerCreate`.
//!
//! Every flag is translated, checked here, or refused here: none is ignored. What the engine
//! cannot do the engine says, as an error or as a warning.

use std::collections::HashMap;
use std::path::Path;

use bollard_stubs::models::{
    ContainerCreateBody, EndpointSettings, HealthConfig, HostConfig, HostConfigLogConfig,
    NetworkingConfig, RestartPolicy, RestartPolicyNameEnum,
};

use crate::flags::Parsed;
use crate::opts::{
    OptError, Result, blkio, device, env, hosts, mount, network, ports, security, ulimit,
};

/// The annotation in which the engine finds what a container depends on.
const DEPENDS_ON: &str = "corten.depends-on";

/// Flags that make no sense on Linux or that we do not offer, and what to say about them.
const REFUSED: &[(&str, &str)] = &[
    ("cpu-count", "only Windows containers have it"),
    ("cpu-percent", "only Windows containers have it"),
    ("io-maxbandwidth", "only Windows containers have it"),
    ("io-maxiops", "only Windows containers have it"),
    ("kernel-memory", "the kernel does not offer it any more"),
    ("use-api-socket", "mount the socket with --volume instead"),
];

/// Makes the body of a create request.
///
/// # Errors
/// The first flag that does not make sense, in Docker's words.
pub(crate) fn body(flags: &Parsed, cwd: &Path) -> Result<ContainerCreateBody> {
    for (flag, why) in REFUSED {
        if flags.given(flag) {
            return Err(OptError::new(format!("--{flag} is not supported: {why}")));
        }
    }
    if !flags.on("disable-content-trust") {
        return Err(OptError::new(
            "--disable-content-trust=false is not supported: images are not signed here",
        ));
    }
    let owned = |name: &str| flags.nonempty(name).map(str::to_owned);
    let attach = Attach::of(flags);
    let (volumes, binds) = volumes(flags, cwd)?;
    let ports = ports::Ports::parse(&flags.list("publish"), &flags.list("expose"))?;
    let environment = env::environment(&flags.list("env-file"), &flags.list("env"), |name| {
        std::env::var(name).ok()
    })?;
    let labels = env::labels(&flags.list("label-file"), &flags.list("label"))?;
    let health = health(flags)?;
    let stdin_once = flags.on("interactive") && attach.stdin;
    let mut host = host_config(flags, cwd, binds, &ports)?;
    let networking = networking(flags, &mut host)?;
    Ok(ContainerCreateBody {
        hostname: owned("hostname"),
        domainname: owned("domainname"),
        user: owned("user"),
        attach_stdin: Some(attach.stdin),
        attach_stdout: Some(attach.stdout),
        attach_stderr: Some(attach.stderr),
        exposed_ports: (!ports.exposed.is_empty()).then_some(ports.exposed),
        tty: Some(flags.on("tty")),
        open_stdin: Some(flags.on("interactive")),
        stdin_once: Some(stdin_once),
        env: (!environment.is_empty()).then_some(environment),
        cmd: (flags.args.len() > 1).then(|| flags.args[1..].to_vec()),
        healthcheck: health,
        image: flags.args.first().cloned(),
        volumes: (!volumes.is_empty()).then_some(volumes),
        working_dir: owned("workdir"),
        // An empty word resets the image's entry point.
        entrypoint: flags
            .given("entrypoint")
            .then(|| vec![flags.text("entrypoint").unwrap_or_default().to_owned()]),
        labels: (!labels.is_empty()).then_some(labels),
        stop_signal: owned("stop-signal"),
        stop_timeout: flags.int("stop-timeout"),
        host_config: Some(host),
        networking_config: networking,
        ..ContainerCreateBody::default()
    })
}

/// Which streams to attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attach {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
}

impl Attach {
    fn of(flags: &Parsed) -> Self {
        let named: Vec<String> = flags
            .list("attach")
            .iter()
            .map(|s| s.to_ascii_lowercase())
            .collect();
        if named.is_empty() {
            return Self {
                stdin: flags.on("interactive"),
                stdout: true,
                stderr: true,
            };
        }
        let has = |name: &str| named.iter().any(|n| n == name);
        Self {
            stdin: has("stdin"),
            stdout: has("stdout"),
            stderr: has("stderr"),
        }
    }

    pub(crate) fn any(self) -> bool {
        self.stdin || self.stdout || self.stderr
    }
}

/// Anonymous volumes, and binds.
fn volumes(flags: &Parsed, cwd: &Path) -> Result<(Vec<String>, Vec<String>)> {
    let (mut anonymous, mut binds) = (Vec::new(), Vec::new());
    for text in flags.list("volume") {
        mount::check_bind(text)?;
        match mount::bind_spec(text, cwd) {
            Some(bind) => binds.push(bind),
            None => anonymous.push(text.to_owned()),
        }
    }
    Ok((anonymous, binds))
}

/// CPUs as billionths.
pub(crate) fn nano_cpus(text: &str) -> Result<i64> {
    let bad = || OptError::new(format!("failed to parse {text} as a rational number"));
    let (sign, number) = match text.strip_prefix('-') {
        Some(number) => (-1, number),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || (whole.is_empty() && fraction.is_empty()) {
        return Err(bad());
    }
    let significant = fraction.trim_end_matches('0');
    if significant.len() > 9 {
        return Err(OptError::new("value is too precise"));
    }
    let whole: i64 = if whole.is_empty() {
        0
    } else {
        whole.parse().map_err(|_| bad())?
    };
    let nanos: i64 = format!("{significant:0<9}").parse().map_err(|_| bad())?;
    whole
        .checked_mul(1_000_000_000)
        .and_then(|n| n.checked_add(nanos))
        .map(|n| sign * n)
        .ok_or_else(bad)
}

fn all<T>(values: &[&str], parse: impl Fn(&str) -> Result<T>) -> Result<Option<Vec<T>>> {
    let parsed: Vec<T> = values.iter().map(|v| parse(v)).collect::<Result<_>>()?;
    Ok((!parsed.is_empty()).then_some(parsed))
}

fn host_config(
    flags: &Parsed,
    cwd: &Path,
    binds: Vec<String>,
    ports: &ports::Ports,
) -> Result<HostConfig> {
    let owned = |name: &str| flags.nonempty(name).map(str::to_owned);
    let words = |name: &str| {
        let list: Vec<String> = flags.list(name).iter().map(|s| (*s).to_owned()).collect();
        (!list.is_empty()).then_some(list)
    };
    let capabilities = |name: &str| {
        let list = security::capabilities(&flags.list(name));
        (!list.is_empty()).then_some(list)
    };
    let on = |name: &str| flags.on(name).then_some(true);
    let swappiness = flags.int("memory-swappiness").unwrap_or(-1);
    if swappiness != -1 && !(0..=100).contains(&swappiness) {
        return Err(OptError::new(format!(
            "invalid value: {swappiness}. Valid memory swappiness range is 0-100"
        )));
    }
    security::mode(
        "pid",
        "PID",
        flags.text("pid").unwrap_or_default(),
        &["host"],
        true,
    )?;
    security::mode(
        "uts",
        "UTS",
        flags.text("uts").unwrap_or_default(),
        &["host"],
        false,
    )?;
    security::mode(
        "userns",
        "USER",
        flags.text("userns").unwrap_or_default(),
        &["host"],
        false,
    )?;
    let cgroupns = flags.text("cgroupns").unwrap_or_default();
    security::mode("cgroupns", "CGROUP", cgroupns, &["host", "private"], false)?;
    let isolation = flags.nonempty("isolation").filter(|i| *i != "default");
    if let Some(isolation) = isolation {
        return Err(OptError::new(format!(
            "invalid isolation: {isolation}: only Windows containers have others than the default"
        )));
    }
    let restart = restart_policy(flags.text("restart").unwrap_or("no"))?;
    if flags.on("rm") && restart.name != Some(RestartPolicyNameEnum::NO) {
        return Err(OptError::new(
            "conflicting options: cannot specify both --restart and --rm",
        ));
    }
    let security = security::parse(&flags.list("security-opt"))?;
    let (mut devices, mut requests) = (Vec::new(), Vec::new());
    let mut named = Vec::new();
    for text in flags.list("device") {
        match device::parse(text)? {
            device::Device::Node(mapping) => devices.push(mapping),
            device::Device::Named(name) => named.push(name),
        }
    }
    if !named.is_empty() {
        requests.push(bollard_stubs::models::DeviceRequest {
            driver: Some("cdi".into()),
            device_ids: Some(named),
            ..Default::default()
        });
    }
    if let Some(text) = flags.nonempty("gpus") {
        requests.push(device::gpus(text)?);
    }
    let mut dns_options = flags.list("dns-option");
    dns_options.extend(flags.list("dns-opt"));
    let tmpfs: HashMap<String, String> = flags
        .list("tmpfs")
        .iter()
        .map(|text| text.split_once(':').unwrap_or((text, "")))
        .map(|(dir, options)| (dir.to_owned(), options.to_owned()))
        .collect();
    Ok(HostConfig {
        cpu_shares: flags.int("cpu-shares"),
        memory: flags.bytes("memory"),
        cgroup_parent: owned("cgroup-parent"),
        blkio_weight: flags.nonempty("blkio-weight").and_then(|w| w.parse().ok()),
        blkio_weight_device: all(&flags.list("blkio-weight-device"), blkio::weight)?,
        blkio_device_read_bps: all(&flags.list("device-read-bps"), blkio::bps)?,
        blkio_device_write_bps: all(&flags.list("device-write-bps"), blkio::bps)?,
        blkio_device_read_iops: all(&flags.list("device-read-iops"), blkio::iops)?,
        blkio_device_write_iops: all(&flags.list("device-write-iops"), blkio::iops)?,
        cpu_period: flags.int("cpu-period"),
        cpu_quota: flags.int("cpu-quota"),
        cpu_realtime_period: flags.int("cpu-rt-period"),
        cpu_realtime_runtime: flags.int("cpu-rt-runtime"),
        cpuset_cpus: owned("cpuset-cpus"),
        cpuset_mems: owned("cpuset-mems"),
        devices: (!devices.is_empty()).then_some(devices),
        device_cgroup_rules: words("device-cgroup-rule"),
        device_requests: (!requests.is_empty()).then_some(requests),
        memory_reservation: flags.bytes("memory-reservation"),
        memory_swap: flags.bytes("memory-swap"),
        memory_swappiness: (swappiness != -1).then_some(swappiness),
        nano_cpus: flags.nonempty("cpus").map(nano_cpus).transpose()?,
        oom_kill_disable: on("oom-kill-disable"),
        init: flags.given("init").then(|| flags.on("init")),
        pids_limit: flags.int("pids-limit"),
        ulimits: all(&flags.list("ulimit"), ulimit::parse)?,
        binds: (!binds.is_empty()).then_some(binds),
        container_id_file: owned("cidfile"),
        log_config: log_config(flags)?,
        port_bindings: (!ports.bindings.is_empty()).then(|| {
            ports
                .bindings
                .iter()
                .map(|(port, to)| (port.clone(), Some(to.clone())))
                .collect()
        }),
        restart_policy: flags.given("restart").then_some(restart),
        auto_remove: on("rm"),
        volume_driver: owned("volume-driver"),
        volumes_from: words("volumes-from"),
        mounts: all(&flags.list("mount"), |text| mount::parse(text, cwd))?,
        console_size: if flags.on("tty") {
            crate::attach::initial_size()
        } else {
            None
        },
        annotations: {
            let mut map = env::map(&flags.list("annotation"));
            map.extend(mount::annotations(&flags.list("mount"), cwd)?);
            let needed = flags.list("depends-on");
            if !needed.is_empty() {
                map.insert(DEPENDS_ON.to_owned(), needed.join(","));
            }
            (!map.is_empty()).then_some(map)
        },
        cap_add: capabilities("cap-add"),
        cap_drop: capabilities("cap-drop"),
        cgroupns_mode: if cgroupns.is_empty() {
            None
        } else {
            cgroupns.parse().ok()
        },
        dns: all(&flags.list("dns"), hosts::address)?,
        dns_options: (!dns_options.is_empty())
            .then(|| dns_options.iter().map(|o| (*o).to_owned()).collect()),
        dns_search: all(&flags.list("dns-search"), hosts::search_domain)?,
        extra_hosts: all(&flags.list("add-host"), hosts::add_host)?,
        group_add: words("group-add"),
        ipc_mode: owned("ipc"),
        links: words("link"),
        oom_score_adj: flags.int("oom-score-adj"),
        pid_mode: owned("pid"),
        privileged: on("privileged"),
        publish_all_ports: on("publish-all"),
        readonly_rootfs: on("read-only"),
        security_opt: (!security.options.is_empty()).then_some(security.options),
        masked_paths: security.unconfined_paths.then(Vec::new),
        readonly_paths: security.unconfined_paths.then(Vec::new),
        storage_opt: storage(flags)?,
        tmpfs: (!tmpfs.is_empty()).then_some(tmpfs),
        uts_mode: owned("uts"),
        userns_mode: owned("userns"),
        shm_size: flags.bytes("shm-size"),
        sysctls: {
            let map = env::map(&flags.list("sysctl"));
            (!map.is_empty()).then_some(map)
        },
        runtime: owned("runtime"),
        ..HostConfig::default()
    })
}

fn storage(flags: &Parsed) -> Result<Option<HashMap<String, String>>> {
    let values = flags.list("storage-opt");
    if values.iter().any(|v| !v.contains('=')) {
        return Err(OptError::new("invalid storage option"));
    }
    Ok((!values.is_empty()).then(|| env::map(&values)))
}

fn log_config(flags: &Parsed) -> Result<Option<HostConfigLogConfig>> {
    let driver = flags.nonempty("log-driver");
    let options = env::map(&flags.list("log-opt"));
    if driver == Some("none") && !options.is_empty() {
        return Err(OptError::new("invalid logging opts for driver none"));
    }
    if driver.is_none() && options.is_empty() {
        return Ok(None);
    }
    Ok(Some(HostConfigLogConfig {
        typ: driver.map(str::to_owned),
        config: Some(options),
    }))
}

/// `no`, `always`, `unless-stopped`, `on-failure[:N]`.
pub(crate) fn restart_policy(text: &str) -> Result<RestartPolicy> {
    let (name, count) = match text.split_once(':') {
        Some(("", _)) => {
            return Err(OptError::new(
                "invalid restart policy format: no policy provided before colon",
            ));
        }
        Some((name, count)) => {
            let count = count.parse::<i64>().map_err(|_| {
                OptError::new(
                    "invalid restart policy format: maximum retry count must be an integer",
                )
            })?;
            (name, Some(count))
        }
        None => (text, None),
    };
    let policy = match name {
        "" | "no" => RestartPolicyNameEnum::NO,
        "always" => RestartPolicyNameEnum::ALWAYS,
        "unless-stopped" => RestartPolicyNameEnum::UNLESS_STOPPED,
        "on-failure" => RestartPolicyNameEnum::ON_FAILURE,
        _ => {
            return Err(OptError::new(format!(
                "invalid restart policy: unknown policy '{name}'; use one of 'no', 'always', \
                 'on-failure', or 'unless-stopped'"
            )));
        }
    };
    if count.is_some() && policy != RestartPolicyNameEnum::ON_FAILURE {
        return Err(OptError::new(
            "invalid restart policy: maximum retry count can only be used with 'on-failure'",
        ));
    }
    Ok(RestartPolicy {
        name: Some(policy),
        maximum_retry_count: Some(count.unwrap_or(0)),
    })
}

fn health(flags: &Parsed) -> Result<Option<HealthConfig>> {
    const TIMES: [&str; 4] = [
        "health-interval",
        "health-timeout",
        "health-start-period",
        "health-start-interval",
    ];
    let given = flags.given("health-cmd")
        || flags.given("health-retries")
        || TIMES.iter().any(|name| flags.given(name));
    if flags.on("no-healthcheck") {
        if given {
            return Err(OptError::new(
                "--no-healthcheck conflicts with --health-* options",
            ));
        }
        return Ok(Some(HealthConfig {
            test: Some(vec!["NONE".into()]),
            ..HealthConfig::default()
        }));
    }
    if !given {
        return Ok(None);
    }
    for name in TIMES {
        if flags.duration(name).is_some_and(|d| d < 0) {
            return Err(OptError::new(format!("--{name} cannot be negative")));
        }
    }
    if flags.int("health-retries").is_some_and(|n| n < 0) {
        return Err(OptError::new("--health-retries cannot be negative"));
    }
    let test = flags
        .nonempty("health-cmd")
        .map(|cmd| vec!["CMD-SHELL".to_owned(), cmd.to_owned()]);
    Ok(Some(HealthConfig {
        test,
        interval: flags.duration("health-interval"),
        timeout: flags.duration("health-timeout"),
        retries: flags.int("health-retries"),
        start_period: flags.duration("health-start-period"),
        start_interval: flags.duration("health-start-interval"),
    }))
}

/// Network mode and endpoint settings of `--network` and the flags that go with it.
fn networking(flags: &Parsed, host: &mut HostConfig) -> Result<Option<NetworkingConfig>> {
    let mut values = flags.list("network");
    values.extend(flags.list("net"));
    let mut attachments: Vec<network::Attachment> = values
        .iter()
        .map(|v| network::parse(v))
        .collect::<Result<_>>()?;
    let mut aliases = flags.list("network-alias");
    aliases.extend(flags.list("net-alias"));
    let mac = flags.nonempty("mac-address").map(hosts::mac).transpose()?;
    if attachments.is_empty() {
        attachments.push(network::Attachment {
            target: "default".into(),
            ..Default::default()
        });
    }
    let first = &mut attachments[0];
    host.network_mode = flags_given(flags).then(|| first.target.clone());
    let conflict = |flag: &str, what: &str| {
        OptError::new(format!(
            "conflicting options: cannot specify both --{flag} and per-network {what}"
        ))
    };
    if !aliases.is_empty() {
        if first.settings.aliases.is_some() {
            return Err(conflict("network-alias", "alias"));
        }
        first.settings.aliases = Some(aliases.iter().map(|a| (*a).to_owned()).collect());
    }
    let links: Vec<String> = flags.list("link").iter().map(|l| (*l).to_owned()).collect();
    if !links.is_empty() && is_user_defined(&first.target) {
        if first.settings.links.is_some() {
            return Err(conflict("link", "links"));
        }
        first.settings.links = Some(links);
    }
    let locals = all(&flags.list("link-local-ip"), hosts::address)?;
    for (flag, value) in [("ip", flags.nonempty("ip")), ("ip6", flags.nonempty("ip6"))] {
        let Some(value) = value else { continue };
        let ipam = network::ipam(&mut first.settings);
        let slot = if flag == "ip" {
            &mut ipam.ipv4_address
        } else {
            &mut ipam.ipv6_address
        };
        if slot.is_some() {
            return Err(conflict(flag, "IPv4 address"));
        }
        *slot = Some(hosts::address(value)?);
    }
    if locals.is_some() {
        network::ipam(&mut first.settings).link_local_ips = locals;
    }
    if mac.is_some() {
        if first.settings.mac_address.is_some() {
            return Err(conflict("mac-address", "MAC address"));
        }
        first.settings.mac_address = mac;
    }
    let mut endpoints = HashMap::new();
    let several = attachments.len() > 1;
    let user_defined = attachments.iter().filter(|a| is_user_defined(&a.target));
    let mixed = !matches!(user_defined.count(), n if n == 0 || n == attachments.len());
    for attachment in attachments {
        if endpoints.contains_key(&attachment.target) {
            return Err(OptError::new(format!(
                "network {:?} is specified multiple times",
                attachment.target
            )));
        }
        if !several && attachment.settings == EndpointSettings::default() {
            continue;
        }
        endpoints.insert(attachment.target, attachment.settings);
    }
    if mixed {
        return Err(OptError::new(
            "conflicting options: cannot attach both user-defined and non-user-defined network-modes",
        ));
    }
    Ok((!endpoints.is_empty()).then_some(NetworkingConfig {
        endpoints_config: Some(endpoints),
    }))
}

fn flags_given(flags: &Parsed) -> bool {
    flags.given("network") || flags.given("net")
}

fn is_user_defined(network: &str) -> bool {
    !matches!(network, "default" | "bridge" | "host" | "none") && !network.starts_with("container:")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::{Outcome, parse};

    fn created(args: &str) -> String {
        let args = args.split(' ').map(String::from);
        let tables: &[&'static [crate::flags::Flag]] =
            &[super::super::flags::CONTAINER, super::super::flags::RUN];
        let parsed = match parse(tables, false, args) {
            Ok(Outcome::Parsed(parsed)) => parsed,
            Ok(Outcome::Help) => return "help".into(),
            Err(error) => return error.to_string(),
        };
        match body(&parsed, Path::new("/here")) {
            Ok(body) => {
                serde_json::to_string_pretty(&sorted(serde_json::to_value(body).unwrap())).unwrap()
            }
            Err(error) => error.0,
        }
    }

    fn sorted(value: serde_json::Value) -> serde_json::Value {
        match value {
            serde_json::Value::Object(map) => {
                // The size of the terminal depends on where the tests run.
                let tree: std::collections::BTreeMap<_, _> = map
                    .into_iter()
                    .filter(|(k, _)| k != "ConsoleSize")
                    .map(|(k, v)| (k, sorted(v)))
                    .collect();
                serde_json::Value::Object(tree.into_iter().collect())
            }
            other => other,
        }
    }

    #[test]
    fn plain() {
        insta::assert_snapshot!(created("alpine"));
    }

    #[test]
    fn everything() {
        insta::assert_snapshot!(created(
            "-it -p 127.0.0.1:8080:80 -p 53:53/udp -P --expose 9000 -v data:/data -v ./src:/src:ro -v /anon \
             --mount type=tmpfs,dst=/t --tmpfs /x:size=1m --name web -e A=b -w /app -u 1:2 --entrypoint sh \
             --rm -h box --domainname d --add-host db:1.2.3.4 --dns 9.9.9.9 --dns-search x.org --dns-option ndots:1 \
             --cap-add NET_ADMIN --cap-drop ALL --privileged --security-opt no-new-privileges --read-only \
             --shm-size 1m --ulimit nofile=1:2 --sysctl net.a=1 --device /dev/null:r -m 64m --memory-swap -1 \
             --memory-reservation 32m --cpus 1.5 --cpu-shares 5 --cpuset-cpus 0 --pids-limit 10 --label a=b \
             --log-driver json-file --log-opt max-size=1m --stop-signal INT --stop-timeout 3 --init --ipc host \
             --pid host --uts host --userns host --cgroupns private --cgroup-parent p --group-add g \
             --oom-score-adj 5 --oom-kill-disable --health-cmd true --health-interval 5s --annotation a=b \
             --network n --network-alias w --ip 10.0.0.9 alpine echo hi"
        ));
    }

    #[test]
    fn refusals() {
        for (args, expected) in [
            (
                "--rm --restart always a",
                "conflicting options: cannot specify both --restart and --rm",
            ),
            (
                "--restart sometimes a",
                "invalid restart policy: unknown policy 'sometimes'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'",
            ),
            (
                "--restart on-failure:x a",
                "invalid restart policy format: maximum retry count must be an integer",
            ),
            (
                "--memory-swappiness 1000 a",
                "invalid value: 1000. Valid memory swappiness range is 0-100",
            ),
            ("--pid x a", "--pid: invalid PID mode"),
            ("--cgroupns x a", "--cgroupns: invalid CGROUP mode"),
            ("--storage-opt x a", "invalid storage option"),
            (
                "--no-healthcheck --health-cmd x a",
                "--no-healthcheck conflicts with --health-* options",
            ),
            ("--mac-address x a", "x is not a valid mac address"),
            (
                "--cpu-count 1 a",
                "--cpu-count is not supported: only Windows containers have it",
            ),
            (
                "--cpus -x a",
                "invalid argument \"-x\" for \"--cpus\" flag: failed to parse -x as a rational number",
            ),
            (
                "--cpus x a",
                "invalid argument \"x\" for \"--cpus\" flag: failed to parse x as a rational number",
            ),
            (
                "--cpus 0.0000000001 a",
                "invalid argument \"0.0000000001\" for \"--cpus\" flag: value is too precise",
            ),
            (
                "-a foo a",
                "invalid argument \"foo\" for \"-a, --attach\" flag: valid streams are STDIN, STDOUT and STDERR",
            ),
            (
                "--device a:b:c:d a",
                "invalid device specification: a:b:c:d",
            ),
            (
                "--log-driver none --log-opt a=b a",
                "invalid logging opts for driver none",
            ),
        ] {
            assert_eq!(created(args), expected, "{args}");
        }
    }
}
