//! Requests to one registry: schemes, authentication, retries, errors in words.
//!
//! Credentials are only ever sent to the registry they are for and to the token server it
//! names; a redirect to another host carries none (reqwest strips them). Loopback registries
//! may speak plain HTTP unasked: HTTPS is tried first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Method, StatusCode, header};
use reqwest::{RequestBuilder, Response};
use serde::Deserialize;

use crate::config::{RegistrySettings, is_loopback};
use crate::credential::Credential;
use crate::error::RegistryError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const ATTEMPTS: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const MAX_PAUSE: Duration = Duration::from_secs(20);
const CLIENT_ID: &str = "corten";
/// Largest error document that is read.
const MAX_ERROR: usize = 64 << 10;

/// What a request may do with a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access<'a> {
    Pull,
    PullPush,
    /// Push, and take over blobs from another repository.
    Mount(&'a str),
}

impl Access<'_> {
    /// The scopes to ask a token server for, separated by blanks as OAuth2 has them.
    fn scopes(self, repository: &str) -> String {
        match self {
            Self::Pull => format!("repository:{repository}:pull"),
            Self::PullPush => format!("repository:{repository}:pull,push"),
            Self::Mount(from) => {
                format!("repository:{repository}:pull,push repository:{from}:pull")
            }
        }
    }
}

/// Connections to one registry's hosts.
#[derive(Debug, Clone)]
pub(crate) struct Connections {
    general: reqwest::Client,
    /// Sends bodies of any length. Its answers may take as long: reqwest's read timeout runs
    /// while a body is sent.
    upload: reqwest::Client,
}

/// Sends a request with headers and body; called anew for every attempt.
pub(crate) type Build<'a> = &'a (dyn Fn(RequestBuilder) -> RequestBuilder + Send + Sync);

/// One registry host (or mirror), with what is known about talking to it.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    http: Connections,
    /// `docker.io`'s API is elsewhere than its name.
    host: String,
    schemes: Arc<Mutex<Vec<&'static str>>>,
    credential: Option<Credential>,
    tokens: Arc<Mutex<HashMap<String, String>>>,
    basic: Arc<Mutex<bool>>,
}

/// Makes the connections to a registry; `local` ones never go through a proxy.
pub(crate) fn connect(
    settings: &RegistrySettings,
    local: bool,
) -> Result<Connections, RegistryError> {
    Ok(Connections {
        general: client(settings, local, Some(READ_TIMEOUT))?,
        upload: client(settings, local, None)?,
    })
}

fn client(
    settings: &RegistrySettings,
    local: bool,
    read_timeout: Option<Duration>,
) -> Result<reqwest::Client, RegistryError> {
    // Another part of the process may have installed one already: either will do.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let failed = |path: &std::path::Path, reason: String| RegistryError::Config {
        path: path.into(),
        reason,
    };
    let mut builder = reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .user_agent(concat!("corten/", env!("CARGO_PKG_VERSION")));
    if let Some(timeout) = read_timeout {
        builder = builder.read_timeout(timeout);
    }
    if local {
        builder = builder.no_proxy();
    }
    if settings.insecure {
        builder = builder.danger_accept_invalid_certs(true);
    }
    if let Some(ca) = &settings.ca {
        let pem = std::fs::read(ca).map_err(|e| failed(ca, e.to_string()))?;
        let authorities =
            reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| failed(ca, e.to_string()))?;
        builder = builder.tls_certs_merge(authorities);
    }
    if let (Some(cert), Some(key)) = (&settings.client_cert, &settings.client_key) {
        let mut pem = std::fs::read(cert).map_err(|e| failed(cert, e.to_string()))?;
        pem.push(b'\n');
        pem.extend(std::fs::read(key).map_err(|e| failed(key, e.to_string()))?);
        let identity =
            reqwest::Identity::from_pem(&pem).map_err(|e| failed(cert, e.to_string()))?;
        builder = builder.identity(identity);
    }
    builder
        .build()
        .map_err(|e| failed(std::path::Path::new("TLS"), innermost(&e)))
}

