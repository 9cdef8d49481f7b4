//! Requests to one endpoint of a registry: schemes, authentication, redirects, retries, errors
//! in words.
//!
//! Credentials, and the headers that settings add, only ever go to the host they are for and
//! to the token server it names; a redirect to another host carries none, and that host's
//! challenge is not answered. Loopback registries
//! may speak plain HTTP unasked: HTTPS is tried first.

use std::sync::{Arc, Mutex, PoisonError};

use http::{Method, StatusCode, header};
use reqwest::{RequestBuilder, Response};
use url::Url;

use crate::challenge::{Challenge, Scopes};
use crate::connections::Connections;
use crate::credential::Credential;
use crate::document::words;
use crate::endpoint::Endpoint;
use crate::error::RegistryError;
use crate::retry::{self, FIRST_PAUSE, MAX_PAUSE};
use crate::token::Tokens;

const ATTEMPTS: u32 = 4;
pub(crate) const MAX_REDIRECTS: usize = 10;

/// What a request may do with a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access<'a> {
    Pull,
    PullPush,
    Delete,
    /// Push, and take over blobs from another repository.
    Mount(&'a str),
}

impl Access<'_> {
    /// The scopes to ask a token server for.
    fn scopes(self, repository: &str) -> Scopes {
        Scopes::parse(&match self {
            Self::Pull => format!("repository:{repository}:pull"),
            Self::PullPush => format!("repository:{repository}:pull,push"),
            Self::Delete => format!("repository:{repository}:delete"),
            Self::Mount(from) => {
                format!("repository:{repository}:pull,push repository:{from}:pull")
            }
        })
    }
}

/// What a request is about, for the token it may need.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Scope<'a> {
    /// Nothing in particular.
    None,
    Catalog,
    Repository(&'a str, Access<'a>),
}

impl Scope<'_> {
    fn scopes(self) -> Scopes {
        match self {
            Self::None => Scopes::default(),
            Self::Catalog => Scopes::parse("registry:catalog:*"),
            Self::Repository(name, access) => access.scopes(name),
        }
    }
}

