//! A container's row: reading, finding by name, id or prefix, and the changes of its state.

use std::collections::BTreeMap;

use bollard_stubs::models::{ContainerConfig, HostConfig};
use corten_db::DbError;
use corten_oci::DiffId;
use corten_supervisor::{HealthState, HealthStatus, Probe};
use rusqlite::{Connection, OptionalExtension, Row as SqlRow, params};
use serde::{Deserialize, Serialize};

use super::endpoints::{self, Endpoint, HostPort, NetworkState};
use crate::error::EngineError;
use crate::parse::mounts::MountEntry;

type Result<T> = std::result::Result<T, EngineError>;

/// What the supervisor last wrote about a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Created,
    Running,
    Paused,
    Restarting,
    Exited,
    Removing,
    Dead,
}

impl Status {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Exited => "exited",
            Self::Removing => "removing",
            Self::Dead => "dead",
        }
    }

    pub(crate) fn parse(text: &str) -> Self {
        match text {
            "created" => Self::Created,
            "running" => Self::Running,
            "paused" => Self::Paused,
            "restarting" => Self::Restarting,
            "removing" => Self::Removing,
            "exited" => Self::Exited,
            _ => Self::Dead,
        }
    }

    /// Whether a supervisor must be alive for this to be true.
    pub(crate) fn is_live(self) -> bool {
        matches!(self, Self::Running | Self::Paused | Self::Restarting)
    }
}

/// What was settled at create besides Docker's own documents.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// The image's layers, bottom first.
    pub(crate) layers: Vec<DiffId>,
    /// Every mount, volumes with their names.
    pub(crate) mounts: Vec<MountEntry>,
    /// `os/arch[/variant]` of the image.
    pub(crate) platform: String,
    /// The process that is to start it, as [`crate::sweep::this_process`] writes it, if nobody wants
    /// it once that is gone: of `corten run --rm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) starter: Option<String>,
}

/// A container as stored.
#[derive(Debug, Clone)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) created: i64,
    pub(crate) image_id: String,
    pub(crate) image_name: String,
    pub(crate) config: ContainerConfig,
    pub(crate) host: HostConfig,
    pub(crate) setup: Setup,
    pub(crate) auto_remove: bool,
    pub(crate) status: Status,
    pub(crate) pid: i32,
    pub(crate) exit_code: i64,
    pub(crate) oom_killed: bool,
    pub(crate) error: String,
    pub(crate) started: i64,
    pub(crate) finished: i64,
    pub(crate) restarts: i64,
    /// How often it has ended so far.
    pub(crate) exits: i64,
    /// A user asked it to stop (no restart at boot then, with `unless-stopped`).
    pub(crate) stopped: bool,
    /// Its places on networks.
    pub(crate) endpoints: Vec<Endpoint>,
    /// What its health check last said; `None` without one, or before the first start.
    pub(crate) health: Option<HealthStatus>,
    /// An update that its host configuration has and its control group may not have yet
    /// ([`super::unfinished`]); empty if there is none.
    pub(crate) unfinished: String,
}

impl Container {
    /// Its published ports: `80/tcp` → where on the host.
    pub(crate) fn ports(&self) -> BTreeMap<&str, Vec<&HostPort>> {
        let mut all: BTreeMap<&str, Vec<&HostPort>> = BTreeMap::new();
        for state in self.endpoints.iter().filter_map(|e| e.live.as_ref()) {
            for (inside, hosts) in &state.ports {
                all.entry(inside).or_default().extend(hosts);
            }
        }
        all
    }

    /// Its place on a network.
    pub(crate) fn endpoint(&self, network: &str) -> Option<&Endpoint> {
        self.endpoints.iter().find(|e| e.network == network)
    }
}

const COLUMNS: &str = "id, name, created, image_id, image_name, config, host_config, setup, \
    auto_remove, status, pid, exit_code, oom_killed, error, started, finished, restarts, exits, \
    stopped, network, health, unfinished";

/// What a query of whole containers selects.
fn columns() -> String {
    format!("{COLUMNS}, {}", endpoints::COLUMN)
}

