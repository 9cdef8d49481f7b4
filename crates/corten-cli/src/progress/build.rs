//! Showing a build: our own events, or a classic engine's stream.

use std::collections::{BTreeSet, VecDeque};
use std::io::Write as _;
use std::pin::pin;
use std::time::Duration;

use corten_build::BuildEvent;
use corten_build::progress::CANCELLED;
use tokio::signal::unix::{SignalKind, signal};

use super::plain::{Plain, clean};
use super::rawjson::RawJson;
use super::stream::{Answer, Message, Shell, Sink};
use super::tty::Screen;
use crate::attach::Session;
use crate::client::{Client, JsonLines};
use crate::error::{CliError, Result};
use crate::{run, term};

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
    /// BuildKit's status as JSON lines.
    RawJson,
}

impl Mode {
    /// Reads `--progress`; without it `BUILDKIT_PROGRESS` is asked, as by buildx. `auto` looks
    /// at the terminal.
    pub(crate) fn of(flag: Option<&str>) -> Result<Self> {
        let variable = std::env::var("BUILDKIT_PROGRESS").unwrap_or_default();
        match flag.unwrap_or("auto") {
            "auto" if !variable.is_empty() => Self::parse(&variable),
            text => Self::parse(text),
        }
    }

    fn parse(text: &str) -> Result<Self> {
        match text {
            "auto" if term::stderr_is_terminal() => Ok(Self::Tty),
            "auto" | "plain" => Ok(Self::Plain),
            "tty" if term::stderr_is_terminal() => Ok(Self::Tty),
            "tty" => Err(CliError::message("--progress=tty needs a terminal")),
            "quiet" | "none" => Ok(Self::Quiet),
            "rawjson" => Ok(Self::RawJson),
            _ => Err(CliError::message(format!(
                "invalid progress mode {text:?}: must be one of \"auto\", \"none\", \"plain\", \"tty\", \"quiet\" or \"rawjson\""
            ))),
        }
    }
}

enum View {
    Plain(Plain),
    Tty(Screen),
    Quiet,
    RawJson(RawJson),
}

/// How a build is shown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Showing {
    pub(crate) mode: Mode,
    /// The engine sends events.
    pub(crate) ours: bool,
    /// Warnings are shown with all there is to say about them.
    pub(crate) verbose: bool,
    /// A shell was asked for in a step that fails.
    pub(crate) shell: bool,
}

/// A warning, to be shown at the end.
#[derive(Debug, PartialEq, Eq)]
struct Noted {
    message: String,
    line: Option<u32>,
    more: Vec<String>,
}

