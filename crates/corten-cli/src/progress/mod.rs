//! Progress: pulls and pushes, builds.

pub(crate) mod build;
pub(crate) mod plain;
pub(crate) mod rawjson;
pub(crate) mod stream;
mod tty;

/// Instructions that change only the configuration are no steps in BuildKit's display.
fn is_shown(vertex: &corten_build::progress::Vertex) -> bool {
    vertex
        .instruction
        .as_ref()
        .is_none_or(|instruction| !instruction.config_only)
}
