//! Paths in a tree, as the kernel resolves them inside a root: `..` and absolute links stay
//! inside.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use super::tree::{Attributes, Kind, NodeId, Tree};

/// Symbolic links followed for one path (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Why a path leads nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nowhere {
    Missing,
    NotADirectory,
    Loop,
}

impl Tree {
    /// The directory at a path; symbolic links are followed.
    pub(super) fn directory(&self, path: &Path) -> Result<NodeId, Nowhere> {
        let mut stack = vec![Self::ROOT];
        let mut todo: VecDeque<Vec<u8>> = components(path).collect();
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            let current = stack.last().copied().unwrap_or(Self::ROOT);
            if name == b".." {
                if stack.len() > 1 {
                    stack.pop();
                }
                continue;
            }
            let child = self.child(current, &name).ok_or(Nowhere::Missing)?;
            match &self.node(child).kind {
                Kind::Directory(_) => stack.push(child),
                Kind::Symlink(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Nowhere::Loop);
                    }
                    let target = Path::new(OsStr::from_bytes(target));
                    if target.is_absolute() {
                        stack.truncate(1);
                    }
                    for part in components(target).rev() {
                        todo.push_front(part);
                    }
                }
                Kind::Foreign(_) => return Err(Nowhere::Missing), // it is not there yet
                _ => return Err(Nowhere::NotADirectory),
            }
        }
        Ok(stack.last().copied().unwrap_or(Self::ROOT))
    }

    /// The directory at a path, made where something of it is missing or no directory. `made`
    /// is asked before one is made, with the length of its path.
    pub(super) fn make_directory(
        &mut self,
        path: &Path,
        mut made: impl FnMut(usize) -> io::Result<()>,
    ) -> io::Result<NodeId> {
        match self.directory(path) {
            Err(Nowhere::Missing | Nowhere::NotADirectory) => {}
            other => return Ok(other?),
        }
        let mut current = Self::ROOT;
        let mut sofar = std::path::PathBuf::new();
        for component in path.components() {
            let name = component.as_os_str().as_bytes();
            sofar.push(component);
            let there = self.child(current, name);
            let found = match there.map(|there| (there, &self.node(there).kind)) {
                Some((there, Kind::Directory(_))) => Some(there),
                Some((_, Kind::Symlink(_))) => self.directory(&sofar).ok(),
                _ => None,
            };
            if let Some(found) = found {
                current = found;
                continue;
            }
            made(sofar.as_os_str().len())?;
            let attributes = Attributes {
                mode: 0o755,
                ..Attributes::default()
            };
            let id = self.add(Kind::Directory(Default::default()), attributes);
            if there.is_some() {
                // Instead of a whiteout or a file, which took away what is below.
                self.set_opaque(id);
            } else {
                self.node_mut(id).implied = true;
            }
            self.insert(current, name, id);
            current = id;
        }
        Ok(current)
    }
}

impl From<Nowhere> for io::Error {
    fn from(nowhere: Nowhere) -> Self {
        let errno = match nowhere {
            Nowhere::Missing => rustix::io::Errno::NOENT,
            Nowhere::NotADirectory => rustix::io::Errno::NOTDIR,
            Nowhere::Loop => rustix::io::Errno::LOOP,
        };
        errno.into()
    }
}

fn components(path: &Path) -> impl DoubleEndedIterator<Item = Vec<u8>> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.as_bytes().to_vec()),
        Component::ParentDir => Some(b"..".to_vec()),
        Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(tree: &mut Tree, at: &str, target: &str) {
        let id = tree.add(
            Kind::Symlink(target.as_bytes().into()),
            Attributes::default(),
        );
        tree.insert(Tree::ROOT, at.as_bytes(), id);
    }

    #[test]
    fn links_stay_inside() {
        let mut tree = Tree::new();
        let d = tree.make_directory(Path::new("a/d"), |_| Ok(())).unwrap();
        link(&mut tree, "up", "../../a/./d");
        link(&mut tree, "abs", "/a");
        link(&mut tree, "through", "abs/d/../d");
        link(&mut tree, "round", "round");
        link(&mut tree, "nowhere", "gone/x");
        for path in ["a/d", "up", "abs/d", "through", "up/../d"] {
            assert_eq!(tree.directory(Path::new(path)), Ok(d), "{path}");
        }
        assert_eq!(tree.directory(Path::new("round")), Err(Nowhere::Loop));
        assert_eq!(tree.directory(Path::new("nowhere")), Err(Nowhere::Missing));
        assert_eq!(tree.directory(Path::new("a/x")), Err(Nowhere::Missing));
    }

    #[test]
    fn what_is_missing_is_made() {
        let mut tree = Tree::new();
        link(&mut tree, "nowhere", "gone");
        let made = tree
            .make_directory(Path::new("nowhere/x"), |_| Ok(()))
            .unwrap();
        assert_eq!(tree.directory(Path::new("nowhere/x")), Ok(made));
        assert!(tree.node(made).implied && tree.child(Tree::ROOT, b"gone").is_none());
    }
}
