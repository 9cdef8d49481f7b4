//! A [`Filter`] as an eBPF program of type `BPF_PROG_TYPE_CGROUP_DEVICE`.
//!
//! The program walks the rules from the last to the first, those of the device's kind
//! only. `r3` holds the accesses asked for that no rule has decided yet: one that is denied
//! ends the walk, and so does the last one that is allowed.

use super::{ALL, Filter, Kind, Rule};
use crate::error::RuntimeError;
use crate::sys::BpfInsn;

/// As many instructions as every kernel takes (`BPF_MAXINSNS`).
const MAX: usize = 4096;

pub(super) const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
pub(super) const MOV: u8 = 0xbf; // BPF_ALU64 | BPF_MOV | BPF_X
pub(super) const MOV_K: u8 = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
pub(super) const AND_K: u8 = 0x54; // BPF_ALU | BPF_AND | BPF_K
pub(super) const RSH_K: u8 = 0x74; // BPF_ALU | BPF_RSH | BPF_K
pub(super) const JA: u8 = 0x05; // BPF_JMP | BPF_JA
pub(super) const JEQ: u8 = 0x16; // BPF_JMP32 | BPF_JEQ | BPF_K
pub(super) const JNE: u8 = 0x56; // BPF_JMP32 | BPF_JNE | BPF_K
pub(super) const JSET: u8 = 0x46; // BPF_JMP32 | BPF_JSET | BPF_K
pub(super) const EXIT: u8 = 0x95; // BPF_JMP | BPF_EXIT

impl Filter {
    /// The program: returns 1 to allow, 0 to deny.
    pub(in crate::cgroup) fn program(&self) -> Result<Vec<BpfInsn>, RuntimeError> {
        let of = |kind| {
            self.rules
                .iter()
                .filter(move |rule| rule.devices.kind == kind)
        };
        // r2 = kind, r3 = access, r4 = major, r5 = minor (struct bpf_cgroup_dev_ctx).
        let mut code = vec![
            load(2, 0),
            insn(MOV, 3, 2, 0, 0),
            insn(AND_K, 2, 0, 0, 0xffff),
            insn(RSH_K, 3, 0, 0, 16),
            load(4, 4),
            load(5, 8),
        ];
        let chars = self.walk(of(Kind::Char));
        let blocks = self.walk(of(Kind::Block));
        let distance = i16::try_from(chars.len()).ok();
        let total = code.len() + 1 + chars.len() + blocks.len();
        let Some(distance) = distance.filter(|_| total <= MAX) else {
            let reason = format!("{} rules are too many", self.rules.len());
            return Err(RuntimeError::spec("linux.resources.devices", reason));
        };
        code.push(insn(JEQ, 2, 0, distance, Kind::Block as i32));
        code.extend(chars);
        code.extend(blocks);
        Ok(code)
    }

    fn walk<'a>(&self, rules: impl DoubleEndedIterator<Item = &'a Rule>) -> Vec<BpfInsn> {
        let mut code = Vec::new();
        for rule in rules.rev() {
            let decide = decide(rule);
            let tests = [(4, rule.devices.major), (5, rule.devices.minor)];
            let tests: Vec<(u8, u32)> = tests
                .into_iter()
                .filter_map(|(register, number)| Some((register, number?)))
                .collect();
            for (at, (register, number)) in tests.iter().enumerate() {
                let skip = tests.len() - at - 1 + decide.len();
                code.push(insn(JNE, *register, 0, short(skip), number.cast_signed()));
            }
            code.extend(decide);
        }
        code.extend(end(self.allow));
        code
    }
}

/// What is done for a device that the rule is about.
fn decide(rule: &Rule) -> Vec<BpfInsn> {
    let access = i32::from(rule.access);
    let mut code = match (rule.allow, rule.access) {
        (_, ALL) => Vec::new(),
        (true, _) => vec![
            insn(AND_K, 3, 0, 0, i32::from(ALL) & !access),
            insn(JNE, 3, 0, 2, 0),
        ],
        (false, _) => vec![insn(JSET, 3, 0, 1, access), insn(JA, 0, 0, 2, 0)],
    };
    code.extend(end(rule.allow));
    code
}

fn end(allow: bool) -> [BpfInsn; 2] {
    [
        insn(MOV_K, 0, 0, 0, i32::from(allow)),
        insn(EXIT, 0, 0, 0, 0),
    ]
}

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

/// Within one rule, at most six instructions are jumped over.
fn short(distance: usize) -> i16 {
    i16::try_from(distance).unwrap_or(i16::MAX)
}
