//! What one entry of a layer's tar says: names, links, attributes with PAX records applied,
//! and the bounds on all of them. Both forms of layers are unpacked from this.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use tar::EntryType;

use super::xattr;
use crate::archive::{Entry, Metered, SparseFile, entries, sparse};
use crate::error::{StoreError, at};
use crate::rooted::normal;

/// Entries one layer may have.
const MAX_ENTRIES: u64 = 10_000_000;
/// Bytes of content one layer may unpack to (a sparse entry of a few bytes may claim any).
const MAX_CONTENT: u64 = 1 << 40;
/// Bytes of names, PAX records and sparse maps before one entry.
const MAX_BEFORE: u64 = 8 << 20;
/// `PATH_MAX` without the NUL: longer names cannot be used by anybody.
pub(super) const MAX_PATH: usize = 4095;
/// Components one name may have.
const MAX_DEPTH: usize = 1024;
/// Bytes that names, link targets and extended attributes of one layer may take in memory,
/// with [`NODE`] for each file.
const MAX_METADATA: usize = 512 << 20;
/// What a file takes besides.
const NODE: usize = 128;
/// Bytes of names that may be left for the base to settle: they go into one row.
const MAX_PENDING: usize = 32 << 20;
/// Who owns what no owner can be told of, as the kernel shows it.
const NOBODY: u32 = 65_534;
/// What the names of whiteouts begin with (image-spec, layer.md).
pub const WHITEOUT: &[u8] = b".wh.";
/// The entry that makes its directory opaque.
pub(super) const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";

/// An entry's attributes, PAX records applied.
#[derive(Debug)]
pub struct Attributes {
    /// Permission bits.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes that a layer may carry.
    pub xattrs: Vec<(OsString, Vec<u8>)>,
    /// A file's holes, where PAX records tell of them.
    pub sparse: Option<SparseFile>,
}

/// A file's content and its size, holes filled.
pub(super) fn content<'a, R: Read>(
    entry: &'a mut Entry<'_, '_, R>,
    attributes: &Attributes,
) -> (u64, Box<dyn Read + 'a>) {
    match &attributes.sparse {
        Some(sparse) => (sparse.size, Box::new(sparse.expanded(entry))),
        None => (entry.size(), Box::new(entry)),
    }
}

/// What a layer may take in memory, listed in its tar or not. The same for every form.
#[derive(Debug, Default)]
pub(super) struct Budget {
    nodes: u64,
    metadata: usize,
    pending: usize,
}

impl Budget {
    /// A file, directory or link, with the bytes of its name, target and attributes.
    pub(super) fn node(&mut self, bytes: usize) -> io::Result<()> {
        self.nodes += 1;
        if self.nodes > MAX_ENTRIES {
            return Err(invalid(format!("more than {MAX_ENTRIES} files")));
        }
        self.metadata = self.metadata.saturating_add(NODE + bytes);
        if self.metadata > MAX_METADATA {
            return Err(invalid(format!(
                "more than {MAX_METADATA} bytes of names and attributes"
            )));
        }
        Ok(())
    }

    /// Bytes of names that only the base can settle.
    pub(super) fn pending(&mut self, bytes: usize) -> io::Result<()> {
        self.pending = self.pending.saturating_add(bytes);
        if self.pending > MAX_PENDING {
            return Err(invalid(format!(
                "more than {MAX_PENDING} bytes of names that it does not list or carry"
            )));
        }
        Ok(())
    }
}

/// Reads a tar and hands every entry over with its cleaned name and its attributes.
///
/// # Errors
/// The archive is malformed or exceeds a bound, or what `visit` says, which is told of the
/// entry it was about.
pub(super) fn each<R: Read>(
    tar: R,
    mut visit: impl FnMut(&Path, &mut Entry<'_, '_, Metered<R>>, Attributes) -> io::Result<()>,
) -> Result<(), StoreError> {
    let (mut count, mut content) = (0_u64, 0_u64);
    let outcome = entries(tar, MAX_BEFORE, |entry| {
        count += 1;
        if count > MAX_ENTRIES {
            return Err(beyond(format!("more than {MAX_ENTRIES} entries")));
        }
        if entry.header().entry_type() == EntryType::XGlobalHeader {
            return Ok(());
        }
        let raw = entry.path_bytes().into_owned();
        let bad = |error: io::Error| {
            Failed(match error.kind() {
                // Not the entry's fault.
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    at("unpack", OsStr::from_bytes(&raw))(error)
                }
                _ => StoreError::BadEntry {
                    entry: String::from_utf8_lossy(&raw).into_owned(),
                    reason: reason(&error),
                },
            })
        };
        let mut attributes = attributes(entry).map_err(bad)?;
        if matches!(
            entry.header().entry_type(),
            EntryType::Regular | EntryType::Continuous
        ) {
            attributes.sparse = sparse(entry).map_err(bad)?;
        }
        let size = attributes.sparse.as_ref().map_or(entry.size(), |s| s.size);
        content = content.saturating_add(size);
        if content > MAX_CONTENT {
            return Err(beyond(format!("more than {MAX_CONTENT} bytes of content")));
        }
        let name = attributes.sparse.as_ref().and_then(|s| s.name.clone());
        let name = name.as_deref().unwrap_or(&raw);
        one(name, entry, attributes, &mut visit).map_err(bad)
    });
    outcome.map_err(|Failed(error)| error)
}

/// What is wrong with an entry, in the same words for every form.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "the archive ends in it".to_owned(),
        io::ErrorKind::InvalidFilename => "its name or its target is too long".to_owned(),
        _ => error.to_string(),
    }
}

