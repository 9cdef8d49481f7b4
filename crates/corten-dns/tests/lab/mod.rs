//! A host and a container, joined by a link, with the name server of the one for the other. Nothing
//! touches the namespace the tests are started in.
#![allow(clippy::unwrap_used, missing_debug_implementations, reason = "tests")]
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use corten_dns::{BoxError, Names, Outside, serve};
use corten_network::resolv::{Place, Upstream};
use corten_network::{NetNs, resolver};
use domain::base::iana::{Class, Rcode, Rtype};
use domain::base::{Message, MessageBuilder, Name, Record, Rtype as Kind, Ttl};
use domain::rdata::A;
use domain::rdata::AllRecordData;
use tokio::sync::oneshot;
use tokio::task::LocalSet;

/// Where the name server is.
pub const SERVER: &str = "127.0.0.11:53";
/// How long an answer that must come may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(15);

/// Names of a test, which may change while it runs.
#[derive(Clone, Default)]
pub struct Known {
    pub names: Arc<Mutex<HashMap<String, Vec<IpAddr>>>>,
    pub pointers: Arc<Mutex<HashMap<IpAddr, String>>>,
    pub internal: bool,
}

impl Known {
    pub fn with(names: &[(&str, &[&str])]) -> Self {
        let known = Self::default();
        for (name, addresses) in names {
            known.set(name, addresses);
        }
        known
    }

    pub fn set(&self, name: &str, addresses: &[&str]) {
        let addresses: Vec<IpAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
        for address in &addresses {
            let pointer = format!("{name}.net");
            self.pointers.lock().unwrap().insert(*address, pointer);
        }
        self.names.lock().unwrap().insert(name.into(), addresses);
    }
}

impl Names for Known {
    fn addresses(&self, name: &str) -> Result<Option<Vec<IpAddr>>, BoxError> {
        if name == "broken" {
            return Err("no database".into());
        }
        let name = name.to_ascii_lowercase();
        Ok(self.names.lock().unwrap().get(&name).cloned())
    }

    fn name_of(&self, address: IpAddr) -> Result<Option<String>, BoxError> {
        Ok(self.pointers.lock().unwrap().get(&address).cloned())
    }

    fn may_forward(&self) -> Result<bool, BoxError> {
        Ok(!self.internal)
    }
}

/// The two namespaces. Addresses: 192.0.2.1 and 192.0.2.2.
pub struct Lab {
    pub host: NetNs,
    pub container: NetNs,
    stop: RefCell<Vec<(oneshot::Sender<()>, JoinHandle<()>)>>,
}

impl Lab {
    pub fn new() -> Self {
        let lab = Self {
            host: NetNs::create().unwrap(),
            container: NetNs::create().unwrap(),
            stop: RefCell::default(),
        };
        let container = lab.container.as_fd().as_raw_fd();
        let container = format!("/proc/{}/fd/{container}", std::process::id());
        lab.host
            .run_in(|| {
                run(&format!(
                    "ip link set lo up; ip link add h0 type veth peer name c0 netns {container}; \
                     ip addr add 192.0.2.1/24 dev h0; ip link set h0 up"
                ));
            })
            .unwrap();
        lab.in_container(|| {
            run("ip link set lo up; ip addr add 192.0.2.2/24 dev c0; ip link set c0 up");
        });
        lab
    }

    pub fn in_container<T>(&self, f: impl FnOnce() -> T) -> T {
        self.container.run_in(f).unwrap()
    }

    /// Starts the name server as a supervisor does: from the host.
    pub fn serve(&self, known: Known, upstreams: Vec<Upstream>, dotted_only: bool) {
        let container = self.container.try_clone().unwrap();
        let host = self.host.try_clone().unwrap();
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let life = move || {
            let sockets = resolver(&container).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            LocalSet::new().block_on(&runtime, async {
                let outside = Outside {
                    upstreams,
                    namespace: container,
                    dotted_only,
                };
                let _serving = serve(sockets, Box::new(known), outside).unwrap();
                ready.send(()).unwrap();
                let _ = stopped.await;
            });
        };
        let thread = std::thread::spawn(move || host.run_in(life).unwrap());
        is_ready.recv().unwrap();
        self.stop.borrow_mut().push((stop, thread));
    }

    /// Asks the name server from inside the container by UDP.
    pub fn ask(&self, name: &str, kind: Rtype) -> Reply {
        self.send(&question(name, kind, None))
    }

    pub fn send(&self, question: &[u8]) -> Reply {
        let socket = self.socket();
        socket.send(question).unwrap();
        reply(&socket)
    }

    pub fn socket(&self) -> UdpSocket {
        let socket = self.in_container(|| UdpSocket::bind("0.0.0.0:0").unwrap());
        socket.connect(SERVER).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    pub fn connect(&self) -> TcpStream {
        let address: SocketAddr = SERVER.parse().unwrap();
        let stream = self.in_container(|| TcpStream::connect_timeout(&address, PATIENCE).unwrap());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for (stop, thread) in self.stop.take() {
            drop(stop);
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.unwrap();
            }
        }
    }
}

/// An answer, in words.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    pub code: String,
    pub truncated: bool,
    pub edns: bool,
    pub records: Vec<String>,
    pub length: usize,
}

