//! Docker's JSON progress (`jsonmessage`): one line per layer that is redrawn on a terminal,
//! plain lines elsewhere.

use std::collections::HashMap;
use std::io::Write as _;

use corten_build::BuildEvent;
use serde::Deserialize;

use crate::client::JsonLines;
use crate::error::{CliError, Result};
use crate::format::units;
use crate::term;

/// Narrowest terminal with room for a bar.
const BAR_COLUMNS: usize = 110;
const BAR: usize = 50;

/// One message.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Message {
    pub(crate) id: String,
    pub(crate) status: String,
    /// Text to print as it is (classic builds).
    pub(crate) stream: String,
    #[serde(rename = "progressDetail")]
    pub(crate) detail: Option<Detail>,
    #[serde(rename = "errorDetail")]
    pub(crate) failure: Option<Failure>,
    pub(crate) error: Option<String>,
    /// Results: `{"ID": "sha256:…"}`.
    pub(crate) aux: Option<serde_json::Value>,
    /// Our own build events.
    pub(crate) corten: Option<BuildEvent>,
    /// Where, what and why a build of ours failed, in several lines.
    #[serde(rename = "corten_report")]
    pub(crate) report: Option<String>,
    /// A shell in a step that failed.
    #[serde(rename = "corten_shell")]
    pub(crate) shell: Option<Shell>,
    /// The answer to `--call`.
    #[serde(rename = "corten_answer")]
    pub(crate) answer: Option<Answer>,
}

/// A shell that waits for us.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Shell {
    /// By which it is joined.
    pub(crate) word: String,
    /// What it is called in the image.
    pub(crate) command: String,
    /// What has failed, and how, in several lines.
    #[serde(default)]
    pub(crate) report: String,
}

/// An answer to `--call`, in BuildKit's forms.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Answer {
    pub(crate) json: serde_json::Value,
    pub(crate) text: String,
    /// How many rules are not kept (check).
    pub(crate) warnings: usize,
    /// What ended the check.
    pub(crate) error: Option<String>,
}

/// How far something is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Detail {
    current: i64,
    total: i64,
}

/// Why it failed.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Failure {
    pub(crate) code: i64,
    pub(crate) message: String,
}

impl Message {
    /// The failure that ends the stream, if this is one.
    pub(crate) fn failed(&self) -> Option<Failure> {
        let text = || self.error.clone().unwrap_or_default();
        match &self.failure {
            Some(failure) if failure.message.is_empty() => Some(Failure {
                code: failure.code,
                message: text(),
            }),
            Some(failure) => Some(failure.clone()),
            None => self.error.as_ref().map(|_| Failure {
                code: 0,
                message: text(),
            }),
        }
    }
}

/// Where progress goes.
#[derive(Debug)]
pub(crate) struct Sink {
    out: Option<Out>,
    renderer: Renderer,
}

#[derive(Debug, Clone, Copy)]
enum Out {
    Stdout,
    Stderr,
}

impl Sink {
    pub(crate) fn nothing() -> Self {
        Self {
            out: None,
            renderer: Renderer::new(false, 0),
        }
    }

    pub(crate) fn stdout() -> Self {
        Self {
            out: Some(Out::Stdout),
            renderer: Renderer::new(term::stdout_is_terminal(), term::columns()),
        }
    }

    pub(crate) fn stderr() -> Self {
        Self {
            out: Some(Out::Stderr),
            renderer: Renderer::new(term::stderr_is_terminal(), term::columns()),
        }
    }

    /// Shows one message.
    pub(crate) fn show(&mut self, message: &Message) -> std::io::Result<()> {
        let text = self.renderer.render(message);
        match self.out {
            None => Ok(()),
            Some(Out::Stdout) => {
                let mut out = std::io::stdout().lock();
                out.write_all(text.as_bytes())?;
                out.flush()
            }
            Some(Out::Stderr) => std::io::stderr().write_all(text.as_bytes()),
        }
    }
}

/// Shows a whole stream; its failure is ours.
pub(crate) async fn show(lines: JsonLines, sink: Sink) -> Result {
    outcome(lines, sink).await.map(drop)
}

/// The same; what the engine said last of the result.
pub(crate) async fn outcome(
    mut lines: JsonLines,
    mut sink: Sink,
) -> Result<Option<serde_json::Value>> {
    let mut aux = None;
    while let Some(message) = lines.next::<Message>().await? {
        if let Some(failure) = message.failed() {
            // What ends a stream is no answer to the request: Docker's words, too, are bare.
            let message = failure.message;
            return Err(CliError::Status { code: 1, message });
        }
        sink.show(&message)?;
        aux = message.aux.or(aux);
    }
    Ok(aux)
}

