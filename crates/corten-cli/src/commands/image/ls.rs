//! `image ls`, `images`.

use std::collections::BTreeMap;

use corten_oci::ImageRef;
use serde::Deserialize;

use super::tree;
use crate::app::Cli;
use crate::command::{Command, action};
use crate::error::{CliError, Result};
use crate::flags::{Arity, Flag, Parsed};
use crate::format::{Listing, Row, units};

pub(crate) static LS: Command =
    Command::new("ls", "[REPOSITORY[:TAG]]", "List images", action!(list))
        .also(&["list"])
        .aliases(&["image ls", "image list", "images"])
        .arity(Arity::Max(1))
        .flags(&[&[
            Flag::switch("all", "Show all images (default hides intermediate images)").short('a'),
            Flag::switch("digests", "Show digests"),
            Flag::filter("Filter output based on conditions provided"),
            Flag::format(),
            Flag::switch("no-trunc", "Don't truncate output"),
            Flag::switch("quiet", "Only show image IDs").short('q'),
            Flag::switch(
                "tree",
                "List multi-platform images as a tree (EXPERIMENTAL)",
            ),
        ]]);

const NONE: &str = "<none>";

const HEADERS: &[(&str, &str)] = &[
    ("ID", "IMAGE ID"),
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("Size", "SIZE"),
    ("VirtualSize", "SIZE"),
    ("SharedSize", "SHARED SIZE"),
    ("UniqueSize", "UNIQUE SIZE"),
    ("Containers", "CONTAINERS"),
];

const SINCE: &str = "{{if .CreatedSince}}{{.CreatedSince}}{{else}}N/A{{end}}";

/// An image of a list.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Summary {
    id: String,
    repo_tags: Option<Vec<String>>,
    repo_digests: Option<Vec<String>>,
    created: i64,
    pub(crate) size: i64,
    pub(crate) shared_size: i64,
    pub(crate) containers: i64,
}

async fn list(cli: &Cli, flags: Parsed) -> Result {
    if flags.on("tree") {
        refuse_with_tree(&flags)?;
    }
    let mut filters: Vec<String> = flags
        .list("filter")
        .into_iter()
        .map(str::to_owned)
        .collect();
    if let Some(pattern) = flags.args.first() {
        filters.push(format!("reference={pattern}"));
    }
    let filters: Vec<&str> = filters.iter().map(String::as_str).collect();
    let call = cli
        .client()?
        .get("/images/json")
        .flag("all", flags.on("all"))
        .flag("manifests", flags.on("tree"))
        .filters(&filters);
    if flags.on("tree") {
        return cli.print(&tree::render(call.json().await?));
    }
    let images: Vec<Summary> = call.json().await?;
    let quiet = flags.on("quiet");
    let configured = Some(cli.config().images_format.as_str()).filter(|f| !f.is_empty() && !quiet);
    let format = flags.nonempty("format").or(configured);
    let raw = (format == Some("raw")).then(|| raw(quiet, flags.on("digests")));
    let format = raw.as_deref().or(format);
    let usual = matches!(format, None | Some("table"));
    let digests = flags.on("digests") && usual;
    let wanted = digests || format.is_some_and(|format| format.contains(".Digest"));
    let table = if digests {
        format!(
            "{{{{.Repository}}}}\t{{{{.Tag}}}}\t{{{{.Digest}}}}\t{{{{.ID}}}}\t{SINCE}\t{{{{.Size}}}}"
        )
    } else {
        format!("{{{{.Repository}}}}\t{{{{.Tag}}}}\t{{{{.ID}}}}\t{SINCE}\t{{{{.Size}}}}")
    };
    let listing = Listing {
        headers: HEADERS,
        table: &table,
        quiet: "{{.ID}}",
    };
    let truncate = !flags.on("no-trunc");
    if usual && !digests {
        return cli.print(&listing.lines(quiet, &lines(&images, quiet, truncate))?);
    }
    let rows = rows(&images, wanted, truncate);
    // With a format of its own, --quiet only changes the usual table.
    cli.print(&listing.render(format, quiet && usual, rows)?)
}

/// `--format raw`: a paragraph for each image.
fn raw(quiet: bool, digests: bool) -> String {
    if quiet {
        return "image_id: {{.ID}}".to_owned();
    }
    let digest = if digests { "digest: {{.Digest}}\n" } else { "" };
    format!(
        "repository: {{{{.Repository}}}}\ntag: {{{{.Tag}}}}\n{digest}image_id: {{{{.ID}}}}\n\
         created_at: {{{{.CreatedAt}}}}\nvirtual_size: {{{{.Size}}}}\n"
    )
}

