//! Running the graph: every stage is a task that waits for the stages it needs; every step is
//! looked up first, and carried out only when nobody knows its result.
//!
//! The story is [`solve`]: definition, base images, plan, stages, image. The first failure
//! cancels the rest, whose processes and directories are gone before the error is returned.

mod attestation;
mod blocking;
mod cache_mounts;
mod caches;
pub(crate) mod context_mounts;
mod copying;
mod named;
mod remote_context;
mod remotes;
mod several;
mod shell;
mod stage;
mod steps;
mod turns;
mod vertex;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use corten_dockerfile::lint;
use corten_oci::runtime_spec::LinuxResources;
use corten_oci::{Digest, ImageRef, Platform};
use corten_registry::TaskLease;
use corten_store::{Store, TmpDir};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::attest::Material;
use crate::cache::{Cache, Output};
use crate::cancel::Cancel;
use crate::context::{Definition, OpenContext};
use crate::error::BuildError;
use crate::export::{self, StageOutput};
use crate::layout::Layout;
use crate::ops::below::Stacks;
use crate::ops::leavings::Leavings;
use crate::ops::tree::Tree;
use crate::plan::{
    self, Base, BaseImage, CopyFrom, ImageKey, Outline, Plan, Settings, Source, epoch,
};
use crate::portable::{Imported, Record};
use crate::progress::{BuildEvent, EventSink};
use crate::request::{
    BuildRequest, CacheExport, CacheTarget, Context, DockerfileSource, FilesOutput, ImageSource,
    Sandboxing, Secret, ShellOffer, StepLimits,
};
use crate::run::StepFiles;
use crate::workers::Workers;
use crate::{files, inquiry, mount_points, special_args};
use attestation::Asked;
use named::Contexts;

pub(crate) use blocking::{blocking, on_one_thread};
pub use several::end_threads;
pub(crate) use several::{brief, has_one_thread, on_several};

/// Number of the plan, stage and step.
type StepPlace = (usize, usize, usize);

/// What a builder lends to each build.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) store: Store,
    pub(crate) cache: Cache,
    pub(crate) images: Arc<dyn ImageSource>,
    pub(crate) sandboxing: Sandboxing,
}

/// One build.
pub(crate) struct Session {
    pub(crate) store: Store,
    pub(crate) images: Arc<dyn ImageSource>,
    pub(crate) events: EventSink,
    pub(crate) cancel: Cancel,
    pub(crate) pull: bool,
    pub(crate) source: Source,
    pub(crate) cache: Cache,
    sandboxing: Sandboxing,
    /// Keys that steps of this build are at work on, where no other build's results count.
    keys: Mutex<HashSet<Digest>>,
    no_cache: bool,
    hosts: Vec<(String, String)>,
    secrets: BTreeMap<String, Secret>,
    agents: BTreeMap<String, PathBuf>,
    limits: StepLimits,
    resources: Option<LinuxResources>,
    /// Somebody wants a shell in the first step that fails.
    shell: Mutex<Option<ShellOffer>>,
    context: Option<Tree>,
    named: HashMap<String, Tree>,
    /// Named contexts that were elsewhere, once they are here.
    fetched: OnceLock<HashMap<String, Tree>>,
    /// And their URLs.
    remote_contexts: BTreeMap<String, String>,
    /// Images of layouts, by what they are called here.
    pub(crate) layouts: HashMap<ImageRef, Layout>,
    next_vertex: Arc<AtomicU32>,
    /// Made for the first who wants one: how many there are takes some files to find out.
    permits: OnceLock<Semaphore>,
    mount_points: mount_points::Made,
    workers: Workers,
    leavings: Leavings,
    stacks: Stacks,
    step_files: StepFiles,
    /// Results of this build, which are good even when the cache is not to be used.
    done: Mutex<HashMap<Digest, Output>>,
    touched: Mutex<Vec<Digest>>,
    /// Caches of others.
    imported: Imported,
    /// What became of the steps.
    solved: Mutex<Vec<(StepPlace, Record)>>,
    /// The cache is wanted elsewhere, too.
    travels: bool,
    /// The image carries its own cache.
    inline: bool,
    /// SOURCE_DATE_EPOCH, in nanoseconds.
    epoch: Option<i64>,
    /// Nothing in a layer is later than this, in seconds.
    last: Option<i64>,
    asked: Asked,
    /// Sources that are elsewhere.
    materials: Mutex<BTreeSet<Material>>,
}

