//! How an image was made, as SLSA's provenance, with the fields that BuildKit's definitions name
//! (`slsa-definitions.md`); of those, we have no LLB and so no `buildConfig`.
//!
//! The little mode tells neither values of build arguments and labels nor ids of secrets; no mode
//! tells a secret, or credentials in a URL.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use corten_oci::{Digest, ImageRef, Platform};
use serde_json::{Value, json};

use super::Claim;
use super::wanted::{Provenance, SlsaVersion};

/// What the fields of version 1 mean.
const TYPE_V1: &str =
    "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md";
/// What those of version 0.2 mean.
const TYPE_V02: &str = "https://mobyproject.org/buildkit@v1";

/// Something that an image was made of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Material {
    uri: String,
    algorithm: String,
    hex: String,
}

impl Material {
    /// A file of a URL (masked), with its digest (`sha256:…`).
    pub(crate) fn file(url: &str, digest: &str) -> Self {
        let (algorithm, hex) = digest.split_once(':').unwrap_or(("sha256", digest));
        Self::new(url.to_owned(), algorithm, hex)
    }

    /// A commit of a repository.
    pub(crate) fn commit(url: &str, commit: &str) -> Self {
        // A commit of 64 digits is of a repository with the new digests.
        let algorithm = if commit.len() == 64 { "sha256" } else { "sha1" };
        Self::new(url.to_owned(), algorithm, commit)
    }

    /// An image, with the digest that a registry knows it by, or else its id.
    pub(crate) fn image(name: &ImageRef, platform: &Platform, digest: &Digest) -> Self {
        let (algorithm, hex) = (digest.algorithm().as_str(), digest.hex());
        Self::new(package_url(name, Some(platform)), algorithm, hex)
    }

    fn new(uri: String, algorithm: &str, hex: &str) -> Self {
        Self {
            uri,
            algorithm: algorithm.to_owned(),
            hex: hex.to_owned(),
        }
    }

    fn digest(&self) -> Value {
        json!({ self.algorithm.as_str(): self.hex })
    }

    fn json(&self) -> Value {
        json!({ "uri": self.uri, "digest": self.digest() })
    }
}

/// What is known of a build.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// The Dockerfile's name and text.
    pub(crate) dockerfile: (String, String),
    /// The context that is elsewhere.
    pub(crate) context: Option<Material>,
    /// What was asked for, by BuildKit's names: `target`, `build-arg:NAME`, `label:NAME`, ….
    pub(crate) args: BTreeMap<String, String>,
    /// Secrets by id, and whether they may be missing.
    pub(crate) secrets: BTreeMap<String, bool>,
    /// Agents, likewise.
    pub(crate) agents: BTreeMap<String, bool>,
    /// Files of this machine were used.
    pub(crate) local: bool,
    pub(crate) materials: Vec<Material>,
    /// Which build; absent where it is to be the same in each.
    pub(crate) invocation: Option<String>,
    pub(crate) started: String,
    pub(crate) finished: String,
}

/// The claim of how an image was made.
pub(crate) fn predicate(wanted: &Provenance, facts: &Facts) -> Claim {
    let request = request(wanted, facts);
    let materials: Vec<Value> = facts.materials.iter().map(Material::json).collect();
    let mut source = json!({});
    if let Some(context) = &facts.context {
        source["uri"] = json!(context.uri);
        source["digest"] = context.digest();
    }
    let mut metadata = json!({});
    if wanted.max {
        let (name, text) = &facts.dockerfile;
        metadata["source"] = json!({
            "infos": [{
                "filename": name,
                "language": "Dockerfile",
                "data": STANDARD.encode(text),
            }],
        });
    }
    let host = Platform::host().to_string();
    match wanted.version {
        SlsaVersion::V1 => {
            source["path"] = json!(facts.dockerfile.0);
            let mut run = json!({
                "startedOn": facts.started,
                "finishedOn": facts.finished,
                "buildkit_metadata": metadata,
                "buildkit_completeness": {
                    "request": wanted.max,
                    "resolvedDependencies": !facts.local,
                },
                "buildkit_reproducible": wanted.reproducible,
            });
            if let Some(invocation) = &facts.invocation {
                run["invocationId"] = json!(invocation);
            }
            Claim {
                kind: "https://slsa.dev/provenance/v1",
                predicate: json!({
                    "buildDefinition": {
                        "buildType": TYPE_V1,
                        "externalParameters": { "configSource": source, "request": request },
                        "internalParameters": { "builderPlatform": host },
                        "resolvedDependencies": materials,
                    },
                    "runDetails": {
                        "builder": { "id": wanted.builder },
                        "metadata": run,
                    },
                }),
            }
        }
        SlsaVersion::V02 => {
            source["entryPoint"] = json!(facts.dockerfile.0);
            let mut run = json!({
                "buildStartedOn": facts.started,
                "buildFinishedOn": facts.finished,
                "completeness": {
                    "parameters": wanted.max,
                    "environment": true,
                    "materials": !facts.local,
                },
                "reproducible": wanted.reproducible,
                "https://mobyproject.org/buildkit@v1#metadata": metadata,
            });
            if let Some(invocation) = &facts.invocation {
                run["buildInvocationID"] = json!(invocation);
            }
            Claim {
                kind: "https://slsa.dev/provenance/v0.2",
                predicate: json!({
                    "builder": { "id": wanted.builder },
                    "buildType": TYPE_V02,
                    "materials": materials,
                    "invocation": {
                        "configSource": source,
                        "parameters": request,
                        "environment": { "platform": host },
                    },
                    "metadata": run,
                }),
            }
        }
    }
}

