//! Listing containers.

use std::collections::HashMap;

use bollard_stubs::models::{
    ContainerSummary, ContainerSummaryHostConfig, ContainerSummaryNetworkSettings,
    ContainerSummaryStateEnum, PortSummary, PortSummaryTypeEnum,
};

use corten_supervisor::HealthStatus;

use super::row::{self, Container, Status};
use super::{ListOptions, inspect, state};
use crate::Filters;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::images::documents::ImageDocument;
use crate::parse::{bad, filters, ports, time};
use corten_oci::DiffId;

type Result<T> = std::result::Result<T, EngineError>;

const FILTERS: &[&str] = &[
    "id",
    "name",
    "label",
    "label!",
    "status",
    "ancestor",
    "exited",
    "before",
    "since",
    "volume",
    "network",
    "publish",
    "expose",
    "health",
    "is-task",
    "isolation",
];

/// Lists containers, newest first. Blocks.
pub(super) fn list(engine: &Engine, options: &ListOptions) -> Result<Vec<ContainerSummary>> {
    filters::check(&options.filters, FILTERS)?;
    let selection = Selection::read(engine, &options.filters)?;
    // A status filter, a limit, or an exit code asks for the dead, too.
    let all = options.all
        || options.limit.is_some()
        || ["status", "exited", "before", "since"]
            .iter()
            .any(|f| options.filters.contains_key(*f));
    let mut containers = engine.database().read(|c| row::all(c, !all))?;
    for container in &mut containers {
        state::reconcile(engine, container)?;
    }
    // No row says so: these were removed on the way.
    containers.retain(|c| c.status != Status::Removing);
    let mut images = HashMap::new();
    let limit = options
        .limit
        .map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
    let mut summaries = Vec::new();
    for container in containers {
        if summaries.len() >= limit {
            break;
        }
        if (!all && !container.status.is_live()) || !selection.allows(&container) {
            continue;
        }
        let image = shown_image(engine, &container, &mut images);
        summaries.push(summary(engine, &container, image, options.size));
    }
    Ok(summaries)
}

/// The image as the user named it, unless that name stands for another image by now.
fn shown_image(
    engine: &Engine,
    container: &Container,
    known: &mut HashMap<String, Option<String>>,
) -> String {
    let id = known
        .entry(container.image_name.clone())
        .or_insert_with(|| {
            engine
                .store()
                .images()
                .resolve(&container.image_name)
                .ok()
                .map(|id| id.to_string())
        });
    if id.as_deref() == Some(container.image_id.as_str()) {
        container.image_name.clone()
    } else {
        container.image_id.clone()
    }
}

fn summary(engine: &Engine, container: &Container, image: String, size: bool) -> ContainerSummary {
    let (path, args) = inspect::path_and_args(container);
    let command = command_text(path, args);
    let (rw, root) = if size {
        inspect::sizes(engine, container)
    } else {
        (None, None)
    };
    ContainerSummary {
        id: Some(container.id.clone()),
        names: Some(vec![format!("/{}", container.name)]),
        image: Some(image),
        image_id: Some(container.image_id.clone()),
        command: Some(command),
        created: Some(container.created / 1_000_000_000),
        ports: Some(port_summaries(container)),
        size_rw: rw,
        size_root_fs: root,
        labels: Some(container.config.labels.clone().unwrap_or_default()),
        state: Some(match container.status {
            Status::Created => ContainerSummaryStateEnum::CREATED,
            Status::Running => ContainerSummaryStateEnum::RUNNING,
            Status::Paused => ContainerSummaryStateEnum::PAUSED,
            Status::Restarting => ContainerSummaryStateEnum::RESTARTING,
            Status::Exited => ContainerSummaryStateEnum::EXITED,
            Status::Removing => ContainerSummaryStateEnum::REMOVING,
            Status::Dead => ContainerSummaryStateEnum::DEAD,
        }),
        status: Some(status_text(container, time::now_nanos())),
        host_config: Some(ContainerSummaryHostConfig {
            network_mode: inspect::network_mode(container),
            annotations: container.host.annotations.clone(),
        }),
        network_settings: Some(ContainerSummaryNetworkSettings {
            networks: Some(inspect::networks(container)),
        }),
        mounts: Some(inspect::mount_points(engine, container)),
        ..Default::default()
    }
}

