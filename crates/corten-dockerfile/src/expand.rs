//! Variable substitution, quote removal and word splitting, as the Dockerfile reference
//! ("Environment replacement") describes and BuildKit's shell lexer does:
//! `$x ${x} ${x:-w} ${x-w} ${x:+w} ${x+w} ${x:?m} ${x?m} ${x#p} ${x##p} ${x%p} ${x%%p}
//! ${x/p/r} ${x//p/r}`.
//!
//! One known oddity of BuildKit is kept, because EXPOSE depends on it: when a word is split
//! ([`Lexer::words`]), a `${x…w}` form forgets what came before it in the same word.

/// Why a word cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpandError {
    /// A quote is not closed.
    #[error("unexpected end of statement while looking for matching {0}-quote")]
    UnclosedQuote(&'static str),
    /// `${` without its end.
    #[error("syntax error: missing '{0}' in ${{}}")]
    Unclosed(char),
    /// `${}`, `${:…}`, `${{…}`.
    #[error("syntax error: bad substitution")]
    BadSubstitution,
    /// `${x@…}`.
    #[error("unsupported modifier ({0}) in substitution")]
    Modifier(String),
    /// A pattern with a `\` that escapes nothing.
    #[error("invalid pattern ({0}) in substitution: a backslash must escape *, ? or \\")]
    Pattern(String),
    /// `${x?message}` of an unset variable.
    #[error("{name}: {message}")]
    Required {
        /// The variable.
        name: String,
        /// The Dockerfile's message, or a general one.
        message: String,
    },
}

/// The lexer, with its settings.
#[derive(Debug, Clone)]
pub struct Lexer {
    escape: char,
    raw_quotes: bool,
    raw_escapes: bool,
    keep_unset: bool,
    quotes_are_text: bool,
}

impl Lexer {
    /// A lexer for a Dockerfile whose escape character is this.
    #[must_use]
    pub fn new(escape: char) -> Self {
        Self {
            escape,
            raw_quotes: false,
            raw_escapes: false,
            keep_unset: false,
            quotes_are_text: false,
        }
    }

    /// Quotes mean nothing: here-documents are expanded so.
    #[must_use]
    pub fn quotes_are_text(mut self, yes: bool) -> Self {
        self.quotes_are_text = yes;
        self
    }

    /// Keeps quotes in the result.
    #[must_use]
    pub fn raw_quotes(mut self, yes: bool) -> Self {
        self.raw_quotes = yes;
        self
    }

    /// Keeps escape characters in the result.
    #[must_use]
    pub fn raw_escapes(mut self, yes: bool) -> Self {
        self.raw_escapes = yes;
        self
    }

    /// Leaves references to variables that are not set as they are.
    #[must_use]
    pub fn keep_unset(mut self, yes: bool) -> Self {
        self.keep_unset = yes;
        self
    }

    /// Expands a word to one string.
    ///
    /// # Errors
    /// See [`ExpandError`].
    pub fn word(
        &self,
        word: &str,
        lookup: &dyn Fn(&str) -> Option<String>,
    ) -> Result<String, ExpandError> {
        Ok(self.run(word, lookup)?.0)
    }

    /// Expands a word and splits it at unquoted white space.
    ///
    /// # Errors
    /// See [`ExpandError`].
    pub fn words(
        &self,
        word: &str,
        lookup: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Vec<String>, ExpandError> {
        Ok(self.run(word, lookup)?.1)
    }

    fn run(
        &self,
        word: &str,
        lookup: &dyn Fn(&str) -> Option<String>,
    ) -> Result<(String, Vec<String>), ExpandError> {
        let mut run = Run {
            settings: self,
            raw_escapes: self.raw_escapes,
            lookup,
            input: word.chars().collect(),
            at: 0,
            word: String::new(),
        };
        run.until(None, self.raw_escapes)
    }
}

/// One expansion under way.
struct Run<'a> {
    settings: &'a Lexer,
    raw_escapes: bool,
    lookup: &'a dyn Fn(&str) -> Option<String>,
    input: Vec<char>,
    at: usize,
    /// The word being collected. Shared by nested expansions (see the module's header).
    word: String,
}

/// The words of one level.
#[derive(Default)]
struct Words {
    done: Vec<String>,
    inside: bool,
}

impl Words {
    fn raw(&mut self, word: &mut String, text: &str) {
        word.push_str(text);
        self.inside = true;
    }

    fn split(&mut self, word: &mut String, text: &str) {
        for c in text.chars() {
            if !c.is_whitespace() {
                word.push(c);
                self.inside = true;
            } else if self.inside && !word.is_empty() {
                self.done.push(std::mem::take(word));
                self.inside = false;
            }
        }
    }

