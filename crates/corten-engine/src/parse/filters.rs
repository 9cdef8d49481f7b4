//! Docker's list filters.

use std::collections::HashMap;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::bad;
use crate::error::EngineError;
use crate::{Filters, when};

/// Refuses fields that the listing does not know.
pub(crate) fn check(filters: &Filters, known: &[&str]) -> Result<(), EngineError> {
    match filters
        .keys()
        .find(|field| !known.contains(&field.as_str()))
    {
        Some(field) => Err(bad(format!("invalid filter '{field}'"))),
        None => Ok(()),
    }
}

/// The values of a field; empty when it was not given.
pub(crate) fn values<'a>(filters: &'a Filters, field: &str) -> &'a [String] {
    filters.get(field).map_or(&[], Vec::as_slice)
}

/// Whether any value of the field passes, or none was given.
pub(crate) fn any(filters: &Filters, field: &str, passes: impl FnMut(&String) -> bool) -> bool {
    let values = values(filters, field);
    values.is_empty() || values.iter().any(passes)
}

/// Whether labels have everything the field `label` asks for (`key` or `key=value`), and
/// nothing of what `label!` excludes.
pub(crate) fn labels(filters: &Filters, labels: &HashMap<String, String>) -> bool {
    let has = |wanted: &String| match wanted.split_once('=') {
        None => labels.contains_key(wanted),
        Some((key, value)) => labels.get(key).is_some_and(|v| v == value),
    };
    values(filters, "label").iter().all(has) && !values(filters, "label!").iter().any(has)
}

/// A boolean field; `None` when it was not given.
pub(crate) fn flag(filters: &Filters, field: &str) -> Result<Option<bool>, EngineError> {
    match values(filters, field) {
        [] => Ok(None),
        [value] => match value.to_ascii_lowercase().as_str() {
            "1" | "true" | "t" => Ok(Some(true)),
            "0" | "false" | "f" => Ok(Some(false)),
            _ => Err(bad(format!("invalid filter '{field}=[{value}]'"))),
        },
        _ => Err(bad(format!("invalid filter '{field}': one value only"))),
    }
}

/// The field `until`: a time before which objects were made, in nanoseconds; durations
/// (`24h`, `10m`) count back from `now`.
pub(crate) fn until(filters: &Filters, now: Timestamp) -> Result<Option<i64>, EngineError> {
    match values(filters, "until") {
        [] => Ok(None),
        [value] => when::nanoseconds(value, now, &TimeZone::system())
            .map(Some)
            .map_err(bad),
        _ => Err(bad("more than one until filter specified")),
    }
}

/// Refuses patterns that [`glob`] cannot follow, as Go's `path.Match` does.
pub(crate) fn check_patterns(filters: &Filters, field: &str) -> Result<(), EngineError> {
    match values(filters, field).iter().all(|p| well_formed(p)) {
        true => Ok(()),
        false => Err(bad("syntax error in pattern")),
    }
}

fn well_formed(pattern: &str) -> bool {
    // A character of a class, perhaps escaped; `None`: it is none.
    fn character(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<()> {
        match chars.next()? {
            '-' | ']' => None,
            '\\' => chars.next().map(drop),
            _ => Some(()),
        }
    }
    fn class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<()> {
        chars.next_if_eq(&'^');
        loop {
            character(chars)?;
            if chars.next_if_eq(&'-').is_some() {
                character(chars)?;
            }
            if chars.next_if_eq(&']').is_some() {
                return Some(());
            }
        }
    }
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        let fine = match c {
            '\\' => chars.next().map(drop),
            '[' => class(&mut chars),
            _ => Some(()),
        };
        if fine.is_none() {
            return false;
        }
    }
    true
}

/// A pattern's class, from behind its `[`, and what follows it; `None`: it has no end.
fn class(pattern: &[u8]) -> Option<(impl Fn(u8) -> bool + '_, &[u8])> {
    let negated = pattern.first() == Some(&b'^');
    let from = usize::from(negated);
    // Its first character belongs to it even if it is the bracket.
    let end = from + 1 + pattern.get(from + 1..)?.iter().position(|c| *c == b']')?;
    let members = &pattern[from..end];
    let has = move |c: u8| {
        let mut at = 0;
        while at < members.len() {
            let (low, high, next) = match members.get(at + 1..at + 3) {
                Some([b'-', high]) => (members[at], *high, at + 3),
                _ => (members[at], members[at], at + 1),
            };
            if (low..=high).contains(&c) {
                return !negated;
            }
            at = next;
        }
        negated
    };
    Some((has, &pattern[end + 1..]))
}

