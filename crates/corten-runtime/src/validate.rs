//! Checks of a configuration before anything is made: fields that contradict each other
//! or would reach out of the container. What a single field means is checked where it is
//! planned.

use std::collections::HashSet;

use corten_oci::runtime_spec::{LinuxNamespaceType, Spec};

use crate::error::RuntimeError;
use crate::namespaces::is_own;
use crate::sandbox::NetNs;

/// Refuses what cannot be meant. `network` is what the caller provides instead of the
/// spec's network namespace.
pub(crate) fn check(spec: &Spec, network: &NetNs) -> Result<(), RuntimeError> {
    version(spec.version())?;
    namespaces(spec)?;
    names(spec)?;
    rlimits(spec)?;
    mappings(spec)?;
    sysctls(spec, network)
}

/// config, "Specification version".
fn version(version: &str) -> Result<(), RuntimeError> {
    let refuse = |reason: &str| Err(RuntimeError::spec("ociVersion", reason));
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let numbers: Vec<&str> = core.split('.').collect();
    let plain = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if numbers.len() != 3 || !numbers.iter().all(plain) {
        return refuse(&format!("{version:?} is not a version such as 1.3.0"));
    }
    match numbers.first() {
        Some(&("0" | "1")) => Ok(()),
        _ => refuse(&format!(
            "{version} is newer than this runtime, which knows 1.3"
        )),
    }
}

/// Whether a namespace of the kind is new or joined.
pub(crate) fn has_namespace(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    let linux = spec.linux().as_ref();
    let listed = linux.and_then(|linux| linux.namespaces().as_deref());
    listed
        .unwrap_or_default()
        .iter()
        .any(|namespace| namespace.typ() == kind)
}

/// Whether one of the kind is made for the container.
pub(crate) fn has_new_namespace(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    let linux = spec.linux().as_ref();
    let listed = linux.and_then(|linux| linux.namespaces().as_deref());
    listed.unwrap_or_default().iter().any(|namespace| {
        let path = namespace.path().as_deref();
        namespace.typ() == kind && path.is_none_or(|path| path.as_os_str().is_empty())
    })
}

/// The same as [`has_namespace`], but not the caller's own, which a path may name as well.
fn has_other_namespace(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    let linux = spec.linux().as_ref();
    let listed = linux.and_then(|linux| linux.namespaces().as_deref());
    listed.unwrap_or_default().iter().any(|namespace| {
        let path = namespace.path().as_deref();
        namespace.typ() == kind && path.is_none_or(|path| !is_own(kind, path))
    })
}

fn namespaces(spec: &Spec) -> Result<(), RuntimeError> {
    let linux = spec.linux().as_ref();
    let listed = linux.and_then(|linux| linux.namespaces().as_deref());
    let mut seen = HashSet::new();
    for namespace in listed.unwrap_or_default() {
        if !seen.insert(namespace.typ()) {
            let reason = format!("{} is listed twice", namespace.typ());
            return Err(RuntimeError::spec("linux.namespaces", reason));
        }
        if let Some(path) = namespace.path().as_ref()
            && !path.as_os_str().is_empty()
            && !path.is_absolute()
        {
            let reason = format!("{} is not an absolute path", path.display());
            return Err(RuntimeError::spec("linux.namespaces.path", reason));
        }
    }
    Ok(())
}

/// Host and domain name would change the host's without a UTS namespace.
fn names(spec: &Spec) -> Result<(), RuntimeError> {
    for (field, name) in [
        ("hostname", spec.hostname()),
        ("domainname", spec.domainname()),
    ] {
        let given = name.as_ref().is_some_and(|name| !name.is_empty());
        if given && !has_other_namespace(spec, LinuxNamespaceType::Uts) {
            return Err(RuntimeError::spec(
                field,
                "needs a uts namespace in linux.namespaces, not the host's",
            ));
        }
    }
    Ok(())
}

fn rlimits(spec: &Spec) -> Result<(), RuntimeError> {
    let process = spec.process().as_ref();
    let given = process.and_then(|process| process.rlimits().as_deref());
    let mut seen = HashSet::new();
    for limit in given.unwrap_or_default() {
        let name = limit.typ().to_string();
        if limit.soft() > limit.hard() {
            let reason = format!(
                "{name}: soft {} is above hard {}",
                limit.soft(),
                limit.hard()
            );
            return Err(RuntimeError::spec("process.rlimits", reason));
        }
        if !seen.insert(name.clone()) {
            return Err(RuntimeError::spec(
                "process.rlimits",
                format!("{name} is listed twice"),
            ));
        }
    }
    Ok(())
}

fn mappings(spec: &Spec) -> Result<(), RuntimeError> {
    let Some(linux) = spec.linux() else {
        return Ok(());
    };
    for (field, given) in [
        ("linux.uidMappings", linux.uid_mappings()),
        ("linux.gidMappings", linux.gid_mappings()),
    ] {
        let given = given.as_deref().unwrap_or_default();
        if given.iter().any(|mapping| mapping.size() == 0) {
            return Err(RuntimeError::spec(field, "has a mapping of size 0"));
        }
        if !given.is_empty() && !has_namespace(spec, LinuxNamespaceType::User) {
            return Err(RuntimeError::spec(
                field,
                "needs a user namespace in linux.namespaces",
            ));
        }
    }
    Ok(())
}

