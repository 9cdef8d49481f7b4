//! The classic builder's stream out of a build's events: `Step n/m : …`, the output, and
//! ` ---> id`, one step after the other however many run at once.

use std::collections::BTreeMap;

use corten_build::BuildEvent;
use serde_json::{Value, json};

/// Characters of an id that are shown.
const SHORT: usize = 12;

/// What is known of one step.
#[derive(Debug, Default)]
struct Step {
    waiting: Vec<Value>,
    /// Whether it is a `FROM`, which uses an image and no cache.
    from: bool,
    /// Whether it changes only the configuration: there is nothing to be cached, so it
    /// counts as cached where everything before it was.
    config_only: bool,
    done: bool,
}

/// Orders events by step. Later steps wait until those before have been told.
#[derive(Debug)]
pub(super) struct Classic {
    quiet: bool,
    /// Vertex to step.
    steps_of: BTreeMap<u32, u32>,
    steps: BTreeMap<u32, Step>,
    /// The step that is being told.
    current: u32,
    /// Something was not cached.
    ran: bool,
}

fn stream(text: impl Into<String>) -> Value {
    json!({ "stream": text.into() })
}

fn keyword(instruction: &str) -> &str {
    instruction.split_whitespace().next().unwrap_or_default()
}

fn short(id: &str) -> &str {
    let bare = id.split_once(':').map_or(id, |(_, hex)| hex);
    bare.get(..SHORT).unwrap_or(bare)
}

impl Classic {
    pub(super) fn new(quiet: bool) -> Self {
        Self {
            quiet,
            steps_of: BTreeMap::new(),
            steps: BTreeMap::new(),
            current: 1,
            ran: false,
        }
    }

    /// The lines that can be told now.
    pub(super) fn event(&mut self, event: BuildEvent) -> Vec<Value> {
        match event {
            BuildEvent::Image { id, tags } => return self.end(&id.to_string(), &tags),
            BuildEvent::Warning { message, line, .. } => {
                let place = line.map_or_else(String::new, |n| format!(" (line {n})"));
                return self.unless_quiet(vec![stream(format!("[Warning] {message}{place}\n"))]);
            }
            BuildEvent::Started(vertex) => {
                let Some(instruction) = vertex.instruction else {
                    return Vec::new();
                };
                self.steps_of.insert(vertex.id, instruction.step);
                let text = format!(
                    "Step {}/{} : {}\n",
                    instruction.step, instruction.steps, instruction.text
                );
                let step = self.steps.entry(instruction.step).or_default();
                step.from = keyword(&instruction.text).eq_ignore_ascii_case("FROM");
                step.config_only = instruction.config_only;
                step.waiting.push(stream(text));
            }
            BuildEvent::Log { id, data, .. } => {
                if let Some(step) = self.step(id) {
                    step.waiting.push(stream(data));
                }
            }
            BuildEvent::Progress { .. } => {}
            BuildEvent::Completed {
                id,
                cached,
                error,
                result,
                ..
            } => {
                let ran = self.ran;
                if let Some(step) = self.step(id) {
                    let known = cached && !(step.config_only && ran);
                    let executed = !cached && !step.config_only && !step.from;
                    if known && error.is_none() && !step.from {
                        step.waiting.push(stream(" ---> Using cache\n"));
                    }
                    if let Some(result) = result {
                        step.waiting
                            .push(stream(format!(" ---> {}\n", short(&result.id))));
                    }
                    step.done = true;
                    self.ran |= executed;
                }
            }
        }
        let lines = self.due();
        self.unless_quiet(lines)
    }

    fn step(&mut self, vertex: u32) -> Option<&mut Step> {
        let step = self.steps_of.get(&vertex)?;
        self.steps.get_mut(step)
    }

    fn unless_quiet(&self, lines: Vec<Value>) -> Vec<Value> {
        if self.quiet { Vec::new() } else { lines }
    }

    /// Takes what can be told, in the order of steps.
    fn due(&mut self) -> Vec<Value> {
        let mut lines = Vec::new();
        while let Some(step) = self.steps.get_mut(&self.current) {
            lines.append(&mut step.waiting);
            if !step.done {
                break;
            }
            self.current += 1;
        }
        lines
    }

    fn end(&mut self, id: &str, tags: &[corten_oci::ImageRef]) -> Vec<Value> {
        // A build whose steps were not all told one by one: what is left, in order.
        let mut lines: Vec<Value> = self
            .steps
            .values_mut()
            .flat_map(|step| std::mem::take(&mut step.waiting))
            .collect();
        lines.push(json!({ "aux": { "ID": id } }));
        lines.push(stream(format!("Successfully built {}\n", short(id))));
        for tag in tags {
            lines.push(stream(format!("Successfully tagged {}\n", tag.familiar())));
        }
        if self.quiet {
            return vec![stream(format!("{id}\n"))];
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use corten_build::progress::{Instruction, LogStream, StepResult, Vertex};

    use super::*;

    fn started(id: u32, step: u32, text: &str) -> BuildEvent {
        BuildEvent::Started(Vertex {
            id,
            name: String::new(),
            internal: false,
            instruction: Some(Instruction {
                step,
                steps: 2,
                text: text.to_owned(),
                line: step,
                config_only: false,
            }),
        })
    }

    fn completed(id: u32, cached: bool, result: &str) -> BuildEvent {
        let result = StepResult {
            id: result.to_owned(),
            layer: None,
        };
        BuildEvent::Completed {
            id,
            cached,
            ms: 1,
            error: None,
            result: Some(result),
        }
    }

    fn text(lines: Vec<Value>) -> String {
        lines.iter().filter_map(|l| l["stream"].as_str()).collect()
    }

    #[test]
    fn steps_are_told_in_order() {
        let mut classic = Classic::new(false);
        let log = |id, data: &str| BuildEvent::Log {
            id,
            stream: LogStream::Stdout,
            data: data.to_owned(),
        };
        let mut all = String::new();
        for event in [
            started(7, 2, "RUN b"),
            log(7, "from b\n"),
            started(5, 1, "FROM a"),
            completed(7, false, "sha256:2222222222222222"),
            completed(5, true, "1111111111111111"),
        ] {
            all += &text(classic.event(event));
        }
        insta::assert_snapshot!(all, @r"
        Step 1/2 : FROM a
         ---> 111111111111
        Step 2/2 : RUN b
        from b
         ---> 222222222222
        ");
    }

    #[test]
    fn quiet_tells_the_id_alone() {
        let mut classic = Classic::new(true);
        assert!(classic.event(started(1, 1, "FROM a")).is_empty());
        let id = corten_oci::Digest::of(b"image");
        let lines = classic.event(BuildEvent::Image {
            id: id.clone(),
            tags: Vec::new(),
        });
        assert_eq!(text(lines), format!("{id}\n"));
    }
}
