//! Watching over an engine's rules while the host's firewall changes.
//!
//! Every supervisor with a place on a bridge takes part; one of them, whoever has the [`Post`] of the
//! engine's table, listens to nf_tables. It looks again at what the host drops by default, and when the
//! table was flushed (`nft flush ruleset`) it brings back every bridge's part of it and leaves the post.
//! All others wait for the post to be free: each then sees that its own bridge and ports are in the
//! table, and applies for it.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, FileType, FlockOperation, Mode, OFlags};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, netlink};
use tokio::io::unix::AsyncFd;

use crate::bridge::restore_bridge;
use crate::endpoint::{Driver, EndpointSpec};
use crate::netlink::Socket;
use crate::{BridgeSpec, NetworkError, Result, firewall, nft, ruleset};

/// Where the posts are. They mean nothing after a reboot.
const POSTS: &str = "/run/corten-network";
/// A mask of `NFNLGRP_NFTABLES`, which is 7.
const GROUPS: u32 = 1 << (7 - 1);
/// A firewall is loaded in many messages: how long to wait for the rest, in milliseconds. By chance, as
/// many may hear at the same moment that the post is free.
const SETTLE: std::ops::Range<u64> = 20..100;
/// How long after a failure it is tried again.
const AGAIN: Duration = Duration::from_secs(10);
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
    };
    loop {
        settle().await;
        if let Err(error) = watch.round().await {
            tracing::warn!(%error, "changes of the host's firewall may go unnoticed for a while");
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// Forgets the post of a table that is no more.
pub(crate) fn forget(table: &str) {
    if let Ok(path) = path(table)
        && let Err(error) = std::fs::remove_file(&path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!(path = %path.display(), %error, "it stays");
    }
}

async fn settle() {
    let pause = Duration::from_millis(rand::random_range(SETTLE));
    tokio::time::sleep(pause).await;
}

struct Watch<'a> {
    table: &'a str,
    places: &'a dyn Fn() -> Vec<EndpointSpec>,
    bridges: &'a dyn Fn() -> Vec<BridgeSpec>,
    looked: &'a dyn Fn(),
}

impl Watch<'_> {
    /// Until the post is free again.
    async fn round(&self) -> Result<()> {
        let own = self.own(&mut Socket::netfilter()?);
        (self.looked)();
        own?;
        let failed = |source| NetworkError::Lock {
            path: Path::new(POSTS).join(self.table),
            source,
        };
        match Post::of(self.table).map_err(failed)? {
            Post::Taken(fifo) => vacancy(fifo).await.map_err(failed),
            Post::Ours(_held) => self.listen().await,
        }
    }

    /// Listens until everything had to be brought back.
    async fn listen(&self) -> Result<()> {
        let events = open().map_err(failed)?;
        let brought = self.all();
        (self.looked)();
        let mut table = brought?;
        loop {
            let mut ready = events.readable().await.map_err(failed)?;
            let changed = drain(events.get_ref());
            ready.clear_ready();
            if !changed {
                continue;
            }
            settle().await;
            // Ours among them.
            let _: bool = drain(events.get_ref());
            let mut netfilter = Socket::netfilter()?;
            let now = nft::table_handle(&mut netfilter, self.table)?;
            if now.is_none() || now != table {
                table = self.all()?;
                (self.looked)();
                tracing::info!(table = self.table, handle = ?table, "rules were flushed and are back");
                // The others may have ports to bring back.
                return Ok(());
            }
            let guarded = firewall::guard(&mut netfilter, self.table);
            (self.looked)();
            guarded?;
        }
    }

    /// Brings back what is missing of all; which table it is.
    fn all(&self) -> Result<Option<u64>> {
        let mut netfilter = Socket::netfilter()?;
        let mut failed = Ok(());
        for bridge in (self.bridges)() {
            let brought = match ruleset::stands(&mut netfilter, &bridge) {
                Ok(true) => Ok(()),
                // A network that is gone is not for us to bring back.
                Ok(false) => restore_bridge(&bridge).map(|_| ()),
                Err(error) => Err(error),
            };
            failed = failed.and(brought);
        }
        failed.and(self.own(&mut netfilter))?;
        let table = nft::table_handle(&mut netfilter, self.table)?;
        if table.is_some() {
            firewall::guard(&mut netfilter, self.table)?;
        }
        Ok(table)
    }

    /// Brings back what is missing of the own places.
    fn own(&self, netfilter: &mut Socket) -> Result<()> {
        for place in (self.places)() {
            let Driver::Bridge(bridge) = &place.driver else {
                continue;
            };
            if !ruleset::stands(netfilter, bridge)? && !restore_bridge(bridge)? {
                continue;
            }
            place.publish_missing(netfilter)?;
        }
        Ok(())
    }
}

/// Who listens for all: a pipe with a name, whose writer has the lock on it. That its reader has no
/// writer any more is what tells that the post is free.
#[derive(Debug)]
enum Post {
    Ours(#[allow(dead_code, reason = "held")] Held),
    /// The pipe's end that is read.
    Taken(OwnedFd),
}

#[derive(Debug)]
struct Held {
    path: PathBuf,
    /// Locked.
    _writer: File,
}

impl Drop for Held {
    fn drop(&mut self) {
        // Nobody else does, while it is locked. Those who wait are told when it is closed.
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "it stays");
        }
    }
}

impl Post {
    fn of(table: &str) -> io::Result<Self> {
        let path = path(table)?;
        loop {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let reader = match rustix::fs::open(&path, flags, Mode::empty()) {
                Err(rustix::io::Errno::NOENT) => {
                    make(&path)?;
                    continue;
                }
                opened => opened?,
            };
            // Of the very same pipe. Before the lock, so that none who sees it taken misses the end.
            let same = format!("/proc/self/fd/{}", reader.as_raw_fd());
            let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let writer = File::from(rustix::fs::open(same, flags, Mode::empty())?);
            match rustix::fs::flock(&writer, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if is_at(&path, &writer) => {
                    let _writer = writer;
                    return Ok(Self::Ours(Held { path, _writer }));
                }
                // Whoever had it has removed it.
                Ok(()) | Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(Self::Taken(reader)),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The pipe of a table of this network namespace.
fn path(table: &str) -> io::Result<PathBuf> {
    let namespace = std::fs::metadata("/proc/thread-self/ns/net")?.ino();
    Ok(Path::new(POSTS).join(format!("{table}.{namespace}")))
}

fn make(path: &Path) -> io::Result<()> {
    let mut directory = std::fs::DirBuilder::new();
    directory.recursive(true).mode(0o700).create(POSTS)?;
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::mknodat(CWD, path, FileType::Fifo, mode, 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn is_at(path: &Path, file: &File) -> bool {
    let there = std::fs::symlink_metadata(path);
    let ours = file.metadata();
    matches!((there, ours), (Ok(a), Ok(b)) if (a.dev(), a.ino()) == (b.dev(), b.ino()))
}

/// Has the pipe no writer?
fn is_free(mut reader: &File) -> bool {
    // Nothing is ever written to it.
    matches!(reader.read(&mut [0; 1]), Ok(0))
}

/// Waits until the post is free.
async fn vacancy(reader: OwnedFd) -> io::Result<()> {
    let reader = crate::sys::watch(reader)?;
    loop {
        let mut ready = reader.readable().await?;
        if is_free(&File::from(reader.get_ref().try_clone()?)) {
            return Ok(());
        }
        ready.clear_ready();
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
