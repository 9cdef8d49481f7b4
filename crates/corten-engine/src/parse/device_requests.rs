//! `DeviceRequests`: devices that CDI describes (`--device vendor/class=name`), and GPUs
//! (`--gpus`), which are devices of the vendors' classes.

use bollard_stubs::models::{DeviceRequest, HostConfig};
use corten_cdi::{Changes, Registry};

use super::bad;
use crate::error::EngineError;

type Result<T> = std::result::Result<T, EngineError>;

/// GPUs by the driver that a request may name, and as their vendors describe them.
const GPUS: [(&str, &str); 3] = [
    ("nvidia", "nvidia.com/gpu"),
    ("amd", "amd.com/gpu"),
    ("intel", "intel.com/gpu"),
];

/// What the devices asked for change; `None`: none are.
pub(crate) fn changes(host: &HostConfig) -> Result<Option<Changes>> {
    let requests = host.device_requests.as_deref().unwrap_or_default();
    if requests.is_empty() {
        return Ok(None);
    }
    let registry = Registry::read(&crate::builder::cdi_directories());
    let mut names = Vec::new();
    for request in requests {
        names.extend(of_request(&registry, request)?);
    }
    names.sort_unstable();
    names.dedup();
    let changes = registry.changes(&names);
    changes.map(Some).map_err(|error| bad(error.to_string()))
}

/// The whole names of the devices of a request.
fn of_request(registry: &Registry, request: &DeviceRequest) -> Result<Vec<String>> {
    let driver = request.driver.as_deref().unwrap_or_default();
    let ids = request.device_ids.as_deref().unwrap_or_default();
    if driver == "cdi" {
        return all(registry, ids.iter().cloned());
    }
    let capabilities = request.capabilities.as_deref().unwrap_or_default();
    let gpu = capabilities.iter().flatten().any(|wanted| wanted == "gpu");
    let kind = GPUS.iter().find(|(vendor, kind)| {
        let meant = driver.is_empty() || driver == *vendor;
        gpu && meant && !registry.find(kind).is_empty()
    });
    let Some((_, kind)) = kind else {
        return Err(bad(format!(
            "could not select device driver \"{driver}\" with capabilities: {}",
            words(capabilities)
        )));
    };
    if request
        .options
        .as_ref()
        .is_some_and(|options| !options.is_empty())
    {
        return Err(bad(
            "options of device requests are not supported: CDI devices have none",
        ));
    }
    match request.count.unwrap_or(0) {
        0 if ids.is_empty() => Err(bad("no GPUs are asked for: neither a count nor ids")),
        0 => all(registry, ids.iter().map(|id| format!("{kind}={id}"))),
        _ if !ids.is_empty() => Err(bad("cannot set both Count and DeviceIDs on device request")),
        -1 => {
            let every = format!("{kind}=all");
            let known = !registry.find(&every).is_empty();
            let wanted = if known { every } else { format!("{kind}=*") };
            all(registry, [wanted])
        }
        count if count < 0 => Err(bad(format!("invalid count of devices: {count}"))),
        count => all(registry, (0..count).map(|n| format!("{kind}={n}"))),
    }
}

/// As Go prints them.
fn words(capabilities: &[Vec<String>]) -> String {
    let sets: Vec<String> = capabilities
        .iter()
        .map(|set| format!("[{}]", set.join(" ")))
        .collect();
    format!("[{}]", sets.join(" "))
}

fn all(registry: &Registry, wanted: impl IntoIterator<Item = String>) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for name in wanted {
        let found = registry.find(&name);
        if found.is_empty() {
            return Err(bad(registry.missing(&name).to_string()));
        }
        names.extend(found.into_iter().map(str::to_owned));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> (tempfile::TempDir, Registry) {
        let dir = tempfile::tempdir().unwrap();
        let text =
            "cdiVersion: 0.6.0\nkind: amd.com/gpu\ndevices:\n- {name: \"0\"}\n- {name: \"1\"}\n";
        std::fs::write(dir.path().join("amd.yaml"), text).unwrap();
        let registry = Registry::read(&[dir.path().to_owned()]);
        (dir, registry)
    }

    fn gpus(count: i64, ids: &[&str]) -> DeviceRequest {
        DeviceRequest {
            count: Some(count),
            device_ids: Some(ids.iter().map(|id| (*id).to_owned()).collect()),
            capabilities: Some(vec![vec!["gpu".to_owned()]]),
            ..DeviceRequest::default()
        }
    }

    #[test]
    fn gpus_are_devices_of_their_vendors() {
        let (_dir, registry) = registry();
        let names = |request: &DeviceRequest| {
            of_request(&registry, request).map_err(|error| error.to_string())
        };
        assert_eq!(names(&gpus(1, &[])).unwrap(), ["amd.com/gpu=0"]);
        assert_eq!(
            names(&gpus(-1, &[])).unwrap(),
            ["amd.com/gpu=0", "amd.com/gpu=1"]
        );
        assert_eq!(names(&gpus(0, &["1"])).unwrap(), ["amd.com/gpu=1"]);
        assert!(names(&gpus(3, &[])).unwrap_err().contains("amd.com/gpu=2"));
        assert!(
            names(&gpus(1, &["1"]))
                .unwrap_err()
                .contains("cannot set both")
        );
        let mut other = gpus(1, &[]);
        other.driver = Some("nvidia".to_owned());
        assert_eq!(
            names(&other).unwrap_err(),
            "could not select device driver \"nvidia\" with capabilities: [[gpu]]"
        );
        let named = DeviceRequest {
            driver: Some("cdi".to_owned()),
            device_ids: Some(vec!["amd.com/gpu=1".to_owned()]),
            ..DeviceRequest::default()
        };
        assert_eq!(names(&named).unwrap(), ["amd.com/gpu=1"]);
    }
}
