//! Reports as `--check` prints them and as JSON, in the forms of BuildKit's `frontend.lint`.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Report, Warning};
use crate::instruction::Span;

impl Report {
    /// The error, whichever of the two there is.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        let error = self.error.as_ref().map(|error| {
            let message = &error.message;
            format!(
                "dockerfile parse error on line {}: {message}",
                error.span.start
            )
        });
        error.or_else(|| self.violation.clone())
    }

    /// The warnings as text, each with the lines it is about.
    #[must_use]
    pub fn text(&self, file: &str, source: &str) -> String {
        self.warnings
            .iter()
            .map(|warning| warning.text(file, source))
            .collect()
    }

    /// The result of the subrequest, but for `data` of the sources, which is text here and
    /// base64 on the wire: `encode` does that.
    #[must_use]
    pub fn json(&self, file: &str, source: &str, encode: &dyn Fn(&str) -> String) -> Value {
        let warnings: Vec<Value> = self
            .warnings
            .iter()
            .map(|warning| {
                let mut shown = json!({
                    "ruleName": warning.rule.name(),
                    "description": warning.rule.description(),
                    "detail": warning.detail,
                    "location": location(&[warning.span]),
                });
                if let Some(url) = warning.rule.url() {
                    shown["url"] = json!(url);
                }
                shown
            })
            .collect();
        let mut result = json!({
            "warnings": if warnings.is_empty() { Value::Null } else { json!(warnings) },
            "sources": [{ "filename": file, "language": "Dockerfile", "data": encode(source) }],
        });
        if let Some(message) = self.failure() {
            let spans: Vec<Span> = self.error.iter().map(|error| error.span).collect();
            result["buildError"] = json!({ "message": message, "location": location(&spans) });
        }
        result
    }
}

/// A place in the first of the sources, as BuildKit's answers have it.
#[must_use]
pub(crate) fn location(spans: &[Span]) -> Value {
    let ranges: Vec<Value> = spans
        .iter()
        .map(|span| json!({ "start": { "line": span.start }, "end": { "line": span.end } }))
        .collect();
    json!({ "ranges": ranges })
}

impl Warning {
    /// As `--check` prints it.
    #[must_use]
    pub fn text(&self, file: &str, source: &str) -> String {
        let mut out = format!("\nWARNING: {}", self.rule.name());
        if let Some(url) = self.rule.url() {
            // Writing to a String cannot fail.
            let _ = write!(out, " - {url}");
        }
        let _ = write!(out, "\n{}\n", self.detail);
        out.push_str(&excerpt(file, source, self.span));
        out
    }
}

/// The lines of a span with some around them, as BuildKit shows them: two, or four where it is
/// a single line.
#[must_use]
pub fn excerpt(file: &str, source: &str, span: Span) -> String {
    let lines: Vec<&str> = source.split('\n').collect();
    let (first, last) = (span.start as usize, span.end.max(span.start) as usize);
    if first < 1 || first > lines.len() {
        return String::new();
    }
    let last = last.min(lines.len());
    let wanted = if first == last { 4 } else { 2 };
    let (mut start, mut end, mut around) = (first, last, 0);
    while around < wanted {
        if start > 1 {
            start -= 1;
            around += 1;
        }
        if end != lines.len() {
            end += 1;
            around += 1;
        }
        around += 1;
    }
    let rule = "-".repeat(20);
    let mut out = format!("{file}:{first}\n{rule}\n");
    for number in start..=end {
        let mark = if (first..=last).contains(&number) {
            ">>>"
        } else {
            "   "
        };
        // Writing to a String cannot fail.
        let _ = writeln!(out, " {number:>3} | {mark} {}", lines[number - 1]);
    }
    out.push_str(&rule);
    out.push('\n');
    out
}
