//! Sweeping: removing what processes that died left behind.
//!
//! [`quick`] looks only at the run directories: one per supervisor, living or dead. It runs
//! at the start of commands that change state. [`check`] looks at everything.
//!
//! Whether something is orphaned is decided by locks and rows, in an order that makes races
//! harmless: what is about to be used is locked (containers) or has a row (addresses)
//! before it exists. Sweeping the network excludes allocating addresses meanwhile, by a lock
//! of its own ([`NetworkLock`]).

mod check;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;

use corten_db::Durability;
use corten_runtime::Cgroup;
use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::containers::{row, state};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::networks::{row as networks, shared};
use crate::volumes::removal;

pub(crate) use check::check;

type Result<T> = std::result::Result<T, EngineError>;

/// Held shared while a bridge is brought up and an address allocated on it, exclusively while
/// networks are swept or removed.
#[derive(Debug)]
pub(crate) struct NetworkLock(#[allow(dead_code)] OwnedFd);

impl NetworkLock {
    /// For allocating an address.
    pub(crate) fn shared(engine: &Engine) -> Result<Self> {
        Self::take(engine, FlockOperation::LockShared)
    }

    /// While networks are swept, or one is removed.
    pub(crate) fn exclusive(engine: &Engine) -> Result<Self> {
        Self::take(engine, FlockOperation::LockExclusive)
    }

    fn take(engine: &Engine, operation: FlockOperation) -> Result<Self> {
        let path = engine.layout().run().join("network.lock");
        let io = |action: &'static str| {
            let path = path.clone();
            move |source: std::io::Error| EngineError::Io {
                action,
                path,
                source,
            }
        };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let open = || rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR);
        let fd = match open() {
            Err(rustix::io::Errno::NOENT) => {
                std::fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o711)
                    .create(engine.layout().run())
                    .map_err(io("create"))?;
                open()
            }
            other => other,
        }
        .map_err(|e| io("open")(e.into()))?;
        rustix::fs::flock(&fd, operation).map_err(|e| io("lock")(e.into()))?;
        Ok(Self(fd))
    }
}

/// The ids of the run directories.
pub(crate) fn run_directories(engine: &Engine) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(engine.layout().run_containers()) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .collect()
}

/// Cleans up after processes that died: supervisors, builders, removers. Cheap: one lock test
/// per running container, one look at the addresses, at `tmp/` and at volumes with options. Blocks.
pub(crate) fn quick(engine: &Engine) {
    if let Err(error) = builders(engine) {
        tracing::warn!(%error, "addresses of build steps are left to be swept");
    }
    if let Err(error) = removal::settle(engine) {
        tracing::warn!(%error, "what is aside of volumes stays there to be swept");
    }
    removal::unmount_removed(engine);
    engine.store().sweep_directories();
    for id in run_directories(engine) {
        if state::has_supervisor(engine, &id) {
            continue;
        }
        if let Err(error) = bury_run_directory(engine, &id) {
            tracing::warn!(container = %id, %error, "what it left stays to be swept");
        }
    }
    // After their users have been buried.
    if let Err(error) = crate::volumes::hold::sweep(engine) {
        tracing::warn!(%error, "what is mounted on volumes is left to be swept");
    }
}

/// Cleans up what belongs to a run directory whose supervisor is dead.
fn bury_run_directory(engine: &Engine, id: &str) -> Result<()> {
    let Some(mut container) = engine.database().read(|c| row::get(c, id))? else {
        // Removed meanwhile, or before its supervisor had finished with it.
        let Some(_lock) = state::try_lock(engine, id)? else {
            return Ok(());
        };
        remove_cgroup(&format!("{}/{id}", engine.layout().cgroup_parent()));
        // Before the address can be somebody else's, to whom its ports would lead.
        network(engine, Some(id))?;
        engine.write(Durability::Relaxed, |c| networks::release(c, id))?;
        state::end_run(engine, id);
        return Ok(());
    };
    if container.status.is_live() {
        return state::reconcile(engine, &mut container);
    }
    // It died while starting, or just after the end.
    let Some(_lock) = state::try_lock(engine, id)? else {
        return Ok(());
    };
    state::kill_all(engine, &container);
    state::release_network(engine, &container);
    engine.write(Durability::Relaxed, |c| networks::release(c, id))?;
    state::end_run(engine, id);
    Ok(())
}

/// Kills everything in a control group and removes it. Absent is fine.
pub(crate) fn remove_cgroup(path: &str) {
    let removed = Cgroup::open(path).and_then(|group| {
        if !group.exists() {
            return Ok(());
        }
        group.kill_all()?;
        group.remove()
    });
    if let Err(error) = removed {
        tracing::warn!(cgroup = path, %error, "a control group is left");
    }
}

/// The processes in a control group; none when it does not exist.
pub(crate) fn cgroup_pids(path: &str) -> Vec<i32> {
    Cgroup::open(path)
        .and_then(|group| group.pids())
        .unwrap_or_default()
}

