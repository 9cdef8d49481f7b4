//! Health checks of containers: what a configuration asks for, with Docker's defaults.

use std::time::Duration;

use bollard_stubs::models::{ContainerConfig, HealthConfig};

use super::bad;
use crate::error::EngineError;

/// Docker's defaults.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u32 = 3;
/// Nothing may be shorter (Docker's), in nanoseconds.
const SHORTEST: i64 = 1_000_000;

/// A check to be carried out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Check {
    pub(crate) command: Vec<String>,
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
    /// As Go writes it.
    pub(crate) timeout_text: String,
    pub(crate) start_period: Duration,
    pub(crate) start_interval: Duration,
    pub(crate) retries: u32,
}

/// Refuses what Docker refuses; a warning where nothing will be checked though it looks so.
pub(crate) fn check(config: Option<&HealthConfig>) -> Result<Option<String>, EngineError> {
    let Some(config) = config else {
        return Ok(None);
    };
    for (name, value) in [
        ("Interval", config.interval),
        ("Timeout", config.timeout),
        ("StartPeriod", config.start_period),
        ("StartInterval", config.start_interval),
    ] {
        if value.is_some_and(|v| v != 0 && v < SHORTEST) {
            return Err(bad(format!(
                "{name} in Healthcheck cannot be less than 1ms"
            )));
        }
    }
    if config.retries.is_some_and(|n| n < 0) {
        return Err(bad("Retries in Healthcheck cannot be negative"));
    }
    Ok(match config.test.as_deref().unwrap_or_default() {
        [] => None,
        [kind, ..] if kind == "NONE" => None,
        [kind, _, ..] if kind == "CMD" || kind == "CMD-SHELL" => None,
        [kind] if kind == "CMD" || kind == "CMD-SHELL" => Some(format!(
            "The health check names no command after '{kind}': health is not checked."
        )),
        [kind, ..] => Some(format!(
            "Unknown healthcheck type '{kind}' (expected 'CMD'): health is not checked."
        )),
    })
}

/// The check that a container's configuration asks for, if any.
pub(crate) fn read(config: &ContainerConfig) -> Option<Check> {
    let health = config.healthcheck.as_ref()?;
    let (kind, words) = health.test.as_deref()?.split_first()?;
    let command: Vec<String> = match kind.as_str() {
        _ if words.is_empty() => return None,
        "CMD" => words.to_vec(),
        "CMD-SHELL" => {
            let shell = config.shell.clone().filter(|shell| !shell.is_empty());
            let shell = shell.unwrap_or_else(|| vec!["/bin/sh".to_owned(), "-c".to_owned()]);
            shell.into_iter().chain(words.iter().cloned()).collect()
        }
        _ => return None,
    };
    let span = |nanos: Option<i64>, default: Duration| {
        let nanos = nanos.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0);
        nanos.map_or(default, Duration::from_nanos)
    };
    let timeout = span(health.timeout, TIMEOUT);
    let retries = health.retries.and_then(|n| u32::try_from(n).ok());
    Some(Check {
        command,
        interval: span(health.interval, INTERVAL),
        timeout,
        timeout_text: corten_build::go_duration(
            i64::try_from(timeout.as_nanos()).unwrap_or(i64::MAX),
        ),
        start_period: span(health.start_period, Duration::ZERO),
        start_interval: span(health.start_interval, START_INTERVAL),
        retries: retries.filter(|n| *n > 0).unwrap_or(RETRIES),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(test: &[&str]) -> ContainerConfig {
        ContainerConfig {
            healthcheck: Some(HealthConfig {
                test: Some(test.iter().map(|t| (*t).to_owned()).collect()),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn commands() {
        for (test, command) in [
            (&["CMD", "curl", "x"][..], Some(&["curl", "x"][..])),
            (
                &["CMD-SHELL", "curl x || exit 1"],
                Some(&["/bin/sh", "-c", "curl x || exit 1"]),
            ),
            (&["NONE"], None),
            (&["CMD"], None),
            (&["TCP", "80"], None),
            (&[], None),
        ] {
            let read = read(&config(test)).map(|c| c.command);
            let expected = command.map(|c| c.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>());
            assert_eq!(read, expected, "{test:?}");
        }
        let mut own_shell = config(&["CMD-SHELL", "x"]);
        own_shell.shell = Some(vec!["/bin/ash".to_owned(), "-ec".to_owned()]);
        assert_eq!(read(&own_shell).unwrap().command, ["/bin/ash", "-ec", "x"]);
    }

    #[test]
    fn what_is_open_has_dockers_defaults() {
        let read = read(&config(&["CMD", "true"])).unwrap();
        assert_eq!(
            (read.interval, read.timeout, read.start_period, read.retries),
            (INTERVAL, TIMEOUT, Duration::ZERO, 3)
        );
        assert_eq!(read.timeout_text, "30s");
    }

    #[test]
    fn limits_and_warnings() {
        let with = |change: fn(&mut HealthConfig)| {
            let mut config = config(&["CMD", "true"]).healthcheck.unwrap();
            change(&mut config);
            check(Some(&config)).map_err(|e| e.to_string())
        };
        assert_eq!(with(|_| ()), Ok(None));
        assert_eq!(
            with(|c| c.interval = Some(5)),
            Err("Interval in Healthcheck cannot be less than 1ms".to_owned())
        );
        assert_eq!(
            with(|c| c.retries = Some(-1)),
            Err("Retries in Healthcheck cannot be negative".to_owned())
        );
        let unknown = with(|c| c.test = Some(vec!["TCP".to_owned(), "80".to_owned()]));
        assert!(
            unknown
                .unwrap()
                .unwrap()
                .contains("Unknown healthcheck type 'TCP'")
        );
    }
}
