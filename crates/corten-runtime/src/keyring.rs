//! The session keyring: a container gets one of its own, or could read the keys of whoever
//! has started it.

use std::ffi::CStr;

use rustix::io::Errno;

use crate::error::{RuntimeError, Step};
use crate::sys;

/// Joins a new session keyring of that name, or of none.
///
/// Like runc and crun this goes on only where there are no keyrings at all, with one
/// addition: a filter around the runtime that forbids the call (Docker's default one does)
/// is in force in the container as well, which then cannot reach any keyring either.
pub(crate) fn join(name: Option<&CStr>) -> Result<(), RuntimeError> {
    let errno = match sys::join_session_keyring(name) {
        Ok(()) | Err(Errno::NOSYS) => return Ok(()),
        Err(Errno::PERM) if sys::is_filtered() => return Ok(()),
        Err(errno) => errno,
    };
    let mut target = name.map_or(String::new(), |name| name.to_string_lossy().into_owned());
    if errno == Errno::DQUOT {
        let uid = rustix::process::geteuid().as_raw();
        target.push_str(&format!(
            " (user {uid} of this namespace may have no more keys: raise \
             kernel.keys.maxkeys and maxbytes, or keep the caller's with --no-new-keyring)"
        ));
    }
    Err(RuntimeError::setup(
        Step::Keyring,
        target.trim_start(),
        errno,
    ))
}