/// A sysctl must belong to one of the container's own namespaces: all others would change
/// the host.
fn sysctls(spec: &Spec, network: &NetNs) -> Result<(), RuntimeError> {
    let linux = spec.linux().as_ref();
    let given = linux.and_then(|linux| linux.sysctl().as_ref());
    for name in given.into_iter().flatten().map(|(name, _)| name) {
        let path = sysctl_path(name);
        let refuse = |reason: &str| Err(RuntimeError::spec(format!("linux.sysctl.{name}"), reason));
        if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return refuse("is not a name of a sysctl");
        }
        let own = |kind| has_other_namespace(spec, kind);
        let allowed = match path.as_str() {
            "kernel/domainname" => own(LinuxNamespaceType::Uts),
            "kernel/hostname" => {
                own(LinuxNamespaceType::Uts)
                    && spec.hostname().as_ref().is_none_or(String::is_empty)
            }
            "kernel/msgmax"
            | "kernel/msgmnb"
            | "kernel/msgmni"
            | "kernel/sem"
            | "kernel/shmall"
            | "kernel/shmmax"
            | "kernel/shmmni"
            | "kernel/shm_rmid_forced"
            | "kernel/msg_next_id"
            | "kernel/sem_next_id"
            | "kernel/shm_next_id"
            | "kernel/auto_msgmni" => own(LinuxNamespaceType::Ipc),
            path if path.starts_with("fs/mqueue/") => own(LinuxNamespaceType::Ipc),
            path if path.starts_with("net/") => match network {
                NetNs::New | NetNs::Join(_) => true,
                NetNs::Host => false,
                NetNs::Spec => own(LinuxNamespaceType::Network),
            },
            path if path.starts_with("user/") => own(LinuxNamespaceType::User),
            _ => false,
        };
        if !allowed {
            return refuse("is not a sysctl of one of the container's namespaces");
        }
    }
    Ok(())
}

/// The path below `/proc/sys`. As sysctl(8) has it, whichever of `.` and `/` comes first
/// separates; the other one stands for the first inside a name.
pub(crate) fn sysctl_path(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name.as_bytes().get(at) == Some(&b'.') => name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn checked(json: serde_json::Value) -> Result<(), String> {
        let mut document = json!({"ociVersion": "1.3.0"});
        for (key, value) in json.as_object().unwrap() {
            document[key] = value.clone();
        }
        let spec: Spec = serde_json::from_value(document).unwrap();
        check(&spec, &NetNs::Spec).map_err(|error| error.to_string())
    }

    #[test]
    fn versions() {
        for good in ["1.0.0", "1.3.0-dev", "1.0.2+x", "0.1.0"] {
            checked(json!({"ociVersion": good})).unwrap();
        }
        for bad in ["", "1", "1.0", "2.0.0", "1.x.0", "1..0", "v1.0.0"] {
            let error = checked(json!({"ociVersion": bad})).unwrap_err();
            assert!(error.contains("ociVersion"), "{error}");
        }
    }

    #[test]
    fn contradictions() {
        let process = |rlimits| json!({"user": {}, "cwd": "/", "rlimits": rlimits});
        let limit = |soft, hard| json!({"type": "RLIMIT_CORE", "soft": soft, "hard": hard});
        for (json, words) in [
            (
                json!({"linux": {"namespaces": [{"type": "pid"}, {"type": "pid"}]}}),
                "pid is listed twice",
            ),
            (
                json!({"linux": {"namespaces": [{"type": "ipc", "path": "x"}]}}),
                "not an absolute path",
            ),
            (
                json!({"hostname": "x", "linux": {"namespaces": []}}),
                "hostname: needs",
            ),
            (json!({"domainname": "x"}), "domainname: needs"),
            (
                json!({"hostname": "x", "linux": {"namespaces": [
                    {"type": "uts", "path": "/proc/self/ns/uts"}]}}),
                "not the host's",
            ),
            (
                json!({"process": process(json!([limit(1, 1), limit(1, 2)]))}),
                "RLIMIT_CORE is listed twice",
            ),
            (
                json!({"process": process(json!([limit(2, 1)]))}),
                "soft 2 is above hard 1",
            ),
            (
                json!({"linux": {"uidMappings": [{"containerID": 0, "hostID": 0, "size": 1}]}}),
                "needs a user namespace",
            ),
        ] {
            let error = checked(json.clone()).unwrap_err();
            assert!(error.contains(words), "{json}: {error}");
        }
    }

    #[test]
    fn sysctls_belong_to_namespaces() {
        let with = |name: &str, kinds: &[&str]| {
            let namespaces: Vec<_> = kinds.iter().map(|kind| json!({"type": kind})).collect();
            checked(json!({"linux": {"sysctl": {name: "1"}, "namespaces": namespaces}}))
        };
        for (name, kind) in [
            ("net.ipv4.ip_forward", "network"),
            ("net/ipv4/conf/eth0.100/rp_filter", "network"),
            ("kernel.msgmax", "ipc"),
            ("fs.mqueue.msg_max", "ipc"),
            ("kernel.domainname", "uts"),
            ("user.max_net_namespaces", "user"),
        ] {
            with(name, &[kind]).unwrap();
            assert!(with(name, &["mount"]).unwrap_err().contains(name));
        }
        let hosts = |path| {
            let namespaces = json!([{"type": "network", "path": path}]);
            let sysctl = json!({"net.ipv4.ip_forward": "1"});
            checked(json!({"linux": {"sysctl": sysctl, "namespaces": namespaces}}))
        };
        hosts("/run/netns/other").unwrap();
        hosts("").unwrap();
        assert!(hosts("/proc/self/ns/net").is_err());
        for name in [
            "kernel.panic",
            "vm.swappiness",
            "net/../kernel/panic",
            "kernel.shmfoo",
        ] {
            assert!(with(name, &["network", "ipc", "uts"]).is_err(), "{name}");
        }
        assert_eq!(
            sysctl_path("net.ipv4.conf.eth0/100.x"),
            "net/ipv4/conf/eth0.100/x"
        );
    }
}