fn health_status(text: &str) -> Option<HealthStatus> {
    match text {
        "starting" => Some(HealthStatus::Starting),
        "healthy" => Some(HealthStatus::Healthy),
        "unhealthy" => Some(HealthStatus::Unhealthy),
        _ => None,
    }
}

/// The texts of a row, before its documents are parsed.
struct Raw {
    config: String,
    host: String,
    setup: String,
    network: String,
    endpoints: String,
    container: Container,
}

fn raw(row: &SqlRow<'_>) -> rusqlite::Result<Raw> {
    Ok(Raw {
        config: row.get(5)?,
        host: row.get(6)?,
        setup: row.get(7)?,
        network: row.get(19)?,
        endpoints: row.get(22)?,
        container: Container {
            id: row.get(0)?,
            name: row.get(1)?,
            created: row.get(2)?,
            image_id: row.get(3)?,
            image_name: row.get(4)?,
            config: ContainerConfig::default(),
            host: HostConfig::default(),
            setup: Setup::default(),
            auto_remove: row.get(8)?,
            status: Status::parse(row.get_ref(9)?.as_str()?),
            pid: row.get(10)?,
            exit_code: row.get(11)?,
            oom_killed: row.get(12)?,
            error: row.get(13)?,
            started: row.get(14)?,
            finished: row.get(15)?,
            restarts: row.get(16)?,
            exits: row.get(17)?,
            stopped: row.get(18)?,
            endpoints: Vec::new(),
            health: health_status(row.get_ref(20)?.as_str()?),
            unfinished: row.get(21)?,
        },
    })
}

impl Raw {
    fn parse(self) -> Result<Container> {
        let mut container = self.container;
        let id = container.id.clone();
        let damaged = |what| {
            let object = format!("container {id}");
            move |source| EngineError::Document {
                what,
                object,
                source,
            }
        };
        container.config = serde_json::from_str(&self.config).map_err(damaged("configuration"))?;
        container.host = serde_json::from_str(&self.host).map_err(damaged("host configuration"))?;
        container.setup = serde_json::from_str(&self.setup).map_err(damaged("setup"))?;
        container.endpoints =
            endpoints::parse(&self.endpoints).map_err(damaged("network settings"))?;
        if !self.network.is_empty() {
            let state: NetworkState =
                serde_json::from_str(&self.network).map_err(damaged("network state"))?;
            let mut all = container.endpoints.iter_mut();
            if let Some(endpoint) = all.find(|e| e.network == state.network) {
                endpoint.live = Some(state);
            }
        }
        Ok(container)
    }
}

fn json(value: &impl Serialize, what: &'static str, id: &str) -> Result<String> {
    serde_json::to_string(value).map_err(|source| EngineError::Document {
        what,
        object: format!("container {id}"),
        source,
    })
}

/// Stores a new container. A name that is taken gives [`EngineError::NameInUse`].
pub(crate) fn insert(c: &Connection, container: &Container) -> Result<()> {
    let id = &container.id;
    let inserted = c
        .prepare_cached(
            "INSERT INTO containers (id, name, created, image_id, image_name, config, \
             host_config, setup, auto_remove, status) VALUES (?,?,?,?,?,?,?,?,?,?)",
        )?
        .execute(params![
            id,
            container.name,
            container.created,
            container.image_id,
            container.image_name,
            json(&container.config, "configuration", id)?,
            json(&container.host, "host configuration", id)?,
            json(&container.setup, "setup", id)?,
            container.auto_remove,
            container.status.as_str(),
        ]);
    if let Err(error) = inserted {
        return Err(unless_taken(c, &container.name, error)?);
    }
    for endpoint in &container.endpoints {
        endpoints::insert(c, container, endpoint)?;
    }
    Ok(())
}

/// Renames a container; as [`insert`] when the name is taken.
pub(crate) fn rename(c: &Connection, id: &str, name: &str) -> Result<()> {
    match c.execute("UPDATE containers SET name = ? WHERE id = ?", [name, id]) {
        Ok(_) => Ok(()),
        Err(error) => Err(unless_taken(c, name, error)?),
    }
}

