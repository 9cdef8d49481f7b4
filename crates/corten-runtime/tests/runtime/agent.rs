//! A seccomp agent for the tests, in a process of its own: takes the descriptors a runtime
//! hands over, writes down what came with them, answers `mkdir` with ENOMEDIUM and lets
//! every other call go on.
#![allow(unsafe_code)]

use std::io::{IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// Names the socket in the environment of the agent's process.
pub const SOCKET: &str = "CORTEN_RUNTIME_AGENT";

/// A running agent; killed when dropped.
pub struct Agent {
    child: Child,
    dir: tempfile::TempDir,
}

impl Agent {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .env(SOCKET, dir.path().join("agent.sock"))
            .spawn()
            .unwrap();
        let agent = Self { child, dir };
        crate::support::eventually("the agent listens", || agent.log().exists());
        agent
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("agent.log")
    }

    /// The documents received so far.
    pub fn received(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.log()).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The agent's process.
pub fn serve(socket: &Path) {
    let listener = UnixListener::bind(socket).unwrap();
    let mut log = std::fs::File::create(socket.with_extension("log")).unwrap();
    for connection in listener.incoming() {
        let (document, descriptor) = receive(&connection.unwrap());
        writeln!(log, "{document}").unwrap();
        std::thread::spawn(move || answer(&descriptor));
    }
}

fn receive(connection: &UnixStream) -> (String, OwnedFd) {
    let mut text = Vec::new();
    let mut descriptor = None;
    loop {
        let mut buffer = [0u8; 512];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let count = recvmsg(connection, &mut parts, &mut ancillary, flags).unwrap();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                descriptor = fds.last();
            }
        }
        if count.bytes == 0 {
            break;
        }
        text.extend_from_slice(&buffer[..count.bytes]);
    }
    (String::from_utf8(text).unwrap(), descriptor.unwrap())
}

/// `struct seccomp_notif`.
#[repr(C)]
struct Notification {
    id: u64,
    pid: u32,
    flags: u32,
    number: i32,
    arch: u32,
    pointer: u64,
    args: [u64; 6],
}

/// `struct seccomp_notif_resp`.
#[repr(C)]
struct Response {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

const RECEIVE: u64 = 0xc050_2100; // SECCOMP_IOCTL_NOTIF_RECV
const SEND: u64 = 0xc018_2101; // SECCOMP_IOCTL_NOTIF_SEND
const CONTINUE: u32 = 1; // SECCOMP_USER_NOTIF_FLAG_CONTINUE

fn answer(descriptor: &OwnedFd) {
    loop {
        // SAFETY: plain data, and the kernel wants it zeroed.
        let mut call: Notification = unsafe { std::mem::zeroed() };
        // SAFETY: the structure is the one this request fills.
        let result = unsafe { libc::ioctl(descriptor.as_raw_fd(), RECEIVE, &raw mut call) };
        if result != 0 {
            match std::io::Error::last_os_error().raw_os_error() {
                Some(libc::EINTR | libc::ENOENT) => continue,
                // Nobody is left who uses the filter.
                _ => return,
            }
        }
        let refused = i64::from(call.number) == libc::SYS_mkdir;
        let response = Response {
            id: call.id,
            value: 0,
            error: if refused { -libc::ENOMEDIUM } else { 0 },
            flags: if refused { 0 } else { CONTINUE },
        };
        // SAFETY: the structure is the one this request reads.
        unsafe { libc::ioctl(descriptor.as_raw_fd(), SEND, &raw const response) };
    }
}