/// Shows a build until it ends; the image's id.
pub(crate) async fn show(
    mut lines: JsonLines,
    client: &Client,
    showing: Showing,
) -> Result<Option<String>> {
    let Showing { mode, ours, .. } = showing;
    let mut view = match mode {
        Mode::Plain => View::Plain(Plain::default()),
        Mode::Tty => {
            let (rows, columns) = term::size().unwrap_or((24, 80));
            let color = std::env::var_os("NO_COLOR").is_none();
            View::Tty(Screen::new(columns.into(), rows.into(), color))
        }
        Mode::Quiet => View::Quiet,
        Mode::RawJson => View::RawJson(RawJson::default()),
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
    let mut interrupt = pin!(interrupt());
    let mut running = BTreeSet::new();
    let mut waiting = VecDeque::new();
    let failure = loop {
        let message = tokio::select! {
            message = next(&mut lines, &mut waiting) => message?,
            signal = &mut interrupt => {
                for id in running {
                    view.event(&cancelled(id))?;
                }
                view.frame(true)?;
                return Err(CliError::Interrupted {
                    signal,
                    message: "ERROR: failed to build: Canceled: context canceled".to_owned(),
                });
            }
            _ = frames.tick(), if matches!(view, View::Tty(_)) => {
                view.frame(false)?;
                continue;
            }
        };
        let Some(message) = message else { break None };
        if let Some(shell) = &message.shell {
            // An engine of which none was asked does not lead anybody into one.
            if showing.shell {
                view.frame(true)?;
                match sit(client, shell, &mut lines, &mut waiting).await {
                    Err(error @ CliError::Interrupted { .. }) => return Err(error),
                    // Why the build fails is still to come.
                    Err(error) => write_error(&format!("WARNING: the shell: {error}\n"))?,
                    Ok(()) => {}
                }
            }
            continue;
        }
        if let Some(event) = &message.corten {
            match event {
                BuildEvent::Started(vertex) => _ = running.insert(vertex.id),
                BuildEvent::Completed { id, .. } => _ = running.remove(id),
                BuildEvent::Image { id, .. } => image = Some(id.to_string()),
                BuildEvent::Warning {
                    message,
                    line,
                    more,
                } => warnings.push(Noted {
                    message: clean(message),
                    line: *line,
                    more: more.iter().map(|line| clean(line)).collect(),
                }),
                _ => {}
            }
            view.event(event)?;
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
    if matches!(mode, Mode::Plain | Mode::Tty) {
        let color = mode == Mode::Tty && std::env::var_os("NO_COLOR").is_none();
        write_error(&summary(&warnings, showing.verbose, color))?;
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

/// What the engine tells next, or has told already.
async fn next(
    lines: &mut JsonLines,
    waiting: &mut VecDeque<Result<Option<Message>>>,
) -> Result<Option<Message>> {
    match waiting.pop_front() {
        Some(message) => message,
        None => Ok(lines.next::<Message>().await?),
    }
}

/// Sits at a shell, and keeps what the engine tells meanwhile: it goes on with other steps only as
/// long as somebody listens.
async fn sit(
    client: &Client,
    shell: &Shell,
    lines: &mut JsonLines,
    waiting: &mut VecDeque<Result<Option<Message>>>,
) -> Result {
    let mut attending = pin!(attend(client, shell));
    let mut over = false;
    loop {
        tokio::select! {
            done = &mut attending => return done,
            message = lines.next::<Message>(), if !over => {
                over = !matches!(message, Ok(Some(_)));
                waiting.push_back(message.map_err(CliError::from));
            }
        }
    }
}

/// Is in a shell in a step that failed, until it has ended.
async fn attend(client: &Client, shell: &Shell) -> Result {
    let command = clean(&shell.command);
    let report = clean_lines(shell.report.trim_end());
    write_error(&format!(
        "{report}\nA step failed. This is {command} in what it left; the build fails when it ends.\n"
    ))?;
    let path = format!("/build/shell/{}", shell.word);
    let hijacked = client.post(path.as_str()).hijack().await?;
    let session = Session {
        tty: true,
        stdin: true,
        detach_keys: Vec::new(),
    };
    run::copy(client, session, Some(hijacked), Some(&path)).await?;
    Ok(())
}

/// The number of a signal that asks for the end.
async fn interrupt() -> u8 {
    let next = |kind: SignalKind, number| async move {
        match signal(kind) {
            Ok(mut signal) => signal.recv().await,
            Err(_) => std::future::pending().await,
        };
        number
    };
    tokio::select! {
        number = next(SignalKind::interrupt(), 2) => number,
        number = next(SignalKind::terminate(), 15) => number,
    }
}

/// How a vertex ends with the build.
fn cancelled(id: u32) -> BuildEvent {
    BuildEvent::Completed {
        id,
        cached: false,
        ms: 0,
        error: Some(CANCELLED.to_owned()),
        result: None,
    }
}

/// The warnings, as buildx lists them at the end.
fn summary(warnings: &[Noted], verbose: bool, color: bool) -> String {
    if warnings.is_empty() {
        return String::new();
    }
    let count = match warnings.len() {
        1 => "1 warning".to_owned(),
        count => format!("{count} warnings"),
    };
    let hint = if verbose {
        ""
    } else {
        " (use corten --debug to expand)"
    };
    let title = format!("{count} found{hint}:");
    let mut out = if color {
        format!("\n \x1b[33m{title}\x1b[0m\n")
    } else {
        format!("\n {title}\n")
    };
    for warning in warnings {
        let place = warning.line.map(|n| format!(" (line {n})"));
        let place = place.unwrap_or_default();
        out.push_str(&format!(" - {}{place}\n", warning.message));
        if verbose {
            for line in &warning.more {
                out.push_str(&format!("{line}\n"));
            }
            out.push('\n');
        }
    }
    out
}

/// The answer to `--call`.
pub(crate) async fn answer(mut lines: JsonLines) -> Result<Answer> {
    let mut report = None;
    while let Some(message) = lines.next::<Message>().await? {
        if let Some(answer) = message.answer {
            return Ok(answer);
        }
        if let Some(text) = &message.report {
            report = Some(clean_lines(text.trim_end()));
        }
        if let Some(failure) = message.failed() {
            if let Some(report) = report {
                write_error(&format!("{report}\n"))?;
            }
            let text = failure.message.trim_end();
            return Err(CliError::message(format!("ERROR: failed to solve: {text}")));
        }
    }
    Err(CliError::message("the engine gave no answer"))
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
            Self::RawJson(raw) => write_error(&raw.render(event)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_at_the_end() {
        let noted = |message: &str, line| Noted {
            message: message.to_owned(),
            line,
            more: vec!["What it is about".to_owned()],
        };
        assert_eq!(summary(&[], false, false), "");
        assert_eq!(
            summary(&[noted("Rule: wrong", Some(3))], false, false),
            "\n 1 warning found (use corten --debug to expand):\n - Rule: wrong (line 3)\n"
        );
        assert_eq!(
            summary(&[noted("A", None), noted("B", Some(1))], true, false),
            "\n 2 warnings found:\n - A\nWhat it is about\n\n - B (line 1)\nWhat it is about\n\n"
        );
    }
}
