//! The ports of a run that are published: the sockets that hold them on the host, and the proxies.
//!
//! Each wish is held by itself, so that one can come or go while connections of the others live on.

use std::cell::RefCell;
use std::rc::Rc;

use corten_network::{
    Descriptors, Driver, EndpointSpec, NetworkError, PortMapping, PortRange, PortRequest,
    Reservation, Targets,
};
use tokio::task::JoinHandle;

use crate::supervise::Shared;
use crate::{idle, limits};

/// Held ports. Dropping them gives them back.
#[derive(Debug)]
pub(crate) struct Published {
    held: Vec<Held>,
    mappings: Vec<PortMapping>,
    /// Where the container is on bridges, to watch over.
    places: Rc<RefCell<Vec<EndpointSpec>>>,
    watch: Option<Task>,
    descriptors: Descriptors,
}

impl Default for Published {
    fn default() -> Self {
        Self {
            held: Vec::new(),
            mappings: Vec::new(),
            places: Rc::default(),
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
#[derive(Debug, Default)]
pub(crate) struct Change {
    gone: Vec<Held>,
    /// Those of them whose ports something new has taken.
    released: Vec<(PortRequest, PortMapping)>,
    /// Those that lead to another port of the container now: what they were.
    led: Vec<(PortRequest, PortRequest)>,
    /// How many of those held are new; they are the last ones.
    new: usize,
}

impl Change {
    /// Does it change anything?
    pub(crate) fn is_any(&self) -> bool {
        self.new > 0 || !(self.gone.is_empty() && self.released.is_empty() && self.led.is_empty())
    }
}

impl Held {
    /// Lets it be what another request of the same port of the host asks for.
    fn lead(&mut self, request: PortRequest) {
        self.reservation.lead_to(request.container_port);
        self.request = request;
        self.proxy = None;
    }
}

/// Whether two requests are of one port of the host, and differ in where it leads to.
fn is_same_host_port(one: &PortRequest, other: &PortRequest) -> bool {
    let ports = one.host_ports;
    ports.first != 0
        && ports == PortRange::single(ports.first)
        && PortRequest {
            container_port: other.container_port,
            ..one.clone()
        } == *other
}

/// Takes ports, if need be from those that are to go: another address of the host may be wanted.
fn take(request: &PortRequest, change: &mut Change) -> Result<Reservation, NetworkError> {
    let asked = std::slice::from_ref(request);
    let taken = corten_network::reserve(asked);
    if !matches!(taken, Err(NetworkError::PortInUse { .. })) {
        return taken;
    }
    let port = request.host_ports.first;
    let in_the_way = |held: &mut Held| {
        let mut mappings = held.reservation.mappings().iter();
        mappings.any(|m| m.proto == request.proto && m.host_port == port)
    };
    let gone: Vec<Held> = change.gone.extract_if(.., in_the_way).collect();
    for held in gone {
        held.reservation.let_go();
        for mapping in held.reservation.mappings() {
            change
                .released
                .push((held.request.clone(), mapping.clone()));
        }
    }
    corten_network::reserve(asked)
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
        let mut change = Change {
            gone: old.into_iter().flatten().collect(),
            ..Change::default()
        };
        let mut new = Vec::new();
        for request in missing {
            let same = |held: &Held| is_same_host_port(&held.request, &request);
            if let Some(at) = change.gone.iter().position(same) {
                let mut held = change.gone.swap_remove(at);
                change.led.push((request.clone(), held.request.clone()));
                held.lead(request);
                kept.push(held);
            } else {
                new.push(request);
            }
        }
        self.held = kept;
        for request in new {
            match take(&request, &mut change) {
                Ok(reservation) => self.held.push(Held {
                    request,
                    reservation,
                    proxy: None,
                }),
                Err(error) => {
                    let before = std::mem::take(&mut self.mappings);
                    self.undo(change);
                    // All of them are there again: in the order they had.
                    if self.mappings.len() == before.len() {
                        self.mappings = before;
                    }
                    return Err(error);
                }
            }
            change.new += 1;
        }
        self.list();
        Ok(change)
    }

    /// Gives back what a change has taken, and takes back what it gave.
    pub(crate) fn undo(&mut self, change: Change) {
        self.held.truncate(self.held.len() - change.new);
        for (now, then) in change.led {
            if let Some(held) = self.held.iter_mut().find(|h| h.request == now) {
                held.lead(then);
            }
        }
        self.held.extend(change.gone);
        for (request, mapping) in change.released {
            let port = PortRequest {
                host_ports: PortRange::single(mapping.host_port),
                ..request.clone()
            };
            match corten_network::reserve(&[port]) {
                Ok(reservation) => self.held.push(Held {
                    request,
                    reservation,
                    proxy: None,
                }),
                Err(error) => tracing::error!(%error, "a published port is lost"),
            }
        }
        self.list();
    }

    fn list(&mut self) {
        let held = self.held.iter();
        self.mappings = held
            .flat_map(|h| h.reservation.mappings().to_vec())
            .collect();
    }

    /// Starts proxies to the targets: of all ports, in place of those there are, or of those that have
    /// none yet.
    pub(crate) fn serve(&mut self, targets: Targets, all: bool) {
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
    }

    /// Watches over the container's places on bridges, and with others over all rules of the engine.
    pub(crate) fn watch(&mut self, places: Vec<EndpointSpec>, shared: &Rc<Shared>) {
        let table = places.iter().find_map(|place| match &place.driver {
            Driver::Bridge(bridge) => Some(bridge.table.clone()),
            Driver::Shared(_) => None,
        });
        *self.places.borrow_mut() = places;
        let Some(table) = table else {
            self.watch = None;
            return;
        };
        if self.watch.is_some() {
            return;
        }
        let (places, shared) = (self.places.clone(), shared.clone());
        let bridges = move || {
            let bridges = shared.host.borrow_mut().bridges();
            bridges.unwrap_or_else(|error| {
                tracing::warn!(%error, "the rules of other networks are not looked at");
                Vec::new()
            })
        };
        let places = move || places.borrow().clone();
        self.watch = Some(Task(tokio::task::spawn_local(async move {
            corten_network::watch_firewall(table, places, bridges, idle::touch).await;
        })));
    }
}

#[cfg(test)]
mod tests {
    use corten_network::{NetNs, Proto};

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
    fn a_port_of_the_host_moves_within_a_change() {
        let ns = NetNs::create().unwrap();
        let check = || {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().unwrap();
            let tasks = tokio::task::LocalSet::new();
            tasks.block_on(&runtime, async {
                let mut published = Published::reserve(vec![request(8080, 80)]).unwrap();
                published.serve(Targets::default(), true);
                let led = |published: &Published| {
                    let [mapping] = published.mappings() else {
                        panic!("{:?}", published.mappings())
                    };
                    (mapping.host_ip, mapping.host_port, mapping.container_port)
                };
                // To another port of the container, and back.
                let change = published.change(vec![request(8080, 81)]).unwrap();
                assert!(change.is_any());
                assert_eq!(led(&published), (None, 8080, 81));
                published.undo(change);
                assert_eq!(led(&published), (None, 8080, 80));
                // To another address of the host, while it is served.
                let any = std::net::Ipv4Addr::UNSPECIFIED.into();
                let elsewhere = PortRequest {
                    host_ip: Some(any),
                    ..request(8080, 80)
                };
                published.serve(Targets::default(), false);
                let change = published.change(vec![elsewhere.clone()]).unwrap();
                assert_eq!(led(&published), (Some(any), 8080, 80));
                published.undo(change);
                assert_eq!(led(&published), (None, 8080, 80));
                assert!(corten_network::reserve(&[elsewhere]).is_err());
            });
        };
        ns.run_in(check).unwrap();
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
