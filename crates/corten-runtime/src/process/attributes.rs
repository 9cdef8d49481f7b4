//! What a process inherits through `execve` besides identity and limits: scheduling, I/O
//! priority, memory policy, personality. Nothing here costs a system call unless the
//! spec asks for it.

use corten_oci::runtime_spec::{Process, Spec};

use super::memory_policy::MemoryPolicy;
use super::{io_priority, personality, scheduler};
use crate::error::RuntimeError;
use crate::sys::SchedAttr;

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Attributes {
    scheduler: Option<SchedAttr>,
    io_priority: Option<u32>,
    memory_policy: Option<MemoryPolicy>,
    personality: Option<u64>,
}

impl Attributes {
    /// The process's own, and those the container gives to all of its processes.
    pub(super) fn plan(process: &Process, spec: &Spec) -> Result<Self, RuntimeError> {
        let linux = spec.linux().as_ref();
        let policy = linux.and_then(|linux| linux.memory_policy().as_ref());
        let persona = linux.and_then(|linux| linux.personality().as_ref());
        let io_priority = process.io_priority().as_ref();
        Ok(Self {
            scheduler: process
                .scheduler()
                .as_ref()
                .map(scheduler::plan)
                .transpose()?,
            io_priority: io_priority.map(io_priority::plan).transpose()?,
            memory_policy: policy.map(MemoryPolicy::plan).transpose()?,
            personality: persona.map(personality::plan).transpose()?,
        })
    }

    /// Child, while it still has the rights of the caller.
    pub(super) fn apply(&self) -> Result<(), RuntimeError> {
        if let Some(attr) = &self.scheduler {
            scheduler::apply(attr)?;
        }
        if let Some(priority) = self.io_priority {
            io_priority::apply(priority)?;
        }
        if let Some(policy) = &self.memory_policy {
            policy.apply()?;
        }
        if let Some(persona) = self.personality {
            personality::apply(persona)?;
        }
        Ok(())
    }
}
