//! `info`, `system info`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::app::Cli;
use crate::client::context_name;
use crate::command::{Command, action};
use crate::commands::shared::OBJECT_FORMAT;
use crate::error::{CliError, Result};
use crate::flags::{Arity, Parsed};
use crate::format::units;
use crate::template::{Data, Template};

pub(crate) static INFO: Command =
    Command::new("info", "", "Display system-wide information", action!(info))
        .aliases(&["system info", "info"])
        .arity(Arity::None)
        .flags(&[&[OBJECT_FORMAT]]);

async fn info(cli: &Cli, flags: Parsed) -> Result {
    let template = match flags.nonempty("format") {
        None => None,
        Some("json") => Some(Template::parse("{{json .}}")?),
        Some(text) => Some(Template::parse(text).map_err(CliError::unreadable)?),
    };
    let client = json!({
        "Debug": cli.globals.debug,
        "Version": env!("CARGO_PKG_VERSION"),
        "Context": context_name(&cli.globals, cli.config()),
        "Plugins": [],
        "Warnings": null,
    });
    let server: Result<Value> = async { Ok(cli.client()?.get("/info").json().await?) }.await;
    if let Some(template) = template {
        // As in Docker, the client's part is a field of the server's.
        let (mut document, failure) = match server {
            Ok(document) => (document, None),
            Err(error) => (json!({ "ServerErrors": [error.to_string()] }), Some(error)),
        };
        document["ClientInfo"] = client;
        cli.line(template.render(&Data::from(document))?)?;
        return failure.map_or(Ok(()), |_| Err(CliError::status(1)));
    }
    let mut out = String::from("Client:\n");
    for (name, value) in [
        ("Version", &client["Version"]),
        ("Context", &client["Context"]),
    ] {
        out.push_str(&format!(
            " {name}:    {}\n",
            value.as_str().unwrap_or_default()
        ));
    }
    out.push_str(&format!(" Debug Mode: {}\n\nServer:\n", cli.globals.debug));
    match server {
        Ok(server) => {
            out.push_str(&describe(&server));
            out.push('\n');
            cli.print(&out)?;
            for warning in server["Warnings"].as_array().into_iter().flatten() {
                cli.complain(warning.as_str().unwrap_or_default());
            }
            Ok(())
        }
        Err(error) => {
            cli.print(&out)?;
            Err(error)
        }
    }
}

/// The engine's part, in Docker's layout.
fn describe(info: &Value) -> String {
    let mut out = String::new();
    let text = |name: &str| info[name].as_str();
    let number = |name: &str| info[name].as_i64().unwrap_or_default();
    let list = |value: &Value| -> String {
        let words: Vec<&str> = value
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        words.join(" ")
    };
    let on = |name: &str| info[name].as_bool().unwrap_or_default();
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    line(format!(" Containers: {}", number("Containers")));
    line(format!("  Running: {}", number("ContainersRunning")));
    line(format!("  Paused: {}", number("ContainersPaused")));
    line(format!("  Stopped: {}", number("ContainersStopped")));
    line(format!(" Images: {}", number("Images")));
    for (name, field) in [
        ("Server Version", "ServerVersion"),
        ("Storage Driver", "Driver"),
    ] {
        if let Some(value) = text(field) {
            line(format!(" {name}: {value}"));
        }
    }
    for pair in info["DriverStatus"].as_array().into_iter().flatten() {
        if let (Some(name), Some(value)) = (pair[0].as_str(), pair[1].as_str()) {
            line(format!("  {name}: {value}"));
        }
    }
    for (name, field) in [
        ("Logging Driver", "LoggingDriver"),
        ("Cgroup Driver", "CgroupDriver"),
        ("Cgroup Version", "CgroupVersion"),
    ] {
        if let Some(value) = text(field) {
            line(format!(" {name}: {value}"));
        }
    }
    line(" Plugins:".into());
    for name in ["Volume", "Network", "Authorization", "Log"] {
        let plugins = list(&info["Plugins"][name]);
        if !plugins.is_empty() {
            line(format!("  {name}: {plugins}"));
        }
    }
    line(" Swarm: inactive".into());
    let runtimes: BTreeMap<&str, ()> = info["Runtimes"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, _)| (name.as_str(), ()))
        .collect();
    if !runtimes.is_empty() {
        line(format!(
            " Runtimes: {}",
            runtimes.into_keys().collect::<Vec<_>>().join(" ")
        ));
    }
    if let Some(runtime) = text("DefaultRuntime") {
        line(format!(" Default Runtime: {runtime}"));
    }
    security(&mut line, info);
    for (name, field) in [
        ("Kernel Version", "KernelVersion"),
        ("Operating System", "OperatingSystem"),
        ("OSType", "OSType"),
        ("Architecture", "Architecture"),
    ] {
        if let Some(value) = text(field) {
            line(format!(" {name}: {value}"));
        }
    }
    line(format!(" CPUs: {}", number("NCPU")));
    line(format!(
        " Total Memory: {}",
        units::binary_size(number("MemTotal"))
    ));
    for (name, field) in [
        ("Name", "Name"),
        ("ID", "ID"),
        ("Docker Root Dir", "DockerRootDir"),
    ] {
        line(format!(" {name}: {}", text(field).unwrap_or_default()));
    }
    line(format!(" Debug Mode: {}", on("Debug")));
    for (name, field) in [
        ("HTTP Proxy", "HttpProxy"),
        ("HTTPS Proxy", "HttpsProxy"),
        ("No Proxy", "NoProxy"),
    ] {
        if let Some(value) = text(field).filter(|value| !value.is_empty()) {
            line(format!(" {name}: {value}"));
        }
    }
    labels(&mut line, "Labels", &info["Labels"]);
    line(format!(" Experimental: {}", on("ExperimentalBuild")));
    labels(
        &mut line,
        "Insecure Registries",
        &info["RegistryConfig"]["InsecureRegistryCIDRs"],
    );
    labels(
        &mut line,
        "Registry Mirrors",
        &info["RegistryConfig"]["Mirrors"],
    );
    line(format!(
        " Live Restore Enabled: {}",
        on("LiveRestoreEnabled")
    ));
    out
}