/// Removes links and published ports of containers and steps that are no more; what was
/// removed, one line each. `buried`: a container whose lock the caller holds to clean up
/// after it, which therefore looks alive. Blocks.
pub(crate) fn network(engine: &Engine, buried: Option<&str>) -> Result<Vec<String>> {
    let _lock = NetworkLock::exclusive(engine)?;
    let owners = Owners::read(engine, buried)?;
    let table = engine.layout().table();
    let bridges = bridges(engine)?;
    let removed = corten_network::sweep(&table, &bridges, &owners.links, &owners.addresses)?;
    if !owners.dead.is_empty() {
        engine.write(Durability::Relaxed, |c| {
            for owner in &owners.dead {
                networks::release(c, owner)?;
            }
            Ok(())
        })?;
    }
    let parents = shared::orphans(engine)?;
    for parent in &parents {
        shared::remove_parent(engine, parent)?;
    }
    let parents = parents.into_iter().map(|name| format!("link {name}"));
    Ok(removed
        .into_iter()
        .chain(parents)
        .chain(owners.told())
        .collect())
}

/// Cleans up after builders that died. Blocks.
pub(crate) fn builders(engine: &Engine) -> Result<()> {
    let owners: Vec<String> = engine.database().read(|c| {
        let mut statement =
            c.prepare_cached("SELECT owner FROM addresses WHERE instr(owner, '@')")?;
        let rows = statement.query_map([], |r| r.get(0))?;
        Ok::<_, EngineError>(rows.collect::<rusqlite::Result<_>>()?)
    })?;
    if owners.iter().any(|owner| !is_alive(engine, owner)) {
        network(engine, None)?;
    }
    Ok(())
}

/// What [`network`] would remove. Blocks.
pub(crate) fn network_orphans(engine: &Engine) -> Result<Vec<String>> {
    let _lock = NetworkLock::exclusive(engine)?;
    let owners = Owners::read(engine, None)?;
    let table = engine.layout().table();
    let bridges = bridges(engine)?;
    let found = corten_network::orphans(&table, &bridges, &owners.links, &owners.addresses)?;
    let parents = shared::orphans(engine)?.into_iter();
    let parents = parents.map(|name| format!("link {name}"));
    Ok(found
        .into_iter()
        .chain(parents)
        .chain(owners.told())
        .collect())
}

/// The links of all networks.
fn bridges(engine: &Engine) -> Result<Vec<String>> {
    let rows = engine.database().read(networks::all)?;
    let bridges = rows.iter().filter(|row| row.driver == "bridge");
    Ok(bridges.map(|row| row.bridge(engine)).collect())
}

/// Who has addresses.
struct Owners {
    /// Host ends of the living.
    links: BTreeSet<String>,
    /// Addresses of the living.
    addresses: BTreeSet<IpAddr>,
    dead: Vec<String>,
}

impl Owners {
    fn told(self) -> impl Iterator<Item = String> {
        self.dead
            .into_iter()
            .map(|owner| format!("address of {owner}"))
    }

    fn read(engine: &Engine, buried: Option<&str>) -> Result<Self> {
        let rows: Vec<(String, String, String)> = engine.database().read(|c| {
            let mut statement =
                c.prepare_cached("SELECT owner, address, network FROM addresses")?;
            let rows = statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?;
            Ok::<_, EngineError>(rows.collect::<rusqlite::Result<_>>()?)
        })?;
        let mut owners = Self {
            links: BTreeSet::new(),
            addresses: BTreeSet::new(),
            dead: Vec::new(),
        };
        for (owner, address, network) in rows {
            if buried != Some(owner.as_str()) && is_alive(engine, &owner) {
                let id = owner.strip_prefix("build-").unwrap_or(&owner);
                // Which of the two it is follows from the network; the other one is nobody's.
                owners.links.insert(engine.layout().veth(id));
                owners.links.insert(engine.layout().veth_on(id, &network));
                owners.addresses.extend(address.parse::<IpAddr>());
            } else {
                owners.dead.push(owner);
            }
        }
        Ok(owners)
    }
}

/// Whether the owner of an address lives: a container with a supervisor, or a step's builder.
pub(crate) fn is_alive(engine: &Engine, owner: &str) -> bool {
    match owner.split_once('@') {
        None => state::has_supervisor(engine, owner),
        Some((_, process)) => process_lives(process),
    }
}

/// This process, as [`process_lives`] knows it.
pub(crate) fn this_process() -> String {
    let pid = std::process::id();
    format!("{pid}.{}", start_time(pid).unwrap_or(0))
}

/// Whether a process that [`this_process`] named lives.
pub(crate) fn process_lives(process: &str) -> bool {
    process
        .split_once('.')
        .and_then(|(pid, start)| Some((pid.parse().ok()?, start.parse().ok()?)))
        .is_some_and(|(pid, start): (u32, u64)| start_time(pid) == Some(start))
}

/// When a process started, in clock ticks since boot; with its pid it is unique.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(19)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_its_pid_and_start() {
        let me = std::process::id();
        assert!(start_time(me).is_some());
        assert_eq!(start_time(me), start_time(me));
        assert_eq!(start_time(u32::MAX), None);
    }
}
