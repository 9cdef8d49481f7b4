//! Signed tokens in compact form (RFC 7515, RFC 7519), with the claims of Docker's token
//! specification ("Docker Registry v2 Bearer token specification").

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::keys::{PublicKey, SigningKey};
use crate::error::RegistrydError;

/// How far clocks may differ, seconds.
const LEEWAY: u64 = 60;
/// Longest token looked at, bytes.
const MAX_TOKEN: usize = 64 << 10;

/// One entry of the `access` claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Access {
    /// `repository` or `registry`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) actions: Vec<String>,
}

/// Whom a token is for: one name or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Audience {
    One(String),
    Many(Vec<String>),
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claims {
    #[serde(default)]
    pub(crate) iss: String,
    #[serde(default)]
    pub(crate) sub: String,
    pub(crate) aud: Audience,
    pub(crate) exp: u64,
    #[serde(default)]
    pub(crate) nbf: u64,
    #[serde(default)]
    pub(crate) iat: u64,
    #[serde(default, deserialize_with = "or_none")]
    pub(crate) access: Vec<Access>,
    /// Ours alone: what kind of token it is where it is no access token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) corten: Option<String>,
}

/// Some token servers write `null` for no access.
fn or_none<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<Access>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Serialize, Deserialize)]
struct Header {
    alg: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    typ: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kid: Option<String>,
    /// Extensions that must be understood (RFC 7515 4.1.11); we know none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crit: Option<serde_json::Value>,
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// The claims of a token that one of the keys signed, that is for `audience`, and whose time
/// it is; else why not.
pub(crate) fn verify(
    token: &str,
    keys: &[PublicKey],
    audience: &str,
    now: u64,
) -> Result<Claims, &'static str> {
    if token.len() > MAX_TOKEN {
        return Err("the token is too long");
    }
    let malformed = "the token is malformed";
    let (message, signature) = token.rsplit_once('.').ok_or(malformed)?;
    let (header, claims) = message.split_once('.').ok_or(malformed)?;
    let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| malformed);
    let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| malformed)?;
    if header.crit.is_some() {
        return Err("the token needs an extension that is not known");
    }
    let signature = decode(signature)?;
    let named = |key: &&PublicKey| match (&header.kid, &key.id) {
        (Some(wanted), Some(id)) => wanted == id,
        _ => true,
    };
    // Keys without a name are tried: the token may call them by a name nobody told us.
    if !keys
        .iter()
        .filter(named)
        .any(|key| key.verifies(&header.alg, message.as_bytes(), &signature))
    {
        return Err("the token's signature is not of a trusted key");
    }
    let claims: Claims =
        serde_json::from_slice(&decode(claims)?).map_err(|_| "the token's claims are malformed")?;
    let meant = match &claims.aud {
        Audience::One(name) => name == audience,
        Audience::Many(names) => names.iter().any(|name| name == audience),
    };
    if !meant {
        return Err("the token is for another service");
    }
    if claims.exp.saturating_add(LEEWAY) <= now {
        return Err("the token has expired");
    }
    if claims.nbf > now.saturating_add(LEEWAY) {
        return Err("the token is not valid yet");
    }
    Ok(claims)
}

/// A token with these claims.
pub(crate) fn sign(claims: &Claims, key: &SigningKey) -> Result<String, RegistrydError> {
    let header = Header {
        alg: "ES256".to_owned(),
        typ: Some("JWT".to_owned()),
        kid: key.public().id.clone(),
        crit: None,
    };
    let encode = |value: serde_json::Result<Vec<u8>>| match value {
        Ok(bytes) => Ok(URL_SAFE_NO_PAD.encode(bytes)),
        Err(error) => Err(RegistrydError::Internal(error.to_string())),
    };
    let header = encode(serde_json::to_vec(&header))?;
    let message = format!("{header}.{}", encode(serde_json::to_vec(claims))?);
    let signature = URL_SAFE_NO_PAD.encode(key.sign(message.as_bytes())?);
    Ok(format!("{message}.{signature}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> SigningKey {
        let folder = tempfile::tempdir().unwrap();
        SigningKey::open(&folder.path().join("key"), true).unwrap()
    }

    fn claims() -> Claims {
        Claims {
            iss: "me".to_owned(),
            sub: "ann".to_owned(),
            aud: Audience::One("here".to_owned()),
            exp: 2000,
            nbf: 1000,
            iat: 1000,
            access: vec![Access {
                kind: "repository".to_owned(),
                name: "app".to_owned(),
                actions: vec!["pull".to_owned()],
            }],
            corten: None,
        }
    }

    #[test]
    fn tokens_hold_for_one_service_one_key_and_a_while() {
        let (key, other) = (key(), key());
        let token = sign(&claims(), &key).unwrap();
        let keys = [other.public().clone(), key.public().clone()];
        assert_eq!(verify(&token, &keys, "here", 1500), Ok(claims()));
        assert!(verify(&token, &keys[..1], "here", 1500).is_err());
        assert!(verify(&token, &keys, "there", 1500).is_err());
        assert!(verify(&token, &keys, "here", 2059).is_ok());
        assert!(verify(&token, &keys, "here", 2060).is_err());
        assert!(verify(&token, &keys, "here", 940).is_ok());
        assert!(verify(&token, &keys, "here", 939).is_err());
        let many = Claims {
            aud: Audience::Many(vec!["there".to_owned(), "here".to_owned()]),
            ..claims()
        };
        let many = sign(&many, &key).unwrap();
        assert!(verify(&many, &keys, "here", 1500).is_ok());
    }

    #[test]
    fn nothing_but_the_signed_bytes_counts() {
        let key = key();
        let keys = [key.public().clone()];
        let token = sign(&claims(), &key).unwrap();
        let parts: Vec<&str> = token.split('.').collect();
        let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let forged = encode(
            &serde_json::to_string(&claims())
                .unwrap()
                .replace("ann", "eve"),
        );
        let none = encode(r#"{"alg":"none"}"#);
        let hmac = encode(r#"{"alg":"HS256"}"#);
        for bad in [
            format!("{}.{forged}.{}", parts[0], parts[2]),
            format!("{none}.{}.", parts[1]),
            format!("{hmac}.{}.{}", parts[1], parts[2]),
            format!("{}.{}", parts[0], parts[1]),
            format!("{token}x"),
            String::new(),
            "..".to_owned(),
        ] {
            assert!(verify(&bad, &keys, "here", 1500).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "[A-Za-z0-9_.-]{0,100}") {
            prop_assert!(verify(&text, &[], "here", 0).is_err());
        }
    }
}
