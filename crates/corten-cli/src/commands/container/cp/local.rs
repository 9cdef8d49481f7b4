//! This machine's side of a copy.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::rules::{self, Side};
use crate::error::{CliError, Result};

/// Links that are followed on the way to a destination.
const LINKS: usize = 10;

/// `.map_err(failed("lstat", path))`, in Go's words.
fn failed(action: &'static str, path: &str) -> impl FnOnce(io::Error) -> CliError {
    let path = path.to_owned();
    move |source| CliError::File {
        action,
        path: path.into(),
        source,
    }
}

/// A path from the root, its ending kept.
pub(super) fn absolute(path: &str) -> Result<String> {
    let whole = if path.starts_with('/') {
        path.to_owned()
    } else {
        let here = std::env::current_dir()?;
        format!("{}/{path}", here.to_string_lossy())
    };
    Ok(rules::keep_ending(rules::clean(&whole), path))
}

/// Whether something may be written there.
pub(super) fn check_output(path: &str) -> Result {
    let (parent, _) = match rules::clean(path) {
        clean if clean == "-" => return Ok(()),
        clean => rules::parent_and_name(&clean),
    };
    if fs::metadata(&parent).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Err(CliError::message(format!(
            "invalid output path: directory {parent:?} does not exist"
        )));
    }
    let kind = match fs::metadata(path) {
        Ok(found) => found.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("stat", path)(error)),
    };
    if kind.is_block_device() || kind.is_char_device() {
        return Err(CliError::message(format!(
            "invalid output path: {path:?} must be a directory or a regular file: got a device"
        )));
    }
    Ok(())
}

/// What is to be copied from here.
pub(super) fn source(path: &str, follow: bool) -> Result<Side> {
    let resolve = |path: &str| {
        let found = fs::canonicalize(path).map_err(failed("lstat", path))?;
        Ok::<_, CliError>(found.to_string_lossy().into_owned())
    };
    let (path, renamed) = if follow {
        rules::followed(path, &resolve(path)?)
    } else {
        // All links but the last component.
        let (parent, last) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = if parent.is_empty() { "/" } else { parent };
        let real = format!("{}/{last}", resolve(parent)?.trim_end_matches('/'));
        let renamed = path.ends_with('/') && rules::base(path) != rules::base(&real);
        let renamed = renamed.then(|| rules::base(path).to_owned());
        (real, renamed)
    };
    let found = fs::symlink_metadata(&path).map_err(failed("lstat", &path))?;
    Ok(Side {
        exists: true,
        directory: found.is_dir(),
        path,
        renamed,
    })
}

/// Where something is to be copied to here; its parent directory must be there.
pub(super) fn destination(path: &str) -> Result<Side> {
    let mut place = path.to_owned();
    for _ in 0..=LINKS {
        let found = match fs::symlink_metadata(&place) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (parent, _) = rules::parent_and_name(&place);
                let above = fs::metadata(&parent).map_err(failed("stat", &parent))?;
                if !above.is_dir() {
                    return Err(CliError::message("not a directory"));
                }
                return Ok(Side {
                    path: place,
                    ..Side::default()
                });
            }
            Err(error) => return Err(failed("lstat", &place)(error)),
        };
        if !found.is_symlink() {
            return Ok(Side {
                path: place,
                exists: true,
                directory: found.is_dir(),
                renamed: None,
            });
        }
        let target = fs::read_link(&place).map_err(failed("readlink", &place))?;
        let (parent, _) = rules::parent_and_name(&place);
        let target = Path::new(&parent).join(target);
        place = rules::clean(&target.to_string_lossy());
    }
    Err(CliError::message(format!("too many symlinks in {path}")))
}
