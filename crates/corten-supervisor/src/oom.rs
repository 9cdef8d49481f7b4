//! Hearing of the out-of-memory killer while the container runs.

use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use corten_runtime::OomEvent;

use crate::supervise::Shared;

/// How often, and after which pauses, a kill is looked for once memory is out.
const LOOKS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(20);

/// Tells the host of every time it has come, until the container ends. Without a memory
/// controller it cannot come for this container.
pub(crate) async fn watch(shared: Rc<Shared>) {
    let run = shared.run.borrow().clone();
    let Some((pid, cgroup)) = run.map(|run| (run.pid, run.cgroup)) else {
        return;
    };
    // The next run's group has the same path.
    let is_over = || {
        shared
            .run
            .borrow()
            .as_ref()
            .is_none_or(|run| run.pid != pid)
    };
    let watched = cgroup.watch_oom().map_err(|error| error.to_string());
    let watched = watched.and_then(|watch| {
        let fd = watch.as_fd().try_clone_to_owned();
        let fd = fd.and_then(crate::sys::watch).map_err(|e| e.to_string())?;
        Ok((watch, fd))
    });
    let (mut watch, fd) = match watched {
        Ok(watched) => watched,
        Err(error) => {
            tracing::debug!(error, "out-of-memory kills are seen at the end only");
            return;
        }
    };
    let mut told = 0;
    while let Ok(mut ready) = fd.readable().await {
        ready.clear_ready();
        match watch.take() {
            // v1 tells that memory is out, a moment before somebody is killed, if at all.
            Ok(OomEvent::Oom(_)) => {
                for _ in 0..LOOKS {
                    if is_over() {
                        return;
                    }
                    let kills = cgroup.oom_kill_count().unwrap_or(0);
                    if kills > told {
                        told = kills;
                        shared.host.borrow_mut().oom();
                        break;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
            Ok(OomEvent::Nothing) => {}
            Ok(OomEvent::Gone) | Err(_) => return,
        }
    }
}
