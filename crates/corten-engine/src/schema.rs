//! The engine's tables.
//!
//! Unique indexes settle races between processes: names, addresses, volumes. A container's
//! documents (configuration, host configuration, setup) are JSON; what is searched or
//! changed while it lives is columns. Nothing here says whether a container runs: the
//! kernel does (see `containers::state`); `status` is what its supervisor last wrote.

use corten_db::Schema;

/// The tables of this crate.
pub(crate) const SCHEMA: Schema = Schema {
    name: "engine",
    migrations: &[FIRST, HEALTH, NETWORKS, VOLUMES, CONFIGURATIONS, UPDATES],
};

/// `unfinished`: an update whose limits may not be in force yet, and who makes it (`containers::unfinished`).
const UPDATES: &str = "
ALTER TABLE containers ADD COLUMN unfinished TEXT NOT NULL DEFAULT '';
";

/// Networks that are only configurations for others (`--config-only`), and which of them a network was
/// made from (its name).
const CONFIGURATIONS: &str = "
ALTER TABLE networks ADD COLUMN config_only INTEGER NOT NULL DEFAULT 0;
ALTER TABLE networks ADD COLUMN config_from TEXT NOT NULL DEFAULT '';
";

/// User-defined networks, and the places of containers on networks.
///
/// `networks.ipam` is what was asked for and what was chosen; the default bridge's choice stays in
/// `subnet` and `gateway`, as a bridge's `link` does that is named by the layout.
///
/// An endpoint is there from create or connect until disconnect or rm. `wish` is what was asked
/// for; the rest is what it has while its container runs. Its network may be gone: that is found
/// out, and told, when the container is started. Before there were endpoints, a container had one
/// network, its mode's, and a supervisor that began then goes on to write `containers.network`.
///
/// `endpoint_names`: what the name servers of a user-defined network answer for.
const NETWORKS: &str = "
ALTER TABLE networks ADD COLUMN labels TEXT NOT NULL DEFAULT '{}';
ALTER TABLE networks ADD COLUMN options TEXT NOT NULL DEFAULT '{}';
ALTER TABLE networks ADD COLUMN internal INTEGER NOT NULL DEFAULT 0;
ALTER TABLE networks ADD COLUMN attachable INTEGER NOT NULL DEFAULT 0;
ALTER TABLE networks ADD COLUMN enable_ipv4 INTEGER NOT NULL DEFAULT 1;
ALTER TABLE networks ADD COLUMN enable_ipv6 INTEGER NOT NULL DEFAULT 0;
ALTER TABLE networks ADD COLUMN ipam TEXT NOT NULL DEFAULT '{}';
ALTER TABLE networks ADD COLUMN link TEXT NOT NULL DEFAULT '';
ALTER TABLE networks ADD COLUMN last6 TEXT NOT NULL DEFAULT '';
CREATE UNIQUE INDEX networks_link ON networks (link) WHERE link <> '';

CREATE TABLE endpoints (
    container    TEXT NOT NULL REFERENCES containers (id) ON DELETE CASCADE,
    network      TEXT NOT NULL,
    network_name TEXT NOT NULL,
    position     INTEGER NOT NULL,
    wish         TEXT NOT NULL,
    id           TEXT NOT NULL DEFAULT '',
    address      TEXT NOT NULL DEFAULT '',
    address6     TEXT NOT NULL DEFAULT '',
    mac          TEXT NOT NULL DEFAULT '',
    state        TEXT NOT NULL DEFAULT '{}',
    PRIMARY KEY (container, network)
) STRICT, WITHOUT ROWID;
CREATE INDEX endpoints_network ON endpoints (network);

CREATE TABLE endpoint_names (
    network   TEXT NOT NULL,
    name      TEXT NOT NULL COLLATE NOCASE,
    container TEXT NOT NULL REFERENCES containers (id) ON DELETE CASCADE,
    PRIMARY KEY (network, name, container)
) STRICT, WITHOUT ROWID;
CREATE INDEX endpoint_names_container ON endpoint_names (container);

INSERT INTO endpoints (container, network, network_name, position, wish)
SELECT c.id, n.id, n.name, 0, CASE WHEN json_extract(c.setup, '$.mac') IS NULL THEN '{}'
    ELSE json_object('mac', json_extract(c.setup, '$.mac')) END
FROM containers AS c JOIN networks AS n ON n.name =
    CASE WHEN ifnull(json_extract(c.config, '$.NetworkDisabled'), 0) THEN 'none'
    ELSE CASE ifnull(json_extract(c.host_config, '$.NetworkMode'), '')
        WHEN '' THEN 'bridge' WHEN 'default' THEN 'bridge'
        ELSE json_extract(c.host_config, '$.NetworkMode') END END
WHERE json_valid(c.config) AND json_valid(c.host_config) AND json_valid(c.setup);
";

/// `health` is one of Docker's states, or empty without a health check.
const HEALTH: &str = "
ALTER TABLE containers ADD COLUMN health TEXT NOT NULL DEFAULT '';
ALTER TABLE containers ADD COLUMN failing_streak INTEGER NOT NULL DEFAULT 0;
ALTER TABLE containers ADD COLUMN health_log TEXT NOT NULL DEFAULT '[]';
";

/// `unfilled`: the container was not yet done with filling the volume when this was written.
const VOLUMES: &str = "
ALTER TABLE volumes ADD COLUMN driver TEXT NOT NULL DEFAULT 'local';
ALTER TABLE container_volumes ADD COLUMN unfilled INTEGER NOT NULL DEFAULT 0;
";

