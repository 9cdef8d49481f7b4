//! `why`: in plain words, why a container is as it is.
//!
//! Told from what the engine knows anyway (its state, its events), so it works with any engine.

use std::collections::BTreeMap;

use bollard_stubs::models::{
    ContainerInspectResponse, ContainerStateStatusEnum as Status, HealthStatusEnum,
    HealthcheckResult, RestartPolicyNameEnum,
};
use corten_oci::Printable;
use serde::Deserialize;

use crate::app::Cli;
use crate::client::component;
use crate::command::{Command, action};
use crate::error::Result;
use crate::flags::{Arity, Parsed};

/// `why`.
pub(crate) static WHY: Command = Command::new(
    "why",
    "CONTAINER",
    "Tell in plain words why a container is not running, or not well",
    action!(why),
)
.aliases(&["container why", "why"])
.arity(Arity::Exact(1));

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Event {
    #[serde(rename = "Action")]
    action: String,
    #[serde(rename = "Actor")]
    actor: Actor,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Actor {
    #[serde(rename = "Attributes")]
    attributes: BTreeMap<String, String>,
}

async fn why(cli: &Cli, flags: Parsed) -> Result {
    let Some(name) = flags.args.first() else {
        return Ok(());
    };
    let client = cli.client()?;
    let found: ContainerInspectResponse = client
        .get(format!("/containers/{}/json", component(name)))
        .json()
        .await?;
    let id = found.id.as_deref().unwrap_or(name);
    let now = jiff::Timestamp::now();
    let until = format!("{}.{:09}", now.as_second(), now.subsec_nanosecond());
    let mut lines = client
        .get("/events".to_owned())
        .query("since", "1")
        .query("until", until)
        .filters(&["type=container", &format!("container={id}")])
        .lines()
        .await?;
    let mut events = Vec::new();
    while let Some(event) = lines.next::<Event>().await? {
        events.push(event);
    }
    for line in explain(&found, &events) {
        cli.line(line)?;
    }
    Ok(())
}

/// The explanation, line by line.
fn explain(found: &ContainerInspectResponse, events: &[Event]) -> Vec<String> {
    let name = found.name.as_deref().unwrap_or("").trim_start_matches('/');
    let state = found.state.clone().unwrap_or_default();
    let error = state.error.as_deref().unwrap_or("");
    let code = state.exit_code.unwrap_or(0);
    let mut lines = Vec::new();
    match state.status.unwrap_or(Status::DEAD) {
        Status::RUNNING => lines.push(format!("{name} is running.")),
        Status::PAUSED => lines.push(format!(
            "{name} is paused: its processes are frozen until 'corten unpause {name}'."
        )),
        Status::RESTARTING => {
            lines.push(format!(
                "{name} keeps ending, and waits for its restart policy ({}) to start it again.",
                policy(found)
            ));
            lines.extend(ending(found, events, name, code));
        }
        Status::CREATED if error.is_empty() => lines.push(format!(
            "{name} was created, but never started: 'corten start {name}'."
        )),
        Status::CREATED => lines.extend(failed_start(name, error)),
        Status::EXITED if error == "supervisor died" => lines.push(format!(
            "{name} was lost: the process beside it (its supervisor) was killed, and it was ended with it."
        )),
        Status::EXITED if !error.is_empty() => lines.extend(failed_start(name, error)),
        Status::EXITED => lines.extend(ending(found, events, name, code)),
        Status::REMOVING => lines.push(format!("{name} is being removed.")),
        _ => lines.push(format!("{name} could not be removed wholly: 'corten rm {name}'.")),
    }
    if let Some(count @ 1..) = found.restart_count {
        let times = if count == 1 {
            "once"
        } else {
            &format!("{count} times")
        };
        lines.push(format!(
            "Its restart policy ({}) has started it again {times}.",
            policy(found)
        ));
    }
    lines.extend(health(found));
    lines
}

/// The restart policy as `--restart` has it.
fn policy(found: &ContainerInspectResponse) -> String {
    let policy = found
        .host_config
        .as_ref()
        .and_then(|h| h.restart_policy.as_ref());
    match policy.and_then(|p| p.name) {
        Some(RestartPolicyNameEnum::ALWAYS) => "always".to_owned(),
        Some(RestartPolicyNameEnum::UNLESS_STOPPED) => "unless-stopped".to_owned(),
        Some(RestartPolicyNameEnum::ON_FAILURE) => {
            match policy.and_then(|p| p.maximum_retry_count) {
                Some(most @ 1..) => format!("on-failure:{most}"),
                _ => "on-failure".to_owned(),
            }
        }
        _ => "no".to_owned(),
    }
}

/// What the engine said about a start, and what to do about it.
fn failed_start(name: &str, error: &str) -> Vec<String> {
    let lower = error.to_lowercase();
    let has = |texts: &[&str]| texts.iter().any(|text| lower.contains(text));
    let advice = if has(&["port is already allocated", "address already in use"]) {
        Some("Somebody else has that port: end them, or publish another with -p.")
    } else if has(&["mount source", "bind source"]) {
        Some("A directory or file to be mounted is not there: make it, or correct -v or --mount.")
    } else if has(&["not found", "no such file"]) {
        Some(
            "The program is not in the image: check its name and its place, and for a script \
             the interpreter in its first line.",
        )
    } else if has(&["permission denied", "exec format", "not executable"]) {
        Some(
            "The program cannot be executed: check its mode (chmod +x), and that it is made for \
             this machine.",
        )
    } else if has(&["logging driver"]) {
        Some("The log it is to write to cannot be reached: see --log-driver and --log-opt.")
    } else {
        None
    };
    let mut lines = vec![format!("{name} could not be started: {}", Printable(error))];
    lines.extend(advice.map(str::to_owned));
    lines
}

/// How it ended, and by whose doing.
fn ending(
    found: &ContainerInspectResponse,
    events: &[Event],
    name: &str,
    code: i64,
) -> Vec<String> {
    let oom = found.state.as_ref().and_then(|s| s.oom_killed) == Some(true);
    let program = Printable(found.path.as_deref().unwrap_or("its program"));
    // What was asked for between its last start and its end.
    let begin = events
        .iter()
        .rposition(|e| e.action == "start")
        .unwrap_or(0);
    let signals: Vec<&str> = events[begin..]
        .iter()
        .filter(|e| e.action == "kill")
        .filter_map(|e| e.actor.attributes.get("signal").map(String::as_str))
        .collect();
    // A stop that had to kill is two signals, and is told as a stop.
    let stopped = events[begin..].iter().any(|e| e.action == "stop");
    let in_vain = stopped && signals.iter().any(|s| *s != "9");
    let asked = |signal: i64| signals.iter().any(|s| *s == signal.to_string());
    let logs = format!("Its log may say more: 'corten logs {name}'.");
    if oom {
        let limit = found
            .host_config
            .as_ref()
            .and_then(|h| h.memory)
            .filter(|m| *m > 0);
        let limit = match limit {
            Some(bytes) => format!("its limit of {} MiB", bytes >> 20),
            None => "what this machine has".to_owned(),
        };
        return vec![
            format!(
                "{name} needed more memory than {limit}: the kernel killed a process in it \
                 (exit code {code})."
            ),
            "Give it more with --memory, or let it need less.".to_owned(),
        ];
    }
    let by_request = signals.iter().any(|s| *s != "9");
    match code {
        0 if by_request => vec![format!(
            "{name} was asked to end, and did, without an error (exit code 0)."
        )],
        0 => vec![format!(
            "{name} has ended by itself, and without an error (exit code 0)."
        )],
        126 => vec![
            format!("{name}: {program}, or a command in it, cannot be executed (exit code 126)."),
            logs,
        ],
        127 => vec![
            format!("{name}: {program}, or a command in it, was not found (exit code 127)."),
            logs,
        ],
        129..=192 => {
            let signal = code - 128;
            let called = signal_name(signal);
            let how = if asked(signal) && signal == 9 && !in_vain {
                format!("{name} was killed on request (SIGKILL).")
            } else if asked(signal) && signal != 9 {
                format!("{name} was asked to end ({called}), and did.")
            } else if signal == 9 && !signals.is_empty() {
                format!(
                    "{name} was asked to stop, did not end in time, and was killed (SIGKILL): \
                     run it with --init, or let it handle its stop signal."
                )
            } else {
                format!("{name} was ended by {called}, which did not come from the engine.")
            };
            vec![how]
        }
        _ if by_request => vec![
            format!("{name} was asked to end, and did: {program} gave exit code {code}."),
            logs,
        ],
        _ => vec![
            format!("{name} has ended by itself with an error: {program} gave exit code {code}."),
            logs,
        ],
    }
}

fn signal_name(signal: i64) -> String {
    let name = match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        10 => "SIGUSR1",
        11 => "SIGSEGV",
        12 => "SIGUSR2",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        31 => "SIGSYS",
        _ => return format!("signal {signal}"),
    };
    name.to_owned()
}

