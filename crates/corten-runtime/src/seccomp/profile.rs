//! From a profile to what each system call number comes to. Semantics are those of
//! libseccomp as runc uses it:
//!
//! - names the machine does not know are skipped; rules that repeat the default are
//!   dropped (but count as "mentioned", below);
//! - the first unconditional rule of a call decides, wherever conditional ones stand;
//!   otherwise the first conditional rule that applies;
//! - the comparisons of one rule must all hold, unless two of them look at the same
//!   argument: then each is a rule of its own;
//! - numbers beyond the newest call the profile mentions get ENOSYS if the default would
//!   refuse them, so that C libraries fall back instead of failing (runc's "-ENOSYS stub");
//! - on i386, a call that can also be made through `socketcall` or `ipc` is ruled there,
//!   too. Its arguments cannot be seen there; a rule that asks about them is applied
//!   regardless of them if it is stricter than the default, and not at all if it is laxer
//!   (libseccomp applies both, and so lets more through than was asked for).

use corten_oci::runtime_spec::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};

use super::arguments::{Compare, Condition, Rule};
use super::bpf::Range;
use super::calls::{Abi, Machine, X32_BIT};
use crate::error::RuntimeError;

/// What a call through an architecture the profile does not list gets: libseccomp's
/// default for a "bad architecture".
pub(super) const BAD_ARCH: u32 = libc::SECCOMP_RET_KILL_THREAD;

/// The number of no call: what a tracer sets to skip one.
const SKIPPED: u32 = u32::MAX;

/// A place in [`Rules::leaves`].
pub(super) type LeafId = u16;

/// What a call comes to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Leaf {
    Return(u32),
    /// The first rule that applies, else the default.
    Rules(Vec<Rule>),
}

/// A profile's rules by the rows of a machine's table.
#[derive(Debug)]
pub(super) struct Rules {
    machine: &'static Machine,
    pub(super) default: u32,
    /// What numbers beyond the newest one mentioned get.
    beyond: u32,
    /// 0 for a call that is not mentioned, else its leaf + 1.
    rows: Vec<u16>,
    pub(super) leaves: Vec<Leaf>,
}

/// The leaf of the default.
const DEFAULT: LeafId = 0;

impl Rules {
    pub(super) fn new(
        machine: &'static Machine,
        profile: &LinuxSeccomp,
    ) -> Result<Self, RuntimeError> {
        let default = action(
            profile.default_action(),
            profile.default_errno_ret(),
            "linux.seccomp.defaultErrnoRet",
        )?;
        let mut rules = Self {
            machine,
            default,
            beyond: beyond(profile.default_action(), default),
            rows: vec![0; machine.rows()],
            leaves: vec![Leaf::Return(default)],
        };
        for rule in profile.syscalls().iter().flatten() {
            rules.add(rule)?;
        }
        Ok(rules)
    }

    fn add(&mut self, rule: &LinuxSyscall) -> Result<(), RuntimeError> {
        let outcome = action(
            rule.action(),
            rule.errno_ret(),
            "linux.seccomp.syscalls.errnoRet",
        )?;
        let args = rule.args().as_deref().unwrap_or_default();
        if let Some(arg) = args.iter().find(|arg| arg.index() > 5) {
            let reason = format!("is {} (system calls have six arguments)", arg.index());
            return Err(RuntimeError::spec(
                "linux.seccomp.syscalls.args.index",
                reason,
            ));
        }
        let always = if args.is_empty() {
            Some(self.leaf(outcome))
        } else {
            None
        };
        let conditional = alternatives(args, outcome);
        for name in rule.names() {
            if name.is_empty() {
                let reason = "an empty name is no system call";
                return Err(RuntimeError::spec("linux.seccomp.syscalls.names", reason));
            }
            let Some(row) = self.machine.row(name) else {
                tracing::debug!(name, "system call not known, rule skipped");
                continue;
            };
            self.add_to(row, always, &conditional, outcome);
        }
        Ok(())
    }

