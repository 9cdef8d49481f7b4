//! Questions about a Dockerfile that are answered without building: `--call=check`,
//! `outline`, `targets`. Images are looked at where they are in the store; none is pulled.

use std::collections::BTreeMap;

use corten_dockerfile::lint::{self, ImageFacts};
use corten_dockerfile::{Dockerfile, IgnoreRules, describe};
use corten_oci::{ImageRef, Platform};
use corten_store::Store;

use crate::cancel::Cancel;
use crate::config::ImageDocument;
use crate::context::OpenContext;
use crate::error::BuildError;
use crate::images;
use crate::plan::BaseImage;
use crate::request::BuildRequest;

/// A question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inquiry {
    /// Are the rules kept?
    Check,
    /// What parameters has the target?
    Outline,
    /// Which targets are there?
    Targets,
}

impl Inquiry {
    /// From the word of `--call`; `lint` is another name of `check`.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "check" | "lint" => Some(Self::Check),
            "outline" => Some(Self::Outline),
            "targets" => Some(Self::Targets),
            _ => None,
        }
    }
}

/// An answer, with the Dockerfile it is about.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The file's name.
    pub file: String,
    /// Its text.
    pub text: String,
    /// What was found.
    pub found: Found,
}

/// What was found.
#[derive(Debug, Clone)]
pub enum Found {
    /// Rules that are not kept.
    Check(lint::Report),
    /// Parameters.
    Outline(describe::Outline),
    /// Targets.
    Targets(Vec<describe::Target>),
}

/// Answers. Blocks.
pub(crate) fn answer(
    store: &Store,
    request: BuildRequest,
    inquiry: Inquiry,
) -> Result<Answer, BuildError> {
    let source = request.dockerfile;
    let context = OpenContext::open(request.context, store, &Cancel::default())?;
    let definition = context.dockerfile(&source)?;
    let (_, ignore) = context.ignore(&source)?;
    let host = Platform::host();
    let platform = request.platforms.first().unwrap_or(&host).clone();
    let images = |name: &str, platform: &Platform| here(store, name, platform);
    let settings = lint::Settings {
        build_args: given(&request.build_args),
        target: request.target.as_deref(),
        every_stage: true,
        host,
        platform,
        ignore: Some(&ignore),
        images: &images,
    };
    let failed = |error: corten_dockerfile::DockerfileError| BuildError::Syntax {
        error: Box::new(error.in_file(&definition.name)),
        text: definition.text.as_str().into(),
    };
    let parsed = || Dockerfile::parse(&definition.text).map_err(failed);
    let found = match inquiry {
        Inquiry::Check => Found::Check(lint::check(&definition.text, &settings)),
        Inquiry::Outline => {
            Found::Outline(describe::outline(&parsed()?, &settings).map_err(failed)?)
        }
        Inquiry::Targets => Found::Targets(describe::targets(&parsed()?)),
    };
    Ok(Answer {
        file: definition.name.clone(),
        text: definition.text.clone(),
        found,
    })
}

/// The arguments that have a value.
pub(crate) fn given(arguments: &BTreeMap<String, Option<String>>) -> BTreeMap<String, String> {
    arguments
        .iter()
        .filter_map(|(name, value)| Some((name.clone(), value.clone()?)))
        .collect()
}

/// What is known of an image of the store.
fn here(store: &Store, name: &str, wanted: &Platform) -> Option<ImageFacts> {
    let image: ImageRef = name.parse().ok()?;
    match images::look(store, &image.or_latest()) {
        Ok(Some(image)) => {
            let document = ImageDocument::parse(&image.raw_config).ok()?;
            let have = images::platform_of(&image);
            // Another platform's image is not the one that a build would use.
            have.satisfies(wanted).then(|| facts(&document))
        }
        Ok(None) => None,
        Err(error) => {
            tracing::debug!(name, %error, "an image is taken for an unknown one");
            None
        }
    }
}

fn facts(document: &ImageDocument) -> ImageFacts {
    ImageFacts {
        env: document.config.env.clone(),
        shell: document
            .config
            .shell
            .as_ref()
            .is_some_and(|s| !s.is_empty()),
        triggers: document.config.on_build.clone(),
        platform: Some(Platform::normalised(
            &document.os,
            &document.architecture,
            Some(&document.variant),
        )),
    }
}

/// Checks a file that is being built: its images are all here.
pub(crate) fn check(
    text: &str,
    settings: &crate::plan::Settings,
    ignore: Option<&IgnoreRules>,
    image: &dyn Fn(&ImageRef, &Platform) -> Option<BaseImage>,
) -> lint::Report {
    let host = Platform::host();
    let images = |name: &str, platform: &Platform| {
        let name: ImageRef = name.parse().ok()?;
        image(&name.or_latest(), platform).map(|image| facts(&image.document))
    };
    lint::check(
        text,
        &lint::Settings {
            build_args: given(&settings.build_args),
            target: settings.target.as_deref(),
            every_stage: false,
            platform: settings.platform.clone().unwrap_or_else(|| host.clone()),
            host,
            ignore,
            images: &images,
        },
    )
}
