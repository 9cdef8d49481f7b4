//! Device access (runtime-spec, "Allowed Device list"). The rules are brought into the
//! normal form the v1 devices controller keeps (a default and exceptions to it;
//! Documentation/admin-guide/cgroup-v1/devices.rst), from which either the controller's
//! own lines or an eBPF program with the same meaning is made. Everything is denied to
//! begin with, and the devices every container has are always allowed, as runc does.

use corten_oci::runtime_spec::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::sys::BpfInsn;

/// Creating a node.
const MKNOD: u8 = 1;
/// Opening for reading.
const READ: u8 = 2;
/// Opening for writing.
const WRITE: u8 = 4;

/// What is always allowed: making (not opening) any node; null, zero, full, random,
/// urandom, tty, console, ptmx and the pseudo-terminals.
const ALWAYS: &[(Kind, Option<u32>, Option<u32>, u8)] = &[
    (Kind::Char, None, None, MKNOD),
    (Kind::Block, None, None, MKNOD),
    (Kind::Char, Some(1), Some(3), MKNOD | READ | WRITE),
    (Kind::Char, Some(1), Some(5), MKNOD | READ | WRITE),
    (Kind::Char, Some(1), Some(7), MKNOD | READ | WRITE),
    (Kind::Char, Some(1), Some(8), MKNOD | READ | WRITE),
    (Kind::Char, Some(1), Some(9), MKNOD | READ | WRITE),
    (Kind::Char, Some(5), Some(0), MKNOD | READ | WRITE),
    (Kind::Char, Some(5), Some(1), MKNOD | READ | WRITE),
    (Kind::Char, Some(5), Some(2), MKNOD | READ | WRITE),
    (Kind::Char, Some(136), None, MKNOD | READ | WRITE),
];

/// Block or character, numbered as eBPF does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Block = 1,
    Char = 2,
}

/// A device (or a range) and some of its accesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Exception {
    kind: Kind,
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
}

/// The normal form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Filter {
    allow: bool,
    exceptions: Vec<Exception>,
}

impl Filter {
    /// Applies the rules in order.
    pub(super) fn new(rules: &[LinuxDeviceCgroup]) -> Self {
        let mut filter = Self {
            allow: false,
            exceptions: Vec::new(),
        };
        for rule in rules {
            let number = |number: Option<i64>| number.and_then(|number| u32::try_from(number).ok());
            let kind = match rule.typ() {
                None | Some(LinuxDeviceType::A) => {
                    // `a` is all or nothing, whatever else the rule says.
                    filter = Self {
                        allow: rule.allow(),
                        exceptions: Vec::new(),
                    };
                    continue;
                }
                Some(LinuxDeviceType::B) => Kind::Block,
                Some(LinuxDeviceType::C | LinuxDeviceType::U) => Kind::Char,
                Some(LinuxDeviceType::P) => continue, // a FIFO is not a device
            };
            let exception = Exception {
                kind,
                major: number(rule.major()),
                minor: number(rule.minor()),
                access: access(rule.access().as_deref()),
            };
            filter.change(rule.allow(), exception);
        }
        for &(kind, major, minor, access) in ALWAYS {
            filter.change(
                true,
                Exception {
                    kind,
                    major,
                    minor,
                    access,
                },
            );
        }
        filter
    }

    /// Whether no filter is needed at all.
    pub(super) fn allows_everything(&self) -> bool {
        self.allow && self.exceptions.is_empty()
    }

    fn change(&mut self, allow: bool, change: Exception) {
        let same = |exception: &Exception| {
            (exception.kind, exception.major, exception.minor)
                == (change.kind, change.major, change.minor)
        };
        let existing = self.exceptions.iter_mut().find(|exception| same(exception));
        match (existing, allow == self.allow) {
            (Some(existing), true) => existing.access &= !change.access,
            (Some(existing), false) => existing.access |= change.access,
            (None, true) => {}
            (None, false) => self.exceptions.push(change),
        }
        self.exceptions.retain(|exception| exception.access != 0);
    }

