//! Where COPY takes its files from, and which of them it takes: sources, patterns, ignored
//! and excluded files become one sorted list. Every path is resolved inside the tree's root.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use corten_dockerfile::IgnoreRules;
use corten_store::rooted::{RootFd, normal};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};

use super::{glob, walk};
use crate::file_index::{FileId, nanoseconds};

/// A directory files are taken from.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) root: RootFd,
    pub(crate) ignore: IgnoreRules,
    /// A user's files: their owners say nothing, and they belong to root in the image.
    pub(crate) foreign: bool,
    /// What stat(2) tells identifies a file's content from build to build.
    pub(crate) remember: bool,
}

/// One file or directory to be written.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Where it is in the tree.
    pub(crate) path: PathBuf,
    /// Where it goes below the destination; empty: it is the destination itself.
    pub(crate) to: PathBuf,
    pub(crate) kind: FileType,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, i64),
    pub(crate) rdev: u64,
    /// More names than one.
    pub(crate) linked: bool,
    pub(crate) id: FileId,
    /// Target of a symbolic link.
    pub(crate) target: PathBuf,
    /// A file named by itself, not by way of its directory: what ADD may unpack.
    pub(crate) named: bool,
}

/// Why sources could not be selected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SelectError {
    #[error("\"/{path}\": not found")]
    NotFound { path: String, hint: Option<String> },
    #[error("\"/{path}\": {source}")]
    Io {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("there is more than was to be looked at")]
    Many,
    #[error("{0}")]
    Exclude(#[from] corten_dockerfile::IgnoreError),
}

/// What COPY asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Selection<'a> {
    pub(crate) sources: &'a [String],
    pub(crate) exclude: &'a [String],
    pub(crate) parents: bool,
    /// The destination is a directory, or will be: single files go into it.
    pub(crate) into_directory: bool,
    /// The sources are names as they are, without patterns.
    pub(crate) literal: bool,
    /// More files than this is too much, and so are more names that a pattern is compared with.
    pub(crate) at_most: Option<usize>,
}

impl<'a> Selection<'a> {
    /// What one name leads to, taken as it is.
    pub(crate) fn of(path: &'a String, into_directory: bool) -> Self {
        Self {
            sources: std::slice::from_ref(path),
            exclude: &[],
            parents: false,
            into_directory,
            literal: true,
            at_most: None,
        }
    }

    /// The same, but nothing where there is more to be looked at.
    pub(crate) fn at_most(self, count: usize) -> Self {
        Self {
            at_most: Some(count),
            ..self
        }
    }
}

impl Tree {
    /// Files of an image, a stage or a download: nothing of them is ignored.
    pub(crate) fn of_image(root: RootFd) -> Self {
        Self {
            root,
            ignore: IgnoreRules::default(),
            foreign: false,
            remember: false,
        }
    }

    /// The files, each directory before what is in it.
    pub(crate) fn select(&self, selection: &Selection<'_>) -> Result<Vec<Entry>, SelectError> {
        let exclude = IgnoreRules::from_patterns(selection.exclude)?;
        let mut taking = Taking {
            tree: self,
            exclude,
            found: Vec::new(),
            taken: HashSet::new(),
            counted: 0,
            names: Left(selection.at_most),
        };
        for source in selection.sources {
            taking.source(source, selection)?;
        }
        Ok(taking.found)
    }

    /// The paths a pattern stands for; a plain path stands for itself.
    fn expand(
        &self,
        source: &str,
        literal: bool,
        left: &mut Left,
    ) -> Result<Vec<PathBuf>, SelectError> {
        let mut found = vec![PathBuf::new()];
        for component in source.split('/').filter(|c| !c.is_empty() && *c != ".") {
            if literal || !glob::is_pattern(component) {
                found = found.iter().map(|dir| dir.join(component)).collect();
                continue;
            }
            let mut next = Vec::new();
            for dir in &found {
                let names = match self.open(dir).and_then(|fd| left.names(&fd)) {
                    Ok(Some(names)) => names,
                    Ok(None) => return Err(SelectError::Many),
                    Err(error) if is_missing(&error) => continue,
                    Err(source) => return Err(failed(dir, source)),
                };
                next.extend(
                    names
                        .iter()
                        .filter(|(name, _)| glob::matches(component, &name.to_string_lossy()))
                        .map(|(name, _)| dir.join(name)),
                );
            }
            found = next;
        }
        Ok(found)
    }

