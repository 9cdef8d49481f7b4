//! Go's way of writing flags, which runc has: one dash or two before any name, a value in the
//! next word whatever it looks like, an empty one for "not given", and the last of several
//! counts. Such words are brought into the one form that cannot be misread,
//! `--name=value`, before clap sees them.

use std::any::TypeId;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use clap::{Arg, ArgAction, Command};

use super::args::LogFormat;
use super::error::CliError;

/// Where flags end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// Nowhere: there are words after which more may come.
    Last,
    /// At the command, which clap finds.
    Command,
    /// At the first word that is none: what follows is somebody else's.
    FirstWord,
}

/// The words as clap shall have them. `flags` are known by `command`; unknown ones are left
/// for it to complain of.
pub(super) fn normal(
    command: &Command,
    words: Vec<OsString>,
    until: Until,
) -> Result<Vec<OsString>, CliError> {
    let mut normal = Vec::with_capacity(words.len() + 1);
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let end = word == "--";
        if end || is_plain(&word) {
            match until {
                Until::Last if !end => {
                    normal.push(word);
                    continue;
                }
                // No word after it is to be taken for a flag.
                Until::FirstWord if !end => normal.extend(["--".into(), word]),
                Until::Command if end => {}
                _ => normal.push(word),
            }
            normal.extend(words);
            return Ok(normal);
        }
        let (name, attached) = split(&word);
        let Some(flag) = find(command, name) else {
            let cluster = attached.is_none() && !word.as_bytes().starts_with(b"--");
            let missing = last_of_cluster(command, name).filter(|_| cluster);
            normal.push(word);
            // `-tu 0`: the value is the next word, whatever it looks like.
            if let Some(flag) = missing {
                let value = words.next().ok_or_else(|| needs_value(flag))?;
                normal.push(value);
            }
            continue;
        };
        let long = flag.get_long().unwrap_or_default();
        let mut written = OsString::from(format!("--{long}"));
        let value = match attached {
            Some(value) => Some(value.to_owned()),
            None if takes_next(flag) => Some(words.next().ok_or_else(|| needs_value(flag))?),
            None => None,
        };
        if let Some(value) = value {
            written.push("=");
            if value.is_empty() && may_be_empty(flag) {
                // What it was before does not count either.
                let same = |word: &OsString| word.as_bytes().starts_with(written.as_bytes());
                normal.retain(|word| !same(word));
                continue;
            }
            written.push(value);
        }
        normal.push(written);
    }
    Ok(normal)
}

/// No flag. A dash alone is a word, too.
fn is_plain(word: &OsStr) -> bool {
    !word.as_bytes().starts_with(b"-") || word.len() == 1
}

/// Name and value; the name is empty if it cannot be one.
fn split(word: &OsStr) -> (&str, Option<&OsStr>) {
    let bytes = word.as_bytes();
    let dashes = if bytes.starts_with(b"--") { 2 } else { 1 };
    let rest = bytes.get(dashes..).unwrap_or_default();
    let (name, value) = match rest.iter().position(|byte| *byte == b'=') {
        Some(at) => {
            let (name, value) = rest.split_at(at);
            (name, value.get(1..).map(OsStr::from_bytes))
        }
        None => (rest, None),
    };
    (std::str::from_utf8(name).unwrap_or_default(), value)
}

/// The flag of a whole name, long or of one letter. One that clap adds has no place here.
fn find<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    let mut letters = name.chars();
    let letter = letters.next().filter(|_| letters.next().is_none());
    command.get_arguments().find(|flag| {
        let long = flag.get_long();
        long.is_some() && (long == Some(name) || letter.is_some() && flag.get_short() == letter)
    })
}

/// Of several letters after one dash, the last if it is one that lacks its value.
fn last_of_cluster<'a>(command: &'a Command, letters: &str) -> Option<&'a Arg> {
    let mut rest = letters.char_indices();
    let flag = rest.by_ref().find_map(|(at, letter)| {
        let flag = command
            .get_arguments()
            .find(|flag| flag.get_short() == Some(letter))
            .filter(|flag| takes_next(flag));
        flag.map(|flag| (flag, at + letter.len_utf8()))
    });
    let (flag, end) = flag?;
    (end == letters.len()).then_some(flag)
}

fn takes_next(flag: &Arg) -> bool {
    flag.get_action().takes_values() && !flag.is_require_equals_set()
}

/// runc reads an empty text, path, format of the log or limit as one that was not given. Of
/// the limits this one is a number to it.
fn may_be_empty(flag: &Arg) -> bool {
    let parser = flag.get_value_parser().type_id();
    let kinds = [
        TypeId::of::<String>(),
        TypeId::of::<PathBuf>(),
        TypeId::of::<LogFormat>(),
        TypeId::of::<i64>(),
        TypeId::of::<u64>(),
    ];
    matches!(flag.get_action(), ArgAction::Set)
        && flag.get_long() != Some("pids-limit")
        && kinds.iter().any(|kind| parser == *kind)
}

/// runc's words, which Podman and CRI-O look for to learn which flags there are.
fn needs_value(flag: &Arg) -> CliError {
    let long = flag.get_long().unwrap_or_default();
    CliError::Usage(format!("flag needs an argument: --{long}"))
}
