//! The image: its document, made from the plan and what the steps left, and its names.
//!
//! Times come from the steps' records, never from the clock, so a build that finds everything
//! in the cache makes the same image again, down to its id.

use corten_oci::{DiffId, Digest, Platform};

use crate::cache::Output;
use crate::config::{HistoryEntry, ImageDocument, RootFs};
use crate::error::BuildError;
use crate::plan::{StagePlan, Step};
use crate::portable::inline::Inline;

/// Marks entries of the history, as BuildKit does.
const COMMENT: &str = "buildkit.dockerfile.v0";

/// What a stage has come to.
#[derive(Debug, Clone, Default)]
pub(crate) struct StageOutput {
    pub(crate) layers: Vec<DiffId>,
    pub(crate) history: Vec<Past>,
}

/// One entry of a history: of a base image, or of a step.
#[derive(Debug, Clone)]
pub(crate) enum Past {
    Base(HistoryEntry),
    Step {
        created_by: String,
        /// `None`: it changed only the configuration.
        output: Option<Output>,
    },
}

impl StageOutput {
    /// The state of a base image.
    pub(crate) fn of_image(document: &ImageDocument, layers: &[DiffId]) -> Self {
        Self {
            layers: layers.to_vec(),
            history: document.history.iter().cloned().map(Past::Base).collect(),
        }
    }

    /// Adds what a step left.
    pub(crate) fn push(&mut self, step: &Step, output: Option<Output>) {
        if let Some(layer) = output.as_ref().and_then(|output| output.layer.as_ref()) {
            self.layers.push(layer.clone());
        }
        if let Some(created_by) = &step.history {
            self.history.push(Past::Step {
                created_by: created_by.clone(),
                output,
            });
        }
    }
}

pub(crate) fn text(nanos: i64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(nanos))
        .unwrap_or(jiff::Timestamp::UNIX_EPOCH)
        .to_string()
}

/// The document's bytes.
pub(crate) fn document(
    stage: &StagePlan,
    output: &StageOutput,
    platform: &Platform,
    cache: Option<Inline>,
    epoch: Option<i64>,
) -> Result<Vec<u8>, BuildError> {
    let history = history(&output.history, epoch);
    let created = history.last().and_then(|entry| entry.created.clone());
    let document = ImageDocument {
        author: stage.author.clone(),
        architecture: platform.architecture.clone(),
        variant: platform.variant.clone().unwrap_or_default(),
        config: stage.config.clone(),
        cache,
        created: epoch.map(text).or(created),
        history,
        os: platform.os.clone(),
        rootfs: RootFs {
            kind: "layers".to_owned(),
            diff_ids: output
                .layers
                .iter()
                .map(|layer| layer.digest().to_string())
                .collect(),
        },
    };
    serde_json::to_vec(&document)
        .map_err(|e| BuildError::Internal(format!("the image's document: {e}")))
}

/// Steps that only changed the configuration have the time of the step before; those before
/// the first layer made here have that layer's, and none where nothing was made. No step is later than `epoch`
/// (SOURCE_DATE_EPOCH, in nanoseconds); what the base image says stays.
fn history(past: &[Past], epoch: Option<i64>) -> Vec<HistoryEntry> {
    let text = |created: i64| text(epoch.map_or(created, |epoch| created.min(epoch)));
    let first = past.iter().find_map(|entry| match entry {
        Past::Step { output, .. } => output.as_ref().map(|output| text(output.created)),
        Past::Base(_) => None,
    });
    let of_base = past.iter().rev().find_map(|entry| match entry {
        Past::Base(entry) => entry.created.clone(),
        Past::Step { .. } => None,
    });
    // With an epoch, a time of the base image's would be none of this build's.
    let of_base = match epoch {
        Some(epoch) => Some(text(epoch)),
        None => of_base,
    };
    let mut now = first.or(of_base);
    past.iter()
        .map(|entry| match entry {
            Past::Base(entry) => entry.clone(),
            Past::Step { created_by, output } => {
                if let Some(output) = output {
                    now = Some(text(output.created));
                }
                HistoryEntry {
                    created: now.clone(),
                    created_by: created_by.clone(),
                    comment: COMMENT.to_owned(),
                    empty_layer: output.as_ref().is_none_or(|output| output.layer.is_none()),
                    ..HistoryEntry::default()
                }
            }
        })
        .collect()
}

/// The id an image of these bytes has.
pub(crate) fn id(document: &[u8]) -> Digest {
    Digest::of(document)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_come_from_the_steps() {
        let step = |text: &str, created: Option<i64>| Past::Step {
            created_by: text.to_owned(),
            output: created.map(|created| Output {
                layer: Some(DiffId(Digest::of(text.as_bytes()))),
                created,
            }),
        };
        let base = Past::Base(HistoryEntry {
            created: Some("2020-01-01T00:00:00Z".into()),
            ..HistoryEntry::default()
        });
        let past = [
            base.clone(),
            step("ENV", None),
            step("RUN", Some(7_000_000_000)),
            step("CMD", None),
        ];
        let entries = history(&past, None);
        let times: Vec<_> = entries.iter().map(|e| e.created.clone().unwrap()).collect();
        assert_eq!(times[1..], ["1970-01-01T00:00:07Z"; 3]);
        let empty: Vec<_> = entries.iter().map(|e| e.empty_layer).collect();
        assert_eq!(empty, [false, true, false, true]);
        let only = history(&[base.clone(), step("CMD", None)], None);
        assert_eq!(only[1].created.as_deref(), Some("2020-01-01T00:00:00Z"));
        let unmade = history(&[step("CMD", None)], None);
        assert_eq!(unmade[0].created, None);
        let late = step("RUN", Some(9_000_000_000));
        let early = step("RUN", Some(1_000_000_000));
        let entries = history(&[base, early, late], Some(3_000_000_000));
        let times: Vec<_> = entries.iter().map(|e| e.created.clone().unwrap()).collect();
        let expected = [
            "2020-01-01T00:00:00Z",
            "1970-01-01T00:00:01Z",
            "1970-01-01T00:00:03Z",
        ];
        assert_eq!(times, expected);
    }
}
