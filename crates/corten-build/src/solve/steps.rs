//! One step: its key, the cache, and carrying it out.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use corten_dockerfile::IgnoreRules;
use corten_oci::{DiffId, Digest, Platform};
use corten_store::Upper;
use corten_store::rooted::RootFd;

use super::remotes::{Brought, Identified};
use super::{Session, has_one_thread, on_several};
use crate::cache::{Output, now};
use crate::error::{BuildError, Place, reason};
use crate::keys::{self, Shown};
use crate::ops::content::{self, Appearance};
use crate::ops::tree::{Entry, SelectError, Selection, Tree};
use crate::plan::{CopyFrom, CopyOp, MountFrom, Mounted, Op, Plan, RemoteOp, RunOp, StagePlan};
use crate::portable::Record;
use crate::progress::BuildEvent;
use crate::request::StepNetworkMode;
use crate::run::{self, Ended, Left, RunInput};
use crate::step_mounts::Caches;

/// So many names in a context's directories are looked at in a moment.
const FEW: usize = 512;

/// How often a step begins anew because somebody edits the files it reads.
const EDITS: usize = 3;

/// What became of a step.
pub(super) struct Solved {
    pub(super) output: Output,
    /// It was known.
    pub(super) cached: bool,
    /// Keys that lead to it: first the one by content, where that was needed; the last is the
    /// one it was found or made by.
    keys: Vec<Digest>,
}

impl Solved {
    fn new(output: Output, cached: bool, keys: Vec<Digest>) -> Self {
        Self {
            output,
            cached,
            keys,
        }
    }

    /// The key it was found by.
    pub(super) fn key(&self) -> Option<&Digest> {
        self.keys.last()
    }
}

/// How files of a COPY will be written.
fn appearance(op: &CopyOp) -> Appearance<'_> {
    Appearance {
        chown: op.chown.is_some(),
        chmod: op.chmod.as_ref(),
        destination: true,
    }
}

/// A step whose turn it is.
#[derive(Clone)]
pub(super) struct Turn {
    pub(super) plan: Arc<Plan>,
    /// Stage and step.
    pub(super) at: (usize, usize),
    /// What it begins with.
    pub(super) layers: Vec<DiffId>,
    /// What COPY --from, or each mount of a RUN, takes files from.
    pub(super) sources: Vec<Option<Vec<DiffId>>>,
    pub(super) vertex: u32,
}

/// A step in the hands of a blocking thread.
pub(super) struct Work {
    pub(super) session: Arc<Session>,
    pub(super) turn: Turn,
    /// What the sources of ADD that are elsewhere are.
    remotes: Vec<Identified>,
    /// What COPY takes of a context, as its key has it: nothing else may be copied.
    pub(super) taken: Mutex<Option<Vec<Entry>>>,
    /// What each mount of a RUN shows of a context, as its key has it.
    pub(super) shown: OnceLock<Vec<Option<Shown>>>,
    /// What a failed RUN has left for a shell.
    pub(super) left: Mutex<Option<Left>>,
}

impl Session {
    /// Solves a step that is more than configuration, and notes what became of it.
    pub(super) async fn step(self: Arc<Self>, turn: Turn) -> Result<Solved, BuildError> {
        let at = (turn.plan.number, turn.at.0, turn.at.1);
        let description = turn.step().map(|step| step.name.clone())?;
        let solved = match self.at_hand(&turn)? {
            Some(solved) => solved,
            None => on_several(self.clone().solve(turn)).await?,
        };
        let output = &solved.output;
        let record = Record {
            keys: solved.keys.iter().map(ToString::to_string).collect(),
            diff_id: output
                .layer
                .as_ref()
                .map(|layer| layer.digest().to_string()),
            created: output.created,
            description,
        };
        self.solved
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((at, record));
        Ok(solved)
    }

    /// A result that is known, where there is one thread and it takes but a moment to find it.
    fn at_hand(self: &Arc<Self>, turn: &Turn) -> Result<Option<Solved>, BuildError> {
        if !has_one_thread() || self.travels || self.no_cache {
            return Ok(None);
        }
        let work = Work::new(self.clone(), turn.clone());
        if work.is_fresh() || !work.remote_ops()?.is_empty() {
            return Ok(None);
        }
        let (quick, key) = (work.quick_key()?, work.key()?);
        let key = match quick.or(key) {
            Some(key) => Some(key),
            None => work.content_key_at_hand()?,
        };
        let Some(key) = key else {
            return Ok(None);
        };
        let found = self.seen(&key, false)?;
        Ok(found.map(|output| Solved::new(output, true, vec![key])))
    }

