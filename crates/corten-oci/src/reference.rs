//! Image references, normalised as the `docker` command does.
//!
//! Implements the grammar and the normalisation of the distribution project's
//! `reference` package: `ubuntu` is `docker.io/library/ubuntu`, a first component is
//! a registry only if it has a `.` or `:`, is `localhost`, or has an upper-case letter.
//! Invariant: an [`ImageRef`] always has a domain and a path, both valid.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::{Digest, DigestError};

/// The registry of names without one.
pub const DEFAULT_DOMAIN: &str = "docker.io";
/// The tag of names without tag and digest.
pub const DEFAULT_TAG: &str = "latest";
const OFFICIAL_PREFIX: &str = "library/";
const LEGACY_DEFAULT_DOMAIN: &str = "index.docker.io";
const MAX_PATH: usize = 255;
const MAX_TAG: usize = 128;

/// Why a reference was refused. The texts are Docker's own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Does not match the grammar.
    #[error("invalid reference format")]
    Format,
    /// A repository name with upper-case letters.
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    Uppercase(String),
    /// The path is longer than 255 characters.
    #[error("repository name must not be more than {MAX_PATH} characters")]
    TooLong,
    /// A bare 64-character hex string: that is an image id.
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    LooksLikeId(String),
    /// The digest part is not a digest.
    #[error("invalid reference: {0}")]
    Digest(#[from] DigestError),
}

/// A normalised image reference: `domain/path[:tag][@digest]`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageRef {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl ImageRef {
    /// Registry host, perhaps with a port: `docker.io`, `127.0.0.1:5000`.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Repository path within the registry: `library/alpine`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag, if one was given.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one was given. A reference with tag and digest means the digest.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// `domain/path`, without tag and digest.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The repository as Docker shows it: `alpine`, `me/app`, `host:5000/app`. What would be
    /// read as another repository when it is given back (`docker.io/a.b/c`) stays whole.
    #[must_use]
    pub fn familiar_name(&self) -> String {
        if self.domain != DEFAULT_DOMAIN {
            return self.name();
        }
        let short = match self.path.strip_prefix(OFFICIAL_PREFIX) {
            // `library/a/b` is not an official image and keeps its prefix.
            Some(rest) if !rest.contains('/') => rest,
            _ => &self.path,
        };
        let (domain, path) = split_domain(short);
        if domain == self.domain && path == self.path {
            short.to_owned()
        } else {
            self.name()
        }
    }

    /// The whole reference as Docker shows it: `alpine:3.20`.
    #[must_use]
    pub fn familiar(&self) -> String {
        self.with_suffix(self.familiar_name())
    }

    /// The same reference with `:latest` where it has neither tag nor digest.
    #[must_use]
    pub fn or_latest(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some(DEFAULT_TAG.into());
        }
        self
    }

    /// The same repository with another tag and no digest.
    ///
    /// # Errors
    /// The tag does not match `[\w][\w.-]{0,127}`.
    pub fn with_tag(&self, tag: &str) -> Result<Self, ReferenceError> {
        if !is_tag(tag) {
            return Err(ReferenceError::Format);
        }
        Ok(Self {
            domain: self.domain.clone(),
            path: self.path.clone(),
            tag: Some(tag.into()),
            digest: None,
        })
    }

    /// The same repository with a digest and no tag.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self {
            domain: self.domain.clone(),
            path: self.path.clone(),
            tag: None,
            digest: Some(digest),
        }
    }

    /// What a registry request for this reference's manifest names: the digest, else the
    /// tag, else `latest`.
    #[must_use]
    pub fn manifest_reference(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => DEFAULT_TAG,
        }
    }

    fn with_suffix(&self, mut name: String) -> String {
        if let Some(tag) = &self.tag {
            name.push(':');
            name.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            name.push('@');
            name.push_str(digest.as_str());
        }
        name
    }
}

impl FromStr for ImageRef {
    type Err = ReferenceError;

    fn from_str(s: &str) -> Result<Self, ReferenceError> {
        if s.len() == 64
            && s.bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        {
            return Err(ReferenceError::LooksLikeId(s.into()));
        }
        let (domain, remainder) = split_domain(s);
        let remote_name = remainder.split(':').next().unwrap_or_default();
        if remote_name.chars().any(char::is_uppercase) {
            return Err(ReferenceError::Uppercase(remote_name.into()));
        }
        if !is_domain(&domain) {
            return Err(ReferenceError::Format);
        }
        let (named, digest) = match remainder.split_once('@') {
            Some((named, digest)) if is_digest_shaped(digest) => (named, Some(digest)),
            Some(_) => return Err(ReferenceError::Format),
            None => (remainder.as_str(), None),
        };
        let (path, tag) = match named.split_once(':') {
            Some((path, tag)) if is_tag(tag) => (path, Some(tag.to_owned())),
            Some(_) => return Err(ReferenceError::Format),
            None => (named, None),
        };
        if !path.split('/').all(is_path_component) {
            return Err(ReferenceError::Format);
        }
        if path.len() > MAX_PATH {
            return Err(ReferenceError::TooLong);
        }
        let digest = digest.map(str::parse).transpose()?;
        Ok(Self {
            domain,
            path: path.into(),
            tag,
            digest,
        })
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_suffix(self.name()))
    }
}

