//! nf_tables over netlink: a small typed builder for exactly the messages and expressions our
//! ruleset needs (`linux/netfilter/nf_tables.h`). Numbers are big-endian there; names end in NUL.
//!
//! All changes go through [`Transaction`], which the kernel applies whole or not at all.

use netlink_packet_core::{
    Emitable, NLM_F_APPEND, NLM_F_CREATE, NLMSG_NOOP, NetlinkSerializable, Nla,
};

use crate::netlink::{Answer, Batch, Socket, find, nlas};
use crate::{NetworkError, Result};

/// `NFPROTO_INET`: one table for IPv4 and IPv6.
const INET: u8 = 1;
/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
/// `NFNL_MSG_BATCH_BEGIN` and `_END`.
const BATCH: (u16, u16) = (0x10, 0x11);
const NESTED: u16 = netlink_packet_core::NLA_F_NESTED;

/// `enum nf_tables_msg_types`, as far as used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Op {
    NewTable = 0,
    DelTable = 2,
    NewChain = 3,
    GetChain = 4,
    NewRule = 6,
    DelRule = 8,
    NewSet = 9,
    NewElement = 12,
    GetElement = 13,
    DelElement = 14,
}

/// A netlink attribute.
#[derive(Debug, Clone)]
pub(crate) enum Attr {
    Bytes(u16, Vec<u8>),
    Nest(u16, Vec<Attr>),
}

impl Attr {
    fn name(kind: u16, text: &str) -> Self {
        Self::Bytes(kind, [text.as_bytes(), &[0]].concat())
    }

    fn number(kind: u16, value: u32) -> Self {
        Self::Bytes(kind, value.to_be_bytes().to_vec())
    }

    /// `NFTA_DATA_VALUE` inside `kind`.
    fn data(kind: u16, value: &[u8]) -> Self {
        Self::Nest(kind, vec![Self::Bytes(1, value.to_vec())])
    }
}

impl Nla for Attr {
    fn value_len(&self) -> usize {
        match self {
            Self::Bytes(_, bytes) => bytes.len(),
            Self::Nest(_, inner) => inner.as_slice().buffer_len(),
        }
    }

    fn kind(&self) -> u16 {
        match self {
            Self::Bytes(kind, _) => *kind,
            Self::Nest(kind, _) => *kind | NESTED,
        }
    }

    fn emit_value(&self, buffer: &mut [u8]) {
        match self {
            Self::Bytes(_, bytes) => buffer.copy_from_slice(bytes),
            Self::Nest(_, inner) => inner.as_slice().emit(buffer),
        }
    }
}

/// A netfilter netlink message: `struct nfgenmsg` and attributes.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) kind: u16,
    pub(crate) family: u8,
    pub(crate) resource: u16,
    pub(crate) attrs: Vec<Attr>,
}

impl Message {
    fn new(op: Op, attrs: Vec<Attr>) -> Self {
        Self {
            kind: SUBSYSTEM << 8 | op as u16,
            family: INET,
            resource: 0,
            attrs,
        }
    }

    fn frame(kind: u16) -> Self {
        Self {
            kind,
            family: 0,
            resource: SUBSYSTEM,
            attrs: Vec::new(),
        }
    }
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        debug_assert_ne!(self.kind, NLMSG_NOOP);
        self.kind
    }

    fn buffer_len(&self) -> usize {
        4 + self.attrs.as_slice().buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let [high, low] = self.resource.to_be_bytes();
        let (head, body) = buffer.split_at_mut(4);
        head.copy_from_slice(&[self.family, 0, high, low]);
        self.attrs.as_slice().emit(body);
    }
}

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
    /// Rewrites the source to the outgoing link's address.
    Masquerade,
    /// Ends the rule.
    Verdict(Verdict),
}

