//! Build arguments that are for the builder (BuildKit's `BUILDKIT_…`), as far as they change the
//! request. Others are looked at where they matter: `BUILDKIT_SYNTAX` (`plan/frontend`),
//! `BUILDKIT_CACHE_MOUNT_NS` (`plan/mounts`), `BUILDKIT_DOCKERFILE_CHECK` (the checks),
//! `BUILDKIT_CONTEXT_KEEP_GIT_DIR` (the context), `BUILDKIT_BUILD_NAME` (the history),
//! `SOURCE_DATE_EPOCH` (`plan/epoch`).

pub(crate) use corten_dockerfile::truth;

use crate::error::BuildError;
use crate::request::{BuildRequest, CacheExport, CacheTarget};

const HOSTNAME: &str = "BUILDKIT_SANDBOX_HOSTNAME";
const INLINE_CACHE: &str = "BUILDKIT_INLINE_CACHE";
const MULTI_PLATFORM: &str = "BUILDKIT_MULTI_PLATFORM";
/// The namespace of caches' ids.
pub(crate) const CACHE_MOUNT_NS: &str = "BUILDKIT_CACHE_MOUNT_NS";
/// The build's name in the history.
pub(crate) const BUILD_NAME: &str = "BUILDKIT_BUILD_NAME";
/// A repository as context keeps its `.git`.
pub(crate) const KEEP_GIT_DIR: &str = "BUILDKIT_CONTEXT_KEEP_GIT_DIR";
const SBOM_SCANS: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

/// All that mean something to the builder. The others' names are a Dockerfile's.
const KNOWN: [&str; 10] = [
    HOSTNAME,
    INLINE_CACHE,
    MULTI_PLATFORM,
    CACHE_MOUNT_NS,
    BUILD_NAME,
    KEEP_GIT_DIR,
    SBOM_SCANS[0],
    SBOM_SCANS[1],
    "BUILDKIT_SYNTAX",
    "BUILDKIT_DOCKERFILE_CHECK",
];

/// As long as the kernel takes one (`__NEW_UTS_LEN`).
const LONGEST_HOSTNAME: usize = 64;

/// Whether an argument is for the builder.
pub(crate) fn is_known(name: &str) -> bool {
    KNOWN.contains(&name)
}

/// Does what the arguments ask for; what is to be warned of.
pub(crate) fn apply(request: &mut BuildRequest) -> Result<Vec<String>, BuildError> {
    let given = |request: &BuildRequest, name: &str| -> Option<String> {
        let value = request.build_args.get(name)?.clone()?;
        (!value.is_empty()).then_some(value)
    };
    if let Some(name) = given(request, HOSTNAME) {
        let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        if name.len() > LONGEST_HOSTNAME || !name.chars().all(fine) {
            return Err(BuildError::Invalid(format!(
                "{HOSTNAME}: {name:?} is no host name: at most {LONGEST_HOSTNAME} letters, digits, \
                 hyphens and dots"
            )));
        }
        request.limits.hostname = Some(name);
    }
    // As with buildx, what is no truth value is no wish.
    let inline = given(request, INLINE_CACHE).and_then(|value| truth(&value));
    let already = |wanted: &CacheExport| wanted.to == CacheTarget::Inline;
    if inline == Some(true) && !request.cache_to.iter().any(already) {
        request.cache_to.push(CacheExport {
            to: CacheTarget::Inline,
            all: false,
            ignore_error: false,
        });
    }
    if let Some(value) = given(request, MULTI_PLATFORM) {
        let wanted = truth(&value).ok_or_else(|| {
            BuildError::Invalid(format!("invalid boolean value for multi-platform: {value}"))
        })?;
        if !wanted && request.platforms.len() > 1 {
            return Err(BuildError::Invalid(
                "conflicting config: returning multiple target platforms is not allowed".to_owned(),
            ));
        }
        request.multi_platform = wanted;
    }
    let scans = SBOM_SCANS
        .iter()
        .filter(|name| given(request, name).is_some_and(|value| truth(&value) != Some(false)));
    Ok(scans
        .map(|name| format!("{name} has no effect: --sbom tells of the result alone"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use corten_oci::Platform;

    fn request(arguments: &[(&str, &str)]) -> BuildRequest {
        let arguments = arguments.iter();
        BuildRequest {
            build_args: arguments
                .map(|(name, value)| ((*name).to_owned(), Some((*value).to_owned())))
                .collect(),
            ..BuildRequest::default()
        }
    }

    #[test]
    fn they_change_the_request() {
        let mut asked = request(&[
            (HOSTNAME, "machine"),
            (INLINE_CACHE, "true"),
            (MULTI_PLATFORM, "T"),
            (SBOM_SCANS[0], "1"),
            (SBOM_SCANS[1], "false"),
        ]);
        let warnings = apply(&mut asked).unwrap();
        assert_eq!(asked.limits.hostname.as_deref(), Some("machine"));
        assert_eq!(asked.cache_to[0].to, CacheTarget::Inline);
        assert!(asked.multi_platform);
        assert!(matches!(warnings.as_slice(), [one] if one.starts_with(SBOM_SCANS[0])));
        // It is written once.
        apply(&mut asked).unwrap();
        assert_eq!(asked.cache_to.len(), 1);
        let mut nothing = request(&[(HOSTNAME, ""), (INLINE_CACHE, "no"), (MULTI_PLATFORM, "")]);
        assert!(apply(&mut nothing).unwrap().is_empty());
        assert!(nothing.limits.hostname.is_none() && nothing.cache_to.is_empty());
    }

    #[test]
    fn contradictions() {
        let mut wrong = request(&[(MULTI_PLATFORM, "maybe")]);
        let error = apply(&mut wrong).unwrap_err().to_string();
        assert_eq!(error, "invalid boolean value for multi-platform: maybe");
        let mut two = request(&[(MULTI_PLATFORM, "0")]);
        two.platforms = ["linux/amd64", "linux/arm64"]
            .map(|platform| platform.parse::<Platform>().unwrap())
            .to_vec();
        assert!(
            apply(&mut two)
                .unwrap_err()
                .to_string()
                .contains("conflicting config")
        );
        for name in ["a/b", "a b", &"x".repeat(65)] {
            let mut wrong = request(&[(HOSTNAME, name)]);
            assert!(apply(&mut wrong).is_err(), "{name}");
        }
    }
}
