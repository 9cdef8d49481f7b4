//! A container whose `state.json` cannot be read any more. Whoever gets rid of it by force
//! needs to know what there may be of it; that is gathered from what is left of the file, and
//! from the configuration beside it.

use std::fs;
use std::path::PathBuf;

use corten_oci::runtime_spec::{LinuxNamespaceType, Spec};
use serde::de::DeserializeOwned;

use super::Context;
use super::dir::Dir;
use super::state::Saved;
use crate::cgroup::CgroupSpec;
use crate::document;
use crate::validate::has_new_namespace;

/// What can be known. A process is known only with its time of birth, so that it cannot be
/// taken for another one.
pub(super) fn saved(context: &Context, dir: &Dir) -> Saved {
    let text = fs::read(dir.state_path()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let config = fs::read(dir.config_path()).unwrap_or_default();
    let config = document::spec_again(&config).ok();
    let config = config.as_ref();
    let started_at = value::<u64>(&text, "startedAt");
    Saved {
        oci_version: config.map_or_else(String::new, |config| config.version().clone()),
        id: dir.id().to_owned(),
        pid: started_at.and_then(|_| value(&text, "pid")).unwrap_or(0),
        started_at: started_at.unwrap_or(0),
        bundle: value::<PathBuf>(&text, "bundle").unwrap_or_default(),
        rootfs: PathBuf::new(),
        created: String::new(),
        cgroup: match value::<CgroupSpec>(&text, "cgroup") {
            Some(cgroup) => cgroup,
            // Not guessed: what is in the group is killed.
            None => match config {
                Some(config) => configured(context, dir, config),
                None => unknown(context, dir),
            },
        },
        shares_pids: config
            .is_none_or(|config| !has_new_namespace(config, LinuxNamespaceType::Pid)),
        annotations: config
            .and_then(|config| config.annotations().clone())
            .unwrap_or_default()
            .into_iter()
            .collect(),
    }
}

/// The control group that the configuration names. What a container without a name there gets
/// depends on the flags it was created with, and is what one of the same id in another root
/// gets, too: that is not guessed.
fn configured(context: &Context, dir: &Dir, config: &Spec) -> CgroupSpec {
    let linux = config.linux().as_ref();
    let path = linux.and_then(|linux| linux.cgroups_path().as_ref());
    let path = path.map(|path| path.to_string_lossy());
    let Some(path) = path.filter(|path| !path.is_empty()) else {
        return unknown(context, dir);
    };
    // Only systemd's are not paths, whatever the flags are today.
    let systemd = path.contains(':') && !path.contains('/');
    CgroupSpec::from_config(Some(&path), dir.id(), systemd).unwrap_or_else(|error| {
        context.log.warn(&error);
        unknown(context, dir)
    })
}

fn unknown(context: &Context, dir: &Dir) -> CgroupSpec {
    context.log.warn(&format!(
        "container {}: its control group is not known any more: processes of it may be left",
        dir.id()
    ));
    CgroupSpec::new("")
}

/// The value of a field that is whole, wherever it is.
fn value<T: DeserializeOwned>(text: &str, name: &str) -> Option<T> {
    let name = format!("\"{name}\":");
    let (_, rest) = text.split_once(&name)?;
    let mut values = serde_json::Deserializer::from_str(rest).into_iter();
    values.next()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_fields_are_found() {
        let text = r#"}}"pid":12,"startedAt":345,"cgroup":{"path":"a/b"},"bundle":"/x"#;
        assert_eq!(value(text, "pid"), Some(12));
        assert_eq!(value(text, "startedAt"), Some(345u64));
        assert_eq!(value(text, "cgroup"), Some(CgroupSpec::new("a/b")));
        assert_eq!(value::<PathBuf>(text, "bundle"), None);
        assert_eq!(value::<String>(text, "id"), None);
    }
}
