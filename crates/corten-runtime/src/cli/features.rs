//! `features` (runtime-spec, features): what this runtime knows, from the names its other
//! parts take; the tests below hand every one of them to those parts.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::{CliError, SPEC_VERSION, print};
use crate::caps;

#[derive(Debug, Args)]
pub(super) struct FeaturesArgs {}

/// `features`.
pub(super) fn features(_: &FeaturesArgs) -> Result<ExitCode, CliError> {
    let capabilities: Result<Vec<_>, _> = caps::ALL
        .iter()
        .map(|(capability, _)| serde_json::to_value(capability))
        .collect();
    let capabilities = capabilities.map_err(|error| CliError::json("capabilities", error))?;
    let document = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC_VERSION,
        "hooks": HOOKS,
        "mountOptions": MOUNT_OPTIONS,
        "linux": {
            "namespaces": NAMESPACES,
            "capabilities": capabilities,
            "cgroup": {
                "v1": true, "v2": true, "systemd": true, "systemdUser": true, "rdma": true,
            },
            "seccomp": {
                "enabled": true,
                "actions": ACTIONS,
                "operators": OPERATORS,
                "archs": ARCHITECTURES,
                "knownFlags": KNOWN_FLAGS,
                "supportedFlags": KNOWN_FLAGS,
            },
            "apparmor": {"enabled": true},
            "selinux": {"enabled": true},
            "intelRdt": {"enabled": true, "schemata": true, "monitoring": true},
            "memoryPolicy": {"modes": MEMORY_MODES, "flags": MEMORY_FLAGS},
            "mountExtensions": {"idmap": {"enabled": true}},
            "netDevices": {"enabled": true},
        },
        "annotations": {
            "org.corten.version": env!("CARGO_PKG_VERSION"),
            "org.opencontainers.runc.checkpoint.enabled": "true",
        },
        "potentiallyUnsafeConfigAnnotations": ["org.criu.config"],
    });
    let text = serde_json::to_string_pretty(&document)
        .map_err(|error| CliError::json("features", error))?;
    print(&format!("{text}\n"))
}

const HOOKS: &[&str] = &[
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

const NAMESPACES: &[&str] = &[
    "cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts",
];

#[rustfmt::skip]
const MOUNT_OPTIONS: &[&str] = &[
    "async", "atime", "bind", "defaults", "dev", "diratime", "dirsync", "exec", "idmap",
    "iversion", "lazytime", "loud", "mand", "noatime", "nodev", "nodiratime", "noexec",
    "noiversion", "nolazytime", "nomand", "norelatime", "nostrictatime", "nosuid", "nosymfollow", "private",
    "ratime", "rbind", "rdev", "rdiratime", "relatime", "remount", "rexec", "ridmap", "rnoatime",
    "rnodev", "rnodiratime", "rnoexec", "rnorelatime", "rnostrictatime", "rnosuid", "rnosymfollow", "ro",
    "rprivate", "rrelatime", "rro", "rrw", "rshared", "rslave", "rstrictatime", "rsuid",
    "rsymfollow", "runbindable", "rw", "shared", "silent", "slave", "strictatime", "suid",
    "symfollow", "sync", "tmpcopyup", "unbindable",
];

const ACTIONS: &[&str] = &[
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];

const OPERATORS: &[&str] = &[
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
];

#[cfg(target_arch = "aarch64")]
const ARCHITECTURES: &[&str] = &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"];
#[cfg(not(target_arch = "aarch64"))]
const ARCHITECTURES: &[&str] = &["SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"];

const KNOWN_FLAGS: &[&str] = &[
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];

const MEMORY_MODES: &[&str] = &[
    "MPOL_DEFAULT",
    "MPOL_BIND",
    "MPOL_INTERLEAVE",
    "MPOL_WEIGHTED_INTERLEAVE",
    "MPOL_PREFERRED",
    "MPOL_PREFERRED_MANY",
    "MPOL_LOCAL",
];

const MEMORY_FLAGS: &[&str] = &[
    "MPOL_F_NUMA_BALANCING",
    "MPOL_F_RELATIVE_NODES",
    "MPOL_F_STATIC_NODES",
];

#[cfg(test)]
mod tests {
    use super::*;
    use corten_oci::runtime_spec::{Hooks, LinuxMemoryPolicy, LinuxNamespace, LinuxSeccomp};

    fn compiles(profile: serde_json::Value) {
        let parsed: LinuxSeccomp = serde_json::from_value(profile.clone()).unwrap();
        let filter = crate::seccomp::compile(&parsed);
        assert!(filter.is_ok_and(|f| !f.program.is_empty()), "{profile}");
    }

    #[test]
    fn seccomp_takes_what_is_named() {
        for action in ACTIONS {
            compiles(json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "listenerPath": "/agent.sock",
                "syscalls": [{"names": ["mkdir"], "action": action}],
            }));
        }
        for operator in OPERATORS {
            let arg = json!({"index": 0, "value": 1, "valueTwo": 2, "op": operator});
            compiles(json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "args": [arg]}],
            }));
        }
        compiles(json!({
            "defaultAction": "SCMP_ACT_ALLOW", "architectures": ARCHITECTURES,
            "flags": KNOWN_FLAGS,
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}],
        }));
    }

    #[test]
    fn the_document_takes_what_is_named() {
        for name in NAMESPACES {
            serde_json::from_value::<LinuxNamespace>(json!({"type": name})).unwrap();
        }
        for name in HOOKS {
            let hooks: Hooks = serde_json::from_value(json!({*name: [{"path": "/x"}]})).unwrap();
            assert_eq!(serde_json::to_value(hooks).unwrap()[*name][0]["path"], "/x");
        }
        for mode in MEMORY_MODES {
            let policy = json!({"mode": mode, "nodes": "0", "flags": MEMORY_FLAGS});
            serde_json::from_value::<LinuxMemoryPolicy>(policy).unwrap();
        }
        for option in MOUNT_OPTIONS {
            // What is no option of a mount would be handed to the file system.
            let fs_flags = ["sync", "dirsync", "lazytime", "mand"];
            let known = crate::mounts::knows_option(option);
            assert!(known || fs_flags.contains(option), "{option}");
        }
    }
}
