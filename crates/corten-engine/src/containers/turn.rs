//! Changes of what a container has on networks, one after another.
//!
//! A change is written into the container's rows, carried out by its supervisor from all of them, and taken
//! back if that fails. Who does this holds the container's [`Turn`] from the first step to the last:
//! otherwise one change would carry out, or fail by, half of another.
//!
//! The lock is tried again and again, not waited for: a thread that sleeps in the kernel until somebody
//! else is done would be one of those that this one needs to be done.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::{CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use tokio::time::Instant;

use super::row::Container;
use crate::engine::Engine;
use crate::error::EngineError;

/// How long those before are waited for. Longer than a supervisor may take for one of them
/// ([`corten_supervisor::client::NETWORK`]).
const PATIENCE: Duration = Duration::from_secs(30);

/// How often it is looked whether they are done.
const LOOK: Duration = Duration::from_millis(10);

/// Nobody else changes the container's networks or ports while this lives.
#[derive(Debug)]
pub(crate) struct Turn(#[allow(dead_code)] OwnedFd);

impl Turn {
    /// Waits for the changes that are under way, but not for ever.
    pub(crate) async fn of(engine: &Engine, container: &Container) -> Result<Self, EngineError> {
        // The container's own directory is there as long as it is, and goes with it.
        let path = engine.layout().container(&container.id);
        let opened = engine
            .brief({
                let path = path.clone();
                move |_| {
                    let flags =
                        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    Ok(rustix::fs::openat(CWD, &path, flags, Mode::empty()))
                }
            })
            .await?;
        let taken = match opened {
            Ok(directory) => Self::on(directory, PATIENCE).await,
            Err(error) => Err(error),
        };
        match taken {
            Ok(Some(turn)) => Ok(turn),
            Ok(None) => Err(EngineError::Conflict(format!(
                "container {} is being changed by somebody else, who is not done after {} s: try \
                 again later",
                container.name,
                PATIENCE.as_secs()
            ))),
            Err(Errno::NOENT) => Err(EngineError::NoSuchContainer(container.id.clone())),
            Err(error) => Err(EngineError::Io {
                action: "lock",
                path,
                source: error.into(),
            }),
        }
    }

    /// `None`: it was not free in time.
    async fn on(directory: OwnedFd, patience: Duration) -> rustix::io::Result<Option<Self>> {
        let deadline = Instant::now() + patience;
        loop {
            match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(Self(directory))),
                Err(Errno::WOULDBLOCK | Errno::INTR) => {}
                Err(error) => return Err(error),
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(directory: &std::path::Path) -> OwnedFd {
        std::fs::File::open(directory).unwrap().into()
    }

    #[test]
    fn who_waits_needs_no_thread_and_gives_up() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .max_blocking_threads(1)
            .build()
            .unwrap();
        runtime.block_on(async {
            let first = Turn::on(opened(dir.path()), PATIENCE).await.unwrap();
            let late = Turn::on(opened(dir.path()), Duration::ZERO).await.unwrap();
            assert!(first.is_some() && late.is_none());
            let waiting: Vec<_> = (0..4)
                .map(|_| tokio::spawn(Turn::on(opened(dir.path()), PATIENCE)))
                .collect();
            tokio::task::yield_now().await;
            // Whoever has the turn still finds the only thread.
            tokio::task::spawn_blocking(move || drop(first))
                .await
                .unwrap();
            for turn in waiting {
                assert!(turn.await.unwrap().unwrap().is_some());
            }
        });
    }
}
