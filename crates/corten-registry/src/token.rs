//! Bearer tokens (distribution "Token authentication", and its OAuth2 form): fetched once for
//! all requests that the same scopes do for, and dropped when their time is over.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;
use serde::Deserialize;
use url::Url;

use crate::challenge::Scopes;
use crate::credential::Credential;
use crate::error::RegistryError;
use crate::http::{Host, innermost};
use crate::retry::{self, FIRST_PAUSE, MAX_PAUSE};

const CLIENT_ID: &str = "corten";
/// How long a token holds of which nothing is said (distribution's specification).
const LIFETIME: u64 = 60;
/// A token is not used in its last seconds: it might end on the way.
const MARGIN: u64 = 5;
/// Largest answer, bytes.
const MAX_ANSWER: usize = 1 << 20;
/// How often a token server is asked that is busy.
const ATTEMPTS: u32 = 4;

/// The tokens of one host.
#[derive(Default)]
pub(crate) struct Tokens(Mutex<State>);

#[derive(Default)]
struct State {
    tokens: Vec<Token>,
    /// From a login, to be kept by the user.
    refresh: Option<String>,
    want_refresh: bool,
}

struct Token {
    scopes: Scopes,
    text: String,
    until: Instant,
}

/// Secrets never show.
impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Answer {
    token: String,
    access_token: String,
    refresh_token: String,
    expires_in: Option<u64>,
}

impl Tokens {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A token that does for these scopes.
    pub(crate) fn get(&self, wanted: &Scopes) -> Option<String> {
        let now = Instant::now();
        let mut state = self.state();
        state.tokens.retain(|token| token.until > now);
        let found = state.tokens.iter().find(|token| token.scopes.cover(wanted));
        found.map(|token| token.text.clone())
    }

    /// The registry does not take it any more.
    pub(crate) fn forget(&self, text: &str) {
        self.state().tokens.retain(|token| token.text != text);
    }

    pub(crate) fn want_refresh_token(&self) {
        self.state().want_refresh = true;
    }

    pub(crate) fn refresh_token(&self) -> Option<String> {
        self.state().refresh.clone()
    }

    /// Fetches a token, and keeps it.
    pub(crate) async fn fetch(
        &self,
        http: &reqwest::Client,
        host: &Host,
        realm: &Url,
        service: Option<&str>,
        wanted: &Scopes,
        credential: &Credential,
    ) -> Result<String, RegistryError> {
        if !credential.registry_token.is_empty() {
            return Ok(credential.registry_token.clone());
        }
        let secret = !credential.username.is_empty() || !credential.identity_token.is_empty();
        if secret && !host.trusts_realm(realm) {
            return Err(host.protocol(format!(
                "its token server {realm} has no TLS: no password is sent there"
            )));
        }
        let want_refresh = self.state().want_refresh;
        let request = if credential.identity_token.is_empty() {
            let mut query: Vec<(&str, String)> = Vec::new();
            query.extend(service.map(|service| ("service", service.to_owned())));
            query.extend(wanted.texts().into_iter().map(|text| ("scope", text)));
            if want_refresh {
                query.push(("offline_token", "true".to_owned()));
                query.push(("client_id", CLIENT_ID.to_owned()));
            }
            let request = http.get(realm.clone()).query(&query);
            if credential.username.is_empty() {
                request
            } else {
                request
                    .query(&[("account", &credential.username)])
                    .basic_auth(&credential.username, Some(&credential.password))
            }
        } else {
            let scopes = wanted.texts().join(" ");
            let mut form = vec![
                ("grant_type", "refresh_token"),
                ("client_id", CLIENT_ID),
                ("refresh_token", &credential.identity_token),
            ];
            form.extend(service.map(|service| ("service", service)));
            if !scopes.is_empty() {
                form.push(("scope", &scopes));
            }
            http.post(realm.clone()).form(&form)
        };
        let unreachable = |error: reqwest::Error| RegistryError::Unreachable {
            registry: realm.host_str().unwrap_or_default().to_owned(),
            reason: innermost(&error),
        };
        let failed = |reason: String| RegistryError::TokenServer {
            registry: host.name().to_owned(),
            reason,
        };
        let response = patiently(request, want_refresh).await;
        let response = response.map_err(unreachable)?;
        let status = response.status();
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
            || (status == StatusCode::BAD_REQUEST && !credential.identity_token.is_empty())
        {
            return Err(RegistryError::Unauthorized(
                "incorrect username or password".into(),
            ));
        }
        if status == StatusCode::TOO_MANY_REQUESTS {
            return Err(RegistryError::RateLimited {
                registry: host.name().to_owned(),
                reason: format!("its token server answered {status}"),
                after: retry::after(response.headers()),
            });
        }
        if !status.is_success() {
            return Err(failed(format!("token server answered {status}")));
        }
        let bytes =
            crate::document::read(host, response, MAX_ANSWER, "the token server's answer").await?;
        let answer: Answer = serde_json::from_slice(&bytes)
            .map_err(|error| failed(format!("token server: {error}")))?;
        let text = if answer.token.is_empty() {
            answer.access_token
        } else {
            answer.token
        };
        if text.is_empty() {
            return Err(failed("the token server gave no token".to_owned()));
        }
        // Too short a life is stretched to the specification's least.
        let lifetime = answer.expires_in.unwrap_or(LIFETIME).max(LIFETIME);
        let until = Instant::now() + Duration::from_secs((lifetime - MARGIN).min(24 * 60 * 60));
        let mut state = self.state();
        if want_refresh && !answer.refresh_token.is_empty() {
            state.refresh = Some(answer.refresh_token);
        }
        state.tokens.push(Token {
            scopes: wanted.clone(),
            text: text.clone(),
            until,
        });
        Ok(text)
    }
}

/// Asks a token server, and once more a while later where it is busy. An error of its own may be
/// what the directory behind it says to a wrong password, and counts: a login tries one once.
async fn patiently(
    request: reqwest::RequestBuilder,
    login: bool,
) -> Result<reqwest::Response, reqwest::Error> {
    let mut pause = FIRST_PAUSE;
    for _ in 1..ATTEMPTS {
        let Some(again) = request.try_clone() else {
            break;
        };
        let response = again.send().await?;
        let asked = retry::after(response.headers());
        let wait = match response.status() {
            // Waiting so long helps nobody: the user is told.
            StatusCode::TOO_MANY_REQUESTS if asked.is_some_and(|asked| asked > MAX_PAUSE) => {
                return Ok(response);
            }
            StatusCode::TOO_MANY_REQUESTS => asked.unwrap_or(pause),
            status if status.is_server_error() && !login => {
                asked.filter(|asked| *asked <= MAX_PAUSE).unwrap_or(pause)
            }
            _ => return Ok(response),
        };
        tracing::debug!(?wait, "asking the token server again");
        tokio::time::sleep(wait).await;
        pause *= 2;
    }
    request.send().await
}
