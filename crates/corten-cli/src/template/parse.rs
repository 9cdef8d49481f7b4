//! From tokens to a tree.

use std::iter::Peekable;
use std::vec::IntoIter;

use serde_json::Value;

use super::lex::{self, Kind, Piece, Token};
use super::{TemplateError, line_of};

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    Text(String),
    Print(Pipeline),
    /// Conditions with what follows from each, then what follows from none.
    If(Vec<(Pipeline, Vec<Node>)>, Vec<Node>),
    With(Vec<(Pipeline, Vec<Node>)>, Vec<Node>),
    Range(Pipeline, Vec<Node>, Vec<Node>),
    Break,
    Continue,
}

/// `$a, $b := command | command`
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pipeline {
    pub(super) variables: Vec<String>,
    /// `=` rather than `:=`.
    pub(super) assigns: bool,
    pub(super) commands: Vec<Vec<Operand>>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Operand {
    pub(super) kind: What,
    pub(super) at: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum What {
    Dot,
    Field(Vec<String>),
    Variable(String, Vec<String>),
    Function(String),
    Constant(Value),
    Nested(Pipeline, Vec<String>),
}

/// How deep parentheses and blocks may nest.
const MAX_DEPTH: usize = 64;

pub(super) fn parse(source: &str) -> Result<Vec<Node>, TemplateError> {
    let pieces = lex::split(source)?;
    let mut parser = Parser {
        source,
        pieces: pieces.into_iter().peekable(),
        depth: 0,
        loops: 0,
    };
    let (nodes, end) = parser.block()?;
    match end {
        End::Source => Ok(nodes),
        End::Closed(at) => Err(parser.error(at, "unexpected {{end}}")),
        End::Else(_, at) => Err(parser.error(at, "unexpected {{else}}")),
    }
}

enum End {
    Source,
    Closed(usize),
    /// The tokens after `else`.
    Else(Vec<Token>, usize),
}

struct Parser<'a> {
    source: &'a str,
    pieces: Peekable<IntoIter<Piece>>,
    depth: usize,
    loops: usize,
}

impl Parser<'_> {
    fn error(&self, at: usize, reason: impl Into<String>) -> TemplateError {
        TemplateError::Parse {
            line: line_of(self.source, at).0,
            reason: reason.into(),
        }
    }

    fn block(&mut self) -> Result<(Vec<Node>, End), TemplateError> {
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let (tokens, at) = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Piece::Action(tokens, at) => (tokens, at),
            };
            let keyword = match tokens.first() {
                Some(Token {
                    kind: Kind::Word(word),
                    ..
                }) => word.clone(),
                Some(_) => String::new(),
                None => return Err(self.error(at, "missing value for command")),
            };
            let rest = || tokens[1..].to_vec();
            nodes.push(match keyword.as_str() {
                "end" => return Ok((nodes, End::Closed(at))),
                "else" => return Ok((nodes, End::Else(rest(), at))),
                "if" | "with" => self.branches(&keyword, rest(), at)?,
                "range" => self.range(rest(), at)?,
                "break" | "continue" if self.loops == 0 => {
                    return Err(self.error(at, format!("{{{{{keyword}}}}} outside {{{{range}}}}")));
                }
                "break" => Node::Break,
                "continue" => Node::Continue,
                "define" | "template" | "block" => {
                    return Err(self.error(at, format!("{{{{{keyword}}}}} is not offered")));
                }
                _ => Node::Print(self.pipeline(tokens, at)?),
            });
        }
        Ok((nodes, End::Source))
    }

    fn nested_block(&mut self, at: usize) -> Result<(Vec<Node>, End), TemplateError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error(at, "too deeply nested"));
        }
        let block = self.block()?;
        self.depth -= 1;
        Ok(block)
    }

    fn branches(
        &mut self,
        keyword: &str,
        tokens: Vec<Token>,
        at: usize,
    ) -> Result<Node, TemplateError> {
        let make = |branches, otherwise| match keyword {
            "if" => Node::If(branches, otherwise),
            _ => Node::With(branches, otherwise),
        };
        let mut branches = Vec::new();
        let mut condition = self.pipeline(tokens, at)?;
        loop {
            let (body, end) = self.nested_block(at)?;
            branches.push((condition, body));
            match end {
                End::Closed(_) => return Ok(make(branches, Vec::new())),
                End::Source => return Err(self.error(at, "unexpected EOF")),
                End::Else(tokens, at) => match tokens.first().map(|t| &t.kind) {
                    None => {
                        let (otherwise, end) = self.nested_block(at)?;
                        return match end {
                            End::Closed(_) => Ok(make(branches, otherwise)),
                            End::Else(_, at) => Err(self.error(at, "expected end; found {{else}}")),
                            End::Source => Err(self.error(at, "unexpected EOF")),
                        };
                    }
                    Some(Kind::Word(word)) if word == keyword => {
                        condition = self.pipeline(tokens[1..].to_vec(), at)?;
                    }
                    Some(_) => return Err(self.error(at, "unexpected token after {{else}}")),
                },
            }
        }
    }

    fn range(&mut self, tokens: Vec<Token>, at: usize) -> Result<Node, TemplateError> {
        let pipeline = self.pipeline(tokens, at)?;
        self.loops += 1;
        let (body, end) = self.nested_block(at)?;
        self.loops -= 1;
        match end {
            End::Closed(_) => Ok(Node::Range(pipeline, body, Vec::new())),
            End::Else(tokens, at) if tokens.is_empty() => {
                let (otherwise, end) = self.nested_block(at)?;
                match end {
                    End::Closed(_) => Ok(Node::Range(pipeline, body, otherwise)),
                    _ => Err(self.error(at, "unexpected EOF")),
                }
            }
            _ => Err(self.error(at, "unexpected EOF")),
        }
    }

    fn pipeline(&mut self, tokens: Vec<Token>, at: usize) -> Result<Pipeline, TemplateError> {
        let mut tokens = tokens.into_iter().peekable();
        let pipeline = self.pipeline_of(&mut tokens, at, false)?.0;
        Ok(pipeline)
    }

    /// Parses up to the end of the action, or to `)`, whose fields are returned.
    fn pipeline_of(
        &mut self,
        tokens: &mut Peekable<IntoIter<Token>>,
        at: usize,
        nested: bool,
    ) -> Result<(Pipeline, Vec<String>), TemplateError> {
        let (variables, assigns) = self.declaration(tokens)?;
        let mut commands = Vec::new();
        let mut command: Vec<Operand> = Vec::new();
        let mut fields = None;
        while let Some(token) = tokens.next() {
            let at = token.at;
            let kind = match token.kind {
                Kind::Pipe if command.is_empty() => {
                    return Err(self.error(at, "missing value for command"));
                }
                Kind::Pipe => {
                    commands.push(std::mem::take(&mut command));
                    continue;
                }
                Kind::Close(after) if nested => {
                    fields = Some(after);
                    break;
                }
                Kind::Close(_) => return Err(self.error(at, "unexpected right paren")),
                Kind::Open => {
                    self.depth += 1;
                    if self.depth > MAX_DEPTH {
                        return Err(self.error(at, "too deeply nested"));
                    }
                    let (inner, after) = self.pipeline_of(tokens, at, true)?;
                    self.depth -= 1;
                    What::Nested(inner, after)
                }
                Kind::Dot => What::Dot,
                Kind::Field(path) => What::Field(path),
                Kind::Variable(name, path) => What::Variable(name, path),
                Kind::Text(text) => What::Constant(Value::String(text)),
                Kind::Number(number) => What::Constant(Value::Number(number)),
                Kind::Word(word) => match word.as_str() {
                    "true" => What::Constant(Value::Bool(true)),
                    "false" => What::Constant(Value::Bool(false)),
                    "nil" => What::Constant(Value::Null),
                    _ if super::funcs::exists(&word) => What::Function(word),
                    _ => return Err(self.error(at, format!("function {word:?} not defined"))),
                },
                Kind::Comma | Kind::Declare | Kind::Assign => {
                    return Err(self.error(at, "unexpected token in operand"));
                }
            };
            if !commands.is_empty() && command.is_empty() && matches!(kind, What::Constant(_)) {
                return Err(self.error(at, "non executable command in pipeline"));
            }
            command.push(Operand { kind, at });
        }
        if nested && fields.is_none() {
            return Err(self.error(at, "unclosed left paren"));
        }
        if command.is_empty() {
            return Err(self.error(at, "missing value for command"));
        }
        commands.push(command);
        Ok((
            Pipeline {
                variables,
                assigns,
                commands,
            },
            fields.unwrap_or_default(),
        ))
    }

    /// `$a :=`, `$a, $b :=`, `$a =`, or nothing.
    fn declaration(
        &mut self,
        tokens: &mut Peekable<IntoIter<Token>>,
    ) -> Result<(Vec<String>, bool), TemplateError> {
        let ahead: Vec<Kind> = tokens.clone().take(4).map(|t| t.kind).collect();
        let (names, used, assigns) = match ahead.as_slice() {
            [Kind::Variable(a, p), Kind::Declare, ..] if p.is_empty() => {
                (vec![a.clone()], 2, false)
            }
            [Kind::Variable(a, p), Kind::Assign, ..] if p.is_empty() => (vec![a.clone()], 2, true),
            [
                Kind::Variable(a, p),
                Kind::Comma,
                Kind::Variable(b, q),
                Kind::Declare,
            ] if p.is_empty() && q.is_empty() => (vec![a.clone(), b.clone()], 4, false),
            _ => return Ok((Vec::new(), false)),
        };
        for _ in 0..used {
            tokens.next();
        }
        Ok((names, assigns))
    }
}
