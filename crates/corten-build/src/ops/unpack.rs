//! Unpacking tar archives of a user: ADD, contexts that come as a stream, and `cp`. Archives are
//! hostile: every name and link target is resolved inside the root, and nothing that is
//! there already is written through, but for links to directories, which are followed within the root.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use corten_store::archive::{
    Attributes, Entry, Plain, SparseFile, attributes, copy_with_holes, decompress, entries_of,
    is_header, set_attribute, sparse,
};
use corten_store::rooted::{RootFd, normal, remove_without_mounts};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use tar::EntryType;

use super::write::{create, make_directory, replace, set_mode, set_owner, set_time};
use crate::cancel::Cancel;

/// Whose the unpacked files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    /// Whose the archive says.
    Archive,
    /// This user's and group's, all of them.
    All(u32, u32),
    /// This process's: no owner is set.
    Own,
}

impl Owners {
    /// Who gets directories that the archive does not list.
    fn of_all(self) -> Option<(u32, u32)> {
        match self {
            Self::All(user, group) => Some((user, group)),
            Self::Archive | Self::Own => None,
        }
    }
}

/// Users and groups of an archive that are others where it is unpacked: ranges of first ids there,
/// first ids here, and how many.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Renumbered {
    /// Of users.
    pub users: Vec<(u32, u32, u32)>,
    /// Of groups.
    pub groups: Vec<(u32, u32, u32)>,
}

impl Renumbered {
    /// Who a user and a group are here.
    ///
    /// # Errors
    /// One is nobody here.
    pub fn of(&self, (user, group): (u32, u32)) -> io::Result<(u32, u32)> {
        let find = |ranges: &[(u32, u32, u32)], id: u32| {
            ranges
                .iter()
                .find_map(|(theirs, ours, count)| {
                    let at = id.checked_sub(*theirs).filter(|at| at < count)?;
                    ours.checked_add(at)
                })
                .ok_or_else(|| io::Error::other(format!("the container has no id {id}")))
        };
        Ok((find(&self.users, user)?, find(&self.groups, group)?))
    }

    /// A file's capabilities (`security.capability`, linux/capability.h), which are of a root: of the
    /// container's, where none is named.
    fn capabilities(&self, value: &[u8]) -> io::Result<Vec<u8>> {
        const KIND: usize = 3;
        let (value, root) = match (value.len(), value.get(KIND)) {
            (20, Some(2)) => (value, 0),
            (24, Some(3)) => match value.split_at_checked(20) {
                Some((value, [a, b, c, d])) => (value, u32::from_le_bytes([*a, *b, *c, *d])),
                _ => return Ok(value.to_vec()),
            },
            // Whatever it is: the kernel says what is wrong with it.
            _ => return Ok(value.to_vec()),
        };
        let (root, _) = self.of((root, 0))?;
        let mut theirs = value.to_vec();
        theirs[KIND] = 3;
        theirs.extend(root.to_le_bytes());
        Ok(theirs)
    }
}

/// What may take the place of what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replacing {
    /// Anything of anything but a directory.
    Files,
    /// A directory only of a directory, anything else only of no directory.
    SameKind,
    /// Anything of anything.
    Anything,
}

/// Where entries go, and how.
#[derive(Debug, Clone, Copy)]
pub struct Unpacking<'a> {
    /// What nothing leaves.
    pub root: &'a RootFd,
    /// The directory inside that names in the archive are relative to.
    pub below: &'a Path,
    /// Entries at or below the first path get the second one instead.
    pub renamed: Option<(&'a Path, &'a Path)>,
    /// Whose they are.
    pub owners: Owners,
    /// Who those are here, if they are others.
    pub renumbered: Option<&'a Renumbered>,
    /// What they may replace.
    pub replacing: Replacing,
    /// What the directory is called in messages.
    pub called: &'a Path,
    /// Names and links that lead out of the directory, as they are written, are errors. If not,
    /// they are taken as if the directory were the root.
    pub strict: bool,
    /// The archive is all of the directory: it also has the directory's own attributes, and the
    /// attributes of overlayfs, which no layer may carry, are files' like others.
    pub whole: bool,
}