/// Where a request goes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target<'a> {
    /// Below the endpoint's `/v2`: `/<name>/…`, or nothing for the base.
    Api(&'a str),
    /// The same, of which a digest says what it has to be: the whole answer is checked.
    Content(&'a str),
    /// Where the registry said.
    Location(&'a Url),
}

/// Sends a request with headers and body; called anew for every attempt.
pub(crate) type Build<'a> = &'a (dyn Fn(RequestBuilder) -> RequestBuilder + Send + Sync);

/// One endpoint, with what is known about talking to it.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    http: Connections,
    endpoint: Arc<Endpoint>,
    schemes: Arc<Mutex<Vec<&'static str>>>,
    credential: Option<Credential>,
    tokens: Arc<Tokens>,
    basic: Arc<Mutex<bool>>,
}

impl Host {
    /// An endpoint to speak to. Only the registry itself gets the credential.
    pub(crate) fn new(
        http: Connections,
        endpoint: Endpoint,
        credential: Option<&Credential>,
    ) -> Self {
        let credential = credential.filter(|_| endpoint.own).cloned();
        Self {
            http,
            schemes: Arc::new(Mutex::new(endpoint.schemes.clone())),
            endpoint: Arc::new(endpoint),
            credential,
            tokens: Arc::default(),
            basic: Arc::default(),
        }
    }

    /// Host and port, for messages.
    pub(crate) fn name(&self) -> &str {
        &self.endpoint.host
    }

    /// What it may be asked for.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(crate) fn protocol(&self, reason: impl ToString) -> RegistryError {
        RegistryError::Protocol {
            registry: self.endpoint.host.clone(),
            reason: reason.to_string(),
        }
    }

    fn no_tls(&self, reason: String) -> RegistryError {
        RegistryError::NoTls {
            registry: self.endpoint.host.clone(),
            reason,
        }
    }

    fn scheme_list(&self) -> Vec<&'static str> {
        self.schemes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn url(&self, scheme: &str, target: Target<'_>) -> Result<Url, RegistryError> {
        let path = match target {
            Target::Location(url) if self.gives_up_tls(url) => {
                return Err(self.no_tls(format!(
                    "it wants to go on at {url}, without TLS: where a proxy has its TLS, that has \
                     to send X-Forwarded-Proto: https"
                )));
            }
            Target::Location(url) => return Ok(url.clone()),
            Target::Api("") => "/",
            Target::Api(path) | Target::Content(path) => path,
        };
        let endpoint = &self.endpoint;
        let text = format!("{scheme}://{}{}{path}", endpoint.host, endpoint.base);
        let mut url = Url::parse(&text).map_err(|error| self.protocol(error))?;
        if let Some(namespace) = &endpoint.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Ok(url)
    }

    /// The URL of the base, for messages.
    pub(crate) fn base_url(&self) -> String {
        let scheme = self.scheme_list().first().copied().unwrap_or("https");
        format!("{scheme}://{}{}/", self.endpoint.host, self.endpoint.base)
    }

    /// Where an answer's `Location` or `Link` leads (RFC 9110, 10.2.2: relative to where it
    /// came from). A registry whose TLS is a proxy's may not know that it has any: what it calls
    /// its own is asked for with the TLS that this answer came with.
    pub(crate) fn follow(&self, from: &Url, given: &str) -> Result<Url, RegistryError> {
        let url = self.joined(from, given)?;
        // Another port that is named is another server.
        let same_port = url.port().is_none() || url.port() == from.port_or_known_default();
        if from.scheme() != "https"
            || url.host() != from.host()
            || !same_port
            || !self.gives_up_tls(&url)
        {
            return Ok(url);
        }
        let mut own = from.clone();
        own.set_path(url.path());
        own.set_query(url.query());
        Ok(own)
    }

    /// Where a redirect leads; not out of TLS, unless the answer is `verified`.
    fn redirected(&self, from: &Url, given: &str, verified: bool) -> Result<Url, RegistryError> {
        if verified {
            return self.joined(from, given);
        }
        let url = self.follow(from, given)?;
        if self.gives_up_tls(&url) {
            return Err(self.no_tls(format!(
                "it sends on to {url}, without TLS: what comes from there could be changed on the \
                 way"
            )));
        }
        Ok(url)
    }

    fn joined(&self, from: &Url, given: &str) -> Result<Url, RegistryError> {
        from.join(given)
            .map_err(|error| self.protocol(format!("it leads to \"{given}\": {error}")))
    }

    /// Whether a URL is the endpoint's own: what leads elsewhere, or away from the TLS we
    /// have, gets no credentials.
    fn is_own(&self, url: &Url) -> bool {
        self.scheme_list().iter().any(|scheme| {
            let own = Url::parse(&format!("{scheme}://{}", self.endpoint.host));
            own.is_ok_and(|own| own.origin() == url.origin())
        })
    }

    /// Whether a redirect of a registry that has TLS leads out of it, and of this machine.
    fn gives_up_tls(&self, next: &Url) -> bool {
        let local = || next.host_str().is_some_and(crate::config::is_loopback);
        next.scheme() != "https" && !self.endpoint.schemes.contains(&"http") && !local()
    }

    /// Sends a request, authenticating as the registry asks. `build` adds headers and body;
    /// it is called anew for every attempt.
    pub(crate) async fn send(
        &self,
        method: Method,
        target: Target<'_>,
        scope: Scope<'_>,
        build: Build<'_>,
    ) -> Result<Response, RegistryError> {
        let mut pause = FIRST_PAUSE;
        let mut attempt = 1;
        loop {
            let outcome = self
                .authenticated(method.clone(), target, scope, false, build)
                .await;
            let wait = match &outcome {
                Ok(response) if response.status() == StatusCode::TOO_MANY_REQUESTS => {
                    match retry::after(response.headers()) {
                        // Waiting so long helps nobody: the user is told.
                        Some(asked) if asked > MAX_PAUSE => None,
                        asked => Some(asked.unwrap_or(pause)),
                    }
                }
                Ok(response) if response.status().is_server_error() => {
                    let asked = retry::after(response.headers());
                    Some(asked.filter(|asked| *asked <= MAX_PAUSE).unwrap_or(pause))
                }
                Err(RegistryError::Unreachable { reason, .. }) if !is_refusal(reason) => {
                    Some(pause)
                }
                _ => None,
            };
            match wait {
                Some(wait) if attempt < ATTEMPTS => {
                    tracing::debug!(registry = self.name(), attempt, ?wait, "trying again");
                    tokio::time::sleep(wait.min(MAX_PAUSE)).await;
                    pause *= 2;
                    attempt += 1;
                }
                _ => return self.limited(outcome).await,
            }
        }
    }

    /// Turns a refusal for too many requests into an error of its own.
    async fn limited(
        &self,
        outcome: Result<Response, RegistryError>,
    ) -> Result<Response, RegistryError> {
        match outcome {
            Ok(response) if response.status() == StatusCode::TOO_MANY_REQUESTS => {
                let after = retry::after(response.headers());
                Err(RegistryError::RateLimited {
                    registry: self.endpoint.host.clone(),
                    reason: words(response).await,
                    after,
                })
            }
            other => other,
        }
    }

    /// Sends a body of any length, once: whether it may be sent again is the caller's to know.
    pub(crate) async fn upload(
        &self,
        method: Method,
        target: Target<'_>,
        scope: Scope<'_>,
        build: Build<'_>,
    ) -> Result<Response, RegistryError> {
        self.authenticated(method, target, scope, true, build).await
    }

    /// Fetches a file that is not the registry's, without credentials.
    pub(crate) async fn elsewhere(
        &self,
        url: Url,
        build: Build<'_>,
    ) -> Result<Response, RegistryError> {
        let request = Sending {
            method: &Method::GET,
            token: None,
            upload: false,
            verified: true,
        };
        let answer = self.through(&request, url, build).await;
        answer.map_err(|failed| failed.error)
    }

    async fn authenticated(
        &self,
        method: Method,
        target: Target<'_>,
        scope: Scope<'_>,
        upload: bool,
        build: Build<'_>,
    ) -> Result<Response, RegistryError> {
        let wanted = scope.scopes();
        let token = self.tokens.get(&wanted);
        let response = self
            .once(method.clone(), target, token.as_deref(), upload, build)
            .await?;
        // Whoever a redirect led to was shown nothing, and has no say in where secrets go.
        if response.status() != StatusCode::UNAUTHORIZED || !self.is_own(response.url()) {
            return Ok(response);
        }
        if let Some(token) = token {
            self.tokens.forget(&token);
        }
        let challenges = response.headers().get_all(header::WWW_AUTHENTICATE).iter();
        let challenge = Challenge::choose(challenges.filter_map(|value| value.to_str().ok()));
        match challenge {
            Some(Challenge::Bearer {
                realm,
                service,
                scope,
            }) => {
                let asked = Scopes::parse(scope.as_deref().unwrap_or_default());
                let wanted = wanted.merged(&asked);
                let token = self.token(&realm, service.as_deref(), &wanted).await?;
                self.once(method, target, Some(&token), upload, build).await
            }
            Some(Challenge::Basic)
                if self
                    .credential
                    .as_ref()
                    .is_some_and(|c| !c.username.is_empty()) =>
            {
                *self.basic.lock().unwrap_or_else(PoisonError::into_inner) = true;
                self.once(method, target, None, upload, build).await
            }
            Some(Challenge::Basic) => Err(RegistryError::Unauthorized(format!(
                "authentication required: no basic auth credentials for {}",
                self.endpoint.host
            ))),
            None => Ok(response),
        }
    }

    async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        wanted: &Scopes,
    ) -> Result<String, RegistryError> {
        let realm = Url::parse(realm).map_err(|error| {
            self.protocol(format!("its token server \"{realm}\" is no URL: {error}"))
        })?;
        let credential = self.credential.clone().unwrap_or_default();
        self.tokens
            .fetch(
                &self.http.general,
                self,
                &realm,
                service,
                wanted,
                &credential,
            )
            .await
    }

    /// Whether a password may be shown to this token server: not in the clear on behalf of a
    /// registry that has TLS.
    pub(crate) fn trusts_realm(&self, realm: &Url) -> bool {
        let local = || realm.host_str().is_some_and(crate::config::is_loopback);
        realm.scheme() == "https" || self.scheme_list().contains(&"http") || local()
    }

    /// A refresh token that the token server gave on request.
    pub(crate) fn refresh_token(&self) -> Option<String> {
        self.tokens.refresh_token()
    }

    /// Asks for a refresh token with the next access token.
    pub(crate) fn want_refresh_token(&self) {
        self.tokens.want_refresh_token();
    }

    /// One request, over the schemes that may be tried, and through redirects.
    async fn once(
        &self,
        method: Method,
        target: Target<'_>,
        token: Option<&str>,
        upload: bool,
        build: Build<'_>,
    ) -> Result<Response, RegistryError> {
        let schemes = self.scheme_list();
        let request = Sending {
            method: &method,
            token,
            upload,
            verified: method == Method::GET && matches!(target, Target::Content(_)),
        };
        let mut first_error = None;
        for scheme in &schemes {
            let url = self.url(scheme, target)?;
            match self.through(&request, url, build).await {
                // It has TLS, and says that it wants to be asked with: the first error counts.
                Ok(response)
                    if response.status() == StatusCode::BAD_REQUEST
                        && first_error.as_ref().is_some_and(is_about_a_certificate) => {}
                Ok(response) => {
                    if schemes.len() > 1 {
                        *self.schemes.lock().unwrap_or_else(PoisonError::into_inner) =
                            vec![*scheme];
                    }
                    return Ok(response);
                }
                Err(Failed { error, answered }) => {
                    let unreachable = matches!(error, RegistryError::Unreachable { .. });
                    match &first_error {
                        // Here is somebody, who does not have TLS: what came of that counts.
                        Some(first) if answered && !is_about_a_certificate(first) => {
                            first_error = Some(error);
                        }
                        Some(_) => {}
                        None => first_error = Some(error),
                    }
                    if answered || !unreachable || matches!(target, Target::Location(_)) {
                        break;
                    }
                }
            }
        }
        Err(first_error.unwrap_or_else(|| self.protocol("no scheme to try")))
    }

    async fn through(
        &self,
        request: &Sending<'_>,
        mut url: Url,
        build: Build<'_>,
    ) -> Result<Response, Failed> {
        let &Sending {
            method,
            token,
            upload,
            verified,
        } = request;
        let mut answered = false;
        let failed = |answered| move |error| Failed { error, answered };
        for _ in 0..MAX_REDIRECTS {
            let http = if upload {
                &self.http.upload
            } else {
                &self.http.general
            };
            let mut request = http.request(method.clone(), url.clone());
            if self.is_own(&url) {
                for (name, value) in &self.endpoint.headers {
                    request = request.header(name, value);
                }
                let basic = *self.basic.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(token) = token {
                    request = request.bearer_auth(token);
                } else if let (true, Some(c)) = (basic, &self.credential) {
                    request = request.basic_auth(&c.username, Some(&c.password));
                }
            }
            let sent = build(request).send().await;
            let unreachable = |error: reqwest::Error| {
                let host = self.endpoint.host.clone();
                let asked = place(&url).filter(|asked| answered && *asked != host);
                RegistryError::Unreachable {
                    reason: explained(innermost(&error), asked.as_ref().unwrap_or(&host)),
                    registry: match asked {
                        Some(asked) => format!("{host}, which sends on to {asked}"),
                        None => host,
                    },
                }
            };
            let response = sent.map_err(unreachable).map_err(failed(answered))?;
            let Some(next) = redirect(method, &response) else {
                return Ok(response);
            };
            answered = true;
            url = self
                .redirected(response.url(), next, verified)
                .map_err(failed(true))?;
        }
        Err(failed(true)(self.protocol("it redirects without end")))
    }
}

