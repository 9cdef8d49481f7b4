//! Which directory, which Dockerfile: what the arguments of `build` mean.

use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use crate::error::{CliError, Result, reason};

/// Where a build's files come from.
#[derive(Debug)]
pub(super) enum Source {
    /// A directory of this machine.
    Directory {
        /// Absolute.
        root: PathBuf,
        /// And the Dockerfile.
        dockerfile: Dockerfile,
    },
    /// Only a Dockerfile, from standard input.
    Text(Vec<u8>),
    /// A repository, or a file of a URL.
    Remote(String),
    /// A tar on standard input, whose first bytes have been read already.
    Archive(Vec<u8>),
}

/// Where the Dockerfile is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Dockerfile {
    /// Relative to the context.
    Inside(String),
    /// Absolute, and not in the context.
    Outside(PathBuf),
    /// Came on standard input.
    Text(Vec<u8>),
}

/// Bytes that tell an archive from a Dockerfile.
const BLOCK: usize = 512;
/// A Dockerfile on standard input may be so big.
const MAX_DOCKERFILE: u64 = 8 << 20;

/// Finds out what is meant.
pub(super) fn locate(context: &str, file: Option<&str>, here: &Path) -> Result<Source> {
    if context == "-" {
        if file == Some("-") {
            return Err(CliError::message(
                "invalid argument: can't use stdin for both build context and dockerfile",
            ));
        }
        return from_stdin(io::stdin().lock());
    }
    if is_url(context) {
        if file == Some("-") {
            return Err(CliError::message(
                "a Dockerfile on standard input needs a directory as context",
            ));
        }
        return Ok(Source::Remote(context.to_owned()));
    }
    let root = here.join(context);
    let root = std::fs::canonicalize(&root).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => CliError::message(format!(
            "unable to prepare context: path {context:?} not found"
        )),
        _ => CliError::message(format!(
            "unable to prepare context: {context}: {}",
            reason(&error)
        )),
    })?;
    if !root.is_dir() {
        return Err(CliError::message(format!(
            "unable to prepare context: context must be a directory: {}",
            root.display()
        )));
    }
    let dockerfile = match file {
        Some("-") => {
            let mut text = Vec::new();
            io::stdin()
                .lock()
                .take(MAX_DOCKERFILE)
                .read_to_end(&mut text)?;
            Dockerfile::Text(text)
        }
        Some(file) => place(&root, &here.join(file))?,
        None => place(&root, &default_file(&root))?,
    };
    Ok(Source::Directory { root, dockerfile })
}

/// `Dockerfile`, or `dockerfile` where there is only that.
fn default_file(root: &Path) -> PathBuf {
    let usual = root.join("Dockerfile");
    let lower = root.join("dockerfile");
    if !usual.exists() && lower.exists() {
        lower
    } else {
        usual
    }
}

/// Whether a Dockerfile is in the context or outside.
fn place(root: &Path, file: &Path) -> Result<Dockerfile> {
    let missing = |error: io::Error| {
        CliError::message(format!(
            "unable to prepare context: unable to evaluate symlinks in Dockerfile path: lstat {}: {}",
            file.display(),
            reason(&error)
        ))
    };
    std::fs::metadata(file).map_err(missing)?;
    // The directory is resolved, the last component is not: a link in the context is the
    // context's to resolve.
    let (Some(directory), Some(name)) = (file.parent(), file.file_name()) else {
        return Err(CliError::message(format!(
            "{} is not a file",
            file.display()
        )));
    };
    let directory = std::fs::canonicalize(directory).map_err(missing)?;
    let path = directory.join(name);
    let Ok(relative) = path.strip_prefix(root) else {
        return Ok(Dockerfile::Outside(path));
    };
    let parts: Vec<_> = relative
        .components()
        .filter_map(|part| match part {
            Component::Normal(part) => Some(part.to_string_lossy()),
            _ => None,
        })
        .collect();
    Ok(Dockerfile::Inside(parts.join("/")))
}

/// An archive begins like one; everything else is a Dockerfile.
fn from_stdin(mut input: impl Read) -> Result<Source> {
    let mut start = Vec::new();
    input.by_ref().take(BLOCK as u64).read_to_end(&mut start)?;
    if is_archive(&start) {
        return Ok(Source::Archive(start));
    }
    input.take(MAX_DOCKERFILE).read_to_end(&mut start)?;
    if start.iter().all(u8::is_ascii_whitespace) {
        return Err(CliError::message(
            "unable to prepare context: the Dockerfile on standard input is empty",
        ));
    }
    Ok(Source::Text(start))
}

fn is_archive(start: &[u8]) -> bool {
    const GZIP: &[u8] = &[0x1f, 0x8b, 0x08];
    const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
    const BZIP2: &[u8] = b"BZh";
    const XZ: &[u8] = &[0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00];
    [GZIP, ZSTD, BZIP2, XZ]
        .iter()
        .any(|magic| start.starts_with(magic))
        || start.get(257..262) == Some(b"ustar")
        || (start.len() == BLOCK && start.iter().all(|byte| *byte == 0))
}

pub(super) fn is_url(text: &str) -> bool {
    [
        "http://",
        "https://",
        "git://",
        "git@",
        "ssh://",
        "github.com/",
    ]
    .iter()
    .any(|prefix| text.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockerfiles_inside_and_outside() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("context/sub")).unwrap();
        for file in ["context/dockerfile", "context/sub/D", "Other"] {
            std::fs::write(root.join(file), "FROM scratch\n").unwrap();
        }
        let found = |file: Option<&str>| match locate("context", file, &root).unwrap() {
            Source::Directory { dockerfile, .. } => dockerfile,
            other => panic!("{other:?}"),
        };
        assert_eq!(found(None), Dockerfile::Inside("dockerfile".into()));
        assert_eq!(
            found(Some("context/sub/../sub/D")),
            Dockerfile::Inside("sub/D".into())
        );
        assert_eq!(
            found(Some("Other")),
            Dockerfile::Outside(root.join("Other"))
        );
        let error = locate("context", Some("nosuch"), &root)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("lstat") && error.ends_with("no such file or directory"),
            "{error}"
        );
        assert!(
            locate("nowhere", None, &root)
                .unwrap_err()
                .to_string()
                .contains("\"nowhere\" not found")
        );
        let remote = locate("https://example.org/a.git", None, &root).unwrap();
        assert!(matches!(remote, Source::Remote(url) if url == "https://example.org/a.git"));
        assert!(locate("https://example.org/a.git", Some("-"), &root).is_err());
    }

    #[test]
    fn standard_input() {
        assert!(matches!(
            from_stdin(&b"FROM scratch\n"[..]).unwrap(),
            Source::Text(_)
        ));
        assert!(matches!(
            from_stdin(&[0x1f, 0x8b, 0x08, 0][..]).unwrap(),
            Source::Archive(_)
        ));
        assert!(
            matches!(from_stdin(&[0; 1024][..]).unwrap(), Source::Archive(start) if start.len() == 512)
        );
        assert!(from_stdin(&b""[..]).is_err());
    }
}
