//! One request: built up, sent, answered.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1::SendRequest;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::stream::{BodyReader, Hijacked, JsonLines};
use super::{Body, Client, ClientError};

/// Query parameters.
pub type Query = Vec<(&'static str, String)>;

/// A request that is being put together.
#[must_use]
pub struct Call<'c> {
    client: &'c Client,
    method: Method,
    path: String,
    query: Query,
    headers: Vec<(String, String)>,
    body: Option<Body>,
    /// Why the body could not be read.
    unreadable: Unreadable,
}

/// What kept a body from being sent, as its reader said it.
type Unreadable = Arc<Mutex<Option<io::Error>>>;

impl std::fmt::Debug for Call<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call")
            .field("method", &self.method)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl<'c> Call<'c> {
    pub(super) fn new(client: &'c Client, method: Method, path: String) -> Self {
        Self {
            client,
            method,
            path,
            query: Vec::new(),
            headers: Vec::new(),
            body: None,
            unreadable: Unreadable::default(),
        }
    }

    /// Adds a query parameter.
    pub fn query(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    /// Adds a query parameter if there is a value.
    pub fn query_opt(self, name: &'static str, value: Option<impl Into<String>>) -> Self {
        match value {
            Some(value) => self.query(name, value),
            None => self,
        }
    }

    /// Adds a switch, if it is on.
    pub fn flag(self, name: &'static str, on: bool) -> Self {
        if on { self.query(name, "1") } else { self }
    }

    /// Adds `key=value` filters, if there are any.
    pub fn filters(self, filters: &[impl AsRef<str>]) -> Self {
        let mut map: BTreeMap<String, BTreeMap<&str, bool>> = BTreeMap::new();
        for filter in filters.iter().map(AsRef::as_ref) {
            if let Some((key, value)) = filter.split_once('=') {
                map.entry(key.trim().to_lowercase())
                    .or_default()
                    .insert(value.trim(), true);
            }
        }
        if map.is_empty() {
            return self;
        }
        let text = serde_json::json!(map).to_string();
        self.query("filters", text)
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sends JSON along.
    ///
    /// # Errors
    /// The value cannot be written as JSON.
    pub fn body_json(mut self, value: &impl Serialize) -> Result<Self, ClientError> {
        let bytes = serde_json::to_vec(value)?;
        self.body = Some(
            Full::new(Bytes::from(bytes))
                .map_err(infallible)
                .boxed_unsync(),
        );
        Ok(self.header("Content-Type", "application/json"))
    }

    /// Streams bytes along.
    pub fn body_stream<S>(mut self, content_type: &str, chunks: S) -> Self
    where
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        let unreadable = self.unreadable.clone();
        let frames = chunks.map(move |chunk| {
            chunk.map(Frame::data).map_err(|error| {
                let kind = error.kind();
                *unreadable.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                kind.into()
            })
        });
        self.body = Some(StreamBody::new(frames).boxed_unsync());
        self.header("Content-Type", content_type)
    }

    fn into_request(self) -> Result<Request<Body>, ClientError> {
        let client = self.client;
        let mut uri = format!("{}{}{}", client.target().base(), client.prefix, self.path);
        if !self.query.is_empty() {
            let mut query = url::form_urlencoded::Serializer::new(String::new());
            query.extend_pairs(&self.query);
            uri.push('?');
            uri.push_str(&query.finish());
        }
        let mut request = Request::builder()
            .method(self.method)
            .uri(uri)
            .header(header::HOST, client.target().host_header())
            // So that an engine can say what ended an answer early.
            .header(header::TE, "trailers")
            .header(
                header::USER_AGENT,
                concat!("Corten-Client/", env!("CARGO_PKG_VERSION"), " (linux)"),
            );
        for (name, value) in client.headers.iter().chain(&self.headers) {
            request = request.header(name.as_str(), value.as_str());
        }
        let body = self
            .body
            .unwrap_or_else(|| Empty::new().map_err(infallible).boxed_unsync());
        Ok(request.body(body)?)
    }

    /// Sends it; an answer of 400 or more is an error.
    ///
    /// # Errors
    /// No connection, or the engine's refusal.
    pub async fn send(self) -> Result<Answer<'c>, ClientError> {
        let client = self.client;
        let unreadable = self.unreadable.clone();
        let request = self.into_request()?;
        let mut kept = client.idle.borrow_mut().take();
        // The engine may have closed it meanwhile.
        if let Some(sender) = &mut kept
            && sender.ready().await.is_err()
        {
            kept = None;
        }
        let mut sender = match kept {
            Some(sender) => sender,
            None => client.ready().await?,
        };
        let response = match sender.try_send_request(request).await {
            Ok(response) => response,
            Err(mut error) => match error.take_message() {
                // Nothing of it was sent.
                Some(request) => {
                    sender = client.ready().await?;
                    let sent = sender.send_request(request).await;
                    sent.map_err(|error| told(&unreadable, error))?
                }
                None => return Err(told(&unreadable, error.into_error())),
            },
        };
        let answer = Answer {
            client,
            sender,
            response,
        };
        let status = answer.status();
        if status.is_client_error() || status.is_server_error() {
            let bytes = answer.bytes().await?;
            return Err(refusal(status, &bytes));
        }
        Ok(answer)
    }

    /// Sends it and waits for the end of an answer nobody needs.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn done(self) -> Result<(), ClientError> {
        self.send().await?.bytes().await.map(drop)
    }

    /// Sends it and waits for the end of an answer of which only a warning is wanted.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn warning(self) -> Result<Option<String>, ClientError> {
        let answer = self.send().await?;
        let warning = answer.header("corten-warning");
        answer.bytes().await?;
        Ok(warning)
    }

    /// Sends it and reads JSON.
    ///
    /// # Errors
    /// As [`Self::send`]; or the answer is something else.
    pub async fn json<T: DeserializeOwned>(self) -> Result<T, ClientError> {
        let bytes = self.send().await?.bytes().await?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// Sends it and reads JSON values as they come.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn lines(self) -> Result<JsonLines, ClientError> {
        if self.client.in_process() && self.body.is_none() {
            return self.lines_here().await;
        }
        Ok(JsonLines::new(self.send().await?.reader()))
    }

    /// The same, of the engine in this process: to write both sides of HTTP for it would take
    /// longer than many an answer.
    async fn lines_here(self) -> Result<JsonLines, ClientError> {
        let service = self.client.service()?;
        let answer = corten_api::answer_in_process(service, self.into_request()?).await;
        let (status, mut reader) = (answer.status(), BodyReader::here(answer.into_body()));
        if !(status.is_client_error() || status.is_server_error()) {
            return Ok(JsonLines::new(reader));
        }
        let mut message = Vec::new();
        while let Some(piece) = reader.next().await? {
            message.extend_from_slice(&piece);
        }
        Err(refusal(status, &message))
    }

    /// Sends it and turns the connection into a two-way stream.
    ///
    /// # Errors
    /// As [`Self::send`]; or the engine does not do that.
    pub async fn hijack(self) -> Result<Hijacked, ClientError> {
        let client = self.client;
        let request = self
            .header("Connection", "Upgrade")
            .header("Upgrade", "tcp")
            .into_request()?;
        let mut sender = client.ready().await?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return Hijacked::new(response).await;
        }
        let bytes = response.into_body().collect().await?.to_bytes();
        if status.is_client_error() || status.is_server_error() {
            return Err(refusal(status, &bytes));
        }
        Err(ClientError::Upgrade(status.as_u16()))
    }
}

