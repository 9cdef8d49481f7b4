//! Syslog: the forms of its messages, and the sockets they go through.

use std::io::{self, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::Stream;
use super::config::{Syslog, SyslogAddress, SyslogFormat};
use super::tls::Tls;
use crate::look_up::Addresses;

/// The sockets of a host's own daemon.
const LOCAL: [&str; 3] = ["/dev/log", "/var/run/syslog", "/var/run/log"];
/// How long a connection may take.
const PATIENCE: Duration = Duration::from_secs(10);

const ERROR: u8 = 3;
const INFO: u8 = 6;

/// A connection, not blocking.
pub(super) enum Connection {
    Udp(UdpSocket),
    Tcp(TcpStream),
    Tls(Tls),
    Unix(UnixStream),
    Unixgram(UnixDatagram),
}

/// Connects. Others are served meanwhile.
pub(super) async fn connect(address: &SyslogAddress, known: &Addresses) -> io::Result<Connection> {
    let place = match address {
        SyslogAddress::Local => return local().await,
        SyslogAddress::Udp(to) => format!("udp://{to}"),
        SyslogAddress::Tcp(to) => format!("tcp://{to}"),
        SyslogAddress::Tls(to, _) => format!("tcp+tls://{to}"),
        SyslogAddress::Unix(path) => format!("unix://{}", path.display()),
        SyslogAddress::Unixgram(path) => format!("unixgram://{}", path.display()),
    };
    dial(address, known).await.map_err(|error| {
        let reason = match error.raw_os_error().map(|_| error.kind()) {
            Some(io::ErrorKind::ConnectionRefused) => "connection refused".to_owned(),
            Some(io::ErrorKind::NotFound) => "no such file or directory".to_owned(),
            _ => error.to_string(),
        };
        io::Error::new(error.kind(), format!("syslog at {place}: {reason}"))
    })
}

async fn dial(address: &SyslogAddress, known: &Addresses) -> io::Result<Connection> {
    let connection = match address {
        SyslogAddress::Local => return local().await,
        SyslogAddress::Udp(to) => {
            let target = known.of(to).await?;
            let any = if target.is_ipv4() {
                "0.0.0.0:0"
            } else {
                "[::]:0"
            };
            let socket = UdpSocket::bind(any)?;
            socket.connect(target)?;
            socket.set_nonblocking(true)?;
            Connection::Udp(socket)
        }
        SyslogAddress::Tcp(to) => {
            let connecting = tokio::net::TcpStream::connect(known.of(to).await?);
            let stream = tokio::time::timeout(PATIENCE, connecting).await??;
            Connection::Tcp(stream.into_std()?)
        }
        SyslogAddress::Tls(to, files) => {
            let target = known.of(to).await?;
            let connecting = async {
                let stream = tokio::net::TcpStream::connect(target).await?;
                Tls::agree(stream, to, files).await
            };
            Connection::Tls(tokio::time::timeout(PATIENCE, connecting).await??)
        }
        SyslogAddress::Unix(path) => stream(path).await?,
        SyslogAddress::Unixgram(path) => datagrams(path)?,
    };
    Ok(connection)
}

/// A daemon that accepts nobody is an error at once.
async fn stream(path: &Path) -> io::Result<Connection> {
    let stream = tokio::net::UnixStream::connect(path).await?;
    Ok(Connection::Unix(stream.into_std()?))
}

fn datagrams(path: &Path) -> io::Result<Connection> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    socket.set_nonblocking(true)?;
    Ok(Connection::Unixgram(socket))
}

async fn local() -> io::Result<Connection> {
    for path in LOCAL.map(Path::new) {
        if let Ok(found) = datagrams(path) {
            return Ok(found);
        }
        if let Ok(found) = stream(path).await {
            return Ok(found);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        "no syslog daemon listens on this host (/dev/log)",
    ))
}

impl Connection {
    pub(super) fn is_datagrams(&self) -> bool {
        matches!(self, Self::Udp(_) | Self::Unixgram(_))
    }

    /// Sends what it has kept, and says that nothing follows, where there is such a thing.
    pub(super) fn end(&mut self) -> io::Result<()> {
        match self {
            Self::Tls(tls) => tls.end(),
            Self::Udp(_) | Self::Unixgram(_) | Self::Tcp(_) | Self::Unix(_) => Ok(()),
        }
    }

