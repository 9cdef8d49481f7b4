//! The container's name server: `corten_dns`, answering from what the host knows.

use std::cell::Cell;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use corten_dns::{Names, Outside};
use corten_network::{NetNs, NetworkError, ResolverSockets};
use tokio::task::JoinSet;

use crate::idle;
use crate::job::{BoxError, NameServerJob};
use crate::supervise::Shared;

/// How long after a question the code that answers stays in memory: others often follow, and fetching it
/// again takes longer than the answer.
const QUIET: Duration = Duration::from_secs(30);

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
        let known = Known {
            shared: shared.clone(),
            asked: Rc::new(Cell::new(Instant::now())),
            awake: Rc::default(),
        };
        corten_dns::serve(self.sockets, Box::new(known), self.outside)
    }
}

/// What the host knows now.
struct Known {
    shared: Rc<Shared>,
    /// When it was asked last.
    asked: Rc<Cell<Instant>>,
    /// Memory will be given back when there have been no questions for [`QUIET`].
    awake: Rc<Cell<bool>>,
}

impl Known {
    fn wake(&self) {
        self.asked.set(Instant::now());
        if self.awake.replace(true) {
            return;
        }
        let (asked, awake) = (self.asked.clone(), self.awake.clone());
        tokio::task::spawn_local(async move {
            while asked.get().elapsed() < QUIET {
                tokio::time::sleep_until((asked.get() + QUIET).into()).await;
            }
            awake.set(false);
            idle::touch();
        });
    }
}

impl Names for Known {
    fn addresses(&self, name: &str) -> Result<Option<Vec<IpAddr>>, BoxError> {
        self.wake();
        self.shared.host.borrow_mut().addresses(name)
    }

    fn name_of(&self, address: IpAddr) -> Result<Option<String>, BoxError> {
        self.wake();
        self.shared.host.borrow_mut().name_of(address)
    }

    fn may_forward(&self) -> Result<bool, BoxError> {
        self.shared.host.borrow_mut().may_forward()
    }
}
