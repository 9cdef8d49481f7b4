//! SSH keys in files, served as an agent serves them: what `build --ssh id=FILE` lends to steps.
//!
//! The keys stay in this process; whoever connects gets signatures. Only what uses keys is
//! answered (draft-ietf-sshm-ssh-agent): to list them and to sign. Nobody can add, remove or
//! lock any.

mod key;
mod protocol;
mod served;

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use key::Key;
pub use key::KeyError;
pub use served::Served;

/// Longest key file that is read, bytes (BuildKit's).
const LONGEST: u64 = 100 * 1024;

/// Why a file gives no key.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// It cannot be read.
    #[error("failed to open {}: {source}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It has no key that can be used.
    #[error("failed to parse {}: {source}", .path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        source: KeyError,
    },
    /// The socket was not made.
    #[error("the agent's socket: {0}")]
    Socket(#[from] io::Error),
}

/// Private keys.
#[derive(Debug, Default)]
pub struct Keys(Vec<Key>);

impl Keys {
    /// Adds the key of a file.
    pub fn add(&mut self, path: &Path) -> Result<(), AgentError> {
        let unreadable = |source| AgentError::Unreadable {
            path: path.to_owned(),
            source,
        };
        let mut text = Vec::new();
        let file = File::open(path).map_err(unreadable)?;
        file.take(LONGEST)
            .read_to_end(&mut text)
            .map_err(unreadable)?;
        let key = Key::parse(&text).map_err(|source| AgentError::Key {
            path: path.to_owned(),
            source,
        })?;
        self.0.push(key);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
