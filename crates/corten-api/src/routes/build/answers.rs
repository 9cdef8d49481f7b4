//! Answers to `call=`: one line, `{"corten_answer": …}`, with the result in BuildKit's JSON
//! form and as text.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use corten_build::{Answer, Found};
use corten_dockerfile::{describe, lint};
use serde_json::{Value, json};

/// The line.
pub(super) fn line(answer: &Answer) -> Value {
    let Answer { file, text, found } = answer;
    let shown = match found {
        Found::Check(report) => {
            let mut shown = json!({
                "json": report.json(file, text, &|source| STANDARD.encode(source)),
                "text": report.text(file, text),
                "warnings": report.warnings.len(),
            });
            if let Some(message) = report.failure() {
                let lines = report
                    .error
                    .as_ref()
                    .map(|error| lint::excerpt(file, text, error.span))
                    .unwrap_or_default();
                shown["error"] = json!(format!("{message}\n{lines}"));
            }
            shown
        }
        Found::Outline(outline) => json!({
            "json": outline.json(&STANDARD.encode(text)),
            "text": outline.text(),
        }),
        Found::Targets(targets) => json!({
            "json": describe::targets_json(targets, &STANDARD.encode(text)),
            "text": describe::targets_text(targets),
        }),
    };
    json!({ "corten_answer": shown })
}
