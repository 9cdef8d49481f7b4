//! What a run has on the network: a namespace, places on networks, published ports.
//!
//! The engine's rows say what it is to have; [`Network::apply`] brings a running container in line
//! with them. Invariant: when that fails, the container has what it had before.

use std::os::fd::AsFd;
use std::rc::Rc;

use corten_network::{
    DefaultRoutes, Endpoint, EndpointSpec, NetNs, NetworkError, PortMapping, Reservation, Targets,
    WayOut,
};
use tokio::task::{JoinHandle, JoinSet};

use crate::job::{BoxError, NameServerJob, NetworkJob, Place, Places, StartError};
use crate::names::{NameServer, Serving};
use crate::supervise::Shared;

/// A run's network. Without a namespace of its own it has nothing to undo.
#[derive(Debug, Default)]
pub(crate) struct Network {
    namespace: Option<NetNs>,
    places: Vec<Connected>,
    reservation: Option<Reservation>,
    proxies: Option<JoinHandle<()>>,
    /// A name server that does not answer yet.
    names: Option<NameServer>,
    serving: Option<Serving>,
}

/// Keeps published ports what they should be while the host's firewall changes.
async fn watch(published: Vec<EndpointSpec>) {
    let mut watches = JoinSet::new();
    for spec in published {
        watches.spawn_local(async {
            let error = corten_network::watch_firewall(spec).await;
            tracing::warn!(%error, "changes of the host's firewall go unnoticed");
        });
    }
    while watches.join_next().await.is_some() {}
}

#[derive(Debug)]
struct Connected {
    network: String,
    endpoint: Endpoint,
}

impl Network {
    /// Makes what a run is to have, and says which namespace its processes are to join.
    pub(crate) fn prepare(
        job: NetworkJob,
        names: Option<NameServerJob>,
    ) -> Result<(Self, corten_runtime::NetNs), StartError> {
        let Places {
            endpoints,
            requests,
        } = match job {
            NetworkJob::None => return Ok((Self::default(), corten_runtime::NetNs::New)),
            NetworkJob::Host => return Ok((Self::default(), corten_runtime::NetNs::Host)),
            NetworkJob::Join(fd) => return Ok((Self::default(), corten_runtime::NetNs::Join(fd))),
            NetworkJob::Own(places) => *places,
        };
        let reservation = match requests.is_empty() {
            true => None,
            false => Some(corten_network::reserve(&requests).map_err(StartError::other)?),
        };
        let namespace = NetNs::create().map_err(StartError::other)?;
        let mut network = Self {
            reservation,
            ..Self::default()
        };
        for place in endpoints {
            let mut spec = place.spec;
            if spec.default_route || spec.default_route6 {
                spec.ports = network.ports().to_vec();
            }
            let endpoint = corten_network::connect(&namespace, &spec).map_err(StartError::other)?;
            network.places.push(Connected {
                network: place.network,
                endpoint,
            });
        }
        if let Some(job) = names {
            network.names = Some(NameServer::new(&namespace, job).map_err(StartError::other)?);
        }
        let joined = network.with_namespace(namespace)?;
        Ok((network, joined))
    }

    /// Keeps the namespace, and gives what joins it.
    pub(crate) fn with_namespace(
        &mut self,
        namespace: NetNs,
    ) -> Result<corten_runtime::NetNs, StartError> {
        let joined = namespace.as_fd().try_clone_to_owned();
        self.namespace = Some(namespace);
        Ok(corten_runtime::NetNs::Join(
            joined.map_err(StartError::other)?,
        ))
    }

    /// What is published.
    pub(crate) fn ports(&self) -> &[PortMapping] {
        self.reservation.as_ref().map_or(&[], Reservation::mappings)
    }

    /// Starts the proxies of published ports, in place of those there are.
    pub(crate) fn serve(&mut self) {
        if let Some(proxies) = self.proxies.take() {
            proxies.abort();
        }
        let Some(reservation) = &self.reservation else {
            return;
        };
        let mut targets = Targets::default();
        for place in &self.places {
            let at = place.endpoint.spec().targets();
            targets.v4 = targets.v4.or(at.v4);
            targets.v6 = targets.v6.or(at.v6);
        }
        let places = self.places.iter().map(|place| place.endpoint.spec());
        let published: Vec<EndpointSpec> =
            places.filter(|s| !s.ports.is_empty()).cloned().collect();
        match reservation.try_clone() {
            Ok(clone) => {
                self.proxies = Some(tokio::task::spawn_local(async move {
                    tokio::join!(clone.serve(targets), watch(published));
                }));
            }
            Err(error) => tracing::error!(%error, "published ports have no proxy"),
        }
    }

    /// Makes a name server, unless there is one, or no namespace of its own.
    pub(crate) fn make_names(
        &mut self,
        job: impl FnOnce() -> Result<Option<NameServerJob>, BoxError>,
    ) -> Result<(), BoxError> {
        let Some(namespace) = self.namespace.as_ref().filter(|_| self.serving.is_none()) else {
            return Ok(());
        };
        if let Some(job) = job()? {
            self.names = Some(NameServer::new(namespace, job)?);
        }
        Ok(())
    }

