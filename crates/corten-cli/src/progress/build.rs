//! Showing a build: our own events, or a classic engine's stream.

use std::io::Write as _;
use std::time::Duration;

use corten_build::BuildEvent;

use super::plain::{Plain, clean};
use super::stream::{Message, Sink};
use super::tty::Screen;
use crate::client::JsonLines;
use crate::error::{CliError, Result};
use crate::term;

/// How often a terminal is redrawn.
const FRAME: Duration = Duration::from_millis(100);

/// `--progress`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Lines.
    Plain,
    /// A live view.
    Tty,
    /// Nothing but errors.
    Quiet,
    /// Events as JSON lines.
    RawJson,
}

impl Mode {
    /// Reads `--progress`; `auto` looks at the terminal.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        match text {
            "auto" if term::stderr_is_terminal() => Ok(Self::Tty),
            "auto" | "plain" => Ok(Self::Plain),
            "tty" if term::stderr_is_terminal() => Ok(Self::Tty),
            "tty" => Err(CliError::message("--progress=tty needs a terminal")),
            "quiet" => Ok(Self::Quiet),
            "rawjson" => Ok(Self::RawJson),
            _ => Err(CliError::message(format!(
                "invalid progress mode {text:?}: must be one of \"auto\", \"plain\", \"tty\", \"quiet\" or \"rawjson\""
            ))),
        }
    }
}

enum View {
    Plain(Plain),
    Tty(Screen),
    Quiet,
    RawJson,
}

/// Shows a build until it ends; the image's id. `ours`: the engine sends events.
pub(crate) async fn show(mut lines: JsonLines, mode: Mode, ours: bool) -> Result<Option<String>> {
    let mut view = match mode {
        Mode::Plain => View::Plain(Plain::default()),
        Mode::Tty => {
            let (rows, columns) = term::size().unwrap_or((24, 80));
            let color = std::env::var_os("NO_COLOR").is_none();
            View::Tty(Screen::new(columns.into(), rows.into(), color))
        }
        Mode::Quiet => View::Quiet,
        Mode::RawJson => View::RawJson,
    };
    let mut classic = if mode == Mode::Quiet {
        Sink::nothing()
    } else {
        Sink::stdout()
    };
    let mut image = None;
    let mut warnings = Vec::new();
    let mut report = None;
    let mut frames = tokio::time::interval(FRAME);
    let failure = loop {
        let message = tokio::select! {
            message = lines.next::<Message>() => message?,
            _ = frames.tick(), if matches!(view, View::Tty(_)) => {
                view.frame(false)?;
                continue;
            }
        };
        let Some(message) = message else { break None };
        if let Some(event) = &message.corten {
            let event: BuildEvent =
                serde_json::from_value(event.clone()).map_err(crate::client::ClientError::from)?;
            match &event {
                BuildEvent::Image { id, .. } => image = Some(id.to_string()),
                BuildEvent::Warning { message, .. } => warnings.push(message.clone()),
                _ => {}
            }
            view.event(&event)?;
        }
        if let Some(id) = message
            .aux
            .as_ref()
            .and_then(|aux| aux.get("ID"))
            .and_then(|id| id.as_str())
        {
            image = Some(id.to_owned());
        }
        if let Some(text) = &message.report {
            report = Some(text.trim_end().to_owned());
        }
        if let Some(failure) = message.failed() {
            break Some(failure);
        }
        if message.corten.is_none() {
            // A quiet classic build says nothing but the id.
            let line = message.stream.trim();
            if mode == Mode::Quiet && line.starts_with("sha256:") {
                image = Some(line.to_owned());
            }
            classic.show(&message)?;
        }
    };
    view.frame(true)?;
    if let View::Tty(_) = view {
        for warning in &warnings {
            write_error(&format!("\n - WARNING: {}\n", clean(warning)))?;
        }
    }
    match failure {
        None => Ok(image),
        Some(failure) => {
            if let Some(report) = report {
                write_error(&format!("{}\n", clean_lines(&report)))?;
            }
            let text = failure.message.trim_end();
            let message = if ours {
                format!("ERROR: failed to solve: {text}")
            } else {
                text.to_owned()
            };
            Err(CliError::Status {
                code: crate::run::exit_code(failure.code).max(1),
                message,
            })
        }
    }
}

/// Several lines, without what drives a terminal.
fn clean_lines(text: &str) -> String {
    text.lines().map(clean).collect::<Vec<_>>().join("\n")
}

impl View {
    fn event(&mut self, event: &BuildEvent) -> Result {
        match self {
            Self::Plain(plain) => write_error(&plain.render(event)),
            Self::Tty(screen) => {
                screen.apply(event);
                Ok(())
            }
            Self::RawJson => {
                let text =
                    serde_json::to_string(event).map_err(crate::client::ClientError::from)?;
                write_error(&format!("{text}\n"))
            }
            Self::Quiet => Ok(()),
        }
    }

    fn frame(&mut self, finished: bool) -> Result {
        match self {
            Self::Tty(screen) => write_error(&screen.draw(finished)),
            _ => Ok(()),
        }
    }
}

fn write_error(text: &str) -> Result {
    std::io::stderr().write_all(text.as_bytes())?;
    Ok(())
}
