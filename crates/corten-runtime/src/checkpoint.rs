//! Saving a container of an engine, and restoring one, with CRIU.
//!
//! The engine's mounts have no place on the host: root and bind sources are descriptors. CRIU
//! wants paths, so it is started from a mount namespace of its own, with all of them in a tmpfs
//! over `/tmp` there. That is also where it keeps what it needs meanwhile: nothing is left on the
//! host, whatever happens. The restored process is made as a sibling of CRIU, hence a child of
//! the caller, as one that was started would be.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use corten_oci::runtime_spec::{LinuxNamespaceType, Mount, Spec};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, move_mount};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::cgroup::Cgroup;
use crate::cli::CliError;
use crate::create::{ChildGuard, Running, hook_state};
use crate::criu::{self, CriuArgs, Dump, Kind, Notice, Restore};
use crate::hook_guard::HookGuard;
use crate::mounts::{self, is_directory};
use crate::namespaces::Namespaces;
use crate::root::RootFd;
use crate::sandbox::{NetNs, Rootfs, Sandbox, Stdio, TerminalSize};
use crate::sys::{self, MountAttr};

/// Where CRIU finds what it restores from, in its own mount namespace.
const PLACES: &str = "/tmp";
const ROOT: &str = "/tmp/root";

/// Why a container could not be saved or restored.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct CheckpointError(#[from] CliError);

impl From<crate::RuntimeError> for CheckpointError {
    fn from(error: crate::RuntimeError) -> Self {
        Self(error.into())
    }
}

fn refused(what: impl Display, why: impl Display) -> CheckpointError {
    CheckpointError(CliError::refused(format!("{what}: {why}")))
}

/// A running container that is to be saved.
#[derive(Debug)]
pub struct Checkpoint<'a> {
    /// What it was made from.
    pub spec: &'a Spec,
    /// Its first process.
    pub pid: i32,
    /// Its control group.
    pub cgroup: &'a Cgroup,
    /// A directory, there already, that gets the images.
    pub images: &'a Path,
    /// Whether it goes on afterwards.
    pub leave_running: bool,
}

/// Saves it. When that fails it goes on; one that was frozen stays so.
///
/// `complete` is called when the images are whole, and before the container ends by that: if it
/// fails, or its caller is killed before, the container goes on. CRIU keeps `held` open until it
/// has ended, however the caller ends.
pub fn save(
    container: &Checkpoint<'_>,
    held: OwnedFd,
    complete: &mut dyn FnMut() -> io::Result<()>,
) -> Result<(), CheckpointError> {
    refuse_shared(container.spec)?;
    let mut spec = container.spec.clone();
    let network = PathBuf::from(format!("/proc/{}/ns/net", container.pid));
    join_network(&mut spec, network);
    let args = CriuArgs::of_engine(container.images, None);
    let frozen = container.cgroup.is_frozen();
    criu::remember_descriptors(container.images, container.pid)?;
    let dump = Dump {
        args: &args,
        spec: &spec,
        root: Path::new("/"),
        pid: container.pid,
        cgroup: container.cgroup,
        leave_running: container.leave_running,
        tcp_skip_in_flight: false,
        link_remap: false,
        status_fd: None,
        page_server: None,
        parent: None,
        memory_only: false,
    };
    let (options, _open) = dump.options()?;
    let [stdout, stderr] = [null()?, null()?];
    let streams = Some([held, stdout, stderr]);
    let mut whole = false;
    let mut complete = || complete().map_err(|error| CliError::io("keep the images", error));
    let mut notified = |notice: Notice| {
        if notice.script == "post-dump" {
            complete()?;
            whole = true;
        }
        Ok(())
    };
    let saved = criu::call(
        Kind::Dump,
        streams,
        &mut |_| Ok(options.clone()),
        &mut notified,
    );
    let saved = match saved {
        Ok(()) if !whole => complete(),
        saved => saved,
    };
    if saved.is_err()
        && !frozen
        && let Err(error) = container.cgroup.thaw()
        && container.cgroup.is_frozen()
    {
        tracing::warn!(%error, "the container stays frozen");
    }
    saved.map_err(|error| criu::explain_briefly(error, &args, "dump.log").into())
}

/// A container's networks are the engine's: its namespace is handed over.
fn join_network(spec: &mut Spec, path: PathBuf) {
    let Some(linux) = spec.linux_mut() else {
        return;
    };
    let namespaces = linux.namespaces_mut().iter_mut().flatten();
    for namespace in namespaces {
        if namespace.typ() == LinuxNamespaceType::Network {
            namespace.set_path(Some(path.clone()));
        }
    }
}

