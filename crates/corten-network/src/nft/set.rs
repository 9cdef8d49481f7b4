//! Sets, maps and their elements.

use super::wire::{Attr, Message, Op};
use crate::netlink::{Answer, find, nlas};

/// Element types, by nft's numbers, so that `nft list` shows them as what they are.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Type {
    /// `NFPROTO_*`, in a set of its own only.
    Family,
    Ipv4,
    Ipv6,
    Protocol,
    Port,
    Link,
}

impl Type {
    fn number(self) -> u32 {
        match self {
            Self::Family => 2,
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
            Self::Family => 1,
            Self::Ipv4 | Self::Protocol | Self::Port => 4,
            Self::Ipv6 | Self::Link => 16,
        }
    }

    /// nft's idea of a concatenation's type: six bits each.
    pub(super) fn concat(types: &[Self]) -> (u32, u32) {
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

/// A message about elements of a set.
pub(super) fn elements(op: Op, table: &str, set: &str, elements: &[Element]) -> Message {
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

/// The elements in an answer.
pub(super) fn parse_elements(answer: &Answer) -> Vec<Element> {
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