    /// The eBPF program: returns 1 to allow, 0 to deny.
    pub(super) fn program(&self) -> Vec<BpfInsn> {
        // r2 = type, r3 = access, r4 = major, r5 = minor (struct bpf_cgroup_dev_ctx).
        let mut code = vec![
            load(2, 0),
            insn(MOV, 3, 2, 0, 0),
            insn(AND_K, 2, 0, 0, 0xffff),
            insn(RSH_K, 3, 0, 0, 16),
            load(4, 4),
            load(5, 8),
        ];
        for exception in &self.exceptions {
            let mut tests: Vec<(u8, u8, i32)> = vec![(JNE, 2, exception.kind as i32)];
            tests.extend(exception.major.map(|major| (JNE, 4, major.cast_signed())));
            tests.extend(exception.minor.map(|minor| (JNE, 5, minor.cast_signed())));
            // With deny as the default all of the request must be granted; with allow,
            // any part of it that is refused refuses all.
            let (mask, jump) = if self.allow {
                (exception.access, JEQ)
            } else {
                (!exception.access & (MKNOD | READ | WRITE), JNE)
            };
            let masked = mask != 0;
            let length = tests.len() + if masked { 3 } else { 0 } + 2;
            for (at, (jump, register, value)) in tests.iter().enumerate() {
                code.push(insn(*jump, *register, 0, distance(length - at - 1), *value));
            }
            if masked {
                code.push(insn(MOV, 1, 3, 0, 0));
                code.push(insn(AND_K, 1, 0, 0, i32::from(mask)));
                code.push(insn(jump, 1, 0, 2, 0));
            }
            code.push(insn(MOV_K, 0, 0, 0, i32::from(!self.allow)));
            code.push(insn(EXIT, 0, 0, 0, 0));
        }
        code.push(insn(MOV_K, 0, 0, 0, i32::from(self.allow)));
        code.push(insn(EXIT, 0, 0, 0, 0));
        code
    }

    /// Lines for the v1 controller: `(file, rule)` in order.
    pub(super) fn lines(&self) -> Vec<(&'static str, String)> {
        let (reset, file) = if self.allow {
            ("devices.allow", "devices.deny")
        } else {
            ("devices.deny", "devices.allow")
        };
        let mut lines = vec![(reset, "a".to_owned())];
        for exception in &self.exceptions {
            let number = |number: Option<u32>| number.map_or("*".to_owned(), |n| n.to_string());
            let kind = if exception.kind == Kind::Block {
                'b'
            } else {
                'c'
            };
            let mut rule = format!(
                "{kind} {}:{} ",
                number(exception.major),
                number(exception.minor)
            );
            for (bit, letter) in [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')] {
                if exception.access & bit != 0 {
                    rule.push(letter);
                }
            }
            lines.push((file, rule));
        }
        lines
    }
}

fn access(letters: Option<&str>) -> u8 {
    letters.unwrap_or("rwm").chars().fold(0, |access, letter| {
        access
            | match letter {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                _ => 0,
            }
    })
}

const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const MOV: u8 = 0xbf; // BPF_ALU64 | BPF_MOV | BPF_X
const MOV_K: u8 = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
const AND_K: u8 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const RSH_K: u8 = 0x74; // BPF_ALU | BPF_RSH | BPF_K
const JEQ: u8 = 0x16; // BPF_JMP32 | BPF_JEQ | BPF_K
const JNE: u8 = 0x56; // BPF_JMP32 | BPF_JNE | BPF_K
const EXIT: u8 = 0x95; // BPF_JMP | BPF_EXIT

