//! From a clone to the program: what is executed in a container that runs.
//!
//! A process in a group that somebody freezes does not get to its program, and whoever waited for it
//! and did nothing else would be frozen with it: so it is waited for in the event loop. What this process
//! freezes itself (a pause, an update, a checkpoint) begins when nobody is on his way, as what is half
//! of this process and half of the container is to be neither moved nor saved, and ends before somebody
//! sets out: nobody does while one waits for that ([`settle`], [`turn`]). Who does not arrive in time, as
//! an outside tool has frozen him, is frozen by a pause or an update all the same; a checkpoint is refused.
//! Any other freeze is an outside tool's, and is waited for a little.

use std::cell::Cell;
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use corten_oci::runtime_spec::Process;
use corten_runtime::{ExecProcess, Stdio, Target};

use crate::external::Refused;
use crate::protocol::Phase;
use crate::supervise::{Live, Saving, Shared};

/// How long an exec waits for those who freeze a container that is not paused, and a freeze of ours
/// for those who are on their way.
const FROZEN: Duration = Duration::from_secs(5);
/// How often whoever waits for those looks.
const LOOK: Duration = Duration::from_millis(5);

/// Who is on the way, and who keeps others from setting out.
#[derive(Debug, Default)]
pub(crate) struct Way {
    executing: Cell<u32>,
    freezing: Cell<u32>,
}

/// Somebody is on his way.
struct OnItsWay(Rc<Way>);

impl Drop for OnItsWay {
    fn drop(&mut self) {
        self.0.executing.set(self.0.executing.get() - 1);
    }
}

/// As long as this lives, nobody sets out.
pub(crate) struct Settled(Rc<Way>);

impl Settled {
    /// Whether nobody is on his way to his program any more.
    pub(crate) fn is_complete(&self) -> bool {
        self.0.executing.get() == 0
    }
}

impl Drop for Settled {
    fn drop(&mut self) {
        self.0.freezing.set(self.0.freezing.get() - 1);
    }
}

impl Way {
    fn set_out(self: &Rc<Self>) -> OnItsWay {
        self.executing.set(self.executing.get() + 1);
        OnItsWay(self.clone())
    }

    async fn settle(self: &Rc<Self>, patience: Duration) -> Settled {
        self.freezing.set(self.freezing.get() + 1);
        let settled = Settled(self.clone());
        let until = Instant::now() + patience;
        while !settled.is_complete() && Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
        settled
    }
}

/// Waits until nobody is on his way to his program, but not for ever.
pub(crate) async fn settle(shared: &Shared) -> Settled {
    shared.way.settle(FROZEN).await
}

/// Waits for the end of a saving: what CRIU has frozen is neither to be thawed nor entered.
pub(crate) async fn saved(shared: &Shared) {
    while shared.saving.get() != Saving::No && shared.run.borrow().is_some() {
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until somebody may set out, who does so before anything else happens.
pub(crate) async fn turn(shared: &Shared) {
    loop {
        saved(shared).await;
        if shared.way.freezing.get() == 0 {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

impl Live {
    /// Executes a further process. `born` is called as soon as there is one, with its pid.
    pub(crate) async fn exec(
        &self,
        shared: &Rc<Shared>,
        process: &Process,
        stdio: Stdio,
        born: impl FnOnce(i32),
    ) -> Result<ExecProcess, Refused> {
        if let Some(external) = &self.external {
            let process = external.exec(&self.spec, process, stdio).await?;
            born(process.pid);
            return Ok(process);
        }
        let target = Target {
            id: &shared.id,
            pidfd: self.pidfd.get_ref().as_fd(),
            spec: &self.spec,
            cgroup: &self.cgroup,
        };
        let mut executing = corten_runtime::begin_exec(&target, process, stdio)?;
        let on_its_way = shared.way.set_out();
        // Without a descriptor for that it is not dropped here, which would wait for its end.
        let words = executing.as_fd().try_clone_to_owned();
        let words = words.and_then(crate::sys::watch);
        if words.is_ok() {
            born(executing.pid());
        }
        let refused = loop {
            let words = match &words {
                Ok(words) => words,
                Err(error) => break other(error),
            };
            match executing.heed(&target) {
                Ok(false) => {}
                Ok(true) => return Ok(executing.finish()),
                Err(error) => break error.into(),
            }
            match tokio::time::timeout(FROZEN, words.readable()).await {
                Ok(Ok(mut ready)) => ready.clear_ready(),
                Ok(Err(error)) => break other(error),
                Err(_) if self.frozen_from_outside(shared) => {
                    break other(format_args!(
                        "container {} has been frozen from outside: pause and unpause it",
                        shared.id
                    ));
                }
                // The machine is busy, or whoever froze it was waited for.
                Err(_) => {}
            }
        };
        drop(on_its_way);
        tokio::task::spawn_local(reap(executing.kill()));
        Err(refused)
    }

    fn frozen_from_outside(&self, shared: &Shared) -> bool {
        let ours = shared.phase.get() == Phase::Paused || shared.saving.get() != Saving::No;
        !ours && self.cgroup.is_frozen()
    }
}

/// Waits for the end of what has been killed: with v1's freezer, until it is thawed.
async fn reap(pidfd: OwnedFd) {
    if let Ok(pidfd) = crate::sys::watch(pidfd) {
        crate::execs::wait(&pidfd).await;
    }
}

fn other(error: impl std::fmt::Display) -> Refused {
    Refused {
        code: None,
        message: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_freeze_begins_when_nobody_is_on_his_way() {
        let way = Rc::new(Way::default());
        let (first, second) = (way.set_out(), way.set_out());
        let settle = way.settle(Duration::from_secs(60));
        tokio::pin!(settle);
        for arriving in [first, second] {
            let early = tokio::time::timeout(LOOK, &mut settle).await;
            assert!(early.is_err());
            assert_eq!(way.freezing.get(), 1, "others wait meanwhile");
            drop(arriving);
        }
        let settled = settle.await;
        assert!(settled.is_complete());
        assert_eq!(way.freezing.get(), 1);
        drop(settled);
        assert_eq!(way.freezing.get(), 0);
    }

    #[tokio::test]
    async fn who_never_arrives_is_not_waited_for() {
        let way = Rc::new(Way::default());
        let _stuck = way.set_out();
        assert!(!way.settle(Duration::ZERO).await.is_complete());
        assert_eq!(way.freezing.get(), 0);
    }
}
