//! `manifest …`: lists of images for several platforms, put together here and pushed.
//!
//! The command talks to registries itself, as Docker's does. A list in the making is kept in
//! Docker's own files, so either command goes on with what the other began. Unlike Docker's,
//! `create` takes indexes, too: each of their images becomes one of the list.

mod lists;
mod source;

use corten_oci::ImageRef;

use crate::app::Cli;
use crate::command::{Command, action};
use crate::error::{CliError, Result};
use crate::flags::{Arity, Flag, Parsed};
use crate::run::image::reference;
use lists::{Entry, Lists};
use source::Registry;

/// `manifest …`
pub(crate) static GROUP: Command = Command::group(
    "manifest",
    "Manage Docker image manifests and manifest lists",
    &[&ANNOTATE, &CREATE, &INSPECT, &PUSH, &RM],
);

const INSECURE: Flag = Flag::switch("insecure", "Allow communication with an insecure registry");

static CREATE: Command = Command::new(
    "create",
    "MANIFEST_LIST MANIFEST [MANIFEST...]",
    "Create a local manifest list for annotating and pushing to a registry",
    action!(create),
)
.arity(Arity::Min(2))
.flags(&[&[
    Flag::switch("amend", "Amend an existing manifest list").short('a'),
    INSECURE,
]]);

static ANNOTATE: Command = Command::new(
    "annotate",
    "MANIFEST_LIST MANIFEST",
    "Add additional information to a local image manifest",
    action!(annotate),
)
.arity(Arity::Exact(2))
.flags(&[&[
    Flag::text("arch", "Set architecture"),
    Flag::text("os", "Set operating system"),
    Flag::list("os-features", "Set operating system feature"),
    Flag::text("os-version", "Set operating system version"),
    Flag::text("variant", "Set architecture variant"),
]]);

static INSPECT: Command = Command::new(
    "inspect",
    "[MANIFEST_LIST] MANIFEST",
    "Display an image manifest, or manifest list",
    action!(inspect),
)
.arity(Arity::Range(1, 2))
.flags(&[&[
    INSECURE,
    Flag::switch(
        "verbose",
        "Output additional info including layers and platform",
    )
    .short('v'),
]]);

static PUSH: Command = Command::new(
    "push",
    "MANIFEST_LIST",
    "Push a manifest list to a repository",
    action!(push),
)
.arity(Arity::Exact(1))
.flags(&[&[
    INSECURE,
    Flag::switch("purge", "Remove the local manifest list after push").short('p'),
]]);

static RM: Command = Command::new(
    "rm",
    "MANIFEST_LIST [MANIFEST_LIST...]",
    "Delete one or more manifest lists from local storage",
    action!(remove),
)
.arity(Arity::Min(1));

/// Operating systems and their architectures that a list may have (Go's, as Docker has them).
const PLATFORMS: &[(&str, &[&str])] = &[
    ("darwin", &["386", "amd64", "arm", "arm64"]),
    ("dragonfly", &["amd64"]),
    ("freebsd", &["386", "amd64", "arm"]),
    (
        "linux",
        &[
            "386", "amd64", "arm", "arm64", "ppc64le", "mips64", "mips64le", "riscv64", "s390x",
        ],
    ),
    ("netbsd", &["386", "amd64", "arm"]),
    ("openbsd", &["386", "amd64", "arm"]),
    ("plan9", &["386", "amd64"]),
    ("solaris", &["amd64"]),
    ("windows", &["386", "amd64", "arm", "arm64"]),
];

fn named(text: &str) -> Result<ImageRef> {
    Ok(reference(text)?.or_latest())
}

/// The arguments; how many there are has been checked.
fn argument(flags: &Parsed, at: usize) -> &str {
    flags.args.get(at).map(String::as_str).unwrap_or_default()
}

async fn create(cli: &Cli, flags: Parsed) -> Result {
    let target = argument(&flags, 0);
    let list = named(target).map_err(|error| {
        CliError::message(format!(
            "error parsing name for manifest list {target}: {error}"
        ))
    })?;
    let lists = Lists::of(cli);
    if lists.read(&list)?.is_some() && !flags.on("amend") {
        return Err(CliError::message(
            "refusing to amend an existing manifest list with no --amend flag",
        ));
    }
    let mut entries = Vec::new();
    for text in &flags.args[1..] {
        let image = named(text)?;
        let registry = Registry::of(cli, &image, flags.on("insecure"))?;
        entries.extend(registry.images(&image).await?);
    }
    for entry in &entries {
        lists.save(&list, entry)?;
    }
    cli.line(format!("Created manifest list {list}"))
}

