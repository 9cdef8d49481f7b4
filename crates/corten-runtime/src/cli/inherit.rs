//! Descriptors the caller passes on: those of socket activation (sd_listen_fds(3)), and
//! those of `--preserve-fds` after them.

use std::fs;

use corten_oci::runtime_spec::Spec;

use super::CliError;

const FIRST: u32 = 3;

#[derive(Debug, Clone, Copy)]
pub(super) struct Inherited {
    listen: u32,
    preserved: u32,
}

impl Inherited {
    /// Must be called before anything else is opened.
    pub(super) fn from_caller(preserved: u32) -> Result<Self, CliError> {
        let variable = |name| {
            let value = std::env::var(name).ok()?;
            value.parse::<u32>().ok()
        };
        let listen = match (variable("LISTEN_PID"), variable("LISTEN_FDS")) {
            (Some(pid), Some(count)) if pid == std::process::id() => count,
            _ => 0,
        };
        Self::check(listen, preserved)
    }

    /// For a process beside the first: no sockets.
    pub(super) fn preserved(preserved: u32) -> Result<Self, CliError> {
        Self::check(0, preserved)
    }

    fn check(listen: u32, preserved: u32) -> Result<Self, CliError> {
        let end = FIRST.saturating_add(listen).saturating_add(preserved);
        for fd in FIRST..end {
            if fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_err() {
                return Err(CliError::Refused(format!(
                    "descriptor {fd} is to be passed on, but is not open \
                     ($LISTEN_FDS {listen}, --preserve-fds {preserved})"
                )));
            }
        }
        Ok(Self { listen, preserved })
    }

    pub(super) fn count(self) -> u32 {
        self.listen.saturating_add(self.preserved)
    }

    /// Tells the program of its sockets.
    pub(super) fn announce(self, spec: &mut Spec) {
        if self.listen == 0 {
            return;
        }
        if let Some(process) = spec.process_mut() {
            let mut env = process.env().clone().unwrap_or_default();
            env.push(format!("LISTEN_FDS={}", self.listen));
            env.push("LISTEN_PID=1".to_owned());
            process.set_env(Some(env));
        }
    }
}
