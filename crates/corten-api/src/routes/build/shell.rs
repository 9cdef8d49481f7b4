//! A shell in a step that failed (`build --debug`): whoever builds with `shell=1` is told, once it is
//! open, by which word that nobody can guess it is joined.
//!
//! `POST /build/shell/WORD` is hijacked as `exec`'s start is, `POST /build/shell/WORD/resize` takes
//! the size of the terminal. Both are Corten's own.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::Path;
use axum::response::IntoResponse;
use axum::routing::post;
use axum::{Json, Router};
use corten_build::ShellOffer;
use corten_engine::Engine;
use http::{Request, StatusCode};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::termios::{Winsize, tcsetwinsize};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::Answer;
use super::super::Query;
use super::super::containers::ResizeQuery;
use crate::error::ApiError;
use crate::hijack::{Hijack, RAW};

/// How long a shell waits for its client: one that has gone without a word holds up the build.
const PATIENCE: Duration = Duration::from_secs(60);

/// Shells that are open, by their words. Without an entry here, and without a client, a terminal
/// has nobody at its other side: it hangs up, which ends the shell.
static OPEN: LazyLock<Mutex<HashMap<String, Terminal>>> = LazyLock::new(Mutex::default);

struct Terminal {
    fd: Arc<OwnedFd>,
    /// Somebody has it.
    joined: bool,
}

fn open() -> MutexGuard<'static, HashMap<String, Terminal>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn routes() -> Router<Engine> {
    Router::new()
        .route("/build/shell/{word}", post(join))
        .route("/build/shell/{word}/resize", post(resize))
}

/// A shell that is open, as its client is told of it.
#[derive(Debug, Serialize)]
pub(super) struct Opened {
    word: String,
    command: String,
    /// What has failed, and how.
    report: String,
}

/// As long as this lives, the shell of a build can be joined.
pub(super) struct Offered {
    word: String,
    /// Not any more when it has come, or cannot.
    told: Option<oneshot::Receiver<Opened>>,
    /// Until then it waits to be joined.
    until: Option<Instant>,
}

impl Offered {
    /// Resolves when a shell is open; never, if none will be.
    pub(super) async fn opened(&mut self) -> Opened {
        if let Some(told) = &mut self.told {
            let opened = told.await;
            self.told = None;
            if let Ok(opened) = opened {
                self.until = Some(Instant::now() + PATIENCE);
                return opened;
            }
        }
        if let Some(until) = self.until {
            tokio::time::sleep_until(until).await;
            self.until = None;
            give_up(&self.word);
        }
        std::future::pending().await
    }
}

impl Drop for Offered {
    fn drop(&mut self) {
        open().remove(&self.word);
    }
}

/// Hangs up on a shell that nobody has joined.
fn give_up(word: &str) {
    let mut open = open();
    if open.get(word).is_some_and(|terminal| !terminal.joined) {
        open.remove(word);
    }
}

/// Offers a shell: to the builder, and to the client.
pub(super) fn offer() -> (ShellOffer, Offered) {
    let (tell, told) = oneshot::channel();
    let word = format!("{:032x}", rand::random::<u128>());
    let name = word.clone();
    let offer = ShellOffer::new(move |terminal, shell, report| {
        let opened = Opened {
            word: name.clone(),
            command: shell.to_owned(),
            report: report.to_owned(),
        };
        let terminal = Terminal {
            fd: Arc::new(terminal),
            joined: false,
        };
        open().insert(name.clone(), terminal);
        // Its client may have gone meanwhile, who looked for the entry before it was there.
        if tell.send(opened).is_err() {
            open().remove(&name);
        }
    });
    let offered = Offered {
        word,
        told: Some(told),
        until: None,
    };
    (offer, offered)
}

fn none() -> ApiError {
    ApiError::not_found("no such shell: the build has ended, or none of its steps has failed")
}

async fn join(Path(word): Path<String>, mut request: Request<axum::body::Body>) -> Answer {
    let hijack = Hijack::of(&mut request);
    if !hijack.is_wanted() {
        return Err(ApiError::bad_parameter(
            "a shell needs a connection in both directions (Upgrade: tcp)",
        ));
    }
    let fd = {
        let mut open = open();
        let terminal = open.get_mut(&word).ok_or_else(none)?;
        if std::mem::replace(&mut terminal.joined, true) {
            return Err(ApiError::bad_parameter("somebody has this shell already"));
        }
        terminal.fd.clone()
    };
    let (screen, keyboard) =
        sides(&fd, word).map_err(|error| ApiError::internal(format!("the terminal: {error}")))?;
    Ok(hijack.join(tokio::io::join(screen, keyboard), RAW, None))
}

