//! `events`, `system events`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Deserialize;
use serde_json::Value;

use crate::app::Cli;
use crate::client::ClientError;
use crate::command::{Command, action};
use crate::commands::container::when::timestamp;
use crate::commands::shared::joined;
use crate::error::{CliError, Result};
use crate::flags::{Arity, Flag, Parsed};
use crate::template::{Data, Template};

pub(crate) static EVENTS: Command = Command::new(
    "events",
    "",
    "Get real time events from the server",
    action!(events),
)
.aliases(&["system events", "events"])
.arity(Arity::None)
.flags(&[&[
    Flag::filter("Filter output based on conditions provided"),
    Flag::text("format", "How to print: 'json', or a Go template"),
    Flag::text("since", "Show all events created since timestamp"),
    Flag::text("until", "Stream events until this timestamp"),
]]);

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Event {
    #[serde(rename = "Type")]
    kind: String,
    action: String,
    actor: Actor,
    #[serde(rename = "time")]
    time: i64,
    #[serde(rename = "timeNano")]
    nanos: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Actor {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Attributes")]
    attributes: Option<BTreeMap<String, String>>,
}

async fn events(cli: &Cli, flags: Parsed) -> Result {
    let format = flags.nonempty("format");
    let json = format == Some("json");
    let template = match format.filter(|_| !json) {
        None => None,
        Some(text) => Some(Template::parse(text).map_err(CliError::unreadable)?),
    };
    let until = flags
        .nonempty("until")
        .map(|text| timestamp("until", text))
        .transpose()?;
    let since = flags
        .nonempty("since")
        .map(|text| timestamp("since", text))
        .transpose()?;
    let mut lines = cli
        .client()?
        .get("/events")
        .query_opt("since", since)
        .query_opt("until", until)
        .filters(&flags.list("filter"))
        .lines()
        .await?;
    let follow = async {
        while let Some(value) = lines.next::<Value>().await? {
            match &template {
                _ if json => cli.line(value.to_string())?,
                Some(template) => cli.line(template.render(&Data::from(fields(value)))?)?,
                None => {
                    let event: Event = serde_json::from_value(value).map_err(ClientError::from)?;
                    cli.line(line(&event, &TimeZone::system()))?;
                }
            }
        }
        Ok(())
    };
    tokio::select! {
        result = follow => result,
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

/// An event's fields by the names that templates know them by; those of the document stay.
fn fields(mut event: Value) -> Value {
    let names = [
        ("status", "Status"),
        ("id", "ID"),
        ("from", "From"),
        ("scope", "Scope"),
        ("time", "Time"),
        ("timeNano", "TimeNano"),
    ];
    for (document, template) in names {
        let value = event.get(document).cloned().unwrap_or_else(|| "".into());
        if let Some(event) = event.as_object_mut() {
            event.insert(template.to_owned(), value);
        }
    }
    event
}

/// `2026-11-24T02:43:27.000000000Z container start ID (image=alpine, name=web)`
fn line(event: &Event, zone: &TimeZone) -> String {
    let nanos = if event.nanos == 0 {
        event.time * 1_000_000_000
    } else {
        event.nanos
    };
    let time = Timestamp::from_nanosecond(nanos.into())
        .unwrap_or_default()
        .to_zoned_datetime(zone.clone());
    let time = time.strftime("%Y-%m-%dT%H:%M:%S.%9f%:z").to_string();
    let time = match time.strip_suffix("+00:00") {
        Some(utc) => format!("{utc}Z"),
        None => time,
    };
    let mut line = format!("{time} {} {} {}", event.kind, event.action, event.actor.id);
    if let Some(attributes) = event.actor.attributes.as_ref().filter(|a| !a.is_empty()) {
        line.push_str(&format!(" ({})", joined(attributes, ", ")));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_know_every_field() {
        let event = serde_json::json!({"Type": "container", "status": "die", "time": 5});
        let template = Template::parse("{{.Type}} {{.Status}} [{{.From}}] {{.Time}}").unwrap();
        let line = template.render(&Data::from(fields(event))).unwrap();
        assert_eq!(line, "container die [] 5");
    }

    #[test]
    fn lines() {
        let event: Event = serde_json::from_str(
            r#"{"Type":"container","Action":"start","Actor":{"ID":"abc","Attributes":{"name":"web","image":"alpine"}},"time":10,"timeNano":10000000001}"#,
        )
        .unwrap();
        assert_eq!(
            line(&event, &TimeZone::UTC),
            "1970-01-01T00:00:10.000000001Z container start abc (image=alpine, name=web)"
        );
    }
}