/// What its health checks have said.
fn health(found: &ContainerInspectResponse) -> Vec<String> {
    let Some(health) = found.state.as_ref().and_then(|s| s.health.as_ref()) else {
        return Vec::new();
    };
    let log = health.log.as_deref().unwrap_or_default();
    let failed = |result: &&HealthcheckResult| result.exit_code != Some(0);
    let failures = log.iter().filter(failed).count();
    let mut lines = vec![match health.status {
        Some(HealthStatusEnum::STARTING) if failures == 0 => {
            "Its health check has not said anything yet.".to_owned()
        }
        _ if failures == 0 => "Its health checks have succeeded.".to_owned(),
        _ => format!(
            "{failures} of its last {} health checks have failed.",
            log.len()
        ),
    }];
    if let Some(last) = log.iter().rev().find(failed) {
        let output = last.output.as_deref().unwrap_or("").trim();
        let told = Printable(output);
        let what = match last.exit_code.unwrap_or(-1) {
            -1 => format!("The last failure: {told}"),
            code if output.is_empty() => {
                format!("The last failure gave exit code {code} and said nothing.")
            }
            code => format!("The last failure gave exit code {code} and said: {told}"),
        };
        lines.push(what);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(found: serde_json::Value, events: serde_json::Value) -> String {
        let found = serde_json::from_value(found).unwrap();
        let events: Vec<Event> = serde_json::from_value(events).unwrap();
        explain(&found, &events).join(" | ")
    }

    fn exited(code: i64, error: &str) -> serde_json::Value {
        serde_json::json!({
            "Name": "/web", "Path": "/app", "State": {"Status": "exited", "ExitCode": code, "Error": error},
        })
    }

    fn kill(signal: &str) -> serde_json::Value {
        serde_json::json!([
            {"Action": "kill", "Actor": {"Attributes": {"signal": "9"}}},
            {"Action": "start"},
            {"Action": "kill", "Actor": {"Attributes": {"signal": signal}}},
            {"Action": "die"},
        ])
    }

    /// Goes on with a signal, or what else happened.
    fn then(events: &serde_json::Value, more: &[&str]) -> serde_json::Value {
        let mut events = events.as_array().unwrap().clone();
        events.extend(more.iter().map(|what| match *what {
            "9" => serde_json::json!({"Action": "kill", "Actor": {"Attributes": {"signal": "9"}}}),
            other => serde_json::json!({"Action": other}),
        }));
        serde_json::Value::Array(events)
    }

    #[test]
    fn ends() {
        let none = || serde_json::json!([]);
        for (found, events, expected) in [
            (exited(0, ""), none(), "without an error (exit code 0)"),
            (
                exited(3, ""),
                none(),
                "/app gave exit code 3. | Its log may say more",
            ),
            (exited(127, ""), none(), "was not found (exit code 127)"),
            (
                exited(139, ""),
                none(),
                "was ended by SIGSEGV, which did not come from the engine",
            ),
            (
                exited(143, ""),
                kill("15"),
                "was asked to end (SIGTERM), and did",
            ),
            (
                exited(137, ""),
                kill("15"),
                "did not end in time, and was killed",
            ),
            (exited(137, ""), kill("9"), "was killed on request"),
            (
                exited(137, ""),
                then(&kill("15"), &["9", "stop"]),
                "did not end in time, and was killed",
            ),
            (
                exited(137, ""),
                then(&kill("15"), &["9"]),
                "was killed on request",
            ),
            (
                exited(137, ""),
                none(),
                "was ended by SIGKILL, which did not come from the engine",
            ),
            (exited(137, "supervisor died"), none(), "web was lost"),
        ] {
            let told = told(found, events);
            assert!(told.contains(expected), "{told}\nwanted: {expected}");
        }
    }

    #[test]
    fn starts_that_failed() {
        for (error, expected) in [
            (
                "exec: \"x\": executable file not found in $PATH",
                "is not in the image",
            ),
            (
                "Bind for 0.0.0.0:80 failed: port is already allocated",
                "has that port",
            ),
            ("exec /x: permission denied", "chmod +x"),
            (
                "open mount source /x: No such file or directory",
                "to be mounted is not there",
            ),
        ] {
            let mut found = exited(127, error);
            found["State"]["Status"] = "created".into();
            let told = told(found, serde_json::json!([]));
            assert!(told.contains(error) && told.contains(expected), "{told}");
        }
    }

    #[test]
    fn memory_restarts_and_health() {
        let found = serde_json::json!({
            "Name": "/web", "Path": "/app", "RestartCount": 4,
            "State": {
                "Status": "restarting", "ExitCode": 137, "OOMKilled": true,
                "Health": {"Status": "unhealthy", "Log": [
                    {"ExitCode": 0, "Output": ""}, {"ExitCode": 1, "Output": "refused\n"},
                ]},
            },
            "HostConfig": {
                "Memory": 33_554_432, "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 9},
            },
        });
        let told = told(found, serde_json::json!([]));
        for expected in [
            "restart policy (on-failure:9) to start it again",
            "its limit of 32 MiB",
            "has started it again 4 times",
            "1 of its last 2 health checks have failed",
            "exit code 1 and said: refused",
        ] {
            assert!(told.contains(expected), "{told}\nwanted: {expected}");
        }
    }
}
