//! SOURCE_DATE_EPOCH: the time that a build is said to be of.

use std::collections::BTreeMap;

use crate::error::BuildError;

/// The variable.
pub(super) const NAME: &str = "SOURCE_DATE_EPOCH";
/// Its value for the time that the context is of.
const OF_CONTEXT: &str = "context";

/// Whether a build argument, or the Dockerfile, may ask for the context's time.
pub(crate) fn asks_for_context(
    arguments: &BTreeMap<String, Option<String>>,
    dockerfile: &str,
) -> bool {
    match arguments.get(NAME) {
        Some(Some(value)) => value == OF_CONTEXT,
        _ => dockerfile.contains(NAME),
    }
}

/// The time, in seconds, of the build argument or else the global ARG. Whoever reads the
/// variable afterwards gets a number, or nothing: `context` is replaced by what it stands for.
pub(super) fn settle(
    arguments: &mut BTreeMap<String, Option<String>>,
    globals: &mut BTreeMap<String, String>,
    of_context: Option<i64>,
) -> Result<Option<i64>, BuildError> {
    let value = match (arguments.get_mut(NAME), globals.get_mut(NAME)) {
        (Some(Some(given)), global) => {
            if given == OF_CONTEXT {
                *given = of_context.map_or_else(String::new, |time| time.to_string());
            }
            if let Some(global) = global {
                global.clone_from(given);
            }
            given.clone()
        }
        (_, Some(global)) => {
            if global == OF_CONTEXT {
                *global = of_context.map_or_else(String::new, |time| time.to_string());
            }
            global.clone()
        }
        (_, None) => return Ok(None),
    };
    if value.is_empty() {
        return Ok(None);
    }
    let seconds: Option<i64> = value.parse().ok();
    seconds
        // In nanoseconds it must be a number, too.
        .filter(|seconds| seconds.checked_mul(1_000_000_000).is_some())
        .map(Some)
        .ok_or_else(|| {
            BuildError::Invalid(format!(
                "invalid {NAME}: {value}: neither a number of seconds nor \"{OF_CONTEXT}\""
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(argument: Option<&str>, global: Option<&str>, context: Option<i64>) -> Option<i64> {
        let mut arguments = argument
            .map(|text| (NAME.to_owned(), Some(text.to_owned())))
            .into_iter()
            .collect();
        let mut globals = global
            .map(|text| (NAME.to_owned(), text.to_owned()))
            .into_iter()
            .collect();
        let time = settle(&mut arguments, &mut globals, context).unwrap();
        let word = time.map_or_else(String::new, |time| time.to_string());
        for value in arguments.values().flatten().chain(globals.values()) {
            assert_eq!(*value, word);
        }
        time
    }

    #[test]
    fn the_argument_then_the_dockerfile() {
        assert_eq!(of(None, None, Some(5)), None);
        assert_eq!(of(Some("7"), None, Some(5)), Some(7));
        assert_eq!(of(Some("-7"), Some("8"), Some(5)), Some(-7));
        assert_eq!(of(None, Some("8"), Some(5)), Some(8));
        assert_eq!(of(Some(""), Some("8"), Some(5)), None);
        assert_eq!(of(Some("context"), None, Some(5)), Some(5));
        assert_eq!(of(None, Some("context"), Some(5)), Some(5));
        assert_eq!(of(None, Some("context"), None), None);
    }

    #[test]
    fn what_is_no_time() {
        for bad in ["x", "99999999999999999999", "9223372036854775807"] {
            let mut arguments = [(NAME.to_owned(), Some(bad.to_owned()))].into();
            let settled = settle(&mut arguments, &mut BTreeMap::new(), None);
            assert!(settled.unwrap_err().to_string().contains(bad), "{bad}");
        }
    }
}
