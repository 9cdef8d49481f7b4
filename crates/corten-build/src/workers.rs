//! The processes that RUN steps happen in (`step`), kept from step to step of a build: to start
//! one takes longer than most commands. Each has one job at a time.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use corten_network::EndpointSpec;

use crate::cancel::Cancel;
use crate::error::BuildError;
use crate::request::{Sandboxing, StepEndpoint, StepNetwork};
use crate::run::random_id;
use crate::wire::{self, Outcome, StepJob};

/// Those of a build that have nothing to do.
#[derive(Debug, Default)]
pub(crate) struct Workers(Mutex<Vec<Worker>>);

impl Workers {
    /// A process that has nothing to do.
    pub(crate) fn take(
        &self,
        sandboxing: &Sandboxing,
        cancel: &Cancel,
    ) -> Result<Worker, BuildError> {
        let idle = || self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        while let Some(mut worker) = idle() {
            // Somebody may have killed it since its last step.
            if matches!(worker.child.try_wait(), Ok(None)) {
                return Ok(worker);
            }
        }
        let failed = || BuildError::io("start a process for build steps");
        let worker = Worker::start(sandboxing).map_err(failed())?;
        cancel.end_with(worker.socket.try_clone().map_err(failed())?);
        Ok(worker)
    }

    /// Takes a process back whose job is done.
    pub(crate) fn keep(&self, worker: Worker) {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push(worker);
    }

    /// Whether there is none, and none is being ended. Never waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.try_lock().is_ok_and(|idle| idle.is_empty())
    }

    /// Ends those that have nothing to do.
    pub(crate) fn end(&self) {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        idle.clear();
    }
}

/// A process. Dropped, it ends, and what it is doing with it.
#[derive(Debug)]
pub(crate) struct Worker {
    socket: UnixStream,
    child: Child,
    /// Where its next step will be on the network. Let go after the process, which has it.
    next: Option<StepEndpoint>,
}

impl Worker {
    fn start(sandboxing: &Sandboxing) -> io::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        let child = Command::new(&sandboxing.exe)
            .args(&sandboxing.exe_args)
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A terminal's interrupt is for the builder, which ends the step in order.
            .process_group(0)
            .spawn()?;
        Ok(Self {
            socket,
            child,
            next: None,
        })
    }

    /// A place on the network for its next step.
    pub(crate) fn place(&mut self, network: &dyn StepNetwork) -> Result<StepEndpoint, BuildError> {
        self.reserve(network)?;
        let next = self.next.take();
        next.ok_or_else(|| BuildError::Internal("a place was not reserved".to_owned()))
    }

    /// Has a place ready for the step after the one it is to be given.
    pub(crate) fn reserve(&mut self, network: &dyn StepNetwork) -> Result<(), BuildError> {
        if self.next.is_none() {
            let place = network.allocate(&random_id());
            let failed = |e| BuildError::Internal(format!("no place on the bridge: {e}"));
            self.next = Some(place.map_err(failed)?);
        }
        Ok(())
    }

    /// The place that is ready.
    pub(crate) fn reserved(&self) -> Option<Box<EndpointSpec>> {
        let next = self.next.as_ref();
        next.map(|place| Box::new(place.endpoint.clone()))
    }

    /// Gives it a job.
    pub(crate) fn begin(&self, job: &StepJob, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        wire::send_with_fds(&self.socket, job, fds)
    }

    /// Waits for what became of its job; an error: the process died.
    pub(crate) fn outcome(&self) -> io::Result<Outcome> {
        wire::receive(&self.socket)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It sees the end of its socket and undoes what it is at; others (`Cancel`) may have
        // copies of ours.
        self.socket.shutdown(std::net::Shutdown::Both).ok();
        if let Err(error) = self.child.wait() {
            tracing::warn!(%error, "the process of build steps cannot be waited for");
        }
    }
}
