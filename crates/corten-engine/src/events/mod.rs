//! Events: what happened to objects, by whichever process, in order.
//!
//! An event is a row, written in the same transaction as the change it tells of. Followers
//! read rows after the last one they saw; a follower in the process that wrote is woken at
//! once, others look every [`POLL`]. The table keeps the last [`KEPT`] events: it also
//! answers how a container ended that removed itself.

use std::collections::HashMap;
use std::time::Duration;

use bollard_stubs::models::{self, EventMessageScopeEnum, EventMessageTypeEnum};
use futures_util::stream::BoxStream;
use rusqlite::{Connection, OptionalExtension, params};

use crate::Filters;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::{filters, time};

type Result<T> = std::result::Result<T, EngineError>;

/// How often a follower looks for what other processes wrote.
const POLL: Duration = Duration::from_millis(50);
/// How many events are kept.
const KEPT: i64 = 20_000;
/// How many are read at once.
const BATCH: i64 = 256;

/// Which events to return.
#[derive(Debug, Clone, Default)]
pub struct EventOptions {
    /// Also past events, from then.
    pub since: Option<jiff::Timestamp>,
    /// End there (a past time: end at once after the past events).
    pub until: Option<jiff::Timestamp>,
    /// Docker's filters: `type`, `event`, `container`, `image`, `volume`, `network`, `label`.
    pub filters: Filters,
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Container,
    Image,
    Volume,
    Network,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Image => "image",
            Self::Volume => "volume",
            Self::Network => "network",
        }
    }
}

/// Writes an event as part of a transaction.
pub(crate) fn record(
    c: &Connection,
    kind: Kind,
    action: &str,
    actor: &str,
    attributes: &HashMap<String, String>,
) -> Result<()> {
    let attributes = serde_json::to_string(attributes).unwrap_or_else(|_| "{}".to_owned());
    c.prepare_cached(
        "INSERT INTO events (at, kind, action, actor, attributes) VALUES (?,?,?,?,?)",
    )?
    .execute(params![
        time::now_nanos(),
        kind.as_str(),
        action,
        actor,
        attributes
    ])?;
    let seq = c.last_insert_rowid();
    if seq % 512 == 0 {
        c.execute("DELETE FROM events WHERE seq <= ?", [seq - KEPT])?;
    }
    Ok(())
}

/// The exit code with which a container that exists no more ended, if that is still known.
pub(crate) fn last_exit(c: &Connection, id: &str) -> Result<Option<i64>> {
    let attributes: Option<String> = c
        .query_row(
            "SELECT attributes FROM events WHERE actor = ? AND kind = 'container' \
             AND action = 'die' ORDER BY seq DESC LIMIT 1",
            [id],
            |r| r.get(0),
        )
        .optional()?;
    Ok(attributes
        .and_then(|text| serde_json::from_str::<HashMap<String, String>>(&text).ok())
        .and_then(|map| map.get("exitCode")?.parse().ok()))
}

/// The event service.
#[derive(Debug, Clone)]
pub struct Events(pub(crate) Engine);

struct Follower {
    engine: Engine,
    options: EventOptions,
    last: i64,
    pending: std::collections::VecDeque<models::EventMessage>,
}

/// Filters that name an object by its id or name, or how either begins. Of some kinds nothing
/// happens here.
const OBJECTS: [&str; 10] = [
    "container",
    "volume",
    "network",
    "daemon",
    "builder",
    "plugin",
    "node",
    "service",
    "secret",
    "config",
];

impl Events {
    /// Events as they happen; when this returns, none from now on is missed.
    ///
    /// # Errors
    /// When a filter is unknown, or the database fails.
    pub async fn subscribe(
        &self,
        options: EventOptions,
    ) -> Result<BoxStream<'static, Result<models::EventMessage>>> {
        let others = ["type", "event", "image", "label", "scope"];
        filters::check(&options.filters, &[&others[..], &OBJECTS[..]].concat())?;
        let since = options.since.map(nanos);
        let last = self
            .0
            .read(move |c| {
                Ok(match since {
                    None => c.query_row("SELECT ifnull(max(seq), 0) FROM events", [], |r| {
                        r.get::<_, i64>(0)
                    })?,
                    Some(since) => c.query_row(
                        "SELECT ifnull(max(seq), 0) FROM events WHERE at < ?",
                        [since],
                        |r| r.get(0),
                    )?,
                })
            })
            .await?;
        let follower = Follower {
            engine: self.0.clone(),
            options,
            last,
            pending: std::collections::VecDeque::new(),
        };
        let events = futures_util::stream::unfold(follower, |mut follower| async move {
            match follower.next().await {
                Ok(Some(event)) => Some((Ok(event), follower)),
                Ok(None) => None,
                Err(error) => {
                    // Told once; then the stream ends.
                    follower.options.until = Some(jiff::Timestamp::UNIX_EPOCH);
                    Some((Err(error), follower))
                }
            }
        });
        Ok(Box::pin(events))
    }
}

fn nanos(time: jiff::Timestamp) -> i64 {
    i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX)
}

