//! The engine's services: containers, images, volumes, networks, exec, events, system.
//!
//! Everything the Engine API can do is a method of one of the services here, taking and
//! returning Docker's own models. State is rows in one SQLite database and immutable files
//! (see ARCHITECTURE.md); any number of processes may have the same root open. Whether a
//! container runs is decided by the kernel (its supervisor's lock), never by a row.

mod builder;
pub mod containers;
mod engine;
mod error;
pub mod events;
#[doc(hidden)]
pub mod fuzzing;
pub mod images;
pub mod layout;
pub mod networks;
mod outflow;
mod parse;
pub mod rubbish;
mod schema;
mod settings;
mod spec;
pub mod supervise;
mod sweep;
mod sys;
pub mod system;
pub mod volumes;
pub mod when;

pub use bollard_stubs::models;
pub use builder::step_resources;
pub use corten_db::{Freeing, may_use_reserve};
pub use engine::{Engine, EngineOptions};
pub use error::{EngineError, ErrorKind};
pub use outflow::Outflow;

/// Docker's filters: field → accepted values.
pub type Filters = std::collections::BTreeMap<String, Vec<String>>;
