//! `network …`

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::shapes;
use super::shared::{
    self, NO_PROMPT, OBJECT_FORMAT, PRUNE_FILTER, Pruned, confirm_or_end, joined, prune_filters,
};
use crate::app::Cli;
use crate::client::component;
use crate::command::{Command, action};
use crate::error::{CliError, Result};
use crate::flags::{Arity, Flag, Parsed};
use crate::format::{Listing, Row, units};
use crate::opts::{env, hosts};

/// `network`
pub(crate) static GROUP: Command = Command::group(
    "network",
    "Manage networks",
    &[
        &CHECK,
        &CONNECT,
        &CREATE,
        &DISCONNECT,
        &INSPECT,
        &LS,
        &PRUNE,
        &RM,
    ],
);

static CHECK: Command = Command::new(
    "check",
    "FROM TO[:PORT[/PROTOCOL]]",
    "Say whether a container (or \"host\") reaches another, and why not",
    action!(check),
)
.arity(Arity::Exact(2));

static CONNECT: Command = Command::new(
    "connect",
    "NETWORK CONTAINER",
    "Connect a container to a network",
    action!(connect),
)
.arity(Arity::Exact(2))
.flags(&[&[
    Flag::list("alias", "Add network-scoped alias for the container"),
    Flag::list("driver-opt", "driver options for the network"),
    Flag::int(
        "gw-priority",
        "Highest gw-priority provides the default gateway. Accepts positive and negative values.",
    ),
    Flag::text("ip", "IPv4 address (e.g., \"172.30.100.104\")"),
    Flag::text("ip6", "IPv6 address (e.g., \"2001:db8::33\")"),
    Flag::list("link", "Add link to another container"),
    Flag::list(
        "link-local-ip",
        "Add a link-local address for the container",
    ),
]]);

static DISCONNECT: Command = Command::new(
    "disconnect",
    "NETWORK CONTAINER",
    "Disconnect a container from a network",
    action!(disconnect),
)
.arity(Arity::Exact(2))
.flags(&[&[Flag::switch("force", "Force the container to disconnect from a network").short('f')]]);

static CREATE: Command = Command::new("create", "NETWORK", "Create a network", action!(create))
    .arity(Arity::Exact(1))
    .flags(&[&[
        Flag::switch("attachable", "Enable manual container attachment"),
        Flag::list(
            "aux-address",
            "Auxiliary IPv4 or IPv6 addresses used by Network driver",
        )
        .typed("map", env::check),
        Flag::text(
            "config-from",
            "The network from which to copy the configuration",
        ),
        Flag::switch("config-only", "Create a configuration only network"),
        Flag::text("driver", "Driver to manage the Network")
            .short('d')
            .default("bridge"),
        Flag::list("gateway", "IPv4 or IPv6 Gateway for the master subnet"),
        Flag::switch("ingress", "Create swarm routing-mesh network"),
        Flag::switch("internal", "Restrict external access to the network"),
        Flag::list("ip-range", "Allocate container ip from a sub-range"),
        Flag::text("ipam-driver", "IP Address Management Driver").default("default"),
        Flag::list("ipam-opt", "Set IPAM driver specific options").typed("map", env::check),
        Flag::switch("ipv4", "Enable or disable IPv4 address assignment").default("true"),
        Flag::switch("ipv6", "Enable or disable IPv6 address assignment"),
        Flag::list("label", "Set metadata on a network").typed("list", env::check_label),
        Flag::list("opt", "Set driver specific options")
            .short('o')
            .typed("map", env::check),
        Flag::text("scope", "Control the network's scope"),
        Flag::list(
            "subnet",
            "Subnet in CIDR format that represents a network segment",
        ),
    ]]);

static INSPECT: Command = Command::new(
    "inspect",
    "NETWORK [NETWORK...]",
    "Display detailed information on one or more networks",
    action!(inspect),
)
.arity(Arity::Min(1))
.flags(&[&[
    OBJECT_FORMAT,
    Flag::switch("verbose", "Verbose output for diagnostics").short('v'),
]]);

static LS: Command = Command::new("ls", "", "List networks", action!(list))
    .also(&["list"])
    .aliases(&["network ls", "network list"])
    .arity(Arity::None)
    .flags(&[&[
        Flag::filter("Provide filter values (e.g. \"driver=bridge\")"),
        Flag::format(),
        Flag::switch("no-trunc", "Do not truncate the output"),
        Flag::switch("quiet", "Only display network IDs").short('q'),
    ]]);

