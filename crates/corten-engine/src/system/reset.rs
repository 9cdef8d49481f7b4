//! Removing everything of an engine, after its containers.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::containers::state;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::networks::{row as networks, shared};

type Result<T> = std::result::Result<T, EngineError>;

/// Files of the root that the user wrote.
const KEPT: &[&str] = &["registries.toml"];

/// How long supervisors may take to delete what removed containers have left.
const LEAVING: Duration = Duration::from_secs(30);
const ASK: Duration = Duration::from_millis(5);

/// Removes network, control group and files. Blocks.
pub(super) fn reset(engine: &Engine) -> Result<()> {
    let layout = engine.layout();
    crate::sweep::quick(engine);
    // What is on the host goes as far as it can, whatever fails; the files, which tell the
    // next attempt what there was, only when all of it has gone.
    let mut failed = None;
    let mut step = |result: Result<()>| {
        if let Err(error) = result {
            tracing::warn!(%error, "a part of the reset failed");
            failed.get_or_insert(error);
        }
    };
    step(crate::sweep::network(engine, None).map(drop));
    step(remove_links(engine));
    // Also when the database that knew it has been lost.
    for link in std::iter::once(layout.bridge()).chain(our_bridges(engine)) {
        let removed = corten_network::remove_link(&link);
        step(removed.map(drop).map_err(EngineError::from));
    }
    step(corten_network::remove_table(&layout.table()).map_err(EngineError::from));
    crate::sweep::remove_cgroup(&layout.cgroup_parent());
    if let Some(error) = failed {
        return Err(error);
    }
    await_supervisors(engine);
    engine.store().await_deletion();
    remove(layout.run())?;
    let entries = std::fs::read_dir(layout.root()).map_err(io("read", layout.root()))?;
    for entry in entries {
        let entry = entry.map_err(io("read", layout.root()))?;
        if !KEPT.iter().any(|kept| entry.file_name() == *kept) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Supervisors of containers that are removed already may still be deleting their files.
fn await_supervisors(engine: &Engine) {
    let deadline = Instant::now() + LEAVING;
    for id in crate::sweep::run_directories(engine) {
        while state::has_supervisor(engine, &id) {
            if Instant::now() > deadline {
                tracing::warn!(container = %id, "its supervisor is still there");
                return;
            }
            std::thread::sleep(ASK);
        }
    }
}

/// The links of this host that have names of this engine's bridges.
fn our_bridges(engine: &Engine) -> Vec<String> {
    let prefix = engine.layout().bridge_prefix();
    let links = std::fs::read_dir("/sys/class/net").into_iter().flatten();
    links
        .flatten()
        .filter(|link| link.path().join("bridge").exists())
        .filter_map(|link| link.file_name().into_string().ok())
        .filter(|name| name.starts_with(&prefix))
        .collect()
}

fn remove_links(engine: &Engine) -> Result<()> {
    for row in engine.database().read(networks::all)? {
        if row.driver == "bridge" {
            corten_network::remove_bridge(&row.spec(engine)?)?;
        }
    }
    for parent in corten_network::parents_of(&engine.layout().table())? {
        shared::remove_parent(engine, &parent)?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => corten_store::rooted::remove_path(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> EngineError {
    move |source| EngineError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}
