//! Who is asking, and may they: passwords (RFC 7617) and bearer tokens (Docker's token
//! specification), and the rules that say who may do what.
//!
//! With passwords alone a request is refused with a `Basic` challenge. With tokens the
//! challenge names a token server: another program's, or [`token`]'s endpoint of this server.
//! A token is believed for what is signed in it; a password for what the rules say.

mod htpasswd;
mod jwt;
mod keys;
mod rules;
mod token;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, HOST, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue};
use serde_json::{Value, json};

pub(crate) use htpasswd::entry;
pub use rules::{Action, Rule};

use crate::error::{ApiError, Code, RegistrydError};
use crate::server::Config;
use crate::watched::Watched;
use htpasswd::Htpasswd;
use jwt::Access;
use keys::{PublicKey, SigningKey};

/// Where the built-in token endpoint is.
pub(crate) const TOKEN_PATH: &str = "/token";
/// The name that tokens are for where none is configured.
const SERVICE: &str = "corten-registry";
/// Where the built-in endpoint's key is, below the root, where none is configured.
const SIGNING_KEY: &str = "token-key.pem";

/// Bearer tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenConfig {
    /// The token server's URL. Without keys it is where clients find the built-in endpoint; by
    /// default at the address by which they know this server.
    pub realm: Option<String>,
    /// The name of this registry in tokens, `corten-registry` if empty.
    pub service: String,
    /// Who must have made the tokens; anybody with a trusted key if empty.
    pub issuer: String,
    /// Files with the public keys of the token server: PEM (keys, certificates) or JWK sets.
    pub keys: Vec<PathBuf>,
    /// The private key of the built-in endpoint; `token-key.pem` in the root if absent.
    pub signing_key: Option<PathBuf>,
    /// How long tokens of the built-in endpoint hold; five minutes if absent.
    pub lifetime: Option<Duration>,
}

/// Who sent a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Identity {
    /// Nobody is asked for anything.
    Open,
    /// No credentials came.
    Anonymous,
    /// Password checked.
    User(String),
    /// Token checked.
    Token {
        subject: String,
        access: Vec<Access>,
    },
}

impl Identity {
    /// For the log.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Open | Self::Anonymous => "",
            Self::User(name) => name,
            Self::Token { subject, .. } => subject,
        }
    }
}

/// What a request needs to be allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need<'a> {
    /// To be somebody: the API's base, where clients try their credentials.
    Login,
    /// The list of repositories.
    Catalog,
    /// An action on a repository.
    Repository(&'a str, Action),
}

/// Decides about requests.
#[derive(Debug)]
pub(crate) struct Gate {
    users: Option<Htpasswd>,
    tokens: Option<Tokens>,
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Tokens {
    realm: Option<String>,
    service: String,
    issuer: String,
    keys: Option<Arc<Watched<Vec<PublicKey>>>>,
    signer: Option<SigningKey>,
    lifetime: Duration,
}

impl Gate {
    pub(crate) fn open(config: &Config) -> Result<Self, RegistrydError> {
        let users = config.htpasswd.as_deref().map(Htpasswd::open).transpose()?;
        let tokens = match &config.token {
            Some(token) => Some(Tokens::open(token, config)?),
            None => None,
        };
        if users.is_none() && tokens.is_none() && !config.rules.is_empty() {
            return Err(RegistrydError::Unsupported(
                "access rules need users: set htpasswd or tokens",
            ));
        }
        Ok(Self {
            users,
            tokens,
            rules: config.rules.clone(),
        })
    }

    /// Whether anybody is asked for anything.
    pub(crate) fn is_open(&self) -> bool {
        self.users.is_none() && self.tokens.is_none()
    }

    /// Who sent these headers. Wrong credentials are an error even where none are needed.
    pub(crate) async fn identify(&self, parts: &Parts) -> Result<Identity, ApiError> {
        if self.is_open() {
            return Ok(Identity::Open);
        }
        let refused = |error| self.challenge(parts, Need::Login, error);
        let Some(value) = parts.headers.get(AUTHORIZATION) else {
            return Ok(Identity::Anonymous);
        };
        if let (Some(tokens), Some(token)) = (&self.tokens, bearer(value)) {
            return match tokens.check(token).await {
                Ok(claims) => Ok(Identity::Token {
                    subject: claims.sub,
                    access: claims.access,
                }),
                Err(reason) => {
                    tracing::debug!(reason, "token refused");
                    Err(refused(Some("invalid_token")))
                }
            };
        }
        match self.password(&parts.headers).await? {
            Some(user) => Ok(Identity::User(user)),
            None => Err(refused(None)),
        }
    }

