//! `/events`.

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use corten_engine::Engine;
use corten_engine::events::EventOptions;
use corten_engine::models::{EventMessage, EventMessageTypeEnum};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};

use super::streams::timestamp;
use super::{Answer, Query};
use crate::error::ApiError;
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

/// An event with the fields of the first API, which clients still print and which
/// today's models no longer have.
#[derive(Serialize)]
struct Told<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<&'a str>,
    #[serde(flatten)]
    event: &'a EventMessage,
}

impl<'a> Told<'a> {
    fn of(event: &'a EventMessage) -> Self {
        use EventMessageTypeEnum as Type;
        let container = event.typ == Some(Type::CONTAINER);
        let former = container || event.typ == Some(Type::IMAGE);
        let actor = event.actor.as_ref();
        let image = || actor?.attributes.as_ref()?.get("image");
        Self {
            status: event.action.as_deref().filter(|_| former),
            id: actor.and_then(|a| a.id.as_deref()).filter(|_| former),
            from: container.then(image).flatten().map(String::as_str),
            event,
        }
    }
}

async fn events(State(engine): State<Engine>, Query(query): Query<EventsQuery>) -> Answer {
    let options = EventOptions {
        since: timestamp("since", query.since.as_deref())?,
        until: timestamp("until", query.until.as_deref())?,
        filters: filters(query.filters.as_deref())?,
    };
    if let (Some(since), Some(until)) = (options.since, options.until)
        && since > until
    {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        return Err(ApiError::bad_parameter(format!(
            "`since` time ({}) cannot be after `until` time ({})",
            text(&query.since),
            text(&query.until)
        )));
    }
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
                    if !lines.send(&Told::of(&event)).await {
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

#[cfg(test)]
mod tests {
    use super::*;
    use corten_engine::models::EventActor;

    #[test]
    fn containers_and_images_have_their_former_fields() {
        let told = |typ| {
            let event = EventMessage {
                typ: Some(typ),
                action: Some("die".to_owned()),
                actor: Some(EventActor {
                    id: Some("abc".to_owned()),
                    attributes: Some([("image".to_owned(), "alpine".to_owned())].into()),
                }),
                ..Default::default()
            };
            let told = serde_json::to_value(Told::of(&event)).unwrap();
            assert_eq!(told["Action"], "die");
            ["status", "id", "from"].map(|field| told[field].as_str().map(str::to_owned))
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            told(EventMessageTypeEnum::CONTAINER),
            [some("die"), some("abc"), some("alpine")]
        );
        assert_eq!(
            told(EventMessageTypeEnum::IMAGE),
            [some("die"), some("abc"), None]
        );
        assert_eq!(told(EventMessageTypeEnum::VOLUME), [None, None, None]);
    }
}
