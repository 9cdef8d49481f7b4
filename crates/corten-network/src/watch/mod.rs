//! Watching over an engine's rules while the host's firewall changes.
//!
//! Every supervisor with a place on a bridge takes part; one of them, whoever has the [`Post`] of the
//! engine's table, listens to nf_tables. It looks again at what the host drops by default, and when the
//! table was flushed (`nft flush ruleset`) it brings back every bridge's part of it and calls the others, without
//! leaving the post: each then sees that its own bridge and ports are in the table. When the post is free, all
//! of them apply for it at once: until one has it and has looked, what is loaded goes unnoticed.
//!
//! Nothing is missed between two listeners: whoever applies listens before it has the post, looks at everything
//! once, and calls if the table is another one since; whoever waits looks once it has seen that somebody has it.

mod post;

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, netlink};
use tokio::io::unix::AsyncFd;

use self::post::{End, Held, POSTS, Post, Taken};
use crate::bridge::{restore_bridge, restore_own_bridge};
use crate::endpoint::{Driver, EndpointSpec};
use crate::firewall::{self, Change};
use crate::netlink::Socket;
use crate::{BridgeSpec, NetworkError, Result, nft, ruleset};

pub(crate) use self::post::forget;

/// A mask of `NFNLGRP_NFTABLES`, which is 7.
const GROUPS: u32 = 1 << (7 - 1);
/// A firewall is loaded in many messages: how long to wait for the rest, in milliseconds. By chance, as
/// many may hear at the same moment that the post is free.
const SETTLE: std::ops::Range<u64> = 20..100;
/// How long after a failure it is tried again. A table that is flushed while it is looked at is one.
const SOON: Duration = Duration::from_millis(100);
/// The same after many: each time it is twice as long.
const LATE: Duration = Duration::from_secs(10);
/// How long it is at least from one look at what is dropped by default to the next, while a firewall is
/// loaded.
const BREATH: Duration = Duration::from_millis(5);
/// How often in a row a listener calls the others because something was missing.
const CALLS: u32 = 8;
/// Enough for the headers that are looked at; what does not fit is taken for a change.
const EVENTS: usize = 8 * 1024;

/// Keeps the rules of places on bridges of one engine what they should be, together with whoever else
/// does so for others of that engine. `places`: the own ones, as they are now; `bridges`: all that the
/// engine has, as far as they are known. `looked` is called whenever something was looked at. Never
/// completes. Must run on a Tokio runtime with I/O and time, in the host's network namespace.
pub async fn watch_firewall(
    table: String,
    places: impl Fn() -> Vec<EndpointSpec>,
    bridges: impl Fn() -> Vec<BridgeSpec>,
    looked: impl Fn(),
) -> Infallible {
    let watch = Watch {
        table: &table,
        places: &places,
        bridges: &bridges,
        looked: &looked,
        seen: Cell::new(None),
        at_once: Cell::new(false),
    };
    let mut again = Again::default();
    loop {
        if !watch.at_once.take() {
            tokio::time::sleep(pause()).await;
        }
        let began = Instant::now();
        let done = watch.round().await;
        (watch.looked)();
        if began.elapsed() > LATE {
            again = Again::default();
        }
        if let Err(error) = done {
            let pause = again.pause();
            match pause < Duration::from_secs(1) {
                true => tracing::debug!(%error, "the host's firewall is changing"),
                false => {
                    tracing::warn!(%error, "changes of the host's firewall may go unnoticed for a while")
                }
            }
            tokio::time::sleep(pause).await;
        }
    }
}

fn pause() -> Duration {
    Duration::from_millis(rand::random_range(SETTLE))
}

/// Pauses between attempts.
#[derive(Debug)]
struct Again(Duration);

impl Default for Again {
    fn default() -> Self {
        Self(SOON)
    }
}

impl Again {
    fn pause(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(LATE);
        pause
    }
}

struct Watch<'a> {
    table: &'a str,
    places: &'a dyn Fn() -> Vec<EndpointSpec>,
    bridges: &'a dyn Fn() -> Vec<BridgeSpec>,
    looked: &'a dyn Fn(),
    /// The table's handle when all of the own places was in it.
    seen: Cell<Option<u64>>,
    /// Whether nobody listens: the post is to be applied for without a pause.
    at_once: Cell<bool>,
}

