//! RUN, the builder's side: the runtime-spec document, the files that must not end up in the
//! layer, the process that carries the step out, and its output; a shell where it failed.

mod shell;

pub(crate) use shell::open as shell;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use corten_cdi::{Changes, Registry};
use corten_oci::DiffId;
use corten_oci::runtime_spec::{
    LinuxDeviceCgroup, LinuxNamespaceType, LinuxResources, Mount, PosixRlimit, Process, Spec, User,
};
use corten_runtime::{Cgroup, defaults};
use corten_store::{Store, TmpDir, WorkDir};

use crate::cancel::Cancel;
use crate::error::BuildError;
use crate::ops::leavings::Leavings;
use crate::ops::users;
use crate::plan::{RunOp, SCRIPTS};
use crate::progress::LogStream;
use crate::request::{Sandboxing, Secret, ShellOffer, StepEndpoint, StepLimits, StepNetworkMode};
use crate::step_mounts::{Caches, Ready};
use crate::wire::{JobNetwork, Outcome, StepJob};
use crate::workers::{Worker, Workers};
use crate::{mount_points, step_mounts};

/// What BuildKit calls the machine a step runs on.
const HOSTNAME: &str = "buildkitsandbox";
/// How much of the output is kept for the report of a failure.
const TAIL: usize = 8 << 10;

/// Receives output.
pub(crate) type LogSink<'a> = &'a (dyn Fn(LogStream, String) + Sync);

/// How a command ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// With this layer.
    Done(Option<DiffId>),
    /// With a failure: its status and the end of its output.
    Failed {
        code: i64,
        output: String,
        /// The program itself said so.
        ran: bool,
    },
    /// It was never started.
    NotStarted(String),
    /// What it asks for is not there.
    Refused(String),
}

/// What a step runs with.
pub(crate) struct RunInput<'a> {
    pub(crate) store: &'a Store,
    pub(crate) sandboxing: &'a Sandboxing,
    pub(crate) op: &'a RunOp,
    pub(crate) layers: &'a [DiffId],
    pub(crate) hosts: &'a [(String, String)],
    pub(crate) cancel: &'a Cancel,
    /// Layers of the stages, images and contexts that its mounts are of, in their order.
    pub(crate) sources: &'a [Option<Vec<DiffId>>],
    pub(crate) secrets: &'a BTreeMap<String, Secret>,
    pub(crate) agents: &'a BTreeMap<String, PathBuf>,
    pub(crate) limits: &'a StepLimits,
    pub(crate) mount_points: &'a mount_points::Made,
    pub(crate) workers: &'a Workers,
    pub(crate) leavings: &'a Leavings,
    pub(crate) files: &'a StepFiles,
    /// Another step like this one is likely to come after it.
    pub(crate) more: bool,
    pub(crate) resources: Option<&'a LinuxResources>,
    pub(crate) caches: &'a Caches,
    /// Nothing in the layer is later than this, in seconds since the epoch.
    pub(crate) last: Option<i64>,
    /// Somebody wants a shell in the first step that fails.
    pub(crate) shell: &'a Mutex<Option<ShellOffer>>,
    /// Where what it leaves for that is put.
    pub(crate) left: &'a Mutex<Option<Left>>,
}

/// What a failed command has left, and whom a shell in it is for.
#[derive(Debug)]
pub(crate) struct Left {
    offer: ShellOffer,
    work: WorkDir,
}

