//! Errors of commands and the exit codes they lead to.

use std::io;
use std::path::PathBuf;

use crate::client::ClientError;
use crate::opts::OptError;
use crate::template::TemplateError;

/// Why a command failed. The text is what the user reads.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// A flag's value.
    #[error(transparent)]
    Option(#[from] OptError),
    /// The engine, or the way to it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A `--format` template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// Docker's configuration or a credential helper.
    #[error(transparent)]
    Config(#[from] corten_registry::RegistryError),
    /// A file of ours.
    #[error("{action} {}: {}", path.display(), reason(source))]
    File {
        /// What was tried: `open`, `write`.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Standard streams or a connection.
    #[error("{}", reason(.0))]
    Io(#[from] io::Error),
    /// Something the user should know.
    #[error("{0}")]
    Message(String),
    /// A signal asked for the end; what goes on in this process is to be tidied up.
    #[error("{message}")]
    Interrupted {
        /// The signal's number.
        signal: u8,
        /// What to print.
        message: String,
    },
    /// A particular exit code; an empty message is not printed.
    #[error("{message}")]
    Status {
        /// The process's exit code.
        code: u8,
        /// What to print.
        message: String,
    },
}

impl CliError {
    /// An error that is only a text.
    pub fn message(text: impl Into<String>) -> Self {
        Self::Message(text.into())
    }

    /// A silent exit with a code.
    #[must_use]
    pub fn status(code: u8) -> Self {
        Self::Status {
            code,
            message: String::new(),
        }
    }

    /// A template that cannot be read, where Docker tells that from other errors by the code.
    #[must_use]
    pub(crate) fn unreadable(error: TemplateError) -> Self {
        Self::Status {
            code: 64,
            message: error.to_string(),
        }
    }

    /// The process's exit code.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Status { code, .. } => *code,
            Self::Interrupted { signal, .. } => 128 + signal,
            _ => 1,
        }
    }

    /// Whether nobody reads our output any more; nothing to complain about then.
    #[must_use]
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// What a command returns.
pub(crate) type Result<T = ()> = std::result::Result<T, CliError>;

/// An operating system error in the form people know (`no such file or directory`).
#[must_use]
pub(crate) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut chars = text.chars();
    match (error.raw_os_error(), chars.next()) {
        (Some(_), Some(first)) => first.to_lowercase().chain(chars).collect(),
        _ => text.to_owned(),
    }
}