impl Expr {
    /// `NFTA_LIST_ELEM` of `NFTA_RULE_EXPRESSIONS`.
    fn encode(&self) -> Attr {
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
            // NFT_NAT_DNAT, NFPROTO_IPV4, address register, port register
            Self::Dnat4 => (
                "nat",
                vec![
                    number(1, 1),
                    number(2, 2),
                    number(3, reg::RESULT),
                    number(5, reg::RESULT + 1),
                ],
            ),
            Self::Masquerade => ("masq", Vec::new()),
            Self::Verdict(verdict) => {
                let mut inner = vec![number(1, verdict.code())];
                if let Verdict::Jump(chain) = verdict {
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
    fn code(self) -> u32 {
        match self {
            Self::Drop => 0,
            Self::Accept => 1,
            Self::Jump(_) => (-3i32).cast_unsigned(),
        }
    }
}

/// A hook of the packet path (`enum nf_inet_hooks`).
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub(crate) enum Hook {
    Prerouting = 0,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// Element types, by nft's numbers, so that `nft list` shows them as what they are.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Type {
    Ipv4,
    Ipv6,
    Protocol,
    Port,
    Link,
}

impl Type {
    fn number(self) -> u32 {
        match self {
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Link => 41,
        }
    }

    /// Length in registers, in bytes.
    fn length(self) -> u32 {
        match self {
            Self::Ipv4 | Self::Protocol | Self::Port => 4,
            Self::Ipv6 | Self::Link => 16,
        }
    }

    /// nft's idea of a concatenation's type: six bits each.
    fn concat(types: &[Self]) -> (u32, u32) {
        types.iter().fold((0, 0), |(n, len), t| {
            ((n << 6) | t.number(), len + t.length())
        })
    }
}

/// A set or map to create.
#[derive(Debug)]
pub(crate) struct Set {
    pub(crate) name: &'static str,
    pub(crate) key: &'static [Type],
    pub(crate) value: &'static [Type],
    pub(crate) interval: bool,
}

/// One element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
    /// Closes the interval that starts at the element before.
    pub(crate) interval_end: bool,
}

impl Element {
    fn encode(&self) -> Attr {
        let mut attrs = vec![Attr::data(1, &self.key)];
        if !self.value.is_empty() {
            attrs.push(Attr::data(2, &self.value));
        }
        if self.interval_end {
            attrs.push(Attr::number(3, 1));
        }
        Attr::Nest(1, attrs)
    }
}

fn elements(op: Op, table: &str, set: &str, elements: &[Element]) -> Message {
    let list = elements.iter().map(Element::encode).collect();
    Message::new(
        op,
        vec![
            Attr::name(1, table),
            Attr::name(2, set),
            Attr::Nest(3, list),
        ],
    )
}

/// Changes to one table, applied atomically.
pub(crate) struct Transaction<'a> {
    table: &'a str,
    batch: Batch,
    sets: u32,
}

impl<'a> Transaction<'a> {
    /// An empty transaction on `table`.
    pub(crate) fn new(table: &'a str) -> Self {
        let mut batch = Batch::default();
        batch.push_quiet(
            "begin transaction on table",
            table,
            0,
            &Message::frame(BATCH.0),
        );
        Self {
            table,
            batch,
            sets: 0,
        }
    }

    /// Applies it; an error means nothing was changed.
    pub(crate) fn commit(mut self, socket: &mut Socket) -> Result<()> {
        self.batch.acknowledge_last();
        let end = Message::frame(BATCH.1);
        self.batch.push_quiet("commit table", self.table, 0, &end);
        socket.run(self.batch).map(|_| ())
    }

    fn push(&mut self, action: &'static str, object: &str, flags: u16, message: &Message) {
        let object = format!("{} of table {}", object, self.table);
        self.batch.push_quiet(action, object, flags, message);
    }

    /// Creates the table if it is not there.
    pub(crate) fn table(&mut self) {
        let message = Message::new(Op::NewTable, vec![Attr::name(1, self.table)]);
        self.push("create", "family inet", NLM_F_CREATE, &message);
    }

    /// Deletes the table with all in it.
    pub(crate) fn delete_table(&mut self) {
        let message = Message::new(Op::DelTable, vec![Attr::name(1, self.table)]);
        self.push("delete", "everything", 0, &message);
    }

    /// Creates a chain; with a hook it is a base chain with policy accept.
    pub(crate) fn chain(&mut self, name: &str, base: Option<(&str, Hook, i32)>) {
        let mut attrs = vec![Attr::name(1, self.table), Attr::name(3, name)];
        if let Some((kind, hook, priority)) = base {
            let place = vec![
                Attr::number(1, hook as u32),
                Attr::number(2, priority.cast_unsigned()),
            ];
            attrs.extend([
                Attr::Nest(4, place),
                Attr::number(5, 1),
                Attr::name(7, kind),
            ]);
        }
        self.push(
            "create chain",
            name,
            NLM_F_CREATE,
            &Message::new(Op::NewChain, attrs),
        );
    }

    /// Deletes every rule of the table.
    pub(crate) fn flush_rules(&mut self) {
        let message = Message::new(Op::DelRule, vec![Attr::name(1, self.table)]);
        self.push("flush", "rules", 0, &message);
    }

    /// Appends a rule; the comment shows in `nft list`.
    pub(crate) fn rule(&mut self, chain: &str, comment: &str, exprs: &[Expr]) {
        let list = exprs.iter().map(Expr::encode).collect();
        // nft's user data: type 0 (comment), length, text with NUL.
        let length = u8::try_from(comment.len() + 1).unwrap_or(u8::MAX);
        let userdata = [&[0, length], comment.as_bytes(), &[0]].concat();
        let attrs = vec![
            Attr::name(1, self.table),
            Attr::name(2, chain),
            Attr::Nest(4, list),
            Attr::Bytes(7, userdata),
        ];
        let message = Message::new(Op::NewRule, attrs);
        self.push(
            "add rule to chain",
            chain,
            NLM_F_CREATE | NLM_F_APPEND,
            &message,
        );
    }

