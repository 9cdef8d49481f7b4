//! Outputs that are no image: the files of the result, in a directory or as a tar.

use std::fs::{self, File};
use std::io::BufWriter;
use std::os::fd::AsFd as _;
use std::path::Path;

use corten_oci::{DiffId, Platform};
use corten_store::rooted::RootFd;
use corten_store::{Store, Upper};

use crate::cancel::Cancel;
use crate::error::{BuildError, reason};
use crate::ops::tree::{Selection, Tree};
use crate::ops::write::Writer;
use crate::request::FilesOutput;

impl FilesOutput {
    /// Whether it is one file.
    pub(crate) fn is_tar(&self) -> bool {
        !matches!(self, Self::Directory(_))
    }

    /// Where the files of one platform of several go: `linux_arm64`, as with BuildKit.
    pub(crate) fn of(&self, platform: Option<&Platform>) -> Self {
        match (self, platform) {
            (Self::Directory(path), Some(platform)) => {
                Self::Directory(path.join(platform.to_string().replace('/', "_")))
            }
            _ => self.clone(),
        }
    }

    /// What the step is called.
    pub(crate) fn shown(&self) -> &'static str {
        match self {
            Self::Directory(_) => "exporting to client directory",
            Self::Tar(_) | Self::Stdout => "exporting to client tarball",
        }
    }
}

/// Writes the files of a stack of layers; all of this time, where there is one. Blocks.
pub(crate) fn export(
    store: &Store,
    layers: &[DiffId],
    output: &FilesOutput,
    date: Option<i64>,
    cancel: &Cancel,
) -> Result<(), BuildError> {
    match output {
        FilesOutput::Directory(path) => directory(store, layers, path, date, cancel),
        FilesOutput::Tar(path) => {
            let file = File::options()
                .write(true)
                .create(true)
                .truncate(true)
                .open(path)
                .map_err(BuildError::io(format!("write {}", path.display())))?;
            tar(store, layers, date, file)
        }
        FilesOutput::Stdout => {
            // The descriptor itself: opened by its path, it would lose what is in it already,
            // and a socket cannot be opened at all.
            let stdout = std::io::stdout().as_fd().try_clone_to_owned();
            let stdout = stdout.map_err(BuildError::io("write to standard output"))?;
            tar(store, layers, date, File::from(stdout))
        }
    }
}

/// Files that are there already are replaced, others stay, as with BuildKit.
fn directory(
    store: &Store,
    layers: &[DiffId],
    path: &Path,
    date: Option<i64>,
    cancel: &Cancel,
) -> Result<(), BuildError> {
    let failed = |what: &Path| BuildError::io(format!("write {}", what.display()));
    fs::create_dir_all(path).map_err(failed(path))?;
    let mount = store.layers().mount(layers, Upper::ReadOnly)?;
    let tree = Tree::of_image(RootFd::from(mount));
    let entries = tree
        .select(&Selection::of(&String::new(), true))
        .map_err(|e| BuildError::Internal(format!("the result cannot be read: {e}")))?;
    let root = RootFd::open(path).map_err(failed(path))?;
    let writer = Writer {
        date,
        ..Writer::plain(&root, cancel)
    };
    writer
        .entries(&tree, &entries, Path::new("/"))
        .map_err(|(below, error)| {
            if error.kind() == std::io::ErrorKind::Interrupted {
                return BuildError::Cancelled;
            }
            let below = below.strip_prefix("/").unwrap_or(&below);
            BuildError::Invalid(format!(
                "cannot write {}: {}",
                path.join(below).display(),
                reason(&error)
            ))
        })
}

fn tar(store: &Store, layers: &[DiffId], date: Option<i64>, to: File) -> Result<(), BuildError> {
    let failed = || BuildError::io("write the files of the result");
    let nothing = store.tmp_dir("export")?;
    let upper = nothing.path().join("upper");
    fs::create_dir(&upper).map_err(failed())?;
    let merged = store.layers().mount_merged(layers, &upper)?;
    let mut out = BufWriter::with_capacity(1 << 18, to);
    merged.write_dated_tar(date, &mut out)?;
    std::io::Write::flush(&mut out).map_err(failed())
}
