//! The process around RUN steps, one at a time. It has a single thread, because processes are
//! cloned from it; for each step it makes the network and the container, waits, and undoes both,
//! whatever happens: also when the builder dies or cancels, which it sees as the end of its socket.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use corten_network::{Endpoint, EndpointSpec, NetNs};
use corten_runtime::{
    Cgroup, CgroupSpec, ExitStatus, HookGuard, Rootfs, Running, RuntimeError, Sandbox, Stdio,
    passing,
};
use rustix::event::{PollFd, PollFlags, poll};

use crate::wire::{self, JobNetwork, Outcome, StepJob};

/// The face `build-step`: takes jobs from standard input, a socket, one after the other. To be
/// called first thing, while there is a single thread.
#[must_use]
pub fn main(args: &[OsString]) -> ExitCode {
    if !args.is_empty() {
        return refuse("build-step takes no arguments");
    }
    // The host's binary stays out of the container's reach (CVE-2019-5736).
    let sealed = corten_runtime::exe::seal_self();
    let socket = match take_stdin() {
        Ok(socket) => socket,
        Err(error) => return refuse(&format!("standard input is no builder's socket: {error}")),
    };
    if let Err(error) = sealed {
        // The answer to a job that nobody has read. Where no one reads it, the builder is gone.
        wire::send(&socket, &failed(error)).ok();
        return ExitCode::FAILURE;
    }
    let mut ready = None;
    loop {
        let (job, fds) = match wire::receive_with_fds::<StepJob>(&socket) {
            Ok(received) => received,
            // There is no more work.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return ExitCode::SUCCESS,
            Err(error) => return refuse(&format!("no job was received: {error}")),
        };
        let mut left = Left::default();
        let outcome = run(&job, fds, &socket, &mut ready, &mut left);
        let outcome = outcome.unwrap_or_else(|failure| failure);
        if left.hooks.is_some() {
            // The builder removes what they are shown.
            left = Left::default();
        }
        // Nobody reads it where the builder is gone.
        let told = wire::send(&socket, &outcome);
        // The builder makes a layer meanwhile.
        drop(left);
        if told.is_err() {
            // Whoever has ended the builder may have removed all that was there, before this made its own.
            if let Ok(group) = Cgroup::open(&job.cgroup) {
                group.remove_empty_parent();
            }
            return ExitCode::FAILURE;
        }
        if let (None, Some(spec)) = (&ready, &job.next) {
            // What fails now fails once more, and is told, when it is wanted.
            ready = Place::make(spec).ok();
        }
    }
}

/// There is no builder to tell: this is for somebody who runs the face by hand.
#[allow(clippy::print_stderr)]
fn refuse(message: &str) -> ExitCode {
    eprintln!("corten build-step: {message}");
    ExitCode::from(125)
}

fn take_stdin() -> io::Result<UnixStream> {
    let null = OpenOptions::new().read(true).open("/dev/null")?;
    let socket = rustix::stdio::stdin().try_clone_to_owned()?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::net::sockopt::socket_type(&socket)?;
    Ok(UnixStream::from(socket))
}

fn failed(error: impl std::fmt::Display) -> Outcome {
    Outcome::Failed {
        message: error.to_string(),
        code: None,
    }
}

fn refused(error: &RuntimeError) -> Outcome {
    Outcome::Failed {
        message: error.to_string(),
        code: Some(error.exit_code()).filter(|code| matches!(code, 126 | 127)),
    }
}

/// A step's place on the network; undone when dropped.
struct Place {
    spec: EndpointSpec,
    endpoint: Option<Endpoint>,
    namespace: NetNs,
}

impl Drop for Place {
    fn drop(&mut self) {
        // The link goes with the namespace.
        if let Some(endpoint) = self.endpoint.take()
            && let Err(error) = endpoint.release()
        {
            tracing::warn!(%error, "an endpoint is left to be swept");
        }
    }
}

impl Place {
    fn make(spec: &EndpointSpec) -> Result<Self, Outcome> {
        let namespace = NetNs::create().map_err(failed)?;
        let endpoint = corten_network::connect(&namespace, spec).map_err(failed)?;
        Ok(Self {
            spec: spec.clone(),
            endpoint: Some(endpoint),
            namespace,
        })
    }
}

/// What a step leaves, to be undone when its outcome has been told: all its processes are gone
/// with its first one.
#[derive(Default)]
struct Left {
    place: Option<Place>,
    group: Option<Group>,
    hooks: Option<HookGuard>,
}

