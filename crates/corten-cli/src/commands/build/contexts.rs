//! `--build-context NAME=VALUE`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use corten_oci::Digest;
use serde::Serialize;

use super::context::is_url;
use crate::error::{CliError, Result, reason};

/// What a name stands for, as the engine is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Named {
    /// A directory of this machine.
    Directory(PathBuf),
    /// An image.
    Image(String),
    /// A repository, or a file of a URL.
    Url(String),
    /// An image of an OCI layout of this machine.
    Layout {
        dir: PathBuf,
        tag: Option<String>,
        digest: Option<Digest>,
    },
}

impl Named {
    /// Whether it is of this machine.
    pub(super) fn is_here(&self) -> bool {
        matches!(self, Self::Directory(_) | Self::Layout { .. })
    }
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
    if let Some(layout) = value.strip_prefix("oci-layout://") {
        return self::layout(layout, here);
    }
    if is_url(value) {
        return Ok(Named::Url(value.to_owned()));
    }
    if let Some((scheme, _)) = value.split_once("://") {
        return Err(format!(
            "contexts of {scheme}:// are not supported: give a directory, docker-image://NAME, \
             oci-layout://DIRECTORY[:TAG|@DIGEST], a repository or a URL"
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

/// `DIRECTORY[:TAG][@DIGEST]`
fn layout(text: &str, here: &Path) -> std::result::Result<Named, String> {
    let (place, digest) = match text.rsplit_once('@') {
        Some((place, digest)) => {
            let digest: Digest = digest
                .parse()
                .map_err(|error: corten_oci::DigestError| error.to_string())?;
            (place, Some(digest))
        }
        None => (text, None),
    };
    let (place, tag) = match place.rsplit_once(':') {
        Some((place, tag)) if !tag.contains('/') => (place, Some(tag.to_owned())),
        _ => (place, None),
    };
    let path = here.join(place);
    let dir = std::fs::canonicalize(&path)
        .map_err(|error| format!("{}: {}", path.display(), reason(&error)))?;
    if !dir.join("index.json").is_file() {
        return Err(format!(
            "{} is no OCI layout: it has no index.json",
            dir.display()
        ));
    }
    Ok(Named::Layout { dir, tag, digest })
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
        std::fs::write(here.join("d/index.json"), "").unwrap();
        let zeros = format!("sha256:{}", "0".repeat(64));
        let with_digest = format!("d=oci-layout://d:1.2@{zeros}");
        let flags = [
            "a=https://h/r.git#main:d",
            "b=git@h:r",
            "c=oci-layout://d:edge",
            &with_digest,
        ];
        let found = named(&flags, &here).unwrap();
        assert_eq!(found["a"], Named::Url("https://h/r.git#main:d".into()));
        assert_eq!(found["b"], Named::Url("git@h:r".into()));
        let layout = |tag: &str, digest: Option<&str>| Named::Layout {
            dir: here.join("d"),
            tag: Some(tag.to_owned()),
            digest: digest.map(|text| text.parse().unwrap()),
        };
        assert_eq!(found["c"], layout("edge", None));
        assert_eq!(found["d"], layout("1.2", Some(&zeros)));
        std::fs::remove_file(here.join("d/index.json")).unwrap();
        for (flag, why) in [
            ("a", "expected key=value"),
            ("=d", "expected key=value"),
            ("a=f", "is not a directory"),
            ("a=none", "no such file or directory"),
            ("a=docker-image://UPPER", "must be lowercase"),
            ("a=oci-layout://none:x", "no such file or directory"),
            ("a=oci-layout://d", "is no OCI layout"),
            ("a=oci-layout://d@sha256:1", "invalid"),
            ("a=target:x", "no such file or directory"),
            ("a=input://x", "contexts of input:// are not supported"),
        ] {
            let error = named(&[flag], &here).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
