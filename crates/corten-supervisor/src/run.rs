//! One run of the container: starting it, and undoing it.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use corten_network::NetNs;
use corten_oci::runtime_spec::Spec;
use corten_runtime::{
    Cgroup, CgroupSpec, ExitStatus, HookGuard, Rootfs, Running, Sandbox, Stdio, TerminalSize,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::external::{self, External, Parts};
use crate::hub::{self, Hub, Output};
use crate::job::{Job, StartError};
use crate::logs::Stream;
use crate::network::Network;

/// What hooks of its container are shown, in a supervisor's directory.
pub const BUNDLE: &str = "bundle";

/// How long output is drained after the last process has gone.
const DRAIN: Duration = Duration::from_secs(1);

/// A running container, and what must be undone after it.
pub(crate) struct Run {
    pub(crate) pid: i32,
    pub(crate) pidfd: Rc<AsyncFd<OwnedFd>>,
    pub(crate) cgroup: Rc<Cgroup>,
    pub(crate) spec: Rc<Spec>,
    pub(crate) hub: Rc<Hub>,
    pub(crate) terminal: Option<Rc<AsyncFd<OwnedFd>>>,
    pub(crate) stop_signal: i32,
    pub(crate) stop_timeout: i64,
    readers: Vec<JoinHandle<()>>,
    pub(crate) network: Rc<RefCell<Network>>,
    /// Who made it, if it was not our own runtime.
    pub(crate) external: Option<Rc<External>>,
    /// The last to be dropped.
    _hooks: Option<HookGuard>,
}

/// The streams of a container that has not been started yet.
struct Streams {
    stdio: Stdio,
    outputs: Vec<Output>,
    input: Option<OwnedFd>,
}

/// A run that goes on from a checkpoint.
pub(crate) struct Restoring {
    /// Its images.
    pub(crate) images: PathBuf,
    /// A directory for what is needed meanwhile, made here.
    pub(crate) work: PathBuf,
}

/// Starts the container, or restores it. When it fails, everything is undone. Only another runtime is
/// waited for in the event loop, and can be cancelled.
pub(crate) async fn start(
    id: &str,
    job: Job,
    hub: &Rc<Hub>,
    from: Option<Restoring>,
    directory: &Path,
    cancel: &Notify,
) -> Result<Run, StartError> {
    let Job {
        spec,
        rootfs,
        mounts,
        mut users,
        network,
        names,
        tty,
        size,
        open_stdin,
        cgroup,
        runtime,
        ..
    } = job;
    let (mut network, mut netns) = Network::prepare(
        network,
        names,
        users.as_mut().and_then(|u| u.network.take()),
    )?;
    if from.is_some() && users.is_some() {
        return Err(StartError::other(
            "a checkpoint cannot be started from with userns-remap: use --userns host",
        ));
    }
    if from.is_some() && matches!(netns, corten_runtime::NetNs::New) {
        netns = network.with_namespace(NetNs::with_loopback().map_err(StartError::other)?)?;
    }
    let size = size.map(|size| TerminalSize {
        rows: size.rows,
        cols: size.cols,
    });
    let streams = if tty {
        Streams {
            stdio: Stdio::Terminal { size },
            outputs: Vec::new(),
            input: None,
        }
    } else {
        pipes(open_stdin).map_err(StartError::other)?
    };
    // Before hooks that may be called at its end; and who reads links' settings finds links.
    if from.is_some() || runtime.is_some() || spec.hooks().is_some() || names_links(&spec) {
        network.connect()?;
    }
    if let Some(runtime) = runtime {
        if from.is_some() {
            return Err(StartError::other(format_args!(
                "a checkpoint cannot be started from with runtime {}",
                runtime.name
            )));
        }
        let parts = Parts {
            spec: &spec,
            rootfs,
            mounts,
            netns,
            stdio: streams.stdio,
            cgroup: &cgroup,
        };
        let started = external::start(id, runtime, parts, directory.join("oci"), cancel);
        let (running, console, external) = started.await?;
        drop(users);
        let mut run = Run::new(running, spec, hub, network, None, Some(external))?;
        (run.stop_signal, run.stop_timeout) = (job.stop_signal, job.stop_timeout);
        run.connect(console, streams.outputs, streams.input, open_stdin);
        return Ok(run);
    }
    let bundle = directory.join(BUNDLE);
    // Of a run whose supervisor was killed: before a device is asked for again.
    drop(HookGuard::left(id, &bundle));
    let hooks = HookGuard::new(id, &spec, &bundle)?;
    let sandbox = Sandbox {
        id,
        spec: &spec,
        rootfs: Rootfs::Detached(rootfs),
        mounts,
        netns,
        stdio: streams.stdio,
        cgroup: CgroupSpec::counted(cgroup),
    };
    let (running, console) = match from {
        None => {
            // The process makes its mounts while this one makes its links.
            let mut connected = Ok(());
            let created = corten_runtime::create_hooked(sandbox, hooks.as_ref(), &mut || {
                connected = network.connect();
                connected.is_ok()
            });
            connected?;
            let mut created = created?;
            let console = created.console();
            (created.start()?, console)
        }
        Some(from) => restore(sandbox, hooks.as_ref(), &from)?,
    };
    // Its processes are in it by now.
    drop(users);
    let mut run = Run::new(running, spec, hub, network, hooks, None)?;
    (run.stop_signal, run.stop_timeout) = (job.stop_signal, job.stop_timeout);
    run.connect(console, streams.outputs, streams.input, open_stdin);
    Ok(run)
}

/// Whether settings of links (`net/ipv4/conf/eth0/…`, with dots or slashes) are asked for, which the
/// process makes while it sets itself up. Without it those of `eth0` fail: an end-to-end test does.
fn names_links(spec: &Spec) -> bool {
    let settings = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.sysctl().as_ref());
    let mut names = settings.into_iter().flat_map(|settings| settings.keys());
    names.any(|name| {
        let mut parts = name.split(['.', '/']);
        parts.any(|part| part == "conf" || part == "neigh")
    })
}

