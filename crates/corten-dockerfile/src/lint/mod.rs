//! The build checks: rules that a Dockerfile had better keep, with the names, messages and
//! settings of BuildKit's (Dockerfile reference, "Build checks").
//!
//! The order is BuildKit's too, because what is found first may be an error that ends the
//! search: syntax ([`syntax`]), FROM with its variables ([`from`]), then the instructions of
//! each stage with theirs ([`stage`]).

pub(crate) mod from;
mod options;
mod report;
mod rules;
mod stage;
mod syntax;
pub(crate) mod variables;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use corten_oci::Platform;

use crate::error::DockerfileError;
use crate::expand::Lexer;
use crate::ignore::IgnoreRules;
use crate::instruction::{Dockerfile, Instruction, Kind, Stage};
use crate::{line, parse};
use options::Options;
pub use report::excerpt;
pub(crate) use report::location;
pub use rules::{Rule, Warning};
use stage::{State, Walk};

/// The build argument that takes the place of the directive.
pub const CHECK_ARG: &str = "BUILDKIT_DOCKERFILE_CHECK";

/// What a check must know of an image that FROM names.
#[derive(Debug, Clone, Default)]
pub struct ImageFacts {
    /// Its environment, `KEY=value`.
    pub env: Vec<String>,
    /// It has a SHELL.
    pub shell: bool,
    /// Its triggers.
    pub triggers: Vec<String>,
    /// What it was made for.
    pub platform: Option<Platform>,
}

/// Tells of an image; `None`: nothing is known of it, and it is taken for an empty one.
pub type ImageLookup<'a> = &'a dyn Fn(&str, &Platform) -> Option<ImageFacts>;

/// How a file is checked.
#[derive(Clone)]
pub struct Settings<'a> {
    /// `--build-arg`.
    pub build_args: BTreeMap<String, String>,
    /// The stage to build.
    pub target: Option<&'a str>,
    /// Check the stages that the target does not need, too.
    pub every_stage: bool,
    /// What builds.
    pub host: Platform,
    /// What is built for.
    pub platform: Platform,
    /// `.dockerignore`, where there is one.
    pub ignore: Option<&'a IgnoreRules>,
    /// Images.
    pub images: ImageLookup<'a>,
}

impl std::fmt::Debug for Settings<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("target", &self.target)
            .field("every_stage", &self.every_stage)
            .finish_non_exhaustive()
    }
}

impl Default for Settings<'_> {
    /// As for a build of everything, of which nothing else is known.
    fn default() -> Self {
        Self {
            build_args: BTreeMap::new(),
            target: None,
            every_stage: true,
            host: Platform::host(),
            platform: Platform::host(),
            ignore: None,
            images: &|_, _| None,
        }
    }
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// In the order of their lines.
    pub warnings: Vec<Warning>,
    /// What ended the search.
    pub error: Option<DockerfileError>,
    /// The file, or whoever builds it, wants warnings to be errors, and there are some: the
    /// error.
    pub violation: Option<String>,
}

/// Collects warnings.
#[derive(Debug, Default)]
struct Findings(Vec<Warning>);

impl Findings {
    fn add(&mut self, options: &Options, rule: Rule, span: crate::Span, detail: impl Into<String>) {
        if options.checks(rule) {
            self.0.push(Warning {
                rule,
                span,
                detail: detail.into(),
            });
        }
    }
}

/// Checks a Dockerfile.
#[must_use]
pub fn check(text: &str, settings: &Settings<'_>) -> Report {
    let mut findings = Findings::default();
    let mut options = Options::default();
    let error = run(text, settings, &mut options, &mut findings).err();
    let mut warnings = findings.0;
    let mut broken: Vec<&str> = Vec::new();
    for warning in &warnings {
        if !broken.contains(&warning.rule.name()) {
            broken.push(warning.rule.name());
        }
    }
    let violation = (options.error && !broken.is_empty())
        .then(|| format!("lint violation found for rules: {}", broken.join(", ")));
    warnings.sort_by_key(|warning| warning.span.start);
    Report {
        warnings,
        error,
        violation,
    }
}

