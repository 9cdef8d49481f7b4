//! Sources that are elsewhere: files of URLs, and Git repositories. What ADD, and a build's
//! context, may name beside paths.

pub(crate) mod git;
pub(crate) mod http;

use url::Url;

pub(crate) use git::GitSource;

/// A source that is elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Remote {
    /// A file.
    Http(Url),
    /// A repository.
    Git(GitSource),
}

impl Remote {
    /// Reads a word of ADD; `None`: it is a path.
    pub(crate) fn parse(word: &str) -> Option<Result<Self, String>> {
        if let Some(git) = GitSource::parse(word) {
            return Some(git.map(Self::Git));
        }
        if !word.starts_with("http://") && !word.starts_with("https://") {
            return None;
        }
        let url = word
            .parse()
            .map_err(|e| format!("invalid URL {word:?}: {e}"));
        Some(url.map(Self::Http))
    }
}

/// What a file of a URL is called.
pub(crate) fn file_name(url: &Url) -> String {
    let last = url.path().rsplit('/').next().unwrap_or_default();
    let name = percent_decoded(last);
    if name.is_empty() || matches!(name.as_str(), "." | "..") || name.contains(['/', '\0']) {
        return "__unnamed__".to_owned();
    }
    name
}

fn percent_decoded(text: &str) -> String {
    let hex = |byte: Option<&u8>| byte.and_then(|b| char::from(*b).to_digit(16));
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::new(), 0);
    while let Some(&byte) = bytes.get(at) {
        if byte == b'%'
            && let (Some(high), Some(low)) = (hex(bytes.get(at + 1)), hex(bytes.get(at + 2)))
            && let Ok(byte) = u8::try_from(high * 16 + low)
        {
            out.push(byte);
            at += 3;
            continue;
        }
        out.push(byte);
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_paths() {
        assert!(Remote::parse("a/b").is_none() && Remote::parse("github.com/a/b").is_none());
        let name = |url: &str| match Remote::parse(url).unwrap().unwrap() {
            Remote::Http(url) => file_name(&url),
            other => panic!("{other:?}"),
        };
        assert_eq!(name("https://example.org/a/b.tar.gz?x=1#y"), "b.tar.gz");
        assert_eq!(name("http://example.org/a%20b"), "a b");
        assert_eq!(name("http://example.org/"), "__unnamed__");
        assert_eq!(name("http://example.org/x%2fy"), "__unnamed__");
        assert!(Remote::parse("http://[").unwrap().is_err());
    }
}
