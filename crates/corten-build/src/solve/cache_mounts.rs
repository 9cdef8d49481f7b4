//! The caches of a RUN, which others may have.

use std::sync::Arc;
use std::time::Duration;

use super::steps::Work;
use crate::error::BuildError;
use crate::plan::{Mounted, Op, RunMount};
use crate::progress::{BuildEvent, LogStream};
use crate::step_mounts::{self, Caches, CachesInput};

/// How long to wait before looking whether a cache has become free.
const PATIENCE: Duration = Duration::from_millis(50);

impl Work {
    /// Takes the caches. However many steps wait for them, no thread does.
    pub(super) async fn caches(self: Arc<Self>) -> Result<Caches, BuildError> {
        let (mut caches, mut told) = (Caches::default(), None);
        let Op::Run(op) = &self.step()?.op else {
            return Ok(caches);
        };
        let is_cache = |mount: &RunMount| matches!(mount.what, Mounted::Cache { .. });
        if !op.mounts.iter().any(is_cache) {
            return Ok(caches);
        }
        loop {
            let work = self.clone();
            let taking = move || {
                let wanted = work.try_caches(&mut caches)?;
                Ok((caches, wanted))
            };
            let wanted;
            (caches, wanted) = self.session.blocking(taking).await?;
            let Some(id) = wanted else {
                return Ok(caches);
            };
            if told.as_ref() != Some(&id) {
                (self.session.events)(BuildEvent::Log {
                    id: self.turn.vertex,
                    stream: LogStream::Stderr,
                    data: format!("waiting for cache mount {id}, which another step uses\n"),
                });
                told = Some(id);
            }
            tokio::select! {
                () = tokio::time::sleep(PATIENCE) => {}
                () = self.session.cancel.cancelled() => return Err(BuildError::Cancelled),
            }
        }
    }

    /// Takes what nobody else has; tells of one that somebody has. Blocks.
    fn try_caches(&self, caches: &mut Caches) -> Result<Option<String>, BuildError> {
        let Op::Run(op) = &self.step()?.op else {
            return Ok(None);
        };
        let session = &self.session;
        let wanted = CachesInput {
            store: &session.store,
            sandboxing: &session.sandboxing,
            op,
            sources: &self.turn.sources,
            cancel: &session.cancel,
        };
        step_mounts::take_caches(&wanted, caches)?.map_err(|message| self.error(message))
    }
}