impl Session {
    /// Runs something that blocks. It is waited for, also when the build is cancelled.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, BuildError> + Send + 'static,
    ) -> Result<T, BuildError> {
        blocking(work).await
    }

    /// How many steps may run at once.
    fn permits(&self) -> &Semaphore {
        self.permits.get_or_init(|| {
            Semaphore::new(match self.sandboxing.parallelism {
                0 => {
                    let cores = std::thread::available_parallelism();
                    cores.map_or(4, |cores| (2 * cores.get()).max(4))
                }
                chosen => chosen,
            })
        })
    }

    /// The files of a context.
    fn tree(&self, from: &CopyFrom) -> Option<&Tree> {
        match from {
            CopyFrom::Context => self.context.as_ref(),
            CopyFrom::Named(name) => {
                let fetched = || self.fetched.get()?.get(name);
                self.named.get(name).or_else(fetched)
            }
            CopyFrom::Stage(_) | CopyFrom::Image(_) => None,
        }
    }

    /// Whether steps have left nothing behind.
    fn is_undone(&self) -> bool {
        self.workers.is_empty() && self.leavings.is_empty() && self.step_files.is_empty()
    }

    /// Ends what steps have left behind. Blocks.
    fn undo(&self) {
        self.workers.end();
        self.leavings.end();
        self.step_files.end();
    }
}

/// Builds.
pub(crate) async fn solve(
    parts: Parts,
    request: BuildRequest,
    events: EventSink,
    cancel: Cancel,
) -> Result<Digest, BuildError> {
    let store = parts.store.clone();
    // Nothing is collected while layers exist that no row names yet.
    let lease = brief(move || {
        store.sweep_directories();
        Ok(store.leases().acquire()?)
    });
    let lease = TaskLease::from(lease.await?);
    let solved = under_lease(parts, request, events, cancel).await;
    lease.end().await;
    solved
}

async fn under_lease(
    parts: Parts,
    request: BuildRequest,
    events: EventSink,
    cancel: Cancel,
) -> Result<Digest, BuildError> {
    crate::run::check_hosts(&request.extra_hosts)?;
    let mut request = request;
    for message in special_args::apply(&mut request)? {
        warn(&events, message);
    }
    let tags = request.tags.clone();
    let (files, no_image) = (request.files.clone(), request.no_image);
    let cache_to = request.cache_to.clone();
    let (session, outlines, _unpacked) = begin(&parts, request, events, cancel).await?;
    let built = carry_out(&session, outlines, tags, (cache_to, files, no_image)).await;
    if session.is_undone() {
        return built;
    }
    // Before anybody is told: also where it failed, nothing is left then.
    blocking(move || {
        session.undo();
        built
    })
    .await
}

/// What is to be written, and whether there is to be no image.
type Wanted = (Vec<CacheExport>, Vec<FilesOutput>, bool);

async fn carry_out(
    session: &Arc<Session>,
    outlines: Vec<Outline>,
    tags: Vec<ImageRef>,
    (cache_to, files, no_image): Wanted,
) -> Result<Digest, BuildError> {
    let several = outlines[0].settings.several;
    let targets = targets(session, outlines, (no_image, several)).await?;
    let plans = || targets.iter().map(|target| &*target.plan);
    if several && files.iter().any(|wanted| wanted.is_tar()) {
        return Err(BuildError::Invalid(
            "--output type=tar of several platforms is not supported: type=local makes a directory \
             for each"
                .to_owned(),
        ));
    }
    if plans().any(|plan| plan.needs_context) {
        session
            .internal("[internal] load build context".to_owned())
            .end(false, Ok::<_, BuildError>(()))?;
    }
    let _contexts = session.fetch_named(&targets).await?;
    let outputs = every_stage(session, &targets).await?;
    // There are no more steps: what is still to be undone is undone beside what follows.
    if !session.is_undone() {
        let undoing = session.clone();
        tokio::task::spawn_blocking(move || undoing.undo());
    }
    let touched = std::mem::take(
        &mut *session
            .touched
            .lock()
            .unwrap_or_else(PoisonError::into_inner),
    );
    let cache = session.cache.clone();
    if !touched.is_empty() {
        // Others may be writing, for which it waits longer than anybody's Ctrl-C should.
        blocking(move || cache.touch(&touched)).await?;
    }
    for wanted in &cache_to {
        let exported = caches::export(session, &targets, wanted).await;
        if let Err(error) = exported {
            if !wanted.ignore_error || session.cancel.is_cancelled() {
                return Err(error);
            }
            warn(&session.events, error.to_string());
        }
    }
    for wanted in &files {
        for (plan, output) in plans().zip(&outputs) {
            let of = several.then_some(&plan.platform);
            write_files(session, output, wanted, of).await?;
        }
    }
    if no_image {
        let plan = &targets[0].plan;
        let document = session.document(plan, target(plan)?, &outputs[0])?;
        return Ok(export::id(&document));
    }
    finish(session, &targets, &outputs, (tags, several)).await
}