/// The error of storing a name: that it is taken, where that is why.
fn unless_taken(c: &Connection, name: &str, error: rusqlite::Error) -> Result<EngineError> {
    let error = DbError::from(error);
    if error.is_unique_violation() {
        name_in_use(c, name)
    } else {
        Ok(error.into())
    }
}

fn name_in_use(c: &Connection, name: &str) -> Result<EngineError> {
    let holder: Option<String> = c
        .query_row("SELECT id FROM containers WHERE name = ?", [name], |r| {
            r.get(0)
        })
        .optional()?;
    Ok(EngineError::NameInUse {
        name: name.to_owned(),
        holder: holder.unwrap_or_default(),
    })
}

/// The id a name, id or unambiguous prefix stands for, in this order.
pub(crate) fn resolve(c: &Connection, name: &str) -> Result<String> {
    let bare = name.strip_prefix('/').unwrap_or(name);
    if bare.is_empty() {
        return Err(EngineError::NoSuchContainer(name.to_owned()));
    }
    let exact: Option<String> = c
        .prepare_cached("SELECT id FROM containers WHERE id = ?1 OR name = ?1 ORDER BY id <> ?1")?
        .query_row([bare], |r| r.get(0))
        .optional()?;
    if let Some(id) = exact {
        return Ok(id);
    }
    let is_prefix = bare
        .bytes()
        .all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase());
    if is_prefix {
        let mut statement =
            c.prepare_cached("SELECT id FROM containers WHERE id >= ?1 AND id < ?2 LIMIT 2")?;
        let upper = format!("{bare}g");
        let found: Vec<String> = statement
            .query_map([bare, &upper], |r| r.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        match found.as_slice() {
            [id] => return Ok(id.clone()),
            [_, _, ..] => return Err(EngineError::AmbiguousPrefix(name.to_owned())),
            [] => {}
        }
    }
    Err(EngineError::NoSuchContainer(name.to_owned()))
}

/// The name of a container, by its exact id.
pub(crate) fn name(c: &Connection, id: &str) -> Result<Option<String>> {
    let name = c
        .prepare_cached("SELECT name FROM containers WHERE id = ?")?
        .query_row([id], |row| row.get(0))
        .optional()?;
    Ok(name)
}

/// Reads a container by its exact id.
pub(crate) fn get(c: &Connection, id: &str) -> Result<Option<Container>> {
    c.prepare_cached(&format!(
        "SELECT {} FROM containers WHERE id = ?",
        columns()
    ))?
    .query_row([id], raw)
    .optional()?
    .map(Raw::parse)
    .transpose()
}

/// Finds and reads a container.
pub(crate) fn find(c: &Connection, name: &str) -> Result<Container> {
    let id = resolve(c, name)?;
    get(c, &id)?.ok_or_else(|| EngineError::NoSuchContainer(name.to_owned()))
}

/// All containers, newest first. A damaged row is reported and skipped: one of them must
/// not hide the others.
pub(crate) fn all(c: &Connection, only_live: bool) -> Result<Vec<Container>> {
    let only = if only_live {
        "WHERE status IN ('running','paused','restarting')"
    } else {
        ""
    };
    let mut statement = c.prepare_cached(&format!(
        "SELECT {} FROM containers {only} ORDER BY created DESC, id",
        columns()
    ))?;
    let rows = statement.query_map([], raw)?;
    let mut list = Vec::new();
    for row in rows {
        match row?.parse() {
            Ok(container) => list.push(container),
            Err(error) => tracing::error!(%error, "a container's row cannot be read"),
        }
    }
    Ok(list)
}

/// Another host configuration.
pub(crate) fn set_host(c: &Connection, id: &str, host: &HostConfig) -> Result<()> {
    let text = json(host, "host configuration", id)?;
    c.prepare_cached("UPDATE containers SET host_config = ? WHERE id = ?")?
        .execute([text.as_str(), id])?;
    Ok(())
}

/// Another mark of an update that may not have been carried out; empty for none.
pub(crate) fn set_unfinished(c: &Connection, id: &str, mark: &str) -> Result<()> {
    c.prepare_cached("UPDATE containers SET unfinished = ? WHERE id = ?")?
        .execute([mark, id])?;
    Ok(())
}

