//! The syntax tree: stages of typed instructions, each with the lines it came from. Words are
//! as written (not expanded, quotes kept): what an instruction sees is known only when it is
//! its turn.

use std::time::Duration;

/// Lines of a file, from 1, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// First line.
    pub start: u32,
    /// Last line.
    pub end: u32,
}

impl Span {
    /// A single line.
    #[must_use]
    pub fn line(line: u32) -> Self {
        Self {
            start: line,
            end: line,
        }
    }
}

/// Parser directives: comments before everything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directives {
    /// `# escape=`: what escapes and continues lines, `\` or a backquote.
    pub escape: char,
    /// `# syntax=`: the frontend asked for.
    pub syntax: Option<String>,
    /// `# check=`: settings of the build checks.
    pub check: Option<String>,
}

impl Default for Directives {
    fn default() -> Self {
        Self {
            escape: '\\',
            syntax: None,
            check: None,
        }
    }
}

/// A parsed Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dockerfile {
    /// Its directives.
    pub directives: Directives,
    /// ARG instructions before the first FROM: the global scope.
    pub meta_args: Vec<Instruction>,
    /// The stages. None, if there are only ARGs: then there is nothing to build.
    pub stages: Vec<Stage>,
}

/// FROM and what follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// `AS name`, in lower case.
    pub name: Option<String>,
    /// What it builds on: an image, an earlier stage, or `scratch`.
    pub base: String,
    /// `--platform`.
    pub platform: Option<String>,
    /// Where FROM is.
    pub span: Span,
    /// FROM as written, on one line.
    pub text: String,
    /// The comments right above it.
    pub comments: Vec<String>,
    /// The instructions.
    pub instructions: Vec<Instruction>,
}

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction {
    /// What it says.
    pub kind: Kind,
    /// Where it is, here-documents included.
    pub span: Span,
    /// As written, continuation lines joined.
    pub text: String,
    /// The comments right above it.
    pub comments: Vec<String>,
}

impl Instruction {
    /// The keyword as written.
    #[must_use]
    pub fn keyword(&self) -> &str {
        self.text.split_whitespace().next().unwrap_or_default()
    }
}

/// What a comment says of the stage or build argument below it: `# NAME DESCRIPTION`.
#[must_use]
pub fn description<'a>(comments: &'a [String], name: &str) -> Option<&'a str> {
    comments
        .iter()
        .find_map(|comment| comment.strip_prefix(name)?.strip_prefix(' '))
        .filter(|_| !name.is_empty())
}

/// What `ONBUILD` leaves to builds on the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trigger {
    /// As an image's configuration has it, here-documents included.
    pub text: String,
    /// Parsed, if it can be: as with BuildKit, what is wrong with it fails the builds on it, not
    /// the one that leaves it.
    pub instruction: Option<Box<Instruction>>,
}

/// The instructions.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // named as in the Dockerfile reference
pub enum Kind {
    Add(CopyInstruction),
    Arg(Vec<ArgDeclaration>),
    Cmd(CommandLine),
    Copy(CopyInstruction),
    Entrypoint(CommandLine),
    Env(Vec<KeyValue>),
    Expose(Vec<String>),
    Healthcheck(Healthcheck),
    Label(Vec<KeyValue>),
    Maintainer(String),
    Onbuild(Trigger),
    Run(RunInstruction),
    Shell(Vec<String>),
    Stopsignal(String),
    User(String),
    Volume(Vec<String>),
    Workdir(String),
}

impl Kind {
    /// The keyword, in upper case.
    #[must_use]
    pub fn keyword(&self) -> &'static str {
        match self {
            Self::Add(_) => "ADD",
            Self::Arg(_) => "ARG",
            Self::Cmd(_) => "CMD",
            Self::Copy(_) => "COPY",
            Self::Entrypoint(_) => "ENTRYPOINT",
            Self::Env(_) => "ENV",
            Self::Expose(_) => "EXPOSE",
            Self::Healthcheck(_) => "HEALTHCHECK",
            Self::Label(_) => "LABEL",
            Self::Maintainer(_) => "MAINTAINER",
            Self::Onbuild(_) => "ONBUILD",
            Self::Run(_) => "RUN",
            Self::Shell(_) => "SHELL",
            Self::Stopsignal(_) => "STOPSIGNAL",
            Self::User(_) => "USER",
            Self::Volume(_) => "VOLUME",
            Self::Workdir(_) => "WORKDIR",
        }
    }
}

/// `name` or `name=value` of ARG.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArgDeclaration {
    /// The variable.
    pub name: String,
    /// Its default, as written.
    pub default: Option<String>,
}

/// `key=value` of ENV and LABEL, as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
    /// Written in the old form, `ENV key value`.
    pub legacy: bool,
}

/// A command in one of its two forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandLine {
    /// Given to the shell.
    Shell(String),
    /// Executed as it is.
    Exec(Vec<String>),
}

/// COPY and ADD.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CopyInstruction {
    /// What is copied, without the here-documents.
    pub sources: Vec<String>,
    /// Here-documents among the sources: files of their names.
    pub heredocs: Vec<Heredoc>,
    /// Where to.
    pub destination: String,
    /// `--from` (COPY).
    pub from: Option<String>,
    /// `--chown`.
    pub chown: Option<String>,
    /// `--chmod`.
    pub chmod: Option<String>,
    /// `--link`.
    pub link: bool,
    /// `--parents` (COPY).
    pub parents: bool,
    /// `--exclude`, every one.
    pub exclude: Vec<String>,
    /// `--keep-git-dir` (ADD).
    pub keep_git_dir: Option<bool>,
    /// `--checksum` (ADD).
    pub checksum: Option<String>,
    /// `--unpack` (ADD).
    pub unpack: Option<bool>,
}

/// A here-document.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Heredoc {
    /// The delimiter, without quotes.
    pub name: String,
    /// The lines up to the delimiter, with their ends; leading tabs removed if `chomp`.
    pub content: String,
    /// The lines as written.
    pub raw: String,
    /// Variables are expanded: the delimiter was not quoted.
    pub expand: bool,
    /// Written `<<-`.
    pub chomp: bool,
}

/// RUN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunInstruction {
    /// The command.
    pub command: CommandLine,
    /// Its here-documents.
    pub heredocs: Vec<Heredoc>,
    /// `--mount`, every one, as written.
    pub mounts: Vec<String>,
    /// `--network`, as written.
    pub network: Option<String>,
    /// `--security`, as written.
    pub security: Option<String>,
    /// `--device`, every one, as written.
    pub devices: Vec<String>,
}

impl RunInstruction {
    /// The here-document that is the whole command.
    #[must_use]
    pub fn lone_heredoc(&self) -> Option<&Heredoc> {
        let CommandLine::Shell(text) = &self.command else {
            return None;
        };
        let text = text.trim();
        match self.heredocs.as_slice() {
            [only] if text.starts_with("<<") && !text.contains(char::is_whitespace) => Some(only),
            _ => None,
        }
    }
}

/// HEALTHCHECK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Healthcheck {
    /// `NONE`: the base image's check is switched off.
    None,
    /// `CMD`.
    Cmd {
        /// The command.
        command: CommandLine,
        /// `--interval`.
        interval: Option<Duration>,
        /// `--timeout`.
        timeout: Option<Duration>,
        /// `--start-period`.
        start_period: Option<Duration>,
        /// `--start-interval`.
        start_interval: Option<Duration>,
        /// `--retries`.
        retries: Option<u32>,
    },
}
