//! Writing the id mappings of a new user namespace (user_namespaces(7)): directly where
//! the kernel lets the caller, else through `newuidmap` and `newgidmap`, which check the
//! user's ranges in `/etc/subuid` and `/etc/subgid`.

use std::fs;
use std::process::Command;

use corten_oci::runtime_spec::LinuxIdMapping;
use rustix::io::Errno;

use crate::error::{RuntimeError, Step, io_text, os};

/// Writes both mappings of the process `pid`.
pub(super) fn write(
    pid: i32,
    uids: &[LinuxIdMapping],
    gids: &[LinuxIdMapping],
) -> Result<(), RuntimeError> {
    if rustix::process::geteuid().is_root() {
        write_file(pid, "uid_map", &lines(uids))?;
        return match write_file(pid, "gid_map", &lines(gids)) {
            // Root without the right to set groups, inside another user namespace.
            Err(error) if error.errno() == Some(Errno::PERM) => {
                write_file(pid, "setgroups", "deny")?;
                write_file(pid, "gid_map", &lines(gids))
            }
            result => result,
        };
    }
    if own_only(uids, rustix::process::geteuid().as_raw()) {
        write_file(pid, "uid_map", &lines(uids))?;
    } else {
        run("newuidmap", pid, uids)?;
    }
    if own_only(gids, rustix::process::getegid().as_raw()) {
        // Nobody may drop groups that deny access by mapping only the own group.
        write_file(pid, "setgroups", "deny")?;
        write_file(pid, "gid_map", &lines(gids))
    } else {
        run("newgidmap", pid, gids)
    }
}

/// The one mapping an unprivileged process may write itself.
fn own_only(mappings: &[LinuxIdMapping], own: u32) -> bool {
    matches!(mappings, [one] if one.size() == 1 && one.host_id() == own)
}

fn numbers(mapping: &LinuxIdMapping) -> [u32; 3] {
    [mapping.container_id(), mapping.host_id(), mapping.size()]
}

fn lines(mappings: &[LinuxIdMapping]) -> String {
    let line = |mapping: &LinuxIdMapping| {
        let [inside, outside, size] = numbers(mapping);
        format!("{inside} {outside} {size}\n")
    };
    mappings.iter().map(line).collect()
}

fn write_file(pid: i32, file: &str, text: &str) -> Result<(), RuntimeError> {
    let path = format!("/proc/{pid}/{file}");
    fs::write(&path, text).map_err(|error| RuntimeError::setup(Step::IdMap, path, os(&error)))
}

fn run(program: &'static str, pid: i32, mappings: &[LinuxIdMapping]) -> Result<(), RuntimeError> {
    let fail = |reason: String| RuntimeError::Helper { program, reason };
    let mut command = Command::new(program);
    command.arg(pid.to_string());
    for number in mappings.iter().flat_map(numbers) {
        command.arg(number.to_string());
    }
    let output = command.output().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => fail(
            "not found: mapping several ids as an ordinary user needs it (package uidmap)".into(),
        ),
        _ => fail(io_text(&error)),
    })?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(fail(words.lines().next().unwrap_or("failed").to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mappings(json: serde_json::Value) -> Vec<LinuxIdMapping> {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn text_and_the_direct_way() {
        let one = mappings(serde_json::json!([{"containerID": 0, "hostID": 1000, "size": 1}]));
        assert_eq!(lines(&one), "0 1000 1\n");
        assert!(own_only(&one, 1000));
        assert!(!own_only(&one, 1001));
        let two = mappings(serde_json::json!([
            {"containerID": 0, "hostID": 1000, "size": 1},
            {"containerID": 1, "hostID": 100_000, "size": 65_536}
        ]));
        assert_eq!(lines(&two), "0 1000 1\n1 100000 65536\n");
        assert!(!own_only(&two, 1000));
    }
}
