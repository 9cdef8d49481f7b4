//! `container load`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::asked;
use super::interrupt::Interrupts;
use super::manifest::{IMAGE, MANIFEST, Manifest, VERSION, Volume};
use super::spool::{self, Part};
use crate::app::Cli;
use crate::client::{Client, component};
use crate::command::{Command, action};
use crate::error::{CliError, Result, reason};
use crate::flags::{Arity, Flag, Parsed};
use crate::{pieces, term};

/// `container load`.
pub(crate) static LOAD: Command = Command::new(
    "load",
    "",
    "Create a container from an archive that 'container save' has written",
    action!(load),
)
.arity(Arity::None)
.heavy()
.fills()
.flags(&[&[
    Flag::text("input", "Read from a file, instead of STDIN").short('i'),
    Flag::switch(
        "keep-volumes",
        "Use volumes that are here already as they are, instead of refusing",
    ),
    Flag::text("name", "Name of the container, instead of the one it had"),
]]);

/// Where a volume is mounted while it is filled.
const FILLED: &str = "/corten-volume";
/// Largest description of a container, bytes.
const LARGEST: u64 = 8 << 20;
/// Most parts of an archive: an image and volumes.
const MOST: usize = 10_000;
const TAR: &str = "application/x-tar";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Created {
    id: String,
    #[serde(default)]
    warnings: Option<Vec<String>>,
}

/// An archive that has been looked through.
struct Saved {
    manifest: Manifest,
    /// Its other entries, by name.
    parts: Vec<(String, Part)>,
}

impl Saved {
    fn part(&self, name: &str) -> Result<Part> {
        let found = self.parts.iter().find(|(known, _)| known == name);
        let found = found.map(|(_, part)| part.clone());
        found.ok_or_else(|| CliError::message(format!("the archive is incomplete: no {name}")))
    }
}

async fn load(cli: &Cli, flags: Parsed) -> Result {
    let saved = Saved::open(flags.nonempty("input"))?;
    let client = cli.client()?;
    // All that can be in the way is looked for before anything is made.
    let manifest = &saved.manifest;
    let image = saved.part(IMAGE)?;
    for volume in &manifest.volumes {
        saved.part(&volume.archive)?;
    }
    let name = flags.nonempty("name").unwrap_or(&manifest.name);
    if exists(client, &format!("/containers/{}/json", component(name))).await? {
        return Err(CliError::message(format!(
            "container {name} is here already: remove it, or give the one in the archive \
             another name with --name"
        )));
    }
    let mut known = Vec::new();
    for volume in manifest.volumes.iter().filter(|v| !v.name.is_empty()) {
        if exists(client, &format!("/volumes/{}", component(&volume.name))).await? {
            if !flags.on("keep-volumes") {
                return Err(CliError::message(format!(
                    "volume {} is here already: remove it, or use it as it is with \
                     --keep-volumes",
                    volume.name
                )));
            }
            known.push(volume.name.clone());
        }
    }
    for what in asked::beyond(&manifest.host_config) {
        cli.complain(format!("WARNING: the container {what}"));
    }
    let had_image = exists(client, &format!("{}/json", image_path(manifest))).await?;
    let mut interrupts = Interrupts::catch("container load: interrupted")?;
    let mut made = Vec::new();
    let created = async {
        interrupts.unless(load_image(client, image)).await?;
        restore(client, &saved, name, &known, &mut made, &mut interrupts).await
    };
    let created = created.await;
    if created.is_err() {
        for volume in made {
            let path = format!("/volumes/{}", component(&volume));
            if let Err(error) = client.delete(path).done().await {
                cli.complain(format!("volume {volume} is left: {error}"));
            }
        }
        if !had_image {
            match client.delete(image_path(manifest)).done().await {
                Err(error) if !error.is_not_found() => {
                    cli.complain(format!("image {} is left: {error}", manifest.image));
                }
                _ => {}
            }
        }
    }
    let created = created?;
    for warning in created.warnings.into_iter().flatten() {
        cli.complain(format!("WARNING: {warning}"));
    }
    cli.line(created.id)
}

fn image_path(manifest: &Manifest) -> String {
    format!("/images/{}", component(&manifest.image))
}

async fn load_image(client: &Client, image: Part) -> Result {
    let mut lines = client
        .post("/images/load")
        .query("quiet", "1")
        .body_stream(TAR, sent(image))
        .lines()
        .await?;
    while let Some(line) = lines.next::<Value>().await? {
        if let Some(error) = line["error"].as_str() {
            return Err(CliError::message(error));
        }
    }
    Ok(())
}

