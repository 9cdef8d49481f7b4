//! What somebody has written of a container's networks who was killed before it was carried out.
//!
//! Nobody was told that it is so. Before the next change, and by a check that repairs, it is carried out;
//! what cannot be is taken back, or that change would fail by it, and every one after it.

use std::net::IpAddr;

use bollard_stubs::models::PortBinding;
use corten_db::Durability;
use corten_network::NetworkError;
use rusqlite::Connection;

use super::connect::told;
use super::row::{self as networks, NetworkRow};
use crate::containers::endpoints::{self, Endpoint};
use crate::containers::row::{self as containers, Container, Status};
use crate::containers::state;
use crate::containers::turn::Turn;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::ports::{self, Publish};
use crate::supervise::request;

type Result<T> = std::result::Result<T, EngineError>;

/// Where what a running container has differs from what is written of it.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// Where it is to be, and is not.
    pub(crate) wanting: Vec<Endpoint>,
    /// The names of networks that it is on, and is not to be.
    pub(crate) held: Vec<String>,
    /// Ports of the host that are to be published, and are not.
    unpublished: Vec<Bound>,
    /// Whether others are published that are not bound any more.
    unbound: bool,
    /// Where what names no address is published.
    default: Option<IpAddr>,
}

impl Left {
    /// Somebody may be changing it this moment, except for whoever has its turn. Blocks.
    pub(crate) fn of(engine: &Engine, container: &Container) -> Result<Self> {
        if !container.status.is_live()
            || container.status == Status::Restarting
            || container.config.network_disabled == Some(true)
            || !state::has_supervisor(engine, &container.id)
        {
            return Ok(Self::default());
        }
        let wanting = container.endpoints.iter().filter(|e| e.live.is_none());
        let publishes = publishes(engine, container)?;
        let default = publishes.flatten();
        Ok(Self {
            wanting: wanting.cloned().collect(),
            held: engine.database().read(|c| held(c, &container.id))?,
            unpublished: match publishes {
                Some(default) => unpublished(container, default),
                None => Vec::new(),
            },
            unbound: unbound(container, default),
            default,
        })
    }

    fn is_nothing(&self) -> bool {
        self.wanting.is_empty()
            && self.held.is_empty()
            && self.unpublished.is_empty()
            && !self.unbound
    }
}

/// A binding as it is written, and what it asks for.
#[derive(Debug, Clone)]
struct Bound {
    key: String,
    binding: PortBinding,
    wish: Publish,
}

impl Bound {
    fn of(key: &str, binding: &PortBinding) -> Option<Self> {
        let map = [(key.to_owned(), Some(vec![binding.clone()]))].into();
        let wish = ports::bindings(&map).ok()?.pop()?;
        Some(Self {
            key: key.to_owned(),
            binding: binding.clone(),
            wish,
        })
    }

    /// Whether something published is at an address that it asks for. `default`: where its network publishes
    /// what names none.
    fn is_there(&self, got: &Got<'_>, default: Option<IpAddr>) -> bool {
        let port = self.wish.port.to_string();
        let at = match self.wish.host_ip.or(default) {
            Some(address) => got.address == Some(address),
            // Shown as one of each family.
            None => got.address.is_none_or(|address| address.is_unspecified()),
        };
        port == got.port && at
    }

    /// The one port of the host that it names, if it does.
    fn named(&self) -> Option<u16> {
        let Publish { first, last, .. } = self.wish;
        (first == last && first != 0).then_some(first)
    }

    fn takes(&self, number: u16) -> bool {
        let Publish { first, last, .. } = self.wish;
        first == 0 || (first..=last).contains(&number)
    }

    /// Whether it cannot be had, as somebody else has it, or nobody can.
    fn is_impossible(&self, default: Option<IpAddr>) -> bool {
        let asked = [request(&self.wish, default)];
        match corten_network::reserve(&asked) {
            Ok(_given_back) => false,
            Err(NetworkError::PortInUse { .. } | NetworkError::NoProtocol { .. }) => true,
            Err(NetworkError::Bind { source, .. }) => {
                source.kind() == std::io::ErrorKind::AddrNotAvailable
            }
            Err(_) => false,
        }
    }
}

/// A port of the host that is published, with the container's.
struct Got<'a> {
    port: &'a str,
    address: Option<IpAddr>,
    number: u16,
}