/// What is to be done for one platform.
pub(crate) struct Target {
    pub(crate) plan: Arc<Plan>,
    pub(crate) images: Arc<HashMap<ImageKey, BaseImage>>,
}

/// Plans each platform's build.
async fn targets(
    session: &Arc<Session>,
    outlines: Vec<Outline>,
    (no_image, several): (bool, bool),
) -> Result<Vec<Target>, BuildError> {
    let (mut plans, mut bases) = (Vec::new(), Vec::new());
    for (number, mut outline) in outlines.into_iter().enumerate() {
        let images = base_images(session, &mut outline).await?;
        if number == 0 {
            check(session, &outline, &images)?;
        }
        let mut plan = plan::evaluate(&outline, &images)?;
        plan.number = number;
        plans.push(plan);
        bases.push(Arc::new(images));
    }
    if !no_image {
        let platforms: Vec<&Platform> = plans.iter().map(|plan| &plan.platform).collect();
        session.asked.attest.check(&platforms, several)?;
        if session.inline && session.asked.attest.stargz().is_some() {
            return Err(BuildError::Invalid(
                "compression=estargz makes other layers of an image's, which its inline cache \
                 does not know: use --cache-to type=local or registry"
                    .to_owned(),
            ));
        }
    }
    for message in plans.iter().take(1).flat_map(|plan| &plan.warnings) {
        warn(&session.events, message.clone());
    }
    Plan::count_together(&mut plans);
    let targets = plans.into_iter().zip(bases);
    Ok(targets
        .map(|(plan, images)| Target {
            plan: Arc::new(plan),
            images,
        })
        .collect())
}

/// Runs the plans beside each other; what each came to, in their order.
async fn every_stage(
    session: &Arc<Session>,
    targets: &[Target],
) -> Result<Vec<Arc<StageOutput>>, BuildError> {
    let mut tasks = JoinSet::new();
    for target in targets {
        let (session, plan) = (session.clone(), target.plan.clone());
        let images = target.images.clone();
        tasks.spawn(async move {
            let output = stages(&session, &plan, &images).await?;
            Ok((plan.number, output))
        });
    }
    let mut outputs = drain(session, tasks).await?;
    outputs.sort_by_key(|(number, _)| *number);
    Ok(outputs.into_iter().map(|(_, output)| output).collect())
}

/// Tells of the rules that the Dockerfile does not keep.
fn check(
    session: &Session,
    outline: &Outline,
    images: &HashMap<ImageKey, BaseImage>,
) -> Result<(), BuildError> {
    let ignore = session.context.as_ref().map(|tree| &tree.ignore);
    let image = |image: &ImageRef, platform: &Platform| {
        let (image, platform) = (image.clone(), platform.clone());
        images.get(&ImageKey { image, platform }).cloned()
    };
    let source = &outline.source;
    let report = inquiry::check(&source.text, &outline.settings, ignore, &image);
    tell(&report, &source.file, &source.text, &session.events);
    match report.violation {
        Some(violation) => Err(BuildError::Checks(violation)),
        None => Ok(()),
    }
}

