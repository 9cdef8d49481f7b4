//! One request to a `criu swrk` of its own: the answer, and the notices on the way to it.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::{RecvFlags, SendFlags, send};

use super::is_harmless;
use super::wire::{Message, Value, fields};
use crate::channel;
use crate::cli::CliError;
use crate::passing;

/// `CriuReqType` of rpc.proto.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Dump = 1,
    Restore = 2,
    PreDump = 4,
}

const NOTIFY: u64 = 6;

/// What CRIU says before it goes on.
#[derive(Debug)]
pub(crate) struct Notice {
    /// `post-restore`, `setup-namespaces`, ….
    pub(crate) script: String,
    /// The restored process, in the caller's pid namespace.
    pub(crate) pid: i32,
    /// With `orphan-pts-master`: the terminal.
    pub(crate) fd: Option<OwnedFd>,
}

/// Standard input, output and errors of CRIU, and of what it restores; else the caller's, where
/// it restores, and none where it saves.
pub(crate) type Streams = Option<[OwnedFd; 3]>;

/// Makes the request; `options` are asked for once CRIU runs, and get its pid.
pub(crate) fn call(
    kind: Kind,
    streams: Streams,
    options: &mut dyn FnMut(i32) -> Result<Message, CliError>,
    notified: &mut dyn FnMut(Notice) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let (ours, theirs) = channel::pair()?;
    // It keeps its number in the child.
    let io = |errno: Errno| CliError::io("criu", errno.into());
    fcntl_setfd(&theirs, FdFlags::empty()).map_err(io)?;
    let mut command = Command::new("criu");
    command.arg("swrk").arg(theirs.as_raw_fd().to_string());
    match streams {
        Some([stdin, stdout, stderr]) => {
            command.stdin(stdin).stdout(stdout).stderr(stderr);
        }
        None if kind == Kind::Restore => drop(command.stderr(Stdio::null())),
        None => drop(
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        ),
    }
    if kind != Kind::Restore {
        // Keys pressed at the caller's terminal are not for it: killed at its work, it would leave
        // processes as it has changed them. It notices by itself that its caller is gone.
        command.process_group(0);
    }
    let mut child = command.spawn().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            CliError::refused("criu is not installed (not found in PATH)")
        }
        _ => CliError::io("criu", error),
    })?;
    drop(theirs);
    let pid = i32::try_from(child.id()).unwrap_or(0);
    let answered = options(pid).and_then(|options| {
        let mut request = Message::default();
        request.number(1, kind as u64).message(2, &options);
        tell(&ours, &request)?;
        converse(kind, &ours, notified)
    });
    // At the end of the conversation it ends by itself.
    drop(ours);
    let status = child.wait().map_err(|error| CliError::io("criu", error))?;
    answered?;
    // After a preparatory dump it expects another, which does not come.
    if status.success() || kind == Kind::PreDump {
        Ok(())
    } else {
        Err(CliError::Refused(format!("criu: {status}")))
    }
}

fn converse(
    kind: Kind,
    socket: &OwnedFd,
    notified: &mut dyn FnMut(Notice) -> Result<(), CliError>,
) -> Result<(), CliError> {
    loop {
        let (packet, fd) = receive(socket)?;
        let answer = Answer::read(&packet).ok_or_else(ended)?;
        if !answer.success {
            return Err(CliError::Refused(format!(
                "criu cannot {}{}{}",
                match kind {
                    Kind::Dump | Kind::PreDump => "save the container",
                    Kind::Restore => "restore the container",
                },
                match answer.errno {
                    Some(errno) => format!(": {}", std::io::Error::from_raw_os_error(errno)),
                    None => String::new(),
                },
                match answer.message.as_deref().map(str::trim) {
                    Some(message) if !is_harmless(message) => format!(": {message}"),
                    _ => String::new(),
                },
            )));
        }
        if answer.kind != NOTIFY {
            return Ok(());
        }
        let (script, pid) = answer.notice;
        notified(Notice { script, pid, fd })?;
        let mut response = Message::default();
        response.number(1, NOTIFY).flag(3, true);
        tell(socket, &response)?;
    }
}

fn tell(socket: &OwnedFd, message: &Message) -> Result<(), CliError> {
    match send(socket, message.as_bytes(), SendFlags::NOSIGNAL) {
        Ok(_) => Ok(()),
        Err(Errno::PIPE | Errno::CONNRESET) => Err(ended()),
        Err(errno) => Err(CliError::io("criu", errno.into())),
    }
}

fn ended() -> CliError {
    CliError::refused("criu ended without an answer")
}

fn receive(socket: &OwnedFd) -> Result<(Vec<u8>, Option<OwnedFd>), CliError> {
    let mut buffer = vec![0u8; 40960];
    let mut into = [IoSliceMut::new(&mut buffer)];
    let (count, fd) = match passing::receive(socket, &mut into, RecvFlags::empty()) {
        Ok((count, mut fds)) => (count, fds.pop()),
        Err(Errno::CONNRESET) => (0, None),
        Err(errno) => return Err(CliError::io("criu", errno.into())),
    };
    buffer.truncate(count);
    Ok((buffer, fd))
}

/// `CriuResp` of rpc.proto.
#[derive(Debug, Default)]
struct Answer {
    kind: u64,
    success: bool,
    notice: (String, i32),
    errno: Option<i32>,
    message: Option<String>,
}

impl Answer {
    fn read(packet: &[u8]) -> Option<Self> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut answer = Self::default();
        for field in fields(packet).filter(|fields| !fields.is_empty())? {
            match field {
                (1, Value::Number(kind)) => answer.kind = kind,
                (2, Value::Number(success)) => answer.success = success != 0,
                (5, Value::Bytes(notice)) => {
                    for field in fields(notice)? {
                        match field {
                            (1, Value::Bytes(script)) => answer.notice.0 = text(script),
                            (2, Value::Number(pid)) => {
                                answer.notice.1 = i32::try_from(pid).unwrap_or(0);
                            }
                            _ => {}
                        }
                    }
                }
                (7, Value::Number(errno)) => {
                    answer.errno = i32::try_from(errno).ok().filter(|errno| *errno != 0);
                }
                (9, Value::Bytes(message)) => answer.message = Some(text(message)),
                _ => {}
            }
        }
        Some(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let mut notice = Message::default();
        notice.text(1, "post-restore").number(2, 42);
        let mut message = Message::default();
        message.number(1, NOTIFY).flag(2, true).message(5, &notice);
        let answer = Answer::read(message.as_bytes()).unwrap();
        assert!(answer.success);
        assert_eq!(answer.notice, ("post-restore".to_owned(), 42));
        assert!(Answer::read(b"").is_none());
    }
}
