//! Physical lines to logical ones: parser directives, comments, continuation lines,
//! here-documents.

use crate::error::DockerfileError;
use crate::expand::Lexer;
use crate::instruction::{Directives, Heredoc, Span};
use crate::node::Node;

/// Splits a Dockerfile into nodes, one for each instruction.
pub(crate) fn split(text: &str) -> Result<(Directives, Vec<Node>), DockerfileError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let (directives, first) = directives(&lines)?;
    let mut nodes = Vec::new();
    let mut comments = Vec::new();
    let mut at = first;
    while at < lines.len() {
        let start = number(at);
        let stripped = without_newline(lines[at]).trim_start();
        if stripped.starts_with('#') {
            note_comment(lines[at], &mut comments);
        }
        at += 1;
        if stripped.is_empty() || stripped.starts_with('#') {
            continue;
        }
        let (mut line, mut continued) = continuation(stripped, directives.escape);
        let mut empty_continuation = false;
        while continued && at < lines.len() {
            let next = without_newline(lines[at]);
            at += 1;
            if next.trim_start().starts_with('#') {
                continue;
            }
            if next.trim().is_empty() {
                empty_continuation = true;
                continue;
            }
            let (more, goes_on) = continuation(next, directives.escape);
            line.push_str(&more);
            continued = goes_on;
        }
        if line.trim().is_empty() {
            continue;
        }
        let span = Span {
            start,
            end: number(at - 1),
        };
        let mut node = Node::parse(&line, directives.escape, span)?;
        node.comments = std::mem::take(&mut comments);
        node.empty_continuation = empty_continuation;
        node.written_to = span.end;
        if node.may_have_heredocs() && line.contains("<<") {
            for mut heredoc in heredocs_of(&line) {
                at = read_heredoc(&lines, at, &mut heredoc, span)?;
                node.heredocs.push(heredoc);
            }
            node.span.end = number(at - 1);
        }
        nodes.push(node);
    }
    if nodes.is_empty() {
        return Err(DockerfileError::new(
            Span::line(1),
            "file with no instructions",
        ));
    }
    Ok((directives, nodes))
}

/// Keeps a comment for the instruction below it; an empty one separates.
fn note_comment(line: &str, comments: &mut Vec<String>) {
    // As BuildKit does, one character is taken off, whether it is the `#` or a blank before it.
    let mut chars = line.chars();
    chars.next();
    match chars.as_str().trim() {
        "" => comments.clear(),
        comment => comments.push(comment.to_owned()),
    }
}

/// The parser directives.
const KEYS: [&str; 3] = ["escape", "syntax", "check"];

/// The number of a line, from 1.
fn number(index: usize) -> u32 {
    u32::try_from(index + 1).unwrap_or(u32::MAX)
}

fn without_newline(line: &str) -> &str {
    let line = line.strip_suffix('\n').unwrap_or(line);
    line.strip_suffix('\r').unwrap_or(line)
}

impl Directives {
    /// What `# syntax=` names, and its line, however the rest of the text is malformed: it may
    /// not be a Dockerfile as we know it.
    #[must_use]
    pub fn syntax_of(text: &str) -> Option<(String, u32)> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let keys = text.lines().map_while(directive).enumerate();
        keys.take_while(|(_, (key, _))| KEYS.contains(&key.to_ascii_lowercase().as_str()))
            .find(|(_, (key, _))| key.eq_ignore_ascii_case("syntax"))
            .map(|(index, (_, value))| (value.to_owned(), number(index)))
    }
}

/// Reads `# key=value` comments at the top; tells how many lines they take.
fn directives(lines: &[&str]) -> Result<(Directives, usize), DockerfileError> {
    let mut found = Directives::default();
    let mut seen: Vec<String> = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some((key, value)) = directive(without_newline(line)) else {
            return Ok((found, index));
        };
        let key = key.to_ascii_lowercase();
        if !KEYS.contains(&key.as_str()) {
            // Any other comment ends the directives.
            return Ok((found, index));
        }
        if seen.contains(&key) {
            let message = format!("only one {key} parser directive can be used");
            return Err(DockerfileError::new(Span::line(number(index)), message).at(value));
        }
        match key.as_str() {
            "syntax" => found.syntax = Some(value.to_owned()),
            "check" => found.check = Some(value.to_owned()),
            _ => {
                found.escape = match value {
                    "\\" => '\\',
                    "`" => '`',
                    other => {
                        let message = format!("invalid escape token '{other}': must be ` or \\");
                        let error = DockerfileError::new(Span::line(number(index)), message);
                        return Err(error.at(other));
                    }
                };
            }
        }
        seen.push(key);
    }
    Ok((found, lines.len()))
}

fn directive(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.strip_prefix('#')?.split_once('=')?;
    let (key, value) = (key.trim(), value.trim());
    let named = key.starts_with(|c: char| c.is_ascii_alphabetic())
        && key.chars().all(|c| c.is_ascii_alphanumeric());
    (named && !value.is_empty()).then_some((key, value))
}

/// Takes a continuation character off the end. One that is itself escaped is none.
fn continuation(line: &str, escape: char) -> (String, bool) {
    let trimmed = line.trim_end_matches([' ', '\t']);
    match trimmed.strip_suffix(escape) {
        Some(rest) if !rest.ends_with(escape) => (rest.to_owned(), true),
        _ => (line.to_owned(), false),
    }
}

/// The here-documents a line announces, without content.
pub(crate) fn heredocs_of(line: &str) -> Vec<Heredoc> {
    let lexer = Lexer::new('\\')
        .raw_quotes(true)
        .raw_escapes(true)
        .keep_unset(true);
    let words = lexer.words(line, &|_| None).unwrap_or_default();
    words.iter().filter_map(|word| heredoc(word)).collect()
}

/// Parses one word as `<<NAME`, `<<-NAME`, `<<"NAME"`, perhaps behind a descriptor number.
pub(crate) fn heredoc(word: &str) -> Option<Heredoc> {
    let rest = word
        .trim_start_matches(|c: char| c.is_ascii_digit())
        .strip_prefix("<<")?;
    let (rest, chomp) = match rest.strip_prefix('-') {
        Some(rest) => (rest, true),
        None => (rest, false),
    };
    let rest = rest.trim_start();
    if rest.is_empty() || rest.contains('<') {
        return None;
    }
    let lexer = Lexer::new('\\').keep_unset(true);
    let one = |lexer: &Lexer| match lexer.words(rest, &|_| None).ok()?.as_slice() {
        [name] => Some(name.clone()),
        _ => None,
    };
    let name = one(&lexer)?;
    let expand = name == one(&lexer.raw_quotes(true))?;
    Some(Heredoc {
        name,
        expand,
        chomp,
        ..Heredoc::default()
    })
}

/// Reads the lines of a here-document; tells where the next line is.
fn read_heredoc(
    lines: &[&str],
    mut at: usize,
    heredoc: &mut Heredoc,
    span: Span,
) -> Result<usize, DockerfileError> {
    while let Some(line) = lines.get(at) {
        at += 1;
        let mut end = without_newline(line);
        if heredoc.chomp {
            end = end.trim_start_matches('\t');
        }
        if end == heredoc.name {
            return Ok(at);
        }
        heredoc.raw.push_str(line);
        heredoc.content.push_str(if heredoc.chomp {
            line.trim_start_matches('\t')
        } else {
            line
        });
    }
    let message = format!("unterminated heredoc: no line {:?} follows", heredoc.name);
    Err(DockerfileError::new(span, message).at(format!("<<{}", heredoc.name)))
}