/// Where the network publishes that is a container's way out, if anything is published there: as nothing is
/// without a way out, nor on the network of a parent.
fn publishes(engine: &Engine, container: &Container) -> Result<Option<Option<IpAddr>>> {
    let mut out = engine.database().read(|c| {
        let mut rows = Vec::new();
        for place in &container.endpoints {
            if let Some(row) = networks::get(c, &place.network)? {
                rows.push((place.wish.gw_priority, row));
            }
        }
        Ok::<_, EngineError>(rows)
    })?;
    out.retain(|(_, row)| !row.internal);
    let families = |row: &NetworkRow| u8::from(row.ipv4) + u8::from(row.ipv6);
    out.sort_by(|(a, one), (b, other)| {
        (b.cmp(a))
            .then(families(other).cmp(&families(one)))
            .then(one.name.cmp(&other.name))
    });
    match out.first() {
        Some((_, row)) if row.driver == "bridge" => Ok(Some(row.bridge_options()?.host_binding)),
        _ => Ok(None),
    }
}

/// The ports of the host that are bound, and not published on any network.
fn unpublished(container: &Container, default: Option<IpAddr>) -> Vec<Bound> {
    let mut all = bound(container);
    all.retain(|bound| {
        // Whatever was got is what was wanted, if no port was named.
        bound.named().is_some_and(|wanted| {
            let mut got = published(container);
            !got.any(|got| got.number == wanted && bound.is_there(&got, default))
        })
    });
    all
}

/// Is a port of the host published that is not bound?
fn unbound(container: &Container, default: Option<IpAddr>) -> bool {
    let wishes = bound(container);
    let all = container.host.publish_all_ports == Some(true);
    !all && published(container).any(|got| {
        let asks = |wish: &Bound| wish.takes(got.number) && wish.is_there(&got, default);
        !wishes.iter().any(asks)
    })
}

/// The bindings of a container's ports.
fn bound(container: &Container) -> Vec<Bound> {
    let bound = container.host.port_bindings.iter().flatten();
    let bound = bound.flat_map(|(key, list)| list.iter().flatten().map(move |b| (key, b)));
    bound.filter_map(|(key, b)| Bound::of(key, b)).collect()
}

/// The ports of the host that are published for a container.
fn published(container: &Container) -> impl Iterator<Item = Got<'_>> {
    let live = container.endpoints.iter().filter_map(|e| e.live.as_ref());
    live.flat_map(|live| &live.ports).flat_map(|(port, list)| {
        list.iter().map(move |got| Got {
            port,
            address: got.ip.parse().ok(),
            number: got.port,
        })
    })
}

