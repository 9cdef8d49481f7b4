//! The second pass: instruction by instruction, what each stage's configuration becomes and
//! what each step does.

use std::collections::HashMap;
use std::fmt::Write as _;

use corten_dockerfile::{
    CommandLine, Exposed, Instruction, KeyValue, Kind, Lexer, Scope, Span, scope,
};

use super::{
    Base, BaseImage, CopyFrom, CopyOp, FromStep, ImageKey, Op, Outline, Plan, Source, StagePlan,
    Step, WorkdirOp, values,
};
use crate::config::{Empty, RuntimeConfig};
use crate::error::BuildError;
use crate::progress;
use crate::remote::masked;

/// Shell of commands that are no JSON array.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// Makes the plan. `images`: all that a complete outline asked for.
pub(crate) fn evaluate(
    outline: &Outline,
    images: &HashMap<ImageKey, BaseImage>,
) -> Result<Plan, BuildError> {
    let needed = |index: &usize| outline.needed.contains(index);
    let steps: usize = (0..outline.stages.len())
        .filter(needed)
        .map(|index| 1 + outline.stages[index].instructions.len())
        .sum();
    let mut numbers = Numbers {
        step: 0,
        steps: u32::try_from(steps).unwrap_or(u32::MAX),
    };
    let mut plan = Plan {
        stages: Vec::new(),
        target: outline.target,
        number: 0,
        platform: outline.stages[outline.target].platform.clone(),
        warnings: Vec::new(),
        needs_context: false,
    };
    let unused = outline.unused_args();
    if !unused.is_empty() {
        let message = format!(
            "One or more build-args [{}] were not consumed",
            unused.join(" ")
        );
        plan.warnings.push(message);
    }
    let mut scopes: Vec<Option<Begun>> = Vec::new();
    for index in 0..outline.stages.len() {
        if !needed(&index) {
            plan.stages.push(None);
            scopes.push(None);
            continue;
        }
        let mut stage = Stage::new(outline, images, index, &plan.stages, &scopes);
        let from = stage.begin(images, &mut numbers);
        let mut steps = Vec::new();
        if let Base::Files(name) = &outline.stages[index].base {
            steps.push(files(name, outline.stages[index].span));
        }
        let triggers = outline.stages[index]
            .triggers
            .as_deref()
            .unwrap_or_default();
        for instruction in triggers {
            steps.push(stage.step(instruction, None, &mut plan)?);
        }
        for instruction in &outline.stages[index].instructions {
            let number = Some(numbers.next());
            steps.push(stage.step(instruction, number.zip(Some(numbers.steps)), &mut plan)?);
        }
        let mut config = stage.config;
        if index == outline.target {
            config.labels.extend(outline.settings.labels.clone());
        }
        plan.stages.push(Some(StagePlan {
            base: outline.stages[index].base.clone(),
            platform: outline.stages[index].platform.clone(),
            from,
            steps,
            config,
            author: stage.author,
            no_cache: outline.is_uncached(index),
        }));
        scopes.push(Some(Begun {
            scope: stage.scope,
            declared: stage.declared,
        }));
    }
    Ok(plan)
}

/// FROM a named context: its files are the first layer.
fn files(name: &str, span: Span) -> Step {
    Step {
        name: format!("[context {name}] load files"),
        instruction: None,
        span,
        op: Op::Copy(CopyOp {
            from: CopyFrom::Named(name.to_owned()),
            sources: vec![".".to_owned()],
            remotes: Vec::new(),
            inline: Vec::new(),
            destination: "/".to_owned(),
            chown: None,
            chmod: None,
            unpack: false,
            link: false,
            parents: false,
            exclude: Vec::new(),
        }),
        history: Some(format!("FROM context {name}")),
    }
}

/// For which platform a stage is, where that is not plain: `linux/amd64->arm64 ` of one that runs
/// programs of another platform than the result's.
fn platform_prefix(outline: &Outline, index: usize) -> String {
    if !outline.settings.several {
        return String::new();
    }
    let (own, target) = (&outline.stages[index].platform, &outline.platform);
    if own == target {
        return format!("{own} ");
    }
    let os = format!("{}/", own.os);
    let target = target.to_string();
    format!("{own}->{} ", target.strip_prefix(&os).unwrap_or(&target))
}

struct Numbers {
    step: u32,
    steps: u32,
}

impl Numbers {
    fn next(&mut self) -> u32 {
        self.step += 1;
        self.step
    }
}

/// What a stage hands on to those that begin with it.
struct Begun {
    scope: Scope,
    declared: Vec<String>,
}

