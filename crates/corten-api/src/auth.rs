//! Credentials that clients send along: `X-Registry-Auth` and `X-Registry-Config`, JSON in
//! base64url (Engine API, "Authentication").

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use corten_registry::Credential;
use http::HeaderMap;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::ApiError;

/// The credential of `X-Registry-Auth`; `None` when absent or empty.
pub(crate) fn credential(headers: &HeaderMap) -> Result<Option<Credential>, ApiError> {
    let credential: Option<Credential> = decode(headers, "X-Registry-Auth")?;
    Ok(credential.filter(|c| *c != Credential::default()))
}

/// The credentials of `X-Registry-Config`, by registry.
pub(crate) fn credentials(headers: &HeaderMap) -> Result<BTreeMap<String, Credential>, ApiError> {
    Ok(decode(headers, "X-Registry-Config")?.unwrap_or_default())
}

fn decode<T: DeserializeOwned>(headers: &HeaderMap, name: &str) -> Result<Option<T>, ApiError> {
    let Some(value) = headers.get(name).map(http::HeaderValue::as_bytes) else {
        return Ok(None);
    };
    if value.is_empty() {
        return Ok(None);
    }
    // Clients differ in alphabet and padding; all four forms are in use.
    let json = [&URL_SAFE, &URL_SAFE_NO_PAD, &STANDARD, &STANDARD_NO_PAD]
        .iter()
        .find_map(|engine| engine.decode(value).ok())
        .ok_or_else(|| ApiError::bad_parameter(format!("invalid {name} header: not base64")))?;
    // The value itself is never quoted: it is a secret.
    serde_json::from_slice(&json)
        .map(without_nulls)
        .and_then(serde_json::from_value)
        .map(Some)
        .map_err(|_| {
            ApiError::bad_parameter(format!("invalid {name} header: not the JSON expected"))
        })
}

/// Python's client writes null for what it does not have.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key, without_nulls(value)))
            .collect(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_are_absent() {
        let mut headers = HeaderMap::new();
        let json = r#"{"r:5000":{"username":"me","password":null,"email":null},"other":null}"#;
        let value = URL_SAFE.encode(json).parse().unwrap();
        headers.insert("X-Registry-Config", value);
        let all = credentials(&headers).unwrap();
        assert_eq!(all.len(), 1);
        assert_eq!(all["r:5000"].username, "me");
        let nothing = URL_SAFE.encode("null").parse().unwrap();
        headers.insert("X-Registry-Config", nothing);
        assert!(credentials(&headers).is_err());
    }
}