/// Runs the command and makes a layer of what it changed. Blocks.
pub(crate) fn run(input: &RunInput<'_>, log: LogSink<'_>) -> Result<Ended, BuildError> {
    input.cancel.check()?;
    // Mount points of a step are part of the stack's bottom, so none is made in the layer.
    let (mut ready, devices) = match prepare(input)? {
        Ok(ready) => ready,
        Err(message) => return Ok(Ended::Refused(message)),
    };
    let points = ready.points();
    let mut stack = vec![input.mount_points.layer(input.store, &points)?];
    stack.extend_from_slice(input.layers);
    let (work, root) = crate::ops::writable(input.store, &stack)?;
    let identity = match users::process(&root, &input.op.user) {
        Ok(identity) => identity,
        Err(message) => return Ok(Ended::NotStarted(message)),
    };
    let mut worker = input.workers.take(input.sandboxing, input.cancel)?;
    let endpoint = place(input, &mut worker)?;
    if input.more && !input.op.insecure && endpoint.is_some() {
        // Without one the next step finds a place itself, or says why there is none.
        if let Err(error) = worker.reserve(&*input.sandboxing.network) {
            tracing::debug!(%error, "no place for the next step yet");
        }
    }
    let files = files(input, &work)?;
    let mut spec = spec(input, &identity, &files, &ready.env)?;
    devices
        .apply(&mut spec)
        .map_err(BuildError::io("devices"))?;
    let (opened, fds) = add_mounts(&mut spec, std::mem::take(&mut ready.mounts), &devices);
    let missing = mount_points::missing(&root, &points);
    let bundle = ready.bundle(input.store, &spec)?;
    let job = job(input, &worker, endpoint.as_ref(), spec, opened, bundle);
    let (outcome, output) = execute(input, worker, &job, root.as_fd(), &fds, log)?;
    drop(endpoint);
    drop(fds);
    let served = ready.end();
    for path in missing {
        mount_points::remove(&root, &path);
    }
    drop(root);
    input.cancel.check()?;
    if let Err(message) = served {
        return Ok(Ended::Refused(message));
    }
    let mut output = output;
    if matches!(outcome, Outcome::Ended { code: 0, .. }) {
        let settled = crate::ops::settle(input.store, input.leavings, work, input.last);
        return settled.map(Ended::Done);
    }
    let mut offer = input.shell.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(offer) = offer.take() {
        let mut left = input.left.lock().unwrap_or_else(PoisonError::into_inner);
        *left = Some(Left { offer, work });
    }
    drop(offer);
    match outcome {
        Outcome::Ended { code, oom } => {
            if oom {
                output.push_str("\nthe out-of-memory killer struck\n");
            }
            Ok(Ended::Failed {
                code: i64::from(code),
                output,
                ran: true,
            })
        }
        Outcome::Failed {
            message,
            code: Some(code),
        } => Ok(Ended::Failed {
            code: i64::from(code),
            output: format!("{output}{message}\n"),
            ran: false,
        }),
        Outcome::Failed {
            message,
            code: None,
        } => Ok(Ended::NotStarted(message)),
    }
}

/// Its mounts, those of its devices included, and what else these change.
fn prepare(input: &RunInput<'_>) -> Result<Result<(Ready, Changes), String>, BuildError> {
    let mut devices = Changes::default();
    if !input.op.devices.is_empty() {
        // They were there when the build was planned.
        let registry = Registry::read(&input.sandboxing.cdi);
        devices = match registry.changes(&input.op.devices) {
            Ok(devices) => devices,
            Err(error) => return Ok(Err(error.to_string())),
        };
    }
    Ok(step_mounts::prepare(input)?.map(|mut ready| {
        // As CDI has it: what is at such a place already gives way.
        let targets = &devices.targets;
        ready
            .mounts
            .retain(|(mount, _)| !targets.contains(mount.destination()));
        ready.mounts.append(&mut devices.mounts);
        (ready, devices)
    }))
}

/// Its place on the bridge, if that is its network.
fn place(input: &RunInput<'_>, worker: &mut Worker) -> Result<Option<StepEndpoint>, BuildError> {
    match input.op.network {
        StepNetworkMode::Default => worker.place(&*input.sandboxing.network).map(Some),
        StepNetworkMode::None | StepNetworkMode::Host => Ok(None),
    }
}

fn job(
    input: &RunInput<'_>,
    worker: &Worker,
    endpoint: Option<&StepEndpoint>,
    spec: Spec,
    opened: Vec<usize>,
    bundle: PathBuf,
) -> StepJob {
    let id = random_id();
    let parent = input.limits.cgroup_parent.as_ref();
    let parent = parent.unwrap_or(&input.sandboxing.cgroup_parent);
    StepJob {
        network: match (endpoint, input.op.network) {
            (Some(place), _) => JobNetwork::Bridge(Box::new(place.endpoint.clone())),
            (None, StepNetworkMode::Host) => JobNetwork::Host,
            (None, _) => JobNetwork::None,
        },
        next: worker.reserved(),
        cgroup: format!("{parent}/{id}"),
        id,
        spec,
        opened,
        terminal: false,
        bundle,
    }
}

/// What a step, or its place on the network, is known by.
pub(crate) fn random_id() -> String {
    format!("build-{:016x}", rand::random::<u64>())
}

