//! A question for somebody outside: whom to ask, and for how long.
//!
//! Servers are asked in their order, as `resolv.conf(5)` has it, each when the one before has failed
//! or is late; whoever then answers first is believed, the late one too.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use domain::base::Message;
use domain::base::iana::Rcode;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::exchange;
use crate::query::Query;
use crate::{Outside, query::Transport};

/// Questions that may wait at a time.
pub(crate) const PENDING: usize = 256;
/// Sockets that questions may have at a time, towards all servers together: a container must not take
/// all the descriptors of the process that answers it.
pub(crate) const SOCKETS: usize = 256;
/// Servers that are asked (`MAXNS` of `resolv.conf(5)`).
const SERVERS: usize = 3;
/// When a server is late.
const LATE: Duration = Duration::from_secs(1);
/// When everybody is too late: resolvers ask again after five seconds.
const TOO_LATE: Duration = Duration::from_millis(4500);

/// Asks the servers; `None` if nobody has answered. The best that was said otherwise.
pub(crate) async fn ask(
    question: Rc<[u8]>,
    transport: Transport,
    outside: &Rc<Outside>,
    sockets: &Rc<Semaphore>,
) -> Option<Vec<u8>> {
    let end = Instant::now() + TOO_LATE;
    let mut servers = outside.upstreams.iter().take(SERVERS);
    let mut asked: JoinSet<io::Result<Vec<u8>>> = JoinSet::new();
    let mut failure = None;
    loop {
        let mut until = end;
        match servers.next() {
            Some(upstream) => {
                let (question, outside, upstream) = (question.clone(), outside.clone(), *upstream);
                let sockets = sockets.clone();
                asked.spawn_local(async move {
                    let _socket = sockets.acquire().await.map_err(io::Error::other)?;
                    match Query::read(&question, transport) {
                        Ok(query) => exchange::ask(&query, upstream, &outside.namespace).await,
                        Err(_) => Err(io::ErrorKind::InvalidInput.into()),
                    }
                });
                if servers.len() > 0 {
                    until = end.min(Instant::now() + LATE);
                }
            }
            None if asked.is_empty() => return failure,
            None => {}
        }
        // Until it is the next server's turn.
        tokio::select! {
            Some(done) = asked.join_next() => match done {
                Ok(Ok(answer)) if is_failure(&answer) => failure = failure.or(Some(answer)),
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => tracing::debug!(%error, "a name server does not answer"),
                Err(error) => tracing::warn!(%error, "a question was given up"),
            },
            () = sleep_until(until) => if until == end {
                return failure;
            },
        }
    }
}

/// Whether another server may know better.
fn is_failure(answer: &[u8]) -> bool {
    let code = Message::from_slice(answer).map(|answer| answer.header().rcode());
    matches!(code, Ok(Rcode::SERVFAIL | Rcode::REFUSED))
}
