//! Reading a `config.json`, `process.json` or the resources of an update.
//!
//! The typed form refuses a few things that the specification allows: flags it spells
//! differently, and capabilities it does not know (config, "Linux Process": those are
//! warned about and left out). Such a document is rewritten and read again; every other
//! unknown value is an error that names the field.

mod objects;

use corten_oci::runtime_spec::{Capability, LinuxResources, Process, Spec};
use objects::Objects;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Why a document was refused, with the path of the field.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DocumentError(#[from] serde_path_to_error::Error<serde_json::Error>);

/// A whole configuration.
pub fn spec(text: &[u8]) -> Result<Spec, DocumentError> {
    let mut spec: Spec = read(text, |value| rewrite_spec(value, warn_of_capability))?;
    settle_pids(text, &mut spec)?;
    Ok(spec)
}

/// The configuration of a container that exists: what is to be said of it has been said when
/// it was made.
pub(crate) fn spec_again(text: &[u8]) -> Result<Spec, DocumentError> {
    let mut spec: Spec = read(text, |value| rewrite_spec(value, |_, _| {}))?;
    settle_pids(text, &mut spec)?;
    Ok(spec)
}

/// A process alone, as `exec --process` is given it.
pub fn process(text: &[u8]) -> Result<Process, DocumentError> {
    read(text, |value| {
        respell_flags(value);
        drop_unknown_capabilities(value, warn_of_capability);
    })
}

/// The resources of an update, checked: as they were given, because what is not mentioned
/// stays as it is.
pub(crate) fn resources(text: &[u8]) -> Result<Value, DocumentError> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let mut value: Value = serde_path_to_error::deserialize(&mut reader)?;
    ended(&mut reader)?;
    drop_empty_pids(&mut value);
    // From the text, so that an error says where in it.
    let mut reader = serde_json::Deserializer::from_slice(text);
    let typed: Result<LinuxResources, _> = serde_path_to_error::deserialize(Objects(&mut reader));
    if let Err(error) = typed
        && LinuxResources::deserialize(Objects(&value)).is_err()
    {
        return Err(error.into());
    }
    Ok(value)
}

/// Nothing may come after a document.
fn ended<'de>(
    reader: &mut serde_json::Deserializer<impl serde_json::de::Read<'de>>,
) -> Result<(), DocumentError> {
    reader.end().map_err(|error| {
        let path = serde_path_to_error::Track::new().path();
        serde_path_to_error::Error::new(path, error).into()
    })
}

fn read<T: DeserializeOwned>(
    text: &[u8],
    rewrite: impl FnOnce(&mut Value),
) -> Result<T, DocumentError> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    if let Ok(typed) = T::deserialize(Objects(&mut reader)) {
        ended(&mut reader)?;
        return Ok(typed);
    }
    let mut reader = serde_json::Deserializer::from_slice(text);
    let mut value: Value = serde_path_to_error::deserialize(&mut reader)?;
    ended(&mut reader)?;
    rewrite(&mut value);
    Ok(serde_path_to_error::deserialize(Objects(value))?)
}

fn rewrite_spec(value: &mut Value, tell: impl Fn(&Value, &str)) {
    if let Some(process) = value.get_mut("process") {
        respell_flags(process);
        drop_unknown_capabilities(process, tell);
    }
    if let Some(resources) = value.pointer_mut("/linux/resources") {
        drop_empty_pids(resources);
    }
}

/// The typed form has 0 for a limit that is not there, which is a limit itself
/// (config-linux, "PIDs": both may be): that the limit is 0 is looked for in the text.
fn settle_pids(text: &[u8], spec: &mut Spec) -> Result<(), DocumentError> {
    let resources = spec
        .linux_mut()
        .as_mut()
        .and_then(|l| l.resources_mut().as_mut());
    let Some(resources) = resources else {
        return Ok(());
    };
    if resources
        .pids()
        .as_ref()
        .is_none_or(|pids| pids.limit() != 0)
    {
        return Ok(());
    }
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value: Value = serde_path_to_error::deserialize(&mut reader)?;
    let limit = value.pointer("/linux/resources/pids/limit");
    if limit.is_none_or(Value::is_null) {
        resources.set_pids(None);
    }
    Ok(())
}

/// Without a limit they limit nothing, and change none that there is.
fn drop_empty_pids(resources: &mut Value) {
    let limit = |pids: &Value| pids.is_object() && pids.get("limit").is_none_or(Value::is_null);
    if let Some(resources) = resources.as_object_mut()
        && resources.get("pids").is_some_and(limit)
    {
        resources.remove("pids");
    }
}

/// The specification's names, and what the typed form calls them.
const FLAGS: &[(&str, &str)] = &[
    ("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"),
    ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN"),
];

fn respell_flags(process: &mut Value) {
    let flags = process
        .pointer_mut("/scheduler/flags")
        .and_then(Value::as_array_mut);
    for flag in flags.into_iter().flatten() {
        if let Some((_, typed)) = FLAGS.iter().find(|(name, _)| flag == name) {
            *flag = (*typed).into();
        }
    }
}

fn warn_of_capability(name: &Value, set: &str) {
    tracing::warn!(%name, %set, "ignoring a capability that is not known");
}

