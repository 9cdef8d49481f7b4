//! The host-wide lock: one engine at a time chooses subnets and creates or removes bridges, whatever
//! its root. Held for milliseconds; released by the kernel when the holder dies.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::FlockOperation;

use crate::{NetworkError, Result};

/// The lock file. In `/run`: it means nothing after a reboot.
const PATH: &str = "/run/corten-network.lock";

/// The held lock.
#[derive(Debug)]
pub(crate) struct HostLock {
    _file: File,
}

impl HostLock {
    /// Waits for the lock and takes it.
    pub(crate) fn acquire() -> Result<Self> {
        let failed = |source: io::Error| NetworkError::Lock {
            path: Path::new(PATH).to_owned(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(PATH)
            .map_err(failed)?;
        loop {
            match rustix::fs::flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Self { _file: file }),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(failed(e.into())),
            }
        }
    }
}
