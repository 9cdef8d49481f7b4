//! Mount options: the names of runtime-spec, config "Linux mount options".

use crate::error::RuntimeError;
use crate::sys::MountAttr;

// linux/mount.h
pub(crate) const RDONLY: u64 = 0x1;
pub(crate) const NOSUID: u64 = 0x2;
pub(crate) const NODEV: u64 = 0x4;
pub(crate) const NOEXEC: u64 = 0x8;
pub(super) const ATIME: u64 = 0x70;
const NOATIME: u64 = 0x10;
const STRICTATIME: u64 = 0x20;
const NODIRATIME: u64 = 0x80;
const NOSYMFOLLOW: u64 = 0x20_0000;

/// An option for a file system: its name, and its value if it has one.
pub(super) type Setting = (String, Option<String>);

/// The options of one mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// `bind` or `rbind`.
    pub(super) bind: bool,
    pub(super) bind_recursive: bool,
    pub(super) remount: bool,
    pub(super) copy_up: bool,
    /// `idmap` (false) or `ridmap` (true, for the whole tree).
    pub(super) idmap: Option<bool>,
    /// Attributes of the mount itself.
    pub(super) attr: MountAttr,
    /// Attributes of the whole tree (`rro`, …).
    pub(super) recursive_attr: MountAttr,
    /// `MS_SHARED` etc., and whether for the whole tree.
    pub(super) propagation: Option<(u64, bool)>,
    /// SELinux label of the mount's root, where it cannot be an option.
    pub(super) label: Option<String>,
    /// For the file system.
    pub(super) data: Vec<Setting>,
}

impl Options {
    pub(super) fn parse(given: &[String]) -> Result<Self, RuntimeError> {
        let mut options = Self::default();
        for option in given {
            options.add(option)?;
        }
        Ok(options)
    }

    fn add(&mut self, option: &str) -> Result<(), RuntimeError> {
        match option {
            "" | "defaults" | "silent" | "loud" => {}
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.bind_recursive) = (true, true),
            "remount" => self.remount = true,
            "tmpcopyup" => self.copy_up = true,
            "idmap" => self.idmap = Some(self.idmap.unwrap_or(false)),
            "ridmap" => self.idmap = Some(true),
            // mount(8)'s own, about when something is mounted and by whom.
            "auto" | "noauto" | "nofail" | "_netdev" => {}
            // Flags of the file system, not of the mount. Their opposites are what a new
            // mount has anyway.
            "sync" | "dirsync" | "lazytime" | "mand" => self.data.push((option.to_owned(), None)),
            "async" | "nolazytime" | "nomand" | "noiversion" => {}
            // Set by the file systems themselves since Linux 5.8; mounts by descriptor
            // have no flag for it.
            "iversion" => tracing::warn!("mount option iversion is left to the file system"),
            _ => {
                if let Some(propagation) = propagation(option) {
                    self.propagation = Some(propagation);
                } else if let Some(change) = attribute(option) {
                    apply(&mut self.attr, change);
                } else if let Some(change) = option.strip_prefix('r').and_then(attribute) {
                    apply(&mut self.recursive_attr, change);
                } else {
                    let (key, value) = match option.split_once('=') {
                        Some((key, value)) => (key, Some(value.to_owned())),
                        None => (option, None),
                    };
                    if key.contains('\0') || key.is_empty() {
                        return Err(RuntimeError::spec("mounts.options", format!("{option:?}")));
                    }
                    self.data.push((key.to_owned(), value));
                }
            }
        }
        Ok(())
    }
}

/// Whether an option is one of the mount, and not handed to its file system.
#[cfg(test)]
pub(crate) fn knows_option(option: &str) -> bool {
    let mut options = Options::default();
    options.add(option).is_ok() && options.data.is_empty()
}

impl Options {
    /// Whether the file system is given an option of that name.
    pub(super) fn says(&self, name: &str) -> bool {
        self.data.iter().any(|(key, _)| key == name)
    }

    /// Whether `ro` or `rw` is asked for.
    pub(super) fn readonly(&self) -> Option<bool> {
        let attr = self.whole_attr();
        match (attr.set & RDONLY, attr.clear & RDONLY) {
            (0, 0) => None,
            (set, _) => Some(set != 0),
        }
    }

    /// For a single new mount, to which "recursive" makes no difference.
    pub(super) fn whole_attr(&self) -> MountAttr {
        let mut attr = self.attr;
        let recursive = self.recursive_attr;
        apply(&mut attr, (recursive.set, recursive.clear));
        attr
    }
}

/// Whether a file system of the type is itself what is asked for. The others are kept by the
/// kernel for a namespace or for all of the host: who mounts them gets another mount of the
/// same, which nobody but its owner should write-protect.
pub(super) fn own_superblock(kind: &str) -> bool {
    !matches!(
        kind,
        "proc"
            | "sysfs"
            | "cgroup"
            | "cgroup2"
            | "mqueue"
            | "devtmpfs"
            | "debugfs"
            | "tracefs"
            | "securityfs"
            | "configfs"
            | "pstore"
            | "efivarfs"
            | "binfmt_misc"
            | "fusectl"
            | "resctrl"
            | "selinuxfs"
            | "smackfs"
            | "nfsd"
            | "rpc_pipefs"
    )
}

