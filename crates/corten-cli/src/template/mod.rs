//! Go templates, as far as `--format` needs them.
//!
//! Implements the parts of Go's `text/template` that people write after `--format`: fields,
//! pipelines, variables, `if`/`else if`/`else`, `with`, `range` (with `break`, `continue`),
//! comments, white-space trimming, the built-in functions and the ones Docker adds (`json`,
//! `join`, `split`, `lower`, `upper`, `title`, `pad`, `truncate`). Data are JSON values;
//! a key that is missing may be tested (`if .Health`) but not printed, unless the data's
//! [`Shape`] knows it: then it has its Go type's zero value. `define`, `template`
//! and `block` are not offered and are refused.

mod exec;
mod funcs;
mod lex;
mod parse;
mod printf;
mod shape;

use serde_json::{Map, Value};

pub use exec::display;
pub use shape::Shape;

/// A template that is wrong, or does not fit its data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// It does not parse.
    #[error("template parsing error: template: :{line}: {reason}")]
    Parse {
        /// Line, from 1.
        line: usize,
        /// Why.
        reason: String,
    },
    /// It does not fit its data.
    #[error(
        "template parsing error: template: :{line}:{column}: executing \"\" at <{what}>: {reason}"
    )]
    Execute {
        /// Line, from 1.
        line: usize,
        /// Byte in the line, from 0.
        column: usize,
        /// The expression.
        what: String,
        /// Why.
        reason: String,
    },
}

/// What a template is applied to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Data {
    /// The value of `.` at the top.
    pub root: Value,
    /// Fields that take an argument (`.Label "key"`): the possible answers by name.
    pub methods: Map<String, Value>,
    /// What type `.` has in Docker.
    pub shape: Shape,
}

impl From<Value> for Data {
    fn from(root: Value) -> Self {
        Self {
            root,
            ..Self::default()
        }
    }
}

/// A parsed template.
#[derive(Debug, Clone)]
pub struct Template {
    nodes: Vec<parse::Node>,
    source: String,
}

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    /// Where and why it does not parse.
    pub fn parse(source: &str) -> Result<Self, TemplateError> {
        let nodes = parse::parse(source)?;
        Ok(Self {
            nodes,
            source: source.to_owned(),
        })
    }

    /// Applies it to data.
    ///
    /// # Errors
    /// An expression that does not fit the data.
    pub fn render(&self, data: &Data) -> Result<String, TemplateError> {
        self.render_row(data.clone())
    }

    /// The same, of data that nobody needs any more: one of many rows.
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn render_row(&self, data: Data) -> Result<String, TemplateError> {
        exec::render(&self.nodes, &self.source, data, false)
    }

    /// Applies it to column headers: functions pass their argument through, as in Docker's
    /// `table` formats.
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn render_header(&self, headers: &Data) -> Result<String, TemplateError> {
        exec::render(&self.nodes, &self.source, headers.clone(), true)
    }
}

fn line_of(source: &str, offset: usize) -> (usize, usize) {
    let before = &source.as_bytes()[..offset.min(source.len())];
    let line = 1 + before.iter().filter(|b| **b == b'\n').count();
    let column = before.iter().rev().take_while(|b| **b != b'\n').count();
    (line, column)
}

#[cfg(test)]
mod tests;
