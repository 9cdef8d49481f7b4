//! `--name[=value]` words of an instruction, each of which must be asked for: what is left
//! over in the end is unknown, and an error.

use crate::error::DockerfileError;
use crate::instruction::Span;
use crate::parse::suggest;

/// The flags of one instruction.
pub(crate) struct Flags {
    span: Span,
    given: Vec<(String, Option<String>)>,
    known: Vec<&'static str>,
}

impl Flags {
    pub(crate) fn new(words: &[String], span: Span) -> Self {
        let given = words
            .iter()
            .map(|word| {
                let word = word.strip_prefix("--").unwrap_or(word);
                match word.split_once('=') {
                    Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                    None => (word.to_owned(), None),
                }
            })
            .collect();
        Self {
            span,
            given,
            known: Vec::new(),
        }
    }

    fn error(&self, message: String, name: &str) -> DockerfileError {
        DockerfileError::new(self.span, message).at(format!("--{name}"))
    }

    fn take(&mut self, name: &'static str) -> Vec<Option<String>> {
        self.known.push(name);
        let (taken, left) = std::mem::take(&mut self.given)
            .into_iter()
            .partition(|(given, _)| given == name);
        self.given = left;
        let taken: Vec<(String, Option<String>)> = taken;
        taken.into_iter().map(|(_, value)| value).collect()
    }

    /// Every value of a flag that may be repeated.
    pub(crate) fn values(&mut self, name: &'static str) -> Result<Vec<String>, DockerfileError> {
        let taken = self.take(name);
        taken
            .into_iter()
            .map(|value| {
                value.ok_or_else(|| self.error(format!("missing a value on flag: --{name}"), name))
            })
            .collect()
    }

    /// The value of a flag that may be given once.
    pub(crate) fn value(&mut self, name: &'static str) -> Result<Option<String>, DockerfileError> {
        let mut values = self.values(name)?;
        if values.len() > 1 {
            return Err(self.error(format!("duplicate flag specified: {name}"), name));
        }
        Ok(values.pop())
    }

    /// A switch: `--name`, `--name=true`, `--name=false`.
    pub(crate) fn switch(&mut self, name: &'static str) -> Result<Option<bool>, DockerfileError> {
        let mut taken = self.take(name);
        if taken.len() > 1 {
            return Err(self.error(format!("duplicate flag specified: {name}"), name));
        }
        match taken.pop() {
            None => Ok(None),
            Some(None) => Ok(Some(true)),
            Some(Some(value)) => match value.to_ascii_lowercase().as_str() {
                "true" => Ok(Some(true)),
                "false" => Ok(Some(false)),
                other => Err(self.error(
                    format!("expecting boolean value for flag {name}, not: {other}"),
                    name,
                )),
            },
        }
    }

    /// Everything must have been asked for by now.
    pub(crate) fn finish(self) -> Result<(), DockerfileError> {
        let Some((name, _)) = self.given.first() else {
            return Ok(());
        };
        let hint = match suggest(name, &self.known) {
            Some(known) => format!(" (did you mean {known}?)"),
            None => String::new(),
        };
        Err(self.error(format!("unknown flag: --{name}{hint}"), name))
    }
}