/// What makes no sense with a tree, in Docker's words.
fn refuse_with_tree(flags: &Parsed) -> Result {
    for (flag, shown) in [
        ("quiet", "quiet"),
        ("no-trunc", "no-trunc"),
        ("digests", "show-digest"),
    ] {
        if flags.on(flag) {
            return Err(CliError::message(format!(
                "--{shown} is not yet supported with --tree"
            )));
        }
    }
    if flags.nonempty("format").is_some() {
        return Err(CliError::message(
            "--format is not yet supported with --tree",
        ));
    }
    Ok(())
}

/// The table of `system df -v`.
pub(crate) fn table(images: &[Summary]) -> Result<String> {
    let table = format!(
        "{{{{.Repository}}}}\t{{{{.Tag}}}}\t{{{{.ID}}}}\t{SINCE}\t{{{{.Size}}}}\t{{{{.SharedSize}}}}\t{{{{.UniqueSize}}}}\t{{{{.Containers}}}}"
    );
    let listing = Listing {
        headers: HEADERS,
        table: &table,
        quiet: "",
    };
    listing.render(None, false, rows(&once(images), false, true))
}

/// The images of `system df -v --format json`.
pub(crate) fn rows_once(images: &[Summary]) -> Vec<Row> {
    let rows = rows(&once(images), false, false).into_iter();
    rows.map(|row| row.with("Digest", "")).collect()
}

/// There, an image is listed once, by its first name.
fn once(images: &[Summary]) -> Vec<Summary> {
    let mut images = images.to_vec();
    for image in &mut images {
        if let Some(tags) = &mut image.repo_tags {
            tags.truncate(1);
        }
    }
    images
}

/// The lines of the usual table, one for each name, or their ids.
fn lines(images: &[Summary], quiet: bool, truncate: bool) -> String {
    let mut out = String::new();
    for image in images {
        let id = shown_id(image, truncate);
        let (since, size) = (since(image), units::size(image.size));
        let since = if since.is_empty() { "N/A" } else { &since };
        for (repository, tag, _) in names(image, false) {
            if quiet {
                out.push_str(&id);
            } else {
                for cell in [&repository, "\t", &tag, "\t", &id, "\t", since, "\t", &size] {
                    out.push_str(cell);
                }
            }
            out.push('\n');
        }
    }
    out
}

/// One row per name; the same image may have several.
fn rows(images: &[Summary], digests: bool, truncate: bool) -> Vec<Row> {
    images
        .iter()
        .flat_map(|image| {
            names(image, digests)
                .into_iter()
                .map(move |name| row(image, name, truncate))
        })
        .collect()
}

/// Repository, tag and digest of every row of an image.
fn names(image: &Summary, want_digests: bool) -> Vec<(String, String, String)> {
    let none = || NONE.to_owned();
    let parse = |texts: &Option<Vec<String>>| -> Vec<ImageRef> {
        texts
            .iter()
            .flatten()
            .filter_map(|text| text.parse().ok())
            .collect()
    };
    let mut digests: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for reference in parse(&image.repo_digests) {
        if let Some(digest) = reference.digest() {
            digests
                .entry(reference.familiar_name())
                .or_default()
                .push(digest.to_string());
        }
    }
    let mut found = Vec::new();
    let mut tagged = Vec::new();
    for reference in parse(&image.repo_tags) {
        let repository = reference.familiar_name();
        let tag = reference.tag().unwrap_or(NONE).to_owned();
        match digests.get(&repository).filter(|_| want_digests) {
            Some(list) => found.extend(
                list.iter()
                    .map(|digest| (repository.clone(), tag.clone(), digest.clone())),
            ),
            None => found.push((repository.clone(), tag, none())),
        }
        tagged.push(repository);
    }
    for (repository, list) in digests {
        if tagged.contains(&repository) {
            continue;
        }
        if want_digests {
            found.extend(
                list.into_iter()
                    .map(|digest| (repository.clone(), none(), digest)),
            );
        } else {
            found.push((repository, none(), none()));
        }
    }
    if found.is_empty() {
        found.push((none(), none(), none()));
    }
    found
}

