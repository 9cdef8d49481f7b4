//! Removing everything of an engine, after its containers.

use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::containers::{row as containers, state};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::networks::{row as networks, shared};

type Result<T> = std::result::Result<T, EngineError>;

/// Files of the root that the user wrote.
const KEPT: &[&str] = &["engine.toml", "registries.toml"];

/// How long supervisors may take to delete what removed containers have left, or to end what was started
/// meanwhile.
const LEAVING: Duration = Duration::from_secs(30);
const ASK: Duration = Duration::from_millis(5);
/// How long whoever still writes files there may go on.
const WRITING: Duration = Duration::from_secs(5);

/// Removes network, control group and files. Blocks.
pub(super) fn reset(engine: &Engine) -> Result<()> {
    let layout = engine.layout();
    crate::sweep::quick(engine);
    // What is on the host goes as far as it can, whatever fails; the files, which tell the
    // next attempt what there was, only when all of it has gone.
    leave_the_host(engine)?;
    // From here on nobody starts anything: who has begun to by now has a lock, or finds that this is gone.
    without(&layout.database(), || match end_stragglers(engine)? {
        true => leave_the_host(engine),
        false => Ok(()),
    })?;
    crate::sweep::remove_cgroup(&layout.cgroup_parent());
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

/// Does something while a file is not where others look for it; if that fails, it is there again.
fn without(path: &Path, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let aside = path.with_extension("reset");
    let there = match std::fs::rename(path, &aside) {
        Ok(()) => true,
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) => return Err(io("rename", path)(error)),
    };
    let done = work();
    if done.is_err()
        && there
        && let Err(error) = std::fs::rename(&aside, path)
    {
        tracing::error!(path = %aside.display(), %error, "it cannot be put back");
    }
    done
}

/// Removes what is not in files.
fn leave_the_host(engine: &Engine) -> Result<()> {
    let layout = engine.layout();
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
    failed.map_or(Ok(()), Err)
}

/// Removes containers that somebody has started since all were removed, and waits for supervisors:
/// those of removed ones may still be deleting files. Whether there was anything of the former.
fn end_stragglers(engine: &Engine) -> Result<bool> {
    let deadline = Instant::now() + LEAVING;
    let mut any = false;
    loop {
        let lives = |id: &String| state::has_supervisor(engine, id);
        let living = crate::sweep::run_directories(engine)
            .into_iter()
            .find(lives);
        // By the rows as this process has them open still.
        let rows = engine.database().read(|c| containers::all(c, false))?;
        if !rows.is_empty() && Instant::now() < deadline {
            any = true;
            let all = engine.containers();
            tokio::runtime::Handle::current().block_on(all.remove_all())?;
            std::thread::sleep(ASK);
            continue;
        }
        let Some(id) = living else {
            return Ok(any);
        };
        if Instant::now() > deadline {
            tracing::warn!(container = %id, "its supervisor is still there");
            return Ok(any);
        }
        std::thread::sleep(ASK);
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
    let deadline = Instant::now() + WRITING;
    loop {
        let removed = match std::fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_dir() => corten_store::rooted::remove_path(path),
            Ok(_) => std::fs::remove_file(path),
            Err(error) => Err(error),
        };
        match removed {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            // A build puts something there meanwhile. It has just lost what it needs.
            Err(error)
                if error.kind() == ErrorKind::DirectoryNotEmpty && Instant::now() < deadline =>
            {
                std::thread::sleep(ASK);
            }
            Err(error) => return Err(io("remove", path)(error)),
        }
    }
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> EngineError {
    move |source| EngineError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_that_fails_leaves_the_database() {
        let root = tempfile::tempdir().unwrap();
        let database = root.path().join("corten.db");
        std::fs::write(&database, "rows").unwrap();
        let busy = || {
            assert!(!database.exists());
            Err(EngineError::Conflict("busy".to_owned()))
        };
        without(&database, busy).unwrap_err();
        assert_eq!(std::fs::read_to_string(&database).unwrap(), "rows");
        without(&database, || Ok(())).unwrap();
        assert!(!database.exists());
        // Lost before.
        without(&root.path().join("none.db"), || Ok(())).unwrap();
    }
}