/// The container runs. `checked`: it has a health check, which has said nothing yet.
pub(crate) fn set_running(
    c: &Connection,
    id: &str,
    pid: i32,
    at: i64,
    networks: &[NetworkState],
    checked: bool,
) -> Result<()> {
    let health = if checked {
        HealthStatus::Starting.as_str()
    } else {
        ""
    };
    c.prepare_cached(
        "UPDATE containers SET status = 'running', pid = ?, started = ?, error = '', \
         exit_code = 0, oom_killed = 0, network = '', health = ?, \
         failing_streak = 0 WHERE id = ?",
    )?
    .execute(params![pid, at, health, id])?;
    for state in networks {
        endpoints::set_live(c, id, state)?;
    }
    Ok(())
}

/// How a container's program ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended<'a> {
    pub(crate) status: Status,
    pub(crate) exit_code: i64,
    pub(crate) oom_killed: bool,
    pub(crate) error: &'a str,
    pub(crate) at: i64,
}

/// The container's program has ended. What does not run is not healthy (as Docker has it).
pub(crate) fn set_ended(c: &Connection, id: &str, ended: &Ended<'_>) -> Result<()> {
    c.prepare_cached(
        "UPDATE containers SET status = ?, pid = 0, exit_code = ?, oom_killed = ?, error = ?, \
         finished = ?, exits = exits + 1, network = '', \
         health = iif(health = '', '', 'unhealthy') WHERE id = ?",
    )?
    .execute(params![
        ended.status.as_str(),
        ended.exit_code,
        ended.oom_killed,
        ended.error,
        ended.at,
        id
    ])?;
    endpoints::clear_live(c, id)
}

/// Whether a supervisor that began before there were endpoints has written what the container has.
pub(crate) fn has_older_state(c: &Connection, id: &str) -> Result<bool> {
    let mut statement = c.prepare_cached("SELECT network <> '' FROM containers WHERE id = ?")?;
    Ok(statement.query_row([id], |r| r.get(0))?)
}

/// The out-of-memory killer has come.
pub(crate) fn set_oom(c: &Connection, id: &str) -> Result<()> {
    c.prepare_cached("UPDATE containers SET oom_killed = 1 WHERE id = ?")?
        .execute([id])?;
    Ok(())
}

/// A health check has been judged.
pub(crate) fn set_health(c: &Connection, id: &str, health: &HealthState) -> Result<()> {
    c.prepare_cached(
        "UPDATE containers SET health = ?, failing_streak = ?, health_log = ? WHERE id = ?",
    )?
    .execute(params![
        health.status.as_str(),
        health.failing_streak,
        json(&health.log, "health log", id)?,
        id
    ])?;
    Ok(())
}

/// Failures in a row, and the last results of the health check. Not part of [`Container`]:
/// they are read far less often, and long.
pub(crate) fn health_log(c: &Connection, id: &str) -> Result<(i64, Vec<Probe>)> {
    let (streak, log): (i64, String) = c
        .prepare_cached("SELECT failing_streak, health_log FROM containers WHERE id = ?")?
        .query_row([id], |r| Ok((r.get(0)?, r.get(1)?)))?;
    let log = serde_json::from_str(&log).map_err(|source| EngineError::Document {
        what: "health log",
        object: format!("container {id}"),
        source,
    })?;
    Ok((streak, log))
}

/// How many whole seconds a container has run until then.
pub(crate) fn lasted(c: &Connection, id: &str, until: i64) -> Result<i64> {
    let started: Option<i64> = c
        .prepare_cached("SELECT started FROM containers WHERE id = ?")?
        .query_row([id], |r| r.get(0))
        .optional()?;
    Ok((until - started.unwrap_or(until)).max(0) / 1_000_000_000)
}

/// The container could not be started: it is as before, with the error and its exit code.
pub(crate) fn set_start_failed(c: &Connection, id: &str, code: i64, error: &str) -> Result<()> {
    c.prepare_cached("UPDATE containers SET exit_code = ?, error = ?, pid = 0 WHERE id = ?")?
        .execute(params![code, error, id])?;
    Ok(())
}

