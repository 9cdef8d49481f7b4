//! Progress: pulls and pushes, builds.

pub(crate) mod build;
mod plain;
pub(crate) mod stream;
mod tty;