/// The command line as Docker shows it: arguments with spaces in quotes.
fn command_text(path: String, args: Vec<String>) -> String {
    let args = args.into_iter().map(|arg| match arg.contains(' ') {
        true => format!("'{arg}'"),
        false => arg,
    });
    std::iter::once(path)
        .chain(args)
        .collect::<Vec<_>>()
        .join(" ")
}

/// `Up 3 minutes`, `Exited (0) 2 hours ago`, …
fn status_text(container: &Container, now: i64) -> String {
    let since = |then: i64| time::human_duration(now - then);
    match container.status {
        Status::Created => "Created".to_owned(),
        Status::Running => {
            let health = match container.health {
                None => "",
                Some(HealthStatus::Starting) => " (health: starting)",
                Some(HealthStatus::Healthy) => " (healthy)",
                Some(HealthStatus::Unhealthy) => " (unhealthy)",
            };
            format!("Up {}{health}", since(container.started))
        }
        Status::Paused => format!("Up {} (Paused)", since(container.started)),
        Status::Restarting => {
            format!(
                "Restarting ({}) {} ago",
                container.exit_code,
                since(container.finished)
            )
        }
        Status::Exited => {
            format!(
                "Exited ({}) {} ago",
                container.exit_code,
                since(container.finished)
            )
        }
        Status::Removing => "Removal In Progress".to_owned(),
        Status::Dead => "Dead".to_owned(),
    }
}

fn port_summaries(container: &Container) -> Vec<PortSummary> {
    if !container.status.is_live() {
        return Vec::new();
    }
    let kind = |protocol: &str| {
        Some(if protocol == "udp" {
            PortSummaryTypeEnum::UDP
        } else {
            PortSummaryTypeEnum::TCP
        })
    };
    let published = container.ports();
    let mut list = Vec::new();
    for (inside, hosts) in &published {
        let Some((number, protocol)) = inside.split_once('/') else {
            continue;
        };
        let Ok(private_port) = number.parse() else {
            continue;
        };
        list.extend(hosts.iter().map(|host| PortSummary {
            ip: Some(host.ip.clone()),
            private_port,
            public_port: Some(host.port),
            typ: kind(protocol),
        }));
    }
    let exposed = container
        .config
        .exposed_ports
        .as_deref()
        .unwrap_or_default();
    for port in ports::exposed(exposed).unwrap_or_default() {
        if !published.contains_key(port.to_string().as_str()) {
            list.push(PortSummary {
                ip: None,
                private_port: port.number,
                public_port: None,
                typ: kind(port.protocol.as_str()),
            });
        }
    }
    list.sort_by_key(|p| (p.private_port, p.public_port));
    list
}

/// What `status` may be, in Docker's order.
const STATES: &[&str] = &[
    "created",
    "running",
    "paused",
    "restarting",
    "removing",
    "exited",
    "dead",
];

/// What `health` may be.
const HEALTHS: &[&str] = &["none", "starting", "healthy", "unhealthy"];

/// Refuses values of a filter that are none of those.
fn one_of(wanted: &Filters, field: &str, what: &str, known: &[&str]) -> Result<()> {
    match filters::values(wanted, field)
        .iter()
        .find(|value| !known.contains(&value.as_str()))
    {
        None => Ok(()),
        Some(value) => Err(bad(format!(
            "invalid filter '{field}={value}': invalid value for {what} ({value}): must be one of \
             {}",
            known.join(", ")
        ))),
    }
}

