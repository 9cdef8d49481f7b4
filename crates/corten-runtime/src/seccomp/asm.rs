//! The assembler under the seccomp compiler: classic BPF with forward jumps only
//! (linux/filter.h). Jump distances are bytes, so anything further than 255
//! instructions goes through an unconditional jump.

use libc::sock_filter;

/// One comparison of a 64-bit argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Condition {
    /// Which argument, 0 to 5.
    pub(super) index: u8,
    pub(super) compare: Compare,
}

/// How the argument is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Compare {
    NotEqual(u64),
    Less(u64),
    LessOrEqual(u64),
    Equal(u64),
    GreaterOrEqual(u64),
    Greater(u64),
    MaskedEqual {
        mask: u64,
        value: u64,
    },
    /// Equal to one of these (all 32-bit).
    OneOf(Vec<u32>),
}

/// What a range of system call numbers comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Leaf {
    Return(u32),
    /// The first rule whose conditions all hold decides.
    Conditional {
        rules: Vec<(Vec<Condition>, u32)>,
        otherwise: u32,
    },
}

/// Longest list of [`Compare::OneOf`]: jumps across it must fit into a byte.
pub(super) const MAX_ALTERNATIVES: usize = 200;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JA: u16 = 0x05; // BPF_JMP | BPF_JA
const JEQ: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JGT: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const JGE: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RET: u16 = 0x06; // BPF_RET | BPF_K

/// Offsets in `struct seccomp_data`.
const OFFSET_NR: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGS: u32 = 16;

/// A program, or a piece of one.
#[derive(Debug, Default)]
pub(super) struct Program {
    code: Vec<sock_filter>,
}

impl Program {
    /// A program that has loaded the architecture.
    pub(super) fn new() -> Self {
        let mut program = Self::default();
        program.op(LOAD, OFFSET_ARCH);
        program
    }

    /// Appends what is done for one architecture; `body` starts with the system call
    /// number loaded and must end in a return.
    pub(super) fn architecture(&mut self, audit_arch: u32, body: impl FnOnce(&mut Self)) {
        let mut block = Self::default();
        block.op(LOAD, OFFSET_NR);
        body(&mut block);
        self.jump_over_unless(JEQ, audit_arch, block);
    }

    /// Ends the program with what every other architecture gets.
    pub(super) fn finish(mut self, otherwise: u32) -> Vec<sock_filter> {
        self.ret(otherwise);
        self.code
    }

    /// Two bodies, for numbers below and from `pivot`.
    pub(super) fn split(
        &mut self,
        pivot: u32,
        low: impl FnOnce(&mut Self),
        high: impl FnOnce(&mut Self),
    ) {
        let mut block = Self::default();
        high(&mut block);
        self.jump_over_unless(JGE, pivot, block);
        low(self);
    }

    /// The binary search over `ranges` (sorted, not empty).
    pub(super) fn tree(&mut self, ranges: &[(u32, Leaf)]) {
        match ranges {
            [] => {}
            [(_, leaf)] => self.leaf(leaf),
            _ => {
                let (low, high) = ranges.split_at(ranges.len() / 2);
                let pivot = high.first().map_or(0, |(first, _)| *first);
                self.split(pivot, |code| code.tree(low), |code| code.tree(high));
            }
        }
    }

    /// Appends a return.
    pub(super) fn ret(&mut self, value: u32) {
        self.op(RET, value);
    }

    fn op(&mut self, code: u16, k: u32) {
        self.code.push(sock_filter {
            code,
            jt: 0,
            jf: 0,
            k,
        });
    }

    /// `if A <jump> k { block }`, else on with what follows the block.
    fn jump_over_unless(&mut self, jump: u16, k: u32, block: Self) {
        let length = block.code.len();
        if let Ok(jf) = u8::try_from(length) {
            self.code.push(sock_filter {
                code: jump,
                jt: 0,
                jf,
                k,
            });
        } else {
            self.code.push(sock_filter {
                code: jump,
                jt: 1,
                jf: 0,
                k,
            });
            self.op(JA, u32::try_from(length).unwrap_or(u32::MAX));
        }
        self.code.extend(block.code);
    }

    fn leaf(&mut self, leaf: &Leaf) {
        match leaf {
            Leaf::Return(value) => self.ret(*value),
            Leaf::Conditional { rules, otherwise } => {
                for (conditions, outcome) in rules {
                    self.rule(conditions, *outcome);
                }
                self.ret(*otherwise);
            }
        }
    }