    async fn solve(self: Arc<Self>, turn: Turn) -> Result<Solved, BuildError> {
        for _ in 0..EDITS {
            match self.clone().attempt(turn.clone()).await {
                // What counts is what there is now.
                Err(BuildError::Changed { path, .. }) => {
                    tracing::debug!(path = %path.display(), "changed while it was read");
                }
                other => return other,
            }
        }
        self.attempt(turn).await
    }

    async fn attempt(self: Arc<Self>, turn: Turn) -> Result<Solved, BuildError> {
        let mut work = Work::new(self.clone(), turn);
        for remote in work.remote_ops()? {
            let identified = self.identify(&remote).await?;
            let identified = identified.map_err(|message| work.error(message))?;
            work.remotes.push(identified);
        }
        let work = Arc::new(work);
        let fresh = work.is_fresh();
        // A key that needs no file to be read, where there is one.
        let quick = work.quick_key()?;
        if let Some(key) = &quick
            && let Some(known) = self.known(key, fresh).await?
        {
            let mut keys = vec![key.clone()];
            if self.travels {
                // Elsewhere, the stage that files are taken from may come out differently.
                keys.insert(0, work.clone().read_content_key().await?);
            }
            return Ok(Solved::new(known, true, keys));
        }
        let key = match work.key()? {
            Some(key) => key,
            None => work.clone().read_content_key().await?,
        };
        let keys = || std::iter::once(&key).chain(&quick).cloned().collect();
        // To look costs less than to be alone.
        let mut known = self.seen(&key, fresh)?;
        let mut alone = None;
        if known.is_none() {
            let only_ours = fresh || self.no_cache;
            alone = Some(self.alone(&key, only_ours, work.turn.vertex).await?);
            known = self.known(&key, fresh).await?;
        }
        if let Some(known) = known {
            if let Some(quick) = quick.clone() {
                let (session, output, slow) = (self.clone(), known.clone(), key.clone());
                let name = work.name()?.to_owned();
                let record = move || session.cache.put(&[&slow, &quick], &output, &name);
                self.blocking(record).await?;
            }
            return Ok(Solved::new(known, true, keys()));
        }
        // Others may hold them for long, and want a permit to go on: so without one.
        let caches = Arc::new(work.clone().caches().await?);
        let sources = Arc::new(work.clone().sources().await?);
        let permit = self.permit().await?;
        let mut brought = Vec::new();
        for (remote, identified) in work.remote_ops()?.iter().zip(&work.remotes) {
            let files = self.bring(remote, identified).await?;
            brought.push(files.map_err(|message| work.error(message))?);
        }
        let keys: Vec<Digest> = keys();
        let (session, recorded) = (self.clone(), keys.clone());
        let (doing, with) = (work.clone(), (caches.clone(), sources.clone()));
        let done = self.blocking(move || {
            let output = doing.carry_out(&brought, &with.0, &with.1)?;
            let keys: Vec<&Digest> = recorded.iter().collect();
            session.cache.put(&keys, &output, doing.name()?)?;
            Ok(output)
        });
        let output = match done.await {
            Ok(output) => output,
            Err(error) => {
                // Nobody waits for whoever sits at a shell.
                drop((alone, permit));
                return Err(work.sit(error, caches, sources).await);
            }
        };
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.insert(key.clone(), output.clone());
        drop(done);
        Ok(Solved::new(output, false, keys))
    }