fn run(
    text: &str,
    settings: &Settings<'_>,
    options: &mut Options,
    findings: &mut Findings,
) -> Result<(), DockerfileError> {
    let (directives, nodes) = line::split(text)?;
    let check = match settings.build_args.get(CHECK_ARG) {
        Some(given) => Some(given.as_str()),
        None => directives
            .check
            .as_deref()
            .map(|value| value.split(' ').next().unwrap_or_default()),
    };
    *options = Options::parse(check.unwrap_or_default()).map_err(|e| {
        let message = format!("failed to parse check options: {e}");
        DockerfileError::new(crate::Span::line(1), message)
    })?;
    syntax::continuation(&nodes, options, findings);
    let file = understand(directives, &nodes, options, findings)?;
    if file.stages.is_empty() {
        let message = "dockerfile contains no stages to build";
        return Err(DockerfileError::new(crate::Span::line(1), message));
    }
    syntax::stage_names(&file.stages, options, findings);
    syntax::keywords(&file.stages, options, findings);
    stages(&file, settings, options, findings)
}

/// From nodes to instructions, as [`Dockerfile::parse`] does, with the checks on the way.
fn understand(
    directives: crate::Directives,
    nodes: &[crate::Node],
    options: &Options,
    findings: &mut Findings,
) -> Result<Dockerfile, DockerfileError> {
    let mut file = Dockerfile {
        directives,
        meta_args: Vec::new(),
        stages: Vec::new(),
    };
    for node in nodes {
        let options = options.with_comments(&node.comments);
        syntax::node(node, &options, findings);
        if node.keyword.eq_ignore_ascii_case("FROM") {
            let stage = parse::stage(node)?;
            syntax::stage_description(&stage, &options, findings);
            file.stages.push(stage);
            continue;
        }
        let instruction = parse::instruction(node)?;
        if let Kind::Arg(arguments) = &instruction.kind {
            let comments = &instruction.comments;
            syntax::arg_description(arguments, comments, node.span, &options, findings);
        }
        file.push(instruction, &node.keyword)?;
    }
    Ok(file)
}

/// A stage on its way.
struct Built {
    base: Option<usize>,
    needs: BTreeSet<usize>,
    from: from::From,
}

fn stages(
    file: &Dockerfile,
    settings: &Settings<'_>,
    options: &Options,
    findings: &mut Findings,
) -> Result<(), DockerfileError> {
    let lexer = Lexer::new(file.directives.escape);
    let last = file.stages.last().and_then(|stage| stage.name.as_deref());
    let target = settings.target.filter(|t| !t.is_empty());
    let given = &settings.build_args;
    let predefined = from::predefined(
        &settings.host,
        &settings.platform,
        target.or(last).unwrap_or("default"),
        given,
    );
    // As if no argument was given.
    if let Ok(globals) = from::global(
        &lexer,
        predefined.clone(),
        &file.meta_args,
        &BTreeMap::new(),
    ) {
        from::defaults(&lexer, &globals, &file.stages, options, findings);
    }
    let globals = from::global(&lexer, predefined, &file.meta_args, given)?;
    let declared = declared(&file.meta_args);
    let mut built: Vec<Built> = Vec::new();
    for stage in &file.stages {
        let from = from::stage(&lexer, &globals, &declared, stage, options, findings)?;
        let base = named(&file.stages, &from.base, built.len());
        let mut needs = BTreeSet::new();
        needs.extend(base);
        for instruction in &stage.instructions {
            needs.extend(sources(instruction).filter_map(|from| {
                let before = built.len();
                named(&file.stages, from, before)
                    .or_else(|| from.parse().ok().filter(|index| *index < before))
            }));
        }
        built.push(Built { base, needs, from });
    }
    let needed = needed(file, settings, &built)?;
    let mut states: Vec<State> = Vec::new();
    for (index, stage) in file.stages.iter().enumerate() {
        if !needed.contains(&index) {
            states.push(State::default());
            continue;
        }
        let Built { base, from, .. } = &built[index];
        let (state, triggers) = match base {
            Some(base) => {
                let mut state = states[*base].clone();
                let triggers = std::mem::take(&mut state.triggers);
                (state, triggers)
            }
            None => image(stage, from, settings, options, findings)?,
        };
        let mut walk = Walk {
            lexer: &lexer,
            settings,
            globals: &globals,
            options,
            findings: &mut *findings,
            state,
            once: HashMap::new(),
        };
        for mut trigger in triggers {
            trigger.span = stage.span;
            trigger.comments.clear();
            walk.visit(&trigger)?;
        }
        for instruction in &stage.instructions {
            walk.visit(instruction)?;
        }
        states.push(walk.state);
    }
    Ok(())
}

