//! One EROFS image per layer (`layers/erofs`), mounted from the file.
//!
//! An image is a function of the layer's tar and never changes. What only the base can tell
//! is settled, for each base, in a second, small image that lies on the first one: directories
//! that the tar does not list, with their attributes from below, and copies of files that the
//! tar only links to. Rewriting the layer's own image would copy all of its data; changing it
//! in place would have to be safe against crashes and against mounts that are in use.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use corten_oci::{ChainId, DiffId};

use super::{Driver, Lower, SETTLED, Staged, names, of_hex, settled_name, settled_of};
use crate::error::{StoreError, at};
use crate::layers::erofs::{self, Image, ImageError, ImageWriter, Tree};
use crate::layers::mount::{self, ImageKey, ImageMount, Upper};
use crate::layers::pending::Pending;
use crate::layers::settle::{Content, each_piece};
use crate::private;
use crate::rooted::RootFd;
use crate::tmp::TmpDir;

const SUFFIX: &str = ".erofs";

/// Layers as images.
#[derive(Debug)]
pub(in crate::layers) struct Images {
    root: PathBuf,
    tmp: PathBuf,
    /// Mounts that this process keeps.
    kept: Mutex<HashMap<ImageKey, Weak<ImageMount>>>,
}

impl Images {
    /// `root` holds the layers; `tmp` is on the same file system.
    pub(in crate::layers) fn new(root: PathBuf, tmp: PathBuf) -> Self {
        Self {
            root,
            tmp,
            kept: Mutex::default(),
        }
    }

    /// Unpacks a tar into an image that is written by `writer`.
    fn stage(
        &self,
        tar: &mut dyn Read,
        writer: fn(File) -> io::Result<ImageWriter>,
    ) -> Result<Staged, StoreError> {
        let tmp = TmpDir::create(&self.tmp, "layer")?;
        let path = tmp.path().join("image");
        let created = create(&path).and_then(writer);
        let mut image = created.map_err(at("create", &path))?;
        let (tree, content, pending) = erofs::unpack(tar, &mut image)?;
        image.finish(&tree).map_err(at("write", &path))?;
        Ok(Staged {
            tmp,
            path,
            content,
            pending,
        })
    }

    /// Syncs an image, but not its name. One that was synced before it got its name is none the
    /// worse for it.
    pub(in crate::layers) fn sync_content(&self, layer: &DiffId) -> Result<(), StoreError> {
        sync(&self.path(layer))
    }

    fn settled_path(&self, diff_id: &DiffId, base: &ChainId) -> PathBuf {
        let name = format!("{}{SUFFIX}", settled_name(diff_id, base));
        self.root.join(name)
    }

    /// What older versions settled a layer to, once and for every base.
    fn old_settled(&self, diff_id: &DiffId) -> PathBuf {
        let name = format!("{}{SETTLED}{SUFFIX}", diff_id.digest().hex());
        self.root.join(name)
    }

    /// Tries whether this kernel mounts images from files of this file system, and takes
    /// them for lower directories although nothing shows them in the mount table.
    pub(in crate::layers) fn probe(&self) -> Result<(), StoreError> {
        let tmp = TmpDir::create(&self.tmp, "probe")?;
        let path = tmp.path().join("image");
        let written = begin(&path).and_then(|image| image.finish(&Tree::new()));
        drop(written.map_err(at("write", &path))?);
        let images = [
            ImageMount::new(&path, false)?,
            ImageMount::new(&path, false)?,
        ];
        let lowers = images.each_ref().map(AsFd::as_fd);
        drop(mount::overlay(&lowers, Upper::ReadOnly)?);
        Ok(())
    }

