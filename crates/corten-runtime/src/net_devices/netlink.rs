//! The few messages of rtnetlink(7) that moving a link takes.

use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

// linux/rtnetlink.h, linux/netlink.h, linux/if_link.h, linux/if_addr.h
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;
const REPLACE: u16 = 0x100;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;
const IFA_LABEL: u16 = 3;
const IFA_CACHEINFO: u16 = 6;
const IFA_FLAGS: u16 = 8;
const IFA_F_PERMANENT: u32 = 0x80;
/// What an address keeps: no duplicate detection, temporary addresses, no prefix route.
const IFA_F_KEPT: u32 = 0x2 | 0x100 | 0x200;
const IFF_UP: u32 = 0x1;
const HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;

/// A permanent address of global scope, with what is needed to set it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    family: u8,
    prefix: u8,
    flags: u32,
    attributes: Vec<(u16, Vec<u8>)>,
}

/// A socket to the routing tables of one network namespace.
#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

impl Socket {
    /// In the caller's namespace.
    pub(super) fn open() -> Result<Self, Errno> {
        // No protocol is number 0, which is NETLINK_ROUTE.
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        socket_with(family, kind, SocketFlags::CLOEXEC, None).map(Self)
    }

    /// The index of the link called `name`.
    pub(super) fn link(&self, name: &str) -> Result<i32, Errno> {
        let mut body = link_header(0, 0, 0);
        attribute(&mut body, IFLA_IFNAME, &c_string(name));
        let answers = self.request(RTM_GETLINK, REQUEST, &body)?;
        answers
            .first()
            .and_then(|answer| index(answer))
            .ok_or(Errno::NODEV)
    }

    /// The indices of all links.
    pub(super) fn links(&self) -> Result<Vec<i32>, Errno> {
        let answers = self.request(RTM_GETLINK, REQUEST | DUMP, &link_header(0, 0, 0))?;
        Ok(answers.iter().filter_map(|answer| index(answer)).collect())
    }

    /// What the spec wants preserved.
    pub(super) fn permanent_addresses(&self, link: i32) -> Result<Vec<Address>, Errno> {
        let body = [0u8; ADDRESS_HEADER];
        let answers = self.request(RTM_GETADDR, REQUEST | DUMP, &body)?;
        Ok(answers
            .iter()
            .filter_map(|answer| address_of(answer, link))
            .collect())
    }

    /// Into another namespace, with another name.
    pub(super) fn move_link(
        &self,
        link: i32,
        name: &str,
        namespace: BorrowedFd<'_>,
    ) -> Result<(), Errno> {
        let mut body = link_header(link, 0, 0);
        attribute(
            &mut body,
            IFLA_NET_NS_FD,
            &namespace.as_raw_fd().to_ne_bytes(),
        );
        attribute(&mut body, IFLA_IFNAME, &c_string(name));
        self.request(RTM_NEWLINK, REQUEST | ACK, &body).map(drop)
    }

    pub(super) fn add_address(&self, link: i32, address: &Address) -> Result<(), Errno> {
        let low = address.flags.to_le_bytes();
        let mut body = vec![
            address.family,
            address.prefix,
            low.first().copied().unwrap_or(0),
            0,
        ];
        body.extend(link.to_ne_bytes());
        for (kind, value) in &address.attributes {
            attribute(&mut body, *kind, value);
        }
        attribute(&mut body, IFA_FLAGS, &address.flags.to_ne_bytes());
        let flags = REQUEST | ACK | CREATE | REPLACE;
        self.request(RTM_NEWADDR, flags, &body).map(drop)
    }

    pub(super) fn set_up(&self, link: i32) -> Result<(), Errno> {
        let body = link_header(link, IFF_UP, IFF_UP);
        self.request(RTM_NEWLINK, REQUEST | ACK, &body).map(drop)
    }