impl Host {
    /// A registry by domain, or a mirror by URL.
    pub(crate) fn new(
        http: Connections,
        domain_or_url: &str,
        settings: &RegistrySettings,
        credential: Option<Credential>,
    ) -> Self {
        let (schemes, host) = if let Some(host) = domain_or_url.strip_prefix("http://") {
            (vec!["http"], host)
        } else if let Some(host) = domain_or_url.strip_prefix("https://") {
            (vec!["https"], host)
        } else if settings.plain_http {
            (vec!["http"], domain_or_url)
        } else if settings.insecure || is_loopback(domain_or_url) {
            (vec!["https", "http"], domain_or_url)
        } else {
            (vec!["https"], domain_or_url)
        };
        let host = match host.trim_end_matches('/') {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        Self {
            http,
            host: host.to_owned(),
            schemes: Arc::new(Mutex::new(schemes)),
            credential,
            tokens: Arc::default(),
            basic: Arc::default(),
        }
    }

    /// Host and port, for messages.
    pub(crate) fn name(&self) -> &str {
        &self.host
    }

    pub(crate) fn protocol(&self, reason: impl ToString) -> RegistryError {
        RegistryError::Protocol {
            registry: self.host.clone(),
            reason: reason.to_string(),
        }
    }

    fn scheme_list(&self) -> Vec<&'static str> {
        self.schemes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// An absolute URL of a path, or of a `Location` the registry gave.
    pub(crate) fn url(&self, path: &str) -> String {
        if path.starts_with("http://") || path.starts_with("https://") {
            return path.to_owned();
        }
        let scheme = self.scheme_list().first().copied().unwrap_or("https");
        format!("{scheme}://{}{path}", self.host)
    }

    /// Sends a request for a repository, authenticating as the registry asks. `build` adds
    /// headers and body; it is called anew for every attempt.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        scope: Option<(&str, Access<'_>)>,
        build: Build<'_>,
    ) -> Result<Response, RegistryError> {
        let mut pause = FIRST_PAUSE;
        let mut attempt = 1;
        loop {
            let outcome = self
                .authenticated(method.clone(), path, scope, false, build)
                .await;
            let wait = match &outcome {
                Ok(response) if response.status() == StatusCode::TOO_MANY_REQUESTS => {
                    Some(retry_after(response).unwrap_or(pause))
                }
                Ok(response) if response.status().is_server_error() => Some(pause),
                Err(RegistryError::Unreachable { reason, .. }) if !is_refusal(reason) => {
                    Some(pause)
                }
                _ => None,
            };
            match wait {
                Some(wait) if attempt < ATTEMPTS => {
                    tracing::debug!(registry = %self.host, attempt, "trying again");
                    tokio::time::sleep(wait.min(MAX_PAUSE)).await;
                    pause *= 2;
                    attempt += 1;
                }
                _ => return outcome,
            }
        }
    }

