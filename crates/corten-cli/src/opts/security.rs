//! `--security-opt`, namespace modes, system call settings that Docker checks in its client.

use super::{OptError, Result};

/// Security options and the two lists of paths that `systempaths=unconfined` empties.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Security {
    /// For `HostConfig.SecurityOpt`.
    pub options: Vec<String>,
    /// Nothing of `/proc` and `/sys` masked or read-only.
    pub unconfined_paths: bool,
}

/// Capabilities as the engine is told them: `NET_ADMIN`, `cap_net_admin` alike.
#[must_use]
pub fn capabilities(values: &[&str]) -> Vec<String> {
    let whole = values.iter().map(|value| {
        let upper = value.trim().to_ascii_uppercase();
        match upper.as_str() {
            "ALL" => upper,
            name if name.starts_with("CAP_") => upper,
            _ => format!("CAP_{upper}"),
        }
    });
    let sorted: std::collections::BTreeSet<String> = whole.collect();
    sorted.into_iter().collect()
}

/// Parses all `--security-opt` values. A seccomp profile is read from its file and sent as
/// JSON, since the engine may be on another machine.
///
/// # Errors
/// An option without a value, a profile that cannot be read.
pub fn parse(values: &[&str]) -> Result<Security> {
    let mut out = Security::default();
    for value in values {
        if *value == "systempaths=unconfined" {
            out.unconfined_paths = true;
            continue;
        }
        if *value == "no-new-privileges" {
            out.options.push((*value).into());
            continue;
        }
        let pair = value.split_once('=').or_else(|| value.split_once(':'));
        let Some((key, setting)) = pair else {
            return Err(OptError::new(format!("Invalid --security-opt: {value:?}")));
        };
        if key == "seccomp" && !matches!(setting, "unconfined" | "builtin") {
            out.options.push(format!("seccomp={}", profile(setting)?));
        } else {
            out.options.push((*value).into());
        }
    }
    Ok(out)
}

fn profile(path: &str) -> Result<String> {
    let text = std::fs::read(path).map_err(|error| {
        OptError::new(format!(
            "opening seccomp profile ({path}) failed: open {path}: {}",
            crate::error::reason(&error)
        ))
    })?;
    serde_json::from_slice::<serde_json::Value>(&text)
        .map(|json| json.to_string())
        .map_err(|error| {
            OptError::new(format!(
                "compacting json for seccomp profile ({path}) failed: {error}"
            ))
        })
}

/// `--sysctl name=value`; only namespaced ones make sense for a container.
pub(crate) fn check_sysctl(text: &str) -> std::result::Result<(), String> {
    const NAMED: &[&str] = &[
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    let allowed = text.split_once('=').is_some_and(|(name, _)| {
        NAMED.contains(&name) || name.starts_with("net.") || name.starts_with("fs.mqueue.")
    });
    if allowed {
        Ok(())
    } else {
        Err(format!("sysctl '{text}' is not allowed"))
    }
}

/// A namespace mode: empty, one of `words`, or `container:NAME` where `container` allows it.
///
/// # Errors
/// Anything else, named after its flag.
pub fn mode(flag: &str, kind: &str, text: &str, words: &[&str], container: bool) -> Result<()> {
    let joins = container
        && text
            .strip_prefix("container:")
            .is_some_and(|name| !name.is_empty());
    if text.is_empty() || words.contains(&text) || joins {
        Ok(())
    } else {
        Err(OptError::new(format!("--{flag}: invalid {kind} mode")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_have_one_form() {
        assert_eq!(
            capabilities(&["net_admin", "CAP_CHOWN", "NET_ADMIN", "all"]),
            ["ALL", "CAP_CHOWN", "CAP_NET_ADMIN"]
        );
    }

    #[test]
    fn options() {
        let ok = parse(&[
            "no-new-privileges",
            "seccomp=unconfined",
            "apparmor:x",
            "systempaths=unconfined",
        ])
        .unwrap();
        assert_eq!(
            ok.options,
            ["no-new-privileges", "seccomp=unconfined", "apparmor:x"]
        );
        assert!(ok.unconfined_paths);
        assert_eq!(
            parse(&["x"]).unwrap_err().0,
            "Invalid --security-opt: \"x\""
        );
        assert_eq!(
            parse(&["seccomp=/nope"]).unwrap_err().0,
            "opening seccomp profile (/nope) failed: open /nope: no such file or directory"
        );
    }

    #[test]
    fn sysctls_and_modes() {
        assert!(check_sysctl("net.ipv4.ip_forward=1").is_ok());
        assert_eq!(check_sysctl("x").unwrap_err(), "sysctl 'x' is not allowed");
        assert!(mode("pid", "PID", "host", &["host"], true).is_ok());
        assert!(mode("pid", "PID", "container:a", &["host"], true).is_ok());
        assert_eq!(
            mode("pid", "PID", "x", &["host"], true).unwrap_err().0,
            "--pid: invalid PID mode"
        );
    }
}
