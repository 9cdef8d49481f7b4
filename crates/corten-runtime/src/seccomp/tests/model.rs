//! What a profile says about one call, read rule by rule.

use corten_oci::runtime_spec::{
    LinuxSeccomp, LinuxSeccompAction as A, LinuxSeccompArg, LinuxSeccompOperator as Op,
    LinuxSyscall,
};

use super::interpreter::Data;
use crate::seccomp::calls::{Abi, Machine, X32_BIT};

const KILL: u32 = 0;

pub(super) fn outcome(machine: &'static Machine, profile: &LinuxSeccomp, call: &Data) -> u32 {
    let listed = profile.architectures().clone().unwrap_or_default();
    let native = &machine.abis[0];
    let default = value(profile.default_action(), profile.default_errno_ret());
    let x32 = call.arch == 0xc000_003e && call.number & X32_BIT != 0;
    let covered =
        |abi: &&Abi| abi.audit == native.audit && abi.base == 0 || listed.contains(&abi.arch);
    let abi = machine
        .abis
        .iter()
        .filter(covered)
        .find(|abi| abi.audit == call.arch && (abi.base == X32_BIT) == x32);
    let Some(abi) = abi else {
        let native_skipped = call.number == u32::MAX && call.arch == 0xc000_003e;
        let known = native.audit == call.arch;
        return if native_skipped && known {
            default
        } else {
            KILL
        };
    };
    let number = call.number.wrapping_sub(abi.base);
    let number_of = |name: &str| {
        let row = machine.row(name)?;
        machine.calls(abi).find(|at| at.1 == row).map(|at| at.0)
    };
    let rules = || profile.syscalls().iter().flatten();
    let newest = rules()
        .flat_map(|rule| rule.names())
        .filter_map(|name| number_of(name))
        .chain(multiplexers(abi, profile, default).filter_map(|(_, name)| number_of(name)))
        .max();
    let permissive = matches!(
        profile.default_action(),
        A::ScmpActAllow | A::ScmpActLog | A::ScmpActTrace
    );
    if !permissive && newest.is_some_and(|newest| newest > 0 && number > newest) {
        return libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
    }
    let Some(name) = machine.calls(abi).find(|at| at.0 == number).and_then(|at| {
        let names = rules().flat_map(|rule| rule.names());
        names
            .map(String::as_str)
            .chain(["socketcall", "ipc"])
            .find(|name| machine.row(name) == Some(at.1))
    }) else {
        return default;
    };
    if let Some(outcome) = always(profile, name, default) {
        return outcome;
    }
    if let Some(outcome) = conditional(profile, name, default, &call.args) {
        return outcome;
    }
    // Through a multiplexer: its own rules have had their say.
    for (called, multiplexer, selector) in abi.multiplexed {
        if *multiplexer != name || u64::from(*selector) != call.args[0] {
            continue;
        }
        if let Some(outcome) = always(profile, called, default) {
            return outcome;
        }
        let mut blind = of(profile, called, default).map(outcome_of);
        if let Some(outcome) = blind.find(|outcome| rank(*outcome) <= rank(default)) {
            return outcome;
        }
    }
    default
}

/// The multiplexers that rules reach.
fn multiplexers<'a>(
    abi: &'a Abi,
    profile: &'a LinuxSeccomp,
    default: u32,
) -> impl Iterator<Item = (&'a str, &'a str)> {
    abi.multiplexed
        .iter()
        .filter_map(move |(called, multiplexer, _)| {
            let reached = always(profile, called, default).is_some()
                || of(profile, called, default).any(|rule| rank(outcome_of(rule)) <= rank(default));
            reached.then_some((*called, *multiplexer))
        })
}

fn rank(outcome: u32) -> i32 {
    (outcome & 0xffff_0000).cast_signed()
}

/// The rules of a name that do not just repeat the default.
fn of<'a>(
    profile: &'a LinuxSeccomp,
    name: &'a str,
    default: u32,
) -> impl Iterator<Item = &'a LinuxSyscall> {
    let rules = profile.syscalls().iter().flatten();
    rules.filter(move |rule| rule.names().iter().any(|n| n == name) && outcome_of(rule) != default)
}

fn always(profile: &LinuxSeccomp, name: &str, default: u32) -> Option<u32> {
    let mut rules = of(profile, name, default);
    rules
        .find(|rule| rule.args().as_deref().unwrap_or_default().is_empty())
        .map(outcome_of)
}

fn conditional(profile: &LinuxSeccomp, name: &str, default: u32, args: &[u64; 6]) -> Option<u32> {
    let mut rules = of(profile, name, default);
    rules
        .find(|rule| applies(rule.args().as_deref().unwrap_or_default(), args))
        .map(outcome_of)
}

fn applies(conditions: &[LinuxSeccompArg], args: &[u64; 6]) -> bool {
    let repeated =
        (0..6).any(|index| conditions.iter().filter(|arg| arg.index() == index).count() > 1);
    let holds = |arg: &LinuxSeccompArg| {
        let (actual, value) = (args[arg.index()], arg.value());
        match arg.op() {
            Op::ScmpCmpNe => actual != value,
            Op::ScmpCmpLt => actual < value,
            Op::ScmpCmpLe => actual <= value,
            Op::ScmpCmpEq => actual == value,
            Op::ScmpCmpGe => actual >= value,
            Op::ScmpCmpGt => actual > value,
            Op::ScmpCmpMaskedEq => (actual ^ arg.value_two().unwrap_or(0)) & value == 0,
        }
    };
    if repeated {
        conditions.iter().any(holds)
    } else {
        conditions.iter().all(holds)
    }
}

fn outcome_of(rule: &LinuxSyscall) -> u32 {
    value(rule.action(), rule.errno_ret())
}

fn value(action: A, errno: Option<u32>) -> u32 {
    match action {
        A::ScmpActKill | A::ScmpActKillThread => KILL,
        A::ScmpActKillProcess => 0x8000_0000,
        A::ScmpActTrap => 0x0003_0000,
        A::ScmpActErrno => 0x0005_0000 | errno.unwrap_or(1),
        A::ScmpActNotify => 0x7fc0_0000,
        A::ScmpActTrace => 0x7ff0_0000 | errno.unwrap_or(1),
        A::ScmpActLog => 0x7ffc_0000,
        A::ScmpActAllow => 0x7fff_0000,
    }
}
