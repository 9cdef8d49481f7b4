//! The layer of a COPY or a WORKDIR, made at once where that is possible: plan, then compose.

use std::path::{Path, PathBuf};

use corten_oci::DiffId;
use corten_store::{Bulk, Layers, StoreError};
use rustix::fs::FileType;

use super::below::{Below, Listing};
use super::compose::{self, NotPlain, Plan};
use super::composing::Composing;
use super::tree::{Entry, Tree};
use super::write::Failure;

/// What became of it.
#[derive(Debug)]
pub(crate) enum Made {
    /// A layer, and all it has.
    Layer(DiffId, Listing),
    /// There is nothing to be made.
    Nothing,
    /// It has to be written file by file. Nothing was written yet.
    Not,
}

/// What went wrong, other than that it cannot be made at once.
#[derive(Debug)]
pub(crate) enum PlainError {
    Copy(Failure),
    Store(StoreError),
}

/// What is copied, and where to.
#[derive(Debug)]
pub(crate) struct Copied<'a> {
    pub(crate) tree: &'a Tree,
    pub(crate) entries: &'a mut [Entry],
    /// Names and contents of here-documents.
    pub(crate) inline: &'a [(String, String)],
    pub(crate) destination: &'a str,
}

/// The image itself has a directory of the destination's name: single files go into it.
pub(crate) fn into_directory(entries: &mut [Entry]) {
    for entry in entries {
        if entry.named && entry.to.as_os_str().is_empty() {
            let name = entry.path.file_name();
            entry.to = name.map(PathBuf::from).unwrap_or_default();
        }
    }
}

/// Whatever keeps it from being made at once, it can still be written file by file.
fn not_at_once(destination: &str, why: &dyn std::fmt::Display) -> Made {
    tracing::debug!(destination, %why, "not made at once");
    Made::Not
}

/// The layer of a COPY.
pub(crate) fn copy(
    layers: &Layers,
    below: &Below,
    copied: Copied<'_>,
    composing: &Composing<'_>,
) -> Result<Made, PlainError> {
    let Copied {
        tree,
        entries,
        inline,
        destination,
    } = copied;
    let bulk = compose::bulk(entries);
    if bulk == Bulk::Large {
        match layers.composes() {
            Ok(true) => {}
            Ok(false) => return Ok(Made::Not),
            Err(error) => return Ok(not_at_once(destination, &error)),
        }
    }
    let place = match compose::destination(below, Path::new(destination)) {
        Ok(Ok(place)) => place,
        Ok(Err(why)) => return Ok(not_at_once(destination, &why)),
        Err(error) => return Ok(not_at_once(destination, &error)),
    };
    let into = destination.ends_with('/') || place.is_directory();
    if into {
        into_directory(entries);
    }
    let inline: Vec<(PathBuf, &str)> = inline
        .iter()
        .map(|(name, content)| {
            let to = if into {
                PathBuf::from(name)
            } else {
                PathBuf::new()
            };
            (to, content.as_str())
        })
        .collect();
    match compose::plan(below, &place, entries, &inline, &composing.manner) {
        Ok(plan) => compose(layers, (Some(tree), bulk), plan, destination, composing),
        Err(error) => Ok(not_at_once(destination, &error)),
    }
}

/// The layer of a WORKDIR.
pub(crate) fn directory(
    layers: &Layers,
    below: &Below,
    path: &str,
    composing: &Composing<'_>,
) -> Result<Made, PlainError> {
    let place = match compose::destination(below, Path::new(path)) {
        Ok(Ok(place)) => place,
        Ok(Err(why)) => return Ok(not_at_once(path, &why)),
        Err(error) => return Ok(not_at_once(path, &error)),
    };
    let plan = match compose::plan_directory(below, &place, &composing.manner) {
        Ok(Ok(None)) => return Ok(Made::Nothing),
        Ok(Ok(Some(plan))) => Ok(plan),
        Ok(Err(why)) => Err(why),
        Err(error) => return Ok(not_at_once(path, &error)),
    };
    compose(layers, (None, Bulk::Small), plan, path, composing)
}

fn compose(
    layers: &Layers,
    (tree, bulk): (Option<&Tree>, Bulk),
    plan: Result<Plan<'_>, NotPlain>,
    destination: &str,
    composing: &Composing<'_>,
) -> Result<Made, PlainError> {
    let plan = match plan {
        Ok(plan) => plan,
        Err(why) => return Ok(not_at_once(destination, &why)),
    };
    let mut listing = Listing::new();
    let listed = &mut listing;
    let made = layers.compose(bulk, move |out| {
        *listed = composing.write(tree, &plan, out)?;
        Ok(())
    });
    match made {
        Ok(Ok(layer)) => Ok(Made::Layer(layer.diff_id, listing)),
        Ok(Err(failure)) => Err(PlainError::Copy(failure)),
        // A layer that comes as a tar has bounds that one of files has not.
        Err(error @ (StoreError::BadEntry { .. } | StoreError::BadArchive(_))) => {
            Ok(not_at_once(destination, &error))
        }
        Err(error) => Err(PlainError::Store(error)),
    }
}

/// Whether there is something that ADD may unpack.
pub(crate) fn may_be_archives(entries: &[Entry]) -> bool {
    let is_file = |entry: &Entry| entry.named && entry.kind == FileType::RegularFile;
    entries.iter().any(is_file)
}

#[cfg(test)]
mod tests;
