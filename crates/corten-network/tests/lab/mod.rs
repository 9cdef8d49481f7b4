//! A laboratory of network namespaces: a host, containers on its bridges, and a machine on its LAN.
//! Nothing touches the namespace the tests are started in.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, missing_debug_implementations, reason = "tests")]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use corten_network::*;

const PATIENCE: Duration = Duration::from_secs(2);
/// How long a connection that must not succeed is given.
const IMPATIENCE: Duration = Duration::from_millis(250);

pub struct Lab {
    pub host: NetNs,
    pub lan: NetNs,
}

impl Lab {
    /// The same with routes to everything by the host, as an attacker on the LAN would set them.
    pub fn with_a_routing_neighbour() -> Self {
        let lab = Self::new();
        lab.on_lan(|| {
            run("ip route add default via 192.0.2.1; ip route add default via 2001:db8::1");
            loopback_by("192.0.2.1");
        });
        lab
    }

    /// Host and LAN machine, joined by a link; the LAN machine has a route to nothing but the LAN.
    pub fn new() -> Self {
        let lab = Self {
            host: NetNs::create().unwrap(),
            lan: NetNs::create().unwrap(),
        };
        let lan = format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            lab.lan.as_fd().as_raw_fd()
        );
        lab.on_host(|| {
            run("sysctl -qw net.ipv6.conf.default.accept_dad=0");
            run(&format!("ip link set lo up; ip link add lan0 type veth peer name lan1 netns {lan}"));
            run("ip addr add 192.0.2.1/24 dev lan0; ip link set lan0 up");
            run("ip addr add 2001:db8::1/64 dev lan0 nodad; ip addr add 2001:db8::3/64 dev lan0 nodad");
        });
        lab.on_lan(|| {
            run("sysctl -qw net.ipv6.conf.lan1.accept_dad=0");
            run("ip link set lo up; ip addr add 192.0.2.2/24 dev lan1; ip link set lan1 up");
            run("ip addr add 2001:db8::2/64 dev lan1 nodad");
        });
        lab
    }

    pub fn on_lan<T>(&self, f: impl FnOnce() -> T) -> T {
        self.lan.run_in(f).unwrap()
    }

    pub fn on_host<T>(&self, f: impl FnOnce() -> T) -> T {
        self.host.run_in(f).unwrap()
    }

    pub fn container(&self, bridge: &BridgeSpec, n: u8, ports: &[PortMapping]) -> Container {
        self.connect(&endpoint(bridge, n, ports))
    }

    pub fn connect(&self, spec: &EndpointSpec) -> Container {
        let ns = NetNs::create().unwrap();
        let endpoint = self.on_host(|| connect(&ns, spec).unwrap());
        let host = self.host.try_clone().unwrap();
        Container {
            host,
            ns,
            endpoint: Some(endpoint),
            ip: spec.address.map_or(Ipv4Addr::UNSPECIFIED, |net| net.addr()),
            targets: spec.targets(),
        }
    }

    pub fn ruleset(&self) -> String {
        self.on_host(|| output("nft list ruleset"))
    }

    /// The pipe of whoever listens to the firewall.
    fn post(&self) -> String {
        let namespace =
            std::fs::metadata(format!("/proc/self/fd/{}", self.host.as_fd().as_raw_fd()));
        let namespace = namespace.unwrap().ino();
        format!("/run/corten-network/corten_test.{namespace}")
    }

    /// Somebody who has the post of whoever listens to the firewall, and is stopped.
    pub fn listener_that_never_looks(&self) -> std::fs::File {
        let path = self.post();
        run(&format!(
            "mkdir -p -m 700 /run/corten-network; mkfifo -m 600 {path}"
        ));
        let pipe = std::fs::File::options()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        pipe.lock().unwrap();
        pipe
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A listener that left it to the others, of whom there are none any more.
        std::fs::remove_file(self.post()).ok();
    }
}

/// Has 127.0.0.0/8 on a neighbour instead of itself, as an attacker would, in the namespace it is called in.
pub fn loopback_by(gateway: &str) {
    run("sysctl -qw net.ipv4.conf.all.route_localnet=1; ip addr del 127.0.0.1/8 dev lo");
    run(&format!("ip route add 127.0.0.0/8 via {gateway}"));
}

pub struct Container {
    host: NetNs,
    pub ns: NetNs,
    pub endpoint: Option<Endpoint>,
    pub ip: Ipv4Addr,
    pub targets: Targets,
}

impl Drop for Container {
    fn drop(&mut self) {
        // The guard must act where the host side is.
        let endpoint = self.endpoint.take();
        self.host.run_in(|| drop(endpoint)).unwrap();
    }
}

