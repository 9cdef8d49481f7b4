//! A connection to a systemd instance: blocking, no threads (the runtime is single-threaded
//! until the container's process exists), for the few calls that control groups need.
//!
//! systemd's private socket speaks D-Bus without a bus between; it is what `systemctl` uses
//! as root and needs no dbus-daemon. Where it is not to be had, the bus is asked.

use std::env;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::SystemdError;
use super::wire::{Body, Call, FIXED, Message, Value, Writer, message_length, parse};

/// How long systemd may take for anything.
const TIMEOUT: Duration = Duration::from_secs(30);

/// An interface of an object.
#[derive(Debug, Clone, Copy)]
struct Peer {
    destination: &'static str,
    path: &'static str,
    interface: &'static str,
}

const MANAGER: Peer = Peer {
    destination: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
};
const MANAGER_PROPERTIES: Peer = Peer {
    interface: "org.freedesktop.DBus.Properties",
    ..MANAGER
};
const BUS: Peer = Peer {
    destination: "org.freedesktop.DBus",
    path: "/org/freedesktop/DBus",
    interface: "org.freedesktop.DBus",
};

/// A job that has ended: its object path and its result.
type Job = (String, String);

/// An authenticated connection.
#[derive(Debug)]
pub(super) struct Bus {
    stream: UnixStream,
    serial: u32,
    deadline: Instant,
    /// Bytes received that nobody has looked at yet.
    input: Vec<u8>,
    /// Ended jobs nobody has asked for yet.
    ended: Vec<Job>,
}

impl Bus {
    /// To the host's systemd or, with `user`, the caller's own.
    pub(super) fn connect(user: bool) -> Result<Self, SystemdError> {
        let mut tried = Vec::new();
        for (socket, private) in sockets(user) {
            // A bus without systemd on it is as good as none.
            let bus = UnixStream::connect(&socket).map_err(SystemdError::from);
            match bus.and_then(|stream| Self::open(stream, private)) {
                Ok(bus) => return Ok(bus),
                Err(error) => tried.push(format!("{}: {error}", socket.display())),
            }
        }
        Err(SystemdError::Unreachable(tried.join("; ")))
    }