    /// Mounts an image, unless this or another process keeps a mount of it.
    fn mount(&self, path: &Path, offer: bool) -> Result<Lower, StoreError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // By name: a descriptor of the file, closed, would take the locks on it along.
        let named = fs::metadata(path).map_err(at("open", path))?;
        let known = kept.get(&(named.dev(), named.ino()));
        if let Some(mount) = known.and_then(Weak::upgrade) {
            return Ok(Lower::Image(mount));
        }
        let mount = Arc::new(ImageMount::new(path, offer)?);
        if offer {
            kept.retain(|_, mount| mount.strong_count() > 0);
            kept.insert(mount.key(), Arc::downgrade(&mount));
        }
        Ok(Lower::Image(mount))
    }

    /// The layer's image and what settled it, topmost first.
    fn open(&self, diff_id: &DiffId) -> Result<Vec<Image>, StoreError> {
        let mut images = Vec::new();
        for path in [self.old_settled(diff_id), self.path(diff_id)] {
            match Image::open(&path) {
                Ok(image) => images.push(image),
                Err(ImageError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {}
                Err(ImageError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(StoreError::Damaged {
                        what: "image",
                        object: diff_id.to_string(),
                        reason: "it is cut off".to_owned(),
                    });
                }
                Err(ImageError::Io(error)) => return Err(at("read", path)(error)),
                Err(ImageError::Malformed(reason)) => {
                    return Err(StoreError::Damaged {
                        what: "image",
                        object: diff_id.to_string(),
                        reason,
                    });
                }
            }
        }
        if !self.path(diff_id).exists() {
            return Err(StoreError::NoSuchLayer(diff_id.clone()));
        }
        Ok(images)
    }
}

fn begin(path: &Path) -> io::Result<ImageWriter> {
    create(path).and_then(ImageWriter::new)
}

fn create(path: &Path) -> io::Result<File> {
    // Nobody else may read files in it that they could not read in a directory.
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    options.open(path)
}

impl Driver for Images {
    fn root(&self) -> &Path {
        &self.root
    }

    fn unpack(&self, tar: &mut dyn Read) -> Result<Staged, StoreError> {
        self.stage(tar, ImageWriter::new)
    }

    fn composes(&self) -> Result<bool, StoreError> {
        Ok(true)
    }

    fn compose(&self, tar: &mut dyn Read) -> Result<Staged, StoreError> {
        self.stage(tar, ImageWriter::cached)
    }

    fn publish(&self, from: &Path, diff_id: &DiffId, synced: bool) -> Result<(), StoreError> {
        private::make(&self.root).map_err(at("create", &self.root))?;
        rename(from, &self.path(diff_id), synced)
    }

    fn contains(&self, diff_id: &DiffId) -> bool {
        self.path(diff_id).exists() || self.old_settled(diff_id).exists()
    }

    fn path(&self, diff_id: &DiffId) -> PathBuf {
        let name = format!("{}{SUFFIX}", diff_id.digest().hex());
        self.root.join(name)
    }

    fn paths(&self, diff_id: &DiffId) -> Vec<PathBuf> {
        vec![self.path(diff_id), self.old_settled(diff_id)]
    }

    fn lowers(&self, diff_id: &DiffId, offer: bool) -> Result<Vec<Lower>, StoreError> {
        let missing = |error| missing(error, diff_id);
        let image = self.mount(&self.path(diff_id), offer).map_err(missing)?;
        match self
            .mount(&self.old_settled(diff_id), offer)
            .map_err(missing)
        {
            Ok(settled) => Ok(vec![settled, image]),
            Err(StoreError::NoSuchLayer(_)) => Ok(vec![image]),
            Err(error) => Err(error),
        }
    }

    fn empty(&self, n: u8) -> Result<Lower, StoreError> {
        super::Directories::new(self.root.clone(), self.tmp.clone()).empty(n)
    }

    fn settle(
        &self,
        diff_id: &DiffId,
        base: &ChainId,
        below: &RootFd,
        pending: &Pending,
    ) -> Result<bool, StoreError> {
        let images = self.open(diff_id)?;
        let Some(layer) = images.last() else {
            return Err(StoreError::NoSuchLayer(diff_id.clone()));
        };
        let tmp = TmpDir::create(&self.tmp, "settled")?;
        let path = tmp.path().join("image");
        let any = begin(&path)
            .and_then(|image| settle(layer.tree(), below, pending, image))
            .map_err(at("settle", self.path(diff_id)))?;
        if any {
            rename(&path, &self.settled_path(diff_id, base), true)?;
            self.sync_names()?;
        }
        Ok(any)
    }

    fn has_settled(&self, diff_id: &DiffId, base: &ChainId) -> bool {
        self.settled_path(diff_id, base).exists()
    }