pub fn bridge(name: &str, subnet: &str) -> BridgeSpec {
    BridgeSpec {
        subnet: Some(subnet.parse().unwrap()),
        ..BridgeSpec::new("corten_test", name)
    }
}

/// A bridge with both families.
pub fn dual(name: &str, subnet: &str, subnet6: &str) -> BridgeSpec {
    BridgeSpec {
        subnet6: Some(subnet6.parse().unwrap()),
        ..bridge(name, subnet)
    }
}

/// The n-th address of each of the bridge's subnets.
pub fn endpoint(bridge: &BridgeSpec, n: u8, ports: &[PortMapping]) -> EndpointSpec {
    let v4 = |net: Ipv4Net| {
        let [a, b, c, _] = net.addr().octets();
        net.with_addr(Ipv4Addr::new(a, b, c, n))
    };
    let v6 = |net: Ipv6Net| {
        let address = Ipv6Addr::from_bits(net.addr().to_bits() + u128::from(n));
        Ipv6Net::new(address, net.prefix()).unwrap()
    };
    let host_ifname = format!("v{}{n}", bridge.bridge);
    let driver = Driver::Bridge(bridge.clone());
    EndpointSpec {
        ports: ports.to_vec(),
        ..EndpointSpec::new(
            driver,
            host_ifname,
            bridge.subnet.map(v4),
            bridge.subnet6.map(v6),
        )
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

pub fn udp(host_port: u16, container_port: u16) -> PortMapping {
    PortMapping {
        proto: Proto::Udp,
        host_ip: None,
        host_port,
        container_port,
    }
}

/// The userland proxy of published ports, running in the host until dropped.
pub struct Proxy {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// The proxy of a container's ports, which watches the firewall as a supervisor does.
    pub fn of(lab: &Lab, container: &Container) -> Self {
        Self::of_one_of(lab, container, &[])
    }

    /// The same, of an engine that has these other bridges, too.
    pub fn of_one_of(lab: &Lab, container: &Container, bridges: &[BridgeSpec]) -> Self {
        let spec = container.endpoint.as_ref().unwrap().spec().clone();
        let watched = Some((spec.clone(), bridges.to_vec()));
        Self::serve(lab, &spec.ports, spec.targets(), watched)
    }

    pub fn start(lab: &Lab, ports: &[PortMapping], targets: Targets) -> Self {
        Self::serve(lab, ports, targets, None)
    }

    fn serve(
        lab: &Lab,
        ports: &[PortMapping],
        targets: Targets,
        watched: Option<(EndpointSpec, Vec<BridgeSpec>)>,
    ) -> Self {
        let request = |p: &PortMapping| PortRequest {
            proto: p.proto,
            host_ip: p.host_ip,
            host_ports: PortRange::single(p.host_port),
            container_port: p.container_port,
        };
        let requests: Vec<_> = ports.iter().map(request).collect();
        let mut reservation = lab.on_host(|| reserve(&requests).unwrap());
        assert_eq!(reservation.mappings(), ports);
        let host = lab.host.try_clone().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let serve = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let watch = async {
                    match watched {
                        Some((spec, bridges)) => {
                            let Driver::Bridge(bridge) = &spec.driver else {
                                panic!("{spec:?}")
                            };
                            let table = bridge.table.clone();
                            let places = || vec![spec.clone()];
                            watch_firewall(table, places, || bridges.clone(), || {}).await
                        }
                        None => std::future::pending().await,
                    }
                };
                let descriptors = Descriptors::new(512);
                let serving = reservation.serve(targets, &descriptors).unwrap();
                tokio::select! {
                    never = watch => match never {},
                    () = serving => unreachable!("it never ends"),
                    _ = stopped => {}
                }
            });
        };
        let thread = std::thread::spawn(move || host.run_in(serve).unwrap());
        Self {
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
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
                let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
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
                        let _ = write!(stream, "{tcp_name} {}", peer.ip().to_canonical());
                    }
                    Err(_) => std::thread::park_timeout(Duration::from_millis(2)),
                }
            }
        });
        let udp = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while !udp_stop.load(Ordering::Relaxed) {
                if let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                    let _ = udp.send_to(
                        format!("{udp_name} {}", peer.ip().to_canonical()).as_bytes(),
                        peer,
                    );
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
    ask_udp_within(ns, to, PATIENCE)
}

/// Asserts that a client in `ns` gets no answer by UDP.
pub fn refused_udp(ns: &NetNs, to: &str) -> bool {
    ask_udp_within(ns, to, IMPATIENCE).is_none()
}

fn ask_udp_within(ns: &NetNs, to: &str, patience: Duration) -> Option<String> {
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
    socket.set_read_timeout(Some(patience / 4)).unwrap();
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
    // Far more than it takes anywhere: a test that fails may take its time.
    let deadline = Instant::now() + Duration::from_secs(20);
    while !f() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
