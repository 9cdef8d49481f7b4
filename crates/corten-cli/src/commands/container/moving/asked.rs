//! What a container of an archive asks for that reaches beyond it. An archive may be anybody's:
//! whoever loads it is to know before the container is started.

use serde_json::{Map, Value};

/// Fields that say which of the host's namespaces are used.
const NAMESPACES: [(&str, &str); 6] = [
    ("NetworkMode", "network"),
    ("PidMode", "process"),
    ("IpcMode", "IPC"),
    ("UTSMode", "UTS"),
    ("UsernsMode", "user"),
    ("CgroupnsMode", "control group"),
];

/// What a `HostConfig` asks for, in words, none of which drive a terminal.
pub(super) fn beyond(host_config: &Map<String, Value>) -> Vec<String> {
    let mut asked = Vec::new();
    if host_config.get("Privileged") == Some(&Value::Bool(true)) {
        asked.push("is privileged: it may do to this machine what root may".to_owned());
    }
    for (field, name) in NAMESPACES {
        if host_config.get(field).and_then(Value::as_str) == Some("host") {
            asked.push(format!("uses the {name} namespace of this machine"));
        }
    }
    let binds = strings(host_config, "Binds").filter_map(|bind| bind.split(':').next());
    let mounts = objects(host_config, "Mounts")
        .filter(|mount| mount.get("Type").and_then(Value::as_str) == Some("bind"))
        .filter_map(|mount| mount.get("Source").and_then(Value::as_str));
    for path in binds.chain(mounts).filter(|path| path.starts_with('/')) {
        asked.push(format!("uses {path} of this machine"));
    }
    let devices = objects(host_config, "Devices")
        .filter_map(|device| device.get("PathOnHost").and_then(Value::as_str));
    for device in devices {
        asked.push(format!("uses device {device} of this machine"));
    }
    for (field, what) in [
        ("DeviceCgroupRules", "may use devices:"),
        ("CapAdd", "has capability"),
        ("SecurityOpt", "has security option"),
    ] {
        asked.extend(strings(host_config, field).map(|value| format!("{what} {value}")));
    }
    if objects(host_config, "DeviceRequests").next().is_some() {
        asked.push("uses devices of this machine by name".to_owned());
    }
    let printed = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    asked
        .into_iter()
        .map(|what| what.chars().map(printed).collect())
        .collect()
}

fn list<'a>(map: &'a Map<String, Value>, field: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    map.get(field)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

fn strings<'a>(
    map: &'a Map<String, Value>,
    field: &str,
) -> impl Iterator<Item = &'a str> + use<'a> {
    list(map, field).filter_map(Value::as_str)
}

fn objects<'a>(
    map: &'a Map<String, Value>,
    field: &str,
) -> impl Iterator<Item = &'a Map<String, Value>> + use<'a> {
    list(map, field).filter_map(Value::as_object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_reaches_beyond_a_container_is_told() {
        let host_config = json!({
            "Privileged": true, "PidMode": "host", "NetworkMode": "default",
            "Binds": ["/etc:/host:ro", "data:/data"],
            "Mounts": [{"Type": "bind", "Source": "/srv", "Target": "/s"},
                       {"Type": "tmpfs", "Target": "/t"}],
            "Devices": [{"PathOnHost": "/dev/sda"}], "CapAdd": ["SYS\rADMIN"],
            "SecurityOpt": ["seccomp=unconfined"], "DeviceCgroupRules": ["c *:* rwm"],
        });
        let told = beyond(host_config.as_object().unwrap());
        let expected = [
            "is privileged: it may do to this machine what root may",
            "uses the process namespace of this machine",
            "uses /etc of this machine",
            "uses /srv of this machine",
            "uses device /dev/sda of this machine",
            "may use devices: c *:* rwm",
            "has capability SYS\u{fffd}ADMIN",
            "has security option seccomp=unconfined",
        ];
        assert_eq!(told, expected);
        let plain = json!({"Privileged": false, "Binds": null, "Memory": 7, "PidMode": ""});
        assert!(beyond(plain.as_object().unwrap()).is_empty());
    }
}