    /// Creates a set or map if it is not there.
    pub(crate) fn set(&mut self, set: &Set) {
        self.sets += 1;
        let (kind, length) = Type::concat(set.key);
        let flags = u32::from(set.interval) * 0x4 + u32::from(!set.value.is_empty()) * 0x8;
        let mut attrs = vec![
            Attr::name(1, self.table),
            Attr::name(2, set.name),
            Attr::number(3, flags),
            Attr::number(4, kind),
            Attr::number(5, length),
            Attr::number(10, self.sets),
        ];
        if !set.value.is_empty() {
            let (kind, length) = Type::concat(set.value);
            attrs.extend([Attr::number(6, kind), Attr::number(7, length)]);
        }
        if let [single] = set.key {
            // nft's user data: type 0 (byte order of the key), length 4, 1 host or 2 network.
            let order: u32 = if matches!(single, Type::Link) { 1 } else { 2 };
            attrs.push(Attr::Bytes(
                13,
                [&[0u8, 4][..], &order.to_ne_bytes()].concat(),
            ));
        }
        self.push(
            "create set",
            set.name,
            NLM_F_CREATE,
            &Message::new(Op::NewSet, attrs),
        );
    }

    /// Adds elements; one that is there already with the same value is fine.
    pub(crate) fn add(&mut self, set: &str, list: &[Element]) {
        for chunk in list.chunks(CHUNK) {
            let message = elements(Op::NewElement, self.table, set, chunk);
            self.push("add elements to set", set, NLM_F_CREATE, &message);
        }
    }

    /// Deletes elements, which must be there.
    pub(crate) fn delete(&mut self, set: &str, list: &[Element]) {
        for chunk in list.chunks(CHUNK) {
            let message = elements(Op::DelElement, self.table, set, chunk);
            self.push("delete elements of set", set, 0, &message);
        }
    }
}

/// Elements per message: an attribute's length is 16 bits. Even, so that intervals stay together.
const CHUNK: usize = 400;

/// Lookups sent together: every answer takes up to 8 KiB of the socket's receive buffer, which has
/// about 200 KiB by default.
const LOOKUPS: usize = 16;

/// Is there such a chain?
pub(crate) fn chain_exists(socket: &mut Socket, table: &str, chain: &str) -> Result<bool> {
    let message = Message::new(
        Op::GetChain,
        vec![Attr::name(1, table), Attr::name(3, chain)],
    );
    let mut batch = Batch::default();
    batch.push("look for chain", chain, &[libc::ENOENT], 0, &message);
    Ok(!socket.run(batch)?.is_empty())
}

/// Which of the keys are in the set, as the set has them.
pub(crate) fn lookup(
    socket: &mut Socket,
    table: &str,
    set: &str,
    keys: &[Element],
) -> Result<Vec<Element>> {
    let mut found = Vec::new();
    for chunk in keys.chunks(LOOKUPS) {
        let mut batch = Batch::default();
        for key in chunk {
            let only_key = Element {
                value: Vec::new(),
                ..key.clone()
            };
            let message = elements(Op::GetElement, table, set, &[only_key]);
            batch.push("look up element of set", set, &[libc::ENOENT], 0, &message);
        }
        found.extend(socket.run(batch)?.iter().flat_map(parse_elements));
    }
    Ok(found)
}

/// All elements of a set; none if there is no such set.
pub(crate) fn dump(socket: &mut Socket, table: &str, set: &str) -> Result<Vec<Element>> {
    let message = Message::new(
        Op::GetElement,
        vec![Attr::name(1, table), Attr::name(2, set)],
    );
    match socket.dump("list set", set, &message) {
        Ok(answers) => Ok(answers.iter().flat_map(parse_elements).collect()),
        Err(e) if e.errno() == Some(libc::ENOENT) => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

fn parse_elements(answer: &Answer) -> Vec<Element> {
    let list = answer
        .payload
        .get(4..)
        .and_then(|attrs| find(attrs, 3))
        .unwrap_or_default();
    nlas(list)
        .filter_map(|(_, element)| {
            let value = |kind| find(element, kind).and_then(|nest| find(nest, 1));
            let flags = find(element, 3)
                .and_then(|f| f.first_chunk::<4>())
                .map_or(0, |f| u32::from_be_bytes(*f));
            Some(Element {
                key: value(1)?.to_vec(),
                value: value(2).unwrap_or_default().to_vec(),
                interval_end: flags & 1 != 0,
            })
        })
        .collect()
}

/// Is this the answer of a table that is not there?
pub(crate) fn is_absent(error: &NetworkError) -> bool {
    error.errno() == Some(libc::ENOENT)
}
