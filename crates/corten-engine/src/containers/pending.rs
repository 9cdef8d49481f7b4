//! Who waits for a container's start: clients that attached to it, or wait for its exit,
//! before it runs. With them the supervisor's process is kept that was summoned for it.
//!
//! Their connections are handed to the supervisor by whoever launches it. That is this
//! process as a rule; when another process starts the container, [`watch_elsewhere`] notices
//! and joins the supervisor in their name.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use corten_supervisor::client::Client;
use corten_supervisor::{Streams, Summoned};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::{row, state};
use crate::engine::Engine;

/// How often somebody else's start is looked for.
const LOOK: Duration = Duration::from_millis(50);

/// What a client wants of the start.
#[derive(Debug)]
pub(crate) enum Wish {
    /// The container's streams.
    Attach(Streams),
    /// Its next exit.
    Exit,
}

#[derive(Debug)]
struct Entry {
    token: u64,
    wish: Wish,
    stream: UnixStream,
}

/// This process's waiting clients, and supervisors, by container.
#[derive(Debug, Default)]
pub(crate) struct Pending(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    last: u64,
    clients: HashMap<String, Vec<Entry>>,
    supervisors: HashMap<String, Summoned>,
}

/// What is handed to a launched supervisor.
#[derive(Debug, Default)]
pub(crate) struct Handover {
    pub(crate) attach: Vec<(UnixStream, Streams)>,
    pub(crate) waiters: Vec<UnixStream>,
    /// The supervisor, if its process is there already.
    pub(crate) summoned: Option<Summoned>,
}

impl Pending {
    fn add(&self, id: &str, wish: Wish, stream: UnixStream) -> u64 {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.last += 1;
        let token = inner.last;
        inner.clients.entry(id.to_owned()).or_default().push(Entry {
            token,
            wish,
            stream,
        });
        token
    }

    /// Keeps a supervisor's process for a container's start.
    pub(super) fn summoned(&self, id: &str, summoned: Summoned) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.supervisors.insert(id.to_owned(), summoned);
    }

    /// Everybody who waits for this container.
    pub(crate) fn take(&self, id: &str) -> Handover {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut handover = Handover {
            summoned: inner.supervisors.remove(id),
            ..Handover::default()
        };
        for entry in inner.clients.remove(id).unwrap_or_default() {
            match entry.wish {
                Wish::Attach(streams) => handover.attach.push((entry.stream, streams)),
                Wish::Exit => handover.waiters.push(entry.stream),
            }
        }
        handover
    }

    /// One of them, if it still waits.
    fn take_one(&self, id: &str, token: u64) -> Option<Entry> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = inner.clients.get_mut(id)?;
        let at = entries.iter().position(|e| e.token == token)?;
        let entry = entries.swap_remove(at);
        if entries.is_empty() {
            inner.clients.remove(id);
        }
        Some(entry)
    }

    /// Whether it still waits, and its client is still there.
    fn look(&self, id: &str, token: u64) -> Option<bool> {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = inner.clients.get(id)?.iter().find(|e| e.token == token)?;
        let mut fds = [PollFd::new(&entry.stream, PollFlags::empty())];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let gone = rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|n| n > 0)
            && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR);
        Some(!gone)
    }
}

/// Registers a client for a container's next start.
pub(super) fn register(engine: &Engine, id: &str, wish: Wish, stream: UnixStream) {
    let token = engine.pending().add(id, wish, stream);
    tokio::spawn(watch_elsewhere(engine.clone(), id.to_owned(), token));
}

/// Watches for a start by another process until this one hands the client over itself.
async fn watch_elsewhere(engine: Engine, id: String, token: u64) {
    loop {
        tokio::time::sleep(LOOK).await;
        match engine.pending().look(&id, token) {
            None => return,
            Some(false) => {
                engine.pending().take_one(&id, token);
                return;
            }
            Some(true) => {}
        }
        if state::has_supervisor(&engine, &id) {
            break;
        }
        let key = id.clone();
        if matches!(engine.read(move |c| row::get(c, &key)).await, Ok(None)) {
            engine.pending().take_one(&id, token);
            return;
        }
    }
    let Some(entry) = engine.pending().take_one(&id, token) else {
        return;
    };
    if let Err(error) = join(&engine, &id, entry).await {
        tracing::debug!(container = id, %error, "cannot join a container started elsewhere");
    }
}

async fn join(
    engine: &Engine,
    id: &str,
    entry: Entry,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    entry.stream.set_nonblocking(true)?;
    let mut ours = tokio::net::UnixStream::from_std(entry.stream)?;
    let Some(client) = Client::find(engine.layout().run(), id)? else {
        return Ok(());
    };
    match entry.wish {
        Wish::Attach(streams) => {
            let (_tty, mut theirs) = client.attach(streams).await?;
            tokio::io::copy_bidirectional(&mut ours, &mut theirs).await?;
        }
        Wish::Exit => {
            let mut waiting = client.wait().await?;
            if let Some(exit) = waiting.exit().await {
                corten_supervisor::protocol::send(&mut ours, &exit).await?;
            }
            waiting.end().await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_is_handed_over_once() {
        let pending = Pending::default();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let streams = Streams {
            stdin: false,
            stdout: true,
            stderr: true,
        };
        let token = pending.add("c", Wish::Attach(streams), theirs);
        let (_wait, waiter) = UnixStream::pair().unwrap();
        pending.add("c", Wish::Exit, waiter);
        assert_eq!(pending.look("c", token), Some(true));
        drop(ours);
        assert_eq!(pending.look("c", token), Some(false));
        let handover = pending.take("c");
        assert_eq!((handover.attach.len(), handover.waiters.len()), (1, 1));
        assert_eq!(pending.look("c", token), None);
        assert!(pending.take("c").attach.is_empty());
    }
}