    fn finish(mut self, word: &mut String) -> Vec<String> {
        if !word.is_empty() {
            self.done.push(std::mem::take(word));
        }
        self.done
    }
}

impl Run<'_> {
    fn peek(&self) -> Option<char> {
        self.input.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += 1;
        Some(c)
    }

    fn get(&self, name: &str) -> Option<String> {
        (self.lookup)(name)
    }

    /// Reads up to an unescaped, unquoted `stop` (or to the end).
    fn until(
        &mut self,
        stop: Option<char>,
        raw_escapes: bool,
    ) -> Result<(String, Vec<String>), ExpandError> {
        let outer = std::mem::replace(&mut self.raw_escapes, raw_escapes);
        let result = self.until_inner(stop);
        self.raw_escapes = outer;
        result
    }

    fn until_inner(&mut self, stop: Option<char>) -> Result<(String, Vec<String>), ExpandError> {
        let mut result = String::new();
        let mut words = Words::default();
        self.word.clear();
        while let Some(c) = self.peek() {
            if Some(c) == stop {
                self.at += 1;
                return Ok((result, words.finish(&mut self.word)));
            }
            match c {
                '$' => {
                    let value = self.dollar()?;
                    result.push_str(&value);
                    words.split(&mut self.word, &value);
                }
                '\'' | '"' if !self.settings.quotes_are_text => {
                    let value = if c == '"' {
                        self.double_quoted()?
                    } else {
                        self.single_quoted()?
                    };
                    result.push_str(&value);
                    words.raw(&mut self.word, &value);
                }
                // What follows `<<` is its word, blanks in between or not.
                '<' if self.input.get(self.at + 1) == Some(&'<') => {
                    let blanks = self.input[self.at + 2..].iter();
                    let length = 2 + blanks.take_while(|c| c.is_whitespace()).count();
                    let value: String = self.input[self.at..self.at + length].iter().collect();
                    self.at += length;
                    result.push_str(&value);
                    words.raw(&mut self.word, &value);
                }
                _ if c == self.settings.escape => {
                    self.at += 1;
                    if self.raw_escapes {
                        result.push(c);
                        words.raw(&mut self.word, c.encode_utf8(&mut [0; 4]));
                    }
                    let Some(escaped) = self.next() else { break };
                    result.push(escaped);
                    words.raw(&mut self.word, escaped.encode_utf8(&mut [0; 4]));
                }
                _ => {
                    self.at += 1;
                    result.push(c);
                    words.split(&mut self.word, c.encode_utf8(&mut [0; 4]));
                }
            }
        }
        match stop {
            Some(stop) => Err(ExpandError::Unclosed(stop)),
            None => Ok((result, words.finish(&mut self.word))),
        }
    }

    fn single_quoted(&mut self) -> Result<String, ExpandError> {
        self.at += 1;
        let mut result = String::new();
        let raw = self.settings.raw_quotes;
        if raw {
            result.push('\'');
        }
        loop {
            match self.next() {
                None => return Err(ExpandError::UnclosedQuote("single")),
                Some('\'') => {
                    if raw {
                        result.push('\'');
                    }
                    return Ok(result);
                }
                Some(c) => result.push(c),
            }
        }
    }

    fn double_quoted(&mut self) -> Result<String, ExpandError> {
        self.at += 1;
        let mut result = String::new();
        let raw = self.settings.raw_quotes;
        if raw {
            result.push('"');
        }
        loop {
            match self.peek() {
                None => return Err(ExpandError::UnclosedQuote("double")),
                Some('"') => {
                    self.at += 1;
                    if raw {
                        result.push('"');
                    }
                    return Ok(result);
                }
                Some('$') => result.push_str(&self.dollar()?),
                Some(c) if c == self.settings.escape => {
                    self.at += 1;
                    if self.raw_escapes {
                        result.push(c);
                    }
                    match self.peek() {
                        None => {}
                        Some(next) if next == '"' || next == '$' || next == c => {
                            self.at += 1;
                            result.push(next);
                        }
                        // Escapes nothing: it stands for itself.
                        Some(_) => result.push(c),
                    }
                }
                Some(c) => {
                    self.at += 1;
                    result.push(c);
                }
            }
        }
    }

    fn name(&mut self) -> String {
        let start = self.at;
        match self.peek() {
            Some(c) if c.is_numeric() => {
                while self.peek().is_some_and(char::is_numeric) {
                    self.at += 1;
                }
            }
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => self.at += 1,
            _ => {
                while self.peek().is_some_and(|c| c.is_alphanumeric() || c == '_') {
                    self.at += 1;
                }
            }
        }
        self.input[start..self.at].iter().collect()
    }

    fn dollar(&mut self) -> Result<String, ExpandError> {
        self.at += 1;
        if self.peek() != Some('{') {
            if self.peek().is_none() {
                return Ok("$".to_owned());
            }
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(match self.get(&name) {
                Some(value) => value,
                None if self.settings.keep_unset => format!("${name}"),
                None => String::new(),
            });
        }
        self.at += 1;
        match self.peek() {
            None => return Err(ExpandError::Unclosed('}')),
            Some('{' | '}' | ':') => return Err(ExpandError::BadSubstitution),
            Some(_) => {}
        }
        let name = self.name();
        match self.next() {
            Some('}') => Ok(match self.get(&name) {
                Some(value) => value,
                None if self.settings.keep_unset => format!("${{{name}}}"),
                None => String::new(),
            }),
            Some('/') => self.replace(&name),
            Some(':') => {
                let operator = self.next();
                self.modified(&name, operator, true)
            }
            operator => self.modified(&name, operator, false),
        }
    }

    /// `${name<operator>word}`, with `:` before the operator if `empty_is_unset`.
    fn modified(
        &mut self,
        name: &str,
        operator: Option<char>,
        empty_is_unset: bool,
    ) -> Result<String, ExpandError> {
        let colon = if empty_is_unset { ":" } else { "" };
        let unsupported = |c: Option<char>| {
            ExpandError::Modifier(format!(
                "{colon}{}",
                c.map(String::from).unwrap_or_default()
            ))
        };
        let pattern = matches!(operator, Some('#' | '%'));
        let operator = match operator {
            Some(c @ ('+' | '-' | '?' | '#' | '%')) if !(pattern && empty_is_unset) => c,
            other => return Err(unsupported(other)),
        };
        let (word, _) = self.until(Some('}'), pattern)?;
        let value = self.get(name);
        if value.is_none() && self.settings.keep_unset {
            return Ok(format!("${{{name}{colon}{operator}{word}}}"));
        }
        let useful = value
            .as_deref()
            .is_some_and(|v| !(empty_is_unset && v.is_empty()));
        let current = value.clone().unwrap_or_default();
        match operator {
            '-' => Ok(if useful { current } else { word }),
            '+' => Ok(if useful { word } else { String::new() }),
            '?' if useful => Ok(current),
            '?' => {
                let default = match value {
                    None => "is not allowed to be unset",
                    Some(_) => "is not allowed to be empty",
                };
                let message = if word.is_empty() {
                    default.to_owned()
                } else {
                    word
                };
                Err(ExpandError::Required {
                    name: name.to_owned(),
                    message,
                })
            }
            end => {
                let (pattern, greedy) = match word.strip_prefix(end) {
                    Some(rest) => (rest, true),
                    None => (word.as_str(), false),
                };
                let mut pattern = ShellPattern::parse(pattern)?;
                let mut text: Vec<char> = current.chars().collect();
                if end == '%' {
                    pattern.0.reverse();
                    text.reverse();
                }
                let mut rest = match pattern.match_at(&text, 0, greedy) {
                    Some(matched) => text.split_off(matched),
                    None => text,
                };
                if end == '%' {
                    rest.reverse();
                }
                Ok(rest.into_iter().collect())
            }
        }
    }

    /// `${name/pattern/replacement}`, the first `/` consumed.
    fn replace(&mut self, name: &str) -> Result<String, ExpandError> {
        let all = self.peek() == Some('/');
        if all {
            self.at += 1;
        }
        let (pattern, _) = self.until(Some('/'), true)?;
        let (replacement, _) = self.until(Some('}'), true)?;
        let value = self.get(name);
        if value.is_none() && self.settings.keep_unset {
            let slash = if all { "//" } else { "/" };
            return Ok(format!("${{{name}{slash}{pattern}/{replacement}}}"));
        }
        let text: Vec<char> = value.unwrap_or_default().chars().collect();
        let pattern = ShellPattern::parse(&pattern)?;
        let mut result = String::new();
        let mut at = 0;
        let mut replaced = false;
        while at <= text.len() {
            let matched = if replaced && !all {
                None
            } else {
                pattern.match_at(&text, at, true)
            };
            match matched {
                Some(end) if end > at => {
                    result.push_str(&replacement);
                    replaced = true;
                    at = end;
                    continue;
                }
                Some(_) => {
                    result.push_str(&replacement);
                    replaced = true;
                }
                None => {}
            }
            result.extend(text.get(at));
            at += 1;
        }
        Ok(result)
    }
}

