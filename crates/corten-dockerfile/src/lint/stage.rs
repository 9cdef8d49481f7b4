//! The instructions of a stage, in turn, with the variables each of them sees.

use std::collections::{BTreeSet, HashMap};

use super::rules::Rule;
use super::variables::{Variables, expand, nearest};
use super::{Findings, Options, Settings};
use crate::error::DockerfileError;
use crate::expand::{ExpandError, Lexer};
use crate::expose::Exposed;
use crate::ignore;
use crate::instruction::{
    CommandLine, CopyInstruction, Healthcheck, Instruction, KeyValue, Kind, Span,
};
use crate::mount::Mount;

/// Settings of the attestations, which are no environment.
const NO_VARIABLES: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

/// Words of names that look like secrets.
const SECRET: [&str; 10] = [
    "apikey",
    "auth",
    "credential",
    "credentials",
    "key",
    "password",
    "pword",
    "passwd",
    "secret",
    "token",
];

/// Words of names that are none after all.
const NO_SECRET: [&str; 3] = ["public", "file", "version"];

/// What a stage leaves to the stages built on it.
#[derive(Debug, Clone, Default)]
pub(super) struct State {
    pub(super) variables: Variables,
    /// ARGs, with or without a value.
    declared: BTreeSet<String>,
    /// A WORKDIR was seen.
    workdir: bool,
    /// There is a SHELL.
    pub(super) shell: bool,
    /// ONBUILD triggers of this stage alone.
    pub(super) triggers: Vec<Instruction>,
}

impl State {
    /// A stage on an image.
    pub(super) fn new(env: &[String], shell: bool) -> Self {
        let mut state = Self {
            shell,
            ..Self::default()
        };
        for entry in env {
            let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
            state.variables.set(key, value);
        }
        if state.variables.get("PATH").is_none() {
            state.variables.set("PATH", "");
        }
        state
    }
}

/// One walk through a stage.
pub(super) struct Walk<'a> {
    pub(super) lexer: &'a Lexer,
    pub(super) settings: &'a Settings<'a>,
    pub(super) globals: &'a Variables,
    pub(super) options: &'a Options,
    pub(super) findings: &'a mut Findings,
    pub(super) state: State,
    /// Instructions of which only the last counts, and where they were.
    pub(super) once: HashMap<&'static str, Span>,
}

/// The instruction at hand.
struct At<'a> {
    instruction: &'a Instruction,
    options: Options,
}