/// A request, but for where it goes and what is in it.
struct Sending<'a> {
    method: &'a Method,
    token: Option<&'a str>,
    upload: bool,
    /// What is wrong in the answer shows: a digest says what it has to be.
    verified: bool,
}

/// Why there is no answer to a request.
struct Failed {
    error: RegistryError,
    /// Whoever was asked first did answer: it sent on.
    answered: bool,
}

/// Host and port, as users write them.
fn place(url: &Url) -> Option<String> {
    let host = url.host_str()?;
    Some(match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    })
}

/// Where a redirect leads that may be followed: any for reading; others only where the method
/// has to stay (RFC 9110, 15.4).
fn redirect<'a>(method: &Method, response: &'a Response) -> Option<&'a str> {
    use StatusCode as S;
    let reads = matches!(*method, Method::GET | Method::HEAD);
    match response.status() {
        S::TEMPORARY_REDIRECT | S::PERMANENT_REDIRECT => {}
        S::MOVED_PERMANENTLY | S::FOUND | S::SEE_OTHER if reads => {}
        _ => return None,
    }
    response.headers().get(header::LOCATION)?.to_str().ok()
}

fn is_about_a_certificate(error: &RegistryError) -> bool {
    // Its own is not trusted, or it wants one of us ("CertificateRequired").
    let wants = |reason: &str| reason.to_lowercase().contains("certificate");
    matches!(error, RegistryError::Unreachable { reason, .. } if wants(reason))
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

/// What to do about a certificate that is not trusted.
fn explained(reason: String, host: &str) -> String {
    if reason.contains("No CA certificates were loaded") {
        return format!(
            "this machine has no CA certificates to check its certificate with: install them \
             (ca-certificates), or put its authority's into /etc/corten/certs.d/{host}/ca.crt"
        );
    }
    if !["UnknownIssuer", "CaUsedAsEndEntity"]
        .iter()
        .any(|word| reason.contains(word))
    {
        return reason;
    }
    format!(
        "its certificate is signed by an authority that is not trusted here: put the authority's \
         certificate into /etc/corten/certs.d/{host}/ca.crt"
    )
}

/// The cause at the bottom: what the system said.
pub(crate) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests;
