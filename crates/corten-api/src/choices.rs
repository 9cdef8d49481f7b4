//! Fields of a container that are one of a few words. The models read nothing else, and what
//! they say of it names a column; Docker names the field and the words.

use serde_json::Value;

/// What is wrong with a document that could not be read, if it is such a field.
pub(crate) fn explain(document: &[u8]) -> Option<String> {
    let document: Value = serde_json::from_slice(document).ok()?;
    let host = &document["HostConfig"];
    let unknown = |value: &Value, known: &[&str]| -> Option<String> {
        let word = value.as_str()?;
        (!known.contains(&word)).then(|| word.to_owned())
    };
    let policies = ["", "no", "always", "on-failure", "unless-stopped"];
    if let Some(policy) = unknown(&host["RestartPolicy"]["Name"], &policies) {
        return Some(format!(
            "invalid restart policy: unknown policy '{policy}'; use one of 'no', 'always', \
             'on-failure', or 'unless-stopped'"
        ));
    }
    if let Some(isolation) = unknown(&host["Isolation"], &["", "default", "process", "hyperv"]) {
        return Some(format!(
            "invalid isolation ({isolation}): linux only supports 'default'"
        ));
    }
    if let Some(mode) = unknown(&host["CgroupnsMode"], &["", "private", "host"]) {
        return Some(format!("invalid cgroup namespace mode: {mode}"));
    }
    let types = ["bind", "cluster", "image", "npipe", "tmpfs", "volume"];
    let mounts = host["Mounts"].as_array()?;
    let kind = mounts
        .iter()
        .find_map(|mount| unknown(&mount["Type"], &types))?;
    Some(format!(
        "invalid mount config for type \"{kind}\": mount type unknown"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn unknown_words_are_told_as_dockers() {
        for (host, told) in [
            (
                json!({ "RestartPolicy": { "Name": "wrong" } }),
                Some(
                    "invalid restart policy: unknown policy 'wrong'; use one of 'no', 'always', \
                     'on-failure', or 'unless-stopped'",
                ),
            ),
            (
                json!({ "Isolation": "wrong" }),
                Some("invalid isolation (wrong): linux only supports 'default'"),
            ),
            (
                json!({ "Mounts": [{ "Type": "bind" }, { "Type": "wrong" }] }),
                Some("invalid mount config for type \"wrong\": mount type unknown"),
            ),
            (json!({ "RestartPolicy": { "Name": "no" } }), None),
            (json!({ "Memory": "x" }), None),
        ] {
            let document = json!({ "HostConfig": host }).to_string();
            assert_eq!(explain(document.as_bytes()).as_deref(), told, "{document}");
        }
        assert_eq!(explain(b"{"), None);
    }
}
