//! One stage, from its base through its steps.

use std::collections::HashMap;
use std::sync::Arc;

use corten_oci::{DiffId, Digest};
use tokio::sync::watch;

use super::steps::Turn;
use super::{Session, StageResult, has_one_thread, on_one_thread, on_several};
use crate::error::BuildError;
use crate::export::{self, StageOutput};
use crate::keys;
use crate::plan::{Base, BaseImage, CopyFrom, ImageKey, Op, Plan, RunMount, StagePlan, Step};
use crate::progress::StepResult;

/// So many steps that may block are worth a thread of their own.
const MANY: usize = 3;

/// What a stage has come to.
struct State {
    output: StageOutput,
    /// What the last step is shown as.
    shown: Digest,
}

/// A stage to be run.
#[derive(Clone)]
pub(super) struct StageRun {
    pub(super) session: Arc<Session>,
    pub(super) plan: Arc<Plan>,
    pub(super) images: Arc<HashMap<ImageKey, BaseImage>>,
    pub(super) others: Arc<Vec<watch::Receiver<StageResult>>>,
    pub(super) index: usize,
}

impl StageRun {
    fn stage(&self) -> Result<&StagePlan, BuildError> {
        self.plan.stages[self.index]
            .as_ref()
            .ok_or_else(|| BuildError::Internal("a stage that is not planned".to_owned()))
    }

    pub(super) async fn run(self) -> Result<StageOutput, BuildError> {
        let output = self.base(self.stage()?).await?;
        let mut state = State {
            shown: keys::state(&output.layers),
            output,
        };
        let mut next = 0;
        // Whatever is known is at hand: until something is not, nothing is worth another thread.
        while has_one_thread() && next < self.stage()?.steps.len() {
            let known = self.step(next, &mut state).await?;
            next += 1;
            if !known {
                break;
            }
        }
        if next == self.stage()?.steps.len() {
            return Ok(state.output);
        }
        on_several(self.rest(next, state)).await
    }

    /// The steps from one on.
    async fn rest(self, mut next: usize, mut state: State) -> Result<StageOutput, BuildError> {
        loop {
            let rest = self.stage()?.steps.get(next..).unwrap_or_default();
            let ready = rest.iter().take_while(|step| self.is_ready(&step.op));
            let ready = &rest[..ready.count()];
            if rest.is_empty() {
                return Ok(state.output);
            }
            // What is cached is found without anything that blocks, but for what reads a context.
            let blocking = ready.iter().filter(|step| step.op != Op::Config).count();
            if blocking < MANY && !ready.iter().any(|step| reads_context(&step.op)) {
                self.step(next, &mut state).await?;
                next += 1;
                continue;
            }
            let (run, steps) = (self.clone(), next..next + ready.len());
            next = steps.end;
            state = on_one_thread(async move {
                for step in steps {
                    run.step(step, &mut state).await?;
                }
                Ok(state)
            })
            .await?;
        }
    }

    /// Whether a step waits for nobody, as a rule, and may well take less time than to wake a
    /// thread for it.
    fn is_ready(&self, op: &Op) -> bool {
        match op {
            Op::Config | Op::Workdir(_) => true,
            Op::Run(_) => false,
            Op::Copy(op) => {
                op.remotes.is_empty()
                    && match &op.from {
                        CopyFrom::Context | CopyFrom::Named(_) | CopyFrom::Image(_) => true,
                        CopyFrom::Stage(index) => self.others[*index].borrow().is_some(),
                    }
            }
        }
    }

