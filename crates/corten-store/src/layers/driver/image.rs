//! One EROFS image per layer (`layers/erofs`), mounted from the file.
//!
//! An image is a function of the layer's tar and never changes. What only the base can tell
//! is settled in a second, small image that lies on the first one in every stack: directories
//! that the tar does not list, with their attributes from below, and copies of files that the
//! tar only links to. Rewriting the layer's own image would copy all of its data; changing it
//! in place would have to be safe against crashes and against mounts that are in use.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use corten_oci::DiffId;
use rustix::fs::{FileType, Mode, OFlags};

use super::{Driver, Lower, Staged};
use crate::error::{StoreError, at};
use crate::layers::erofs::{self, Image, ImageError, ImageWriter, Tree};
use crate::layers::mount::{self, ImageKey, ImageMount, Upper};
use crate::layers::pending::Pending;
use crate::private;
use crate::rooted::RootFd;
use crate::tmp::TmpDir;

const SUFFIX: &str = ".erofs";
const SETTLED: &str = ".settled";

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

    fn settled(&self, diff_id: &DiffId) -> PathBuf {
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
        for path in [self.settled(diff_id), self.path(diff_id)] {
            match Image::open(&path) {
                Ok(image) => images.push(image),
                Err(ImageError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {}
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
    // Nobody else may read files in it that they could not read in a directory.
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let file = options.open(path)?;
    ImageWriter::new(file)
}

impl Driver for Images {
    fn unpack(&self, tar: &mut dyn Read) -> Result<Staged, StoreError> {
        let tmp = TmpDir::create(&self.tmp, "layer")?;
        let path = tmp.path().join("image");
        let mut image = begin(&path).map_err(at("create", &path))?;
        let (tree, content, pending) = erofs::unpack(tar, &mut image)?;
        image.finish(&tree).map_err(at("write", &path))?;
        Ok(Staged {
            tmp,
            path,
            content,
            pending,
        })
    }

    fn publish(&self, from: &Path, diff_id: &DiffId, synced: bool) -> Result<(), StoreError> {
        private::make(&self.root).map_err(at("create", &self.root))?;
        rename(from, &self.path(diff_id), synced)
    }

    fn contains(&self, diff_id: &DiffId) -> bool {
        self.path(diff_id).exists() || self.settled(diff_id).exists()
    }

    fn path(&self, diff_id: &DiffId) -> PathBuf {
        let name = format!("{}{SUFFIX}", diff_id.digest().hex());
        self.root.join(name)
    }

    fn lowers(&self, diff_id: &DiffId, offer: bool) -> Result<Vec<Lower>, StoreError> {
        let missing = |error: StoreError| match error {
            StoreError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                StoreError::NoSuchLayer(diff_id.clone())
            }
            other => other,
        };
        let image = self.mount(&self.path(diff_id), offer).map_err(missing)?;
        match self.mount(&self.settled(diff_id), offer).map_err(missing) {
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
        below: &RootFd,
        pending: &Pending,
    ) -> Result<(), StoreError> {
        let images = self.open(diff_id)?;
        let Some(layer) = images.last() else {
            return Err(StoreError::NoSuchLayer(diff_id.clone()));
        };
        let tmp = TmpDir::create(&self.tmp, "settled")?;
        let path = tmp.path().join("image");
        let settled = begin(&path)
            .and_then(|image| settle(layer.tree(), below, pending, image))
            .map_err(at("settle", self.path(diff_id)))?;
        if settled {
            // What is pending is forgotten then.
            rename(&path, &self.settled(diff_id), true)?;
            self.sync_names()?;
        }
        Ok(())
    }

    fn write_tar(&self, diff_id: &DiffId, out: &mut dyn Write) -> Result<(), StoreError> {
        let images = self.open(diff_id)?;
        erofs::write_tar(&images, out).map_err(at("archive", self.path(diff_id)))
    }

    fn verify(&self, diff_id: &DiffId) -> Result<Option<String>, StoreError> {
        let images = match self.open(diff_id) {
            Ok(images) => images,
            Err(StoreError::Damaged { reason, .. }) => return Ok(Some(reason)),
            Err(error) => return Err(error),
        };
        for image in images {
            match image.verify() {
                Ok(()) => {}
                Err(ImageError::Malformed(reason)) => return Ok(Some(reason)),
                Err(ImageError::Io(error)) => return Err(at("read", self.path(diff_id))(error)),
            }
        }
        Ok(None)
    }

    fn discard(&self, diff_id: &DiffId) -> Result<(), StoreError> {
        for path in [self.path(diff_id), self.settled(diff_id)] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(at("remove", path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn list(&self) -> Result<Vec<DiffId>, StoreError> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(at("read", &self.root)(error)),
        };
        let mut found: Vec<DiffId> = entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name();
                let name = name.to_str()?.strip_suffix(SUFFIX)?;
                let hex = name.strip_suffix(SETTLED).unwrap_or(name);
                format!("sha256:{hex}").parse().ok()
            })
            .collect();
        found.sort_unstable_by(|a: &DiffId, b| a.digest().hex().cmp(b.digest().hex()));
        found.dedup();
        Ok(found)
    }

    fn sync_names(&self) -> Result<(), StoreError> {
        sync(&self.root)
    }

    fn sync(&self) -> Result<(), StoreError> {
        let dir = File::open(&self.root).map_err(at("open", &self.root))?;
        rustix::fs::syncfs(&dir).map_err(at("sync", &self.root))
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
    for directory in &pending.implied {
        match below.lstat(directory) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                let xattrs = crate::layers::settle::xattrs(below, directory)?;
                settled.copy_directory(layer, directory, Some((&stat, xattrs)));
                any = true;
            }
            _ => {}
        }
    }
    for (name, target) in &pending.links {
        let stat = below.lstat(target)?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW;
                let file = File::from(below.open_in_root(target, flags, Mode::empty())?);
                let size = u64::try_from(stat.st_size).unwrap_or_default();
                let data = image.file(size, file)?;
                erofs::Kind::File { size, data }
            }
            FileType::Symlink => {
                use std::os::unix::ffi::OsStrExt;
                let to = below.read_link(target)?;
                erofs::Kind::Symlink(to.as_os_str().as_bytes().into())
            }
            other => return Err(crate::layers::settle::uncopyable(name, other)),
        };
        let xattrs = crate::layers::settle::xattrs(below, target)?;
        settled.copy_file(layer, name, kind, &stat, xattrs);
        any = true;
    }
    if any {
        image.finish(&settled)?;
    }
    Ok(any)
}
