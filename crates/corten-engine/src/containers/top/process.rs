//! One process, as procfs tells of it (`proc_pid_stat(5)`, `proc_pid_status(5)`).

/// What of the machine is needed to read process tables.
pub(super) struct Host {
    ticks: u64,
    uptime: f64,
    pub(super) memory_kib: u64,
    passwd: String,
    group: String,
}

impl Host {
    pub(super) fn read() -> Self {
        let first = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let memory = first("/proc/meminfo");
        Self {
            ticks: rustix::param::clock_ticks_per_second().max(1),
            uptime: first("/proc/uptime")
                .split_whitespace()
                .next()
                .and_then(|t| t.parse().ok())
                .unwrap_or(0.0),
            memory_kib: memory
                .lines()
                .find_map(|l| l.strip_prefix("MemTotal:"))
                .and_then(|r| r.trim().trim_end_matches(" kB").parse().ok())
                .unwrap_or(1),
            passwd: first("/etc/passwd"),
            group: first("/etc/group"),
        }
    }

    /// A user's name on this machine, as `ps` would show it; the number where there is none.
    pub(super) fn user(&self, uid: &str) -> String {
        named(&self.passwd, uid)
    }

    /// A group's.
    pub(super) fn group(&self, gid: &str) -> String {
        named(&self.group, gid)
    }
}

fn named(file: &str, id: &str) -> String {
    file.lines()
        .map(|l| l.split(':').collect::<Vec<_>>())
        .find(|f| f.get(2) == Some(&id))
        .map_or_else(|| id.to_owned(), |f| f[0].to_owned())
}

/// A process.
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) parent: String,
    pub(super) group: String,
    pub(super) session: String,
    /// Real and effective user and group.
    pub(super) uid: String,
    pub(super) euid: String,
    pub(super) gid: String,
    pub(super) egid: String,
    pub(super) state: String,
    pub(super) tty: String,
    /// Seconds of processor time.
    pub(super) cpu: u64,
    /// Seconds since it started.
    pub(super) age: f64,
    pub(super) priority: i64,
    pub(super) nice: i64,
    pub(super) threads: u64,
    pub(super) processor: u64,
    pub(super) virtual_kib: u64,
    pub(super) resident_kib: u64,
    /// Its group has the terminal.
    foreground: bool,
    /// The program's name.
    pub(super) name: String,
    /// With its arguments.
    pub(super) command: String,
}

impl Process {
    pub(super) fn read(pid: i32, host: &Host) -> Option<Self> {
        // Names and arguments may be any bytes.
        let file = |name: &str| {
            let bytes = std::fs::read(format!("/proc/{pid}/{name}")).ok()?;
            Some(String::from_utf8_lossy(&bytes).into_owned())
        };
        let stat = file("stat")?;
        // The name in parentheses may hold anything; the last one ends it.
        let (head, tail) = stat.rsplit_once(')')?;
        let name = head.split_once('(')?.1;
        let fields: Vec<&str> = tail.split_whitespace().collect();
        let text = |at: usize| fields.get(at).map(|f| (*f).to_owned());
        let signed =
            |at: usize| -> i64 { fields.get(at).and_then(|f| f.parse().ok()).unwrap_or(0) };
        let number = |at: usize| u64::try_from(signed(at)).unwrap_or(0);
        let status = file("status")?;
        let ids = |field: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(field))?;
            let mut ids = line.split_whitespace().map(str::to_owned);
            Some((ids.next()?, ids.next()?))
        };
        let (uid, euid) = ids("Uid:")?;
        let (gid, egid) = ids("Gid:")?;
        let command = file("cmdline").unwrap_or_default().replace('\0', " ");
        let command = command.trim();
        let started = number(19) as f64 / host.ticks as f64;
        let page_kib = rustix::param::page_size() as u64 / 1024;
        Some(Self {
            pid,
            parent: text(1)?,
            group: text(2)?,
            session: text(3)?,
            uid,
            euid,
            gid,
            egid,
            state: text(0)?,
            tty: tty(number(4)),
            cpu: (number(11) + number(12)) / host.ticks,
            age: (host.uptime - started).max(0.0),
            priority: signed(15),
            nice: signed(16),
            threads: number(17),
            processor: number(36),
            virtual_kib: number(20) / 1024,
            resident_kib: number(21) * page_kib,
            foreground: signed(5) > 0 && fields.get(5) == fields.get(2),
            name: name.to_owned(),
            command: if command.is_empty() {
                format!("[{name}]")
            } else {
                command.to_owned()
            },
        })
    }

    /// In percent of one processor, over its whole life.
    pub(super) fn cpu_percent(&self) -> f64 {
        if self.age > 0.0 {
            self.cpu as f64 * 100.0 / self.age
        } else {
            0.0
        }
    }

    pub(super) fn memory_percent(&self, host: &Host) -> f64 {
        self.resident_kib as f64 * 100.0 / host.memory_kib as f64
    }

    /// The state with `ps`'s marks: priority, session leader, threads, foreground.
    pub(super) fn state_with_marks(&self) -> String {
        let mut state = self.state.clone();
        match self.nice {
            nice if nice < 0 => state.push('<'),
            nice if nice > 0 => state.push('N'),
            _ => {}
        }
        if self.session == self.pid.to_string() {
            state.push('s');
        }
        if self.threads > 1 {
            state.push('l');
        }
        if self.foreground {
            state.push('+');
        }
        state
    }

    /// When it started, in this machine's time.
    pub(super) fn started(&self, format: &str) -> String {
        let now = jiff::Timestamp::now();
        let age = jiff::SignedDuration::from_secs_f64(self.age);
        now.checked_sub(age)
            .map(|t| {
                t.to_zoned_datetime(jiff::tz::TimeZone::system())
                    .strftime(format)
                    .to_string()
            })
            .unwrap_or_default()
    }
}

fn tty(device: u64) -> String {
    let (major, minor) = (
        (device >> 8) & 0xfff,
        (device & 0xff) | ((device >> 12) & 0xfff00),
    );
    match major {
        0 => "?".to_owned(),
        136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
        4 => format!("tty{minor}"),
        _ => format!("{major}:{minor}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_this_process() {
        let host = Host::read();
        let pid = i32::try_from(std::process::id()).unwrap();
        let process = Process::read(pid, &host).unwrap();
        assert_eq!(process.pid, pid);
        assert_eq!(
            process.parent,
            rustix::process::getppid().unwrap().to_string()
        );
        assert!(process.command.contains("corten"), "{}", process.command);
        assert!(process.threads > 0 && process.virtual_kib > 0);
    }

    #[test]
    fn terminals() {
        assert_eq!(tty(0), "?");
        assert_eq!(tty(0x8803), "pts/3");
    }
}
