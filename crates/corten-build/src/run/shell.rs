//! `build --debug`: a shell where a command has failed, with all that the command had: file
//! system as it left it, mounts, environment, user, directory, network.
//!
//! The command's own mounts are gone with its process. So they are made anew, on the same upper
//! directory; what the command wrote into a `tmpfs` or a writable bind mount is not there. What
//! the shell writes is thrown away with what the command wrote.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use corten_runtime::passing;
use corten_store::rooted::RootFd;
use corten_store::{Upper, WorkDir};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::net::RecvFlags;

use super::{Left, RunInput};
use crate::error::{BuildError, reason};
use crate::ops::users;
use crate::progress::LogStream;
use crate::request::ShellOffer;
use crate::wire::Outcome;

/// What may be in an image, if the command itself is none.
const SHELLS: [&str; 3] = ["/bin/bash", "/bin/sh", "/busybox/sh"];

/// Programs that are shells. What only ends as they do may do anything (`/app/push`).
const NAMES: [&str; 8] = ["sh", "bash", "ash", "dash", "zsh", "ksh", "mksh", "fish"];

/// What a terminal is taken for that says nothing of itself.
const TERM: &str = "TERM=xterm";

/// Why there is no shell.
enum Failure {
    Told(String),
    Build(BuildError),
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        Self::Build(error)
    }
}

/// Opens a shell and waits until it has ended; `report` tells what has failed. That there is none
/// changes nothing about the build's failure: why is told, to be shown beside it. Blocks.
pub(crate) fn open(
    input: &RunInput<'_>,
    left: Left,
    report: &str,
) -> Result<Option<String>, BuildError> {
    let Left { offer, work } = left;
    let why = match run(input, &work, offer, report) {
        Ok(()) => None,
        Err(Failure::Told(message)) => Some(message),
        Err(Failure::Build(BuildError::Cancelled)) => return Err(BuildError::Cancelled),
        Err(Failure::Build(error)) => Some(error.to_string()),
    };
    input.cancel.check()?;
    Ok(why)
}

fn run(
    input: &RunInput<'_>,
    work: &WorkDir,
    offer: ShellOffer,
    report: &str,
) -> Result<(), Failure> {
    let (mut ready, devices) = super::prepare(input)?.map_err(Failure::Told)?;
    let points = ready.points();
    let mut stack = vec![input.mount_points.layer(input.store, &points)?];
    stack.extend_from_slice(input.layers);
    // Overlayfs does not take the work directory of another mount that was volatile.
    let fresh = input.store.layers().begin().map_err(BuildError::from)?;
    let upper = Upper::Dir {
        upper: work.upper(),
        work: fresh.work(),
        volatile: true,
    };
    let mount = input.store.layers().mount(&stack, upper);
    let root = RootFd::from(mount.map_err(BuildError::from)?);
    let identity = users::process(&root, &input.op.user).map_err(Failure::Told)?;
    let shell = shell(&input.op.args, &root).ok_or_else(|| {
        let tried = SHELLS.join(", ");
        Failure::Told(format!("the image has none ({tried})"))
    })?;
    let mut worker = input.workers.take(input.sandboxing, input.cancel)?;
    let endpoint = super::place(input, &mut worker)?;
    let files = super::files(input, &fresh)?;
    let mut spec = super::spec(input, &identity, &files, &ready.env)?;
    let failed = || BuildError::io("start a shell in the failed step");
    devices.apply(&mut spec).map_err(failed())?;
    let (opened, fds) = super::add_mounts(&mut spec, std::mem::take(&mut ready.mounts), &devices);
    let mut process = spec
        .process()
        .clone()
        .ok_or_else(|| BuildError::Internal("the default spec lacks a part".to_owned()))?;
    let mut env = process.env().clone().unwrap_or_default();
    if !env.iter().any(|entry| entry.starts_with("TERM=")) {
        env.push(TERM.to_owned());
    }
    process
        .set_args(Some(shell.clone()))
        .set_env(Some(env))
        .set_terminal(Some(true));
    spec.set_process(Some(process));
    let bundle = ready.bundle(input.store, &spec)?;
    let mut job = super::job(input, &worker, endpoint.as_ref(), spec, opened, bundle);
    job.terminal = true;
    let (ours, theirs) = UnixStream::pair().map_err(failed())?;
    let (complaints, complaints_end) = io::pipe().map_err(failed())?;
    {
        let mut all = vec![root.as_fd(), theirs.as_fd(), complaints_end.as_fd()];
        all.extend(fds.iter().map(AsFd::as_fd));
        let begun = worker.begin(&job, &all);
        input.cancel.check()?;
        begun.map_err(failed())?;
    }
    drop((theirs, complaints_end));
    let terminal = terminal(&ours);
    if let Some(terminal) = terminal {
        offer.give(terminal, &shell.join(" "), report);
    }
    // What the process around it has to say, until the shell has ended.
    let said = Mutex::new(String::new());
    super::read(complaints, LogStream::Stderr, &|_, _| (), &said);
    let outcome = worker.outcome();
    drop(worker);
    if outcome.is_err() {
        super::end_group(&job);
    }
    drop(endpoint);
    let served = ready.end();
    input.cancel.check()?;
    match outcome {
        Ok(Outcome::Ended { .. }) => served.map_err(Failure::Told),
        Ok(Outcome::Failed { message, .. }) => Err(Failure::Told(message)),
        Err(error) => Err(Failure::Told(format!(
            "its process ended unexpectedly ({}): {}",
            reason(&error),
            said.into_inner().unwrap_or_else(PoisonError::into_inner)
        ))),
    }
}

