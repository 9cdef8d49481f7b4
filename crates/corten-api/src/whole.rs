//! Documents with every field that Docker's have. The models leave out what is not set; Docker
//! writes `null` or nothing's value, and programs that go through a document by its fields
//! (`docker inspect | jq`, templates) miss what is not there.

use corten_engine::models;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::error::ApiError;

/// Adds fields of `fields` that the document lacks; `*` stands for each of a map's entries.
pub(crate) fn complete(document: &mut Value, fields: &Value) {
    let (Some(document), Some(fields)) = (document.as_object_mut(), fields.as_object()) else {
        return;
    };
    for (key, value) in fields {
        if key == "*" {
            document
                .values_mut()
                .for_each(|entry| complete(entry, value));
        } else if let Some(existing) = document.get_mut(key) {
            complete(existing, value);
        } else if !value.is_object() || value.as_object().is_some_and(Map::is_empty) {
            document.insert(key.clone(), value.clone());
        }
    }
}

/// Replaces what is empty by `null` at places where Docker writes that.
pub(crate) fn null_if_empty(document: &mut Value, pointers: &[&str]) {
    for pointer in pointers {
        if let Some(value) = document.pointer_mut(pointer)
            && (value.as_object().is_some_and(Map::is_empty)
                || value.as_array().is_some_and(Vec::is_empty))
        {
            *value = Value::Null;
        }
    }
}

/// What a container's document has.
pub(crate) fn container() -> Value {
    json!({
        "ExecIDs": null,
        "Config": config(),
        "HostConfig": host_config(),
        "NetworkSettings": {
            "HairpinMode": false, "LinkLocalIPv6Address": "", "LinkLocalIPv6PrefixLen": 0,
            "SecondaryIPAddresses": null, "SecondaryIPv6Addresses": null,
            "Networks": { "*": {
                "Aliases": null, "DNSNames": null, "DriverOpts": null, "GwPriority": 0,
                "IPAMConfig": null, "Links": null,
            } },
        },
    })
}

fn config() -> Value {
    json!({
        "AttachStderr": false, "AttachStdin": false, "AttachStdout": false, "Cmd": null,
        "Domainname": "", "Entrypoint": null, "Env": [], "Hostname": "", "Image": "",
        "Labels": {}, "OnBuild": null, "OpenStdin": false, "StdinOnce": false, "Tty": false,
        "User": "", "Volumes": null, "WorkingDir": "",
    })
}

fn host_config() -> Value {
    let group = |names: &[&str], value: &Value| -> Vec<(String, Value)> {
        let fields = names.iter().map(|name| ((*name).to_owned(), value.clone()));
        fields.collect()
    };
    let no = [
        "AutoRemove",
        "OomKillDisable",
        "Privileged",
        "PublishAllPorts",
        "ReadonlyRootfs",
    ];
    let nothing = [
        "Cgroup",
        "CgroupParent",
        "ContainerIDFile",
        "CpusetCpus",
        "CpusetMems",
        "Isolation",
        "PidMode",
        "UTSMode",
        "UsernsMode",
        "VolumeDriver",
    ];
    let zero = [
        "BlkioWeight",
        "CpuCount",
        "CpuPercent",
        "CpuPeriod",
        "CpuQuota",
        "CpuRealtimePeriod",
        "CpuRealtimeRuntime",
        "CpuShares",
        "IOMaximumBandwidth",
        "IOMaximumIOps",
        "Memory",
        "MemoryReservation",
        "MemorySwap",
        "NanoCpus",
        "OomScoreAdj",
    ];
    let none = [
        "BlkioDeviceReadBps",
        "BlkioDeviceReadIOps",
        "BlkioDeviceWriteBps",
        "BlkioDeviceWriteIOps",
        "BlkioWeightDevice",
        "Devices",
        "Dns",
        "DnsOptions",
        "DnsSearch",
        "Ulimits",
    ];
    let null = [
        "Binds",
        "CapAdd",
        "CapDrop",
        "DeviceCgroupRules",
        "DeviceRequests",
        "ExtraHosts",
        "GroupAdd",
        "Links",
        "MaskedPaths",
        "MemorySwappiness",
        "PidsLimit",
        "ReadonlyPaths",
        "SecurityOpt",
        "VolumesFrom",
    ];
    let mut fields = Map::new();
    fields.extend(group(&no, &json!(false)));
    fields.extend(group(&nothing, &json!("")));
    fields.extend(group(&zero, &json!(0)));
    fields.extend(group(&none, &json!([])));
    fields.extend(group(&null, &Value::Null));
    fields.extend(group(&["ConsoleSize"], &json!([0, 0])));
    fields.extend(group(&["PortBindings"], &json!({})));
    fields.into()
}

/// What an image's document has.
pub(crate) fn image() -> Value {
    json!({ "DockerVersion": "", "Parent": "" })
}

/// What a network's document has.
fn network_fields() -> Value {
    json!({ "IPAM": { "Options": null } })
}

/// What the engine's description has.
fn info_fields() -> Value {
    json!({
        "CDISpecDirs": [], "GenericResources": null, "Isolation": "", "Labels": [],
        "OSVersion": "", "Plugins": { "Authorization": null },
        "Swarm": {
            "ControlAvailable": false, "Error": "", "NodeAddr": "", "NodeID": "",
            "RemoteManagers": null,
        },
    })
}

/// The engine's description as Docker writes it.
pub(crate) fn info(info: &models::SystemInfo) -> Result<Value, ApiError> {
    let mut document = value(info)?;
    complete(&mut document, &info_fields());
    Ok(document)
}

/// A network as Docker writes it.
pub(crate) fn network(network: &models::NetworkInspect) -> Result<Value, ApiError> {
    let mut document = value(network)?;
    complete(&mut document, &network_fields());
    null_if_empty(&mut document, &["/IPAM/Config"]);
    Ok(document)
}

/// A volume as Docker writes it.
pub(crate) fn volume(volume: &models::Volume) -> Result<Value, ApiError> {
    let mut document = value(volume)?;
    null_if_empty(&mut document, &["/Labels", "/Options"]);
    Ok(document)
}

/// A model as a document.
pub(crate) fn value(document: &impl Serialize) -> Result<Value, ApiError> {
    serde_json::to_value(document).map_err(|error| ApiError::internal(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_added() {
        let mut document = json!({
            "A": { "Set": 1 },
            "Networks": { "x": { "Aliases": ["y"] }, "z": {} },
        });
        let fields = json!({
            "A": { "Set": null, "Open": null },
            "Absent": { "Inner": null },
            "Empty": {},
            "Networks": { "*": { "Aliases": null } },
        });
        complete(&mut document, &fields);
        let expected = json!({
            "A": { "Set": 1, "Open": null },
            "Empty": {},
            "Networks": { "x": { "Aliases": ["y"] }, "z": { "Aliases": null } },
        });
        assert_eq!(document, expected);
    }

    #[test]
    fn nothing_is_null() {
        let mut document = json!({ "A": {}, "B": { "C": [] }, "D": [1] });
        null_if_empty(&mut document, &["/A", "/B/C", "/D", "/E"]);
        assert_eq!(document, json!({ "A": null, "B": { "C": null }, "D": [1] }));
    }
}