    /// The user whose name and password are in these headers.
    async fn password(&self, headers: &HeaderMap) -> Result<Option<String>, ApiError> {
        let (Some(users), Some((user, password))) = (&self.users, credentials(headers)) else {
            return Ok(None);
        };
        let right = users.verify(&user, &password).await?;
        Ok(right.then_some(user))
    }

    /// Whether somebody may do this.
    pub(crate) fn allows(&self, who: &Identity, need: Need<'_>) -> bool {
        match (who, need) {
            (Identity::Open, _)
            | (Identity::User(_) | Identity::Token { .. }, Need::Login)
            | (Identity::User(_), Need::Catalog) => true,
            // So that clients notice that there is something to log in to.
            (Identity::Anonymous, Need::Login | Need::Catalog) => false,
            (Identity::Anonymous, Need::Repository(name, action)) => {
                self.grants(None, name, action)
            }
            (Identity::User(user), Need::Repository(name, action)) => {
                self.grants(Some(user), name, action)
            }
            (Identity::Token { access, .. }, Need::Catalog) => {
                granted(access, "registry", "catalog", "*")
            }
            (Identity::Token { access, .. }, Need::Repository(name, action)) => {
                granted(access, "repository", name, action.as_str())
            }
        }
    }

    /// As [`Self::allows`], or the refusal to send.
    pub(crate) fn check(
        &self,
        who: &Identity,
        need: Need<'_>,
        parts: &Parts,
    ) -> Result<(), ApiError> {
        if self.allows(who, need) {
            return Ok(());
        }
        match who {
            // Another password would not help.
            Identity::Open | Identity::User(_) => Err(ApiError::new(Code::Denied, detail(need))),
            Identity::Token { .. } => Err(self.challenge(parts, need, Some("insufficient_scope"))),
            Identity::Anonymous => Err(self.challenge(parts, need, None)),
        }
    }

    /// Whether a repository may be shown in a list.
    pub(crate) fn shows(&self, who: &Identity, repository: &str) -> bool {
        match who {
            Identity::Open => true,
            Identity::Anonymous => self.grants(None, repository, Action::Pull),
            Identity::User(user) => self.grants(Some(user), repository, Action::Pull),
            // Somebody else's tokens say that all may be seen; ours leave it to the rules.
            Identity::Token { subject, .. } if self.is_built_in() => {
                let user = Some(subject.as_str()).filter(|name| !name.is_empty());
                self.grants(user, repository, Action::Pull)
            }
            Identity::Token { .. } => true,
        }
    }

    /// Whether the rules, or their absence, let a user do this.
    fn grants(&self, user: Option<&str>, repository: &str, action: Action) -> bool {
        if self.rules.is_empty() {
            return user.is_some();
        }
        rules::allow(&self.rules, user, repository, action)
    }

    fn is_built_in(&self) -> bool {
        let tokens = self.tokens.as_ref();
        tokens.is_some_and(|tokens| tokens.signer.is_some())
    }

