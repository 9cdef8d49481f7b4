//! Forgetting tracked UDP flows of published ports (`linux/netfilter/nfnetlink_conntrack.h`).
//!
//! A tracked flow keeps the translation it began with: without this, a client that keeps sending
//! would go on reaching a container's old address, or none, for as long as it keeps sending. TCP
//! needs no help, its flows end with their connections.

use crate::Result;
use crate::netlink::{BATCH_MAX, Batch, Socket, find};
use crate::nft::{Attr, Message};

/// `NFNL_SUBSYS_CTNETLINK << 8`, with `IPCTNL_MSG_CT_GET` and `_DELETE`.
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
/// `NFPROTO_UNSPEC`: every family's.
const ANY: u8 = 0;
/// `CTA_TUPLE_ORIG`, inside it `CTA_TUPLE_PROTO`, inside that number and destination port.
const ORIGINAL: u16 = 1;
const PROTOCOL: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
const DESTINATION_PORT: u16 = 3;
/// `IPPROTO_UDP`.
const UDP: u8 = 17;

/// Forgets every UDP flow that was sent to one of these ports.
pub(crate) fn forget(socket: &mut Socket, ports: &[u16]) -> Result<()> {
    if ports.is_empty() {
        return Ok(());
    }
    let message = |kind, family, attrs| Message {
        kind,
        family,
        resource: 0,
        attrs,
    };
    let flows = socket.dump("list", "tracked flows", &message(GET, ANY, Vec::new()))?;
    // struct nfgenmsg: the family first.
    let tuples = flows.iter().filter_map(|flow| {
        let (family, attrs) = (*flow.payload.first()?, flow.payload.get(4..)?);
        Some((family, find(attrs, ORIGINAL)?))
    });
    let chosen: Vec<(u8, &[u8])> = tuples.filter(|(_, tuple)| goes_to(tuple, ports)).collect();
    for chunk in chosen.chunks(BATCH_MAX) {
        let mut batch = Batch::default();
        for (family, tuple) in chunk {
            // The tuple goes back as it came.
            let attr = Attr::Bytes(ORIGINAL | netlink_packet_core::NLA_F_NESTED, tuple.to_vec());
            let request = message(DELETE, *family, vec![attr]);
            batch.push("forget", "tracked flow", &[libc::ENOENT], 0, &request);
        }
        socket.run(batch)?;
    }
    Ok(())
}

fn goes_to(tuple: &[u8], ports: &[u16]) -> bool {
    let Some(protocol) = find(tuple, PROTOCOL) else {
        return false;
    };
    let port = find(protocol, DESTINATION_PORT).and_then(|p| p.first_chunk::<2>());
    find(protocol, PROTOCOL_NUMBER) == Some(&[UDP])
        && port.is_some_and(|p| ports.contains(&u16::from_be_bytes(*p)))
}
