//! The OCI runtime: turns a runtime-spec document and a few descriptors into an
//! isolated process (runtime-spec 1.3, Linux), executes further processes beside it,
//! and owns the control groups of both.
//!
//! Used in-process by the supervisor and the builder ([`create`], [`exec`]) and as
//! runc's command line by `corten runtime` ([`cli`]). The callers of [`create`] and
//! [`exec`] must be single-threaded: the new process is made by a bare `clone3` and
//! goes on in the same address-space image until it executes its program.
//!
//! Invariants: every path inside a root file system is resolved by
//! `openat2(RESOLVE_IN_ROOT)`; mounts are made detached and attached to descriptors;
//! nothing is left behind by a failure (guards); no descriptor but the three standard
//! ones survives into the container.

mod caps;
pub mod cgroup;
mod channel;
mod checkpoint;
pub mod cli;
pub mod create;
mod criu;
pub mod defaults;
mod detached;
pub mod document;
pub mod error;
pub mod exe;
pub mod exec;
#[doc(hidden)]
pub mod fuzzing;
mod hidden;
mod hook_guard;
mod hooks;
mod init;
mod keyring;
pub mod mountinfo;
mod mounts;
mod namespaces;
mod net_devices;
pub mod number_list;
mod outside;
pub mod passing;
mod process;
mod procfs;
mod resctrl;
mod root;
mod rootfs;
pub mod sandbox;
mod seccomp;
pub mod status;
mod sys;
mod validate;

pub use cgroup::{Cgroup, Lowering, OomEvent, OomWatch, write_limit};
pub use checkpoint::{Checkpoint, CheckpointError, Restored, restore, save};
pub use create::{Created, Running, create};
pub use criu::DESCRIPTORS as CHECKPOINT_DESCRIPTORS;
pub use detached::{make_read_only, map_owners};
pub use error::{ExecErrno, RuntimeError, Step};
pub use exec::{ExecProcess, Executing, Target, begin_exec, exec};
pub use hook_guard::{HookGuard, create_hooked};
pub use namespaces::userns::{network_namespace_in, owner_of, user_namespace};
pub use outside::{give_streams, outside};
pub use sandbox::{CgroupSpec, NetNs, Rootfs, Sandbox, Stdio, TerminalSize};
pub use status::{ExitStatus, send_signal, try_wait_pidfd, wait_pidfd};
