//! `process.scheduler` (runtime-spec, config "Linux Process"): policy, nice value,
//! priority and deadlines of a process, by `sched_setattr`.

use corten_oci::runtime_spec::{LinuxSchedulerFlag, LinuxSchedulerPolicy, Scheduler};

use crate::error::{RuntimeError, Step};
use crate::sys::{self, SchedAttr};

/// Checks the fields against each other, as the kernel would only say EINVAL.
pub(super) fn plan(scheduler: &Scheduler) -> Result<SchedAttr, RuntimeError> {
    use LinuxSchedulerPolicy as P;
    let refuse = |field: &str, reason: String| {
        Err(RuntimeError::spec(
            format!("process.scheduler.{field}"),
            reason,
        ))
    };
    let policy = *scheduler.policy();
    let nice = scheduler.nice().unwrap_or(0);
    if !(-20..=19).contains(&nice) {
        return refuse("nice", format!("{nice} is not between -20 and 19"));
    }
    let priority = scheduler.priority().unwrap_or(0);
    if priority != 0 && !matches!(policy, P::SchedFifo | P::SchedRr) {
        return refuse("priority", "is for SCHED_FIFO and SCHED_RR only".into());
    }
    let Some(priority) = u32::try_from(priority).ok().filter(|p| *p <= 99) else {
        return refuse("priority", format!("{priority} is not between 0 and 99"));
    };
    let [runtime, deadline, period] = [
        scheduler.runtime(),
        scheduler.deadline(),
        scheduler.period(),
    ]
    .map(|value| value.unwrap_or(0));
    if policy != P::SchedDeadline && (runtime, deadline, period) != (0, 0, 0) {
        let reason = "runtime, deadline and period are for SCHED_DEADLINE only";
        return Err(RuntimeError::spec("process.scheduler", reason));
    }
    let flags = scheduler.flags().iter().flatten();
    Ok(SchedAttr {
        size: u32::try_from(size_of::<SchedAttr>()).unwrap_or(0),
        policy: match policy {
            P::SchedOther => 0,
            P::SchedFifo => 1,
            P::SchedRr => 2,
            P::SchedBatch => 3,
            P::SchedIso => 4,
            P::SchedIdle => 5,
            P::SchedDeadline => 6,
        },
        flags: flags.fold(0, |all, flag| all | bit(*flag)),
        nice,
        priority,
        runtime,
        deadline,
        period,
        util_min: 0,
        util_max: 0,
    })
}

/// `linux/sched.h`.
fn bit(flag: LinuxSchedulerFlag) -> u64 {
    use LinuxSchedulerFlag as F;
    match flag {
        F::SchedResetOnFork => 0x1,
        F::SchedFlagReclaim => 0x2,
        F::SchedFlagDLOverrun => 0x4,
        F::SchedFlagKeepPolicy => 0x8,
        F::SchedFlagKeepParams => 0x10,
        F::SchedFlagUtilClampMin => 0x20,
        F::SchedFlagUtilClampMax => 0x40,
    }
}

/// Child.
pub(super) fn apply(attr: &SchedAttr) -> Result<(), RuntimeError> {
    sys::sched_setattr(attr)
        .map_err(|errno| RuntimeError::setup(Step::Scheduler, "process.scheduler", errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(json: serde_json::Value) -> Result<SchedAttr, String> {
        let scheduler: Scheduler = serde_json::from_value(json).unwrap();
        plan(&scheduler).map_err(|error| error.to_string())
    }

    #[test]
    fn values() {
        let attr = planned(serde_json::json!({
            "policy": "SCHED_DEADLINE", "runtime": 1, "deadline": 2, "period": 3,
            "flags": ["SCHED_FLAG_RECLAIM", "SCHED_FLAG_KEEP_PARAMS"]
        }))
        .unwrap();
        assert_eq!((attr.size, attr.policy, attr.flags), (56, 6, 0x12));
        assert_eq!((attr.runtime, attr.deadline, attr.period), (1, 2, 3));
        let attr = planned(serde_json::json!({"policy": "SCHED_RR", "priority": 7})).unwrap();
        assert_eq!((attr.policy, attr.priority), (2, 7));
    }

    #[test]
    fn refusals_name_the_field() {
        for (json, field) in [
            (
                serde_json::json!({"policy": "SCHED_OTHER", "nice": 20}),
                "scheduler.nice",
            ),
            (
                serde_json::json!({"policy": "SCHED_BATCH", "priority": 1}),
                "scheduler.priority",
            ),
            (
                serde_json::json!({"policy": "SCHED_FIFO", "priority": 100}),
                "scheduler.priority",
            ),
            (
                serde_json::json!({"policy": "SCHED_FIFO", "period": 1}),
                "SCHED_DEADLINE",
            ),
        ] {
            let error = planned(json).unwrap_err();
            assert!(error.contains(field), "{error}");
        }
    }
}