static PRUNE: Command = Command::new("prune", "", "Remove all unused networks", action!(prune))
    .arity(Arity::None)
    .flags(&[&[PRUNE_FILTER, NO_PROMPT]]);

static RM: Command = Command::new(
    "rm",
    "NETWORK [NETWORK...]",
    "Remove one or more networks",
    action!(remove),
)
.also(&["remove"])
.aliases(&["network rm", "network remove"])
.arity(Arity::Min(1))
.flags(&[&[Flag::switch("force", "Do not error if the network does not exist").short('f')]]);

const HEADERS: &[(&str, &str)] = &[
    ("ID", "NETWORK ID"),
    ("Name", "NAME"),
    ("Driver", "DRIVER"),
    ("Scope", "SCOPE"),
    ("IPv4", "IPV4"),
    ("IPv6", "IPV6"),
    ("Internal", "INTERNAL"),
    ("Labels", "LABELS"),
    ("CreatedAt", "CREATED AT"),
];

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Network {
    id: String,
    name: String,
    driver: String,
    scope: String,
    created: String,
    internal: bool,
    labels: Option<BTreeMap<String, String>>,
    #[serde(rename = "EnableIPv4")]
    ipv4: Option<bool>,
    #[serde(rename = "EnableIPv6")]
    ipv6: bool,
}

async fn create(cli: &Cli, flags: Parsed) -> Result {
    #[derive(Deserialize)]
    struct Created {
        #[serde(rename = "Id")]
        id: String,
        #[serde(rename = "Warning", default)]
        warning: String,
    }
    let given = |flag: &str| flags.given(flag).then(|| flags.on(flag));
    let config_from = flags.nonempty("config-from");
    let body = json!({
        "Name": flags.args.first(),
        "Driver": flags.text("driver"),
        "Scope": flags.text("scope"),
        "Internal": flags.on("internal"),
        "Attachable": flags.on("attachable"),
        "Ingress": flags.on("ingress"),
        "ConfigOnly": flags.on("config-only"),
        "ConfigFrom": config_from.map(|from| json!({"Network": from})),
        "EnableIPv4": given("ipv4"),
        "EnableIPv6": given("ipv6"),
        "IPAM": {
            "Driver": flags.text("ipam-driver"),
            "Options": env::map(&flags.list("ipam-opt")),
            "Config": pools(&Wanted {
                subnets: words(&flags, "subnet"),
                gateways: words(&flags, "gateway"),
                ranges: words(&flags, "ip-range"),
                aux: flags.list("aux-address"),
            })?,
        },
        "Options": env::map(&flags.list("opt")),
        "Labels": env::labels(&[], &flags.list("label"))?,
    });
    let created: Created = cli
        .client()?
        .post("/networks/create")
        .body_json(&body)?
        .json()
        .await?;
    if !created.warning.is_empty() {
        cli.complain(format!("WARNING: {}", created.warning));
    }
    cli.line(created.id)
}

/// The values of a flag that takes several at once, with commas.
fn words<'a>(flags: &'a Parsed, flag: &str) -> Vec<&'a str> {
    let given = flags.list(flag);
    let words = given.into_iter().flat_map(|text| text.split(','));
    words.map(str::trim).filter(|w| !w.is_empty()).collect()
}

/// What is said of a network's subnets.
#[derive(Default)]
struct Wanted<'a> {
    subnets: Vec<&'a str>,
    gateways: Vec<&'a str>,
    ranges: Vec<&'a str>,
    /// `NAME=ADDRESS`
    aux: Vec<&'a str>,
}

