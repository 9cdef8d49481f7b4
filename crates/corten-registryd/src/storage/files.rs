//! A folder of plain files. What has its name is complete: it was written below `tmp` (or
//! `_uploads`), synced, renamed, and its folder synced.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use corten_oci::Digest;

use super::{Result, keys, locks};
use crate::error::IoContext as _;
use crate::names::UploadId;

/// Uploads and temporary files untouched for this long are removed.
pub(super) const STALE_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// The files below one root.
#[derive(Debug)]
pub(super) struct Files {
    root: PathBuf,
}

impl Files {
    /// Opens the root, and unless `read_only` makes it and its folders.
    pub(super) fn open(root: &Path, read_only: bool) -> Result<Self> {
        if read_only {
            fs::read_dir(root).context("open the registry's root", root)?;
        } else {
            make_dir(root)?;
            for folder in [keys::BLOBS, keys::REPOSITORIES, "tmp", locks::FOLDER] {
                make_dir(&root.join(folder))?;
            }
        }
        Ok(Self {
            root: root.to_owned(),
        })
    }

    /// Opens a root that has been served before.
    pub(super) fn existing(root: &Path) -> Result<Self> {
        fs::read_dir(root.join(keys::REPOSITORIES)).context("open the registry's root", root)?;
        make_dir(&root.join(locks::FOLDER))?;
        Self::open(root, true)
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    /// A blob's bytes.
    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.path(&keys::blob(digest)).join("data")
    }

    /// Whether the files can be reached.
    pub(super) fn check(&self) -> Result<()> {
        fs::read_dir(&self.root)
            .context("open the registry's root", &self.root)
            .map(drop)
    }

    /// A blob's file and its size.
    pub(super) fn open_blob(&self, digest: &Digest) -> Result<Option<(File, u64)>> {
        let path = self.blob(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context("open", &path),
        };
        let size = file.metadata().context("read the size of", &path)?.len();
        Ok(Some((file, size)))
    }

    /// Writes a whole file so that it appears at once or not at all.
    pub(super) fn write(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let temporary = self.root.join("tmp").join(UploadId::random().as_str());
        let _guard = RemoveOnDrop(&temporary);
        let mut file = File::create_new(&temporary).context("create", &temporary)?;
        file.write_all(bytes).context("write", &temporary)?;
        // The kernel's own stamp may be some milliseconds old, which a collection could mistake.
        file.set_modified(SystemTime::now())
            .context("set the time of", &temporary)?;
        file.sync_all().context("sync", &temporary)?;
        self.place(&temporary, path)
    }

    /// Moves a complete and synced file to its place, replacing what is there.
    pub(super) fn place(&self, from: &Path, to: &Path) -> Result<()> {
        let folder = to.parent().unwrap_or(&self.root);
        make_dir(folder)?;
        fs::rename(from, to).context("move a file to", to)?;
        sync_dir(folder)
    }

    /// All blobs, whoever has them.
    pub(super) fn blobs(&self) -> Result<Vec<Digest>> {
        let mut found = Vec::new();
        for algorithm in keys::ALGORITHMS {
            let top = self.root.join(keys::BLOBS).join(algorithm);
            for prefix in list(&top)? {
                let names = list(&top.join(prefix))?;
                let digests = names.iter().map(|hex| format!("{algorithm}:{hex}"));
                found.extend(digests.filter_map(|text| text.parse::<Digest>().ok()));
            }
        }
        Ok(found)
    }

    /// Bytes of all blobs.
    pub(super) fn bytes(&self) -> Result<u64> {
        let mut bytes = 0;
        for digest in self.blobs()? {
            bytes += stat(&self.blob(&digest))?.map_or(0, |(_, size)| size);
        }
        Ok(bytes)
    }

    /// Removes temporary files that nobody has touched for long.
    pub(super) fn sweep_temporary(&self) {
        sweep(&self.root.join("tmp"));
    }
}

/// Removes a temporary file that did not get to its place (where it did, nothing has its name).
struct RemoveOnDrop<'a>(&'a Path);

impl Drop for RemoveOnDrop<'_> {
    fn drop(&mut self) {
        // Best effort: what stays is swept at a later start.
        let _ = fs::remove_file(self.0);
    }
}

/// Makes a folder and its parents, each one synced into the folder above it.
pub(super) fn make_dir(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Ok(()) => match path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            Some(parent) => sync_dir(parent),
            None => Ok(()),
        },
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => {
                make_dir(parent)?;
                make_dir(path)
            }
            _ => Err(error).context("create", path),
        },
        Err(error) => Err(error).context("create", path),
    }
}

fn sync_dir(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .context("sync", path)
}

/// Removes a file for good; false if there was none.
pub(super) fn remove(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => {
            if let Some(folder) = path.parent() {
                sync_dir(folder)?;
            }
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).context("remove", path),
    }
}

/// The names in a folder, none if there is no such folder. Names that are not UTF-8 were not
/// written here and are left out.
pub(super) fn list(path: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error).context("list", path),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.context("list", path)?;
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}

/// The content of a small file, `None` if there is no such file.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("read", path),
    }
}

/// When a file was changed, and its size; `None` if there is none.
pub(super) fn stat(path: &Path) -> Result<Option<(SystemTime, u64)>> {
    match fs::metadata(path) {
        Ok(metadata) => {
            let changed = metadata.modified().context("look at", path)?;
            Ok(Some((changed, metadata.len())))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("look at", path),
    }
}

/// Gives a file the time of now, if it is there.
pub(super) fn touch(path: &Path) -> Result<()> {
    match File::open(path).and_then(|file| file.set_modified(SystemTime::now())) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).context("set the time of", path)
        }
        _ => Ok(()),
    }
}

/// Removes files untouched for [`STALE_AFTER`]. A file that cannot be removed is logged: it
/// wastes space but hinders nothing.
pub(super) fn sweep(folder: &Path) {
    let Some(limit) = SystemTime::now().checked_sub(STALE_AFTER) else {
        return;
    };
    let names = match list(folder) {
        Ok(names) => names,
        Err(error) => {
            tracing::warn!(%error, "cannot look for stale files");
            return;
        }
    };
    for name in names {
        let path = folder.join(name);
        let stale = fs::symlink_metadata(&path)
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|modified| modified < limit);
        if !stale {
            continue;
        }
        match fs::remove_file(&path) {
            Ok(()) => tracing::info!(path = %path.display(), "removed a stale upload"),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot remove a stale upload");
            }
        }
    }
}
