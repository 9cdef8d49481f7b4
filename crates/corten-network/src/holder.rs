//! Who holds a port: the socket's inode in `/proc/net/{tcp,udp}[6]` (`proc_net(5)`), then the process
//! with a descriptor of it. A best effort for an error message, so every failure is "unknown".

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::{fs, process};

use crate::ports::Proto;

/// `TCP_LISTEN` in the state column; an unconnected UDP socket shows as `TCP_CLOSE`.
const LISTEN: &str = "0A";
const CLOSE: &str = "07";

/// `process nginx, pid 412`, or `None` if it cannot be found out or is this process.
pub(crate) fn find(wanted: SocketAddr, proto: Proto) -> Option<String> {
    let inodes: Vec<String> = ["", "6"]
        .iter()
        .filter_map(|six| fs::read_to_string(format!("/proc/thread-self/net/{proto}{six}")).ok())
        .flat_map(|table| {
            table
                .lines()
                .filter_map(|l| row(l, wanted, proto))
                .collect::<Vec<_>>()
        })
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let pid = fs::read_dir("/proc")
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != process::id())
        .find(|pid| has_any(*pid, &inodes))?;
    if let Ok(line) = fs::read(format!("/proc/{pid}/cmdline"))
        && let Some(container) = supervised(&String::from_utf8_lossy(&line))
    {
        return Some(format!("{container}, pid {pid}"));
    }
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(format!("process {}, pid {pid}", name.trim_end()))
}

/// What the command line of a container's supervisor, of whatever engine, says of its container.
fn supervised(line: &str) -> Option<String> {
    let words: Vec<&str> = line.trim_end_matches('\0').split('\0').collect();
    let [_, "supervise", "--root", root, id] = words[..] else {
        return None;
    };
    let short = id.get(..12)?;
    Some(format!("container {short} of the engine at {root}"))
}

fn has_any(pid: u32, sockets: &[String]) -> bool {
    fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|fds| {
        fds.flatten()
            .filter_map(|fd| fs::read_link(fd.path()).ok())
            .any(|target| {
                target
                    .to_str()
                    .is_some_and(|t| sockets.iter().any(|s| s == t))
            })
    })
}

/// Where sockets wait for that protocol, by the tables in that directory (`/proc/PID/net`).
pub(crate) fn waiting(tables: &str, proto: Proto) -> Vec<SocketAddr> {
    ["", "6"]
        .iter()
        .filter_map(|six| fs::read_to_string(format!("{tables}/{proto}{six}")).ok())
        .flat_map(|table| {
            let rows = table.lines().filter_map(|line| socket(line, proto));
            rows.map(|(address, _)| address).collect::<Vec<_>>()
        })
        .collect()
}

/// The inode in a row, if its socket is in the way of `wanted`.
fn row(line: &str, wanted: SocketAddr, proto: Proto) -> Option<String> {
    let (address, inode) = socket(line, proto)?;
    (address.port() == wanted.port() && clash(address.ip(), wanted.ip())).then_some(inode)
}

/// The address of a row's socket and its inode, if it waits.
fn socket(line: &str, proto: Proto) -> Option<(SocketAddr, String)> {
    let columns: Vec<&str> = line.split_ascii_whitespace().collect();
    let (address, port) = columns.get(1)?.split_once(':')?;
    let address = parse_address(address)?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let waits = *columns.get(3)? == if proto == Proto::Udp { CLOSE } else { LISTEN };
    let inode = waits.then(|| columns.get(9).map(|i| (*i).to_owned()))?;
    Some((SocketAddr::new(address, port), inode?))
}

/// Do two local addresses exclude each other? (A wildcard `::` may take IPv4 as well.)
fn clash(held: IpAddr, wanted: IpAddr) -> bool {
    let mapped = held == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let same_family = held.is_ipv4() == wanted.is_ipv4();
    mapped || (same_family && (held == wanted || held.is_unspecified() || wanted.is_unspecified()))
}

/// Addresses are printed as 32-bit words in the machine's byte order.
fn parse_address(text: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        u32::from_str_radix(text.get(at..at + 8)?, 16)
            .ok()
            .map(u32::to_ne_bytes)
    };
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            Some(Ipv6Addr::from(<[u8; 16]>::try_from(words.concat()).ok()?).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rows() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0";
        for (wanted, found) in [
            ("127.0.0.1:8080", true),
            ("0.0.0.0:8080", true),
            ("127.0.0.2:8080", false),
            ("127.0.0.1:8081", false),
            ("[::]:8080", false),
        ] {
            let got = row(line, wanted.parse().unwrap(), Proto::Tcp);
            assert_eq!(got.as_deref(), found.then_some("4711"), "{wanted}");
        }
        assert_eq!(
            row(line, "127.0.0.1:8080".parse().unwrap(), Proto::Udp),
            None
        );
        let six = "1: 00000000000000000000000001000000:0050 x 0A a b c d e 12";
        assert_eq!(
            row(six, "[::1]:80".parse().unwrap(), Proto::Tcp).as_deref(),
            Some("12")
        );
    }

    #[test]
    fn containers_of_other_engines() {
        let id = "ab".repeat(32);
        let line = format!("/proc/self/exe\0supervise\0--root\0/var/lib/x\0{id}\0");
        let found = supervised(&line);
        let wanted = "container abababababab of the engine at /var/lib/x";
        assert_eq!(found.as_deref(), Some(wanted));
        assert_eq!(supervised("nginx\0-g\0daemon off;\0"), None);
        assert_eq!(supervised("a\0supervise\0--root\0/x\0short\0"), None);
    }

    proptest! {
        #[test]
        fn never_panics(line in "[0-9A-Fa-f: é]{0,80}") {
            let _ = row(&line, "127.0.0.1:80".parse().unwrap(), Proto::Tcp);
        }
    }
}