/// The filters, read.
struct Selection<'a> {
    filters: &'a Filters,
    ids: Vec<Pattern>,
    names: Vec<Pattern>,
    exited: Vec<i64>,
    before: Option<i64>,
    since: Option<i64>,
    /// Images that `ancestor` names, with their layers.
    ancestors: Option<Vec<(String, Vec<DiffId>)>>,
}

impl<'a> Selection<'a> {
    fn read(engine: &Engine, wanted: &'a Filters) -> Result<Self> {
        one_of(wanted, "status", "state", STATES)?;
        one_of(wanted, "health", "health", HEALTHS)?;
        filters::flag(wanted, "is-task")?;
        for field in ["publish", "expose"] {
            for value in filters::values(wanted, field) {
                port_range(field, value)?;
            }
        }
        let exited = filters::values(wanted, "exited")
            .iter()
            .map(|v| {
                v.parse().map_err(|_| {
                    bad(format!(
                        "invalid filter 'exited={v}': strconv.Atoi: parsing {v:?}: invalid syntax"
                    ))
                })
            })
            .collect::<Result<_>>()?;
        let created = |field: &str| -> Result<Option<i64>> {
            match filters::values(wanted, field).first() {
                None => Ok(None),
                Some(name) => Ok(Some(
                    engine.database().read(|c| row::find(c, name))?.created,
                )),
            }
        };
        let ancestors = match filters::values(wanted, "ancestor") {
            [] => None,
            names => Some(
                names
                    .iter()
                    .filter_map(|n| ImageDocument::find(engine, n, None).ok())
                    .map(|image| (image.id.to_string(), image.layers))
                    .collect(),
            ),
        };
        Ok(Self {
            filters: wanted,
            ids: Pattern::all(wanted, "id"),
            names: Pattern::all(wanted, "name"),
            exited,
            before: created("before")?,
            since: created("since")?,
            ancestors,
        })
    }

    fn allows(&self, container: &Container) -> bool {
        let wanted = self.filters;
        let any =
            |field: &str, passes: &dyn Fn(&String) -> bool| filters::any(wanted, field, passes);
        let labels = container.config.labels.clone().unwrap_or_default();
        any_matches(&self.ids, &container.id)
            && any_matches(&self.names, &container.name)
            && filters::labels(wanted, &labels)
            && any("status", &|v| container.status.as_str() == v)
            && (self.exited.is_empty()
                || (container.status == Status::Exited
                    && self.exited.contains(&container.exit_code)))
            && self.before.is_none_or(|b| container.created < b)
            && self.since.is_none_or(|s| container.created > s)
            && self
                .ancestors
                .as_ref()
                .is_none_or(|images| images.iter().any(|image| descends(container, image)))
            && any("volume", &|v| has_mount(container, v))
            && any("network", &|v| on_network(container, v))
            && any("publish", &|v| publishes(container, v))
            && any("expose", &|v| exposes(container, v))
            && any("health", &|v| {
                v == container.health.map_or("none", HealthStatus::as_str)
            })
            // There is only one here.
            && any("isolation", &|v| v == "default")
            && filters::flag(wanted, "is-task").is_ok_and(|task| task != Some(true))
    }
}

/// A filter that is a text or a regular expression, as Docker has it for names and ids. One that
/// is no expression is only a text.
struct Pattern {
    text: String,
    expression: Option<regex_lite::Regex>,
}

impl Pattern {
    fn all(filters: &Filters, field: &str) -> Vec<Self> {
        let pattern = |text: &String| Self {
            text: text.clone(),
            expression: regex_lite::Regex::new(text).ok(),
        };
        filters::values(filters, field)
            .iter()
            .map(pattern)
            .collect()
    }

    fn matches(&self, source: &str) -> bool {
        let found = |expression: &regex_lite::Regex| expression.is_match(source);
        self.text == source || self.expression.as_ref().is_some_and(found)
    }
}

/// Whether one of them matches, or there are none. Names match with and without their slash.
fn any_matches(patterns: &[Pattern], name: &str) -> bool {
    let slashed = format!("/{name}");
    patterns.is_empty()
        || patterns
            .iter()
            .any(|p| p.matches(name) || p.matches(&slashed))
}

