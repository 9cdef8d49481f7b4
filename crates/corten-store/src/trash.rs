//! What a collection or a sweep puts out of use: first it is moved into one directory, then that
//! is [`Rubbish`], however long it takes to delete.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{StoreError, at};
use crate::rooted;
use crate::rubbish::{self, Rubbish};
use crate::tmp::TmpDir;

/// What is moved away before it is deleted.
pub(crate) struct Trash {
    /// `None`: there is no room for a directory, so that things are deleted at once.
    dir: Option<TmpDir>,
    /// How many things are in it.
    count: usize,
    /// What may have to be put back.
    moved: Vec<(PathBuf, PathBuf)>,
}

impl Trash {
    pub(crate) fn new(tmp: &Path) -> Self {
        let dir = TmpDir::create(tmp, rubbish::PREFIX);
        if let Err(error) = &dir {
            tracing::debug!(%error, "what is collected is deleted at once");
        }
        Self {
            dir: dir.ok(),
            count: 0,
            moved: Vec::new(),
        }
    }

    /// Takes something in; whether it was there.
    pub(crate) fn take(&mut self, path: &Path) -> Result<bool, StoreError> {
        let taken = match &self.dir {
            Some(dir) => {
                // A layer and the blob of its plain tar have the same name.
                let to = dir.path().join(self.count.to_string());
                self.count += 1;
                fs::rename(path, &to).map(|()| self.moved.push((path.to_owned(), to)))
            }
            None if path.is_dir() => rooted::remove_path(path),
            None => fs::remove_file(path),
        };
        match taken {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(at("move away", path)(error)),
        }
    }

    /// What is in it up to now is not put back.
    pub(crate) fn keep(&mut self) {
        self.moved.clear();
    }

    /// What is in it, to be deleted.
    pub(crate) fn rubbish(self) -> Option<Rubbish> {
        self.dir.map(Rubbish::new)
    }

    /// Puts back what it does not keep.
    pub(crate) fn put_back(&mut self) {
        for (from, to) in self.moved.drain(..).rev() {
            if let Err(error) = fs::rename(to, &from) {
                tracing::warn!(path = %from.display(), %error, "not put back");
            }
        }
    }
}