/// Why a tar was not read to its end.
struct Failed(StoreError);

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self(StoreError::BadArchive(error))
    }
}

fn one<R: Read>(
    raw: &[u8],
    entry: &mut Entry<'_, '_, R>,
    attributes: Attributes,
    visit: &mut impl FnMut(&Path, &mut Entry<'_, '_, R>, Attributes) -> io::Result<()>,
) -> io::Result<()> {
    let path = normal(Path::new(OsStr::from_bytes(raw)));
    if raw.contains(&0) {
        return Err(invalid("its name has a NUL byte"));
    }
    if path.as_os_str().len() > MAX_PATH {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    if path.components().count() > MAX_DEPTH {
        return Err(invalid(format!("deeper than {MAX_DEPTH} directories")));
    }
    visit(&path, entry, attributes)
}

fn beyond(what: String) -> Failed {
    invalid(what).into()
}

/// An error about what an archive says.
pub(super) fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// The target of a link.
pub(super) fn link_name<R: Read>(entry: &Entry<'_, '_, R>) -> io::Result<Vec<u8>> {
    let name = entry
        .link_name_bytes()
        .map(std::borrow::Cow::into_owned)
        .unwrap_or_default();
    if name.is_empty() || name.contains(&0) {
        return Err(invalid("a link without a usable target"));
    }
    Ok(name)
}

fn is_blank(field: &[u8]) -> bool {
    field.iter().all(|byte| matches!(byte, 0 | b' '))
}

/// An entry of a type that means nothing in a layer.
pub(super) fn unknown(kind: EntryType) -> io::Error {
    invalid(format!(
        "unknown entry type {:?}",
        char::from(kind.as_byte())
    ))
}

/// Major and minor number of a device node; 0:0, which overlayfs takes for a whiteout, is
/// refused.
pub(super) fn device<R: Read>(entry: &Entry<'_, '_, R>) -> io::Result<(u32, u32)> {
    let header = entry.header();
    let numbers = (
        header.device_major()?.unwrap_or(0),
        header.device_minor()?.unwrap_or(0),
    );
    if header.entry_type() == EntryType::Char && numbers == (0, 0) {
        return Err(invalid("character device 0:0 would hide what lies below"));
    }
    Ok(numbers)
}

/// A header's number, where an empty field means 0 as other readers take it.
fn numeric(read: io::Result<u64>, field: &[u8]) -> io::Result<u64> {
    match read {
        Err(_) if is_blank(field) => Ok(0),
        other => other,
    }
}

/// What an entry's header and its PAX records say. `sparse` is left to [`crate::archive::sparse`].
///
/// # Errors
/// A field is malformed.
pub fn attributes<R: Read>(entry: &mut Entry<'_, '_, R>) -> io::Result<Attributes> {
    let header = entry.header();
    let mut mode = match header.mode() {
        Ok(mode) => mode & 0o7777,
        Err(_) if is_blank(&header.as_old().mode) => 0,
        Err(error) => return Err(error),
    };
    let mut uid = numeric(header.uid(), &header.as_old().uid)?;
    let mut gid = numeric(header.gid(), &header.as_old().gid)?;
    // Times before 1970 are written in base 256, which reads as a huge number.
    let seconds = numeric(header.mtime(), &header.as_old().mtime)?;
    let mut time = (i64::from_ne_bytes(seconds.to_ne_bytes()), 0);
    let mut xattrs = Vec::new();
    if header.entry_type() == EntryType::Symlink {
        mode = 0o777;
    }
    let bad = |what: &str| invalid(format!("PAX {what} is malformed"));
    for record in entry.records() {
        let (key, value) = record?;
        let text = || std::str::from_utf8(value).unwrap_or_default();
        match key {
            b"uid" => uid = text().parse().map_err(|_| bad("uid"))?,
            b"gid" => gid = text().parse().map_err(|_| bad("gid"))?,
            b"mtime" => time = pax_time(text()).ok_or_else(|| bad("mtime"))?,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.")
                    && xattr::may_be_in_a_layer(OsStr::from_bytes(name))
                {
                    xattrs.push((OsString::from_vec(name.to_vec()), value.to_vec()));
                }
            }
        }
    }
    let id = |value: u64| match u32::try_from(value) {
        // For the system no owner: "leave it as it is".
        Ok(u32::MAX) => Ok(NOBODY),
        other => other.map_err(|_| bad("owner")),
    };
    Ok(Attributes {
        mode,
        uid: id(uid)?,
        gid: id(gid)?,
        mtime: time,
        xattrs,
        sparse: None,
    })
}

/// Seconds with a decimal fraction, perhaps negative, as seconds and nanoseconds.
fn pax_time(text: &str) -> Option<(i64, u32)> {
    let (negative, text) = text
        .strip_prefix('-')
        .map_or((false, text), |rest| (true, rest));
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = seconds.parse().ok()?;
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanos: u32 = digits.parse().ok()?;
    Some(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (seconds.checked_neg()?, 0),
        (true, _) => (
            seconds.checked_neg()?.checked_sub(1)?,
            1_000_000_000 - nanos,
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_in_memory_is_counted() {
        let mut budget = Budget::default();
        let mut targets = 0;
        while budget.node(4095).is_ok() {
            targets += 4095;
        }
        assert!(targets < MAX_METADATA && targets > MAX_METADATA - (MAX_METADATA >> 4));
        let mut budget = Budget::default();
        let mut nodes = 0_usize;
        while budget.node(0).is_ok() {
            nodes += 1;
        }
        assert_eq!(nodes, MAX_METADATA / NODE);
    }
}
