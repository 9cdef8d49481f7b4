//! From a URL and options to a store. Connections are `reqwest`'s, with the process's one TLS
//! stack (rustls on ring), instead of those that `object_store` would bring along.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt as _;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use crate::error::{RegistrydError, one_line};

/// A store that does not take a connection for this long is down.
const CONNECT: Duration = Duration::from_secs(5);
/// A store that says nothing for this long is down. The sending of a part counts, too.
const SILENCE: Duration = Duration::from_secs(120);
/// A request that fails for the store's reasons is repeated for so long, and so often.
const RETRY: Duration = Duration::from_secs(60);
const RETRIES: usize = 6;

/// An object store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreConfig {
    /// `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or `az://CONTAINER/PREFIX`; a query
    /// (`?region=…&endpoint=…`) has more options.
    pub url: String,
    /// What `object_store` calls them, without the provider's own prefix (`region`,
    /// `endpoint`, `access_key_id`). They win over the environment's.
    pub options: BTreeMap<String, String>,
}

impl StoreConfig {
    /// The URL for messages, without its options.
    pub(super) fn shown(&self) -> String {
        let bare = self.url.split('?').next().unwrap_or_default();
        bare.trim_end_matches('/').to_owned()
    }

    /// Opens the store; nothing is asked of it yet.
    pub(super) fn connect(&self) -> Result<Arc<dyn ObjectStore>, RegistrydError> {
        let wrong = |reason: String| RegistrydError::Storage {
            url: self.shown(),
            reason,
        };
        let mut url = Url::parse(&self.url).map_err(|error| wrong(error.to_string()))?;
        let query: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let mut options = self.options.clone();
        options.extend(query);
        url.set_query(None);
        let prefix = Path::from_url_path(url.path()).map_err(|error| wrong(error.to_string()))?;
        let bucket = url.host_str().unwrap_or_default().to_owned();
        if bucket.is_empty() {
            return Err(wrong("the URL names no bucket".to_owned()));
        }
        let unknown = |key: &str| wrong(format!("there is no option \"{key}\" for such a store"));
        let failed = |error: object_store::Error| wrong(one_line(&error));
        let retry = RetryConfig {
            max_retries: RETRIES,
            retry_timeout: RETRY,
            ..RetryConfig::default()
        };
        let store: Arc<dyn ObjectStore> = match url.scheme() {
            "s3" => {
                let mut builder = AmazonS3Builder::from_env()
                    .with_bucket_name(bucket)
                    .with_retry(retry)
                    .with_http_connector(Connector);
                for (key, value) in &options {
                    match key.parse() {
                        Ok(AmazonS3ConfigKey::Client(_)) | Err(_) => return Err(unknown(key)),
                        Ok(known) => builder = builder.with_config(known, value),
                    }
                }
                let endpoint = builder.get_config_value(&AmazonS3ConfigKey::Endpoint);
                let plain = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
                builder = builder.with_allow_http(plain);
                Arc::new(builder.build().map_err(failed)?)
            }
            "gs" => {
                let mut builder = GoogleCloudStorageBuilder::from_env()
                    .with_bucket_name(bucket)
                    .with_retry(retry)
                    .with_http_connector(Connector);
                for (key, value) in &options {
                    match key.parse() {
                        Ok(GoogleConfigKey::Client(_)) | Err(_) => return Err(unknown(key)),
                        Ok(known) => builder = builder.with_config(known, value),
                    }
                }
                Arc::new(builder.build().map_err(failed)?)
            }
            "az" => {
                let mut builder = MicrosoftAzureBuilder::from_env()
                    .with_container_name(bucket)
                    .with_retry(retry)
                    .with_http_connector(Connector);
                for (key, value) in &options {
                    match key.parse() {
                        Ok(AzureConfigKey::Client(_)) | Err(_) => return Err(unknown(key)),
                        Ok(known) => builder = builder.with_config(known, value),
                    }
                }
                let endpoint = builder.get_config_value(&AzureConfigKey::Endpoint);
                let plain = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
                builder = builder.with_allow_http(plain);
                Arc::new(builder.build().map_err(failed)?)
            }
            other => {
                return Err(wrong(format!(
                    "\"{other}\" is no kind of store: write s3://, gs:// or az://, or give root for a folder"
                )));
            }
        };
        Ok(if prefix.as_ref().is_empty() {
            store
        } else {
            Arc::new(PrefixStore::new(store, prefix))
        })
    }
}

#[derive(Debug)]
struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        // Another part of the process may have installed one already: either will do.
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            .user_agent(concat!("corten-registry/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| object_store::Error::Generic {
                store: "HTTP",
                source: Box::new(error),
            })?;
        Ok(HttpClient::new(Connection(client)))
    }
}

#[derive(Debug)]
struct Connection(reqwest::Client);

#[async_trait::async_trait]
impl HttpService for Connection {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (parts, body) = request.into_parts();
        let url = parts.uri.to_string().parse::<Url>();
        let url = url.map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
        let mut request = reqwest::Request::new(parts.method, url);
        *request.headers_mut() = parts.headers;
        *request.body_mut() = Some(reqwest::Body::wrap(body));
        let response = self.0.execute(request).await.map_err(failure)?;
        let response: http::Response<reqwest::Body> = response.into();
        Ok(response.map(|body| HttpResponseBody::new(body.map_err(failure))))
    }
}

/// Tells `object_store` what may be tried again.
fn failure(error: reqwest::Error) -> HttpError {
    let mut kind = if error.is_timeout() {
        HttpErrorKind::Timeout
    } else if error.is_connect() {
        HttpErrorKind::Connect
    } else if error.is_decode() {
        HttpErrorKind::Decode
    } else {
        HttpErrorKind::Unknown
    };
    let mut cause = error.source();
    while let (HttpErrorKind::Unknown, Some(inner)) = (kind, cause) {
        if let Some(inner) = inner.downcast_ref::<hyper::Error>()
            && (inner.is_closed() || inner.is_incomplete_message() || inner.is_body_write_aborted())
        {
            kind = HttpErrorKind::Request;
        } else if let Some(inner) = inner.downcast_ref::<std::io::Error>() {
            use std::io::ErrorKind as Io;
            kind = match inner.kind() {
                Io::TimedOut => HttpErrorKind::Timeout,
                Io::ConnectionAborted
                | Io::ConnectionReset
                | Io::BrokenPipe
                | Io::UnexpectedEof => HttpErrorKind::Interrupted,
                _ => HttpErrorKind::Unknown,
            };
        }
        cause = inner.source();
    }
    // Without its URL, which may be signed.
    HttpError::new(kind, error.without_url())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(url: &str, options: &[(&str, &str)]) -> Result<String, String> {
        let options = options
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let config = StoreConfig {
            url: url.to_owned(),
            options: options.collect(),
        };
        match config.connect() {
            Ok(store) => Ok(store.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn urls() {
        let s3 = connect("s3://bucket/a/b?region=eu-1", &[("endpoint", "http://x:9")]).unwrap();
        assert!(s3.contains("a/b"), "{s3}");
        assert!(connect("gs://bucket", &[]).is_ok());
        let account = [("account_name", "me"), ("access_key", "a2V5")];
        assert!(connect("az://container/x", &account).is_ok());
        for (url, word) in [
            ("bucket", "relative URL"),
            ("ftp://bucket", "no kind of store"),
            ("s3:///x", "names no bucket"),
            ("s3://b?regoin=x", "\"regoin\""),
            ("s3://b?timeout=5s", "\"timeout\""),
        ] {
            let error = connect(url, &[]).unwrap_err();
            assert!(error.contains(word), "{url}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }
}