/// Something of another kind is in an entry's place.
#[derive(Debug, thiserror::Error)]
#[error("cannot overwrite {what} {there:?} with {with} {below:?}")]
struct Overwrites {
    what: &'static str,
    there: PathBuf,
    with: &'static str,
    below: PathBuf,
}

/// Something in a strictly unpacked archive leads out of the directory.
#[derive(Debug, thiserror::Error)]
enum Leaves {
    #[error("{name:?} is outside of {directory:?}")]
    Name { name: PathBuf, directory: PathBuf },
    #[error("invalid symlink {link:?} -> {target:?}")]
    Symlink { link: PathBuf, target: PathBuf },
    #[error("invalid hardlink {link:?} -> {target:?}")]
    Link { link: PathBuf, target: PathBuf },
}

/// Whether a relative path goes above where it starts, as it is written.
fn climbs(path: &Path) -> bool {
    let mut depth = 0_usize;
    for component in path.components() {
        match component {
            Component::Normal(_) => depth += 1,
            Component::ParentDir => match depth.checked_sub(1) {
                Some(less) => depth = less,
                None => return true,
            },
            // There is nothing above the root.
            Component::RootDir => return false,
            Component::CurDir | Component::Prefix(_) => {}
        }
    }
    false
}

impl<'a> Unpacking<'a> {
    /// Everything, by its own name, into the root itself.
    pub(crate) fn into(root: &'a RootFd, owners: Owners) -> Self {
        Self {
            root,
            below: Path::new(""),
            renamed: None,
            owners,
            renumbered: None,
            replacing: Replacing::Files,
            called: Path::new("/"),
            strict: false,
            whole: false,
        }
    }

    /// Who an owner is here.
    fn here(&self, owner: (u32, u32)) -> io::Result<(u32, u32)> {
        self.renumbered.map_or(Ok(owner), |ids| ids.of(owner))
    }

    /// What something at a place of the root is called in messages.
    fn shown(&self, path: &Path) -> PathBuf {
        self.called
            .join(path.strip_prefix(self.below).unwrap_or(path))
    }

    /// Refuses a name that leads out.
    fn check_name(&self, name: &Path) -> io::Result<()> {
        if !self.strict || !climbs(name) {
            return Ok(());
        }
        Err(io::Error::other(Leaves::Name {
            name: name.to_owned(),
            directory: self.called.to_owned(),
        }))
    }

    /// Refuses a link at a place if its target, counted from `from`, leads out.
    fn check_link(&self, path: &Path, target: &Path, symbolic: bool) -> io::Result<()> {
        let from = match path.parent() {
            // An absolute target is one of the container's root, or of the archive's.
            Some(parent) if symbolic && target.is_relative() => {
                parent.strip_prefix(self.below).unwrap_or(parent)
            }
            _ => Path::new(""),
        };
        // In the root nothing leads out.
        if !self.strict || normal(self.below).as_os_str().is_empty() {
            return Ok(());
        }
        if !climbs(&from.join(target)) {
            return Ok(());
        }
        let (link, target) = (self.shown(path), target.to_owned());
        Err(io::Error::other(if symbolic {
            Leaves::Symlink { link, target }
        } else {
            Leaves::Link { link, target }
        }))
    }

    /// Where something of that cleaned name goes; `None`: it is the directory itself.
    fn place(&self, name: &Path) -> Option<PathBuf> {
        let renamed = self
            .renamed
            .and_then(|(from, to)| Some(to.join(name.strip_prefix(from).ok()?)));
        let name = renamed.unwrap_or_else(|| name.to_owned());
        let name = normal(&name);
        name.file_name()?;
        Some(self.below.join(name))
    }

    /// Makes room for an entry, if something of another kind is in its place.
    fn make_room(&self, dir: BorrowedFd<'_>, path: &Path, directory: bool) -> io::Result<()> {
        let name = path.file_name().unwrap_or_default();
        let there = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => FileType::from_raw_mode(stat.st_mode) == FileType::Directory,
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let (what, with) = match (there, directory) {
            (true, false) => ("directory", "non-directory"),
            (false, true) => ("non-directory", "directory"),
            _ => return Ok(()),
        };
        match self.replacing {
            Replacing::SameKind => Err(io::Error::other(Overwrites {
                what,
                there: self.shown(path),
                with,
                below: self.called.to_owned(),
            })),
            Replacing::Files if there => {
                Err(io::Error::other("cannot replace a directory with a file"))
            }
            // Of a container's volumes nothing is removed.
            Replacing::Files | Replacing::Anything => remove_without_mounts(dir, name),
        }
    }
}

