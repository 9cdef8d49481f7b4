//! Attaching to a container's streams.

use std::os::unix::net::UnixStream as StdStream;

use bytes::{BufMut, Bytes, BytesMut};
use corten_supervisor::Streams;
use futures_util::StreamExt;
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::net::UnixStream;

use super::pending::{self, Wish};
use super::row::{Container, Status};
use super::{
    AttachOptions, Attached, LogOptions, LogStream, StreamKind, logs, refused, state, supervisor,
};
use crate::engine::Engine;
use crate::error::EngineError;

type Result<T> = std::result::Result<T, EngineError>;

/// Room between the log's reader and a slow client, bytes.
const BUFFER: usize = 64 * 1024;

/// Attaches to a container.
pub(super) async fn attach(
    engine: &Engine,
    name: &str,
    options: AttachOptions,
) -> Result<Attached> {
    let wanted = name.to_owned();
    let container = engine
        .brief(move |engine| state::find(engine, &wanted))
        .await?;
    match container.status {
        Status::Paused => {
            return Err(EngineError::Conflict(format!(
                "container {} is paused, unpause the container before attach",
                container.id
            )));
        }
        Status::Restarting => {
            return Err(EngineError::Conflict(format!(
                "container {} is restarting, wait until the container is running",
                container.id
            )));
        }
        _ => {}
    }
    let tty = container.config.tty.unwrap_or(false);
    let told = container.clone();
    engine
        .brief(move |engine| {
            super::event(engine, &told, "attach", &[]);
            Ok(())
        })
        .await?;
    if !options.logs && options.stream {
        let stream = live(engine, &container, &options).await?;
        return Ok(Attached {
            tty,
            stream: Box::pin(stream),
        });
    }
    let past = if options.logs {
        let all = LogOptions {
            stdout: options.stdout,
            stderr: options.stderr,
            ..Default::default()
        };
        Some(logs::logs(engine, &container.id, all).await?)
    } else {
        None
    };
    let live = match options.stream {
        true => Some(live(engine, &container, &options).await?),
        false => None,
    };
    let (ours, theirs) = tokio::io::duplex(BUFFER);
    tokio::spawn(async move {
        if let Err(error) = replay(theirs, past, live).await {
            tracing::debug!(%error, "an attached client left");
        }
    });
    Ok(Attached {
        tty,
        stream: Box::pin(ours),
    })
}

/// The streams from now on, or from the start on.
async fn live(
    engine: &Engine,
    container: &Container,
    options: &AttachOptions,
) -> Result<UnixStream> {
    let streams = Streams {
        stdin: options.stdin && container.config.open_stdin.unwrap_or(false),
        stdout: options.stdout,
        stderr: options.stderr,
    };
    if container.status.is_live() {
        let client = supervisor(engine, container)?;
        let (_, stream) = client
            .attach(streams)
            .await
            .map_err(|e| refused(container, e))?;
        return Ok(stream);
    }
    let io = |source: std::io::Error| EngineError::Other {
        context: format!("attach to container {}", container.id),
        source: Box::new(source),
    };
    let (ours, theirs) = StdStream::pair().map_err(io)?;
    ours.set_nonblocking(true).map_err(io)?;
    let ours = UnixStream::from_std(ours).map_err(io)?;
    pending::register(engine, &container.id, Wish::Attach(streams), theirs);
    Ok(ours)
}

/// What was logged, then what comes.
async fn replay(
    mut client: DuplexStream,
    past: Option<LogStream>,
    live: Option<UnixStream>,
) -> std::io::Result<()> {
    if let Some(mut past) = past {
        while let Some(chunk) = past.chunks.next().await {
            let (stream, bytes) = chunk.map_err(std::io::Error::other)?;
            let bytes = if past.tty {
                bytes
            } else {
                framed(stream, &bytes)
            };
            client.write_all(&bytes).await?;
        }
    }
    match live {
        Some(mut live) => {
            tokio::io::copy_bidirectional(&mut client, &mut live).await?;
            Ok(())
        }
        None => client.shutdown().await,
    }
}

/// One `stdcopy` frame: stream, three zeroes, length in network order, bytes.
#[must_use]
pub fn framed(stream: StreamKind, bytes: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(bytes.len() + 8);
    frame.put_slice(&[stream as u8, 0, 0, 0]);
    // A record of the log is at most some kilobytes.
    frame.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    frame.put_slice(bytes);
    frame.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_like_stdcopy() {
        let framed = framed(StreamKind::Stderr, b"abc");
        assert_eq!(framed.as_ref(), &[2, 0, 0, 0, 0, 0, 0, 3, b'a', b'b', b'c']);
    }
}
