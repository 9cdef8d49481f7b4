//! `--cache-from` and `--cache-to`: caches in directories, in registries, and in images.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::output::fields;
use crate::error::{CliError, Result};
use crate::flags::Parsed;

/// Where a cache is, as the engine is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Place {
    Directory(PathBuf),
    Registry(String),
    Inline,
}

/// A cache to be written.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Export {
    to: Place,
    /// `mode=max`.
    all: bool,
    ignore_error: bool,
}

/// What the engine is told.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Caches {
    from: Vec<Place>,
    to: Vec<Export>,
}

impl Caches {
    /// What the flags ask for.
    pub(super) fn of(flags: &Parsed, here: &Path) -> Result<Self> {
        let read = |flag: &str| -> Result<Vec<Export>> {
            let texts = flags.list(flag).into_iter();
            texts.map(|text| parse(flag, text, here)).collect()
        };
        let from = read("cache-from")?;
        Ok(Self {
            from: from.into_iter().map(|cache| cache.to).collect(),
            to: read("cache-to")?,
        })
    }

    /// Whether there is nothing to tell.
    pub(super) fn is_empty(&self) -> bool {
        self.from.is_empty() && self.to.is_empty()
    }

    /// Whether one is in a directory of this machine.
    pub(super) fn has_directory(&self) -> bool {
        let to = self.to.iter().map(|export| &export.to);
        let mut places = self.from.iter().chain(to);
        places.any(|place| matches!(place, Place::Directory(_)))
    }
}

/// One cache.
fn parse(flag: &str, text: &str, here: &Path) -> Result<Export> {
    let wrong =
        |why: String| CliError::message(format!("invalid argument \"{text}\" for --{flag}: {why}"));
    let export = flag == "cache-to";
    if !text.contains('=') {
        let to = registry(text).map_err(wrong)?;
        return Ok(Export {
            to,
            all: false,
            ignore_error: false,
        });
    }
    let mut given = Vec::new();
    for field in fields(text) {
        let pair = field.split_once('=');
        let (key, value) = pair.ok_or_else(|| wrong(format!("invalid value {field}")))?;
        given.push((key.trim().to_lowercase(), value.to_owned()));
    }
    let mut take = |key: &str| {
        let at = given.iter().rposition(|(known, _)| known == key)?;
        let (_, value) = given.remove(at);
        given.retain(|(known, _)| known != key);
        Some(value)
    };
    let kind = take("type")
        .ok_or_else(|| wrong("type is required: \"type=local|registry|inline\"".into()))?;
    let place = if export { "dest" } else { "src" };
    let to = match kind.as_str() {
        "local" => match take(place).filter(|dir| !dir.is_empty()) {
            Some(dir) => Place::Directory(here.join(dir)),
            None => return Err(wrong(format!("{place} is required for a local cache"))),
        },
        "registry" => match take("ref") {
            Some(name) => registry(&name).map_err(wrong)?,
            None => return Err(wrong("ref is required for a cache in a registry".into())),
        },
        "inline" if export => Place::Inline,
        "inline" => {
            return Err(wrong(
                "the cache of an image is read with type=registry,ref=IMAGE".into(),
            ));
        }
        other => {
            return Err(wrong(format!(
                "caches of type {other} are not supported: there are local, registry and inline"
            )));
        }
    };
    let (mut all, mut ignore_error) = (false, false);
    if export {
        all = match take("mode").as_deref() {
            None | Some("min") => false,
            Some("max") if to == Place::Inline => {
                return Err(wrong("an image carries mode=min only".into()));
            }
            Some("max") => true,
            Some(other) => return Err(wrong(format!("unknown mode {other}"))),
        };
        ignore_error = match take("ignore-error").as_deref() {
            None | Some("false" | "0") => false,
            Some("true" | "1") => true,
            Some(other) => {
                return Err(wrong(format!(
                    "{other:?} of ignore-error is neither true nor false"
                )));
            }
        };
        // What is so here anyway.
        for (key, so) in [
            ("image-manifest", "true"),
            ("oci-mediatypes", "true"),
            ("force-compression", "false"),
        ] {
            if let Some(value) = take(key).filter(|value| value != so) {
                return Err(wrong(format!("{key}={value} is not supported")));
            }
        }
    }
    match given.first() {
        Some((key, _)) => Err(wrong(format!("{key} is not supported"))),
        None => Ok(Export {
            to,
            all,
            ignore_error,
        }),
    }
}

/// A name, as it is told.
fn registry(text: &str) -> std::result::Result<Place, String> {
    let name: corten_oci::ImageRef = text
        .parse()
        .map_err(|error: corten_oci::ReferenceError| error.to_string())?;
    Ok(Place::Registry(name.or_latest().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(flag: &str, text: &str) -> std::result::Result<Export, String> {
        parse(flag, text, Path::new("/here")).map_err(|e| e.to_string())
    }

    #[test]
    fn places() {
        let name = "example.org/cache:1".to_owned();
        let min = |to: Place| Export {
            to,
            all: false,
            ignore_error: false,
        };
        for (text, expected) in [
            ("type=local,dest=c", min(Place::Directory("/here/c".into()))),
            (
                "type=local,dest=/c,mode=max,ignore-error=true",
                Export {
                    to: Place::Directory("/c".into()),
                    all: true,
                    ignore_error: true,
                },
            ),
            ("example.org/cache:1", min(Place::Registry(name.clone()))),
            (
                "type=registry,ref=example.org/cache:1,image-manifest=true,mode=max",
                Export {
                    all: true,
                    ..min(Place::Registry(name.clone()))
                },
            ),
            ("type=inline", min(Place::Inline)),
        ] {
            assert_eq!(one("cache-to", text).unwrap(), expected, "{text}");
        }
        for text in [
            "example.org/cache:1",
            "type=registry,ref=example.org/cache:1",
        ] {
            let from = one("cache-from", text).unwrap();
            assert_eq!(from, min(Place::Registry(name.clone())), "{text}");
        }
        let from = one("cache-from", "alpine").unwrap().to;
        assert_eq!(
            from,
            Place::Registry("docker.io/library/alpine:latest".to_owned())
        );
    }

    #[test]
    fn what_is_not_done_is_refused() {
        for (text, why) in [
            ("dest=c", "type is required"),
            ("type=gha", "caches of type gha are not supported"),
            ("type=local", "dest is required for a local cache"),
            ("type=registry", "ref is required"),
            ("type=registry,ref=UPPER", "must be lowercase"),
            ("type=inline,mode=max", "an image carries mode=min only"),
            ("type=local,dest=c,mode=most", "unknown mode most"),
            (
                "type=local,dest=c,compression=zstd",
                "compression is not supported",
            ),
            (
                "type=registry,ref=a,oci-mediatypes=false",
                "oci-mediatypes=false is not supported",
            ),
            ("type=inline,ignore-error=maybe", "neither true nor false"),
        ] {
            let error = one("cache-to", text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        for (text, why) in [
            ("type=inline", "read with type=registry"),
            ("type=local,src=c,mode=max", "mode is not supported"),
        ] {
            let error = one("cache-from", text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn what_the_engine_is_told() {
        let caches = Caches {
            from: vec![Place::Registry("a:1".into())],
            to: vec![Export {
                to: Place::Inline,
                all: false,
                ignore_error: true,
            }],
        };
        assert!(!caches.has_directory() && !caches.is_empty());
        assert_eq!(
            serde_json::json!(caches),
            serde_json::json!({
                "from": [{"registry": "a:1"}],
                "to": [{"to": "inline", "all": false, "ignore_error": true}],
            })
        );
    }
}
