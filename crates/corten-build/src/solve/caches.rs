//! Caches of a build that come from elsewhere or go there.

use std::sync::atomic::AtomicU32;
use std::sync::{Arc, PoisonError};

use super::{Parts, Session, Target, blocking, vertex, warn};
use crate::error::BuildError;
use crate::export::{self, StageOutput};
use crate::plan::{Base, Plan, StagePlan};
use crate::portable::inline::Inline;
use crate::portable::{self, Imported, Record};
use crate::progress::EventSink;
use crate::request::{CacheExport, CacheImport, CacheTarget};

/// Reads caches of others. One that cannot be read is told of, and done without.
pub(super) async fn import(
    wanted: &[CacheImport],
    parts: &Parts,
    next_vertex: &AtomicU32,
    events: &EventSink,
) -> Imported {
    let mut imported = Imported::default();
    for place in wanted {
        let shown = match place {
            CacheImport::Directory(dir) => dir.display().to_string(),
            CacheImport::Registry(image) => image.familiar(),
        };
        let name = format!("importing cache manifest from {shown}");
        let vertex = vertex::start(next_vertex, events, name, true, None);
        let read = match place {
            CacheImport::Directory(dir) => {
                let dir = dir.clone();
                let read = blocking(move || Ok(Imported::of_directory(&dir))).await;
                read.unwrap_or_else(|error| Err(error.to_string()))
            }
            CacheImport::Registry(image) => portable::import_registry(&*parts.images, image).await,
        };
        let told = match read {
            Ok(read) => {
                imported.merge(read);
                Ok(())
            }
            Err(message) => {
                warn(events, message.clone());
                Err(BuildError::Invalid(message))
            }
        };
        // The build goes on whether it could be read or not.
        let _told = vertex.end(false, told);
    }
    imported
}

impl Session {
    /// The document of the image that a stage makes.
    pub(super) fn document(
        &self,
        plan: &Plan,
        stage: &StagePlan,
        output: &StageOutput,
    ) -> Result<Vec<u8>, BuildError> {
        let cache = self.inline.then(|| {
            let mut records = self.records(plan, false);
            if let Some(epoch) = self.epoch {
                for record in &mut records {
                    record.created = record.created.min(epoch);
                }
            }
            Inline::of(records)
        });
        export::document(stage, output, &plan.platform, cache.flatten(), self.epoch)
    }

    /// What became of the steps, in the Dockerfile's order: of `all` stages, or those that the
    /// result is made of, from its own down.
    fn records(&self, plan: &Plan, all: bool) -> Vec<Record> {
        let mut chain = vec![plan.target];
        while let Some(Base::Stage(below)) = chain
            .last()
            .and_then(|index| plan.stages[*index].as_ref())
            .map(|stage| stage.base.clone())
        {
            chain.push(below);
        }
        let solved = self.solved.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wanted: Vec<_> = solved
            .iter()
            .filter(|((number, stage, _), _)| {
                *number == plan.number && (all || chain.contains(stage))
            })
            .collect();
        wanted.sort_by_key(|(at, _)| *at);
        wanted
            .into_iter()
            .map(|(_, record)| record.clone())
            .collect()
    }
}

/// Writes the cache.
pub(super) async fn export(
    session: &Arc<Session>,
    plans: &[Target],
    wanted: &CacheExport,
) -> Result<(), BuildError> {
    let name = match &wanted.to {
        CacheTarget::Directory(_) => "exporting cache to client directory",
        CacheTarget::Registry(_) => "exporting cache to registry",
        // It is part of the image.
        CacheTarget::Inline => return Ok(()),
    };
    let vertex = session.internal(name.to_owned());
    session.cancel.check()?;
    let store = session.store.clone();
    let of = |target: &Target| session.records(&target.plan, wanted.all);
    let records: Vec<Record> = plans.iter().flat_map(of).collect();
    let written = match &wanted.to {
        CacheTarget::Directory(dir) => {
            let dir = dir.clone();
            blocking(move || portable::export(&store, records, &dir)).await
        }
        CacheTarget::Registry(image) => {
            let published = portable::publish(&store, &*session.images, records, image);
            tokio::select! {
                published = published => published,
                () = session.cancel.cancelled() => Err(BuildError::Cancelled),
            }
        }
        CacheTarget::Inline => Ok(()),
    };
    vertex.end(false, written)
}
