//! Who is at work on a step: one that several builds, or several stages of one, need is run once.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use corten_oci::Digest;
use corten_store::NameLock;

use super::Session;
use crate::error::BuildError;
use crate::progress::{BuildEvent, LogStream};

/// How soon, and how rarely in the end, to look whether another build has finished a step.
const FIRST_LOOK: Duration = Duration::from_millis(2);
const LAST_LOOK: Duration = Duration::from_millis(50);

impl Session {
    /// Waits until nobody else, in any process, is at work on a key: a step that several builds
    /// need is run once. `fresh`: by others of this build only, as their results do not count.
    pub(super) async fn alone(
        self: &Arc<Self>,
        key: &Digest,
        fresh: bool,
        vertex: u32,
    ) -> Result<Alone, BuildError> {
        let name = format!("build-{}", key.hex());
        let mut patience = FIRST_LOOK;
        loop {
            let alone = match fresh {
                true => Ours::of(self, key).map(Alone::Here),
                // Some system calls: not worth another thread.
                false => self.store.try_name(&name)?.map(Alone::Everywhere),
            };
            if let Some(alone) = alone {
                return Ok(alone);
            }
            tokio::select! {
                () = tokio::time::sleep(patience) => {}
                () = self.cancel.cancelled() => return Err(BuildError::Cancelled),
            }
            if patience < LAST_LOOK && patience * 2 >= LAST_LOOK {
                (self.events)(BuildEvent::Log {
                    id: vertex,
                    stream: LogStream::Stderr,
                    data: "waiting for another build or stage that is at this step\n".to_owned(),
                });
            }
            patience = (patience * 2).min(LAST_LOOK);
        }
    }
}

/// The right to a key.
pub(super) enum Alone {
    Everywhere(#[allow(dead_code)] NameLock),
    Here(#[allow(dead_code)] Ours),
}

/// A key that nobody else of the build is at work on.
pub(super) struct Ours(Arc<Session>, Digest);

impl Ours {
    fn of(session: &Arc<Session>, key: &Digest) -> Option<Self> {
        let mut taken = session.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let is_free = taken.insert(key.clone());
        is_free.then(|| Self(session.clone(), key.clone()))
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        let mut taken = self.0.keys.lock().unwrap_or_else(PoisonError::into_inner);
        taken.remove(&self.1);
    }
}