/// What was asked for.
fn request(wanted: &Provenance, facts: &Facts) -> Value {
    let private = |name: &str| name.starts_with("build-arg:") || name.starts_with("label:");
    let args: BTreeMap<&String, &String> = facts
        .args
        .iter()
        .filter(|(name, _)| wanted.max || !private(name))
        .collect();
    let mut request = json!({ "frontend": "dockerfile.v0", "args": args });
    if facts.local {
        request["locals"] = json!([{ "name": "context" }, { "name": "dockerfile" }]);
    }
    if wanted.max {
        for (field, lent) in [("secrets", &facts.secrets), ("ssh", &facts.agents)] {
            let lent: Vec<Value> = lent
                .iter()
                .map(|(id, optional)| json!({ "id": id, "optional": optional }))
                .collect();
            if !lent.is_empty() {
                request[field] = json!(lent);
            }
        }
    }
    request
}

/// An image's package URL (purl-spec, "docker").
pub(super) fn package_url(name: &ImageRef, platform: Option<&Platform>) -> String {
    let mut url = format!("pkg:docker/{}", name.familiar_name());
    let version = match (name.tag(), name.digest()) {
        (Some(tag), _) => tag.to_owned(),
        (None, Some(digest)) => digest.to_string(),
        (None, None) => "latest".to_owned(),
    };
    url.push('@');
    url.push_str(&encoded(&version));
    let mut qualifiers = Vec::new();
    if let (Some(_), Some(digest)) = (name.tag(), name.digest()) {
        qualifiers.push(format!("digest={digest}"));
    }
    if let Some(platform) = platform {
        qualifiers.push(format!("platform={}", encoded(&platform.to_string())));
    }
    if !qualifiers.is_empty() {
        url.push('?');
        url.push_str(&qualifiers.join("&"));
    }
    url
}

/// Percent-encoded as in package URLs, where colons stay.
pub(super) fn encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b':') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        let arg = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let name = "alpine:3".parse().unwrap();
        let host = Platform::normalised("linux", "amd64", None);
        Facts {
            dockerfile: ("Dockerfile".to_owned(), "FROM alpine:3\n".to_owned()),
            context: Some(Material::commit(
                "https://example.org/a.git",
                &"c".repeat(40),
            )),
            args: [
                arg("target", "app"),
                arg("build-arg:A", "value"),
                arg("label:l", "x"),
            ]
            .into(),
            secrets: [("token".to_owned(), true)].into(),
            agents: [("default".to_owned(), false)].into(),
            local: false,
            materials: vec![
                Material::image(&name, &host, &Digest::of(b"alpine")),
                Material::file("https://example.org/f", "sha256:aa"),
            ],
            invocation: Some("i".to_owned()),
            started: "2020-01-01T00:00:00Z".to_owned(),
            finished: "2020-01-01T00:00:01Z".to_owned(),
        }
    }

    fn told(max: bool, version: SlsaVersion) -> Value {
        let wanted = Provenance {
            max,
            version,
            builder: "me".to_owned(),
            reproducible: false,
        };
        predicate(&wanted, &facts()).predicate
    }

    #[test]
    fn the_little_mode_tells_no_values() {
        let little = told(false, SlsaVersion::V1);
        let request = &little["buildDefinition"]["externalParameters"]["request"];
        assert_eq!(
            *request,
            json!({ "frontend": "dockerfile.v0", "args": { "target": "app" } })
        );
        let text = little.to_string();
        assert!(!text.contains("value") && !text.contains("token"), "{text}");
        let most = told(true, SlsaVersion::V1);
        let request = &most["buildDefinition"]["externalParameters"]["request"];
        assert_eq!(request["args"]["build-arg:A"], "value");
        assert_eq!(
            request["secrets"],
            json!([{ "id": "token", "optional": true }])
        );
        let source = &most["runDetails"]["metadata"]["buildkit_metadata"]["source"];
        let data = source["infos"][0]["data"].as_str().unwrap();
        assert_eq!(STANDARD.decode(data).unwrap(), b"FROM alpine:3\n");
    }

    #[test]
    fn both_versions_have_the_materials() {
        let new = told(true, SlsaVersion::V1);
        let old = told(true, SlsaVersion::V02);
        let materials = &new["buildDefinition"]["resolvedDependencies"];
        assert_eq!(*materials, old["materials"]);
        assert_eq!(
            materials[0]["uri"],
            "pkg:docker/alpine@3?platform=linux%2Famd64"
        );
        assert_eq!(materials[1]["digest"], json!({ "sha256": "aa" }));
        let source = &new["buildDefinition"]["externalParameters"]["configSource"];
        assert_eq!(source["digest"]["sha1"], "c".repeat(40));
        assert_eq!(
            old["invocation"]["configSource"]["entryPoint"],
            "Dockerfile"
        );
        assert_eq!(old["metadata"]["buildInvocationID"], "i");
    }

    #[test]
    fn package_urls() {
        let url = |name: &str| package_url(&name.parse().unwrap(), None);
        assert_eq!(url("alpine:3"), "pkg:docker/alpine@3");
        assert_eq!(
            url("localhost:5000/a/b:1"),
            "pkg:docker/localhost:5000/a/b@1"
        );
        let digest = Digest::of(b"x");
        assert_eq!(
            url(&format!("alpine@{digest}")),
            format!("pkg:docker/alpine@{digest}")
        );
        assert_eq!(encoded("1:2+b~3"), "1:2%2Bb~3");
    }
}
