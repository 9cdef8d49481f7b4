//! Sysctls of the calling thread's network namespace, through `/proc/sys`.
//!
//! Invariant: what is read and written is on procfs; a file system mounted over it is refused.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags};

use crate::{NetworkError, Result};

/// `/proc/sys`, opened and checked once for several sysctls.
pub(crate) struct Sysctls(OwnedFd);

impl Sysctls {
    /// Opens `/proc/sys`.
    pub(crate) fn open() -> Result<Self> {
        let failed = |source: io::Error| NetworkError::Sysctl {
            name: "/proc/sys".into(),
            source,
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(CWD, "/proc/sys", flags, Mode::empty())
            .map_err(|e| failed(e.into()))?;
        let fs = rustix::fs::fstatfs(&dir).map_err(|e| failed(e.into()))?;
        if fs.f_type != PROC_SUPER_MAGIC {
            return Err(failed(io::Error::other("not procfs")));
        }
        Ok(Self(dir))
    }

    /// Sets `name` (a path such as `net/ipv4/ip_forward`) to `value` unless it is so already.
    pub(crate) fn ensure(&self, name: &str, value: &str) -> Result<()> {
        if self.get(name)?.trim_end() == value {
            return Ok(());
        }
        self.set(name, value)
    }

    /// The value of `name`.
    pub(crate) fn get(&self, name: &str) -> Result<String> {
        let mut buffer = [0u8; 256];
        let n = self
            .file(name, OFlags::RDONLY)
            .and_then(|file| Ok(rustix::io::read(file, &mut buffer)?))
            .map_err(|source| failed(name, source))?;
        Ok(String::from_utf8_lossy(buffer.get(..n).unwrap_or_default()).into_owned())
    }

    /// Writes `name`.
    pub(crate) fn set(&self, name: &str, value: &str) -> Result<()> {
        self.file(name, OFlags::WRONLY)
            .and_then(|file| Ok(rustix::io::write(file, value.as_bytes())?))
            .map(|_| ())
            .map_err(|source| failed(name, source))
    }

    fn file(&self, name: &str, mode: OFlags) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        Ok(rustix::fs::openat2(
            &self.0,
            name,
            mode | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        )?)
    }
}

fn failed(name: &str, source: io::Error) -> NetworkError {
    NetworkError::Sysctl {
        name: name.to_owned(),
        source,
    }
}

/// Has the kernel IPv6 at all (`ipv6.disable=1` or not built in)?
pub(crate) fn missing(error: &NetworkError) -> bool {
    matches!(error, NetworkError::Sysctl { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NetNs;

    #[test]
    fn reads_and_writes_the_namespace_of_the_thread() {
        let other = NetNs::create().unwrap();
        let read = || Sysctls::open().unwrap().get("net/ipv4/ip_forward").unwrap();
        // A new namespace begins with the host's value, whatever that is.
        let before = other.run_in(read).unwrap();
        let opposite = if before == "0\n" { "1" } else { "0" };
        let ns = NetNs::create().unwrap();
        ns.run_in(|| {
            let sysctls = Sysctls::open().unwrap();
            sysctls.ensure("net/ipv4/ip_forward", opposite).unwrap();
            assert_eq!(read().trim_end(), opposite);
            assert!(missing(
                &sysctls.get("net/ipv4/conf/none/forwarding").unwrap_err()
            ));
            assert!(sysctls.get("../self/status").is_err());
        })
        .unwrap();
        assert_eq!(other.run_in(read).unwrap(), before);
    }
}
