//! The host's own firewall, as far as it concerns us: which chains drop by default what arrives at
//! the host or passes through it, in whatever table (nftables, iptables-nft, firewalld, ufw).
//!
//! A packet to a published port is translated before it is routed, so that it passes the host's
//! `forward` chains and never its `input` chains. Where one of those drops by default, that would be a
//! way past it. The rule set therefore has a set of the families whose input is `guarded` so: what
//! comes from outside by them is not translated but arrives at the port's socket like any other
//! connection to this host, where the host's rules decide, and the userland proxy carries it on.
//! [`watch_firewall`] keeps that up to date. Chains of the older iptables (`xtables-legacy`) cannot be
//! seen here.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, netlink};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

use crate::bridge::restore_bridge;
use crate::endpoint::{Driver, EndpointSpec};
use crate::netlink::Socket;
use crate::nft::{self, Chain, Hook, Step};
use crate::{NetworkError, Result, conntrack, ruleset};

/// How deep unconditional jumps are followed.
const DEPTH: usize = 8;
/// A mask of `NFNLGRP_NFTABLES`, which is 7.
const GROUPS: u32 = 1 << (7 - 1);
/// A firewall is loaded in many messages: how long to wait for the rest, in milliseconds. By chance, as
/// all supervisors hear of it at the same moment.
const SETTLE: std::ops::Range<u64> = 20..100;
/// Enough for the headers that are looked at; what does not fit is taken for a change.
const EVENTS: usize = 8 * 1024;

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

/// Tells the table which families' input is guarded at present.
pub(crate) fn guard(netfilter: &mut Socket, table: &str) -> Result<()> {
    let chains = nft::chains(netfilter)?;
    let mut guarded = |ipv6| Ok(!drops_among(netfilter, &chains, Path::Input, ipv6)?.is_empty());
    let (v4, v6) = (guarded(false)?, guarded(true)?);
    if ruleset::guard(netfilter, table, v4, v6)? {
        // Flows that are translated already would go on past the input rules as long as they last.
        let ports = ruleset::udp_ports(netfilter, table)?;
        conntrack::forget(netfilter, &ports)?;
    }
    Ok(())
}

/// Keeps published ports what they should be while the host's firewall changes: looks again at what it
/// drops by default, and puts the endpoint's bridge and ports back into the table when somebody has
/// flushed it (`nft flush ruleset`). `looked` is called after every look. Never completes unless it cannot
/// watch. Must run on a Tokio runtime with I/O and time, in the host's network namespace.
pub async fn watch_firewall(spec: EndpointSpec, looked: impl Fn()) -> NetworkError {
    let watcher = match open() {
        Ok(watcher) => watcher,
        Err(source) => return failed(source),
    };
    // Between the endpoint's start and the watch, something may have changed.
    let mut changed = true;
    loop {
        if changed {
            let settle = Duration::from_millis(rand::random_range(SETTLE));
            tokio::time::sleep(settle).await;
            // Ours among them.
            let _: bool = drain(watcher.get_ref());
            if let Err(error) = restore(&spec) {
                tracing::warn!(%error, "published ports may not be as the firewall wants them");
            }
            looked();
        }
        match watcher.readable().await {
            Ok(mut ready) => {
                changed = drain(watcher.get_ref());
                ready.clear_ready();
            }
            Err(source) => return failed(source),
        }
    }
}

fn restore(spec: &EndpointSpec) -> Result<()> {
    let Driver::Bridge(bridge) = &spec.driver else {
        return Ok(());
    };
    let mut netfilter = Socket::netfilter()?;
    if !ruleset::stands(&mut netfilter, bridge)? {
        // The network itself may be gone; it is not for us to bring back.
        if !restore_bridge(bridge)? {
            return Ok(());
        }
        tracing::info!(table = bridge.table, "rules were flushed and are back");
        return spec.publish(&mut netfilter);
    }
    guard(&mut netfilter, &bridge.table)
}

fn failed(source: io::Error) -> NetworkError {
    NetworkError::Netlink {
        action: "watch",
        object: "the host's firewall".to_owned(),
        detail: None,
        source,
    }
}

fn open() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        flags,
        Some(netlink::NETFILTER),
    )?;
    // Without, it is woken more often than it need be, and looks at what it has got.
    if let Err(error) = crate::sys::attach_filter(fd.as_fd(), &mut nft::wakes()) {
        tracing::debug!(%error, "filter of the firewall's events");
    }
    rustix::net::bind(&fd, &netlink::SocketAddrNetlink::new(0, GROUPS))?;
    crate::sys::watch(fd)
}

/// Reads all that is there; whether any of it may have changed what is dropped by default.
fn drain(socket: &OwnedFd) -> bool {
    let mut changed = false;
    let mut buffer = [0u8; EVENTS];
    loop {
        match rustix::net::recv(
            socket,
            &mut buffer[..],
            RecvFlags::DONTWAIT | RecvFlags::TRUNC,
        ) {
            Ok((_, length)) => {
                let fits = buffer.get(..length);
                changed |= fits.is_none_or(nft::changes_rules);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return changed,
            // Too much came at once, for example.
            Err(rustix::io::Errno::NOBUFS) => changed = true,
            Err(error) => {
                tracing::debug!(%error, "events of the firewall");
                return changed;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::NetNs;

    fn nft(script: &str) {
        let done = Command::new("nft").arg(script).status();
        assert!(done.unwrap().success(), "{script}");
    }

    /// How many packets the socket has got, and whether they are taken for a change.
    fn got(socket: &OwnedFd) -> (usize, bool) {
        let mut buffer = [0u8; 64 * 1024];
        let (mut count, mut changed) = (0, false);
        while let Ok((length, _)) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::DONTWAIT)
        {
            count += 1;
            changed |= nft::changes_rules(&buffer[..length]);
        }
        (count, changed)
    }

    #[test]
    fn only_changes_of_rules_wake_anybody() {
        let check = || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let _entered = runtime.enter();
            let watcher = open().unwrap();
            let elements = |n: std::ops::Range<u32>| {
                let list: Vec<_> = n.map(|n| format!("10.0.{}.{}", n / 256, n % 256)).collect();
                list.join(", ")
            };
            let many = elements(1000..1500);
            for (script, wakes) in [
                ("add table inet fw", true),
                ("add set inet fw hosts { type ipv4_addr; }", false),
                ("add element inet fw hosts { 192.0.2.1 }", false),
                (
                    "add element inet fw hosts { 192.0.2.2, 192.0.2.3, 192.0.2.4 }",
                    false,
                ),
                ("delete element inet fw hosts { 192.0.2.2 }", false),
                ("flush set inet fw hosts", false),
                (
                    "add chain inet fw in { type filter hook input priority 0; }",
                    true,
                ),
                ("add rule inet fw in ip saddr @hosts drop", true),
                // Behind others in one packet.
                (
                    "add element inet fw hosts { 192.0.2.5, 192.0.2.6 }; add rule inet fw in drop",
                    true,
                ),
                (
                    &format!("add element inet fw hosts {{ {many} }}; add rule inet fw in drop"),
                    true,
                ),
                ("add chain inet fw in { policy drop; }", true),
                ("flush chain inet fw in", true),
                ("delete chain inet fw in", true),
                ("delete table inet fw", true),
                ("add table inet fw", true),
                ("flush ruleset", true),
            ] {
                nft(script);
                let (count, changed) = got(watcher.get_ref());
                assert_eq!((count > 0, changed), (wakes, wakes), "{script}: {count}");
            }
        };
        NetNs::create().unwrap().run_in(check).unwrap();
    }
}
