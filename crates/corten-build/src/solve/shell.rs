//! `build --debug`: the shell in what a failed step has left, once the step itself is over. Whoever
//! waits for it goes on: another build with the same step, and steps that want to run. Only its
//! caches are still held, as they are in the shell.

use std::sync::{Arc, PoisonError};

use corten_oci::DiffId;

use super::steps::Work;
use crate::error::BuildError;
use crate::plan::Op;
use crate::progress::BuildEvent;
use crate::run;
use crate::step_mounts::Caches;

impl Work {
    /// Opens the shell, if one is wanted, and waits until it has ended. The step's failure, with
    /// why there was none.
    pub(super) async fn sit(
        self: Arc<Self>,
        error: BuildError,
        caches: Arc<Caches>,
        sources: Arc<Vec<Option<Vec<DiffId>>>>,
    ) -> BuildError {
        let left = self
            .left
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(left) = left else {
            return error;
        };
        let session = self.session.clone();
        let report = format!("{}ERROR: {error}", error.report());
        let opening = move || {
            let Op::Run(op) = &self.step()?.op else {
                return Ok(None);
            };
            let input = self.input(op, &caches, &sources);
            run::shell(&input, left, &report)
        };
        match session.blocking(opening).await {
            Ok(None) => error,
            Ok(Some(why)) => {
                (session.events)(BuildEvent::Warning {
                    message: format!("no shell in the failed step: {why}"),
                    line: None,
                    more: Vec::new(),
                });
                error
            }
            Err(other) => other,
        }
    }
}
