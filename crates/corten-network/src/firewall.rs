//! The host's own firewall, as far as it concerns us: which chains drop by default what arrives at
//! the host or passes through it, in whatever table (nftables, iptables-nft, firewalld, ufw).
//!
//! A packet to a published port is translated before it is routed, so that it passes the host's
//! `forward` chains and never its `input` chains. Where one of those drops by default, that would be a
//! way past it. The rule set therefore has a set of the families whose input is `guarded` so: what
//! comes from outside by them is not translated but arrives at the port's socket like any other
//! connection to this host, where the host's rules decide, and the userland proxy carries it on.
//! [`crate::watch_firewall`] keeps that up to date. Chains of the older iptables (`xtables-legacy`) cannot be
//! seen here.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::netlink::Socket;
use crate::nft::{self, Chain, Hook, Step};
use crate::{Result, conntrack, ruleset};

/// How deep unconditional jumps are followed.
const DEPTH: usize = 8;

/// A chain of the host that drops by default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefaultDrop {
    /// The table's family: `inet`, `ip` or `ip6`.
    pub family: String,
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// By its policy; else by its last rule.
    pub by_policy: bool,
}

impl fmt::Display for DefaultDrop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            family,
            table,
            chain,
            by_policy,
        } = self;
        let how = if *by_policy {
            "policy drop"
        } else {
            "last rule"
        };
        write!(f, "chain {chain} of table {family} {table} ({how})")
    }
}

/// What passes a host's filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// To the host itself.
    Input,
    /// Through the host.
    Forward,
    /// From the host itself.
    Output,
}

/// The chains on that path that drop IPv4 (or IPv6) by default.
pub fn default_drops(path: Path, ipv6: bool) -> Result<Vec<DefaultDrop>> {
    let mut socket = Socket::netfilter()?;
    let chains = nft::chains(&mut socket)?;
    drops_among(&mut socket, &chains, path, ipv6)
}

fn drops_among(
    socket: &mut Socket,
    chains: &[Chain],
    path: Path,
    ipv6: bool,
) -> Result<Vec<DefaultDrop>> {
    let hook = match path {
        Path::Input => Hook::Input,
        Path::Forward => Hook::Forward,
        Path::Output => Hook::Output,
    };
    let mut found = Vec::new();
    for chain in chains.iter().filter(|c| c.filters(hook, ipv6)) {
        let by_policy = chain.drops;
        if by_policy || ends_in_drop(socket, chain, &chain.name, DEPTH)? {
            found.push(DefaultDrop {
                family: chain.family_name().to_owned(),
                table: chain.table.clone(),
                chain: chain.name.clone(),
                by_policy,
            });
        }
    }
    Ok(found)
}

/// Whether a chain's last rule stops whatever gets to it.
fn ends_in_drop(socket: &mut Socket, base: &Chain, chain: &str, depth: usize) -> Result<bool> {
    let last = match nft::last_rule(socket, base, chain) {
        // The table is being replaced at this moment; whoever watches will look again.
        Err(error) if nft::is_absent(&error) => return Ok(false),
        found => found?,
    };
    for step in last {
        match step {
            Step::Passive => {}
            Step::Drop => return Ok(true),
            Step::Jump(to) if depth > 0 => return ends_in_drop(socket, base, &to, depth - 1),
            Step::Jump(_) | Step::Other => return Ok(false),
        }
    }
    Ok(false)
}

/// What the table is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Only which families are guarded now.
    More,
    /// Which are, and which are not any more.
    Both,
}

/// Tells the table which families' input is guarded at present.
pub(crate) fn guard(netfilter: &mut Socket, table: &str, change: Change) -> Result<()> {
    let chains = nft::chains(netfilter)?;
    let mut guarded = |ipv6| Ok(!drops_among(netfilter, &chains, Path::Input, ipv6)?.is_empty());
    let (v4, v6) = (guarded(false)?, guarded(true)?);
    if ruleset::guard(netfilter, table, [v4, v6], change)? {
        forget_flows(netfilter, table)?;
    }
    Ok(())
}

/// The same for a table that is new: as if every family had been guarded, of which there is only to say
/// which are not.
pub(crate) fn guard_new(netfilter: &mut Socket, table: &str) -> Result<()> {
    guard(netfilter, table, Change::Both)?;
    // Only the rules may be new.
    forget_flows(netfilter, table)
}

/// Flows that are translated already would go on past the input rules as long as they last.
fn forget_flows(netfilter: &mut Socket, table: &str) -> Result<()> {
    let ports = ruleset::udp_ports(netfilter, table)?;
    conntrack::forget(netfilter, &ports)
}