impl Watch<'_> {
    /// Until the post is free again.
    async fn round(&self) -> Result<()> {
        // All who wait hear of its end at once, of whom one only is to go to any lengths.
        if let Some(taken) = Taken::of(self.table).map_err(|e| self.post(e))? {
            return self.wait(taken).await;
        }
        let events = open().map_err(failed)?;
        let table = nft::table_handle(&mut Socket::netfilter()?, self.table)?;
        match Post::of(self.table).map_err(|e| self.post(e))? {
            Post::Taken(taken) => {
                drop(events);
                self.wait(taken).await
            }
            Post::Ours(held) => self.listen(held, &events, table).await,
        }
    }

    /// Looks after the own places, once somebody listens, and waits for his end.
    async fn wait(&self, taken: Taken) -> Result<()> {
        {
            let mut netfilter = Socket::netfilter()?;
            let now = nft::table_handle(&mut netfilter, self.table)?;
            if now.is_none() || now != self.seen.get() {
                self.own(&mut netfilter)?;
                let table = nft::table_handle(&mut netfilter, self.table)?;
                self.seen.set(table);
            }
        }
        (self.looked)();
        let end = taken.end().await.map_err(|e| self.post(e))?;
        self.at_once.set(end != End::Called);
        if end != End::Left {
            self.seen.set(None);
        }
        Ok(())
    }

    /// Listens. `known`: the table when nobody else did.
    async fn listen(
        &self,
        mut held: Held,
        events: &AsyncFd<OwnedFd>,
        mut known: Option<u64>,
    ) -> Result<()> {
        let (mut first, mut calls) = (true, 0);
        let mut again = Again::default();
        loop {
            let found = self.keep(known, first);
            (self.looked)();
            let found = match found {
                // Flushed while it was looked at.
                Err(error) if nft::is_absent(&error) => {
                    tracing::debug!(%error, "the host's firewall is changing");
                    Found {
                        table: known,
                        brought: false,
                        failed: true,
                    }
                }
                found => {
                    first = false;
                    found?
                }
            };
            let owed = held.owes_a_call().map_err(|e| self.post(e))?;
            if !found.brought && found.table == known && !owed {
                calls = 0;
            } else if calls < CALLS {
                calls += 1;
                let handle = found.table;
                tracing::info!(
                    table = self.table,
                    ?handle,
                    "rules were flushed and are back"
                );
                // The others may have ports to bring back.
                held.call().map_err(|e| self.post(e))?;
            } else if calls == CALLS {
                calls += 1;
                tracing::warn!(table = self.table, "rules are missing again and again");
            }
            known = found.table;
            let pause = match found.failed {
                true => Some(again.pause()),
                false => None,
            };
            if pause.is_none() {
                again = Again::default();
                self.seen.set(known);
            }
            if heard(events, pause).await.map_err(failed)? {
                self.settle(events).await?;
            }
        }
    }

    /// Waits until a firewall is loaded. What it drops by default must not get by while the rest of it is waited
    /// for.
    async fn settle(&self, events: &AsyncFd<OwnedFd>) -> Result<()> {
        let settled = tokio::time::Instant::now() + pause();
        loop {
            let began = Instant::now();
            let more = Socket::netfilter().and_then(|mut netfilter| {
                firewall::guard(&mut netfilter, self.table, Change::More)
            });
            if let Err(error) = more {
                tracing::debug!(%error, "looked at once more soon");
            }
            // Of a big firewall a look takes its time, which others of this thread want, too.
            tokio::time::sleep(BREATH.max(began.elapsed())).await;
            // While something changes all the time there is always something to hear.
            if tokio::time::Instant::now() >= settled {
                return Ok(());
            }
            match tokio::time::timeout_at(settled, heard(events, None)).await {
                Ok(changed) => changed.map_err(failed)?,
                Err(_) => return Ok(()),
            };
        }
    }

    /// Says what the host drops by default, then brings back what is missing: of the own places, and `all` or
    /// in another table than the one that is known, of all bridges.
    fn keep(&self, known: Option<u64>, all: bool) -> Result<Found> {
        let mut netfilter = Socket::netfilter()?;
        let mut table = nft::table_handle(&mut netfilter, self.table)?;
        if table.is_some() {
            firewall::guard(&mut netfilter, self.table, Change::Both)?;
        }
        let mut brought = false;
        if all || table.is_none() || table != known {
            for bridge in (self.bridges)() {
                match restore(&mut netfilter, &bridge) {
                    Ok(restored) => brought |= restored,
                    Err(error) => {
                        let bridge = &bridge.bridge;
                        tracing::warn!(bridge, %error, "the rules of a network are not looked after");
                    }
                }
            }
        }
        let own = self.own(&mut netfilter);
        if let Err(error) = &own {
            tracing::warn!(%error, "published ports are not looked after yet");
        }
        brought |= matches!(own, Ok(true));
        if brought || table.is_none() {
            table = nft::table_handle(&mut netfilter, self.table)?;
        }
        Ok(Found {
            table,
            brought,
            failed: own.is_err(),
        })
    }

    /// Brings back what is missing of the own places; whether anything was.
    fn own(&self, netfilter: &mut Socket) -> Result<bool> {
        let mut brought = false;
        for place in (self.places)() {
            let Driver::Bridge(bridge) = &place.driver else {
                continue;
            };
            if !ruleset::stands(netfilter, bridge)? {
                if !restore_bridge(bridge)? {
                    continue;
                }
                brought = true;
            }
            brought |= place.publish_missing(netfilter)?;
        }
        Ok(brought)
    }

    fn post(&self, source: io::Error) -> NetworkError {
        NetworkError::Lock {
            path: Path::new(POSTS).join(self.table),
            source,
        }
    }
}