    /// Sends a message; how much of it has gone.
    pub(super) fn send(&mut self, message: &[u8]) -> io::Result<usize> {
        match self {
            Self::Udp(socket) => socket.send(message),
            Self::Unixgram(socket) => socket.send(message),
            Self::Tcp(stream) => stream.write(message),
            Self::Tls(tls) => tls.send(message),
            Self::Unix(stream) => stream.write(message),
        }
    }
}

/// One message, with its newline.
pub(super) fn message(to: &Syslog, stream: Stream, line: &[u8], at: Timestamp) -> Vec<u8> {
    let severity = match stream {
        Stream::Stdout => INFO,
        Stream::Stderr => ERROR,
    };
    let priority = u32::from(to.facility) * 8 + u32::from(severity);
    let (tag, host, pid) = (&to.tag, &to.hostname, std::process::id());
    let local = at.to_zoned_datetime(TimeZone::system());
    let stamp = || local.strftime("%b %e %H:%M:%S").to_string();
    let rfc5424 = |time: String| format!("<{priority}>1 {time} {host} {tag} {pid} {tag} - ");
    let head = match to.format {
        SyslogFormat::Local => format!("<{priority}>{} {tag}[{pid}]: ", stamp()),
        SyslogFormat::Rfc3164 => format!("<{priority}>{} {host} {tag}[{pid}]: ", stamp()),
        SyslogFormat::Rfc5424 => rfc5424(local.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()),
        SyslogFormat::Rfc5424Micro => {
            rfc5424(local.strftime("%Y-%m-%dT%H:%M:%S.%6f%:z").to_string())
        }
    };
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let whole = [head.as_bytes(), line, b"\n"].concat();
    match (&to.address, to.format) {
        // RFC 5425, as Docker does it.
        (SyslogAddress::Tls(..), SyslogFormat::Rfc5424 | SyslogFormat::Rfc5424Micro) => {
            [format!("{} ", whole.len()).as_bytes(), &whole].concat()
        }
        _ => whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(format: SyslogFormat, stream: Stream) -> String {
        let to = Syslog {
            address: SyslogAddress::Local,
            facility: 3,
            format,
            tag: "web".to_owned(),
            hostname: "host".to_owned(),
        };
        let at = "2024-01-05T06:07:08.123456789Z".parse().unwrap();
        let bytes = message(&to, stream, b"hello\n", at);
        let pid = std::process::id().to_string();
        String::from_utf8(bytes).unwrap().replace(&pid, "PID")
    }

    #[test]
    fn messages() {
        use SyslogFormat::{Local, Rfc3164, Rfc5424, Rfc5424Micro};
        // In the host's time zone, whichever that is: its digits are not compared.
        let shape = |text: String| {
            let digits = |c: char| if c.is_ascii_digit() { '0' } else { c };
            text.replace('-', "+")
                .replace('Z', "+00:00")
                .chars()
                .map(digits)
                .collect::<String>()
        };
        for (format, stream, expected) in [
            (
                Local,
                Stream::Stdout,
                "<30>Jan  5 06:07:08 web[PID]: hello\n",
            ),
            (
                Rfc3164,
                Stream::Stderr,
                "<27>Jan  5 06:07:08 host web[PID]: hello\n",
            ),
            (
                Rfc5424,
                Stream::Stdout,
                "<30>1 2024-01-05T06:07:08+00:00 host web PID web - hello\n",
            ),
            (
                Rfc5424Micro,
                Stream::Stderr,
                "<27>1 2024-01-05T06:07:08.123456+00:00 host web PID web - hello\n",
            ),
        ] {
            let told = text(format, stream);
            let priority = told.split_once('>').unwrap().0;
            assert_eq!(priority, expected.split_once('>').unwrap().0);
            assert_eq!(shape(told), shape(expected.to_owned()), "{format:?}");
        }
    }

    #[tokio::test]
    async fn datagrams_and_streams_arrive() {
        let known = Addresses::default();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let daemon = UnixDatagram::bind(&path).unwrap();
        let mut connection = connect(&SyslogAddress::Unixgram(path.clone()), &known)
            .await
            .unwrap();
        assert_eq!(connection.send(b"one\n").unwrap(), 4);
        let mut buffer = [0; 16];
        assert_eq!(daemon.recv(&mut buffer).unwrap(), 4);
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = udp.local_addr().unwrap().to_string();
        connect(&SyslogAddress::Udp(address), &known)
            .await
            .unwrap()
            .send(b"two\n")
            .unwrap();
        assert_eq!(udp.recv(&mut buffer).unwrap(), 4);
        let none = SyslogAddress::Unix(dir.path().join("none"));
        assert!(connect(&none, &known).await.is_err());
    }
}
