//! Options of `--output` that say what form an image has: its layers' compression, its documents'
//! types and annotations, its files' times. There is one image for all outputs, so they agree.

use serde::Serialize;

use crate::flags::parse_bool;

/// What outputs say of the image's form.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ImageForm {
    /// `rewrite-timestamp`: whether files of layers are dated back to SOURCE_DATE_EPOCH.
    pub(super) rewrite: Option<bool>,
    /// `oci-mediatypes`
    pub(super) oci: Option<bool>,
    compression: Option<String>,
    level: Option<i32>,
    force: Option<bool>,
    /// As `--annotation` takes them.
    pub(super) annotations: Vec<String>,
}

/// How layers are compressed, as the engine is told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Compression {
    with: String,
    level: Option<i32>,
    force: bool,
}

/// `annotation.KEY`, `annotation-index[PLATFORM].KEY`, …
const ANNOTATION: &str = "annotation";

impl ImageForm {
    /// Takes an option in, if it is one of these.
    pub(super) fn take(&mut self, key: &str, value: &str) -> Option<Result<(), String>> {
        Some(match key.to_lowercase().as_str() {
            "rewrite-timestamp" => truth(key, value).map(|on| self.rewrite = Some(on)),
            "oci-mediatypes" => truth(key, value).map(|on| self.oci = Some(on)),
            "force-compression" => truth(key, value).map(|on| self.force = Some(on)),
            "compression" => match value {
                "uncompressed" | "gzip" | "zstd" | "estargz" => {
                    self.compression = Some(value.to_owned());
                    Ok(())
                }
                _ => Err(format!("unsupported layer compression type {value:?}")),
            },
            "compression-level" => match value.parse() {
                Ok(level) => {
                    self.level = Some(level);
                    Ok(())
                }
                Err(_) => Err(format!("non-integer value {value:?} of compression-level")),
            },
            _ => {
                let (name, rest) = key.split_at_checked(ANNOTATION.len())?;
                if !name.eq_ignore_ascii_case(ANNOTATION) {
                    return None;
                }
                let annotation = annotation(rest, value)?;
                self.annotations.push(annotation);
                Ok(())
            }
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds what another output says.
    pub(super) fn join(&mut self, other: Self) -> Result<(), &'static str> {
        one(&mut self.rewrite, other.rewrite, "rewrite-timestamp")?;
        one(&mut self.oci, other.oci, "oci-mediatypes")?;
        one(&mut self.compression, other.compression, "compression")?;
        one(&mut self.level, other.level, "compression-level")?;
        one(&mut self.force, other.force, "force-compression")?;
        self.annotations.extend(other.annotations);
        Ok(())
    }

    /// How layers are compressed, if it is said.
    pub(super) fn compression(&self) -> Option<Compression> {
        let said = self.level.is_some() || self.force == Some(true);
        if self.compression.is_none() && !said {
            return None;
        }
        Some(Compression {
            with: self
                .compression
                .clone()
                .unwrap_or_else(|| "gzip".to_owned()),
            level: self.level,
            force: self.force.unwrap_or_default(),
        })
    }
}

fn one<T: PartialEq>(
    ours: &mut Option<T>,
    theirs: Option<T>,
    name: &'static str,
) -> Result<(), &'static str> {
    if theirs.is_some() {
        if ours.is_some() && *ours != theirs {
            return Err(name);
        }
        *ours = theirs;
    }
    Ok(())
}

/// An annotation as the flag has it: `index:KEY=VALUE` of `-index.KEY`.
fn annotation(rest: &str, value: &str) -> Option<String> {
    if let Some(key) = rest.strip_prefix('.') {
        // With its kind, so that a colon in its name is no end of one.
        return Some(format!("manifest:{key}={value}"));
    }
    let (kind, key) = match rest.split_once("].") {
        Some((kind, key)) => (format!("{kind}]"), key),
        None => {
            let (kind, key) = rest.split_once('.')?;
            (kind.to_owned(), key)
        }
    };
    let kind = match kind.strip_prefix('-') {
        Some(kind) => kind.to_owned(),
        // `annotation[PLATFORM].KEY`
        None => format!("manifest{kind}"),
    };
    Some(format!("{}:{key}={value}", kind.to_lowercase()))
}

/// A truth value.
pub(super) fn truth(key: &str, value: &str) -> Result<bool, String> {
    parse_bool(value).ok_or_else(|| format!("{value:?} of {key} is neither true nor false"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(options: &[(&str, &str)]) -> Result<ImageForm, String> {
        let mut form = ImageForm::default();
        for (key, value) in options {
            form.take(key, value)
                .unwrap_or_else(|| Err(format!("{key} is unknown")))?;
        }
        Ok(form)
    }

    #[test]
    fn annotations_are_those_of_the_flag() {
        let form = form(&[
            ("annotation.a.b", "v"),
            ("Annotation.index:K", "v"),
            ("annotation-Index.k", "v"),
            ("annotation[linux/amd64].k", "v"),
            ("annotation-manifest-descriptor[linux/amd64].a.b", "v"),
        ])
        .unwrap();
        assert_eq!(
            form.annotations,
            [
                "manifest:a.b=v",
                "manifest:index:K=v",
                "index:k=v",
                "manifest[linux/amd64]:k=v",
                "manifest-descriptor[linux/amd64]:a.b=v"
            ]
        );
    }

    #[test]
    fn compression() {
        assert_eq!(form(&[]).unwrap().compression(), None);
        let zstd = form(&[("Compression", "zstd"), ("compression-level", "19")]).unwrap();
        let told = serde_json::json!(zstd.compression().unwrap()).to_string();
        assert_eq!(told, r#"{"with":"zstd","level":19,"force":false}"#);
        let estargz = form(&[("compression", "estargz")]).unwrap();
        assert_eq!(estargz.compression().unwrap().with, "estargz");
        let again = form(&[("force-compression", "true")]).unwrap();
        assert_eq!(again.compression().unwrap().with, "gzip");
        for (key, value, why) in [
            ("compression", "lzma", "unsupported layer compression type"),
            ("compression-level", "much", "non-integer value"),
            ("force-compression", "yes", "neither true nor false"),
            ("annotation", "x", "unknown"),
        ] {
            assert!(
                form(&[(key, value)]).unwrap_err().contains(why),
                "{key}={value}"
            );
        }
        let mut first = zstd;
        assert_eq!(first.join(again), Ok(()));
        let gzip = form(&[("compression", "gzip")]).unwrap();
        assert_eq!(first.join(gzip), Err("compression"));
    }
}
