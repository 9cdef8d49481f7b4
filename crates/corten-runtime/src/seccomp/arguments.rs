//! Rules that look at arguments: from comparisons of 64-bit words to instructions on their
//! halves. The first rule whose comparisons all hold decides. Rules that follow each other
//! and each ask one thing about the same argument (Docker's profile has three for `socket`,
//! five for `personality`) are one question, "in which interval is it?", and become one
//! search.

use super::bpf::{Assembler, JEQ, JGE, JGT, Label, Range};

/// One comparison of an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    /// Which argument, 0 to 5.
    pub(super) index: u8,
    pub(super) compare: Compare,
}

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compare {
    NotEqual(u64),
    Less(u64),
    LessOrEqual(u64),
    Equal(u64),
    GreaterOrEqual(u64),
    Greater(u64),
    /// Equal where the mask has ones.
    MaskedEqual {
        mask: u64,
        value: u64,
    },
}

/// What happens if all conditions hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) conditions: Vec<Condition>,
    pub(super) outcome: u32,
}

impl Rule {
    /// The argument and comparison, if the rule is one that intervals can express.
    fn interval(&self) -> Option<(u8, Compare)> {
        match self.conditions.as_slice() {
            [condition] => match condition.compare {
                Compare::MaskedEqual { mask, .. } if mask != u64::MAX => None,
                compare => Some((condition.index, compare)),
            },
            _ => None,
        }
    }
}

impl Compare {
    fn holds(self, argument: u64) -> bool {
        match self {
            Self::NotEqual(value) => argument != value,
            Self::Less(value) => argument < value,
            Self::LessOrEqual(value) => argument <= value,
            Self::Equal(value) => argument == value,
            Self::GreaterOrEqual(value) => argument >= value,
            Self::Greater(value) => argument > value,
            Self::MaskedEqual { mask, value } => argument & mask == value & mask,
        }
    }

    fn value(self) -> u64 {
        match self {
            Self::NotEqual(value)
            | Self::Less(value)
            | Self::LessOrEqual(value)
            | Self::Equal(value)
            | Self::GreaterOrEqual(value)
            | Self::Greater(value)
            | Self::MaskedEqual { value, .. } => value,
        }
    }
}

/// Longest run of rules made one search: finding its intervals takes quadratic time.
const MAX_RUN: usize = 64;

/// `struct seccomp_data`: the low half of the first argument.
const OFFSET_ARGS: u32 = 16;

fn low(index: u8) -> u32 {
    OFFSET_ARGS + 8 * u32::from(index)
}

fn high(index: u8) -> u32 {
    low(index) + 4
}

/// Writes the rules, first to last; `otherwise` is what follows if none applies.
pub(super) fn rules(code: &mut Assembler, rules: &[Rule], otherwise: Label) -> Label {
    let mut otherwise = otherwise;
    let mut rest = rules;
    while let Some((last, before)) = rest.split_last() {
        let Some((index, _)) = last.interval() else {
            otherwise = one(code, last, otherwise);
            rest = before;
            continue;
        };
        let same = |rule: &&Rule| rule.interval().is_some_and(|(other, _)| other == index);
        let run = rest.iter().rev().take(MAX_RUN).take_while(same).count();
        let (before, run) = rest.split_at(rest.len() - run);
        otherwise = intervals(code, index, run, otherwise);
        rest = before;
    }
    otherwise
}

/// One rule: all its conditions must hold.
fn one(code: &mut Assembler, rule: &Rule, otherwise: Label) -> Label {
    let mut pass = code.ret(rule.outcome);
    for condition in rule.conditions.iter().rev() {
        pass = compare(code, *condition, pass, otherwise);
    }
    pass
}

fn compare(code: &mut Assembler, condition: Condition, pass: Label, fail: Label) -> Label {
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    let (low, high) = (low(condition.index), high(condition.index));
    // `high above k, or high equal and low as asked`.
    let mut ordered = |value: u64, jump: u16, above: Label, below: Label| {
        let (h, l) = halves(value);
        let last = code.branch(jump, l, above, below);
        let last = code.load(low, last);
        let equal = code.branch(JEQ, h, last, below);
        let first = code.branch(JGT, h, above, equal);
        code.load(high, first)
    };
    match condition.compare {
        Compare::Greater(value) => ordered(value, JGT, pass, fail),
        Compare::GreaterOrEqual(value) => ordered(value, JGE, pass, fail),
        Compare::LessOrEqual(value) => ordered(value, JGT, fail, pass),
        Compare::Less(value) => ordered(value, JGE, fail, pass),
        Compare::Equal(value) => masked(code, (low, high), u64::MAX, value, pass, fail),
        Compare::NotEqual(value) => masked(code, (low, high), u64::MAX, value, fail, pass),
        Compare::MaskedEqual { mask, value } => {
            masked(code, (low, high), mask, value & mask, pass, fail)
        }
    }
}

