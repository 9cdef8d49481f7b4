//! Credentials that clients send along: `X-Registry-Auth` and `X-Registry-Config`, JSON in
//! base64url (Engine API, "Authentication").

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use corten_registry::Credential;
use http::HeaderMap;
use serde::de::DeserializeOwned;

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
    serde_json::from_slice(&json).map(Some).map_err(|_| {
        ApiError::bad_parameter(format!("invalid {name} header: not the JSON expected"))
    })
}