    /// The paths that a pattern with `**` stands for; not what is in a directory it stands for.
    fn expand_deep(&self, pattern: &str, left: &mut Left) -> Result<Vec<PathBuf>, SelectError> {
        let wanted = IgnoreRules::from_patterns([pattern])?;
        let (mut found, mut unread) = (Vec::new(), vec![PathBuf::new()]);
        while let Some(dir) = unread.pop() {
            let fd = self.open(&dir).map_err(|e| failed(&dir, e))?;
            let names = left.names(&fd).map_err(|e| failed(&dir, e))?;
            for (name, _) in names.ok_or(SelectError::Many)? {
                let path = dir.join(&name);
                let text = path.to_string_lossy();
                if wanted.ignores(&text) {
                    found.push(path);
                    continue;
                }
                let stat = rustix::fs::statat(&fd, &name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|e| failed(&path, e.into()))?;
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory
                    && (!self.ignore.ignores(&text) || self.ignore.may_keep_below(&text))
                {
                    unread.push(path);
                }
            }
        }
        found.sort();
        Ok(found)
    }

    /// What is known of something that was asked for.
    pub(super) fn entry(&self, path: PathBuf, to: PathBuf, stat: &Stat) -> Entry {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        #[allow(clippy::unnecessary_cast)] // the fields' types differ by architecture
        let (mtime, mtime_nsec, ctime, ctime_nsec) = (
            stat.st_mtime as i64,
            stat.st_mtime_nsec as i64,
            stat.st_ctime as i64,
            stat.st_ctime_nsec as i64,
        );
        Entry {
            path,
            to,
            kind,
            mode: stat.st_mode & 0o7777,
            uid: if self.foreign { 0 } else { stat.st_uid },
            gid: if self.foreign { 0 } else { stat.st_gid },
            mtime: (mtime, mtime_nsec),
            rdev: stat.st_rdev,
            linked: stat.st_nlink > 1,
            id: FileId {
                dev: stat.st_dev,
                ino: stat.st_ino,
                size,
                mtime: nanoseconds(mtime, mtime_nsec),
                ctime: nanoseconds(ctime, ctime_nsec),
            },
            target: PathBuf::new(),
            named: false,
        }
    }

    fn open(&self, dir: &Path) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK;
        self.root.open_in_root(dir, flags, Mode::empty())
    }

    fn not_found(&self, path: &Path) -> SelectError {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let parent = path.parent().unwrap_or(Path::new(""));
        let names = self.open(parent).and_then(|fd| walk::names(&fd));
        let beside: Vec<String> = names
            .unwrap_or_default()
            .iter()
            .map(|(other, _)| other)
            .filter(|other| *other != path.file_name().unwrap_or_default())
            .filter(|other| !self.ignore.ignores(&parent.join(other).to_string_lossy()))
            .map(|other| other.to_string_lossy().into_owned())
            .collect();
        SelectError::NotFound {
            path: path.display().to_string(),
            hint: corten_dockerfile::suggest(&name, &beside)
                .map(|name| parent.join(name).display().to_string()),
        }
    }
}

/// How many names patterns may still be compared with, where that is limited.
struct Left(Option<usize>);

impl Left {
    /// Names in an open directory, sorted; nothing where there are more than are left.
    fn names(&mut self, fd: &OwnedFd) -> io::Result<Option<Vec<(OsString, FileType)>>> {
        let names = walk::names_at_most(fd, self.0)?;
        if let (Some(left), Some(names)) = (&mut self.0, &names) {
            *left = left.saturating_sub(names.len());
        }
        Ok(names)
    }
}

struct Taking<'a> {
    tree: &'a Tree,
    exclude: IgnoreRules,
    found: Vec<Entry>,
    /// Where the first `counted` of those go.
    taken: HashSet<PathBuf>,
    counted: usize,
    names: Left,
}

