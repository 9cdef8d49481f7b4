//! Whether a bind mount can propagate as it was asked to: only what is on a shared mount of the host does
//! (mount_namespaces(7)). Docker refuses the rest, in these words.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, StatxFlags};

use crate::error::EngineError;
use crate::parse::bad;

const MOUNTS: &str = "/proc/thread-self/mountinfo";

/// Refuses `path`, opened as `source`, if mounts are to propagate by these options, and cannot.
pub(super) fn check(path: &Path, source: impl AsFd, options: &[String]) -> Result<(), EngineError> {
    let asked = |names: [&str; 2]| {
        options
            .iter()
            .any(|option| names.contains(&option.as_str()))
    };
    let kind = match (asked(["shared", "rshared"]), asked(["slave", "rslave"])) {
        (true, _) => "shared",
        (_, true) => "shared or slave",
        (false, false) => return Ok(()),
    };
    let io = |action, path: &Path| {
        let path = path.to_owned();
        move |source| EngineError::Io {
            action,
            path,
            source,
        }
    };
    let id = rustix::fs::statx(source, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)
        .map_err(|error| io("look at", path)(error.into()))?
        .stx_mnt_id;
    let mounts = std::fs::read_to_string(MOUNTS).map_err(io("read", Path::new(MOUNTS)))?;
    let Some((point, tags)) = mounts.lines().find_map(|line| mount(line, id)) else {
        return Ok(());
    };
    let is = |tag: &str| tags.iter().any(|t| t.starts_with(tag));
    if is("shared:") || (kind != "shared" && is("master:")) {
        return Ok(());
    }
    Err(bad(format!(
        "path {} is mounted on {point} but it is not a {kind} mount",
        path.display()
    )))
}

/// Where a mount is and its optional fields, if the line is of it: `id parent dev root point options
/// fields… - …` (proc_pid_mountinfo(5)).
fn mount(line: &str, id: u64) -> Option<(String, Vec<&str>)> {
    let mut words = line.split(' ');
    (words.next()?.parse() == Ok(id)).then_some(())?;
    let point = corten_runtime::cgroup::unescape(words.nth(3)?);
    let tags = words.skip(1).take_while(|word| *word != "-").collect();
    Some((point, tags))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let line = "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 shared:2 - ext3 /dev/root rw";
        let found = mount(line, 36);
        assert_eq!(
            found,
            Some(("/mnt 2".to_owned(), vec!["master:1", "shared:2"]))
        );
        assert_eq!(mount(line, 35), None);
        assert_eq!(
            mount("36 35 98:0 / / rw - ext4 a rw", 36),
            Some(("/".to_owned(), vec![]))
        );
    }
}
