//! What blocks: on a thread of its own each time, or on one for much of it.

use std::cell::Cell;

use crate::error::BuildError;

/// Runs something that blocks, on a thread that may.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BuildError> + Send + 'static,
) -> Result<T, BuildError> {
    if MAY_BLOCK.get() {
        return work();
    }
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(BuildError::Internal(error.to_string())))
}

thread_local! {
    /// Whether this thread is one that may block.
    static MAY_BLOCK: Cell<bool> = const { Cell::new(false) };
}

struct MayBlock;

impl MayBlock {
    fn here() -> Self {
        MAY_BLOCK.set(true);
        Self
    }
}

impl Drop for MayBlock {
    fn drop(&mut self) {
        MAY_BLOCK.set(false);
    }
}

/// Runs what blocks again and again on one thread: to wake another each time takes longer than a
/// small step.
pub(crate) async fn on_one_thread<T: Send + 'static>(
    work: impl Future<Output = Result<T, BuildError>> + Send + 'static,
) -> Result<T, BuildError> {
    if MAY_BLOCK.get() {
        return work.await;
    }
    let runtime = tokio::runtime::Handle::current();
    blocking(move || {
        let _here = MayBlock::here();
        runtime.block_on(work)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_on_one_thread_stays_there() {
        let here = || std::thread::current().id();
        let outside = here();
        let (first, inside, after) = on_one_thread(async move {
            let first = here();
            let inside = on_one_thread(async move { Ok(here()) }).await?;
            // Still one that may block.
            let after = blocking(move || Ok(here())).await?;
            Ok((first, inside, after))
        })
        .await
        .unwrap();
        assert_ne!(first, outside);
        assert_eq!((inside, after), (first, first));
    }
}
