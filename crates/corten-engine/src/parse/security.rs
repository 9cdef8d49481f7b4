//! Security options and capabilities.

use super::bad;
use crate::error::EngineError;

/// Which system calls a container may make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seccomp {
    /// The built-in profile.
    Default,
    /// No filter.
    Unconfined,
    /// A profile's JSON text.
    Profile(String),
}

/// What `SecurityOpt` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SecurityOptions {
    pub(crate) seccomp: Seccomp,
    pub(crate) no_new_privileges: bool,
    /// Profile name, if one was asked for; `unconfined` is a name, too.
    pub(crate) apparmor: Option<String>,
    /// No masked and read-only paths.
    pub(crate) unmask: bool,
}

/// Reads `SecurityOpt` (`key=value`, or the old `key:value`).
pub(crate) fn options(list: &[String]) -> Result<SecurityOptions, EngineError> {
    let mut options = SecurityOptions {
        seccomp: Seccomp::Default,
        no_new_privileges: false,
        apparmor: None,
        unmask: false,
    };
    for text in list {
        if text == "no-new-privileges" {
            options.no_new_privileges = true;
            continue;
        }
        let (key, value) = text
            .split_once('=')
            .or_else(|| text.split_once(':'))
            .ok_or_else(|| bad(format!("invalid --security-opt: \"{text}\"")))?;
        match key {
            "seccomp" => {
                options.seccomp = match value {
                    "unconfined" => Seccomp::Unconfined,
                    "builtin" => Seccomp::Default,
                    json => Seccomp::Profile(json.to_owned()),
                }
            }
            "apparmor" => options.apparmor = Some(value.to_owned()),
            "no-new-privileges" => {
                options.no_new_privileges = match value {
                    "true" | "1" => true,
                    "false" | "0" => false,
                    _ => return Err(bad(format!("invalid --security-opt 2: \"{text}\""))),
                }
            }
            "systempaths" if value == "unconfined" => options.unmask = true,
            // Without SELinux they mean nothing, as with Docker.
            "label" if value == "disable" || !labelled() => {}
            "label" => {
                return Err(bad(format!(
                    "security option \"{text}\": SELinux labels are not supported on a host that has \
                     them: use label=disable"
                )));
            }
            _ => return Err(bad(format!("invalid --security-opt 2: \"{text}\""))),
        }
    }
    Ok(options)
}

/// Whether this host labels processes and files (SELinux).
fn labelled() -> bool {
    std::path::Path::new("/sys/fs/selinux/enforce").exists()
}

/// Every capability of Linux, by number.
pub(crate) const ALL_CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The capabilities a container gets. `defaults`: those it has when nothing is asked for;
/// `known`: how many capabilities this kernel has.
pub(crate) fn capabilities(
    defaults: &[String],
    add: &[String],
    drop: &[String],
    privileged: bool,
    known: usize,
) -> Result<Vec<String>, EngineError> {
    let add = normalise(add, "CapAdd")?;
    let drop = normalise(drop, "CapDrop")?;
    let all = || ALL_CAPABILITIES.iter().take(known).map(|c| (*c).to_owned());
    let has = |list: &[String], name: &str| list.iter().any(|c| c == name);
    if privileged {
        return Ok(all().collect());
    }
    let chosen: Vec<String> = if has(&add, "ALL") {
        all().filter(|c| !has(&drop, c)).collect()
    } else if has(&drop, "ALL") {
        add
    } else {
        let mut kept: Vec<String> = defaults
            .iter()
            .filter(|c| !has(&drop, c))
            .cloned()
            .collect();
        for capability in add {
            if !has(&kept, &capability) {
                kept.push(capability);
            }
        }
        kept
    };
    Ok(chosen)
}

fn normalise(list: &[String], field: &str) -> Result<Vec<String>, EngineError> {
    list.iter()
        .map(|text| {
            let upper = text.to_ascii_uppercase();
            if upper == "ALL" {
                return Ok(upper);
            }
            let name = if upper.starts_with("CAP_") {
                upper
            } else {
                format!("CAP_{upper}")
            };
            if ALL_CAPABILITIES.contains(&name.as_str()) {
                Ok(name)
            } else {
                Err(bad(format!(
                    "invalid {field}: unknown capability: \"{name}\""
                )))
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    fn chosen(add: &[&str], drop: &[&str]) -> Result<Vec<String>, EngineError> {
        capabilities(
            &list(&["CAP_CHOWN", "CAP_KILL"]),
            &list(add),
            &list(drop),
            false,
            41,
        )
    }

    #[test]
    fn adding_and_dropping() {
        assert_eq!(chosen(&[], &[]).unwrap(), list(&["CAP_CHOWN", "CAP_KILL"]));
        assert_eq!(
            chosen(&["net_admin"], &["KILL"]).unwrap(),
            list(&["CAP_CHOWN", "CAP_NET_ADMIN"])
        );
        assert_eq!(chosen(&["CAP_BPF"], &["all"]).unwrap(), list(&["CAP_BPF"]));
        assert_eq!(chosen(&["ALL"], &["CHOWN"]).unwrap().len(), 40);
        assert!(
            chosen(&["NOPE"], &[])
                .unwrap_err()
                .to_string()
                .contains("unknown capability")
        );
    }

    #[test]
    fn security_options() {
        let parsed = options(&list(&[
            "seccomp=unconfined",
            "no-new-privileges:true",
            "apparmor=unconfined",
            "systempaths=unconfined",
            "label=disable",
            "label=type:x",
        ]))
        .unwrap();
        assert_eq!(parsed.seccomp, Seccomp::Unconfined);
        assert!(parsed.no_new_privileges && parsed.unmask);
        for wrong in ["nonsense", "foo=bar", "no-new-privileges=maybe"] {
            assert!(options(&list(&[wrong])).is_err(), "{wrong}");
        }
    }
}
