//! Device access (runtime-spec, "Allowed Device list"): the rules are applied in order,
//! so for each kind of access (read, write, making a node) the last rule that matches the
//! device decides. Everything is denied to begin with, and the devices every container
//! has are always allowed, as runc does.
//!
//! [`Filter`] is the list with everything dropped that decides nothing. It becomes an
//! eBPF program ([`ebpf`]) with exactly that meaning, or lines for the v1 controller
//! ([`legacy`]), which knows a default and exceptions to it but no exceptions to those.

mod ebpf;
mod legacy;
#[cfg(test)]
mod tests;

use corten_oci::runtime_spec::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::error::RuntimeError;
pub(super) use legacy::Line;

/// Creating a node.
const MKNOD: u8 = 1;
/// Opening for reading.
const READ: u8 = 2;
/// Opening for writing.
const WRITE: u8 = 4;
const ALL: u8 = MKNOD | READ | WRITE;

/// What is always allowed: making (not opening) any node; null, zero, full, random,
/// urandom, tty, console, ptmx and the pseudo-terminals.
const ALWAYS: &[(Kind, Option<u32>, Option<u32>, u8)] = &[
    (Kind::Char, None, None, MKNOD),
    (Kind::Block, None, None, MKNOD),
    (Kind::Char, Some(1), Some(3), ALL),
    (Kind::Char, Some(1), Some(5), ALL),
    (Kind::Char, Some(1), Some(7), ALL),
    (Kind::Char, Some(1), Some(8), ALL),
    (Kind::Char, Some(1), Some(9), ALL),
    (Kind::Char, Some(5), Some(0), ALL),
    (Kind::Char, Some(5), Some(1), ALL),
    (Kind::Char, Some(5), Some(2), ALL),
    (Kind::Char, Some(136), None, ALL),
];

/// Block or character, numbered as eBPF does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Block = 1,
    Char = 2,
}

/// A device, or all with this number, or all of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Devices {
    kind: Kind,
    major: Option<u32>,
    minor: Option<u32>,
}

impl Devices {
    /// Whether every device of `other` is one of these.
    fn cover(&self, other: &Self) -> bool {
        let wider = |ours: Option<u32>, theirs| ours.is_none() || ours == theirs;
        self.kind == other.kind && wider(self.major, other.major) && wider(self.minor, other.minor)
    }

    /// The devices that are both.
    fn meet(&self, other: &Self) -> Option<Self> {
        let both = |a: Option<u32>, b: Option<u32>| match (a, b) {
            (Some(a), Some(b)) if a != b => None,
            _ => Some(a.or(b)),
        };
        Some(Self {
            kind: (self.kind == other.kind).then_some(self.kind)?,
            major: both(self.major, other.major)?,
            minor: both(self.minor, other.minor)?,
        })
    }
}

/// Some accesses to some devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    devices: Devices,
    access: u8,
}

/// What is allowed: the last rule for an access to a device decides, else the default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Filter {
    allow: bool,
    rules: Vec<Rule>,
}

impl Filter {
    /// The filter of a configuration.
    pub(super) fn new(given: &[LinuxDeviceCgroup]) -> Result<Self, RuntimeError> {
        let mut allow = false;
        let mut rules = Vec::with_capacity(given.len() + ALWAYS.len());
        for (index, rule) in given.iter().enumerate() {
            let field = |name: &str| format!("linux.resources.devices[{index}].{name}");
            let access = access(rule.access().as_deref(), || field("access"))?;
            let kind = match rule.typ() {
                None | Some(LinuxDeviceType::A) => {
                    // `a` is all or nothing, whatever else the rule says: so it is in v1's
                    // own files, from which the configuration has it.
                    allow = rule.allow();
                    rules.clear();
                    continue;
                }
                Some(LinuxDeviceType::B) => Kind::Block,
                Some(LinuxDeviceType::C | LinuxDeviceType::U) => Kind::Char,
                Some(LinuxDeviceType::P) => continue, // a FIFO is not a device
            };
            rules.push(Rule {
                allow: rule.allow(),
                devices: Devices {
                    kind,
                    major: number(rule.major(), || field("major"))?,
                    minor: number(rule.minor(), || field("minor"))?,
                },
                access,
            });
        }
        for &(kind, major, minor, access) in ALWAYS {
            let devices = Devices { kind, major, minor };
            rules.push(Rule {
                allow: true,
                devices,
                access,
            });
        }
        Ok(Self {
            allow,
            rules: simplified(allow, rules),
        })
    }

