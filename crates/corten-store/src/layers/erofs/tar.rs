//! The deterministic tar of a layer that is an image: the very bytes a directory of the same
//! content gives (`layers/tar_write.rs`).

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};

use super::read::Image;
use super::tree::{Kind, NodeId};
use crate::layers::tar_header::{self, Entry};

/// Writes the tar of images that lie on each other (top first): a layer and what settled it.
/// Directories of the same name are one, with the topmost's attributes.
pub(in crate::layers) fn write(images: &[Image], out: &mut dyn Write) -> io::Result<()> {
    let mut writer = Writer {
        images,
        out,
        links: links(images),
        first: HashMap::new(),
    };
    let roots: Vec<Place> = (0..images.len())
        .map(|image| (image, super::Tree::ROOT))
        .collect();
    writer.directory(&roots, &mut Vec::new())?;
    tar_header::end(writer.out)
}

/// A node of one of the images.
type Place = (usize, NodeId);

struct Writer<'a> {
    images: &'a [Image],
    out: &'a mut dyn Write,
    links: HashMap<Place, u32>,
    /// First name of each file that has several.
    first: HashMap<Place, Vec<u8>>,
}

fn links(images: &[Image]) -> HashMap<Place, u32> {
    let mut links = HashMap::new();
    for (at, image) in images.iter().enumerate() {
        let tree = image.tree();
        for n in 0..tree.len() {
            for child in tree.children(NodeId(n)).values() {
                *links.entry((at, *child)).or_default() += 1;
            }
        }
    }
    links
}

impl Writer<'_> {
    fn directory(&mut self, places: &[Place], prefix: &mut Vec<u8>) -> io::Result<()> {
        let mut names: BTreeMap<&[u8], Vec<Place>> = BTreeMap::new();
        let images = self.images;
        for (image, id) in places {
            for (name, child) in images[*image].tree().children(*id) {
                names.entry(name).or_default().push((*image, *child));
            }
        }
        for (name, places) in names {
            let length = prefix.len();
            prefix.extend_from_slice(name);
            self.entry(&places, name.len(), prefix)?;
            prefix.truncate(length);
        }
        Ok(())
    }

    fn entry(&mut self, places: &[Place], name: usize, path: &mut Vec<u8>) -> io::Result<()> {
        let Some(place @ (image, id)) = places.first().copied() else {
            return Ok(());
        };
        let images = self.images;
        let node = images[image].tree().node(id);
        let mut entry = Entry {
            mode: node.attributes.mode.into(),
            uid: node.attributes.uid,
            gid: node.attributes.gid,
            mtime: node.attributes.mtime,
            ..Entry::default()
        };
        if matches!(node.kind, Kind::CharDevice(0, 0)) {
            return tar_header::whiteout(self.out, path, name);
        }
        let is_directory = matches!(node.kind, Kind::Directory(_));
        if !is_directory && self.links.get(&place).is_some_and(|links| *links > 1) {
            if let Some(first) = self.first.get(&place) {
                let (kind, link) = (b'1', first.as_slice());
                return tar_header::write(
                    self.out,
                    path,
                    &Entry {
                        kind,
                        link,
                        ..entry
                    },
                );
            }
            self.first.insert(place, path.clone());
        }
        entry.xattrs = &node.attributes.xattrs;
        match &node.kind {
            Kind::File { size, data } => {
                (entry.kind, entry.size) = (b'0', *size);
                tar_header::write(self.out, path, &entry)?;
                images[image].copy(*size, data, self.out)?;
                tar_header::pad(self.out, *size)
            }
            Kind::Directory(_) => {
                entry.kind = b'5';
                path.push(b'/');
                tar_header::write(self.out, path, &entry)?;
                let together = places
                    .iter()
                    .copied()
                    .filter(|(image, id)| images[*image].tree().is_directory(*id));
                let together: Vec<Place> = together.collect();
                let opaque = |(image, id): &Place| {
                    tar_header::is_opaque(&images[*image].tree().node(*id).attributes.xattrs)
                };
                if together.iter().any(opaque) {
                    tar_header::opaque(self.out, path)?;
                }
                self.directory(&together, path)
            }
            Kind::Symlink(target) => {
                (entry.kind, entry.link) = (b'2', target);
                tar_header::write(self.out, path, &entry)
            }
            Kind::CharDevice(major, minor) => {
                (entry.kind, entry.device) = (b'3', (*major, *minor));
                tar_header::write(self.out, path, &entry)
            }
            Kind::BlockDevice(major, minor) => {
                (entry.kind, entry.device) = (b'4', (*major, *minor));
                tar_header::write(self.out, path, &entry)
            }
            Kind::Fifo => {
                entry.kind = b'6';
                tar_header::write(self.out, path, &entry)
            }
            Kind::Foreign(_) => Ok(()), // in no image
        }
    }
}
