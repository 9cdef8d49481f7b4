//! Carrying out COPY, ADD and WORKDIR.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use corten_dockerfile::IgnoreRules;
use corten_oci::DiffId;
use corten_store::Upper;
use corten_store::rooted::RootFd;

use super::remotes::Brought;
use super::steps::Work;
use crate::error::{BuildError, reason};
use crate::ops::below::Below;
use crate::ops::composing::Composing;
use crate::ops::plain::{self, Copied, Made, PlainError};
use crate::ops::tree::{Entry, Selection, Tree};
use crate::ops::write::{self, Manner, Writer};
use crate::ops::{self, users};
use crate::plan::{CopyOp, WorkdirOp};

impl Work {
    pub(super) fn copy(
        &self,
        op: &CopyOp,
        brought: &[Brought],
    ) -> Result<Option<DiffId>, BuildError> {
        let owner = match &op.chown {
            None => None,
            Some(word) => Some(self.owner(word)?),
        };
        let manner = Manner {
            owner,
            chmod: op.chmod.as_ref(),
        };
        self.with_tree(op, |tree| {
            let taken = self
                .taken
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            let mut entries = match taken {
                Some(taken) => taken,
                None => self.select(tree, op)?,
            };
            let unpacks = op.unpack && plain::may_be_archives(&entries);
            if brought.is_empty() && !unpacks {
                let composed = self.composed(op, tree, &mut entries, manner)?;
                if composed.is_some() {
                    return Ok(composed);
                }
            }
            self.written(op, brought, (tree, entries), manner)
        })
    }

    /// The layer, where it can be made at once.
    fn composed(
        &self,
        op: &CopyOp,
        tree: &Tree,
        entries: &mut [Entry],
        manner: Manner<'_>,
    ) -> Result<Option<DiffId>, BuildError> {
        let session = &self.session;
        let below = match op.link {
            true => Below::default(),
            false => session.stacks.below(&session.store, &self.turn.layers)?,
        };
        let composing = Composing {
            manner,
            last: session.last,
            cancel: &session.cancel,
        };
        let copied = Copied {
            tree,
            entries,
            inline: &op.inline,
            destination: &op.destination,
        };
        match plain::copy(session.store.layers(), &below, copied, &composing) {
            Ok(Made::Layer(layer, listing)) => {
                session.stacks.learn(&layer, listing);
                Ok(Some(layer))
            }
            Ok(Made::Nothing | Made::Not) => Ok(None),
            Err(PlainError::Copy((path, error))) => Err(self.unread(tree, &path, error)),
            Err(PlainError::Store(error)) => Err(error.into()),
        }
    }

    /// The layer of what is written file by file.
    fn written(
        &self,
        op: &CopyOp,
        brought: &[Brought],
        (tree, mut entries): (&Tree, Vec<Entry>),
        manner: Manner<'_>,
    ) -> Result<Option<DiffId>, BuildError> {
        let session = &self.session;
        let below: &[DiffId] = if op.link { &[] } else { &self.turn.layers };
        let (work, root) = ops::writable(&session.store, below)?;
        let writer = Writer {
            root: &root,
            manner,
            unpack: op.unpack,
            date: None,
            cancel: &session.cancel,
        };
        let destination = PathBuf::from(&op.destination);
        let into = op.destination.ends_with('/') || write::is_directory(&root, &destination);
        if into {
            plain::into_directory(&mut entries);
        }
        writer
            .entries(tree, &entries, &destination)
            .map_err(|(path, error)| self.unread(tree, &path, error))?;
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

    /// WORKDIR, where the directory can be made at once.
    pub(super) fn workdir(&self, op: &WorkdirOp) -> Result<Option<DiffId>, BuildError> {
        let session = &self.session;
        let owner = match op.user.as_str() {
            "" => None,
            user => Some(self.owner(user)?),
        };
        let below = session.stacks.below(&session.store, &self.turn.layers)?;
        let composing = Composing {
            manner: Manner { owner, chmod: None },
            last: session.last,
            cancel: &session.cancel,
        };
        match plain::directory(session.store.layers(), &below, &op.path, &composing) {
            Ok(Made::Layer(layer, listing)) => {
                session.stacks.learn(&layer, listing);
                return Ok(Some(layer));
            }
            Ok(Made::Nothing) => return Ok(None),
            Ok(Made::Not) => {}
            Err(PlainError::Copy((path, error))) => return Err(self.unmade(&path, &error)),
            Err(PlainError::Store(error)) => return Err(error.into()),
        }
        let (work, root) = ops::writable(&session.store, &self.turn.layers)?;
        let path = Path::new(&op.path);
        write::make_directory(&root, path, owner, 0o755).map_err(|e| self.unmade(path, &e))?;
        drop(root);
        ops::settle(&session.store, &session.leavings, work, session.last)
    }

    fn unmade(&self, path: &Path, error: &io::Error) -> BuildError {
        if error.kind() == io::ErrorKind::Interrupted {
            return BuildError::Cancelled;
        }
        self.error(format!("cannot make {}: {}", path.display(), reason(error)))
    }

    /// Whose something is to be. Names are the image's, also for a layer that is made without it.
    fn owner(&self, word: &str) -> Result<(u32, u32), BuildError> {
        if let Some(numbers) = users::numbers(word) {
            return Ok(numbers);
        }
        let (store, layers) = (&self.session.store, &self.turn.layers);
        let below = self.session.stacks.below(store, layers)?;
        let found = match below.accounts() {
            Some(root) => users::owner(root, word),
            None => {
                let mount = store.layers().mount(layers, Upper::ReadOnly)?;
                users::owner(&RootFd::from(mount), word)
            }
        };
        found.map_err(|message| self.error(message))
    }
}