fn tell(report: &lint::Report, file: &str, text: &str, events: &EventSink) {
    for warning in &report.warnings {
        let mut more = vec![warning.rule.description().to_owned()];
        more.extend(warning.rule.url().map(|url| format!("More info: {url}")));
        let lines = lint::excerpt(file, text, warning.span);
        more.extend(lines.lines().map(str::to_owned));
        events(BuildEvent::Warning {
            message: format!("{}: {}", warning.rule.name(), warning.detail),
            line: Some(warning.span.start).filter(|line| *line > 0),
            more,
        });
    }
}

/// Brings a context here that is elsewhere; its files live as long as what is returned. Tells
/// when it was last changed, where that is known, and what it is.
pub(crate) async fn fetch_context(
    request: &mut BuildRequest,
    store: &Store,
    cancel: &Cancel,
) -> Result<Option<(TmpDir, Option<i64>, Material)>, BuildError> {
    let Context::Remote(url) = &request.context else {
        return Ok(None);
    };
    let url = url.clone();
    let keep = request.build_args.get(special_args::KEEP_GIT_DIR);
    let keep = keep.and_then(|value| special_args::truth(value.as_deref()?)) == Some(true);
    let lent = (&request.agents, &request.secrets);
    let came = remote_context::fetch(&url, keep, lent, store, cancel).await?;
    request.context = came.context;
    if let Some(source) = came.dockerfile {
        request.dockerfile = source;
    }
    Ok(Some((came.dir, came.time, came.material)))
}

/// Opens the context and reads the definition.
async fn begin(
    parts: &Parts,
    request: BuildRequest,
    events: EventSink,
    cancel: Cancel,
) -> Result<(Arc<Session>, Vec<Outline>, Vec<TmpDir>), BuildError> {
    let next_vertex = Arc::new(AtomicU32::new(0));
    let path = match &request.dockerfile {
        DockerfileSource::InContext(path) => Some(Path::new(path)),
        DockerfileSource::File(path) => Some(path.as_path()),
        DockerfileSource::Inline(_) => None,
    };
    let shown = path
        .and_then(Path::file_name)
        .map_or_else(|| "Dockerfile".into(), |n| n.to_string_lossy().into_owned());
    let name = format!("[internal] load build definition from {shown}");
    let vertex = vertex::start(&next_vertex, &events, name, true, None);
    let mut request = request;
    let fetched = fetch_context(&mut request, &parts.store, &cancel).await?;
    let (fetched, time, material) = match fetched {
        Some((dir, time, material)) => (Some(dir), time, Some(material)),
        None => (None, None, None),
    };
    let asked = Asked::of(&mut request, shown, material);
    let (store, stop, dockerfile) = (
        parts.store.clone(),
        cancel.clone(),
        request.dockerfile.clone(),
    );
    let (context, contexts) = (request.context, request.contexts);
    let arguments = request.build_args.clone();
    let read = move || {
        let context = OpenContext::open(context, &store, &stop)?;
        let definition = context.dockerfile(&dockerfile)?;
        let time = match time {
            None if epoch::asks_for_context(&arguments, &definition.text) => context.newest()?,
            time => time,
        };
        let contexts = Contexts::open(contexts, &store, &stop)?;
        Ok((context, definition, time, contexts))
    };
    let read = brief(read).await;
    let mut platforms = request.platforms;
    if platforms.is_empty() {
        platforms.push(Platform::host());
    }
    let mut settings = Settings {
        several: platforms.len() > 1 || request.multi_platform,
        context_time: None,
        target: request.target,
        build_args: request.build_args,
        labels: request.labels,
        platform: platforms.first().cloned(),
        network: request.network,
        no_cache: request.no_cache_stages,
        allow_insecure: request.allow_insecure,
        allow_devices: request.allow_devices,
        cdi: parts.sandboxing.cdi.clone(),
        contexts: BTreeMap::new(),
    };
    let parsed = read.and_then(|(context, definition, time, mut contexts)| {
        let Definition { name, text } = definition;
        settings.context_time = time;
        settings.contexts = std::mem::take(&mut contexts.meanings);
        let source = Source::parse(&name, &text).inspect_err(|_| {
            // What was noticed before may be why.
            let report = inquiry::check(&text, &settings, None, &|_, _| None);
            tell(&report, &name, &text, &events);
        })?;
        let mut outlines = Vec::new();
        for platform in platforms {
            let settings = Settings {
                platform: Some(platform),
                ..settings.clone()
            };
            outlines.push(Outline::new(source.clone(), settings)?);
        }
        Ok((context, outlines, contexts))
    });
    let (context, outlines, mut contexts) = vertex.end(false, parsed)?;
    let vertex = vertex::start(
        &next_vertex,
        &events,
        "[internal] load .dockerignore".to_owned(),
        true,
        None,
    );
    let dockerfile = request.dockerfile;
    let read = move || {
        let (_, rules) = context.ignore(&dockerfile)?;
        Ok(context.into_tree(rules))
    };
    let read = brief(read).await;
    let (tree, unpacked) = vertex.end(false, read)?;
    let mut unpacked: Vec<TmpDir> = unpacked.into_iter().chain(fetched).collect();
    unpacked.append(&mut contexts.dirs);
    if request.rewrite_times == Some(true) && outlines[0].epoch.is_none() {
        let message = "rewrite-timestamp is specified, but no SOURCE_DATE_EPOCH was found";
        warn(&events, message.to_owned());
    }
    let imported = caches::import(&request.cache_from, parts, &next_vertex, &events).await;
    let session = Session {
        // Base images stay mounted from step to step.
        store: parts.store.keeping(),
        images: parts.images.clone(),
        events,
        cancel,
        pull: request.pull,
        source: outlines[0].source.clone(),
        cache: parts.cache.clone(),
        sandboxing: parts.sandboxing.clone(),
        keys: Mutex::default(),
        no_cache: request.no_cache,
        hosts: request.extra_hosts,
        secrets: request.secrets,
        agents: request.agents,
        limits: request.limits,
        resources: request.resources,
        shell: Mutex::new(request.shell),
        context: tree,
        named: contexts.trees,
        fetched: OnceLock::new(),
        remote_contexts: contexts.remotes,
        layouts: contexts.layouts,
        next_vertex,
        permits: OnceLock::new(),
        mount_points: mount_points::Made::default(),
        workers: Workers::default(),
        leavings: Leavings::default(),
        stacks: Stacks::default(),
        step_files: StepFiles::default(),
        done: Mutex::new(HashMap::new()),
        touched: Mutex::new(Vec::new()),
        imported,
        solved: Mutex::new(Vec::new()),
        epoch: outlines[0].epoch.map(|seconds| seconds * 1_000_000_000),
        last: outlines[0]
            .epoch
            .filter(|_| request.rewrite_times.unwrap_or(true)),
        asked,
        materials: Mutex::default(),
        travels: !request.cache_to.is_empty(),
        inline: request
            .cache_to
            .iter()
            .any(|wanted| wanted.to == CacheTarget::Inline),
    };
    Ok((Arc::new(session), outlines, unpacked))
}

