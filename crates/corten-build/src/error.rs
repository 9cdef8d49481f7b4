//! Why a build fails. `Display` is one line, as BuildKit words it; [`BuildError::report`] is
//! what goes above that line: the step's output and the Dockerfile's lines around the culprit.

use std::path::PathBuf;
use std::sync::Arc;

use corten_dockerfile::{DockerfileError, Span, quote};

use crate::BoxError;

/// Where in which Dockerfile.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its name, as the user knows it.
    pub file: Arc<str>,
    /// Its text.
    pub text: Arc<str>,
    /// The instruction's lines.
    pub span: Span,
}

impl Place {
    /// The lines around the instruction, the instruction itself marked.
    #[must_use]
    pub fn snippet(&self) -> String {
        corten_dockerfile::snippet(&self.file, &self.text, self.span, None)
    }
}

/// Why a build fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The build was cancelled.
    #[error("{}", crate::progress::CANCELLED)]
    Cancelled,
    /// The Dockerfile cannot be found or read.
    #[error("failed to read dockerfile: open {path}: {}", reason(.source))]
    Dockerfile {
        /// Where it was looked for.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The Dockerfile has nothing to build.
    #[error("the Dockerfile cannot be empty")]
    NothingToBuild,
    /// The Dockerfile cannot be understood.
    #[error("dockerfile parse error on line {line}: {message}", line = error.span.start, message = error.message)]
    Syntax {
        /// What is wrong, and where.
        error: Box<DockerfileError>,
        /// The Dockerfile's text.
        text: Arc<str>,
    },
    /// The context cannot be used.
    #[error("cannot read the build context {path}: {source}", path = path.display())]
    Context {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// `--target` names no stage.
    #[error("target stage \"{target}\" could not be found{hint}")]
    NoSuchTarget {
        /// What was asked for.
        target: String,
        /// ` (did you mean …?)`, or nothing.
        hint: String,
    },
    /// Rules are not kept, and that is to be an error.
    #[error("{0}")]
    Checks(String),
    /// The request contradicts itself or names what cannot be.
    #[error("{0}")]
    Invalid(String),
    /// A cache cannot be written.
    #[error("failed to export cache to {place}: {source}")]
    CacheExport {
        /// Where to.
        place: String,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// A base image cannot be had.
    #[error("{name}: failed to resolve source metadata for {image}: {source}{hint}")]
    Image {
        /// Its name, as short as it can be.
        name: String,
        /// Its full name.
        image: String,
        /// ` (did you mean …?)`, or nothing.
        hint: String,
        /// The FROM or COPY that names it.
        place: Box<Place>,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// An instruction that cannot be carried out.
    #[error("{message}")]
    Instruction {
        /// The instruction.
        place: Box<Place>,
        /// Why.
        message: String,
    },
    /// A file of the context changed between the look at it and the reading: somebody edits.
    #[error("failed to copy files: /{path}: the file changed while it was read", path = path.display())]
    Changed {
        /// The instruction.
        place: Box<Place>,
        /// The file.
        path: PathBuf,
    },
    /// A RUN step's command failed.
    #[error("process {} did not complete successfully: {}", quote(process), ending(*.code))]
    Process {
        /// The instruction.
        place: Box<Place>,
        /// The step's name, as progress shows it.
        step: String,
        /// Its command line.
        process: String,
        /// Its exit status; 128 and the signal's number where it was killed.
        code: i64,
        /// The end of what it wrote.
        output: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] corten_store::StoreError),
    /// The database.
    #[error(transparent)]
    Database(#[from] corten_db::DbError),
    /// Something on this machine.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A part of the builder itself broke down.
    #[error("internal error: {0}")]
    Internal(String),
}

/// An I/O error as Go words it: in lower case, without its number.
pub(crate) fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}

/// `exit code: 1`, as BuildKit ends the line.
fn ending(code: i64) -> String {
    format!("exit code: {code}")
}

impl From<rusqlite::Error> for BuildError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error.into())
    }
}

impl BuildError {
    /// Several lines for a terminal, without the one of `Display`. Empty when there is nothing
    /// to add.
    #[must_use]
    pub fn report(&self) -> String {
        match self {
            Self::Syntax { error, text } => error.render(text),
            Self::Image { place, .. }
            | Self::Instruction { place, .. }
            | Self::Changed { place, .. } => place.snippet(),
            Self::Process {
                place,
                step,
                process,
                code,
                output,
            } => {
                let mut report = format!("------\n > {step}:\n");
                for line in output.lines() {
                    report.push_str(line);
                    report.push('\n');
                }
                report.push_str("------\n");
                report.push_str(&place.snippet());
                if let Some(hint) = crate::hints::of_command(process, *code, output) {
                    report.push_str(&format!("hint: {hint}\n"));
                }
                report
            }
            _ => String::new(),
        }
    }

    /// The exit status of the RUN step that failed.
    #[must_use]
    pub fn exit_code(&self) -> Option<i64> {
        match self {
            Self::Process { code, .. } => Some(*code),
            _ => None,
        }
    }

    pub(crate) fn at(place: &Place, message: impl std::fmt::Display) -> Self {
        Self::Instruction {
            place: Box::new(place.clone()),
            message: message.to_string(),
        }
    }

    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_process_is_reported_as_buildkit_does() {
        let mut error = BuildError::Process {
            place: Box::new(Place {
                file: "Dockerfile".into(),
                text: "FROM a\nCOPY . .\n\nRUN false\n".into(),
                span: Span::line(4),
            }),
            step: "[3/3] RUN false".into(),
            process: "/bin/sh -c false".into(),
            code: 1,
            output: "no\n".into(),
        };
        assert_eq!(
            error.to_string(),
            "process \"/bin/sh -c false\" did not complete successfully: exit code: 1"
        );
        assert_eq!(error.exit_code(), Some(1));
        let BuildError::Process { process, .. } = &mut error else {
            unreachable!()
        };
        *process = "/bin/sh -c set -e\necho \"one\"\n".into();
        assert_eq!(
            error.to_string(),
            r#"process "/bin/sh -c set -e\necho \"one\"\n" did not complete successfully: exit code: 1"#
        );
        insta::assert_snapshot!(error.report(), @r"
        ------
         > [3/3] RUN false:
        no
        ------
        Dockerfile:4
        --------------------
           1 |     FROM a
           2 |     COPY . .
           3 |
           4 | >>> RUN false
        --------------------
        ");
    }
}
