//! The kernel's list of a mount namespace's mounts (proc_pid_mountinfo(5)), one a line:
//! `id parent major:minor root point options tags… - type source super`.
//!
//! Bytes, not text: a place may have any name, and one of somebody else's that is no UTF-8 must not hide
//! the others. What the kernel escapes (blanks, line ends, backslashes) is unescaped when it is asked for:
//! most lines are only passed over.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

/// The list of the calling thread's mount namespace, which need not be its process's.
pub const OF_THREAD: &str = "/proc/thread-self/mountinfo";
/// The list of the process's.
pub(crate) const OF_PROCESS: &str = "/proc/self/mountinfo";

/// What is usually enough: the kernel makes the text anew for every read.
const USUAL: usize = 16 * 1024;

/// Reads a list.
///
/// # Errors
/// procfs is not there.
pub fn read(list: &str) -> io::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(USUAL);
    std::fs::File::open(list)?.read_to_end(&mut text)?;
    Ok(text)
}

/// A mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mount<'a> {
    /// Its number in this boot, as `statx(2)` tells it.
    pub id: u64,
    /// That of the mount it is mounted on.
    pub parent: u64,
    /// The number of its file system, `MAJOR:MINOR`.
    pub device: &'a [u8],
    root: &'a [u8],
    point: &'a [u8],
    /// Between the options and the hyphen, blanks and all.
    tags: &'a [u8],
    /// The type of its file system.
    pub kind: &'a [u8],
    source: &'a [u8],
    /// Options of its file system.
    pub options: &'a [u8],
}

/// The mounts of a list, in its order. What is no such line is passed over.
pub fn mounts(text: &[u8]) -> impl DoubleEndedIterator<Item = Mount<'_>> {
    text.split(|byte| *byte == b'\n').filter_map(Mount::of)
}

/// The part up to the next blank, and what is behind that.
fn word(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = text.iter().position(|byte| *byte == b' ')?;
    Some((text.get(..end)?, text.get(end + 1..)?))
}

fn number(text: &[u8]) -> Option<u64> {
    str::from_utf8(text).ok()?.parse().ok()
}

impl<'a> Mount<'a> {
    fn of(line: &'a [u8]) -> Option<Self> {
        let (id, rest) = word(line)?;
        let (parent, rest) = word(rest)?;
        let (device, rest) = word(rest)?;
        let (root, rest) = word(rest)?;
        let (point, rest) = word(rest)?;
        let (_, behind_options) = word(rest)?;
        let mut rest = behind_options;
        let mut length = 0;
        // As many as there are, also of kinds that are yet to be invented.
        loop {
            let (tag, behind) = word(rest)?;
            rest = behind;
            if tag == b"-" {
                break;
            }
            length += tag.len() + 1;
        }
        let (kind, rest) = word(rest).unwrap_or((rest, b""));
        let (source, options) = word(rest).unwrap_or((rest, b""));
        Some(Self {
            id: number(id)?,
            parent: number(parent)?,
            device,
            root,
            point,
            tags: behind_options.get(..length)?,
            kind,
            source,
            options,
        })
    }

    /// Where it is, seen from the reader's root.
    #[must_use]
    pub fn point(&self) -> Cow<'a, Path> {
        path(self.point)
    }

    /// Whether it is there, without a copy of that. Bytes are compared, as the kernel writes them:
    /// the path is to be canonical, without a slash at its end, two in a row or `/./`.
    #[must_use]
    pub fn is_at(&self, path: &Path) -> bool {
        match self.point.contains(&b'\\') {
            false => self.point == path.as_os_str().as_bytes(),
            true => self.point().as_os_str() == path.as_os_str(),
        }
    }

    /// What of its file system is mounted: `/`, or the directory that was bound.
    #[must_use]
    pub fn root(&self) -> Cow<'a, Path> {
        path(self.root)
    }

    /// What was mounted, as its file system tells it.
    #[must_use]
    pub fn source(&self) -> Cow<'a, Path> {
        path(self.source)
    }

    /// Whom it propagates to and from: `shared:N`, `master:N`, `propagate_from:N`, `unbindable`.
    pub fn tags(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let words = self.tags.split(|byte| *byte == b' ');
        words.filter(|word| !word.is_empty())
    }
}

fn path(escaped: &[u8]) -> Cow<'_, Path> {
    if !escaped.contains(&b'\\') {
        return Cow::Borrowed(Path::new(OsStr::from_bytes(escaped)));
    }
    Cow::Owned(OsString::from_vec(unescape(escaped)).into())
}

