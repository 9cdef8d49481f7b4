//! `/events`.

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use corten_engine::Engine;
use corten_engine::events::EventOptions;
use futures_util::StreamExt;
use serde::Deserialize;

use super::streams::timestamp;
use super::{Answer, Query};
use crate::query::filters;
use crate::stream::JsonLines;

pub(super) fn routes() -> Router<Engine> {
    Router::new().route("/events", get(events))
}

#[derive(Deserialize)]
struct EventsQuery {
    since: Option<String>,
    until: Option<String>,
    filters: Option<String>,
}

async fn events(State(engine): State<Engine>, Query(query): Query<EventsQuery>) -> Answer {
    let options = EventOptions {
        since: timestamp("since", query.since.as_deref())?,
        until: timestamp("until", query.until.as_deref())?,
        filters: filters(query.filters.as_deref())?,
    };
    let mut events = engine.events().subscribe(options).await?;
    let (lines, response) = JsonLines::response();
    tokio::spawn(async move {
        loop {
            let event = tokio::select! {
                () = lines.closed() => return,
                event = events.next() => event,
            };
            match event {
                Some(Ok(event)) => {
                    if !lines.send(&event).await {
                        return;
                    }
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "events cut short");
                    return;
                }
                None => return,
            }
        }
    });
    Ok(response)
}
