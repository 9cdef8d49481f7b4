//! `/dev`: the nodes every container has (runtime-spec, config-linux "Default Devices"),
//! those of the spec, and the links of "Dev symbolic links". Without the right to make
//! nodes (in a user namespace, the container's or the caller's) the host's are bound instead.

use std::os::fd::{AsFd, OwnedFd};

use corten_oci::runtime_spec::{LinuxDeviceType, Spec};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, Uid, chownat, makedev, mknodat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use crate::error::{RuntimeError, Step};
use crate::mounts::{Tree, attach_to, is_bind, is_mount_root};
use crate::namespaces::Namespaces;
use crate::root::{RootFd, clean};

/// Name, major, minor: character devices of mode 666.
const DEFAULT: &[(&str, u32, u32)] = &[
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Name and target.
const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// One node.
#[derive(Debug)]
struct Device {
    path: String,
    kind: FileType,
    device: u64,
    mode: u32,
    uid: u32,
    gid: u32,
    /// The host's node, to be bound instead of making one.
    bound: Option<Tree>,
}

/// What is made below `/dev`.
#[derive(Debug)]
pub(super) struct DevicePlan {
    /// Whether `/dev` is the container's own.
    ours: bool,
    devices: Vec<Device>,
    core_link: bool,
}

impl DevicePlan {
    /// The default devices unless the spec has its own of that name, then the spec's.
    pub(super) fn new(spec: &Spec, namespaces: &Namespaces) -> Result<Self, RuntimeError> {
        let given = spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.devices().as_deref());
        let given = given.unwrap_or_default();
        let mut devices = Vec::new();
        for (path, major, minor) in DEFAULT {
            let own = |path: &str| {
                given
                    .iter()
                    .any(|d| clean(&d.path().to_string_lossy()) == path)
            };
            if !own(path) {
                devices.push(Device {
                    path: (*path).to_owned(),
                    kind: FileType::CharacterDevice,
                    device: makedev(*major, *minor),
                    mode: 0o666,
                    uid: 0,
                    gid: 0,
                    bound: None,
                });
            }
        }
        for (index, device) in given.iter().enumerate() {
            let path = device.path().to_string_lossy().into_owned();
            if path.is_empty() {
                let field = format!("linux.devices[{index}].path");
                return Err(RuntimeError::spec(field, "is missing"));
            }
            let number = |number: i64| u32::try_from(number).unwrap_or(0);
            let kind = match device.typ() {
                LinuxDeviceType::B => FileType::BlockDevice,
                LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
                LinuxDeviceType::P => FileType::Fifo,
                LinuxDeviceType::A => {
                    let reason = format!("{path}: a node cannot be of type \"a\"");
                    return Err(RuntimeError::spec("linux.devices", reason));
                }
            };
            devices.push(Device {
                path,
                kind,
                device: makedev(number(device.major()), number(device.minor())),
                mode: device.file_mode().unwrap_or(0o666),
                uid: device.uid().unwrap_or(0),
                gid: device.gid().unwrap_or(0),
                bound: None,
            });
        }
        // A `/dev` bound from outside is the user's business.
        let bound_dev =
            spec.mounts().iter().flatten().any(|mount| {
                is_bind(mount) && clean(&mount.destination().to_string_lossy()) == "/dev"
            });
        if bound_dev {
            devices.clear();
        }
        if namespaces.in_user_namespace() {
            // Anybody may make a FIFO.
            let nodes = devices
                .iter_mut()
                .filter(|device| device.kind != FileType::Fifo);
            for device in nodes {
                let bound = Tree::single(device.path.as_ref(), namespaces);
                let bound = bound.map_err(|errno| {
                    RuntimeError::setup(Step::Device, device.path.clone(), errno)
                })?;
                device.bound = Some(bound);
            }
        }
        let core_link = std::path::Path::new("/proc/kcore").exists();
        Ok(Self {
            devices,
            ours: !bound_dev,
            core_link,
        })
    }

    /// Whether `/dev` is the container's own.
    pub(super) fn are_ours(&self) -> bool {
        self.ours
    }

    /// Child: makes them.
    pub(super) fn make(&self, root: &RootFd) -> Result<(), RuntimeError> {
        if !self.ours {
            return Ok(());
        }
        let umask = rustix::process::umask(Mode::empty());
        let result = self.make_all(root);
        rustix::process::umask(umask);
        result
    }

    fn make_all(&self, root: &RootFd) -> Result<(), RuntimeError> {
        let fail = |path: &str| {
            let path = path.to_owned();
            move |errno| RuntimeError::setup(Step::Device, path, errno)
        };
        // Through no link: an image's `/dev` must not lead into a volume.
        let dev = root.ensure_plain_directory("/dev").map_err(fail("/dev"))?;
        for device in &self.devices {
            match &device.bound {
                Some(bound) => bind_node(root, device, bound)?,
                None => match make_node(root, &dev, device).map_err(fail(&device.path))? {
                    Node::Made => {}
                    Node::Forbidden => {
                        let bound = Tree::single_later(device.path.as_ref());
                        bind_node(root, device, &bound)?;
                    }
                },
            }
        }
        for (name, target) in LINKS {
            match symlinkat(*target, &dev, *name) {
                // The image's own, where /dev is not a fresh tmpfs.
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(RuntimeError::setup(Step::Device, *name, errno)),
            }
        }
        if self.core_link {
            match symlinkat("/proc/kcore", &dev, "core") {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(RuntimeError::setup(Step::Device, "core", errno)),
            }
        }
        Ok(())
    }
}

