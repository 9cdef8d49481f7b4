//! The document for typical configurations, as snapshots, and what single options change.

use std::path::{Path, PathBuf};

use bollard_stubs::models::{ContainerConfig, HostConfig};
use serde_json::Value;

use super::*;
use crate::parse::mounts;

fn identity() -> Identity {
    Identity {
        uid: 0,
        gid: 0,
        groups: vec![0, 10],
        home: "/root".to_owned(),
    }
}

fn config() -> ContainerConfig {
    ContainerConfig {
        hostname: Some("0123456789ab".to_owned()),
        entrypoint: Some(vec!["/docker-entrypoint".to_owned()]),
        cmd: Some(vec!["serve".to_owned()]),
        env: Some(vec!["PATH=/opt/bin:/bin".to_owned(), "A=1".to_owned()]),
        working_dir: Some("/srv/./app".to_owned()),
        ..Default::default()
    }
}

fn output(config: &ContainerConfig, host: &HostConfig) -> Result<Output> {
    let mounts = mounts::requested(config.volumes.as_deref().unwrap_or_default(), host)?;
    let file = |name: &str| Some(PathBuf::from(format!("/root-dir/containers/id/{name}")));
    build(&Input {
        config,
        host,
        mounts: &mounts,
        identity: &identity(),
        files: &Files {
            hostname: file("hostname"),
            hosts: file("hosts"),
            resolv_conf: file("resolv.conf"),
            init: file("init").filter(|_| host.init == Some(true)),
        },
        ipc_of: Some(41).filter(|_| {
            host.ipc_mode
                .as_deref()
                .is_some_and(|m| m.starts_with("container:"))
        }),
        pid_of: None,
        users: None,
        cpus: 4,
        linked: &[],
        capabilities: 41,
    })
}

/// The document with its sets in order, and without what depends on this machine or is
/// tested elsewhere (the seccomp profile's hundreds of names).
fn shown(output: &Output) -> Value {
    let mut value = serde_json::to_value(&output.spec).unwrap();
    for set in ["bounding", "effective", "permitted"] {
        if let Some(list) = value["process"]["capabilities"][set].as_array_mut() {
            list.sort_by_key(|v| v.as_str().unwrap_or_default().to_owned());
        }
    }
    if let Some(paths) = value["linux"]["maskedPaths"].as_array_mut() {
        paths.retain(|p| !p.as_str().unwrap_or_default().contains("thermal_throttle"));
    }
    let rules = value["linux"]["seccomp"]["syscalls"]
        .as_array()
        .map_or(0, Vec::len);
    value["linux"]["seccomp"] = if rules == 0 {
        Value::Null
    } else {
        "a profile".into()
    };
    if value["linux"]["devices"]
        .as_array()
        .is_some_and(|d| d.len() > 3)
    {
        value["linux"]["devices"] = "the host's".into();
    }
    sorted(value)
}

fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<(String, Value)> = map.into_iter().collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(entries.into_iter().map(|(k, v)| (k, sorted(v))).collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(sorted).collect()),
        other => other,
    }
}

#[test]
fn a_plain_container() {
    let output = output(&config(), &HostConfig::default()).unwrap();
    insta::assert_json_snapshot!(shown(&output));
}

#[test]
fn a_container_with_everything() {
    let mut config = config();
    config.tty = Some(true);
    config.domainname = Some("example.org".to_owned());
    let text = |list: &[&str]| Some(list.iter().map(|t| (*t).to_owned()).collect());
    let host = HostConfig {
        binds: text(&["/etc:/host/etc:ro", "data:/data", "/var:/host/var:rslave"]),
        tmpfs: Some([("/run".to_owned(), "size=64m,exec".to_owned())].into()),
        memory: Some(64 << 20),
        memory_swap: Some(128 << 20),
        nano_cpus: Some(1_500_000_000),
        pids_limit: Some(100),
        cap_add: text(&["NET_ADMIN"]),
        cap_drop: text(&["CHOWN", "MKNOD"]),
        security_opt: text(&["no-new-privileges", "seccomp=unconfined"]),
        readonly_rootfs: Some(true),
        shm_size: Some(1 << 20),
        sysctls: Some([("net.core.somaxconn".to_owned(), "1024".to_owned())].into()),
        oom_score_adj: Some(-500),
        annotations: Some([("a".to_owned(), "b".to_owned())].into()),
        console_size: Some(vec![24, 80]),
        ..Default::default()
    };
    let output = output(&config, &host).unwrap();
    insta::assert_json_snapshot!(shown(&output));
    let sources: Vec<String> = output.binds.iter().map(|(_, s)| format!("{s:?}")).collect();
    insta::assert_json_snapshot!("bind_sources", sources);
}

