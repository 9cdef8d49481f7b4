//! The name server of one container: answers for the names of its networks, and forwards every
//! other question to the resolvers of the host.
//!
//! RFC 1035 over UDP and TCP, EDNS (RFC 6891), as a proxy in the sense of RFC 5625: what it does not
//! answer itself passes through byte for byte but for the message's id. It keeps nothing: names are
//! asked of [`Names`] for every question, so they are right the moment they change. One thread
//! ([`serve`] runs in a `LocalSet`), whose memory is bounded whatever is sent.
//!
//! Invariants:
//! - a malformed question is answered as such or dropped, a malformed or unasked answer is not seen;
//! - an answer from outside is taken only from the address that was asked, to a socket made for this
//!   one question (so its port is random), with its random id and its question;
//! - so many questions wait for an answer from outside at the most, and so many connections are open
//!   (`forward::PENDING`, `forward::SOCKETS`, `server::CONNECTIONS`).

mod answer;
mod exchange;
mod forward;
pub mod fuzzing;
mod query;
mod reverse;
mod server;

use std::fmt;
use std::net::IpAddr;

use corten_network::NetNs;
use corten_network::resolv::Upstream;

pub use server::serve;

/// An error of whoever knows the names.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Who knows the names. Asked for every question, on the thread that serves.
pub trait Names {
    /// The addresses of those who have this name, of both families; `None` if nobody has. The name
    /// has no dot at its end, and its case is the asker's.
    ///
    /// # Errors
    /// It cannot be known now: the asker is told that the server failed.
    fn addresses(&self, name: &str) -> Result<Option<Vec<IpAddr>>, BoxError>;

    /// The name of whoever has this address.
    ///
    /// # Errors
    /// As [`addresses`](Self::addresses).
    fn name_of(&self, address: IpAddr) -> Result<Option<String>, BoxError>;

    /// Whether questions may leave: the container is on a network that is not internal.
    ///
    /// # Errors
    /// As [`addresses`](Self::addresses).
    fn may_forward(&self) -> Result<bool, BoxError>;
}

/// Where questions go that nobody here can answer.
#[derive(Debug)]
pub struct Outside {
    /// The servers, in their order.
    pub upstreams: Vec<Upstream>,
    /// The container's namespace, for those that are asked from there.
    pub namespace: NetNs,
    /// Names without a dot stay here: the asker will come again with its search domains.
    pub dotted_only: bool,
}

/// An error with those it was caused by, for the log.
struct Chain<'a>(&'a BoxError);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
