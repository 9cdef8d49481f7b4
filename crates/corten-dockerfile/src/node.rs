//! The untyped form of an instruction: keyword, flags, arguments. How arguments are split
//! depends on the keyword.

use std::fmt::Write as _;

use crate::error::DockerfileError;
use crate::instruction::{Heredoc, Span};
use crate::quote::quote;

/// One instruction, not yet understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The keyword as written.
    pub keyword: String,
    /// `--flag` words before the arguments.
    pub flags: Vec<String>,
    /// The arguments; for ENV and LABEL three for each pair: key, value, separator.
    pub args: Vec<String>,
    /// The arguments are a JSON array.
    pub json: bool,
    /// The instruction behind ONBUILD.
    pub child: Option<Box<Self>>,
    /// Its here-documents.
    pub heredocs: Vec<Heredoc>,
    /// Where it is.
    pub span: Span,
    /// The whole line.
    pub text: String,
    /// The comments above it, without their `#`, down from the last empty comment, the last
    /// instruction or the parser directives.
    pub comments: Vec<String>,
    /// An empty line was skipped where the instruction continues on the next one.
    pub empty_continuation: bool,
    /// The last line before its here-documents.
    pub written_to: u32,
}

/// White space between a keyword and its arguments, and between arguments.
fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\x0b' | '\x0c' | '\r')
}

impl Node {
    pub(crate) fn parse(line: &str, escape: char, span: Span) -> Result<Self, DockerfileError> {
        let trimmed = line.trim();
        let (keyword, rest) = match trimmed.find(is_blank) {
            Some(at) => (&trimmed[..at], trimmed[at..].trim_start_matches(is_blank)),
            None => (trimmed, ""),
        };
        let (flags, rest) = take_flags(rest);
        let mut node = Self {
            keyword: keyword.to_owned(),
            flags,
            args: Vec::new(),
            json: false,
            child: None,
            heredocs: Vec::new(),
            span,
            text: line.to_owned(),
            comments: Vec::new(),
            empty_continuation: false,
            written_to: span.end,
        };
        node.read_args(rest.trim(), escape)?;
        Ok(node)
    }

    fn read_args(&mut self, rest: &str, escape: char) -> Result<(), DockerfileError> {
        let upper = self.keyword.to_ascii_uppercase();
        match upper.as_str() {
            "CMD" | "ENTRYPOINT" | "RUN" | "SHELL" => self.json_or(rest, whole),
            "ADD" | "COPY" | "VOLUME" => self.json_or(rest, list),
            "EXPOSE" | "FROM" => {
                self.args = list(rest);
                Ok(())
            }
            "MAINTAINER" | "STOPSIGNAL" | "USER" | "WORKDIR" => {
                self.args = whole(rest);
                Ok(())
            }
            "ARG" => {
                self.args = words(rest, escape);
                Ok(())
            }
            "ENV" | "LABEL" => self.pairs(rest, escape, &upper),
            "HEALTHCHECK" => {
                let Some(kind) = rest.split_whitespace().next() else {
                    return Ok(());
                };
                self.json_or(rest[kind.len()..].trim_start(), whole)?;
                self.args.insert(0, kind.to_owned());
                Ok(())
            }
            "ONBUILD" => {
                if !rest.is_empty() {
                    self.child = Some(Box::new(Self::parse(rest, escape, self.span)?));
                }
                Ok(())
            }
            // Not an instruction: said when it is understood.
            _ => {
                self.args = vec![String::new()];
                Ok(())
            }
        }
    }

    fn json_or(
        &mut self,
        rest: &str,
        otherwise: fn(&str) -> Vec<String>,
    ) -> Result<(), DockerfileError> {
        let parsed = if rest.starts_with('[') {
            serde_json::from_str(rest).ok()
        } else {
            None
        };
        let Some(serde_json::Value::Array(values)) = parsed else {
            self.args = otherwise(rest);
            return Ok(());
        };
        self.json = true;
        for value in values {
            let serde_json::Value::String(text) = value else {
                let message =
                    "when using JSON array syntax, arrays must be comprised of strings only";
                return Err(DockerfileError::new(self.span, message).at(rest));
            };
            self.args.push(text);
        }
        Ok(())
    }

