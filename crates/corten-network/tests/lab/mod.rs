//! A laboratory of network namespaces: a host, containers on its bridges, and a machine on its LAN.
//! Nothing touches the namespace the tests are started in.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use corten_network::*;

/// The host's address on the LAN, the LAN machine's, and the LAN.
pub const HOST: &str = "192.0.2.1";
pub const LAN: &str = "192.0.2.2";
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a connection that must not succeed is given.
const IMPATIENCE: Duration = Duration::from_millis(250);

pub struct Lab {
    pub host: NetNs,
    pub lan: NetNs,
}

impl Lab {
    /// Host and LAN machine, joined by a link; the LAN machine has a route to nothing but the LAN.
    pub fn new() -> Self {
        let lab = Self {
            host: NetNs::create().unwrap(),
            lan: NetNs::create().unwrap(),
        };
        // `ip` runs in the host; it finds the other namespace by a descriptor it inherits no more
        // than by /proc, so the link is made in the host and moved by pid of a process inside.
        lab.on_host(|| run("ip link set lo up"));
        lab.host
            .run_in(|| {
                run("ip link add lan0 type veth peer name lan1");
                run("ip addr add 192.0.2.1/24 dev lan0 && ip link set lan0 up");
                run("ip addr add 2001:db8::1/64 dev lan0 nodad");
            })
            .unwrap();
        let mut holder = lab
            .lan
            .run_in(|| Command::new("sleep").arg("60").spawn().unwrap())
            .unwrap();
        lab.on_host(|| run(&format!("ip link set lan1 netns {}", holder.id())));
        holder.kill().unwrap();
        holder.wait().unwrap();
        lab.lan
            .run_in(|| {
                run(
                    "ip link set lo up && ip addr add 192.0.2.2/24 dev lan1 && ip link set lan1 up",
                );
                run("ip addr add 2001:db8::2/64 dev lan1 nodad");
            })
            .unwrap();
        lab
    }

    pub fn on_host<T>(&self, f: impl FnOnce() -> T) -> T {
        self.host.run_in(f).unwrap()
    }

    pub fn container(&self, bridge: &BridgeSpec, n: u8, ports: &[PortMapping]) -> Container {
        let ns = NetNs::create().unwrap();
        let spec = endpoint(bridge, n, ports);
        let endpoint = self.on_host(|| connect(&ns, &spec).unwrap());
        Container {
            host: self.host.try_clone().unwrap(),
            ns,
            endpoint: Some(endpoint),
            ip: spec.address.addr(),
        }
    }

    pub fn ruleset(&self) -> String {
        self.on_host(|| output("nft list ruleset"))
    }
}

pub struct Container {
    host: NetNs,
    pub ns: NetNs,
    pub endpoint: Option<Endpoint>,
    pub ip: Ipv4Addr,
}

impl Drop for Container {
    fn drop(&mut self) {
        // The guard must act where the host side is.
        let endpoint = self.endpoint.take();
        self.host.run_in(|| drop(endpoint)).unwrap();
    }
}

pub fn bridge(name: &str, subnet: &str) -> BridgeSpec {
    let subnet: Ipv4Net = subnet.parse().unwrap();
    BridgeSpec {
        table: "corten_test".into(),
        bridge: name.into(),
        subnet,
        gateway: ipam::default_gateway(subnet),
        subnet6: None,
        gateway6: None,
        mtu: 1500,
        internal: false,
        icc: true,
    }
}

pub fn endpoint(bridge: &BridgeSpec, n: u8, ports: &[PortMapping]) -> EndpointSpec {
    let [a, b, c, _] = bridge.subnet.addr().octets();
    let ip = Ipv4Addr::new(a, b, c, n);
    EndpointSpec {
        bridge: bridge.clone(),
        host_ifname: format!("v{}{n}", bridge.bridge),
        ifname: "eth0".into(),
        address: Ipv4Net::new(ip, bridge.subnet.prefix()).unwrap(),
        address6: None,
        mac: mac_for(ip),
        ports: ports.to_vec(),
    }
}