impl Walk<'_> {
    /// Checks an instruction.
    pub(super) fn visit(&mut self, instruction: &Instruction) -> Result<(), DockerfileError> {
        let at = At {
            instruction,
            options: self.options.with_comments(&instruction.comments),
        };
        let error = |message: String| DockerfileError::new(instruction.span, message);
        let failed = |e: ExpandError| error(e.to_string());
        match &instruction.kind {
            Kind::Env(pairs) => {
                let expanded = self.pairs(&at, pairs).map_err(failed)?;
                for (pair, (key, value)) in pairs.iter().zip(expanded) {
                    self.legacy(&at, pair);
                    self.secret(&at, "ENV", &key);
                    self.state.variables.set(&key, &value);
                }
            }
            Kind::Label(pairs) => {
                self.pairs(&at, pairs).map_err(failed)?;
                for pair in pairs {
                    self.legacy(&at, pair);
                }
            }
            Kind::Arg(_) => self.arg(&at).map_err(failed)?,
            Kind::Add(copy) => self.copy(&at, copy, true).map_err(failed)?,
            Kind::Copy(copy) => self.copy(&at, copy, false).map_err(failed)?,
            Kind::Run(run) => {
                for mount in &run.mounts {
                    Mount::parse(mount, &mut |word| self.word(&at, word)).map_err(&error)?;
                }
            }
            Kind::Workdir(path) => {
                let path = self.word(&at, path).map_err(failed)?;
                if !self.state.workdir && !path.starts_with('/') {
                    let detail = format!(
                        "Relative workdir {path:?} can have unexpected results if the base image \
                         changes"
                    );
                    self.add(&at, Rule::WorkdirRelativePath, detail);
                }
                self.state.workdir = true;
            }
            Kind::User(word) | Kind::Stopsignal(word) => {
                self.word(&at, word).map_err(failed)?;
            }
            Kind::Volume(words) => {
                for word in words {
                    self.word(&at, word).map_err(failed)?;
                }
            }
            Kind::Expose(words) => {
                for word in words {
                    let lookup = |name: &str| self.state.variables.get(name).map(str::to_owned);
                    let words = self.lexer.words(word, &lookup).map_err(failed)?;
                    for word in words {
                        self.expose(&at, &word).map_err(&error)?;
                    }
                }
            }
            Kind::Cmd(command) => self.command(&at, "CMD", command),
            Kind::Entrypoint(command) => self.command(&at, "ENTRYPOINT", command),
            Kind::Healthcheck(Healthcheck::Cmd { .. } | Healthcheck::None) => {
                self.only_once(&at, "HEALTHCHECK");
            }
            Kind::Shell(_) => self.state.shell = true,
            Kind::Onbuild(trigger) => {
                let parsed = trigger.instruction.as_deref().cloned();
                self.state.triggers.extend(parsed);
            }
            Kind::Maintainer(_) => {}
        }
        Ok(())
    }

    fn add(&mut self, at: &At<'_>, rule: Rule, detail: String) {
        self.findings
            .add(&at.options, rule, at.instruction.span, detail);
    }

    /// Expands a word, and complains of variables that are not there.
    fn word(&mut self, at: &At<'_>, word: &str) -> Result<String, ExpandError> {
        self.word_with(&self.lexer.clone(), at, word)
    }

    fn word_with(&mut self, lexer: &Lexer, at: &At<'_>, word: &str) -> Result<String, ExpandError> {
        let expanded = expand(lexer, word, &self.state.variables);
        for name in &expanded.unmatched {
            if self.state.declared.contains(name) || NO_VARIABLES.contains(&name.as_str()) {
                continue;
            }
            let hint = nearest(name, self.state.variables.names())
                .map_or_else(String::new, |near| format!(" (did you mean ${near}?)"));
            let detail = format!("Usage of undefined variable '${name}'{hint}");
            self.add(at, Rule::UndefinedVar, detail);
        }
        expanded.result
    }

    fn pairs(
        &mut self,
        at: &At<'_>,
        pairs: &[KeyValue],
    ) -> Result<Vec<(String, String)>, ExpandError> {
        pairs
            .iter()
            .map(|pair| Ok((self.word(at, &pair.key)?, self.word(at, &pair.value)?)))
            .collect()
    }

    fn legacy(&mut self, at: &At<'_>, pair: &KeyValue) {
        if pair.legacy {
            let keyword = at.instruction.keyword();
            let detail = format!(
                "\"{keyword} key=value\" should be used instead of legacy \"{keyword} key value\" \
                 format"
            );
            self.add(at, Rule::LegacyKeyValueFormat, detail);
        }
    }

    fn secret(&mut self, at: &At<'_>, keyword: &str, name: &str) {
        let lower = name.to_lowercase();
        let has = |words: &[&str]| lower.split('_').any(|part| words.contains(&part));
        if has(&SECRET) && !has(&NO_SECRET) {
            let detail = format!(
                "Do not use ARG or ENV instructions for sensitive data ({keyword} {name:?})"
            );
            self.add(at, Rule::SecretsUsedInArgOrEnv, detail);
        }
    }

    fn arg(&mut self, at: &At<'_>) -> Result<(), ExpandError> {
        let Kind::Arg(declarations) = &at.instruction.kind else {
            return Ok(());
        };
        for declaration in declarations {
            let name = &declaration.name;
            self.secret(at, "ARG", name);
            let value = match (self.settings.build_args.get(name), &declaration.default) {
                (Some(given), _) => Some(given.clone()),
                (None, Some(default)) => Some(self.word(at, default)?),
                (None, None) => self.globals.get(name).map(str::to_owned),
            };
            if let Some(value) = value
                && !NO_VARIABLES.contains(&name.as_str())
            {
                self.state.variables.set(name, &value);
            }
            self.state.declared.insert(name.clone());
        }
        Ok(())
    }

    fn copy(&mut self, at: &At<'_>, copy: &CopyInstruction, add: bool) -> Result<(), ExpandError> {
        for word in [&copy.chown, &copy.chmod, &copy.checksum]
            .into_iter()
            .flatten()
        {
            self.word(at, word)?;
        }
        let mut sources = Vec::new();
        for source in &copy.sources {
            sources.push(self.word(at, source)?);
        }
        self.word(at, &copy.destination)?;
        let lexer = Lexer::new('\\').quotes_are_text(true);
        for heredoc in copy.heredocs.iter().filter(|heredoc| heredoc.expand) {
            self.word_with(&lexer, at, &heredoc.content)?;
        }
        if copy.from.is_some() {
            return Ok(());
        }
        for source in sources.iter().filter(|source| !is_remote(source)) {
            self.ignored(at, source, add);
        }
        Ok(())
    }

    /// A file that `.dockerignore` leaves out cannot be copied. Where it makes exceptions,
    /// only the files themselves could tell.
    fn ignored(&mut self, at: &At<'_>, source: &str, add: bool) {
        let Some(rules) = self.settings.ignore.filter(|rules| !rules.has_exceptions()) else {
            return;
        };
        let path = ignore::clean(source);
        if matches!(path.as_str(), "." | "/") && !rules.leaves_nothing() {
            return;
        }
        if rules.ignores(&path) {
            let verb = if add { "Add" } else { "Copy" };
            let detail =
                format!("Attempting to {verb} file {path:?} that is excluded by .dockerignore");
            self.add(at, Rule::CopyIgnoredFile, detail);
        }
    }

    fn expose(&mut self, at: &At<'_>, word: &str) -> Result<(), String> {
        let exposed = Exposed::parse(word)?;
        if exposed.cased {
            let detail =
                format!("Defined protocol '{word}' in EXPOSE instruction should be lowercase");
            self.add(at, Rule::ExposeProtoCasing, detail);
        }
        if exposed.mapped {
            let detail = format!(
                "EXPOSE instruction should not define an IP address or host-port mapping, found \
                 '{word}'"
            );
            self.add(at, Rule::ExposeInvalidFormat, detail);
        }
        Ok(())
    }

    fn command(&mut self, at: &At<'_>, keyword: &'static str, command: &CommandLine) {
        self.only_once(at, keyword);
        if matches!(command, CommandLine::Shell(_)) && !self.state.shell {
            let keyword = at.instruction.keyword();
            let detail = format!(
                "JSON arguments recommended for {keyword} to prevent unintended behavior related \
                 to OS signals"
            );
            self.add(at, Rule::JsonArgsRecommended, detail);
        }
    }

    /// The one before is the one that does not count.
    fn only_once(&mut self, at: &At<'_>, keyword: &'static str) {
        let before = self.once.insert(keyword, at.instruction.span);
        if let Some(span) = before {
            let keyword = at.instruction.keyword();
            let detail = format!(
                "Multiple {keyword} instructions should not be used in the same stage because only \
                 the last one will be used"
            );
            self.findings.add(
                &at.options,
                Rule::MultipleInstructionsDisallowed,
                span,
                detail,
            );
        }
    }
}

/// A URL or repository: nothing of the context.
fn is_remote(source: &str) -> bool {
    ["http://", "https://", "git://", "ssh://", "git@"]
        .iter()
        .any(|scheme| source.starts_with(scheme))
}
