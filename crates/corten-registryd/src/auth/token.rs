//! The built-in token endpoint: `GET` (Docker's token specification) and `POST` (its OAuth2
//! form), for the users of the password file and what the rules let them do.
//!
//! A refresh token is what a client keeps instead of a password. It holds until the user's
//! password changes, or [`REFRESH`] is over.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use futures_util::StreamExt as _;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode};
use serde_json::{Value, json};

use super::jwt::{Access, Audience, Claims, now, sign, verify};
use super::{Action, Gate, Tokens};
use crate::error::{ApiError, Code, RegistrydError};
use crate::handlers::BODY_PATIENCE;

/// How long an access token holds where it is not configured.
pub(super) const LIFETIME: Duration = Duration::from_secs(300);
/// How long a refresh token holds, seconds: a year.
const REFRESH: u64 = 365 * 24 * 60 * 60;
/// In the claim that keeps a refresh token from being used as an access token.
const REFRESH_MARK: &str = "refresh:";
/// Largest form, bytes.
const MAX_FORM: usize = 64 << 10;
/// Scopes in one request.
const MAX_SCOPES: usize = 128;

/// What a client asks for, in either form.
#[derive(Debug, Default)]
struct Wanted {
    service: String,
    scopes: Vec<String>,
    refresh: bool,
}

impl Gate {
    /// True if this server gives out tokens.
    pub(crate) fn gives_tokens(&self) -> bool {
        self.tokens
            .as_ref()
            .is_some_and(|tokens| tokens.signer.is_some())
    }

    /// Answers a request for a token. The second part is the user's name, for the log.
    pub(crate) async fn token(
        &self,
        parts: &Parts,
        body: Body,
    ) -> Result<(Response, String), ApiError> {
        let Some(tokens) = &self.tokens else {
            return Err(ApiError::new(Code::Unsupported, Value::Null));
        };
        let text = parts.uri.query().unwrap_or_default();
        let (user, wanted) = match parts.method {
            Method::GET => {
                let wanted = Wanted::read(text.as_bytes(), "offline_token", "true");
                let asked = parts.headers.contains_key(http::header::AUTHORIZATION);
                let user = self.password(&parts.headers).await?;
                if asked && user.is_none() {
                    return Err(wrong_password());
                }
                (user, wanted)
            }
            Method::POST => {
                let form = form(body).await?;
                let wanted = Wanted::read(&form, "access_type", "offline");
                (Some(self.form_user(tokens, &form).await?), wanted)
            }
            _ => {
                return Err(ApiError::new(Code::Unsupported, Value::Null)
                    .header(http::header::ALLOW, "GET, POST"));
            }
        };
        if !wanted.service.is_empty() && wanted.service != tokens.service {
            let detail = json!({"service": wanted.service, "expected": tokens.service});
            return Err(ApiError::new(Code::Unsupported, detail).status(StatusCode::BAD_REQUEST));
        }
        if wanted.scopes.len() > MAX_SCOPES {
            let detail = json!({"scopes": wanted.scopes.len(), "limit": MAX_SCOPES});
            return Err(ApiError::new(Code::Unsupported, detail).status(StatusCode::BAD_REQUEST));
        }
        let response = self.give(tokens, user.as_deref(), &wanted).await?;
        Ok((response, user.unwrap_or_default()))
    }

    async fn give(
        &self,
        tokens: &Tokens,
        user: Option<&str>,
        wanted: &Wanted,
    ) -> Result<Response, ApiError> {
        let scopes = wanted.scopes.iter();
        let access: Vec<Access> = scopes.filter_map(|text| self.grant(user, text)).collect();
        let now = now();
        let lifetime = tokens.lifetime.as_secs();
        let claims = |lifetime: u64, access, corten| Claims {
            iss: tokens.issuer.clone(),
            sub: user.unwrap_or_default().to_owned(),
            aud: Audience::One(tokens.service.clone()),
            exp: now + lifetime,
            nbf: now,
            iat: now,
            access,
            corten,
        };
        let sign = |claims: &Claims| match &tokens.signer {
            Some(key) => sign(claims, key),
            None => Err(RegistrydError::Internal("no key to sign tokens".to_owned())),
        };
        let scope: Vec<String> = access
            .iter()
            .map(|entry| format!("{}:{}:{}", entry.kind, entry.name, entry.actions.join(",")))
            .collect();
        let token = sign(&claims(lifetime, access, None))?;
        let mut answer = json!({
            "token": token,
            "access_token": token,
            "scope": scope.join(" "),
            "expires_in": lifetime,
            "issued_at": rfc3339(now),
        });
        if let (true, Some(user), Some(users)) = (wanted.refresh, user, &self.users)
            && let Some(mark) = users.mark(user).await
        {
            let claims = claims(REFRESH, Vec::new(), Some(format!("{REFRESH_MARK}{mark}")));
            answer["refresh_token"] = sign(&claims)?.into();
        }
        let mut response = Response::new(Body::from(answer.to_string()));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(response)
    }

