//! What is said of the image beside it: facts of this build, and storing them with it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError};

use corten_oci::{DiffId, Digest, ImageRef, Platform};
use corten_store::{Made, Stargz};

use super::{Session, Target, has_one_thread};
use crate::attest::{self, Attest, Carried, Claim, Facts, Material, Subject};
use crate::cache::now;
use crate::error::BuildError;
use crate::export::{self, StageOutput};
use crate::plan::{BaseImage, CopyFrom, ImageKey, Mounted, Op, Plan, RunOp};
use crate::remote::masked;
use crate::request::{BuildRequest, Context, NamedContext, StepNetworkMode};

/// What a build was asked for.
pub(super) struct Asked {
    pub(super) attest: Attest,
    /// By BuildKit's names.
    args: BTreeMap<String, String>,
    /// The Dockerfile's name.
    file: String,
    /// The context that is elsewhere.
    context: Option<Material>,
    /// When the build began, in nanoseconds since the epoch.
    begun: i64,
}

/// One platform's image, to be stored.
pub(super) struct Stored {
    document: Vec<u8>,
    layers: Vec<DiffId>,
    /// Those of them that were made eStargz.
    stargz: Vec<Stargz>,
    /// Ids of the images it was made of.
    bases: Vec<Digest>,
    platform: Platform,
    facts: Option<Facts>,
}

impl Asked {
    /// Of a request.
    pub(super) fn of(request: &mut BuildRequest, file: String, context: Option<Material>) -> Self {
        let mut args = BTreeMap::new();
        let mut add = |name: String, value: &str| _ = args.insert(name, masked(value));
        for (name, value) in &request.build_args {
            if let Some(value) = value {
                add(format!("build-arg:{name}"), value);
            }
        }
        for (name, value) in &request.labels {
            add(format!("label:{name}"), value);
        }
        if let Some(target) = &request.target {
            add("target".to_owned(), target);
        }
        if request.no_cache || !request.no_cache_stages.is_empty() {
            let stages = match request.no_cache {
                true => String::new(),
                false => request.no_cache_stages.join(","),
            };
            add("no-cache".to_owned(), &stages);
        }
        if request.network != StepNetworkMode::Default {
            add("force-network-mode".to_owned(), request.network.as_str());
        }
        for (name, context) in &request.contexts {
            let value = match context {
                NamedContext::Image(image) => format!("docker-image://{image}"),
                NamedContext::Files(Context::Remote(url)) => url.clone(),
                NamedContext::Files(_) => format!("local:{name}"),
                NamedContext::Layout { digest, .. } => match digest {
                    Some(digest) => format!("oci-layout://{name}@{digest}"),
                    None => format!("oci-layout://{name}"),
                },
            };
            add(format!("context:{name}"), &value);
        }
        Self {
            attest: std::mem::take(&mut request.attest),
            args,
            file,
            context,
            begun: now(),
        }
    }
}

impl Session {
    /// What is to be stored of one platform's image.
    pub(super) fn to_store(
        &self,
        target: &Target,
        output: &StageOutput,
    ) -> Result<Stored, BuildError> {
        let plan = &target.plan;
        let attest = &self.asked.attest;
        let facts = attest.provenance.as_ref();
        let mut bases: Vec<Digest> = target.images.values().map(|base| base.id.clone()).collect();
        // Where two say something of one blob, it is always the same one's word that counts.
        bases.sort();
        Ok(Stored {
            document: self.document(plan, super::target(plan)?, output)?,
            layers: output.layers.clone(),
            stargz: Vec::new(),
            bases,
            platform: plan.platform.clone(),
            facts: facts.map(|_| self.facts(plan, &target.images)),
        })
    }