async fn annotate(cli: &Cli, flags: Parsed) -> Result {
    let (target, text) = (argument(&flags, 0), argument(&flags, 1));
    let wrong = |what: &str, text: &str, error: CliError| {
        CliError::message(format!(
            "annotate: error parsing name for {what} {text}: {error}"
        ))
    };
    let list = named(target).map_err(|error| wrong("manifest list", target, error))?;
    let image = named(text).map_err(|error| wrong("manifest", text, error))?;
    let lists = Lists::of(cli);
    let absent = || {
        CliError::message(format!(
            "manifest for image {text} does not exist in {target}"
        ))
    };
    let mut entry = lists.entry(&list, &image)?.ok_or_else(absent)?;
    let mut platform = entry.descriptor.platform.clone().unwrap_or_default();
    let (os, arch) = (flags.nonempty("os"), flags.nonempty("arch"));
    for (field, value) in [
        (&mut platform.os, os),
        (&mut platform.architecture, arch),
        (&mut platform.variant, flags.nonempty("variant")),
        (&mut platform.os_version, flags.nonempty("os-version")),
    ] {
        if let Some(value) = value {
            value.clone_into(field);
        }
    }
    for feature in flags.list("os-features").iter().flat_map(|f| f.split(',')) {
        if !platform.os_features.iter().any(|known| known == feature) {
            platform.os_features.push(feature.to_owned());
        }
    }
    let valid = PLATFORMS.iter().any(|(os, architectures)| {
        *os == platform.os && architectures.contains(&platform.architecture.as_str())
    });
    if !valid {
        return Err(CliError::message(format!(
            "manifest entry for image has unsupported os/arch combination: {}/{}",
            os.unwrap_or_default(),
            arch.unwrap_or_default()
        )));
    }
    entry.descriptor.platform = Some(platform);
    lists.save(&list, &entry)
}

async fn inspect(cli: &Cli, flags: Parsed) -> Result {
    let verbose = flags.on("verbose");
    let lists = Lists::of(cli);
    if flags.args.len() == 2 {
        let (list, image) = (named(argument(&flags, 0))?, named(argument(&flags, 1))?);
        let entry = lists.entry(&list, &image)?;
        let entry = entry.ok_or_else(|| absent(&image))?;
        return cli.print(&one(&entry, verbose)?);
    }
    let image = named(argument(&flags, 0))?;
    if let Some(entries) = lists.read(&image)? {
        return cli.print(&several(&image, &entries, verbose)?);
    }
    let registry = Registry::of(cli, &image, flags.on("insecure"))?;
    let text = match registry.found(&image).await? {
        source::Found::Image(entry) => one(&entry, verbose)?,
        source::Found::Index(entries) => several(&image, &entries, verbose)?,
    };
    cli.print(&text)
}

fn absent(image: &ImageRef) -> CliError {
    CliError::message(format!("No such manifest: {image}"))
}

/// A single manifest as it is, or with all that is known of it.
fn one(entry: &Entry, verbose: bool) -> Result<String> {
    let text = if verbose {
        lists::indented(entry, b"\t")?
    } else {
        lists::indented(&entry.document()?, b"\t")?
    };
    Ok(format!("{text}\n"))
}

fn several(image: &ImageRef, entries: &[Entry], verbose: bool) -> Result<String> {
    let text = if verbose {
        lists::indented(&entries, b"\t")?
    } else {
        lists::index(image, entries)?.1
    };
    Ok(format!("{text}\n"))
}

async fn push(cli: &Cli, flags: Parsed) -> Result {
    let list = named(argument(&flags, 0))?;
    let lists = Lists::of(cli);
    let entries = lists.read(&list)?.ok_or_else(|| absent(&list))?;
    for entry in &entries {
        let known = entry.descriptor.platform.as_ref();
        if known.is_none_or(|p| p.os.is_empty() || p.architecture.is_empty()) {
            return Err(CliError::message(format!(
                "manifest {} must have an OS and Architecture to be pushed to a registry",
                entry.reference
            )));
        }
    }
    let (media_type, document) = lists::index(&list, &entries)?;
    let registry = Registry::of(cli, &list, flags.on("insecure"))?;
    for entry in &entries {
        let from = named(&entry.reference)?;
        if from.path() == list.path() {
            continue;
        }
        // What the list names must be in its own repository.
        for blob in entry.blobs()? {
            if !registry.mount(&list, &blob, &from).await? {
                return Err(CliError::message(format!(
                    "error mounting {}@{blob} to {list}",
                    from.name()
                )));
            }
        }
        let place = list.with_digest(entry.descriptor.digest.clone());
        let digest = registry
            .put(&place, &entry.descriptor.media_type, &entry.bytes()?)
            .await?;
        cli.line(format!("Pushed ref {place} with digest: {digest}"))?;
    }
    let digest = registry.put(&list, media_type, document.as_bytes()).await?;
    cli.line(digest.to_string())?;
    if flags.on("purge") {
        lists.remove(&list)?;
    }
    Ok(())
}

async fn remove(cli: &Cli, flags: Parsed) -> Result {
    let lists = Lists::of(cli);
    let mut failures = super::shared::Failures::default();
    for text in &flags.args {
        let list = named(text)?;
        match lists.read(&list)? {
            Some(_) => lists.remove(&list)?,
            None => failures.add(absent(&list)),
        }
    }
    failures.result()
}