fn row(
    image: &Summary,
    (repository, tag, digest): (String, String, String),
    truncate: bool,
) -> Row {
    let known = |size: i64| {
        if size < 0 {
            "N/A".to_owned()
        } else {
            units::size4(size)
        }
    };
    let unique = if image.shared_size < 0 {
        -1
    } else {
        image.size - image.shared_size
    };
    let containers = if image.containers < 0 {
        "N/A".to_owned()
    } else {
        image.containers.to_string()
    };
    Row::default()
        .with("Containers", containers)
        .with("CreatedAt", units::timestamp(image.created))
        .with("CreatedSince", since(image))
        .with("Digest", digest)
        .with("ID", shown_id(image, truncate))
        .with("Repository", repository)
        .with("SharedSize", known(image.shared_size))
        .with("Size", units::size(image.size))
        .with("Tag", tag)
        .with("UniqueSize", known(unique))
        .with("VirtualSize", units::size4(image.size))
}

fn shown_id(image: &Summary, truncate: bool) -> String {
    if truncate {
        units::short_id(&image.id)
    } else {
        image.id.clone()
    }
}

/// How long ago it was made; empty where it does not say.
fn since(image: &Summary) -> String {
    if image.created > units::ZERO_TIME {
        units::ago(image.created)
    } else {
        String::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Summary {
        let digest = format!("sha256:{}", "a".repeat(64));
        Summary {
            id: format!("sha256:{}", "0123456789ab".repeat(6)),
            repo_tags: Some(vec!["alpine:3".into(), "alpine:latest".into()]),
            repo_digests: Some(vec![format!("alpine@{digest}"), format!("other@{digest}")]),
            created: units::ZERO_TIME,
            size: 7_830_000,
            shared_size: -1,
            containers: -1,
        }
    }

    #[test]
    fn a_row_per_name() {
        let show = |list: Vec<(String, String, String)>| -> Vec<String> {
            list.into_iter()
                .map(|(r, t, d)| format!("{r} {t} {}", &d[..6]))
                .collect()
        };
        assert_eq!(
            show(names(&image(), false)),
            [
                "alpine 3 <none>",
                "alpine latest <none>",
                "other <none> <none>"
            ]
        );
        assert_eq!(
            show(names(&image(), true)),
            [
                "alpine 3 sha256",
                "alpine latest sha256",
                "other <none> sha256"
            ]
        );
        assert_eq!(
            show(names(&Summary::default(), false)),
            ["<none> <none> <none>"]
        );
    }

    #[test]
    fn lines_are_what_the_template_gives() {
        let listing = Listing {
            headers: HEADERS,
            table: &format!(
                "{{{{.Repository}}}}\t{{{{.Tag}}}}\t{{{{.ID}}}}\t{SINCE}\t{{{{.Size}}}}"
            ),
            quiet: "{{.ID}}",
        };
        let dated = Summary {
            created: 1_000_000_000,
            ..image()
        };
        let images = [image(), dated, Summary::default()];
        for (quiet, truncate) in [(false, true), (false, false), (true, true), (true, false)] {
            let rows = rows(&images, false, truncate);
            assert_eq!(
                listing
                    .lines(quiet, &lines(&images, quiet, truncate))
                    .unwrap(),
                listing.render(None, quiet, rows).unwrap()
            );
        }
    }

    #[test]
    fn paragraphs() {
        let listing = Listing {
            headers: HEADERS,
            table: "",
            quiet: "",
        };
        let rows = || rows(&[image()], true, true);
        let digest = format!("sha256:{}", "a".repeat(64));
        let shown = listing
            .render(Some(&raw(false, true)), false, rows())
            .unwrap();
        let first = format!(
            "repository: alpine\ntag: 3\ndigest: {digest}\nimage_id: 0123456789ab\n\
             created_at: 0001-01-01 00:00:00 +0000 UTC\nvirtual_size: 7.83MB\n\nrepository: alpine\n"
        );
        assert!(shown.starts_with(&first), "{shown}");
        let shown = listing
            .render(Some(&raw(true, false)), false, rows())
            .unwrap();
        assert!(
            shown.starts_with("image_id: 0123456789ab\nimage_id: "),
            "{shown}"
        );
    }

    #[test]
    fn tables() {
        let image = Summary {
            repo_digests: None,
            ..image()
        };
        insta::assert_snapshot!(table(&[image]).unwrap(), @r"
        REPOSITORY   TAG       IMAGE ID       CREATED   SIZE      SHARED SIZE   UNIQUE SIZE   CONTAINERS
        alpine       3         0123456789ab   N/A       7.83MB    N/A           N/A           N/A
        ");
    }
}
