//! Who reads a Dockerfile: `# syntax=` and `--build-arg BUILDKIT_SYNTAX=` name an image that
//! BuildKit would run for it. Docker's own is what this crate is; no other is run.

use corten_dockerfile::{Directives, Span};

/// Docker's repositories, on whatever registry they are mirrored.
const OURS: [&str; 2] = ["docker/dockerfile", "docker/dockerfile-upstream"];

/// Whether a frontend is the one that is built in.
fn is_built_in(image: &str) -> bool {
    let name = image.split('@').next().unwrap_or_default();
    // A colon before the last slash is a port's.
    let name = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => name,
    };
    OURS.iter().any(|ours| {
        name.strip_suffix(ours)
            .is_some_and(|host| host.is_empty() || host.ends_with('/'))
    })
}

/// What is to be said of a frontend that would have to be run.
pub(super) fn refused(named: &str) -> Option<String> {
    let image = named.split_whitespace().next().unwrap_or_default();
    if image.is_empty() || is_built_in(image) {
        return None;
    }
    Some(format!(
        "the frontend {image} cannot be run: only Docker's own (docker/dockerfile) is built in"
    ))
}

/// Where a Dockerfile asks for a frontend that would have to be run, and what is to be said.
pub(super) fn refused_by(text: &str) -> Option<(Span, String)> {
    let (named, line) = Directives::syntax_of(text)?;
    Some((Span::line(line), refused(&named)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_frontends_are_built_in() {
        for image in [
            "docker/dockerfile",
            "docker/dockerfile:1",
            "docker/dockerfile:1.7-labs",
            "docker.io/docker/dockerfile:1",
            "docker/dockerfile-upstream:master",
            "mirror.example.com:5000/docker/dockerfile:1",
            "docker/dockerfile:1@sha256:abc",
            "docker/dockerfile:1 with words",
        ] {
            assert_eq!(refused(image), None, "{image}");
        }
        for image in [
            "example.com/other:1",
            "notdocker/dockerfile:1",
            "docker/dockerfile-other",
            "docker/dockerfile/x",
            "docker",
        ] {
            assert!(refused(image).is_some(), "{image}");
        }
    }

    #[test]
    fn the_line_is_told() {
        let (span, message) = refused_by("# escape=`\n# syntax=a/b\nNONSENSE\n").unwrap();
        assert_eq!(span, Span::line(2));
        assert!(message.contains("a/b"), "{message}");
        assert_eq!(refused_by("# text\n# syntax=a/b\nFROM x\n"), None);
    }
}
