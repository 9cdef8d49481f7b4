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
    migrations: &[FIRST, HEALTH],
};

/// `health` is one of Docker's states, or empty without a health check.
const HEALTH: &str = "
ALTER TABLE containers ADD COLUMN health TEXT NOT NULL DEFAULT '';
ALTER TABLE containers ADD COLUMN failing_streak INTEGER NOT NULL DEFAULT 0;
ALTER TABLE containers ADD COLUMN health_log TEXT NOT NULL DEFAULT '[]';
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