    /// Sends one request; the bodies of all answers.
    fn request(&self, kind: u16, flags: u16, body: &[u8]) -> Result<Vec<Vec<u8>>, Errno> {
        let length = u32::try_from(HEADER + body.len()).map_err(|_| Errno::MSGSIZE)?;
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend([0; 8]);
        message.extend(body);
        rustix::io::write(&self.0, &message)?;
        let mut answers = Vec::new();
        let mut buffer = vec![0u8; 64 * 1024];
        loop {
            let count = rustix::io::retry_on_intr(|| rustix::io::read(&self.0, &mut buffer))?;
            let mut rest = buffer.get(..count).unwrap_or_default();
            while let Some((kind, answer, next)) = split(rest) {
                rest = next;
                match kind {
                    NLMSG_DONE => return Ok(answers),
                    NLMSG_ERROR => {
                        let code = answer
                            .first_chunk()
                            .map_or(0, |code| i32::from_ne_bytes(*code));
                        return match code {
                            0 => Ok(answers),
                            code => Err(Errno::from_raw_os_error(-code)),
                        };
                    }
                    _ => answers.push(answer.to_vec()),
                }
            }
            if flags & (ACK | DUMP) == 0 {
                return Ok(answers);
            }
        }
    }
}

fn link_header(link: i32, flags: u32, change: u32) -> Vec<u8> {
    let mut header = vec![0u8; 4];
    header.extend(link.to_ne_bytes());
    header.extend(flags.to_ne_bytes());
    header.extend(change.to_ne_bytes());
    header
}

fn c_string(text: &str) -> Vec<u8> {
    text.bytes().chain([0]).collect()
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(4);
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// The first message: its kind and body, and what follows.
fn split(messages: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(*messages.first_chunk()?)).ok()?;
    let kind = u16::from_ne_bytes(*messages.get(4..)?.first_chunk()?);
    let body = messages.get(HEADER..length)?;
    let next = messages
        .get(length.next_multiple_of(4)..)
        .unwrap_or_default();
    Some((kind, body, next))
}

/// The link an `ifinfomsg` or `ifaddrmsg` is about.
fn index(body: &[u8]) -> Option<i32> {
    Some(i32::from_ne_bytes(*body.get(4..)?.first_chunk()?))
}

fn address_of(body: &[u8], link: i32) -> Option<Address> {
    let [family, prefix, flags, scope, ..] = *body else {
        return None;
    };
    if index(body)? != link || scope != 0 {
        return None;
    }
    let mut address = Address {
        family,
        prefix,
        flags: u32::from(flags),
        attributes: Vec::new(),
    };
    let mut rest = body.get(ADDRESS_HEADER..)?;
    while let Some(length) = rest.first_chunk().map(|length| u16::from_ne_bytes(*length)) {
        let length = usize::from(length);
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?);
        let value = rest.get(4..length)?;
        match kind {
            IFA_FLAGS => address.flags = u32::from_ne_bytes(*value.first_chunk()?),
            // The label names the link; the lifetimes of a permanent address are endless.
            IFA_LABEL | IFA_CACHEINFO => {}
            kind => address.attributes.push((kind, value.to_vec())),
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    let permanent = address.flags & IFA_F_PERMANENT != 0;
    address.flags &= IFA_F_KEPT;
    permanent.then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses() {
        let mut body = vec![2, 24, 0x80, 0];
        body.extend(7i32.to_ne_bytes());
        attribute(&mut body, 1, &[10, 0, 0, 1]);
        attribute(&mut body, IFA_LABEL, b"eth0\0");
        attribute(&mut body, IFA_FLAGS, &0x280u32.to_ne_bytes());
        let address = address_of(&body, 7).unwrap();
        assert_eq!(
            (address.family, address.prefix, address.flags),
            (2, 24, 0x200)
        );
        assert_eq!(address.attributes, [(1, vec![10, 0, 0, 1])]);
        assert_eq!(address_of(&body, 8), None);
        // Not permanent, not global.
        let mut other = body.clone();
        other.truncate(ADDRESS_HEADER);
        other[2] = 0;
        assert_eq!(address_of(&other, 7), None);
        body[3] = 253;
        assert_eq!(address_of(&body, 7), None);
    }

    proptest! {
        #[test]
        fn any_answer(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            split(&bytes);
            address_of(&bytes, 0);
        }
    }
}
