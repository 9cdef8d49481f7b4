//! seccomp (runtime-spec, config-linux "Seccomp"): from a profile to a classic BPF
//! program. Semantics are libseccomp's as runc uses it: the native architecture is
//! always covered, names the table does not know are ignored, rules that repeat the
//! default are dropped, an unconditional rule beats conditional ones, and numbers newer
//! than the newest one a profile mentions get ENOSYS instead of a refusal, so that C
//! libraries fall back.
//!
//! The program is a binary search over ranges of numbers with one outcome each. That
//! matters twice: every call of the container runs it, and the kernel, when loading it,
//! emulates it once per system call number to fill its cache of plain answers (a linear
//! list of 400 comparisons costs that 0.5 ms; the tree of the default profile a tenth).

mod asm;
pub(crate) mod notify;
mod table_arm;
mod table_x86;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use corten_oci::runtime_spec::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator,
};

use crate::error::RuntimeError;
use asm::{Compare, Condition, Leaf, Program};
pub(crate) use notify::Listener;

/// A compiled filter with the flags to load it with.
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

/// x32 numbers carry this bit (`__X32_SYSCALL_BIT`).
const X32_BIT: u32 = 0x4000_0000;

/// What a call through an architecture the profile does not list gets: libseccomp's
/// default for "bad architecture" (`SECCOMP_RET_KILL_THREAD`).
const BAD_ARCH: u32 = libc::SECCOMP_RET_KILL_THREAD;

type Table = &'static [(&'static str, u32)];

/// Compiles a profile.
pub(crate) fn compile(profile: &LinuxSeccomp) -> Result<Filter, RuntimeError> {
    let listener = Listener::of(profile)?;
    let mut args = profile
        .syscalls()
        .iter()
        .flatten()
        .flat_map(|rule| rule.args().iter().flatten());
    if let Some(arg) = args.find(|arg| arg.index() > 5) {
        let reason = format!("argument index {} (system calls have six)", arg.index());
        return Err(RuntimeError::spec("linux.seccomp.syscalls.args", reason));
    }
    let arches = architectures(profile);
    let mut program = Program::new();
    if arches.contains(&Arch::ScmpArchX86_64) {
        let x32 = arches.contains(&Arch::ScmpArchX32);
        program.architecture(Arch::ScmpArchX86_64 as u32, |body| {
            if x32 {
                body.split(
                    X32_BIT,
                    |low| low.tree(&ranges(profile, table_x86::X86_64, 0)),
                    |high| high.tree(&ranges(profile, table_x86::X32, X32_BIT)),
                );
            } else {
                body.split(
                    X32_BIT,
                    |low| low.tree(&ranges(profile, table_x86::X86_64, 0)),
                    |high| high.ret(BAD_ARCH),
                );
            }
        });
    }
    for (arch, table) in [
        (Arch::ScmpArchAarch64, table_arm::AARCH64),
        (Arch::ScmpArchX86, table_x86::X86),
        (Arch::ScmpArchArm, table_arm::ARM),
    ] {
        if arches.contains(&arch) {
            program.architecture(arch as u32, |body| body.tree(&ranges(profile, table, 0)));
        }
    }
    let program = program.finish(BAD_ARCH);
    if program.len() > MAX_INSTRUCTIONS {
        let reason = format!(
            "needs {} instructions, the kernel takes 4096",
            program.len()
        );
        return Err(RuntimeError::spec("linux.seccomp", reason));
    }
    Ok(Filter {
        program,
        flags: flags(profile, listener.is_some()),
        listener,
    })
}

/// The architectures to cover: those of the profile that can occur on this machine, and
/// the native one.
fn architectures(profile: &LinuxSeccomp) -> Vec<Arch> {
    let mut arches = vec![native()];
    arches.extend(
        profile
            .architectures()
            .iter()
            .flatten()
            .copied()
            .filter(|arch| {
                matches!(
                    (native(), arch),
                    (Arch::ScmpArchX86_64, Arch::ScmpArchX86 | Arch::ScmpArchX32)
                        | (Arch::ScmpArchAarch64, Arch::ScmpArchArm)
                )
            }),
    );
    arches
}

