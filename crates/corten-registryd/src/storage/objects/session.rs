//! An upload in an object store. What came is kept in parts, objects of [`PART`] bytes and
//! the rest of each request; the state, which lists them, is replaced by conditional puts
//! only, so of two requests that write to one upload, maybe through two servers, one fails.
//! Whichever server gets the next request goes on with what the state says.
//!
//! Who ends an upload *claims* it first, by the same kind of put: from then on the parts are
//! its own, to make a blob of or to remove, and everybody else is refused. A claim is never
//! given back. One that is to become a blob is *taken over* by who wants the same of it and has
//! waited long enough: its server seems to be dead. If it only was slow, both make the blob of
//! the same parts, which is as good as once; nobody removes those any more, since who took it
//! over leaves them to a collection, and the other looks, by one more put, whether it is still
//! its own before it removes any. One that is thrown away is gone for everybody.
//!
//! A server hashes what passes through it. One that goes on with another's upload, or after a
//! restart, reads the parts once at the end.

use bytes::Bytes;
use corten_oci::{Digest, Digester};
use futures_util::TryStreamExt as _;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStoreExt as _, PutMode, PutPayload, UpdateVersion};

use serde::{Deserialize, Serialize};

use super::blobs::{Part, Parts, nonce, part_key};
use super::{BlobReader, Objects, Result};
use crate::error::RegistrydError;
use crate::names::{RepoName, UploadId};
use crate::storage::keys;

/// Bytes of a part. So much of each upload that runs is in memory.
const PART: u64 = 8 << 20;
/// A last part shorter than this is put together with what follows, so that many small
/// requests do not become as many parts.
const TAIL: u64 = 1 << 20;

/// What is stored about an upload.
#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    parts: Vec<Part>,
    /// Who claimed it does this with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    end: Option<End>,
    /// Who took the claim over: a name given once, so that the version is another, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    taken_by: Option<String>,
}

/// How an upload ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::storage) enum End {
    /// It becomes this blob; its digest was checked.
    Blob(Digest),
    /// It is thrown away.
    Discard,
}

/// An upload, as one request sees it.
#[derive(Debug)]
pub(in crate::storage) struct Session {
    key: String,
    id: UploadId,
    version: UpdateVersion,
    /// What whoever claimed it does with it.
    end: Option<End>,
    /// The claim was another's before.
    taken_over: bool,
    parts: Vec<Part>,
    /// What there was when the request began.
    opening: Vec<Part>,
    /// The part that was put together with what followed.
    replaced: Option<Part>,
    /// Came, but is not stored yet.
    pending: Vec<Bytes>,
}

fn length(parts: &[Part]) -> u64 {
    parts.iter().map(|part| part.1).sum()
}

impl Session {
    /// Bytes that came so far.
    pub(in crate::storage) fn length(&self) -> u64 {
        length(&self.parts) + self.waiting()
    }

    /// What another request does with it, which is about to end it.
    pub(in crate::storage) fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    fn waiting(&self) -> u64 {
        self.pending.iter().map(|piece| piece.len() as u64).sum()
    }
}

impl Objects {
    pub(in crate::storage) fn create_session(&self, repo: &RepoName, id: &UploadId) -> Result<()> {
        let key = keys::upload(repo, id);
        self.write(&key, &self.encode(&key, &State::default())?)
    }

