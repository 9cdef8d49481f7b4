//! The ports of a run that are published: the sockets that hold them on the host, and the proxies.
//!
//! Each wish is held by itself, so that one can come or go while connections of the others live on.

use std::time::Duration;

use corten_network::{
    Descriptors, EndpointSpec, NetworkError, PortMapping, PortRequest, Reservation, Targets,
};
use tokio::task::{JoinHandle, JoinSet};

use crate::{idle, limits};

/// How long after it could not watch the firewall it tries again, beginning with a look.
const AGAIN: Duration = Duration::from_secs(10);

/// Held ports. Dropping them gives them back.
#[derive(Debug)]
pub(crate) struct Published {
    held: Vec<Held>,
    mappings: Vec<PortMapping>,
    watch: Option<Task>,
    descriptors: Descriptors,
}

impl Default for Published {
    fn default() -> Self {
        Self {
            held: Vec::new(),
            mappings: Vec::new(),
            watch: None,
            descriptors: limits::for_connections(),
        }
    }
}

#[derive(Debug)]
struct Held {
    request: PortRequest,
    reservation: Reservation,
    proxy: Option<Task>,
}

/// A task that ends when this is dropped.
#[derive(Debug)]
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a change has taken away; it comes back when the change is undone.
#[derive(Debug)]
pub(crate) struct Change {
    gone: Vec<Held>,
    /// How many of those held are new; they are the last ones.
    new: usize,
}

impl Change {
    /// Does it change anything?
    pub(crate) fn is_any(&self) -> bool {
        self.new > 0 || !self.gone.is_empty()
    }
}

impl Published {
    /// Takes all that is asked for, or nothing.
    pub(crate) fn reserve(requests: Vec<PortRequest>) -> Result<Self, NetworkError> {
        let mut published = Self::default();
        published.change(requests)?;
        Ok(published)
    }

    /// What is held.
    pub(crate) fn mappings(&self) -> &[PortMapping] {
        &self.mappings
    }

    /// Takes what is new among the requests and sets aside what is not among them. What is among them
    /// stays as it is, ports that were chosen for it included.
    pub(crate) fn change(&mut self, requests: Vec<PortRequest>) -> Result<Change, NetworkError> {
        let mut old: Vec<Option<Held>> = std::mem::take(&mut self.held)
            .into_iter()
            .map(Some)
            .collect();
        let (mut kept, mut missing) = (Vec::new(), Vec::new());
        for request in requests {
            let same =
                |held: &&mut Option<Held>| held.as_ref().is_some_and(|h| h.request == request);
            match old.iter_mut().find(same).and_then(Option::take) {
                Some(held) => kept.push(held),
                None => missing.push(request),
            }
        }
        let gone: Vec<Held> = old.into_iter().flatten().collect();
        let mut new = Vec::new();
        for request in missing {
            match corten_network::reserve(std::slice::from_ref(&request)) {
                Ok(reservation) => new.push(Held {
                    request,
                    reservation,
                    proxy: None,
                }),
                Err(error) => {
                    self.held = kept;
                    self.held.extend(gone);
                    return Err(error);
                }
            }
        }
        let change = Change {
            gone,
            new: new.len(),
        };
        self.held = kept;
        self.held.extend(new);
        self.list();
        Ok(change)
    }

    /// Gives back what a change has taken, and takes back what it gave.
    pub(crate) fn undo(&mut self, change: Change) {
        self.held.truncate(self.held.len() - change.new);
        self.held.extend(change.gone);
        self.list();
    }

    fn list(&mut self) {
        let held = self.held.iter();
        self.mappings = held
            .flat_map(|h| h.reservation.mappings().to_vec())
            .collect();
    }

    /// Starts proxies to the targets: of all ports, in place of those there are, or of those that have
    /// none yet. `places`: where the ports are published, to watch over.
    pub(crate) fn serve(&mut self, targets: Targets, places: Vec<EndpointSpec>, all: bool) {
        for held in &mut self.held {
            if held.proxy.is_some() && !all {
                continue;
            }
            held.proxy = None;
            match held.reservation.serve(targets, &self.descriptors) {
                Ok(serving) => held.proxy = Some(Task(tokio::task::spawn_local(serving))),
                Err(error) => tracing::error!(%error, "a published port has no proxy"),
            }
        }
        self.watch = None;
        if !places.is_empty() {
            self.watch = Some(Task(tokio::task::spawn_local(watch(places))));
        }
    }
}

/// Keeps published ports what they should be while the host's firewall changes.
async fn watch(places: Vec<EndpointSpec>) {
    let mut watches = JoinSet::new();
    for spec in places {
        watches.spawn_local(async move {
            loop {
                let error = corten_network::watch_firewall(spec.clone(), idle::touch).await;
                tracing::warn!(%error, "changes of the host's firewall go unnoticed for a while");
                tokio::time::sleep(AGAIN).await;
            }
        });
    }
    while watches.join_next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    use corten_network::{NetNs, PortRange, Proto};

    use super::*;

    fn request(host_port: u16, container_port: u16) -> PortRequest {
        PortRequest {
            proto: Proto::Tcp,
            host_ip: None,
            host_ports: PortRange::single(host_port),
            container_port,
        }
    }

    fn ports(published: &Published) -> Vec<u16> {
        published.mappings().iter().map(|m| m.host_port).collect()
    }

    #[test]
    fn changes_keep_what_stays_and_are_undone() {
        let ns = NetNs::create().unwrap();
        let check = || {
            let mut published =
                Published::reserve(vec![request(8080, 80), request(0, 81)]).unwrap();
            let before = ports(&published);
            let other = corten_network::reserve(&[request(9000, 1)]).unwrap();
            // All or nothing.
            let wanted = vec![request(0, 81), request(8081, 82), request(9000, 1)];
            assert!(published.change(wanted).is_err());
            assert_eq!(ports(&published), before);
            drop(other);
            let wanted = vec![request(0, 81), request(8081, 82)];
            let change = published.change(wanted.clone()).unwrap();
            assert!(change.is_any());
            assert_eq!(ports(&published), [before[1], 8081]);
            // What is set aside is held as long as it may come back.
            assert!(corten_network::reserve(&[request(8080, 1)]).is_err());
            published.undo(change);
            let mut now = ports(&published);
            now.sort_unstable();
            let mut then = before.clone();
            then.sort_unstable();
            assert_eq!(now, then);
            assert!(corten_network::reserve(&[request(8081, 1)]).is_ok());
            drop(published.change(wanted.clone()).unwrap());
            assert!(corten_network::reserve(&[request(8080, 1)]).is_ok());
            assert!(!published.change(wanted).unwrap().is_any());
        };
        ns.run_in(check).unwrap();
    }
}
