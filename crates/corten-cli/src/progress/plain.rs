//! A build's events as lines, as BuildKit's `--progress=plain`.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use corten_build::BuildEvent;
use corten_build::progress::CANCELLED;

/// State of the lines printed so far.
#[derive(Debug)]
pub(crate) struct Plain {
    begun: Instant,
    /// Numbers in order of appearance.
    numbers: HashMap<u32, Shown>,
    /// Whose lines come at the moment.
    current: Option<u32>,
}

#[derive(Debug)]
struct Shown {
    number: usize,
    name: String,
    finished: bool,
    /// An unfinished line of output.
    partial: String,
    /// Since the beginning.
    started: Duration,
}

impl Default for Plain {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            numbers: HashMap::new(),
            current: None,
        }
    }
}

impl Plain {
    /// The lines for one event.
    pub(crate) fn render(&mut self, event: &BuildEvent) -> String {
        self.render_at(event, self.begun.elapsed())
    }

    /// As [`render`](Self::render), of an event that came so long after the beginning.
    pub(crate) fn render_at(&mut self, event: &BuildEvent, now: Duration) -> String {
        let mut out = String::new();
        match event {
            BuildEvent::Started(vertex) if !super::is_shown(vertex) => {}
            BuildEvent::Started(vertex) => {
                let number = self.numbers.len() + 1;
                self.numbers.insert(
                    vertex.id,
                    Shown {
                        number,
                        name: vertex.name.clone(),
                        finished: false,
                        partial: String::new(),
                        started: now,
                    },
                );
                self.switch(vertex.id, &mut out);
            }
            BuildEvent::Log { id, data, .. } => {
                let Some(shown) = self.numbers.get_mut(id) else {
                    return out;
                };
                shown.partial.push_str(data);
                let seconds = now.saturating_sub(shown.started).as_secs_f64();
                let number = shown.number;
                let mut lines = String::new();
                while let Some(end) = shown.partial.find('\n') {
                    let line: String = shown.partial.drain(..=end).collect();
                    lines.push_str(&format!(
                        "#{number} {seconds:.3} {}\n",
                        clean(line.trim_end())
                    ));
                }
                if !lines.is_empty() {
                    self.switch(*id, &mut out);
                    out.push_str(&lines);
                }
            }
            BuildEvent::Progress {
                id,
                text,
                current,
                total,
            } => {
                // Without a terminal only beginnings and ends are worth a line.
                let finished = matches!((current, total), (Some(c), Some(t)) if c >= t);
                if self.numbers.contains_key(id) && (current.is_none() || finished) {
                    self.switch(*id, &mut out);
                    if let Some(shown) = self.numbers.get(id) {
                        out.push_str(&format!("#{} {}\n", shown.number, clean(text)));
                    }
                }
            }
            BuildEvent::Completed {
                id,
                cached,
                ms,
                error,
                ..
            } => {
                if !self.numbers.contains_key(id) {
                    return out;
                }
                self.switch(*id, &mut out);
                let Some(shown) = self.numbers.get_mut(id) else {
                    return out;
                };
                let number = shown.number;
                if !shown.partial.is_empty() {
                    let seconds = now.saturating_sub(shown.started).as_secs_f64();
                    out.push_str(&format!(
                        "#{number} {seconds:.3} {}\n",
                        clean(&shown.partial)
                    ));
                    shown.partial.clear();
                }
                match error {
                    Some(error) if error == CANCELLED => {
                        out.push_str(&format!("#{number} CANCELED\n"));
                    }
                    Some(error) => out.push_str(&format!("#{number} ERROR: {}\n", clean(error))),
                    None if *cached => out.push_str(&format!("#{number} CACHED\n")),
                    None => out.push_str(&format!("#{number} DONE {}\n", seconds(*ms))),
                }
                shown.finished = true;
            }
            // Warnings are shown all together at the end.
            BuildEvent::Warning { .. } | BuildEvent::Image { .. } => {}
        }
        out
    }

    /// Says whose lines follow, where that changes.
    fn switch(&mut self, id: u32, out: &mut String) {
        if self.current == Some(id) {
            return;
        }
        if let Some(previous) = self.current.and_then(|id| self.numbers.get(&id)) {
            if !previous.finished {
                out.push_str(&format!("#{} ...\n", previous.number));
            }
            out.push('\n');
        }
        if let Some(shown) = self.numbers.get(&id) {
            out.push_str(&format!("#{} {}\n", shown.number, clean(&shown.name)));
        }
        self.current = Some(id);
    }
}

/// `0.1s`
pub(crate) fn seconds(ms: u64) -> String {
    format!("{}.{}s", ms / 1000, ms % 1000 / 100)
}

/// Without control characters: output of a build step must not drive the terminal.
pub(crate) fn clean(text: &str) -> String {
    // After a carriage return a program starts its line again; the last version counts.
    let text = text.trim_end_matches(['\r', '\n']);
    let text = text.rsplit('\r').next().unwrap_or(text);
    text.chars()
        .filter(|c| *c == '\t' || !c.is_control())
        .collect()
}

#[cfg(test)]
mod tests {
    use corten_build::progress::{LogStream, Vertex};

    use super::*;

    fn started(id: u32, name: &str) -> BuildEvent {
        BuildEvent::Started(Vertex {
            id,
            name: name.into(),
            internal: false,
            instruction: None,
        })
    }

    fn log(id: u32, data: &str) -> BuildEvent {
        BuildEvent::Log {
            id,
            stream: LogStream::Stdout,
            data: data.into(),
        }
    }

    fn completed(id: u32, cached: bool, ms: u64, error: Option<&str>) -> BuildEvent {
        BuildEvent::Completed {
            id,
            cached,
            ms,
            error: error.map(Into::into),
            result: None,
        }
    }

    #[test]
    fn looks_like_buildkit() {
        let mut plain = Plain::default();
        let events = [
            started(7, "[builder 1/3] FROM docker.io/library/alpine"),
            completed(7, true, 0, None),
            started(8, "[builder 2/3] RUN make"),
            started(9, "[stage-1 2/2] WORKDIR /app"),
            completed(9, false, 120, None),
            log(8, "half a "),
            log(8, "line\nwhole\n\x1b[31mred\x1b[0m"),
            completed(8, false, 1500, Some("exit code: 2")),
            started(10, "[b 1/1] RUN sleep 9"),
            completed(10, false, 1, Some(CANCELLED)),
        ];
        let text: String = events.iter().map(|e| plain.render(e)).collect();
        // Times of output lines vary.
        let text: Vec<String> = text
            .lines()
            .map(|line| {
                let mut words: Vec<&str> = line.split(' ').collect();
                if words.len() > 2 && words[1].starts_with("0.0") {
                    words[1] = "T";
                }
                words.join(" ")
            })
            .collect();
        insta::assert_snapshot!(text.join("\n"), @r#"
        #1 [builder 1/3] FROM docker.io/library/alpine
        #1 CACHED

        #2 [builder 2/3] RUN make
        #2 ...

        #3 [stage-1 2/2] WORKDIR /app
        #3 DONE 0.1s

        #2 [builder 2/3] RUN make
        #2 T half a line
        #2 T whole
        #2 T [31mred[0m
        #2 ERROR: exit code: 2

        #4 [b 1/1] RUN sleep 9
        #4 CANCELED
        "#);
    }
}