/// A stage while it is evaluated.
pub(super) struct Stage<'a> {
    pub(super) outline: &'a Outline,
    pub(super) index: usize,
    pub(super) config: RuntimeConfig,
    pub(super) scope: Scope,
    author: String,
    cmd_set: bool,
    /// `builder 2/6`: name, next number, total.
    label: (String, u32, u32),
    /// ARGs in the order they came into scope, for the history of RUN.
    declared: Vec<String>,
}

impl<'a> Stage<'a> {
    fn new(
        outline: &'a Outline,
        images: &HashMap<ImageKey, BaseImage>,
        index: usize,
        plans: &[Option<StagePlan>],
        scopes: &[Option<Begun>],
    ) -> Self {
        let stage = &outline.stages[index];
        let mut author = String::new();
        let mut begun = None;
        let mut config = match &stage.base {
            Base::Scratch | Base::Files(_) => RuntimeConfig {
                env: vec![format!("PATH={}", corten_runtime::defaults::PATH)],
                working_dir: "/".to_owned(),
                ..RuntimeConfig::default()
            },
            Base::Stage(base) => {
                begun = scopes.get(*base).and_then(Option::as_ref);
                let plan = plans.get(*base).and_then(Option::as_ref);
                author = plan.map(|p| p.author.clone()).unwrap_or_default();
                plan.map(|p| p.config.clone()).unwrap_or_default()
            }
            Base::Image(key) => images
                .get(key)
                .map_or_else(RuntimeConfig::default, |image| {
                    author.clone_from(&image.document.author);
                    image.document.config.clone()
                }),
        };
        config.on_build.clear();
        let counted = stage.all().filter(|i| values::is_counted(&i.kind)).count()
            + usize::from(matches!(stage.base, Base::Image(_)));
        let name = match &stage.name {
            Some(name) => name.clone(),
            None if outline.stages.len() > 1 => format!("stage-{index}"),
            None => String::new(),
        };
        Self {
            outline,
            index,
            scope: begun.map_or_else(
                || Scope::with_env(&config.env),
                |begun| begun.scope.inherited(),
            ),
            config,
            author,
            cmd_set: false,
            label: (name, 0, u32::try_from(counted).unwrap_or(u32::MAX)),
            declared: begun.map(|b| b.declared.clone()).unwrap_or_default(),
        }
    }

    fn source(&self) -> &Source {
        &self.outline.source
    }

    pub(super) fn error(&self, span: Span, message: impl std::fmt::Display) -> BuildError {
        BuildError::at(&self.source().place(span), message)
    }

    pub(super) fn lexer(&self) -> Lexer {
        Lexer::new(self.source().dockerfile.directives.escape)
    }

    pub(super) fn word(&self, word: &str, span: Span) -> Result<String, BuildError> {
        self.lexer()
            .word(word, &|name| self.scope.lookup(name))
            .map_err(|e| self.error(span, format!("failed to process {word:?}: {e}")))
    }

    fn words(&self, word: &str, span: Span) -> Result<Vec<String>, BuildError> {
        self.lexer()
            .words(word, &|name| self.scope.lookup(name))
            .map_err(|e| self.error(span, format!("failed to process {word:?}: {e}")))
    }

    /// A here-document's variables; its quotes are content.
    pub(super) fn heredoc(&self, text: &str, span: Span) -> Result<String, BuildError> {
        // The file's escape character is not theirs.
        Lexer::new('\\')
            .quotes_are_text(true)
            .word(text, &|name| self.scope.lookup(name))
            .map_err(|e| self.error(span, format!("failed to process a here-document: {e}")))
    }

    pub(super) fn workdir(&self) -> String {
        if self.config.working_dir.is_empty() {
            "/".to_owned()
        } else {
            values::join("/", &self.config.working_dir)
        }
    }

    pub(super) fn in_shell(&self, command: &str) -> Vec<String> {
        let mut args = self
            .config
            .shell
            .clone()
            .unwrap_or_else(|| SHELL.map(str::to_owned).to_vec());
        args.push(command.to_owned());
        args
    }

    fn command(&self, command: &CommandLine) -> Vec<String> {
        match command {
            CommandLine::Shell(text) => self.in_shell(text),
            CommandLine::Exec(args) => args.clone(),
        }
    }

    fn label(&mut self, text: &str) -> String {
        let (name, number, total) = &mut self.label;
        *number += 1;
        let width = 1 + total.checked_ilog10().unwrap_or(0) as usize;
        let space = if name.is_empty() { "" } else { " " };
        let platform = platform_prefix(self.outline, self.index);
        format!("[{platform}{name}{space}{number:>width$}/{total}] {text}")
    }

