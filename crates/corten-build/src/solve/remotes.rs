//! Sources of ADD that are elsewhere: what they are, which decides the key, and then, only if
//! the step has to be carried out, their files.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use corten_store::TmpDir;
use url::Url;

use super::Session;
use super::blocking;
use crate::attest::Material;
use crate::cache::KnownFile;
use crate::error::BuildError;
use crate::plan::RemoteOp;
use crate::remote::git::{self, Access, Resolved};
use crate::remote::http::{self, Downloaded};
use crate::remote::{Remote, file_name, masked};

/// A source of which it is known what it is.
#[derive(Debug)]
pub(super) struct Identified {
    /// Its part of the key.
    pub(super) key: String,
    /// It is here already.
    here: Option<(Arc<TmpDir>, Downloaded)>,
    /// The digest that it has by what the server says.
    digest: Option<String>,
    commit: Option<Resolved>,
}

/// A source whose files are here.
#[derive(Debug)]
pub(super) struct Brought {
    /// A directory of ours.
    pub(super) root: PathBuf,
    /// What is wanted, below it.
    pub(super) path: String,
    pub(super) unpack: bool,
    _dir: Arc<TmpDir>,
}

impl Session {
    /// Finds out what a source is, and notes it. An error that is only a text is the
    /// Dockerfile's.
    pub(super) async fn identify(
        self: &Arc<Self>,
        op: &RemoteOp,
    ) -> Result<Result<Identified, String>, BuildError> {
        let identified = self.find_out(op).await?;
        if let Ok(identified) = &identified {
            let material = match (&op.remote, &identified.commit, &identified.here) {
                (Remote::Git(source), Some(commit), _) => {
                    Some(Material::commit(&source.shown(), &commit.commit))
                }
                (Remote::Http(url), _, here) => {
                    let digest = here.as_ref().map(|(_, done)| &done.digest);
                    let digest = digest.or(identified.digest.as_ref());
                    let digest = digest.or(op.checksum.as_ref());
                    digest.map(|digest| Material::file(&masked(url.as_str()), digest))
                }
                (Remote::Git(_), None, _) => None,
            };
            let mut known = self
                .materials
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            known.extend(material);
        }
        Ok(identified)
    }

    async fn find_out(
        self: &Arc<Self>,
        op: &RemoteOp,
    ) -> Result<Result<Identified, String>, BuildError> {
        match (&op.remote, &op.checksum) {
            (Remote::Http(url), Some(checksum)) => Ok(Ok(Identified {
                key: http_key(&file_name(url), checksum, op.unpack),
                here: None,
                digest: None,
                commit: None,
            })),
            (Remote::Http(url), None) => {
                let name = file_name(url);
                let dir = Arc::new(self.store.tmp_dir("download")?);
                // What takes nothing from the cache wants the bytes.
                let known = match self.no_cache {
                    true => None,
                    false => self.cache.known_file(url)?,
                };
                let etag = known.as_ref().map(|known| known.etag.as_str());
                let place = (dir.path(), name.as_str());
                let done = http::download_unless(url, etag, place, &self.cancel).await;
                self.cancel.check()?;
                let digest = match (&done, known) {
                    (Err(message), _) => return Ok(Err(message.clone())),
                    (Ok(Some(done)), _) => {
                        self.note(url, done)?;
                        done.digest.clone()
                    }
                    (Ok(None), Some(known)) => {
                        // What is in use is not forgotten.
                        self.cache.note_file(url, &known)?;
                        known.digest
                    }
                    (Ok(None), None) => {
                        let message = format!("{url}: unchanged, but since when is not known");
                        return Ok(Err(masked(&message)));
                    }
                };
                Ok(Ok(Identified {
                    key: http_key(&name, &digest, op.unpack),
                    here: done.ok().flatten().map(|done| (dir, done)),
                    digest: Some(digest),
                    commit: None,
                }))
            }
            (Remote::Git(source), _) => {
                let access = Access::new(source, &self.agents, &self.secrets);
                let wanted = source.clone();
                let cancel = self.cancel.clone();
                let found = blocking(move || {
                    let found = git::resolve(&wanted, &access, &cancel);
                    cancel.check().map(|()| found)
                })
                .await?;
                let subdir = source.subdir.as_deref().unwrap_or_default();
                Ok(found.map(|commit| Identified {
                    key: format!(
                        "git {} {} {} {subdir}",
                        commit.commit, op.keep_git_dir, source.no_submodules
                    ),
                    here: None,
                    digest: None,
                    commit: Some(commit),
                }))
            }
        }
    }

    /// Notes in which state a file was.
    fn note(&self, url: &Url, done: &Downloaded) -> Result<(), BuildError> {
        match &done.etag {
            None => Ok(()),
            Some(etag) => self.cache.note_file(
                url,
                &KnownFile {
                    etag: etag.clone(),
                    digest: done.digest.clone(),
                },
            ),
        }
    }

    /// Brings its files.
    pub(super) async fn bring(
        self: &Arc<Self>,
        op: &RemoteOp,
        identified: &Identified,
    ) -> Result<Result<Brought, String>, BuildError> {
        let (dir, root, path) = match (&op.remote, &identified.here, &identified.commit) {
            (Remote::Http(url), Some((dir, _)), _) => {
                (dir.clone(), dir.path().to_owned(), file_name(url))
            }
            (Remote::Http(url), None, _) => {
                let name = file_name(url);
                let dir = Arc::new(self.store.tmp_dir("download")?);
                let done = http::download(url, dir.path(), &name, &self.cancel).await;
                self.cancel.check()?;
                let done = match done {
                    Ok(done) => done,
                    Err(message) => return Ok(Err(message)),
                };
                if let Some(checksum) = &op.checksum
                    && *checksum != done.digest
                {
                    return Ok(Err(format!("digest mismatch {}: {checksum}", done.digest)));
                }
                self.note(url, &done)?;
                if let Some(digest) = &identified.digest
                    && *digest != done.digest
                {
                    let message = format!("{url} changed while it was asked for: build again");
                    return Ok(Err(masked(&message)));
                }
                let root = dir.path().to_owned();
                (dir, root, name)
            }
            (Remote::Git(source), _, Some(commit)) => {
                let dir = Arc::new(self.store.tmp_dir("checkout")?);
                let (wanted, commit) = (source.clone(), commit.clone());
                let access = Access::new(source, &self.agents, &self.secrets);
                let (place, cancel) = (dir.path().to_owned(), self.cancel.clone());
                let keep = op.keep_git_dir;
                let fetched = blocking(move || {
                    let fetched = git::fetch(&wanted, &commit, keep, &access, &place, &cancel);
                    cancel.check().map(|()| fetched)
                })
                .await?;
                match fetched {
                    Ok(checkout) => (
                        dir,
                        checkout.root,
                        source.subdir.clone().unwrap_or_default(),
                    ),
                    Err(message) => return Ok(Err(message)),
                }
            }
            (Remote::Git(_), _, None) => {
                return Err(BuildError::Internal(
                    "a repository without a commit".to_owned(),
                ));
            }
        };
        Ok(Ok(Brought {
            root,
            path,
            unpack: op.unpack,
            _dir: dir,
        }))
    }
}

fn http_key(name: &str, digest: &str, unpack: bool) -> String {
    format!("http {digest} {unpack} {name}")
}
