//! One attached process: its input from our standard input, its output to ours.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::detach::DetachFilter;
use crate::client::Hijacked;
use crate::error::{CliError, Result};
use crate::term::RawMode;

/// How an attached session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The process's output ended.
    Finished,
    /// The user typed the detach keys.
    Detached,
}

/// What to do with the streams.
#[derive(Debug, Clone, Default)]
pub(crate) struct Session {
    /// The process has a terminal: raw bytes, raw mode.
    pub(crate) tty: bool,
    /// Forward standard input.
    pub(crate) stdin: bool,
    /// Keys that detach (only with a terminal).
    pub(crate) detach_keys: Vec<u8>,
}

impl Session {
    /// Copies until the output ends or the user detaches. The terminal is raw meanwhile.
    pub(crate) async fn run(&self, hijacked: Hijacked) -> Result<End> {
        let raw = if self.tty && self.stdin {
            RawMode::enter()
        } else {
            None
        };
        let multiplexed = hijacked.multiplexed.unwrap_or(!self.tty);
        let (mut from, mut to) = tokio::io::split(hijacked.io);
        let output = async {
            let mut out = tokio::io::stdout();
            let copied = if multiplexed {
                let mut err = tokio::io::stderr();
                super::demux(&mut from, &mut out, &mut err).await
            } else {
                copy_raw(&mut from, &mut out).await
            };
            out.flush().await?;
            copied
        };
        let input = async {
            let detached = match self.stdin {
                true => self.copy_input(&mut to).await,
                false => false,
            };
            if !detached {
                // End of input, not the end: the output goes on.
                if let Err(error) = to.shutdown().await {
                    tracing::debug!(%error, "input was closed already");
                }
                std::future::pending::<()>().await;
            }
        };
        let end = tokio::select! {
            copied = output => {
                copied.map_err(connection_error)?;
                End::Finished
            }
            () = input => End::Detached,
            signal = terminated(raw.is_some()) => {
                drop(raw);
                return Err(CliError::status(128 + signal));
            }
        };
        drop(raw);
        Ok(end)
    }

    /// Whether the user detached; otherwise the input ended.
    async fn copy_input<W: tokio::io::AsyncWrite + Unpin>(&self, to: &mut W) -> bool {
        let mut filter = DetachFilter::new(if self.tty {
            self.detach_keys.clone()
        } else {
            Vec::new()
        });
        let mut stdin = tokio::io::stdin();
        let mut buffer = vec![0_u8; 16 * 1024];
        loop {
            let read = match stdin.read(&mut buffer).await {
                Ok(0) | Err(_) => return false,
                Ok(read) => read,
            };
            let (forward, detach) = filter.feed(&buffer[..read]);
            if to.write_all(&forward).await.is_err() || to.flush().await.is_err() {
                return false;
            }
            if detach {
                return true;
            }
        }
    }
}

async fn copy_raw<R, W>(from: &mut R, out: &mut W) -> std::io::Result<()>
where
    R: tokio::io::AsyncRead + Unpin,
    W: tokio::io::AsyncWrite + Unpin,
{
    let mut buffer = vec![0_u8; 32 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        out.write_all(&buffer[..read]).await?;
        out.flush().await?;
    }
}

fn connection_error(error: std::io::Error) -> CliError {
    CliError::Io(error)
}

/// In raw mode, the number of a signal that asks us to go: the terminal must be restored
/// first. Otherwise never.
async fn terminated(raw: bool) -> u8 {
    use tokio::signal::unix::{SignalKind, signal};
    if !raw {
        return std::future::pending().await;
    }
    let pair = (
        signal(SignalKind::terminate()),
        signal(SignalKind::hangup()),
    );
    let (Ok(mut terminate), Ok(mut hangup)) = pair else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => 15,
        _ = hangup.recv() => 1,
    }
}
