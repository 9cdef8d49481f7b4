//! A build on a terminal: a header and a line per step, redrawn in place; the last lines of
//! what is running; at the end what happened stays on the screen.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use corten_build::BuildEvent;
use corten_build::progress::CANCELLED;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::plain::{clean, seconds};

/// Lines of output shown under a running step.
const TAIL: usize = 6;
/// A step that takes longer than this shows its output.
const QUICK_MS: u128 = 500;

const BLUE: &str = "\x1b[34m";
const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const RESET: &str = "\x1b[0m";

/// The picture.
#[derive(Debug)]
pub(crate) struct Screen {
    started: Instant,
    order: Vec<u32>,
    steps: HashMap<u32, Step>,
    /// Lines on the screen that are ours.
    drawn: usize,
    color: bool,
    columns: usize,
    rows: usize,
}

#[derive(Debug)]
struct Step {
    name: String,
    started: Instant,
    tail: VecDeque<String>,
    partial: String,
    transfers: Vec<(String, Option<u64>, Option<u64>)>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Done(u64),
    Cached,
    Failed(u64),
    Cancelled(u64),
}

impl Screen {
    /// An empty picture for a terminal of this size.
    pub(crate) fn new(columns: usize, rows: usize, color: bool) -> Self {
        Self {
            started: Instant::now(),
            order: Vec::new(),
            steps: HashMap::new(),
            drawn: 0,
            color,
            columns: columns.max(40),
            rows: rows.max(10),
        }
    }

    /// Takes an event in; nothing is drawn.
    pub(crate) fn apply(&mut self, event: &BuildEvent) {
        match event {
            BuildEvent::Started(vertex) if !super::is_shown(vertex) => {}
            BuildEvent::Started(vertex) => {
                self.order.push(vertex.id);
                self.steps.insert(
                    vertex.id,
                    Step {
                        name: clean(&vertex.name),
                        started: Instant::now(),
                        tail: VecDeque::new(),
                        partial: String::new(),
                        transfers: Vec::new(),
                        state: State::Running,
                    },
                );
            }
            BuildEvent::Log { id, data, .. } => {
                let Some(step) = self.steps.get_mut(id) else {
                    return;
                };
                step.partial.push_str(data);
                while let Some(end) = step.partial.find('\n') {
                    let line: String = step.partial.drain(..=end).collect();
                    if step.tail.len() == TAIL {
                        step.tail.pop_front();
                    }
                    step.tail.push_back(clean(&line));
                }
            }
            BuildEvent::Progress {
                id,
                text,
                current,
                total,
            } => {
                let Some(step) = self.steps.get_mut(id) else {
                    return;
                };
                // One line per thing: the first word names it.
                let key = text.split(' ').next().unwrap_or_default();
                let line = (clean(text), *current, *total);
                match step
                    .transfers
                    .iter_mut()
                    .find(|(t, ..)| t.split(' ').next() == Some(key))
                {
                    Some(slot) => *slot = line,
                    None => step.transfers.push(line),
                }
            }
            BuildEvent::Completed {
                id,
                cached,
                ms,
                error,
                ..
            } => {
                let Some(step) = self.steps.get_mut(id) else {
                    return;
                };
                step.state = match error {
                    Some(error) if error == CANCELLED => State::Cancelled(*ms),
                    Some(_) => State::Failed(*ms),
                    None if *cached => State::Cached,
                    None => State::Done(*ms),
                };
            }
            BuildEvent::Warning { .. } | BuildEvent::Image { .. } => {}
        }
    }

    /// What to write so that the terminal shows the present picture.
    pub(crate) fn draw(&mut self, finished: bool) -> String {
        let mut lines = self.lines(finished);
        let room = self.rows.saturating_sub(2);
        if !finished && lines.len() > room {
            // The header stays, the oldest steps go.
            let surplus = lines.len() - room;
            lines.drain(1..=surplus);
        }
        let mut out = String::new();
        if self.drawn > 0 {
            out.push_str(&format!("\x1b[{}A", self.drawn));
        }
        out.push('\r');
        for line in &lines {
            out.push_str("\x1b[2K");
            out.push_str(line);
            out.push('\n');
        }
        out.push_str("\x1b[0J");
        self.drawn = if finished { 0 } else { lines.len() };
        out
    }