/// `(set, clear)`.
fn attribute(option: &str) -> Option<(u64, u64)> {
    Some(match option {
        "ro" => (RDONLY, 0),
        "rw" => (0, RDONLY),
        "nosuid" => (NOSUID, 0),
        "suid" => (0, NOSUID),
        "nodev" => (NODEV, 0),
        "dev" => (0, NODEV),
        "noexec" => (NOEXEC, 0),
        "exec" => (0, NOEXEC),
        "nodiratime" => (NODIRATIME, 0),
        "diratime" => (0, NODIRATIME),
        "nosymfollow" => (NOSYMFOLLOW, 0),
        "symfollow" => (0, NOSYMFOLLOW),
        "noatime" => (NOATIME, ATIME),
        "strictatime" => (STRICTATIME, ATIME),
        "atime" | "relatime" | "norelatime" | "nostrictatime" => (0, ATIME),
        _ => return None,
    })
}

/// Later options win over earlier ones.
fn apply(attr: &mut MountAttr, (set, clear): (u64, u64)) {
    attr.set = attr.set & !clear | set;
    // The access-time bits are one number: to set it, all of it must be cleared.
    attr.clear = (attr.clear & !(set & !ATIME)) | clear;
}

fn propagation(option: &str) -> Option<(u64, bool)> {
    let (name, recursive) = match option.strip_prefix('r') {
        Some(name) if !option.starts_with("ro") => (name, true),
        _ => (option, false),
    };
    Some((propagation_flag(name)?, recursive))
}

/// `shared`, `slave`, `private`, `unbindable` without the `r`.
pub(crate) fn propagation_flag(name: &str) -> Option<u64> {
    Some(match name {
        "shared" => libc::MS_SHARED,
        "slave" => libc::MS_SLAVE,
        "private" => libc::MS_PRIVATE,
        "unbindable" => libc::MS_UNBINDABLE,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(options: &[&str]) -> Options {
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        Options::parse(&options).unwrap()
    }

    #[test]
    fn attributes() {
        let attr = |set, clear| MountAttr {
            set,
            clear,
            propagation: 0,
        };
        assert_eq!(
            parse(&["nosuid", "noexec", "nodev", "ro"]).attr,
            attr(0xf, 0)
        );
        assert_eq!(parse(&["ro", "rw"]).attr, attr(0, RDONLY));
        assert_eq!(parse(&["rw", "ro"]).attr, attr(RDONLY, 0));
        assert_eq!(parse(&["strictatime"]).attr, attr(STRICTATIME, ATIME));
        assert_eq!(parse(&["noatime", "relatime"]).attr, attr(0, ATIME));
        assert_eq!(parse(&["rro"]).recursive_attr, attr(RDONLY, 0));
        assert_eq!(parse(&["rro"]).attr, attr(0, 0));
        assert_eq!(parse(&["nosuid", "rro"]).whole_attr().set, NOSUID | RDONLY);
        assert_eq!(parse(&["ro", "rrw"]).whole_attr().set, 0);
        assert_eq!(parse(&["rnoatime"]).recursive_attr, attr(NOATIME, ATIME));
        for (options, readonly) in [
            (&["ro"][..], Some(true)),
            (&["rro"], Some(true)),
            (&["ro", "rw"], Some(false)),
            (&["rw", "rro"], Some(true)),
            (&["ro", "rrw"], Some(false)),
            (&["nosuid"], None),
        ] {
            assert_eq!(parse(options).readonly(), readonly, "{options:?}");
        }
    }

    #[test]
    fn the_rest() {
        let options = parse(&[
            "rbind",
            "rprivate",
            "tmpcopyup",
            "size=64k",
            "mode=1777",
            "noswap",
        ]);
        assert!(options.bind && options.bind_recursive && options.copy_up);
        assert_eq!(options.propagation, Some((libc::MS_PRIVATE, true)));
        assert_eq!(
            options.data,
            [
                ("size".to_owned(), Some("64k".to_owned())),
                ("mode".to_owned(), Some("1777".to_owned())),
                ("noswap".to_owned(), None),
            ]
        );
        assert_eq!(parse(&["slave"]).propagation, Some((libc::MS_SLAVE, false)));
        assert!(!parse(&["bind"]).bind_recursive);
        assert_eq!(parse(&["idmap"]).idmap, Some(false));
        assert_eq!(parse(&["ridmap", "idmap"]).idmap, Some(true));
    }

    /// Every name of the spec's table, none of which may reach a file system as its own.
    #[test]
    fn the_whole_table() {
        let names = "async atime bind defaults dev diratime exec iversion loud noatime nodev \
            nodiratime noexec noiversion nolazytime nomand norelatime nostrictatime nosuid \
            nosymfollow private ratime rbind rdev rdiratime relatime remount rexec rnoatime \
            rnodiratime rnoexec rnorelatime rnostrictatime rnosuid rnosymfollow ro rprivate \
            rrelatime rro rrw rshared rslave rstrictatime rsuid rsymfollow runbindable rw shared \
            silent slave strictatime suid symfollow tmpcopyup unbindable idmap ridmap rnodev";
        for name in names.split_whitespace() {
            assert_eq!(parse(&[name]).data, [], "{name}");
        }
        // Flags of the file system, which it is told as such.
        for name in ["dirsync", "lazytime", "mand", "sync"] {
            assert_eq!(parse(&[name]).data, [(name.to_owned(), None)]);
        }
    }

    proptest! {
        #[test]
        fn anything_parses_or_is_refused(options in proptest::collection::vec(".*", 0..8)) {
            Options::parse(&options).ok();
        }
    }
}
