//! `cp`: between this machine and a container, as a tar over the API.

mod local;
mod rules;

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use corten_build::{Owners, Replacing, Unpacking, unpack_archive};
use corten_store::rooted::{RootFd, normal};
use futures_util::StreamExt;
use serde::Deserialize;

use crate::app::Cli;
use crate::client::{Answer, component};
use crate::command::{Command, action};
use crate::commands::image::Archive;
use crate::error::{CliError, Result};
use crate::flags::{Arity, Flag, Parsed};
use crate::format::units;
use crate::output::Output;
use crate::{pieces, term};
use rules::Side;

/// `cp`.
pub(crate) static CP: Command = Command::new(
    "cp",
    "(CONTAINER:SRC_PATH DEST_PATH|-) | (SRC_PATH|- CONTAINER:DEST_PATH)",
    "Copy files/folders between a container and the local filesystem",
    action!(cp),
)
.aliases(&["container cp", "cp"])
.arity(Arity::Exact(2))
.heavy()
.fills()
.flags(&[&[
    Flag::switch("archive", "Archive mode (copy all uid/gid information)").short('a'),
    Flag::switch("follow-link", "Always follow symbol link in SRC_PATH").short('L'),
    Flag::switch(
        "quiet",
        "Suppress progress output during copy. Progress output is automatically suppressed if no terminal is attached",
    )
    .short('q'),
]]);

/// The header that tells what is at a path (`GET`, `HEAD /containers/NAME/archive`).
const STATUS: &str = "X-Docker-Container-Path-Stat";
/// Go's `fs.FileMode` bits.
const DIRECTORY: u32 = 1 << 31;
const SYMLINK: u32 = 1 << 27;
const DEVICE: u32 = 1 << 26;
const IRREGULAR: u32 = 1 << 19;

/// What is at a path of a container.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    mode: u32,
    #[serde(default)]
    link_target: String,
}

impl Status {
    fn of(answer: &Answer<'_>) -> Result<Self> {
        let told = answer
            .header(STATUS)
            .and_then(|text| STANDARD.decode(text).ok())
            .and_then(|json| serde_json::from_slice(&json).ok());
        told.ok_or_else(|| {
            CliError::message("the engine does not say what is at the path in the container")
        })
    }

    fn is_link(&self) -> bool {
        self.mode & SYMLINK != 0
    }

    /// Where it leads, from the directory of `path`.
    fn target(&self, path: &str) -> String {
        if self.link_target.starts_with('/') {
            return self.link_target.clone();
        }
        let (parent, _) = rules::parent_and_name(path);
        rules::clean(&format!("{parent}/{}", self.link_target))
    }

    /// Why nothing can be copied there.
    fn unfit(&self) -> Option<&'static str> {
        match self.mode {
            mode if mode & DEVICE != 0 => Some("got a device"),
            mode if mode & IRREGULAR != 0 => Some("got an irregular file"),
            _ => None,
        }
    }
}

/// A copy that is asked for.
struct Copy<'a> {
    cli: &'a Cli,
    container: &'a str,
    follow: bool,
    archive: bool,
    progress: Option<Progress>,
}

async fn cp(cli: &Cli, flags: Parsed) -> Result {
    let [from, to] = flags.args.as_slice() else {
        return Ok(());
    };
    for (text, what) in [(from, "source"), (to, "destination")] {
        if text.is_empty() {
            return Err(CliError::message(format!("{what} can not be empty")));
        }
    }
    let quiet = if flags.given("quiet") {
        flags.on("quiet")
    } else {
        !term::stdout_is_terminal()
    };
    let copy = |container, word| Copy {
        cli,
        container,
        follow: flags.on("follow-link"),
        archive: flags.on("archive"),
        progress: (!quiet).then(|| Progress::new(word)),
    };
    match (rules::split(from), rules::split(to)) {
        ((Some(_), _), (Some(_), _)) => Err(CliError::message(
            "copying between containers is not supported",
        )),
        ((Some(container), from), (None, to)) => copy(container, "from").out(from, to).await,
        ((None, from), (Some(container), to)) => copy(container, "to").into(from, to).await,
        ((None, _), (None, _)) => Err(CliError::message(
            "must specify at least one container source",
        )),
    }
}

