//! `--progress=rawjson`: BuildKit's `SolveStatus` (its `client/graph.go`), one JSON document a
//! line. A vertex is named by a digest; ours is that of its name and number in the build.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use corten_build::BuildEvent;
use corten_build::progress::LogStream;
use corten_oci::Digest;
use jiff::Timestamp;
use serde_json::{Value, json};

/// What is known of the vertices so far.
#[derive(Debug, Default)]
pub(crate) struct RawJson {
    vertices: HashMap<u32, Known>,
}

#[derive(Debug)]
struct Known {
    digest: String,
    name: String,
    started: String,
    /// When each of its parts was heard of first.
    parts: HashMap<String, String>,
}

impl RawJson {
    /// An event's line; nothing where BuildKit has none.
    pub(super) fn render(&mut self, event: &BuildEvent) -> String {
        self.render_at(event, Timestamp::now())
    }

    /// The same of an event that was at another time.
    pub(crate) fn render_at(&mut self, event: &BuildEvent, at: Timestamp) -> String {
        self.status(event, &at.to_string())
            .map(|status| format!("{status}\n"))
            .unwrap_or_default()
    }

    fn status(&mut self, event: &BuildEvent, now: &str) -> Option<Value> {
        Some(match event {
            BuildEvent::Started(vertex) if !super::is_shown(vertex) => return None,
            BuildEvent::Started(vertex) => {
                let named = format!("{} {}", vertex.id, vertex.name);
                let known = Known {
                    digest: Digest::of(named.as_bytes()).to_string(),
                    name: vertex.name.clone(),
                    started: now.to_owned(),
                    parts: HashMap::new(),
                };
                let shown = json!({"digest": known.digest, "name": known.name, "started": now});
                self.vertices.insert(vertex.id, known);
                json!({"vertexes": [shown]})
            }
            BuildEvent::Log { id, stream, data } => {
                let stream = match stream {
                    LogStream::Stdout => 1,
                    LogStream::Stderr => 2,
                };
                json!({"logs": [{
                    "vertex": self.vertices.get(id)?.digest,
                    "stream": stream,
                    "data": STANDARD.encode(data),
                    "timestamp": now,
                }]})
            }
            BuildEvent::Progress {
                id,
                text,
                current,
                total,
            } => {
                let known = self.vertices.get_mut(id)?;
                let started = known.parts.entry(text.clone());
                let started = started.or_insert_with(|| now.to_owned());
                let mut status = json!({
                    "id": text,
                    "vertex": known.digest,
                    "current": current.unwrap_or(0),
                    "timestamp": now,
                    "started": started,
                });
                if let Some(total) = total {
                    status["total"] = json!(total);
                }
                if total.is_some() && total == current {
                    status["completed"] = json!(now);
                }
                json!({"statuses": [status]})
            }
            BuildEvent::Completed {
                id, cached, error, ..
            } => {
                let known = self.vertices.get(id)?;
                let mut vertex = json!({
                    "digest": known.digest,
                    "name": known.name,
                    "started": known.started,
                    "completed": now,
                });
                if *cached {
                    vertex["cached"] = json!(true);
                }
                if let Some(error) = error {
                    vertex["error"] = json!(error);
                }
                json!({"vertexes": [vertex]})
            }
            BuildEvent::Warning {
                message,
                line,
                more,
            } => {
                let detail: Vec<String> = more.iter().map(|line| STANDARD.encode(line)).collect();
                let mut warning = json!({"level": 1, "short": STANDARD.encode(message)});
                if !detail.is_empty() {
                    warning["detail"] = json!(detail);
                }
                if let Some(line) = line {
                    let place = json!({"line": line});
                    warning["range"] = json!([{"start": place, "end": place}]);
                }
                json!({"warnings": [warning]})
            }
            BuildEvent::Image { .. } => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use corten_build::progress::Vertex;

    use super::*;

    #[test]
    fn documents_of_a_build() {
        let mut raw = RawJson::default();
        let at = |second| Timestamp::from_second(second).unwrap().to_string();
        let vertex = Vertex {
            id: 3,
            name: "[2/2] RUN make".to_owned(),
            internal: false,
            instruction: None,
        };
        let digest = "sha256:07c0d4f5";
        let events = [
            BuildEvent::Started(vertex),
            BuildEvent::Log {
                id: 3,
                stream: LogStream::Stderr,
                data: "x\n".to_owned(),
            },
            BuildEvent::Progress {
                id: 3,
                text: "sha256:1 downloading".to_owned(),
                current: Some(5),
                total: Some(5),
            },
            BuildEvent::Completed {
                id: 3,
                cached: true,
                ms: 1,
                error: Some("no".to_owned()),
                result: None,
            },
            BuildEvent::Warning {
                message: "w".to_owned(),
                line: Some(7),
                more: vec!["m".to_owned()],
            },
        ];
        let mut lines = Vec::new();
        for (second, event) in events.iter().enumerate() {
            let line = raw
                .status(event, &at(i64::try_from(second).unwrap()))
                .unwrap()
                .to_string();
            let whole = raw.vertices[&3].digest.clone();
            lines.push(line.replace(&whole, digest));
        }
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn nothing_of_vertices_that_did_not_begin() {
        let event = BuildEvent::Log {
            id: 1,
            stream: LogStream::Stdout,
            data: String::new(),
        };
        assert_eq!(RawJson::default().render(&event), "");
    }
}
