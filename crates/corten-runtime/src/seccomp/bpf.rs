//! The assembler under the seccomp compiler: classic BPF (linux/filter.h), which has forward
//! jumps only and one byte for the distance of a conditional one. A program is therefore
//! written from its end to its beginning: whatever an instruction jumps to exists already,
//! equal returns are shared while they are in reach, and what is out of reach is brought
//! near by a return of its own or an unconditional jump.

use libc::sock_filter;

/// A place in the program, counted from its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Label(usize);

/// Instruction codes.
pub(super) const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JA: u16 = 0x05; // BPF_JMP | BPF_JA
pub(super) const JEQ: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
pub(super) const JGT: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
pub(super) const JGE: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RET: u16 = 0x06; // BPF_RET | BPF_K

/// Farthest distance a label may have when a branch to it is written: its other target may
/// need one more instruction in between.
const REACH: usize = 253;

/// A program in the making: instructions in reverse.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    reversed: Vec<sock_filter>,
    /// The latest return of each value.
    returns: Vec<(u32, Label)>,
}

/// What a number (of a call, or a half of an argument) from `first` on comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Range<T> {
    pub(super) first: u32,
    /// How often the search ends here, roughly.
    pub(super) weight: u32,
    pub(super) value: T,
}

impl Assembler {
    /// The finished program.
    pub(super) fn finish(mut self) -> Vec<sock_filter> {
        self.reversed.reverse();
        self.reversed
    }

    pub(super) fn len(&self) -> usize {
        self.reversed.len()
    }

    /// A return of `value`.
    pub(super) fn ret(&mut self, value: u32) -> Label {
        let known = self.returns.iter_mut().find(|(known, _)| *known == value);
        if let Some((_, label)) = &known
            && self.reversed.len() - label.0 <= REACH
        {
            return *label;
        }
        let label = Label(self.reversed.len());
        match known {
            Some((_, latest)) => *latest = label,
            None => self.returns.push((value, label)),
        }
        self.push(RET, 0, 0, value)
    }

    /// `if accumulator <code> k { then } else { otherwise }`.
    pub(super) fn branch(&mut self, code: u16, k: u32, then: Label, otherwise: Label) -> Label {
        if then == otherwise {
            return then;
        }
        let then = self.near(then);
        let otherwise = self.near(otherwise);
        // Both are within REACH plus the one instruction `near` may have written.
        let at = self.reversed.len();
        let distance = |label: Label| u8::try_from(at - label.0 - 1).unwrap_or(u8::MAX);
        let (jt, jf) = (distance(then), distance(otherwise));
        self.push(code, jt, jf, k)
    }

    /// Loads the word at `offset` of `struct seccomp_data`, then goes on at `next`.
    pub(super) fn load(&mut self, offset: u32, next: Label) -> Label {
        self.fall_into(next);
        self.push(LOAD, 0, 0, offset)
    }

    /// Masks the accumulator, then goes on at `next`.
    pub(super) fn and(&mut self, mask: u32, next: Label) -> Label {
        self.fall_into(next);
        self.push(AND, 0, 0, mask)
    }

    /// The search for the accumulator in `ranges` (ascending, the first begins at 0 or at
    /// what the accumulator is known to reach). `leaf` writes what a range comes to.
    pub(super) fn search<T: PartialEq>(
        &mut self,
        ranges: &[Range<T>],
        leaf: &mut impl FnMut(&mut Self, &T) -> Label,
    ) -> Option<Label> {
        match ranges {
            [] => None,
            [range] => Some(leaf(self, &range.value)),
            // A hole of one number.
            [low, hole, high]
                if low.value == high.value && hole.first.checked_add(1) == Some(high.first) =>
            {
                let around = leaf(self, &low.value);
                let inside = leaf(self, &hole.value);
                Some(self.branch(JEQ, hole.first, inside, around))
            }
            _ => {
                let (low, high) = ranges.split_at(middle(ranges));
                let pivot = high.first().map_or(0, |range| range.first);
                let above = self.search(high, leaf)?;
                let below = self.search(low, leaf)?;
                Some(self.branch(JGE, pivot, above, below))
            }
        }
    }

    fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) -> Label {
        let label = Label(self.reversed.len());
        self.reversed.push(sock_filter { code, jt, jf, k });
        label
    }

    /// Makes `label` what comes right after the instruction written next.
    fn fall_into(&mut self, label: Label) {
        if label.0 + 1 != self.reversed.len() {
            self.copy_or_jump(label);
        }
    }

    /// A label in reach that comes to the same as `label`.
    fn near(&mut self, label: Label) -> Label {
        if self.reversed.len() - label.0 <= REACH {
            return label;
        }
        self.copy_or_jump(label)
    }

    /// A return is as short as a jump to one.
    fn copy_or_jump(&mut self, label: Label) -> Label {
        match self.reversed.get(label.0) {
            Some(target) if target.code == RET => {
                let value = target.k;
                self.push(RET, 0, 0, value)
            }
            _ => {
                let distance = self.reversed.len() - label.0 - 1;
                // Programs end at 4096 instructions long before this fails to fit.
                self.push(JA, 0, 0, u32::try_from(distance).unwrap_or(u32::MAX))
            }
        }
    }
}

/// Where to split: the middle by weight, but not so far from the middle by count that the
/// search for rare numbers becomes long.
fn middle<T>(ranges: &[Range<T>]) -> usize {
    let total: u32 = ranges.iter().map(|range| range.weight).sum();
    let mut below = 0;
    let mut split = 0;
    for range in ranges {
        if 2 * below + range.weight > total {
            break;
        }
        below += range.weight;
        split += 1;
    }
    let edge = (ranges.len() / 6).max(1);
    split.clamp(edge, ranges.len() - edge)
}
