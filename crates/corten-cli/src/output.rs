//! Where an archive goes: standard output, or a file that has its name only when it is whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::client::BodyReader;
use crate::error::{CliError, Result, reason};
use crate::term;

/// An archive's destination.
#[derive(Debug)]
pub(crate) enum Output {
    Stdout,
    File(Pending),
}

/// A file that is being written beside the one it will be.
#[derive(Debug)]
pub(crate) struct Pending {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    done: bool,
}

impl Output {
    /// What `--output` says; a terminal is refused. `task` begins the complaint about a file
    /// that cannot be written: `save image`.
    pub(crate) fn open(path: Option<&str>, task: &str) -> Result<Self> {
        let Some(path) = path else {
            if term::stdout_is_terminal() {
                return Err(CliError::message(
                    "cowardly refusing to save to a terminal. Use the -o flag or redirect",
                ));
            }
            return Ok(Self::Stdout);
        };
        let failed = |what: String| CliError::message(format!("failed to {task}: {what}"));
        let target = Path::new(path);
        check(target).map_err(&failed)?;
        let temporary = beside(target);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(|error| failed(format!("open {}: {}", temporary.display(), reason(&error))))?;
        Ok(Self::File(Pending {
            file,
            temporary,
            target: target.to_owned(),
            done: false,
        }))
    }

    /// Writes what `work` writes.
    pub(crate) fn write(self, work: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                work(&mut out)?;
                out.flush()?;
                Ok(())
            }
            Self::File(mut pending) => {
                work(&mut pending.file).map_err(pending.failed("write"))?;
                pending.finish()
            }
        }
    }

    /// Writes a whole answer.
    pub(crate) async fn receive(self, mut from: BodyReader) -> Result {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                while let Some(bytes) = from.next().await? {
                    out.write_all(&bytes)?;
                }
                out.flush()?;
                Ok(())
            }
            Self::File(mut pending) => {
                while let Some(bytes) = from.next().await? {
                    pending.write(&bytes)?;
                }
                pending.finish()
            }
        }
    }
}

impl Pending {
    fn failed(&self, action: &'static str) -> impl FnOnce(io::Error) -> CliError + use<> {
        let path = self.target.clone();
        move |source| CliError::File {
            action,
            path,
            source,
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result {
        let failed = self.failed("write");
        self.file.write_all(bytes).map_err(failed)
    }

    fn finish(mut self) -> Result {
        self.file.sync_all().map_err(self.failed("sync"))?;
        fs::rename(&self.temporary, &self.target).map_err(self.failed("rename"))?;
        self.done = true;
        Ok(())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.done
            && let Err(error) = fs::remove_file(&self.temporary)
        {
            tracing::warn!(path = %self.temporary.display(), %error, "a partial file stays");
        }
    }
}

/// A hidden name in the same directory.
fn beside(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}.{}.part", std::process::id()))
}

/// Docker's words for what is no place for a file.
fn check(path: &Path) -> std::result::Result<(), String> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let invalid = |what: String| format!("invalid output path: {what}");
    match fs::metadata(directory) {
        Err(error) => {
            let text = format!("stat {}: {}", directory.display(), reason(&error));
            return Err(invalid(text));
        }
        Ok(found) if !found.is_dir() => {
            return Err(invalid(format!(
                "{} is not a directory",
                directory.display()
            )));
        }
        Ok(_) => {}
    }
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("stat {}: {}", path.display(), reason(&error))),
    };
    let what = if found.is_file() {
        return Ok(());
    } else if found.is_dir() {
        "to a directory"
    } else if found.is_symlink() {
        "to a symbolic link directly"
    } else if found.is_fifo() {
        "to a named pipe (FIFO)"
    } else if found.is_socket() {
        "to a socket"
    } else if found.is_char_device() {
        "to a character device file"
    } else {
        "to a block device file"
    };
    Err(format!("cannot write {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_in_directories() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "").unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        assert_eq!(check(&at("new")), Ok(()));
        assert_eq!(check(&at("file")), Ok(()));
        assert_eq!(check(Path::new("new")), Ok(()));
        for (path, complaint) in [
            (dir.path().to_owned(), "cannot write to a directory"),
            (at("link"), "cannot write to a symbolic link directly"),
            (
                "/dev/null".into(),
                "cannot write to a character device file",
            ),
            (
                "/nonexist/x".into(),
                "invalid output path: stat /nonexist: no such file or directory",
            ),
        ] {
            assert_eq!(check(&path).unwrap_err(), complaint);
        }
    }

    #[test]
    fn what_is_not_finished_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("archive");
        let open = || match Output::open(target.to_str(), "save image").unwrap() {
            Output::File(pending) => pending,
            Output::Stdout => panic!("a path was given"),
        };
        let mut pending = open();
        pending.write(b"half").unwrap();
        drop(pending);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let mut pending = open();
        pending.write(b"whole").unwrap();
        pending.finish().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"whole");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