/// Gateways, ranges and auxiliary addresses belong to the subnet they are in; there is one of each
/// of the first two per subnet.
fn pools(wanted: &Wanted<'_>) -> Result<Vec<Value>> {
    let Wanted {
        subnets,
        gateways,
        ranges,
        aux,
    } = wanted;
    if subnets.len() < ranges.len() || subnets.len() < gateways.len() {
        return Err(CliError::message(
            "every ip-range or gateway must have a corresponding subnet",
        ));
    }
    let mut pools: Vec<(&str, Map<String, Value>)> = Vec::new();
    for subnet in subnets {
        // A lone one is for the engine to look at.
        let Some((address, _)) = parse_subnet(subnet) else {
            if subnets.len() == 1 {
                pools.push((
                    subnet,
                    Map::from_iter([("Subnet".to_owned(), (*subnet).into())]),
                ));
                continue;
            }
            return Err(CliError::message(format!(
                "invalid subnet: invalid CIDR address: {subnet}"
            )));
        };
        let overlaps = |other: &str| {
            let theirs = parse_subnet(other).map(|(address, _)| address.to_string());
            contains(other, &address.to_string()) || theirs.is_some_and(|a| contains(subnet, &a))
        };
        if pools.iter().any(|(other, _)| overlaps(other)) {
            return Err(CliError::message(
                "multiple overlapping subnet configuration is not supported",
            ));
        }
        let pool = Map::from_iter([("Subnet".to_owned(), Value::from(*subnet))]);
        pools.push((subnet, pool));
    }
    let mut place = |kind: &str, key: &str, value: &str| -> Result {
        let address = value.split('/').next().unwrap_or_default();
        let mut found = pools.iter_mut();
        let Some((subnet, pool)) = found.find(|(subnet, _)| contains(subnet, address)) else {
            return Err(CliError::message(format!(
                "no matching subnet for {kind} {value}"
            )));
        };
        if let Some(before) = pool.insert(key.to_owned(), Value::from(value)) {
            let before = before.as_str().unwrap_or_default();
            let which = if kind == "gateway" { "for" } else { "on" };
            return Err(CliError::message(format!(
                "cannot configure multiple {kind}s ({value}, {before}) {which} the same subnet \
                 ({subnet})"
            )));
        }
        Ok(())
    };
    for range in ranges {
        place("range", "IPRange", range)?;
    }
    for gateway in gateways {
        place("gateway", "Gateway", gateway)?;
    }
    for entry in aux {
        let Some((name, address)) = entry.split_once('=') else {
            return Err(CliError::message(format!(
                "no matching subnet for aux-address {entry}: it is to be NAME=ADDRESS"
            )));
        };
        if address.is_empty() {
            continue;
        }
        let mut found = pools.iter_mut();
        let Some((_, pool)) = found.find(|(subnet, _)| contains(subnet, address)) else {
            return Err(CliError::message(format!(
                "no matching subnet for aux-address {address}"
            )));
        };
        let addresses = pool
            .entry("AuxiliaryAddresses")
            .or_insert_with(|| json!({}));
        if let Some(addresses) = addresses.as_object_mut() {
            addresses.insert(name.to_owned(), Value::from(address));
        }
    }
    Ok(pools
        .into_iter()
        .map(|(_, pool)| Value::Object(pool))
        .collect())
}

fn parse_subnet(text: &str) -> Option<(std::net::IpAddr, u32)> {
    let (address, bits) = text.split_once('/')?;
    let address: std::net::IpAddr = address.parse().ok()?;
    let bits: u32 = bits.parse().ok()?;
    (bits <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, bits))
}

fn contains(subnet: &str, address: &str) -> bool {
    use std::net::IpAddr::{V4, V6};
    let (Some((network, bits)), Ok(address)) = (parse_subnet(subnet), address.parse()) else {
        return false;
    };
    let (a, b, width) = match (network, address) {
        (V4(a), V4(b)) => (u128::from(a.to_bits()), u128::from(b.to_bits()), 32),
        (V6(a), V6(b)) => (a.to_bits(), b.to_bits(), 128),
        _ => return false,
    };
    (a ^ b)
        .checked_shr(width - bits)
        .is_none_or(|difference| difference == 0)
}

