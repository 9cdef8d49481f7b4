//! Git repositories, by way of the host's `git`. It is told as little as possible of the host:
//! no configuration but ours, no prompts, no protocols that lead to the host's own files.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, ErrorKind, Read as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Pid, Signal, kill_process_group};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::masked;
use crate::cancel::Cancel;
use crate::request::Secret;

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
                other => return Err(format!("unexpected query {other:?} in {}", masked(url))),
            }
        }
        if source
            .reference
            .as_deref()
            .is_some_and(|r| r.starts_with('-'))
        {
            return Err(format!("invalid reference of {}", masked(url)));
        }
        Ok(source)
    }

    /// Where it is, as it may be shown and kept: without credentials.
    pub(crate) fn shown(&self) -> String {
        masked(&self.url)
    }

    /// The beginnings of its URL, as it is and as it is shown, where they differ.
    fn credentials(&self) -> Option<(String, String)> {
        let shown = self.shown();
        if shown == self.url {
            return None;
        }
        let base = |url: &str| {
            let start = url.find("://").map_or(0, |at| at + 3);
            let end = url[start..].find('/').map_or(url.len(), |at| start + at);
            url[..end].to_owned()
        };
        Some((base(&self.url), base(&shown)))
    }
}

/// What is lent to get at a repository.
#[derive(Debug, Clone, Default)]
pub(crate) struct Access {
    agent: Option<PathBuf>,
    /// The servers it is for (`https://host/`), and the header.
    header: Option<(String, Secret)>,
}

impl Access {
    /// The default agent; and of the secrets `GIT_AUTH_HEADER.HOST`, `GIT_AUTH_TOKEN.HOST` and
    /// the same without a host, as with BuildKit, the first that there is.
    pub(crate) fn new(
        source: &GitSource,
        agents: &BTreeMap<String, PathBuf>,
        secrets: &BTreeMap<String, Secret>,
    ) -> Self {
        Self {
            agent: agents.get("default").cloned(),
            header: header(&source.url, secrets),
        }
    }
}

fn header(url: &str, secrets: &BTreeMap<String, Secret>) -> Option<(String, Secret)> {
    let url: url::Url = url.parse().ok()?;
    if !matches!(url.scheme(), "http" | "https") {
        return None;
    }
    let host = match url.port() {
        Some(port) => format!("{}:{port}", url.host_str()?),
        None => url.host_str()?.to_owned(),
    };
    let of = |id: &str| secrets.get(id)?.text().map(str::trim_end);
    let value = [format!(".{host}"), String::new()].iter().find_map(|at| {
        let header = of(&format!("GIT_AUTH_HEADER{at}")).map(str::to_owned);
        header.or_else(|| {
            let token = format!("x-access-token:{}", of(&format!("GIT_AUTH_TOKEN{at}"))?);
            Some(format!("basic {}", BASE64_STANDARD.encode(token)))
        })
    })?;
    let header = Secret::new(format!("Authorization: {value}").into_bytes());
    Some((format!("{}://{host}/", url.scheme()), header))
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

/// How `ssh` is run: with the lent agent and the hosts this machine knows, and without any key
/// of the engine's user.
const SSH: &str = "ssh -F /dev/null -o BatchMode=yes -o StrictHostKeyChecking=yes \
                   -o UpdateHostKeys=no -o IdentityFile=none -o CertificateFile=none \
                   -o PKCS11Provider=none -o GSSAPIAuthentication=no -o HostbasedAuthentication=no";

/// Runs `git`.
struct Git<'a> {
    source: &'a GitSource,
    access: &'a Access,
    dir: Option<&'a Path>,
    cancel: &'a Cancel,
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
            .env("GIT_SSH_COMMAND", SSH)
            .env("HOME", "/nonexistent");
        for proxy in ["http_proxy", "https_proxy", "no_proxy", "all_proxy"] {
            if let Some(value) = std::env::var_os(proxy) {
                command.env(proxy, value);
            }
        }
        // The repository only ever has the masked URL: credentials go from environment to
        // environment, not into its configuration, and not onto a command line.
        let mut settings = Vec::new();
        if let Some((full, shown)) = self.source.credentials() {
            settings.push((format!("url.{full}.insteadOf"), shown));
        }
        if let Some((servers, header)) = &self.access.header {
            let header = header.text().unwrap_or_default().to_owned();
            settings.push((format!("http.{servers}.extraHeader"), header));
        }
        command.env("GIT_CONFIG_COUNT", settings.len().to_string());
        for (number, (key, value)) in settings.into_iter().enumerate() {
            command
                .env(format!("GIT_CONFIG_KEY_{number}"), key)
                .env(format!("GIT_CONFIG_VALUE_{number}"), value);
        }
        if let Some(agent) = &self.access.agent {
            command.env("SSH_AUTH_SOCK", agent);
        }
        if let Some(dir) = self.dir {
            command.arg("-C").arg(dir);
        }
        // A hook of the repository is never run.
        command.args(["-c", "core.hooksPath=/dev/null"]).args(args);
        let output = finish(&mut command, self.cancel).map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                "git is not installed on this host: it is needed for sources in Git repositories"
                    .to_owned()
            }
            ErrorKind::Interrupted => "the build was cancelled".to_owned(),
            _ => format!("git: {error}"),
        })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let told = String::from_utf8_lossy(&output.stderr);
        let last = told.lines().rfind(|line| !line.trim().is_empty());
        Err(masked(last.unwrap_or("git failed").trim()))
    }
}

