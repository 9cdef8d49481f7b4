//! seccomp (runtime-spec, config-linux "Seccomp"): from a profile to a classic BPF program,
//! and user notification.
//!
//! In the order in which a profile meets them: [`profile`] says what each call comes to,
//! with the numbers of [`calls`]; this module puts together one search per architecture;
//! [`arguments`] writes what looks at arguments, [`bpf`] is the assembler; [`notify`] hands
//! the descriptor of a notifying filter to its agent.
//!
//! The program is a binary search over ranges of numbers with one outcome each, which ends
//! earlier for calls that are made often. What is decided by the number alone is decided
//! without looking at arguments, because the kernel (5.11 and later), when loading a filter,
//! runs it once per number and never again for those it finds always allowed. A linear list
//! of comparisons makes that the greater part of the load; here a number takes 24
//! instructions at most (the ignored test `cost` prints times).
//!
//! There is no cache of compiled programs, on disk or in memory. Docker's default profile is
//! compiled in 22 µs (libseccomp takes over 100 ms for it); to look it up by its digest takes
//! 17, the check whose file it is not counted: 12 to serialise and hash the profile, 5 to read
//! a file. Five microseconds of a start's nine thousand are no reason to trust
//! a file. (The ignored test `cost` prints these times, of loops.)
//!
//! Once, with cold caches, it is more: of the 2.9 ms of an `exec` by the command line, reading
//! `config.json` takes 0.15 ms (12 KB, 10 of them the profile) and compiling 0.07 (medians of
//! 40, by uprobes at `document::spec` and [`compile`]). A cache would not save the reading:
//! its key is what was read.

mod arguments;
mod bpf;
mod calls;
mod calls_arm;
mod calls_x86;
pub(crate) mod notify;
mod profile;
#[cfg(test)]
mod tests;

use corten_oci::runtime_spec::{LinuxSeccomp, LinuxSeccompFilterFlag};

use crate::error::RuntimeError;
use bpf::{Assembler, JEQ, Label};
use calls::{Abi, Machine, NATIVE};
pub(crate) use notify::Listener;
use profile::{BAD_ARCH, Leaf, LeafId, Rules};

/// A compiled filter with what is needed to load it.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    /// The classic BPF program.
    pub(crate) program: Vec<libc::sock_filter>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub(crate) flags: u64,
    /// Who answers the calls that notify, if any do.
    pub(crate) listener: Option<Listener>,
}

impl Filter {
    /// Whether loading it makes a notification descriptor.
    pub(crate) fn notifies(&self) -> bool {
        self.listener.is_some()
    }
}

/// Most instructions the kernel takes (`BPF_MAXINSNS`).
const MAX_INSTRUCTIONS: usize = 4096;

/// Offsets in `struct seccomp_data`.
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCH: u32 = 4;

/// Compiles a profile.
pub(crate) fn compile(profile: &LinuxSeccomp) -> Result<Filter, RuntimeError> {
    let listener = Listener::of(profile)?;
    let program = program(NATIVE, profile)?;
    Ok(Filter {
        program,
        flags: flags(profile, listener.is_some()),
        listener,
    })
}

/// The program for a machine: by architecture, then by number, then by arguments.
fn program(
    machine: &'static Machine,
    profile: &LinuxSeccomp,
) -> Result<Vec<libc::sock_filter>, RuntimeError> {
    let mut rules = Rules::new(machine, profile)?;
    let mut code = Assembler::default();
    let abis = abis(machine, profile);
    let mut next = code.ret(BAD_ARCH);
    // The native architecture is written last: it comes first, and near.
    for group in abis.chunk_by(|a, b| a.audit == b.audit).rev() {
        let Some(search) = search(&mut code, &mut rules, group) else {
            continue;
        };
        let audit = group.first().map_or(0, |abi| abi.audit);
        next = code.branch(JEQ, audit, search, next);
        if code.len() > MAX_INSTRUCTIONS {
            break;
        }
    }
    code.load(OFFSET_ARCH, next);
    if code.len() > MAX_INSTRUCTIONS {
        let reason = format!(
            "needs more than the {MAX_INSTRUCTIONS} instructions that the kernel takes ({})",
            code.len()
        );
        return Err(RuntimeError::spec("linux.seccomp", reason));
    }
    Ok(code.finish())
}

/// The search among the numbers of one architecture.
fn search(code: &mut Assembler, rules: &mut Rules, abis: &[&'static Abi]) -> Option<Label> {
    let ranges = rules.ranges(abis);
    // Rules about arguments are written once for each architecture.
    let mut written: Vec<(LeafId, Label)> = Vec::new();
    let mut leaf = |code: &mut Assembler, id: &LeafId| {
        if let Some((_, label)) = written.iter().find(|(known, _)| known == id) {
            return *label;
        }
        let default = code.ret(rules.default);
        match rules.leaves.get(usize::from(*id)) {
            Some(Leaf::Return(outcome)) => code.ret(*outcome),
            Some(Leaf::Rules(rules)) => {
                let label = arguments::rules(code, rules, default);
                written.push((*id, label));
                label
            }
            None => default,
        }
    };
    let search = code.search(&ranges, &mut leaf)?;
    Some(code.load(OFFSET_NUMBER, search))
}

/// The ABIs to cover, grouped by architecture: those of the profile that can occur on this
/// machine, and the native one in any case.
fn abis(machine: &'static Machine, profile: &LinuxSeccomp) -> Vec<&'static Abi> {
    let listed = profile.architectures().as_deref().unwrap_or_default();
    let all = machine.abis.iter().enumerate();
    let mut abis: Vec<&Abi> = all
        .filter(|(at, abi)| *at == 0 || listed.contains(&abi.arch))
        .map(|(_, abi)| abi)
        .collect();
    let native = abis.first().map_or(0, |abi| abi.audit);
    abis.sort_by_key(|abi| abi.audit != native);
    abis
}

/// The load flags. Without any in the profile, speculation mitigations are left to the
/// program itself (`SPEC_ALLOW`), as runc does. There is nothing for `TSYNC` to do: the
/// process that loads the filter has one thread. `WAIT_KILLABLE_RECV` is invalid without a
/// listener.
fn flags(profile: &LinuxSeccomp, notifies: bool) -> u64 {
    use LinuxSeccompFilterFlag as F;
    let wanted = match profile.flags() {
        None => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        Some(flags) => flags.iter().fold(0, |all, flag| {
            all | match flag {
                F::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
                F::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
                F::SeccompFilterFlagTsync => 0,
                F::SeccompFilterFlagWaitKillableRecv if notifies => {
                    libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
                }
                F::SeccompFilterFlagWaitKillableRecv => 0,
            }
        }),
    };
    if notifies {
        wanted | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER
    } else {
        wanted
    }
}
