//! Answers that go on for a while: bodies as they come, JSON values one by one, hijacked
//! connections.

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Response, header};
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;

use super::{Body, ClientError};

/// A body as it comes.
pub struct BodyReader {
    body: Received,
}

enum Received {
    /// Over a connection, which the sender keeps open.
    Sent {
        body: Incoming,
        _sender: SendRequest<Body>,
    },
    /// Of the engine in this process.
    Here(corten_api::Body),
}

impl std::fmt::Debug for BodyReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BodyReader").finish_non_exhaustive()
    }
}

impl BodyReader {
    pub(super) fn new(body: Incoming, sender: SendRequest<Body>) -> Self {
        Self {
            body: Received::Sent {
                body,
                _sender: sender,
            },
        }
    }

    pub(super) fn here(body: corten_api::Body) -> Self {
        Self {
            body: Received::Here(body),
        }
    }

    async fn frame(&mut self) -> Result<Option<Frame<Bytes>>, ClientError> {
        match &mut self.body {
            Received::Sent { body, .. } => Ok(body.frame().await.transpose()?),
            Received::Here(body) => {
                let frame = body.frame().await.transpose();
                frame.map_err(|error| ClientError::Body(std::io::Error::other(error)))
            }
        }
    }

    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        while let Some(frame) = self.frame().await? {
            match frame.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => return Ok(Some(data)),
                Err(frame) => cut_short(frame.trailers_ref())?,
            }
        }
        Ok(None)
    }
}

/// What an engine says after an answer that it could not finish.
fn cut_short(trailers: Option<&HeaderMap>) -> Result<(), ClientError> {
    match trailers.and_then(|fields| fields.get(corten_api::FAILURE)) {
        None => Ok(()),
        Some(reason) => Err(ClientError::Api {
            status: 500,
            message: String::from_utf8_lossy(reason.as_bytes()).into_owned(),
        }),
    }
}

/// JSON values, one per line.
#[derive(Debug)]
pub struct JsonLines {
    reader: BodyReader,
    buffer: BytesMut,
    ended: bool,
}

impl JsonLines {
    pub(super) fn new(reader: BodyReader) -> Self {
        Self {
            reader,
            buffer: BytesMut::new(),
            ended: false,
        }
    }

    /// The next value; `None` at the end.
    ///
    /// # Errors
    /// The connection broke, or a line is not what it should be.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            if let Some(value) = self.parse_one()? {
                return Ok(Some(value));
            }
            if self.ended {
                return Ok(None);
            }
            match self.reader.next().await? {
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
                None => self.ended = true,
            }
        }
    }

    /// Takes one value off the buffer. Values may also follow one another on one line.
    fn parse_one<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        while self.buffer.first().is_some_and(u8::is_ascii_whitespace) {
            self.buffer.advance(1);
        }
        if self.buffer.is_empty() {
            return Ok(None);
        }
        // Only a whole line is parsed, so that a long value is not parsed again and again.
        let end = match self.buffer.iter().position(|b| *b == b'\n') {
            Some(end) => end + 1,
            None if self.ended => self.buffer.len(),
            None => return Ok(None),
        };
        let mut values = serde_json::Deserializer::from_slice(&self.buffer[..end]).into_iter();
        let value = match values.next() {
            Some(Ok(value)) => value,
            Some(Err(error)) => return Err(error.into()),
            None => return Ok(None),
        };
        let used = values.byte_offset();
        self.buffer.advance(used);
        Ok(Some(value))
    }
}

/// A connection that has become a two-way stream.
#[derive(Debug)]
pub struct Hijacked {
    /// The stream.
    pub io: TokioIo<Upgraded>,
    /// Whether the engine says that its output is `stdcopy` frames; `None` when it does not
    /// say (engines before API 1.42).
    pub multiplexed: Option<bool>,
}

impl Hijacked {
    pub(super) async fn new(response: Response<Incoming>) -> Result<Self, ClientError> {
        let multiplexed = match response
            .headers()
            .get(header::CONTENT_TYPE)
            .map(|v| v.as_bytes())
        {
            Some(b"application/vnd.docker.multiplexed-stream") => Some(true),
            _ => None,
        };
        let upgraded = hyper::upgrade::on(response).await?;
        Ok(Self {
            io: TokioIo::new(upgraded),
            multiplexed,
        })
    }
}