/// Resolves images until the outline needs no more: triggers of one may name others.
async fn base_images(
    session: &Arc<Session>,
    outline: &mut Outline,
) -> Result<HashMap<ImageKey, BaseImage>, BuildError> {
    let mut images: HashMap<ImageKey, BaseImage> = HashMap::new();
    loop {
        let triggers = images
            .iter()
            .map(|(key, image)| (key.clone(), image.document.config.on_build.clone()))
            .collect();
        let missing = outline.complete(&triggers)?;
        if missing.is_empty() {
            return Ok(images);
        }
        let mut tasks = JoinSet::new();
        for (key, span) in missing {
            let session = session.clone();
            tasks.spawn(async move {
                let image = crate::images::resolve(session, key.clone(), span).await?;
                Ok((key, image))
            });
        }
        images.extend(drain(session, tasks).await?);
    }
}

/// Waits for all tasks; the first failure cancels the others.
async fn drain<T: 'static>(
    session: &Session,
    mut tasks: JoinSet<Result<T, BuildError>>,
) -> Result<Vec<T>, BuildError> {
    let mut results = Vec::new();
    let mut failure: Option<BuildError> = None;
    while let Some(ended) = tasks.join_next().await {
        let result = ended.unwrap_or_else(|error| Err(BuildError::Internal(error.to_string())));
        match result {
            Ok(value) => results.push(value),
            Err(error) => {
                session.cancel.cancel();
                // Others that end because of the first have nothing to tell.
                if failure
                    .as_ref()
                    .is_none_or(|first| matches!(first, BuildError::Cancelled))
                {
                    failure = Some(error);
                }
            }
        }
    }
    match failure {
        Some(error) => Err(error),
        None => Ok(results),
    }
}

