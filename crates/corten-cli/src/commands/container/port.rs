//! `port`: what is published, and, of containers that run or not, `port add` and `port rm`.

use std::cmp::Ordering;

use bollard_stubs::models::{ContainerInspectResponse, PortMap};

use super::ports::join_host_port;
use crate::app::Cli;
use crate::client::component;
use crate::command::{Command, action};
use crate::error::{CliError, Result};
use crate::flags::{Arity, Parsed};
use crate::opts::ports::Ports;

/// `port`.
pub(crate) static PORT: Command = Command::new(
    "port",
    "CONTAINER [PRIVATE_PORT[/PROTO]] | add CONTAINER [IP:][HOST:]PORT[/PROTO]... | rm CONTAINER [IP:][HOST:]PORT[/PROTO]...",
    "List port mappings or a specific mapping for the container; add or remove mappings, also while it runs",
    action!(port),
)
.aliases(&["container port", "port"])
.arity(Arity::Min(1));

fn usage() -> CliError {
    CliError::message(
        "'port' lists one container: port CONTAINER [PRIVATE_PORT[/PROTO]]; to change what is \
         published: port add CONTAINER [IP:][HOST:]PORT[/PROTO]... or port rm ...",
    )
}

async fn port(cli: &Cli, flags: Parsed) -> Result {
    let args: Vec<&str> = flags.args.iter().map(String::as_str).collect();
    let name = match args.as_slice() {
        // To list takes two at the most, so a container may be called so.
        ["add", name, ports @ ..] if !ports.is_empty() => {
            return edit(cli, name, "AddPortBindings", ports).await;
        }
        ["rm" | "remove", name, ports @ ..] if !ports.is_empty() => {
            return edit(cli, name, "RemovePortBindings", ports).await;
        }
        // No port, so no container called so is meant.
        ["add" | "rm" | "remove", other] if !other.starts_with(|c: char| c.is_ascii_digit()) => {
            return Err(usage());
        }
        [name] | [name, _] => name,
        _ => return Err(usage()),
    };
    let found: ContainerInspectResponse = cli
        .client()?
        .get(format!("/containers/{}/json", component(name)))
        .json()
        .await?;
    let published = found
        .network_settings
        .and_then(|settings| settings.ports)
        .unwrap_or_default();
    let wanted = flags
        .args
        .get(1)
        .map(String::as_str)
        .filter(|port| !port.is_empty());
    for line in lines(&published, name, wanted)? {
        cli.line(line)?;
    }
    Ok(())
}

/// Publishes ports of a container, or takes them back.
async fn edit(cli: &Cli, name: &str, field: &str, ports: &[&str]) -> Result {
    let parsed = Ports::parse(ports, &[]).map_err(|error| CliError::message(error.to_string()))?;
    let body = serde_json::json!({ field: parsed.bindings });
    let path = format!("/containers/{}/update", component(name));
    let _: serde_json::Value = cli.client()?.post(path).body_json(&body)?.json().await?;
    Ok(())
}

/// Where all ports are published, or the one wanted.
fn lines(published: &PortMap, name: &str, wanted: Option<&str>) -> Result<Vec<String>> {
    let all = published.iter().flat_map(|(port, bindings)| {
        bindings.iter().flatten().map(move |binding| {
            let ip = binding.host_ip.as_deref().unwrap_or_default();
            let host_port = binding.host_port.as_deref().unwrap_or_default();
            (port.as_str(), join_host_port(ip, host_port))
        })
    });
    let mut lines: Vec<String> = match wanted {
        None => all
            .map(|(port, host)| format!("{port} -> {host}"))
            .collect(),
        Some(wanted) => {
            let (number, protocol) = wanted.split_once('/').unwrap_or((wanted, ""));
            let protocol = if protocol.is_empty() { "tcp" } else { protocol };
            number.parse::<u16>().map_err(|error| {
                let reason = match error.kind() {
                    std::num::IntErrorKind::PosOverflow => "value out of range",
                    _ => "invalid syntax",
                };
                CliError::message(format!(
                    "Error: invalid port ({number}): strconv.ParseUint: parsing {number:?}: {reason}"
                ))
            })?;
            let key = format!("{number}/{protocol}");
            let found: Vec<String> = all
                .filter(|(port, _)| *port == key)
                .map(|(_, host)| host)
                .collect();
            if found.is_empty() {
                return Err(CliError::message(format!(
                    "Error: No public port '{wanted}' published for {name}"
                )));
            }
            found
        }
    };
    lines.sort_by(|a, b| natural(a, b));
    Ok(lines)
}

/// Numbers in a text by their value: 80 comes before 443.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let digits = |text: &str| {
            text.find(|c: char| !c.is_ascii_digit())
                .unwrap_or(text.len())
        };
        let (n, m) = (digits(a), digits(b));
        if n > 0 && m > 0 {
            let (x, y) = (
                a[..n].trim_start_matches('0'),
                b[..m].trim_start_matches('0'),
            );
            let order = x
                .len()
                .cmp(&y.len())
                .then_with(|| x.cmp(y))
                .then_with(|| n.cmp(&m));
            if order != Ordering::Equal {
                return order;
            }
            (a, b) = (&a[n..], &b[m..]);
            continue;
        }
        let (mut left, mut right) = (a.chars(), b.chars());
        match (left.next(), right.next()) {
            (Some(x), Some(y)) if x == y => (a, b) = (left.as_str(), right.as_str()),
            (x, y) => return x.cmp(&y),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published() -> PortMap {
        serde_json::from_value(serde_json::json!({
            "443/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8443"}, {"HostIp": "::", "HostPort": "8443"}],
            "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}],
            "53/udp": null,
        }))
        .unwrap()
    }

    #[test]
    fn all_of_them() {
        assert_eq!(
            lines(&published(), "web", None).unwrap(),
            [
                "80/tcp -> 0.0.0.0:8080",
                "443/tcp -> 0.0.0.0:8443",
                "443/tcp -> [::]:8443"
            ]
        );
    }

    #[test]
    fn one_of_them() {
        let of = |wanted| lines(&published(), "web", Some(wanted)).map_err(|e| e.to_string());
        assert_eq!(of("80").unwrap(), ["0.0.0.0:8080"]);
        assert_eq!(of("443/tcp").unwrap(), ["0.0.0.0:8443", "[::]:8443"]);
        for port in ["53/udp", "81", "80/udp"] {
            assert_eq!(
                of(port).unwrap_err(),
                format!("Error: No public port '{port}' published for web")
            );
        }
        assert_eq!(
            of("x").unwrap_err(),
            "Error: invalid port (x): strconv.ParseUint: parsing \"x\": invalid syntax"
        );
    }

    proptest::proptest! {
        #[test]
        fn natural_is_an_order(a in "[0-9a-c]{0,6}", b in "[0-9a-c]{0,6}") {
            assert_eq!(natural(&a, &b), natural(&b, &a).reverse());
            assert_eq!(natural(&a, &b) == Ordering::Equal, a == b);
        }
    }
}
