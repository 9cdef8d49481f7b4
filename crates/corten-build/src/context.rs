//! The build context: where the Dockerfile, the ignore file and the sources of COPY come from.

use std::io;
use std::path::{Path, PathBuf};

use corten_dockerfile::IgnoreRules;
use corten_store::archive::decompress;
use corten_store::rooted::RootFd;
use corten_store::{Store, TmpDir};
use rustix::fs::FileType;

use crate::cancel::Cancel;
use crate::error::BuildError;
use crate::ops::tree::{Selection, Tree};
use crate::ops::unpack;
use crate::request::{Context, DockerfileSource};

/// Largest Dockerfile or ignore file that is read.
const LIMIT: u64 = 16 << 20;

/// A context that can be read from.
#[derive(Debug)]
pub(crate) struct OpenContext {
    root: Option<RootFd>,
    /// What users know it as.
    path: PathBuf,
    /// Its files stay what they are from build to build.
    lasting: bool,
    unpacked: Option<TmpDir>,
}

/// A Dockerfile's name and text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Definition {
    pub(crate) name: String,
    pub(crate) text: String,
}

impl OpenContext {
    /// Opens a directory; unpacks a stream.
    pub(crate) fn open(
        context: Context,
        store: &Store,
        cancel: &Cancel,
    ) -> Result<Self, BuildError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| BuildError::Context {
                path,
                source: Box::new(source),
            }
        };
        match context {
            Context::Empty => Ok(Self {
                root: None,
                path: PathBuf::from("-"),
                lasting: false,
                unpacked: None,
            }),
            Context::Dir(path) => Ok(Self {
                root: Some(RootFd::open(&path).map_err(failed(&path))?),
                path,
                lasting: true,
                unpacked: None,
            }),
            Context::Remote(url) => Err(BuildError::Internal(format!(
                "{} was not fetched",
                crate::remote::masked(&url)
            ))),
            Context::Tar(stream) => {
                let path = PathBuf::from("-");
                let tmp = store.tmp_dir("context")?;
                let root = RootFd::open(tmp.path()).map_err(failed(&path))?;
                let to = unpack::Unpacking::into(&root, unpack::Owners::All(0, 0));
                decompress(stream)
                    .and_then(|(_, plain)| unpack::unpack(plain, &to, cancel))
                    .map_err(failed(&path))?;
                cancel.check()?;
                Ok(Self {
                    root: Some(root),
                    path,
                    lasting: false,
                    unpacked: Some(tmp),
                })
            }
        }
    }

    /// Reads the Dockerfile.
    pub(crate) fn dockerfile(&self, source: &DockerfileSource) -> Result<Definition, BuildError> {
        let (name, content) = match source {
            DockerfileSource::Inline(text) => {
                return Ok(Definition {
                    name: "Dockerfile".to_owned(),
                    text: text.clone(),
                });
            }
            DockerfileSource::InContext(path) => {
                let content = match &self.root {
                    Some(root) => root.read(Path::new(path), LIMIT),
                    None => Err(io::ErrorKind::NotFound.into()),
                };
                (path.clone(), content)
            }
            DockerfileSource::File(path) => {
                let shown = path.display().to_string();
                (shown, read_file(path))
            }
        };
        let content = content.map_err(|source| BuildError::Dockerfile {
            path: name.clone(),
            source,
        })?;
        let text = String::from_utf8(content).map_err(|_| BuildError::Dockerfile {
            path: name.clone(),
            source: io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"),
        })?;
        let shown = Path::new(&name).file_name();
        let name = shown.map_or(name.clone(), |n| n.to_string_lossy().into_owned());
        Ok(Definition { name, text })
    }

    /// Reads the rules: `<Dockerfile>.dockerignore`, else `.dockerignore`. Tells the file's
    /// name, too.
    pub(crate) fn ignore(
        &self,
        source: &DockerfileSource,
    ) -> Result<(String, IgnoreRules), BuildError> {
        let mut found = None;
        match source {
            DockerfileSource::InContext(path) => {
                let name = format!("{path}.dockerignore");
                found = self.optional(&name)?.map(|text| (name, text));
            }
            DockerfileSource::File(path) => {
                let mut name = path.clone().into_os_string();
                name.push(".dockerignore");
                let path = PathBuf::from(name);
                found = match read_file(&path) {
                    Ok(text) => Some((path.display().to_string(), text)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                    Err(source) => return Err(self.failed(source)),
                };
            }
            DockerfileSource::Inline(_) => {}
        }
        let name = ".dockerignore".to_owned();
        let (name, text) = match found {
            Some(found) => found,
            None => {
                let text = self.optional(&name)?.unwrap_or_default();
                (name, text)
            }
        };
        let text = String::from_utf8_lossy(&text);
        let rules = IgnoreRules::parse(&text)
            .map_err(|e| self.failed(io::Error::other(format!("{name}: {e}"))))?;
        Ok((name, rules))
    }

    fn optional(&self, name: &str) -> Result<Option<Vec<u8>>, BuildError> {
        let Some(root) = &self.root else {
            return Ok(None);
        };
        match root.read(Path::new(name), LIMIT) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(self.failed(source)),
        }
    }

    fn failed(&self, source: io::Error) -> BuildError {
        BuildError::Context {
            path: self.path.clone(),
            source: Box::new(source),
        }
    }

    /// When the newest file of an archive was last changed, in seconds since the epoch.
    pub(crate) fn newest(&self) -> Result<Option<i64>, BuildError> {
        let (Some(_), Some(dir)) = (&self.unpacked, &self.root) else {
            return Ok(None);
        };
        let root = dir.directory(Path::new("")).map_err(|e| self.failed(e))?;
        let tree = Tree {
            root: RootFd::from(root),
            ignore: IgnoreRules::default(),
            foreign: true,
            remember: false,
        };
        let files = tree
            .select(&Selection::of(&String::new(), true))
            .map_err(|e| self.failed(io::Error::other(e.to_string())))?;
        let files = files
            .iter()
            .filter(|file| file.kind == FileType::RegularFile);
        Ok(files.map(|file| file.mtime.0).max())
    }

    /// The files COPY sees. The directory of an unpacked stream goes with the second value.
    pub(crate) fn into_tree(self, ignore: IgnoreRules) -> (Option<Tree>, Option<TmpDir>) {
        let tree = self.root.map(|root| Tree {
            root,
            ignore,
            foreign: true,
            remember: self.lasting,
        });
        (tree, self.unpacked)
    }
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read as _;
    let file = std::fs::File::open(path)?;
    let mut content = Vec::new();
    file.take(LIMIT + 1).read_to_end(&mut content)?;
    if content.len() as u64 > LIMIT {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too large"));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dockerfiles_own_ignore_file_wins() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("app.Dockerfile", "FROM scratch\n");
        write(".dockerignore", "a\n");
        let path = dir.path().join("db");
        let database = corten_db::Database::open(&path, &[corten_store::SCHEMA]).unwrap();
        let store = Store::open(dir.path(), database);
        let context = Context::Dir(dir.path().to_owned());
        let open = OpenContext::open(context, &store, &Cancel::default()).unwrap();
        let source = DockerfileSource::InContext("app.Dockerfile".into());
        assert_eq!(open.dockerfile(&source).unwrap().text, "FROM scratch\n");
        assert!(open.ignore(&source).unwrap().1.ignores("a"));
        write("app.Dockerfile.dockerignore", "b\n");
        let (name, rules) = open.ignore(&source).unwrap();
        assert_eq!(name, "app.Dockerfile.dockerignore");
        assert!(rules.ignores("b") && !rules.ignores("a"));
        let missing = open.dockerfile(&DockerfileSource::default()).unwrap_err();
        assert_eq!(
            missing.to_string(),
            "failed to read dockerfile: open Dockerfile: no such file or directory"
        );
    }
}