/// Makes and fills the volumes, then the container.
async fn restore(
    client: &Client,
    saved: &Saved,
    name: &str,
    known: &[String],
    made: &mut Vec<String>,
    interrupts: &mut Interrupts,
) -> Result<Created> {
    let manifest = &saved.manifest;
    let mut binds = Vec::new();
    let mut filled: BTreeMap<&str, String> = BTreeMap::new();
    for volume in &manifest.volumes {
        let mut called = volume.name.clone();
        if let Some(there) = filled.get(volume.archive.as_str()) {
            called.clone_from(there);
        } else if !known.contains(&called) {
            #[derive(Deserialize)]
            #[serde(rename_all = "PascalCase")]
            struct Made {
                name: String,
            }
            let asked = json!({"Name": called, "Driver": "local"});
            let call = client.post("/volumes/create").body_json(&asked)?;
            called = call.json::<Made>().await?.name;
            made.push(called.clone());
            let archive = saved.part(&volume.archive)?;
            fill(client, manifest, volume, &called, archive, interrupts).await?;
            filled.insert(&volume.archive, called.clone());
        }
        // An empty one is to stay so, whatever the image has there.
        let access = if volume.read_only {
            "ro,nocopy"
        } else {
            "nocopy"
        };
        binds.push(Value::from(format!(
            "{called}:{}:{access}",
            volume.destination
        )));
    }
    let mut host_config = manifest.host_config.clone();
    match host_config.get_mut("Binds") {
        Some(Value::Array(others)) => others.append(&mut binds),
        _ => drop(host_config.insert("Binds".to_owned(), binds.into())),
    }
    let mut body = manifest.config.clone();
    body.insert("Image".to_owned(), manifest.image.clone().into());
    body.insert("HostConfig".to_owned(), host_config.into());
    let call = client.post("/containers/create").query("name", name);
    Ok(call.body_json(&body)?.json().await?)
}

/// Fills a volume through a container that never runs: of its image, with the volume where its
/// archive's one directory is unpacked.
async fn fill(
    client: &Client,
    manifest: &Manifest,
    volume: &Volume,
    called: &str,
    archive: Part,
    interrupts: &mut Interrupts,
) -> Result {
    let place = volume.destination.trim_end_matches('/');
    let last = place.rsplit('/').next().unwrap_or_default();
    let body = json!({
        "Image": manifest.image,
        "Cmd": ["corten-volume"],
        "HostConfig": {
            "NetworkMode": "none",
            // Nothing of the image's is to be in it.
            "Mounts": [{
                "Type": "volume",
                "Source": called,
                "Target": format!("{FILLED}/{last}"),
                "VolumeOptions": {"NoCopy": true},
            }],
        },
    });
    let created: Created = client
        .post("/containers/create")
        .body_json(&body)?
        .json()
        .await?;
    let path = format!("/containers/{}", component(&created.id));
    let filling = async {
        let call = client.put(format!("{path}/archive"));
        let call = call.query("path", FILLED);
        Ok(call.body_stream(TAR, sent(archive)).done().await?)
    };
    let filled = interrupts.unless(filling).await;
    let removed = client.delete(path).query("force", "1").query("v", "1");
    removed.done().await?;
    filled
}

async fn exists(client: &Client, path: &str) -> Result<bool> {
    match client.get(path).done().await {
        Ok(()) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn sent(mut part: Part) -> impl futures_util::Stream<Item = io::Result<bytes::Bytes>> + Send {
    pieces::written(move |mut out| io::copy(&mut part, &mut out).map(drop))
}

/// What every version's document has.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

impl Saved {
    /// Looks through an archive; one that comes as a stream is kept in a file meanwhile.
    fn open(path: Option<&str>) -> Result<Self> {
        let file = match path {
            Some(path) => File::open(path)
                .map_err(|error| CliError::message(format!("open {path}: {}", reason(&error))))?,
            None if term::stdin_is_terminal() => {
                return Err(CliError::message(
                    "requested load from stdin, but stdin is empty",
                ));
            }
            None => {
                let mut file = spool::nameless()?;
                io::copy(&mut io::stdin().lock(), &mut file)?;
                file
            }
        };
        if file.metadata()?.is_file() {
            return Self::read(Arc::new(file));
        }
        // A pipe: parts of it cannot be read again.
        let (mut file, mut stream) = (spool::nameless()?, file);
        io::copy(&mut stream, &mut file)?;
        Self::read(Arc::new(file))
    }

    fn read(file: Arc<File>) -> Result<Self> {
        let damaged = |why: &dyn std::fmt::Display| {
            CliError::message(format!("this is no archive of 'container save': {why}"))
        };
        let whole = Part::new(&file, 0, u64::MAX);
        let mut archive = tar::Archive::new(whole);
        let entries = archive.entries().map_err(|error| damaged(&error))?;
        let (mut manifest, mut parts) = (None, Vec::new());
        for entry in entries {
            let mut entry = entry.map_err(|error| damaged(&error))?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let at = entry.raw_file_position();
            if manifest.is_some() {
                if parts.len() == MOST {
                    return Err(damaged(&format!("it has more than {MOST} parts")));
                }
                parts.push((name, Part::new(&file, at, entry.size())));
                continue;
            }
            if name != MANIFEST {
                return Err(damaged(&format!("{MANIFEST} does not come first")));
            }
            let mut text = Vec::new();
            entry.by_ref().take(LARGEST).read_to_end(&mut text)?;
            // Before the rest, which may be another document by then.
            let version: Version =
                serde_json::from_slice(&text).map_err(|error| damaged(&error))?;
            if version.version > VERSION {
                return Err(CliError::message(format!(
                    "the archive has version {}; this program knows {VERSION}: use a newer one",
                    version.version
                )));
            }
            manifest = Some(serde_json::from_slice(&text).map_err(|error| damaged(&error))?);
        }
        let manifest = manifest.ok_or_else(|| damaged(&"it is empty"))?;
        Ok(Self { manifest, parts })
    }
}