impl Reply {
    pub fn read(bytes: &[u8]) -> Self {
        let message = Message::from_octets(bytes).unwrap();
        assert!(message.header().qr());
        let records = message
            .answer()
            .unwrap()
            .into_records::<AllRecordData<_, _>>()
            .map(|record| {
                let record = record.unwrap();
                format!(
                    "{} {} {}",
                    record.ttl().as_secs(),
                    record.rtype(),
                    record.data()
                )
            });
        Self {
            code: message.header().rcode().to_string(),
            truncated: message.header().tc(),
            edns: message.opt().is_some(),
            records: records.collect(),
            length: bytes.len(),
        }
    }

    /// Code and records.
    pub fn said(&self) -> String {
        [std::slice::from_ref(&self.code), &self.records[..]]
            .concat()
            .join(", ")
    }
}

pub fn reply(socket: &UdpSocket) -> Reply {
    let mut buffer = vec![0; 65_535];
    let length = socket.recv(&mut buffer).unwrap();
    Reply::read(&buffer[..length])
}

pub fn exchange(stream: &mut TcpStream, question: &[u8]) -> Reply {
    let length = u16::try_from(question.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length, question].concat()).unwrap();
    read(stream)
}

pub fn read(stream: &mut TcpStream) -> Reply {
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut answer).unwrap();
    Reply::read(&answer)
}

/// A question with this size of EDNS, if any.
pub fn question(name: &str, kind: Kind, edns: Option<u16>) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_rd(true);
    builder.header_mut().set_id(0x1234);
    let mut builder = builder.question();
    let name: Name<Vec<u8>> = Name::vec_from_str(name).unwrap();
    builder.push((name, kind, Class::IN)).unwrap();
    let mut builder = builder.additional();
    if let Some(size) = edns {
        let filled = builder.opt(|opt| {
            opt.set_udp_payload_size(size);
            Ok(())
        });
        filled.unwrap();
    }
    builder.finish()
}

pub fn upstream(address: &str, place: Place) -> Upstream {
    Upstream {
        address: address.parse().unwrap(),
        place,
    }
}

/// A resolver outside, whose answers depend on the first label of the name it is asked for:
/// `silent`: none; `fails`, `refuses`: so; `big`: forty records, truncated by UDP to none;
/// `huge`: the same without saying so; `forged`: after some that are no answers; else one record with
/// an address that ends in `n`.
pub struct Outsider {
    pub asked: Arc<Mutex<Vec<String>>>,
}

impl Outsider {
    pub fn start(ns: &NetNs, address: &str, n: u8) -> Self {
        let (udp, tcp) = ns
            .run_in(|| {
                (
                    UdpSocket::bind(address).unwrap(),
                    TcpListener::bind(address).unwrap(),
                )
            })
            .unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (by_udp, by_tcp) = (asked.clone(), asked.clone());
        // Both threads end with the test's process.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length, client)) = udp.recv_from(&mut buffer) {
                for answer in answers(&buffer[..length], n, false, &by_udp) {
                    udp.send_to(&answer, client).unwrap();
                }
            }
        });
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let mut stream = stream.unwrap();
                let mut length = [0; 2];
                if stream.read_exact(&mut length).is_err() {
                    continue;
                }
                let mut question = vec![0; u16::from_be_bytes(length).into()];
                stream.read_exact(&mut question).unwrap();
                for answer in answers(&question, n, true, &by_tcp) {
                    let length = u16::try_from(answer.len()).unwrap().to_be_bytes();
                    stream.write_all(&[&length[..], &answer].concat()).unwrap();
                }
            }
        });
        Self { asked }
    }
}

fn answers(question: &[u8], n: u8, tcp: bool, asked: &Mutex<Vec<String>>) -> Vec<Vec<u8>> {
    let message = Message::from_octets(question).unwrap();
    let asked_for = message.sole_question().unwrap();
    let name = asked_for.qname().to_string();
    let transport = if tcp { "tcp" } else { "udp" };
    asked
        .lock()
        .unwrap()
        .push(format!("{transport} {name} {}", asked_for.qtype()));
    let answer = |code, count: u8| {
        let mut answer = MessageBuilder::new_vec()
            .start_answer(&message, code)
            .unwrap();
        for i in 0..count {
            let data = A::new([198, 51, 100, if count == 1 { n } else { i }].into());
            let ttl = Ttl::from_secs(60);
            answer
                .push(Record::new(asked_for.qname(), Class::IN, ttl, data))
                .unwrap();
        }
        answer
    };
    let good = answer(Rcode::NOERROR, 1).finish();
    match name.split('.').next().unwrap() {
        "silent" => vec![],
        "fails" => vec![answer(Rcode::SERVFAIL, 0).finish()],
        "refuses" => vec![answer(Rcode::REFUSED, 0).finish()],
        "none" => vec![answer(Rcode::NXDOMAIN, 0).finish()],
        "big" if !tcp => {
            let mut short = answer(Rcode::NOERROR, 0);
            short.header_mut().set_tc(true);
            vec![short.finish()]
        }
        "big" | "huge" => vec![answer(Rcode::NOERROR, 40).finish()],
        "forged" => {
            let mut other_id = good.clone();
            other_id[0] ^= 1;
            let mut other_name = good.clone();
            other_name[13] ^= 1;
            let mut no_answer = good.clone();
            no_answer[2] &= 0x7f;
            vec![
                other_id,
                other_name,
                no_answer,
                vec![],
                good[..5].to_vec(),
                good,
            ]
        }
        _ => vec![good],
    }
}

pub fn run(script: &str) {
    let status = Command::new("sh").args(["-ec", script]).status().unwrap();
    assert!(status.success(), "{script}");
}