impl Taking<'_> {
    fn source(&mut self, source: &str, selection: &Selection<'_>) -> Result<(), SelectError> {
        let (pivot, cleaned) = pivot(source, selection.parents);
        let is_pattern = !selection.literal && source.split('/').any(glob::is_pattern);
        let deep = is_pattern && selection.parents && source.contains("**");
        let paths = if deep {
            self.tree.expand_deep(&cleaned, &mut self.names)?
        } else {
            let literal = selection.literal;
            self.tree.expand(&cleaned, literal, &mut self.names)?
        };
        for path in paths {
            let path = normal(&path);
            let text = path.to_string_lossy();
            let stat = match self.tree.root.stat(&path) {
                Ok(stat) => stat,
                Err(error) if is_missing(&error) && is_pattern => continue,
                Err(error) if is_missing(&error) => return Err(self.not_found(&path)),
                Err(source) => return Err(failed(&path, source)),
            };
            let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            let ignored = !text.is_empty() && self.tree.ignore.ignores(&text);
            if ignored && !(is_dir && self.tree.ignore.may_keep_below(&text)) {
                if is_pattern {
                    continue;
                }
                return Err(self.not_found(&path));
            }
            let to = if selection.parents {
                let kept: PathBuf = path.components().skip(pivot).collect();
                self.parents(&path, &kept)?;
                kept
            } else if is_dir || !selection.into_directory {
                PathBuf::new()
            } else {
                path.file_name().map(PathBuf::from).unwrap_or_default()
            };
            if is_dir {
                let entry = self.tree.entry(path.clone(), to.clone(), &stat);
                self.found.push(entry);
                let left = selection.at_most;
                let left = left.map(|most| most.saturating_sub(self.found.len()));
                walk::Walk::new(self.tree, &self.exclude, &path, left)
                    .below(&to, &mut self.found)?;
            } else if !self.excludes_named(&path) {
                let mut entry = self.tree.entry(path, to, &stat);
                entry.named = true;
                self.found.push(entry);
            }
            if selection
                .at_most
                .is_some_and(|most| self.found.len() > most)
            {
                return Err(SelectError::Many);
            }
        }
        Ok(())
    }

    /// To find what may have been meant takes a look at everything beside it.
    fn not_found(&self, path: &Path) -> SelectError {
        match self.names {
            Left(None) => self.tree.not_found(path),
            Left(Some(_)) => SelectError::Many,
        }
    }

    /// The directories above a path that keeps them.
    fn parents(&mut self, path: &Path, kept: &Path) -> Result<(), SelectError> {
        let fresh = self.found.get(self.counted..).unwrap_or_default();
        self.taken
            .extend(fresh.iter().map(|entry| entry.to.clone()));
        self.counted = self.found.len();
        let above: Vec<&Path> = kept
            .ancestors()
            .skip(1)
            .filter(|p| !p.as_os_str().is_empty())
            .collect();
        for to in above.into_iter().rev() {
            let depth = kept.components().count() - to.components().count();
            let Some(source) = path.ancestors().nth(depth) else {
                continue;
            };
            if self.taken.contains(to) {
                continue;
            }
            let stat = self.tree.root.stat(source).map_err(|e| failed(source, e))?;
            let entry = self.tree.entry(source.to_owned(), to.to_owned(), &stat);
            self.found.push(entry);
        }
        Ok(())
    }

    /// Whether a file that COPY names, or a pattern of it matches, is left out.
    fn excludes_named(&self, path: &Path) -> bool {
        let name = path.file_name().unwrap_or_default();
        !self.exclude.is_empty()
            && (self.exclude.ignores(&name.to_string_lossy())
                || self.exclude.ignores(&path.to_string_lossy()))
    }
}

/// `a/./b`: how many components of the path are not kept by `--parents`, and the path.
fn pivot(source: &str, parents: bool) -> (usize, String) {
    if parents && let Some((above, below)) = source.split_once("/./") {
        let skipped = normal(Path::new(above)).components().count();
        return (skipped, format!("{above}/{below}"));
    }
    (0, source.to_owned())
}

fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

