//! Seccomp profiles as users give them (`--security-opt seccomp=FILE`): Docker's own
//! format, which adds to the runtime-spec's an architecture map and conditions on
//! architecture, capabilities and kernel version.
//!
//! Format: `seccomp.go` of github.com/moby/profiles (facts of the format only).

use std::collections::HashSet;

use corten_oci::runtime_spec::{
    Arch, Capabilities, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg,
    LinuxSeccompFilterFlag, LinuxSyscall,
};
use serde::Deserialize;

use super::Result;
use crate::parse::bad;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Vec<Arch>,
    #[serde(default)]
    arch_map: Vec<ArchMap>,
    #[serde(default)]
    flags: Vec<LinuxSeccompFilterFlag>,
    #[serde(default)]
    listener_path: String,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: Arch,
    #[serde(default)]
    sub_architectures: Option<Vec<Arch>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    name: String,
    #[serde(default)]
    names: Vec<String>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<LinuxSeccompArg>>,
    #[serde(default)]
    includes: Option<Condition>,
    #[serde(default)]
    excludes: Option<Condition>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Condition {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
    #[serde(default)]
    min_kernel: String,
}

/// This machine's architecture in the words of seccomp and of Go.
#[cfg(target_arch = "x86_64")]
const NATIVE: (Arch, &str) = (Arch::ScmpArchX86_64, "amd64");
#[cfg(target_arch = "aarch64")]
const NATIVE: (Arch, &str) = (Arch::ScmpArchAarch64, "arm64");

/// Reads a profile for a process with these capabilities.
pub(super) fn profile(json: &str, capabilities: &Capabilities) -> Result<LinuxSeccomp> {
    let profile: Profile = serde_json::from_str(json)
        .map_err(|error| bad(format!("decoding seccomp profile failed: {error}")))?;
    if !profile.architectures.is_empty() && !profile.arch_map.is_empty() {
        return Err(bad(
            "both 'architectures' and 'archMap' are specified in the seccomp profile, use either 'architectures' or 'archMap'",
        ));
    }
    let architectures = if profile.arch_map.is_empty() {
        profile.architectures
    } else {
        profile
            .arch_map
            .into_iter()
            .find(|m| m.architecture == NATIVE.0)
            .map(|m| {
                let mut all = vec![m.architecture];
                all.extend(m.sub_architectures.unwrap_or_default());
                all
            })
            .unwrap_or_default()
    };
    let names: HashSet<String> = capabilities.iter().map(Capability::to_string).collect();
    let mut syscalls = Vec::new();
    for rule in profile.syscalls {
        syscalls.extend(convert(rule, &names)?);
    }
    if !profile.listener_path.is_empty() {
        return Err(bad("seccomp profile: listenerPath is not supported"));
    }
    let mut filter = LinuxSeccomp::default();
    filter
        .set_default_action(profile.default_action)
        .set_default_errno_ret(profile.default_errno_ret)
        .set_architectures((!architectures.is_empty()).then_some(architectures))
        .set_flags((!profile.flags.is_empty()).then_some(profile.flags))
        .set_syscalls(Some(syscalls));
    Ok(filter)
}

fn convert(rule: Rule, capabilities: &HashSet<String>) -> Result<Option<LinuxSyscall>> {
    let has = |name: &String| {
        let name = name.to_ascii_uppercase();
        capabilities.contains(name.strip_prefix("CAP_").unwrap_or(&name))
    };
    let here = |arch: &String| arch == NATIVE.1;
    let newer = |version: &str| -> Result<bool> {
        if version.is_empty() {
            Ok(true)
        } else {
            kernel_at_least(version)
        }
    };
    if let Some(not) = &rule.excludes
        && (not.caps.iter().any(has)
            || not.arches.iter().any(here)
            || (!not.min_kernel.is_empty() && newer(&not.min_kernel)?))
    {
        return Ok(None);
    }
    if let Some(only) = &rule.includes
        && (!only.caps.iter().all(has)
            || (!only.arches.is_empty() && !only.arches.iter().any(here))
            || !newer(&only.min_kernel)?)
    {
        return Ok(None);
    }
    let mut names = rule.names;
    if !rule.name.is_empty() {
        if !names.is_empty() {
            return Err(bad(
                "both 'name' and 'names' are specified in the seccomp profile, use either 'name' or 'names'",
            ));
        }
        names.push(rule.name);
    }
    let mut syscall = LinuxSyscall::default();
    syscall
        .set_names(names)
        .set_action(rule.action)
        .set_errno_ret(rule.errno_ret)
        .set_args(rule.args.filter(|a| !a.is_empty()));
    Ok(Some(syscall))
}

fn kernel_at_least(version: &str) -> Result<bool> {
    let numbers = |text: &str| -> Option<(u32, u32)> {
        let mut parts = text.split(|c: char| !c.is_ascii_digit());
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    };
    let wanted = numbers(version).ok_or_else(|| {
        bad(format!(
            "seccomp profile: invalid kernel version \"{version}\""
        ))
    })?;
    let uname = rustix::system::uname();
    let running = uname
        .release()
        .to_str()
        .ok()
        .and_then(numbers)
        .unwrap_or((0, 0));
    Ok(running >= wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_select_rules() {
        let json = r#"{
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
            "archMap": [
                {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
                {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}
            ],
            "syscalls": [
                {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["kill"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_KILL"]}},
                {"names": ["old"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.0"}},
                {"name": "chown", "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_KILL"]}},
                {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [
                    {"index": 0, "value": 2114060288, "op": "SCMP_CMP_MASKED_EQ"}
                ]}
            ]
        }"#;
        let capabilities: Capabilities = [Capability::Kill].into_iter().collect();
        let filter = profile(json, &capabilities).unwrap();
        let names: Vec<&str> = filter
            .syscalls()
            .iter()
            .flatten()
            .flat_map(|s| s.names().iter().map(String::as_str))
            .collect();
        assert_eq!(names, ["read", "kill", "clone"]);
        assert_eq!(filter.architectures().as_ref().unwrap().len(), 2);
    }

    #[test]
    fn wrong_profiles_are_refused() {
        for wrong in ["", "{}", r#"{"defaultAction":"NOPE"}"#] {
            assert!(profile(wrong, &Capabilities::new()).is_err(), "{wrong}");
        }
    }
}
