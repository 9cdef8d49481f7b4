//! `--annotation`, `--provenance`, `--sbom`, `--attest`: what is said of the image beside it.

use serde::Serialize;

use super::image_form::{Compression, truth};
use super::output::{Outputs, fields};
use crate::error::{CliError, Result};
use crate::flags::{Parsed, parse_bool};

/// What the engine is told.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Attest {
    annotations: Vec<Annotation>,
    provenance: Option<Provenance>,
    sbom: bool,
    /// How layers are compressed.
    layers: Option<Compression>,
    /// Whether the manifest is OCI's, whatever else is wanted.
    oci: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Annotation {
    kind: &'static str,
    platform: Option<String>,
    key: String,
    value: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Provenance {
    max: bool,
    version: &'static str,
    builder: String,
    reproducible: bool,
}

/// An attestation as a flag asks for it.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    /// Not this one.
    No(Kind),
    Provenance {
        provenance: Provenance,
        /// Only where there is an image.
        inline_only: bool,
    },
    Sbom,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Provenance,
    Sbom,
}

impl Attest {
    /// What the flags ask for.
    pub(super) fn of(flags: &Parsed, outputs: &Outputs) -> Result<Self> {
        let mut attest = Self::default();
        let form = outputs.form();
        attest.layers = form.compression();
        attest.oci = form.oci;
        let of_outputs = form.annotations.iter().map(String::as_str);
        for text in flags.list("annotation").into_iter().chain(of_outputs) {
            let wrong = |why: String| {
                CliError::message(format!(
                    "invalid argument \"{text}\" for \"--annotation\" flag: {why}"
                ))
            };
            attest.annotations.extend(annotation(text).map_err(wrong)?);
        }
        if !attest.annotations.is_empty() && !outputs.image() {
            return Err(CliError::message(
                "--annotation: outputs of files carry no annotations, only images do",
            ));
        }
        let mut wanted = Vec::new();
        for text in flags.list("attest") {
            wanted.push((text.to_owned(), "attest"));
        }
        // A shorthand, which counts for more.
        for flag in ["provenance", "sbom"] {
            if let Some(text) = flags.nonempty(flag) {
                let rest = match parse_bool(text) {
                    Some(wanted) => format!("disabled={}", !wanted),
                    None => text.to_owned(),
                };
                wanted.push((format!("type={flag},{rest}"), flag));
            }
        }
        let mut inline = false;
        for (text, flag) in wanted {
            let wrong =
                |why: String| CliError::message(format!("invalid value for --{flag}: {why}"));
            match one(&text).map_err(wrong)? {
                Wanted::No(Kind::Provenance) => attest.provenance = None,
                Wanted::No(Kind::Sbom) => attest.sbom = false,
                Wanted::Sbom => {
                    attest.sbom = true;
                }
                Wanted::Provenance {
                    provenance,
                    inline_only,
                } => {
                    attest.provenance = Some(provenance);
                    inline = inline_only;
                }
            }
        }
        let kind = match &attest.provenance {
            _ if attest.sbom => Some("sbom"),
            Some(_) if !inline => Some("provenance"),
            _ => None,
        };
        if let Some(kind) = kind
            && !outputs.files().is_empty()
        {
            return Err(CliError::message(format!(
                "--{kind}: outputs of files carry no attestations, only images do"
            )));
        }
        Ok(attest)
    }