/// The names of networks of which a container has addresses but is not to be on.
fn held(c: &Connection, container: &str) -> Result<Vec<String>> {
    let mut statement = c.prepare_cached(
        "SELECT DISTINCT n.name FROM addresses AS a JOIN networks AS n ON n.id = a.network \
         WHERE a.owner = ?1 AND NOT EXISTS (SELECT 1 FROM endpoints AS e \
         WHERE e.container = ?1 AND e.network = a.network)",
    )?;
    let rows = statement.query_map([container], |r| r.get(0))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Has a container brought in line with its rows, as whoever changed them was killed before.
pub(crate) async fn bring_in_line(engine: &Engine, id: &str) -> Result<()> {
    let id = id.to_owned();
    let Some(container) = engine.read(move |c| containers::get(c, &id)).await? else {
        return Ok(());
    };
    match Turn::of(engine, &container).await {
        Ok(_turn) => match carry_out(engine, &container).await? {
            (_, None) => Ok(()),
            (_, Some(why)) => Err(EngineError::Forbidden(why)),
        },
        Err(EngineError::NoSuchContainer(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Carries out what is left, or takes it back, of whoever has the container's turn. The places it has
/// by that.
pub(crate) async fn settle(engine: &Engine, container: &Container) -> Result<Vec<Endpoint>> {
    Ok(carry_out(engine, container).await?.0)
}

/// As [`settle`]; also why what is left cannot be carried out and is not taken back either.
async fn carry_out(
    engine: &Engine,
    container: &Container,
) -> Result<(Vec<Endpoint>, Option<String>)> {
    let before = container.clone();
    let left = engine
        .brief(move |engine| Left::of(engine, &before))
        .await?;
    if left.is_nothing() {
        return Ok((Vec::new(), None));
    }
    let mut why = attempt(engine, container).await?;
    if why.is_none() {
        return Ok((left.wanting, None));
    }
    let Left {
        wanting,
        unpublished,
        default,
        ..
    } = left;
    // One after the other: what is refused may be so for the other's sake.
    if !wanting.is_empty() {
        take_back(engine, container, move |c, now| {
            for place in now.endpoints.iter().filter(|e| wanting.contains(e)) {
                endpoints::remove(c, &now.id, &place.network)?;
            }
            Ok(())
        })
        .await?;
        why = attempt(engine, container).await?;
    }
    if why.is_some() && !unpublished.is_empty() {
        // Not those that are refused for a while, or for another's sake: somebody wants them.
        let impossible = engine
            .blocking(move |_| {
                let mut all = unpublished;
                all.retain(|bound| bound.is_impossible(default));
                Ok::<_, EngineError>(all)
            })
            .await?;
        if !impossible.is_empty() {
            take_back(engine, container, move |c, now| unbind(c, now, &impossible)).await?;
            why = attempt(engine, container).await?;
        }
    }
    Ok((Vec::new(), why))
}

/// Has what is written carried out, whoever wrote it; why it cannot be.
async fn attempt(engine: &Engine, container: &Container) -> Result<Option<String>> {
    match told(engine, container).await {
        Ok(()) => Ok(None),
        Err(EngineError::Forbidden(why)) => {
            tracing::warn!(container = %container.id, %why, "an earlier change is not carried out");
            Ok(Some(why))
        }
        Err(error) => Err(error),
    }
}

/// Removes what a run has not got. Another run is begun from it, or not at all.
async fn take_back(
    engine: &Engine,
    before: &Container,
    remove: impl FnOnce(&Connection, &Container) -> Result<()> + Send + 'static,
) -> Result<()> {
    let before = before.clone();
    engine
        .blocking(move |engine| {
            engine.write(Durability::Synced, |c| {
                match containers::get(c, &before.id)? {
                    Some(now)
                        if now.status.is_live()
                            && (now.pid, now.started) == (before.pid, before.started) =>
                    {
                        remove(c, &now)
                    }
                    _ => Ok(()),
                }
            })
        })
        .await
}

/// Takes ports out of a container's row.
fn unbind(c: &Connection, now: &Container, ports: &[Bound]) -> Result<()> {
    let mut host = now.host.clone();
    let Some(bound) = &mut host.port_bindings else {
        return Ok(());
    };
    for (port, list) in bound.iter_mut() {
        if let Some(list) = list {
            list.retain(|binding| {
                let mut gone = ports.iter();
                !gone.any(|bound| bound.key == *port && bound.binding == *binding)
            });
        }
    }
    bound.retain(|_, list| list.as_ref().is_none_or(|list| !list.is_empty()));
    containers::set_host(c, &now.id, &host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bindings_are_compared_by_what_they_ask_for() {
        let bound = |key: &str, ip: &str, number: &str| {
            let binding = PortBinding {
                host_ip: Some(ip.to_owned()),
                host_port: Some(number.to_owned()),
            };
            Bound::of(key, &binding).unwrap()
        };
        let got = |address: &str| Got {
            port: "80/tcp",
            address: address.parse().ok(),
            number: 8080,
        };
        // As a client has written it.
        for key in ["80", "80/tcp", "80/TCP"] {
            let every = bound(key, "", "8080");
            assert_eq!(every.named(), Some(8080));
            assert!(every.is_there(&got("0.0.0.0"), None) && every.is_there(&got("::"), None));
            assert!(!every.is_there(&got("127.0.0.1"), None));
        }
        // The network's own address.
        let local = "127.0.0.1".parse().ok();
        assert!(bound("80", "", "8080").is_there(&got("127.0.0.1"), local));
        assert!(!bound("80", "192.0.2.1", "8080").is_there(&got("127.0.0.1"), local));
        assert!(!bound("80/udp", "", "8080").is_there(&got("0.0.0.0"), None));
        let range = bound("80", "", "8080-8082");
        assert!(range.named().is_none() && range.takes(8082) && !range.takes(8083));
        assert!(bound("80", "", "").takes(1));
    }
}