    /// Authenticates; on a bus (not `private`) also asks to be told of jobs.
    pub(super) fn open(stream: UnixStream, private: bool) -> Result<Self, SystemdError> {
        let mut bus = Self {
            stream,
            serial: 0,
            deadline: Instant::now() + TIMEOUT,
            input: Vec::new(),
            ended: Vec::new(),
        };
        // Who we are, the socket tells: no name need be given. All at once, as systemd's own
        // client does it: its server overlooks a message that comes together with BEGIN.
        bus.send(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n")?;
        for expected in ["DATA", "OK"] {
            let line = bus.line()?;
            if line.split(' ').next() != Some(expected) {
                return Err(SystemdError::Refused {
                    call: "AUTH",
                    name: String::new(),
                    text: line,
                });
            }
        }
        if !private {
            bus.call(BUS, "Hello", "", Writer::default())?;
            let mut rule = Writer::default();
            rule.string(&format!(
                "type='signal',sender='{}',interface='{}',member='JobRemoved'",
                MANAGER.destination, MANAGER.interface
            ));
            bus.call(BUS, "AddMatch", "s", rule)?;
            bus.call(MANAGER, "Subscribe", "", Writer::default())?;
        }
        Ok(bus)
    }

    /// Starts a transient unit and waits until it is there.
    pub(super) fn start_transient_unit(
        &mut self,
        name: &str,
        properties: &[(&str, Value)],
    ) -> Result<(), SystemdError> {
        let mut body = Writer::default();
        body.string(name);
        body.string("replace");
        body.properties(properties);
        body.array(8, |_| {}); // no auxiliary units
        self.job("StartTransientUnit", "ssa(sv)a(sa(sv))", body, name)
    }

    /// Stops a unit and waits until it is gone.
    pub(super) fn stop_unit(&mut self, name: &str) -> Result<(), SystemdError> {
        let mut body = Writer::default();
        body.string(name);
        body.string("replace");
        self.job("StopUnit", "ss", body, name)
    }

    /// Lets go of a unit that has failed.
    pub(super) fn reset_failed(&mut self, name: &str) -> Result<(), SystemdError> {
        let mut body = Writer::default();
        body.string(name);
        self.call(MANAGER, "ResetFailedUnit", "s", body).map(drop)
    }

    /// Changes a running unit until the next boot.
    pub(super) fn set_properties(
        &mut self,
        name: &str,
        properties: &[(&str, Value)],
    ) -> Result<(), SystemdError> {
        let mut body = Writer::default();
        body.string(name);
        body.u32(1); // a boolean: at run time only
        body.properties(properties);
        self.call(MANAGER, "SetUnitProperties", "sba(sv)", body)
            .map(drop)
    }

    /// A property of the manager that is a string: `Version`, `ControlGroup`.
    pub(super) fn manager_property(&mut self, name: &str) -> Result<String, SystemdError> {
        let mut body = Writer::default();
        body.string(MANAGER.interface);
        body.string(name);
        let mut reply = self.call(MANAGER_PROPERTIES, "Get", "ss", body)?;
        if !reply.is("v") || reply.signature()? != "s" {
            return Err(SystemdError::Unexpected("Get"));
        }
        Ok(reply.string()?)
    }

    fn job(
        &mut self,
        member: &'static str,
        signature: &str,
        body: Writer,
        unit: &str,
    ) -> Result<(), SystemdError> {
        let mut reply = self.call(MANAGER, member, signature, body)?;
        if !reply.is("o") {
            return Err(SystemdError::Unexpected(member));
        }
        let job = reply.string()?;
        let result = loop {
            if let Some(at) = self.ended.iter().position(|(ended, _)| *ended == job) {
                break self.ended.swap_remove(at).1;
            }
            self.receive()?; // keeps what it says of jobs
        };
        if result == "done" {
            return Ok(());
        }
        Err(SystemdError::Job {
            unit: unit.to_owned(),
            result,
        })
    }

    fn call(
        &mut self,
        peer: Peer,
        member: &'static str,
        signature: &str,
        body: Writer,
    ) -> Result<Body, SystemdError> {
        let call = Call {
            destination: peer.destination,
            path: peer.path,
            interface: peer.interface,
            member,
            signature,
        };
        self.deadline = Instant::now() + TIMEOUT;
        self.serial += 1;
        let serial = self.serial;
        self.send(&call.message(serial, body))?;
        loop {
            match self.receive()? {
                Message::Return { to, body } if to == serial => return Ok(body),
                Message::Error { to, name, mut body } if to == serial => {
                    let text = if body.is("s") {
                        body.string()?
                    } else {
                        String::new()
                    };
                    return Err(SystemdError::Refused {
                        call: member,
                        name,
                        text,
                    });
                }
                _ => {}
            }
        }
    }

    /// The next message. What it says of ended jobs is kept.
    fn receive(&mut self) -> Result<Message, SystemdError> {
        let fixed = loop {
            if let Some(fixed) = self.input.first_chunk::<FIXED>() {
                break *fixed;
            }
            self.fill()?;
        };
        let length = message_length(&fixed)?;
        while self.input.len() < length {
            self.fill()?;
        }
        let rest = self.input.split_off(length);
        let bytes = std::mem::replace(&mut self.input, rest);
        let mut message = parse(&bytes)?;
        if let Message::Signal { member, body } = &mut message
            && member == "JobRemoved"
            && body.is("uoss")
        {
            body.u32()?;
            let job = body.string()?;
            let _unit = body.string()?;
            self.ended.push((job, body.string()?));
        }
        Ok(message)
    }

    /// A line of the authentication.
    fn line(&mut self) -> Result<String, SystemdError> {
        loop {
            if let Some(end) = self.input.windows(2).position(|two| two == b"\r\n") {
                let rest = self.input.split_off(end + 2);
                let line = std::mem::replace(&mut self.input, rest);
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            if self.input.len() > 1024 {
                return Err(SystemdError::Unexpected("AUTH"));
            }
            self.fill()?;
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), SystemdError> {
        self.stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(self.stream.write_all(bytes)?)
    }

    /// Waits for more input.
    fn fill(&mut self) -> Result<(), SystemdError> {
        let mut buffer = [0; 4096];
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(SystemdError::Timeout);
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(SystemdError::Closed),
                Ok(count) => {
                    self.input.extend(buffer.iter().take(count));
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Err(SystemdError::Timeout);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Where systemd may be, and whether it is systemd itself that listens there.
fn sockets(user: bool) -> Vec<(PathBuf, bool)> {
    if !user {
        let bus = address("DBUS_SYSTEM_BUS_ADDRESS");
        return vec![
            ("/run/systemd/private".into(), true),
            (
                bus.unwrap_or_else(|| "/run/dbus/system_bus_socket".into()),
                false,
            ),
        ];
    }
    let mut sockets = Vec::new();
    if let Some(run) = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
        sockets.push((run.join("systemd/private"), true));
        sockets.push((run.join("bus"), false));
    }
    if let Some(path) = address("DBUS_SESSION_BUS_ADDRESS") {
        sockets.push((path, false));
    }
    sockets
}

/// `unix:path=/run/…,guid=…;…` of the environment.
fn address(variable: &str) -> Option<PathBuf> {
    let value = env::var(variable).ok()?;
    value.split(';').find_map(|address| {
        let keys = address.strip_prefix("unix:")?;
        let path = keys.split(',').find_map(|key| key.strip_prefix("path="))?;
        Some(Path::new(path).to_owned())
    })
}
