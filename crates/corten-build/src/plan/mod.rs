//! From a Dockerfile to what is to be done, in two passes, both pure but for the descriptions of
//! devices, which are read where a RUN asks for some. [`Outline`]: which
//! stages the target needs and which images those name, ONBUILD triggers included. Then,
//! with the images' configurations known, [`evaluate`]: every word expanded, every step's
//! operation complete but for the content of files.

mod command;
pub(crate) mod epoch;
mod evaluate;
mod frontend;
mod mounts;
mod outline;
mod references;
#[cfg(test)]
mod tests;
mod values;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use corten_dockerfile::{Dockerfile, ModeChange, Span};
use corten_oci::{DiffId, Digest, ImageRef, Platform};

use crate::config::{ImageDocument, RuntimeConfig};
use crate::error::{BuildError, Place};
use crate::progress::Instruction;
use crate::remote::Remote;
use crate::request::{AllowedDevices, StepNetworkMode};

pub(crate) use evaluate::evaluate;
pub(crate) use mounts::{MountFrom, Mounted, RunMount};
pub(crate) use outline::Outline;
pub use values::go_duration;

/// The parts of a request that steer the plan.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    pub(crate) target: Option<String>,
    pub(crate) build_args: BTreeMap<String, Option<String>>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) platform: Option<Platform>,
    /// The image is made for several platforms: steps say for which they are.
    pub(crate) several: bool,
    pub(crate) network: StepNetworkMode,
    /// `--build-context`
    pub(crate) contexts: BTreeMap<String, Named>,
    /// Names of stages that take nothing from the cache.
    pub(crate) no_cache: Vec<String>,
    /// `--security=insecure` may be used.
    pub(crate) allow_insecure: bool,
    /// Which devices may be used.
    pub(crate) allow_devices: AllowedDevices,
    /// Where devices are described.
    pub(crate) cdi: Vec<PathBuf>,
    /// When the context was last changed, in seconds since the epoch, where that is known.
    pub(crate) context_time: Option<i64>,
}

/// What a name given by `--build-context` stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Named {
    Files,
    Image(ImageRef),
}

/// A Dockerfile with its text.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) file: Arc<str>,
    pub(crate) text: Arc<str>,
    pub(crate) dockerfile: Arc<Dockerfile>,
}

impl Source {
    pub(crate) fn parse(file: &str, text: &str) -> Result<Self, BuildError> {
        if text.is_empty() {
            return Err(BuildError::NothingToBuild);
        }
        let text: Arc<str> = text.into();
        if let Some((span, message)) = frontend::refused_by(&text) {
            let place = Place {
                file: file.into(),
                text,
                span,
            };
            return Err(BuildError::at(&place, message));
        }
        let dockerfile = Dockerfile::parse(&text).map_err(|error| BuildError::Syntax {
            error: Box::new(error.in_file(file)),
            text: text.clone(),
        })?;
        Ok(Self {
            file: file.into(),
            text,
            dockerfile: Arc::new(dockerfile),
        })
    }

    pub(crate) fn place(&self, span: Span) -> Place {
        Place {
            file: self.file.clone(),
            text: self.text.clone(),
            span,
        }
    }
}

/// An image as FROM or COPY names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ImageKey {
    pub(crate) image: ImageRef,
    pub(crate) platform: Platform,
}

/// An image that is here.
#[derive(Debug, Clone)]
pub(crate) struct BaseImage {
    pub(crate) id: Digest,
    pub(crate) document: Arc<ImageDocument>,
    pub(crate) layers: Vec<DiffId>,
    /// Its full name, with a digest where one is known.
    pub(crate) shown: String,
}

/// What a stage builds on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Base {
    Scratch,
    Stage(usize),
    Image(ImageKey),
    /// The files of a named context.
    Files(String),
}

/// Where COPY takes its files from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CopyFrom {
    Context,
    Stage(usize),
    Image(ImageKey),
    /// A named context.
    Named(String),
}

/// Everything to be done.
#[derive(Debug)]
pub(crate) struct Plan {
    /// By number of the stage; `None`: not needed.
    pub(crate) stages: Vec<Option<StagePlan>>,
    pub(crate) target: usize,
    /// Its place among the plans of a build for several platforms.
    pub(crate) number: usize,
    /// Of the result.
    pub(crate) platform: Platform,
    /// Messages for the user that the build checks have not.
    pub(crate) warnings: Vec<String>,
    pub(crate) needs_context: bool,
}

