//! A synchronous netlink socket that sends batches: many requests in one `send(2)`, answers read
//! afterwards. The kernel handles rtnetlink and nfnetlink requests inside that very system call, so
//! by the time it returns every acknowledgement is queued and nothing ever has to be waited for.
//!
//! Protocol: `netlink(7)`; error details by `NETLINK_EXT_ACK`. Answers are read tolerantly, attribute
//! by attribute, so that a newer kernel's attributes cannot make a message unreadable.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer,
    NetlinkHeader, NetlinkSerializable, NlasIterator,
};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

use crate::{NetworkError, Result};

/// `NLM_F_DUMP_INTR`: the table changed during the dump, which may be incomplete.
const DUMP_INTERRUPTED: u16 = 0x10;
/// `NLM_F_ACK_TLVS`: attributes follow an error.
const ACK_TLVS: u16 = 0x200;
/// `NLMSGERR_ATTR_MSG`: the kernel's explanation.
const ERROR_TEXT: u16 = 1;
/// Length of a netlink header.
const HEADER: usize = 16;
/// The kernel makes dump messages of up to 32 KiB when the reader offers that much.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// Acknowledged requests to send together at most: their answers must fit the socket's receive
/// buffer, about 200 KiB by default, of which each takes up to 1 KiB.
pub(crate) const BATCH_MAX: usize = 64;

/// Requests to be sent together, each with the words for its error message.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    labels: Vec<Label>,
    /// Where the last request starts.
    last: usize,
}

#[derive(Debug)]
struct Label {
    action: &'static str,
    object: String,
    /// Errors that are as good as success (`EEXIST` on create, `ENOENT` on delete).
    harmless: &'static [i32],
    answered: bool,
}

/// One answer that is neither an acknowledgement nor an end mark.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Payload after the netlink header.
    pub(crate) payload: Vec<u8>,
}

impl Batch {
    /// Adds a request that will be acknowledged.
    pub(crate) fn push(
        &mut self,
        action: &'static str,
        object: impl Into<String>,
        harmless: &'static [i32],
        flags: u16,
        message: &impl NetlinkSerializable,
    ) {
        self.labels.push(Label {
            action,
            object: object.into(),
            harmless,
            answered: false,
        });
        self.raw(flags | NLM_F_ACK, message);
    }

    /// Adds a request that is answered only when it fails (inside an nfnetlink batch).
    pub(crate) fn push_quiet(
        &mut self,
        action: &'static str,
        object: impl Into<String>,
        flags: u16,
        message: &impl NetlinkSerializable,
    ) {
        let label = Label {
            action,
            object: object.into(),
            harmless: &[],
            answered: true,
        };
        self.labels.push(label);
        self.raw(flags, message);
    }

    /// Asks for an acknowledgement of the request pushed last.
    pub(crate) fn acknowledge_last(&mut self) {
        let flags = self
            .bytes
            .get_mut(self.last + 6..)
            .and_then(<[u8]>::first_chunk_mut::<2>);
        if let (Some(flags), Some(label)) = (flags, self.labels.last_mut()) {
            *flags = (u16::from_ne_bytes(*flags) | NLM_F_ACK).to_ne_bytes();
            label.answered = false;
        }
    }

    fn raw(&mut self, flags: u16, message: &impl NetlinkSerializable) {
        let length = HEADER + message.buffer_len();
        let start = self.bytes.len();
        self.last = start;
        self.bytes.resize(start + length.next_multiple_of(4), 0);
        let mut header = NetlinkHeader::default();
        header.length = u32::try_from(length).unwrap_or(u32::MAX);
        header.message_type = message.message_type();
        header.flags = flags | NLM_F_REQUEST;
        // The sequence number is the request's index; sockets are used for one exchange at a time.
        header.sequence_number = u32::try_from(self.labels.len()).unwrap_or(u32::MAX);
        if let Some(place) = self.bytes.get_mut(start..start + length) {
            let (head, body) = place.split_at_mut(HEADER);
            header.emit(head);
            message.serialize(body);
        }
    }
}

