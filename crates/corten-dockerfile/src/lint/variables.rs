//! Variables while a file is checked: their values, and who asked for what.

use std::cell::RefCell;
use std::collections::BTreeSet;

use crate::expand::{ExpandError, Lexer};

/// Longer names have no name like them.
const LONGEST: usize = 256;

/// Variables in the order they were set.
#[derive(Debug, Clone, Default)]
pub(crate) struct Variables(Vec<(String, String)>);

impl Variables {
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        match self.0.iter_mut().find(|(key, _)| key == name) {
            Some(entry) => value.clone_into(&mut entry.1),
            None => self.0.push((name.to_owned(), value.to_owned())),
        }
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }
}

/// A word that was expanded.
pub(crate) struct Expanded {
    pub(crate) result: Result<String, ExpandError>,
    /// Variables that were asked for and known.
    pub(crate) matched: BTreeSet<String>,
    /// Variables that were asked for and not known.
    pub(crate) unmatched: BTreeSet<String>,
}

pub(crate) fn expand(lexer: &Lexer, word: &str, variables: &Variables) -> Expanded {
    let matched = RefCell::new(BTreeSet::new());
    let unmatched = RefCell::new(BTreeSet::new());
    let result = lexer.word(word, &|name| {
        let value = variables.get(name);
        let seen = if value.is_some() {
            &matched
        } else {
            &unmatched
        };
        seen.borrow_mut().insert(name.to_owned());
        value.map(str::to_owned)
    });
    Expanded {
        result,
        matched: matched.into_inner(),
        unmatched: unmatched.into_inner(),
    }
}

/// The name that was probably meant: less than three edits away, the first of the nearest.
/// None, if `word` itself is among them.
pub(crate) fn nearest<'a>(word: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut best: Option<(usize, &str)> = None;
    let length = word.chars().count();
    for name in names {
        if name == word {
            return None;
        }
        // Too far in any case; and nobody mistypes a name of a page.
        if length > LONGEST || name.chars().count().abs_diff(length) > 2 {
            continue;
        }
        let distance = strsim::levenshtein(word, name);
        if distance < best.map_or(3, |(distance, _)| distance) {
            best = Some((distance, name));
        }
    }
    best.map(|(_, name)| name)
}