    pub(super) async fn permit(&self) -> Result<tokio::sync::SemaphorePermit<'_>, BuildError> {
        self.cancel.check()?;
        let permit = tokio::select! {
            permit = self.permits().acquire() => permit,
            () = self.cancel.cancelled() => return Err(BuildError::Cancelled),
        };
        permit.map_err(|_| BuildError::Cancelled) // only a closed semaphore fails
    }

    /// The result of a key, from this build or a cache.
    /// `fresh`: only of this build.
    async fn known(
        self: &Arc<Self>,
        key: &Digest,
        fresh: bool,
    ) -> Result<Option<Output>, BuildError> {
        let mut found = self.seen(key, fresh)?;
        if found.is_none() && !self.no_cache && !fresh && !self.imported.is_empty() {
            found = self.bring_known(key).await?;
            if found.is_some() {
                self.touch(key);
            }
        }
        Ok(found)
    }

    /// The result of a key, from this build or the cache that is here. A lookup takes
    /// microseconds: not worth another thread.
    fn seen(&self, key: &Digest, fresh: bool) -> Result<Option<Output>, BuildError> {
        let done = self
            .done
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
            .cloned();
        if done.is_some() || self.no_cache || fresh {
            return Ok(done);
        }
        let Some((found, is_new_use)) = self.cache.look_up(key)? else {
            return Ok(None);
        };
        if is_new_use {
            self.touch(key);
        }
        Ok(Some(found))
    }

    /// Has a record noted as used, at the end.
    fn touch(&self, key: &Digest) {
        let mut touched = self.touched.lock().unwrap_or_else(PoisonError::into_inner);
        touched.push(key.clone());
    }

    /// The result of a key from the caches of others.
    async fn bring_known(self: &Arc<Self>, key: &Digest) -> Result<Option<Output>, BuildError> {
        let brought = self.imported.get(&self.store, &*self.images, key);
        let brought = tokio::select! {
            brought = brought => brought,
            () = self.cancel.cancelled() => return Err(BuildError::Cancelled),
        };
        let Some((output, description)) = brought else {
            return Ok(None);
        };
        let (session, key) = (self.clone(), key.clone());
        self.blocking(move || {
            session.cache.put(&[&key], &output, &description)?;
            Ok(Some(output))
        })
        .await
    }
}

impl Turn {
    fn stage(&self) -> Option<&StagePlan> {
        self.plan.stages.get(self.at.0)?.as_ref()
    }

    fn step(&self) -> Result<&crate::plan::Step, BuildError> {
        self.stage()
            .and_then(|stage| stage.steps.get(self.at.1))
            .ok_or_else(|| BuildError::Internal("a step that is not planned".to_owned()))
    }
}

impl Work {
    fn new(session: Arc<Session>, turn: Turn) -> Self {
        Self {
            session,
            turn,
            remotes: Vec::new(),
            taken: Mutex::default(),
            shown: OnceLock::new(),
            left: Mutex::default(),
        }
    }

    pub(super) fn step(&self) -> Result<&crate::plan::Step, BuildError> {
        self.turn.step()
    }

    fn name(&self) -> Result<&str, BuildError> {
        Ok(&self.step()?.name)
    }

    fn place(&self) -> Result<Place, BuildError> {
        Ok(self.session.source.place(self.step()?.span))
    }

    pub(super) fn error(&self, message: impl std::fmt::Display) -> BuildError {
        match self.place() {
            Ok(place) => BuildError::at(&place, message),
            Err(error) => error,
        }
    }

    /// Whether its stage takes nothing from the cache.
    fn is_fresh(&self) -> bool {
        self.turn.stage().is_some_and(|stage| stage.no_cache)
    }

    /// Whether it runs programs of another platform.
    fn is_foreign(&self) -> bool {
        let stage = self.turn.stage();
        stage.is_some_and(|stage| !Platform::host().satisfies(&stage.platform))
    }

    /// Whether its stage has another RUN after it that wants a place on the bridge.
    fn more_to_come(&self) -> bool {
        let (stage, number) = self.turn.at;
        let stage = self.turn.plan.stages.get(stage).and_then(Option::as_ref);
        let mut rest = stage
            .into_iter()
            .flat_map(|stage| stage.steps.iter().skip(number + 1));
        rest.any(|step| matches!(&step.op, Op::Run(op) if op.network == StepNetworkMode::Default))
    }

    fn remote_ops(&self) -> Result<Vec<RemoteOp>, BuildError> {
        Ok(match &self.step()?.op {
            Op::Copy(op) => op.remotes.clone(),
            _ => Vec::new(),
        })
    }

    fn remote_keys(&self) -> Vec<String> {
        self.remotes
            .iter()
            .map(|remote| remote.key.clone())
            .collect()
    }