/// The network of a step, by what was made ready for it where there is that.
fn network(
    job: &JobNetwork,
    ready: &mut Option<Place>,
    left: &mut Left,
) -> Result<corten_runtime::NetNs, Outcome> {
    let spec = match job {
        JobNetwork::None => return Ok(corten_runtime::NetNs::New),
        JobNetwork::Host => return Ok(corten_runtime::NetNs::Host),
        JobNetwork::Bridge(spec) => spec,
    };
    let place = match ready.take() {
        Some(place) if place.spec == **spec => place,
        _ => Place::make(spec)?,
    };
    let joined = place.namespace.as_fd().try_clone_to_owned();
    left.place = Some(place);
    Ok(corten_runtime::NetNs::Join(joined.map_err(failed)?))
}

fn run(
    job: &StepJob,
    fds: Vec<OwnedFd>,
    socket: &UnixStream,
    ready: &mut Option<Place>,
    left: &mut Left,
) -> Result<Outcome, Outcome> {
    let mut fds = fds.into_iter();
    let (Some(rootfs), Some(stdout), Some(stderr)) = (fds.next(), fds.next(), fds.next()) else {
        return Err(failed("a job without a root and streams"));
    };
    let _own = Complaints::to(&stderr).map_err(failed)?;
    let mounts: BTreeMap<usize, OwnedFd> = job.opened.iter().copied().zip(fds).collect();
    if mounts.len() != job.opened.len() {
        return Err(failed("a job without what it is to mount"));
    }
    let netns = network(&job.network, ready, left)?;
    let (stdio, console) = if job.terminal {
        (Stdio::Terminal { size: None }, Some(stdout))
    } else {
        let null = OpenOptions::new()
            .read(true)
            .open("/dev/null")
            .map_err(failed)?;
        let stdin = null.into();
        (
            Stdio::Pipes {
                stdin,
                stdout,
                stderr,
            },
            None,
        )
    };
    let hooks = HookGuard::new(&job.id, &job.spec, &job.bundle).map_err(|e| refused(&e))?;
    left.hooks = hooks;
    let sandbox = Sandbox {
        id: &job.id,
        spec: &job.spec,
        rootfs: Rootfs::Detached(rootfs),
        mounts,
        netns,
        stdio,
        cgroup: CgroupSpec::new(job.cgroup.clone()),
    };
    let mut created = corten_runtime::create_hooked(sandbox, left.hooks.as_ref(), &mut || true)
        .map_err(|e| refused(&e))?;
    if let (Some(socket), Some(terminal)) = (console, created.console()) {
        let byte = [IoSlice::new(&[0])];
        passing::send(&socket, &byte, &[terminal.as_fd()])
            .map_err(|errno| failed(io::Error::from(errno)))?;
    }
    let running = created.start().map_err(|e| refused(&e))?;
    let status = wait(&running, socket);
    let oom = running.cgroup.oom_kill_count().is_ok_and(|count| count > 0);
    left.group = Some(Group(running.cgroup));
    match status {
        Ok(status) => Ok(Outcome::Ended {
            code: status.code(),
            oom,
        }),
        Err(error) => Err(failed(error)),
    }
}

/// While it lives, what this process itself has to say (warnings, a panic) is part of the step's
/// output; otherwise nobody listens.
struct Complaints;

impl Complaints {
    fn to(stderr: &OwnedFd) -> io::Result<Self> {
        rustix::stdio::dup2_stderr(stderr)?;
        Ok(Self)
    }
}

impl Drop for Complaints {
    fn drop(&mut self) {
        // The builder waits until nobody holds the stream any more.
        let null = OpenOptions::new().write(true).open("/dev/null");
        let silenced = null.and_then(|null| Ok(rustix::stdio::dup2_stderr(&null)?));
        if silenced.is_err() {
            std::process::abort();
        }
    }
}

/// Ends whatever is in the group, and the group, when dropped.
struct Group(Cgroup);

impl Drop for Group {
    fn drop(&mut self) {
        let ended = self.0.kill_all().and_then(|()| self.0.remove());
        if let Err(error) = ended {
            tracing::warn!(%error, "a control group is left to be swept");
        }
    }
}

/// Waits for the first process; kills it when the builder's end of the socket closes.
fn wait(running: &Running, socket: &UnixStream) -> Result<ExitStatus, RuntimeError> {
    let mut watched = true;
    loop {
        let mut fds = vec![PollFd::new(&running.pidfd, PollFlags::IN)];
        if watched {
            fds.push(PollFd::new(socket, PollFlags::IN | PollFlags::RDHUP));
        }
        // An interrupted or failing poll leads to another look at the process.
        if poll(&mut fds, None).is_err() {
            std::thread::yield_now();
        }
        let closed = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
        if let Some(status) = corten_runtime::try_wait_pidfd(&running.pidfd)? {
            return Ok(status);
        }
        if closed {
            watched = false;
            running.cgroup.kill_all()?;
        }
    }
}
