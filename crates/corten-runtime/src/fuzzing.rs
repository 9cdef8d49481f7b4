//! What `fuzz/` needs of this crate and nobody else does.

use corten_oci::runtime_spec::LinuxSeccomp;

use crate::error::RuntimeError;

/// Compiles a profile; says how many instructions it takes.
///
/// # Errors
/// A profile that cannot be compiled.
pub fn seccomp(profile: &LinuxSeccomp) -> Result<usize, RuntimeError> {
    Ok(crate::seccomp::compile(profile)?.program.len())
}

/// Reads what a systemd instance might send.
pub fn dbus_message(bytes: &[u8]) {
    crate::cgroup::fuzz_dbus_message(bytes);
}
