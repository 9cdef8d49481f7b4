//! `process.ioPriority` (runtime-spec, config "Linux Process"): `ioprio_set`.

use corten_oci::runtime_spec::{IOPriorityClass, LinuxIOPriority};

use crate::error::{RuntimeError, Step};
use crate::sys;

/// The kernel's number: the class above thirteen bits of priority.
pub(super) fn plan(priority: &LinuxIOPriority) -> Result<u32, RuntimeError> {
    let class = match priority.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    match u32::try_from(priority.priority()) {
        Ok(level @ 0..=7) => Ok(class << 13 | level),
        _ => {
            let reason = format!("{} is not between 0 and 7", priority.priority());
            Err(RuntimeError::spec("process.ioPriority.priority", reason))
        }
    }
}

/// Child.
pub(super) fn apply(priority: u32) -> Result<(), RuntimeError> {
    sys::ioprio_set(priority)
        .map_err(|errno| RuntimeError::setup(Step::Scheduler, "process.ioPriority", errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let of = |class: &str, priority: i64| {
            let json = serde_json::json!({"class": class, "priority": priority});
            plan(&serde_json::from_value(json).unwrap())
        };
        assert_eq!(of("IOPRIO_CLASS_BE", 4).unwrap(), 2 << 13 | 4);
        assert_eq!(of("IOPRIO_CLASS_IDLE", 0).unwrap(), 3 << 13);
        for wrong in [8, -1] {
            assert!(of("IOPRIO_CLASS_RT", wrong).is_err());
        }
    }
}