    /// Lets the name server answer that has been made; whether there is such a one.
    pub(crate) fn serve_names(&mut self, shared: &Rc<Shared>) -> bool {
        match self.names.take().map(|names| names.serve(shared)) {
            None => false,
            Some(Ok(serving)) => {
                self.serving = Some(serving);
                true
            }
            Some(Err(error)) => {
                tracing::error!(%error, "the name server does not answer");
                false
            }
        }
    }

    /// Connects what is new in `wanted`, disconnects what is not in it, and moves default routes and
    /// published ports to where they are to be.
    pub(crate) fn apply(&mut self, wanted: Vec<Place>) -> Result<(), NetworkError> {
        let Some(namespace) = self.namespace.take() else {
            // The engine does not ask that of a container without one.
            return Ok(());
        };
        let applied = self.bring_in_line(&namespace, wanted);
        self.namespace = Some(namespace);
        applied
    }

    fn bring_in_line(&mut self, namespace: &NetNs, wanted: Vec<Place>) -> Result<(), NetworkError> {
        let before = self.ways_out();
        let had = self.places.len();
        let mut after = Vec::new();
        for place in wanted {
            let way_out = WayOut {
                v4: place.spec.default_route,
                v6: place.spec.default_route6,
            };
            after.push((place.network.clone(), way_out));
            if self.places.iter().any(|p| p.network == place.network) {
                continue;
            }
            let spec = EndpointSpec {
                default_route: false,
                default_route6: false,
                ports: Vec::new(),
                ..place.spec
            };
            match corten_network::connect(namespace, &spec) {
                Ok(endpoint) => self.places.push(Connected {
                    network: place.network,
                    endpoint,
                }),
                Err(error) => {
                    // Dropping an endpoint disconnects it.
                    self.places.truncate(had);
                    return Err(error);
                }
            }
        }
        if let Err(error) = self.arrange(namespace, &after) {
            self.places.truncate(had);
            if let Err(error) = self.arrange(namespace, &before) {
                tracing::error!(%error, "its default routes or published ports are not what they were");
            }
            return Err(error);
        }
        let gone = |p: &Connected| !after.iter().any(|(network, _)| *network == p.network);
        for place in self.places.extract_if(.., |p| gone(p)) {
            for error in place.endpoint.disconnect().err().unwrap_or_default() {
                tracing::warn!(network = place.network, %error, "it is left to be swept");
            }
        }
        // Carried connections live on where nothing changes for them.
        let open = |ways: Vec<(String, WayOut)>| {
            let mut open = ways;
            open.retain(|(_, way_out)| *way_out != WayOut::default());
            open.sort_by(|a, b| a.0.cmp(&b.0));
            open
        };
        if open(before) != open(after) {
            self.serve();
        }
        Ok(())
    }

    fn ways_out(&self) -> Vec<(String, WayOut)> {
        let way_out = |spec: &EndpointSpec| WayOut {
            v4: spec.default_route,
            v6: spec.default_route6,
        };
        let places = self.places.iter();
        places
            .map(|p| (p.network.clone(), way_out(p.endpoint.spec())))
            .collect()
    }

    /// Makes the places the ways out that they are to be; one that is not named is none.
    fn arrange(
        &mut self,
        namespace: &NetNs,
        ways_out: &[(String, WayOut)],
    ) -> Result<(), NetworkError> {
        let ports = self.ports().to_vec();
        let wanted: Vec<WayOut> = self
            .places
            .iter()
            .map(|place| {
                let found = ways_out
                    .iter()
                    .find(|(network, _)| *network == place.network);
                found.map(|(_, way_out)| *way_out).unwrap_or_default()
            })
            .collect();
        let is = |spec: &EndpointSpec| WayOut {
            v4: spec.default_route,
            v6: spec.default_route6,
        };
        let mut changed = self.places.iter().zip(&wanted);
        if changed.all(|(place, wanted)| is(place.endpoint.spec()) == *wanted) {
            return Ok(());
        }
        let mut routes = DefaultRoutes::default();
        for (place, wanted) in self.places.iter().zip(&wanted) {
            let spec = place.endpoint.spec();
            let (v4, v6) = spec.driver.gateways();
            if wanted.v4 && !spec.driver.internal() {
                routes.v4 = Some((spec.ifname.as_str(), v4));
            }
            if wanted.v6 && !spec.driver.internal() {
                routes.v6 = Some((spec.ifname.as_str(), v6));
            }
        }
        corten_network::default_routes(namespace, routes)?;
        // A port is taken back from one place before it is published at another.
        for (place, wanted) in self.places.iter_mut().zip(&wanted) {
            if is(place.endpoint.spec()) != *wanted {
                place.endpoint.republish(WayOut::default(), Vec::new())?;
            }
        }
        for (place, wanted) in self.places.iter_mut().zip(&wanted) {
            if is(place.endpoint.spec()) != *wanted {
                place.endpoint.republish(*wanted, ports.clone())?;
            }
        }
        Ok(())
    }

    /// Ports first (somebody may be waiting for them); the links go with the namespace.
    pub(crate) fn teardown(mut self) {
        if let Some(proxies) = self.proxies.take() {
            proxies.abort();
        }
        for place in self.places {
            if let Err(error) = place.endpoint.release() {
                tracing::warn!(%error, "published ports are left to be swept");
            }
        }
        drop(self.reservation.take());
        drop(self.namespace.take());
    }
}
