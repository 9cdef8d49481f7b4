//! `process.execCPUAffinity` (runtime-spec, config "Linux Process"): on which processors
//! an executed process runs before it is moved to the container's control group, and
//! afterwards. It says nothing about a container's first process.

use corten_oci::runtime_spec::{ExecCPUAffinity, Process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::error::{RuntimeError, Step};
use crate::number_list;

/// Both sets.
#[derive(Debug, Default)]
pub(crate) struct Affinity {
    initial: Option<CpuSet>,
    last: Option<CpuSet>,
}

impl Affinity {
    /// The process's own wish, else that of the container's process.
    pub(crate) fn plan(process: &Process, first: Option<&Process>) -> Result<Self, RuntimeError> {
        let own = process.exec_cpu_affinity().as_ref();
        let given = own.or_else(|| first.and_then(|first| first.exec_cpu_affinity().as_ref()));
        let Some(given) = given else {
            return Ok(Self::default());
        };
        Self::parse(given)
    }

    fn parse(given: &ExecCPUAffinity) -> Result<Self, RuntimeError> {
        let set = |name: &str, list: Option<&String>| {
            let Some(list) = list.filter(|list| !list.is_empty()) else {
                return Ok(None);
            };
            let refuse = || {
                let field = format!("process.execCPUAffinity.{name}");
                RuntimeError::spec(field, format!("{list:?} is not a list such as 0-3,7"))
            };
            let mut set = CpuSet::new();
            for number in number_list::parse(list).ok_or_else(refuse)? {
                let number = usize::from(number);
                if number >= CpuSet::MAX_CPU {
                    return Err(refuse());
                }
                set.set(number);
            }
            Ok(Some(set))
        };
        Ok(Self {
            initial: set("initial", given.initial().as_ref())?,
            last: set("final", given.cpu_affinity_final().as_ref())?,
        })
    }

    /// Caller: what it clones starts with the initial set; its own comes back when the
    /// guard is dropped.
    pub(crate) fn begin(&self) -> Result<Option<Restore>, RuntimeError> {
        let Some(set) = &self.initial else {
            return Ok(None);
        };
        let before = sched_getaffinity(None).map_err(fail("initial"))?;
        sched_setaffinity(None, set).map_err(fail("initial"))?;
        Ok(Some(Restore(before)))
    }

    /// Child, in its control group.
    pub(crate) fn finish(&self) -> Result<(), RuntimeError> {
        match &self.last {
            Some(set) => sched_setaffinity(None, set).map_err(fail("final")),
            None => Ok(()),
        }
    }
}

fn fail(name: &'static str) -> impl Fn(rustix::io::Errno) -> RuntimeError {
    move |errno| {
        let target = format!("process.execCPUAffinity.{name}");
        RuntimeError::setup(Step::Scheduler, target, errno)
    }
}

/// The caller's own set, to be set again.
#[derive(Debug)]
pub(crate) struct Restore(CpuSet);

impl Drop for Restore {
    fn drop(&mut self) {
        sched_setaffinity(None, &self.0).ok();
    }
}
