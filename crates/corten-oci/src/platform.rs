//! Platforms, written `os/architecture[/variant]`, normalised as containerd does.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a platform specifier was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid platform \"{0}\": expected OS/ARCHITECTURE[/VARIANT], for example linux/amd64")]
pub struct PlatformError(pub String);

/// An operating system, a CPU architecture (Go's names) and perhaps its variant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Platform {
    /// Operating system, `linux`.
    pub os: String,
    /// Architecture, `amd64`, `arm64`, …
    pub architecture: String,
    /// Variant, `v7`, …; absent where it is the architecture's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// The platform this binary runs on.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: None,
        }
    }

    /// Builds a normalised platform: aliases (`x86_64`, `aarch64`, `armhf`…) become Go's
    /// names, and a variant that says nothing (`arm64/v8`, `amd64/v1`) is dropped.
    #[must_use]
    pub fn normalised(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let os = match os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let variant = variant
            .map(str::to_ascii_lowercase)
            .filter(|v| !v.is_empty());
        let (architecture, variant) = match (
            architecture.to_ascii_lowercase().as_str(),
            variant.as_deref(),
        ) {
            ("i386" | "i486" | "i586" | "i686", _) => ("386".to_owned(), None),
            ("x86_64" | "x86-64" | "amd64", None | Some("v1")) => ("amd64".to_owned(), None),
            ("x86_64" | "x86-64" | "amd64", v) => ("amd64".to_owned(), v.map(str::to_owned)),
            ("aarch64" | "arm64", None | Some("8" | "v8")) => ("arm64".to_owned(), None),
            ("aarch64" | "arm64", v) => ("arm64".to_owned(), v.map(str::to_owned)),
            ("armhf", _) => ("arm".to_owned(), Some("v7".to_owned())),
            ("armel", _) => ("arm".to_owned(), Some("v6".to_owned())),
            ("arm", None | Some("" | "7")) => ("arm".to_owned(), Some("v7".to_owned())),
            ("arm", Some(v @ ("5" | "6" | "8"))) => ("arm".to_owned(), Some(format!("v{v}"))),
            (arch, v) => (arch.to_owned(), v.map(str::to_owned)),
        };
        Self {
            os,
            architecture,
            variant,
        }
    }

    /// Whether an image made for `self` can be used where `wanted` is asked for. A wanted
    /// platform without a variant takes any variant.
    #[must_use]
    pub fn satisfies(&self, wanted: &Self) -> bool {
        let have = Self::normalised(&self.os, &self.architecture, self.variant.as_deref());
        let want = Self::normalised(&wanted.os, &wanted.architecture, wanted.variant.as_deref());
        have.os == want.os
            && have.architecture == want.architecture
            && (want.variant.is_none() || have.variant.is_none() || have.variant == want.variant)
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(s: &str) -> Result<Self, PlatformError> {
        let valid = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        };
        let parts: Vec<&str> = s.split('/').collect();
        if !parts.iter().all(|p| valid(p)) {
            return Err(PlatformError(s.into()));
        }
        match parts.as_slice() {
            [os] if os.eq_ignore_ascii_case("linux") => Ok(Self {
                os: "linux".into(),
                ..Self::host()
            }),
            [os, arch] => Ok(Self::normalised(os, arch, None)),
            [os, arch, variant] => Ok(Self::normalised(os, arch, Some(variant))),
            _ => Err(PlatformError(s.into())),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if let Some(variant) = &self.variant {
            write!(f, "/{variant}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalises_aliases() {
        for (input, expected) in [
            ("linux/x86_64", "linux/amd64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armhf", "linux/arm/v7"),
            ("Linux/AMD64", "linux/amd64"),
        ] {
            assert_eq!(
                input.parse::<Platform>().unwrap().to_string(),
                expected,
                "{input}"
            );
        }
        for bad in ["", "/", "linux/", "linux/a/b/c", "linux/a b"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }
}