impl Copy<'_> {
    fn path(&self) -> String {
        format!("/containers/{}/archive", component(self.container))
    }

    async fn status(&self, path: &str) -> Result<Status> {
        let client = self.cli.client()?;
        let answer = client.head(self.path()).query("path", path).send().await?;
        let status = Status::of(&answer)?;
        answer.bytes().await?;
        Ok(status)
    }

    /// Out of the container.
    async fn out(self, from: &str, to: &str) -> Result {
        let to = match to {
            "-" => None,
            path => Some(local::absolute(path)?),
        };
        local::check_output(to.as_deref().unwrap_or("-"))?;
        let (mut from, mut renamed) = (from.to_owned(), None);
        if self.follow
            && let Ok(status) = self.status(&from).await
            && status.is_link()
        {
            (from, renamed) = rules::followed(&from, &status.target(&from));
        }
        let client = self.cli.client()?;
        let call = client.get(self.path()).query("path", &from);
        let answer = call.send().await?;
        let status = Status::of(&answer)?;
        let Some(to) = to else {
            return Output::Stdout.receive(answer.reader()).await;
        };
        let side = Side {
            path: from.clone(),
            exists: true,
            directory: status.mode & DIRECTORY != 0,
            renamed,
        };
        let plan = rules::plan(&side, &local::destination(&to)?).map_err(CliError::message)?;
        // In the archive, the outermost entry has its own name.
        let (_, own) = rules::parent_and_name(&from);
        let renaming = plan
            .name
            .map(|name| (normal(Path::new(&own)), PathBuf::from(name)));
        let directory = plan.directory;
        let failed = {
            let path = PathBuf::from(&directory);
            move |source| CliError::File {
                action: "open",
                path,
                source,
            }
        };
        let root = RootFd::open(Path::new(&directory)).map_err(failed)?;
        let shown = PathBuf::from(&directory);
        let progress = self.progress.clone();
        let each = move |length| {
            if let Some(progress) = &progress {
                progress.add(length);
            }
        };
        let unpacked = pieces::read(answer.reader(), each, move |tar| {
            let renamed = renaming.as_ref();
            let to = Unpacking {
                root: &root,
                below: Path::new(""),
                renamed: renamed.map(|(from, to)| (from.as_path(), to.as_path())),
                owners: Owners::Own,
                renumbered: None,
                replacing: Replacing::SameKind,
                called: &shown,
                strict: false,
                whole: false,
            };
            unpack_archive(tar, to)
        });
        unpacked.await??;
        self.done(&to);
        Ok(())
    }

    /// Into the container.
    async fn into(self, from: &str, to: &str) -> Result {
        let source = match from {
            "-" => None,
            path => Some(local::source(&local::absolute(path)?, self.follow)?),
        };
        let mut there = Side {
            path: to.to_owned(),
            ..Side::default()
        };
        if let Ok(status) = self.status(to).await {
            let mut found = Some(status);
            if let Some(link) = found.as_ref().filter(|status| status.is_link()) {
                there.path = link.target(to);
                found = self.status(&there.path).await.ok();
            }
            if let Some(status) = found {
                if let Some(unfit) = status.unfit() {
                    return Err(CliError::message(format!(
                        "destination \"{}:{to}\" must be a directory or a regular file: {unfit}",
                        self.container
                    )));
                }
                (there.exists, there.directory) = (true, status.mode & DIRECTORY != 0);
            }
        }
        let shown = format!("{}:{}", self.container, there.path);
        let client = self.cli.client()?;
        let call = |directory: &str| {
            client
                .put(self.path())
                .query("path", directory)
                .query("noOverwriteDirNonDir", "true")
                .flag("copyUIDGID", self.archive)
        };
        const TAR: &str = "application/x-tar";
        let Some(source) = source else {
            if !there.directory {
                return Err(CliError::message(format!(
                    "destination \"{}:{to}\" must be a directory",
                    self.container
                )));
            }
            let pieces = Archive::Stdin.pieces();
            let call = call(&there.path).body_stream(TAR, pieces);
            return Ok(call.done().await?);
        };
        let plan = rules::plan(&source, &there).map_err(CliError::message)?;
        let (parent, name) = rules::parent_and_name(&source.path);
        let called = plan.name.unwrap_or_else(|| name.clone());
        let pieces = pieces::written(move |out| {
            let dir = RootFd::open(Path::new(&parent))?;
            let called = OsString::from(called);
            corten_store::archive::write_entry(dir.as_fd(), name.as_ref(), &called, out)
        });
        let progress = self.progress.clone();
        let pieces = pieces.inspect(move |piece| {
            if let (Some(progress), Ok(piece)) = (&progress, piece) {
                progress.add(piece.len());
            }
        });
        let call = call(&plan.directory).body_stream(TAR, pieces);
        call.done().await?;
        self.done(&shown);
        Ok(())
    }

    fn done(&self, to: &str) {
        if let Some(progress) = &self.progress {
            progress.clear();
            self.cli.complain(format!(
                "Successfully copied {} to {to}",
                units::size(progress.copied())
            ));
        }
    }
}

/// How much was copied, shown on a terminal.
#[derive(Clone)]
struct Progress {
    word: &'static str,
    copied: Arc<AtomicI64>,
    shown: bool,
}

impl Progress {
    fn new(word: &'static str) -> Self {
        Self {
            word,
            copied: Arc::default(),
            shown: term::stderr_is_terminal(),
        }
    }

    fn copied(&self) -> i64 {
        self.copied.load(Ordering::Relaxed)
    }

    fn add(&self, length: usize) {
        let length = i64::try_from(length).unwrap_or_default();
        let copied = self.copied.fetch_add(length, Ordering::Relaxed) + length;
        let size = units::size(copied);
        self.write(&format!("\r\x1b[KCopying {} container - {size}", self.word));
    }

    fn clear(&self) {
        self.write("\r\x1b[K");
    }

    fn write(&self, text: &str) {
        if self.shown
            && let Err(error) = io::Write::write_all(&mut io::stderr(), text.as_bytes())
        {
            tracing::debug!(%error, "progress is not shown");
        }
    }
}
