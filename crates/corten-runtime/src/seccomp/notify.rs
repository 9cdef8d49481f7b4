//! User notification (runtime-spec, "Container Process State"): calls with
//! `SCMP_ACT_NOTIFY` wait for an agent's decision. The child loads the filter, says which
//! descriptor the kernel gave it, and waits; its creator copies that descriptor
//! (`pidfd_getfd`, so it must be allowed to trace the child) and sends it, with the
//! container's state, to the agent's socket. Only then does the child go on, so every
//! notified call finds somebody who can answer.
//!
//! Two profiles cannot work, and are refused as runc refuses them: the child says its word
//! by `write`, so that call, and the default, must not notify. Every other call may.

use std::io::IoSlice;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use corten_oci::runtime_spec::{LinuxSeccomp, LinuxSeccompAction};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde_json::{Value, json};

use crate::error::{RuntimeError, Step};
use crate::passing;

/// The agent that answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listener {
    path: PathBuf,
    metadata: Option<String>,
}

impl Listener {
    /// The profile's agent, if any of its rules notifies; without such a rule the path is
    /// ignored.
    pub(super) fn of(profile: &LinuxSeccomp) -> Result<Option<Self>, RuntimeError> {
        let notify = LinuxSeccompAction::ScmpActNotify;
        let path = profile.listener_path().as_ref();
        let path = path.filter(|path| !path.as_os_str().is_empty());
        let metadata = profile.listener_metadata().as_ref();
        if path.is_none() && metadata.is_some_and(|text| !text.is_empty()) {
            return Err(RuntimeError::spec(
                "linux.seccomp.listenerMetadata",
                "is set without a listenerPath",
            ));
        }
        if profile.default_action() == notify {
            return Err(RuntimeError::spec(
                "linux.seccomp.defaultAction",
                "SCMP_ACT_NOTIFY cannot be used as default action",
            ));
        }
        let mut notified = false;
        for rule in profile.syscalls().iter().flatten() {
            if rule.action() != notify {
                continue;
            }
            notified = true;
            if rule.names().iter().any(|name| name == "write") {
                return Err(RuntimeError::spec(
                    "linux.seccomp.syscalls",
                    "SCMP_ACT_NOTIFY cannot be used for the write syscall",
                ));
            }
        }
        match path {
            _ if !notified => Ok(None),
            Some(path) => Ok(Some(Self {
                path: path.clone(),
                metadata: metadata.cloned(),
            })),
            None => Err(RuntimeError::spec(
                "linux.seccomp.listenerPath",
                "is missing, but a rule has SCMP_ACT_NOTIFY",
            )),
        }
    }

    fn send(&self, descriptor: BorrowedFd<'_>, document: &str) -> Result<(), Errno> {
        let path = self.path.as_os_str().as_bytes();
        // The notation of Go, and of runc's documentation, for abstract names.
        let address = match path.strip_prefix(b"@") {
            Some(name) => SocketAddrUnix::new_abstract_name(name)?,
            None => SocketAddrUnix::new(path)?,
        };
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        connect(&socket, &address)?;
        let once = [descriptor];
        let mut fds = once.as_slice();
        let mut rest = document.as_bytes();
        while !rest.is_empty() {
            let sent = passing::send(&socket, &[IoSlice::new(rest)], fds)?;
            // The descriptor goes with the first piece only.
            fds = &[];
            rest = rest.get(sent..).unwrap_or_default();
        }
        Ok(())
    }
}

/// Copies descriptor `number` of the process `pid` (`child` is its pidfd) and gives it to
/// the agent together with the container's `state`.
pub(crate) fn hand_over(
    listener: Option<&Listener>,
    child: BorrowedFd<'_>,
    pid: i32,
    number: i32,
    state: &Value,
) -> Result<(), RuntimeError> {
    use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
    let fail = |target: String| move |errno| RuntimeError::setup(Step::Listener, target, errno);
    // Only a filter with a listener makes the child say this word.
    let listener = listener.ok_or_else(|| fail(String::new())(Errno::PROTO))?;
    let descriptor = pidfd_getfd(child, number, PidfdGetfdFlags::empty())
        .map_err(fail(format!("(descriptor {number} of process {pid})")))?;
    let mut document = json!({
        "ociVersion": state.get("ociVersion").cloned().unwrap_or_default(),
        "fds": ["seccompFd"],
        "pid": pid,
    });
    if let (Some(metadata), Some(map)) = (&listener.metadata, document.as_object_mut()) {
        map.insert("metadata".to_owned(), metadata.as_str().into());
    }
    if let Some(map) = document.as_object_mut() {
        map.insert("state".to_owned(), state.clone());
    }
    listener
        .send(descriptor.as_fd(), &document.to_string())
        .map_err(fail(listener.path.display().to_string()))
}
