//! The container's name server: `corten_dns`, answering from what the host knows.

use std::io;
use std::net::IpAddr;
use std::rc::Rc;

use corten_dns::{Names, Outside};
use corten_network::{NetNs, NetworkError, ResolverSockets};
use tokio::task::JoinSet;

use crate::idle;
use crate::job::{BoxError, NameServerJob};
use crate::supervise::Shared;

/// A name server that takes questions, but does not answer yet.
#[derive(Debug)]
pub(crate) struct NameServer {
    sockets: ResolverSockets,
    outside: Outside,
}

/// One that answers, until it is dropped.
pub(crate) type Serving = JoinSet<()>;

impl NameServer {
    /// Makes one in a namespace whose links are up.
    pub(crate) fn new(namespace: &NetNs, job: NameServerJob) -> Result<Self, NetworkError> {
        Ok(Self {
            sockets: corten_network::resolver(namespace)?,
            outside: Outside {
                upstreams: job.upstreams,
                namespace: namespace.try_clone()?,
                dotted_only: job.dotted_only,
            },
        })
    }

    /// Lets it answer.
    pub(crate) fn serve(self, shared: &Rc<Shared>) -> io::Result<Serving> {
        let known = Box::new(Known(shared.clone()));
        corten_dns::serve(self.sockets, known, self.outside)
    }
}

/// What the host knows now.
struct Known(Rc<Shared>);

impl Names for Known {
    fn addresses(&self, name: &str) -> Result<Option<Vec<IpAddr>>, BoxError> {
        idle::touch();
        self.0.host.borrow_mut().addresses(name)
    }

    fn name_of(&self, address: IpAddr) -> Result<Option<String>, BoxError> {
        idle::touch();
        self.0.host.borrow_mut().name_of(address)
    }

    fn may_forward(&self) -> Result<bool, BoxError> {
        self.0.host.borrow_mut().may_forward()
    }
}
