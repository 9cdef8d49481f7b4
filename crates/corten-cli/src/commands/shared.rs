//! What many commands do alike: asking, going through names, inspecting.

use std::fmt::Display;
use std::io::Write as _;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::app::Cli;
use crate::client::{Call, ClientError};
use crate::error::{CliError, Result};
use crate::flags::{Flag, Parsed};
use crate::template::{Data, Shape, Template};

/// `--format` of commands that show objects rather than lists.
pub(crate) const OBJECT_FORMAT: Flag =
    Flag::text("format", "How to print: 'json', or a Go template").short('f');

/// `--force` of commands that would ask.
pub(crate) const NO_PROMPT: Flag =
    Flag::switch("force", "Do not prompt for confirmation").short('f');

/// `--filter` without its letter, which `--force` has there.
pub(crate) const PRUNE_FILTER: Flag =
    Flag::filter("Provide filter values (e.g. \"until=<timestamp>\")").no_short();

/// The filters of a prune, with those of the configuration file.
pub(crate) fn prune_filters(cli: &Cli, flags: &Parsed) -> Vec<String> {
    cli.config().with_prune_filters(&flags.list("filter"))
}

/// For flag tables: every value is fine.
pub(crate) fn anything(_: &str) -> std::result::Result<(), String> {
    Ok(())
}

/// Shows a warning and asks; whether the answer was yes.
pub(crate) fn confirm(cli: &Cli, warning: &str) -> Result<bool> {
    cli.print(&format!(
        "{warning}\nAre you sure you want to continue? [y/N] "
    ))?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(answer.trim().eq_ignore_ascii_case("y") || answer.trim().eq_ignore_ascii_case("yes"))
}

/// Asks unless `--force` was given; a no ends the command, which is no failure.
pub(crate) fn confirm_or_end(cli: &Cli, flags: &Parsed, warning: &str) -> Result {
    if flags.on("force") || confirm(cli, warning)? {
        return Ok(());
    }
    Err(CliError::status(0))
}

/// Errors of several objects, each on its own line.
#[derive(Debug, Default)]
pub(crate) struct Failures(Vec<String>);

impl Failures {
    pub(crate) fn add(&mut self, error: impl Display) {
        self.0.push(error.to_string());
    }

    /// The end of a command that went through several objects.
    pub(crate) fn result(self) -> Result {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(CliError::message(self.0.join("\n")))
        }
    }
}

/// Sends a DELETE for every name and prints the names that are gone.
pub(crate) async fn remove_each<'c>(
    cli: &'c Cli,
    flags: &Parsed,
    request: impl Fn(&str) -> Result<Call<'c>>,
) -> Result {
    let force = flags.on("force");
    let mut failures = Failures::default();
    for name in &flags.args {
        match request(name)?.done().await {
            Ok(()) => cli.line(name)?,
            Err(error) if force && error.is_not_found() => cli.line(name)?,
            Err(error) => failures.add(error),
        }
    }
    failures.result()
}

/// Objects as the engine wrote them, printed as `inspect` commands do.
#[derive(Debug)]
pub(crate) struct Inspector {
    format: Format,
    found: Vec<Found>,
}

/// An object as the engine wrote it, and what type it has in Docker.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) object: Box<RawValue>,
    pub(crate) shape: Shape,
}

#[derive(Debug)]
enum Format {
    Indented,
    Compact,
    Template(Template),
}

impl Inspector {
    /// What `--format` asks for.
    pub(crate) fn new(format: Option<&str>) -> Result<Self> {
        let format = match format {
            None | Some("") => Format::Indented,
            Some("json") => Format::Compact,
            Some(text) => Format::Template(Template::parse(text).map_err(CliError::unreadable)?),
        };
        Ok(Self {
            format,
            found: Vec::new(),
        })
    }

    pub(crate) fn add(&mut self, object: Found) {
        self.found.push(object);
    }

    fn render(&self) -> Result<String> {
        let values = || -> Result<Vec<Value>> {
            let parse = |raw: &RawValue| serde_json::from_str(raw.get());
            Ok(self
                .found
                .iter()
                .map(|found| parse(&found.object))
                .collect::<std::result::Result<_, _>>()
                .map_err(ClientError::from)?)
        };
        match &self.format {
            Format::Indented if self.found.is_empty() => Ok("[]\n".into()),
            Format::Indented => Ok(format!("{}\n", indented(&values()?)?)),
            Format::Compact => Ok(format!("{}\n", Value::Array(values()?))),
            Format::Template(_) if self.found.is_empty() => Ok("\n".into()),
            Format::Template(template) => {
                let mut out = String::new();
                for (root, found) in values()?.into_iter().zip(&self.found) {
                    let data = Data {
                        root,
                        shape: found.shape,
                        ..Data::default()
                    };
                    out.push_str(&template.render(&data)?);
                    out.push('\n');
                }
                Ok(out)
            }
        }
    }
}

