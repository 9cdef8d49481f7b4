//! Readiness (sd_notify(3)): the container gets a socket of its own, and what it says
//! there is passed on to the caller's `$NOTIFY_SOCKET`, with the process to watch.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use corten_oci::runtime_spec::Spec;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::time::Timespec;

use super::CliError;
use super::dir::Dir;
use crate::{defaults, passing};

/// Where the container sees its socket's directory.
const INSIDE: &str = "/run/notify";
const NAME: &str = "notify.sock";
/// How long the caller's service manager may take to answer (runc's time).
const BARRIER: Duration = Duration::from_secs(30);

/// The container's socket, and the caller's.
#[derive(Debug, Clone)]
pub(super) struct NotifySocket {
    directory: PathBuf,
    host: String,
}

impl NotifySocket {
    /// If the caller has one.
    pub(super) fn from_caller(dir: &Dir) -> Option<Self> {
        let host = std::env::var("NOTIFY_SOCKET").ok()?;
        (!host.is_empty()).then(|| Self {
            directory: dir.path("notify"),
            host,
        })
    }

    /// Shows the socket to the container.
    pub(super) fn announce(&self, spec: &mut Spec) {
        let options = ["bind", "nosuid", "noexec", "nodev", "ro"];
        let source = self.directory.to_string_lossy();
        let mount = defaults::mount(INSIDE, "bind", &source, &options);
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        mounts.push(mount);
        spec.set_mounts(Some(mounts));
        if let Some(process) = spec.process_mut() {
            let mut env = process.env().clone().unwrap_or_default();
            env.push(format!("NOTIFY_SOCKET={INSIDE}/{NAME}"));
            process.set_env(Some(env));
        }
    }

    pub(super) fn make_directory(&self) -> Result<(), CliError> {
        let mut builder = std::fs::DirBuilder::new();
        builder
            .mode(0o755)
            .create(&self.directory)
            .map_err(|error| {
                CliError::io(format_args!("create {}", self.directory.display()), error)
            })
    }

    pub(super) fn listen(self) -> Result<Listening, CliError> {
        let path = self.directory.join(NAME);
        // Of a `start` that was cut short.
        std::fs::remove_file(&path).ok();
        let socket = UnixDatagram::bind(&path);
        let socket = socket.and_then(|socket| {
            // Whatever user the program becomes.
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777))?;
            Ok(socket)
        });
        let socket =
            socket.map_err(|error| CliError::io(format_args!("bind {}", path.display()), error))?;
        Ok(Listening {
            stage: Stage::Bound(socket),
            host: self.host,
        })
    }
}

/// A bound socket and, once the container has said that it is ready, what tells whether the
/// caller's service manager has heard of it.
#[derive(Debug)]
pub(super) struct Listening {
    stage: Stage,
    host: String,
}

/// Nobody reads what the container says later, and it must not wait for that: the socket is
/// closed by then.
#[derive(Debug)]
enum Stage {
    Bound(UnixDatagram),
    Told(Barrier),
}

#[derive(Debug)]
struct Barrier {
    read: OwnedFd,
    deadline: Instant,
}

impl AsFd for Listening {
    /// Readable when there is something to [`Listening::go_on`] with.
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.stage {
            Stage::Told(barrier) => barrier.read.as_fd(),
            Stage::Bound(socket) => socket.as_fd(),
        }
    }
}

impl Listening {
    /// Until the container is ready and the service manager knows it, or one of them does not
    /// want to.
    pub(super) fn wait(&mut self, pidfd: &OwnedFd, pid: i32) -> Result<(), CliError> {
        loop {
            let mut fds = [
                PollFd::from_borrowed_fd(self.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN),
            ];
            let left = match &self.stage {
                Stage::Told(barrier) => Some(barrier.left()),
                Stage::Bound(_) => None,
            };
            match poll(&mut fds, left.as_ref()) {
                Ok(0) => return Ok(()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(CliError::io("wait for readiness", errno.into())),
            }
            let [said, ended] = fds.map(|fd| !fd.revents().is_empty());
            if said && self.go_on(pid.unsigned_abs())? || ended {
                return Ok(());
            }
        }
    }

    /// Reads one message. The one that says "ready" is passed on with the process to watch;
    /// `true` when the service manager has read that, for which nobody waits here.
    pub(super) fn go_on(&mut self, main: u32) -> Result<bool, CliError> {
        let Stage::Bound(socket) = &self.stage else {
            return Ok(true);
        };
        let mut message = [0u8; 4096];
        let io = |error| CliError::io("read notification socket", error);
        let count = socket.recv(&mut message).map_err(io)?;
        let message = message.get(..count).unwrap_or_default();
        let mut lines = message.split(|byte| *byte == b'\n');
        let Some(ready) = lines.find(|line| line.starts_with(b"READY=")) else {
            return Ok(false);
        };
        let io = |error| CliError::io(format!("tell $NOTIFY_SOCKET {}", self.host), error);
        let host = UnixDatagram::unbound().map_err(io)?;
        match self.host.strip_prefix('@') {
            Some(name) => {
                let address = SocketAddr::from_abstract_name(name).map_err(io)?;
                host.connect_addr(&address).map_err(io)?;
            }
            None => host.connect(Path::new(&self.host)).map_err(io)?,
        }
        host.send(&[ready, b"\n"].concat()).map_err(io)?;
        host.send(format!("MAINPID={main}\n").as_bytes())
            .map_err(io)?;
        self.stage = Stage::Told(Barrier::new(&host).map_err(|errno| io(errno.into()))?);
        Ok(false)
    }
}

/// sd_notify_barrier(3): the service manager closes the pipe once it has read everything.
/// One that does not know of it is not waited for longer than [`BARRIER`].
impl Barrier {
    fn new(host: &UnixDatagram) -> Result<Self, Errno> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        passing::send(host, &[IoSlice::new(b"BARRIER=1")], &[write.as_fd()])?;
        Ok(Self {
            read,
            deadline: Instant::now() + BARRIER,
        })
    }

    fn left(&self) -> Timespec {
        let left = self.deadline.saturating_duration_since(Instant::now());
        Timespec::try_from(left).unwrap_or_default()
    }
}
