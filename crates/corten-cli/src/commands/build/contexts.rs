//! `--build-context NAME=VALUE`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{CliError, Result, reason};

/// What a name stands for, as the engine is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Named {
    /// A directory of this machine.
    Directory(PathBuf),
    /// An image.
    Image(String),
}

/// Reads the flags.
pub(super) fn named(flags: &[&str], here: &Path) -> Result<BTreeMap<String, Named>> {
    let mut found = BTreeMap::new();
    for flag in flags {
        let wrong = |why: String| {
            CliError::message(format!(
                "invalid argument \"{flag}\" for --build-context: {why}"
            ))
        };
        let Some((name, value)) = flag.split_once('=') else {
            return Err(wrong("expected key=value".to_owned()));
        };
        if name.is_empty() || value.is_empty() {
            return Err(wrong("expected key=value".to_owned()));
        }
        found.insert(name.to_owned(), one(value, here).map_err(wrong)?);
    }
    Ok(found)
}

fn one(value: &str, here: &Path) -> std::result::Result<Named, String> {
    if let Some(image) = value.strip_prefix("docker-image://") {
        let image: corten_oci::ImageRef = image
            .parse()
            .map_err(|error: corten_oci::ReferenceError| error.to_string())?;
        return Ok(Named::Image(image.or_latest().to_string()));
    }
    if let Some((scheme, _)) = value.split_once("://") {
        return Err(format!(
            "contexts of {scheme}:// are not supported: give a directory or docker-image://NAME"
        ));
    }
    let path = here.join(value);
    let path = std::fs::canonicalize(&path)
        .map_err(|error| format!("{}: {}", path.display(), reason(&error)))?;
    if path.is_dir() {
        Ok(Named::Directory(path))
    } else {
        Err(format!("{} is not a directory", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_and_images() {
        let dir = tempfile::tempdir().unwrap();
        let here = dir.path().canonicalize().unwrap();
        std::fs::create_dir(here.join("d")).unwrap();
        std::fs::write(here.join("f"), "").unwrap();
        let found = named(&["a=d", "b=docker-image://alpine"], &here).unwrap();
        assert_eq!(found["a"], Named::Directory(here.join("d")));
        assert_eq!(
            found["b"],
            Named::Image("docker.io/library/alpine:latest".into())
        );
        for (flag, why) in [
            ("a", "expected key=value"),
            ("=d", "expected key=value"),
            ("a=f", "is not a directory"),
            ("a=none", "no such file or directory"),
            ("a=docker-image://UPPER", "must be lowercase"),
            (
                "a=oci-layout://x",
                "contexts of oci-layout:// are not supported",
            ),
        ] {
            let error = named(&[flag], &here).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
