//! Documents in one order: fields as the models have them, maps by their keys, as Docker writes
//! them. The models' maps are in another order each time.

use axum::Json;
use serde::Serialize;
use serde_json::Value;

use crate::error::ApiError;

/// Fields that are maps.
const MAPS: &[&str] = &[
    "Annotations",
    "AuxiliaryAddresses",
    "Containers",
    "Data",
    "DriverOpts",
    "EndpointsConfig",
    "ExposedPorts",
    "Labels",
    "Networks",
    "Options",
    "PortBindings",
    "Ports",
    "Status",
    "StorageOpt",
    "Sysctls",
    "Tmpfs",
    "Volumes",
];

/// A document as it is answered.
pub(crate) fn ordered(document: impl Serialize) -> Result<Json<Value>, ApiError> {
    let document = serde_json::to_value(document);
    let mut document = document.map_err(|error| ApiError::internal(error.to_string()))?;
    sort(&mut document, "");
    Ok(Json(document))
}

fn sort(value: &mut Value, name: &str) {
    match value {
        Value::Object(fields) => {
            if MAPS.contains(&name) {
                fields.sort_keys();
            }
            for (key, value) in fields {
                // The one of a container is none.
                let key = match (name, key.as_str()) {
                    ("LogConfig", "Config") => "Options",
                    (_, key) => key,
                };
                sort(value, key);
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| sort(value, "")),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn maps_are_sorted_and_fields_are_not() {
        let document = json!({
            "Name": "n",
            "Config": { "Labels": { "b": "1", "a": "2" }, "Env": ["z", "y"] },
            "HostConfig": { "LogConfig": { "Type": "t", "Config": { "z": "1", "y": "2" } } },
            "Mounts": [{ "Type": "volume", "Options": { "q": "", "p": "" } }],
        });
        let Json(sorted) = ordered(document).unwrap();
        assert_eq!(
            sorted.to_string(),
            r#"{"Name":"n","Config":{"Labels":{"a":"2","b":"1"},"Env":["z","y"]},"HostConfig":{"LogConfig":{"Type":"t","Config":{"y":"2","z":"1"}}},"Mounts":[{"Type":"volume","Options":{"p":"","q":""}}]}"#
        );
    }
}