const fn native() -> Arch {
    if cfg!(target_arch = "aarch64") {
        Arch::ScmpArchAarch64
    } else {
        Arch::ScmpArchX86_64
    }
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

/// What one system call number comes to while rules are gathered.
#[derive(Default)]
struct Rules {
    always: Option<u32>,
    conditional: Vec<(Vec<Condition>, u32)>,
}

/// The profile as contiguous ranges: `(first number, outcome)`, sorted, beginning at `base`.
fn ranges(profile: &LinuxSeccomp, table: Table, base: u32) -> Vec<(u32, Leaf)> {
    let default = action(profile.default_action(), profile.default_errno_ret());
    let mut by_number: BTreeMap<u32, Rules> = BTreeMap::new();
    let mut newest = 0;
    for rule in profile.syscalls().iter().flatten() {
        let outcome = action(rule.action(), rule.errno_ret());
        for name in rule.names() {
            let Ok(at) = table.binary_search_by_key(&name.as_str(), |(name, _)| name) else {
                continue;
            };
            let number = table.get(at).map_or(0, |(_, number)| *number);
            newest = newest.max(number);
            if outcome == default {
                continue;
            }
            let rules = by_number.entry(number).or_default();
            match rule.args().as_deref() {
                None | Some([]) => {
                    rules.always.get_or_insert(outcome);
                }
                Some(args) => add_conditional(rules, args, outcome),
            }
        }
    }

    let mut ranges: Vec<(u32, Leaf)> = Vec::new();
    let mut next = 0;
    for (number, rules) in by_number {
        if number > next {
            extend(&mut ranges, base + next, Leaf::Return(default));
        }
        let leaf = match rules.always {
            Some(outcome) => Leaf::Return(outcome),
            None => Leaf::Conditional {
                rules: rules.conditional,
                otherwise: default,
            },
        };
        extend(&mut ranges, base + number, leaf);
        next = number + 1;
    }
    if next <= newest || ranges.is_empty() {
        extend(&mut ranges, base + next, Leaf::Return(default));
        next = newest + 1;
    }
    extend(
        &mut ranges,
        base + next,
        Leaf::Return(unknown_outcome(profile, default)),
    );
    ranges
}

/// Appends a range, unless the one before has the same outcome.
fn extend(ranges: &mut Vec<(u32, Leaf)>, first: u32, leaf: Leaf) {
    if ranges.last().is_none_or(|(_, last)| *last != leaf) {
        ranges.push((first, leaf));
    }
}

/// What numbers beyond the profile's newest get (runc's `-ENOSYS` stub).
fn unknown_outcome(profile: &LinuxSeccomp, default: u32) -> u32 {
    use LinuxSeccompAction as A;
    match profile.default_action() {
        A::ScmpActAllow | A::ScmpActLog | A::ScmpActTrace | A::ScmpActNotify => default,
        _ => libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs(),
    }
}

/// Adds one rule. Comparisons of different arguments must all hold; libseccomp cannot
/// hold two of the same argument in one rule, so runc splits such a rule into
/// alternatives, and so do we.
fn add_conditional(rules: &mut Rules, args: &[LinuxSeccompArg], outcome: u32) {
    let mut seen = 0u8;
    let repeated = args.iter().any(|arg| {
        let bit = 1u8
            .checked_shl(u32::try_from(arg.index()).unwrap_or(8))
            .unwrap_or(0);
        let repeated = seen & bit != 0;
        seen |= bit;
        repeated
    });
    if !repeated {
        return push_rule(rules, args.iter().map(condition).collect(), outcome);
    }
    for arg in args {
        push_rule(rules, vec![condition(arg)], outcome);
    }
}

/// Appends a rule, folding it into the one before when both only ask whether the same
/// argument equals some small value (the default profile has 25 such rules for `socket`).
fn push_rule(rules: &mut Rules, conditions: Vec<Condition>, outcome: u32) {
    if let Some((index, value)) = small_equality(&conditions)
        && let Some((last, last_outcome)) = rules.conditional.last_mut()
        && *last_outcome == outcome
        && let [
            Condition {
                index: last_index,
                compare,
            },
        ] = last.as_mut_slice()
        && *last_index == index
    {
        match compare {
            Compare::OneOf(values) if values.len() < asm::MAX_ALTERNATIVES => {
                return values.push(value);
            }
            Compare::Equal(first) => {
                if let Ok(first) = u32::try_from(*first) {
                    *compare = Compare::OneOf(vec![first, value]);
                    return;
                }
            }
            _ => {}
        }
    }
    rules.conditional.push((conditions, outcome));
}

/// The argument and value, if the rule is one equality with a 32-bit value.
fn small_equality(conditions: &[Condition]) -> Option<(u8, u32)> {
    match conditions {
        [
            Condition {
                index,
                compare: Compare::Equal(value),
            },
        ] => Some((*index, u32::try_from(*value).ok()?)),
        _ => None,
    }
}

fn condition(arg: &LinuxSeccompArg) -> Condition {
    use LinuxSeccompOperator as Op;
    let value = arg.value();
    let compare = match arg.op() {
        Op::ScmpCmpNe => Compare::NotEqual(value),
        Op::ScmpCmpLt => Compare::Less(value),
        Op::ScmpCmpLe => Compare::LessOrEqual(value),
        Op::ScmpCmpEq => Compare::Equal(value),
        Op::ScmpCmpGe => Compare::GreaterOrEqual(value),
        Op::ScmpCmpGt => Compare::Greater(value),
        Op::ScmpCmpMaskedEq => Compare::MaskedEqual {
            mask: value,
            value: arg.value_two().unwrap_or(0),
        },
    };
    Condition {
        index: u8::try_from(arg.index()).unwrap_or(0),
        compare,
    }
}

/// The filter's return value for an action (seccomp(2), "Return values").
fn action(action: LinuxSeccompAction, errno: Option<u32>) -> u32 {
    use LinuxSeccompAction as A;
    let data = |default: u32| errno.unwrap_or(default) & libc::SECCOMP_RET_DATA;
    match action {
        A::ScmpActKill | A::ScmpActKillThread => libc::SECCOMP_RET_KILL_THREAD,
        A::ScmpActKillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        A::ScmpActTrap => libc::SECCOMP_RET_TRAP,
        A::ScmpActErrno => libc::SECCOMP_RET_ERRNO | data(libc::EPERM.unsigned_abs()),
        A::ScmpActTrace => libc::SECCOMP_RET_TRACE | data(libc::EPERM.unsigned_abs()),
        A::ScmpActLog => libc::SECCOMP_RET_LOG,
        A::ScmpActNotify => libc::SECCOMP_RET_USER_NOTIF,
        A::ScmpActAllow => libc::SECCOMP_RET_ALLOW,
    }
}