/// Halves the mask does not touch are not looked at.
fn masked(
    code: &mut Assembler,
    (low, high): (u32, u32),
    mask: u64,
    value: u64,
    same: Label,
    different: Label,
) -> Label {
    let mut next = same;
    for (offset, mask, value) in [
        (low, mask as u32, value as u32),
        (high, (mask >> 32) as u32, (value >> 32) as u32),
    ] {
        if mask == 0 {
            continue;
        }
        next = code.branch(JEQ, value, next, different);
        if mask != u32::MAX {
            next = code.and(mask, next);
        }
        next = code.load(offset, next);
    }
    next
}

/// What an interval of one half comes to: a rule's outcome, or none's.
type Outcome = Option<u32>;

/// What an interval of the high half comes to.
#[derive(Debug, PartialEq, Eq)]
enum High {
    Known(Outcome),
    /// The low half decides.
    Low(Vec<Range<Outcome>>),
}

/// Rules that are intervals of one argument.
fn intervals(code: &mut Assembler, index: u8, rules: &[Rule], otherwise: Label) -> Label {
    let ranges = high_ranges(&pieces(rules));
    let mut known = |code: &mut Assembler, outcome: &Outcome| match outcome {
        Some(value) => code.ret(*value),
        None => otherwise,
    };
    let mut high_leaf = |code: &mut Assembler, value: &High| match value {
        High::Known(outcome) => known(code, outcome),
        High::Low(ranges) => match code.search(ranges, &mut known) {
            Some(search) => code.load(low(index), search),
            None => otherwise,
        },
    };
    match code.search(&ranges, &mut high_leaf) {
        // The same whatever the high half is: nothing to load.
        Some(only) if ranges.len() == 1 => only,
        Some(search) => code.load(high(index), search),
        None => otherwise,
    }
}

/// Where the outcome changes, ascending; the first piece begins at 0.
fn pieces(rules: &[Rule]) -> Vec<(u64, Outcome)> {
    let compares = || {
        rules
            .iter()
            .filter_map(|rule| Some((rule.interval()?.1, rule.outcome)))
    };
    let mut starts = vec![0];
    for (compare, _) in compares() {
        starts.push(compare.value());
        starts.extend(compare.value().checked_add(1));
    }
    starts.sort_unstable();
    let mut pieces: Vec<(u64, Outcome)> = Vec::new();
    for start in starts {
        let first = compares().find(|(compare, _)| compare.holds(start));
        let outcome = first.map(|(_, outcome)| outcome);
        if pieces.last().is_none_or(|(_, last)| *last != outcome) {
            pieces.push((start, outcome));
        }
    }
    pieces
}

/// The pieces by high half.
fn high_ranges(pieces: &[(u64, Outcome)]) -> Vec<Range<High>> {
    let mut ranges: Vec<Range<High>> = Vec::new();
    let mut add = |first: u32, value: High| {
        if ranges.last().is_none_or(|last| last.value != value) {
            // Real arguments are small.
            let weight = if first == 0 { 4 } else { 1 };
            ranges.push(Range {
                first,
                weight,
                value,
            });
        }
    };
    let half = |start: u64| (start >> 32) as u32;
    let mut before = None;
    for group in pieces.chunk_by(|a, b| half(a.0) == half(b.0)) {
        let Some((start, first)) = group.first() else {
            continue;
        };
        let last = group.last().map_or(*first, |(_, outcome)| *outcome);
        let whole = *start as u32 == 0;
        if whole && group.len() == 1 {
            add(half(*start), High::Known(*first));
        } else {
            let piece = |first, value| Range {
                first,
                weight: 1,
                value,
            };
            let rest = (!whole).then(|| piece(0, before));
            let lows = group
                .iter()
                .map(|(start, value)| piece(*start as u32, *value));
            add(
                half(*start),
                High::Low(rest.into_iter().chain(lows).collect()),
            );
            // The next group, if it begins there, has the last word.
            if let Some(next) = half(*start).checked_add(1)
                && !pieces.iter().any(|(other, _)| half(*other) == next)
            {
                add(next, High::Known(last));
            }
        }
        before = last;
    }
    ranges
}
