//! Devices of the host given to containers (`--device`, `--privileged`).

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use bollard_stubs::models::DeviceMapping;
use corten_cdi::{node, rule};
use corten_oci::runtime_spec::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

use super::{bad, paths};
use crate::error::EngineError;

/// How deep a directory of devices is followed.
const DEPTH: u32 = 6;

/// Devices and the rules that allow their use.
#[derive(Debug, Default)]
pub(crate) struct Devices {
    pub(crate) nodes: Vec<LinuxDevice>,
    pub(crate) rules: Vec<LinuxDeviceCgroup>,
}

/// Resolves `Devices`: single nodes, or directories of them.
pub(crate) fn mapped(list: &[DeviceMapping]) -> Result<Devices, EngineError> {
    let mut devices = Devices::default();
    for mapping in list {
        let host = mapping.path_on_host.as_deref().unwrap_or("");
        let inside = mapping
            .path_in_container
            .as_deref()
            .filter(|p| !p.is_empty())
            .unwrap_or(host);
        let access = mapping
            .cgroup_permissions
            .as_deref()
            .filter(|p| !p.is_empty())
            .unwrap_or("rwm");
        if !access.bytes().all(|b| b"rwm".contains(&b)) {
            return Err(bad(format!("invalid device mode: {access}")));
        }
        let inside = paths::clean_absolute(inside)
            .ok_or_else(|| bad(format!("invalid device path: {inside}")))?;
        let before = devices.nodes.len();
        collect(
            Path::new(host),
            Path::new(&inside),
            access,
            DEPTH,
            &mut devices,
        )
        .map_err(|error| {
            bad(format!(
                "error gathering device information while adding custom device \"{host}\": {}",
                text(&error)
            ))
        })?;
        if devices.nodes.len() == before {
            return Err(bad(format!(
                "error gathering device information while adding custom device \"{host}\": not a device node"
            )));
        }
    }
    Ok(devices)
}

/// An error in Docker's words, by which clients tell a missing file from others.
fn text(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

/// Every device of the host, for privileged containers.
pub(crate) fn all() -> Vec<LinuxDevice> {
    let mut devices = Devices::default();
    // A device that vanishes meanwhile is no reason to fail.
    if let Err(error) = collect(
        Path::new("/dev"),
        Path::new("/dev"),
        "rwm",
        DEPTH,
        &mut devices,
    ) {
        tracing::debug!(%error, "host devices are incomplete");
    }
    devices.nodes
}

fn collect(
    host: &Path,
    inside: &Path,
    access: &str,
    depth: u32,
    devices: &mut Devices,
) -> std::io::Result<()> {
    // A mapping may name a link (`/dev/disk/by-id/…`); what a directory holds may not.
    let meta = if depth == DEPTH {
        std::fs::metadata(host)?
    } else {
        std::fs::symlink_metadata(host)?
    };
    if meta.is_dir() {
        const SKIPPED: &[&str] = &[
            "pts",
            "shm",
            "fd",
            "mqueue",
            ".lxc",
            ".lxd-mounts",
            ".udev",
            "console",
        ];
        if depth == 0 {
            return Ok(());
        }
        let mut entries: Vec<_> = std::fs::read_dir(host)?.filter_map(Result::ok).collect();
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name();
            if SKIPPED.iter().any(|s| name == *s) {
                continue;
            }
            match collect(
                &host.join(&name),
                &inside.join(&name),
                access,
                depth - 1,
                devices,
            ) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        return Ok(());
    }
    let typ = if meta.file_type().is_char_device() {
        LinuxDeviceType::C
    } else if meta.file_type().is_block_device() {
        LinuxDeviceType::B
    } else {
        return Ok(());
    };
    if host == Path::new("/dev/console") {
        return Ok(());
    }
    let (major, minor) = numbers(meta.rdev());
    devices.nodes.push(node(
        inside.to_owned(),
        typ,
        (major, minor),
        meta.mode() & 0o7777,
        (meta.uid(), meta.gid()),
    )?);
    devices
        .rules
        .push(rule(typ, Some(major), Some(minor), access)?);
    Ok(())
}

pub(super) fn numbers(device: u64) -> (i64, i64) {
    (
        i64::from(rustix::fs::major(device)),
        i64::from(rustix::fs::minor(device)),
    )
}

/// Reads `DeviceCgroupRules`: `c 13:* rwm`.
pub(crate) fn cgroup_rules(list: &[String]) -> Result<Vec<LinuxDeviceCgroup>, EngineError> {
    list.iter()
        .map(|text| {
            let invalid = || bad(format!("invalid device cgroup rule format: '{text}'"));
            let fields: Vec<&str> = text.split(' ').collect();
            let [typ, numbers, access] = fields.as_slice() else {
                return Err(invalid());
            };
            let typ = match *typ {
                "a" => LinuxDeviceType::A,
                "b" => LinuxDeviceType::B,
                "c" => LinuxDeviceType::C,
                _ => return Err(invalid()),
            };
            let number = |t: &str| -> Result<Option<i64>, EngineError> {
                if t == "*" {
                    Ok(None)
                } else {
                    t.parse().map(Some).map_err(|_| invalid())
                }
            };
            let (major, minor) = numbers.split_once(':').ok_or_else(invalid)?;
            if access.is_empty() || !access.bytes().all(|b| b"rwm".contains(&b)) {
                return Err(invalid());
            }
            rule(typ, number(major)?, number(minor)?, access).map_err(|_| invalid())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(host: &str, inside: &str, access: &str) -> DeviceMapping {
        DeviceMapping {
            path_on_host: Some(host.to_owned()),
            path_in_container: Some(inside.to_owned()),
            cgroup_permissions: Some(access.to_owned()),
        }
    }

    #[test]
    fn single_devices_keep_their_numbers() {
        let devices = mapped(&[mapping("/dev/null", "/dev/nothing", "r")]).unwrap();
        assert_eq!(devices.nodes.len(), 1);
        assert_eq!((devices.nodes[0].major(), devices.nodes[0].minor()), (1, 3));
        assert_eq!(devices.nodes[0].path(), Path::new("/dev/nothing"));
        assert_eq!(devices.rules[0].access().as_deref(), Some("r"));
    }

    #[test]
    fn what_is_no_device_is_refused() {
        for wrong in [
            mapping("/etc/passwd", "", ""),
            mapping("/dev/no-such-device", "", ""),
            mapping("/dev/null", "relative", ""),
            mapping("/dev/null", "", "rx"),
        ] {
            assert!(mapped(std::slice::from_ref(&wrong)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn rules() {
        assert!(cgroup_rules(&["c 13:* rwm".to_owned(), "a *:* r".to_owned()]).is_ok());
        for wrong in ["c 13 rwm", "x 1:1 r", "c 1:1 z", "c 1:1", ""] {
            assert!(cgroup_rules(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
    }
}