    /// Stores the image, with what is to be said of it. `several`: as an index, also of one.
    pub(super) async fn store_image(
        self: Arc<Self>,
        images: Vec<Stored>,
        several: bool,
        names: Vec<ImageRef>,
    ) -> Result<(Digest, Vec<ImageRef>), BuildError> {
        if has_one_thread()
            && !several
            && self.asked.attest.is_empty()
            && let [image] = images.as_slice()
            && let Some(id) = self.store.images().made_before(&image.document, &names)?
        {
            return Ok((id, names));
        }
        let session = self.clone();
        self.blocking(move || {
            let store = &session.store;
            let attest = &session.asked.attest;
            let mut images = images;
            if let Some(how) = attest.stargz() {
                for image in &mut images {
                    let (document, layers) = (&mut image.document, &mut image.layers);
                    image.stargz = attest::stargz((store, &session.cache), document, layers, how)?;
                }
            }
            let is_plain = attest.is_empty() && !several;
            let carried = images.iter().map(|image| match is_plain {
                true => Ok(Carried::default()),
                false => Carried::of(store, &image.bases),
            });
            let carried: Vec<Carried> = carried.collect::<Result<_, _>>()?;
            let mut subjects = Vec::new();
            for (image, carried) in images.iter().zip(&carried) {
                let subject = Subject {
                    document: &image.document,
                    layers: &image.layers,
                    stargz: &image.stargz,
                    carried,
                    platform: &image.platform,
                    names: &names,
                };
                subjects.push((subject, session.claims(image, &names)?));
            }
            // Names stand for what runs here, if anything does.
            let host = Platform::host();
            let own = images
                .iter()
                .position(|image| host.satisfies(&image.platform));
            let own = own.unwrap_or_default();
            let made = match subjects.as_slice() {
                [_] if is_plain => Made::default(),
                [(subject, claims)] if !several => attest::make(store, subject, attest, claims)?,
                several => attest::make_several(store, several, own, attest)?,
            };
            session.cancel.check()?;
            let image = images
                .get(own)
                .ok_or_else(|| BuildError::Internal("no image to be stored".to_owned()))?;
            let id = store.images().put_made(&image.document, &made, &names)?;
            Ok((id, names))
        })
        .await
    }

    /// What is claimed of an image.
    fn claims(&self, image: &Stored, names: &[ImageRef]) -> Result<Vec<Claim>, BuildError> {
        let attest = &self.asked.attest;
        let mut claims = Vec::new();
        if attest.sbom {
            let name = names.first().map_or("image".to_owned(), ImageRef::familiar);
            // SPDX's times are of whole seconds.
            let at = self.epoch.unwrap_or_else(now);
            let created = export::text(at - at.rem_euclid(1_000_000_000));
            claims.push(attest::scan(&self.store, &image.layers, &name, &created)?);
        }
        if let (Some(wanted), Some(facts)) = (&attest.provenance, &image.facts) {
            let mut facts = facts.clone();
            facts.finished = export::text(self.epoch.unwrap_or_else(now));
            claims.push(attest::predicate(wanted, &facts));
        }
        Ok(claims)
    }

    /// What is known of this build.
    fn facts(&self, plan: &Plan, images: &HashMap<ImageKey, BaseImage>) -> Facts {
        let asked = &self.asked;
        let mut facts = Facts {
            dockerfile: (asked.file.clone(), masked(&self.source.text)),
            context: asked.context.clone(),
            args: asked.args.clone(),
            invocation: self
                .epoch
                .is_none()
                .then(|| format!("{:032x}", rand::random::<u128>())),
            started: export::text(self.epoch.unwrap_or(asked.begun)),
            ..Facts::default()
        };
        let mut materials = BTreeSet::new();
        for (key, image) in images {
            let shown: Option<ImageRef> = image.shown.parse().ok();
            let known = shown.as_ref().and_then(ImageRef::digest);
            let digest = known.unwrap_or(&image.id);
            materials.insert(Material::image(&key.image, &key.platform, digest));
        }
        let elsewhere = self.materials.lock();
        materials.extend(
            elsewhere
                .unwrap_or_else(PoisonError::into_inner)
                .iter()
                .cloned(),
        );
        materials.extend(asked.context.clone());
        facts.materials = materials.into_iter().collect();
        let mut files = |from: &CopyFrom| {
            facts.local |= match from {
                CopyFrom::Context => asked.context.is_none(),
                CopyFrom::Named(_) => true,
                CopyFrom::Stage(_) | CopyFrom::Image(_) => false,
            };
        };
        let stages = plan.stages.iter().flatten();
        for step in stages.flat_map(|stage| &stage.steps) {
            match &step.op {
                Op::Copy(op) if !op.sources.is_empty() => files(&op.from),
                Op::Run(op) => {
                    op.mounts
                        .iter()
                        .filter_map(|mount| mount.files())
                        .for_each(&mut files);
                    lent(op, &mut facts.secrets, &mut facts.agents);
                }
                _ => {}
            }
        }
        facts
    }
}

/// Secrets and agents of a RUN, and whether they may be missing.
fn lent(op: &RunOp, secrets: &mut BTreeMap<String, bool>, agents: &mut BTreeMap<String, bool>) {
    let add = |known: &mut BTreeMap<String, bool>, id: &str, required: bool| {
        let optional = known.entry(id.to_owned()).or_insert(true);
        *optional &= !required;
    };
    for mount in &op.mounts {
        match &mount.what {
            Mounted::Secret { id, required, .. } => add(secrets, id, *required),
            Mounted::Ssh { id, required, .. } => add(agents, id, *required),
            _ => {}
        }
    }
}
