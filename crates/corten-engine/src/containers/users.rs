//! Who the users of a running container are on the host, as its processes have it.

use corten_build::Renumbered;

/// What a process's own ids are on the host; `None`: themselves.
///
/// # Errors
/// The process is gone.
pub(crate) fn of_process(pid: i32) -> std::io::Result<Option<Renumbered>> {
    let read = |who: &str, file: &str| std::fs::read_to_string(format!("/proc/{who}/{file}"));
    let pid = pid.to_string();
    let [users, groups] = [read(&pid, "uid_map")?, read(&pid, "gid_map")?];
    if users == read("self", "uid_map")? && groups == read("self", "gid_map")? {
        return Ok(None);
    }
    Ok(Some(Renumbered {
        users: ranges(&users),
        groups: ranges(&groups),
    }))
}

/// Lines of three numbers: the first ids inside and outside, and how many.
fn ranges(text: &str) -> Vec<(u32, u32, u32)> {
    let line = |line: &str| {
        let mut numbers = line.split_whitespace().map(|n| n.parse().ok());
        Some((numbers.next()??, numbers.next()??, numbers.next()??))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_of_this_process_are_themselves() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert_eq!(of_process(pid).unwrap(), None);
        assert_eq!(
            ranges("         0     100000      65536\n     65536 7 1\n"),
            [(0, 100_000, 65_536), (65_536, 7, 1)]
        );
    }
}