fn infallible(never: Infallible) -> io::Error {
    match never {}
}

/// Why a request was not answered: what could not be read for its body comes first.
fn told(unreadable: &Unreadable, error: hyper::Error) -> ClientError {
    let mut unreadable = unreadable.lock().unwrap_or_else(PoisonError::into_inner);
    match unreadable.take() {
        Some(reason) => ClientError::Body(reason),
        None => error.into(),
    }
}

/// What the engine said when it said no.
fn refusal(status: StatusCode, body: &[u8]) -> ClientError {
    #[derive(serde::Deserialize)]
    struct Message {
        message: String,
    }
    let message = match serde_json::from_slice::<Message>(body) {
        Ok(Message { message }) => message,
        Err(_) => String::from_utf8_lossy(body).trim().to_owned(),
    };
    let message = if message.is_empty() {
        status
            .canonical_reason()
            .unwrap_or("no reason given")
            .to_owned()
    } else {
        message
    };
    ClientError::Api {
        status: status.as_u16(),
        message,
    }
}

/// An answer whose body has not been read yet.
pub struct Answer<'c> {
    client: &'c Client,
    sender: SendRequest<Body>,
    response: Response<Incoming>,
}

impl std::fmt::Debug for Answer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer")
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

impl Answer<'_> {
    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// A header, if it is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<String> {
        self.response
            .headers()
            .get(name)?
            .to_str()
            .ok()
            .map(str::to_owned)
    }

    /// Reads the body to its end; the connection is kept for the next request.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn bytes(self) -> Result<Bytes, ClientError> {
        let bytes = self.response.into_body().collect().await?.to_bytes();
        *self.client.idle.borrow_mut() = Some(self.sender);
        Ok(bytes)
    }

    /// The body as it comes.
    #[must_use]
    pub fn reader(self) -> BodyReader {
        BodyReader::new(self.response.into_body(), self.sender)
    }
}
