//! Text and actions, and the tokens of an action.

use super::{TemplateError, line_of};

/// A piece of a template.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Piece {
    /// Copied as it is.
    Text(String),
    /// `{{ … }}`; the tokens and where it begins.
    Action(Vec<Token>, usize),
}

/// A token and where it begins.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) at: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    Dot,
    /// `.a.b`
    Field(Vec<String>),
    /// `$x.a.b`; the name without `$`.
    Variable(String, Vec<String>),
    Word(String),
    Text(String),
    Number(serde_json::Number),
    Open,
    /// `)` and the fields after it: `(index .A 0).B`.
    Close(Vec<String>),
    Pipe,
    Comma,
    Declare,
    Assign,
}

pub(super) fn split(source: &str) -> Result<Vec<Piece>, TemplateError> {
    let mut pieces = Vec::new();
    let mut at = 0;
    let mut trim_next = false;
    loop {
        let rest = &source[at..];
        let open = rest.find("{{");
        let mut text = &rest[..open.unwrap_or(rest.len())];
        if trim_next {
            text = text.trim_start();
        }
        let Some(open) = open else {
            push_text(&mut pieces, text);
            return Ok(pieces);
        };
        let mut start = at + open + 2;
        if marker_after(&source[start..]) {
            text = text.trim_end();
            start += 1;
        }
        push_text(&mut pieces, text);
        let (tokens, end, trimmed) = action(source, start)?;
        if let Some(tokens) = tokens {
            pieces.push(Piece::Action(tokens, at + open));
        }
        trim_next = trimmed;
        at = end;
    }
}

fn push_text(pieces: &mut Vec<Piece>, text: &str) {
    if !text.is_empty() {
        pieces.push(Piece::Text(text.to_owned()));
    }
}

/// `{{-` followed by white space.
fn marker_after(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next() == Some('-') && chars.next().is_some_and(char::is_whitespace)
}

/// Tokens up to `}}`; where it ends; whether the text after it is trimmed. A comment has no
/// tokens.
fn action(source: &str, start: usize) -> Result<(Option<Vec<Token>>, usize, bool), TemplateError> {
    let error = |at: usize, reason: String| TemplateError::Parse {
        line: line_of(source, at).0,
        reason,
    };
    let trimmed = source[start..].trim_start();
    if trimmed.starts_with("/*") {
        let end = source[start..]
            .find("*/")
            .ok_or_else(|| error(start, "unclosed comment".into()))?;
        let after = &source[start + end + 2..];
        let close = after
            .find("}}")
            .ok_or_else(|| error(start, "comment ends before closing delimiter".into()))?;
        let trims = match after[..close].trim() {
            "" => false,
            "-" => true,
            _ => return Err(error(start, "comment ends before closing delimiter".into())),
        };
        return Ok((None, start + end + 2 + close + 2, trims));
    }
    let mut lexer = Lexer {
        source,
        at: start,
        tokens: Vec::new(),
    };
    loop {
        let rest = &source[lexer.at..];
        let skipped = rest.len() - rest.trim_start().len();
        let spaced = skipped > 0;
        lexer.at += skipped;
        let rest = &source[lexer.at..];
        if rest.starts_with("}}") {
            return Ok((Some(lexer.tokens), lexer.at + 2, false));
        }
        if spaced && rest.starts_with("-}}") {
            return Ok((Some(lexer.tokens), lexer.at + 3, true));
        }
        if rest.is_empty() {
            return Err(error(start, "unclosed action".into()));
        }
        lexer.token().map_err(|reason| error(lexer.at, reason))?;
    }
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
    tokens: Vec<Token>,
}