impl Plan {
    /// Counts the steps of all plans of a build together, for those who tell of one after the
    /// other.
    pub(crate) fn count_together(plans: &mut [Self]) {
        let counts: Vec<u32> = plans
            .iter_mut()
            .map(|plan| {
                plan.instructions()
                    .map(|step| step.steps)
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let total = counts.iter().sum();
        let mut before = 0;
        for (plan, count) in plans.iter_mut().zip(counts) {
            for instruction in plan.instructions() {
                instruction.step += before;
                instruction.steps = total;
            }
            before += count;
        }
    }

    fn instructions(&mut self) -> impl Iterator<Item = &mut Instruction> {
        self.stages.iter_mut().flatten().flat_map(|stage| {
            let steps = stage
                .steps
                .iter_mut()
                .filter_map(|step| step.instruction.as_mut());
            std::iter::once(&mut stage.from.instruction).chain(steps)
        })
    }
}

/// One stage.
#[derive(Debug)]
pub(crate) struct StagePlan {
    pub(crate) base: Base,
    /// Whose programs its steps run.
    pub(crate) platform: Platform,
    pub(crate) from: FromStep,
    pub(crate) steps: Vec<Step>,
    /// The configuration after the last instruction.
    pub(crate) config: RuntimeConfig,
    pub(crate) author: String,
    /// It takes nothing from the cache.
    pub(crate) no_cache: bool,
}

/// FROM itself.
#[derive(Debug)]
pub(crate) struct FromStep {
    pub(crate) name: String,
    pub(crate) instruction: Instruction,
}

/// One instruction.
#[derive(Debug)]
pub(crate) struct Step {
    /// As BuildKit shows it.
    pub(crate) name: String,
    /// Absent for triggers, which stand in no Dockerfile.
    pub(crate) instruction: Option<Instruction>,
    pub(crate) span: Span,
    pub(crate) op: Op,
    /// `created_by` of the image's history.
    pub(crate) history: Option<String>,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    /// Nothing but a change of the configuration, which has been made already.
    Config,
    Workdir(WorkdirOp),
    Copy(CopyOp),
    Run(RunOp),
}

/// WORKDIR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WorkdirOp {
    /// Absolute.
    pub(crate) path: String,
    /// Owner of what is made.
    pub(crate) user: String,
}

/// COPY and ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CopyOp {
    pub(crate) from: CopyFrom,
    /// Paths and patterns in the source.
    pub(crate) sources: Vec<String>,
    /// Files and repositories that are elsewhere (ADD).
    pub(crate) remotes: Vec<RemoteOp>,
    /// Files given in the Dockerfile itself: name and content.
    pub(crate) inline: Vec<(String, String)>,
    /// Absolute; with a slash at its end where the user meant a directory.
    pub(crate) destination: String,
    pub(crate) chown: Option<String>,
    pub(crate) chmod: Option<ModeChange>,
    /// Local archives are unpacked (ADD).
    pub(crate) unpack: bool,
    /// Nothing below is looked at (`--link`).
    pub(crate) link: bool,
    pub(crate) parents: bool,
    pub(crate) exclude: Vec<String>,
}

/// A source of ADD that is elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RemoteOp {
    pub(crate) remote: Remote,
    /// What its content must be, as `sha256:…`.
    pub(crate) checksum: Option<String>,
    /// Its archive is unpacked.
    pub(crate) unpack: bool,
    /// Its `.git` is kept.
    pub(crate) keep_git_dir: bool,
}

/// RUN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RunOp {
    pub(crate) args: Vec<String>,
    /// `KEY=value`, ENV and the ARGs in scope.
    pub(crate) env: Vec<String>,
    /// Proxy settings, which are no part of the key.
    pub(crate) proxies: Vec<String>,
    pub(crate) user: String,
    pub(crate) cwd: String,
    pub(crate) network: StepNetworkMode,
    /// A here-document with an interpreter line: file name and content, at [`SCRIPTS`].
    pub(crate) script: Option<(String, String)>,
    pub(crate) mounts: Vec<RunMount>,
    /// Not confined (`--security=insecure`).
    pub(crate) insecure: bool,
    /// Whole names of devices that are there and that it may have.
    pub(crate) devices: Vec<String>,
}

/// Where the files of RUN's here-documents are seen, as with BuildKit.
pub(crate) const SCRIPTS: &str = "/dev/pipes";

impl RunOp {
    /// The command line as messages show it.
    pub(crate) fn shown(&self) -> String {
        self.args.join(" ")
    }
}
