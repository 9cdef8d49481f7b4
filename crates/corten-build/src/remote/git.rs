//! Git repositories, by way of the host's `git`. It is told as little as possible of the host:
//! no configuration but ours, no prompts, no protocols that lead to the host's own files.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cancel::Cancel;

/// A repository, and what of it is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct GitSource {
    /// Where it is.
    pub(crate) url: String,
    /// Branch, tag or commit; the default branch when absent.
    pub(crate) reference: Option<String>,
    /// A directory of it.
    pub(crate) subdir: Option<String>,
    /// The commit must begin with this.
    pub(crate) checksum: Option<String>,
    /// Keep `.git`.
    pub(crate) keep_git_dir: Option<bool>,
    /// Leave submodules out.
    pub(crate) no_submodules: bool,
}

impl GitSource {
    /// Reads `URL#REF:SUBDIR` or `URL?ref=…&subdir=…`; `None`: it is no repository.
    pub(crate) fn parse(word: &str) -> Option<Result<Self, String>> {
        let (place, fragment) = word.split_once('#').unwrap_or((word, ""));
        let (url, query) = place.split_once('?').unwrap_or((place, ""));
        let scheme = url.split_once("://").map(|(scheme, _)| scheme);
        let is_git = match scheme {
            Some("git" | "ssh") => true,
            Some("http" | "https") => url.trim_end_matches('/').ends_with(".git"),
            Some(_) => false,
            None => is_scp(url),
        };
        is_git.then(|| Self::read(url, query, fragment))
    }

    fn read(url: &str, query: &str, fragment: &str) -> Result<Self, String> {
        let nonempty = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
        let mut source = Self {
            url: url.to_owned(),
            reference: nonempty(reference),
            subdir: nonempty(subdir),
            ..Self::default()
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let yes = matches!(value, "" | "1" | "true");
            match key {
                "ref" => source.reference = nonempty(value),
                "branch" => source.reference = Some(format!("refs/heads/{value}")),
                "tag" => source.reference = Some(format!("refs/tags/{value}")),
                "subdir" => source.subdir = nonempty(value),
                "checksum" | "commit" => source.checksum = nonempty(value),
                "keep-git-dir" => source.keep_git_dir = Some(yes),
                "submodules" => source.no_submodules = !yes,
                other => return Err(format!("unexpected query {other:?} in {url}")),
            }
        }
        if source
            .reference
            .as_deref()
            .is_some_and(|r| r.starts_with('-'))
        {
            return Err(format!("invalid reference of {url}"));
        }
        Ok(source)
    }
}

/// `user@host:path`
fn is_scp(word: &str) -> bool {
    let Some((user, rest)) = word.split_once('@') else {
        return false;
    };
    let name = |text: &str| {
        !text.is_empty()
            && !text.starts_with('-')
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    name(user)
        && rest
            .split_once(':')
            .is_some_and(|(host, path)| name(host) && !path.is_empty())
}

fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Runs `git`.
struct Git<'a> {
    agent: Option<&'a Path>,
    dir: Option<&'a Path>,
}

impl Git<'_> {
    fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<String, String> {
        let mut command = Command::new("git");
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_ALLOW_PROTOCOL", "http:https:git:ssh")
            .env("GIT_SSH_COMMAND", "ssh -F /dev/null -o BatchMode=yes")
            .env("HOME", "/nonexistent")
            .stdin(Stdio::null());
        for proxy in ["http_proxy", "https_proxy", "no_proxy", "all_proxy"] {
            if let Some(value) = std::env::var_os(proxy) {
                command.env(proxy, value);
            }
        }
        if let Some(agent) = self.agent {
            command.env("SSH_AUTH_SOCK", agent);
        }
        if let Some(dir) = self.dir {
            command.arg("-C").arg(dir);
        }
        // A hook of the repository is never run.
        command.args(["-c", "core.hooksPath=/dev/null"]).args(args);
        let output = command.output().map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                "git is not installed on this host: it is needed for sources in Git repositories"
                    .to_owned()
            }
            _ => format!("git: {error}"),
        })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let told = String::from_utf8_lossy(&output.stderr);
        let last = told.lines().rfind(|line| !line.trim().is_empty());
        Err(last.unwrap_or("git failed").trim().to_owned())
    }
}

/// A commit, and the reference that leads to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub(crate) commit: String,
    reference: Option<String>,
}

/// Which commit is meant. Blocks.
pub(crate) fn resolve(source: &GitSource, agent: Option<&Path>) -> Result<Resolved, String> {
    let told = |message: String| format!("failed to load git source {}: {message}", source.url);
    let wanted = source.reference.as_deref().unwrap_or("HEAD");
    let resolved = if is_commit(wanted) {
        Resolved {
            commit: wanted.to_lowercase(),
            reference: None,
        }
    } else {
        let git = Git { agent, dir: None };
        let list = git.run(&["ls-remote", "--", &source.url]).map_err(told)?;
        find(&list, wanted)
            .ok_or_else(|| told(format!("repository does not contain ref {wanted}")))?
    };
    if let Some(checksum) = &source.checksum
        && !resolved.commit.starts_with(&checksum.to_lowercase())
    {
        return Err(told(format!(
            "expected checksum to match {checksum}, got {}",
            resolved.commit
        )));
    }
    Ok(resolved)
}