    /// The filter that filters nothing.
    pub(super) fn everything() -> Self {
        Self {
            allow: true,
            rules: Vec::new(),
        }
    }

    /// Whether no filter is needed at all.
    pub(super) fn allows_everything(&self) -> bool {
        self.allow && self.rules.is_empty()
    }

    /// Whether the v1 controller can express it: there is no exception to an exception.
    pub(super) fn suits_legacy(&self) -> bool {
        self.rules.iter().all(|rule| rule.allow != self.allow)
    }
}

/// Drops what decides nothing, until nothing is left to drop: merging two rules may make a
/// third one superfluous.
fn simplified(default: bool, mut rules: Vec<Rule>) -> Vec<Rule> {
    loop {
        let simpler = simplified_once(default, rules.clone());
        if simpler == rules {
            return rules;
        }
        rules = simpler;
    }
}

fn simplified_once(default: bool, rules: Vec<Rule>) -> Vec<Rule> {
    // From the last to the first: what a later rule decides for all of these devices.
    let mut deciding: Vec<Rule> = Vec::new();
    for mut rule in rules.into_iter().rev() {
        let decided = |allow: bool| {
            let later = deciding
                .iter()
                .filter(|later| later.devices.cover(&rule.devices));
            let later = later.filter(|later| later.allow == allow);
            later.fold(0, |access, later| access | later.access)
        };
        let (same, opposite) = (decided(rule.allow), decided(!rule.allow));
        rule.access &= !opposite;
        // One that says something new says all it has to say, so that it can be recognised
        // in `devices.list`.
        if rule.access & !same != 0 {
            deciding.push(rule);
        }
    }
    // From the first to the last: what would be so without the rule, and what an earlier
    // one of the same devices can say as well.
    let mut kept: Vec<Rule> = Vec::new();
    for mut rule in deciding.into_iter().rev() {
        let opposite =
            |other: &Rule| other.allow != rule.allow && other.devices.meet(&rule.devices).is_some();
        if rule.allow == default {
            let undone = kept.iter().filter(|other| opposite(other));
            let undone = undone.fold(0, |access, other| access | other.access);
            rule.access &= undone;
        }
        if rule.access == 0 {
            continue;
        }
        let since = kept.iter().rposition(opposite).map_or(0, |at| at + 1);
        let same = |other: &&mut Rule| other.allow == rule.allow && other.devices == rule.devices;
        let recent = kept.get_mut(since..).unwrap_or_default();
        match recent.iter_mut().find(same) {
            Some(same) => same.access |= rule.access,
            None => kept.push(rule),
        }
    }
    kept
}

/// -1 is runc's word for all.
fn number(number: Option<i64>, field: impl Fn() -> String) -> Result<Option<u32>, RuntimeError> {
    match number {
        None | Some(-1) => Ok(None),
        Some(number) => u32::try_from(number).map(Some).map_err(|_| {
            RuntimeError::spec(field(), format!("{number} is not the number of a device"))
        }),
    }
}

/// A rule without any would say nothing, so runc refuses it as well.
fn access(letters: Option<&str>, field: impl Fn() -> String) -> Result<u8, RuntimeError> {
    let letters = letters.unwrap_or_default();
    if letters.is_empty() {
        return Err(RuntimeError::spec(
            field(),
            "is missing: give some of r, w and m",
        ));
    }
    letters.chars().try_fold(0, |access, letter| {
        let bit = match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            _ => {
                let reason = format!("{letter:?} is none of r, w and m");
                return Err(RuntimeError::spec(field(), reason));
            }
        };
        Ok(access | bit)
    })
}