    /// Sends a body of any length, once: whether it may be sent again is the caller's to know.
    pub(crate) async fn upload(
        &self,
        method: Method,
        path: &str,
        scope: Option<(&str, Access<'_>)>,
        build: Build<'_>,
    ) -> Result<Response, RegistryError> {
        self.authenticated(method, path, scope, true, build).await
    }

    async fn authenticated(
        &self,
        method: Method,
        path: &str,
        scope: Option<(&str, Access<'_>)>,
        upload: bool,
        build: Build<'_>,
    ) -> Result<Response, RegistryError> {
        let scope_text = scope.map(|(repository, access)| access.scopes(repository));
        let key = scope_text.clone().unwrap_or_default();
        let token = self
            .tokens
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&key)
            .cloned();
        let response = self
            .once(method.clone(), path, token.as_deref(), upload, build)
            .await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let challenge = response
            .headers()
            .get_all(header::WWW_AUTHENTICATE)
            .iter()
            .find_map(|value| Challenge::parse(value.to_str().ok()?));
        if let Some(challenge) = challenge {
            match challenge {
                Challenge::Bearer {
                    realm,
                    service,
                    scope,
                } => {
                    let scope = scope_text.clone().or(scope);
                    let token = self
                        .token(&realm, service.as_deref(), scope.as_deref())
                        .await?;
                    self.tokens
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .insert(key, token.clone());
                    return self.once(method, path, Some(&token), upload, build).await;
                }
                Challenge::Basic
                    if self
                        .credential
                        .as_ref()
                        .is_some_and(|c| !c.username.is_empty()) =>
                {
                    *self.basic.lock().unwrap_or_else(PoisonError::into_inner) = true;
                    return self.once(method, path, None, upload, build).await;
                }
                Challenge::Basic => {
                    return Err(RegistryError::Unauthorized(format!(
                        "authentication required: no basic auth credentials for {}",
                        self.host
                    )));
                }
            }
        }
        Ok(response)
    }

    /// One request, over the schemes that may be tried.
    async fn once(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        upload: bool,
        build: Build<'_>,
    ) -> Result<Response, RegistryError> {
        let schemes = self.scheme_list();
        let mut first_error = None;
        for scheme in &schemes {
            let url = if path.starts_with("http") {
                path.to_owned()
            } else {
                format!("{scheme}://{}{path}", self.host)
            };
            let http = if upload {
                &self.http.upload
            } else {
                &self.http.general
            };
            let mut request = http.request(method.clone(), &url);
            // A `Location` elsewhere, or without the TLS we have, gets no credentials.
            let own = url.split_once("://").is_some_and(|(scheme, rest)| {
                schemes.contains(&scheme) && rest.split('/').next() == Some(self.host.as_str())
            });
            if own {
                let basic = *self.basic.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(token) = token {
                    request = request.bearer_auth(token);
                } else if let (true, Some(c)) = (basic, &self.credential) {
                    request = request.basic_auth(&c.username, Some(&c.password));
                }
            }
            match build(request).send().await {
                Ok(response) => {
                    if schemes.len() > 1 {
                        *self.schemes.lock().unwrap_or_else(PoisonError::into_inner) =
                            vec![*scheme];
                    }
                    return Ok(response);
                }
                Err(error) => {
                    let unreachable = RegistryError::Unreachable {
                        registry: self.host.clone(),
                        reason: innermost(&error),
                    };
                    first_error.get_or_insert(unreachable);
                }
            }
        }
        Err(first_error.unwrap_or_else(|| self.protocol("no scheme to try")))
    }

    /// A bearer token (distribution "Token authentication" and its OAuth2 form).
    async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
    ) -> Result<String, RegistryError> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(default)]
            token: String,
            #[serde(default)]
            access_token: String,
        }
        let credential = self.credential.clone().unwrap_or_default();
        if !credential.registry_token.is_empty() {
            return Ok(credential.registry_token);
        }
        let unreachable = |error: reqwest::Error| RegistryError::Unreachable {
            registry: realm.to_owned(),
            reason: innermost(&error),
        };
        let response = if credential.identity_token.is_empty() {
            let mut query: Vec<(&str, &str)> = Vec::new();
            query.extend(service.map(|s| ("service", s)));
            query.extend(
                scope
                    .iter()
                    .flat_map(|s| s.split(' '))
                    .map(|s| ("scope", s)),
            );
            let mut request = self.http.general.get(realm).query(&query);
            if !credential.username.is_empty() {
                request = request
                    .query(&[("account", &credential.username)])
                    .basic_auth(&credential.username, Some(&credential.password));
            }
            request.send().await.map_err(unreachable)?
        } else {
            let mut form = vec![
                ("grant_type", "refresh_token"),
                ("client_id", CLIENT_ID),
                ("refresh_token", &credential.identity_token),
            ];
            form.extend(service.map(|s| ("service", s)));
            form.extend(scope.map(|s| ("scope", s)));
            self.http
                .general
                .post(realm)
                .form(&form)
                .send()
                .await
                .map_err(unreachable)?
        };
        if matches!(
            response.status(),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
        ) {
            return Err(RegistryError::Unauthorized(
                "incorrect username or password".into(),
            ));
        }
        if !response.status().is_success() {
            return Err(self.protocol(format!("token server answered {}", response.status())));
        }
        let answer: Answer = response.json().await.map_err(unreachable)?;
        let token = if answer.token.is_empty() {
            answer.access_token
        } else {
            answer.token
        };
        if token.is_empty() {
            return Err(self.protocol("the token server gave no token"));
        }
        Ok(token)
    }
}