/// Hands a process its job, reads its output until the end.
fn execute(
    input: &RunInput<'_>,
    worker: Worker,
    job: &StepJob,
    root: BorrowedFd<'_>,
    mounted: &[OwnedFd],
    log: LogSink<'_>,
) -> Result<(Outcome, String), BuildError> {
    let failed = || BuildError::io(format!("start the build step {}", job.id));
    let (stdout, stdout_end) = io::pipe().map_err(failed())?;
    let (stderr, stderr_end) = io::pipe().map_err(failed())?;
    {
        let mut fds = vec![root, stdout_end.as_fd(), stderr_end.as_fd()];
        fds.extend(mounted.iter().map(AsFd::as_fd));
        let begun = worker.begin(job, &fds);
        // A cancelled build has shut the socket: that is not the step's failure.
        input.cancel.check()?;
        begun.map_err(failed())?;
    }
    // The other end has copies of its own.
    drop((stdout_end, stderr_end));
    let tail = Mutex::new(String::new());
    let outcome = std::thread::scope(|scope| {
        let (out, err) = (LogStream::Stdout, LogStream::Stderr);
        let tail = &tail;
        scope.spawn(move || read(stdout, out, log, tail));
        scope.spawn(move || read(stderr, err, log, tail));
        worker.outcome()
    });
    let tail = tail.into_inner().unwrap_or_else(PoisonError::into_inner);
    match outcome {
        Ok(outcome) => {
            // What a command with all rights has done to its process's namespaces is its own.
            if !input.op.insecure {
                input.workers.keep(worker);
            }
            input.cancel.check()?;
            Ok((outcome, tail))
        }
        Err(_) => {
            drop(worker);
            end_group(job);
            input.cancel.check()?;
            Err(BuildError::Internal(format!(
                "the build step's process ended unexpectedly: {}",
                tail.trim_end()
            )))
        }
    }
}

/// Ends what is left of a job whose process died without undoing what it had made.
fn end_group(job: &StepJob) {
    let group = Cgroup::open(&job.cgroup).and_then(|group| {
        group.kill_all()?;
        group.remove()
    });
    if let Err(error) = group {
        tracing::warn!(step = job.id, %error, "a control group is left to be swept");
    }
}

/// Passes a stream on; characters split between two reads are put together.
fn read(mut stream: impl Read, which: LogStream, log: LogSink<'_>, tail: &Mutex<String>) {
    let mut pending = Vec::new();
    let mut buffer = vec![0; 1 << 15];
    loop {
        let count = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                tracing::debug!(%error, "a step's output cannot be read");
                break;
            }
        };
        pending.extend_from_slice(&buffer[..count]);
        let whole = pending.len() - incomplete(&pending);
        let rest = pending.split_off(whole);
        tell(&pending, which, log, tail);
        pending = rest;
    }
    tell(&pending, which, log, tail);
}

fn tell(bytes: &[u8], which: LogStream, log: LogSink<'_>, tail: &Mutex<String>) {
    if bytes.is_empty() {
        return;
    }
    let text = String::from_utf8_lossy(bytes).into_owned();
    {
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.push_str(&text);
        if tail.len() > 2 * TAIL {
            let cut = tail.len() - TAIL;
            let cut = tail[..]
                .char_indices()
                .map(|(at, _)| at)
                .find(|&at| at >= cut)
                .unwrap_or(0);
            tail.drain(..cut);
        }
    }
    log(which, text);
}

/// How many bytes at the end begin a character that is not whole yet.
fn incomplete(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => bytes.len() - error.valid_up_to(),
        _ => 0,
    }
}

/// Files seen by the step that belong to no layer.
#[derive(Debug)]
struct Files {
    hosts: PathBuf,
    resolv_conf: Option<PathBuf>,
    scripts: Option<PathBuf>,
}

/// Files that all steps of a build see, none of which can write them.
#[derive(Debug, Default)]
pub(crate) struct StepFiles(Mutex<Option<TmpDir>>);

impl StepFiles {
    /// Their directory.
    fn directory(&self, store: &Store) -> Result<PathBuf, BuildError> {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(dir) = made.as_ref() {
            return Ok(dir.path().to_owned());
        }
        let dir = made.insert(store.tmp_dir("steps")?);
        Ok(dir.path().to_owned())
    }

    /// Whether there is none, nor is one being removed. Never waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.try_lock().is_ok_and(|made| made.is_none())
    }

    /// Removes them: there are no more steps.
    pub(crate) fn end(&self) {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(made.take());
    }
}