/// The restart policy has set in once more.
pub(crate) fn count_restart(c: &Connection, id: &str) -> Result<()> {
    c.prepare_cached("UPDATE containers SET restarts = restarts + 1 WHERE id = ?")?
        .execute([id])?;
    Ok(())
}

/// A user starts it: a new count begins, and no earlier stop counts any more. Not at each run:
/// a stop may come while a restart policy begins one.
pub(crate) fn set_wanted(c: &Connection, id: &str) -> Result<()> {
    c.prepare_cached("UPDATE containers SET restarts = 0, stopped = 0 WHERE id = ?")?
        .execute([id])?;
    Ok(())
}

/// It was to be started again and will not be; `error` says why, if anything is wrong.
pub(crate) fn set_given_up(c: &Connection, id: &str, error: &str) -> Result<()> {
    c.prepare_cached(
        "UPDATE containers SET status = 'exited', error = iif(?1 = '', error, ?1) WHERE id = ?2",
    )?
    .execute([error, id])?;
    Ok(())
}

/// A user asked for the end: no restart at boot for `unless-stopped`.
pub(crate) fn set_stopped(c: &Connection, id: &str) -> Result<()> {
    c.prepare_cached("UPDATE containers SET stopped = 1 WHERE id = ?")?
        .execute([id])?;
    Ok(())
}

/// Whether it is removed after its end.
pub(crate) fn set_auto_remove(c: &Connection, id: &str, auto_remove: bool) -> Result<()> {
    c.prepare_cached("UPDATE containers SET auto_remove = ? WHERE id = ?")?
        .execute(params![auto_remove, id])?;
    Ok(())
}