fn insn(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> BpfInsn {
    BpfInsn {
        code,
        registers: dst | src << 4,
        offset,
        immediate,
    }
}

fn load(dst: u8, offset: i16) -> BpfInsn {
    insn(LOAD_WORD, dst, 1, offset, 0)
}

/// At most eight instructions are ever jumped over.
fn distance(length: usize) -> i16 {
    i16::try_from(length).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rule(
        allow: bool,
        typ: Option<LinuxDeviceType>,
        major: Option<i64>,
        minor: Option<i64>,
        access: &str,
    ) -> LinuxDeviceCgroup {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(allow)
            .set_typ(typ)
            .set_major(major)
            .set_minor(minor)
            .set_access(Some(access.into()));
        rule
    }

    #[test]
    fn lines_of_the_default() {
        let lines = Filter::new(&crate::defaults::devices()).lines();
        assert_eq!(lines[0], ("devices.deny", "a".into()));
        assert!(lines.contains(&("devices.allow", "c 1:3 rwm".into())));
        assert!(lines.contains(&("devices.allow", "c *:* m".into())));
        assert!(lines.contains(&("devices.allow", "c 136:* rwm".into())));
        assert!(!lines.iter().any(|(_, rule)| rule.starts_with("c 10:229")));
    }

    #[test]
    fn allowing_all_needs_no_filter() {
        assert!(Filter::new(&[rule(true, None, None, None, "rwm")]).allows_everything());
        assert!(!Filter::new(&[]).allows_everything());
    }

    #[test]
    fn rules_of_one_device_add_up() {
        let char = Some(LinuxDeviceType::C);
        let rules = [
            rule(true, char, Some(10), Some(1), "r"),
            rule(true, char, Some(10), Some(1), "w"),
            rule(true, char, Some(10), Some(2), "rwm"),
            rule(false, char, Some(10), Some(2), "w"),
        ];
        let lines = Filter::new(&rules).lines();
        assert!(lines.contains(&("devices.allow", "c 10:1 rw".into())));
        assert!(lines.contains(&("devices.allow", "c 10:2 rm".into())));
    }

    /// What the v1 controller decides.
    fn reference(filter: &Filter, kind: Kind, major: u32, minor: u32, access: u8) -> bool {
        let matches = |exception: &Exception| {
            exception.kind == kind
                && exception.major.is_none_or(|m| m == major)
                && exception.minor.is_none_or(|m| m == minor)
        };
        let mut matching = filter
            .exceptions
            .iter()
            .filter(|exception| matches(exception));
        if filter.allow {
            !matching.any(|exception| exception.access & access != 0)
        } else {
            matching.any(|exception| access & !exception.access == 0)
        }
    }

    /// A small interpreter of the instructions used.
    fn run(program: &[BpfInsn], kind: Kind, major: u32, minor: u32, access: u8) -> bool {
        let context = [kind as u32 | u32::from(access) << 16, major, minor];
        let mut registers = [0u64; 11];
        let mut at = 0usize;
        loop {
            let i = program[at];
            let (dst, src) = (usize::from(i.registers & 15), usize::from(i.registers >> 4));
            at += 1;
            let jump = |taken: bool| {
                if taken {
                    usize::try_from(i.offset).unwrap()
                } else {
                    0
                }
            };
            match i.code {
                LOAD_WORD => {
                    registers[dst] = u64::from(context[usize::try_from(i.offset).unwrap() / 4]);
                }
                MOV => registers[dst] = registers[src],
                MOV_K => registers[dst] = u64::from(i.immediate.cast_unsigned()),
                AND_K => registers[dst] &= u64::from(i.immediate.cast_unsigned()),
                RSH_K => registers[dst] >>= i.immediate,
                JEQ => at += jump(registers[dst] as u32 == i.immediate.cast_unsigned()),
                JNE => at += jump(registers[dst] as u32 != i.immediate.cast_unsigned()),
                EXIT => return registers[0] == 1,
                other => panic!("unexpected instruction {other:#x}"),
            }
        }
    }

    proptest! {
        #[test]
        fn program_agrees_with_the_controller(
            rules in proptest::collection::vec(
                (any::<bool>(), 0u8..3, proptest::option::of(0i64..3), proptest::option::of(0i64..3), 0u8..8),
                0..12,
            ),
            kind in any::<bool>(), major in 0u32..3, minor in 0u32..3, access in 1u8..8,
        ) {
            let rules: Vec<_> = rules.into_iter().map(|(allow, typ, major, minor, bits)| {
                let typ = [None, Some(LinuxDeviceType::B), Some(LinuxDeviceType::C)][usize::from(typ)];
                let letters: String = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')]
                    .iter().filter(|(bit, _)| bits & bit != 0).map(|(_, letter)| *letter).collect();
                rule(allow, typ, major, minor, &letters)
            }).collect();
            let filter = Filter::new(&rules);
            let kind = if kind { Kind::Block } else { Kind::Char };
            prop_assert_eq!(
                run(&filter.program(), kind, major, minor, access),
                reference(&filter, kind, major, minor, access)
            );
        }
    }
}