/// Without the kernel's octal escapes: a backslash and three digits.
fn unescape(mut text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    while let [first, rest @ ..] = text {
        match rest {
            [
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                behind @ ..,
            ] if *first == b'\\' => {
                out.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
                text = behind;
            }
            _ => {
                out.push(*first);
                text = rest;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As the kernel writes a name: `mangle_path`, `show_type` and so on, each with one of these sets.
    fn escaped(name: &[u8], also: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for byte in name {
            match byte {
                b' ' | b'\t' | b'\n' | b'\\' => out.extend(format!("\\{byte:03o}").bytes()),
                byte if also.contains(byte) => out.extend(format!("\\{byte:03o}").bytes()),
                byte => out.push(*byte),
            }
        }
        out
    }

    /// A name of any bytes but zero, with those that are escaped more often than by chance.
    fn name() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![prop::sample::select(&b" \t\n\\#/-01740"[..]), 1..=u8::MAX,];
        prop::collection::vec(byte, 0..12)
    }

    fn tag() -> impl Strategy<Value = String> {
        prop_oneof![
            (1..999_u32).prop_map(|n| format!("shared:{n}")),
            (1..999_u32).prop_map(|n| format!("master:{n}")),
            (1..999_u32).prop_map(|n| format!("propagate_from:{n}")),
            Just("unbindable".to_owned()),
            Just("yet_to_be_invented".to_owned()),
        ]
    }

    proptest! {
        #[test]
        fn what_the_kernel_writes_is_read(
            numbers in prop::array::uniform2(0..u64::from(u32::MAX)),
            device in prop::array::uniform2(0..999_u32),
            names in prop::array::uniform3(name()),
            tags in prop::collection::vec(tag(), 0..4),
            hash in any::<bool>(),
            around in prop::array::uniform2(prop_oneof![Just(""), Just("1 2 no mount"), Just(" - ")]),
        ) {
            let [id, parent] = numbers;
            let device = format!("{}:{}", device[0], device[1]);
            let [mut root, mut point, source] = names;
            root.insert(0, b'/');
            point.insert(0, b'/');
            let also: &[u8] = if hash { b"#" } else { b"" };
            let mut text = format!("{}\n{id} {parent} {device} ", around[0]).into_bytes();
            text.extend(escaped(&root, also));
            text.push(b' ');
            text.extend(escaped(&point, also));
            text.extend(b" rw,relatime ");
            for tag in &tags {
                text.extend(format!("{tag} ").bytes());
            }
            text.extend(b"- fuse.x ");
            text.extend(escaped(&source, also));
            text.extend(format!(" rw,size=1k\n{}\n", around[1]).bytes());
            let all: Vec<Mount> = mounts(&text).collect();
            let [mount] = all.try_into().map_err(|all| TestCaseError::fail(format!("{all:?}")))?;
            prop_assert_eq!((mount.id, mount.parent), (id, parent));
            prop_assert_eq!(mount.device, device.as_bytes());
            let bytes = |path: Cow<'_, Path>| path.as_os_str().as_bytes().to_vec();
            prop_assert_eq!(bytes(mount.root()), root);
            prop_assert!(mount.is_at(Path::new(OsStr::from_bytes(&point))));
            prop_assert_eq!(bytes(mount.point()), point);
            prop_assert_eq!(bytes(mount.source()), source);
            let told: Vec<String> = mount
                .tags()
                .map(|tag| String::from_utf8_lossy(tag).into_owned())
                .collect();
            prop_assert_eq!(told, tags);
            prop_assert_eq!((mount.kind, mount.options), (&b"fuse.x"[..], &b"rw,size=1k"[..]));
        }

        #[test]
        fn anything_can_be_read(text in prop::collection::vec(any::<u8>(), 0..200)) {
            for mount in mounts(&text) {
                let _ = (mount.point(), mount.root(), mount.source(), mount.tags().count());
            }
        }
    }

    #[test]
    fn escapes() {
        for (text, name) in [
            (&b"/mnt\\0402"[..], &b"/mnt 2"[..]),
            (br"a\011b\012c\134d\043", b"a\tb\nc\\d#"),
            // Whatever is not one stays.
            (br"\9\40\+40\400\", br"\9\40\+40\400\"),
            ("\u{e4}\\040".as_bytes(), "\u{e4} ".as_bytes()),
        ] {
            assert_eq!(unescape(text), name, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn a_bound_directory_is_told_with_what_of_its_file_system_it_is() {
        let line = br"40 29 8:1 /home/a\040b /srv rw,nosuid shared:5 master:2 - ext4 /dev/sda1 rw";
        let [mount] = mounts(line).collect::<Vec<_>>().try_into().unwrap();
        assert_eq!(mount.root(), Path::new("/home/a b"));
        assert_eq!(mount.point(), Path::new("/srv"));
        assert_eq!(mount.source(), Path::new("/dev/sda1"));
        let line = br"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 shared:2 - ext3 /dev/root rw";
        let [mount] = mounts(line).collect::<Vec<_>>().try_into().unwrap();
        assert_eq!(
            (mount.id, mount.parent, mount.device),
            (36, 35, &b"98:0"[..])
        );
        assert_eq!(
            (mount.root(), mount.point()),
            (Path::new("/mnt1").into(), Path::new("/mnt 2").into())
        );
        assert_eq!(
            mount.tags().collect::<Vec<_>>(),
            [&b"master:1"[..], b"shared:2"]
        );
        // Some have no source, and none may be without a type.
        let [mount] = mounts(b"1 0 0:1 / / rw -  none rw")
            .collect::<Vec<_>>()
            .try_into()
            .unwrap();
        assert_eq!(
            (mount.kind, mount.source()),
            (&b""[..], Path::new("none").into())
        );
    }

    #[test]
    fn every_line_of_this_host_is_read() {
        for list in [OF_THREAD, OF_PROCESS] {
            let text = read(list).unwrap();
            let lines = text
                .split(|byte| *byte == b'\n')
                .filter(|line| !line.is_empty());
            assert_eq!(mounts(&text).count(), lines.count());
        }
    }
}
