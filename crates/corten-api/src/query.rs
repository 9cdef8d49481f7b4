//! Query parameters as Docker's clients send them.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use crate::error::ApiError;

/// Docker's idea of a boolean in a query: everything is true but these.
pub(crate) fn truthy(text: &str) -> bool {
    !matches!(
        text.trim().to_ascii_lowercase().as_str(),
        "" | "0" | "no" | "false" | "none"
    )
}

/// For `#[serde(deserialize_with)]`: a [`truthy`] boolean.
pub(crate) fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    String::deserialize(deserializer).map(|text| truthy(&text))
}

/// For `#[serde(deserialize_with)]`: a number, where an empty value counts as absent.
pub(crate) fn number<'de, D: Deserializer<'de>>(d: D) -> Result<Option<i64>, D::Error> {
    match Option::<String>::deserialize(d)?.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => text
            .parse()
            .map(Some)
            .map_err(|_| serde::de::Error::custom(format!("\"{text}\" is not a number"))),
    }
}

/// The `filters` parameter: field → accepted values.
pub(crate) type Filters = BTreeMap<String, Vec<String>>;

/// Parses `filters`, in today's form `{"label":["a"]}` or the old `{"label":{"a":true}}`.
pub(crate) fn filters(text: Option<&str>) -> Result<Filters, ApiError> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Values {
        List(Vec<String>),
        Set(BTreeMap<String, bool>),
    }
    let Some(text) = text.filter(|t| !t.is_empty()) else {
        return Ok(Filters::new());
    };
    let parsed: BTreeMap<String, Values> = serde_json::from_str(text)
        .map_err(|error| ApiError::bad_parameter(format!("invalid filter: {error}")))?;
    Ok(parsed
        .into_iter()
        .map(|(field, values)| match values {
            Values::List(list) => (field, list),
            Values::Set(set) => (
                field,
                set.into_iter()
                    .filter(|(_, on)| *on)
                    .map(|(v, _)| v)
                    .collect(),
            ),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_filter_forms() {
        for text in [r#"{"label":["a"]}"#, r#"{"label":{"a":true,"b":false}}"#] {
            assert_eq!(filters(Some(text)).unwrap()["label"], ["a"], "{text}");
        }
        assert!(filters(None).unwrap().is_empty());
        assert!(filters(Some("{")).is_err());
    }

    #[test]
    fn booleans_are_dockers() {
        for yes in ["1", "true", "True", "yes", "x"] {
            assert!(truthy(yes), "{yes}");
        }
        for no in ["", "0", "no", "false", "False", "none"] {
            assert!(!truthy(no), "{no}");
        }
    }
}