/// The words of an error answer: the registry's own where it has any.
pub(crate) async fn words(response: Response) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let status = response.status();
    let body = response.bytes().await.unwrap_or_default();
    let body = &body[..body.len().min(MAX_ERROR)];
    match serde_json::from_slice::<Errors>(body) {
        Ok(Errors { errors }) if !errors.is_empty() => errors
            .iter()
            .map(|e| format!("{}: {}", e.code.to_lowercase().replace('_', " "), e.message))
            .collect::<Vec<_>>()
            .join("; "),
        _ => format!("unexpected status {status}"),
    }
}

fn retry_after(response: &Response) -> Option<Duration> {
    let value = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?;
    value.parse().ok().map(Duration::from_secs)
}

/// Nobody answers there: trying again at once does not help.
fn is_refusal(reason: &str) -> bool {
    let reason = reason.to_lowercase();
    [
        "refused",
        "lookup",
        "name resolution",
        "dns",
        "certificate",
        "unreachable",
        "no route",
        "timed out",
    ]
    .iter()
    .any(|w| reason.contains(w))
}

/// The cause at the bottom: what the system said.
pub(crate) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// Parses a `WWW-Authenticate` value (RFC 9110, 11.6.1), one challenge.
    fn parse(value: &str) -> Option<Self> {
        let (scheme, rest) = value.trim().split_once(' ').unwrap_or((value.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service, mut scope) = (None, None, None);
        let mut rest = rest.trim_start();
        while let Some((key, after)) = rest.split_once('=') {
            let (value, after) = if let Some(quoted) = after.strip_prefix('"') {
                let mut text = String::new();
                let mut characters = quoted.char_indices();
                let mut end = quoted.len();
                while let Some((at, c)) = characters.next() {
                    match c {
                        '"' => {
                            end = at + 1;
                            break;
                        }
                        '\\' => text.extend(characters.next().map(|(_, c)| c)),
                        c => text.push(c),
                    }
                }
                (text, &quoted[end.min(quoted.len())..])
            } else {
                let end = after.find(',').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            };
            match key.trim().to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value),
                "service" => service = Some(value),
                "scope" => scope = Some(value),
                _ => {}
            }
            rest = after.trim_start_matches([',', ' ']);
        }
        Some(Self::Bearer {
            realm: realm?,
            service,
            scope,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn challenges() {
        assert_eq!(
            Challenge::parse("Basic realm=\"x\""),
            Some(Challenge::Basic)
        );
        assert_eq!(
            Challenge::parse(
                r#"Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push""#
            ),
            Some(Challenge::Bearer {
                realm: "https://a/t".into(),
                service: Some("s".into()),
                scope: Some("repository:a/b:pull,push".into())
            })
        );
        assert_eq!(Challenge::parse("Bearer service=x"), None);
        assert_eq!(Challenge::parse("Digest realm=x"), None);
    }

    proptest! {
        #[test]
        fn any_challenge_is_survived(value in ".{0,200}") {
            let _parsed = Challenge::parse(&value);
        }

        #[test]
        fn any_bearer_challenge_is_survived(value in "Bearer [a-z=\",\\\\ ]{0,80}") {
            let _parsed = Challenge::parse(&value);
        }
    }
}