    /// Runs a step; whether it was known.
    async fn step(&self, number: usize, state: &mut State) -> Result<bool, BuildError> {
        let stage = self.stage()?;
        let step = &stage.steps[number];
        let is_last = number + 1 == stage.steps.len();
        self.session.cancel.check()?;
        if step.op == Op::Config {
            // A trigger's change of the configuration is no step of anybody's.
            let instruction = step.instruction.as_ref();
            let vertex = instruction.map(|_| self.session.vertex(&step.name, instruction));
            state.output.push(step, None);
            state.shown = chained(&state.shown, step);
            let id = self.shown(stage, &state.output, &state.shown, is_last)?;
            if let Some(vertex) = vertex {
                vertex.done(true, StepResult { id, layer: None });
            }
            return Ok(true);
        }
        let sources = self.sources(&step.op).await?;
        let vertex = self.session.vertex(&step.name, step.instruction.as_ref());
        let solved = self
            .session
            .clone()
            .step(Turn {
                plan: self.plan.clone(),
                at: (self.index, number),
                layers: state.output.layers.clone(),
                sources,
                vertex: vertex.id(),
            })
            .await;
        let solved = match solved {
            Ok(solved) => solved,
            Err(error) => {
                vertex.failed(&error);
                return Err(error);
            }
        };
        let (layer, cached) = (solved.output.layer.clone(), solved.cached);
        if let Some(key) = solved.key() {
            state.shown = key.clone();
        }
        state.output.push(step, Some(solved.output));
        let id = self.shown(stage, &state.output, &state.shown, is_last)?;
        vertex.done(cached, StepResult { id, layer });
        Ok(cached)
    }

    /// What a step is shown as: the image's id at the end of the target.
    fn shown(
        &self,
        stage: &StagePlan,
        output: &StageOutput,
        key: &Digest,
        last: bool,
    ) -> Result<String, BuildError> {
        if last && self.index == self.plan.target {
            let document = self.session.document(&self.plan, stage, output)?;
            return Ok(export::id(&document).to_string());
        }
        Ok(key.to_string())
    }

    async fn base(&self, stage: &StagePlan) -> Result<StageOutput, BuildError> {
        let instruction = Some(&stage.from.instruction);
        let (output, id) = match &stage.base {
            Base::Scratch | Base::Files(_) => (StageOutput::default(), keys::state(&[])),
            Base::Image(key) => {
                let image = self.image(key)?;
                let output = StageOutput::of_image(&image.document, &image.layers);
                (output, image.id.clone())
            }
            Base::Stage(index) => {
                let output = self.other(*index).await?;
                let id = keys::state(&output.layers);
                (StageOutput::clone(&output), id)
            }
        };
        let vertex = self.session.vertex(&stage.from.name, instruction);
        let result = StepResult {
            id: id.to_string(),
            layer: None,
        };
        vertex.done(true, result);
        Ok(output)
    }

    fn image(&self, key: &ImageKey) -> Result<&BaseImage, BuildError> {
        self.images
            .get(key)
            .ok_or_else(|| BuildError::Internal(format!("{} was not resolved", key.image)))
    }

    /// Waits for another stage.
    async fn other(&self, index: usize) -> Result<Arc<StageOutput>, BuildError> {
        let mut receiver = self.others[index].clone();
        let waited = tokio::select! {
            waited = receiver.wait_for(Option::is_some) => waited,
            () = self.session.cancel.cancelled() => return Err(BuildError::Cancelled),
        };
        // The sender is gone when the stage failed.
        match waited {
            Ok(output) => output.clone().ok_or(BuildError::Cancelled),
            Err(_) => Err(BuildError::Cancelled),
        }
    }

    /// The layers that a step takes files from: of COPY --from, or of each mount of a RUN.
    async fn sources(&self, op: &Op) -> Result<Vec<Option<Vec<DiffId>>>, BuildError> {
        let wanted: Vec<Option<&CopyFrom>> = match op {
            Op::Copy(copy) => vec![Some(&copy.from)],
            Op::Run(run) => run.mounts.iter().map(RunMount::files).collect(),
            Op::Config | Op::Workdir(_) => Vec::new(),
        };
        let mut sources = Vec::new();
        for from in wanted {
            sources.push(match from {
                None | Some(CopyFrom::Context | CopyFrom::Named(_)) => None,
                Some(CopyFrom::Stage(index)) => Some(self.other(*index).await?.layers.clone()),
                Some(CopyFrom::Image(key)) => Some(self.image(key)?.layers.clone()),
            });
        }
        Ok(sources)
    }
}

/// Whether a step reads files of a context, be it to find out whether it is cached.
fn reads_context(op: &Op) -> bool {
    let Op::Copy(op) = op else {
        return false;
    };
    matches!(op.from, CopyFrom::Context | CopyFrom::Named(_))
}

/// What a step that only changes the configuration is shown as.
fn chained(before: &Digest, step: &Step) -> Digest {
    let mut key = keys::KeyBuilder::new("config");
    key.add(before.as_str()).add(&step.name);
    key.finish()
}
