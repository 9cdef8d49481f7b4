//! A context as a tar, for engines that cannot read our files.
//!
//! What `.dockerignore` leaves out is not sent, except the Dockerfile and the
//! `.dockerignore` themselves, which the engine needs. Files belong to root in the tar, as in
//! Docker's, so that the cache does not depend on who builds.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use corten_dockerfile::ignore::IgnoreRules;
use futures_util::Stream;
use tar::{EntryType, Header};

use super::context::Dockerfile;
use crate::error::{CliError, Result, reason};
use crate::pieces;

const IGNORE_FILE: &str = ".dockerignore";

/// A tar that is to be made.
pub(super) enum Tarball {
    Directory {
        root: PathBuf,
        rules: IgnoreRules,
        always: Vec<String>,
        added: Vec<(String, Vec<u8>)>,
        compress: bool,
    },
    Dockerfile(Vec<u8>),
    Stdin(Vec<u8>),
}

/// Why a tar could not be made, once that is known.
#[derive(Debug, Clone, Default)]
pub(super) struct Sending(Arc<Mutex<Option<String>>>);

impl Sending {
    /// The error, if there was one.
    pub(super) fn failure(&self) -> Option<CliError> {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slot.take()
            .map(|text| CliError::message(format!("error building the context: {text}")))
    }
}

impl Tarball {
    /// A directory, and what the Dockerfile is called in the tar.
    pub(super) fn of_directory(
        root: PathBuf,
        dockerfile: Dockerfile,
        compress: bool,
    ) -> Result<(Self, String)> {
        let mut added = Vec::new();
        let read = |path: &Path| {
            fs::read(path).map_err(|source| CliError::File {
                action: "open",
                path: path.into(),
                source,
            })
        };
        let (name, beside) = match dockerfile {
            Dockerfile::Inside(path) => {
                let beside = root.join(format!("{path}{IGNORE_FILE}"));
                (path, Some(beside))
            }
            Dockerfile::Outside(path) => {
                let name = foreign_name(&path.to_string_lossy());
                added.push((name.clone(), read(&path)?));
                let mut beside = path.into_os_string();
                beside.push(IGNORE_FILE);
                (name, Some(PathBuf::from(beside)))
            }
            Dockerfile::Text(text) => {
                let name = foreign_name("-");
                added.push((name.clone(), text));
                (name, None)
            }
        };
        let beside = beside.filter(|path| path.exists());
        let rules = match beside.clone().unwrap_or_else(|| root.join(IGNORE_FILE)) {
            path if path.exists() => IgnoreRules::parse(&String::from_utf8_lossy(&read(&path)?))
                .map_err(|error| {
                    CliError::message(format!(
                        "error checking context: {}: {error}",
                        path.display()
                    ))
                })?,
            _ => IgnoreRules::default(),
        };
        // The rules that count must be the engine's, too.
        if let Some(path) = beside
            && !path.starts_with(&root)
        {
            added.push((format!("{name}{IGNORE_FILE}"), read(&path)?));
        }
        let always = vec![
            name.clone(),
            format!("{name}{IGNORE_FILE}"),
            IGNORE_FILE.to_owned(),
        ];
        Ok((
            Self::Directory {
                root,
                rules,
                always,
                added,
                compress,
            },
            name,
        ))
    }

    /// A Dockerfile and nothing else.
    pub(super) fn of_dockerfile(text: Vec<u8>) -> Self {
        Self::Dockerfile(text)
    }

    /// Somebody else's tar on standard input, after its first bytes.
    pub(super) fn of_stdin(start: Vec<u8>) -> Self {
        Self::Stdin(start)
    }

    /// Makes it on a thread of its own, as fast as it is read.
    pub(super) fn stream(
        self,
    ) -> (
        impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        Sending,
    ) {
        let sending = Sending::default();
        let failure = sending.clone();
        let stream = pieces::written(move |out| {
            self.write(out).inspect_err(|error| {
                if error.kind() != io::ErrorKind::BrokenPipe {
                    let text = reason(error);
                    *failure.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
                }
            })
        });
        (stream, sending)
    }

    fn write(self, mut out: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::Stdin(start) => {
                out.write_all(&start)?;
                io::copy(&mut io::stdin().lock(), &mut out).map(drop)
            }
            Self::Dockerfile(text) => {
                let mut tar = tar::Builder::new(out);
                append(&mut tar, "Dockerfile", &text)?;
                tar.finish()
            }
            Self::Directory {
                root,
                rules,
                always,
                added,
                compress,
            } => {
                let walk = Walk {
                    root: &root,
                    rules: &rules,
                    always: &always,
                };
                if compress {
                    let mut gzip =
                        flate2::write::GzEncoder::new(&mut *out, flate2::Compression::fast());
                    walk.write(&mut gzip, &added)?;
                    gzip.finish().map(drop)
                } else {
                    walk.write(out, &added)
                }
            }
        }
    }
}

/// A name that no file of the context has.
fn foreign_name(path: &str) -> String {
    let digest = corten_oci::Digest::of(format!("{path} {}", std::process::id()).as_bytes());
    format!(".dockerfile.{}", &digest.hex()[..20])
}

