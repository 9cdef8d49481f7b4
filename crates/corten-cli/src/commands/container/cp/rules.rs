//! Docker's rules for the names of `cp`: what a trailing `/` or `/.` means, where things go, and
//! what they are called there. Texts only; nothing here touches a file.

use std::path::{Component, Path, PathBuf};

/// One side of a copy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Side {
    /// The path, its ending kept.
    pub(super) path: String,
    pub(super) exists: bool,
    pub(super) directory: bool,
    /// What it is called in the archive instead of its own name.
    pub(super) renamed: Option<String>,
}

/// Where an archive is unpacked, and what its outermost entry is called there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) directory: String,
    /// `None`: what it is called in the archive.
    pub(super) name: Option<String>,
}

/// Splits `CONTAINER:PATH`; a path of this machine has no container.
pub(super) fn split(argument: &str) -> (Option<&str>, &str) {
    if argument.starts_with('/') {
        return (None, argument);
    }
    match argument.split_once(':') {
        Some((container, path)) if !container.starts_with('.') => {
            (Some(container).filter(|c| !c.is_empty()), path)
        }
        _ => (None, argument),
    }
}

/// A path as Go's `filepath.Clean` has it.
pub(super) fn clean(path: &str) -> String {
    let mut cleaned = PathBuf::new();
    for component in Path::new(path).components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir if cleaned.file_name().is_some_and(|name| name != "..") => {
                cleaned.pop();
            }
            Component::ParentDir if cleaned.has_root() => {}
            other => cleaned.push(other),
        }
    }
    match cleaned.to_string_lossy().into_owned() {
        empty if empty.is_empty() => ".".to_owned(),
        path => path,
    }
}

/// The last component, as Go's `filepath.Base` has it: `/` of the root, `.` of nothing.
pub(super) fn base(path: &str) -> &str {
    let bare = path.trim_end_matches('/');
    match bare.rsplit('/').next() {
        Some("") if !path.is_empty() => "/",
        Some("") | None => ".",
        Some(base) => base,
    }
}

/// Whether a path names a directory's content.
fn is_content(path: &str) -> bool {
    base(path) == "."
}

/// Whether a path can only be a directory.
fn asserts_directory(path: &str) -> bool {
    path.ends_with('/') || is_content(path)
}

/// A cleaned path with the ending that the original had.
pub(super) fn keep_ending(mut cleaned: String, original: &str) -> String {
    if !is_content(&cleaned) && is_content(original) {
        if !cleaned.ends_with('/') {
            cleaned.push('/');
        }
        cleaned.push('.');
    }
    if !cleaned.ends_with('/') && original.ends_with('/') {
        cleaned.push('/');
    }
    cleaned
}

/// The directory and the name in it; `.` stays a name.
pub(super) fn parent_and_name(path: &str) -> (String, String) {
    let cleaned = clean(path);
    if is_content(path) {
        return (cleaned, ".".to_owned());
    }
    let parent = match cleaned.rsplit_once('/') {
        Some(("", _)) => "/",
        Some((parent, _)) => parent,
        None => ".",
    };
    (parent.to_owned(), base(&cleaned).to_owned())
}

/// A link's target in place of the link, with the ending that the link's name had, and what it
/// is to be called, if that differs.
pub(super) fn followed(path: &str, target: &str) -> (String, Option<String>) {
    let target = keep_ending(target.to_owned(), path);
    let renamed = (base(path) != base(&target)).then(|| base(path).to_owned());
    (target, renamed)
}

/// Decides where `from` goes.
pub(super) fn plan(from: &Side, to: &Side) -> Result<Plan, &'static str> {
    let (directory, name) = parent_and_name(&to.path);
    match (to.exists, to.directory) {
        (true, true) => Ok(Plan {
            directory: to.path.clone(),
            name: from.renamed.clone(),
        }),
        (true, false) if from.directory => Err("cannot copy directory"),
        (false, _) if !from.directory && asserts_directory(&to.path) => Err("no such directory"),
        _ => Ok(Plan {
            directory,
            name: Some(name),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_split_at_the_colon() {
        for (argument, split_) in [
            ("web:/a", (Some("web"), "/a")),
            ("web:a:b", (Some("web"), "a:b")),
            ("web:", (Some("web"), "")),
            ("./a:b", (None, "./a:b")),
            ("/a:b", (None, "/a:b")),
            ("-", (None, "-")),
            (":a", (None, "a")),
        ] {
            assert_eq!(split(argument), split_, "{argument}");
        }
    }

    #[test]
    fn paths_are_gos() {
        for (path, cleaned) in [
            ("", "."),
            ("/", "/"),
            ("a/../..", ".."),
            ("../../a", "../../a"),
            ("/../a/./b//", "/a/b"),
        ] {
            assert_eq!(clean(path), cleaned, "{path}");
        }
        for (path, last) in [
            ("", "."),
            ("/", "/"),
            ("/a/", "a"),
            ("a/.", "."),
            ("a", "a"),
        ] {
            assert_eq!(base(path), last, "{path}");
        }
        for (path, parent, name) in [
            ("/a/b", "/a", "b"),
            ("/a/b/", "/a", "b"),
            ("/a/b/.", "/a/b", "."),
            ("/a", "/", "a"),
            ("/", "/", "/"),
            ("a", ".", "a"),
        ] {
            let split = parent_and_name(path);
            assert_eq!(split, (parent.to_owned(), name.to_owned()), "{path}");
        }
        for (path, kept) in [("a/", "/x/"), ("a/.", "/x/."), ("a", "/x"), (".", "/x/.")] {
            assert_eq!(keep_ending("/x".to_owned(), path), kept, "{path}");
        }
        assert_eq!(
            followed("/a/link/", "/b"),
            ("/b/".to_owned(), Some("link".to_owned()))
        );
    }

    #[test]
    fn where_things_go() {
        let side = |path: &str, exists, directory| Side {
            path: path.to_owned(),
            exists,
            directory,
            renamed: None,
        };
        let plan = |from: &Side, to: &Side| {
            plan(from, to).map(|plan| (plan.directory, plan.name.unwrap_or("=".to_owned())))
        };
        let there = |directory: &str, name: &str| Ok((directory.to_owned(), name.to_owned()));
        let (file, dir) = (side("/s/f", true, false), side("/s/d", true, true));
        // The table of docs.docker.com, `docker container cp`.
        for (from, to, planned) in [
            (&file, side("/t/new", false, false), there("/t", "new")),
            (
                &file,
                side("/t/new/", false, false),
                Err("no such directory"),
            ),
            (&file, side("/t/old", true, false), there("/t", "old")),
            (&file, side("/t/dir", true, true), there("/t/dir", "=")),
            (&dir, side("/t/new", false, false), there("/t", "new")),
            (&dir, side("/t/new/", false, false), there("/t", "new")),
            (
                &dir,
                side("/t/old", true, false),
                Err("cannot copy directory"),
            ),
            (&dir, side("/t/dir", true, true), there("/t/dir", "=")),
        ] {
            assert_eq!(plan(from, &to), planned, "{from:?} {to:?}");
        }
        let mut link = side("/s/target", true, false);
        link.renamed = Some("link".to_owned());
        let into = plan(&link, &side("/t/dir", true, true));
        assert_eq!(into, there("/t/dir", "link"));
    }
}