fn labels(line: &mut impl FnMut(String), title: &str, values: &Value) {
    let values: Vec<&str> = values
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if !values.is_empty() {
        line(format!(" {title}:"));
        values
            .into_iter()
            .for_each(|value| line(format!("  {value}")));
    }
}

/// `name=seccomp,profile=builtin` in two lines.
fn security(line: &mut impl FnMut(String), info: &Value) {
    let options: Vec<&str> = info["SecurityOptions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if options.is_empty() {
        return;
    }
    line(" Security Options:".into());
    for option in options {
        for pair in option.split(',') {
            match pair.split_once('=') {
                Some(("name", name)) => line(format!("  {name}")),
                Some((key, value)) => {
                    let mut chars = key.chars();
                    let first = chars.next().map(|first| first.to_uppercase().to_string());
                    let title = format!("{}{}", first.unwrap_or_default(), chars.as_str());
                    line(format!("   {title}: {value}"));
                }
                None => line(format!("  {pair}")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout() {
        let info = json!({
            "Containers": 2, "ContainersRunning": 1, "ContainersStopped": 1, "Images": 3,
            "ServerVersion": "0.1.0", "Driver": "overlay2", "DriverStatus": [["Daemonless", "true"]],
            "LoggingDriver": "json-file", "CgroupDriver": "cgroupfs", "CgroupVersion": "2",
            "Plugins": { "Volume": ["local"], "Network": ["bridge", "host"], "Log": ["json-file"] },
            "Runtimes": { "corten": {} }, "DefaultRuntime": "corten",
            "SecurityOptions": ["name=seccomp,profile=builtin", "name=cgroupns"],
            "KernelVersion": "6.1", "OSType": "linux", "Architecture": "x86_64", "NCPU": 2,
            "MemTotal": 16_777_216_000_i64, "Name": "host", "ID": "x", "DockerRootDir": "/var/lib/corten",
            "RegistryConfig": { "InsecureRegistryCIDRs": ["127.0.0.0/8"], "Mirrors": [] },
            "LiveRestoreEnabled": true,
        });
        let text = describe(&info);
        for expected in [
            " Containers: 2\n  Running: 1\n  Paused: 0\n  Stopped: 1\n Images: 3\n",
            " Storage Driver: overlay2\n  Daemonless: true\n Logging Driver: json-file\n",
            "  Network: bridge host\n",
            " Security Options:\n  seccomp\n   Profile: builtin\n  cgroupns\n",
            " Total Memory: 15.62GiB\n",
            " Insecure Registries:\n  127.0.0.0/8\n Live Restore Enabled: true\n",
        ] {
            assert!(text.contains(expected), "{expected:?} in {text}");
        }
    }
}