/// Unpacks everything in a tar, compressed or not.
///
/// # Errors
/// It cannot be read, holds what cannot be unpacked, or the file system refuses.
pub fn unpack_archive(archive: impl Read + Send, to: Unpacking<'_>) -> io::Result<()> {
    let (_, plain) = decompress(archive)?;
    unpack(plain, &to, &Cancel::default())
}

/// Bytes of names and PAX records before one entry.
const MAX_BEFORE: u64 = 8 << 20;
/// Size of a tar header.
const BLOCK: usize = 512;

/// The archive in a file, inflated; `None`: the file is none.
pub(crate) fn open(mut file: File) -> io::Result<Option<Plain<'static>>> {
    let mut head = Vec::new();
    let Ok((_, plain)) = decompress(&file) else {
        return Ok(None);
    };
    if plain.take(BLOCK as u64).read_to_end(&mut head).is_err() || !is_header(&head) {
        return Ok(None); // only looks like something compressed
    }
    file.rewind()?;
    decompress(file).map(|(_, plain)| Some(plain))
}

/// Unpacks everything into a directory.
pub(crate) fn unpack(archive: Plain<'_>, to: &Unpacking<'_>, cancel: &Cancel) -> io::Result<()> {
    let mut times = Vec::new();
    let mut itself = None;
    entries_of(archive, MAX_BEFORE, to.whole, |entry| {
        if cancel.is_cancelled() {
            return Err(io::Error::from(io::ErrorKind::Interrupted));
        }
        let holes = match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => sparse(entry)?,
            _ => None,
        };
        let named = holes.as_ref().and_then(|holes| holes.name.clone());
        let named = named.unwrap_or_else(|| entry.path_bytes().into_owned());
        let named = Path::new(OsStr::from_bytes(&named));
        to.check_name(named)?;
        let listed = normal(named);
        let Some(path) = to.place(&listed) else {
            // The directory itself.
            if to.whole && entry.header().entry_type() == EntryType::Directory {
                itself = Some(itself_of(entry)?);
            }
            return Ok(());
        };
        one(entry, &path, holes.as_ref(), to, &mut times).map_err(|error| {
            if error
                .get_ref()
                .is_some_and(|inner| inner.is::<Overwrites>() || inner.is::<Leaves>())
            {
                return error;
            }
            let text = format!("entry \"{}\": {error}", listed.display());
            io::Error::new(error.kind(), text)
        })
    })?;
    for (path, time) in times.into_iter().rev() {
        if let Some((dir, name)) = to.root.parent(&path)? {
            set_time(dir.as_fd(), &name, time)?;
        }
    }
    if let Some(said) = itself {
        let (dir, name) = (
            to.root
                .open_in_root(to.below, OFlags::RDONLY, Mode::empty())?,
            OsStr::new("."),
        );
        if to.owners == Owners::Archive {
            set_owner(dir.as_fd(), name, to.here((said.uid, said.gid))?)?;
        }
        set_mode(dir.as_fd(), name, said.mode)?;
        set_xattrs(dir.as_fd(), name, &said.xattrs)?;
        set_time(dir.as_fd(), name, (said.mtime.0, i64::from(said.mtime.1)))?;
    }
    Ok(())
}

/// What an entry says of the directory that is unpacked to.
fn itself_of(entry: &mut Entry<'_, '_, impl Read>) -> io::Result<Attributes> {
    let mut said = attributes(entry)?;
    said.xattrs.extend(bookkeeping(entry)?);
    Ok(said)
}

/// Attributes that overlayfs keeps its books in.
fn bookkeeping(entry: &mut Entry<'_, '_, impl Read>) -> io::Result<Vec<(OsString, Vec<u8>)>> {
    let mut found = Vec::new();
    for record in entry.records() {
        let (key, value) = record?;
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.")
            && name.starts_with(b"trusted.overlay.")
        {
            found.push((OsStr::from_bytes(name).to_owned(), value.to_vec()));
        }
    }
    Ok(found)
}