/// A restored container.
#[derive(Debug)]
pub struct Restored {
    /// Its process runs.
    pub running: Running,
    /// The master side of its terminal, if it has one.
    pub console: Option<OwnedFd>,
}

/// Restores the container that `images` are of; `work` is a directory for CRIU's log. The caller
/// must be single-threaded. A network namespace must be one to join, or the host's.
pub fn restore(
    sandbox: Sandbox<'_>,
    hooks: Option<&HookGuard>,
    images: &Path,
    work: &Path,
) -> Result<Restored, CheckpointError> {
    let Sandbox {
        id,
        spec,
        rootfs,
        mounts: opened,
        netns,
        stdio,
        cgroup,
    } = sandbox;
    let Rootfs::Detached(root) = rootfs else {
        return Err(refused("restore", "the root must be a detached mount"));
    };
    let mut spec = spec.clone();
    let joined = match netns {
        NetNs::Join(fd) => Some(fd),
        NetNs::Host => None,
        NetNs::New | NetNs::Spec => {
            return Err(refused("restore", "the network namespace must be there"));
        }
    };
    if let Some(fd) = &joined {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        join_network(&mut spec, path.into());
    }
    refuse_shared(&spec)?;
    let trees = trees(&spec, opened)?;
    let inside = root
        .try_clone()
        .map_err(|error| refused("root", error))
        .map(RootFd::new)?;
    let is_file = |index: usize, _: &Mount| trees.get(&index).is_some_and(|tree| !tree.directory);
    criu::make_places(&spec, &inside, &is_file)?;
    drop(inside);
    for (index, mount) in spec.mounts_mut().iter_mut().flatten().enumerate() {
        if trees.contains_key(&index) {
            mount.set_source(Some(place(index).into()));
        }
    }
    let (stdio, size) = streams(stdio)?;
    let descriptors = criu::descriptors(images)?;
    let about = hook_state(id, &spec, hooks.map_or(Path::new(""), HookGuard::dir));
    let resources = spec.linux().as_ref().and_then(|l| l.resources().clone());
    let resources = resources.unwrap_or_default();
    Cgroup::clear(&cgroup)?;
    let cgroup = Cgroup::create(&cgroup, &resources, spec.annotations())?;
    let fail = |why: io::Error| refused("restore", why);
    let mut away = Away::new().map_err(|errno| fail(errno.into()))?;
    // Opened here, as CRIU mounts in there, and before anything is hidden.
    let [images_fd, work_fd] = [images, work].map(|path| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags, Mode::empty());
        opened.map_err(|errno| refused(path.display(), errno))
    });
    let (images_fd, work_fd) = (images_fd?, work_fd?);
    let path = |fd: &OwnedFd| PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    arrange(&root, &trees).map_err(fail)?;
    drop((root, trees));
    let args = CriuArgs::of_engine(&path(&images_fd), Some(&path(&work_fd)));
    let request = Restore {
        args: &args,
        spec: &spec,
        root: Path::new(ROOT),
        lsm_profile: None,
        lsm_mount_context: None,
        descriptors: &descriptors,
    };
    let namespaces = request.namespaces()?;
    let mut open = None;
    let mut options = |pid| {
        criu::adopt(cgroup.get(), pid)?;
        let (options, directories) = request.options(pid, &namespaces)?;
        open = Some(directories);
        // CRIU runs, in there.
        away.go_back()
            .map_err(|errno| CliError::io("mount namespace", errno.into()))?;
        Ok(options)
    };
    let (mut pid, mut console) = (0, None);
    let mut notified = |notice: Notice| {
        match notice.script.as_str() {
            "setup-namespaces" => criu::run_hooks(&spec, &about, notice.pid)?,
            "post-restore" => pid = notice.pid,
            "orphan-pts-master" => console = notice.fd,
            _ => {}
        }
        Ok(())
    };
    let told = CriuArgs::of_engine(images, Some(work));
    criu::call(Kind::Restore, Some(stdio), &mut options, &mut notified)
        .map_err(|error| criu::explain_briefly(error, &told, "restore.log"))?;
    let found = Pid::from_raw(pid)
        .ok_or_else(|| refused("criu", "it did not name the process that it restored"))?;
    let pidfd = pidfd_open(found, PidfdFlags::empty())
        .map_err(|errno| refused(format_args!("restored process {pid}"), errno))?;
    let process = ChildGuard::new(pid, pidfd);
    if let (Some(console), Some(size)) = (&console, size) {
        set_size(console, size).map_err(|errno| refused("terminal", errno))?;
    }
    Ok(Restored {
        running: Running {
            pid,
            pidfd: process.disarm(),
            cgroup: cgroup.disarm(),
        },
        console,
    })
}

