//! `container save` and `container load`: a container as one archive, to be taken to another
//! host: its configuration, its files (an image of it) and its volumes.
//!
//! Both only use the Engine API, so an archive can come from, and go to, any engine that has it.

mod asked;
mod interrupt;
mod load;
mod manifest;
mod save;
mod spool;

pub(crate) use load::LOAD;
pub(crate) use save::SAVE;
