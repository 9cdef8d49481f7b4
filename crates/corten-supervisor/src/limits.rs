//! How many descriptors this process may have open, and what of that its container's processes get.

use corten_network::Descriptors;
use corten_oci::runtime_spec::{PosixRlimitBuilder, PosixRlimitType, Process};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that carried connections may have at the most, however many are allowed: each costs
/// memory too.
const CARRIED: u64 = 32_768;

/// The limit this process was given.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Given(Rlimit);

/// Lets this process have as many as it may: the usual limit of 1024 is for programs that use select(2),
/// and every published port and carried connection takes some.
pub(crate) fn raise() -> Given {
    let given = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: given.maximum,
        maximum: given.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, most) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    Given(given)
}

impl Given {
    /// Gives a process of the container what this one was given, unless it is to have something else.
    pub(crate) fn keep(self, process: &mut Process) {
        let mut limits = process.rlimits().clone().unwrap_or_default();
        let nofile = PosixRlimitType::RlimitNofile;
        if self.0.current == self.0.maximum || limits.iter().any(|l| l.typ() == nofile) {
            return;
        }
        let limit = PosixRlimitBuilder::default()
            .typ(nofile)
            .soft(self.0.current.unwrap_or(u64::MAX))
            .hard(self.0.maximum.unwrap_or(u64::MAX));
        match limit.build() {
            Ok(limit) => limits.push(limit),
            Err(error) => tracing::error!(%error, "a limit of open files"),
        }
        process.set_rlimits(Some(limits));
    }
}

/// For connections that are carried: half of what this process may have. The rest is for the ports
/// themselves, the name server, clients, streams and the database.
pub(crate) fn for_connections() -> Descriptors {
    let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    Descriptors::new(usize::try_from((most / 2).min(CARRIED)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(given: (u64, u64), process: &mut Process) -> Vec<(u64, u64)> {
        let (current, maximum) = (Some(given.0), Some(given.1));
        Given(Rlimit { current, maximum }).keep(process);
        let limits = process.rlimits().iter().flatten();
        limits.map(|l| (l.soft(), l.hard())).collect()
    }

    #[test]
    fn a_container_has_the_limit_its_supervisor_was_given() {
        let mut process = Process::default();
        process.set_rlimits(None);
        assert_eq!(kept((4096, 4096), &mut process), []);
        assert_eq!(kept((1024, 4096), &mut process), [(1024, 4096)]);
        // One that it has stays.
        assert_eq!(kept((512, 4096), &mut process), [(1024, 4096)]);
    }
}