/// A netlink socket of the namespace its creating thread was in.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl Socket {
    /// An rtnetlink socket.
    pub(crate) fn route() -> Result<Self> {
        Self::open(None) // NETLINK_ROUTE is protocol 0
    }

    /// An nfnetlink socket.
    pub(crate) fn netfilter() -> Result<Self> {
        Self::open(Some(netlink::NETFILTER))
    }

    fn open(protocol: Option<rustix::net::Protocol>) -> Result<Self> {
        let fd = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )
        .map_err(|e| socket_error("open", e.into()))?;
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            // Only the wording of errors depends on these.
            if let Err(error) = crate::sys::enable_netlink_option(fd.as_fd(), option) {
                tracing::debug!(%error, option, "netlink socket option");
            }
        }
        Ok(Self {
            fd,
            buffer: vec![0; RECEIVE_BUFFER],
        })
    }

    /// Sends a batch and reads all answers; the first error that is not harmless is returned after
    /// everything was read.
    pub(crate) fn run(&mut self, batch: Batch) -> Result<Vec<Answer>> {
        let Batch {
            bytes,
            mut labels,
            last: _,
        } = batch;
        if labels.is_empty() {
            return Ok(Vec::new());
        }
        self.send(&bytes)?;
        let mut answers = Vec::new();
        let mut failure = None;
        while let Some(received) = self.receive()? {
            for (header, payload) in Messages(self.buffer.get(..received).unwrap_or_default()) {
                let index = (header.sequence_number as usize).wrapping_sub(1);
                let Some(label) = labels.get_mut(index) else {
                    continue;
                };
                if header.message_type != NLMSG_ERROR {
                    answers.push(Answer {
                        payload: payload.to_vec(),
                    });
                    continue;
                }
                label.answered = true;
                let error = error_of(&header, payload, label);
                failure = failure.or(error);
            }
        }
        match (failure, labels.into_iter().find(|l| !l.answered)) {
            (Some(error), _) => Err(error),
            (None, Some(silent)) => Err(NetworkError::Netlink {
                action: silent.action,
                object: silent.object,
                detail: None,
                source: io::Error::other("the kernel did not answer"),
            }),
            (None, None) => Ok(answers),
        }
    }

    /// Sends one dump request and reads the whole table.
    pub(crate) fn dump(
        &mut self,
        action: &'static str,
        object: &str,
        message: &impl NetlinkSerializable,
    ) -> Result<Vec<Answer>> {
        // A table that keeps changing is read again a few times; then what was seen must do, as
        // every user of a dump is a sweep that will come again.
        for _ in 0..4 {
            let (answers, interrupted) = self.dump_once(action, object, message)?;
            if !interrupted {
                return Ok(answers);
            }
        }
        Ok(self.dump_once(action, object, message)?.0)
    }

    fn dump_once(
        &mut self,
        action: &'static str,
        object: &str,
        message: &impl NetlinkSerializable,
    ) -> Result<(Vec<Answer>, bool)> {
        let label = Label {
            action,
            object: object.to_owned(),
            harmless: &[],
            answered: false,
        };
        let mut batch = Batch {
            labels: vec![label],
            ..Batch::default()
        };
        batch.raw(NLM_F_DUMP, message);
        self.send(&batch.bytes)?;
        let (mut answers, mut interrupted, mut done) = (Vec::new(), false, false);
        while !done {
            let Some(received) = self.receive()? else {
                break;
            };
            for (header, payload) in Messages(self.buffer.get(..received).unwrap_or_default()) {
                interrupted |= header.flags & DUMP_INTERRUPTED != 0;
                match header.message_type {
                    NLMSG_DONE => done = true,
                    NLMSG_ERROR => {
                        for label in &batch.labels {
                            if let Some(error) = error_of(&header, payload, label) {
                                return Err(error);
                            }
                        }
                        done = true;
                    }
                    _ => answers.push(Answer {
                        payload: payload.to_vec(),
                    }),
                }
            }
        }
        Ok((answers, interrupted))
    }

    fn send(&self, bytes: &[u8]) -> Result<()> {
        loop {
            match rustix::net::send(&self.fd, bytes, SendFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(socket_error("send to", e.into())),
            }
        }
    }

    /// The next datagram's length in `self.buffer`, or `None` when all were read.
    fn receive(&mut self) -> Result<Option<usize>> {
        loop {
            match rustix::net::recv(&self.fd, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                Ok((n, _)) => return Ok(Some(n)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(e) => return Err(socket_error("receive from", e.into())),
            }
        }
    }
}

fn socket_error(action: &'static str, source: io::Error) -> NetworkError {
    NetworkError::Netlink {
        action,
        object: "netlink socket".into(),
        detail: None,
        source,
    }
}

/// The error an `NLMSG_ERROR` tells of; `None` for an acknowledgement or a harmless one.
fn error_of(header: &NetlinkHeader, payload: &[u8], label: &Label) -> Option<NetworkError> {
    let code = payload
        .first_chunk::<4>()
        .map_or(-libc::EPROTO, |b| i32::from_ne_bytes(*b));
    if code == 0 || label.harmless.contains(&-code) {
        return None;
    }
    // struct nlmsgerr: the code, the request's header (NETLINK_CAP_ACK: without its payload).
    let detail = (header.flags & ACK_TLVS != 0)
        .then(|| find(payload.get(4 + HEADER..).unwrap_or_default(), ERROR_TEXT))
        .flatten()
        .map(|text| {
            String::from_utf8_lossy(text)
                .trim_end_matches('\0')
                .to_owned()
        });
    Some(NetworkError::Netlink {
        action: label.action,
        object: label.object.clone(),
        detail,
        source: io::Error::from_raw_os_error(-code),
    })
}

/// The value of the first attribute of that kind.
pub(crate) fn find(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    nlas(attributes)
        .find(|(k, _)| *k == kind)
        .map(|(_, value)| value)
}

/// The attributes in `bytes` as (kind, value); ends at the first malformed one.
pub(crate) fn nlas(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(|nla| {
        let nla = nla.ok()?;
        let (kind, length) = (nla.kind(), usize::from(nla.length()));
        // `value()` borrows from the buffer object; into_inner gives the slice itself.
        Some((kind, nla.into_inner().get(4..length)?))
    })
}

/// The messages in one datagram.
pub(crate) struct Messages<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (NetlinkHeader, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let buffer = NetlinkBuffer::new_checked(self.0).ok()?;
        let mut header = NetlinkHeader::default();
        header.length = buffer.length();
        header.message_type = buffer.message_type();
        header.flags = buffer.flags();
        header.sequence_number = buffer.sequence_number();
        let length = header.length as usize;
        let payload = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((header, payload))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let label = Label { action: "x", object: String::new(), harmless: &[], answered: false };
            for (header, payload) in Messages(&bytes) {
                let _ = error_of(&header, payload, &label);
            }
            let _ = nlas(&bytes).count();
        }
    }
}
