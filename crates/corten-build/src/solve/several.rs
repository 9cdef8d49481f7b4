//! On how many threads a build runs. That of a command line begins with one: to wake another and to
//! be woken again takes longer than to look a step up, and where all steps are known there is
//! nothing else to do. What may take long goes to a runtime of several threads, which is made when
//! the first of it comes: there a build goes on, too, while the command line waits for its terminal.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle, Runtime, RuntimeFlavor};
use tokio::task::JoinSet;

use super::blocking;
use crate::error::BuildError;

/// Of this process, for all of its builds.
static RUNTIME: Mutex<Option<Runtime>> = Mutex::new(None);

/// Whether the runtime has this one thread.
pub(crate) fn has_one_thread() -> bool {
    Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread
}

/// Runs something that blocks no longer than some queries: in place where there is one thread.
pub(crate) async fn brief<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BuildError> + Send + 'static,
) -> Result<T, BuildError> {
    if has_one_thread() {
        return work();
    }
    blocking(work).await
}

/// Runs something where there are several threads. It ends when what this returns is dropped.
pub(crate) async fn on_several<T: Send + 'static>(
    work: impl Future<Output = Result<T, BuildError>> + Send + 'static,
) -> Result<T, BuildError> {
    if !has_one_thread() {
        return work.await;
    }
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::debug!(%error, "a build has no more than one thread");
            return work.await;
        }
    };
    let mut task = JoinSet::new();
    task.spawn_on(work, &runtime);
    match task.join_next().await {
        Some(Ok(done)) => done,
        Some(Err(error)) => Err(BuildError::Internal(error.to_string())),
        None => Err(BuildError::Internal("a task that is not there".to_owned())),
    }
}

fn runtime() -> std::io::Result<Handle> {
    let mut runtime = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = &*runtime {
        return Ok(runtime.handle().clone());
    }
    let made = Builder::new_multi_thread().enable_all().build()?;
    Ok(runtime.insert(made).handle().clone())
}

/// Ends a command line's runtime and what builds have begun in threads of their own. What blocks in
/// either is waited for, at most so long for both.
pub fn end_threads(runtime: Runtime, patience: Duration) {
    let ours = RUNTIME
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    end(runtime, ours, patience);
}

/// The first has those who wait for the second: what blocks there ends when they do.
fn end(first: Runtime, second: Option<Runtime>, patience: Duration) {
    let Some(second) = second else {
        return first.shutdown_timeout(patience);
    };
    let began = Instant::now();
    // A thread of it may sit reading standard input, of which there is no end.
    first.shutdown_timeout(patience / 2);
    second.shutdown_timeout(patience.saturating_sub(began.elapsed()));
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    struct Dropped(Arc<AtomicBool>);

    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }

    #[test]
    fn who_waits_ends_before_what_is_waited_for() {
        let first = Builder::new_current_thread().build().unwrap();
        let second = Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .unwrap();
        let (cancelled, over) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let guard = Dropped(cancelled.clone());
        let waits = first.spawn(async move {
            let _guard = guard;
            std::future::pending::<()>().await;
        });
        let (begun, begins) = std::sync::mpsc::channel();
        let done = Dropped(Arc::clone(&over));
        second.spawn_blocking(move || {
            begun.send(()).unwrap();
            while !cancelled.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(1));
            }
            drop(done);
        });
        begins.recv().unwrap();
        end(first, Some(second), Duration::from_secs(10));
        assert!(waits.is_finished());
        assert!(over.load(Ordering::Acquire));
    }

    #[tokio::test]
    async fn what_may_take_long_goes_elsewhere_and_ends_with_who_waits() {
        let here = std::thread::current().id();
        assert!(has_one_thread());
        assert_eq!(
            brief(move || Ok(std::thread::current().id()))
                .await
                .unwrap(),
            here
        );
        let there = on_several(async {
            assert!(!has_one_thread());
            // There it blocks nobody.
            brief(|| Ok(std::thread::current().id())).await
        });
        assert_ne!(there.await.unwrap(), here);
        let over = Arc::new(AtomicBool::new(false));
        let guard = Dropped(over.clone());
        let waits = on_several(async move {
            let _guard = guard;
            std::future::pending::<Result<(), BuildError>>().await
        });
        let short = Duration::from_millis(20);
        assert!(tokio::time::timeout(short, waits).await.is_err());
        while !over.load(Ordering::Acquire) {
            tokio::time::sleep(short).await;
        }
    }
}
