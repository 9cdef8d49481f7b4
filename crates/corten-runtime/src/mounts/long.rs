//! File systems with options that fsconfig(2) does not take because of their length: the
//! layers of an overlay above all. An overlay is told of its layers one by one, where the
//! kernel can (Linux 6.7). Everything else goes through mount(2), which takes a page of text.
//!
//! mount(2) only mounts where something is: in the mount namespace that is the container's
//! already, at a place in the old root that nobody sees any more, from where the mount is
//! taken by descriptor.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::attach;
use super::listing::DIRECTORY;
use super::options::{ATIME, Setting};
use crate::namespaces::MountNamespace;
use crate::sys::{self, MountAttr};

/// What fsconfig(2) takes: `strndup_user` with 256, of which one is the end.
pub(super) const LONGEST: usize = 255;

/// Whether there is something too long for [`attach::new_file_system`].
pub(super) fn is_too_long(source: &str, data: &[Setting]) -> bool {
    let mut values = data.iter().filter_map(|(_, value)| value.as_deref());
    source.len() > LONGEST || values.any(|value| value.len() > LONGEST)
}

/// As [`attach::new_file_system`], except that the mount may be attached already: it can
/// be moved. `ENAMETOOLONG` says that there is nowhere to do so.
pub(super) fn new_file_system(
    kind: &str,
    source: &str,
    data: &[Setting],
    attr: u64,
    namespace: MountNamespace,
) -> Result<OwnedFd, Errno> {
    if kind == "overlay"
        && let Some(data) = one_by_one(data)
        && !is_too_long(source, &data)
    {
        match attach::new_file_system(kind, source, &data, attr) {
            // The kernel does not know the option.
            Err(Errno::INVAL) => {}
            result => return result,
        }
    }
    if namespace == MountNamespace::Host {
        return Err(Errno::NAMETOOLONG);
    }
    let (flags, text) = one_line(kind, data)?;
    mount(source, DIRECTORY, kind, flags, text.as_c_str())?;
    take(attr).inspect_err(|_| {
        unmount(DIRECTORY, UnmountFlags::DETACH).ok();
    })
}

/// The mount that has just been made.
fn take(attr: u64) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let made = openat(CWD, DIRECTORY, flags, Mode::empty())?;
    set(made.as_fd(), attr)?;
    Ok(made)
}

fn set(made: BorrowedFd<'_>, attr: u64) -> Result<(), Errno> {
    let attr = MountAttr {
        set: attr,
        // One number: to set it, all of it must be cleared.
        clear: if attr & ATIME == 0 { 0 } else { ATIME },
        propagation: libc::MS_PRIVATE,
    };
    sys::mount_setattr(made, false, attr)
}

/// `lowerdir` as options of their own, one for each layer (overlayfs.rst, "Multiple lower
/// layers", "Data-only lower layers"). `None` if it is in no form that has a meaning.
fn one_by_one(data: &[Setting]) -> Option<Vec<Setting>> {
    let mut options = Vec::new();
    for (key, value) in data {
        match value {
            Some(value) if key == "lowerdir" => {
                for (name, layer) in layers(value)? {
                    options.push((name.to_owned(), Some(layer)));
                }
            }
            value => options.push((key.clone(), value.clone())),
        }
    }
    Some(options)
}

/// The layers, uppermost first, without their escapes: as options of their own they have
/// none.
fn layers(value: &str) -> Option<Vec<(&'static str, String)>> {
    let mut layers = vec![("lowerdir+", String::new())];
    let mut chars = value.chars().peekable();
    while let Some(char) = chars.next() {
        let (name, layer) = layers.last_mut()?;
        match char {
            '\\' => layer.push(chars.next()?),
            ':' if layer.is_empty() => return None,
            ':' if chars.next_if_eq(&':').is_some() => layers.push(("datadir+", String::new())),
            // Below data there is only data.
            ':' if *name == "datadir+" => return None,
            ':' => layers.push(("lowerdir+", String::new())),
            char => layer.push(char),
        }
    }
    layers
        .iter()
        .all(|(_, layer)| !layer.is_empty())
        .then_some(layers)
}