/// What a terminal shows.
struct Screen {
    from: pipe::Receiver,
    /// Ends with the keyboard; not any more when it has.
    here: Option<oneshot::Receiver<()>>,
    word: String,
}

/// What is typed into it. Its client's end is the shell's end.
struct Keyboard {
    to: pipe::Sender,
    here: Option<oneshot::Sender<()>>,
}

/// Both sides of a terminal. No thread is to hang in a read of it: that would hold it open.
fn sides(fd: &OwnedFd, word: String) -> io::Result<(Screen, Keyboard)> {
    fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?;
    let (end, ended) = oneshot::channel();
    let screen = Screen {
        from: pipe::Receiver::from_owned_fd_unchecked(fd.try_clone()?)?,
        here: Some(ended),
        word,
    };
    let keyboard = Keyboard {
        to: pipe::Sender::from_owned_fd_unchecked(fd.try_clone()?)?,
        here: Some(end),
    };
    Ok((screen, keyboard))
}

impl Drop for Screen {
    fn drop(&mut self) {
        open().remove(&self.word);
    }
}

impl AsyncRead for Screen {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let gone = match &mut self.here {
            Some(here) => Pin::new(here).poll(context).is_ready(),
            None => true,
        };
        if gone {
            self.here = None;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.from).poll_read(context, buffer)
    }
}

impl AsyncWrite for Keyboard {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.to).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.to).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.to).poll_flush(context))?;
        self.here = None;
        Poll::Ready(Ok(()))
    }
}

async fn resize(Path(word): Path<String>, Query(query): Query<ResizeQuery>) -> Answer {
    let (rows, columns) = query.size()?;
    let fd = open().get(&word).ok_or_else(none)?.fd.clone();
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&fd, size)
        .map_err(|error| ApiError::internal(format!("the terminal: {error}")))?;
    Ok((StatusCode::OK, Json(serde_json::json!({}))).into_response())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn terminal() -> (OwnedFd, OwnedFd) {
        use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
        let ours = openpt(flags).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let theirs = ioctl_tiocgptpeer(&ours, flags).unwrap();
        (ours, theirs)
    }

    /// Whether nobody has the other side.
    fn has_hung_up(theirs: &OwnedFd) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(theirs, PollFlags::IN)];
        let at_once = Timespec::default();
        poll(&mut fds, Some(&at_once)).unwrap();
        fds[0].revents().contains(PollFlags::HUP)
    }

    #[test]
    fn who_has_gone_before_leaves_no_terminal() {
        let (offer, offered) = offer();
        let word = offered.word.clone();
        drop(offered);
        let (ours, theirs) = terminal();
        offer.give(ours, "/bin/sh", "");
        assert!(!open().contains_key(&word));
        assert!(has_hung_up(&theirs));
    }

    #[tokio::test]
    async fn nobody_is_waited_for_in_vain() {
        let (offer, mut offered) = offer();
        let (ours, theirs) = terminal();
        offer.give(ours, "/bin/sh", "it failed");
        assert_eq!(offered.opened().await.report, "it failed");
        assert!(!has_hung_up(&theirs));
        offered.until = Some(Instant::now());
        let waited = tokio::time::timeout(Duration::from_secs(1), offered.opened()).await;
        assert!(waited.is_err());
        assert!(has_hung_up(&theirs));
    }

    #[tokio::test]
    async fn the_end_of_a_connection_is_that_of_the_shell() {
        let (ours, theirs) = terminal();
        let (mut screen, mut keyboard) = sides(&ours, String::new()).unwrap();
        drop(ours);
        rustix::io::write(&theirs, b"prompt").unwrap();
        let mut seen = [0; 6];
        screen.read_exact(&mut seen).await.unwrap();
        assert_eq!(&seen, b"prompt");
        keyboard.write_all(b"exit\n").await.unwrap();
        let mut typed = [0; 16];
        let count = rustix::io::read(&theirs, &mut typed).unwrap();
        assert_eq!(&typed[..count], b"exit\n");
        // What it echoes is not what ends it.
        keyboard.shutdown().await.unwrap();
        screen.read_to_end(&mut Vec::new()).await.unwrap();
        drop((screen, keyboard));
        assert!(has_hung_up(&theirs));
    }
}
