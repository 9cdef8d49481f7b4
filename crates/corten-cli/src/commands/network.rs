//! `network …`

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::shapes;
use super::shared::{self, NO_PROMPT, OBJECT_FORMAT, PRUNE_FILTER, Pruned, confirm_or_end, joined};
use crate::app::Cli;
use crate::client::component;
use crate::command::{Command, action};
use crate::error::{CliError, Result};
use crate::flags::{Arity, Flag, Parsed};
use crate::format::{Listing, Row, units};
use crate::opts::env;

/// `network`
pub(crate) static GROUP: Command = Command::group(
    "network",
    "Manage networks",
    &[&CREATE, &INSPECT, &LS, &PRUNE, &RM],
);

static CREATE: Command = Command::new("create", "NETWORK", "Create a network", action!(create))
    .arity(Arity::Exact(1))
    .flags(&[&[
        Flag::switch("attachable", "Enable manual container attachment"),
        Flag::text("driver", "Driver to manage the Network")
            .short('d')
            .default("bridge"),
        Flag::list("gateway", "IPv4 or IPv6 Gateway for the master subnet"),
        Flag::switch("internal", "Restrict external access to the network"),
        Flag::list("ip-range", "Allocate container ip from a sub-range"),
        Flag::text("ipam-driver", "IP Address Management Driver").default("default"),
        Flag::switch("ipv6", "Enable or disable IPv6 address assignment"),
        Flag::list("label", "Set metadata on a network").typed("list", env::check_label),
        Flag::list("opt", "Set driver specific options")
            .short('o')
            .typed("map", env::check),
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
    let body = json!({
        "Name": flags.args.first(),
        "Driver": flags.text("driver"),
        "Internal": flags.on("internal"),
        "Attachable": flags.on("attachable"),
        "EnableIPv6": flags.on("ipv6"),
        "IPAM": {
            "Driver": flags.text("ipam-driver"),
            "Config": pools(&flags.list("subnet"), &flags.list("gateway"), &flags.list("ip-range"))?,
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

/// Gateways and ranges belong to the subnet they are in; there is one of each per subnet.
fn pools(subnets: &[&str], gateways: &[&str], ranges: &[&str]) -> Result<Vec<Value>> {
    let mut pools: Vec<(&str, Map<String, Value>)> = Vec::new();
    for subnet in subnets {
        if parse_subnet(subnet).is_none() {
            return Err(CliError::message(format!("invalid CIDR address: {subnet}")));
        }
        if pools.iter().any(|(other, _)| other == subnet) {
            return Err(CliError::message(
                "multiple overlapping subnet configuration is not supported",
            ));
        }
        let pool = Map::from_iter([("Subnet".to_owned(), Value::from(*subnet))]);
        pools.push((subnet, pool));
    }
    let mut place = |kind: &str, key: &str, value: &str| -> Result {
        let address = value.split('/').next().unwrap_or_default();
        let pool = pools
            .iter_mut()
            .find(|(subnet, _)| contains(subnet, address));
        let Some((subnet, pool)) = pool else {
            return Err(CliError::message(format!(
                "no matching subnet for {kind} {value}"
            )));
        };
        if pool.insert(key.to_owned(), Value::from(value)).is_some() {
            return Err(CliError::message(format!(
                "cannot configure multiple {kind}s on the same subnet ({subnet})"
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
    let pruned = run_prune(cli, &flags.list("filter")).await?;
    cli.print(&pruned.listing())
}

/// Removes networks that no container uses.
pub(crate) async fn run_prune(cli: &Cli, filters: &[&str]) -> Result<Pruned> {
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
        let subnets = ["10.1.0.0/16", "fd00::/64"];
        let found = pools(&subnets, &["fd00::1", "10.1.0.1"], &["10.1.2.0/24"]).unwrap();
        assert_eq!(
            Value::Array(found),
            json!([
                {"Subnet": "10.1.0.0/16", "IPRange": "10.1.2.0/24", "Gateway": "10.1.0.1"},
                {"Subnet": "fd00::/64", "Gateway": "fd00::1"},
            ])
        );
        assert_eq!(
            pools(&subnets, &["10.2.0.1"], &[]).unwrap_err().to_string(),
            "no matching subnet for gateway 10.2.0.1"
        );
        assert!(pools(&["10.1.0.0"], &[], &[]).is_err());
        assert!(contains("0.0.0.0/0", "9.9.9.9") && contains("::/0", "1::"));
    }
}
