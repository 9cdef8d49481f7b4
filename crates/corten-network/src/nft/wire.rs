//! The wire form of nf_tables messages: attributes nested in attributes.

use netlink_packet_core::{Emitable, NLMSG_NOOP, NetlinkSerializable, Nla};

/// `NFPROTO_INET`: one table for IPv4 and IPv6.
const INET: u8 = 1;
/// `NFNL_SUBSYS_NFTABLES`.
pub(super) const SUBSYSTEM: u16 = 10;
/// `NFNL_MSG_BATCH_BEGIN` and `_END`.
pub(super) const BATCH: (u16, u16) = (0x10, 0x11);
const NESTED: u16 = netlink_packet_core::NLA_F_NESTED;

/// `enum nf_tables_msg_types`, as far as used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Op {
    NewTable = 0,
    GetTable = 1,
    DelTable = 2,
    NewChain = 3,
    GetChain = 4,
    NewRule = 6,
    GetRule = 7,
    DelRule = 8,
    NewSet = 9,
    GetSet = 10,
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
    pub(super) fn name(kind: u16, text: &str) -> Self {
        Self::Bytes(kind, [text.as_bytes(), &[0]].concat())
    }

    pub(super) fn number(kind: u16, value: u32) -> Self {
        Self::Bytes(kind, value.to_be_bytes().to_vec())
    }

    /// `NFTA_DATA_VALUE` inside `kind`.
    pub(super) fn data(kind: u16, value: &[u8]) -> Self {
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
    pub(super) fn new(op: Op, attrs: Vec<Attr>) -> Self {
        Self::of_family(op, INET, attrs)
    }

    pub(super) fn of_family(op: Op, family: u8, attrs: Vec<Attr>) -> Self {
        Self {
            kind: SUBSYSTEM << 8 | op as u16,
            family,
            resource: 0,
            attrs,
        }
    }

    pub(super) fn frame(kind: u16) -> Self {
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