fn append(tar: &mut tar::Builder<impl Write>, name: &str, content: &[u8]) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(0o600);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, name, content)
}

struct Walk<'a> {
    root: &'a Path,
    rules: &'a IgnoreRules,
    always: &'a [String],
}

impl Walk<'_> {
    fn write(&self, out: impl Write, added: &[(String, Vec<u8>)]) -> io::Result<()> {
        let mut tar = tar::Builder::new(out);
        self.directory(&mut tar, self.root, "")?;
        for (name, content) in added {
            append(&mut tar, name, content)?;
        }
        tar.finish()
    }

    fn directory(
        &self,
        tar: &mut tar::Builder<impl Write>,
        path: &Path,
        name: &str,
    ) -> io::Result<()> {
        let mut entries: Vec<_> = fs::read_dir(path)
            .map_err(|e| at(path, &e))?
            .collect::<io::Result<_>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let file = entry.file_name();
            let file = file.to_string_lossy();
            let name = if name.is_empty() {
                file.into_owned()
            } else {
                format!("{name}/{file}")
            };
            let path = entry.path();
            let metadata = fs::symlink_metadata(&path).map_err(|e| at(&path, &e))?;
            let below = format!("{name}/");
            let needed = self.always.contains(&name)
                || self.always.iter().any(|always| always.starts_with(&below));
            let ignored = self.rules.ignores(&name) && !needed;
            if metadata.is_dir() {
                if !ignored {
                    self.append(tar, &path, &name, &metadata)?;
                }
                if !ignored || self.rules.may_keep_below(&name) {
                    self.directory(tar, &path, &name)?;
                }
            } else if !ignored {
                self.append(tar, &path, &name, &metadata)?;
            }
        }
        Ok(())
    }

    fn append(
        &self,
        tar: &mut tar::Builder<impl Write>,
        path: &Path,
        name: &str,
        metadata: &fs::Metadata,
    ) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_metadata_in_mode(metadata, tar::HeaderMode::Complete);
        header.set_uid(0);
        header.set_gid(0);
        let kind = metadata.file_type();
        if kind.is_symlink() {
            let target = fs::read_link(path).map_err(|e| at(path, &e))?;
            header.set_entry_type(EntryType::Symlink);
            header.set_size(0);
            tar.append_link(&mut header, name, target)
        } else if kind.is_dir() {
            tar.append_data(&mut header, format!("{name}/"), io::empty())
        } else if kind.is_file() {
            let file = File::open(path).map_err(|e| at(path, &e))?;
            // A file that changes while it is read must not shift what comes after it.
            let exact = Exact {
                file,
                left: metadata.len(),
            };
            header.set_size(metadata.len());
            tar.append_data(&mut header, name, exact)
        } else {
            // Sockets, devices and pipes are no content (Docker leaves sockets out, too).
            tracing::debug!(path = %path.display(), "not a file: left out of the context");
            Ok(())
        }
    }
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("{}: {}", path.display(), reason(error)),
    )
}

/// Reads exactly so many bytes; zeros where a file has become shorter.
struct Exact {
    file: File,
    left: u64,
}

impl Read for Exact {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let mut read = self.file.read(&mut buffer[..most])?;
        if read == 0 {
            buffer[..most].fill(0);
            read = most;
        }
        self.left -= read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    async fn names(tarball: Tarball) -> Vec<String> {
        let (stream, sending) = tarball.stream();
        let bytes: Vec<u8> = stream.map(|chunk| chunk.unwrap().to_vec()).concat().await;
        assert!(sending.failure().is_none());
        let mut archive = tar::Archive::new(bytes.as_slice());
        archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                assert_eq!(entry.header().uid().unwrap(), 0);
                entry.path().unwrap().to_string_lossy().into_owned()
            })
            .collect()
    }

    #[tokio::test]
    async fn leaves_out_what_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [
            (".dockerignore", "*\n!keep\n!deep/in/kept\n"),
            ("Dockerfile", "FROM scratch\n"),
            ("keep/a", ""),
            ("drop", ""),
            ("deep/in/kept", ""),
            ("deep/in/dropped", ""),
        ] {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let inside = Dockerfile::Inside("Dockerfile".into());
        let (tarball, name) = Tarball::of_directory(dir.path().into(), inside, false).unwrap();
        assert_eq!(name, "Dockerfile");
        assert_eq!(
            names(tarball).await,
            [
                ".dockerignore",
                "Dockerfile",
                "deep/in/kept",
                "keep/",
                "keep/a"
            ]
        );
        let text = Dockerfile::Text(b"FROM scratch\n".to_vec());
        let (tarball, name) = Tarball::of_directory(dir.path().into(), text, false).unwrap();
        assert!(names(tarball).await.contains(&name));
    }

    #[tokio::test]
    async fn a_dockerfile_alone() {
        assert_eq!(
            names(Tarball::of_dockerfile(b"FROM scratch\n".to_vec())).await,
            ["Dockerfile"]
        );
    }
}
