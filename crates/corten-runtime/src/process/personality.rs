//! `linux.personality` (runtime-spec, config-linux "Personality").

use corten_oci::runtime_spec::{LinuxPersonality, LinuxPersonalityDomain};

use crate::error::{RuntimeError, Step};
use crate::sys;

/// `PER_LINUX` or `PER_LINUX32`. The spec reserves flags but defines none.
pub(super) fn plan(personality: &LinuxPersonality) -> Result<u64, RuntimeError> {
    if let Some(flag) = personality.flags().iter().flatten().next() {
        let reason = format!("{flag:?} is not known: the specification defines no flags");
        return Err(RuntimeError::spec("linux.personality.flags", reason));
    }
    Ok(match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 0x8,
    })
}

/// Child.
pub(super) fn apply(persona: u64) -> Result<(), RuntimeError> {
    sys::personality(persona)
        .map_err(|errno| RuntimeError::setup(Step::Scheduler, "linux.personality", errno))
}
