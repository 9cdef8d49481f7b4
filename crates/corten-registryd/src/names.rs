//! Repository names, tags and upload ids (distribution-spec "Definitions" and "Pulling
//! manifests"). Client text becomes a path only through one of these types or a
//! [`corten_oci::Digest`]; none of them can hold `.`, `..`, an empty part or a leading `_`
//! where it would meet the registry's own folders.

use std::fmt;

use rand::RngExt as _;

/// Longest repository name accepted (clients limit host and name together to 255).
const MAX_NAME: usize = 255;
/// Longest tag (distribution-spec).
const MAX_TAG: usize = 128;

/// A repository name: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/…)*`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct RepoName(String);

impl RepoName {
    /// `None` where the grammar refuses it.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let good = text.len() <= MAX_NAME && text.split('/').all(is_name_part);
        good.then(|| Self(text.to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// True for one part of a repository name, between slashes.
pub(crate) fn is_name_part(part: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    if !is_word(*first) || !is_word(*last) {
        return false;
    }
    bytes.split(|b| is_word(*b)).all(|separator| {
        matches!(separator, [] | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
    })
}

/// A tag: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Tag(String);

impl Tag {
    /// `None` where the grammar refuses it.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (first, rest) = text.as_bytes().split_first()?;
        let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let good = text.len() <= MAX_TAG
            && is_word(*first)
            && rest.iter().all(|b| is_word(*b) || matches!(b, b'.' | b'-'));
        good.then(|| Self(text.to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Names one upload in progress: a random (version 4) UUID.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct UploadId(String);

impl UploadId {
    /// A new id, which nobody can guess.
    pub(crate) fn random() -> Self {
        let mut bytes: [u8; 16] = rand::rng().random();
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let hex = hex::encode(bytes);
        Self(format!(
            "{}-{}-{}-{}-{}",
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..]
        ))
    }

    /// `None` unless it has the form that [`Self::random`] gives.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let good = text.len() == 36
            && text.bytes().enumerate().all(|(at, b)| match at {
                8 | 13 | 18 | 23 => b == b'-',
                _ => b.is_ascii_digit() || (b'a'..=b'f').contains(&b),
            });
        good.then(|| Self(text.to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn repository_names() {
        for good in [
            "a",
            "a/b/c",
            "a.b",
            "a_b",
            "a__b",
            "a---b",
            "0/x-9",
            "library/my.app_x",
        ] {
            assert!(RepoName::parse(good).is_some(), "{good}");
        }
        let long = "a".repeat(256);
        for bad in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "a.",
            ".a",
            "a..b",
            "a___b",
            "a._b",
            "..",
            ".",
            "a/../b",
            "_a",
            "a/_layers",
            "a b",
            "a\\b",
            "a:b",
            "a\0",
            "é",
            "-a",
            "a-",
            &long,
        ] {
            assert!(RepoName::parse(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn tags() {
        let longest = "t".repeat(128);
        for good in ["latest", "1.0", "_x", "A-b.C_d", "v1..2", &longest] {
            assert!(Tag::parse(good).is_some(), "{good}");
        }
        let long = "t".repeat(129);
        for bad in [
            "", ".", "..", ".a", "-a", "a/b", "a b", "a:b", "a\0", "ü", &long,
        ] {
            assert!(Tag::parse(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn upload_ids() {
        let id = UploadId::random();
        assert_eq!(UploadId::parse(id.as_str()), Some(id.clone()));
        assert_ne!(id, UploadId::random());
        for bad in [
            "",
            "..",
            "../../etc/passwd",
            &id.as_str().to_uppercase(),
            &id.as_str()[1..],
        ] {
            assert!(
                bad == id.as_str() || UploadId::parse(bad).is_none(),
                "{bad:?}"
            );
        }
    }

    proptest! {
        /// Whatever is accepted stays one path below its folder.
        #[test]
        fn names_never_leave_their_folder(text in "[a-z0-9A-Z._/~%-]{0,20}") {
            if let Some(name) = RepoName::parse(&text) {
                prop_assert!(name.as_str().split('/').all(|p| !p.is_empty() && !p.starts_with(['.', '_'])));
            }
            if let Some(tag) = Tag::parse(&text) {
                prop_assert!(!tag.as_str().starts_with('.') && !tag.as_str().contains('/'));
            }
        }
    }
}
