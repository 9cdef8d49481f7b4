//! The arguments of `ps`, as far as they choose columns: `-ef`, `aux`, `-o pid,comm=NAME`.
//!
//! Which processes are shown is the container's to say, so letters that select (`-e`, `-A`, `a`,
//! `x`) mean nothing here. What does anything else is left to the host's `ps`.

use super::process::{Host, Process};

/// What a column shows of a process.
type Shown = fn(&Process, &Host) -> String;

/// A column: its names for `-o`, its header, what it shows.
struct Known {
    names: &'static [&'static str],
    header: &'static str,
    shown: Shown,
}

const fn known(names: &'static [&'static str], header: &'static str, shown: Shown) -> Known {
    Known {
        names,
        header,
        shown,
    }
}

/// ps(1), STANDARD FORMAT SPECIFIERS.
static KNOWN: &[Known] = &[
    known(&["%cpu", "pcpu"], "%CPU", |p, _| {
        format!("{:.1}", p.cpu_percent())
    }),
    known(&["%mem", "pmem"], "%MEM", |p, h| {
        format!("{:.1}", p.memory_percent(h))
    }),
    known(&["args", "command"], "COMMAND", |p, _| p.command.clone()),
    known(&["cmd"], "CMD", |p, _| p.command.clone()),
    known(&["c"], "C", |p, _| {
        format!("{:.0}", p.cpu_percent().min(99.0))
    }),
    known(&["comm", "ucomm"], "COMMAND", |p, _| p.name.clone()),
    known(&["ucmd"], "CMD", |p, _| p.name.clone()),
    known(&["pid", "tgid"], "PID", |p, _| p.pid.to_string()),
    known(&["ppid"], "PPID", |p, _| p.parent.clone()),
    known(&["pgid", "pgrp"], "PGID", |p, _| p.group.clone()),
    known(&["sid", "sess", "session"], "SID", |p, _| p.session.clone()),
    known(&["uid", "euid"], "UID", |p, _| p.euid.clone()),
    known(&["ruid"], "RUID", |p, _| p.uid.clone()),
    known(&["user", "uname"], "USER", |p, h| h.user(&p.euid)),
    known(&["euser"], "EUSER", |p, h| h.user(&p.euid)),
    known(&["ruser"], "RUSER", |p, h| h.user(&p.uid)),
    known(&["gid", "egid"], "GID", |p, _| p.egid.clone()),
    known(&["rgid"], "RGID", |p, _| p.gid.clone()),
    known(&["group"], "GROUP", |p, h| h.group(&p.egid)),
    known(&["egroup"], "EGROUP", |p, h| h.group(&p.egid)),
    known(&["rgroup"], "RGROUP", |p, h| h.group(&p.gid)),
    known(&["vsz", "vsize"], "VSZ", |p, _| p.virtual_kib.to_string()),
    known(&["rss", "rssize", "rsz"], "RSS", |p, _| {
        p.resident_kib.to_string()
    }),
    known(&["tty", "tt"], "TT", |p, _| p.tty.clone()),
    known(&["tname"], "TTY", |p, _| p.tty.clone()),
    known(&["stat"], "STAT", |p, _| p.state_with_marks()),
    known(&["s", "state"], "S", |p, _| p.state.clone()),
    known(&["stime"], "STIME", |p, _| p.started("%H:%M")),
    known(&["start_time"], "START", |p, _| p.started("%H:%M")),
    known(&["start"], "STARTED", |p, _| p.started("%H:%M:%S")),
    known(&["lstart"], "STARTED", |p, _| {
        p.started("%a %b %e %H:%M:%S %Y")
    }),
    known(&["time", "cputime"], "TIME", |p, _| clock(p.cpu)),
    known(&["bsdtime"], "TIME", |p, _| bsd_clock(p.cpu)),
    known(&["etime"], "ELAPSED", |p, _| elapsed(whole(p.age))),
    known(&["etimes"], "ELAPSED", |p, _| whole(p.age).to_string()),
    known(&["ni", "nice"], "NI", |p, _| p.nice.to_string()),
    known(&["pri"], "PRI", |p, _| (39 - p.priority).to_string()),
    known(&["nlwp", "thcount"], "NLWP", |p, _| p.threads.to_string()),
    known(&["psr"], "PSR", |p, _| p.processor.to_string()),
];