pub(super) fn failed(path: &Path, source: io::Error) -> SelectError {
    SelectError::Io {
        path: path.display().to_string(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(dir: &Path, ignore: &str) -> Tree {
        Tree {
            root: RootFd::open(dir).unwrap(),
            ignore: IgnoreRules::parse(ignore).unwrap(),
            foreign: true,
            remember: false,
        }
    }

    fn selected(tree: &Tree, sources: &[&str], into: bool) -> Result<Vec<String>, SelectError> {
        let sources: Vec<String> = sources.iter().map(|s| (*s).to_owned()).collect();
        let selection = Selection {
            sources: &sources,
            exclude: &[],
            parents: false,
            into_directory: into,
            literal: false,
            at_most: None,
        };
        let found = tree.select(&selection)?;
        Ok(found
            .iter()
            .map(|e| format!("{} > {}", e.path.display(), e.to.display()))
            .collect())
    }

    fn files(paths: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for path in paths {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        dir
    }

    #[test]
    fn dockers_rules() {
        let dir = files(&["a.txt", "b.txt", "d/x", "d/e/y"]);
        let tree = tree(dir.path(), "");
        assert_eq!(selected(&tree, &["a.txt"], false).unwrap(), ["a.txt > "]);
        assert_eq!(
            selected(&tree, &["/a.txt"], true).unwrap(),
            ["a.txt > a.txt"]
        );
        assert_eq!(
            selected(&tree, &["../a.txt"], true).unwrap(),
            ["a.txt > a.txt"]
        );
        assert_eq!(
            selected(&tree, &["d"], false).unwrap(),
            ["d > ", "d/e > e", "d/e/y > e/y", "d/x > x"]
        );
        assert_eq!(
            selected(&tree, &["*.txt", "d/x"], true).unwrap(),
            ["a.txt > a.txt", "b.txt > b.txt", "d/x > x"]
        );
        assert_eq!(selected(&tree, &["*.go"], true).unwrap(), [""; 0]);
    }

    #[test]
    fn missing_and_ignored() {
        let dir = files(&["main.go", "d/x", "d/keep", "n/x"]);
        let tree = tree(dir.path(), "d/*\n!d/keep\nn\n");
        assert_eq!(
            selected(&tree, &["."], true).unwrap(),
            [" > ", "d > d", "d/keep > d/keep", "main.go > main.go"]
        );
        let error = selected(&tree, &["mian.go"], true).unwrap_err();
        assert_eq!(error.to_string(), "\"/mian.go\": not found");
        assert!(
            matches!(error, SelectError::NotFound { hint: Some(hint), .. } if hint == "main.go")
        );
        assert!(selected(&tree, &["d/x"], true).is_err());
    }

    #[test]
    fn literal_names_are_no_patterns() {
        let dir = files(&["a[1].txt", "a1.txt", "d*/x", "dd/x"]);
        let tree = tree(dir.path(), "");
        for (source, found) in [("a[1].txt", vec!["a[1].txt"]), ("d*", vec!["d*", "d*/x"])] {
            let source = source.to_owned();
            let selection = Selection::of(&source, true);
            let entries = tree.select(&selection).unwrap();
            let paths: Vec<&str> = entries.iter().map(|e| e.path.to_str().unwrap()).collect();
            assert_eq!(paths, found);
            let missing = "*.go".to_owned();
            assert!(tree.select(&Selection::of(&missing, true)).is_err());
        }
    }

    #[test]
    fn a_dangling_link_is_not_suggested_for_itself() {
        let dir = files(&["f"]);
        std::os::unix::fs::symlink("/nowhere", dir.path().join("lnk")).unwrap();
        let error = selected(&tree(dir.path(), ""), &["lnk"], true).unwrap_err();
        assert!(
            matches!(error, SelectError::NotFound { hint: None, .. }),
            "{error:?}"
        );
    }

    #[test]
    fn no_more_is_looked_at_than_is_asked_for() {
        let names: Vec<String> = (0..6).map(|n| format!("d/e/f{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let dir = files(&[&names[..], &["g", "h"]].concat());
        let tree = tree(dir.path(), "d/e/f0\n");
        // What is asked for, and how much there is to be looked at.
        for (sources, parents, enough) in [
            // The directory and what is in it, also what is left out.
            (&["d/e"][..], false, 7),
            (&["d"], false, 8),
            (&["."], false, 11),
            // Together.
            (&["g", "h"], false, 2),
            (&["d/e", "d/e"], false, 13),
            (&["g", "d/e"], false, 8),
            (&["d/e", "g"], false, 7),
            // Names that are compared, not only those that match.
            (&["*h"], false, 3),
            (&["d/*/f1"], false, 1),
            (&["d/*/f*"], false, 7),
            (&["*g", "*h"], false, 6),
            (&["**/f1"], true, 10),
            (&["**/h"], true, 10),
            // Directories that are kept.
            (&["d/e/f1"], true, 3),
        ] {
            let sources: Vec<String> = sources.iter().map(|s| (*s).to_owned()).collect();
            let all = Selection {
                sources: &sources,
                exclude: &[],
                parents,
                into_directory: true,
                literal: false,
                at_most: None,
            };
            let paths = |selection: Selection<'_>| {
                let found = tree.select(&selection)?;
                Ok::<_, SelectError>(found.into_iter().map(|e| e.path).collect::<Vec<_>>())
            };
            let expected = paths(all).unwrap();
            assert!(!expected.is_empty(), "{sources:?}");
            assert_eq!(paths(all.at_most(enough)).unwrap(), expected, "{sources:?}");
            for less in [enough - 1, 0] {
                let error = paths(all.at_most(less)).unwrap_err();
                assert!(matches!(error, SelectError::Many), "{sources:?} {less}");
            }
        }
        // Nobody is told there what else there is.
        let missing = "f0".to_owned();
        let error = tree.select(&Selection::of(&missing, true).at_most(9));
        assert!(matches!(error.unwrap_err(), SelectError::Many));
    }

    #[test]
    fn links_stay_inside() {
        let dir = files(&["root/f"]);
        std::fs::write(dir.path().join("secret"), "s").unwrap();
        let root = dir.path().join("root");
        std::os::unix::fs::symlink("/f", root.join("abs")).unwrap();
        std::os::unix::fs::symlink("../secret", root.join("up")).unwrap();
        let tree = tree(&root, "");
        assert_eq!(selected(&tree, &["abs"], true).unwrap(), ["abs > abs"]);
        assert!(selected(&tree, &["up"], true).is_err());
    }
}
