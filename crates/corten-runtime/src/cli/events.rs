//! `events`: resource usage every so often, and every out-of-memory event as it happens,
//! one JSON document a line (runc's `types.Event`).

use std::os::fd::AsFd as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use serde::Serialize;

use super::state::Container;
use super::{CliError, Context, print_json};
use crate::cgroup::OomEvent;
use crate::error::{RuntimeError, Step};
use crate::resctrl;

#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    /// Print the resource usage once
    #[arg(long)]
    stats: bool,
    /// Time between two prints of the resource usage
    #[arg(long, default_value = "5s", value_parser = interval)]
    interval: Duration,
    /// The container's id
    id: String,
}

/// Go's durations, as far as they are for this: `5s`, `500ms`, `1m30s`; `5` is seconds.
fn interval(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time like 5s or 500ms");
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (number, after) = rest.split_at(unit_at.unwrap_or(rest.len()));
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.');
        let (unit, next) = after.split_at(end.unwrap_or(after.len()));
        let factor = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" | "" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(wrong()),
        };
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let part = Duration::try_from_secs_f64(number * factor).map_err(|_| wrong())?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = next;
    }
    if total.is_zero() {
        return Err("the interval must be greater than 0".to_owned());
    }
    Ok(total)
}

#[derive(Serialize)]
struct Event<'a> {
    r#type: &'static str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<serde_json::Value>,
}

/// `events`. Ends with the container.
pub(super) fn events(context: &Context, args: &EventsArgs) -> Result<ExitCode, CliError> {
    let container = Container::load(context, &args.id)?;
    let Some(pidfd) = container.pidfd() else {
        let reason = format!("container with id {} is not running", args.id);
        return Err(CliError::Refused(reason));
    };
    let cgroup = container.cgroup()?;
    let config = container.config()?;
    let report_stats = || {
        let mut data = cgroup.stats()?.events_json();
        if let Some(map) = data.as_object_mut() {
            let rdt = resctrl::report(&config, &args.id)?;
            map.insert("intel_rdt".to_owned(), rdt);
        }
        print_json(&Event {
            r#type: "stats",
            id: &args.id,
            data: Some(data),
        })
    };
    if args.stats {
        return report_stats();
    }
    // Without a limit of memory there is no such event.
    let mut watch = match cgroup.watch_oom() {
        Ok(watch) => Some(watch),
        Err(RuntimeError::NoController { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let mut next = Instant::now() + args.interval;
    loop {
        let mut fds = vec![PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
        if let Some(watch) = &watch {
            fds.push(PollFd::from_borrowed_fd(watch.as_fd(), PollFlags::IN));
        }
        let left = next.saturating_duration_since(Instant::now());
        let timeout = rustix::time::Timespec::try_from(left).unwrap_or_default();
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(RuntimeError::setup(Step::Wait, "", errno).into()),
        }
        let ended = fds.first().is_some_and(|fd| !fd.revents().is_empty());
        // Asked in the end, too: what killed the container is worth telling.
        match watch.as_mut().map(|watch| watch.take()).transpose()? {
            Some(OomEvent::Oom(_)) => {
                print_json(&Event {
                    r#type: "oom",
                    id: &args.id,
                    data: None,
                })?;
            }
            Some(OomEvent::Gone) => watch = None,
            Some(OomEvent::Nothing) | None => {}
        }
        if ended {
            return Ok(ExitCode::SUCCESS);
        }
        if Instant::now() >= next {
            report_stats()?;
            next += args.interval;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals() {
        for (text, milliseconds) in [
            ("5s", Some(5000)),
            ("500ms", Some(500)),
            ("1m30s", Some(90_000)),
            ("1.5s", Some(1500)),
            ("2", Some(2000)),
            ("0s", None),
            ("", None),
            ("5x", None),
            ("-5s", None),
        ] {
            let expected = milliseconds.map(Duration::from_millis);
            assert_eq!(interval(text).ok(), expected, "{text}");
        }
    }
}
