//! Where output goes besides attached clients, with nothing left open.

use std::path::PathBuf;

use super::tls::TlsFiles;

/// All the places at once; neither is no log at all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogConfig {
    /// A file of our own, which can be read again.
    pub file: Option<LogFile>,
    /// Somebody else's log.
    pub remote: Option<RemoteLog>,
}

/// A log in Docker's `json-file` format, rotated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFile {
    /// The file; rotated ones are `PATH.1`, `PATH.2`, …, compressed ones `PATH.1.gz`, ….
    pub path: PathBuf,
    /// Bytes at which it is rotated.
    pub max_size: Option<u64>,
    /// Files kept, this one included.
    pub max_file: u32,
    /// Whether rotated files are compressed.
    pub compress: bool,
    /// What is written with every record.
    pub attributes: Vec<(String, String)>,
}

/// A log that output is sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteLog {
    /// Whose.
    pub to: Remote,
    /// Whether the container waits for it when it is slow; else output is left out.
    pub blocking: bool,
    /// Bytes that may wait to be sent.
    pub buffer: usize,
}

/// Who keeps a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remote {
    /// A syslog daemon.
    Syslog(Syslog),
    /// systemd's journal.
    Journald {
        /// Its socket.
        socket: PathBuf,
        /// Fields of every entry.
        fields: Vec<(String, String)>,
    },
}

/// How a syslog daemon is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Syslog {
    /// Where it is.
    pub address: SyslogAddress,
    /// Its facility, 0 to 23.
    pub facility: u8,
    /// The form of its messages.
    pub format: SyslogFormat,
    /// Name of the program.
    pub tag: String,
    /// Name of this host, for those forms that have it.
    pub hostname: String,
}

/// Where a syslog daemon is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SyslogAddress {
    /// This host's, at one of the usual sockets.
    Local,
    /// `host:port`.
    Udp(String),
    /// `host:port`.
    Tcp(String),
    /// `host:port`, with TLS.
    Tls(String, TlsFiles),
    /// A stream socket.
    Unix(PathBuf),
    /// A datagram socket.
    Unixgram(PathBuf),
}

/// Forms of syslog messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyslogFormat {
    /// As local daemons are spoken to: no host name.
    Local,
    /// RFC 3164.
    Rfc3164,
    /// RFC 5424, to the second.
    Rfc5424,
    /// RFC 5424, to the microsecond.
    Rfc5424Micro,
}
