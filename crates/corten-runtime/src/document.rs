//! Reading a `config.json` or `process.json`.
//!
//! The typed form refuses a few things that the specification allows: flags it spells
//! differently, and capabilities it does not know (config, "Linux Process": those are
//! warned about and left out). Such a document is rewritten and read again; every other
//! unknown value is an error that names the field.

use corten_oci::runtime_spec::{Capability, Process, Spec};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Why a document was refused, with the path of the field.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DocumentError(#[from] serde_path_to_error::Error<serde_json::Error>);

/// A whole configuration.
pub fn spec(text: &[u8]) -> Result<Spec, DocumentError> {
    read(text, |value| value.get_mut("process"))
}

/// A process alone, as `exec --process` is given it.
pub fn process(text: &[u8]) -> Result<Process, DocumentError> {
    // Not `Some` itself: its lifetime would be fixed.
    #[allow(clippy::redundant_closure)]
    read(text, |value| Some(value))
}

fn read<T: DeserializeOwned>(
    text: &[u8],
    process: impl FnOnce(&mut Value) -> Option<&mut Value>,
) -> Result<T, DocumentError> {
    if let Ok(typed) = serde_json::from_slice(text) {
        return Ok(typed);
    }
    let mut reader = serde_json::Deserializer::from_slice(text);
    let mut value: Value = serde_path_to_error::deserialize(&mut reader)?;
    if let Some(process) = process(&mut value) {
        respell_flags(process);
        drop_unknown_capabilities(process);
    }
    Ok(serde_path_to_error::deserialize(value)?)
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

fn drop_unknown_capabilities(process: &mut Value) {
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
                tracing::warn!(%name, %set, "ignoring a capability that is not known");
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
}