fn files(input: &RunInput<'_>, work: &WorkDir) -> Result<Files, BuildError> {
    let dir = work.dir();
    // A command with all rights may write to what others could only read.
    let shared = match input.op.insecure {
        true => dir.to_owned(),
        false => input.files.directory(input.store)?,
    };
    let write = |name: &str, text: &str| -> Result<PathBuf, BuildError> {
        let path = shared.join(name);
        let failed = || BuildError::io(format!("write {}", path.display()));
        if !path.exists() {
            // Several steps may do so at once.
            let new = shared.join(format!("{name}-{:016x}", rand::random::<u64>()));
            std::fs::write(&new, text).map_err(failed())?;
            std::fs::rename(&new, &path).map_err(failed())?;
        }
        Ok(path)
    };
    let hosts = || {
        let name = hostname(input.limits);
        let mut hosts =
            format!("127.0.0.1\tlocalhost {name}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
        for (name, address) in input.hosts {
            hosts.push_str(&format!("{address}\t{name}\n"));
        }
        hosts
    };
    let resolv_conf = match input.op.network {
        StepNetworkMode::None => None,
        mode => {
            let text = input.sandboxing.network.resolv_conf(mode);
            let text = text.map_err(|e| BuildError::Internal(format!("no resolv.conf: {e}")))?;
            Some(write(&format!("resolv.conf-{}", mode.as_str()), &text)?)
        }
    };
    let scripts = match &input.op.script {
        None => None,
        Some((name, content)) => {
            let scripts = dir.join("scripts");
            let made = || -> io::Result<()> {
                std::fs::create_dir(&scripts)?;
                std::fs::set_permissions(&scripts, PermissionsExt::from_mode(0o755))?;
                let path = scripts.join(Path::new(name).file_name().unwrap_or_default());
                std::fs::write(&path, content)?;
                std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755))
            };
            made().map_err(BuildError::io("write a here-document"))?;
            Some(scripts)
        }
    };
    Ok(Files {
        hosts: write("hosts", &hosts())?,
        resolv_conf,
        scripts,
    })
}

fn spec(
    input: &RunInput<'_>,
    identity: &users::Identity,
    files: &Files,
    secrets: &[String],
) -> Result<Spec, BuildError> {
    let op = input.op;
    let mut spec = defaults::spec(op.args.clone());
    let mut env: Vec<String> = op
        .env
        .iter()
        .chain(&op.proxies)
        .chain(secrets)
        .cloned()
        .collect();
    if !env.iter().any(|entry| entry.starts_with("PATH=")) {
        env.push(format!("PATH={}", defaults::PATH));
    }
    let mut user = User::default();
    user.set_uid(identity.uid).set_gid(identity.gid);
    if !identity.groups.is_empty() {
        user.set_additional_gids(Some(identity.groups.clone()));
    }
    let incomplete = || BuildError::Internal("the default spec lacks a part".to_owned());
    let mut process = spec.process().clone().ok_or_else(incomplete)?;
    limit(&mut process, input.limits)?;
    process
        .set_env(Some(env))
        .set_cwd(PathBuf::from(&op.cwd))
        .set_user(user);
    spec.set_process(Some(process));
    spec.set_hostname(Some(hostname(input.limits).to_owned()));
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    let read_only = ["bind", "ro", "rprivate", "nosuid", "nodev"];
    let mut bind = |destination: &str, source: &Path, options: &[&str]| {
        mounts.push(defaults::mount(
            destination,
            "bind",
            &source.to_string_lossy(),
            options,
        ));
    };
    bind("/etc/hosts", &files.hosts, &read_only);
    if let Some(path) = &files.resolv_conf {
        bind("/etc/resolv.conf", path, &read_only);
    }
    if let Some(path) = &files.scripts {
        bind(SCRIPTS, path, &read_only);
    }
    if let Some(size) = input.limits.shm_size {
        for mount in &mut mounts {
            if mount.destination() == Path::new("/dev/shm") {
                let mut options = mount.options().clone().unwrap_or_default();
                options.retain(|option| !option.starts_with("size="));
                options.push(format!("size={size}"));
                mount.set_options(Some(options));
            }
        }
    }
    spec.set_mounts(Some(mounts));
    if op.insecure {
        unconfine(&mut spec)?;
    }
    if let Some(wanted) = input.resources {
        let mut linux = spec.linux().clone().ok_or_else(incomplete)?;
        let mut resources = linux.resources().clone().unwrap_or_default();
        resources
            .set_memory(*wanted.memory())
            .set_cpu(wanted.cpu().clone());
        linux.set_resources(Some(resources));
        spec.set_linux(Some(linux));
    }
    if op.network == StepNetworkMode::Host {
        let mut linux = spec.linux().clone().ok_or_else(incomplete)?;
        let mut namespaces = linux.namespaces().clone().unwrap_or_default();
        namespaces.retain(|n| n.typ() != LinuxNamespaceType::Network);
        linux.set_namespaces(Some(namespaces));
        spec.set_linux(Some(linux));
    }
    Ok(spec)
}

