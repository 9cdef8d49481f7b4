//! `image save`, `image load` and `image import`, and their short forms.

use std::fs::File;
use std::io::{self, Read};

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::mpsc;

use super::PLATFORM;
use crate::app::Cli;
use crate::command::{Command, action};
use crate::error::{CliError, Result, reason};
use crate::flags::{Arity, Flag, Parsed};
use crate::opts::platform;
use crate::output::Output;
use crate::progress::stream::{self, Sink};
use crate::term;

/// Bytes read at once, and pieces that may wait.
const PIECE: usize = 256 * 1024;
const AHEAD: usize = 4;

/// `image save`, `save`.
pub(crate) static SAVE: Command = Command::new(
    "save",
    "IMAGE [IMAGE...]",
    "Save one or more images to a tar archive (streamed to STDOUT by default)",
    action!(save),
)
.aliases(&["image save", "save"])
.arity(Arity::Min(1))
.heavy()
.flags(&[&[
    Flag::text("output", "Write to a file, instead of STDOUT").short('o'),
    Flag::text(
        "platform",
        "Platform the images must be for (\"linux/amd64\")",
    ),
]]);

/// `image load`, `load`.
pub(crate) static LOAD: Command = Command::new(
    "load",
    "",
    "Load an image from a tar archive or STDIN",
    action!(load),
)
.aliases(&["image load", "load"])
.arity(Arity::None)
.heavy()
.fills()
.flags(&[&[
    Flag::text("input", "Read from tar archive file, instead of STDIN").short('i'),
    Flag::text(
        "platform",
        "Load only the given platform variant (\"linux/amd64\")",
    ),
    Flag::switch("quiet", "Suppress the load output").short('q'),
]]);

/// `image import`, `import`.
pub(crate) static IMPORT: Command = Command::new(
    "import",
    "file|URL|- [REPOSITORY[:TAG]]",
    "Import the contents from a tarball to create a filesystem image",
    action!(import),
)
.aliases(&["image import", "import"])
.arity(Arity::Min(1))
.heavy()
.fills()
.flags(&[&[
    Flag::list(
        "change",
        "Apply Dockerfile instruction to the created image",
    )
    .short('c'),
    Flag::text("message", "Set commit message for imported image").short('m'),
    PLATFORM,
]]);

async fn save(cli: &Cli, flags: Parsed) -> Result {
    let platform = platform::json(flags.nonempty("platform"))?;
    let output = Output::open(flags.nonempty("output"), "save image")?;
    let mut call = cli.client()?.get("/images/get");
    for image in &flags.args {
        call = call.query("names", image);
    }
    let answer = call.query_opt("platform", platform).send().await?;
    output.receive(answer.reader()).await
}

async fn load(cli: &Cli, flags: Parsed) -> Result {
    let platform = platform::json(flags.nonempty("platform"))?;
    let archive = match flags.nonempty("input") {
        Some(path) => Archive::open(path)?,
        None if term::stdin_is_terminal() => {
            return Err(CliError::message(
                "requested load from stdin, but stdin is empty",
            ));
        }
        None => Archive::Stdin,
    };
    let quiet = flags.on("quiet") || !term::stdout_is_terminal();
    let lines = cli
        .client()?
        .post("/images/load")
        .query("quiet", if quiet { "1" } else { "0" })
        .query_opt("platform", platform)
        .body_stream("application/x-tar", archive.pieces())
        .lines()
        .await?;
    stream::show(lines, Sink::stdout()).await
}

async fn import(cli: &Cli, flags: Parsed) -> Result {
    let source = flags.args.first().map(String::as_str).unwrap_or_default();
    let name = flags.args.get(1);
    if let Some(name) = name {
        crate::run::image::reference(name)?;
    }
    let default = std::env::var("DOCKER_DEFAULT_PLATFORM").ok();
    let platform = flags.nonempty("platform").or(default.as_deref());
    let is_url = source.starts_with("http://") || source.starts_with("https://");
    let mut call = cli
        .client()?
        .post("/images/create")
        .query("fromSrc", if is_url { source } else { "-" })
        .query_opt("repo", name)
        .query_opt("message", flags.nonempty("message"))
        .query_opt("platform", platform.filter(|p| !p.is_empty()));
    for change in flags.list("change") {
        call = call.query("changes", change);
    }
    if !is_url {
        let archive = match source {
            "-" => Archive::Stdin,
            path => Archive::open(path)?,
        };
        call = call.body_stream("application/x-tar", archive.pieces());
    }
    stream::show(call.lines().await?, Sink::stdout()).await
}

/// Where an archive comes from.
#[derive(Debug)]
pub(crate) enum Archive {
    File(File, String),
    Stdin,
}

impl Archive {
    /// A file.
    pub(crate) fn open(path: &str) -> Result<Self> {
        let file = File::open(path)
            .map_err(|error| CliError::message(format!("open {path}: {}", reason(&error))))?;
        Ok(Self::File(file, path.to_owned()))
    }

    /// Its bytes, read on a thread of their own.
    pub(crate) fn pieces(self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        let (sender, receiver) = mpsc::channel(AHEAD);
        std::thread::spawn(move || {
            let (mut input, name): (Box<dyn Read>, String) = match self {
                Self::File(file, path) => (Box::new(file), path),
                Self::Stdin => (Box::new(io::stdin().lock()), "standard input".to_owned()),
            };
            loop {
                let mut piece = vec![0; PIECE];
                let read = match input.read(&mut piece) {
                    Ok(0) => return,
                    Ok(n) => {
                        piece.truncate(n);
                        Ok(Bytes::from(piece))
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => {
                        let text = format!("read {name}: {}", reason(&error));
                        Err(io::Error::new(error.kind(), text))
                    }
                };
                let ended = read.is_err();
                if sender.blocking_send(read).is_err() || ended {
                    return;
                }
            }
        });
        futures_util::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|piece| (piece, receiver))
        })
    }
}
