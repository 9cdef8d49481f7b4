//! Writing limits. Values of one controller depend on each other (memory on memory and
//! swap, burst on quota on period, idle on weight): the kernel refuses with EINVAL what does
//! not fit what is there. Which order is right depends on what is there, so whatever is
//! refused is tried again after the rest, for as long as that helps.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::super::files::{not_written, write_file};
use super::{Missing, Write};
use crate::error::RuntimeError;

/// What was there before, to be put back if an update fails half way.
#[derive(Debug, Default)]
pub(in crate::cgroup) struct Undo {
    before: Vec<(PathBuf, Write)>,
}

impl Undo {
    fn remember(&mut self, dir: &Path, write: &Write) {
        for (file, value) in &write.choices {
            let Ok(text) = fs::read_to_string(dir.join(file)) else {
                continue;
            };
            if let Some(value) = before(file, value, &text) {
                let mut write = Write::new(&write.controller, file.clone(), value);
                write.missing = Missing::Moot;
                self.before.push((dir.to_owned(), write));
            }
            return;
        }
    }

    /// Puts everything back that was written.
    pub(in crate::cgroup) fn restore(mut self) {
        self.before.reverse();
        while let Some((dir, _)) = self.before.first() {
            let dir = dir.clone();
            let here = self.before.extract_if(.., |(other, _)| *other == dir);
            let writes: Vec<Write> = here.map(|(_, write)| write).collect();
            if let Err(error) = write_all(&dir, writes.iter(), None) {
                tracing::warn!(%error, "could not put a limit back");
            }
        }
    }
}

/// What has to be written to get back to `text`.
fn before(file: &str, value: &str, text: &str) -> Option<String> {
    let key = value.split_whitespace().next()?;
    let keyed = value.contains(' ') && file != "cpu.max";
    if keyed {
        // One line of many, by device or interface.
        let line = text
            .lines()
            .find(|line| line.split_whitespace().next() == Some(key));
        return Some(line.map_or_else(|| format!("{key} {}", unset(file)), str::to_owned));
    }
    let line = match file {
        "memory.oom_control" => text
            .lines()
            .find_map(|l| l.strip_prefix("oom_kill_disable "))?,
        "io.weight" | "io.bfq.weight" => text.lines().next()?,
        _ => text.trim(),
    };
    // An empty write would be no write.
    Some(if line.is_empty() {
        "\n".to_owned()
    } else {
        line.to_owned()
    })
}

/// What a line says that does not exist.
fn unset(file: &str) -> &'static str {
    match file {
        "io.max" => "rbps=max wbps=max riops=max wiops=max",
        "io.weight" | "io.bfq.weight" => "default",
        "rdma.max" => "hca_handle=max hca_object=max",
        _ => "0",
    }
}

/// Writes all of it into the group `dir`.
pub(in crate::cgroup) fn write_all<'a>(
    dir: &Path,
    writes: impl Iterator<Item = &'a Write>,
    mut undo: Option<&mut Undo>,
) -> Result<(), RuntimeError> {
    let mut left: Vec<&Write> = writes.collect();
    loop {
        let mut refused: Vec<&Write> = Vec::new();
        let mut first = None;
        let count = left.len();
        for write in left {
            if let Some(undo) = undo.as_deref_mut() {
                undo.remember(dir, write);
            }
            match write_one(dir, write) {
                Ok(()) => {}
                Err(error) if error.errno() == Some(Errno::INVAL) => {
                    first.get_or_insert(error);
                    refused.push(write);
                }
                Err(error) => return Err(error),
            }
        }
        match first {
            None => return Ok(()),
            Some(error) if refused.len() == count => return Err(error),
            Some(_) => left = refused,
        }
    }
}

fn write_one(dir: &Path, write: &Write) -> Result<(), RuntimeError> {
    let mut last = None;
    for (file, value) in &write.choices {
        match write_file(&dir.join(file), value) {
            Ok(()) => return Ok(()),
            // BFQ knew no weights per device before kernel 5.4.
            Err(errno @ (Errno::NOENT | Errno::ACCESS)) => {
                last = Some(not_written(dir, file, value, errno));
            }
            // Kernel memory of TCP and swap, compiled in but turned off.
            Err(Errno::OPNOTSUPP) if write.missing != Missing::Fail => {
                last = Some(not_written(dir, file, value, Errno::OPNOTSUPP));
            }
            Err(errno) => return Err(not_written(dir, file, value, errno)),
        }
    }
    match (last, write.missing) {
        (None, _) | (_, Missing::Moot) => Ok(()),
        (Some(error), Missing::Warn) => {
            tracing::warn!(%error, "not offered by this kernel's control groups: ignored");
            Ok(())
        }
        (Some(error), Missing::Fail) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_back() {
        for (file, value, text, back) in [
            ("memory.max", "1", "max\n", "max"),
            ("cpu.max", "5000 10000", "max 100000\n", "max 100000"),
            ("cpuset.cpus", "0", "\n", "\n"),
            (
                "io.max",
                "8:0 rbps=1",
                "8:0 rbps=9 wbps=max riops=max wiops=max\n",
                "8:0 rbps=9 wbps=max riops=max wiops=max",
            ),
            (
                "io.max",
                "8:0 rbps=1",
                "",
                "8:0 rbps=max wbps=max riops=max wiops=max",
            ),
            (
                "blkio.throttle.read_bps_device",
                "8:0 5",
                "8:16 7\n",
                "8:0 0",
            ),
            ("io.weight", "50", "default 100\n8:0 9\n", "default 100"),
            ("io.bfq.weight", "8:0 50", "default 100\n", "8:0 default"),
            (
                "memory.oom_control",
                "1",
                "oom_kill_disable 0\nunder_oom 0\n",
                "0",
            ),
            ("net_prio.ifpriomap", "eth0 5", "lo 0\neth0 2\n", "eth0 2"),
        ] {
            assert_eq!(before(file, value, text).as_deref(), Some(back), "{file}");
        }
    }

    /// Plain files take everything, so this is about what is missing and put back.
    #[test]
    fn missing_files_and_restoring() {
        let dir = tempfile::tempdir().unwrap();
        let at = |file: &str| dir.path().join(file);
        fs::write(at("memory.max"), "max\n").unwrap();
        fs::write(at("io.weight"), "default 100\n").unwrap();
        let writes = [
            Write::new("memory", "memory.max", "100"),
            Write::new("io", "io.bfq.weight", 7).or("io.weight", 70),
            Write::new("memory", "memory.swap.max", 0).if_missing(Missing::Moot),
            Write::new("memory", "memory.swappiness", 0).if_missing(Missing::Warn),
        ];
        let mut undo = Undo::default();
        write_all(dir.path(), writes.iter(), Some(&mut undo)).unwrap();
        // Not truncated: control group files are not, either.
        assert!(
            fs::read_to_string(at("memory.max"))
                .unwrap()
                .starts_with("100")
        );
        assert!(
            fs::read_to_string(at("io.weight"))
                .unwrap()
                .starts_with("70")
        );
        let missing = [Write::new("cpu", "cpu.max", "5000")];
        let error = write_all(dir.path(), missing.iter(), Some(&mut undo)).unwrap_err();
        assert!(error.to_string().contains("cpu.max = \"5000\""), "{error}");
        undo.restore();
        assert!(
            fs::read_to_string(at("memory.max"))
                .unwrap()
                .starts_with("max")
        );
        assert!(
            fs::read_to_string(at("io.weight"))
                .unwrap()
                .starts_with("default 100")
        );
    }
}