    /// `if all conditions { return outcome }`.
    fn rule(&mut self, conditions: &[Condition], outcome: u32) {
        let mut draft = Draft::default();
        for condition in conditions {
            draft.condition(condition);
        }
        self.code.extend(draft.resolve(outcome));
    }
}

/// Where a jump of a rule goes.
#[derive(Debug, Clone, Copy)]
enum To {
    /// The next instruction.
    Next,
    /// The condition holds: on to the next condition.
    Pass,
    /// The rule does not apply.
    Fail,
}

/// A rule whose jumps are still symbolic.
#[derive(Debug, Default)]
struct Draft {
    code: Vec<(u16, u32, To, To)>,
    /// For each instruction, where its condition ends.
    ends: Vec<usize>,
}

impl Draft {
    fn condition(&mut self, condition: &Condition) {
        let low = OFFSET_ARGS + 8 * u32::from(condition.index);
        let high = low + 4;
        let halves = |value: u64| ((value >> 32) as u32, value as u32);
        match &condition.compare {
            Compare::Equal(value) => self.masked(low, u64::MAX, *value),
            Compare::MaskedEqual { mask, value } => self.masked(low, *mask, *value),
            Compare::NotEqual(value) => {
                let (h, l) = halves(*value);
                self.load(high);
                self.jump(JEQ, h, To::Next, To::Pass);
                self.load(low);
                self.jump(JEQ, l, To::Fail, To::Next);
            }
            Compare::Greater(value) | Compare::GreaterOrEqual(value) => {
                let (h, l) = halves(*value);
                let last = if matches!(condition.compare, Compare::Greater(_)) {
                    JGT
                } else {
                    JGE
                };
                self.load(high);
                self.jump(JGT, h, To::Pass, To::Next);
                self.jump(JEQ, h, To::Next, To::Fail);
                self.load(low);
                self.jump(last, l, To::Next, To::Fail);
            }
            Compare::Less(value) | Compare::LessOrEqual(value) => {
                let (h, l) = halves(*value);
                let last = if matches!(condition.compare, Compare::Less(_)) {
                    JGE
                } else {
                    JGT
                };
                self.load(high);
                self.jump(JGT, h, To::Fail, To::Next);
                self.jump(JEQ, h, To::Next, To::Pass);
                self.load(low);
                self.jump(last, l, To::Fail, To::Next);
            }
            Compare::OneOf(values) => {
                self.load(high);
                self.jump(JEQ, 0, To::Next, To::Fail);
                self.load(low);
                for (at, value) in values.iter().enumerate() {
                    let otherwise = if at + 1 == values.len() {
                        To::Fail
                    } else {
                        To::Next
                    };
                    self.jump(JEQ, *value, To::Pass, otherwise);
                }
            }
        }
        self.ends.resize(self.code.len(), self.code.len());
    }

    /// `(argument & mask) == value`, half by half; halves that cannot matter are skipped.
    fn masked(&mut self, low: u32, mask: u64, value: u64) {
        for (offset, mask, value) in [
            (low + 4, (mask >> 32) as u32, (value >> 32) as u32),
            (low, mask as u32, value as u32),
        ] {
            if mask == 0 && value == 0 {
                continue;
            }
            self.load(offset);
            if mask != u32::MAX {
                self.code.push((AND, mask, To::Next, To::Next));
            }
            self.jump(JEQ, value, To::Next, To::Fail);
        }
    }

    fn load(&mut self, offset: u32) {
        self.code.push((LOAD, offset, To::Next, To::Next));
    }

    fn jump(&mut self, code: u16, k: u32, then: To, otherwise: To) {
        self.code.push((code, k, then, otherwise));
    }

    /// Real distances. They fit into a byte: a rule has at most six conditions of at most
    /// six instructions, or one list of at most [`MAX_ALTERNATIVES`] values.
    fn resolve(self, outcome: u32) -> impl Iterator<Item = sock_filter> {
        let fail = self.code.len() + 1;
        let ends = self.ends;
        let body =
            self.code
                .into_iter()
                .enumerate()
                .map(move |(at, (code, k, then, otherwise))| {
                    let distance = |to: To| {
                        let target = match to {
                            To::Next => at + 1,
                            To::Pass => ends.get(at).copied().unwrap_or(at + 1),
                            To::Fail => fail,
                        };
                        u8::try_from(target - at - 1).unwrap_or(u8::MAX)
                    };
                    let (jt, jf) = (distance(then), distance(otherwise));
                    sock_filter { code, jt, jf, k }
                });
        body.chain([sock_filter {
            code: RET,
            jt: 0,
            jf: 0,
            k: outcome,
        }])
    }
}