/// JSON the way Docker shows it: four spaces.
pub(crate) fn indented(value: &impl serde::Serialize) -> Result<String> {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    value
        .serialize(&mut serde_json::Serializer::with_formatter(
            &mut out, formatter,
        ))
        .map_err(ClientError::from)?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// Inspects every name with `fetch`; what was found is printed even when something was not.
pub(crate) async fn inspect_each<F>(cli: &Cli, flags: &Parsed, fetch: F) -> Result
where
    F: AsyncFn(&str) -> Result<Found>,
{
    let mut inspector = Inspector::new(flags.nonempty("format"))?;
    let mut failures = Failures::default();
    for name in &flags.args {
        match fetch(name).await {
            Ok(object) => inspector.add(object),
            Err(error) => failures.add(error),
        }
    }
    cli.print(&inspector.render()?)?;
    failures.result()
}

/// One object through `--format`: `json`, a template, or `usual`.
pub(crate) fn print_object(
    cli: &Cli,
    format: Option<&str>,
    object: Value,
    usual: impl FnOnce(&Value) -> Result<String>,
) -> Result {
    match format {
        None | Some("") => cli.print(&usual(&object)?),
        Some("json") => cli.line(object.to_string()),
        Some(text) => cli.line(Template::parse(text)?.render(&Data::from(object))?),
    }
}

/// What a prune removed.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Pruned {
    pub(crate) containers_deleted: Option<Vec<String>>,
    pub(crate) volumes_deleted: Option<Vec<String>>,
    pub(crate) networks_deleted: Option<Vec<String>>,
    pub(crate) images_deleted: Option<Vec<super::image::Deleted>>,
    pub(crate) caches_deleted: Option<Vec<String>>,
    pub(crate) space_reclaimed: i64,
}

impl Pruned {
    /// The list of what is gone, an empty line after it; nothing when nothing is.
    pub(crate) fn listing(&self) -> String {
        let mut out = String::new();
        let mut section = |title: &str, lines: Vec<String>| {
            if !lines.is_empty() {
                out.push_str(&format!("{title}:\n{}\n\n", lines.join("\n")));
            }
        };
        let names = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        section("Deleted Containers", names(&self.containers_deleted));
        section("Deleted Networks", names(&self.networks_deleted));
        section("Deleted Volumes", names(&self.volumes_deleted));
        let images = self
            .images_deleted
            .iter()
            .flatten()
            .map(super::image::Deleted::pruned);
        section("Deleted Images", images.collect());
        section("Deleted build cache objects", names(&self.caches_deleted));
        out
    }

    /// The listing and how much space it was.
    pub(crate) fn print(&self, cli: &Cli) -> Result {
        cli.print(&format!(
            "{}Total reclaimed space: {}\n",
            self.listing(),
            crate::format::units::size4(self.space_reclaimed)
        ))
    }
}

/// `key=value, …` in the order of the keys, as lists of labels are shown.
pub(crate) fn joined<'a>(
    map: impl IntoIterator<Item = (&'a String, &'a String)>,
    separator: &str,
) -> String {
    let mut pairs: Vec<String> = map
        .into_iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    pairs.sort();
    pairs.join(separator)
}

/// Writes to standard error without a line's end.
pub(crate) fn prompt(text: &str) -> Result {
    let mut err = std::io::stderr().lock();
    err.write_all(text.as_bytes())?;
    err.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Found {
        Found {
            object: RawValue::from_string(text.into()).unwrap(),
            shape: Shape::Any,
        }
    }

    #[test]
    fn inspectors() {
        let show = |format: Option<&str>, objects: &[&str]| {
            let mut inspector = Inspector::new(format).unwrap();
            objects.iter().for_each(|object| inspector.add(raw(object)));
            inspector.render().unwrap()
        };
        assert_eq!(show(None, &[]), "[]\n");
        assert_eq!(
            show(None, &[r#"{"A":1}"#]),
            "[\n    {\n        \"A\": 1\n    }\n]\n"
        );
        assert_eq!(show(Some("json"), &["1", "2"]), "[1,2]\n");
        assert_eq!(
            show(Some("{{.A}}"), &[r#"{"A":1}"#, r#"{"A":"x"}"#]),
            "1\nx\n"
        );
        assert_eq!(show(Some("{{.A}}"), &[]), "\n");
    }

    #[test]
    fn prune_reports() {
        let pruned: Pruned = serde_json::from_str(
            r#"{"VolumesDeleted":["a","b"],"ImagesDeleted":null,"SpaceReclaimed":1500}"#,
        )
        .unwrap();
        assert_eq!(pruned.listing(), "Deleted Volumes:\na\nb\n\n");
    }
}
