//! `ls`, also called `ps`.

use bollard_stubs::models::ContainerSummary;

use super::row::{line, row};
use crate::app::Cli;
use crate::command::{Command, action};
use crate::error::{CliError, Result};
use crate::flags::{Arity, Flag, Parsed};
use crate::format::{Listing, Row};
use crate::template::Template;

const FLAGS: &[Flag] = &[
    Flag::switch("all", "Show containers that do not run, too").short('a'),
    Flag::filter("Show only containers that match (status=exited)"),
    Flag::format(),
    Flag::int(
        "last",
        "Show the n containers created last, in whatever state",
    )
    .short('n')
    .default("-1"),
    Flag::switch(
        "latest",
        "Show the container created last, in whatever state",
    )
    .short('l'),
    Flag::switch("no-trunc", "Show texts in full"),
    Flag::switch("quiet", "Show only ids").short('q'),
    Flag::switch("size", "Show how much the containers have written").short('s'),
];

const COMMAND: Command = Command::new("ls", "", "List containers", action!(list))
    .also(&["list", "ps"])
    .aliases(&["container ls", "container list", "container ps", "ps"])
    .flags(&[FLAGS])
    .arity(Arity::None);

/// `container ls`.
pub(crate) static LIST: Command = COMMAND;

/// `ps`.
pub(crate) static PS: Command = COMMAND.named("ps");

const HEADERS: &[(&str, &str)] = &[
    ("Command", "COMMAND"),
    ("CreatedAt", "CREATED AT"),
    ("ID", "CONTAINER ID"),
    ("Image", "IMAGE"),
    ("Labels", "LABELS"),
    ("LocalVolumes", "LOCAL VOLUMES"),
    ("Mounts", "MOUNTS"),
    ("Names", "NAMES"),
    ("Networks", "NETWORKS"),
    ("Platform", "PLATFORM"),
    ("Ports", "PORTS"),
    ("RunningFor", "CREATED"),
    ("Size", "SIZE"),
    ("State", "STATE"),
    ("Status", "STATUS"),
];

const TABLE: &str =
    "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}";
const TABLE_WITH_SIZE: &str = "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}\t{{.Size}}";

/// `--format raw`.
const RAW: &str = "container_id: {{.ID}}\nimage: {{.Image}}\ncommand: {{.Command}}\ncreated_at: {{.CreatedAt}}\nstate: {{- pad .State 1 0}}\nstatus: {{- pad .Status 1 0}}\nnames: {{.Names}}\nlabels: {{- pad .Labels 1 0}}\nports: {{- pad .Ports 1 0}}\n";
const RAW_WITH_SIZE: &str = "container_id: {{.ID}}\nimage: {{.Image}}\ncommand: {{.Command}}\ncreated_at: {{.CreatedAt}}\nstate: {{- pad .State 1 0}}\nstatus: {{- pad .Status 1 0}}\nnames: {{.Names}}\nlabels: {{- pad .Labels 1 0}}\nports: {{- pad .Ports 1 0}}\nsize: {{.Size}}\n";

async fn list(cli: &Cli, flags: Parsed) -> Result {
    let quiet = flags.on("quiet");
    let configured = cli.config().ps_format.as_str();
    let given = flags.nonempty("format");
    given.map_or(Ok(()), check)?;
    let format = given.or((!configured.is_empty() && !quiet).then_some(configured));
    let size =
        flags.on("size") || (!flags.given("size") && !quiet && given.is_some_and(shows_size));
    let last = flags.int("last").unwrap_or(-1);
    let limit = if flags.on("latest") && last == -1 {
        1
    } else {
        last
    };
    let containers: Vec<ContainerSummary> = cli
        .client()?
        .get("/containers/json")
        .flag("all", flags.on("all"))
        .query_opt("limit", (limit > 0).then(|| limit.to_string()))
        .flag("size", size)
        .filters(&flags.list("filter"))
        .json()
        .await?;
    if quiet && given.is_some() {
        cli.complain("WARNING: Ignoring custom format, because both --format and --quiet are set.");
    }
    let (with_size, cut) = (flags.on("size"), !flags.on("no-trunc"));
    if matches!(format, None | Some("table")) {
        return cli.print(&usual(&containers, quiet, with_size, cut)?);
    }
    let rows = containers.iter().map(|c| row(c, cut)).collect();
    cli.print(&render(format, quiet, with_size, rows)?)
}

/// The usual table, or the ids.
fn usual(
    containers: &[ContainerSummary],
    quiet: bool,
    with_size: bool,
    cut: bool,
) -> Result<String> {
    let lines = containers.iter().map(|c| line(c, quiet, with_size, cut));
    listing(with_size, false).lines(quiet, &lines.collect::<String>())
}

/// A wrong template is an error even where there is nothing to list, and before the engine is
/// asked.
fn check(format: &str) -> Result {
    Template::parse(format).map_err(|error| {
        let error = error.to_string();
        let reason = error
            .strip_prefix("template parsing error: ")
            .unwrap_or(&error);
        CliError::message(format!("failed to parse template: {reason}"))
    })?;
    let sample = row(&ContainerSummary::default(), true);
    render(Some(format), false, false, vec![sample])
        .map(drop)
        .map_err(|error| CliError::message(format!("failed to execute template: {error}")))
}