fn restore(
    sandbox: Sandbox<'_>,
    hooks: Option<&HookGuard>,
    from: &Restoring,
) -> Result<(Running, Option<OwnedFd>), StartError> {
    std::fs::create_dir(&from.work).map_err(|error| {
        StartError::other(format_args!("create {}: {error}", from.work.display()))
    })?;
    let restored = corten_runtime::restore(sandbox, hooks, &from.images, &from.work);
    let restored = restored.map_err(StartError::other)?;
    if let Err(error) = std::fs::remove_dir_all(&from.work) {
        tracing::debug!(%error, "CRIU's log is left until the end");
    }
    Ok((restored.running, restored.console))
}

fn pipes(open_stdin: bool) -> std::io::Result<Streams> {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    let (stdin, input) = if open_stdin {
        let (read, write) = pipe()?;
        (read, Some(write))
    } else {
        (std::fs::File::open("/dev/null")?.into(), None)
    };
    let ((out, stdout), (err, stderr)) = (pipe()?, pipe()?);
    Ok(Streams {
        stdio: Stdio::Pipes {
            stdin,
            stdout,
            stderr,
        },
        outputs: vec![
            Output::Pipe(Stream::Stdout, out),
            Output::Pipe(Stream::Stderr, err),
        ],
        input,
    })
}

impl Run {
    fn new(
        running: Running,
        spec: Spec,
        hub: &Rc<Hub>,
        network: Network,
        hooks: Option<HookGuard>,
        external: Option<External>,
    ) -> Result<Self, StartError> {
        Ok(Self {
            pid: running.pid,
            pidfd: Rc::new(crate::sys::watch(running.pidfd).map_err(StartError::other)?),
            cgroup: Rc::new(running.cgroup),
            spec: Rc::new(spec),
            hub: hub.clone(),
            terminal: None,
            stop_signal: 0,
            stop_timeout: 0,
            readers: Vec::new(),
            network: Rc::new(RefCell::new(network)),
            external: external.map(Rc::new),
            _hooks: hooks,
        })
    }

    fn connect(
        &mut self,
        console: Option<OwnedFd>,
        outputs: Vec<Output>,
        input: Option<OwnedFd>,
        open_stdin: bool,
    ) {
        if let Err(error) = self.connect_streams(console, outputs, input, open_stdin) {
            tracing::warn!(%error, "streams could not be connected");
        }
    }

    fn connect_streams(
        &mut self,
        console: Option<OwnedFd>,
        outputs: Vec<Output>,
        input: Option<OwnedFd>,
        open_stdin: bool,
    ) -> std::io::Result<()> {
        if let Some(console) = console {
            let terminal = hub::terminal(console)?;
            self.readers
                .push(self.hub.read(Output::Terminal(terminal.clone()))?);
            if open_stdin {
                self.hub.feed_terminal(terminal.clone());
            }
            self.terminal = Some(terminal);
        }
        for output in outputs {
            self.readers.push(self.hub.read(output)?);
        }
        if let Some(input) = input {
            self.hub.feed_pipe(input)?;
        }
        Ok(())
    }

    /// Waits for the first process to end.
    pub(crate) async fn wait(&self) -> ExitStatus {
        loop {
            match self.pidfd.readable().await {
                Ok(mut ready) => match corten_runtime::try_wait_pidfd(self.pidfd.get_ref()) {
                    Ok(Some(status)) => return status,
                    Ok(None) => ready.clear_ready(),
                    Err(error) => {
                        tracing::warn!(%error, "the exit status is unknown");
                        return ExitStatus::Signaled(9);
                    }
                },
                Err(error) => {
                    tracing::warn!(%error, "the process cannot be watched");
                    return ExitStatus::Signaled(9);
                }
            }
        }
    }

    /// Ends what is left inside and takes in the last output. Tells whether the out-of-memory
    /// killer struck.
    pub(crate) async fn drain(&mut self) -> bool {
        let oom = self.cgroup.oom_kill_count().is_ok_and(|count| count > 0);
        if let Err(error) = self.cgroup.kill_all() {
            tracing::warn!(%error, "processes may be left inside");
        }
        self.hub.ending();
        let readers = std::mem::take(&mut self.readers);
        let aborts: Vec<_> = readers.iter().map(|reader| reader.abort_handle()).collect();
        let mut finish = std::pin::pin!(async {
            for reader in readers {
                if let Err(error) = reader.await {
                    tracing::debug!(%error, "a stream's reader failed");
                }
            }
        });
        // A descriptor passed out of the container may keep a pipe open for ever.
        let mut ended = tokio::time::timeout(DRAIN, &mut finish).await;
        if ended.is_err() && self.hub.leave_clients() {
            // What a client did not read in time is in the log, if nowhere else.
            ended = tokio::time::timeout(DRAIN, &mut finish).await;
        }
        if ended.is_err() {
            tracing::info!("a stream was still open after the end");
            for reader in aborts {
                reader.abort();
            }
        }
        oom
    }

    /// Undoes network and control group; goes on after an error. `joined`: others may be in its network
    /// namespace still.
    pub(crate) async fn teardown(self, joined: bool) {
        self.network.take().teardown(joined);
        if let Some(external) = &self.external {
            external.delete().await;
        }
        if let Err(error) = self.cgroup.remove() {
            tracing::warn!(%error, "the control group is left to be swept");
        }
    }
}