/// Turns messages into text.
#[derive(Debug)]
struct Renderer {
    terminal: bool,
    columns: usize,
    /// On which line each id is, from the first.
    lines: HashMap<String, usize>,
}

impl Renderer {
    fn new(terminal: bool, columns: usize) -> Self {
        Self {
            terminal,
            columns,
            lines: HashMap::new(),
        }
    }

    fn render(&mut self, message: &Message) -> String {
        if message.status.is_empty() && message.stream.is_empty() {
            return String::new();
        }
        if !message.stream.is_empty() {
            self.lines.clear();
            return message.stream.clone();
        }
        let label = if message.id.is_empty() {
            String::new()
        } else {
            format!("{}: ", message.id)
        };
        let bar = message
            .detail
            .as_ref()
            .map(|d| self.bar(d))
            .unwrap_or_default();
        if !self.terminal {
            return if bar.is_empty() {
                format!("{label}{}\n", message.status)
            } else {
                String::new()
            };
        }
        let space = if bar.is_empty() { "" } else { " " };
        let line = format!("\r\x1b[2K{label}{}{space}{bar}", message.status);
        if message.id.is_empty() && !bar.is_empty() {
            return format!("{line}\r");
        }
        if message.id.is_empty() || message.detail.is_none() {
            self.lines.clear();
            return format!("{line}\n");
        }
        let count = self.lines.len();
        match self.lines.get(&message.id) {
            None => {
                self.lines.insert(message.id.clone(), count);
                format!("{line}\r\n")
            }
            Some(number) => {
                let up = count - number;
                format!("\x1b[{up}A{line}\r\x1b[{up}B")
            }
        }
    }

    fn bar(&self, detail: &Detail) -> String {
        if detail.current <= 0 && detail.total <= 0 {
            return String::new();
        }
        let current = units::size4(detail.current);
        if detail.total <= 0 {
            return format!("{current:>8}");
        }
        let numbers = format!("{current:>8}/{}", units::size4(detail.total));
        if self.columns <= BAR_COLUMNS {
            return numbers;
        }
        let done = detail.current.clamp(0, detail.total);
        let filled = usize::try_from(done * 50 / detail.total)
            .unwrap_or(0)
            .min(BAR);
        let empty = BAR - filled;
        format!("[{}>{}] {numbers}", "=".repeat(filled), " ".repeat(empty))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages() -> Vec<Message> {
        [
            r#"{"status":"Pulling from library/alpine","id":"latest"}"#,
            r#"{"status":"Pulling fs layer","progressDetail":{},"id":"a"}"#,
            r#"{"status":"Pulling fs layer","progressDetail":{},"id":"b"}"#,
            r#"{"status":"Downloading","progressDetail":{"current":500,"total":1000},"id":"a"}"#,
            r#"{"status":"Pull complete","progressDetail":{},"id":"a"}"#,
            r#"{"status":"Digest: sha256:0"}"#,
        ]
        .iter()
        .map(|text| serde_json::from_str(text).unwrap())
        .collect()
    }

    #[test]
    fn plain_lines_without_bars() {
        let mut renderer = Renderer::new(false, 80);
        let text: String = messages().iter().map(|m| renderer.render(m)).collect();
        insta::assert_snapshot!(text, @r#"
        latest: Pulling from library/alpine
        a: Pulling fs layer
        b: Pulling fs layer
        a: Pull complete
        Digest: sha256:0
        "#);
    }

    #[test]
    fn a_terminal_is_redrawn() {
        let mut renderer = Renderer::new(true, 120);
        let text: Vec<String> = messages().iter().map(|m| renderer.render(m)).collect();
        assert_eq!(text[1], "\r\x1b[2Ka: Pulling fs layer\r\n");
        let bar = format!("[{}>{}]     500B/1kB", "=".repeat(25), " ".repeat(25));
        assert_eq!(
            text[3],
            format!("\x1b[2A\r\x1b[2Ka: Downloading {bar}\r\x1b[2B")
        );
        assert_eq!(text[5], "\r\x1b[2KDigest: sha256:0\n");
        let text = r#"{"status":"Importing","progressDetail":{"current":5}}"#;
        let line = renderer.render(&serde_json::from_str(text).unwrap());
        assert_eq!(line, "\r\x1b[2KImporting       5B\r");
    }

    #[test]
    fn failures() {
        let message: Message =
            serde_json::from_str(r#"{"errorDetail":{"code":42,"message":"m"},"error":"e"}"#)
                .unwrap();
        let failure = message.failed().unwrap();
        assert_eq!((failure.code, failure.message.as_str()), (42, "m"));
        let message: Message = serde_json::from_str(r#"{"error":"e"}"#).unwrap();
        assert_eq!(message.failed().unwrap().message, "e");
    }
}