    fn quick_key(&self) -> Result<Option<Digest>, BuildError> {
        let parent = keys::state(&self.turn.layers);
        match &self.step()?.op {
            Op::Copy(op) => {
                let Some(source) = self.source() else {
                    return Ok(None);
                };
                let source = keys::state(source);
                let remotes = self.remote_keys();
                let key = keys::copy(&parent, op, keys::FROM_STATE, &source, &remotes);
                Ok(Some(self.dated(key)))
            }
            Op::Run(op) => {
                let mut binds = Vec::new();
                for (index, mount) in op.mounts.iter().enumerate() {
                    if !matches!(mount.what, Mounted::Bind { .. }) {
                        continue;
                    }
                    match (mount.files(), self.turn.sources.get(index)) {
                        (Some(CopyFrom::Context | CopyFrom::Named(_)), _) => return Ok(None),
                        (_, Some(Some(layers))) => binds.push(keys::state(layers)),
                        _ => binds.push(keys::state(&[])),
                    }
                }
                if binds.is_empty() {
                    return Ok(None); // the other key needs no file, either
                }
                Ok(Some(self.run_key(op, keys::FROM_STATE, &binds)))
            }
            Op::Workdir(_) | Op::Config => Ok(None),
        }
    }

    /// What COPY takes files from.
    pub(super) fn source(&self) -> Option<&[DiffId]> {
        self.turn.sources.first()?.as_deref()
    }

    /// A key as of the time that layers are said to be of.
    fn dated(&self, key: Digest) -> Digest {
        match self.session.last {
            Some(last) => keys::dated(&key, last),
            None => key,
        }
    }

    fn run_key(&self, op: &RunOp, kind: &str, binds: &[Digest]) -> Digest {
        let parent = keys::state(&self.turn.layers);
        let platform = self.turn.stage().map(|stage| stage.platform.to_string());
        let platform = platform.unwrap_or_default();
        let caches: Vec<Digest> = op
            .mounts
            .iter()
            .enumerate()
            .filter(|(_, mount)| matches!(mount.what, Mounted::Cache { .. }))
            .map(|(index, _)| {
                let layers = self.turn.sources.get(index).and_then(Option::as_deref);
                keys::state(layers.unwrap_or_default())
            })
            .collect();
        let seen = keys::Seen {
            platform: &platform,
            hosts: &self.session.hosts,
            limits: &self.session.limits,
            caches: &caches,
        };
        self.dated(keys::run(&parent, op, seen, (kind, binds)))
    }

    /// The key of a step that reads no files of others.
    fn key(&self) -> Result<Option<Digest>, BuildError> {
        let parent = keys::state(&self.turn.layers);
        Ok(match &self.step()?.op {
            Op::Workdir(op) => Some(self.dated(keys::workdir(&parent, op))),
            Op::Run(op)
                if !op
                    .mounts
                    .iter()
                    .any(|m| matches!(m.what, Mounted::Bind { .. })) =>
            {
                Some(self.run_key(op, keys::BY_CONTENT, &[]))
            }
            Op::Copy(_) | Op::Run(_) => None,
            Op::Config => return Err(BuildError::Internal("a step without work".to_owned())),
        })
    }

    /// As [`content_key`](Self::content_key), in its turn.
    async fn read_content_key(self: Arc<Self>) -> Result<Digest, BuildError> {
        let session = self.session.clone();
        let _permit = session.permit().await?;
        session.blocking(move || self.content_key()).await
    }

    /// The key of a COPY of the context, if there is little to be looked at to find the files and they
    /// have all been read by earlier builds.
    fn content_key_at_hand(&self) -> Result<Option<Digest>, BuildError> {
        let Op::Copy(op) = &self.step()?.op else {
            return Ok(None);
        };
        let Some(tree) = self.session.tree(&op.from).filter(|tree| tree.remember) else {
            return Ok(None);
        };
        // What is wrong with them is told by whoever reads them.
        let Ok(entries) = tree.select(&Self::selection(op).at_most(FEW)) else {
            return Ok(None);
        };
        let digest = content::known(tree, &entries, appearance(op), &self.session.cache)?;
        Ok(digest.map(|digest| self.copy_key(op, &digest)))
    }

    /// The key of a COPY of files with this digest.
    fn copy_key(&self, op: &CopyOp, digest: &Digest) -> Digest {
        let parent = keys::state(&self.turn.layers);
        let remotes = self.remote_keys();
        self.dated(keys::copy(&parent, op, keys::BY_CONTENT, digest, &remotes))
    }

    /// The key of a step that reads files of others, by what they are.
    fn content_key(&self) -> Result<Digest, BuildError> {
        let op = match &self.step()?.op {
            Op::Copy(op) => op,
            Op::Run(op) => return self.bound_key(op),
            Op::Config | Op::Workdir(_) => {
                return Err(BuildError::Internal(
                    "a step that reads no files".to_owned(),
                ));
            }
        };
        let digest = self.with_tree(op, |tree| {
            let entries = self.select(tree, op)?;
            let digest = self.digest(tree, &entries, appearance(op))?;
            if self.source().is_none() {
                *self.taken.lock().unwrap_or_else(PoisonError::into_inner) = Some(entries);
            }
            Ok(digest)
        })?;
        Ok(self.copy_key(op, &digest))
    }

