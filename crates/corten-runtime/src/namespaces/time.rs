//! A new time namespace and its offsets (runtime-spec, config-linux "Offset for Time
//! Namespace"; time_namespaces(7)). A namespace that a process is in has fixed offsets,
//! so it is made for the child's children first, gets its offsets, and is entered last.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::os::fd::AsFd as _;

use corten_oci::runtime_spec::LinuxTimeOffset;

use crate::error::{RuntimeError, Step, os};
use crate::procfs::Proc;
use crate::sys;

/// The text of `timens_offsets`.
pub(super) fn lines(offsets: &HashMap<String, LinuxTimeOffset>) -> Result<String, RuntimeError> {
    let mut text = String::new();
    for (clock, offset) in offsets {
        if clock != "monotonic" && clock != "boottime" {
            let reason = "is not a clock with an offset: monotonic or boottime";
            return Err(RuntimeError::spec(
                format!("linux.timeOffsets.{clock}"),
                reason,
            ));
        }
        let nanoseconds = offset.nanosecs().unwrap_or(0);
        if nanoseconds >= 1_000_000_000 {
            let reason = format!("{nanoseconds} is not less than a second");
            return Err(RuntimeError::spec(
                format!("linux.timeOffsets.{clock}.nanosecs"),
                reason,
            ));
        }
        let seconds = offset.secs().unwrap_or(0);
        writeln!(text, "{clock} {seconds} {nanoseconds}").ok();
    }
    Ok(text)
}

/// Caller: sets the offsets of the namespace that the child has made.
pub(super) fn write(pid: i32, lines: &str) -> Result<(), RuntimeError> {
    let path = format!("/proc/{pid}/timens_offsets");
    fs::write(&path, lines)
        .map_err(|error| RuntimeError::setup(Step::Namespace, format!("time: {path}"), os(&error)))
}

/// Child: makes it.
pub(super) fn make() -> Result<(), RuntimeError> {
    sys::unshare(sys::CLONE_NEWTIME)
        .map_err(|errno| RuntimeError::setup(Step::Namespace, "time", errno))
}

/// Child: enters what it has made. Before Linux 6.3 an `execve` alone would not.
pub(super) fn enter(proc: &Proc) -> Result<(), RuntimeError> {
    let fail = |errno| RuntimeError::setup(Step::Namespace, "time", errno);
    let made = proc
        .open_namespace("self/ns/time_for_children")
        .map_err(fail)?;
    sys::setns(made.as_fd(), sys::CLONE_NEWTIME).map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets() {
        let of = |json| lines(&serde_json::from_value(json).unwrap());
        assert_eq!(
            of(serde_json::json!({"boottime": {"secs": -5, "nanosecs": 7}})).unwrap(),
            "boottime -5 7\n"
        );
        assert!(of(serde_json::json!({"realtime": {"secs": 1}})).is_err());
        assert!(of(serde_json::json!({"monotonic": {"nanosecs": 1_000_000_000}})).is_err());
    }
}