/// Whether a reference matches a pattern with `*`, `?` and `[a-z]` (none across `/`), as
/// `docker images` patterns do.
pub(crate) fn glob(pattern: &str, text: &str) -> bool {
    fn matches(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len())
                .take_while(|n| *n == 0 || text[n - 1] != b'/')
                .any(|n| matches(rest, &text[n..])),
            Some((b'?', rest)) => {
                text.first().is_some_and(|c| *c != b'/') && matches(rest, &text[1..])
            }
            Some((b'[', rest)) => match (class(rest), text.split_first()) {
                (Some((class, rest)), Some((c, text))) => {
                    *c != b'/' && class(*c) && matches(rest, text)
                }
                _ => false,
            },
            Some((b'\\', rest)) if !rest.is_empty() => {
                text.first() == rest.first() && matches(&rest[1..], &text[1..])
            }
            Some((c, rest)) => text.first() == Some(c) && matches(rest, &text[1..]),
        }
    }
    // Bounded: patterns are short, and a hostile one only slows its own request.
    pattern.len() <= 256 && matches(pattern.as_bytes(), text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(field: &str, list: &[&str]) -> Filters {
        [(
            field.to_owned(),
            list.iter().map(|v| (*v).to_owned()).collect(),
        )]
        .into()
    }

    #[test]
    fn labels_match_keys_and_values() {
        let labels_of: HashMap<String, String> = [("a".to_owned(), "1".to_owned())].into();
        assert!(labels(&filters("label", &["a"]), &labels_of));
        assert!(labels(&filters("label", &["a=1"]), &labels_of));
        assert!(!labels(&filters("label", &["a=2"]), &labels_of));
        assert!(!labels(&filters("label", &["a", "b"]), &labels_of));
        assert!(!labels(&filters("label!", &["a"]), &labels_of));
    }

    #[test]
    fn globs() {
        assert!(glob("alp*:lat?st", "alpine:latest"));
        assert!(!glob("*", "library/alpine"));
        assert!(glob("*/*", "library/alpine"));
        assert!(glob("al[m-q]ine:[^v]*", "alpine:latest"));
        assert!(!glob("al[a-c]ine", "alpine") && !glob("[", "[") && !glob("a[bc", "ab"));
        assert!(glob("a\\*", "a*") && !glob("a\\*", "ab"));
    }

    #[test]
    fn patterns_that_make_no_sense_are_refused() {
        for wrong in ["[", "a[b", "[]a]", "[-a]", "[a-]", "a\\", "[\\", "[^"] {
            let error = check_patterns(&filters("reference", &["a*", wrong]), "reference");
            let error = error.unwrap_err().to_string();
            assert_eq!(error, "syntax error in pattern", "{wrong}");
        }
        let fine = ["", "a]", "[a-c]x", "[^v]*", "[\\]]", "a\\*", "-"];
        check_patterns(&filters("reference", &fine), "reference").unwrap();
    }

    #[test]
    fn until_takes_dates_and_the_future() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let read = |text| until(&filters("until", &[text]), now);
        assert_eq!(
            read("1970-01-02T00:00:00Z").unwrap(),
            Some(86_400_000_000_000)
        );
        assert_eq!(read("-5m").unwrap(), Some(1_000_300_000_000_000));
        assert!(read("2030-01-01").unwrap().is_some());
        assert!(read("soon").is_err() && read("").is_err());
        assert!(until(&filters("until", &["1", "2"]), now).is_err());
        assert_eq!(until(&Filters::new(), now).unwrap(), None);
    }

    #[test]
    fn unknown_fields_are_refused() {
        let error = check(&filters("nope", &["x"]), &["label"]).unwrap_err();
        assert_eq!(error.to_string(), "invalid filter 'nope'");
    }
}
