//! The process around one RUN step. It has a single thread, because processes are cloned from
//! it; it makes the network and the container, waits, and undoes both, whatever happens: also
//! when the builder dies or cancels, which it sees as the end of its socket.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use corten_network::{Endpoint, NetNs};
use corten_runtime::{
    Cgroup, CgroupSpec, ExitStatus, Rootfs, Running, RuntimeError, Sandbox, Stdio,
};
use rustix::event::{PollFd, PollFlags, poll};

use crate::wire::{self, JobNetwork, Outcome, StepJob};

/// The face `build-step`: takes its job from standard input, a socket; standard output and
/// error become the command's. To be called first thing, while there is a single thread.
#[must_use]
pub fn main(args: &[OsString]) -> ExitCode {
    if !args.is_empty() {
        return refuse("build-step takes no arguments");
    }
    // The host's binary stays out of the container's reach (CVE-2019-5736).
    if let Err(error) = corten_runtime::exe::seal_self() {
        return refuse(&error.to_string());
    }
    let socket = match take_stdin() {
        Ok(socket) => socket,
        Err(error) => return refuse(&format!("standard input is no builder's socket: {error}")),
    };
    let (job, fds) = match wire::receive_with_fds::<StepJob>(&socket) {
        Ok(received) => received,
        Err(error) => return refuse(&format!("no job was received: {error}")),
    };
    let outcome = run(&job, fds, &socket).unwrap_or_else(|failure| failure);
    // Nobody reads it where the builder is gone.
    match wire::send(&socket, &outcome) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
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

/// The step's place on the network; undone when dropped.
struct Network {
    endpoint: Option<Endpoint>,
    _namespace: Option<NetNs>,
}

impl Drop for Network {
    fn drop(&mut self) {
        // The link goes with the namespace.
        if let Some(endpoint) = self.endpoint.take()
            && let Err(error) = endpoint.release()
        {
            tracing::warn!(%error, "an endpoint is left to be swept");
        }
    }
}

fn network(job: &JobNetwork) -> Result<(Network, corten_runtime::NetNs), Outcome> {
    let nothing = Network {
        endpoint: None,
        _namespace: None,
    };
    match job {
        JobNetwork::None => Ok((nothing, corten_runtime::NetNs::New)),
        JobNetwork::Host => Ok((nothing, corten_runtime::NetNs::Host)),
        JobNetwork::Bridge(spec) => {
            let namespace = NetNs::create().map_err(failed)?;
            let endpoint = corten_network::connect(&namespace, spec).map_err(failed)?;
            let joined = namespace.as_fd().try_clone_to_owned().map_err(failed)?;
            let network = Network {
                endpoint: Some(endpoint),
                _namespace: Some(namespace),
            };
            Ok((network, corten_runtime::NetNs::Join(joined)))
        }
    }
}

fn run(job: &StepJob, fds: Vec<OwnedFd>, socket: &UnixStream) -> Result<Outcome, Outcome> {
    let mut fds = fds.into_iter();
    let Some(rootfs) = fds.next() else {
        return Err(failed("a job without a root"));
    };
    let mounts: BTreeMap<usize, OwnedFd> = job.opened.iter().copied().zip(fds).collect();
    if mounts.len() != job.opened.len() {
        return Err(failed("a job without what it is to mount"));
    }
    let (_network, netns) = network(&job.network)?;
    let null = OpenOptions::new()
        .read(true)
        .open("/dev/null")
        .map_err(failed)?;
    let sandbox = Sandbox {
        id: &job.id,
        spec: &job.spec,
        rootfs: Rootfs::Detached(rootfs),
        mounts,
        netns,
        stdio: Stdio::Pipes {
            stdin: null.into(),
            stdout: rustix::stdio::stdout()
                .try_clone_to_owned()
                .map_err(failed)?,
            stderr: rustix::stdio::stderr()
                .try_clone_to_owned()
                .map_err(failed)?,
        },
        cgroup: CgroupSpec::new(job.cgroup.clone()),
    };
    let created = corten_runtime::create(sandbox).map_err(|e| refused(&e))?;
    let running = created.start().map_err(|e| refused(&e))?;
    let group = Group(&running.cgroup);
    let status = wait(&running, socket);
    let oom = running.cgroup.oom_kill_count().is_ok_and(|count| count > 0);
    drop(group);
    match status {
        Ok(status) => Ok(Outcome::Ended {
            code: status.code(),
            oom,
        }),
        Err(error) => Err(failed(error)),
    }
}

/// Ends whatever is in the group, and the group, when dropped.
struct Group<'a>(&'a Cgroup);

impl Drop for Group<'_> {
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
