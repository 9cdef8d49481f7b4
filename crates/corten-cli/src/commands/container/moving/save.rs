//! `container save`.

use std::fs::File;
use std::io::{self, Seek, Write};

use serde::Deserialize;
use serde_json::Value;

use super::interrupt::{Interrupts, Stop, Watched};
use super::manifest::{IMAGE, MANIFEST, Manifest};
use super::spool;
use crate::app::Cli;
use crate::client::{Client, component};
use crate::command::{Command, action};
use crate::error::{CliError, Result};
use crate::flags::{Arity, Flag, Parsed};
use crate::output::Output;
use crate::pieces;

/// `container save`.
pub(crate) static SAVE: Command = Command::new(
    "save",
    "CONTAINER",
    "Save a container with its files, configuration and volumes as one archive, for another host",
    action!(save),
)
.arity(Arity::Exact(1))
.heavy()
.fills()
.flags(&[&[
    Flag::text("output", "Write to a file, instead of STDOUT").short('o'),
    Flag::switch("pause", "Pause the container meanwhile")
        .short('p')
        .default("true"),
]]);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Committed {
    id: String,
}

async fn save(cli: &Cli, flags: Parsed) -> Result {
    let name = flags.args.first().map(String::as_str).unwrap_or_default();
    let output = Output::open(flags.nonempty("output"), "save container")?;
    let client = cli.client()?;
    let path = format!("/containers/{}", component(name));
    let inspected: Value = client.get(format!("{path}/json")).json().await?;
    let (mut manifest, left) = Manifest::of(&inspected)
        .map_err(|error| CliError::message(format!("container {name}: {error}")))?;
    for what in left {
        cli.complain(format!("WARNING: {what}"));
    }
    // Removed again: it must be nobody else's, not even that of another save at this moment.
    manifest.image = format!("{}-{:08x}", manifest.image, rand::random::<u32>());
    let runs = inspected["State"]["Running"] == true && inspected["State"]["Paused"] != true;
    let paused = runs && flags.on("pause");
    let mut interrupts = Interrupts::catch("container save: interrupted")?;
    if paused {
        client.post(format!("{path}/pause")).done().await?;
    }
    let collected = collect(client, &path, &manifest, &mut interrupts).await;
    if paused {
        // Whatever came of it.
        let thawed = client.post(format!("{path}/unpause")).done().await;
        if let Err(error) = thawed {
            cli.complain(format!("container {name} stays paused: {error}"));
        }
    }
    let collected = collected?;
    let stop = Stop::default();
    let watched = stop.watched();
    let writing =
        tokio::task::spawn_blocking(move || write(output, &manifest, collected, &watched));
    let written = async { writing.await.map_err(io::Error::other)? };
    // `stop` goes before the process does: the thread leaves no half of a file.
    interrupts.unless(written).await
}

/// The archive's parts, each whole.
async fn collect(
    client: &Client,
    path: &str,
    manifest: &Manifest,
    interrupts: &mut Interrupts,
) -> Result<Vec<(String, File)>> {
    let (repository, tag) = manifest.image.split_once(':').unwrap_or_default();
    let committed: Committed = client
        .post("/commit")
        .query("container", path.rsplit('/').next().unwrap_or_default())
        .query("repo", repository)
        .query("tag", tag)
        .query("comment", "saved by corten container save")
        .query("pause", "0")
        .json()
        .await?;
    let collected = interrupts.unless(parts(client, path, manifest)).await;
    // The archive has it from here.
    let image = format!("/images/{}", component(&manifest.image));
    if let Err(error) = client.delete(image).done().await {
        tracing::warn!(%error, image = committed.id, "an image of the container is left");
    }
    collected
}

async fn parts(client: &Client, path: &str, manifest: &Manifest) -> Result<Vec<(String, File)>> {
    let image = client.get("/images/get").query("names", &manifest.image);
    let mut parts = vec![(IMAGE.to_owned(), received(image).await?)];
    for volume in &manifest.volumes {
        if parts.iter().any(|(known, _)| *known == volume.archive) {
            continue;
        }
        let archive = client.get(format!("{path}/archive"));
        let archive = archive.query("path", &volume.destination);
        parts.push((volume.archive.clone(), received(archive).await?));
    }
    Ok(parts)
}

/// An answer, as a file.
async fn received(call: crate::client::Call<'_>) -> Result<File> {
    let mut file = spool::nameless()?;
    let answer = call.send().await?;
    let copied = pieces::read(
        answer.reader(),
        |_| {},
        move |from| {
            io::copy(from, &mut file)?;
            file.rewind()?;
            Ok::<_, io::Error>(file)
        },
    );
    Ok(copied.await??)
}

fn write(
    output: Output,
    manifest: &Manifest,
    parts: Vec<(String, File)>,
    watched: &Watched,
) -> Result {
    let text = serde_json::to_vec_pretty(manifest)
        .map_err(|error| CliError::message(format!("the archive's description: {error}")))?;
    output.write(|out: &mut dyn Write| {
        let mut tar = tar::Builder::new(watched.writer(out));
        let header = |size: u64| {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o600);
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(size);
            header
        };
        tar.append_data(&mut header(text.len() as u64), MANIFEST, text.as_slice())?;
        for (name, mut file) in parts {
            let size = file.metadata()?.len();
            tar.append_data(&mut header(size), name, &mut file)?;
        }
        tar.finish()
    })
}
