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
            .map_err(|e| format!("invalid URL {:?}: {e}", masked(word)));
        Some(url.map(Self::Http))
    }
}

/// A text with the credentials of the URLs in it masked, as BuildKit masks them: for everything
/// that is shown or kept. The user of a URL of ssh is none as long as there is no password.
pub(crate) fn masked(text: &str) -> String {
    const MASK: &str = "xxxxx";
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let ends = |c: char| matches!(c, '/' | '?' | '#') || c.is_whitespace();
        let (authority, left) = after.split_at(after.find(ends).unwrap_or(after.len()));
        match authority.rsplit_once('@') {
            Some((user, host)) if user.contains(':') => {
                out.push_str(&format!("{MASK}:{MASK}@{host}"));
            }
            Some((user, host)) if !user.is_empty() && !before.ends_with("ssh://") => {
                out.push_str(&format!("{MASK}@{host}"));
            }
            _ => out.push_str(authority),
        }
        rest = left;
    }
    out.push_str(rest);
    out
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
    fn credentials_are_masked() {
        for (text, shown) in [
            ("ADD http://u:p@h/x /y", "ADD http://xxxxx:xxxxx@h/x /y"),
            ("https://tok@h:8/a.git#m", "https://xxxxx@h:8/a.git#m"),
            (
                "http://u:p@q@h http://:p@h",
                "http://xxxxx:xxxxx@h http://xxxxx:xxxxx@h",
            ),
            ("ssh://git@h/x git@h:x", "ssh://git@h/x git@h:x"),
            ("ssh://git:p@h/x", "ssh://xxxxx:xxxxx@h/x"),
            ("http://h/a@b?u:p@x", "http://h/a@b?u:p@x"),
            ("no url: a@b", "no url: a@b"),
        ] {
            assert_eq!(masked(text), shown);
        }
        let error = Remote::parse("http://u:p@[").unwrap().unwrap_err();
        assert!(!error.contains("u:p"), "{error}");
    }

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