/// Finds a reference in what `ls-remote` lists: a tag before a branch; of an annotated tag the
/// commit it is of.
fn find(list: &str, wanted: &str) -> Option<Resolved> {
    let lines: Vec<(&str, &str)> = list
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .collect();
    let commit = |name: &str| lines.iter().find(|(_, n)| *n == name).map(|(c, _)| *c);
    [
        wanted.to_owned(),
        format!("refs/tags/{wanted}"),
        format!("refs/heads/{wanted}"),
        format!("refs/{wanted}"),
    ]
    .into_iter()
    .find_map(|name| {
        let found = commit(&name)?;
        let peeled = commit(&format!("{name}^{{}}")).unwrap_or(found);
        Some(Resolved {
            commit: peeled.to_owned(),
            reference: Some(name),
        })
    })
}

/// Checks the commit out below `dir`; where what is wanted of it is. Blocks.
pub(crate) fn fetch(
    source: &GitSource,
    resolved: &Resolved,
    keep_git_dir: bool,
    agent: Option<&Path>,
    dir: &Path,
    cancel: &Cancel,
) -> Result<PathBuf, String> {
    let told = |message: String| format!("failed to load git source {}: {message}", source.url);
    let checkout = dir.join("checkout");
    std::fs::create_dir(&checkout).map_err(|e| told(e.to_string()))?;
    let git = Git {
        agent,
        dir: Some(&checkout),
    };
    git.run(&["init", "-q", "--initial-branch=main"])
        .map_err(told)?;
    git.run(&["remote", "add", "origin", "--", &source.url])
        .map_err(told)?;
    let wanted = resolved.reference.as_ref().unwrap_or(&resolved.commit);
    // Not every server has commits by name, or shallow histories.
    let attempts: [&[&str]; 3] = [
        &["fetch", "-q", "--depth=1", "--no-tags", "origin", wanted],
        &["fetch", "-q", "origin", wanted],
        &[
            "fetch",
            "-q",
            "--tags",
            "origin",
            "+refs/*:refs/remotes/origin/*",
        ],
    ];
    let mut fetched = Err(String::new());
    for attempt in attempts {
        if cancel.is_cancelled() {
            return Err(told("the build was cancelled".to_owned()));
        }
        fetched = git.run(attempt);
        if fetched.is_ok() {
            break;
        }
    }
    fetched.map_err(told)?;
    git.run(&["checkout", "-q", "--detach", &resolved.commit])
        .map_err(told)?;
    if !source.no_submodules && checkout.join(".gitmodules").exists() {
        let update = [
            "submodule",
            "update",
            "-q",
            "--init",
            "--recursive",
            "--depth=1",
        ];
        git.run(&update).map_err(told)?;
    }
    if !keep_git_dir {
        std::fs::remove_dir_all(checkout.join(".git")).map_err(|e| told(e.to_string()))?;
    }
    Ok(checkout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_and_what_of_them() {
        let parsed = |word: &str| GitSource::parse(word).map(Result::unwrap);
        let source = parsed("https://example.org/a/b.git#v1:docs").unwrap();
        assert_eq!(source.url, "https://example.org/a/b.git");
        assert_eq!(source.reference.as_deref(), Some("v1"));
        assert_eq!(source.subdir.as_deref(), Some("docs"));
        let source =
            parsed("https://h/b.git?tag=v2&subdir=x&keep-git-dir=true&submodules=false").unwrap();
        assert_eq!(source.reference.as_deref(), Some("refs/tags/v2"));
        assert_eq!(
            (source.keep_git_dir, source.no_submodules),
            (Some(true), true)
        );
        assert!(parsed("git@github.com:a/b.git").is_some());
        assert!(parsed("ssh://git@example.org/a").is_some());
        for word in [
            "https://example.org/a",
            "a@b",
            "./x@y:z/..",
            "file:///x.git",
            "github.com/a/b",
        ] {
            assert!(GitSource::parse(word).is_none(), "{word}");
        }
        assert!(GitSource::parse("git://h/x#-u").unwrap().is_err());
        assert!(GitSource::parse("git://h/x?color=red").unwrap().is_err());
    }

    #[test]
    fn references() {
        let list = "aa\tHEAD\nbb\trefs/heads/main\ncc\trefs/tags/v1\ndd\trefs/tags/v1^{}\n";
        assert_eq!(find(list, "HEAD").unwrap().commit, "aa");
        assert_eq!(find(list, "main").unwrap().commit, "bb");
        let tag = find(list, "v1").unwrap();
        assert_eq!(
            (tag.commit.as_str(), tag.reference.as_deref()),
            ("dd", Some("refs/tags/v1"))
        );
        assert!(find(list, "nope").is_none());
    }
}
