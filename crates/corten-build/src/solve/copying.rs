//! Carrying out COPY and ADD.

use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use corten_dockerfile::IgnoreRules;
use corten_oci::DiffId;
use corten_store::rooted::RootFd;
use corten_store::{StoreError, Upper};

use super::remotes::Brought;
use super::steps::Work;
use crate::error::BuildError;
use crate::ops::compose::{self, Composing};
use crate::ops::tree::{Entry, Selection, Tree};
use crate::ops::write::{self, Writer};
use crate::ops::{self, users};
use crate::plan::CopyOp;

impl Work {
    pub(super) fn copy(
        &self,
        op: &CopyOp,
        brought: &[Brought],
    ) -> Result<Option<DiffId>, BuildError> {
        let session = &self.session;
        let below: &[DiffId] = if op.link { &[] } else { &self.turn.layers };
        let (work, root) = ops::writable(&session.store, below)?;
        let owner = match &op.chown {
            None => None,
            Some(word) => Some(self.owner(op, &root, word)?),
        };
        let writer = Writer {
            root: &root,
            owner,
            chmod: op.chmod.as_ref(),
            unpack: op.unpack,
            date: None,
            cancel: &session.cancel,
        };
        let destination = PathBuf::from(&op.destination);
        let into = op.destination.ends_with('/') || write::is_directory(&root, &destination);
        let composed = self.with_tree(op, |tree| {
            let taken = self
                .taken
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            let mut entries = match taken {
                Some(taken) => taken,
                None => self.select(tree, op)?,
            };
            for entry in &mut entries {
                // The image itself has a directory of that name: single files go into it.
                if into && entry.named && entry.to.as_os_str().is_empty() {
                    entry.to = entry
                        .path
                        .file_name()
                        .map(PathBuf::from)
                        .unwrap_or_default();
                }
            }
            let unpacks = op.unpack && entries.iter().any(|entry| entry.named);
            if brought.is_empty() && op.inline.is_empty() && !unpacks {
                let composed = self.compose(tree, &entries, &writer, &destination)?;
                if composed.is_some() {
                    return Ok(composed);
                }
            }
            writer
                .entries(tree, &entries, &destination)
                .map_err(|(path, error)| self.unread(tree, &path, error))?;
            Ok(None)
        })?;
        if composed.is_some() {
            drop(root);
            session.leavings.leave(work);
            return Ok(composed);
        }
        for remote in brought {
            let tree = Tree {
                root: RootFd::open(&remote.root).map_err(BuildError::io("open a download"))?,
                ignore: IgnoreRules::default(),
                foreign: true,
                remember: false,
            };
            let selection = Selection {
                exclude: &op.exclude,
                ..Selection::of(&remote.path, into)
            };
            let entries = self.selected(&tree, &selection)?;
            let writer = Writer {
                unpack: remote.unpack,
                ..writer
            };
            writer
                .entries(&tree, &entries, &destination)
                .map_err(|(path, error)| self.unread(&tree, &path, error))?;
        }
        for (name, content) in &op.inline {
            let target = if into {
                destination.join(name)
            } else {
                destination.clone()
            };
            let failed = |(path, error): write::Failure| self.unwritten(&path, &error);
            writer.inline(&target, content).map_err(failed)?;
        }
        drop(root);
        ops::settle(&session.store, &session.leavings, work, session.last)
    }

    /// The layer of many files, where it can be made at once. Nothing was written yet.
    fn compose(
        &self,
        tree: &Tree,
        entries: &[Entry],
        writer: &Writer<'_>,
        destination: &Path,
    ) -> Result<Option<DiffId>, BuildError> {
        // Whatever keeps it from being made at once, it can still be written file by file.
        let not_at_once = |why: &dyn std::fmt::Display| {
            tracing::debug!(destination = %destination.display(), %why, "not copied at once");
        };
        let layers = self.session.store.layers();
        if !compose::is_worth_it(entries) {
            return Ok(None);
        }
        match layers.composes() {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) => {
                not_at_once(&error);
                return Ok(None);
            }
        }
        let plan = match compose::plan(writer.root, entries, destination, writer.owner) {
            Ok(Ok(plan)) => plan,
            Ok(Err(why)) => {
                not_at_once(&why);
                return Ok(None);
            }
            Err(error) => {
                not_at_once(&error);
                return Ok(None);
            }
        };
        let composing = Composing {
            writer,
            last: self.session.last,
        };
        match layers.compose(|out| composing.write(tree, &plan, out)) {
            Ok(Ok(layer)) => Ok(Some(layer.diff_id)),
            Ok(Err((path, error))) => Err(self.unread(tree, &path, error)),
            // A layer that comes as a tar has bounds that one of files has not.
            Err(error @ (StoreError::BadEntry { .. } | StoreError::BadArchive(_))) => {
                not_at_once(&error);
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Names of `--chown` are the image's, also for a layer that is made without it.
    fn owner(&self, op: &CopyOp, root: &RootFd, word: &str) -> Result<(u32, u32), BuildError> {
        let found = if op.link && !self.turn.layers.is_empty() {
            let mount = self
                .session
                .store
                .layers()
                .mount(&self.turn.layers, Upper::ReadOnly)?;
            users::owner(&RootFd::from(mount), word)
        } else {
            users::owner(root, word)
        };
        found.map_err(|message| self.error(message))
    }
}