/// `ps -ef`, with its own headers where they differ.
const FULL: &[(&str, &str)] = &[
    ("user", "UID"),
    ("pid", ""),
    ("ppid", ""),
    ("c", ""),
    ("stime", ""),
    ("tname", ""),
    ("time", ""),
    ("cmd", ""),
];
/// `ps aux`.
const USER: &[(&str, &str)] = &[
    ("user", ""),
    ("pid", ""),
    ("%cpu", ""),
    ("%mem", ""),
    ("vsz", ""),
    ("rss", ""),
    ("tname", ""),
    ("stat", ""),
    ("start_time", ""),
    ("bsdtime", ""),
    ("args", ""),
];
/// `ps` without a word about the form.
const PLAIN: &[(&str, &str)] = &[("pid", ""), ("tname", ""), ("time", ""), ("ucmd", "CMD")];

fn whole(seconds: f64) -> u64 {
    // Never negative, and centuries are far from the limit.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let whole = seconds as u64;
    whole
}

fn clock(seconds: u64) -> String {
    format!(
        "{:02}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

fn bsd_clock(seconds: u64) -> String {
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

/// `[[days-]hours:]minutes:seconds`
fn elapsed(seconds: u64) -> String {
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let rest = format!("{:02}:{:02}", seconds / 60 % 60, seconds % 60);
    match (days, hours) {
        (0, 0) => rest,
        (0, _) => format!("{hours:02}:{rest}"),
        _ => format!("{days}-{hours:02}:{rest}"),
    }
}

/// Why there are no columns.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unknown {
    /// They are asked for wrongly.
    Wrong(String),
    /// `ps` may know what is meant.
    ToUs,
}

impl From<&str> for Unknown {
    fn from(why: &str) -> Self {
        Self::Wrong(why.to_owned())
    }
}

/// The columns asked for.
pub(super) struct Columns(Vec<(String, Shown)>);

impl Columns {
    /// Reads `ps`'s arguments.
    pub(super) fn parse(arguments: &str) -> Result<Self, Unknown> {
        let mut words = arguments.split_whitespace();
        let mut chosen: Vec<(String, Option<String>)> = Vec::new();
        let mut form = None;
        while let Some(word) = words.next() {
            let list = match word {
                "-o" | "--format" => Some(words.next()),
                _ => match word
                    .strip_prefix("--format=")
                    .or_else(|| word.strip_prefix("-o"))
                {
                    Some(list) => Some(Some(list)),
                    // `-eo LIST`, `axo LIST`.
                    None if !word.starts_with("--") && word.ends_with('o') => {
                        letters(word.trim_end_matches('o'), &mut form).ok_or(Unknown::ToUs)?;
                        Some(words.next())
                    }
                    None => None,
                },
            };
            match list {
                Some(Some(list)) => chosen.extend(named(list)),
                Some(None) => return Err("error: format specification must follow -o".into()),
                None => letters(word, &mut form).ok_or(Unknown::ToUs)?,
            }
        }
        if chosen.is_empty() {
            let usual = form.unwrap_or(PLAIN).iter();
            chosen = usual
                .map(|(n, h)| {
                    let header = (!h.is_empty()).then(|| (*h).to_owned());
                    ((*n).to_owned(), header)
                })
                .collect();
        }
        let columns = chosen.into_iter().map(|(name, header)| {
            let known = KNOWN
                .iter()
                .find(|known| known.names.contains(&name.as_str()));
            let known = known.ok_or(Unknown::ToUs)?;
            let header = header.unwrap_or_else(|| known.header.to_owned());
            Ok((header, known.shown))
        });
        let columns = Self(columns.collect::<Result<_, Unknown>>()?);
        // Docker finds a container's processes in the host's by this column.
        if !columns.titles().iter().any(|title| title == "PID") {
            return Err("Couldn't find PID field in ps output".into());
        }
        Ok(columns)
    }

    pub(super) fn titles(&self) -> Vec<String> {
        self.0.iter().map(|(header, _)| header.clone()).collect()
    }

    pub(super) fn row(&self, process: &Process, host: &Host) -> Vec<String> {
        self.0
            .iter()
            .map(|(_, shown)| shown(process, host))
            .collect()
    }
}

/// `pid,comm=NAME`: a header of one's own, which may be empty, goes to the end.
fn named(list: &str) -> Vec<(String, Option<String>)> {
    let (names, header) = match list.split_once('=') {
        Some((names, header)) => (names, Some(header.to_owned())),
        None => (list, None),
    };
    let mut columns: Vec<(String, Option<String>)> = names
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| (name.to_ascii_lowercase(), None))
        .collect();
    if let Some((_, last)) = columns.last_mut() {
        *last = header;
    }
    columns
}

/// Letters in a row, of either style; `None`: one of them is not carried out.
fn letters(word: &str, form: &mut Option<&'static [(&'static str, &'static str)]>) -> Option<()> {
    let (dashed, letters) = match word.strip_prefix('-') {
        Some(letters) => (true, letters),
        None => (false, word),
    };
    if letters.starts_with('-') {
        return None;
    }
    // `ps -aux` is read as `ps aux` where there is no user called x.
    let user = letters.contains('u') && letters.chars().all(|c| "axuw".contains(c));
    for letter in letters.chars() {
        match letter {
            'u' if user => *form = Some(USER),
            'f' if dashed => *form = Some(FULL),
            'e' | 'A' | 'd' if dashed => {}
            'a' | 'x' | 'w' => {}
            _ => return None,
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn titles(arguments: &str) -> Result<String, Unknown> {
        Columns::parse(arguments).map(|columns| columns.titles().join(" "))
    }

    #[test]
    fn arguments_choose_columns() {
        let full = "UID PID PPID C STIME TTY TIME CMD";
        let user = "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND";
        for (arguments, shown) in [
            ("-ef", full),
            ("-e -f", full),
            ("-Af", full),
            ("aux", user),
            ("-aux", user),
            ("auxww", user),
            ("-e", "PID TTY TIME CMD"),
            ("-o pid,comm", "PID COMMAND"),
            ("-eo pid,user -o rss=MEMORY", "PID USER MEMORY"),
            ("axo pid,%cpu", "PID %CPU"),
            ("-opid", "PID"),
            ("-o pid -o comm=", "PID "),
            ("--format=PID,cmd", "PID CMD"),
        ] {
            assert_eq!(titles(arguments), Ok(shown.to_owned()), "{arguments}");
        }
        for (arguments, why) in [
            ("-o pid=", "Couldn't find PID field in ps output"),
            ("-o comm", "Couldn't find PID field in ps output"),
            ("-o", "error: format specification must follow -o"),
        ] {
            assert_eq!(titles(arguments), Err(why.into()), "{arguments}");
        }
        for arguments in ["-o pid,nope", "--forest", "-T", "-p 1", "f", "-C sh"] {
            assert_eq!(titles(arguments), Err(Unknown::ToUs), "{arguments}");
        }
    }

    #[test]
    fn every_column_has_something_to_show() {
        let host = Host::read();
        let pid = i32::try_from(std::process::id()).unwrap();
        let process = Process::read(pid, &host).unwrap();
        for known in KNOWN {
            assert!(
                !(known.shown)(&process, &host).is_empty(),
                "{}",
                known.header
            );
        }
    }

    #[test]
    fn times_are_worded_as_ps_does() {
        assert_eq!(clock(3725), "01:02:05");
        assert_eq!(bsd_clock(3725), "62:05");
        assert_eq!(elapsed(65), "01:05");
        assert_eq!(elapsed(3725), "01:02:05");
        assert_eq!(elapsed(90_061), "1-01:01:01");
    }
}