    fn add_to(&mut self, row: usize, always: Option<LeafId>, conditional: &[Rule], outcome: u32) {
        let new = u16::try_from(self.leaves.len()).unwrap_or(u16::MAX);
        let Some(place) = self.rows.get_mut(row) else {
            return;
        };
        let current = place.saturating_sub(1);
        *place = current + 1;
        if outcome == self.default {
            return;
        }
        match (self.leaves.get_mut(usize::from(current)), always) {
            // Decided already.
            (Some(Leaf::Return(_)), _) if current != DEFAULT => {}
            (_, Some(leaf)) => *place = leaf + 1,
            (Some(Leaf::Rules(rules)), None) => rules.extend_from_slice(conditional),
            (_, None) => {
                self.leaves.push(Leaf::Rules(conditional.to_vec()));
                *place = new + 1;
            }
        }
    }

    /// The leaf of a plain outcome.
    fn leaf(&mut self, outcome: u32) -> LeafId {
        let wanted = Leaf::Return(outcome);
        let at = self.leaves.iter().position(|leaf| *leaf == wanted);
        let at = at.unwrap_or_else(|| {
            self.leaves.push(wanted);
            self.leaves.len() - 1
        });
        // One per row at most, and a few outcomes: far below 65536.
        u16::try_from(at).unwrap_or(DEFAULT)
    }

