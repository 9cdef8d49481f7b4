//! `commit` and `export`: a container's files as an image, or as an archive.

use std::path::{Path, PathBuf};

use bollard_stubs::models;
use corten_build::Snapshot;
use corten_oci::{DiffId, Digest, ImageRef};
use corten_store::ImageId;

use super::row::{Container, Status};
use super::{changes, event, state, stop};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::outflow::{self, Outflow};
use crate::parse::{bad, time};

type Result<T> = std::result::Result<T, EngineError>;

/// What to commit, and how.
#[derive(Debug, Clone)]
pub struct CommitOptions {
    /// The image's name; `None`: it gets none.
    pub name: Option<ImageRef>,
    /// Whoever made it.
    pub author: String,
    /// A line for its history.
    pub comment: String,
    /// Dockerfile instructions that change its configuration.
    pub changes: Vec<String>,
    /// A configuration instead of the container's, which fills its gaps.
    pub config: Option<models::ContainerConfig>,
    /// Freeze the container meanwhile.
    pub pause: bool,
}

impl Default for CommitOptions {
    fn default() -> Self {
        Self {
            name: None,
            author: String::new(),
            comment: String::new(),
            changes: Vec::new(),
            config: None,
            pause: true,
        }
    }
}

fn json(what: &str, value: &impl serde::Serialize) -> Result<serde_json::Value> {
    serde_json::to_value(value).map_err(|error| bad(format!("{what}: {error}")))
}

/// What is wrong with instructions is wrong with the request.
pub(crate) fn refused(error: &corten_build::BuildError) -> EngineError {
    bad(error.to_string())
}

/// The digest of a tar without entries: no layer at all.
fn is_empty(layer: &DiffId) -> bool {
    *layer.digest() == Digest::of(&[0; 1024])
}

/// Makes an image of a container.
pub(super) async fn commit(engine: &Engine, name: &str, options: CommitOptions) -> Result<ImageId> {
    let wanted = name.to_owned();
    let container = engine
        .brief(move |engine| state::find(engine, &wanted))
        .await?;
    match container.status {
        Status::Dead => {
            return Err(EngineError::Conflict(format!(
                "You cannot commit container {} which is Dead",
                container.id
            )));
        }
        Status::Removing => {
            return Err(EngineError::Conflict(format!(
                "You cannot commit container {} which is being removed",
                container.id
            )));
        }
        _ => {}
    }
    // Before anything is frozen.
    let config = match &options.config {
        Some(config) => json("configuration", config)?,
        // Changes go on from it; nothing of it comes behind them.
        None => json("container configuration", &container.config)?,
    };
    let snapshot = Snapshot {
        config: config.clone(),
        changes: &options.changes,
        ..Snapshot::default()
    };
    snapshot.check().map_err(|error| refused(&error))?;
    let paused =
        options.pause && container.status == Status::Running && freeze(engine, &container).await;
    let frozen = container.id.clone();
    let made = engine
        .blocking(move |engine| image(engine, &container, &options, config))
        .await;
    if paused && let Err(error) = stop::unpause(engine, &frozen).await {
        tracing::warn!(container = %frozen, %error, "a committed container stays paused");
    }
    made
}

/// Whether it is ours to thaw. One that ends in this moment needs no freezing.
async fn freeze(engine: &Engine, container: &Container) -> bool {
    match stop::pause(engine, &container.id).await {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!(container = %container.id, %error, "committed without a pause");
            false
        }
    }
}

fn image(
    engine: &Engine,
    container: &Container,
    options: &CommitOptions,
    config: serde_json::Value,
) -> Result<ImageId> {
    let store = engine.store();
    let _lease = store.leases().acquire()?;
    let parent: ImageId = container
        .image_id
        .parse()
        .map_err(|_| EngineError::NoSuchImage(container.image_id.clone()))?;
    let parent = store.images().get(&parent)?;
    let upper = upper(engine, &container.id);
    let changed = store.layers().diff_upper(&upper, &container.setup.layers)?;
    let ours = changes::engine_made(&upper, &changed);
    let layer = store.layers().commit_copy(&upper, &ours)?;
    let cmd = container.config.cmd.clone().unwrap_or_default().join(" ");
    let now = time::rfc3339(time::now_nanos());
    let snapshot = Snapshot {
        parent: Some(&parent.raw_config),
        config,
        changes: &options.changes,
        defaults: json("container configuration", &container.config)?,
        layer: Some(&layer.diff_id).filter(|layer| !is_empty(layer)),
        author: &options.author,
        comment: &options.comment,
        created_by: &cmd,
        created: &now,
        platform: None,
    };
    let document = snapshot.document().map_err(|error| refused(&error))?;
    let names = options.name.as_slice();
    let id = store.images().put_named(&document, None, names)?;
    let name = options.name.as_ref().map(ImageRef::familiar);
    let more = [
        ("comment", options.comment.clone()),
        ("imageID", id.to_string()),
        ("imageRef", name.clone().unwrap_or_default()),
    ];
    event(engine, container, "commit", &more);
    if let Some(name) = name {
        crate::images::event(engine, "tag", id.as_str(), &name);
    }
    crate::images::event(engine, "create", id.as_str(), id.as_str());
    Ok(id)
}

fn upper(engine: &Engine, id: &str) -> PathBuf {
    engine.layout().container(id).join(Path::new("upper"))
}

/// All its files as a tar.
pub(super) async fn export(engine: &Engine, name: &str) -> Result<Outflow> {
    let name = name.to_owned();
    let (container, mounted) = engine
        .blocking(move |engine| {
            let container = state::find(engine, &name)?;
            if matches!(container.status, Status::Dead | Status::Removing) {
                return Err(EngineError::Conflict(format!(
                    "You cannot export container {} which is {}",
                    container.id,
                    if container.status == Status::Dead {
                        "Dead"
                    } else {
                        "being removed"
                    }
                )));
            }
            let upper = upper(engine, &container.id);
            let layers = engine.store().layers();
            // Its layers are leased for as long as it is there; the mount holds them from here.
            let mounted = layers.mount_merged(&container.setup.layers, &upper)?;
            Ok((container, mounted))
        })
        .await?;
    let engine = engine.clone();
    Ok(outflow::stream(move |out| {
        mounted.write_tar(out)?;
        event(&engine, &container, "export", &[]);
        Ok(())
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_changed_is_no_layer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let database = corten_db::Database::open(&path, &[corten_store::SCHEMA]).unwrap();
        let store = corten_store::Store::open(dir.path(), database);
        let upper = dir.path().join("upper");
        std::fs::create_dir_all(upper.join("proc")).unwrap();
        let ours = [PathBuf::from("/proc")];
        let layer = store.layers().commit_copy(&upper, &ours).unwrap();
        assert!(is_empty(&layer.diff_id));
        let layer = store.layers().commit_copy(&upper, &[]).unwrap();
        assert!(!is_empty(&layer.diff_id));
    }
}
