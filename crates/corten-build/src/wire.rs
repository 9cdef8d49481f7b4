//! What the builder and the process around RUN steps say to each other over a socket: a job with
//! descriptors (the root, standard output and error, what is bound) there, an outcome back, and
//! so on. The builder's end closing (it died, or the build was cancelled, or there is no more to
//! do) ends the process, and the step it is at.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use corten_network::EndpointSpec;
use corten_oci::runtime_spec::Spec;
use corten_runtime::passing;
use rustix::net::RecvFlags;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Larger messages are not believed.
const LIMIT: u32 = 64 << 20;

/// One RUN step.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StepJob {
    /// `build-` and 16 hex digits.
    pub(crate) id: String,
    pub(crate) spec: Spec,
    pub(crate) network: JobNetwork,
    /// Where the step after this one will be on the bridge: to be made ready when this one is
    /// done, while the builder makes its layer.
    pub(crate) next: Option<Box<EndpointSpec>>,
    /// Its control group.
    pub(crate) cgroup: String,
    /// Which of the document's mounts the descriptors behind those of the streams are of.
    pub(crate) opened: Vec<usize>,
    /// Its streams are a terminal: what stands for standard output is a socket, over which the
    /// terminal's other side comes back.
    pub(crate) terminal: bool,
    /// Where what its hooks are shown may be put, if it has any.
    pub(crate) bundle: PathBuf,
}

/// Descriptors beside a message, at most.
const MOST: usize = 64;

/// Its network.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum JobNetwork {
    None,
    Host,
    Bridge(Box<EndpointSpec>),
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// The command ended with this status, 128 and the signal's number if it was killed.
    Ended {
        code: u8,
        /// The out-of-memory killer struck.
        oom: bool,
    },
    /// The command could not be started; the shell's code where there is one.
    Failed { message: String, code: Option<u8> },
}

fn length(json: &[u8]) -> io::Result<[u8; 4]> {
    let length = u32::try_from(json.len()).map_err(io::Error::other)?;
    Ok(length.to_be_bytes())
}

/// Sends a message, with descriptors beside it.
pub(crate) fn send_with_fds(
    socket: &UnixStream,
    message: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let json = serde_json::to_vec(message)?;
    if fds.len() > MOST {
        let most = MOST - 3; // beside the root and the streams
        return Err(io::Error::other(format!(
            "more than {most} mounts in a step"
        )));
    }
    let length = length(&json)?;
    if passing::send(socket, &[IoSlice::new(&length)], fds)? != length.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    let mut socket = socket;
    socket.write_all(&json)
}

/// Receives what [`send_with_fds`] sent.
pub(crate) fn receive_with_fds<T: DeserializeOwned>(
    socket: &UnixStream,
) -> io::Result<(T, Vec<OwnedFd>)> {
    let mut length = [0; 4];
    let mut into = [IoSliceMut::new(&mut length)];
    let (bytes, fds) = passing::receive(socket, &mut into, RecvFlags::WAITALL)?;
    if bytes != length.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((body(socket, length)?, fds))
}

/// Sends a message.
pub(crate) fn send(mut socket: &UnixStream, message: &impl Serialize) -> io::Result<()> {
    let json = serde_json::to_vec(message)?;
    socket.write_all(&length(&json)?)?;
    socket.write_all(&json)
}

/// Receives a message; an end of the stream instead of one is `UnexpectedEof`.
pub(crate) fn receive<T: DeserializeOwned>(mut socket: &UnixStream) -> io::Result<T> {
    let mut length = [0; 4];
    socket.read_exact(&mut length)?;
    body(socket, length)
}

fn body<T: DeserializeOwned>(mut socket: &UnixStream, length: [u8; 4]) -> io::Result<T> {
    let length = u32::from_be_bytes(length);
    if length > LIMIT {
        return Err(io::Error::other("a message that is too large"));
    }
    let mut json = vec![0; length as usize];
    socket.read_exact(&mut json)?;
    Ok(serde_json::from_slice(&json)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn messages_and_descriptors_travel() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let outcome = Outcome::Ended {
            code: 3,
            oom: false,
        };
        send_with_fds(&ours, &outcome, &[file.as_fd(); 3]).unwrap();
        assert!(send_with_fds(&ours, &outcome, &[file.as_fd(); MOST + 1]).is_err());
        send(&ours, &outcome).unwrap();
        drop(ours);
        let (first, fds) = receive_with_fds::<Outcome>(&theirs).unwrap();
        assert_eq!((first, fds.len()), (outcome.clone(), 3));
        assert_eq!(receive::<Outcome>(&theirs).unwrap(), outcome);
        let end = receive::<Outcome>(&theirs).unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
    }
}
