//! nf_tables over netlink: a small typed builder for exactly the messages and expressions our
//! ruleset needs (`linux/netfilter/nf_tables.h`). Numbers are big-endian there; names end in NUL.
//!
//! All changes go through [`Transaction`], which the kernel applies whole or not at all.

mod expr;
mod foreign;
mod set;
mod wire;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};

pub(crate) use self::expr::{Ct, Expr, Meta, Verdict, reg};
pub(crate) use self::foreign::{Chain, Step, chains, changes_rules, last_rule, wakes};
pub(crate) use self::set::{Element, Set, Type};
use self::set::{elements, parse_elements};
pub(crate) use self::wire::{Attr, Message};
use self::wire::{BATCH, Op};
use crate::netlink::{Batch, Socket, find};
use crate::{NetworkError, Result};

/// A hook of the packet path (`enum nf_inet_hooks`).
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub(crate) enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
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
            let order: u32 = if matches!(single, Type::Link | Type::Family) {
                1
            } else {
                2
            };
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

/// Which table it is: another number each time one of that name is made. `None` if there is none.
pub(crate) fn table_handle(socket: &mut Socket, table: &str) -> Result<Option<u64>> {
    let message = Message::new(Op::GetTable, vec![Attr::name(1, table)]);
    let mut batch = Batch::default();
    batch.push("look for table", table, &[libc::ENOENT], 0, &message);
    let answers = socket.run(batch)?;
    // NFTA_TABLE_HANDLE
    let handle = answers.first().and_then(|a| find(a.payload.get(4..)?, 4));
    Ok(handle
        .and_then(|h| h.first_chunk())
        .map(|h| u64::from_be_bytes(*h)))
}

/// Is there such a chain?
pub(crate) fn chain_exists(socket: &mut Socket, table: &str, chain: &str) -> Result<bool> {
    let message = Message::new(
        Op::GetChain,
        vec![Attr::name(1, table), Attr::name(3, chain)],
    );
    exists(socket, "look for chain", chain, &message)
}

/// Is there such a set or map?
pub(crate) fn set_exists(socket: &mut Socket, table: &str, set: &str) -> Result<bool> {
    let message = Message::new(Op::GetSet, vec![Attr::name(1, table), Attr::name(2, set)]);
    exists(socket, "look for set", set, &message)
}

fn exists(
    socket: &mut Socket,
    action: &'static str,
    object: &str,
    message: &Message,
) -> Result<bool> {
    let mut batch = Batch::default();
    batch.push(action, object, &[libc::ENOENT], 0, message);
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
            push_lookup(&mut batch, table, set, key);
        }
        found.extend(socket.run(batch)?.iter().flat_map(parse_elements));
    }
    Ok(found)
}

/// Are all of these there? An interval is looked for by its start.
pub(crate) fn all_there(
    socket: &mut Socket,
    table: &str,
    wanted: &[(&'static str, Vec<Element>)],
) -> Result<bool> {
    let keys: Vec<_> = wanted
        .iter()
        .flat_map(|(set, list)| list.iter().map(move |element| (*set, element)))
        .filter(|(_, element)| !element.interval_end)
        .collect();
    for chunk in keys.chunks(LOOKUPS) {
        let mut batch = Batch::default();
        for (set, key) in chunk {
            push_lookup(&mut batch, table, set, key);
        }
        // An answer for each that is there.
        if socket.run(batch)?.len() < chunk.len() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn push_lookup(batch: &mut Batch, table: &str, set: &str, key: &Element) {
    let only_key = Element {
        value: Vec::new(),
        ..key.clone()
    };
    let message = elements(Op::GetElement, table, set, &[only_key]);
    batch.push("look up element of set", set, &[libc::ENOENT], 0, &message);
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

/// Is this the answer of a table that is not there?
pub(crate) fn is_absent(error: &NetworkError) -> bool {
    error.errno() == Some(libc::ENOENT)
}
