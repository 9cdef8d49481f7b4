//! Base images: from the store where they are there, else by way of the engine.

use std::sync::Arc;

use corten_dockerfile::Span;
use corten_oci::{Digest, ImageRef, Platform};
use corten_store::{Image, Store, StoreError};

use crate::config::ImageDocument;
use crate::error::BuildError;
use crate::hints;
use crate::plan::{BaseImage, ImageKey};
use crate::request::PullProgress;
use crate::solve::{Session, brief, on_several};
use crate::{BoxError, BuildEvent};

/// How often an image is pulled that is removed again before it could be read.
const PULLS: usize = 3;

/// Shortest id that FROM takes for one: shorter words are names.
const SHORT_ID: usize = 12;

/// Finds or pulls an image.
pub(crate) async fn resolve(
    session: Arc<Session>,
    key: ImageKey,
    span: Span,
) -> Result<BaseImage, BuildError> {
    let vertex = session.internal(format!("[internal] load metadata for {}", key.image));
    let id = vertex.id();
    let resolved = find_or_pull(&session, &key, id).await;
    let result = match resolved {
        Ok(image) => Ok(image),
        Err(Failure::Build(error)) => Err(error),
        Err(Failure::Image(source)) => Err(BuildError::Image {
            name: key.image.familiar(),
            image: key.image.to_string(),
            hint: hints::of_image(&key.image, &session.source.dockerfile).unwrap_or_default(),
            place: Box::new(session.source.place(span)),
            source,
        }),
    };
    vertex.end(false, result)
}

enum Failure {
    Build(BuildError),
    Image(BoxError),
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        Self::Build(error)
    }
}

async fn find_or_pull(
    session: &Arc<Session>,
    key: &ImageKey,
    vertex: u32,
) -> Result<BaseImage, Failure> {
    if let Some(layout) = session.layouts.get(&key.image) {
        let (store, layout, key) = (session.store.clone(), layout.clone(), key.clone());
        let image = move || Ok(layout.image(&store, &key.platform, &key.image.to_string()));
        let image = session.blocking(image).await?;
        return image.map_err(|message| Failure::Image(message.into()));
    }
    let mut other_platform = None;
    let foreign = is_foreign(&key.platform);
    let mut beside = None;
    if foreign {
        let (here, name) = (session.clone(), key.image.clone());
        let named = move || Ok(here.store.images().named(&name)?);
        beside = session.blocking(named).await?;
    }
    if !session.pull {
        let (here, wanted) = (session.clone(), key.clone());
        let local = brief(move || look(&here.store, &wanted.image)).await?;
        if let Some(image) = local {
            let have = platform_of(&image);
            if have.satisfies(&key.platform) {
                return base(&key.image, image).map_err(Failure::Build);
            }
            other_platform = Some(have);
        }
        if foreign {
            let (here, wanted, beside) = (session.clone(), key.clone(), beside.clone());
            let known = session
                .blocking(move || look_foreign(&here, &wanted, beside.as_ref()))
                .await?;
            if let Some(image) = known {
                return base(&key.image, image).map_err(Failure::Build);
            }
        }
    }
    for _ in 0..PULLS {
        let (here, wanted) = (session.clone(), key.clone());
        let pulled = on_several(async move { pull(&here, &wanted, vertex).await });
        let id = match (pulled.await?, &other_platform) {
            (Ok(id), _) => id,
            (Err(source), None) => return Err(Failure::Image(source)),
            (Err(source), Some(have)) => {
                let message = format!(
                    "the image here is for {have}, not for {}; and {source}",
                    key.platform
                );
                return Err(Failure::Image(message.into()));
            }
        };
        let (here, wanted, beside) = (session.clone(), key.clone(), beside.clone());
        let pulled = session
            .blocking(move || {
                if foreign {
                    let noted = &here.cache;
                    noted.note_foreign_base(
                        &wanted.image,
                        &wanted.platform,
                        beside.as_ref(),
                        &id,
                    )?;
                }
                get(&here.store, &id)
            })
            .await?;
        if let Some(image) = pulled {
            return base(&key.image, image).map_err(Failure::Build);
        }
        // An image without a name is anybody's to prune. Its layers are not, as long as this
        // build lasts, so that to pull it again costs little.
    }
    let message = "somebody removes it as soon as it is pulled";
    Err(Failure::Image(message.into()))
}

