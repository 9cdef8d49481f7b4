//! A supervisor that has nothing to do is small.
//!
//! A start executes most of the program, a request a good part of it, what follows a small event
//! loop. So some time after the last activity, just before the loop goes to sleep, the pages of
//! code are given back (`sys::forget`): what is touched afterwards is all that stays in memory.

use std::cell::Cell;
use std::convert::Infallible;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::sys;

/// How long after the last activity.
const QUIET: Duration = Duration::from_secs(1);
/// How long after the first, if there is no end of it.
const LONGEST: Duration = Duration::from_secs(30);

thread_local! {
    static ACTIVITY: Rc<Notify> = Rc::new(Notify::new());
    static DUE: Cell<bool> = const { Cell::new(false) };
}

/// Something happens that needs more code than waiting does.
pub(crate) fn touch() {
    ACTIVITY.with(|activity| activity.notify_one());
}

/// Sees to it that memory is given back after activities.
pub(crate) async fn watch() -> Infallible {
    let activity = ACTIVITY.with(Rc::clone);
    loop {
        activity.notified().await;
        let late = Instant::now() + LONGEST;
        while Instant::now() < late
            && tokio::time::timeout(QUIET, activity.notified())
                .await
                .is_ok()
        {}
        DUE.set(true);
    }
}

/// Called when the loop goes to sleep.
pub(crate) fn parks() {
    if DUE.replace(false) {
        sys::forget();
    }
}
