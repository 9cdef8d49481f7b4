//! Which group a container lives in, and who makes it: Corten itself by file operations
//! (the "cgroupfs" driver) or systemd, which gets a transient scope unit to make (the
//! "systemd" driver). Kept with the container's state, so that whoever updates or deletes
//! it later goes the same way.

use serde::{Deserialize, Serialize};

use super::systemd::Unit;
use crate::error::RuntimeError;
use crate::namespaces::userns::in_user_namespace;

/// A container's control group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupSpec {
    /// Path of the group relative to the roots of the hierarchies, without a leading
    /// slash: `corten/<id>`. Missing parents are created, and stay unless the container
    /// does not come into being; the last component must not exist yet.
    pub path: String,
    /// The unit, if systemd makes the group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub systemd: Option<Unit>,
    /// Make the group in every hierarchy, not only in those a limit or the runtime needs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub everywhere: bool,
    /// On v2, have what statistics are read from as far as the host has it:
    /// memory, processes and block I/O, limited or not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub counted: bool,
}

impl CgroupSpec {
    /// The group at `path` (see [`CgroupSpec::path`]), made by file operations.
    pub fn new(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            systemd: None,
            everywhere: false,
            counted: false,
        }
    }

    /// The group at `path` of a container whose statistics will be asked for.
    pub fn counted(path: impl Into<String>) -> Self {
        Self {
            counted: true,
            ..Self::new(path)
        }
    }

    /// What `linux.cgroupsPath` of a configuration means for the container `id`. With
    /// `systemd` it is `slice:prefix:name` as runc has it, and for an unprivileged caller
    /// its own systemd instance is asked where its groups are.
    ///
    /// Whoever names a path (engines do) looks there itself, for statistics above all; in
    /// a hierarchy without the group it would read those of the whole host.
    pub fn from_config(given: Option<&str>, id: &str, systemd: bool) -> Result<Self, RuntimeError> {
        let given = given.filter(|path| !path.is_empty());
        if systemd {
            let user = !rustix::process::geteuid().is_root() || in_user_namespace();
            let unit = Unit::from_config(given, id, user)?;
            let path = unit.group_path()?;
            return Ok(Self {
                path,
                systemd: Some(unit),
                everywhere: given.is_some(),
                counted: given.is_some(),
            });
        }
        match given {
            Some(path) if path.contains(':') && !path.contains('/') => Err(RuntimeError::spec(
                "linux.cgroupsPath",
                format!("{path:?} is for the systemd driver (--systemd-cgroup)"),
            )),
            Some(path) => Ok(Self {
                everywhere: true,
                ..Self::counted(crate::root::clean(path).trim_start_matches('/'))
            }),
            None => Ok(Self::new(format!("corten-runtime/{id}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_a_configuration() {
        let path =
            |given: Option<&str>| CgroupSpec::from_config(given, "c1", false).map(|spec| spec.path);
        assert_eq!(path(None).unwrap(), "corten-runtime/c1");
        assert_eq!(path(Some("")).unwrap(), "corten-runtime/c1");
        assert_eq!(path(Some("/a/b")).unwrap(), "a/b");
        assert_eq!(path(Some("/a/../../b")).unwrap(), "b");
        assert!(path(Some("system.slice:corten:c1")).is_err());
        let everywhere = |given: Option<&str>| {
            CgroupSpec::from_config(given, "c1", false).map(|spec| spec.everywhere)
        };
        assert!(everywhere(Some("/a/b")).unwrap());
        assert!(!everywhere(None).unwrap());
    }

    #[test]
    fn states_without_systemd_are_short() {
        let json = serde_json::to_string(&CgroupSpec::new("a/b")).unwrap();
        assert_eq!(json, r#"{"path":"a/b"}"#);
        assert_eq!(
            serde_json::from_str::<CgroupSpec>(&json).unwrap(),
            CgroupSpec::new("a/b")
        );
    }
}