const FIRST: &str = "
CREATE TABLE settings (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO settings VALUES ('id', lower(hex(randomblob(16))));

CREATE TABLE containers (
    id          TEXT PRIMARY KEY,
    name        TEXT NOT NULL UNIQUE,
    created     INTEGER NOT NULL,
    image_id    TEXT NOT NULL,
    image_name  TEXT NOT NULL,
    config      TEXT NOT NULL,
    host_config TEXT NOT NULL,
    setup       TEXT NOT NULL,
    auto_remove INTEGER NOT NULL,
    status      TEXT NOT NULL,
    pid         INTEGER NOT NULL DEFAULT 0,
    exit_code   INTEGER NOT NULL DEFAULT 0,
    oom_killed  INTEGER NOT NULL DEFAULT 0,
    error       TEXT NOT NULL DEFAULT '',
    started     INTEGER NOT NULL DEFAULT 0,
    finished    INTEGER NOT NULL DEFAULT 0,
    restarts    INTEGER NOT NULL DEFAULT 0,
    exits       INTEGER NOT NULL DEFAULT 0,
    stopped     INTEGER NOT NULL DEFAULT 0,
    network     TEXT NOT NULL DEFAULT ''
) STRICT, WITHOUT ROWID;
CREATE INDEX containers_image ON containers (image_id);

CREATE TABLE volumes (
    name      TEXT PRIMARY KEY,
    created   INTEGER NOT NULL,
    anonymous INTEGER NOT NULL,
    labels    TEXT NOT NULL,
    options   TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE container_volumes (
    volume    TEXT NOT NULL REFERENCES volumes (name),
    container TEXT NOT NULL REFERENCES containers (id) ON DELETE CASCADE,
    PRIMARY KEY (volume, container)
) STRICT, WITHOUT ROWID;
CREATE INDEX container_volumes_container ON container_volumes (container);

CREATE TABLE networks (
    id      TEXT PRIMARY KEY,
    name    TEXT NOT NULL UNIQUE,
    driver  TEXT NOT NULL,
    created INTEGER NOT NULL,
    subnet  TEXT NOT NULL,
    gateway TEXT NOT NULL,
    last    TEXT NOT NULL DEFAULT ''
) STRICT, WITHOUT ROWID;
INSERT INTO networks (id, name, driver, created, subnet, gateway) VALUES
    (lower(hex(randomblob(32))), 'bridge', 'bridge', unixepoch() * 1000000000, '', ''),
    (lower(hex(randomblob(32))), 'host', 'host', unixepoch() * 1000000000, '', ''),
    (lower(hex(randomblob(32))), 'none', 'null', unixepoch() * 1000000000, '', '');

CREATE TABLE addresses (
    network TEXT NOT NULL REFERENCES networks (id),
    address TEXT NOT NULL,
    owner   TEXT NOT NULL,
    PRIMARY KEY (network, address)
) STRICT, WITHOUT ROWID;
CREATE INDEX addresses_owner ON addresses (owner);

CREATE TABLE execs (
    id        TEXT PRIMARY KEY,
    container TEXT NOT NULL REFERENCES containers (id) ON DELETE CASCADE,
    created   INTEGER NOT NULL,
    config    TEXT NOT NULL,
    status    TEXT NOT NULL,
    pid       INTEGER NOT NULL DEFAULT 0,
    exit_code INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX execs_container ON execs (container);

CREATE TABLE events (
    seq        INTEGER PRIMARY KEY,
    at         INTEGER NOT NULL,
    kind       TEXT NOT NULL,
    action     TEXT NOT NULL,
    actor      TEXT NOT NULL,
    attributes TEXT NOT NULL
) STRICT;
CREATE INDEX events_actor ON events (actor);
";

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use crate::containers::row;

    use super::*;

    #[test]
    fn containers_made_before_there_were_endpoints_get_theirs() {
        let c = Connection::open_in_memory().unwrap();
        for migration in [FIRST, HEALTH] {
            c.execute_batch(migration).unwrap();
        }
        let bridge: String = c
            .query_row("SELECT id FROM networks WHERE name = 'bridge'", [], |r| {
                r.get(0)
            })
            .unwrap();
        let state = format!(
            r#"{{"network":"{bridge}","endpoint":"e","address":"10.0.0.2","prefix":16,
                "gateway":"10.0.0.1","mac":"","ports":{{}}}}"#
        );
        for (id, mode, network) in [
            ("a", "default", state.as_str()),
            ("b", "host", ""),
            ("c", "container:a", ""),
        ] {
            c.execute(
                "INSERT INTO containers (id, name, created, image_id, image_name, config, \
                 host_config, setup, auto_remove, status, network) \
                 VALUES (?1, ?1, 0, '', '', '{}', json_object('NetworkMode', ?2), \
                 '{\"layers\":[],\"mounts\":[],\"platform\":\"\",\"mac\":\"02:00:00:00:00:01\"}', \
                 0, 'running', ?3)",
                [id, mode, network],
            )
            .unwrap();
        }
        for migration in [NETWORKS, UPDATES] {
            c.execute_batch(migration).unwrap();
        }
        let endpoints = |id| row::get(&c, id).unwrap().unwrap().endpoints;
        let [on_bridge] = endpoints("a").try_into().unwrap();
        assert_eq!(on_bridge.network, bridge);
        assert_eq!(on_bridge.wish.mac.as_deref(), Some("02:00:00:00:00:01"));
        // Its supervisor wrote it before, and may write it again.
        assert_eq!(on_bridge.live.unwrap().address, "10.0.0.2");
        assert_eq!(endpoints("b")[0].network_name, "host");
        assert!(endpoints("c").is_empty());
    }
}
