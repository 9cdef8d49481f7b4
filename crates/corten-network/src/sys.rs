//! The unsafe corner: what rustix leaves unsafe or has no wrapper for.
#![allow(unsafe_code)]

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::thread::UnshareFlags;
use tokio::io::unix::AsyncFd;

/// `unshare(2)` of the calling thread. Only for namespaces: unsharing the descriptor table is what
/// makes the call unsafe.
pub(crate) fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    debug_assert!(!flags.contains(UnshareFlags::FILES));
    // SAFETY: only CLONE_FILES can invalidate descriptors other code relies on; callers in this
    // crate pass CLONE_NEWNET only.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// Switches on a boolean option of a netlink socket (`netlink(7)`, level `SOL_NETLINK`).
pub(crate) fn enable_netlink_option(fd: BorrowedFd<'_>, option: i32) -> io::Result<()> {
    enable(fd, libc::SOL_NETLINK, option)
}

/// Watches a descriptor on this thread's runtime.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    watch_or_keep(fd).map_err(|(_, error)| error)
}

/// The same, and the descriptor comes back when that fails.
pub(crate) fn watch_or_keep(fd: OwnedFd) -> Result<AsyncFd<OwnedFd>, (OwnedFd, io::Error)> {
    // SAFETY: an `OwnedFd` is the same open descriptor until it is dropped, which the `AsyncFd` does
    // after it has deregistered it.
    unsafe { AsyncFd::register(fd) }.map_err(|error| error.into_parts())
}

/// Has the kernel ask a program (classic BPF) which packets the socket gets.
pub(crate) fn attach_filter(
    fd: BorrowedFd<'_>,
    program: &mut [libc::sock_filter],
) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the pointer and length describe `program`, whose pointer and length describe a slice; both
    // outlive the call, which copies them.
    let rc = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            std::ptr::from_ref(&program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Switches on a boolean socket option.
fn enable(fd: BorrowedFd<'_>, level: i32, option: i32) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the pointer and length describe `on`, which outlives the call.
    let rc = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(&on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Asks a UDP socket to tell, for every datagram, which of the host's addresses it was sent to.
pub(crate) fn enable_packet_info(fd: BorrowedFd<'_>, ipv6: bool) -> io::Result<()> {
    if ipv6 {
        enable(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)
    } else {
        enable(fd, libc::IPPROTO_IP, libc::IP_PKTINFO)
    }
}

/// Room for the one control message we read or write, aligned as `cmsghdr` wants it.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// Receives one datagram: its length, its sender, and the address of ours it was sent to.
pub(crate) fn receive_from(
    fd: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<(usize, SocketAddr, Option<IpAddr>)> {
    let mut control = Control([0; 64]);
    // SAFETY: all-zero is a valid value of these plain C structures.
    let (mut name, mut header): (libc::sockaddr_storage, libc::msghdr) =
        unsafe { std::mem::zeroed() };
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    header.msg_name = std::ptr::from_mut(&mut name).cast();
    header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = control.0.len() as _;
    // SAFETY: every pointer in `header` is to a live local of the length given beside it.
    let received = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, libc::MSG_DONTWAIT) };
    let length = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    let sender =
        socket_addr(&name).ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))?;
    Ok((length, sender, local_address(&header)))
}

/// Sends one datagram, from the given address of ours.
pub(crate) fn send_from(
    fd: BorrowedFd<'_>,
    bytes: &[u8],
    to: SocketAddr,
    from: Option<IpAddr>,
) -> io::Result<usize> {
    let mut control = Control([0; 64]);
    // SAFETY: all-zero is a valid value of this plain C structure.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    let mut part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let (mut name4, mut name6);
    match to {
        SocketAddr::V4(to) => {
            name4 = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: to.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(to.ip().octets()),
                },
                sin_zero: [0; 8],
            };
            header.msg_name = std::ptr::from_mut(&mut name4).cast();
            header.msg_namelen = size_of_val(&name4) as libc::socklen_t;
        }
        SocketAddr::V6(to) => {
            name6 = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: to.port().to_be(),
                sin6_flowinfo: to.flowinfo(),
                sin6_addr: libc::in6_addr {
                    s6_addr: to.ip().octets(),
                },
                sin6_scope_id: to.scope_id(),
            };
            header.msg_name = std::ptr::from_mut(&mut name6).cast();
            header.msg_namelen = size_of_val(&name6) as libc::socklen_t;
        }
    }
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = control.0.len() as _;
    match from {
        Some(IpAddr::V4(from)) => {
            let source = libc::in_addr {
                s_addr: u32::from_ne_bytes(from.octets()),
            };
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: source,
                ipi_addr: source,
            };
            put_control(&mut header, libc::IPPROTO_IP, libc::IP_PKTINFO, info);
        }
        Some(IpAddr::V6(from)) => {
            let ipi6_addr = libc::in6_addr {
                s6_addr: from.octets(),
            };
            let info = libc::in6_pktinfo {
                ipi6_addr,
                ipi6_ifindex: 0,
            };
            put_control(&mut header, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
        }
        None => {
            header.msg_control = std::ptr::null_mut();
            header.msg_controllen = 0;
        }
    }
    // SAFETY: every pointer in `header` is to a live local of the length given beside it; sendmsg
    // does not write through `iov_base`.
    let sent = unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const header, libc::MSG_DONTWAIT) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Writes the single control message of `header`, whose control buffer must hold it.
fn put_control<T: Copy>(header: &mut libc::msghdr, level: i32, kind: i32, value: T) {
    let length = size_of::<T>() as libc::c_uint;
    // SAFETY: callers give a zeroed, aligned 64-byte control buffer; CMSG_SPACE of an in6_pktinfo (20
    // bytes), the largest value passed, is 40. CMSG_FIRSTHDR is therefore not null.
    unsafe {
        header.msg_controllen = libc::CMSG_SPACE(length) as _;
        let message = libc::CMSG_FIRSTHDR(header);
        (*message).cmsg_level = level;
        (*message).cmsg_type = kind;
        (*message).cmsg_len = libc::CMSG_LEN(length) as _;
        libc::CMSG_DATA(message).cast::<T>().write_unaligned(value);
    }
}

/// The destination address in the control messages of a received header.
fn local_address(header: &libc::msghdr) -> Option<IpAddr> {
    // SAFETY: the kernel wrote well-formed control messages into a buffer that is still alive; the
    // CMSG macros stay within msg_controllen, and a message of these types carries that structure.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while let Some(m) = message.as_ref() {
            let data = libc::CMSG_DATA(message);
            match (m.cmsg_level, m.cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                    return Some(IpAddr::from(info.ipi_addr.s_addr.to_ne_bytes()));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    return Some(IpAddr::from(info.ipi6_addr.s6_addr));
                }
                _ => message = libc::CMSG_NXTHDR(header, message),
            }
        }
    }
    None
}

fn socket_addr(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says which structure it is; sockaddr_storage is large and aligned
            // enough for every one of them.
            let name = unsafe { *std::ptr::from_ref(name).cast::<libc::sockaddr_in>() };
            let ip = IpAddr::from(name.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddr::new(ip, u16::from_be(name.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let name = unsafe { *std::ptr::from_ref(name).cast::<libc::sockaddr_in6>() };
            let (ip, port) = (name.sin6_addr.s6_addr.into(), u16::from_be(name.sin6_port));
            Some(SocketAddrV6::new(ip, port, name.sin6_flowinfo, name.sin6_scope_id).into())
        }
        _ => None,
    }
}
