//! What a container's name server answers from: the rows of its networks.
//!
//! A name is one that another container (or itself) has on a network of this container, or a link's
//! name for one; with the network's name behind it, on that network only, as Docker has it. Whoever
//! does not run has no address, and so no name.

use std::net::IpAddr;

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::error::EngineError;

type Result<T> = std::result::Result<T, EngineError>;

/// The addresses of a name, as `container` is to see it; `None`: nobody has it.
pub(crate) fn addresses(
    c: &Connection,
    container: &str,
    name: &str,
) -> Result<Option<Vec<IpAddr>>> {
    let places = places(c, container)?;
    let links = links(&places);
    // `a.b.c`: on any network, then `a.b` on `c`, then `a` on `b.c`. Whoever asks may send names with as
    // many dots as there is room for: only networks of its own are looked at.
    let is_own = |network: &str| places.iter().any(|place| place.network_name == network);
    let dots = name.rmatch_indices('.').map(|(at, _)| at);
    let of_networks = dots
        .filter_map(|at| Some((name.get(..at)?, name.get(at + 1..)?)))
        .filter(|(_, network)| is_own(network))
        .map(|(name, network)| (name, Some(network)));
    let readings = std::iter::once((name, None)).chain(of_networks);
    for (name, network) in readings {
        let mut found = linked(c, &links, name, network)?;
        if found.is_empty() {
            found = named(c, container, name, network)?;
        }
        if !found.is_empty() {
            return Ok(Some(choose(found)));
        }
    }
    Ok(None)
}

/// An address of either family, on a network of the asker's by its position.
type Found = (i64, Option<IpAddr>, Option<IpAddr>);

fn found(row: &Row<'_>) -> rusqlite::Result<Found> {
    let address = |column| -> rusqlite::Result<Option<IpAddr>> {
        Ok(row.get_ref(column)?.as_str()?.parse().ok())
    };
    Ok((row.get(0)?, address(1)?, address(2)?))
}

/// Those of the first network that has any, for each family.
fn choose(found: Vec<Found>) -> Vec<IpAddr> {
    let first = |family: fn(&Found) -> Option<IpAddr>| {
        let network = found.iter().find(|f| family(f).is_some()).map(|f| f.0);
        let there = found.iter().filter(move |f| Some(f.0) == network);
        there.filter_map(family).collect::<Vec<_>>()
    };
    [first(|f| f.1), first(|f| f.2)].concat()
}

