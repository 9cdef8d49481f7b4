//! Properties of the unit that a configuration's annotations ask for, in runc's way:
//! `org.systemd.property.NAME` with a value in GVariant's text format.

use super::gvariant::{self, Literal};
use super::wire::Value;
use crate::error::RuntimeError;

const PREFIX: &str = "org.systemd.property.";
const MICROSECONDS: u64 = 1_000_000;

/// The properties among `annotations`, by name. One that cannot be read is an error: what
/// it should bring about would silently be missing.
pub(in crate::cgroup) fn properties<'a>(
    annotations: impl Iterator<Item = (&'a String, &'a String)>,
) -> Result<Vec<(String, Value)>, RuntimeError> {
    let mut properties = Vec::new();
    for (key, text) in annotations {
        let Some(name) = key.strip_prefix(PREFIX) else {
            continue;
        };
        let property = property(name, text)
            .map_err(|reason| RuntimeError::spec(format!("annotations.{key}"), reason))?;
        properties.push(property);
    }
    // Annotations have no order.
    properties.sort_by(|(one, _), (other, _)| one.cmp(other));
    if let Some([(name, _), _]) = properties.windows(2).find(|two| match two {
        [(one, _), (other, _)] => one == other,
        _ => false,
    }) {
        // `TimeoutStopSec` beside `TimeoutStopUSec`.
        let reason = format!("the property {name} is given twice");
        return Err(RuntimeError::spec("annotations", reason));
    }
    Ok(properties)
}

fn property(name: &str, text: &str) -> Result<(String, Value), String> {
    if name.len() < 3 || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        return Err(format!(
            "{name:?} is not the name of a property (three or more letters)"
        ));
    }
    let literal = gvariant::parse(text)?;
    // Documented as `TimeoutStopSec`, and on the bus known as `TimeoutStopUSec`.
    let seconds = name
        .strip_suffix("Sec")
        .filter(|rest| rest.ends_with(|last: char| last.is_ascii_lowercase()));
    if let Some(rest) = seconds {
        let value = microseconds(&literal)?;
        return Ok((format!("{rest}USec"), Value::U64(value)));
    }
    match literal {
        Literal::Value(value) => Ok((name.to_owned(), value)),
        Literal::Fraction(_) => Err("fractions are only for names that end in Sec".to_owned()),
    }
}

/// Of a number of seconds.
fn microseconds(seconds: &Literal) -> Result<u64, String> {
    let whole = match seconds {
        Literal::Value(Value::I32(number)) => u64::try_from(*number).ok(),
        Literal::Value(Value::I64(number)) => u64::try_from(*number).ok(),
        Literal::Value(Value::U32(number)) => Some(u64::from(*number)),
        Literal::Value(Value::U64(number)) => Some(*number),
        Literal::Fraction(text) => return fraction(text),
        Literal::Value(_) => return Err("is not a number (of seconds)".to_owned()),
    };
    whole
        .and_then(|whole| whole.checked_mul(MICROSECONDS))
        .ok_or_else(|| "is not a possible number of seconds".to_owned())
}

/// `2.5` seconds, exactly; more than six digits would be lost.
fn fraction(text: &str) -> Result<u64, String> {
    let invalid = || format!("{text:?} is not a possible number of seconds");
    let (whole, part) = text.split_once('.').ok_or_else(invalid)?;
    let whole: u64 = whole.parse().map_err(|_| invalid())?;
    let part: u64 = match part.len() {
        1..=6 => format!("{part:0<6}").parse().map_err(|_| invalid())?,
        _ => return Err(invalid()),
    };
    whole
        .checked_mul(MICROSECONDS)
        .and_then(|whole| whole.checked_add(part))
        .ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn one(name: &str, text: &str) -> Result<(String, Value), String> {
        property(name, text)
    }

    #[test]
    fn names_and_values() {
        let strings = |all: &[&str]| Value::Strs(all.iter().map(|&s| s.to_owned()).collect());
        for (name, text, expected, value) in [
            ("Delegate", "true", "Delegate", Value::Bool(true)),
            (
                "TimeoutStopUSec",
                "uint64 1",
                "TimeoutStopUSec",
                Value::U64(1),
            ),
            (
                "TimeoutStopSec",
                "uint64 2",
                "TimeoutStopUSec",
                Value::U64(2_000_000),
            ),
            (
                "TimeoutStopSec",
                "int32 3",
                "TimeoutStopUSec",
                Value::U64(3_000_000),
            ),
            (
                "TimeoutStopSec",
                "2.5",
                "TimeoutStopUSec",
                Value::U64(2_500_000),
            ),
            (
                "CollectMode",
                "'inactive-or-failed'",
                "CollectMode",
                Value::Str("inactive-or-failed".to_owned()),
            ),
            (
                "After",
                "['a.service', \"b.service\"]",
                "After",
                strings(&["a.service", "b.service"]),
            ),
            // As runc has it: only after a small letter it is a unit.
            ("RuntimeUSec", "5", "RuntimeUSec", Value::I32(5)),
            ("XSec", "5", "XSec", Value::I32(5)),
        ] {
            assert_eq!(one(name, text), Ok((expected.to_owned(), value)), "{name}");
        }
    }

    #[test]
    fn refused() {
        for (name, text, said) in [
            ("ab", "true", "three or more letters"),
            ("", "true", "three or more letters"),
            ("Some-Thing", "true", "three or more letters"),
            ("Größe", "1", "three or more letters"),
            ("TimeoutStopSec", "'5'", "not a number"),
            ("TimeoutStopSec", "-5", "not a possible number"),
            (
                "TimeoutStopSec",
                "uint64 18446744073709551615",
                "not a possible number",
            ),
            ("TimeoutStopSec", "1.0000001", "not a possible number"),
            ("TimeoutStopUSec", "2.5", "only for names that end in Sec"),
            ("Description", "unquoted", "\"unquoted\""),
        ] {
            let error = one(name, text).unwrap_err();
            assert!(error.contains(said), "{name}: {error}");
        }
    }

    #[test]
    fn among_others() {
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
            pairs.iter().map(owned).collect()
        };
        let some = map(&[
            ("org.systemd.property.Zzz", "1"),
            ("org.example", "not GVariant"),
            ("org.systemd.property.CPUWeight", "uint64 7"),
        ]);
        assert_eq!(
            properties(some.iter()).unwrap(),
            [
                ("CPUWeight".to_owned(), Value::U64(7)),
                ("Zzz".to_owned(), Value::I32(1)),
            ]
        );
        let twice = map(&[
            ("org.systemd.property.TimeoutStopSec", "1"),
            ("org.systemd.property.TimeoutStopUSec", "uint64 1"),
        ]);
        let error = properties(twice.iter()).unwrap_err().to_string();
        assert!(error.contains("TimeoutStopUSec is given twice"), "{error}");
        let wrong = map(&[("org.systemd.property.TasksMax", "many")]);
        let error = properties(wrong.iter()).unwrap_err().to_string();
        assert!(
            error.contains("annotations.org.systemd.property.TasksMax"),
            "{error}"
        );
    }
}
