//! Small values of instructions, in the forms images and histories have them.

use corten_dockerfile::{CommandLine, Healthcheck, Kind};

use crate::config::Health;

/// HEALTHCHECK as images have it.
pub(super) fn health(check: &Healthcheck) -> Health {
    let Healthcheck::Cmd {
        command,
        interval,
        timeout,
        start_period,
        start_interval,
        retries,
    } = check
    else {
        return Health {
            test: vec!["NONE".to_owned()],
            ..Health::default()
        };
    };
    let test = match command {
        CommandLine::Shell(text) => vec!["CMD-SHELL".to_owned(), text.clone()],
        CommandLine::Exec(args) => std::iter::once("CMD".to_owned())
            .chain(args.iter().cloned())
            .collect(),
    };
    let nanos = |duration: &Option<std::time::Duration>| {
        duration.map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
    };
    Health {
        test,
        interval: nanos(interval),
        timeout: nanos(timeout),
        start_period: nanos(start_period),
        start_interval: nanos(start_interval),
        retries: i64::from(retries.unwrap_or(0)),
    }
}

/// Whether BuildKit counts the instruction in `[2/6]`.
pub(super) fn is_counted(kind: &Kind) -> bool {
    matches!(
        kind,
        Kind::Add(_) | Kind::Copy(_) | Kind::Run(_) | Kind::Workdir(_)
    )
}

pub(super) fn joined(keyword: &str, pairs: &[(String, String)]) -> String {
    let pairs: Vec<String> = pairs
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    format!("{keyword} {}", pairs.join(" "))
}

/// Go's `%q` of a list of strings.
pub(super) fn go_list(words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    format!("[{}]", words.join(" "))
}

/// Go's `%+v` of a health check.
pub(super) fn go_health(check: &Health) -> String {
    format!(
        "{{Test:[{}] Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
        check.test.join(" "),
        go_duration(check.interval),
        go_duration(check.timeout),
        go_duration(check.start_period),
        go_duration(check.start_interval),
        check.retries
    )
}

/// Go's form of a duration in nanoseconds: `1m30s`, `1.5s`, `100ms`.
#[must_use]
pub fn go_duration(nanos: i64) -> String {
    const SECOND: u64 = 1_000_000_000;
    let sign = if nanos < 0 { "-" } else { "" };
    let nanos = nanos.unsigned_abs();
    // What a unit makes of it, without zeros at the end.
    let decimal = |value: u64, unit: u64| {
        let digits = unit.ilog10() as usize;
        let fraction = format!("{:0digits$}", value % unit);
        match fraction.trim_end_matches('0') {
            "" => (value / unit).to_string(),
            fraction => format!("{}.{fraction}", value / unit),
        }
    };
    let text = match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => format!("{}µs", decimal(nanos, 1_000)),
        1_000_000..SECOND => format!("{}ms", decimal(nanos, 1_000_000)),
        _ => {
            let minutes = nanos / SECOND / 60;
            let seconds = decimal(nanos - minutes * 60 * SECOND, SECOND);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, minutes) => format!("{minutes}m{seconds}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    };
    format!("{sign}{text}")
}

/// What is shown of a here-document: its first line.
pub(super) fn summary(content: &str) -> String {
    let mut lines = content.trim().lines();
    let first = lines.next().unwrap_or_default();
    let more = if lines.next().is_some() { "..." } else { "" };
    format!("{first}{more}")
}

/// A number, or a name with or without `SIG`.
pub(super) fn is_signal(word: &str) -> bool {
    const NAMES: [&str; 33] = [
        "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT",
        "KILL", "PIPE", "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM",
        "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU",
    ];
    if let Ok(number) = word.parse::<u8>() {
        return (1..=64).contains(&number);
    }
    let upper = word.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    NAMES.contains(&name)
        || name == "XFSZ"
        || name.starts_with("RTMIN")
        || name.starts_with("RTMAX")
}

/// An absolute path, cleaned as Go's `path.Join` does.
pub(super) fn join(base: &str, path: &str) -> String {
    let whole = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("{base}/{path}")
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            other => parts.push(other),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_writes_them() {
        for (nanos, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (100_000_000, "100ms"),
            (1_000_000_000, "1s"),
            (1_500_000_000, "1.5s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h0m0s"),
            (-60_250_000_000, "-1m0.25s"),
        ] {
            assert_eq!(go_duration(nanos), text);
        }
    }

    #[test]
    fn here_documents_are_shown_by_their_first_line() {
        assert_eq!(summary("\n  echo a\n"), "echo a");
        assert_eq!(summary("echo a\r\necho b\n"), "echo a...");
    }
}