impl Lexer<'_> {
    fn rest(&self) -> &str {
        &self.source[self.at..]
    }

    fn push(&mut self, kind: Kind, length: usize) {
        self.tokens.push(Token { kind, at: self.at });
        self.at += length;
    }

    fn word(&self, from: usize) -> String {
        self.rest()[from..]
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect()
    }

    /// `.a.b` at `from`; the fields and how long they are.
    fn fields(&self, from: usize) -> (Vec<String>, usize) {
        let mut fields = Vec::new();
        let mut end = from;
        while self.rest()[end..].starts_with('.') {
            let field = self.word(end + 1);
            if field.is_empty() {
                break;
            }
            end += 1 + field.len();
            fields.push(field);
        }
        (fields, end)
    }

    fn token(&mut self) -> Result<(), String> {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else {
            return Ok(());
        };
        match first {
            '|' => self.push(Kind::Pipe, 1),
            ',' => self.push(Kind::Comma, 1),
            '(' => self.push(Kind::Open, 1),
            ')' => {
                let (fields, end) = self.fields(1);
                self.push(Kind::Close(fields), end);
            }
            ':' if rest.starts_with(":=") => self.push(Kind::Declare, 2),
            '=' => self.push(Kind::Assign, 1),
            '"' => return self.quoted(),
            '`' => {
                let end = rest[1..]
                    .find('`')
                    .ok_or("unterminated raw quoted string")?;
                self.push(Kind::Text(rest[1..=end].to_owned()), end + 2);
            }
            '\'' => {
                let mut chars = rest[1..].chars();
                match (chars.next(), chars.next()) {
                    (Some(c), Some('\'')) if c != '\\' => {
                        self.push(Kind::Number(u32::from(c).into()), 2 + c.len_utf8());
                    }
                    _ => return Err("malformed character constant".into()),
                }
            }
            '$' => {
                let name = self.word(1);
                let (fields, end) = self.fields(1 + name.len());
                self.push(Kind::Variable(name, fields), end);
            }
            '.' if !rest[1..].starts_with(|c: char| c.is_ascii_digit()) => {
                let (fields, end) = self.fields(0);
                if fields.is_empty() {
                    self.push(Kind::Dot, 1);
                } else {
                    self.push(Kind::Field(fields), end);
                }
            }
            c if c.is_ascii_digit() || matches!(c, '+' | '-' | '.') => return self.number(),
            c if c.is_alphabetic() || c == '_' => {
                let word = self.word(0);
                let length = word.len();
                self.push(Kind::Word(word), length);
                // A word has no fields: `{{json.}}` is not `{{json .}}`.
                if self.rest().starts_with('.') {
                    return Err("unexpected <.> in operand".into());
                }
            }
            c => return Err(format!("unexpected {c:?} in command")),
        }
        Ok(())
    }

    fn number(&mut self) -> Result<(), String> {
        let text: String = self
            .rest()
            .char_indices()
            .take_while(|(i, c)| {
                c.is_alphanumeric() || matches!(c, '.' | '_') || (*i == 0 && matches!(c, '+' | '-'))
            })
            .map(|(_, c)| c)
            .collect();
        let bad = || format!("bad number syntax: {text:?}");
        let plain = text.trim_start_matches('+');
        let number = match plain.parse::<i64>() {
            Ok(n) => n.into(),
            Err(_) => match plain
                .strip_prefix("0x")
                .map(|hex| i64::from_str_radix(hex, 16))
            {
                Some(Ok(n)) => n.into(),
                _ => plain
                    .parse()
                    .ok()
                    .and_then(serde_json::Number::from_f64)
                    .ok_or_else(bad)?,
            },
        };
        self.push(Kind::Number(number), text.len());
        Ok(())
    }

    fn quoted(&mut self) -> Result<(), String> {
        let unterminated = || "unterminated quoted string".to_owned();
        let mut value = String::new();
        let mut chars = self.rest().char_indices().skip(1);
        while let Some((index, c)) = chars.next() {
            match c {
                '"' => {
                    self.push(Kind::Text(value), index + 1);
                    return Ok(());
                }
                '\n' => return Err(unterminated()),
                '\\' => {
                    let (_, escaped) = chars.next().ok_or_else(unterminated)?;
                    value.push(match escaped {
                        'n' => '\n',
                        't' => '\t',
                        'r' => '\r',
                        'a' => '\x07',
                        'b' => '\x08',
                        'f' => '\x0c',
                        'v' => '\x0b',
                        '\\' | '"' | '\'' => escaped,
                        'x' => code(&mut chars, 2)?,
                        'u' => code(&mut chars, 4)?,
                        'U' => code(&mut chars, 8)?,
                        other => return Err(format!("unknown escape sequence: \\{other}")),
                    });
                }
                c => value.push(c),
            }
        }
        Err(unterminated())
    }
}

fn code(chars: &mut impl Iterator<Item = (usize, char)>, digits: usize) -> Result<char, String> {
    let text: String = chars.take(digits).map(|(_, c)| c).collect();
    u32::from_str_radix(&text, 16)
        .ok()
        .and_then(char::from_u32)
        .ok_or_else(|| format!("malformed escape sequence: {text}"))
}