/// The terminal's other side; none: there is no process.
fn terminal(socket: &UnixStream) -> Option<OwnedFd> {
    let mut byte = [0];
    let received = passing::receive(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        RecvFlags::empty(),
    );
    received.ok()?.1.pop()
}

/// The shell that the command is run by, or one that is there: its words.
fn shell(command: &[String], root: &RootFd) -> Option<Vec<String>> {
    let own = command.first().filter(|word| word.starts_with('/'));
    let own = own.and_then(|word| {
        let name = word.rsplit('/').next().unwrap_or_default();
        let words = match name {
            "busybox" => vec![word.clone(), "sh".to_owned()],
            name => NAMES.contains(&name).then(|| vec![word.clone()])?,
        };
        Some(words)
    });
    let usual = SHELLS.map(|path| vec![path.to_owned()]);
    own.into_iter()
        .chain(usual)
        .find(|words| words.first().is_some_and(|path| is_program(path, root)))
}

fn is_program(path: &str, root: &RootFd) -> bool {
    let found = root.open_in_root(Path::new(path), OFlags::PATH, Mode::empty());
    let about = found.and_then(|fd| Ok(rustix::fs::fstat(&fd)?));
    about.is_ok_and(|about| {
        FileType::from_raw_mode(about.st_mode) == FileType::RegularFile
            && about.st_mode & 0o111 != 0
    })
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn only_shells_are_taken_for_shells() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, mode| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        };
        let root = RootFd::open(dir.path()).unwrap();
        let chosen = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            shell(&words, &root).map(|words| words.join(" "))
        };
        put("app/push", 0o755);
        put("bin/bash", 0o644);
        assert_eq!(chosen(&["/app/push"]), None);
        put("bin/sh", 0o755);
        put("bin/busybox", 0o755);
        put("opt/zsh", 0o755);
        for (command, expected) in [
            ("/app/push", "/bin/sh"),
            ("/opt/zsh", "/opt/zsh"),
            ("/bin/bash", "/bin/sh"),
            ("/bin/busybox", "/bin/busybox sh"),
            ("zsh", "/bin/sh"),
        ] {
            assert_eq!(chosen(&[command, "-c"]).as_deref(), Some(expected));
        }
    }
}