/// Runs a command to its end. When the build is cancelled it is killed, with all that it has
/// started, and `Interrupted` is the error.
fn finish(command: &mut Command, cancel: &Cancel) -> io::Result<Output> {
    let (ours, stop) = UnixStream::pair()?;
    let watch = ours.try_clone()?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let group = Pid::from_child(&child);
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    cancel.end_with(stop);
    let ended = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Nothing is ever written: a read ends when the build is cancelled, or by us.
        let killer = scope.spawn(move || {
            (&watch).read_exact(&mut [0]).ok();
            if !ended.load(Ordering::Acquire) {
                // Gone already, there is nothing to be killed.
                kill_process_group(group, Signal::KILL).ok();
            }
        });
        let errors = scope.spawn(move || read_all(stderr));
        let stdout = read_all(stdout);
        let stderr = errors.join().unwrap_or_default();
        // Not waited for yet, its id is nobody else's.
        ended.store(true, Ordering::Release);
        ours.shutdown(Shutdown::Both).ok();
        killer.join().ok();
        let status = child.wait()?;
        if cancel.is_cancelled() {
            return Err(ErrorKind::Interrupted.into());
        }
        Ok(Output {
            status,
            stdout,
            stderr,
        })
    })
}

fn read_all(stream: Option<impl io::Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream
        && let Err(error) = stream.read_to_end(&mut bytes)
    {
        tracing::debug!(%error, "what git says cannot be read");
    }
    bytes
}

/// A commit, and the reference that leads to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub(crate) commit: String,
    reference: Option<String>,
}