/// Pulls an image: its id, or why there is none.
async fn pull(
    session: &Arc<Session>,
    key: &ImageKey,
    vertex: u32,
) -> Result<Result<Digest, BoxError>, BuildError> {
    let events = session.events.clone();
    let sink = Arc::new(move |progress: PullProgress| {
        events(BuildEvent::Progress {
            id: vertex,
            text: progress.text,
            current: progress.current,
            total: progress.total,
        });
    });
    let pull = session.images.pull(&key.image, &key.platform, sink);
    tokio::select! {
        pulled = pull => Ok(pulled),
        () = session.cancel.cancelled() => Err(BuildError::Cancelled),
    }
}

/// An image, unless it has been removed.
fn get(store: &Store, id: &Digest) -> Result<Option<Image>, BuildError> {
    match store.images().get(id) {
        Ok(image) => Ok(Some(image)),
        Err(StoreError::NoSuchImage(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether images of a platform have no names here.
fn is_foreign(platform: &Platform) -> bool {
    !Platform::host().satisfies(platform)
}

/// An image of another platform that was pulled before, whole.
fn look_foreign(
    session: &Session,
    key: &ImageKey,
    beside: Option<&Digest>,
) -> Result<Option<Image>, BuildError> {
    let noted = session
        .cache
        .foreign_base(&key.image, &key.platform, beside)?;
    let Some(id) = noted else {
        return Ok(None);
    };
    whole(&session.store, &id)
}

/// An image that is here, whole.
pub(crate) fn look(store: &Store, name: &ImageRef) -> Result<Option<Image>, BuildError> {
    let images = store.images();
    let id = match images.named(name)? {
        Some(id) => Some(id),
        None => by_id(store, name)?,
    };
    let Some(id) = id else {
        return Ok(None);
    };
    whole(store, &id)
}

fn whole(store: &Store, id: &Digest) -> Result<Option<Image>, BuildError> {
    let Some(image) = get(store, id)? else {
        return Ok(None);
    };
    for layer in &image.layers {
        if !store.layers().has(layer)? {
            return Ok(None); // damaged: a pull brings it back
        }
    }
    Ok(Some(image))
}

/// FROM an id, whole or short.
fn by_id(store: &Store, name: &ImageRef) -> Result<Option<Digest>, BuildError> {
    let word = name.familiar_name();
    let is_id = word.len() >= SHORT_ID && word.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_id || name.tag() != Some("latest") {
        return Ok(None);
    }
    match store.images().resolve(&word) {
        Ok(id) => Ok(Some(id)),
        Err(StoreError::NoSuchImage(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub(crate) fn platform_of(image: &Image) -> Platform {
    let config = &image.config;
    Platform::normalised(
        &config.os().to_string(),
        &config.architecture().to_string(),
        config.variant().as_deref(),
    )
}

fn base(name: &ImageRef, image: Image) -> Result<BaseImage, BuildError> {
    let document = ImageDocument::parse(&image.raw_config)
        .map_err(|e| BuildError::Internal(format!("the configuration of {name}: {e}")))?;
    let digest = image
        .repo_digests
        .iter()
        .find(|known| known.name() == name.name())
        .and_then(|known| known.digest().cloned());
    let shown = match digest {
        Some(digest) if name.digest().is_none() => format!("{name}@{digest}"),
        _ => name.to_string(),
    };
    Ok(BaseImage {
        id: image.id,
        document: Arc::new(document),
        layers: image.layers,
        shown,
    })
}
