//! Docker's list filters.

use std::collections::HashMap;

use super::bad;
use crate::Filters;
use crate::error::EngineError;

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
            _ => Err(bad(format!(
                "invalid value for filter '{field}': \"{value}\""
            ))),
        },
        _ => Err(bad(format!("invalid filter '{field}': one value only"))),
    }
}

/// The field `until`: a time before which objects were made, in nanoseconds; durations
/// (`24h`, `10m`) count back from `now`.
pub(crate) fn until(filters: &Filters, now: i64) -> Result<Option<i64>, EngineError> {
    let value = match values(filters, "until") {
        [] => return Ok(None),
        [value] => value,
        _ => return Err(bad("more than one until filter specified")),
    };
    if let Some(span) = duration(value) {
        return Ok(Some(now.saturating_sub(span)));
    }
    let time = super::time::parse_time(value)?
        .ok_or_else(|| bad(format!("invalid value for time: {value:?}")))?;
    Ok(i64::try_from(time.as_nanosecond()).ok())
}

/// A Go duration (`1h30m`, `1.5s`), in nanoseconds; `None` when it is not one.
pub(crate) fn duration(text: &str) -> Option<i64> {
    let mut rest = text;
    let mut total = 0.0_f64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit_end = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let unit = match &rest[..unit_end] {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        total += number * unit;
        rest = &rest[unit_end..];
    }
    // Durations beyond centuries saturate, which is what a bound may do.
    #[allow(clippy::cast_possible_truncation)]
    Some(total as i64)
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
    fn durations_and_globs() {
        assert_eq!(duration("1h30m"), Some(5_400_000_000_000));
        assert_eq!(duration("1.5s"), Some(1_500_000_000));
        assert_eq!(duration("10"), None);
        assert_eq!(duration("x"), None);
        assert!(glob("alp*:lat?st", "alpine:latest"));
        assert!(!glob("*", "library/alpine"));
        assert!(glob("*/*", "library/alpine"));
        assert!(glob("al[m-q]ine:[^v]*", "alpine:latest"));
        assert!(!glob("al[a-c]ine", "alpine") && !glob("[", "[") && !glob("a[bc", "ab"));
        assert!(glob("a\\*", "a*") && !glob("a\\*", "ab"));
    }

    #[test]
    fn unknown_fields_are_refused() {
        let error = check(&filters("nope", &["x"]), &["label"]).unwrap_err();
        assert_eq!(error.to_string(), "invalid filter 'nope'");
    }
}