    fn settled(&self, diff_id: &DiffId, base: &ChainId, offer: bool) -> Result<Lower, StoreError> {
        self.mount(&self.settled_path(diff_id, base), offer)
            .map_err(|error| missing(error, diff_id))
    }

    fn settled_paths(&self, diff_id: &DiffId, base: &ChainId) -> Vec<PathBuf> {
        vec![self.settled_path(diff_id, base)]
    }

    fn list_settled(&self) -> Result<Vec<(DiffId, ChainId)>, StoreError> {
        let names = names(&self.root)?;
        let images = names.iter().filter_map(|name| name.strip_suffix(SUFFIX));
        Ok(images.filter_map(settled_of).collect())
    }

    fn write_tar(&self, diff_id: &DiffId, out: &mut dyn Write) -> Result<(), StoreError> {
        let images = self.open(diff_id)?;
        erofs::write_tar(&images, out).map_err(at("archive", self.path(diff_id)))
    }

    fn verify(&self, diff_id: &DiffId) -> Result<Option<String>, StoreError> {
        let images = match self.open(diff_id) {
            Ok(images) => images,
            Err(StoreError::Damaged { reason, .. }) => return Ok(Some(reason)),
            Err(StoreError::NoSuchLayer(_)) => return Ok(Some("its image is missing".into())),
            Err(error) => return Err(error),
        };
        for image in images {
            match image.verify() {
                Ok(()) => {}
                Err(ImageError::Malformed(reason)) => return Ok(Some(reason)),
                Err(ImageError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Ok(Some("it is cut off".to_owned()));
                }
                Err(ImageError::Io(error)) => return Err(at("read", self.path(diff_id))(error)),
            }
        }
        Ok(None)
    }

    fn discard(&self, diff_id: &DiffId) -> Result<(), StoreError> {
        remove(&self.path(diff_id))?;
        remove(&self.old_settled(diff_id))
    }

    fn list(&self) -> Result<Vec<DiffId>, StoreError> {
        let names = names(&self.root)?;
        let mut found: Vec<DiffId> = names
            .iter()
            .filter_map(|name| {
                let name = name.strip_suffix(SUFFIX)?;
                let hex = name.strip_suffix(SETTLED).unwrap_or(name);
                of_hex(hex)
            })
            .collect();
        found.sort_unstable_by(|a: &DiffId, b| a.digest().hex().cmp(b.digest().hex()));
        found.dedup();
        Ok(found)
    }

    fn sync(&self, layers: &[&DiffId]) -> Result<(), StoreError> {
        for layer in layers {
            self.sync_content(layer)?;
        }
        self.sync_names()
    }
}

fn missing(error: StoreError, diff_id: &DiffId) -> StoreError {
    match error {
        StoreError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            StoreError::NoSuchLayer(diff_id.clone())
        }
        other => other,
    }
}

/// Missing is fine.
fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Gives an image its name; if `synced`, only to content that outlasts a power cut.
fn rename(from: &Path, to: &Path, synced: bool) -> Result<(), StoreError> {
    if synced {
        sync(from)?;
    }
    fs::rename(from, to).map_err(at("rename to", to))
}

fn sync(path: &Path) -> Result<(), StoreError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(at("sync", path))
}

/// Writes the image of what only the base can tell; tells whether there is anything.
fn settle(
    layer: &Tree,
    below: &RootFd,
    pending: &Pending,
    mut image: ImageWriter,
) -> io::Result<bool> {
    let mut settled = Tree::beside(layer);
    let mut any = false;
    each_piece(below, pending, |piece| {
        any = true;
        let kind = match piece.content {
            Content::Directory => {
                let below = Some((&piece.stat, piece.xattrs));
                settled.copy_directory(layer, &piece.path, below);
                return Ok(());
            }
            Content::File(file) => {
                let size = u64::try_from(piece.stat.st_size).unwrap_or_default();
                let data = image.file(size, file)?;
                erofs::Kind::File { size, data }
            }
            Content::Symlink(to) => erofs::Kind::Symlink(to.as_os_str().as_bytes().into()),
        };
        settled.copy_file(layer, &piece.path, kind, &piece.stat, piece.xattrs);
        Ok(())
    })?;
    if any {
        image.finish(&settled)?;
    }
    Ok(any)
}