    /// `None` if there is no such upload, or it is just thrown away.
    pub(in crate::storage) fn open_session(
        &self,
        repo: &RepoName,
        id: &UploadId,
    ) -> Result<Option<Session>> {
        let key = keys::upload(repo, id);
        self.run(async {
            let got = match self.store.get(&Path::from(key.as_str())).await {
                Ok(got) => got,
                Err(object_store::Error::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(self.failed("read", &key, error)),
            };
            let version = UpdateVersion {
                e_tag: got.meta.e_tag.clone(),
                version: got.meta.version.clone(),
            };
            let bytes = got.bytes().await;
            let bytes = bytes.map_err(|error| self.failed("read", &key, error))?;
            let state: State =
                serde_json::from_slice(&bytes).map_err(|error| RegistrydError::Damaged {
                    path: self.name(&key),
                    reason: error.to_string(),
                })?;
            if state.end == Some(End::Discard) {
                return Ok(None);
            }
            Ok(Some(Session {
                key: key.clone(),
                id: id.clone(),
                version,
                end: state.end,
                taken_over: false,
                opening: state.parts.clone(),
                parts: state.parts,
                replaced: None,
                pending: Vec::new(),
            }))
        })
    }

    /// Adds pieces at the end, and stores what makes a part.
    pub(in crate::storage) fn append(&self, session: &mut Session, pieces: &[Bytes]) -> Result<()> {
        self.run(async {
            if session.pending.is_empty()
                && session.replaced.is_none()
                && let Some(last) = session.parts.pop_if(|last| last.1 < TAIL)
            {
                let key = part_key(&session.id, &last);
                let got = match self.store.get(&Path::from(key.as_str())).await {
                    Ok(got) => got.bytes().await,
                    Err(error) => Err(error),
                };
                let bytes = got.map_err(|error| self.failed("read", &key, error))?;
                session.pending.push(bytes);
                session.replaced = Some(last);
            }
            session.pending.extend_from_slice(pieces);
            if session.waiting() >= PART {
                self.flush(session).await?;
            }
            Ok(())
        })
    }

    /// Stores what is in memory as a part.
    async fn flush(&self, session: &mut Session) -> Result<()> {
        self.store_pending(session).await?;
        self.save(session, None).await
    }

    async fn store_pending(&self, session: &mut Session) -> Result<()> {
        let size = session.waiting();
        if size > 0 {
            let part = Part(nonce(), size);
            let payload = PutPayload::from_iter(session.pending.iter().cloned());
            self.put(&part_key(&session.id, &part), payload).await?;
            session.parts.push(part);
            session.pending.clear();
        }
        Ok(())
    }

    /// Replaces the state, if it is still the one this request knows and nobody has claimed.
    async fn save(&self, session: &mut Session, end: Option<End>) -> Result<()> {
        if session.end.is_some() {
            return Err(RegistrydError::Busy(self.name(&session.key)));
        }
        self.replace(session, end, None).await
    }

    /// Replaces the state, if it is still the one this request knows.
    async fn replace(
        &self,
        session: &mut Session,
        end: Option<End>,
        taken_by: Option<String>,
    ) -> Result<()> {
        let state = State {
            parts: session.parts.clone(),
            end: end.clone(),
            taken_by,
        };
        let state = self.encode(&session.key, &state)?;
        let (key, mode) = (
            Path::from(session.key.as_str()),
            PutMode::Update(session.version.clone()),
        );
        match self.store.put_opts(&key, state.into(), mode.into()).await {
            Ok(done) => {
                session.version = done.into();
                session.end = end;
                Ok(())
            }
            // Another request was quicker, or finished or cancelled it. The part that was
            // stored for nothing goes with the upload, or the blob it becomes.
            Err(
                object_store::Error::Precondition { .. } | object_store::Error::NotFound { .. },
            ) => Err(RegistrydError::Busy(self.name(&session.key))),
            Err(error) => Err(self.failed("write", &session.key, error)),
        }
    }

    /// Lets go of an upload that goes on later, maybe through another server.
    pub(in crate::storage) fn pause(&self, mut session: Session) -> Result<()> {
        self.run(async {
            if !session.pending.is_empty() {
                self.flush(&mut session).await?;
            }
            if let Some(replaced) = session.replaced.take() {
                self.delete(&part_key(&session.id, &replaced)).await?;
            }
            Ok(())
        })
    }

    /// Takes back what this request added.
    pub(in crate::storage) fn roll_back(&self, session: &mut Session) -> Result<()> {
        session.pending.clear();
        session.replaced = None;
        if session.parts == session.opening {
            return Ok(());
        }
        let before = session.opening.clone();
        let added = std::mem::replace(&mut session.parts, before);
        let added = added.iter().filter(|part| !session.opening.contains(part));
        let added: Vec<String> = added.map(|part| part_key(&session.id, part)).collect();
        self.run(async {
            self.save(session, None).await?;
            self.delete_all(&added).await
        })
    }

    /// Hashes all of it anew.
    pub(in crate::storage) fn hash(
        &self,
        session: &Session,
        mut digester: Digester,
    ) -> Result<Digest> {
        let stored = length(&session.parts);
        let key = |part: &Part| (part_key(&session.id, part), part.1);
        let reader = BlobReader {
            store: self.store.clone(),
            segments: session.parts.iter().map(key).collect(),
        };
        let hashed: object_store::Result<()> = self.run(async {
            let mut pieces = reader.read(0..stored).await?;
            while let Some(piece) = pieces.try_next().await? {
                digester.update(&piece);
            }
            Ok(())
        });
        match hashed {
            Ok(()) => {}
            // Another request has ended it, or replaced a part.
            Err(object_store::Error::NotFound { .. }) => {
                return Err(RegistrydError::Busy(self.name(&session.key)));
            }
            Err(error) => return Err(self.failed("read the parts of", &session.key, error)),
        }
        for piece in &session.pending {
            digester.update(piece);
        }
        Ok(digester.finish())
    }

    /// Makes an upload this request's alone, to end it; [`RegistrydError::Busy`] where another
    /// has changed, claimed or ended it since it was opened.
    pub(in crate::storage) fn claim(&self, session: &mut Session, end: End) -> Result<()> {
        self.run(async {
            // One without parts becomes a blob in one object. The others' last part must be
            // in the state before a blob names it.
            if matches!(end, End::Blob(_)) && !session.parts.is_empty() {
                self.store_pending(session).await?;
            }
            self.save(session, Some(end)).await
        })
    }

    /// Makes a claim for this blob this request's, whose own bytes are those of the blob.
    /// [`RegistrydError::Busy`] where there is no such claim any more, or only who made it had
    /// what came.
    pub(in crate::storage) fn take_over(
        &self,
        repo: &RepoName,
        session: &mut Session,
        digest: &Digest,
    ) -> Result<()> {
        let busy = || RegistrydError::Busy(self.name(&session.key));
        let claimed = self.open_session(repo, &session.id)?.ok_or_else(busy)?;
        let end = End::Blob(digest.clone());
        if claimed.end.as_ref() != Some(&end) {
            return Err(busy());
        }
        if claimed.parts.is_empty() {
            // It was to become a blob in one object, of bytes that came with the request.
            if !session.parts.is_empty() {
                return Err(busy());
            }
            session.version = claimed.version;
        } else {
            *session = claimed;
        }
        self.run(self.replace(session, Some(end), Some(nonce())))?;
        session.taken_over = true;
        tracing::info!(upload = session.id.as_str(), %digest, "took over the end of an upload");
        Ok(())
    }

    /// Makes a claimed upload another incarnation of the blob it was claimed for. The upload
    /// stays, so that this can be done again.
    pub(in crate::storage) fn incarnate(&self, session: &Session, digest: &Digest) -> Result<()> {
        if session.end.as_ref() != Some(&End::Blob(digest.clone())) {
            let reason = format!("{} is not claimed for {digest}", session.key);
            return Err(RegistrydError::Internal(reason));
        }
        if session.parts.is_empty() {
            return self.write_raw(
                digest,
                PutPayload::from_iter(session.pending.iter().cloned()),
            );
        }
        let list = Parts {
            parts: session.parts.clone(),
        };
        self.write_parts(digest, &session.id, session.length(), &list)
    }

    /// Removes an upload that this request claimed, and its parts unless they are a blob's now.
    pub(in crate::storage) fn end_session(
        &self,
        mut session: Session,
        keep_parts: bool,
    ) -> Result<()> {
        let keep_parts = keep_parts || session.taken_over;
        let claimed_parts = !keep_parts && !session.parts.is_empty();
        if claimed_parts && session.end != Some(End::Discard) {
            // Whoever took it over may make, or have made, a blob of them.
            match self.run(self.replace(&mut session, Some(End::Discard), None)) {
                Err(RegistrydError::Busy(_)) => return Ok(()),
                other => other?,
            }
        }
        let gone = session.opening.iter().chain(&session.parts);
        let gone = gone.chain(&session.replaced);
        let kept = |part: &Part| keep_parts && session.parts.contains(part);
        let mut gone: Vec<String> = gone
            .filter(|part| !kept(part))
            .map(|part| part_key(&session.id, part))
            .collect();
        gone.sort();
        gone.dedup();
        self.run(async {
            // Parts without a state that names them are nobody's: they may go after it only.
            self.delete(&session.key).await?;
            self.delete_all(&gone).await
        })
    }

    /// Claims an upload and throws it away.
    pub(in crate::storage) fn discard(&self, mut session: Session) -> Result<()> {
        self.claim(&mut session, End::Discard)?;
        self.end_session(session, false)
    }

    /// The same with one as it was listed; false if it has changed since. Its parts are left
    /// for a collection to sweep: they may be a blob's, if its server died at its end.
    pub(super) fn discard_listed(
        &self,
        repo: &RepoName,
        id: &UploadId,
        listed: &ObjectMeta,
    ) -> Result<bool> {
        let key = keys::upload(repo, id);
        let ended = State {
            end: Some(End::Discard),
            ..State::default()
        };
        let mode = PutMode::Update(UpdateVersion {
            e_tag: listed.e_tag.clone(),
            version: listed.version.clone(),
        });
        let (path, ended) = (Path::from(key.as_str()), self.encode(&key, &ended)?);
        self.run(async {
            match self.store.put_opts(&path, ended.into(), mode.into()).await {
                Ok(_) => self.delete(&key).await.map(|()| true),
                Err(
                    object_store::Error::Precondition { .. } | object_store::Error::NotFound { .. },
                ) => Ok(false),
                Err(error) => Err(self.failed("write", &key, error)),
            }
        })
    }
}