    fn begin(&mut self, images: &HashMap<ImageKey, BaseImage>, numbers: &mut Numbers) -> FromStep {
        let stage = &self.outline.stages[self.index];
        let name = match &stage.base {
            Base::Image(key) => {
                let shown = images
                    .get(key)
                    .map_or_else(|| key.image.to_string(), |image| image.shown.clone());
                self.label(&format!("FROM {shown}"))
            }
            _ => stage.text.clone(),
        };
        FromStep {
            name,
            instruction: progress::Instruction {
                step: numbers.next(),
                steps: numbers.steps,
                text: stage.text.clone(),
                line: stage.span.start,
                // BuildKit shows FROM only where there is an image to speak of.
                config_only: !matches!(stage.base, Base::Image(_)),
            },
        }
    }

    fn step(
        &mut self,
        instruction: &Instruction,
        number: Option<(u32, u32)>,
        plan: &mut Plan,
    ) -> Result<Step, BuildError> {
        let span = instruction.span;
        let shown = self.shown(instruction);
        let (op, history) = self.dispatch(instruction)?;
        plan.needs_context |= match &op {
            Op::Copy(copy) => copy.from == CopyFrom::Context && !copy.sources.is_empty(),
            Op::Run(run) => run
                .mounts
                .iter()
                .any(|mount| mount.files() == Some(&CopyFrom::Context)),
            Op::Config | Op::Workdir(_) => false,
        };
        let name = if values::is_counted(&instruction.kind) {
            self.label(&shown)
        } else {
            shown
        };
        let config_only = op == Op::Config;
        Ok(Step {
            name,
            instruction: number.map(|(step, steps)| progress::Instruction {
                step,
                steps,
                text: instruction.text.clone(),
                line: span.start,
                config_only,
            }),
            span,
            op,
            history: Some(history).filter(|h| !h.is_empty()),
        })
    }

    /// The instruction with the variables it can see, keyword in upper case.
    fn shown(&self, instruction: &Instruction) -> String {
        let text = instruction.text.trim();
        let rest = text
            .split_once(char::is_whitespace)
            .map_or("", |(_, rest)| rest.trim_start());
        let expanded = match &instruction.kind {
            Kind::Copy(_) | Kind::Add(_) | Kind::Workdir(_) => self
                .lexer()
                .raw_quotes(true)
                .raw_escapes(true)
                .keep_unset(true)
                .word(rest, &|name| self.scope.lookup(name))
                .unwrap_or_else(|_| rest.to_owned()),
            _ => rest.to_owned(),
        };
        let text = format!("{} {expanded}", instruction.kind.keyword());
        match &instruction.kind {
            Kind::Add(_) => masked(&text),
            Kind::Run(run) => match run.lone_heredoc() {
                Some(heredoc) => format!("{text} ({})", values::summary(&heredoc.content)),
                None => text,
            },
            _ => text,
        }
    }