    /// The key of a RUN, by what its bind mounts show.
    fn bound_key(&self, op: &RunOp) -> Result<Digest, BuildError> {
        let session = &self.session;
        let mut binds = Vec::new();
        let mut shown = vec![None; op.mounts.len()];
        for (index, mount) in op.mounts.iter().enumerate() {
            let Mounted::Bind { from, source } = &mount.what else {
                continue;
            };
            let digest = |tree: &Tree| Ok(self.seen(tree, source)?.1);
            let layers = self.turn.sources.get(index).and_then(Option::as_deref);
            binds.push(match (from, layers) {
                (MountFrom::Nothing, _) => keys::state(&[]),
                (MountFrom::Files(_), Some(layers)) => self.in_layers(layers, digest)?,
                (MountFrom::Files(from), None) => match session.tree(from) {
                    Some(tree) => {
                        let (entries, digest) = self.seen(tree, source)?;
                        shown[index] = Some(Shown::new(digest.clone(), &entries));
                        digest
                    }
                    None => return Err(self.error("the build has no context to be mounted")),
                },
            });
        }
        self.shown.get_or_init(|| shown);
        Ok(self.run_key(op, keys::BY_CONTENT, &binds))
    }

    /// What a bind mount shows of a tree, and its digest.
    pub(super) fn seen(
        &self,
        tree: &Tree,
        source: &String,
    ) -> Result<(Vec<Entry>, Digest), BuildError> {
        let appearance = Appearance {
            chown: false,
            chmod: None,
            // A RUN sees the directory it is shown.
            destination: false,
        };
        let entries = self.selected(tree, &Selection::of(source, false))?;
        let digest = self.digest(tree, &entries, appearance)?;
        Ok((entries, digest))
    }

    fn digest(
        &self,
        tree: &Tree,
        entries: &[Entry],
        appearance: Appearance<'_>,
    ) -> Result<Digest, BuildError> {
        let (cache, cancel) = (&self.session.cache, &self.session.cancel);
        let failed = |entry: &Entry, error| self.unread(tree, &entry.path, error);
        content::digest(tree, entries, appearance, cache, cancel, &failed)
    }

    /// A file that cannot be read or copied.
    pub(super) fn unread(&self, tree: &Tree, path: &Path, error: std::io::Error) -> BuildError {
        if error.kind() == std::io::ErrorKind::Interrupted {
            return BuildError::Cancelled;
        }
        // Only those of a directory that somebody else may write to change by themselves.
        if tree.remember
            && content::has_changed(&error)
            && let Ok(place) = self.place()
        {
            return BuildError::Changed {
                place: Box::new(place),
                path: path.to_owned(),
            };
        }
        self.unwritten(path, &error)
    }

    pub(super) fn unwritten(&self, path: &Path, error: &std::io::Error) -> BuildError {
        let path = Path::new("/").join(path);
        self.error(format!(
            "failed to copy files: {}: {}",
            path.display(),
            reason(error)
        ))
    }

    fn in_layers<T>(
        &self,
        layers: &[DiffId],
        work: impl FnOnce(&Tree) -> Result<T, BuildError>,
    ) -> Result<T, BuildError> {
        let mount = self.session.store.layers().mount(layers, Upper::ReadOnly)?;
        work(&Tree::of_image(RootFd::from(mount)))
    }

    /// Runs something on the tree files are copied from.
    pub(super) fn with_tree<T>(
        &self,
        op: &CopyOp,
        work: impl FnOnce(&Tree) -> Result<T, BuildError>,
    ) -> Result<T, BuildError> {
        if let Some(stack) = self.source() {
            return self.in_layers(stack, work);
        }
        match self.session.tree(&op.from) {
            Some(tree) => work(tree),
            None if op.sources.is_empty() => {
                // Only here-documents: any tree does.
                let dir = self.session.store.tmp_dir("empty")?;
                let root = RootFd::open(dir.path()).map_err(BuildError::io("open a directory"))?;
                work(&Tree {
                    root,
                    ignore: IgnoreRules::default(),
                    foreign: true,
                    remember: false,
                })
            }
            None => Err(self.error(format!(
                "failed to compute cache key: \"/{}\": not found: the build has no context",
                op.sources[0].trim_start_matches('/')
            ))),
        }
    }

