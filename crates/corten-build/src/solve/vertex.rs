//! A vertex's events: started when made, completed exactly once.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use crate::error::BuildError;
use crate::progress::{BuildEvent, EventSink, Instruction, StepResult, Vertex};
use crate::solve::Session;

/// A vertex that has been started. Dropped without an end, it was cancelled.
pub(crate) struct Running {
    id: u32,
    events: EventSink,
    begun: Instant,
    open: bool,
}

pub(crate) fn start(
    next: &AtomicU32,
    events: &EventSink,
    name: String,
    internal: bool,
    instruction: Option<Instruction>,
) -> Running {
    let id = next.fetch_add(1, Ordering::Relaxed) + 1;
    events(BuildEvent::Started(Vertex {
        id,
        name,
        internal,
        instruction,
    }));
    Running {
        id,
        events: events.clone(),
        begun: Instant::now(),
        open: true,
    }
}

impl Session {
    /// Starts a vertex of the builder's own.
    pub(crate) fn internal(&self, name: String) -> Running {
        start(&self.next_vertex, &self.events, name, true, None)
    }

    /// Starts a vertex of the Dockerfile's.
    pub(crate) fn vertex(&self, name: &str, instruction: Option<&Instruction>) -> Running {
        let name = name.to_owned();
        start(
            &self.next_vertex,
            &self.events,
            name,
            false,
            instruction.cloned(),
        )
    }
}

impl Running {
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    fn complete(&mut self, cached: bool, error: Option<String>, result: Option<StepResult>) {
        self.open = false;
        (self.events)(BuildEvent::Completed {
            id: self.id,
            cached,
            ms: u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            error,
            result,
        });
    }

    /// The end of a vertex that makes nothing to show.
    pub(crate) fn end<T>(
        mut self,
        cached: bool,
        result: Result<T, BuildError>,
    ) -> Result<T, BuildError> {
        self.complete(cached, result.as_ref().err().map(ToString::to_string), None);
        result
    }

    /// The end of a step.
    pub(crate) fn done(mut self, cached: bool, result: StepResult) {
        self.complete(cached, None, Some(result));
    }

    /// The end of a step that failed.
    pub(crate) fn failed(mut self, error: &BuildError) {
        self.complete(false, Some(error.to_string()), None);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.open {
            self.complete(false, Some(BuildError::Cancelled.to_string()), None);
        }
    }
}
