//! Names: `slice:prefix:name` of a configuration, the scope unit it means, and where
//! systemd puts that unit's group.

use serde::{Deserialize, Serialize};

use super::bus::Bus;
use crate::error::RuntimeError;

/// The transient scope a container lives in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// The slice above it.
    pub slice: String,
    /// The scope's own name.
    pub name: String,
    /// It belongs to the caller's own systemd instance.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub user: bool,
}

impl Unit {
    /// From `linux.cgroupsPath`: `slice:prefix:name`, where the name of a slice or of the
    /// scope may be left out.
    pub(in crate::cgroup) fn from_config(
        given: Option<&str>,
        id: &str,
        user: bool,
    ) -> Result<Self, RuntimeError> {
        let invalid = |reason: String| RuntimeError::spec("linux.cgroupsPath", reason);
        let (slice, prefix, name) = match given {
            None => ("", "corten", id),
            Some(given) => {
                let mut parts = given.split(':');
                match (parts.next(), parts.next(), parts.next(), parts.next()) {
                    (Some(slice), Some(prefix), Some(name), None) => (slice, prefix, name),
                    _ => {
                        return Err(invalid(format!(
                            "{given:?} is not slice:prefix:name, as the systemd driver has it"
                        )));
                    }
                }
            }
        };
        let slice = match slice {
            "" if user => "user.slice",
            "" => "system.slice",
            slice => slice,
        };
        let name = if name.is_empty() { id } else { name };
        let name = if prefix.is_empty() {
            format!("{name}.scope")
        } else {
            format!("{prefix}-{name}.scope")
        };
        let unit = Self {
            slice: slice.to_owned(),
            name,
            user,
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:@\\".contains(c);
        if unit.name.len() > 255 || !unit.name.chars().all(plain) {
            return Err(invalid(format!(
                "{:?} is not the name of a unit",
                unit.name
            )));
        }
        expand(&unit.slice).ok_or_else(|| invalid(format!("{slice:?} is not a slice")))?;
        Ok(unit)
    }

    /// The path of its group. For a user's instance that is below the instance's own, so it
    /// is asked.
    pub(in crate::cgroup) fn group_path(&self) -> Result<String, RuntimeError> {
        let mut path = String::new();
        if self.user {
            let property =
                Bus::connect(true).and_then(|mut bus| bus.manager_property("ControlGroup"));
            path.push_str(&property.map_err(|error| error.of(&self.name))?);
        }
        path.push_str(&expand(&self.slice).unwrap_or_default());
        path.push('/');
        path.push_str(&self.name);
        Ok(path.trim_start_matches('/').to_owned())
    }
}

/// `a-b.slice` is below `a.slice`: `/a.slice/a-b.slice`. `-.slice` is the root.
fn expand(slice: &str) -> Option<String> {
    let name = slice.strip_suffix(".slice")?;
    if name == "-" {
        return Some(String::new());
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:@\\".contains(c);
    if !name.chars().all(plain) {
        return None;
    }
    let (mut path, mut prefix) = (String::new(), String::new());
    for part in name.split('-') {
        if part.is_empty() {
            return None;
        }
        path.push_str(&format!("/{prefix}{part}.slice"));
        prefix.push_str(&format!("{part}-"));
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices() {
        for (slice, path) in [
            ("system.slice", Some("/system.slice")),
            ("a-b-c.slice", Some("/a.slice/a-b.slice/a-b-c.slice")),
            ("-.slice", Some("")),
            (".slice", None),
            ("a--b.slice", None),
            ("-a.slice", None),
            ("a/b.slice", None),
            ("system", None),
        ] {
            assert_eq!(expand(slice).as_deref(), path, "{slice}");
        }
    }

    #[test]
    fn configurations() {
        let unit = |given: Option<&str>| Unit::from_config(given, "c1", false);
        let path = |given: Option<&str>| unit(given).unwrap().group_path().unwrap();
        assert_eq!(path(None), "system.slice/corten-c1.scope");
        assert_eq!(
            path(Some("machine.slice:libpod:c1")),
            "machine.slice/libpod-c1.scope"
        );
        assert_eq!(path(Some("::x")), "system.slice/x.scope");
        assert_eq!(path(Some("-.slice:p:")), "p-c1.scope");
        for wrong in [
            "/a/b",
            "a:b",
            "a:b:c",
            "a.slice:b:../x",
            "a.slice:b:c:d",
            "/.slice:a:b",
        ] {
            assert!(unit(Some(wrong)).is_err(), "{wrong}");
        }
        let user = Unit::from_config(None, "c1", true).unwrap();
        assert_eq!(user.slice, "user.slice");
    }
}
