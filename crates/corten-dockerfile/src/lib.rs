//! Dockerfile and `.dockerignore` as values. Pure: text in, values out, no file is opened.
//!
//! - [`Dockerfile::parse`]: the language of BuildKit's Dockerfile reference (1.x frontend):
//!   continuation lines, comments, parser directives, here-documents, the 18 instructions with
//!   their flags, each with the lines it came from;
//! - [`expand`]: variable substitution and quote removal as the reference's "Environment
//!   replacement" describes;
//! - [`scope`]: which ARG and ENV an instruction sees;
//! - [`ignore`]: `.dockerignore` patterns and their matching;
//! - [`lint`]: the build checks;
//! - [`describe`]: what can be built, and with which arguments;
//! - [`Mount`] and [`Device`]: what a `RUN --mount` and `--device` say;
//! - [`DockerfileError`]: `Dockerfile:LINE: message`, and the lines with a caret.
//!
//! Invariant: what is parsed is what is executed. A flag that is not understood is an error, so
//! the builder never meets one it does not know of.

pub mod describe;
mod device;
mod error;
pub mod expand;
mod expose;
mod flags;
mod glob;
pub mod ignore;
pub mod instruction;
mod line;
pub mod lint;
mod mode;
mod mount;
mod node;
mod parse;
mod quote;
pub mod scope;
mod truth;

pub use device::Device;
pub use error::{DockerfileError, snippet};
pub use expand::{ExpandError, Lexer};
pub use expose::Exposed;
pub use ignore::{IgnoreError, IgnoreRules, RulesAbove};
pub use instruction::{
    ArgDeclaration, CommandLine, CopyInstruction, Directives, Dockerfile, Healthcheck, Heredoc,
    Instruction, KeyValue, Kind, RunInstruction, Span, Stage, Trigger, description,
};
pub use mode::{ModeChange, ModeError};
pub use mount::{Mount, MountKind, Sharing};
pub use node::Node;
pub use parse::suggest;
pub use quote::quote;
pub use scope::Scope;
pub use truth::truth;
