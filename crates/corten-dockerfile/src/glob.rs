//! Matching of small glob patterns without backtracking: the pattern is a sequence of parts,
//! the set of positions reached is carried from part to part. Time is bounded by pattern ×
//! text, whatever a hostile pattern looks like.

use std::collections::BTreeSet;

/// One part of a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// This character.
    Char(char),
    /// Any character but `/`.
    AnyButSlash,
    /// Any number of characters but `/`.
    StarButSlash,
    /// Any number of characters.
    Everything,
    /// Nothing, or anything that ends in `/`.
    Directories,
    /// One of a set; `true`: none of it.
    Class(bool, Vec<(char, char)>),
    /// The beginning of the text.
    Start,
}

/// Whether the parts match the whole text.
pub(crate) fn matches(parts: &[Part], text: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    let mut reached = BTreeSet::from([0]);
    for part in parts {
        reached = step(part, &text, &reached);
        if reached.is_empty() {
            return false;
        }
    }
    reached.contains(&text.len())
}

fn step(part: &Part, text: &[char], from: &BTreeSet<usize>) -> BTreeSet<usize> {
    let mut to = BTreeSet::new();
    let one = |accept: &dyn Fn(char) -> bool| {
        from.iter()
            .filter(|&&i| text.get(i).is_some_and(|&c| accept(c)))
            .map(|i| i + 1)
            .collect()
    };
    match part {
        Part::Char(wanted) => return one(&|c| c == *wanted),
        Part::AnyButSlash => return one(&|c| c != '/'),
        Part::Class(negated, ranges) => {
            return one(&|c| ranges.iter().any(|&(a, b)| (a..=b).contains(&c)) != *negated);
        }
        Part::Start => to.extend(from.iter().filter(|&&i| i == 0)),
        Part::Everything => {
            if let Some(&first) = from.first() {
                to.extend(first..=text.len());
            }
        }
        Part::Directories => {
            to.extend(from);
            if let Some(&first) = from.first() {
                to.extend(
                    (first..text.len())
                        .filter(|&i| text[i] == '/')
                        .map(|i| i + 1),
                );
            }
        }
        Part::StarButSlash => {
            let mut covered = 0;
            for &start in from {
                let mut at = start.max(covered);
                to.insert(start);
                while text.get(at).is_some_and(|&c| c != '/') {
                    at += 1;
                    to.insert(at);
                }
                covered = at;
            }
        }
    }
    to
}

/// Reads a bracket expression whose `[` has been consumed. `None`: it is malformed.
pub(crate) fn class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<Part> {
    let negated = chars.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        let low = match chars.next()? {
            ']' if !ranges.is_empty() => return Some(Part::Class(negated, ranges)),
            ']' | '-' => return None,
            '\\' => chars.next()?,
            other => other,
        };
        let high = if chars.next_if_eq(&'-').is_some() {
            match chars.next()? {
                ']' | '-' => return None,
                '\\' => chars.next()?,
                other => other,
            }
        } else {
            low
        };
        if high < low {
            return None;
        }
        ranges.push((low, high));
    }
}

/// Parses a pattern of Go's `path.Match`, as COPY sources use it. `None`: malformed.
pub(crate) fn parse_path_match(pattern: &str) -> Option<Vec<Part>> {
    let mut parts = Vec::new();
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        parts.push(match c {
            '*' => Part::StarButSlash,
            '?' => Part::AnyButSlash,
            '[' => class(&mut chars)?,
            '\\' => Part::Char(chars.next()?),
            other => Part::Char(other),
        });
    }
    Some(parts)
}