/// All options as mount(2) takes them.
fn one_line(kind: &str, data: &[Setting]) -> Result<(MountFlags, CString), Errno> {
    let mut flags = MountFlags::empty();
    let mut words = Vec::new();
    for (key, value) in data {
        let Some(value) = value else {
            match key.as_str() {
                "ro" => flags |= MountFlags::RDONLY,
                "sync" => flags |= MountFlags::SYNCHRONOUS,
                "dirsync" => flags |= MountFlags::DIRSYNC,
                "lazytime" => flags |= MountFlags::LAZYTIME,
                "mand" => flags |= MountFlags::PERMIT_MANDATORY_FILE_LOCKING,
                key => words.push(key.to_owned()),
            }
            continue;
        };
        // A comma ends an option, unless it is hidden.
        let value = match (value.contains(','), key.as_str()) {
            (false, _) => value.clone(),
            (true, "context" | "fscontext" | "defcontext" | "rootcontext") => {
                format!("\"{}\"", value.trim_matches('"'))
            }
            (true, _) if kind == "overlay" => value.replace("\\,", ",").replace(',', "\\,"),
            (true, _) => return Err(Errno::INVAL),
        };
        words.push(format!("{key}={value}"));
    }
    let text = CString::new(words.join(",")).map_err(|_| Errno::INVAL)?;
    // The kernel would cut it off.
    if text.as_bytes_with_nul().len() > sys::page_size() {
        return Err(Errno::TOOBIG);
    }
    Ok((flags, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(options: &[(&str, Option<&str>)]) -> Vec<Setting> {
        let owned =
            |(key, value): &(&str, Option<&str>)| ((*key).to_owned(), (*value).map(str::to_owned));
        options.iter().map(owned).collect()
    }

    #[test]
    fn layers_of_an_overlay() {
        for (given, expected) in [
            ("/a", Some("lowerdir+=/a")),
            ("/a:b/c", Some("lowerdir+=/a lowerdir+=b/c")),
            ("/a\\:b\\\\:/c\\,", Some("lowerdir+=/a:b\\ lowerdir+=/c,")),
            (
                "/a:/b::/c::/d",
                Some("lowerdir+=/a lowerdir+=/b datadir+=/c datadir+=/d"),
            ),
            ("/a::/c:/d", None),
            (":/a", None),
            ("/a:", None),
            ("/a::", None),
            ("/a:::/b", None),
            ("/a\\", None),
            ("", None),
        ] {
            let found = layers(given).map(|layers| {
                let text = layers.iter().map(|(name, layer)| format!("{name}={layer}"));
                text.collect::<Vec<_>>().join(" ")
            });
            assert_eq!(found.as_deref(), expected, "{given}");
        }
        let given = data(&[
            ("lowerdir", Some("/a:/b")),
            ("index", Some("off")),
            ("ro", None),
        ]);
        let expected = data(&[
            ("lowerdir+", Some("/a")),
            ("lowerdir+", Some("/b")),
            ("index", Some("off")),
            ("ro", None),
        ]);
        assert_eq!(one_by_one(&given), Some(expected));
    }

    #[test]
    fn one_line_of_options() {
        fn line(
            kind: &str,
            options: &[(&str, Option<&str>)],
        ) -> Result<(MountFlags, String), Errno> {
            let (flags, text) = one_line(kind, &data(options))?;
            Ok((flags, text.into_string().unwrap()))
        }
        assert_eq!(
            line(
                "overlay",
                &[
                    ("ro", None),
                    ("lowerdir", Some("/a,b\\,c")),
                    ("context", Some("u:r:t:s0:c1,c2")),
                    ("userxattr", None),
                ]
            ),
            Ok((
                MountFlags::RDONLY,
                "lowerdir=/a\\,b\\,c,context=\"u:r:t:s0:c1,c2\",userxattr".to_owned()
            ))
        );
        // It would be an option of its own.
        assert_eq!(line("9p", &[("aname", Some("x,ro"))]), Err(Errno::INVAL));
        let endless = "x".repeat(70_000);
        assert_eq!(line("9p", &[("aname", Some(&endless))]), Err(Errno::TOOBIG));
        assert_eq!(line("9p", &[("aname", Some("a\0"))]), Err(Errno::INVAL));
    }
}