/// Which commit is meant. Blocks.
pub(crate) fn resolve(
    source: &GitSource,
    access: &Access,
    cancel: &Cancel,
) -> Result<Resolved, String> {
    let told = |message: String| format!("failed to load git source {}: {message}", source.shown());
    let wanted = source.reference.as_deref().unwrap_or("HEAD");
    let resolved = if is_commit(wanted) {
        Resolved {
            commit: wanted.to_lowercase(),
            reference: None,
        }
    } else {
        let git = Git {
            source,
            access,
            dir: None,
            cancel,
        };
        let list = git
            .run(&["ls-remote", "--", &source.shown()])
            .map_err(told)?;
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

/// A commit's files.
#[derive(Debug)]
pub(crate) struct Checkout {
    /// Where they are.
    pub(crate) root: PathBuf,
    /// When it was committed, in seconds since the epoch.
    pub(crate) time: Option<i64>,
}

/// Checks the commit out below `dir`. Blocks.
pub(crate) fn fetch(
    source: &GitSource,
    resolved: &Resolved,
    keep_git_dir: bool,
    access: &Access,
    dir: &Path,
    cancel: &Cancel,
) -> Result<Checkout, String> {
    let told = |message: String| format!("failed to load git source {}: {message}", source.shown());
    let checkout = dir.join("checkout");
    std::fs::create_dir(&checkout).map_err(|e| told(e.to_string()))?;
    let git = Git {
        source,
        access,
        dir: Some(&checkout),
        cancel,
    };
    git.run(&["init", "-q", "--initial-branch=main"])
        .map_err(told)?;
    git.run(&["remote", "add", "origin", "--", &source.shown()])
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
    let shown = git
        .run(&["show", "-s", "--format=%ct", "HEAD"])
        .map_err(told)?;
    let time = shown.trim().parse().ok();
    if !keep_git_dir {
        std::fs::remove_dir_all(checkout.join(".git")).map_err(|e| told(e.to_string()))?;
    }
    Ok(Checkout {
        root: checkout,
        time,
    })
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
    fn credentials_are_not_kept() {
        let source = GitSource::parse("http://u:tok3n@h:1/a/b.git#m")
            .unwrap()
            .unwrap();
        assert_eq!(source.shown(), "http://xxxxx:xxxxx@h:1/a/b.git");
        let (full, shown) = source.credentials().unwrap();
        assert_eq!(
            (full.as_str(), shown.as_str()),
            ("http://u:tok3n@h:1", "http://xxxxx:xxxxx@h:1")
        );
        let plain = GitSource::parse("git@h:a/b.git").unwrap().unwrap();
        assert_eq!(plain.credentials(), None);
        // Git is asked for the whole URL, and keeps the masked one.
        let dir = tempfile::tempdir().unwrap();
        let cancel = Cancel::default();
        let git = Git {
            source: &source,
            access: &Access::default(),
            dir: Some(dir.path()),
            cancel: &cancel,
        };
        git.run(&["init", "-q"]).unwrap();
        git.run(&["remote", "add", "origin", "--", &source.shown()])
            .unwrap();
        let url = git.run(&["remote", "get-url", "origin"]).unwrap();
        assert_eq!(url.trim(), source.url);
        let config = std::fs::read_to_string(dir.path().join(".git/config")).unwrap();
        assert!(
            config.contains("xxxxx@h:1") && !config.contains("tok3n"),
            "{config}"
        );
    }

    #[test]
    fn servers_are_sent_their_own_secret_alone() {
        let secrets: BTreeMap<String, Secret> = [
            ("GIT_AUTH_TOKEN", "any\n"),
            ("GIT_AUTH_TOKEN.a.example", "t0ken"),
            ("GIT_AUTH_HEADER.b.example:81", "Bearer b"),
        ]
        .map(|(id, value)| (id.to_owned(), Secret::new(value.as_bytes().to_vec())))
        .into();
        let encoded = |token: &str| BASE64_STANDARD.encode(format!("x-access-token:{token}"));
        for (url, expected) in [
            (
                "https://a.example/r.git",
                format!("basic {}", encoded("t0ken")),
            ),
            ("http://b.example:81/r.git", "Bearer b".to_owned()),
            (
                "https://c.example/r.git",
                format!("basic {}", encoded("any")),
            ),
        ] {
            let source = GitSource::parse(url).unwrap().unwrap();
            let access = Access::new(&source, &BTreeMap::new(), &secrets);
            assert!(!format!("{access:?}").contains(&expected));
            let git = Git {
                source: &source,
                access: &access,
                dir: None,
                cancel: &Cancel::default(),
            };
            let asked = |url| git.run(&["config", "--get-urlmatch", "http.extraHeader", url]);
            assert_eq!(
                asked(url).unwrap().trim(),
                format!("Authorization: {expected}")
            );
            assert!(asked("https://elsewhere.example/r.git").is_err());
        }
        let source = GitSource::parse("git@a.example:r.git").unwrap().unwrap();
        let access = Access::new(&source, &BTreeMap::new(), &secrets);
        assert!(access.header.is_none());
    }

    #[test]
    fn no_key_of_the_engines_user_is_offered() {
        let told = match Command::new("sh")
            .args(["-c", &format!("{SSH} -G host.invalid")])
            .output()
        {
            Ok(told) if told.status.success() => String::from_utf8(told.stdout).unwrap(),
            _ => return, // no ssh here
        };
        let files: Vec<&str> = told
            .lines()
            .filter(|line| line.starts_with("identityfile "))
            .collect();
        assert!(
            files.iter().all(|line| *line == "identityfile none"),
            "{told}"
        );
        assert!(told.contains("identitiesonly no"), "{told}");
    }

    #[test]
    fn a_cancelled_build_does_not_wait() {
        let cancel = Cancel::default();
        let started = std::time::Instant::now();
        std::thread::scope(|scope| {
            let mut command = Command::new("sh");
            // The child of the child holds the pipes as well.
            command.args(["-c", "sleep 100 & sleep 100"]);
            let cancel = &cancel;
            let running = scope.spawn(move || finish(&mut command, cancel));
            std::thread::sleep(std::time::Duration::from_millis(200));
            cancel.cancel();
            let error = running.join().unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Interrupted);
        });
        assert!(started.elapsed().as_secs() < 50);
        let done = finish(
            Command::new("sh").args(["-c", "echo a; echo b >&2"]),
            &Cancel::default(),
        );
        let done = done.unwrap();
        assert_eq!(
            (done.stdout, done.stderr),
            (b"a\n".to_vec(), b"b\n".to_vec())
        );
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
