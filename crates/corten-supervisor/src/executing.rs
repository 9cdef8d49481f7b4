//! From a clone to the program: what is executed in a container that runs.
//!
//! A process in a group that somebody freezes does not get to its program, and whoever waited for it
//! and did nothing else would be frozen with it: so it is waited for in the event loop. What this process
//! freezes itself (a pause, an update, a checkpoint) begins when nobody is on his way, as what is half
//! of this process and half of the container is to be neither moved nor saved, and ends before somebody
//! sets out. Any other freeze is an outside tool's, and is waited for a little.

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

/// Somebody is on his way.
struct OnItsWay(Rc<Shared>);

impl OnItsWay {
    fn of(shared: &Rc<Shared>) -> Self {
        shared.executing.set(shared.executing.get() + 1);
        Self(shared.clone())
    }
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        self.0.executing.set(self.0.executing.get() - 1);
    }
}

/// Waits until nobody is on his way to his program, but not for ever.
pub(crate) async fn settled(shared: &Shared) {
    let until = Instant::now() + FROZEN;
    while shared.executing.get() > 0 && Instant::now() < until {
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
        let on_its_way = OnItsWay::of(shared);
        let words = executing.as_fd().try_clone_to_owned();
        let words = words.and_then(crate::sys::watch).map_err(other)?;
        born(executing.pid());
        let refused = loop {
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
