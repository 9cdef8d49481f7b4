//! Where the processor's time goes when an image arrives, for whoever measures that.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Something that costs time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Digests of blobs and of plain archives.
    Hash,
    /// Decompressing, and reading what is decompressed.
    Inflate,
    /// Reading archives, and writing layers and blobs.
    Write,
}

/// Processor time by phase, of all threads.
#[derive(Debug, Default)]
pub struct Phases {
    measured: AtomicBool,
    hash: AtomicU64,
    inflate: AtomicU64,
    write: AtomicU64,
}

impl Phases {
    fn nanos(&self, phase: Phase) -> &AtomicU64 {
        match phase {
            Phase::Hash => &self.hash,
            Phase::Inflate => &self.inflate,
            Phase::Write => &self.write,
        }
    }

    /// Measures from now on: to look at the clock costs a call of the system.
    pub fn measure(&self) {
        self.measured.store(true, Ordering::Relaxed);
    }

    /// What a phase took, since it is measured.
    #[must_use]
    pub fn spent(&self, phase: Phase) -> Duration {
        Duration::from_nanos(self.nanos(phase).load(Ordering::Relaxed))
    }

    /// Does some of a phase's work, on this thread.
    pub(crate) fn during<T>(&self, phase: Phase, work: impl FnOnce() -> T) -> T {
        self.timed(phase, work).0
    }

    /// Does some of a phase's work in the middle of another's, on its thread: it is no time of the
    /// other one.
    pub(crate) fn amid<T>(&self, phase: Phase, work: impl FnOnce() -> T) -> T {
        let (done, spent) = self.timed(phase, work);
        AMID.set(AMID.get() + spent);
        done
    }

    /// Does it, and how long it took in all, if that is measured.
    fn timed<T>(&self, phase: Phase, work: impl FnOnce() -> T) -> (T, u64) {
        if !self.measured.load(Ordering::Relaxed) {
            return (work(), 0);
        }
        let outer = AMID.replace(0);
        let before = thread_nanos();
        let done = work();
        let spent = thread_nanos().saturating_sub(before);
        let own = spent.saturating_sub(AMID.replace(outer));
        self.nanos(phase).fetch_add(own, Ordering::Relaxed);
        (done, spent)
    }
}

thread_local! {
    /// What was done on this thread in the middle of what it is doing, for other phases.
    static AMID: Cell<u64> = const { Cell::new(0) };
}

/// Processor time of this thread.
fn thread_nanos() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let (seconds, nanos) = (time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs());
    seconds * 1_000_000_000 + nanos
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_counts_and_waiting_does_not() {
        let phases = Phases::default();
        phases.during(Phase::Write, || {
            let end = thread_nanos() + 3_000_000;
            while thread_nanos() < end {}
        });
        phases.measure();
        phases.during(Phase::Hash, || {
            let end = thread_nanos() + 3_000_000;
            while thread_nanos() < end {}
        });
        phases.during(Phase::Inflate, || {
            std::thread::park_timeout(Duration::from_millis(1));
        });
        let mut inner = Duration::ZERO;
        phases.during(Phase::Inflate, || {
            phases.amid(Phase::Hash, || {
                let end = thread_nanos() + 3_000_000;
                while thread_nanos() < end {}
            });
            inner = phases.spent(Phase::Hash);
        });
        assert!(inner >= Duration::from_millis(6), "{phases:?}");
        let (hash, inflate) = (phases.spent(Phase::Hash), phases.spent(Phase::Inflate));
        assert!(
            hash >= Duration::from_millis(3) && inflate < hash,
            "{phases:?}"
        );
        // What was done amid it is none of its own.
        assert!(inflate < Duration::from_millis(3), "{phases:?}");
        assert_eq!(phases.spent(Phase::Write), Duration::ZERO);
    }

    /// What goes on is not measured, and what begins within it is.
    #[test]
    fn measuring_begins_in_the_middle_of_something() {
        let phases = Phases::default();
        phases.during(Phase::Inflate, || {
            phases.measure();
            phases.amid(Phase::Hash, || {
                let end = thread_nanos() + 3_000_000;
                while thread_nanos() < end {}
            });
        });
        assert!(phases.spent(Phase::Hash) >= Duration::from_millis(3));
        assert_eq!(phases.spent(Phase::Inflate), Duration::ZERO);
        // Nor is it taken off what comes next.
        phases.during(Phase::Inflate, || {
            let end = thread_nanos() + 3_000_000;
            while thread_nanos() < end {}
        });
        assert!(phases.spent(Phase::Inflate) >= Duration::from_millis(3));
    }
}
