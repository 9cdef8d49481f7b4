//! Untagging and deleting images.
//!
//! Docker's rules: naming a tag removes the tag, and the image with its last one; naming an
//! id removes the image if it has at most one tag, and digests of that repository only. What a container uses is kept: a stopped one can
//! be overruled by force, a running one cannot. A container keeps its layers by a lease of
//! its own, so even a forced removal never pulls the ground from under it.

use bollard_stubs::models::{ImageDeleteResponseItem, ImagePruneResponse};
use corten_oci::ImageRef;
use corten_store::{Image, ImageId};
use rusqlite::Connection;

use super::{documents, event, find};
use crate::Filters;
use crate::containers::{row, state};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::filters;

type Result<T> = std::result::Result<T, EngineError>;

fn untagged(reference: &ImageRef) -> ImageDeleteResponseItem {
    ImageDeleteResponseItem {
        untagged: Some(reference.familiar()),
        deleted: None,
    }
}

fn short(id: &ImageId) -> &str {
    id.hex().get(..12).unwrap_or_default()
}

/// Removes an image or one of its tags. Blocks.
pub(super) fn remove(
    engine: &Engine,
    name: &str,
    force: bool,
) -> Result<Vec<ImageDeleteResponseItem>> {
    let image = find(engine, name)?;
    let mut removed = Vec::new();
    match named_reference(&image, name) {
        Some(reference) => {
            if !force && has_single_name(&image) {
                check_repository_reference(engine, &image, name)?;
            }
            untag(engine, &image, &reference, &mut removed)?;
            // The name is gone as asked; what a container still uses stays, nameless.
            let users = users(engine, &image.id)?;
            if check_running(&image.id, &users).is_err()
                || check_stopped(&image.id, &users, force).is_err()
                || !delete(engine, &image.id, &[], &users, &mut removed)?
            {
                return Ok(removed);
            }
        }
        None => {
            let users = users(engine, &image.id)?;
            check_running(&image.id, &users)?;
            let named = !image.repo_tags.is_empty() || !image.repo_digests.is_empty();
            if !force && named && !has_single_name(&image) {
                return Err(EngineError::Conflict(format!(
                    "conflict: unable to delete {} (must be forced) - image is referenced in multiple repositories",
                    short(&image.id)
                )));
            }
            check_stopped(&image.id, &users, force)?;
            let names: Vec<&ImageRef> = names(&image).collect();
            if !delete(engine, &image.id, &names, &users, &mut removed)? {
                return Err(EngineError::Conflict(format!(
                    "conflict: unable to delete {} - image was tagged, or used by a new container, meanwhile",
                    short(&image.id)
                )));
            }
        }
    }
    collect(engine);
    Ok(removed)
}

/// The reference that `name` is, unless it is an id or a prefix of one.
fn named_reference(image: &Image, name: &str) -> Option<ImageRef> {
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    let reference: Option<ImageRef> = name.parse().ok().map(ImageRef::or_latest);
    let known = reference.filter(|r| image.repo_tags.contains(r) || image.repo_digests.contains(r));
    match known {
        Some(reference) => Some(reference),
        None if image.id.hex().starts_with(hex) => None,
        // `name:tag@digest`: the digest is what was meant.
        None => image
            .repo_digests
            .iter()
            .find(|d| {
                d.digest()
                    .is_some_and(|digest| name.ends_with(digest.as_str()))
            })
            .cloned(),
    }
}

fn untag(
    engine: &Engine,
    image: &Image,
    reference: &ImageRef,
    removed: &mut Vec<ImageDeleteResponseItem>,
) -> Result<()> {
    engine.store().images().untag(reference)?;
    let id = image.id.to_string();
    event(engine, "untag", &id, &id);
    removed.push(untagged(reference));
    // With a repository's last tag its digests go, too.
    let same = |other: &&ImageRef| other.name() == reference.name();
    let tags_left = image.repo_tags.iter().filter(same).any(|t| t != reference);
    if !tags_left && reference.digest().is_none() {
        for digest in image.repo_digests.iter().filter(same) {
            engine.store().images().untag(digest)?;
            removed.push(untagged(digest));
        }
    }
    Ok(())
}

/// Whether all its names are one: at most one tag, and digests of that repository.
fn has_single_name(image: &Image) -> bool {
    if image.repo_tags.len() > 1 {
        return false;
    }
    let mut names = image
        .repo_tags
        .iter()
        .chain(&image.repo_digests)
        .map(ImageRef::name);
    match names.next() {
        None => false,
        Some(first) => names.all(|n| n == first),
    }
}

/// The containers that are made from an image, or have it mounted.
const USERS: &str = "SELECT id, status FROM containers WHERE image_id = ?1 OR EXISTS (SELECT 1 \
    FROM json_each(setup, '$.mounts') AS mount \
    WHERE json_extract(mount.value, '$.source.Image.id') = ?1)";