impl Follower {
    async fn next(&mut self) -> Result<Option<models::EventMessage>> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(Some(event));
            }
            let woken = self.engine.changed();
            // Decided before reading: what happened until then is still returned.
            let over = self
                .options
                .until
                .is_some_and(|until| nanos(until) <= time::now_nanos());
            let last = self.last;
            let rows = self.engine.read(move |c| read_after(c, last)).await?;
            let full = rows.len() as i64 == BATCH;
            for (seq, at, event) in rows {
                self.last = seq;
                let in_time = self.options.until.is_none_or(|until| at <= nanos(until));
                if in_time && matches(&self.options.filters, &event) {
                    self.pending.push_back(event);
                }
            }
            if !self.pending.is_empty() || full {
                continue;
            }
            if over {
                return Ok(None);
            }
            // A write in this process wakes at once; others are looked for.
            let _ = tokio::time::timeout(POLL, woken).await;
        }
    }
}

fn read_after(c: &Connection, last: i64) -> Result<Vec<(i64, i64, models::EventMessage)>> {
    let mut statement = c.prepare_cached(
        "SELECT seq, at, kind, action, actor, attributes FROM events WHERE seq > ? \
         ORDER BY seq LIMIT ?",
    )?;
    let rows = statement.query_map([last, BATCH], |r| {
        let (seq, at): (i64, i64) = (r.get(0)?, r.get(1)?);
        let kind: String = r.get(2)?;
        let attributes: String = r.get(5)?;
        let event = models::EventMessage {
            typ: Some(match kind.as_str() {
                "container" => EventMessageTypeEnum::CONTAINER,
                "image" => EventMessageTypeEnum::IMAGE,
                "volume" => EventMessageTypeEnum::VOLUME,
                "network" => EventMessageTypeEnum::NETWORK,
                _ => EventMessageTypeEnum::BUILDER,
            }),
            action: Some(r.get(3)?),
            actor: Some(models::EventActor {
                id: Some(r.get(4)?),
                attributes: Some(serde_json::from_str(&attributes).unwrap_or_default()),
            }),
            scope: Some(EventMessageScopeEnum::LOCAL),
            time: Some(at / 1_000_000_000),
            time_nano: Some(at),
        };
        Ok((seq, at, event))
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn matches(wanted: &Filters, event: &models::EventMessage) -> bool {
    let kind = event.typ.map(|t| t.to_string()).unwrap_or_default();
    let action = event.action.as_deref().unwrap_or("");
    let empty = HashMap::new();
    let (id, attributes) = match &event.actor {
        Some(actor) => (
            actor.id.as_deref().unwrap_or(""),
            actor.attributes.as_ref().unwrap_or(&empty),
        ),
        None => ("", &empty),
    };
    let name = attributes.get("name").map_or("", String::as_str);
    let object = |field: &&str| {
        filters::any(wanted, field, |v| {
            kind == *field && (id.starts_with(v.as_str()) || name.starts_with(v.as_str()))
        })
    };
    let image = filters::any(wanted, "image", |v| {
        let of = if kind == "image" {
            Some(id)
        } else {
            attributes.get("image").map(String::as_str)
        };
        of.is_some_and(|of| of == v || of.split(':').next() == Some(v)) || name == v
    });
    filters::any(wanted, "type", |v| *v == kind)
        // `exec_start: sh` is the action `exec_start` with its detail.
        && filters::any(wanted, "event", |v| action == v || action.split(':').next() == Some(v))
        && OBJECTS.iter().all(object)
        && image
        && filters::any(wanted, "scope", |v| v == "local")
        && filters::labels(wanted, attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_dockers_events() {
        let c = Connection::open_in_memory().unwrap();
        c.execute_batch(crate::schema::SCHEMA.migrations[0])
            .unwrap();
        let attributes: HashMap<String, String> = [
            ("name".to_owned(), "web".to_owned()),
            ("exitCode".to_owned(), "3".to_owned()),
        ]
        .into();
        record(&c, Kind::Container, "start", "abc", &attributes).unwrap();
        record(&c, Kind::Container, "die", "abc", &attributes).unwrap();
        let events = read_after(&c, 0).unwrap();
        assert_eq!(events.len(), 2);
        assert_eq!(read_after(&c, 1).unwrap().len(), 1);
        assert_eq!(last_exit(&c, "abc").unwrap(), Some(3));
        assert_eq!(last_exit(&c, "abd").unwrap(), None);

        let event = &events[1].2;
        let filter = |field: &str, value: &str| -> Filters {
            [(field.to_owned(), vec![value.to_owned()])].into()
        };
        for (field, value, passes) in [
            ("type", "container", true),
            ("type", "image", false),
            ("event", "die", true),
            ("event", "start", false),
            ("container", "web", true),
            ("container", "ab", true),
            ("container", "db", false),
            ("label", "exitCode=3", true),
            ("label", "nope", false),
        ] {
            assert_eq!(
                matches(&filter(field, value), event),
                passes,
                "{field}={value}"
            );
        }
    }
}