/// A pattern of `#`, `%` and `/`: `*`, `?` and characters, escaped with `\`.
struct ShellPattern(Vec<Piece>);

#[derive(Clone, Copy, PartialEq)]
enum Piece {
    Star,
    Any,
    Char(char),
}

impl ShellPattern {
    fn parse(pattern: &str) -> Result<Self, ExpandError> {
        let mut pieces = Vec::new();
        let mut chars = pattern.chars().peekable();
        while let Some(c) = chars.next() {
            pieces.push(match c {
                '*' => Piece::Star,
                '?' => Piece::Any,
                '\\' => match chars.next() {
                    // Escaped for the sake of `${}` only.
                    Some(c @ ('}' | '/' | '*' | '?' | '\\')) => Piece::Char(c),
                    _ => return Err(ExpandError::Pattern(pattern.to_owned())),
                },
                other => Piece::Char(other),
            });
        }
        Ok(Self(pieces))
    }

    /// Where a match that begins at `start` ends: the longest if `greedy`, else the shortest.
    fn match_at(&self, text: &[char], start: usize, greedy: bool) -> Option<usize> {
        // `reached[i]`: a match of the pieces so far may end at i.
        let mut reached = vec![false; text.len() + 1];
        *reached.get_mut(start)? = true;
        for piece in &self.0 {
            let mut next = vec![false; text.len() + 1];
            let mut star = false;
            for at in start..=text.len() {
                match piece {
                    Piece::Star => {
                        star |= reached[at];
                        next[at] = star;
                        star &= text.get(at) != Some(&'\n');
                    }
                    Piece::Any | Piece::Char(_) if reached[at] => {
                        let Some(&c) = text.get(at) else { continue };
                        if matches!(piece, Piece::Char(wanted) if *wanted == c)
                            || (*piece == Piece::Any && c != '\n')
                        {
                            next[at + 1] = true;
                        }
                    }
                    _ => {}
                }
            }
            reached = next;
        }
        if greedy {
            reached.iter().rposition(|&r| r)
        } else {
            reached.iter().position(|&r| r)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lookup(name: &str) -> Option<String> {
        match name {
            "FOO" => Some("foo"),
            "EMPTY" => Some(""),
            "ABC" => Some("abcabcabc"),
            "X" => Some("a b  c"),
            _ => None,
        }
        .map(str::to_owned)
    }

    #[test]
    fn expands_every_form() {
        let lexer = Lexer::new('\\');
        for (word, expected) in [
            ("$FOO-bar", "foo-bar"),
            ("${FOO}bar", "foobar"),
            ("${NOPE:-x$FOO}", "xfoo"),
            ("${EMPTY-x}|${EMPTY:-x}", "|x"),
            ("${FOO:+x}|${NOPE+x}", "x|"),
            ("${ABC#a*c}|${ABC##a*c}", "abcabc|"),
            ("${ABC%b*}|${ABC%%b*}", "abcabca|a"),
            ("${ABC/b/X}|${ABC//b/X}", "aXcabcabc|aXcaXcaXc"),
            (r#"'$FOO' "$FOO" \$FOO"#, "$FOO foo $FOO"),
            ("$", "$"),
        ] {
            assert_eq!(lexer.word(word, &lookup).unwrap(), expected, "{word}");
        }
        assert_eq!(
            lexer.words("$X 'y z'", &lookup).unwrap(),
            ["a", "b", "c", "y z"]
        );
    }

    #[test]
    fn refuses_what_is_broken() {
        let lexer = Lexer::new('\\');
        for word in [
            "${FOO",
            "${}",
            "'x",
            "\"x",
            "${FOO:x}",
            "${NOPE:?why}",
            "${FOO/a}",
        ] {
            assert!(lexer.word(word, &lookup).is_err(), "{word}");
        }
        let error = lexer.word("${NOPE?why}", &lookup).unwrap_err();
        assert_eq!(error.to_string(), "NOPE: why");
    }

    proptest! {
        #[test]
        fn never_panics(word in r#"[$ {}:#%/?*a-cFO'"\\+-]{0,24}"#, raw: bool) {
            let lexer = Lexer::new('\\').raw_quotes(raw).raw_escapes(raw).keep_unset(raw);
            let _ = lexer.words(&word, &lookup);
        }

        #[test]
        fn plain_text_stays(word in "[a-z0-9/._-]{0,20}") {
            prop_assert_eq!(Lexer::new('\\').word(&word, &lookup).unwrap(), word);
        }
    }
}