#[test]
fn init_is_the_first_process() {
    let host = HostConfig {
        init: Some(true),
        ..Default::default()
    };
    let output = output(&config(), &host).unwrap();
    let args = output.spec.process().as_ref().unwrap().args().clone();
    let args = args.unwrap();
    assert_eq!(args[..2], ["/sbin/docker-init", "--"]);
    assert_eq!(args[2..], arguments(&config()).unwrap());
    let mounts = output.spec.mounts().clone().unwrap();
    let (index, mount) = mounts
        .iter()
        .enumerate()
        .find(|(_, m)| m.destination() == Path::new("/sbin/docker-init"))
        .unwrap();
    assert!(mount.options().as_ref().unwrap().contains(&"ro".to_owned()));
    let source = BindSource::Generated("/root-dir/containers/id/init".into());
    assert!(output.binds.contains(&(index, source)));
}

#[test]
fn a_privileged_container_is_not_confined() {
    let host = HostConfig {
        privileged: Some(true),
        ..Default::default()
    };
    let output = output(&config(), &host).unwrap();
    let value = shown(&output);
    assert_eq!(value["linux"]["seccomp"], Value::Null);
    let linux = output.spec.linux().clone().unwrap();
    assert!(linux.masked_paths().is_none() && linux.readonly_paths().is_none());
    assert_eq!(
        value["process"]["capabilities"]["bounding"]
            .as_array()
            .unwrap()
            .len(),
        41
    );
    let sys = value["mounts"]
        .as_array()
        .unwrap()
        .iter()
        .find(|m| m["destination"] == "/sys")
        .unwrap();
    assert!(sys["options"].as_array().unwrap().contains(&"rw".into()));
}

#[test]
fn namespaces_are_shared_as_asked() {
    let kinds = |host: &HostConfig| -> Vec<String> {
        let output = output(&config(), host).unwrap();
        let linux = output.spec.linux().clone().unwrap();
        linux
            .namespaces()
            .iter()
            .flatten()
            .map(|n| match n.path() {
                Some(path) => format!("{}={}", n.typ(), path.display()),
                None => n.typ().to_string(),
            })
            .collect()
    };
    let mode = |text: &str| Some(text.to_owned());
    assert_eq!(
        kinds(&HostConfig::default()),
        ["mnt", "net", "uts", "pid", "ipc", "cgroup"]
    );
    let host = HostConfig {
        network_mode: mode("host"),
        pid_mode: mode("host"),
        uts_mode: mode("host"),
        ipc_mode: mode("container:other"),
        ..Default::default()
    };
    assert_eq!(kinds(&host), ["mnt", "ipc=/proc/41/ns/ipc", "cgroup"]);
    let output = output(&config(), &host).unwrap();
    assert!(output.spec.hostname().is_none());
    assert!(
        output
            .binds
            .iter()
            .any(|(_, s)| *s == BindSource::SharedMemoryOf(41))
    );
}

#[test]
fn another_user_keeps_only_the_bounding_set() {
    let mounts = Vec::new();
    let nobody = Identity {
        uid: 1000,
        gid: 1000,
        groups: vec![1000],
        home: "/".to_owned(),
    };
    let (config, host, files) = (config(), HostConfig::default(), Files::default());
    let output = build(&Input {
        config: &config,
        host: &host,
        mounts: &mounts,
        identity: &nobody,
        files: &files,
        ipc_of: None,
        pid_of: None,
        users: None,
        cpus: 1,
        linked: &[],
        capabilities: 41,
    })
    .unwrap();
    let process = output.spec.process().clone().unwrap();
    let sets = process.capabilities().clone().unwrap();
    assert_eq!(sets.bounding().as_ref().unwrap().len(), 14);
    assert!(sets.effective().as_ref().unwrap().is_empty());
    assert!(process.env().iter().flatten().any(|e| e == "HOME=/"));
}

#[test]
fn what_cannot_be_is_refused() {
    let refused = |config: &ContainerConfig, host: &HostConfig| {
        check(config, host, 4).unwrap_err().to_string()
    };
    let none = ContainerConfig::default();
    assert_eq!(
        refused(&none, &HostConfig::default()),
        "no command specified"
    );
    let text = |list: &[&str]| Some(list.iter().map(|t| (*t).to_owned()).collect());
    for (host, part) in [
        (
            HostConfig {
                cap_add: text(&["NOPE"]),
                ..Default::default()
            },
            "unknown capability",
        ),
        (
            HostConfig {
                security_opt: text(&["x"]),
                ..Default::default()
            },
            "--security-opt",
        ),
        (
            HostConfig {
                sysctls: Some([("vm.swappiness".to_owned(), "1".to_owned())].into()),
                ..Default::default()
            },
            "not in a separate kernel namespace",
        ),
        (
            HostConfig {
                oom_score_adj: Some(2000),
                ..Default::default()
            },
            "oom score adj",
        ),
        (
            HostConfig {
                memory: Some(1),
                ..Default::default()
            },
            "Minimum memory limit",
        ),
        (
            HostConfig {
                pid_mode: Some("x".to_owned()),
                ..Default::default()
            },
            "invalid PID mode",
        ),
    ] {
        let message = refused(&config(), &host);
        assert!(message.contains(part), "{message}");
    }
}