type StageResult = Option<Arc<StageOutput>>;

async fn stages(
    session: &Arc<Session>,
    plan: &Arc<Plan>,
    images: &Arc<HashMap<ImageKey, BaseImage>>,
) -> Result<Arc<StageOutput>, BuildError> {
    let (senders, receivers): (Vec<_>, Vec<_>) = plan
        .stages
        .iter()
        .map(|_| watch::channel::<StageResult>(None))
        .unzip();
    let receivers = Arc::new(receivers);
    let mut tasks = JoinSet::new();
    for (index, sender) in senders.into_iter().enumerate() {
        if plan.stages[index].is_none() {
            continue;
        }
        let run = stage::StageRun {
            session: session.clone(),
            plan: plan.clone(),
            images: images.clone(),
            others: receivers.clone(),
            index,
        };
        tasks.spawn(async move {
            let output = Arc::new(run.run().await?);
            sender.send_replace(Some(output.clone()));
            Ok((index, output))
        });
    }
    let outputs = drain(session, tasks).await?;
    outputs
        .into_iter()
        .find(|(index, _)| *index == plan.target)
        .map(|(_, output)| output)
        .ok_or_else(|| BuildError::Internal("the target stage has no result".to_owned()))
}

fn target(plan: &Plan) -> Result<&plan::StagePlan, BuildError> {
    plan.stages[plan.target]
        .as_ref()
        .ok_or_else(|| BuildError::Internal("the target stage is not planned".to_owned()))
}

/// Tells something that concerns no line.
fn warn(events: &EventSink, message: String) {
    events(BuildEvent::Warning {
        message,
        line: None,
        more: Vec::new(),
    });
}

/// Writes the files of the result.
async fn write_files(
    session: &Arc<Session>,
    output: &StageOutput,
    wanted: &FilesOutput,
    platform: Option<&Platform>,
) -> Result<(), BuildError> {
    let vertex = session.internal(wanted.shown().to_owned());
    session.cancel.check()?;
    let (store, cancel) = (session.store.clone(), session.cancel.clone());
    let (layers, wanted) = (output.layers.clone(), wanted.of(platform));
    let date = session.epoch.map(|nanos| nanos / 1_000_000_000);
    let written = blocking(move || files::export(&store, &layers, &wanted, date, &cancel)).await;
    vertex.end(false, written)
}

/// Stores and names the image.
async fn finish(
    session: &Arc<Session>,
    targets: &[Target],
    outputs: &[Arc<StageOutput>],
    (tags, several): (Vec<ImageRef>, bool),
) -> Result<Digest, BuildError> {
    let vertex = session.internal("exporting to image".to_owned());
    session.cancel.check()?;
    let stored = async {
        if let [only] = targets
            && !several
            && let Some(id) = unchanged(session, only)?
        {
            let store = session.store.clone();
            return blocking(move || {
                for name in &tags {
                    store.images().tag(name, &id)?;
                }
                Ok((id, tags))
            })
            .await;
        }
        let images = targets
            .iter()
            .zip(outputs)
            .map(|(target, output)| session.to_store(target, output))
            .collect::<Result<Vec<_>, _>>()?;
        session.clone().store_image(images, several, tags).await
    }
    .await;
    let (id, tags) = vertex.end(false, stored)?;
    (session.events)(BuildEvent::Image {
        id: id.clone(),
        tags: tags.into_iter().map(ImageRef::or_latest).collect(),
    });
    Ok(id)
}

/// FROM alone: the image is its base.
fn unchanged(session: &Session, only: &Target) -> Result<Option<Digest>, BuildError> {
    let stage = target(&only.plan)?;
    let Base::Image(key) = &stage.base else {
        return Ok(None);
    };
    // An image of a layout has its layers here, but is none of the store's.
    let stored = !session.layouts.contains_key(&key.image);
    if !stored || !session.asked.attest.is_empty() || !stage.steps.is_empty() {
        return Ok(None);
    }
    let base = only.images.get(key);
    let same = base.filter(|image| image.document.config == stage.config);
    Ok(same.map(|image| image.id.clone()))
}
