//! Restart policies.

use bollard_stubs::models::{RestartPolicy, RestartPolicyNameEnum};
use corten_supervisor::RestartPolicy as Policy;

use super::bad;
use crate::error::EngineError;

/// When a container is started again after its program has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Restart {
    /// Never.
    No,
    /// Whatever its exit code, until it is stopped.
    Always,
    /// As `Always`, but not at boot when it had been stopped.
    UnlessStopped,
    /// When it failed, at most that often (`None`: without limit).
    OnFailure(Option<u32>),
}

impl Restart {
    /// As supervisors know it.
    pub(crate) fn policy(self) -> Policy {
        match self {
            Self::No => Policy::No,
            Self::Always => Policy::Always,
            Self::UnlessStopped => Policy::UnlessStopped,
            Self::OnFailure(count) => Policy::OnFailure(count.unwrap_or(0)),
        }
    }
}

/// Checks a policy and its combination with automatic removal.
pub(crate) fn restart(
    policy: Option<&RestartPolicy>,
    auto_remove: bool,
) -> Result<Restart, EngineError> {
    let Some(policy) = policy else {
        return Ok(Restart::No);
    };
    let retries = policy.maximum_retry_count.unwrap_or(0);
    let no_count = |r: Restart| {
        if retries != 0 {
            return Err(bad(
                "invalid restart policy: maximum retry count can only be used with 'on-failure'",
            ));
        }
        Ok(r)
    };
    let parsed = match policy.name {
        None | Some(RestartPolicyNameEnum::EMPTY | RestartPolicyNameEnum::NO) => {
            no_count(Restart::No)?
        }
        Some(RestartPolicyNameEnum::ALWAYS) => no_count(Restart::Always)?,
        Some(RestartPolicyNameEnum::UNLESS_STOPPED) => no_count(Restart::UnlessStopped)?,
        Some(RestartPolicyNameEnum::ON_FAILURE) => {
            let count = u32::try_from(retries).map_err(|_| {
                bad("invalid restart policy: maximum retry count cannot be negative")
            })?;
            Restart::OnFailure((count > 0).then_some(count))
        }
    };
    if auto_remove && parsed != Restart::No {
        return Err(bad(
            "can't create 'AutoRemove' container with restart policy",
        ));
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: RestartPolicyNameEnum, count: i64) -> RestartPolicy {
        RestartPolicy {
            name: Some(name),
            maximum_retry_count: Some(count),
        }
    }

    #[test]
    fn policies() {
        use RestartPolicyNameEnum as N;
        for (p, expected) in [
            (policy(N::EMPTY, 0), Some(Restart::No)),
            (policy(N::NO, 0), Some(Restart::No)),
            (policy(N::ALWAYS, 0), Some(Restart::Always)),
            (policy(N::UNLESS_STOPPED, 0), Some(Restart::UnlessStopped)),
            (policy(N::ON_FAILURE, 0), Some(Restart::OnFailure(None))),
            (policy(N::ON_FAILURE, 3), Some(Restart::OnFailure(Some(3)))),
            (policy(N::ON_FAILURE, -1), None),
            (policy(N::ALWAYS, 3), None),
        ] {
            assert_eq!(restart(Some(&p), false).ok(), expected, "{p:?}");
        }
        assert!(restart(Some(&policy(N::ALWAYS, 0)), true).is_err());
        assert_eq!(restart(None, true).unwrap(), Restart::No);
    }
}