/// What a bind mount shows.
#[derive(Debug)]
struct Tree {
    mount: OwnedFd,
    directory: bool,
}

/// Where CRIU finds that of the mount with this index.
fn place(index: usize) -> String {
    format!("{PLACES}/{index}")
}

/// The bind mounts of the document, by index, as detached mounts: what a start would attach. Those
/// of a terminal or of masks are not in it.
fn trees(
    spec: &Spec,
    opened: BTreeMap<usize, OwnedFd>,
) -> Result<BTreeMap<usize, Tree>, CheckpointError> {
    let namespaces = Namespaces::plan(spec, NetNs::Host)?;
    let binds = mounts::binds(spec, opened, &namespaces)?;
    binds
        .into_iter()
        .map(|(index, mount)| {
            let directory =
                is_directory(mount.as_fd()).map_err(|errno| refused("bind mount", errno))?;
            Ok((index, Tree { mount, directory }))
        })
        .collect()
}

/// CRIU mounts more than once in what it restores, and the host would see that.
fn refuse_shared(spec: &Spec) -> Result<(), CheckpointError> {
    match mounts::shared_with_the_host(spec) {
        None => Ok(()),
        Some(place) => Err(refused(
            place.display(),
            "a bind mount that is shared with the host cannot be saved or restored",
        )),
    }
}

fn null() -> Result<OwnedFd, CheckpointError> {
    let opened = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    opened.map_err(|errno| refused("/dev/null", errno))
}

/// The streams CRIU gets, and restores pipes from; of a terminal, its size.
fn streams(stdio: Stdio) -> Result<([OwnedFd; 3], Option<TerminalSize>), CheckpointError> {
    match stdio {
        Stdio::Pipes {
            stdin,
            stdout,
            stderr,
        } => Ok(([stdin, stdout, stderr], None)),
        Stdio::Terminal { size } => Ok(([null()?, null()?, null()?], size)),
        Stdio::Inherit => Err(refused(
            "restore",
            "its streams must be pipes or a terminal",
        )),
    }
}

fn set_size(console: &OwnedFd, size: TerminalSize) -> Result<(), Errno> {
    let size = rustix::termios::Winsize {
        ws_row: size.rows,
        ws_col: size.cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(console, size)
}

/// Attaches everything at its place, out of the host's sight.
fn arrange(root: &OwnedFd, trees: &BTreeMap<usize, Tree>) -> io::Result<()> {
    let hide = |place: &str| {
        let flags = MountFlags::NODEV | MountFlags::NOSUID;
        rustix::mount::mount("tmpfs", place, "tmpfs", flags, c"mode=0700")
    };
    hide(PLACES)?;
    // What it finds out from within the container's control group is not to be what it remembers
    // of the host (`/run/criu.kdat`).
    hide("/run")?;
    let attach = |mount: &OwnedFd, directory: bool, path: &str| -> io::Result<()> {
        if directory {
            rustix::fs::mkdir(path, Mode::RWXU)?;
        } else {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::RUSR)?;
        }
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        Ok(move_mount(mount, "", CWD, path, flags)?)
    };
    attach(root, true, ROOT)?;
    for (index, tree) in trees {
        attach(&tree.mount, tree.directory, &place(*index))?;
    }
    Ok(())
}

/// While it lives, this process is in a mount namespace of its own, whose mounts are private.
#[derive(Debug)]
struct Away {
    home: OwnedFd,
    /// The root and directory of this process, which are the namespace's otherwise.
    root: OwnedFd,
    directory: OwnedFd,
    back: bool,
}

impl Away {
    fn new() -> Result<Self, Errno> {
        let open =
            |path: &str, flags| rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty());
        let mut away = Self {
            home: open("/proc/self/ns/mnt", OFlags::RDONLY)?,
            root: open("/", OFlags::PATH)?,
            directory: open(".", OFlags::PATH)?,
            back: true,
        };
        sys::unshare(libc::CLONE_NEWNS)?;
        away.back = false;
        let host = open("/", OFlags::PATH)?;
        let private = MountAttr {
            propagation: libc::MS_PRIVATE,
            ..MountAttr::default()
        };
        sys::mount_setattr(host.as_fd(), true, private)?;
        Ok(away)
    }

    fn go_back(&mut self) -> Result<(), Errno> {
        if std::mem::replace(&mut self.back, true) {
            return Ok(());
        }
        sys::setns(self.home.as_fd(), libc::CLONE_NEWNS)?;
        rustix::process::fchdir(&self.root)?;
        rustix::process::chroot(".")?;
        rustix::process::fchdir(&self.directory)
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        if let Err(error) = self.go_back() {
            tracing::error!(%error, "this process is stuck in a mount namespace of its own");
        }
    }
}