    pub(super) fn select(&self, tree: &Tree, op: &CopyOp) -> Result<Vec<Entry>, BuildError> {
        self.selected(tree, &Self::selection(op))
    }

    fn selection(op: &CopyOp) -> Selection<'_> {
        Selection {
            sources: &op.sources,
            exclude: &op.exclude,
            parents: op.parents,
            into_directory: op.destination.ends_with('/'),
            literal: false,
            at_most: None,
        }
    }

    pub(super) fn selected(
        &self,
        tree: &Tree,
        selection: &Selection<'_>,
    ) -> Result<Vec<Entry>, BuildError> {
        tree.select(selection).map_err(|error| match &error {
            SelectError::NotFound { hint, .. } => {
                let reference = keys::state(&self.turn.layers);
                let hint = match hint {
                    Some(name) => format!(" (did you mean {name}?)"),
                    None if tree.foreign && !tree.ignore.is_empty() => {
                        " (it may be left out by .dockerignore)".to_owned()
                    }
                    None => String::new(),
                };
                self.error(format!(
                    "failed to compute cache key: failed to calculate checksum of ref {}: \
                     {error}{hint}",
                    reference.short()
                ))
            }
            _ => self.error(format!("failed to compute cache key: {error}")),
        })
    }

    fn carry_out(
        &self,
        brought: &[Brought],
        caches: &Caches,
        sources: &[Option<Vec<DiffId>>],
    ) -> Result<Output, BuildError> {
        self.session.cancel.check()?;
        let layer = match &self.step()?.op {
            Op::Workdir(op) => self.workdir(op)?,
            Op::Copy(op) => self.copy(op, brought)?,
            Op::Run(op) => self.run(op, caches, sources)?,
            Op::Config => None,
        };
        Ok(Output {
            layer,
            created: now(),
        })
    }

    /// What a RUN runs with.
    pub(super) fn input<'a>(
        &'a self,
        op: &'a RunOp,
        caches: &'a Caches,
        sources: &'a [Option<Vec<DiffId>>],
    ) -> RunInput<'a> {
        let session = &self.session;
        RunInput {
            store: &session.store,
            sandboxing: &session.sandboxing,
            op,
            layers: &self.turn.layers,
            hosts: &session.hosts,
            cancel: &session.cancel,
            sources,
            secrets: &session.secrets,
            agents: &session.agents,
            limits: &session.limits,
            mount_points: &session.mount_points,
            workers: &session.workers,
            leavings: &session.leavings,
            files: &session.step_files,
            more: self.more_to_come(),
            resources: session.resources.as_ref(),
            caches,
            last: session.last,
            shell: &session.shell,
            left: &self.left,
        }
    }

    fn run(
        &self,
        op: &RunOp,
        caches: &Caches,
        sources: &[Option<Vec<DiffId>>],
    ) -> Result<Option<DiffId>, BuildError> {
        let session = &self.session;
        let input = self.input(op, caches, sources);
        let log = |stream, data| {
            (session.events)(BuildEvent::Log {
                id: self.turn.vertex,
                stream,
                data,
            });
        };
        match run::run(&input, &log)? {
            Ended::Done(layer) => Ok(layer),
            Ended::Failed {
                output, ran: false, ..
            } if self.is_foreign() => {
                let host = Platform::host();
                let platform = self.turn.stage().map(|stage| stage.platform.to_string());
                Err(self.error(format!(
                    "failed to run \"{}\": {}: it is a program for {}, and this host is {host}. \
                     Set up emulation (binfmt_misc with the flag F, as the package \
                     qemu-user-static does), or let the stage begin with FROM \
                     --platform=$BUILDPLATFORM and compile for $TARGETARCH",
                    op.shown(),
                    output.lines().next_back().unwrap_or_default(),
                    platform.unwrap_or_default(),
                )))
            }
            Ended::Failed { code, output, .. } => Err(BuildError::Process {
                place: Box::new(self.place()?),
                step: self.name()?.to_owned(),
                process: op.shown(),
                code,
                output,
            }),
            Ended::Refused(message) => Err(self.error(message)),
            Ended::NotStarted(message) => {
                Err(self.error(format!("failed to run \"{}\": {message}", op.shown())))
            }
        }
    }
}
