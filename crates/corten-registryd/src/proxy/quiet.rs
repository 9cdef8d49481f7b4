//! How long the upstream wants to be left alone (429 with `Retry-After`): meanwhile clients get
//! its refusal from here. Many of them do not wait themselves, and each would cost it a request.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use corten_registry::RegistryError;

/// What it asks for is not believed for longer: limits are lifted, and people pay for more.
const MOST: Duration = Duration::from_secs(60 * 60);

/// Of one kind of requests: registries count those for manifests, and send blobs all the same.
#[derive(Debug, Default)]
pub(super) struct Quiet(Mutex<Option<Refused>>);

#[derive(Debug, Clone)]
struct Refused {
    until: Instant,
    registry: String,
    reason: String,
}

impl Quiet {
    /// Asks the upstream, unless it is to be left alone.
    pub(super) async fn ask<T>(
        &self,
        question: impl Future<Output = Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        if let Some(refusal) = self.refusal() {
            return Err(refusal);
        }
        let answer = question.await;
        if let Err(RegistryError::RateLimited {
            registry,
            reason,
            after: Some(after),
        }) = &answer
        {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *known = Some(Refused {
                until: Instant::now() + (*after).min(MOST),
                registry: registry.clone(),
                reason: reason.clone(),
            });
        }
        answer
    }

    /// The refusal that still holds, with what is left of it.
    fn refusal(&self) -> Option<RegistryError> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = known.as_ref()?;
        let left = refused.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        Some(RegistryError::RateLimited {
            registry: refused.registry.clone(),
            reason: refused.reason.clone(),
            after: Some(left),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    async fn limited(after: Option<Duration>) -> Result<(), RegistryError> {
        Err(RegistryError::RateLimited {
            registry: "hub".to_owned(),
            reason: "slow down".to_owned(),
            after,
        })
    }

    #[tokio::test]
    async fn it_is_left_alone_as_long_as_it_says_and_an_hour_at_most() {
        let answered = async |quiet: &Quiet| quiet.ask(async { Ok(()) }).await.is_ok();
        for (after, leaves) in [
            (None, false),
            (Some(Duration::ZERO), false),
            (Some(Duration::from_secs(100)), true),
        ] {
            let quiet = Quiet::default();
            assert!(quiet.ask(limited(after)).await.is_err());
            assert_eq!(answered(&quiet).await, !leaves, "{after:?}");
        }
        let quiet = Quiet::default();
        let day = Some(Duration::from_secs(24 * 60 * 60));
        assert!(quiet.ask(limited(day)).await.is_err());
        let left = quiet.refusal().unwrap();
        assert!(
            matches!(&left, RegistryError::RateLimited { after: Some(after), reason, .. }
                if *after <= MOST && reason == "slow down"),
            "{left}"
        );
        let short = Some(Duration::from_millis(20));
        let quiet = Quiet::default();
        assert!(quiet.ask(limited(short)).await.is_err());
        tokio::time::sleep(Duration::from_millis(40)).await;
        assert!(answered(&quiet).await);
    }
}
