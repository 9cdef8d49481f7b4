//! What a run has on the network: a namespace, places on networks, published ports.
//!
//! The engine's rows say what it is to have; [`Network::apply`] brings a running container in line
//! with them. Invariant: when that fails, the container has what it had before.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use corten_network::{
    DefaultRoutes, Driver, Endpoint, EndpointSpec, NetNs, NetworkError, PortMapping, Targets,
    WayOut,
};

use crate::job::{BoxError, NameServerJob, NetworkJob, Place, Places, StartError};
use crate::names::{NameServer, Serving};
use crate::published::Published;
use crate::supervise::Shared;

/// A run's network. Without a namespace of its own it has nothing to undo.
#[derive(Debug, Default)]
pub(crate) struct Network {
    namespace: Option<NetNs>,
    places: Vec<Connected>,
    published: Published,
    /// What [`Network::connect`] is to make.
    planned: Option<(Vec<Place>, Option<NameServerJob>)>,
    /// A name server that does not answer yet.
    names: Option<NameServer>,
    serving: Option<Serving>,
}

#[derive(Debug)]
struct Connected {
    network: String,
    endpoint: Endpoint,
}

impl Network {
    /// Makes what a run is to have, but for what [`Self::connect`] makes, and says which namespace
    /// its processes are to join. `made`: the namespace to make it in, where there is one already.
    pub(crate) fn prepare(
        job: NetworkJob,
        names: Option<NameServerJob>,
        made: Option<OwnedFd>,
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
        let published =
            Published::reserve(requests).map_err(|error| StartError::because(&error))?;
        let namespace = match made {
            Some(made) => NetNs::from(made),
            None => NetNs::create().map_err(StartError::other)?,
        };
        let mut network = Self {
            published,
            planned: Some((endpoints, names)),
            ..Self::default()
        };
        let joined = network.with_namespace(namespace)?;
        Ok((network, joined))
    }

    /// Makes the links and the name server of a run, if they have not been made. What fails leaves
    /// it to be dropped: a second call would find nothing to make.
    pub(crate) fn connect(&mut self) -> Result<(), StartError> {
        let (Some(namespace), Some((endpoints, names))) = (&self.namespace, self.planned.take())
        else {
            return Ok(());
        };
        for place in endpoints {
            let mut spec = place.spec;
            if spec.default_route || spec.default_route6 {
                spec.ports = self.published.mappings().to_vec();
            }
            let endpoint = corten_network::connect(namespace, &spec).map_err(StartError::other)?;
            self.places.push(Connected {
                network: place.network,
                endpoint,
            });
        }
        if let Some(job) = names {
            self.names = Some(NameServer::new(namespace, job).map_err(StartError::other)?);
        }
        Ok(())
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
        self.published.mappings()
    }

    /// Starts the proxies of published ports, in place of those there are.
    pub(crate) fn serve(&mut self, shared: &Rc<Shared>) {
        self.proxy(true);
        self.watch(shared);
    }

    fn proxy(&mut self, all: bool) {
        let mut targets = Targets::default();
        let specs = || self.places.iter().map(|place| place.endpoint.spec());
        for spec in specs() {
            let at = spec.targets();
            targets.v4 = targets.v4.or(at.v4);
            targets.v6 = targets.v6.or(at.v6);
        }
        self.published.serve(targets, all);
    }