fn one(
    entry: &mut Entry<'_, '_, impl Read>,
    path: &Path,
    holes: Option<&SparseFile>,
    to: &Unpacking<'_>,
    times: &mut Vec<(PathBuf, (i64, i64))>,
) -> io::Result<()> {
    let header = entry.header().clone();
    let kind = header.entry_type();
    if matches!(kind, EntryType::XGlobalHeader) {
        return Ok(());
    }
    let Some(name) = path.file_name() else {
        return Ok(());
    };
    let above = path.parent().unwrap_or(Path::new(""));
    let of_all = to.owners.of_all().map(|owner| to.here(owner)).transpose()?;
    let dir = make_directory(to.root, above, of_all, 0o755)?;
    let dir = dir.as_fd();
    to.make_room(dir, path, kind == EntryType::Directory)?;
    let mut said = attributes(entry)?;
    if to.whole {
        said.xattrs.extend(bookkeeping(entry)?);
    }
    let (mode, time) = (said.mode, (said.mtime.0, i64::from(said.mtime.1)));
    let owner = match to.owners {
        Owners::Archive => Some(to.here((said.uid, said.gid))?),
        Owners::All(user, group) => Some(to.here((user, group))?),
        Owners::Own => None,
    };
    let set_owner = |dir, name: &OsStr| owner.map_or(Ok(()), |owner| set_owner(dir, name, owner));
    let set_xattrs = |dir, name: &OsStr, all: &[(OsString, Vec<u8>)]| match to.owners {
        // As with owners: what takes privileges is left.
        Owners::Own if !rustix::process::geteuid().is_root() => Ok(()),
        _ => all.iter().try_for_each(|(key, value)| match to.renumbered {
            Some(ids) if key == "security.capability" => {
                set_attribute(dir, name, key, &ids.capabilities(value)?)
            }
            _ => set_attribute(dir, name, key, value),
        }),
    };
    match kind {
        EntryType::Directory => {
            match rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
            set_owner(dir, name)?;
            set_mode(dir, name, mode)?;
            set_xattrs(dir, name, &said.xattrs)?;
            times.push((path.to_owned(), time));
            return Ok(());
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let mut file = create(dir, name)?;
            match holes {
                Some(holes) => copy_with_holes(holes.expanded(entry), &mut file)?,
                None => copy_with_holes(entry, &mut file)?,
            };
        }
        EntryType::Symlink => {
            let target = link_name(entry)?;
            to.check_link(path, &target, true)?;
            replace(dir, name)?;
            rustix::fs::symlinkat(&target, dir, name)?;
            set_owner(dir, name)?;
            set_xattrs(dir, name, &said.xattrs)?;
            return set_time(dir, name, time);
        }
        EntryType::Link => {
            let target = link_name(entry)?;
            to.check_link(path, &target, false)?;
            let missing = |error: io::Error| match error.kind() {
                io::ErrorKind::NotFound => {
                    io::Error::other(format!("a link to {target:?}, which is not there"))
                }
                _ => error,
            };
            let place = to.place(&normal(&target)).unwrap_or_default();
            let Some((from, old)) = to.root.parent(&place).map_err(missing)? else {
                return Err(io::Error::other("a link to a directory"));
            };
            replace(dir, name)?;
            return rustix::fs::linkat(&from, &old, dir, name, AtFlags::empty())
                .map_err(|errno| missing(errno.into()));
        }
        EntryType::Fifo | EntryType::Char | EntryType::Block => {
            let file_type = match kind {
                EntryType::Fifo => FileType::Fifo,
                EntryType::Char => FileType::CharacterDevice,
                _ => FileType::BlockDevice,
            };
            let device = match kind {
                // It has no numbers, and need not say so.
                EntryType::Fifo => 0,
                _ => rustix::fs::makedev(
                    header.device_major()?.unwrap_or(0),
                    header.device_minor()?.unwrap_or(0),
                ),
            };
            replace(dir, name)?;
            rustix::fs::mknodat(dir, name, file_type, Mode::from_raw_mode(0o600), device)?;
        }
        other => {
            return Err(io::Error::other(format!(
                "unknown type {:?}",
                other.as_byte() as char
            )));
        }
    }
    set_owner(dir, name)?;
    set_mode(dir, name, mode)?;
    // After the owner: a change of it takes capabilities away.
    set_xattrs(dir, name, &said.xattrs)?;
    set_time(dir, name, time)
}

