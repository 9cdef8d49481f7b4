//! The values of `run`'s flags, parsed exactly as Docker parses them and refused in its
//! words. Pure: text in, Engine API values out.

pub mod blkio;
pub mod device;
pub mod env;
pub mod hosts;
pub mod mount;
pub mod network;
pub mod platform;
pub mod ports;
pub mod security;
pub mod size;
pub mod ulimit;

/// A value that does not parse; the text is what the user reads.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct OptError(pub String);

impl OptError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

pub(crate) type Result<T> = std::result::Result<T, OptError>;

/// For flag tables: whether `parse` accepts the value.
pub(crate) fn check<T>(parsed: Result<T>) -> std::result::Result<(), String> {
    parsed.map(drop).map_err(|e| e.0)
}