    /// What of `type:name:actions` the user may have.
    fn grant(&self, user: Option<&str>, scope: &str) -> Option<Access> {
        let (kind, rest) = scope.split_once(':')?;
        let (name, actions) = rest.rsplit_once(':')?;
        let asked = |action: &str| actions.split(',').any(|have| have == action || have == "*");
        let actions: Vec<String> = match kind {
            "repository" => Action::ALL
                .into_iter()
                .filter(|action| asked(action.as_str()) && self.grants(user, name, *action))
                .map(|action| action.as_str().to_owned())
                .collect(),
            "registry" if name == "catalog" && user.is_some() && asked("*") => {
                vec!["*".to_owned()]
            }
            _ => return None,
        };
        (!actions.is_empty()).then(|| Access {
            kind: kind.to_owned(),
            name: name.to_owned(),
            actions,
        })
    }

    /// The user of an OAuth2 form, by password or refresh token.
    async fn form_user(&self, tokens: &Tokens, form: &[u8]) -> Result<String, ApiError> {
        let value = |name: &str| {
            let mut fields = url::form_urlencoded::parse(form);
            let found = fields.find(|(key, _)| key == name);
            found
                .map(|(_, value)| value.into_owned())
                .unwrap_or_default()
        };
        let Some(users) = &self.users else {
            return Err(wrong_password());
        };
        match value("grant_type").as_str() {
            "password" => {
                let user = value("username");
                let right = users.verify(&user, value("password").as_bytes()).await?;
                if right {
                    Ok(user)
                } else {
                    Err(wrong_password())
                }
            }
            "refresh_token" => {
                let keys: Vec<_> = tokens
                    .signer
                    .iter()
                    .map(|key| key.public().clone())
                    .collect();
                let claims = verify(&value("refresh_token"), &keys, &tokens.service, now());
                let claims = claims.map_err(|reason| {
                    tracing::debug!(reason, "refresh token refused");
                    wrong_password()
                })?;
                let mark = claims.corten.as_deref();
                let mark = mark.and_then(|text| text.strip_prefix(REFRESH_MARK));
                let valid = users.mark(&claims.sub).await;
                if mark.is_some() && mark == valid.as_deref() {
                    Ok(claims.sub)
                } else {
                    Err(wrong_password())
                }
            }
            other => Err(
                ApiError::new(Code::Unsupported, json!({"grant_type": other}))
                    .status(StatusCode::BAD_REQUEST),
            ),
        }
    }
}

impl Wanted {
    /// `refresh` tells the parameter, and its value, that asks for a refresh token.
    fn read(text: &[u8], refresh: &str, yes: &str) -> Self {
        let mut wanted = Self::default();
        for (key, value) in url::form_urlencoded::parse(text) {
            match &*key {
                "service" => wanted.service = value.into_owned(),
                "scope" => wanted
                    .scopes
                    .extend(value.split_whitespace().map(str::to_owned)),
                key if key == refresh => wanted.refresh = value == yes,
                _ => {}
            }
        }
        wanted
    }
}

fn wrong_password() -> ApiError {
    ApiError::new(Code::Unauthorized, "wrong user name, password or token")
        .header(WWW_AUTHENTICATE, "Basic realm=\"Registry\"")
}

async fn form(body: Body) -> Result<Vec<u8>, ApiError> {
    let bad = |reason: &str| {
        ApiError::new(Code::Unsupported, json!({"reason": reason})).status(StatusCode::BAD_REQUEST)
    };
    let mut bytes = Vec::new();
    let mut frames = body.into_data_stream();
    loop {
        let piece = match tokio::time::timeout(BODY_PATIENCE, frames.next()).await {
            Ok(None) => return Ok(bytes),
            Ok(Some(piece)) => piece.map_err(|error| bad(&error.to_string()))?,
            Err(_) => return Err(bad("no data for too long")),
        };
        if bytes.len() + piece.len() > MAX_FORM {
            return Err(bad("the form is too large"));
        }
        bytes.extend_from_slice(&piece);
    }
}

/// Seconds since 1970 as `2026-11-28T15:00:00Z` (civil date of the proleptic Gregorian
/// calendar, counted in eras of 400 years that begin on 1 March).
fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let table = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_795_878_000, "2026-11-28T15:00:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ];
        for (seconds, text) in table {
            assert_eq!(rfc3339(seconds), text);
        }
    }
}
