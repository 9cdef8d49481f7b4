//! A shell in a step that failed (`build --debug`): whoever builds with `shell=1` is told, once it is
//! open, by which word that nobody can guess it is joined.
//!
//! `POST /build/shell/WORD` is hijacked as `exec`'s start is, `POST /build/shell/WORD/resize` takes
//! the size of the terminal. Both are Corten's own.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use axum::extract::Path;
use axum::response::IntoResponse;
use axum::routing::post;
use axum::{Json, Router};
use corten_build::ShellOffer;
use corten_engine::Engine;
use http::{Request, StatusCode};
use rustix::termios::{Winsize, tcsetwinsize};
use serde::Serialize;
use tokio::sync::oneshot;

use super::super::Answer;
use super::super::Query;
use super::super::containers::ResizeQuery;
use crate::error::ApiError;
use crate::hijack::{Hijack, RAW};

/// Shells that are open, by their words.
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
}

/// As long as this lives, the shell of a build can be joined.
pub(super) struct Offered {
    word: String,
    /// Not any more when it has come, or cannot.
    told: Option<oneshot::Receiver<Opened>>,
}

impl Offered {
    /// Resolves when a shell is open; never, if none will be.
    pub(super) async fn opened(&mut self) -> Opened {
        if let Some(told) = &mut self.told {
            let opened = told.await;
            self.told = None;
            if let Ok(opened) = opened {
                return opened;
            }
        }
        std::future::pending().await
    }
}

impl Drop for Offered {
    fn drop(&mut self) {
        open().remove(&self.word);
    }
}

/// Offers a shell: to the builder, and to the client.
pub(super) fn offer() -> (ShellOffer, Offered) {
    let (tell, told) = oneshot::channel();
    let word = format!("{:032x}", rand::random::<u128>());
    let name = word.clone();
    let offer = ShellOffer::new(move |terminal, shell| {
        let opened = Opened {
            word: name.clone(),
            command: shell.to_owned(),
        };
        let terminal = Terminal {
            fd: Arc::new(terminal),
            joined: false,
        };
        open().insert(name, terminal);
        // A client that has gone has ended the build.
        tell.send(opened).ok();
    });
    let told = Some(told);
    (offer, Offered { word, told })
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
    let copy = || -> Result<tokio::fs::File, ApiError> {
        let copy = fd.try_clone();
        let copy = copy.map_err(|error| ApiError::internal(format!("the terminal: {error}")))?;
        Ok(tokio::fs::File::from_std(File::from(copy)))
    };
    // A file does one thing at a time; a terminal is read and written at once.
    let stream = tokio::io::join(copy()?, copy()?);
    Ok(hijack.join(stream, RAW))
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
