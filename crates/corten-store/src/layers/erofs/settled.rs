//! The tree that lies on a layer's own when it is settled: some of its directories, and
//! files that only the base had.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::Stat;

use super::tree::{Attributes, Kind, NodeId, Tree};
use super::xattr::Xattr;
use crate::layers::xattr::is_overlays;

impl Tree {
    /// An empty tree whose root is that of the layer: what lies on top decides.
    pub(in crate::layers) fn beside(layer: &Self) -> Self {
        let mut tree = Self::new();
        tree.node_mut(Self::ROOT).attributes = merged(layer, Self::ROOT);
        tree
    }

    /// A directory of the layer and those it is in, with the layer's attributes, or, where
    /// the layer does not know them, those of below.
    pub(in crate::layers) fn copy_directory(
        &mut self,
        layer: &Self,
        path: &Path,
        below: Option<(&Stat, Vec<Xattr>)>,
    ) -> NodeId {
        let (mut here, mut there) = (Self::ROOT, Some(Self::ROOT));
        for component in path.components() {
            let name = component.as_os_str().as_bytes();
            there = there.and_then(|there| layer.child(there, name));
            here = self.child(here, name).unwrap_or_else(|| {
                let attributes = there.map(|there| merged(layer, there)).unwrap_or_default();
                let made = self.add(Kind::Directory(Default::default()), attributes);
                self.insert(here, name, made);
                made
            });
        }
        if let Some((stat, xattrs)) = below {
            self.node_mut(here).attributes = inherited(stat, xattrs);
        }
        here
    }

    /// A file of below where the layer has a link to it.
    pub(in crate::layers) fn copy_file(
        &mut self,
        layer: &Self,
        path: &Path,
        kind: Kind,
        stat: &Stat,
        xattrs: Vec<Xattr>,
    ) {
        if let (Some(parent), Some(name)) = (path.parent(), path.file_name()) {
            let parent = self.copy_directory(layer, parent, None);
            let file = self.add(kind, inherited(stat, xattrs));
            self.insert(parent, name.as_bytes(), file);
        }
    }
}

/// A layer's own attributes, without the mark that hides what is below: the layer itself is
/// below now.
fn merged(layer: &Tree, id: NodeId) -> Attributes {
    let mut attributes = layer.node(id).attributes.clone();
    attributes.xattrs.retain(|(key, _)| !is_overlays(key));
    attributes
}

fn inherited(stat: &Stat, xattrs: Vec<Xattr>) -> Attributes {
    Attributes {
        mode: u16::try_from(stat.st_mode & 0o7777).unwrap_or_default(),
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (
            stat.st_mtime,
            u32::try_from(stat.st_mtime_nsec).unwrap_or_default(),
        ),
        xattrs,
    }
}