    /// What the numbers of the ABIs of one `AUDIT_ARCH` come to, ascending. `abis` are in
    /// ascending order of base.
    pub(super) fn ranges(&mut self, abis: &[&'static Abi]) -> Vec<Range<LeafId>> {
        let mut ranges = Vec::with_capacity(128);
        let mut x86_64_only = false;
        for abi in abis {
            self.add_ranges(&mut ranges, abi);
            x86_64_only = abi.audit == AUDIT_X86_64 && abi.base != X32_BIT;
        }
        if x86_64_only {
            let bad = self.leaf(BAD_ARCH);
            append(&mut ranges, X32_BIT, 1, bad);
            append(&mut ranges, SKIPPED, 1, DEFAULT);
        }
        ranges
    }

    fn add_ranges(&mut self, ranges: &mut Vec<Range<LeafId>>, abi: &'static Abi) {
        let machine = self.machine;
        self.multiplex(abi);
        let mut next = 0;
        let mut newest = 0;
        let leaf_of = |rows: &[u16], row: usize| rows.get(row).map_or(0, |leaf| *leaf);
        for (number, row) in machine.calls(abi) {
            let leaf = leaf_of(&self.rows, row);
            if leaf != 0 {
                newest = number;
            }
            if number > next {
                append(ranges, abi.base + next, 0, DEFAULT);
            }
            let weight = machine.heat(row);
            append(ranges, abi.base + number, weight, leaf.saturating_sub(1));
            next = number + 1;
        }
        // runc does without where nothing (or only number 0) is mentioned.
        let end = if newest == 0 { next } else { newest + 1 };
        let beyond = if newest == 0 {
            DEFAULT
        } else {
            self.leaf(self.beyond)
        };
        // Everything from there on has been appended as the default.
        while ranges
            .last()
            .is_some_and(|range| range.first >= abi.base + end)
        {
            ranges.pop();
        }
        append(ranges, abi.base + end, 1, beyond);
    }

    /// Gives the multiplexers of an ABI the rules of the calls made through them, after
    /// their own.
    fn multiplex(&mut self, abi: &'static Abi) {
        for (name, multiplexer, selector) in abi.multiplexed {
            // `send` and `recv` exist only there: no rule can name them on this machine.
            let Some(row) = self.machine.row(name) else {
                continue;
            };
            let Some(multiplexer) = self.machine.row(multiplexer) else {
                continue;
            };
            let leaf = self.rows.get(row).copied().unwrap_or(0);
            let Some(leaf) = leaf.checked_sub(1).filter(|leaf| *leaf != DEFAULT) else {
                continue;
            };
            let rules = match self.leaves.get(usize::from(leaf)) {
                Some(Leaf::Return(outcome)) => vec![selected(*selector, *outcome)],
                Some(Leaf::Rules(rules)) => rules
                    .iter()
                    .filter(|rule| stricter(rule.outcome, self.default))
                    .map(|rule| selected(*selector, rule.outcome))
                    .collect(),
                None => continue,
            };
            for rule in rules {
                let outcome = rule.outcome;
                self.add_to(multiplexer, None, &[rule], outcome);
            }
        }
    }
}

const AUDIT_X86_64: u32 = 0xc000_003e;

/// Appends a range, or makes the one before longer.
fn append(ranges: &mut Vec<Range<LeafId>>, first: u32, weight: u32, value: LeafId) {
    match ranges.last_mut() {
        Some(last) if last.value == value => last.weight += weight,
        _ => ranges.push(Range {
            first,
            weight,
            value,
        }),
    }
}

/// A rule of a multiplexer.
fn selected(selector: u32, outcome: u32) -> Rule {
    Rule {
        conditions: vec![Condition {
            index: 0,
            compare: Compare::Equal(selector.into()),
        }],
        outcome,
    }
}

/// The kernel's own order of precedence: the smaller (as a signed number) the stricter.
fn stricter(outcome: u32, than: u32) -> bool {
    let rank = |outcome: u32| (outcome & libc::SECCOMP_RET_ACTION_FULL).cast_signed();
    rank(outcome) <= rank(than)
}

/// What numbers get that the profile's author cannot have known.
fn beyond(action: LinuxSeccompAction, default: u32) -> u32 {
    use LinuxSeccompAction as A;
    match action {
        A::ScmpActAllow | A::ScmpActLog | A::ScmpActTrace | A::ScmpActNotify => default,
        _ => libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs(),
    }
}

/// One rule, or one for each comparison if an argument appears twice.
fn alternatives(args: &[LinuxSeccompArg], outcome: u32) -> Vec<Rule> {
    let mut seen = 0u8;
    let mut repeated = false;
    let conditions: Vec<Condition> = args.iter().map(condition).collect();
    for condition in &conditions {
        let bit = 1 << condition.index.min(7);
        repeated |= seen & bit != 0;
        seen |= bit;
    }
    let rule = |conditions| Rule {
        conditions,
        outcome,
    };
    if repeated {
        let each = conditions.into_iter();
        each.map(|condition| rule(vec![condition])).collect()
    } else {
        vec![rule(conditions)]
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
        index: u8::try_from(arg.index()).unwrap_or(5),
        compare,
    }
}

/// The filter's return value for an action (seccomp(2), "Return values"). Only two actions
/// carry a number.
fn action(
    action: LinuxSeccompAction,
    errno: Option<u32>,
    field: &str,
) -> Result<u32, RuntimeError> {
    use LinuxSeccompAction as A;
    let plain = match action {
        A::ScmpActErrno => libc::SECCOMP_RET_ERRNO,
        A::ScmpActTrace => libc::SECCOMP_RET_TRACE,
        A::ScmpActKill | A::ScmpActKillThread => libc::SECCOMP_RET_KILL_THREAD,
        A::ScmpActKillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        A::ScmpActTrap => libc::SECCOMP_RET_TRAP,
        A::ScmpActLog => libc::SECCOMP_RET_LOG,
        A::ScmpActNotify => libc::SECCOMP_RET_USER_NOTIF,
        A::ScmpActAllow => libc::SECCOMP_RET_ALLOW,
    };
    let carries = matches!(action, A::ScmpActErrno | A::ScmpActTrace);
    match errno {
        None if carries => Ok(plain | libc::EPERM.unsigned_abs()),
        None => Ok(plain),
        Some(errno) if carries && errno <= libc::SECCOMP_RET_DATA => Ok(plain | errno),
        Some(errno) if carries => {
            let reason = format!("{errno} does not fit into 16 bits");
            Err(RuntimeError::spec(field, reason))
        }
        Some(_) => {
            let reason = format!("{action} takes no errno");
            Err(RuntimeError::spec(field, reason))
        }
    }
}