/// Those containers: the id of one, and whether it runs.
fn users(engine: &Engine, id: &ImageId) -> Result<Vec<User>> {
    let id = id.to_string();
    let rows: Vec<(String, String)> = engine.database().read(|c| {
        let mut statement = c.prepare_cached(USERS)?;
        let rows = statement.query_map([&id], |r| Ok((r.get(0)?, r.get(1)?)))?;
        Ok::<_, EngineError>(rows.collect::<rusqlite::Result<_>>()?)
    })?;
    Ok(rows
        .into_iter()
        // What a killed `run --rm` has left goes with this look.
        .filter(|(id, status)| {
            row::Status::parse(status) != row::Status::Created
                || !matches!(
                    state::find(engine, id),
                    Err(EngineError::NoSuchContainer(_))
                )
        })
        .map(|(id, status)| {
            let live = row::Status::parse(&status).is_live() && state::has_supervisor(engine, &id);
            (id, live)
        })
        .collect())
}

fn check_repository_reference(engine: &Engine, image: &Image, name: &str) -> Result<()> {
    match users(engine, &image.id)?.first() {
        None => Ok(()),
        Some((container, _)) => Err(EngineError::Conflict(format!(
            "conflict: unable to remove repository reference \"{name}\" (must force) - container {} is using its referenced image {}",
            container.get(..12).unwrap_or(container),
            short(&image.id)
        ))),
    }
}

/// A container that uses an image, and whether it runs.
type User = (String, bool);

fn conflict(id: &ImageId, how: &str, what: &str, container: &str) -> EngineError {
    EngineError::Conflict(format!(
        "conflict: unable to delete {} ({how}) - image is being used by {what} container {}",
        short(id),
        container.get(..12).unwrap_or(container)
    ))
}

fn check_running(id: &ImageId, users: &[User]) -> Result<()> {
    match users.iter().find(|(_, live)| *live) {
        Some((container, _)) => Err(conflict(id, "cannot be forced", "running", container)),
        None => Ok(()),
    }
}

fn check_stopped(id: &ImageId, users: &[User], force: bool) -> Result<()> {
    match users.first() {
        Some((container, _)) if !force => Err(conflict(id, "must be forced", "stopped", container)),
        _ => Ok(()),
    }
}

/// Deletes an image that has no names but these and no users but these; tells whether it did.
fn delete(
    engine: &Engine,
    id: &ImageId,
    names: &[&ImageRef],
    users: &[User],
    removed: &mut Vec<ImageDeleteResponseItem>,
) -> Result<bool> {
    let new_user = |db: &Connection| {
        let mut statement = db.prepare_cached(USERS)?;
        let mut rows = statement.query([id.as_str()])?;
        while let Some(row) = rows.next()? {
            let container: String = row.get(0)?;
            if !users.iter().any(|(known, _)| *known == container) {
                return Ok(true);
            }
        }
        Ok(false)
    };
    if !engine.store().images().delete_unless(id, names, new_user)? {
        return Ok(false);
    }
    let actor = id.to_string();
    for name in names {
        event(engine, "untag", &actor, &actor);
        removed.push(untagged(name));
    }
    event(engine, "delete", &actor, &actor);
    removed.push(ImageDeleteResponseItem {
        untagged: None,
        deleted: Some(actor),
    });
    Ok(true)
}

fn names(image: &Image) -> impl Iterator<Item = &ImageRef> {
    image.repo_tags.iter().chain(&image.repo_digests)
}

/// Collects what nothing needs any more. That it failed changes nothing of what was removed;
/// the next collection takes it.
fn collect(engine: &Engine) -> u64 {
    match engine.store().gc() {
        Ok(report) => report.bytes,
        Err(error) => {
            tracing::warn!(%error, "what removed images leave is not collected yet");
            0
        }
    }
}

/// Removes unused images. Blocks.
pub(super) fn prune(engine: &Engine, wanted: &Filters) -> Result<ImagePruneResponse> {
    filters::check(wanted, &["dangling", "label", "label!", "until"])?;
    let only_dangling = filters::flag(wanted, "dangling")?.unwrap_or(true);
    let until = filters::until(wanted, jiff::Timestamp::now())?;
    let mut removed = Vec::new();
    for image in engine.store().images().list()? {
        let document = documents::ImageDocument::parse(&image)?;
        let created = document.raw.created.as_deref();
        // As Docker has it, what does not say how old it is is not old.
        let is_old = |until| created.is_some() && documents::created_nanos(created) < until;
        let labels = document.config.labels.clone().unwrap_or_default();
        if (only_dangling && !image.repo_tags.is_empty())
            || until.is_some_and(|until| !is_old(until))
            || !filters::labels(wanted, &labels)
            || !users(engine, &image.id)?.is_empty()
        {
            continue;
        }
        // One that was tagged since it was listed is not deleted.
        let names: Vec<&ImageRef> = names(&image).collect();
        delete(engine, &image.id, &names, &[], &mut removed)?;
    }
    let mut bytes = collect(engine);
    if !only_dangling && wanted.len() <= 1 {
        // All that is unused: then nobody waits to resume a download either.
        bytes += engine.store().discard_partial().unwrap_or_else(|error| {
            tracing::warn!(%error, "partial downloads are left");
            0
        });
    }
    let reclaimed = [("reclaimed".to_owned(), bytes.to_string())].into();
    super::event_with(engine, "prune", "", &reclaimed);
    Ok(ImagePruneResponse {
        images_deleted: Some(removed),
        space_reclaimed: i64::try_from(bytes).ok(),
    })
}
