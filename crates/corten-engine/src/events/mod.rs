//! Events: what happened to objects, by whichever process, in order.

use bollard_stubs::models;
use futures_util::stream::BoxStream;

use crate::engine::Engine;
use crate::error::EngineError;

/// Which events to return.
#[derive(Debug, Clone, Default)]
pub struct EventOptions {
    /// Also past events, from then.
    pub since: Option<jiff::Timestamp>,
    /// End there (a past time: end at once after the past events).
    pub until: Option<jiff::Timestamp>,
    /// Docker's filters: `type`, `event`, `container`, `image`, `volume`, `network`, `label`.
    pub filters: crate::Filters,
}

/// The event service.
#[derive(Debug, Clone)]
pub struct Events(pub(crate) Engine);

impl Events {
    /// Events as they happen; when this returns, none from now on is missed.
    pub async fn subscribe(
        &self,
        options: EventOptions,
    ) -> Result<BoxStream<'static, Result<models::EventMessage, EngineError>>, EngineError> {
        let _ = options;
        todo!()
    }
}
