//! Reading what clients write: ports, mounts, sizes, users, signals, options.
//!
//! Pure functions: text in, typed values or a 400 error out, in Docker's words. Nothing
//! below this module sees an unparsed value.

pub(crate) mod block_io;
pub(crate) mod device_requests;
pub(crate) mod devices;
pub(crate) mod env;
pub(crate) mod filters;
pub(crate) mod health;
pub(crate) mod idmap;
pub(crate) mod limits;
pub(crate) mod logs;
pub(crate) mod modes;
pub(crate) mod mounts;
pub(crate) mod names;
pub(crate) mod paths;
pub(crate) mod ports;
pub(crate) mod remap;
pub(crate) mod restart;
pub(crate) mod security;
pub(crate) mod signals;
pub(crate) mod time;
pub(crate) mod users;

use crate::error::EngineError;

/// Several things that are wrong at once, as Docker lists them.
pub(crate) fn joined(errors: &[String]) -> String {
    match errors {
        [error] => error.clone(),
        errors => format!("* {}", errors.join("\n* ")),
    }
}

/// A 400 error.
pub(crate) fn bad(message: impl Into<String>) -> EngineError {
    EngineError::BadParameter(message.into())
}
