//! Images of other platforms than this machine's.

use corten_oci::Platform;

/// What to warn of when an image is used without a platform having been asked for.
pub(super) fn warning(image: &Platform) -> Option<String> {
    // Files of no platform in particular.
    if image.os.is_empty() || image.architecture.is_empty() {
        return None;
    }
    let host = host();
    (!runs_on(image, &host)).then(|| {
        format!(
            "The requested image's platform ({}) does not match the detected host platform ({host}) \
             and no specific platform was requested",
            written(image)
        )
    })
}

/// This machine's platform, with what its processor can do.
fn host() -> Platform {
    Platform {
        variant: variant(),
        ..Platform::host()
    }
}

/// The processor's level, as the x86-64 psABI counts.
#[cfg(target_arch = "x86_64")]
fn variant() -> Option<String> {
    use std::arch::is_x86_feature_detected as has;
    let v2 = has!("cmpxchg16b") && has!("popcnt") && has!("sse3") && has!("ssse3");
    let v2 = v2 && has!("sse4.1") && has!("sse4.2");
    let v3 = v2 && has!("avx") && has!("avx2") && has!("bmi1") && has!("bmi2");
    let v3 = v3 && has!("f16c") && has!("fma") && has!("lzcnt") && has!("movbe");
    let v4 = v3 && has!("avx512f") && has!("avx512bw") && has!("avx512cd");
    let v4 = v4 && has!("avx512dq") && has!("avx512vl");
    let level = [v2, v3, v4].iter().filter(|has| **has).count();
    (level > 0).then(|| format!("v{}", level + 1))
}

#[cfg(not(target_arch = "x86_64"))]
fn variant() -> Option<String> {
    None
}

fn level(platform: &Platform) -> u32 {
    let digits = platform.variant.as_deref().unwrap_or("v1");
    digits.trim_start_matches('v').parse().unwrap_or(1)
}

fn runs_on(image: &Platform, host: &Platform) -> bool {
    let architectures = (image.architecture.as_str(), host.architecture.as_str());
    image.os == host.os
        && match architectures {
            ("amd64", "amd64") => level(image) <= level(host),
            // Their processors run these as well.
            ("386", "amd64") | ("arm", "arm64") => true,
            (image, host) => image == host,
        }
}

/// With the variant that is not said otherwise, as Docker writes it.
fn written(platform: &Platform) -> String {
    match (platform.architecture.as_str(), &platform.variant) {
        ("arm64", None) => format!("{platform}/v8"),
        _ => platform.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn foreign_images_are_told_of() {
        for (image, host, fits) in [
            ("linux/amd64", "linux/amd64/v3", true),
            ("linux/amd64/v2", "linux/amd64/v3", true),
            ("linux/amd64/v4", "linux/amd64/v3", false),
            ("linux/386", "linux/amd64", true),
            ("linux/arm64", "linux/amd64", false),
            ("linux/arm/v7", "linux/arm64", true),
            ("windows/amd64", "linux/amd64", false),
        ] {
            assert_eq!(
                runs_on(&platform(image), &platform(host)),
                fits,
                "{image} {host}"
            );
        }
        assert_eq!(warning(&Platform::host()), None);
        let said = warning(&platform("linux/s390x")).unwrap();
        assert!(
            said.starts_with(
                "The requested image's platform (linux/s390x) does not match the detected host \
                 platform (linux/"
            ) && said.ends_with(") and no specific platform was requested"),
            "{said}"
        );
        assert_eq!(written(&platform("linux/arm64")), "linux/arm64/v8");
    }
}
