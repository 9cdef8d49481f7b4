//! `top`: a container's processes, read from procfs in the layout of `ps -ef` or `ps aux`.

use bollard_stubs::models::ContainerTopResponse;

use super::state;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::bad;

type Result<T> = std::result::Result<T, EngineError>;

/// The processes of a container. Blocks.
pub(super) fn top(engine: &Engine, name: &str, args: Option<&str>) -> Result<ContainerTopResponse> {
    let container = state::find(engine, name)?;
    if !container.status.is_live() {
        return Err(EngineError::NotRunning(container.id));
    }
    let layout = match args.unwrap_or("-ef").trim() {
        "-ef" | "-e -f" => Layout::Full,
        "aux" | "-aux" => Layout::User,
        other => {
            return Err(bad(format!(
                "ps arguments \"{other}\" are not supported: only \"-ef\" and \"aux\""
            )));
        }
    };
    let pids = crate::sweep::cgroup_pids(&state::cgroup_path(engine, &container));
    let host = Host::read();
    let processes = pids
        .into_iter()
        .filter_map(|pid| Process::read(pid, &host))
        .collect::<Vec<_>>();
    Ok(ContainerTopResponse {
        titles: Some(layout.titles().iter().map(|t| (*t).to_owned()).collect()),
        processes: Some(processes.iter().map(|p| layout.row(p, &host)).collect()),
    })
}

/// What of the machine is needed to read process tables.
struct Host {
    ticks: u64,
    uptime: f64,
    memory_kib: u64,
    passwd: String,
}

impl Host {
    fn read() -> Self {
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
        }
    }

    fn user(&self, uid: &str) -> String {
        self.passwd
            .lines()
            .map(|l| l.split(':').collect::<Vec<_>>())
            .find(|f| f.get(2) == Some(&uid))
            .map_or_else(|| uid.to_owned(), |f| f[0].to_owned())
    }
}

struct Process {
    user: String,
    pid: i32,
    parent: String,
    state: String,
    tty: String,
    /// Seconds of processor time.
    cpu: u64,
    /// Seconds since it started.
    age: f64,
    virtual_kib: u64,
    resident_kib: u64,
    command: String,
}

impl Process {
    fn read(pid: i32, host: &Host) -> Option<Self> {
        let file = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).ok();
        let stat = file("stat")?;
        // The name in parentheses may hold anything; the last one ends it.
        let (head, tail) = stat.rsplit_once(')')?;
        let name = head.split_once('(')?.1;
        let fields: Vec<&str> = tail.split_whitespace().collect();
        let number = |at: usize| {
            fields
                .get(at)
                .and_then(|f| f.parse::<u64>().ok())
                .unwrap_or(0)
        };
        let status = file("status")?;
        let uid = status
            .lines()
            .find_map(|l| l.strip_prefix("Uid:"))?
            .split_whitespace()
            .next()?;
        let command = file("cmdline").unwrap_or_default().replace('\0', " ");
        let command = command.trim();
        let started = number(19) as f64 / host.ticks as f64;
        let page_kib = rustix::param::page_size() as u64 / 1024;
        Some(Self {
            user: host.user(uid),
            pid,
            parent: (*fields.get(1)?).to_owned(),
            state: (*fields.first()?).to_owned(),
            tty: tty(number(4)),
            cpu: (number(11) + number(12)) / host.ticks,
            age: (host.uptime - started).max(0.0),
            virtual_kib: number(20) / 1024,
            resident_kib: number(21) * page_kib,
            command: if command.is_empty() {
                format!("[{name}]")
            } else {
                command.to_owned()
            },
        })
    }

    fn cpu_percent(&self) -> f64 {
        if self.age > 0.0 {
            self.cpu as f64 * 100.0 / self.age
        } else {
            0.0
        }
    }

    fn started(&self) -> String {
        let now = jiff::Timestamp::now();
        let age = jiff::SignedDuration::from_secs_f64(self.age);
        now.checked_sub(age)
            .map(|t| {
                t.to_zoned_datetime(jiff::tz::TimeZone::system())
                    .strftime("%H:%M")
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

fn clock(seconds: u64) -> String {
    format!(
        "{:02}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[derive(Clone, Copy)]
enum Layout {
    /// `ps -ef`.
    Full,
    /// `ps aux`.
    User,
}

impl Layout {
    fn titles(self) -> &'static [&'static str] {
        match self {
            Self::Full => &["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"],
            Self::User => &[
                "USER", "PID", "%CPU", "%MEM", "VSZ", "RSS", "TTY", "STAT", "START", "TIME",
                "COMMAND",
            ],
        }
    }

    fn row(self, p: &Process, host: &Host) -> Vec<String> {
        match self {
            Self::Full => vec![
                p.user.clone(),
                p.pid.to_string(),
                p.parent.clone(),
                format!("{:.0}", p.cpu_percent().min(99.0)),
                p.started(),
                p.tty.clone(),
                clock(p.cpu),
                p.command.clone(),
            ],
            Self::User => vec![
                p.user.clone(),
                p.pid.to_string(),
                format!("{:.1}", p.cpu_percent()),
                format!(
                    "{:.1}",
                    p.resident_kib as f64 * 100.0 / host.memory_kib as f64
                ),
                p.virtual_kib.to_string(),
                p.resident_kib.to_string(),
                p.tty.clone(),
                p.state.clone(),
                p.started(),
                format!("{}:{:02}", p.cpu / 60, p.cpu % 60),
                p.command.clone(),
            ],
        }
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
            Layout::Full.row(&process, &host).len(),
            Layout::Full.titles().len()
        );
        assert_eq!(
            Layout::User.row(&process, &host).len(),
            Layout::User.titles().len()
        );
        assert!(process.command.contains("corten"), "{}", process.command);
    }

    #[test]
    fn terminals_and_clocks() {
        assert_eq!(tty(0), "?");
        assert_eq!(tty(0x8803), "pts/3");
        assert_eq!(clock(3725), "01:02:05");
    }
}