/// Whether a template needs the sizes, which take the engine long: it shows them, or
/// everything there is.
fn shows_size(format: &str) -> bool {
    let everything = |after: &str| {
        let mut chars = after.trim_start().chars();
        chars.next() == Some('.') && !chars.next().is_some_and(char::is_alphanumeric)
    };
    format.contains(".Size") || format.split("json").skip(1).any(everything)
}

fn render(format: Option<&str>, quiet: bool, size: bool, rows: Vec<Row>) -> Result<String> {
    let raw = format == Some("raw");
    let format = match format {
        Some("raw") => Some(if size { RAW_WITH_SIZE } else { RAW }),
        other => other,
    };
    listing(size, raw).render(format, quiet, rows)
}

fn listing(size: bool, raw: bool) -> Listing<'static> {
    Listing {
        headers: HEADERS,
        table: if size { TABLE_WITH_SIZE } else { TABLE },
        quiet: if raw {
            "container_id: {{.ID}}"
        } else {
            "{{.ID}}"
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn containers() -> Vec<ContainerSummary> {
        let now = jiff::Timestamp::now().as_second();
        serde_json::from_value(serde_json::json!([
            {
                "Id": "4c01db0b339c3b2b1a5a4c01db0b339c3b2b1a5a4c01db0b339c3b2b1a5a4c01",
                "Names": ["/web"], "Image": "nginx:1.27", "ImageID": "sha256:11",
                "Command": "/docker-entrypoint.sh nginx", "Created": now - 300,
                "State": "running", "Status": "Up 5 minutes",
                "Ports": [
                    {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
                    {"IP": "::", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
                ],
                "Labels": {"b": "2", "a": "1"}, "SizeRw": 1095, "SizeRootFs": 7_834_112,
                "Mounts": [{"Type": "volume", "Name": "a-rather-long-volume-name", "Driver": "local"}],
                "NetworkSettings": {"Networks": {"bridge": {}}},
            },
            {
                "Id": "d7886598dbe2d7886598dbe2d7886598dbe2d7886598dbe2d7886598dbe2d788",
                "Names": ["/job"], "Image": "alpine", "ImageID": "sha256:22",
                "Command": "sh -c true", "Created": now - 7200,
                "State": "exited", "Status": "Exited (0) 2 hours ago", "Ports": [],
            },
        ]))
        .unwrap()
    }

    fn shown(format: Option<&str>, quiet: bool, size: bool) -> String {
        render(
            format,
            quiet,
            size,
            containers().iter().map(|c| row(c, true)).collect(),
        )
        .unwrap()
    }

    #[test]
    fn lines_are_what_the_template_gives() {
        let mut containers = containers();
        containers.push(ContainerSummary::default());
        for options in 0..8 {
            let [quiet, size, cut] = [1, 2, 4].map(|bit| options & bit != 0);
            let rows = containers.iter().map(|c| row(c, cut)).collect();
            assert_eq!(
                usual(&containers, quiet, size, cut).unwrap(),
                render(None, quiet, size, rows).unwrap(),
                "{options}"
            );
        }
    }

    #[test]
    fn table() {
        insta::assert_snapshot!(shown(None, false, true), @r#"
        CONTAINER ID   IMAGE        COMMAND                  CREATED         STATUS                   PORTS                                     NAMES     SIZE
        4c01db0b339c   nginx:1.27   "/docker-entrypoint.…"   5 minutes ago   Up 5 minutes             0.0.0.0:8080->80/tcp, [::]:8080->80/tcp   web       1.09kB (virtual 7.83MB)
        d7886598dbe2   alpine       "sh -c true"             2 hours ago     Exited (0) 2 hours ago                                             job       0B
        "#);
        assert_eq!(shown(None, true, false), "4c01db0b339c\nd7886598dbe2\n");
    }

    #[test]
    fn templates_are_checked_and_may_ask_for_sizes() {
        assert!(check("table {{.Names}}\t{{.Label \"x\"}}").is_ok());
        assert!(
            check("{{")
                .unwrap_err()
                .to_string()
                .starts_with("failed to parse template: template: ")
        );
        assert!(
            check("{{.Nope}}")
                .unwrap_err()
                .to_string()
                .starts_with("failed to execute template: ")
        );
        assert!(
            shows_size("{{.Size}}") && shows_size("{{json .}}") && shows_size("{{ json . | x}}")
        );
        assert!(!shows_size("json") && !shows_size("{{json .Ports}}") && !shows_size("{{.ID}}"));
    }

    #[test]
    fn formats() {
        let fields = "{{.Names}}|{{.State}}|{{.Labels}}|{{.Label \"b\"}}|{{.Mounts}}|{{.LocalVolumes}}|{{.Networks}}";
        assert_eq!(
            shown(Some(fields), false, false),
            "web|running|a=1,b=2|2|a-rather-long-…|1|bridge\njob|exited|||||\n"
                .replace("|||||\n", "||||0|\n")
        );
        let raw = shown(Some("raw"), false, false);
        assert!(
            raw.contains("state: running\nstatus: Up 5 minutes\nnames: web\nlabels: a=1,b=2\n"),
            "{raw}"
        );
        assert_eq!(
            shown(Some("raw"), true, false),
            "container_id: 4c01db0b339c\ncontainer_id: d7886598dbe2\n"
        );
    }
}