fn named(c: &Connection, container: &str, name: &str, network: Option<&str>) -> Result<Vec<Found>> {
    let mut statement = c.prepare_cached(
        "SELECT mine.position, e.address, e.address6 FROM endpoints AS mine \
         CROSS JOIN endpoint_names AS n ON n.network = mine.network AND n.name = ?2 \
         CROSS JOIN endpoints AS e ON e.container = n.container AND e.network = n.network \
         WHERE mine.container = ?1 AND (?3 IS NULL OR mine.network_name = ?3) AND e.id <> '' \
         ORDER BY mine.position",
    )?;
    let rows = statement.query_map(params![container, name, network], found)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// A place of the asker's.
struct Place {
    network: String,
    network_name: String,
    position: i64,
    links: Vec<String>,
}

fn places(c: &Connection, container: &str) -> Result<Vec<Place>> {
    let mut statement = c.prepare_cached(
        "SELECT network, network_name, position, wish ->> '$.links' FROM endpoints \
         WHERE container = ? ORDER BY position",
    )?;
    let rows = statement.query_map([container], |row| {
        let links: Option<String> = row.get(3)?;
        Ok(Place {
            network: row.get(0)?,
            network_name: row.get(1)?,
            position: row.get(2)?,
            links: links
                .and_then(|links| serde_json::from_str(&links).ok())
                .unwrap_or_default(),
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// A link: a name that one container has for another.
struct Link<'a> {
    place: &'a Place,
    target: &'a str,
    alias: &'a str,
}

fn links(places: &[Place]) -> Vec<Link<'_>> {
    let mut all = Vec::new();
    for place in places {
        for text in &place.links {
            let (target, alias) = text.split_once(':').unwrap_or((text, text));
            all.push(Link {
                place,
                target: target.trim_start_matches('/'),
                alias,
            });
        }
    }
    all
}

fn linked(
    c: &Connection,
    links: &[Link<'_>],
    name: &str,
    network: Option<&str>,
) -> Result<Vec<Found>> {
    let mut all = Vec::new();
    for link in links {
        let here = network.is_none_or(|network| network == link.place.network_name);
        if !here || !link.alias.eq_ignore_ascii_case(name) {
            continue;
        }
        let mut statement = c.prepare_cached(
            "SELECT ?3, e.address, e.address6 FROM endpoints AS e WHERE e.network = ?1 \
             AND e.id <> '' AND (e.container = ?2 OR e.container IN \
             (SELECT container FROM endpoint_names WHERE network = ?1 AND name = ?2))",
        )?;
        let rows = statement.query_map(
            params![link.place.network, link.target, link.place.position],
            found,
        )?;
        for row in rows {
            all.push(row?);
        }
    }
    Ok(all)
}

/// The name of whoever has an address on a network of `container`, with the network's.
pub(crate) fn name_of(c: &Connection, container: &str, address: IpAddr) -> Result<Option<String>> {
    let mut statement = c.prepare_cached(
        "SELECT other.name || '.' || mine.network_name FROM endpoints AS mine \
         CROSS JOIN addresses AS a ON a.network = mine.network AND a.address = ?2 \
         CROSS JOIN endpoints AS e ON e.container = a.owner AND e.network = mine.network \
         JOIN containers AS other ON other.id = e.container \
         WHERE mine.container = ?1 AND e.id <> '' \
         AND EXISTS (SELECT 1 FROM endpoint_names AS n WHERE n.container = e.container \
         AND n.network = e.network) ORDER BY mine.position LIMIT 1",
    )?;
    let name = statement.query_row([container, &address.to_string()], |row| row.get(0));
    Ok(name.optional()?)
}

/// Whether `container` is on a network with a way out.
pub(crate) fn may_forward(c: &Connection, container: &str) -> Result<bool> {
    let mut statement = c.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM endpoints AS e JOIN networks AS n ON n.id = e.network \
         WHERE e.container = ? AND NOT n.internal)",
    )?;
    Ok(statement.query_row([container], |row| row.get(0))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A container on a network: (container, network, addresses, names, links).
    type Place<'a> = (&'a str, &'a str, [&'a str; 2], &'a [&'a str], &'a [&'a str]);

    fn connection(rows: &[Place<'_>]) -> Connection {
        let c = Connection::open_in_memory().unwrap();
        for migration in crate::schema::SCHEMA.migrations {
            c.execute_batch(migration).unwrap();
        }
        for (position, (container, network, [v4, v6], names, links)) in rows.iter().enumerate() {
            c.execute(
                "INSERT INTO containers (id, name, created, image_id, image_name, config, \
                 host_config, setup, auto_remove, status) \
                 VALUES (?1, ?1, 0, '', '', '{}', '{}', '{}', 0, 'running') \
                 ON CONFLICT DO NOTHING",
                [container],
            )
            .unwrap();
            let internal = network.starts_with("inside");
            c.execute(
                "INSERT INTO networks (id, name, driver, created, subnet, gateway, internal) \
                 VALUES ('id-' || ?1, ?1, 'bridge', 0, '', '', ?2) ON CONFLICT DO NOTHING",
                params![network, internal],
            )
            .unwrap();
            let links: Vec<String> = links.iter().map(|l| format!("\"{l}\"")).collect();
            let wish = match links.is_empty() {
                true => "{}".to_owned(),
                false => format!("{{\"links\":[{}]}}", links.join(",")),
            };
            let position = i64::try_from(position).unwrap();
            let id = if v4.is_empty() && v6.is_empty() {
                ""
            } else {
                "e"
            };
            c.execute(
                "INSERT INTO endpoints (container, network, network_name, position, wish, id, \
                 address, address6) VALUES (?1, 'id-' || ?2, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![container, network, position, wish, id, v4, v6],
            )
            .unwrap();
            for address in [v4, v6].into_iter().filter(|a| !a.is_empty()) {
                c.execute(
                    "INSERT INTO addresses (network, address, owner) VALUES ('id-' || ?, ?, ?)",
                    [network, address, container],
                )
                .unwrap();
            }
            for name in *names {
                c.execute(
                    "INSERT INTO endpoint_names (network, name, container) \
                     VALUES ('id-' || ?, ?, ?)",
                    [network, name, container],
                )
                .unwrap();
            }
        }
        c
    }

    fn asked(c: &Connection, container: &str, name: &str) -> String {
        match addresses(c, container, name).unwrap() {
            None => "nobody".to_owned(),
            Some(list) => {
                let mut list: Vec<_> = list.iter().map(IpAddr::to_string).collect();
                list.sort();
                list.join(" ")
            }
        }
    }

    #[test]
    fn names_of_networks() {
        let c = connection(&[
            ("me", "front", ["10.1.0.2", ""], &["me", "x.y"], &[]),
            ("me", "my.back", ["10.2.0.2", "fd02::2"], &["me"], &[]),
            ("web", "front", ["10.1.0.3", ""], &["web", "www"], &[]),
            ("web", "my.back", ["10.2.0.3", "fd02::3"], &["web"], &[]),
            ("web2", "front", ["10.1.0.4", ""], &["web2", "www"], &[]),
            ("down", "front", ["", ""], &["down", "www"], &[]),
            ("far", "other", ["10.3.0.2", ""], &["far"], &[]),
            ("six", "my.back", ["", "fd02::6"], &["six"], &[]),
            ("dotted", "front", ["10.1.0.9", ""], &["a.front"], &[]),
            ("a", "front", ["10.1.0.10", ""], &["a"], &[]),
        ]);
        for (name, addresses) in [
            ("me", "10.1.0.2 fd02::2"),
            // Each family from the first network that has it.
            ("web", "10.1.0.3 fd02::3"),
            ("WEB", "10.1.0.3 fd02::3"),
            ("web.front", "10.1.0.3"),
            ("web.my.back", "10.2.0.3 fd02::3"),
            ("web.back", "nobody"),
            ("web.FRONT", "nobody"),
            ("www", "10.1.0.3 10.1.0.4"),
            ("x.y", "10.1.0.2"),
            ("x.y.front", "10.1.0.2"),
            ("six", "fd02::6"),
            // A whole name comes before one with a network's.
            ("a.front", "10.1.0.9"),
            ("down", "nobody"),
            ("far", "nobody"),
            ("far.other", "nobody"),
            (".", "nobody"),
            ("web.", "nobody"),
            (".front", "nobody"),
        ] {
            assert_eq!(asked(&c, "me", name), addresses, "{name}");
        }
        assert_eq!(asked(&c, "far", "web"), "nobody");
        let pointer = |address: &str| name_of(&c, "me", address.parse().unwrap()).unwrap();
        assert_eq!(pointer("10.1.0.3").as_deref(), Some("web.front"));
        assert_eq!(pointer("fd02::6").as_deref(), Some("six.my.back"));
        assert_eq!(pointer("10.3.0.2"), None);
        assert_eq!(pointer("10.1.0.99"), None);
    }

    #[test]
    fn links_are_names_of_one_container() {
        let c = connection(&[
            (
                "me",
                "n",
                ["10.1.0.2", ""],
                &["me"],
                &["db:store", "/gone:x", "down:d", "db"],
            ),
            ("db", "n", ["10.1.0.3", ""], &["db"], &[]),
            ("store", "n", ["10.1.0.4", ""], &["store"], &[]),
            ("down", "n", ["", ""], &["down"], &[]),
            ("other", "n", ["10.1.0.5", ""], &["other"], &[]),
        ]);
        assert_eq!(asked(&c, "me", "Store"), "10.1.0.3");
        assert_eq!(asked(&c, "me", "store.n"), "10.1.0.3");
        assert_eq!(asked(&c, "me", "db"), "10.1.0.3");
        assert_eq!(asked(&c, "me", "x"), "nobody");
        assert_eq!(asked(&c, "me", "d"), "nobody");
        assert_eq!(asked(&c, "other", "store"), "10.1.0.4");
    }

    #[test]
    fn a_way_out() {
        let c = connection(&[
            ("a", "inside1", ["10.1.0.2", ""], &[], &[]),
            ("b", "inside1", ["10.1.0.3", ""], &[], &[]),
            ("b", "out", ["10.2.0.2", ""], &[], &[]),
        ]);
        assert!(!may_forward(&c, "a").unwrap());
        assert!(may_forward(&c, "b").unwrap());
    }
}
