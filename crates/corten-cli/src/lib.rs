//! The Docker command line: commands, flags, tables, Go templates, progress.
//!
//! It is a client of the Engine API and nothing else. With `-H`, `DOCKER_HOST` or a context
//! it talks to that socket; without, it serves itself: the same API in the same process over
//! an in-memory connection. Names, flags, outputs, wordings and exit codes are Docker's,
//! because scripts depend on them.
//!
//! Start-up is cheap by construction: commands and flags are static tables, and only what
//! the called command needs is ever looked at.

pub mod app;
pub mod attach;
pub mod client;
pub mod command;
mod commands;
mod config;
mod context;
mod error;
pub mod flags;
mod format;
mod generate;
mod globals;
pub mod opts;
mod output;
mod pieces;
mod progress;
mod run;
pub mod template;
mod term;

pub use app::{Faces, UserFiles, main};
pub use error::CliError;