pub fn tcp(host_ip: Option<&str>, host_port: u16, container_port: u16) -> PortMapping {
    let host_ip = host_ip.map(|ip| ip.parse().unwrap());
    PortMapping {
        proto: Proto::Tcp,
        host_ip,
        host_port,
        container_port,
    }
}

pub fn run(script: &str) {
    let status = Command::new("sh").args(["-ec", script]).status().unwrap();
    assert!(status.success(), "{script}");
}

pub fn output(script: &str) -> String {
    let out = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(
        out.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap()
}

/// A TCP server in a namespace that answers every connection with `<name> <peer address>`, and a UDP
/// one on the same port that does so for every datagram.
pub struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    pub fn start(ns: &NetNs, port: u16, name: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (tcp, udp) = ns
            .run_in(|| {
                let any = SocketAddr::from(([0, 0, 0, 0], port));
                (
                    TcpListener::bind(any).unwrap(),
                    UdpSocket::bind(any).unwrap(),
                )
            })
            .unwrap();
        tcp.set_nonblocking(true).unwrap();
        udp.set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        let (tcp_stop, udp_stop) = (stop.clone(), stop.clone());
        let (tcp_name, udp_name) = (name.to_owned(), name.to_owned());
        let tcp = std::thread::spawn(move || {
            while !tcp_stop.load(Ordering::Relaxed) {
                match tcp.accept() {
                    Ok((mut stream, peer)) => {
                        let _ = write!(stream, "{tcp_name} {}", peer.ip());
                    }
                    Err(_) => std::thread::park_timeout(Duration::from_millis(2)),
                }
            }
        });
        let udp = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while !udp_stop.load(Ordering::Relaxed) {
                if let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                    let _ = udp.send_to(format!("{udp_name} {}", peer.ip()).as_bytes(), peer);
                }
            }
        });
        Self {
            stop,
            threads: vec![tcp, udp],
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

/// What a server says to a client in `ns`; `None` if it cannot be reached.
pub fn ask(ns: &NetNs, to: &str) -> Option<String> {
    ask_within(ns, to, PATIENCE)
}

/// Asserts that a client in `ns` gets no connection.
pub fn refused(ns: &NetNs, to: &str) -> bool {
    ask_within(ns, to, IMPATIENCE).is_none()
}

fn ask_within(ns: &NetNs, to: &str, patience: Duration) -> Option<String> {
    let to: SocketAddr = to.parse().unwrap();
    ns.run_in(|| {
        let mut stream = TcpStream::connect_timeout(&to, patience).ok()?;
        stream.set_read_timeout(Some(patience)).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        (!text.is_empty()).then_some(text)
    })
    .unwrap()
}

/// The same by UDP.
pub fn ask_udp(ns: &NetNs, to: &str) -> Option<String> {
    let to: SocketAddr = to.parse().unwrap();
    let socket = ns
        .run_in(|| {
            let any: IpAddr = if to.is_ipv4() {
                Ipv4Addr::UNSPECIFIED.into()
            } else {
                "::".parse().unwrap()
            };
            UdpSocket::bind((any, 0)).unwrap()
        })
        .unwrap();
    socket.set_read_timeout(Some(PATIENCE / 4)).unwrap();
    socket.connect(to).ok()?;
    let mut buffer = [0; 64];
    for _ in 0..4 {
        socket.send(b"?").ok()?;
        if let Ok(n) = socket.recv(&mut buffer) {
            return Some(String::from_utf8_lossy(&buffer[..n]).into_owned());
        }
    }
    None
}

/// Runs `f` on `n` threads at once.
pub fn at_once<T: Send + 'static>(
    n: usize,
    f: impl Fn(usize) -> T + Send + Sync + 'static,
) -> Vec<T> {
    let (f, barrier) = (Arc::new(f), Arc::new(Barrier::new(n)));
    let threads: Vec<_> = (0..n)
        .map(|i| {
            let (f, barrier) = (f.clone(), barrier.clone());
            std::thread::spawn(move || {
                barrier.wait();
                f(i)
            })
        })
        .collect();
    threads.into_iter().map(|t| t.join().unwrap()).collect()
}

/// Polls until `f` is true.
pub fn eventually(what: &str, mut f: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !f() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