/// What has become of a node.
enum Node {
    Made,
    /// The caller may make none.
    Forbidden,
}

fn make_node(root: &RootFd, dev: &OwnedFd, device: &Device) -> Result<Node, Errno> {
    // The usual case without another path walk.
    let (parent, name);
    let (directory, name) = match device.path.strip_prefix("/dev/") {
        Some(name) if !name.contains('/') && name != ".." => (dev.as_fd(), name),
        _ => {
            (parent, name) = root.plain_parent(&device.path)?;
            (parent.as_fd(), name.as_str())
        }
    };
    let mode = Mode::from_raw_mode(device.mode & 0o7777);
    let make = || mknodat(directory, name, device.kind, mode, device.device);
    match make() {
        Ok(()) => {}
        Err(Errno::PERM) => return Ok(Node::Forbidden),
        // What the caller has mounted there stays as it is: a mode or an owner would be
        // given to the host's.
        Err(Errno::EXIST) if is_mount_root(directory, name) => return Ok(Node::Made),
        // Whatever the image has there must be just that device, and no link to another.
        // It is made anew: changing the mode of what a name leads to could change a file
        // of the host, if the name was replaced by a link meanwhile.
        Err(Errno::EXIST) => {
            let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let same = FileType::from_raw_mode(stat.st_mode) == device.kind
                && (device.kind == FileType::Fifo || stat.st_rdev == device.device);
            if !same {
                return Err(Errno::EXIST);
            }
            if Mode::from_raw_mode(stat.st_mode) != mode {
                unlinkat(directory, name, AtFlags::empty())?;
                match make() {
                    Err(Errno::PERM) => return Ok(Node::Forbidden),
                    result => result?,
                }
            }
        }
        Err(errno) => return Err(errno),
    }
    if device.uid != 0 || device.gid != 0 {
        let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
        chownat(
            directory,
            name,
            Some(uid),
            Some(gid),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
    }
    Ok(Node::Made)
}

/// Binds the host's node of the same name, verified to be the device meant.
fn bind_node(root: &RootFd, device: &Device, bound: &Tree) -> Result<(), RuntimeError> {
    let fail = |errno| RuntimeError::setup(Step::Device, device.path.clone(), errno);
    let tree = bound.open(fail)?;
    let stat = statat(tree.as_fd(), "", AtFlags::EMPTY_PATH).map_err(fail)?;
    let same =
        FileType::from_raw_mode(stat.st_mode) == device.kind && stat.st_rdev == device.device;
    if !same {
        return Err(fail(Errno::NODEV));
    }
    // Through no link: it might lead to, or make, a file in a volume.
    let place = root.ensure_plain_file(&device.path).map_err(fail)?;
    if is_mount_root(place.as_fd(), "") {
        return Ok(()); // by the caller
    }
    attach_to(tree.as_fd(), place.as_fd()).map_err(fail)
}
