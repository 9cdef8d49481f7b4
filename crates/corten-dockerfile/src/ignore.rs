//! `.dockerignore`: which paths of a context are left out.
//!
//! The rules are those of moby/patternmatcher: patterns are cleaned like paths; a path is left
//! out when the last pattern that matches it *or one of its parent directories* does not begin
//! with `!`; `*` and `?` do not match `/`, `**` matches any number of directories.

use crate::glob::{self, Part};

/// A pattern that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IgnoreError {
    /// `!` with nothing behind it.
    #[error("illegal exclusion pattern: \"!\"")]
    EmptyExclusion,
    /// A bracket expression or an escape that does not end.
    #[error("syntax error in pattern: {0:?}")]
    Malformed(String),
}

/// Parsed and compiled patterns.
#[derive(Debug, Clone, Default)]
pub struct IgnoreRules {
    rules: Vec<Rule>,
}

/// Which of the rules match a directory or one above it.
#[derive(Debug, Clone)]
pub struct RulesAbove(Vec<bool>);

#[derive(Debug, Clone)]
struct Rule {
    /// Begins with `!`: what it matches is kept.
    keeps: bool,
    /// Without the `!`, cleaned.
    pattern: String,
    matcher: Matcher,
}

/// How a pattern is compared. The first three are not mere shortcuts: `**` at an end of an
/// otherwise literal pattern has these meanings.
#[derive(Debug, Clone)]
enum Matcher {
    Exact,
    Prefix(String),
    Suffix(String),
    Parts(Vec<Part>),
}

impl IgnoreRules {
    /// Parses the text of a `.dockerignore`.
    ///
    /// # Errors
    /// See [`IgnoreError`].
    pub fn parse(text: &str) -> Result<Self, IgnoreError> {
        Self::from_patterns(patterns(text))
    }

    /// From patterns that have been read already.
    ///
    /// # Errors
    /// See [`IgnoreError`].
    pub fn from_patterns<S: AsRef<str>>(
        patterns: impl IntoIterator<Item = S>,
    ) -> Result<Self, IgnoreError> {
        let mut rules = Vec::new();
        for pattern in patterns {
            let pattern = pattern.as_ref().trim();
            if pattern.is_empty() {
                continue;
            }
            let cleaned = clean(pattern);
            let (keeps, pattern) = match cleaned.strip_prefix('!') {
                Some("") => return Err(IgnoreError::EmptyExclusion),
                Some(rest) => (true, rest.to_owned()),
                None => (false, cleaned),
            };
            if glob::parse_path_match(&pattern).is_none() {
                return Err(IgnoreError::Malformed(pattern));
            }
            let matcher = compile(&pattern);
            rules.push(Rule {
                keeps,
                pattern,
                matcher,
            });
        }
        Ok(Self { rules })
    }

    /// Whether there is no rule at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether any pattern begins with `!`.
    #[must_use]
    pub fn has_exceptions(&self) -> bool {
        self.rules.iter().any(|rule| rule.keeps)
    }

    /// Whether a pattern leaves out everything in the root of the context.
    #[must_use]
    pub fn leaves_nothing(&self) -> bool {
        let everything = |rule: &Rule| matches!(rule.pattern.as_str(), "*" | "**" | "**/*");
        self.rules
            .iter()
            .any(|rule| !rule.keeps && everything(rule))
    }

    /// Whether a path (relative to the context, `/` between its parts) is left out.
    #[must_use]
    pub fn ignores(&self, path: &str) -> bool {
        if self.rules.is_empty() {
            return false;
        }
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        self.ignores_in(&self.above(parent), path)
    }

    /// What the rules say of a directory and those above it, for all that is in it: to find it
    /// out for each file anew would take a multiple of the time.
    #[must_use]
    pub fn above(&self, directory: &str) -> RulesAbove {
        if directory.is_empty() {
            return RulesAbove(vec![false; self.rules.len()]);
        }
        let parents = directory
            .char_indices()
            .filter(|&(_, c)| c == '/')
            .map(|(i, _)| &directory[..i]);
        let all: Vec<&str> = parents.chain([directory]).collect();
        let matches = |rule: &Rule| all.iter().any(|directory| rule.matches(directory));
        RulesAbove(self.rules.iter().map(matches).collect())
    }

    /// As [`ignores`](Self::ignores), of something in a directory whose [`above`](Self::above)
    /// is known.
    #[must_use]
    pub fn ignores_in(&self, above: &RulesAbove, path: &str) -> bool {
        let mut ignored = false;
        for (rule, above) in self.rules.iter().zip(&above.0) {
            // A rule can only change what is not so yet.
            if rule.keeps == ignored && (*above || rule.matches(path)) {
                ignored = !rule.keeps;
            }
        }
        ignored
    }

    /// Whether anything below a directory that is left out may be kept, so that it must be
    /// looked into. May say yes once too often.
    #[must_use]
    pub fn may_keep_below(&self, directory: &str) -> bool {
        self.rules
            .iter()
            .any(|rule| rule.keeps && rule.may_match_below(directory))
    }
}

