//! A context that is elsewhere: a repository is checked out, an archive downloaded.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use corten_store::{Store, TmpDir};

use super::blocking;
use crate::attest::Material;
use crate::cancel::Cancel;
use crate::error::BuildError;
use crate::ops::unpack;
use crate::remote::git::{self, Access, Checkout, GitSource};
use crate::remote::http;
use crate::remote::{Remote, masked};
use crate::request::{Context, DockerfileSource, Secret};

/// Largest Dockerfile that a URL may lead to, bytes.
const LARGEST: u64 = 8 << 20;
/// What came.
pub(super) struct Fetched {
    pub(super) context: Context,
    /// The URL was of a Dockerfile.
    pub(super) dockerfile: Option<DockerfileSource>,
    pub(super) dir: TmpDir,
    /// When it was last changed, in seconds since the epoch.
    pub(super) time: Option<i64>,
    /// What it was, exactly.
    pub(super) material: Material,
}

/// What came of a named context.
pub(super) struct FetchedFiles {
    pub(super) root: PathBuf,
    pub(super) dir: TmpDir,
    pub(super) material: Material,
}

/// Brings a named context here. Of a URL it is one file, `context`, as with BuildKit.
pub(super) async fn fetch_named(
    url: &str,
    lent: (&BTreeMap<String, PathBuf>, &BTreeMap<String, Secret>),
    store: &Store,
    cancel: &Cancel,
) -> Result<FetchedFiles, BuildError> {
    if let Remote::Http(file) = remote(url)? {
        let dir = store.tmp_dir("context")?;
        let done = http::download(&file, dir.path(), "context", cancel).await;
        cancel.check()?;
        let done = done.map_err(BuildError::Invalid)?;
        return Ok(FetchedFiles {
            root: dir.path().to_owned(),
            dir,
            material: Material::file(&masked(file.as_str()), &done.digest),
        });
    }
    let came = fetch(url, false, lent, store, cancel).await?;
    match came.context {
        Context::Dir(root) => Ok(FetchedFiles {
            root,
            dir: came.dir,
            material: came.material,
        }),
        _ => Err(BuildError::Internal(
            "a repository without files".to_owned(),
        )),
    }
}

/// Reads what names a context that is elsewhere.
fn remote(url: &str) -> Result<Remote, BuildError> {
    // As with Docker, this means the repository.
    let whole = match url.strip_prefix("github.com/") {
        Some(path) => {
            let (path, rest) = path.split_once('#').unwrap_or((path, ""));
            let path = path.trim_end_matches('/').trim_end_matches(".git");
            let rest = if rest.is_empty() {
                String::new()
            } else {
                format!("#{rest}")
            };
            format!("https://github.com/{path}.git{rest}")
        }
        None => url.to_owned(),
    };
    Remote::parse(&whole)
        .ok_or_else(|| {
            BuildError::Invalid(format!(
                "{} is no context: neither a repository nor a URL",
                masked(url)
            ))
        })?
        .map_err(BuildError::Invalid)
}

/// Brings a context here.
pub(super) async fn fetch(
    url: &str,
    keep_git_dir: bool,
    (agents, secrets): (&BTreeMap<String, PathBuf>, &BTreeMap<String, Secret>),
    store: &Store,
    cancel: &Cancel,
) -> Result<Fetched, BuildError> {
    let remote = remote(url)?;
    let dir = store.tmp_dir("context")?;
    match remote {
        Remote::Git(source) => {
            let keep = source.keep_git_dir.unwrap_or(keep_git_dir);
            let (place, stop) = (dir.path().to_owned(), cancel.clone());
            let access = Access::new(&source, agents, secrets);
            let shown = source.shown();
            let fetched = move || repository(&source, keep, &access, &place, &stop);
            let (Checkout { root, time }, commit) = blocking(fetched).await?;
            Ok(Fetched {
                time,
                context: Context::Dir(root),
                dockerfile: None,
                dir,
                material: Material::commit(&shown, &commit),
            })
        }
        Remote::Http(url) => {
            let done = http::download(&url, dir.path(), "context", cancel).await;
            cancel.check()?;
            let done = done.map_err(BuildError::Invalid)?;
            let material = Material::file(&masked(url.as_str()), &done.digest);
            let time = done.modified.and_then(|time| {
                let since = time.duration_since(UNIX_EPOCH).ok()?;
                i64::try_from(since.as_secs()).ok()
            });
            blocking(move || archive(&done.path, dir, time, material)).await
        }
    }
}

fn repository(
    source: &GitSource,
    keep: bool,
    access: &Access,
    dir: &Path,
    cancel: &Cancel,
) -> Result<(Checkout, String), BuildError> {
    let commit = git::resolve(source, access, cancel).map_err(BuildError::Invalid)?;
    let mut checkout =
        git::fetch(source, &commit, keep, access, dir, cancel).map_err(BuildError::Invalid)?;
    let commit = commit.commit;
    let Some(subdir) = &source.subdir else {
        return Ok((checkout, commit));
    };
    // A link in the repository must not lead out of it.
    let below = checkout
        .root
        .join(subdir.trim_start_matches('/'))
        .canonicalize();
    let inside = checkout.root.canonicalize();
    match (below, inside) {
        (Ok(below), Ok(inside)) if below.starts_with(&inside) && below.is_dir() => {
            checkout.root = below;
            Ok((checkout, commit))
        }
        _ => Err(BuildError::Invalid(format!(
            "{} has no directory {subdir}",
            source.shown()
        ))),
    }
}

/// A tar is the context, anything else a Dockerfile.
fn archive(
    path: &Path,
    dir: TmpDir,
    time: Option<i64>,
    material: Material,
) -> Result<Fetched, BuildError> {
    let failed = || BuildError::io("read the context");
    let file = std::fs::File::open(path).map_err(failed())?;
    if let Some(plain) = unpack::open(file).map_err(failed())? {
        return Ok(Fetched {
            context: Context::Tar(plain),
            dockerfile: None,
            dir,
            time,
            material,
        });
    }
    let size = std::fs::metadata(path).map_err(failed())?.len();
    if size > LARGEST {
        let message = "the URL leads to neither a tar nor a Dockerfile".to_owned();
        return Err(BuildError::Invalid(message));
    }
    let text = std::fs::read_to_string(path).map_err(failed())?;
    Ok(Fetched {
        context: Context::Empty,
        dockerfile: Some(DockerfileSource::Inline(text)),
        dir,
        time,
        material,
    })
}
