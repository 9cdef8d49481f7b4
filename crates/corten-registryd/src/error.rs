//! What can go wrong: [`RegistrydError`] while starting or on the disk, [`ApiError`] as a
//! client sees it (distribution-spec "Error Codes": JSON with `errors`, each with a code,
//! a message and a detail).

use std::io;
use std::path::{Path, PathBuf};

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderValue, StatusCode};
use serde_json::{Value, json};

/// Why the server could not start, or an operation on its files failed.
#[derive(Debug, thiserror::Error)]
pub enum RegistrydError {
    /// The address cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// As given.
        address: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// A verb: what was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// An object store did not do what it was asked for.
    #[error("cannot {action} {key}: {}", one_line(source))]
    Store {
        /// A verb: what was tried.
        action: &'static str,
        /// On what, with the store's URL.
        key: String,
        /// What the store said.
        #[source]
        source: Box<object_store::Error>,
    },
    /// An object store that cannot be used as configured.
    #[error("storage {url}: {reason}")]
    Storage {
        /// Which one.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// A line of the password file cannot be used.
    #[error("{}: line {line}: {reason}", path.display())]
    Htpasswd {
        /// The password file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A certificate or key file does not hold what it should.
    #[error("{}: {reason}", path.display())]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A key file for tokens cannot be used.
    #[error("{}: {reason}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The settings file has a mistake.
    #[error("{}: line {line}: {reason}", path.display())]
    Settings {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// A user name that a password file cannot hold.
    #[error("invalid user name \"{0}\": it must not be empty nor contain a colon or a line break")]
    UserName(String),
    /// No password on standard input.
    #[error("the password on standard input is empty")]
    EmptyPassword,
    /// bcrypt looks at the first 72 bytes only, so more would be a false promise.
    #[error("the password is longer than 72 bytes, which is all bcrypt reads")]
    LongPassword,
    /// The hash could not be made.
    #[error("cannot hash the password: {0}")]
    Hash(#[source] bcrypt::BcryptError),
    /// A flag that asks for something this command does not do.
    #[error("{0}")]
    Unsupported(&'static str),
    /// A stored record is not what was written there.
    #[error("{}: damaged record: {reason}", path.display())]
    Damaged {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Two collections at once.
    #[error("{}: another garbage collection works on this folder; wait for its end", .0.display())]
    Collecting(PathBuf),
    /// The server ends while it collects.
    #[error("the garbage collection was ended: the server stops")]
    Stopping,
    /// There is no room for that.
    #[error("the quota of the {of} is used up: {used} of {limit} bytes")]
    Quota {
        /// Of what.
        of: String,
        /// Bytes stored.
        used: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// Another registry could not do what was asked for.
    #[error("{0}")]
    Remote(String),
    /// The upstream of a cache cannot be set up.
    #[error("upstream: {0}")]
    Upstream(String),
    /// A repository has so many unfinished uploads that it gets no more.
    #[error("repository {0} has too many unfinished uploads: finish or cancel some")]
    TooManyUploads(String),
    /// Another request goes on writing to the same upload.
    #[error("{} is in use by another request", .0.display())]
    Busy(PathBuf),
    /// What should not happen: a worker thread died, or our own text is no header.
    #[error("internal error: {0}")]
    Internal(String),
}

impl RegistrydError {
    /// Whether there was no room on the disk.
    pub(crate) fn is_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Self::Io { source, .. }
            if matches!(source.kind(), StorageFull | QuotaExceeded))
    }
}

/// What a store says may be a whole XML document.
pub(crate) fn one_line(text: &dyn std::fmt::Display) -> String {
    let text = text.to_string();
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ")
}

/// Adds what was tried, and on what, to an I/O error.
pub(crate) trait IoContext<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, RegistrydError>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, RegistrydError> {
        self.map_err(|source| RegistrydError::Io {
            action,
            path: path.to_owned(),
            source,
        })
    }
}

/// The codes of distribution-spec, and those Docker's registry adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    BlobUnknown,
    BlobUploadInvalid,
    BlobUploadUnknown,
    Denied,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    PaginationNumberInvalid,
    RangeInvalid,
    SizeInvalid,
    TagInvalid,
    TooManyRequests,
    Unauthorized,
    Unsupported,
    Unknown,
}

impl Code {
    /// The code, the status it travels with, and the general message.
    fn facts(self) -> (&'static str, StatusCode, &'static str) {
        use StatusCode as S;
        match self {
            Self::BlobUnknown => ("BLOB_UNKNOWN", S::NOT_FOUND, "blob unknown to registry"),
            Self::BlobUploadInvalid => {
                ("BLOB_UPLOAD_INVALID", S::BAD_REQUEST, "blob upload invalid")
            }
            Self::BlobUploadUnknown => (
                "BLOB_UPLOAD_UNKNOWN",
                S::NOT_FOUND,
                "blob upload unknown to registry",
            ),
            Self::Denied => (
                "DENIED",
                S::FORBIDDEN,
                "requested access to the resource is denied",
            ),
            Self::DigestInvalid => (
                "DIGEST_INVALID",
                S::BAD_REQUEST,
                "provided digest did not match uploaded content",
            ),
            Self::ManifestBlobUnknown => (
                "MANIFEST_BLOB_UNKNOWN",
                S::BAD_REQUEST,
                "manifest references a manifest or blob unknown to registry",
            ),
            Self::ManifestInvalid => ("MANIFEST_INVALID", S::BAD_REQUEST, "manifest invalid"),
            Self::ManifestUnknown => (
                "MANIFEST_UNKNOWN",
                S::NOT_FOUND,
                "manifest unknown to registry",
            ),
            Self::NameInvalid => ("NAME_INVALID", S::BAD_REQUEST, "invalid repository name"),
            Self::NameUnknown => (
                "NAME_UNKNOWN",
                S::NOT_FOUND,
                "repository name not known to registry",
            ),
            Self::PaginationNumberInvalid => (
                "PAGINATION_NUMBER_INVALID",
                S::BAD_REQUEST,
                "invalid number of results requested",
            ),
            Self::RangeInvalid => (
                "RANGE_INVALID",
                S::RANGE_NOT_SATISFIABLE,
                "invalid content range",
            ),
            Self::SizeInvalid => (
                "SIZE_INVALID",
                S::BAD_REQUEST,
                "provided length did not match content length",
            ),
            Self::TagInvalid => ("TAG_INVALID", S::BAD_REQUEST, "invalid tag"),
            Self::TooManyRequests => ("TOOMANYREQUESTS", S::TOO_MANY_REQUESTS, "too many requests"),
            Self::Unauthorized => ("UNAUTHORIZED", S::UNAUTHORIZED, "authentication required"),
            Self::Unsupported => (
                "UNSUPPORTED",
                S::METHOD_NOT_ALLOWED,
                "the operation is unsupported",
            ),
            Self::Unknown => ("UNKNOWN", S::INTERNAL_SERVER_ERROR, "unknown error"),
        }
    }
}

/// A refusal as the client gets it.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    /// Instead of the first code's general message.
    message: Option<String>,
    items: Vec<(Code, Value)>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl ApiError {
    /// One error with a detail (`null` for none).
    pub(crate) fn new(code: Code, detail: impl Into<Value>) -> Self {
        Self::many(vec![(code, detail.into())])
    }

    /// Several errors at once; the first one's status holds.
    pub(crate) fn many(items: Vec<(Code, Value)>) -> Self {
        let status = items
            .first()
            .map_or(Code::Unknown, |(code, _)| *code)
            .facts()
            .1;
        Self {
            status,
            message: None,
            items,
            headers: Vec::new(),
        }
    }

    /// Another status than the code's usual one.
    pub(crate) fn status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// What a user should read, where the code alone does not say it.
    pub(crate) fn message(mut self, text: String) -> Self {
        self.message = Some(text);
        self
    }

    /// A header of the reply; left out if its value cannot be one.
    pub(crate) fn header(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.push((name, value));
        }
        self
    }
}

impl From<RegistrydError> for ApiError {
    /// The client learns that it failed; where on this machine is for the log only.
    fn from(error: RegistrydError) -> Self {
        if matches!(error, RegistrydError::Busy(_)) {
            return Self::new(
                Code::BlobUploadInvalid,
                "another request writes to this upload",
            )
            .status(StatusCode::CONFLICT);
        }
        if let RegistrydError::Quota { used, limit, .. } = &error {
            return Self::new(Code::Denied, json!({"used": used, "limit": limit}))
                .message(error.to_string());
        }
        if error.is_full() {
            tracing::error!(%error, "no room is left");
            return Self::new(Code::Denied, Value::Null)
                .message("no space is left on the registry's disk".to_owned());
        }
        if matches!(error, RegistrydError::TooManyUploads(_)) {
            return Self::new(Code::TooManyRequests, Value::Null).message(error.to_string());
        }
        tracing::error!(%error, "request failed");
        Self::new(Code::Unknown, Value::Null)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut own = self.message;
        let errors: Vec<Value> = self
            .items
            .into_iter()
            .map(|(code, detail)| {
                let (name, _, general) = code.facts();
                let message = own.take().unwrap_or_else(|| general.to_owned());
                json!({"code": name, "message": message, "detail": detail})
            })
            .collect();
        let mut response = Response::new(Body::from(json!({ "errors": errors }).to_string()));
        *response.status_mut() = self.status;
        response.headers_mut().extend(self.headers);
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}
