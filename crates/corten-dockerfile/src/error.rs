//! What is wrong with a Dockerfile, and where.

use std::fmt::Write as _;

use crate::instruction::Span;

/// Lines of context shown above and below the culprit (BuildKit shows as many).
const CONTEXT_LINES: usize = 3;

/// A Dockerfile that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {message}", line = span.start)]
pub struct DockerfileError {
    /// Name of the file, as the user knows it.
    pub file: String,
    /// The lines the instruction is on.
    pub span: Span,
    /// What is wrong.
    pub message: String,
    /// The part of the first line that is wrong, if it can be told.
    pub culprit: Option<String>,
}

impl DockerfileError {
    pub(crate) fn new(span: Span, message: impl Into<String>) -> Self {
        Self {
            file: "Dockerfile".to_owned(),
            span,
            message: message.into(),
            culprit: None,
        }
    }

    pub(crate) fn at(mut self, culprit: impl Into<String>) -> Self {
        self.culprit = Some(culprit.into());
        self
    }

    /// The same error for a file of another name.
    #[must_use]
    pub fn in_file(mut self, file: &str) -> Self {
        file.clone_into(&mut self.file);
        self
    }

    /// The lines of `source` around the error, with a caret under what is wrong.
    #[must_use]
    pub fn render(&self, source: &str) -> String {
        snippet(&self.file, source, self.span, self.culprit.as_deref())
    }
}

/// Shows the lines of a span with some around them, the culprits marked `>>>`, and a caret
/// under `culprit` (or under the first word of the first line).
#[must_use]
pub fn snippet(file: &str, source: &str, span: Span, culprit: Option<&str>) -> String {
    let lines: Vec<&str> = source.lines().collect();
    let (start, end) = (
        span.start.max(1) as usize,
        span.end.max(span.start).max(1) as usize,
    );
    let first = start.saturating_sub(CONTEXT_LINES).max(1);
    let last = (end + CONTEXT_LINES).min(lines.len());
    let rule = "-".repeat(20);
    let mut out = format!("{file}:{start}\n{rule}\n");
    for number in first..=last {
        let Some(line) = lines.get(number - 1) else {
            break;
        };
        let marked = (start..=end).contains(&number);
        let mark = if marked { ">>>" } else { "   " };
        let shown = line.replace('\t', "    ");
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "{}",
            format!("{number:>4} | {mark} {shown}").trim_end()
        );
        if number == start
            && let Some(caret) = caret(line, culprit)
        {
            let _ = writeln!(out, "     |     {caret}");
        }
    }
    out.push_str(&rule);
    out.push('\n');
    out
}

/// Spaces and carets under the culprit in a line, tabs counted as four.
fn caret(line: &str, culprit: Option<&str>) -> Option<String> {
    let culprit = culprit.filter(|c| !c.is_empty())?;
    let at = line.find(culprit)?;
    let width = |text: &str| {
        text.chars()
            .map(|c| if c == '\t' { 4 } else { 1 })
            .sum::<usize>()
    };
    Some(format!(
        "{}{}",
        " ".repeat(width(&line[..at])),
        "^".repeat(width(culprit).max(1))
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_the_line_with_a_caret() {
        let source = "FROM a\nRUN x\nFNTRYPOINT y\nRUN z\n";
        let error = DockerfileError::new(Span::line(3), "unknown instruction: FNTRYPOINT")
            .at("FNTRYPOINT")
            .in_file("app.Dockerfile");
        assert_eq!(
            error.to_string(),
            "app.Dockerfile:3: unknown instruction: FNTRYPOINT"
        );
        insta::assert_snapshot!(error.render(source), @r"
        app.Dockerfile:3
        --------------------
           1 |     FROM a
           2 |     RUN x
           3 | >>> FNTRYPOINT y
             |     ^^^^^^^^^^
           4 |     RUN z
        --------------------
        ");
    }
}