    fn lines(&self, finished: bool) -> Vec<String> {
        let done = self
            .steps
            .values()
            .filter(|s| s.state != State::Running)
            .count();
        let failed = self
            .steps
            .values()
            .any(|s| matches!(s.state, State::Failed(_) | State::Cancelled(_)));
        let elapsed = self.started.elapsed().as_millis();
        let elapsed = seconds(u64::try_from(elapsed).unwrap_or(u64::MAX));
        let word = match (finished, failed) {
            (true, true) => " ERROR",
            (true, false) => " FINISHED",
            (false, _) => "",
        };
        let mut lines = vec![format!(
            "[+] Building {elapsed} ({done}/{}){word}",
            self.order.len()
        )];
        for step in self.order.iter().filter_map(|id| self.steps.get(id)) {
            lines.push(self.step_line(step));
            if finished {
                continue;
            }
            if step.state == State::Running {
                for (text, current, total) in &step.transfers {
                    lines.push(
                        self.plain_line(&format!(" => => {text}{}", amount(*current, *total))),
                    );
                }
                if step.started.elapsed().as_millis() > QUICK_MS {
                    for line in &step.tail {
                        lines.push(self.plain_line(&format!(" => => # {line}")));
                    }
                }
            }
        }
        lines
    }

    fn step_line(&self, step: &Step) -> String {
        let (mark, time, color) = match step.state {
            State::Running => {
                let ms = u64::try_from(step.started.elapsed().as_millis()).unwrap_or(u64::MAX);
                ("", seconds(ms), "")
            }
            State::Done(ms) => ("", seconds(ms), BLUE),
            State::Cached => ("CACHED ", "0.0s".into(), BLUE),
            State::Failed(ms) => ("ERROR ", seconds(ms), RED),
            State::Cancelled(ms) => ("CANCELED ", seconds(ms), YELLOW),
        };
        let left = format!(" => {mark}{}", step.name);
        let room = self.columns.saturating_sub(time.len() + 1);
        let left = fit(&left, room);
        let gap = room.saturating_sub(left.width());
        let line = format!("{left}{} {time}", " ".repeat(gap));
        if self.color && !color.is_empty() {
            format!("{color}{line}{RESET}")
        } else {
            line
        }
    }

    fn plain_line(&self, text: &str) -> String {
        fit(text, self.columns)
    }
}

fn amount(current: Option<u64>, total: Option<u64>) -> String {
    let size = |n: u64| crate::format::units::size4(i64::try_from(n).unwrap_or(i64::MAX));
    match (current, total) {
        (Some(current), Some(total)) => format!(" {} / {}", size(current), size(total)),
        (Some(current), None) => format!(" {}", size(current)),
        _ => String::new(),
    }
}

/// Cuts a text to so many columns.
fn fit(text: &str, columns: usize) -> String {
    let text = text.replace('\t', " ");
    if text.width() <= columns {
        return text;
    }
    let mut out = String::new();
    let mut used = 0;
    for c in text.chars() {
        let width = c.width().unwrap_or(0);
        if used + width + 1 > columns {
            break;
        }
        used += width;
        out.push(c);
    }
    out.push('…');
    out
}

#[cfg(test)]
mod tests {
    use corten_build::progress::Vertex;

    use super::*;

    #[test]
    fn draws_steps_and_redraws_in_place() {
        let mut screen = Screen::new(50, 24, false);
        for (id, name) in [
            (1, "[1/2] FROM alpine"),
            (2, "[2/2] RUN a very long command that does not fit into it"),
        ] {
            screen.apply(&BuildEvent::Started(Vertex {
                id,
                name: name.into(),
                internal: false,
                instruction: None,
            }));
        }
        screen.apply(&BuildEvent::Completed {
            id: 1,
            cached: true,
            ms: 0,
            error: None,
            result: None,
        });
        let first = screen.draw(false);
        assert!(!first.contains("\x1b[3A"));
        let second = screen.draw(false);
        assert!(second.starts_with("\x1b[3A\r"), "{second:?}");
        screen.apply(&BuildEvent::Completed {
            id: 2,
            cached: false,
            ms: 2345,
            error: Some("x".into()),
            result: None,
        });
        let text = screen
            .lines(true)
            .join("\n")
            .replace("Building 0.0s", "Building T");
        insta::assert_snapshot!(text, @r"
        [+] Building T (2/2) ERROR
         => CACHED [1/2] FROM alpine                  0.0s
         => ERROR [2/2] RUN a very long command that… 2.3s
        ");
    }

    #[test]
    fn a_small_terminal_keeps_the_header() {
        let mut screen = Screen::new(50, 10, false);
        for id in 0..40 {
            screen.apply(&BuildEvent::Started(Vertex {
                id,
                name: format!("step {id}"),
                internal: false,
                instruction: None,
            }));
        }
        let text = screen.draw(false);
        assert!(
            text.contains("[+] Building") && text.contains("step 39") && !text.contains("step 3 ")
        );
        assert_eq!(text.matches('\n').count(), 8);
    }
}
