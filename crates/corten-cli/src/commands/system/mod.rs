//! `system …`: what concerns the whole engine.

mod check;
mod df;
mod events;
mod info;
mod prune;

use crate::command::Command;

pub(crate) use events::EVENTS;
pub(crate) use info::INFO;

/// `system`
pub(crate) static GROUP: Command = Command::group(
    "system",
    "Manage Corten",
    &[
        &check::CHECK,
        &df::DF,
        &EVENTS,
        &INFO,
        &prune::PRUNE,
        &check::RESET,
        &check::RESTORE,
    ],
);
