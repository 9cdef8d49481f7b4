//! What the bind mounts of a RUN show of a context: a layer with a copy of what `.dockerignore`
//! leaves of it. It is made once for each content, and shared by all steps, builds and processes
//! that want the same; like the result of a step it is kept until the cache is pruned.

use std::path::Path;
use std::sync::{Arc, PoisonError};

use corten_oci::DiffId;

use super::steps::Work;
use crate::cache::{Output, now};
use crate::error::BuildError;
use crate::keys::{self, Shown};
use crate::ops::write::Writer;
use crate::ops::{self, content};
use crate::plan::{CopyFrom, MountFrom, Mounted, Op};

/// Where in the layer a part of a context is.
const SHOWN: &str = "shown";

/// Where in the layer that is which is mounted: all of a context is all of the layer.
pub(crate) fn at(source: &str) -> &str {
    if source.is_empty() { source } else { SHOWN }
}

impl Work {
    /// The layers of whatever the mounts of a RUN are of, in their order.
    pub(super) async fn sources(self: Arc<Self>) -> Result<Vec<Option<Vec<DiffId>>>, BuildError> {
        let mut sources = self.turn.sources.clone();
        let Op::Run(op) = &self.step()?.op else {
            return Ok(sources);
        };
        for (index, mount) in op.mounts.iter().enumerate() {
            let Mounted::Bind {
                from: MountFrom::Files(from @ (CopyFrom::Context | CopyFrom::Named(_))),
                source,
            } = &mount.what
            else {
                continue;
            };
            let shown = self.shown.get().and_then(|shown| shown.get(index));
            let shown = shown.cloned().flatten().ok_or_else(|| {
                BuildError::Internal("a mount whose content is not known".to_owned())
            })?;
            let layer = self.clone().snapshot(from, source, shown).await?;
            if let Some(place) = sources.get_mut(index) {
                *place = Some(layer.into_iter().collect());
            }
        }
        Ok(sources)
    }

    async fn snapshot(
        self: Arc<Self>,
        from: &CopyFrom,
        source: &str,
        shown: Shown,
    ) -> Result<Option<DiffId>, BuildError> {
        let session = self.session.clone();
        let key = keys::context_mount(&shown, at(source));
        let mut known = session.cache.get(&key)?;
        if known.is_none() {
            // Whoever copies waits for nothing but its turn.
            let _alone = session.alone(&key, false, self.turn.vertex).await?;
            known = session.cache.get(&key)?;
            if known.is_none() {
                let _permit = session.permit().await?;
                let (from, source, key) = (from.clone(), source.to_owned(), key.clone());
                let work = self.clone();
                let made = move || {
                    let output = Output {
                        layer: work.copied(&from, &source, &shown)?,
                        created: now(),
                    };
                    work.session
                        .cache
                        .put(&[&key], &output, "[internal] context of mounts")?;
                    Ok(output)
                };
                known = Some(session.blocking(made).await?);
            }
        }
        let mut touched = session
            .touched
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        touched.push(key);
        drop(touched);
        Ok(known.and_then(|output| output.layer))
    }

    /// Copies what a path of a context leads to. Blocks.
    fn copied(
        &self,
        from: &CopyFrom,
        source: &String,
        shown: &Shown,
    ) -> Result<Option<DiffId>, BuildError> {
        let session = &self.session;
        let Some(tree) = session.tree(from) else {
            return Err(self.error("the build has no context to be mounted"));
        };
        let (entries, content) = self.seen(tree, source)?;
        // The layer is found again by what was in it when the step's key was made.
        if Shown::new(content, &entries) != *shown {
            let changed = std::io::Error::other(content::Changed);
            return Err(self.unread(tree, Path::new(source), changed));
        }
        let (work, root) = ops::writable(&session.store, &[])?;
        let place = Path::new(at(source));
        let writer = Writer::plain(&root, &session.cancel);
        writer
            .shown(tree, &entries, place)
            .map_err(|(path, error)| self.unread(tree, &path, error))?;
        drop(root);
        ops::settle(&session.store, &session.leavings, work, None)
    }
}