/// Extended attributes, file capabilities among them.
fn set_xattrs(dir: BorrowedFd<'_>, name: &OsStr, all: &[(OsString, Vec<u8>)]) -> io::Result<()> {
    all.iter()
        .try_for_each(|(key, value)| set_attribute(dir, name, key, value))
}

fn link_name(entry: &Entry<'_, '_, impl Read>) -> io::Result<PathBuf> {
    let name = entry
        .link_name_bytes()
        .ok_or_else(|| io::Error::other("a link without a target"))?;
    Ok(PathBuf::from(OsStr::from_bytes(&name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            header.set_mtime(1);
            header.set_uid(0);
            header.set_gid(0);
            if *kind == EntryType::Regular {
                header.set_size(content.len() as u64);
            } else {
                header.set_link_name_literal(content).unwrap();
                header.set_size(0);
            }
            header.set_cksum();
            let body = if *kind == EntryType::Regular {
                content.as_bytes()
            } else {
                b""
            };
            builder.append(&header, body).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn nothing_leaves_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let inside = RootFd::open(&root).unwrap();
        let tar = archive(&[
            ("../up", EntryType::Regular, "a"),
            ("/abs", EntryType::Regular, "b"),
            ("out", EntryType::Symlink, "../.."),
            ("out/x", EntryType::Regular, "c"),
            ("hard", EntryType::Link, "up"),
        ]);
        let (_, plain) = decompress(tar.as_slice()).unwrap();
        let done = unpack(
            plain,
            &Unpacking::into(&inside, Owners::All(0, 0)),
            &Cancel::default(),
        );
        if !rustix::process::geteuid().is_root() {
            return; // owners cannot be set
        }
        done.unwrap();
        assert_eq!(std::fs::read(root.join("up")).unwrap(), b"a");
        assert_eq!(std::fs::read(root.join("abs")).unwrap(), b"b");
        assert_eq!(std::fs::read(root.join("x")).unwrap(), b"c");
        assert_eq!(std::fs::read(root.join("hard")).unwrap(), b"a");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_that_is_put_in_an_entrys_place_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "").unwrap();
        rustix::fs::chmod(&victim, Mode::from_raw_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&victim, dir.path().join("entry")).unwrap();
        let root = RootFd::open(dir.path()).unwrap();
        let error = set_mode(root.as_fd(), OsStr::new("entry"), 0o777).unwrap_err();
        assert_eq!(
            error.raw_os_error(),
            Some(rustix::io::Errno::LOOP.raw_os_error())
        );
        let stat = rustix::fs::stat(&victim).unwrap();
        assert_eq!(stat.st_mode & 0o777, 0o600);
    }

    #[test]
    fn owners_are_renumbered() {
        let ids = Renumbered {
            users: vec![(0, 100_000, 10), (10, 7, 1)],
            groups: vec![(0, 200_000, 10)],
        };
        assert_eq!(ids.of((0, 9)).unwrap(), (100_000, 200_009));
        assert_eq!(ids.of((10, 0)).unwrap(), (7, 200_000));
        assert!(ids.of((11, 0)).is_err() && ids.of((0, 10)).is_err());
        // Capabilities are of the container's root, or of whom they name.
        let second = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let third = |root: u32| {
            let mut value = second.to_vec();
            value[3] = 3;
            value.extend(root.to_le_bytes());
            value
        };
        assert_eq!(ids.capabilities(second).unwrap(), third(100_000));
        assert_eq!(ids.capabilities(&third(10)).unwrap(), third(7));
        assert!(ids.capabilities(&third(11)).is_err());
        assert_eq!(ids.capabilities(b"odd").unwrap(), b"odd");
    }

    #[test]
    fn kinds_are_kept_names_changed_and_owners_left() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("in/new/f")).unwrap();
        let root = RootFd::open(dir.path()).unwrap();
        let tar = archive(&[
            ("old/f", EntryType::Regular, "x"),
            ("h", EntryType::Link, "old/f"),
        ]);
        let to = |replacing| Unpacking {
            root: &root,
            below: Path::new("in"),
            renamed: Some((Path::new("old"), Path::new("new"))),
            owners: Owners::Own,
            renumbered: None,
            replacing,
            called: Path::new("/shown"),
            strict: false,
            whole: false,
        };
        let error = unpack_archive(tar.as_slice(), to(Replacing::SameKind)).unwrap_err();
        let words = "cannot overwrite directory \"/shown/new/f\" with non-directory \"/shown\"";
        assert_eq!(error.to_string(), words);
        unpack_archive(tar.as_slice(), to(Replacing::Anything)).unwrap();
        assert_eq!(std::fs::read(dir.path().join("in/new/f")).unwrap(), b"x");
        assert_eq!(std::fs::read(dir.path().join("in/h")).unwrap(), b"x");
        let tar = archive(&[("old/f", EntryType::Directory, "")]);
        let error = unpack_archive(tar.as_slice(), to(Replacing::SameKind)).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("cannot overwrite non-directory"),
            "{error}"
        );
    }

    #[test]
    fn what_leads_out_is_refused_where_that_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("in")).unwrap();
        let root = RootFd::open(dir.path()).unwrap();
        let unpacked = |below, entry: (&str, EntryType, &str)| {
            let to = Unpacking {
                root: &root,
                below: Path::new(below),
                renamed: None,
                owners: Owners::Own,
                renumbered: None,
                replacing: Replacing::Anything,
                called: Path::new("/in"),
                strict: true,
                whole: false,
            };
            unpack_archive(archive(&[entry]).as_slice(), to)
                .map_err(|error| error.to_string())
                .err()
        };
        let (regular, symlink, link) = (EntryType::Regular, EntryType::Symlink, EntryType::Link);
        for (entry, refused) in [
            (("a/../f", regular, ""), None),
            (("/../f", regular, ""), None),
            (("a/l", symlink, "../f"), None),
            (("a/absolute", symlink, "/../x"), None),
            (("a/h", link, "f"), None),
            (
                ("a/../../f", regular, ""),
                Some("\"a/../../f\" is outside of \"/in\""),
            ),
            (
                ("a/s", symlink, "../../f"),
                Some("invalid symlink \"/in/a/s\" -> \"../../f\""),
            ),
            (
                ("a/i", link, "../f"),
                Some("invalid hardlink \"/in/a/i\" -> \"../f\""),
            ),
        ] {
            assert_eq!(unpacked("in", entry).as_deref(), refused, "{entry:?}");
        }
        assert_eq!(unpacked("", ("s", symlink, "../f")), None);
        assert!(!dir.path().join("in/a/s").is_symlink() && !dir.path().join("f").exists());
    }

    #[test]
    fn attributes_and_times_are_kept() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let inside = RootFd::open(dir.path()).unwrap();
        let mut builder = tar::Builder::new(Vec::new());
        // cap_net_raw=ep
        let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        builder
            .append_pax_extensions([
                ("SCHILY.xattr.security.capability", &capability[..]),
                ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                ("uid", b"7"),
                ("mtime", b"12.5"),
            ])
            .unwrap();
        let entry = archive(&[("ping", EntryType::Regular, "x")]);
        let mut header = tar::Header::from_byte_slice(&entry[..BLOCK]).clone();
        header.set_mode(0o755);
        header.set_cksum();
        builder.append(&header, &b"x"[..]).unwrap();
        let tar = builder.into_inner().unwrap();
        let (_, plain) = decompress(tar.as_slice()).unwrap();
        let to = Unpacking::into(&inside, Owners::Archive);
        unpack(plain, &to, &Cancel::default()).unwrap();
        let path = dir.path().join("ping");
        let mut value = [0; 64];
        let read = rustix::fs::lgetxattr(&path, "security.capability", &mut value[..]).unwrap();
        assert_eq!(&value[..read], capability);
        assert!(rustix::fs::lgetxattr(&path, "trusted.overlay.opaque", &mut value[..]).is_err());
        let stat = rustix::fs::stat(&path).unwrap();
        assert_eq!(
            (stat.st_uid, stat.st_mtime, stat.st_mtime_nsec),
            (7, 12, 500_000_000)
        );
    }

    #[test]
    fn only_archives_are_archives() {
        assert!(is_header(
            &archive(&[("f", EntryType::Regular, "x")])[..BLOCK]
        ));
        assert!(!is_header(&[b'x'; BLOCK]) && !is_header(&[0; BLOCK]) && !is_header(b"x"));
    }
}