fn hostname(limits: &StepLimits) -> &str {
    limits.hostname.as_deref().unwrap_or(HOSTNAME)
}

/// `--ulimit`
fn limit(process: &mut Process, limits: &StepLimits) -> Result<(), BuildError> {
    if limits.ulimits.is_empty() {
        return Ok(());
    }
    let mut list = Vec::new();
    for (name, soft, hard) in &limits.ulimits {
        let typ = format!("RLIMIT_{}", name.to_uppercase());
        let limit = serde_json::json!({ "type": typ, "soft": soft, "hard": hard });
        let limit: PosixRlimit = serde_json::from_value(limit)
            .map_err(|_| BuildError::Invalid(format!("invalid ulimit type: {name}")))?;
        list.push(limit);
    }
    process.set_rlimits(Some(list));
    Ok(())
}

/// `--security=insecure`: as a privileged container.
fn unconfine(spec: &mut Spec) -> Result<(), BuildError> {
    let incomplete = || BuildError::Internal("the default spec lacks a part".to_owned());
    let all = defaults::all_capabilities();
    let mut process = spec.process().clone().ok_or_else(incomplete)?;
    process.set_capabilities(Some(defaults::capability_sets(&all)));
    spec.set_process(Some(process));
    let mut linux = spec.linux().clone().ok_or_else(incomplete)?;
    let mut everything = LinuxDeviceCgroup::default();
    everything
        .set_allow(true)
        .set_access(Some("rwm".to_owned()));
    let mut resources = linux.resources().clone().unwrap_or_default();
    resources.set_devices(Some(vec![everything]));
    linux
        .set_resources(Some(resources))
        .set_seccomp(None)
        .set_masked_paths(None)
        .set_readonly_paths(None);
    spec.set_linux(Some(linux));
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for mount in &mut mounts {
        if mount.destination().starts_with("/sys") {
            let mut options = mount.options().clone().unwrap_or_default();
            options.retain(|option| option != "ro");
            mount.set_options(Some(options));
        }
    }
    spec.set_mounts(Some(mounts));
    Ok(())
}

/// Adds mounts to the document: which of them have a descriptor, and those.
fn add_mounts(
    spec: &mut Spec,
    added: Vec<(Mount, Option<OwnedFd>)>,
    devices: &Changes,
) -> (Vec<usize>, Vec<OwnedFd>) {
    let known = spec.mounts().clone().unwrap_or_default();
    let mut all: Vec<(Mount, Option<OwnedFd>)> = known
        .into_iter()
        .filter(|mount| !devices.targets.contains(mount.destination()))
        .map(|mount| (mount, None))
        .chain(added)
        .collect();
    if !devices.targets.is_empty() {
        // What is mounted on comes before what is mounted in it.
        all.sort_by_key(|(mount, _)| mount.destination().components().count());
    }
    let (mut mounts, mut opened, mut fds) = (Vec::new(), Vec::new(), Vec::new());
    for (mount, fd) in all {
        if let Some(fd) = fd {
            opened.push(mounts.len());
            fds.push(fd);
        }
        mounts.push(mount);
    }
    spec.set_mounts(Some(mounts));
    (opened, fds)
}

/// Checks `--add-host` addresses; `host-gateway` is the engine's to resolve.
pub(crate) fn check_hosts(hosts: &[(String, String)]) -> Result<(), BuildError> {
    for (name, address) in hosts {
        if name.is_empty() || address.parse::<std::net::IpAddr>().is_err() {
            return Err(BuildError::Invalid(format!(
                "invalid IP address in add-host: {address:?}"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_not_torn() {
        let seen = Mutex::new(String::new());
        let log = |_, text: String| seen.lock().unwrap().push_str(&text);
        let tail = Mutex::new(String::new());
        struct Bytewise(std::vec::IntoIter<u8>);
        impl Read for Bytewise {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                Ok(self.0.next().map_or(0, |b| {
                    buffer[0] = b;
                    1
                }))
            }
        }
        let bytes = "ä€\n".as_bytes().to_vec().into_iter();
        read(Bytewise(bytes), LogStream::Stdout, &log, &tail);
        assert_eq!(seen.into_inner().unwrap(), "ä€\n");
        assert_eq!(tail.into_inner().unwrap(), "ä€\n");
    }
}
