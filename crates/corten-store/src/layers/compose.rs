//! Layers made of files that are elsewhere. What is told is written as the deterministic tar that a
//! directory of the same content has, which is hashed and unpacked at once; so the layer is the
//! same as if a build step had written it. A large one is written straight into an image: no file
//! of it is ever created as such.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use corten_oci::digest::Algorithm;
use corten_oci::{DiffId, Digest};

use super::decode::Feed;
use super::pending::Pending;
use super::tar_header::{self, Entry};
use super::{LayerInfo, Layers, decode};
use crate::error::StoreError;
use crate::rooted;
use crate::tmp::TmpDir;

/// How much there is in a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bulk {
    /// Its tar takes little memory: it is made without threads, as a directory.
    Small,
    /// More, but few files: a directory.
    Medium,
    /// Much: an image where that [spares](Layers::composes) the making of files.
    Large,
}

/// What every entry has.
#[derive(Debug, Clone, Copy)]
pub struct Described<'a> {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When it was changed, in seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes, sorted.
    pub xattrs: &'a [(OsString, Vec<u8>)],
}

impl<'a> Described<'a> {
    fn entry(&self, kind: u8) -> Entry<'a> {
        Entry {
            kind,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            mtime: self.mtime,
            xattrs: self.xattrs,
            ..Entry::default()
        }
    }
}

/// Takes the entries of a layer, whose paths are relative to its root: each directory before what
/// is in it, and what is in one in the order of names, bytewise.
#[derive(Debug)]
pub struct Composer<'a> {
    tar: &'a mut dyn Sink,
}

/// Where the tar goes.
trait Sink: Write + fmt::Debug {
    /// Takes in exactly so many bytes.
    fn copy(&mut self, size: u64, content: &mut dyn Read) -> io::Result<()>;
}

impl Sink for Feed<'_> {
    fn copy(&mut self, size: u64, content: &mut dyn Read) -> io::Result<()> {
        Feed::copy(self, size, content)
    }
}

impl Sink for Vec<u8> {
    fn copy(&mut self, size: u64, content: &mut dyn Read) -> io::Result<()> {
        let start = self.len();
        let size = usize::try_from(size).map_err(io::Error::other)?;
        self.resize(start + size, 0);
        content.read_exact(&mut self[start..])
    }
}

impl Composer<'_> {
    /// A directory.
    ///
    /// # Errors
    /// The layer cannot be written; why is told at the end.
    pub fn directory(&mut self, path: &Path, described: &Described<'_>) -> io::Result<()> {
        let path = [path.as_os_str().as_bytes(), b"/"].concat();
        tar_header::write(self.tar, &path, &described.entry(b'5'))
    }

    /// A symbolic link.
    ///
    /// # Errors
    /// As [`directory`](Self::directory).
    pub fn symlink(
        &mut self,
        path: &Path,
        described: &Described<'_>,
        target: &Path,
    ) -> io::Result<()> {
        let link = target.as_os_str().as_bytes();
        let entry = Entry {
            link,
            ..described.entry(b'2')
        };
        tar_header::write(self.tar, path.as_os_str().as_bytes(), &entry)
    }

    /// Another name of a file that has been told.
    ///
    /// # Errors
    /// As [`directory`](Self::directory).
    pub fn link(&mut self, path: &Path, described: &Described<'_>, first: &Path) -> io::Result<()> {
        let link = first.as_os_str().as_bytes();
        let entry = Entry {
            link,
            // The first name has them.
            xattrs: &[],
            ..described.entry(b'1')
        };
        tar_header::write(self.tar, path.as_os_str().as_bytes(), &entry)
    }

    /// A file, of exactly this size.
    ///
    /// # Errors
    /// As [`directory`](Self::directory); or the content is shorter, or cannot be read.
    pub fn file(
        &mut self,
        path: &Path,
        described: &Described<'_>,
        size: u64,
        mut content: impl Read,
    ) -> io::Result<()> {
        let entry = Entry {
            size,
            ..described.entry(b'0')
        };
        tar_header::write(self.tar, path.as_os_str().as_bytes(), &entry)?;
        self.tar.copy(size, &mut content)?;
        tar_header::pad(self.tar, size)
    }
}

