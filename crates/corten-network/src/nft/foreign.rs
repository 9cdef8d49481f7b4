//! Reading the tables of others: their base chains, and what a chain's last rule does.

use super::Hook;
use super::expr::Verdict;
use super::wire::{Attr, Message, Op};
use crate::Result;
use crate::netlink::{Answer, Messages, Socket, find, nlas};

/// `NFPROTO_*` of the families that filter IP packets.
const UNSPECIFIED: u8 = 0;
const INET: u8 = 1;
const IPV4: u8 = 2;
const IPV6: u8 = 10;
/// The last of `NFT_MSG_*` that say that tables, chains or rules are new or gone, which are the first. (Of the
/// questions among them the kernel tells nobody, and what is destroyed it calls deleted.)
const LAST_CHANGE: u8 = Op::DelRule as u8;

/// A base chain.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
    family: u8,
    pub(crate) table: String,
    pub(crate) name: String,
    hook: u32,
    filter: bool,
    /// By policy.
    pub(crate) drops: bool,
}

impl Chain {
    /// Does it filter packets of that family there?
    pub(crate) fn filters(&self, hook: Hook, ipv6: bool) -> bool {
        let family = match self.family {
            INET => true,
            IPV4 => !ipv6,
            IPV6 => ipv6,
            _ => false,
        };
        family && self.filter && self.hook == hook as u32
    }

    pub(crate) fn family_name(&self) -> &'static str {
        match self.family {
            IPV4 => "ip",
            IPV6 => "ip6",
            _ => "inet",
        }
    }
}

/// What an expression does to a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Counts it, logs it.
    Passive,
    /// Drops or rejects it.
    Drop,
    /// Goes on in another chain.
    Jump(String),
    /// Looks at it, accepts it, anything else.
    Other,
}

/// All base chains, of whatever table.
pub(crate) fn chains(socket: &mut Socket) -> Result<Vec<Chain>> {
    let message = Message::of_family(Op::GetChain, UNSPECIFIED, Vec::new());
    let answers = socket.dump("list", "chains", &message)?;
    Ok(answers.iter().filter_map(base_chain).collect())
}

fn base_chain(answer: &Answer) -> Option<Chain> {
    // struct nfgenmsg: family, version, resource. NFTA_CHAIN_*, NFTA_HOOK_HOOKNUM.
    let family = *answer.payload.first()?;
    let attrs = answer.payload.get(4..)?;
    let hook = find(attrs, 4)?;
    Some(Chain {
        family,
        table: text(find(attrs, 1)?),
        name: text(find(attrs, 3)?),
        hook: number(find(hook, 1)?)?,
        filter: find(attrs, 7).map(text).as_deref() == Some("filter"),
        drops: find(attrs, 5).and_then(number) == Some(0),
    })
}

/// The expressions of the last rule of a chain in the base chain's table; none if it has no rule.
pub(crate) fn last_rule(socket: &mut Socket, base: &Chain, chain: &str) -> Result<Vec<Step>> {
    let attrs = vec![Attr::name(1, &base.table), Attr::name(2, chain)];
    let message = Message::of_family(Op::GetRule, base.family, attrs);
    let answers = socket.dump("list rules of chain", chain, &message)?;
    let expressions = answers
        .last()
        .and_then(|answer| find(answer.payload.get(4..)?, 4))
        .unwrap_or_default();
    Ok(nlas(expressions).map(|(_, e)| step(e)).collect())
}

fn step(expression: &[u8]) -> Step {
    let name = find(expression, 1).map(text).unwrap_or_default();
    let data = find(expression, 2).unwrap_or_default();
    match name.as_str() {
        "counter" | "log" => Step::Passive,
        "reject" => Step::Drop,
        // NFTA_IMMEDIATE_DATA, NFTA_DATA_VERDICT, NFTA_VERDICT_CODE and _CHAIN
        "immediate" => find(data, 2)
            .and_then(|data| find(data, 2))
            .and_then(|verdict| {
                let code = number(find(verdict, 1)?)?;
                let jumps = [Verdict::Jump(""), Verdict::Goto("")].map(Verdict::code);
                if code == Verdict::Drop.code() {
                    Some(Step::Drop)
                } else if jumps.contains(&code) {
                    Some(Step::Jump(text(find(verdict, 2)?)))
                } else {
                    None
                }
            })
            .unwrap_or(Step::Other),
        // Of iptables: NFTA_TARGET_NAME.
        "target" => match find(data, 1).map(text).as_deref() {
            Some("REJECT" | "DROP") => Step::Drop,
            Some("LOG" | "NFLOG") => Step::Passive,
            _ => Step::Other,
        },
        _ => Step::Other,
    }
}

