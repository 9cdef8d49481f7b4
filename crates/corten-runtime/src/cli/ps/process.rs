//! One line per process in the form of `ps -ef`, from procfs (proc_pid_stat(5)).

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use crate::cli::users;

/// A header and a line for each that still lives.
pub(super) fn table(pids: &[i32]) -> String {
    let mut text = format!(
        "{:<8} {:>7} {:>7} {:>2} {:>5} {:<8} {:>8} CMD\n",
        "UID", "PID", "PPID", "C", "STIME", "TTY", "TIME"
    );
    for process in pids.iter().filter_map(|pid| Process::read(*pid)) {
        text.push_str(&process.line());
    }
    text
}

struct Process {
    user: String,
    pid: i32,
    parent: i32,
    terminal: String,
    cpu: SignedDuration,
    started: Timestamp,
    command: String,
}

impl Process {
    fn read(pid: i32) -> Option<Self> {
        let dir = format!("/proc/{pid}");
        let uid = fs::metadata(&dir).ok()?.uid();
        let stat = fs::read_to_string(format!("{dir}/stat")).ok()?;
        let (before, after) = stat.rsplit_once(')')?;
        let name = before.split_once('(')?.1;
        // From field 3 on.
        let fields: Vec<&str> = after.split_ascii_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<i64>().ok();
        let ticks = i64::try_from(rustix::param::clock_ticks_per_second())
            .ok()
            .filter(|ticks| *ticks > 0)?;
        let seconds = |field| Some(number(field)? / ticks);
        let command = fs::read(format!("{dir}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let command = command.trim_end();
        Some(Self {
            user: users::name(uid).unwrap_or_else(|| uid.to_string()),
            pid,
            parent: i32::try_from(number(4)?).ok()?,
            terminal: terminal(number(7)?),
            cpu: SignedDuration::from_secs((number(14)? + number(15)?) / ticks),
            started: boot_time()?
                .checked_add(SignedDuration::from_secs(seconds(22)?))
                .ok()?,
            command: if command.is_empty() {
                format!("[{name}]")
            } else {
                command.to_owned()
            },
        })
    }

    fn line(&self) -> String {
        let now = Timestamp::now();
        let age = now.duration_since(self.started);
        let percent = self.cpu.as_secs() * 100 / age.as_secs().max(1);
        let form = if age < SignedDuration::from_hours(24) {
            "%H:%M"
        } else {
            "%b%d"
        };
        let started = self.started.to_zoned_datetime(TimeZone::system());
        let started = started.strftime(form);
        let cpu = self.cpu.as_secs();
        let cpu = format!("{:02}:{:02}:{:02}", cpu / 3600, cpu / 60 % 60, cpu % 60);
        format!(
            "{:<8} {:>7} {:>7} {:>2} {:>5} {:<8} {:>8} {}\n",
            self.user,
            self.pid,
            self.parent,
            percent.clamp(0, 99),
            started.to_string(),
            self.terminal,
            cpu,
            self.command
        )
    }
}

/// The system's start (proc_stat(5), `btime`).
fn boot_time() -> Option<Timestamp> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    Timestamp::from_second(line.trim().parse().ok()?).ok()
}

/// `pts/N`, `ttyN`; anything else is `?` as for processes without one.
fn terminal(number: i64) -> String {
    let (major, minor) = (
        (number >> 8) & 0xfff,
        (number & 0xff) | ((number >> 12) & 0xf_ff00),
    );
    match major {
        136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
        4 if minor < 64 => format!("tty{minor}"),
        _ => "?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let text = table(&[pid, i32::MAX]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        let fields: Vec<&str> = lines[1].split_whitespace().collect();
        assert_eq!(fields[1], pid.to_string());
        assert_eq!(lines[0].find("CMD"), lines[1].find(fields[7]));
    }

    #[test]
    fn terminals() {
        assert_eq!(terminal(0), "?");
        assert_eq!(terminal(136 << 8 | 3), "pts/3");
        assert_eq!(terminal(4 << 8 | 1), "tty1");
    }
}
