//! A process's streams on our own: attach, exec, `run` in the foreground.

mod demux;
mod detach;
mod session;
mod signals;

pub(crate) use demux::copy as demux;
pub(crate) use session::{End, Session};
pub(crate) use signals::{forward, initial_size, monitor_size, redraw};