    fn pairs(&mut self, rest: &str, escape: char, keyword: &str) -> Result<(), DockerfileError> {
        let words = words(rest, escape);
        let Some(first) = words.first() else {
            return Ok(());
        };
        if !first.contains('=') {
            let Some(at) = rest.find(is_blank) else {
                let message = format!("{keyword} must have two arguments");
                return Err(DockerfileError::new(self.span, message).at(rest));
            };
            let value = rest[at..].trim_start_matches(is_blank);
            self.args = vec![rest[..at].to_owned(), value.to_owned(), String::new()];
            return Ok(());
        }
        for word in words {
            let Some((key, value)) = word.split_once('=') else {
                let message = format!("can't find = in {word:?}: must be of the form name=value");
                return Err(DockerfileError::new(self.span, message).at(word));
            };
            self.args
                .extend([key.to_owned(), value.to_owned(), "=".to_owned()]);
        }
        Ok(())
    }

    /// Whether a `<<` in the line may announce a here-document.
    pub(crate) fn may_have_heredocs(&self) -> bool {
        match self.keyword.to_ascii_uppercase().as_str() {
            "ADD" | "COPY" | "RUN" => !self.json,
            "ONBUILD" => self
                .child
                .as_ref()
                .is_some_and(|child| child.may_have_heredocs()),
            _ => false,
        }
    }

    /// An s-expression of the node, as BuildKit's parser dumps it.
    #[must_use]
    pub fn dump(&self) -> String {
        let mut out = self.keyword.to_lowercase();
        if !self.flags.is_empty() {
            let flags: Vec<String> = self.flags.iter().map(|f| quote(f)).collect();
            // Writing to a String cannot fail.
            let _ = write!(out, " [{}]", flags.join(" "));
        }
        for arg in &self.args {
            out.push(' ');
            out.push_str(&quote(arg));
        }
        if let Some(child) = &self.child {
            let _ = write!(out, " ({})", child.dump());
        }
        out
    }
}

/// One argument, unless empty.
fn whole(rest: &str) -> Vec<String> {
    if rest.is_empty() {
        Vec::new()
    } else {
        vec![rest.to_owned()]
    }
}

/// Arguments between blanks; quotes mean nothing.
fn list(rest: &str) -> Vec<String> {
    rest.split(is_blank)
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Words between white space, quotes and escapes respected and kept.
fn words(rest: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote: Option<char> = None;
    let mut chars = rest.chars();
    while let Some(c) = chars.next() {
        match quote {
            None if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            None if c == '\'' || c == '"' => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ => {}
        }
        if c == escape && quote != Some('\'') {
            // An escape at the very end is dropped.
            let Some(escaped) = chars.next() else {
                continue;
            };
            word.push(c);
            word.push(escaped);
        } else {
            word.push(c);
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// Takes words that begin with `--` off the front; `--` alone ends them.
fn take_flags(line: &str) -> (Vec<String>, &str) {
    let mut flags = Vec::new();
    let mut rest = line.trim_start();
    while rest.starts_with("--") {
        let (word, quoted, after) = flag_word(rest);
        rest = after;
        if word == "--" {
            break;
        }
        if quoted || !word.is_empty() {
            flags.push(word);
        }
        rest = rest.trim_start();
    }
    (flags, rest)
}

/// One word, its quotes and backslashes removed; whether it had quotes; what follows.
fn flag_word(line: &str) -> (String, bool, &str) {
    let mut word = String::new();
    let mut quoted = false;
    let mut quote = None;
    let mut chars = line.char_indices();
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (None, c) if c.is_whitespace() => return (word, quoted, &line[at..]),
            (None, '\'' | '"') => {
                quote = Some(c);
                quoted = true;
            }
            (Some(open), c) if c == open => quote = None,
            (_, '\\') => word.extend(chars.next().map(|(_, escaped)| escaped)),
            (_, c) => word.push(c),
        }
    }
    (word, quoted, "")
}
