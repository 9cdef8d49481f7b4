//! A lease in asynchronous code. The end of a lease may collect what waited for it, which takes
//! its time and blocks: that is done on a thread for such work.

use corten_store::Lease;
use tokio::runtime::{Handle, RuntimeFlavor};

/// A [`Lease`] that may end anywhere.
#[derive(Debug)]
pub struct TaskLease(Option<Lease>);

impl From<Lease> for TaskLease {
    fn from(lease: Lease) -> Self {
        Self(Some(lease))
    }
}

impl TaskLease {
    /// Ends the lease, and waits for what that brings with it. Dropped instead, it ends soon.
    pub async fn end(mut self) {
        let mut lease = self.0.take();
        // Where there is one thread, another takes longer to wake than most leases to end.
        if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
            lease = lease.and_then(Lease::end);
        }
        if let Some(lease) = lease
            && let Err(error) = tokio::task::spawn_blocking(move || drop(lease)).await
        {
            tracing::warn!(%error, "what nothing needs is not collected yet");
        }
    }
}

impl Drop for TaskLease {
    fn drop(&mut self) {
        let Some(lease) = self.0.take() else { return };
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop(lease))),
            Err(_) => drop(lease),
        }
    }
}

#[cfg(test)]
mod tests {
    use corten_db::Database;
    use corten_store::Store;
    use tokio::runtime::Builder;

    use super::*;

    #[test]
    fn what_waited_for_a_lease_is_gone_when_its_end_was_waited_for() {
        for mut runtime in [Builder::new_current_thread(), Builder::new_multi_thread()] {
            let dir = tempfile::tempdir().unwrap();
            let database = Database::open(&dir.path().join("db"), &[corten_store::SCHEMA]).unwrap();
            let store = Store::open(dir.path(), database);
            let blob = store.blobs().put_bytes(b"blob").unwrap();
            // Asked whether it has it, the store would spare it.
            let blob = store.blobs().path(&blob);
            let lease = || TaskLease::from(store.leases().acquire().unwrap());
            runtime.build().unwrap().block_on(async {
                // Nothing waits.
                lease().end().await;
                assert!(blob.exists());
                let lease = lease();
                assert!(store.gc().unwrap().busy && blob.exists());
                lease.end().await;
                assert!(!blob.exists());
            });
        }
    }
}
