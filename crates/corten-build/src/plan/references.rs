//! What `--from` of COPY and of mounts names: a stage, an image or a named context. As with
//! BuildKit a name or number may be of any stage of the file, so that stages which need each
//! other are found out; what is used must be above its user all the same.

use std::collections::HashSet;

use corten_dockerfile::{Instruction, Kind, Mount, Span};

use super::{Base, CopyFrom, Outline};
use crate::error::BuildError;

impl Outline {
    /// What `--from` means in a stage; a stage may be one that comes later
    /// ([`is_too_late`](Self::is_too_late)).
    pub(crate) fn copy_from(
        &self,
        stage: usize,
        from: Option<&str>,
        span: Span,
    ) -> Result<CopyFrom, BuildError> {
        let Some(from) = from else {
            return Ok(CopyFrom::Context);
        };
        if let Some(index) = self.stage_of(from, span)? {
            return Ok(CopyFrom::Stage(index));
        }
        if from == "scratch" {
            return Err(self.error(span, "invalid from flag value scratch: it has no files"));
        }
        let platform = &self.stages[stage].platform;
        if let Some(named) = self.named_context(from) {
            return Ok(match Self::base_named(named, platform) {
                Base::Image(key) => CopyFrom::Image(key),
                _ => CopyFrom::Named(named.0.to_owned()),
            });
        }
        Ok(CopyFrom::Image(self.image(from, platform, span)?))
    }

    /// Whether a stage cannot take files of another because that one comes later. One that a
    /// named context replaces is there from the beginning.
    pub(crate) fn is_too_late(&self, from: &CopyFrom, stage: usize) -> bool {
        let CopyFrom::Stage(other) = from else {
            return false;
        };
        let name = self.stages[*other].name.as_deref();
        *other >= stage && name.is_none_or(|name| self.named_context(name).is_none())
    }

    /// The stage that a name or number is of.
    fn stage_of(&self, from: &str, span: Span) -> Result<Option<usize>, BuildError> {
        if from.contains('$') {
            return Err(self.error(
                span,
                "variable expansion is not supported for --from, define a new stage with FROM \
                 using ARG from global scope as a workaround",
            ));
        }
        let all = self.stages.len();
        let Ok(number) = from.parse::<i64>() else {
            return Ok(self.stage_named(from, all));
        };
        match usize::try_from(number).ok().filter(|index| *index < all) {
            Some(index) => Ok(Some(index)),
            None => Err(self.error(span, format!("invalid stage index {number}"))),
        }
    }

    /// What an instruction takes files from, as it says it.
    pub(super) fn sources(
        &self,
        instruction: &Instruction,
    ) -> Result<Vec<Option<String>>, BuildError> {
        match &instruction.kind {
            Kind::Copy(copy) => Ok(vec![copy.from.clone()]),
            Kind::Run(run) => {
                let mut sources = Vec::new();
                for flag in &run.mounts {
                    let from = Mount::from_of(flag)
                        .map_err(|message| self.error(instruction.span, message))?;
                    sources.extend(from.filter(|from| from != "scratch").map(Some));
                }
                Ok(sources)
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Checks the references of all stages, needed or not.
    pub(super) fn check_references(&self) -> Result<(), BuildError> {
        let mut uses = Vec::new();
        for stage in &self.stages {
            let mut of_stage: Vec<(usize, Span)> = Vec::new();
            for instruction in &stage.instructions {
                for from in self.sources(instruction)?.into_iter().flatten() {
                    let other = self.stage_of(&from, instruction.span)?;
                    of_stage.extend(other.map(|other| (other, instruction.span)));
                }
            }
            uses.push(of_stage);
        }
        let mut visited = HashSet::new();
        for index in 0..uses.len() {
            if let Some(span) = circle(&uses, index, &mut visited) {
                let name = self.shown_name(index);
                let message = format!("circular dependency detected on stage: {name}");
                return Err(self.error(span, message));
            }
        }
        Ok(())
    }

    /// A stage's name, made up where it has none.
    pub(super) fn shown_name(&self, index: usize) -> String {
        let name = self.stages[index].name.clone();
        name.unwrap_or_else(|| format!("stage-{index}"))
    }
}

/// Looks from a stage for stages that need each other: where the first of the uses is that lead
/// there. Without recursion, as a file may have many stages.
fn circle(uses: &[Vec<(usize, Span)>], start: usize, visited: &mut HashSet<usize>) -> Option<Span> {
    if !visited.insert(start) {
        return None;
    }
    // The way from the start: a stage, and which of its uses is next.
    let mut way = vec![(start, 0)];
    let mut on_the_way = HashSet::from([start]);
    let mut first = None;
    while let Some((stage, next)) = way.last_mut() {
        let Some((other, span)) = uses[*stage].get(*next) else {
            on_the_way.remove(stage);
            way.pop();
            continue;
        };
        *next += 1;
        if way.len() == 1 {
            first = Some(*span);
        }
        if on_the_way.contains(other) {
            return first;
        }
        if visited.insert(*other) {
            on_the_way.insert(*other);
            way.push((*other, 0));
        }
    }
    None
}