    /// Whether there is nothing to tell.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// `[TYPE[PLATFORM],…:]KEY=VALUE`: one of each type.
fn annotation(text: &str) -> std::result::Result<Vec<Annotation>, String> {
    let (name, value) = text.split_once('=').ok_or("expected key=value")?;
    let (kinds, key) = name.split_once(':').unwrap_or(("manifest", name));
    if key.is_empty() {
        return Err("expected key=value".to_owned());
    }
    let mut found = Vec::new();
    for kind in kinds.split(',') {
        let (kind, platform) = match kind.split_once('[') {
            Some((kind, rest)) => {
                let platform = rest.strip_suffix(']').ok_or("a bracket is not closed")?;
                let platform: corten_oci::Platform = platform
                    .parse()
                    .map_err(|_| format!("invalid platform {platform:?}"))?;
                (kind, Some(platform.to_string()))
            }
            None => (kind, None),
        };
        let known = [
            "manifest",
            "manifest-descriptor",
            "index",
            "index-descriptor",
        ];
        let known = known.into_iter().find(|known| *known == kind);
        let kind = known.ok_or_else(|| format!("unknown annotation type {kind:?}"))?;
        if platform.is_some() && kind.starts_with("index") {
            return Err(format!("{kind} is of no platform"));
        }
        found.push(Annotation {
            kind,
            platform,
            key: key.to_owned(),
            value: value.to_owned(),
        });
    }
    Ok(found)
}

/// `type=KIND,…`
fn one(text: &str) -> std::result::Result<Wanted, String> {
    let (mut kind, mut disabled, mut inline_only) = (None, false, false);
    let mut provenance = Provenance {
        max: true,
        version: "v1",
        builder: String::new(),
        reproducible: false,
    };
    for field in fields(text) {
        let pair = field.split_once('=');
        let (key, value) = pair.ok_or_else(|| format!("invalid value {field}"))?;
        let switch = || truth(key, value);
        let key = key.trim().to_lowercase();
        match (key.as_str(), kind) {
            ("type", _) => {
                kind = match value {
                    "provenance" => Some(Kind::Provenance),
                    "sbom" => Some(Kind::Sbom),
                    other => return Err(format!("unknown attestation type {other:?}")),
                };
            }
            ("disabled", _) => disabled = switch()?,
            ("mode", Some(Kind::Provenance)) => {
                provenance.max = match value {
                    "max" => true,
                    "min" => false,
                    other => return Err(format!("unknown mode {other:?}")),
                };
            }
            ("version", Some(Kind::Provenance)) => {
                provenance.version = match value {
                    "v1" => "v1",
                    "v0.2" => "v0.2",
                    other => {
                        return Err(format!("unknown version {other:?}: there are v0.2 and v1"));
                    }
                };
            }
            ("builder-id", Some(Kind::Provenance)) => value.clone_into(&mut provenance.builder),
            ("reproducible", Some(Kind::Provenance)) => provenance.reproducible = switch()?,
            ("inline-only", Some(Kind::Provenance)) => inline_only = switch()?,
            ("generator", Some(Kind::Sbom)) => {
                return Err("other generators are not run: the builder looks itself".to_owned());
            }
            (_, None) => return Err("attestation type not specified".to_owned()),
            (key, Some(_)) => return Err(format!("{key} is not supported")),
        }
    }
    match kind {
        None => Err("attestation type not specified".to_owned()),
        Some(kind) if disabled => Ok(Wanted::No(kind)),
        Some(Kind::Sbom) => Ok(Wanted::Sbom),
        Some(Kind::Provenance) => Ok(Wanted::Provenance {
            provenance,
            inline_only,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_have_prefixes() {
        let told = |text: &str| -> String {
            let list = annotation(text).unwrap();
            let list = list.iter().map(|a| {
                let platform = a.platform.as_deref().unwrap_or("-");
                format!("{} {platform} {}={}", a.kind, a.key, a.value)
            });
            list.collect::<Vec<_>>().join("; ")
        };
        for (text, expected) in [
            ("k=v=w", "manifest - k=v=w"),
            ("index,manifest:k=", "index - k=; manifest - k="),
            (
                "manifest-descriptor[linux/amd64]:k=v:w",
                "manifest-descriptor linux/amd64 k=v:w",
            ),
        ] {
            assert_eq!(told(text), expected);
        }
        for (text, why) in [
            ("k", "expected key=value"),
            ("=v", "expected key=value"),
            ("manifest:=v", "expected key=value"),
            ("layer:k=v", "unknown annotation type \"layer\""),
            ("index[linux/amd64]:k=v", "index is of no platform"),
            ("manifest[linux:k=v", "a bracket is not closed"),
        ] {
            let error = annotation(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn attestations() {
        let provenance = |max, version| Provenance {
            max,
            version,
            builder: String::new(),
            reproducible: false,
        };
        let wanted = |provenance, inline_only| Wanted::Provenance {
            provenance,
            inline_only,
        };
        for (text, expected) in [
            ("type=provenance", wanted(provenance(true, "v1"), false)),
            (
                "type=provenance,mode=min,version=v0.2,inline-only=true",
                wanted(provenance(false, "v0.2"), true),
            ),
            (
                "type=provenance,disabled=true",
                Wanted::No(Kind::Provenance),
            ),
            ("type=sbom", Wanted::Sbom),
            ("type=sbom,disabled=1", Wanted::No(Kind::Sbom)),
        ] {
            assert_eq!(one(text).unwrap(), expected, "{text}");
        }
        for (text, why) in [
            ("mode=max", "attestation type not specified"),
            ("type=other", "unknown attestation type \"other\""),
            ("type=provenance,mode=most", "unknown mode \"most\""),
            ("type=provenance,version=v2", "there are v0.2 and v1"),
            ("type=sbom,generator=x", "other generators are not run"),
            ("type=sbom,mode=max", "mode is not supported"),
            ("type=sbom,disabled=maybe", "neither true nor false"),
        ] {
            let error = one(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
