//! Expressions: what a rule consists of.

use super::wire::Attr;

/// 32-bit registers (`NFT_REG32_00` and up). Keys are put together from `KEY` on, map results are
/// delivered from `RESULT` on.
pub(crate) mod reg {
    pub(crate) const KEY: u32 = 8;
    pub(crate) const RESULT: u32 = 16;
}

/// `enum nft_meta_keys`, as far as used.
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub(crate) enum Meta {
    InName = 6,
    OutName = 7,
    Family = 15,
    Protocol = 16,
}

/// `enum nft_ct_keys`, as far as used.
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub(crate) enum Ct {
    State = 0,
    Status = 2,
}

/// What a rule does with a packet that got to its end.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Verdict {
    Drop,
    Accept,
    Jump(&'static str),
    /// Without coming back.
    Goto(&'static str),
}

/// Expressions of a rule.
#[derive(Debug, Clone)]
pub(crate) enum Expr {
    /// Loads packet meta data into a register.
    Meta(Meta, u32),
    /// Loads connection tracking data.
    Ct(Ct, u32),
    /// Loads (offset, length) of the network header.
    Network(u32, u32, u32),
    /// Loads (offset, length) of the transport header.
    Transport(u32, u32, u32),
    /// Loads the kind of the destination address as the routing table sees it (`RTN_*`).
    DestinationKind(u32),
    /// Keeps only the masked bits of a register.
    Mask(u32, Vec<u8>),
    /// Goes on if the register equals the value.
    Equals(u32, Vec<u8>),
    /// Goes on if the register differs from the value.
    Differs(u32, Vec<u8>),
    /// Goes on if the key starting at the register is in the set.
    In(&'static str, u32),
    /// Goes on if it is not.
    NotIn(&'static str, u32),
    /// Looks the key up in a map, result at [`reg::RESULT`]; goes on if found.
    Map(&'static str, u32),
    /// Rewrites the IPv4 destination to address and port at [`reg::RESULT`].
    Dnat4,
    /// Rewrites the IPv6 destination to address and port at [`reg::RESULT`].
    Dnat6,
    /// Rewrites the source to the outgoing link's address.
    Masquerade,
    /// Loads a value into a register.
    Value(u32, Vec<u8>),
    /// Writes (offset, length) of the transport header from a register, and makes its checksum, at
    /// the last offset, right.
    SetTransport(u32, u32, u32, u32),
    /// Ends the rule.
    Verdict(Verdict),
}

impl Expr {
    /// `NFTA_LIST_ELEM` of `NFTA_RULE_EXPRESSIONS`.
    pub(super) fn encode(&self) -> Attr {
        let number = Attr::number;
        let payload = |base: u32, offset: u32, length: u32, register: u32| {
            (
                "payload",
                vec![
                    number(1, register),
                    number(2, base),
                    number(3, offset),
                    number(4, length),
                ],
            )
        };
        let compare = |register: u32, op: u32, value: &[u8]| {
            (
                "cmp",
                vec![number(1, register), number(2, op), Attr::data(3, value)],
            )
        };
        // NFT_NAT_DNAT, NFPROTO_*, address register, port register
        let dnat = |family: u32, port: u32| {
            (
                "nat",
                vec![
                    number(1, 1),
                    number(2, family),
                    number(3, reg::RESULT),
                    number(5, port),
                ],
            )
        };
        let (name, attrs) = match self {
            Self::Meta(key, register) => {
                ("meta", vec![number(1, *register), number(2, *key as u32)])
            }
            Self::Ct(key, register) => ("ct", vec![number(1, *register), number(2, *key as u32)]),
            Self::Network(offset, length, register) => payload(1, *offset, *length, *register),
            Self::Transport(offset, length, register) => payload(2, *offset, *length, *register),
            // NFT_FIB_RESULT_ADDRTYPE of NFTA_FIB_F_DADDR
            Self::DestinationKind(register) => (
                "fib",
                vec![number(1, *register), number(2, 3), number(3, 2)],
            ),
            Self::Mask(register, mask) => {
                let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
                let zero = vec![0; mask.len()];
                let (mask, xor) = (Attr::data(4, mask), Attr::data(5, &zero));
                (
                    "bitwise",
                    vec![
                        number(1, *register),
                        number(2, *register),
                        number(3, length),
                        mask,
                        xor,
                    ],
                )
            }
            Self::Equals(register, value) => compare(*register, 0, value),
            Self::Differs(register, value) => compare(*register, 1, value),
            Self::In(set, register) => ("lookup", vec![Attr::name(1, set), number(2, *register)]),
            Self::NotIn(set, register) => (
                "lookup",
                vec![Attr::name(1, set), number(2, *register), number(5, 1)],
            ),
            Self::Map(set, register) => (
                "lookup",
                vec![
                    Attr::name(1, set),
                    number(2, *register),
                    number(3, reg::RESULT),
                ],
            ),
            Self::Dnat4 => dnat(2, reg::RESULT + 1),
            Self::Dnat6 => dnat(10, reg::RESULT + 4),
            Self::Masquerade => ("masq", Vec::new()),
            Self::Value(register, value) => (
                "immediate",
                vec![number(1, *register), Attr::data(2, value)],
            ),
            // NFT_PAYLOAD_TRANSPORT_HEADER, NFT_PAYLOAD_CSUM_INET
            Self::SetTransport(offset, length, register, checksum) => (
                "payload",
                vec![
                    number(5, *register),
                    number(2, 2),
                    number(3, *offset),
                    number(4, *length),
                    number(6, 1),
                    number(7, *checksum),
                ],
            ),
            Self::Verdict(verdict) => {
                let mut inner = vec![number(1, verdict.code())];
                if let Verdict::Jump(chain) | Verdict::Goto(chain) = verdict {
                    inner.push(Attr::name(2, chain));
                }
                let data = Attr::Nest(2, vec![Attr::Nest(2, inner)]);
                ("immediate", vec![number(1, 0), data])
            }
        };
        Attr::Nest(1, vec![Attr::name(1, name), Attr::Nest(2, attrs)])
    }
}

impl Verdict {
    pub(super) fn code(self) -> u32 {
        match self {
            Self::Drop => 0,
            Self::Accept => 1,
            Self::Jump(_) => (-3i32).cast_unsigned(),
            Self::Goto(_) => (-4i32).cast_unsigned(),
        }
    }
}