/// Whether a container is of an image, or of one that was made on top of it: Docker asks the
/// images for their parents, which built images do not have; layers tell as much.
fn descends(container: &Container, (id, layers): &(String, Vec<DiffId>)) -> bool {
    let own = &container.setup.layers;
    container.image_id == *id
        || (!layers.is_empty() && own.len() > layers.len() && own.starts_with(layers))
}

fn has_mount(container: &Container, wanted: &str) -> bool {
    use crate::parse::mounts::Source;
    container.setup.mounts.iter().any(|m| {
        m.destination == wanted
            || match &m.source {
                Source::Volume { name, .. } => name == wanted,
                Source::Bind { path, .. } => path == wanted,
                Source::Image { name, .. } => name == wanted,
                Source::Tmpfs { .. } => false,
            }
    })
}

fn on_network(container: &Container, wanted: &str) -> bool {
    let mut all = container.endpoints.iter();
    all.any(|e| e.network_name == wanted || e.network.starts_with(wanted))
}

/// Reads `80`, `80-90/udp`.
fn port_range<'a>(field: &str, text: &'a str) -> Result<(u16, u16, &'a str)> {
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let number = |part: &str| {
        part.parse::<u16>().map_err(|_| {
            bad(format!(
                "error while looking up for {field} {text}: strconv.ParseUint: parsing {part:?}: \
                 invalid syntax"
            ))
        })
    };
    Ok((number(first)?, number(last)?, protocol))
}

fn publishes(container: &Container, wanted: &str) -> bool {
    let Ok((first, last, protocol)) = port_range("publish", wanted) else {
        return false;
    };
    container.ports().iter().any(|(inside, hosts)| {
        inside.ends_with(protocol) && hosts.iter().any(|h| (first..=last).contains(&h.port))
    })
}

fn exposes(container: &Container, wanted: &str) -> bool {
    let Ok(wanted) = ports::port(wanted) else {
        return false;
    };
    let exposed = container
        .config
        .exposed_ports
        .as_deref()
        .unwrap_or_default();
    let mut all = ports::exposed(exposed).unwrap_or_default();
    let bound = container.host.port_bindings.iter().flatten();
    all.extend(bound.flat_map(|(key, _)| ports::port(key).unwrap_or_default()));
    wanted.iter().any(|w| all.contains(w))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_with_spaces_are_quoted() {
        let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect();
        assert_eq!(
            command_text("sh".to_owned(), words(&["-c", "exit 3"])),
            "sh -c 'exit 3'"
        );
        assert_eq!(command_text("true".to_owned(), Vec::new()), "true");
    }

    #[test]
    fn wrong_filters_are_refused() {
        let refusal = |field: &str, known| {
            let wanted: Filters = [(field.to_owned(), vec!["x".to_owned()])].into();
            one_of(&wanted, field, field, known)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            refusal("health", HEALTHS),
            "invalid filter 'health=x': invalid value for health (x): must be one of none, \
             starting, healthy, unhealthy"
        );
        assert_eq!(port_range("publish", "80-90/udp").unwrap(), (80, 90, "udp"));
        for wrong in ["x", "80-", "80-x/tcp", "99999"] {
            assert!(port_range("publish", wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn name_patterns() {
        for (pattern, name, matches) in [
            ("web", "my-web-1", true),
            ("^web", "my-web-1", false),
            ("^/web$", "web", true),
            ("^/?web$", "web", true),
            ("web$", "my-web", true),
            ("db", "web", false),
            ("^w.b$|^db", "web", true),
            ("[", "web", false),
        ] {
            let filters = Filters::from([("name".to_owned(), vec![pattern.to_owned()])]);
            let patterns = Pattern::all(&filters, "name");
            assert_eq!(any_matches(&patterns, name), matches, "{pattern} {name}");
        }
        assert!(any_matches(&[], "web"));
    }
}