async fn check(cli: &Cli, flags: Parsed) -> Result {
    let [from, to] = &flags.args[..] else {
        return Ok(());
    };
    let (to, port) = match to.split_once(':') {
        Some((to, port)) => (to, Some(port)),
        None => (to.as_str(), None),
    };
    let (port, protocol) = match port.map(|p| p.split_once('/').unwrap_or((p, "tcp"))) {
        None => (None, "tcp"),
        Some((number, protocol)) => {
            let number: std::num::NonZeroU16 = number
                .parse()
                .map_err(|_| CliError::message(format!("invalid port {number:?}")))?;
            (Some(number.get()), protocol)
        }
    };
    let question = serde_json::json!({
        "From": from, "To": to, "Port": port, "Protocol": protocol,
    });
    let client = cli.client()?;
    let request = client.post("/networks/check").body_json(&question)?;
    let answer: Reachable = request.json().await?;
    for reason in &answer.reasons {
        cli.line(reason)?;
    }
    match answer.reachable {
        true => Ok(()),
        false => Err(CliError::status(1)),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Reachable {
    reachable: bool,
    reasons: Vec<String>,
}

async fn connect(cli: &Cli, flags: Parsed) -> Result {
    let address = |flag: &str| flags.nonempty(flag).map(hosts::address).transpose();
    let locals = words(&flags, "link-local-ip");
    let locals: Vec<String> = locals
        .into_iter()
        .map(hosts::address)
        .collect::<std::result::Result<_, _>>()?;
    let mut options = Map::new();
    for option in words(&flags, "driver-opt") {
        let pair = option.split_once('=').map(|(k, v)| (k.trim(), v.trim()));
        let Some((key, value)) = pair.filter(|(key, _)| !key.is_empty()) else {
            return Err(CliError::message(
                "invalid key/value pair format in driver options",
            ));
        };
        options.insert(key.to_owned(), Value::from(value));
    }
    let body = json!({
        "Container": flags.args.get(1),
        "EndpointConfig": {
            "IPAMConfig": {
                "IPv4Address": address("ip")?,
                "IPv6Address": address("ip6")?,
                "LinkLocalIPs": locals,
            },
            "Links": flags.list("link"),
            "Aliases": words(&flags, "alias"),
            "DriverOpts": options,
            "GwPriority": flags.int("gw-priority").unwrap_or(0),
        },
    });
    change(cli, &flags, "connect", &body).await
}

async fn disconnect(cli: &Cli, flags: Parsed) -> Result {
    let body = json!({"Container": flags.args.get(1), "Force": flags.on("force")});
    change(cli, &flags, "disconnect", &body).await
}

async fn change(cli: &Cli, flags: &Parsed, what: &str, body: &Value) -> Result {
    let name = flags.args.first().map_or("", String::as_str);
    let path = format!("/networks/{}/{what}", component(name));
    cli.client()?.post(path).body_json(body)?.done().await?;
    Ok(())
}

async fn inspect(cli: &Cli, flags: Parsed) -> Result {
    let client = cli.client()?;
    let verbose = flags.on("verbose");
    shared::inspect_each(cli, &flags, async |name| {
        let object = client
            .get(format!("/networks/{}", component(name)))
            .flag("verbose", verbose)
            .json()
            .await?;
        Ok(shared::Found {
            object,
            shape: shapes::NETWORK,
        })
    })
    .await
}

async fn list(cli: &Cli, flags: Parsed) -> Result {
    let mut networks: Vec<Network> = cli
        .client()?
        .get("/networks")
        .filters(&flags.list("filter"))
        .json()
        .await?;
    networks.sort_by(|a, b| a.name.cmp(&b.name));
    let quiet = flags.on("quiet");
    let configured = Some(cli.config().networks_format.as_str()).filter(|f| !f.is_empty());
    let format = flags.nonempty("format").or(configured.filter(|_| !quiet));
    let listing = Listing {
        headers: HEADERS,
        table: "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}",
        quiet: "{{.ID}}",
    };
    let rows = networks
        .iter()
        .map(|network| row(network, !flags.on("no-trunc")))
        .collect();
    let usual = matches!(format, None | Some("table"));
    cli.print(&listing.render(format, quiet && usual, rows)?)
}

fn row(network: &Network, truncate: bool) -> Row {
    let labels = network.labels.clone().unwrap_or_default();
    Row::default()
        .with("CreatedAt", created_at(&network.created))
        .with("Driver", network.driver.clone())
        .with(
            "ID",
            if truncate {
                units::short_id(&network.id)
            } else {
                network.id.clone()
            },
        )
        .with("IPv4", network.ipv4.unwrap_or(true).to_string())
        .with("IPv6", network.ipv6.to_string())
        .with("Internal", network.internal.to_string())
        .with("Labels", joined(&labels, ","))
        .with("Name", network.name.clone())
        .with("Scope", network.scope.clone())
        .method("Label", labels)
}

/// As Go prints a time: `2026-11-24 02:43:27.123456789 +0000 UTC`.
fn created_at(text: &str) -> String {
    text.parse::<jiff::Timestamp>().map_or_else(
        |_| text.to_owned(),
        |time| {
            let zoned = time.to_zoned_datetime(jiff::tz::TimeZone::UTC);
            zoned.strftime("%Y-%m-%d %H:%M:%S%.f +0000 UTC").to_string()
        },
    )
}

async fn prune(cli: &Cli, flags: Parsed) -> Result {
    let warning =
        "WARNING! This will remove all custom networks not used by at least one container.";
    confirm_or_end(cli, &flags, warning)?;
    let pruned = run_prune(cli, &prune_filters(cli, &flags)).await?;
    cli.print(&pruned.listing())
}

/// Removes networks that no container uses.
pub(crate) async fn run_prune(cli: &Cli, filters: &[String]) -> Result<Pruned> {
    Ok(cli
        .client()?
        .post("/networks/prune")
        .filters(filters)
        .json()
        .await?)
}

async fn remove(cli: &Cli, flags: Parsed) -> Result {
    let client = cli.client()?;
    let mut failed = false;
    for name in &flags.args {
        match client
            .delete(format!("/networks/{}", component(name)))
            .done()
            .await
        {
            Ok(()) => cli.line(name)?,
            Err(error) if flags.on("force") && error.is_not_found() => {}
            Err(error) => {
                cli.complain(error);
                failed = true;
            }
        }
    }
    if failed {
        Err(CliError::status(1))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_find_their_subnets() {
        let subnets = vec!["10.1.0.0/16", "fd00::/64"];
        let found = pools(&Wanted {
            subnets: subnets.clone(),
            gateways: vec!["fd00::1", "10.1.0.1"],
            ranges: vec!["10.1.2.0/24"],
            aux: vec!["a=10.1.0.9", "b=10.1.0.10", "c="],
        })
        .unwrap();
        assert_eq!(
            Value::Array(found),
            json!([
                {
                    "Subnet": "10.1.0.0/16", "IPRange": "10.1.2.0/24", "Gateway": "10.1.0.1",
                    "AuxiliaryAddresses": {"a": "10.1.0.9", "b": "10.1.0.10"},
                },
                {"Subnet": "fd00::/64", "Gateway": "fd00::1"},
            ])
        );
        assert!(contains("0.0.0.0/0", "9.9.9.9") && contains("::/0", "1::"));
    }

    #[test]
    fn wrong_subnets_are_refused() {
        let refusal = |subnets: &[&'static str], gateways: &[&'static str]| {
            let wanted = Wanted {
                subnets: subnets.to_vec(),
                gateways: gateways.to_vec(),
                ..Wanted::default()
            };
            pools(&wanted).unwrap_err().to_string()
        };
        for (subnets, gateways, message) in [
            (
                &["10.1.0.0/16"][..],
                &["10.2.0.1"][..],
                "no matching subnet for gateway 10.2.0.1",
            ),
            (
                &[],
                &["10.2.0.1"],
                "every ip-range or gateway must have a corresponding subnet",
            ),
            (
                &["10.1.0.0/16", "10.1.3.0/24"],
                &[],
                "multiple overlapping subnet configuration is not supported",
            ),
            (
                &["10.1.0.0/16", "10.3.0.0/16"],
                &["10.1.0.1", "10.1.0.2"],
                "cannot configure multiple gateways (10.1.0.2, 10.1.0.1) for the same subnet \
                 (10.1.0.0/16)",
            ),
            (
                &["10.1.0.0", "10.2.0.0/16"],
                &[],
                "invalid subnet: invalid CIDR address: 10.1.0.0",
            ),
        ] {
            assert_eq!(refusal(subnets, gateways), message);
        }
        let nameless = pools(&Wanted {
            subnets: vec!["10.1.0.0/16"],
            aux: vec!["10.1.0.9"],
            ..Wanted::default()
        });
        assert_eq!(
            nameless.unwrap_err().to_string(),
            "no matching subnet for aux-address 10.1.0.9: it is to be NAME=ADDRESS"
        );
    }
}