impl Rule {
    fn matches(&self, path: &str) -> bool {
        match &self.matcher {
            Matcher::Exact => path == self.pattern,
            Matcher::Prefix(prefix) => path.starts_with(prefix.as_str()),
            Matcher::Suffix(suffix) => {
                path.ends_with(suffix.as_str()) || suffix.strip_prefix('/') == Some(path)
            }
            Matcher::Parts(parts) => glob::matches(parts, path),
        }
    }

    fn may_match_below(&self, directory: &str) -> bool {
        let mut wanted = self.pattern.split('/');
        for name in directory.split('/') {
            let Some(pattern) = wanted.next() else {
                return true;
            };
            if pattern.contains("**") {
                return true;
            }
            if !glob::parse_path_match(pattern).is_some_and(|parts| glob::matches(&parts, name)) {
                return false;
            }
        }
        true
    }
}

/// The patterns of a `.dockerignore`: comments and empty lines gone, paths cleaned.
#[must_use]
pub fn patterns(text: &str) -> Vec<String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut found = Vec::new();
    for line in text.lines() {
        if line.starts_with('#') {
            continue;
        }
        let line = line.trim();
        let (mark, pattern) = match line.strip_prefix('!') {
            Some(rest) => ("!", rest.trim()),
            None => ("", line),
        };
        if mark.is_empty() && pattern.is_empty() {
            continue;
        }
        let cleaned = if pattern.is_empty() {
            String::new()
        } else {
            clean(pattern)
        };
        let relative = match cleaned.strip_prefix('/') {
            Some(rest) if !rest.is_empty() => rest,
            _ => &cleaned,
        };
        found.push(format!("{mark}{relative}"));
    }
    found
}

/// Go's `path.Clean`: no empty parts, no `.`, `..` resolved lexically, no slash at the end.
pub(crate) fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&last) if last != ".." => {
                    parts.pop();
                }
                _ if rooted => {}
                _ => parts.push(".."),
            },
            other => parts.push(other),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

fn compile(pattern: &str) -> Matcher {
    #[derive(PartialEq)]
    enum Type {
        Exact,
        Prefix,
        Suffix,
        Parts,
    }
    let mut kind = Type::Exact;
    let mut parts = Vec::new();
    let mut chars = pattern.chars().peekable();
    let mut first = true;
    while let Some(c) = chars.next() {
        match c {
            '*' if chars.next_if_eq(&'*').is_some() => {
                chars.next_if_eq(&'/');
                if chars.peek().is_some() {
                    parts.push(Part::Directories);
                    kind = Type::Parts;
                } else if kind == Type::Exact {
                    kind = Type::Prefix;
                } else {
                    parts.push(Part::Everything);
                    kind = Type::Parts;
                }
                if first {
                    kind = Type::Suffix;
                }
            }
            '*' => {
                parts.push(Part::StarButSlash);
                kind = Type::Parts;
            }
            '?' => {
                parts.push(Part::AnyButSlash);
                kind = Type::Parts;
            }
            '\\' => {
                parts.push(Part::Char(chars.next().unwrap_or('\\')));
                kind = Type::Parts;
            }
            '[' => {
                // Checked by the caller to be well-formed.
                parts.extend(glob::class(&mut chars));
                kind = Type::Parts;
            }
            '^' => parts.push(Part::Start),
            other => parts.push(Part::Char(other)),
        }
        first = false;
    }
    match kind {
        Type::Exact => Matcher::Exact,
        Type::Prefix => Matcher::Prefix(pattern.strip_suffix("**").unwrap_or(pattern).to_owned()),
        Type::Suffix => Matcher::Suffix(pattern.get(2..).unwrap_or_default().to_owned()),
        Type::Parts => Matcher::Parts(parts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_match_wins_and_parents_count() {
        let cases: &[(&str, &str, bool)] = &[
            ("*.md\n!README.md", "README.md", false),
            ("*.md\n!README.md", "other.md", true),
            ("*.md", "docs/a.md", false),
            ("**/*.md", "docs/deep/a.md", true),
            ("node_modules", "node_modules/a/b", true),
            (
                "node_modules\n!node_modules/keep",
                "node_modules/keep/x",
                false,
            ),
            ("# comment\n/abs\n", "abs/x", true),
            ("docs/**", "docs", false),
            ("docs/**", "docs/a", true),
            ("**", "anything", true),
            ("a[b-d]", "ac", true),
            (".", "anything", false),
        ];
        for (text, path, ignored) in cases {
            let rules = IgnoreRules::parse(text).unwrap();
            assert_eq!(rules.ignores(path), *ignored, "{text:?} {path}");
        }
    }

    #[test]
    fn looks_below_only_where_something_may_be_kept() {
        let rules = IgnoreRules::parse("*\n!src/*.rs\n!**/keep").unwrap();
        assert!(rules.may_keep_below("src"));
        let rules = IgnoreRules::parse("*\n!src/lib/*.rs\n").unwrap();
        assert!(rules.may_keep_below("src") && rules.may_keep_below("src/lib"));
        assert!(!rules.may_keep_below("target"));
        assert_eq!(
            IgnoreRules::parse("!").unwrap_err(),
            IgnoreError::EmptyExclusion
        );
        assert!(IgnoreRules::parse("[a").is_err());
    }
}