impl Layers {
    /// Whether [`compose`](Self::compose) makes large layers without making their files.
    ///
    /// # Errors
    /// It could not be tried.
    pub fn composes(&self) -> Result<bool, StoreError> {
        self.driver.composes()
    }

    /// Makes a layer of what `make` tells; as with a build step's changes, it is synced when an
    /// image is stored.
    ///
    /// # Errors
    /// The store cannot be written; inside, what `make` failed with.
    pub fn compose<E: Send>(
        &self,
        bulk: Bulk,
        make: impl FnOnce(&mut Composer<'_>) -> Result<(), E> + Send,
    ) -> Result<Result<LayerInfo, E>, StoreError> {
        match bulk {
            Bulk::Small => self.compose_small(make),
            Bulk::Medium | Bulk::Large => self.compose_streaming(bulk, make),
        }
    }

    fn compose_streaming<E: Send>(
        &self,
        bulk: Bulk,
        make: impl FnOnce(&mut Composer<'_>) -> Result<(), E> + Send,
    ) -> Result<Result<LayerInfo, E>, StoreError> {
        let mut failure = None;
        let failed = &mut failure;
        let composed = decode::spread(
            Algorithm::Sha256,
            self.blobs.phases(),
            move |mut feed| {
                match make(&mut Composer { tar: &mut feed }) {
                    Ok(()) => tar_header::end(&mut feed).and_then(|()| feed.flush()),
                    Err(error) => {
                        // Who unpacks it has given up, and says why; else the error is ours.
                        if !feed.is_closed() {
                            *failed = Some(error);
                        }
                        feed.fail()
                    }
                }
            },
            |tar| match bulk {
                Bulk::Large => self.driver.compose(tar),
                Bulk::Small | Bulk::Medium => self.driver.compose_directory(tar),
            },
        );
        if let Some(error) = failure {
            return Ok(Err(error));
        }
        let (digest, staged) = composed?;
        let info = LayerInfo {
            diff_id: DiffId(digest),
            size: staged.content,
        };
        self.publish_made(&staged.path, &info, &staged.pending)
            .map(Ok)
    }

    fn compose_small<E>(
        &self,
        make: impl FnOnce(&mut Composer<'_>) -> Result<(), E>,
    ) -> Result<Result<LayerInfo, E>, StoreError> {
        let mut tar = Vec::new();
        if let Err(error) = make(&mut Composer { tar: &mut tar }) {
            return Ok(Err(error));
        }
        tar_header::end(&mut tar).map_err(StoreError::BadArchive)?;
        let diff_id = DiffId(Digest::of(&tar));
        // To look costs less than to be alone.
        if let Some(present) = self.info(&diff_id)? {
            return Ok(Ok(present));
        }
        let _lock = self.lock(&diff_id)?;
        if let Some(present) = self.info(&diff_id)? {
            return Ok(Ok(present));
        }
        let workbench = self.workbench()?;
        let path = workbench.path().join(diff_id.digest().hex());
        let made = self
            .driver
            .compose_small(&mut tar.as_slice(), &path)
            .and_then(|(size, pending)| {
                self.publish(&path, &diff_id, size, &pending, true)?;
                Ok(size)
            });
        match made {
            Ok(size) => Ok(Ok(LayerInfo { diff_id, size })),
            Err(error) => {
                if let Err(error) = rooted::remove_path(&path) {
                    tracing::debug!(%error, "goes with the directory it is in");
                }
                Err(error)
            }
        }
    }

    /// A directory for small layers that are being made; as long as this handle where that
    /// keeps anything: on a file system that discards blocks at once, to remove a directory takes
    /// longer than to make such a layer.
    fn workbench(&self) -> Result<Arc<TmpDir>, StoreError> {
        let create = || TmpDir::create(&self.tmp, "layers").map(Arc::new);
        let Some(kept) = &self.kept else {
            return create();
        };
        let mut workbench = kept
            .workbench
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match &*workbench {
            Some(workbench) => Ok(workbench.clone()),
            None => Ok(workbench.insert(create()?).clone()),
        }
    }

    /// Gives what was made here its name, unless it is there.
    pub(super) fn publish_made(
        &self,
        from: &Path,
        info: &LayerInfo,
        pending: &Pending,
    ) -> Result<LayerInfo, StoreError> {
        let _lock = self.lock(&info.diff_id)?;
        if let Some(present) = self.info(&info.diff_id)? {
            return Ok(present);
        }
        self.publish(from, &info.diff_id, info.size, pending, true)?;
        Ok(info.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use corten_db::Database;

    use super::super::rows::boot_id;
    use super::*;
    use crate::{LayerForm, Store};

    const PLAIN: Described<'_> = Described {
        mode: 0o644,
        uid: 1,
        gid: 2,
        mtime: (3, 4),
        xattrs: &[],
    };

    #[test]
    fn all_of_it_or_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(&dir.path().join("db"), &[crate::SCHEMA]).unwrap();
        let store = Store::open_with(dir.path(), database, LayerForm::Image);
        let layers = store.layers();
        match layers.composes() {
            Ok(true) => {}
            Ok(false) => return, // a kernel that does not mount images from files
            Err(error) => {
                assert!(!rustix::process::geteuid().is_root(), "{error}");
                return;
            }
        }
        let left = || fs::read_dir(dir.path().join("tmp")).unwrap().count();
        let content = vec![b'x'; 600_000];
        let tell = |out: &mut Composer<'_>| {
            out.directory(Path::new("d"), &PLAIN)?;
            for (name, size) in [("a", 3), ("b", 600_000)] {
                let path = Path::new("d").join(name);
                out.file(&path, &PLAIN, size, &content[..])?;
            }
            out.link(Path::new("d/c"), &PLAIN, Path::new("d/a"))
        };
        let failed = layers.compose(Bulk::Large, |out| {
            tell(out).unwrap();
            Err("of the caller's")
        });
        assert_eq!(failed.unwrap().unwrap_err(), "of the caller's");
        let short = layers.compose(Bulk::Large, |out| {
            out.file(Path::new("s"), &PLAIN, 5, &b"four"[..])
        });
        let kind = short.unwrap().unwrap_err().kind();
        assert_eq!(kind, io::ErrorKind::UnexpectedEof);
        // What cannot be unpacked is not the caller's fault.
        let refused = layers.compose(Bulk::Large, |out| {
            out.link(Path::new("e"), &PLAIN, Path::new("/"))?;
            tell(out)
        });
        let refused = refused.unwrap_err();
        assert!(matches!(refused, StoreError::BadEntry { .. }), "{refused}");
        assert_eq!((left(), layers.all().unwrap().len()), (0, 0));

        let info = layers.compose(Bulk::Large, tell).unwrap().unwrap();
        assert_eq!(info.size, 600_003);
        let mut tar = Vec::new();
        layers.tar(&info.diff_id, &mut tar).unwrap();
        assert_eq!(DiffId(corten_oci::Digest::of(&tar)), info.diff_id);
        let boot = || -> Option<String> {
            let read = |db: &rusqlite::Connection| {
                let row = db.query_row("SELECT boot FROM layer", [], |row| row.get(0));
                Ok::<_, StoreError>(row?)
            };
            store.database().read(read).unwrap()
        };
        // Not synced, until it is asked for.
        assert_eq!(boot().as_deref(), Some(boot_id()));
        assert_eq!(layers.verify(&info.diff_id).unwrap(), None);
        layers.make_durable(&[info.diff_id]).unwrap();
        assert_eq!((boot(), left()), (None, 0));
    }
}