impl fmt::Debug for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for ImageRef {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ImageRef {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// Splits off the registry and applies the `docker.io/library/` rules.
fn split_domain(s: &str) -> (String, String) {
    let is_registry = |first: &str| {
        first.contains(['.', ':']) || first == "localhost" || first.chars().any(char::is_uppercase)
    };
    let (domain, remainder) = match s.split_once('/') {
        Some((first, rest)) if is_registry(first) => (first, rest),
        _ => (DEFAULT_DOMAIN, s),
    };
    let domain = if domain == LEGACY_DEFAULT_DOMAIN {
        DEFAULT_DOMAIN
    } else {
        domain
    };
    if domain == DEFAULT_DOMAIN && !remainder.contains('/') {
        return (domain.into(), format!("{OFFICIAL_PREFIX}{remainder}"));
    }
    (domain.into(), remainder.into())
}

fn is_domain(s: &str) -> bool {
    let (host, port) = match s.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => {
            let valid =
                !address.is_empty() && address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
            if !valid {
                return false;
            }
            (
                None,
                rest.strip_prefix(':')
                    .or(if rest.is_empty() { None } else { Some("x") }),
            )
        }
        None => match s.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(s), None),
        },
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.is_none_or(|host| host.split('.').all(is_label))
        && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(s: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = s.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    if !alphanumeric(*first) || !alphanumeric(*last) {
        return false;
    }
    bytes.split(|b| alphanumeric(*b)).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
    })
}

fn is_tag(s: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    s.len() <= MAX_TAG
        && s.bytes().next().is_some_and(word)
        && s.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

/// `[A-Za-z][A-Za-z0-9]*([-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}`
fn is_digest_shaped(s: &str) -> bool {
    let Some((algorithm, hex)) = s.split_once(':') else {
        return false;
    };
    let is_part = |part: &str| {
        part.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
            && part.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    algorithm.split(['-', '_', '+', '.']).all(is_part)
        && hex.len() >= 32
        && hex.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalises_as_docker_does() {
        let named_like_id = "a".repeat(64);
        let whole_like_id = format!("docker.io/library/{named_like_id}");
        for (input, whole, familiar) in [
            ("ubuntu", "docker.io/library/ubuntu", "ubuntu"),
            (
                "ubuntu:22.04",
                "docker.io/library/ubuntu:22.04",
                "ubuntu:22.04",
            ),
            ("a/b", "docker.io/a/b", "a/b"),
            ("index.docker.io/a", "docker.io/library/a", "a"),
            (
                "127.0.0.1:5000/app",
                "127.0.0.1:5000/app",
                "127.0.0.1:5000/app",
            ),
            ("localhost/app:1", "localhost/app:1", "localhost/app:1"),
            ("[::1]:5000/app", "[::1]:5000/app", "[::1]:5000/app"),
            // Shortened it would name a registry (found by fuzzing).
            (
                "docker.io/a.b/c:1",
                "docker.io/a.b/c:1",
                "docker.io/a.b/c:1",
            ),
            (
                "docker.io/localhost/c",
                "docker.io/localhost/c",
                "docker.io/localhost/c",
            ),
            // Docker shows what alone would be an image's id.
            (&whole_like_id, &whole_like_id, &named_like_id),
        ] {
            let reference: ImageRef = input.parse().unwrap();
            assert_eq!(reference.to_string(), whole, "{input}");
            assert_eq!(reference.familiar(), familiar, "{input}");
        }
    }

    #[test]
    fn refuses_what_docker_refuses() {
        for bad in [
            "",
            ":",
            "a:",
            "a@",
            "A",
            "a//b",
            "-a",
            "a_",
            "a..b",
            "a b",
            &"a".repeat(300),
            "x/y:",
        ] {
            assert!(bad.parse::<ImageRef>().is_err(), "{bad:?} must be refused");
        }
        assert!(matches!(
            "a".repeat(64).parse::<ImageRef>(),
            Err(ReferenceError::LooksLikeId(_))
        ));
    }

    #[test]
    fn latest_only_without_tag_and_digest() {
        let tagged: ImageRef = "a:1".parse().unwrap();
        assert_eq!(tagged.or_latest().tag(), Some("1"));
        let bare: ImageRef = "a".parse().unwrap();
        assert_eq!(bare.clone().or_latest().tag(), Some("latest"));
        assert_eq!(bare.manifest_reference(), "latest");
    }
}