    fn challenge(&self, parts: &Parts, need: Need<'_>, error: Option<&str>) -> ApiError {
        let refusal = ApiError::new(Code::Unauthorized, detail(need));
        let Some(tokens) = &self.tokens else {
            return refusal.header(WWW_AUTHENTICATE, "Basic realm=\"Registry\"");
        };
        let realm = match &tokens.realm {
            Some(realm) => realm.clone(),
            None => own_realm(parts),
        };
        let mut text = format!(
            "Bearer realm=\"{}\",service=\"{}\"",
            quoted(&realm),
            quoted(&tokens.service)
        );
        match need {
            Need::Login => {}
            Need::Catalog => text.push_str(",scope=\"registry:catalog:*\""),
            Need::Repository(name, action) => {
                // A push asks what is there first.
                let actions = match action {
                    Action::Pull => "pull",
                    Action::Push => "pull,push",
                    Action::Delete => "delete",
                };
                text.push_str(&format!(",scope=\"repository:{name}:{actions}\""));
            }
        }
        if let Some(error) = error {
            text.push_str(&format!(",error=\"{error}\""));
        }
        refusal.header(WWW_AUTHENTICATE, &text)
    }
}

impl Tokens {
    fn open(token: &TokenConfig, config: &Config) -> Result<Self, RegistrydError> {
        let keys = if token.keys.is_empty() {
            None
        } else {
            Some(Arc::new(Watched::open(token.keys.clone(), |paths| {
                keys::load(paths)
            })?))
        };
        let signer = match (&keys, &config.htpasswd) {
            (Some(_), _) if token.realm.is_none() => {
                return Err(RegistrydError::Unsupported(
                    "the keys of another token server are not enough: set its realm, too",
                ));
            }
            (Some(_), _) => None,
            (None, None) => {
                return Err(RegistrydError::Unsupported(
                    "the built-in token endpoint needs users (htpasswd), and another token \
                     server its realm and keys",
                ));
            }
            (None, Some(_)) if config.storage.is_some() && token.signing_key.is_none() => {
                return Err(RegistrydError::Unsupported(
                    "servers that share an object store must sign tokens with the same key: set \
                     signing_key",
                ));
            }
            (None, Some(_)) => {
                let own = config.root.join(SIGNING_KEY);
                let path = token.signing_key.as_ref().unwrap_or(&own);
                let make = token.signing_key.is_none() && !config.read_only;
                Some(SigningKey::open(path, make)?)
            }
        };
        let service = match token.service.as_str() {
            "" => SERVICE,
            name => name,
        };
        Ok(Self {
            realm: token.realm.clone(),
            service: service.to_owned(),
            issuer: token.issuer.clone(),
            keys,
            signer,
            lifetime: token.lifetime.unwrap_or(token::LIFETIME),
        })
    }

    async fn check(&self, token: &str) -> Result<jwt::Claims, &'static str> {
        let mut keys: Vec<PublicKey> = Vec::new();
        if let Some(files) = &self.keys {
            keys.extend(files.current().await.iter().cloned());
        }
        keys.extend(self.signer.iter().map(|signer| signer.public().clone()));
        let claims = jwt::verify(token, &keys, &self.service, jwt::now())?;
        if !self.issuer.is_empty() && claims.iss != self.issuer {
            return Err("the token is of another issuer");
        }
        if claims.corten.is_some() {
            return Err("the token is no access token");
        }
        Ok(claims)
    }
}

fn detail(need: Need<'_>) -> Value {
    match need {
        Need::Login => Value::Null,
        Need::Catalog => json!([{"Type": "registry", "Name": "catalog", "Action": "*"}]),
        Need::Repository(name, action) => {
            json!([{"Type": "repository", "Name": name, "Action": action.as_str()}])
        }
    }
}

fn granted(access: &[Access], kind: &str, name: &str, action: &str) -> bool {
    access.iter().any(|entry| {
        entry.kind == kind
            && entry.name == name
            && entry
                .actions
                .iter()
                .any(|have| have == action || have == "*")
    })
}

/// The built-in endpoint as the client can reach it: by the host it called us.
fn own_realm(parts: &Parts) -> String {
    let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
    let host = host.unwrap_or("localhost");
    let tls = parts.extensions.get::<crate::server::Peer>();
    let scheme = if tls.is_some_and(|peer| peer.tls) {
        "https"
    } else {
        "http"
    };
    format!("{scheme}://{host}{TOKEN_PATH}")
}

/// Inside a quoted string (RFC 9110 5.6.4).
fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

fn bearer(value: &HeaderValue) -> Option<&str> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The name and password of a `Basic` header.
fn credentials(headers: &HeaderMap) -> Option<(String, Vec<u8>)> {
    let value = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes)?;
    let (scheme, text) = value.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let decoded = STANDARD.decode(text.trim_ascii()).ok()?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    let user = String::from_utf8(decoded[..colon].to_vec()).ok()?;
    Some((user, decoded[colon + 1..].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_credentials() {
        let basic = |text: &str| {
            let mut headers = HeaderMap::new();
            let value = format!("Basic {}", STANDARD.encode(text));
            headers.insert(AUTHORIZATION, value.parse().unwrap());
            headers
        };
        let (user, password) = credentials(&basic("ann:a:b")).unwrap();
        assert_eq!(
            (user.as_str(), password.as_slice()),
            ("ann", b"a:b".as_slice())
        );
        assert!(credentials(&basic("ann")).is_none());
        assert!(credentials(&HeaderMap::new()).is_none());
    }
}