    fn dispatch(&mut self, instruction: &Instruction) -> Result<(Op, String), BuildError> {
        let span = instruction.span;
        let history = match &instruction.kind {
            Kind::Run(run) => {
                let op = self.run(run, span)?;
                let mut text = "RUN ".to_owned();
                if !self.declared.is_empty() {
                    // Writing to a String cannot fail.
                    let _ = write!(text, "|{} ", self.declared.len());
                    for name in &self.declared {
                        let value = self.scope.get(name).unwrap_or_default();
                        let _ = write!(text, "{name}={value} ");
                    }
                }
                let _ = write!(text, "{} # buildkit", op.shown());
                return Ok((Op::Run(op), text));
            }
            Kind::Copy(copy) | Kind::Add(copy) => {
                let add = matches!(instruction.kind, Kind::Add(_));
                let op = self.copy(copy, add, span)?;
                let text = self.copied(copy, add, span)?;
                return Ok((Op::Copy(op), text));
            }
            Kind::Workdir(path) => {
                let written = self.word(path, span)?;
                if written.is_empty() {
                    return Err(self.error(span, "WORKDIR requires exactly one argument"));
                }
                let path = values::join(&self.workdir(), &written);
                self.config.working_dir.clone_from(&path);
                let text = format!("WORKDIR {path}");
                if path == "/" {
                    return Ok((Op::Config, text));
                }
                let user = self.config.user.clone();
                return Ok((Op::Workdir(WorkdirOp { path, user }), text));
            }
            Kind::Arg(declarations) => {
                let mut text = "ARG".to_owned();
                for declaration in declarations {
                    self.arg(declaration, span)?;
                    let name = &declaration.name;
                    let secret = scope::PREDEFINED_PROXY_ARGS.contains(&name.as_str());
                    match self.scope.get(name).filter(|_| !secret) {
                        Some(value) => _ = write!(text, " {name}={value}"),
                        None => _ = write!(text, " {name}"),
                    }
                }
                text
            }
            Kind::Env(pairs) => {
                let pairs = self.pairs(pairs, span)?;
                for (key, value) in &pairs {
                    self.scope.set_env(key, value);
                }
                self.config.env = self.scope.env();
                values::joined("ENV", &pairs)
            }
            Kind::Label(pairs) => {
                let pairs = self.pairs(pairs, span)?;
                let text = values::joined("LABEL", &pairs);
                self.config.labels.extend(pairs);
                text
            }
            Kind::Expose(words) => {
                let mut exposed = Vec::new();
                for word in words {
                    for word in self.words(word, span)? {
                        let word = Exposed::parse(&word).map_err(|e| self.error(span, e))?;
                        exposed.extend(word.ports());
                    }
                }
                let text = format!("EXPOSE [{}]", exposed.join(" "));
                let ports = exposed.into_iter().map(|port| (port, Empty {}));
                self.config.exposed_ports.extend(ports);
                text
            }
            Kind::User(user) => {
                self.config.user = self.word(user, span)?;
                format!("USER {}", self.config.user)
            }
            Kind::Volume(paths) => {
                let mut volumes = Vec::new();
                for path in paths {
                    let path = self.word(path, span)?;
                    if path.is_empty() {
                        return Err(self.error(span, "VOLUME specified can not be an empty string"));
                    }
                    volumes.push(path);
                }
                let text = format!("VOLUME [{}]", volumes.join(" "));
                let volumes = volumes.into_iter().map(|path| (path, Empty {}));
                self.config.volumes.extend(volumes);
                text
            }
            Kind::Stopsignal(signal) => {
                let signal = self.word(signal, span)?;
                if !values::is_signal(&signal) {
                    return Err(self.error(span, format!("invalid signal: {signal}")));
                }
                self.config.stop_signal.clone_from(&signal);
                format!("STOPSIGNAL {signal}")
            }
            Kind::Cmd(command) => {
                let args = self.command(command);
                let text = format!("CMD {}", values::go_list(&args));
                self.config.cmd = Some(args).filter(|args| !args.is_empty());
                self.config.args_escaped = true;
                self.cmd_set = true;
                text
            }
            Kind::Entrypoint(command) => {
                let args = self.command(command);
                let text = format!("ENTRYPOINT {}", values::go_list(&args));
                self.config.entrypoint = Some(args).filter(|args| !args.is_empty());
                if !self.cmd_set {
                    self.config.cmd = None;
                }
                text
            }
            Kind::Shell(words) => {
                self.config.shell = Some(words.clone());
                format!("SHELL [{}]", words.join(" "))
            }
            Kind::Healthcheck(check) => {
                let health = values::health(check);
                let text = format!("HEALTHCHECK {}", values::go_health(&health));
                self.config.healthcheck = Some(health);
                text
            }
            Kind::Maintainer(author) => {
                self.author.clone_from(author);
                format!("MAINTAINER {author}")
            }
            Kind::Onbuild(trigger) => {
                self.config.on_build.push(trigger.text.clone());
                String::new() // not in the history
            }
        };
        Ok((Op::Config, history))
    }

    fn arg(
        &mut self,
        declaration: &corten_dockerfile::ArgDeclaration,
        span: Span,
    ) -> Result<(), BuildError> {
        let name = &declaration.name;
        let value = match (
            self.outline.settings.build_args.get(name),
            &declaration.default,
        ) {
            (Some(Some(given)), _) => Some(given.clone()),
            (_, Some(default)) => Some(self.word(default, span)?),
            (_, None) => self.outline.globals.get(name).cloned(),
        };
        if let Some(value) = value {
            self.scope.set_arg(name, &value);
        }
        // Without a value, too: the history of RUN names it.
        if !self.declared.contains(name) {
            self.declared.push(name.clone());
        }
        Ok(())
    }

    /// Expanded with what was in scope before the instruction.
    fn pairs(&self, pairs: &[KeyValue], span: Span) -> Result<Vec<(String, String)>, BuildError> {
        pairs
            .iter()
            .map(|pair| {
                let key = self.word(&pair.key, span)?;
                if key.is_empty() {
                    return Err(self.error(span, "names can not be blank"));
                }
                Ok((key, self.word(&pair.value, span)?))
            })
            .collect()
    }
}