/// Writes the status alone.
pub(crate) fn set_status(c: &Connection, id: &str, status: Status) -> Result<()> {
    c.prepare_cached("UPDATE containers SET status = ? WHERE id = ?")?
        .execute(params![status.as_str(), id])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection() -> Connection {
        let c = Connection::open_in_memory().unwrap();
        for migration in crate::schema::SCHEMA.migrations {
            c.execute_batch(migration).unwrap();
        }
        c
    }

    fn container(id: &str, name: &str) -> Container {
        Container {
            id: id.to_owned(),
            name: name.to_owned(),
            created: 1,
            image_id: "sha256:0".to_owned(),
            image_name: "alpine".to_owned(),
            config: ContainerConfig::default(),
            host: HostConfig::default(),
            setup: Setup::default(),
            auto_remove: false,
            status: Status::Created,
            pid: 0,
            exit_code: 0,
            oom_killed: false,
            error: String::new(),
            started: 0,
            finished: 0,
            restarts: 0,
            exits: 0,
            stopped: false,
            endpoints: Vec::new(),
            health: None,
            unfinished: String::new(),
        }
    }

    #[test]
    fn finds_by_id_name_and_prefix() {
        let c = connection();
        let (a, b) = (
            format!("abc{}", "0".repeat(61)),
            format!("abd{}", "0".repeat(61)),
        );
        insert(&c, &container(&a, "web")).unwrap();
        insert(&c, &container(&b, "abc")).unwrap();
        assert_eq!(resolve(&c, "web").unwrap(), a);
        assert_eq!(resolve(&c, "/web").unwrap(), a);
        assert_eq!(resolve(&c, &a).unwrap(), a);
        assert_eq!(resolve(&c, "abc0").unwrap(), a);
        // A name wins over a prefix.
        assert_eq!(resolve(&c, "abc").unwrap(), b);
        assert!(matches!(
            resolve(&c, "ab"),
            Err(EngineError::AmbiguousPrefix(_))
        ));
        for none in ["", "/", "xyz", "ABC0", "abc0%"] {
            assert!(
                matches!(resolve(&c, none), Err(EngineError::NoSuchContainer(_))),
                "{none}"
            );
        }
    }

    #[test]
    fn seconds_since_the_start() {
        let c = connection();
        let id = format!("abc{}", "0".repeat(61));
        insert(&c, &container(&id, "web")).unwrap();
        c.execute("UPDATE containers SET started = 5000000000", [])
            .unwrap();
        assert_eq!(lasted(&c, &id, 7_900_000_000).unwrap(), 2);
        assert_eq!(lasted(&c, &id, 1).unwrap(), 0);
        assert_eq!(lasted(&c, "none", 9_000_000_000).unwrap(), 0);
    }

    #[test]
    fn a_name_belongs_to_one() {
        let c = connection();
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        insert(&c, &container(&a, "web")).unwrap();
        let error = insert(&c, &container(&b, "web")).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "Conflict. The container name \"/web\" is already in use by container \"{a}\". \
                 You have to remove (or rename) that container to be able to reuse that name."
            )
        );
        insert(&c, &container(&b, "db")).unwrap();
        assert!(matches!(
            rename(&c, &b, "web"),
            Err(EngineError::NameInUse { .. })
        ));
    }

    #[test]
    fn state_changes_are_stored() {
        let c = connection();
        let id = "a".repeat(64);
        let mut web = container(&id, "web");
        web.endpoints = vec![Endpoint {
            network: "n".to_owned(),
            network_name: "back".to_owned(),
            wish: endpoints::Wish {
                aliases: vec!["db".to_owned()],
                ..Default::default()
            },
            ..Default::default()
        }];
        insert(&c, &web).unwrap();
        assert_eq!(get(&c, &id).unwrap().unwrap().endpoints, web.endpoints);
        let network = NetworkState {
            network: "n".to_owned(),
            endpoint: "e".to_owned(),
            address: "172.17.0.2".to_owned(),
            ..Default::default()
        };
        let networks = [network];
        set_running(&c, &id, 42, 7, &networks, true).unwrap();
        let running = get(&c, &id).unwrap().unwrap();
        assert_eq!((running.status, running.pid), (Status::Running, 42));
        assert_eq!(running.endpoints[0].live.as_ref(), Some(&networks[0]));
        assert_eq!(running.health, Some(HealthStatus::Starting));
        // Only whoever starts it takes a stop back, not its policy.
        set_stopped(&c, &id).unwrap();
        set_running(&c, &id, 42, 7, &networks, true).unwrap();
        assert!(get(&c, &id).unwrap().unwrap().stopped);
        set_wanted(&c, &id).unwrap();
        assert!(!get(&c, &id).unwrap().unwrap().stopped);
        let probe = Probe {
            start: "s".to_owned(),
            end: "e".to_owned(),
            exit_code: 1,
            output: "no".to_owned(),
        };
        let health = HealthState {
            status: HealthStatus::Healthy,
            failing_streak: 1,
            log: vec![probe],
        };
        set_health(&c, &id, &health).unwrap();
        let judged = get(&c, &id).unwrap().unwrap().health;
        assert_eq!(judged, Some(HealthStatus::Healthy));
        assert_eq!(health_log(&c, &id).unwrap(), (1, health.log));
        assert_eq!(all(&c, true).unwrap().len(), 1);
        let ended = Ended {
            status: Status::Exited,
            exit_code: 137,
            oom_killed: true,
            error: "",
            at: 9,
        };
        set_ended(&c, &id, &ended).unwrap();
        let exited = get(&c, &id).unwrap().unwrap();
        assert_eq!(
            (exited.status, exited.exit_code, exited.exits),
            (Status::Exited, 137, 1)
        );
        assert!(exited.oom_killed && exited.endpoints[0].live.is_none());
        assert_eq!(exited.health, Some(HealthStatus::Unhealthy));
        assert!(all(&c, true).unwrap().is_empty());
    }

    #[test]
    fn a_damaged_row_does_not_hide_others() {
        let c = connection();
        insert(&c, &container(&"a".repeat(64), "web")).unwrap();
        insert(&c, &container(&"b".repeat(64), "db")).unwrap();
        c.execute("UPDATE containers SET config = '{' WHERE name = 'web'", [])
            .unwrap();
        assert_eq!(all(&c, false).unwrap().len(), 1);
        assert!(matches!(find(&c, "web"), Err(EngineError::Document { .. })));
    }
}
