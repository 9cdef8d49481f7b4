//! Being out of sight of a container's processes until one has become one of them.
//!
//! A child that is born into a process namespace is visible there from its first moment,
//! while it still has the host's descriptors, root and executable. The kernel refuses to
//! let anybody look into a process that is not "dumpable" (ptrace(2), "Ptrace access mode
//! checking"), unless they have `CAP_SYS_PTRACE` over the namespace in which its program
//! was executed: the host's. A mere check of capabilities is not enough: who owns a user
//! namespace, by its user id, has all of them over it.

use rustix::process::{DumpableBehavior, dumpable_behavior, set_dumpable_behavior};

use crate::error::{RuntimeError, Step};

/// While it lives, the caller and what it clones cannot be looked into.
#[derive(Debug)]
pub(crate) struct Hidden {
    before: DumpableBehavior,
}

impl Hidden {
    pub(crate) fn now() -> Result<Self, RuntimeError> {
        let before = dumpable_behavior()
            .map_err(|errno| RuntimeError::setup(Step::Prepare, "dumpable", errno))?;
        hide()?;
        Ok(Self { before })
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        set_dumpable_behavior(self.before).ok();
    }
}

/// Lets the caller be looked into while it waits for those who may have to.
pub(crate) fn shown(wait: impl FnOnce() -> Result<(), RuntimeError>) -> Result<(), RuntimeError> {
    set_dumpable_behavior(DumpableBehavior::Dumpable)
        .map_err(|errno| RuntimeError::setup(Step::Prepare, "dumpable", errno))?;
    let answer = wait();
    hide()?;
    answer
}

/// Hides the caller until its `execve`. Needed again after every change of ids, which
/// makes the process what `fs.suid_dumpable` says.
pub(crate) fn hide() -> Result<(), RuntimeError> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|errno| RuntimeError::setup(Step::Prepare, "dumpable", errno))
}
