//! Telling what a composed layer has, as planned (`compose`).

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::path::Path;

use corten_store::{Composer, Described};
use rustix::fs::FileType;

use super::below::{Listing, Node};
use super::compose::{Plan, Thing};
use super::content;
use super::tree::{Entry, Tree};
use super::write::{Failure, Manner, on};
use crate::cache::now;
use crate::cancel::Cancel;

/// How, and when at the latest, in seconds since the epoch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Composing<'a> {
    pub(crate) manner: Manner<'a>,
    pub(crate) last: Option<i64>,
    pub(crate) cancel: &'a Cancel,
}

impl Composing<'_> {
    /// Tells everything there is to be in the layer, and of what there is in each place.
    /// `tree`: where copied files are from.
    pub(crate) fn write(
        &self,
        tree: Option<&Tree>,
        plan: &Plan<'_>,
        out: &mut Composer<'_>,
    ) -> Result<Listing, Failure> {
        let now = now();
        let now = (now.div_euclid(1_000_000_000), now.rem_euclid(1_000_000_000));
        let mut links: HashMap<(u64, u64), &Path> = HashMap::new();
        let mut listing = Listing::with_capacity(plan.0.len());
        for (path, thing) in &plan.0 {
            if self.cancel.is_cancelled() {
                return Err((path.clone(), io::ErrorKind::Interrupted.into()));
            }
            let described = self.described(thing, now);
            let told = match thing {
                Thing::Below(..) | Thing::Made(_) => out.directory(path, &described),
                Thing::Inline(content) => {
                    out.file(path, &described, content.len() as u64, content.as_bytes())
                }
                Thing::Copied(entry) => {
                    let key = (entry.id.dev, entry.id.ino);
                    let is_file = entry.kind == FileType::RegularFile;
                    match links.get(&key).filter(|_| entry.linked && is_file) {
                        Some(first) => out.link(path, &described, first),
                        None => {
                            links.extend((entry.linked && is_file).then_some((key, &**path)));
                            copy(tree, entry, path, described, out)
                        }
                    }
                }
            };
            told.map_err(on(path))?;
            listing.insert(path.clone(), node(thing, &described));
        }
        Ok(listing)
    }

    fn described(&self, thing: &Thing<'_>, now: (i64, i64)) -> Described<'static> {
        let manner = &self.manner;
        let (mode, (uid, gid), time) = match thing {
            Thing::Below(node, at) => (node.mode, node.owner, at.unwrap_or(now)),
            Thing::Made(at) => {
                let owner = manner.owner.unwrap_or((0, 0));
                (manner.made(), owner, at.unwrap_or(now))
            }
            Thing::Inline(_) => (manner.inline_mode(), manner.owner.unwrap_or((0, 0)), now),
            Thing::Copied(entry) => {
                let mode = match entry.kind {
                    FileType::Symlink => 0o777,
                    _ => manner.mode_of(entry),
                };
                (mode, manner.owner_of(entry), entry.mtime)
            }
        };
        let (seconds, nanos) = match self.last {
            Some(last) if time > (last, 0) => (last, 0),
            _ => time,
        };
        Described {
            mode: mode & 0o7777,
            uid,
            gid,
            mtime: (seconds, u32::try_from(nanos).unwrap_or_default()),
            xattrs: &[],
        }
    }
}

fn node(thing: &Thing<'_>, described: &Described<'_>) -> Node {
    let kind = match thing {
        Thing::Below(..) | Thing::Made(_) => FileType::Directory,
        Thing::Inline(_) => FileType::RegularFile,
        Thing::Copied(entry) => entry.kind,
    };
    Node {
        kind,
        mode: described.mode,
        owner: (described.uid, described.gid),
        mtime: (described.mtime.0, described.mtime.1.into()),
    }
}

fn copy(
    tree: Option<&Tree>,
    entry: &Entry,
    path: &Path,
    described: Described<'_>,
    out: &mut Composer<'_>,
) -> io::Result<()> {
    match entry.kind {
        FileType::Directory => out.directory(path, &described),
        FileType::Symlink => out.symlink(path, &described, &entry.target),
        _ => {
            let tree = tree.ok_or_else(|| io::Error::other("a file of nowhere"))?;
            let mut file = content::open(tree, entry)?;
            let mut xattrs: Vec<(OsString, Vec<u8>)> = Vec::new();
            if !tree.foreign {
                let attributes = content::attributes(&file)?.into_iter();
                xattrs.extend(attributes.map(|(key, value)| (key.into(), value)));
            }
            let described = Described {
                xattrs: &xattrs,
                ..described
            };
            out.file(path, &described, entry.id.size, &mut file)
                .map_err(|error| match error.kind() {
                    io::ErrorKind::UnexpectedEof => io::Error::other(content::Changed),
                    _ => error,
                })?;
            content::unchanged(entry, &file)
        }
    }
}