/// What a listener has found.
struct Found {
    /// Which table it is, by now.
    table: Option<u64>,
    /// Whether anything was missing.
    brought: bool,
    /// Whether something of the own places still is.
    failed: bool,
}

/// Brings back a bridge that may be another's, if it is missing in the table; whether it was.
fn restore(netfilter: &mut Socket, bridge: &BridgeSpec) -> Result<bool> {
    // A network that is gone is not for us to bring back.
    Ok(!ruleset::stands(netfilter, bridge)? && restore_own_bridge(bridge)?)
}

/// Waits until rules have changed, or that long.
async fn heard(events: &AsyncFd<OwnedFd>, pause: Option<Duration>) -> io::Result<bool> {
    let change = async {
        loop {
            let mut ready = events.readable().await?;
            let changed = drain(events.get_ref());
            ready.clear_ready();
            if changed {
                return Ok(());
            }
        }
    };
    match pause {
        Some(pause) => match tokio::time::timeout(pause, change).await {
            Ok(changed) => changed.map(|()| true),
            Err(_) => Ok(false),
        },
        None => change.await.map(|()| true),
    }
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
    use std::sync::atomic::{AtomicBool, Ordering};

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

    /// What is missing meanwhile must come back.
    #[test]
    fn a_firewall_that_changes_all_the_time_is_settled() {
        let check = || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let watch = Watch {
                table: "corten_test",
                places: &Vec::new,
                bridges: &Vec::new,
                looked: &|| {},
                seen: Cell::new(None),
                at_once: Cell::new(false),
            };
            let done = AtomicBool::new(false);
            let change = || {
                let mut netfilter = Socket::netfilter().unwrap();
                while !done.load(Ordering::Relaxed) {
                    let mut change = nft::Transaction::new("fw");
                    change.table();
                    change.delete_table();
                    change.commit(&mut netfilter).unwrap();
                }
            };
            let settled = std::thread::scope(|scope| {
                scope.spawn(change);
                let settled = runtime.block_on(async {
                    let events = open().unwrap();
                    heard(&events, None).await.unwrap();
                    let patience = Duration::from_secs(10);
                    tokio::time::timeout(patience, watch.settle(&events)).await
                });
                done.store(true, Ordering::Relaxed);
                settled
            });
            settled.unwrap().unwrap();
        };
        NetNs::create().unwrap().run_in(check).unwrap();
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