fn drop_unknown_capabilities(process: &mut Value, tell: impl Fn(&Value, &str)) {
    let sets = process
        .get_mut("capabilities")
        .and_then(Value::as_object_mut);
    for (set, names) in sets.into_iter().flatten() {
        let Some(names) = names.as_array_mut() else {
            continue;
        };
        names.retain(|name| {
            let known =
                !name.is_string() || serde_json::from_value::<Capability>(name.clone()).is_ok();
            if !known {
                tell(name, set);
            }
            known
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_specs_own_spelling() {
        let process = process(
            br#"{"user":{},"cwd":"/","scheduler":{"policy":"SCHED_FIFO","flags":
               ["SCHED_FLAG_RESET_ON_FORK","SCHED_FLAG_DL_OVERRUN","SCHED_FLAG_RECLAIM"]}}"#,
        )
        .unwrap();
        let scheduler = process.scheduler().as_ref().unwrap();
        assert_eq!(scheduler.flags().as_ref().unwrap().len(), 3);
    }

    #[test]
    fn unknown_capabilities_are_left_out() {
        let spec = spec(
            br#"{"ociVersion":"1.3.0","process":{"user":{},"cwd":"/","capabilities":
               {"bounding":["CAP_CHOWN","CAP_FLY"],"ambient":["CAP_FLY"]}}}"#,
        )
        .unwrap();
        let process = spec.process().as_ref().unwrap();
        let sets = process.capabilities().as_ref().unwrap();
        assert_eq!(sets.bounding().as_ref().unwrap().len(), 1);
        assert!(sets.ambient().as_ref().unwrap().is_empty());
    }

    #[test]
    fn unknown_values_name_their_field() {
        for (text, field) in [
            (
                r#"{"process":{"user":{},"cwd":"/","rlimits":[{"type":"RLIMIT_FOO"}]}}"#,
                "process.rlimits[0].type",
            ),
            (
                r#"{"linux":{"namespaces":[{"type":"moon"}]}}"#,
                "linux.namespaces[0].type",
            ),
            (
                r#"{"linux":{"memoryPolicy":{"mode":"MPOL_FAST"}}}"#,
                "linux.memoryPolicy.mode",
            ),
            (
                r#"{"linux":{"personality":{"domain":"BSD"}}}"#,
                "linux.personality.domain",
            ),
            (
                r#"{"process":{"user":{},"cwd":"/","scheduler":{"policy":"SCHED_FAST"}}}"#,
                "process.scheduler.policy",
            ),
            (
                r#"{"process":{"user":{},"cwd":"/","ioPriority":{"class":"IOPRIO_CLASS_X"}}}"#,
                "process.ioPriority.class",
            ),
        ] {
            let error = spec(text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
        assert!(spec(b"{").is_err());
    }

    #[test]
    fn a_list_is_no_object() {
        let process = |fields: &str| format!(r#"{{"process":{{"cwd":"/",{fields}}}}}"#);
        for (text, field) in [
            ("[]".to_owned(), "invalid type: sequence"),
            (process(r#""user":[5,6]"#), "process.user: "),
            (
                process(r#""user":{},"consoleSize":[1,2]"#),
                "process.consoleSize: ",
            ),
            (r#"{"root":["/"]}"#.to_owned(), "root: "),
            (r#"{"mounts":[["/x"]]}"#.to_owned(), "mounts[0]: "),
            (
                r#"{"linux":{"namespaces":[["pid"]]}}"#.to_owned(),
                "linux.namespaces[0]: ",
            ),
            (r#"{"linux":{"seccomp":[]}}"#.to_owned(), "linux.seccomp: "),
        ] {
            let error = spec(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(field), "{text}: {error}");
            assert!(error.contains("sequence"), "{text}: {error}");
        }
        let error = resources(b"[]").unwrap_err().to_string();
        assert!(error.contains("sequence"), "{error}");
        let error = resources(br#"{"memory":[5]}"#).unwrap_err().to_string();
        assert!(error.starts_with("memory: "), "{error}");
        // Whatever the specification does not know is ignored, of any form.
        spec(br#"{"ociVersion":"1.3.0","moon":[[1],{"x":null}],"vm":null}"#).unwrap();
    }

    #[test]
    fn no_limit_of_processes_is_not_zero() {
        let limit = |pids: &str| {
            let text =
                format!(r#"{{"ociVersion":"1.3.0","linux":{{"resources":{{"pids":{pids}}}}}}}"#);
            let [first, again] = [spec(text.as_bytes()), spec_again(text.as_bytes())].map(|spec| {
                let linux = spec.unwrap().linux().clone().unwrap();
                linux
                    .resources()
                    .clone()
                    .unwrap()
                    .pids()
                    .map(|pids| pids.limit())
            });
            assert_eq!(first, again);
            first
        };
        assert_eq!(limit("{}"), None);
        assert_eq!(limit(r#"{"limit":null}"#), None);
        assert_eq!(limit(r#"{"limit":0}"#), Some(0));
        assert_eq!(limit(r#"{"limit":-1}"#), Some(-1));
        let given = |text: &str| resources(text.as_bytes()).unwrap().to_string();
        assert_eq!(given(r#"{"pids":{}}"#), "{}");
        assert_eq!(given(r#"{"pids":{"limit":null}}"#), "{}");
        assert_eq!(given(r#"{"pids":{"limit":0}}"#), r#"{"pids":{"limit":0}}"#);
    }
}