/// What a stage begins with that is built on an image, or on nothing.
fn image(
    stage: &Stage,
    from: &from::From,
    settings: &Settings<'_>,
    options: &Options,
    findings: &mut Findings,
) -> Result<(State, Vec<Instruction>), DockerfileError> {
    if from.base == "scratch" {
        return Ok((State::new(&[], false), Vec::new()));
    }
    let wanted = from.platform.as_ref().unwrap_or(&settings.platform);
    let facts = (settings.images)(&from.base, wanted).unwrap_or_default();
    if let Some(found) = &facts.platform
        && (found.os != wanted.os || found.architecture != wanted.architecture)
    {
        let detail = format!(
            "Base image {} was pulled with platform \"{found}\", expected \"{wanted}\" for current \
             build",
            from.base
        );
        findings.add(options, Rule::InvalidBaseImagePlatform, stage.span, detail);
    }
    let triggers = facts
        .triggers
        .iter()
        .map(|text| {
            Dockerfile::parse_trigger(text).map_err(|e| DockerfileError::new(stage.span, e.message))
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok((State::new(&facts.env, facts.shell), triggers))
}

fn declared(arguments: &[Instruction]) -> BTreeSet<String> {
    arguments
        .iter()
        .filter_map(|instruction| match &instruction.kind {
            Kind::Arg(declarations) => Some(declarations.iter().map(|d| d.name.clone())),
            _ => None,
        })
        .flatten()
        .collect()
}

/// The last stage of a name before the `before`th.
pub(crate) fn named(stages: &[Stage], name: &str, before: usize) -> Option<usize> {
    let name = name.to_lowercase();
    (0..before)
        .rev()
        .find(|&i| stages[i].name.as_deref() == Some(&name))
}

/// Stages that an instruction may take files from, as it names them.
pub(crate) fn sources(instruction: &Instruction) -> impl Iterator<Item = &str> {
    let from = match &instruction.kind {
        Kind::Copy(copy) => copy.from.as_deref(),
        _ => None,
    };
    let mounts = match &instruction.kind {
        Kind::Run(run) => run.mounts.as_slice(),
        _ => &[],
    };
    let mounts = mounts
        .iter()
        .flat_map(|mount| mount.split(','))
        .filter_map(|field| field.strip_prefix("from="));
    from.into_iter().chain(mounts)
}

fn needed(
    file: &Dockerfile,
    settings: &Settings<'_>,
    built: &[Built],
) -> Result<BTreeSet<usize>, DockerfileError> {
    let all = file.stages.len();
    let target = match settings.target.filter(|t| !t.is_empty()) {
        None if settings.every_stage => return Ok((0..all).collect()),
        None => all - 1,
        Some(target) => named(&file.stages, target, all)
            .or_else(|| target.parse().ok().filter(|index| *index < all))
            .ok_or_else(|| {
                let names = file.stages.iter().filter_map(|s| s.name.as_deref());
                let hint = variables::nearest(target, names)
                    .map_or_else(String::new, |near| format!(" (did you mean {near}?)"));
                let message = format!("target stage {target:?} could not be found{hint}");
                DockerfileError::new(crate::Span::line(1), message)
            })?,
    };
    let mut needed = BTreeSet::new();
    let mut waiting = vec![target];
    while let Some(index) = waiting.pop() {
        if needed.insert(index) {
            waiting.extend(&built[index].needs);
        }
    }
    Ok(needed)
}