    /// Watches over what there is by now.
    pub(crate) fn watch(&mut self, shared: &Rc<Shared>) {
        let specs = self.places.iter().map(|place| place.endpoint.spec());
        // On a parent nothing is translated, so there is nothing to watch over.
        let watched = |spec: &&EndpointSpec| matches!(spec.driver, Driver::Bridge(_));
        let places = specs.filter(watched).cloned().collect();
        self.published.watch(places, shared);
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

    /// Connects what is new in `wanted`, disconnects what is not in it, publishes and takes back ports,
    /// and moves default routes and published ports to where they are to be.
    pub(crate) fn apply(&mut self, wanted: Places) -> Result<(), NetworkError> {
        let Some(namespace) = self.namespace.take() else {
            // The engine does not ask that of a container without one.
            return Ok(());
        };
        let applied = self.change(&namespace, wanted);
        self.namespace = Some(namespace);
        applied
    }

    fn change(&mut self, namespace: &NetNs, wanted: Places) -> Result<(), NetworkError> {
        let before = self.ways_out();
        let change = match self.published.change(wanted.requests) {
            Ok(change) => change,
            Err(error) => {
                self.proxy(false);
                return Err(error);
            }
        };
        match self.bring_in_line(namespace, wanted.endpoints) {
            Ok(moved) => {
                // Connections that are carried live on where nothing changes for them.
                if moved || change.is_any() {
                    self.proxy(moved);
                }
                Ok(())
            }
            Err(error) => {
                self.published.undo(change);
                if let Err(error) = self.arrange(namespace, &before) {
                    tracing::error!(%error, "its published ports are not what they were");
                }
                self.proxy(false);
                Err(error)
            }
        }
    }

    /// Whether the ways out are others by that.
    fn bring_in_line(
        &mut self,
        namespace: &NetNs,
        wanted: Vec<Place>,
    ) -> Result<bool, NetworkError> {
        let before = self.ways_out();
        let had = self.places.len();
        let mut after = Vec::new();
        for place in wanted {
            after.push((place.network.clone(), place.spec.way_out()));
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
        let open = |ways: Vec<(String, WayOut)>| {
            let mut open = ways;
            open.retain(|(_, way_out)| *way_out != WayOut::default());
            open.sort_by(|a, b| a.0.cmp(&b.0));
            open
        };
        Ok(open(before) != open(after))
    }

    fn ways_out(&self) -> Vec<(String, WayOut)> {
        let places = self.places.iter();
        places
            .map(|p| (p.network.clone(), p.endpoint.spec().way_out()))
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
        let ports_of = |way_out: WayOut| match way_out == WayOut::default() {
            true => Vec::new(),
            false => ports.clone(),
        };
        let mut both = self.places.iter().zip(&wanted);
        let moved = both.any(|(place, wanted)| place.endpoint.spec().way_out() != *wanted);
        if moved {
            self.set_routes(namespace, &wanted)?;
            // A port is taken back from one place before it is published at another.
            for (place, wanted) in self.places.iter_mut().zip(&wanted) {
                if place.endpoint.spec().way_out() != *wanted {
                    place.endpoint.republish(WayOut::default(), Vec::new())?;
                }
            }
        }
        for (place, wanted) in self.places.iter_mut().zip(&wanted) {
            let spec = place.endpoint.spec();
            let wanted_ports = ports_of(*wanted);
            if spec.way_out() != *wanted || spec.ports != wanted_ports {
                place.endpoint.republish(*wanted, wanted_ports)?;
            }
        }
        Ok(())
    }

    fn set_routes(&self, namespace: &NetNs, wanted: &[WayOut]) -> Result<(), NetworkError> {
        let mut routes = DefaultRoutes::default();
        for (place, wanted) in self.places.iter().zip(wanted) {
            let spec = place.endpoint.spec();
            let (v4, v6) = spec.driver.gateways();
            if wanted.v4 && !spec.driver.internal() {
                routes.v4 = Some((spec.ifname.as_str(), v4));
            }
            if wanted.v6 && !spec.driver.internal() {
                routes.v6 = Some((spec.ifname.as_str(), v6));
            }
        }
        corten_network::default_routes(namespace, routes)
    }

    /// Ports first (somebody may be waiting for them); the links go with the namespace, unless others have
    /// `joined` it: the addresses are soon somebody else's.
    pub(crate) fn teardown(mut self, joined: bool) {
        for place in self.places {
            if joined {
                for error in place.endpoint.disconnect().err().unwrap_or_default() {
                    tracing::warn!(%error, "a link is left to be swept");
                }
            } else if let Err(error) = place.endpoint.release() {
                tracing::warn!(%error, "published ports are left to be swept");
            }
        }
        drop(self.published);
        drop(self.namespace.take());
    }
}