/// Do these messages of the kernel say that tables, chains or rules have changed?
pub(crate) fn changes_rules(bytes: &[u8]) -> bool {
    Messages(bytes).any(|(header, _)| {
        let [kind, subsystem] = header.message_type.to_le_bytes();
        u16::from(subsystem) == super::wire::SUBSYSTEM && kind <= LAST_CHANGE
    })
}

/// How many messages of one packet [`wakes`] looks at; with more it lets all pass.
const LOOKED_AT: usize = 24;

/// A socket filter of the kernel (classic BPF) that lets only packets pass in which [`changes_rules`] would
/// find something: a container whose ports come or go changes elements of sets only, and that is to
/// wake nobody. A transaction's messages come many in a packet, so it goes from one to the next, as
/// often as it is written down here: such programs have no loops.
pub(crate) fn wakes() -> Vec<libc::sock_filter> {
    use libc::{
        BPF_ADD, BPF_ALU, BPF_AND, BPF_B, BPF_IMM, BPF_IND, BPF_JGT, BPF_JMP, BPF_K, BPF_LD,
        BPF_LDX, BPF_LEN, BPF_LSH, BPF_MEM, BPF_MISC, BPF_OR, BPF_RET, BPF_ST, BPF_STX, BPF_TAX,
        BPF_W, BPF_X,
    };
    let step = |code: u32, k: u32| jump(code, k, 0, 0);
    // Numbers are in the machine's order: where the low bytes of length and type are.
    let [low, high, kind] = if cfg!(target_endian = "little") {
        [0, 1, 4]
    } else {
        [3, 2, 5]
    };
    // Words of the program's memory.
    let (start, bytes) = (0, 1);
    let take = step(BPF_RET | BPF_K, u32::MAX);
    // X: where the message begins.
    let mut program = vec![step(BPF_LDX | BPF_W | BPF_IMM, 0)];
    for _ in 0..LOOKED_AT {
        program.extend([
            step(BPF_LD | BPF_B | BPF_IND, kind),
            jump(BPF_JMP | BPF_JGT | BPF_K, LAST_CHANGE.into(), 1, 0),
            take,
            // Its length, which is of two bytes at most, rounded up to a multiple of four.
            step(BPF_STX, start),
            step(BPF_LD | BPF_B | BPF_IND, low),
            step(BPF_ST, bytes),
            step(BPF_LD | BPF_B | BPF_IND, high),
            step(BPF_ALU | BPF_LSH | BPF_K, 8),
            step(BPF_LDX | BPF_W | BPF_MEM, bytes),
            step(BPF_ALU | BPF_OR | BPF_X, 0),
            step(BPF_ALU | BPF_ADD | BPF_K, 3),
            step(BPF_ALU | BPF_AND | BPF_K, !3),
            // The next one, unless the packet ends here.
            step(BPF_LDX | BPF_W | BPF_MEM, start),
            step(BPF_ALU | BPF_ADD | BPF_X, 0),
            step(BPF_MISC | BPF_TAX, 0),
            step(BPF_LD | BPF_W | BPF_LEN, 0),
            jump(BPF_JMP | BPF_JGT | BPF_X, 0, 1, 0),
            step(BPF_RET | BPF_K, 0),
        ]);
    }
    program.push(take);
    program
}

/// An instruction, with how many to skip if its condition is met and if not.
fn jump(code: u32, k: u32, met: u8, unmet: u8) -> libc::sock_filter {
    libc::sock_filter {
        // The constants are of 32 bits, the codes of 16.
        code: code as u16,
        jt: met,
        jf: unmet,
        k,
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .trim_end_matches('\0')
        .to_owned()
}

fn number(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk::<4>().map(|b| u32::from_be_bytes(*b))
}
