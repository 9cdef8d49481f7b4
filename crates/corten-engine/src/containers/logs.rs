//! Reading a container's log.

use bytes::{BufMut, Bytes, BytesMut};
use corten_supervisor::logs::{LogReader, ReadOptions, Record, Stream};
use tokio::sync::mpsc;

use super::{LogOptions, LogStream, StreamKind, state};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::logs as driver;

type Result<T> = std::result::Result<T, EngineError>;

/// Records read ahead of a slow client.
const AHEAD: usize = 64;

/// A container's logged output.
pub(super) async fn logs(engine: &Engine, name: &str, options: LogOptions) -> Result<LogStream> {
    let wanted = name.to_owned();
    let container = engine
        .brief(move |engine| state::find(engine, &wanted))
        .await?;
    let driver = driver::driver(container.host.log_config.as_ref())?;
    let Some(path) = engine.layout().log_of(&container.id, &driver) else {
        return Err(EngineError::BadParameter(
            "configured logging driver does not support reading".to_owned(),
        ));
    };
    let read = ReadOptions {
        tail: options.tail,
        since: options.since,
        until: options.until,
        follow: options.follow,
    };
    let (engine, id) = (engine.clone(), container.id.clone());
    let alive = move || state::has_supervisor(&engine, &id);
    let (send, receive) = mpsc::channel(AHEAD);
    // Ends by itself: when its reader is gone, or there is no more to come.
    tokio::task::spawn_blocking(move || {
        let failed = |source| EngineError::Io {
            action: "read log",
            path: path.clone(),
            source,
        };
        let mut reader = match LogReader::open(&path, read, Box::new(alive)) {
            Ok(reader) => reader,
            Err(error) => return drop(send.blocking_send(Err(failed(error)))),
        };
        loop {
            let item = match reader.next() {
                Ok(None) => return,
                Ok(Some(record)) => match wanted_text(&options, record) {
                    Some(item) => Ok(item),
                    // Nobody would notice otherwise that the reader is gone.
                    None if send.is_closed() => return,
                    None => continue,
                },
                Err(error) => Err(failed(error)),
            };
            let last = item.is_err();
            if send.blocking_send(item).is_err() || last {
                return;
            }
        }
    });
    let chunks = futures_util::stream::unfold(receive, |mut receive| async move {
        receive.recv().await.map(|item| (item, receive))
    });
    Ok(LogStream {
        tty: container.config.tty.unwrap_or(false),
        chunks: Box::pin(chunks),
    })
}

fn wanted_text(options: &LogOptions, record: Record) -> Option<(StreamKind, Bytes)> {
    let kind = match record.stream {
        Stream::Stdout if options.stdout => StreamKind::Stdout,
        Stream::Stderr if options.stderr => StreamKind::Stderr,
        _ => return None,
    };
    if !options.timestamps && !options.details {
        return Some((kind, record.text.into()));
    }
    let mut text = BytesMut::with_capacity(record.text.len() + 40);
    if options.timestamps {
        text.put_slice(format!("{:.9} ", record.time).as_bytes());
    }
    if options.details {
        let pairs = record.attributes.iter();
        let pairs: Vec<String> = pairs
            .map(|(key, value)| format!("{}={}", escaped(key), escaped(value)))
            .collect();
        text.put_slice(pairs.join(",").as_bytes());
        text.put_u8(b' ');
    }
    text.put_slice(&record.text);
    Some((kind, text.freeze()))
}

/// As in the query of an address, which is how Docker writes attributes.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                escaped.push(char::from(byte));
            }
            b' ' => escaped.push('+'),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_written_as_docker_does() {
        assert_eq!(escaped("a b/c=\u{e9}"), "a+b%2Fc%3D%C3%A9");
    }
}
