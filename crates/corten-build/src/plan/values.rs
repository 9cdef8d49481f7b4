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
