//! Named contexts: directories and layouts are opened when the build begins, what is elsewhere
//! is fetched once it is known that something needs it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError};

use corten_dockerfile::IgnoreRules;
use corten_oci::ImageRef;
use corten_store::rooted::RootFd;
use corten_store::{Store, TmpDir};

use super::{Session, Target, blocking, drain, remote_context};
use crate::cancel::Cancel;
use crate::context::OpenContext;
use crate::error::BuildError;
use crate::layout::Layout;
use crate::ops::tree::Tree;
use crate::plan::{Base, CopyFrom, Named, Op, Plan, RunMount};
use crate::request::{Context, DockerfileSource, NamedContext};

/// What `--build-context` gave, as far as it is here.
#[derive(Debug, Default)]
pub(super) struct Contexts {
    /// What each name means.
    pub(super) meanings: BTreeMap<String, Named>,
    pub(super) trees: HashMap<String, Tree>,
    /// Images of layouts, by what they are called here.
    pub(super) layouts: HashMap<ImageRef, Layout>,
    /// URLs of what is elsewhere.
    pub(super) remotes: BTreeMap<String, String>,
    /// Unpacked files, gone when dropped.
    pub(super) dirs: Vec<TmpDir>,
}

impl Contexts {
    /// Opens what is here. Blocks.
    pub(super) fn open(
        wanted: BTreeMap<String, NamedContext>,
        store: &Store,
        cancel: &Cancel,
    ) -> Result<Self, BuildError> {
        let mut contexts = Self::default();
        for (name, context) in wanted {
            let meaning = match context {
                NamedContext::Image(image) => Named::Image(image),
                NamedContext::Layout { dir, tag, digest } => {
                    let layout = Layout::open(&dir, tag.as_deref(), digest.as_ref())?;
                    let image = called(&name, &layout)?;
                    contexts.layouts.insert(image.clone(), layout);
                    Named::Image(image)
                }
                NamedContext::Files(Context::Remote(url)) => {
                    contexts.remotes.insert(name.clone(), url);
                    Named::Files
                }
                NamedContext::Files(context) => {
                    let context = OpenContext::open(context, store, cancel)?;
                    let alone = DockerfileSource::Inline(String::new());
                    let (_, rules) = context.ignore(&alone)?;
                    let (tree, dir) = context.into_tree(rules);
                    contexts.trees.extend(tree.map(|tree| (name.clone(), tree)));
                    contexts.dirs.extend(dir);
                    Named::Files
                }
            };
            contexts.meanings.insert(name, meaning);
        }
        Ok(contexts)
    }
}

/// As BuildKit calls an image of a layout: by the context's name, with its digest.
fn called(name: &str, layout: &Layout) -> Result<ImageRef, BuildError> {
    let bad = |error: String| BuildError::Invalid(format!("--build-context {name}: {error}"));
    let named: ImageRef = name
        .parse()
        .map_err(|error| bad(format!("no name for an image: {error}")))?;
    format!("{}@{}", named.name(), layout.digest)
        .parse()
        .map(ImageRef::or_latest)
        .map_err(|error| bad(format!("{error}")))
}

impl Session {
    /// Fetches the contexts that are elsewhere and that a plan needs. Their files live as long
    /// as what is returned.
    pub(super) async fn fetch_named(
        self: &Arc<Self>,
        targets: &[Target],
    ) -> Result<Vec<TmpDir>, BuildError> {
        let mut tasks = tokio::task::JoinSet::new();
        for (name, url) in &self.remote_contexts {
            if !targets.iter().any(|target| needs(&target.plan, name)) {
                continue;
            }
            let (session, name, url) = (self.clone(), name.clone(), url.clone());
            tasks.spawn(async move {
                let vertex =
                    session.internal(format!("[context {name}] {}", crate::remote::masked(&url)));
                let lent = (&session.agents, &session.secrets);
                let fetched =
                    remote_context::fetch_named(&url, lent, &session.store, &session.cancel).await;
                Ok((name, vertex.end(false, fetched)?))
            });
        }
        let (mut trees, mut dirs) = (HashMap::new(), Vec::new());
        for (name, fetched) in drain(self, tasks).await? {
            let root = fetched.root;
            let tree = blocking(move || {
                let root = RootFd::open(&root).map_err(BuildError::io("open a named context"))?;
                Ok(Tree {
                    root,
                    ignore: IgnoreRules::default(),
                    foreign: true,
                    remember: false,
                })
            })
            .await?;
            trees.insert(name, tree);
            dirs.push(fetched.dir);
            let mut materials = self
                .materials
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            materials.insert(fetched.material);
        }
        // Set here alone, once.
        self.fetched.set(trees).ok();
        Ok(dirs)
    }
}

/// Whether a stage takes files from a named context.
fn needs(plan: &Plan, name: &str) -> bool {
    let is_it = |from: &CopyFrom| matches!(from, CopyFrom::Named(named) if named == name);
    plan.stages.iter().flatten().any(|stage| {
        let base = matches!(&stage.base, Base::Files(named) if named == name);
        base || stage.steps.iter().any(|step| match &step.op {
            Op::Copy(op) => is_it(&op.from),
            Op::Run(op) => op.mounts.iter().filter_map(RunMount::files).any(is_it),
            Op::Config | Op::Workdir(_) => false,
        })
    })
}
