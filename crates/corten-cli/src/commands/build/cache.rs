//! `--cache-from` and `--cache-to`: caches in directories.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{CliError, Result};
use crate::flags::Parsed;

/// What the engine is told.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Caches {
    from: Vec<PathBuf>,
    /// Each with whether it is `mode=max`.
    to: Vec<(PathBuf, bool)>,
}

impl Caches {
    /// What the flags ask for.
    pub(super) fn of(flags: &Parsed, here: &Path) -> Result<Self> {
        let mut caches = Self::default();
        for text in flags.list("cache-from") {
            let (dir, _) = parse("cache-from", "src", text)?;
            caches.from.push(here.join(dir));
        }
        for text in flags.list("cache-to") {
            let (dir, all) = parse("cache-to", "dest", text)?;
            caches.to.push((here.join(dir), all));
        }
        Ok(caches)
    }

    /// Whether there is nothing to tell.
    pub(super) fn is_empty(&self) -> bool {
        self.from.is_empty() && self.to.is_empty()
    }
}

/// The directory, and whether everything is wanted.
fn parse(flag: &str, place: &str, text: &str) -> Result<(String, bool)> {
    let wrong =
        |why: String| CliError::message(format!("invalid argument \"{text}\" for --{flag}: {why}"));
    let (mut kind, mut dir, mut all) = ("registry".to_owned(), None, false);
    for field in text.split(',') {
        match field.split_once('=') {
            Some(("type", value)) => value.clone_into(&mut kind),
            Some(("mode", "max")) if flag == "cache-to" => all = true,
            Some(("mode", "min")) if flag == "cache-to" => all = false,
            Some((key, value)) if key == place => dir = Some(value.to_owned()),
            // A reference alone names a registry's.
            None => {}
            Some((key, _)) if kind == "local" => {
                return Err(wrong(format!("{key} is not supported")));
            }
            Some(_) => {}
        }
    }
    if kind != "local" {
        return Err(wrong(format!(
            "caches of type {kind} are not supported: use type=local,{place}=DIRECTORY"
        )));
    }
    let dir = dir.filter(|dir| !dir.is_empty());
    let dir = dir.ok_or_else(|| wrong(format!("{place} is required for a local cache")))?;
    Ok((dir, all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_only() {
        let to = |text: &str| parse("cache-to", "dest", text).map_err(|e| e.to_string());
        assert_eq!(to("type=local,dest=c").unwrap(), ("c".to_owned(), false));
        assert_eq!(
            to("type=local,dest=c,mode=max").unwrap(),
            ("c".to_owned(), true)
        );
        for (text, why) in [
            (
                "example.org/cache",
                "caches of type registry are not supported",
            ),
            ("type=inline", "caches of type inline are not supported"),
            ("type=local", "dest is required for a local cache"),
            (
                "type=local,dest=c,compression=zstd",
                "compression is not supported",
            ),
        ] {
            assert!(to(text).unwrap_err().contains(why), "{text}");
        }
        let from = parse("cache-from", "src", "type=local,src=/c").unwrap();
        assert_eq!(from, ("/c".to_owned(), false));
    }
}
