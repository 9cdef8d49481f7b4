//! What a caller hands to [`create`](crate::create()): the spec, and the descriptors a
//! JSON document cannot carry.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use corten_oci::runtime_spec::Spec;

pub use crate::cgroup::CgroupSpec;

/// A container to be created.
#[derive(Debug)]
pub struct Sandbox<'a> {
    /// The container's id; names its processes in messages and its state.
    pub id: &'a str,
    /// The runtime-spec document. `root.path` is ignored in favour of [`Sandbox::rootfs`];
    /// `root.readonly` is honoured.
    pub spec: &'a Spec,
    /// The root file system.
    pub rootfs: Rootfs,
    /// Already opened (`O_PATH`) bind sources by index into `spec.mounts`; a mount
    /// without an entry here opens its `source` path itself. A descriptor from
    /// `open_tree(OPEN_TREE_CLONE)` or `fsmount` (a detached mount) is attached as it is.
    pub mounts: BTreeMap<usize, OwnedFd>,
    /// The network namespace.
    pub netns: NetNs,
    /// The standard streams.
    pub stdio: Stdio,
    /// The control group.
    pub cgroup: CgroupSpec,
}

/// Where the root file system comes from.
#[derive(Debug)]
pub enum Rootfs {
    /// A directory of the host, bound into the container's mount namespace.
    Path(PathBuf),
    /// A detached mount (from `fsmount` or `open_tree`), attached only inside the
    /// container's mount namespace: the host's mount table never shows it.
    Detached(OwnedFd),
}

/// Which network namespace the container gets.
#[derive(Debug)]
pub enum NetNs {
    /// A fresh one, with only its loopback link up.
    New,
    /// The caller's own.
    Host,
    /// An existing one, prepared by the caller.
    Join(OwnedFd),
    /// What `linux.namespaces` of the spec says (new, joined by path, or the caller's
    /// when it is not listed).
    Spec,
}

/// The standard streams of a container or exec process.
#[derive(Debug)]
pub enum Stdio {
    /// These three descriptors become 0, 1 and 2. The caller's copies are closed once
    /// the process exists.
    Pipes {
        /// Standard input.
        stdin: OwnedFd,
        /// Standard output.
        stdout: OwnedFd,
        /// Standard error.
        stderr: OwnedFd,
    },
    /// The caller's own 0, 1 and 2.
    Inherit,
    /// A new pseudo-terminal of the container's devpts; its master side is returned by
    /// `console()`.
    Terminal {
        /// Initial window size; the kernel's 0×0 when absent.
        size: Option<TerminalSize>,
    },
}

/// A window size in character cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Height.
    pub rows: u16,
    /// Width.
    pub cols: u16,
}
