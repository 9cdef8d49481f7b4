//! Stages, what they build on, and which of them the target needs.

use std::collections::{BTreeMap, HashMap, HashSet};

use corten_dockerfile::{Dockerfile, Instruction, Kind, Lexer, Span, scope};
use corten_oci::{ImageRef, Platform};

use super::{Base, CopyFrom, ImageKey, Named, Settings, Source};
use crate::error::BuildError;
use crate::special_args;

/// The graph of stages.
#[derive(Debug)]
pub(crate) struct Outline {
    pub(crate) source: Source,
    pub(crate) settings: Settings,
    pub(crate) stages: Vec<OutlineStage>,
    pub(crate) target: usize,
    /// The global scope: platform names and the ARGs before the first FROM.
    pub(crate) globals: BTreeMap<String, String>,
    /// Of the result.
    pub(crate) platform: Platform,
    /// SOURCE_DATE_EPOCH, in seconds.
    pub(crate) epoch: Option<i64>,
    pub(crate) needed: HashSet<usize>,
    /// The stages of each name, in their order.
    names: HashMap<String, Vec<usize>>,
}

/// A stage, its FROM expanded.
#[derive(Debug)]
pub(crate) struct OutlineStage {
    pub(crate) name: Option<String>,
    pub(crate) base: Base,
    pub(crate) span: Span,
    pub(crate) text: String,
    pub(crate) platform: Platform,
    /// The base's triggers, once the base is known, and the stage's own instructions.
    pub(crate) triggers: Option<Vec<Instruction>>,
    pub(crate) instructions: Vec<Instruction>,
}

impl Outline {
    pub(crate) fn new(source: Source, settings: Settings) -> Result<Self, BuildError> {
        let dockerfile = source.dockerfile.clone();
        if dockerfile.stages.is_empty() {
            return Err(BuildError::NothingToBuild);
        }
        let asked = settings.build_args.get("BUILDKIT_SYNTAX");
        if let Some(message) = asked
            .and_then(Option::as_deref)
            .and_then(super::frontend::refused)
        {
            return Err(BuildError::Invalid(message));
        }
        let host = Platform::host();
        let platform = settings.platform.clone().unwrap_or_else(|| host.clone());
        let mut outline = Self {
            target: 0,
            globals: globals(&host, &platform, settings.target.as_deref()),
            source,
            settings,
            stages: Vec::new(),
            platform,
            epoch: None,
            needed: HashSet::new(),
            names: HashMap::new(),
        };
        outline.global_args(&dockerfile)?;
        let context_time = outline.settings.context_time;
        let arguments = &mut outline.settings.build_args;
        outline.epoch = super::epoch::settle(arguments, &mut outline.globals, context_time)?;
        for stage in &dockerfile.stages {
            let stage = outline.stage(&dockerfile, stage)?;
            if let Some(name) = &stage.name {
                let of_name = outline.names.entry(name.to_lowercase()).or_default();
                of_name.push(outline.stages.len());
            }
            outline.stages.push(stage);
        }
        outline.target = outline.find_target()?;
        outline.check_references()?;
        Ok(outline)
    }

    fn lexer(&self) -> Lexer {
        Lexer::new(self.source.dockerfile.directives.escape)
    }

    pub(super) fn error(&self, span: Span, message: impl std::fmt::Display) -> BuildError {
        BuildError::at(&self.source.place(span), message)
    }

    /// ARGs before the first FROM: `--build-arg`, else the default.
    fn global_args(&mut self, dockerfile: &Dockerfile) -> Result<(), BuildError> {
        for instruction in &dockerfile.meta_args {
            let Kind::Arg(declarations) = &instruction.kind else {
                continue;
            };
            for declaration in declarations {
                let value = match self.settings.build_args.get(&declaration.name) {
                    Some(given) => given.clone(),
                    None => match &declaration.default {
                        Some(default) => Some(self.expand(default, instruction.span)?),
                        None => None,
                    },
                };
                if let Some(value) = value {
                    self.globals.insert(declaration.name.clone(), value);
                }
            }
        }
        Ok(())
    }

    fn expand(&self, word: &str, span: Span) -> Result<String, BuildError> {
        self.lexer()
            .word(word, &|name| self.globals.get(name).cloned())
            .map_err(|e| {
                self.error(
                    span,
                    format!("failed to process arguments for {word:?}: {e}"),
                )
            })
    }

    fn stage(
        &self,
        dockerfile: &Dockerfile,
        stage: &corten_dockerfile::Stage,
    ) -> Result<OutlineStage, BuildError> {
        let base = self.expand(&stage.base, stage.span)?;
        if base.is_empty() {
            let message = format!("base name ({}) should not be blank", stage.base);
            return Err(self.error(stage.span, message));
        }
        let platform = match &stage.platform {
            None => self.platform.clone(),
            Some(word) => {
                let expanded = self.expand(word, stage.span)?;
                if expanded.is_empty() {
                    self.platform.clone()
                } else {
                    expanded
                        .parse()
                        .map_err(|e| self.error(stage.span, format!("{e}")))?
                }
            }
        };
        let position = self.stages.len();
        let name = stage.name.clone();
        let replaced = name.as_deref().and_then(|name| self.named_context(name));
        let instructions = match replaced {
            // The whole stage is what the name stands for.
            Some(_) => Vec::new(),
            None => dockerfile.stages[position].instructions.clone(),
        };
        let earlier = self.stage_named(&base, position);
        let base = if let Some(named) = replaced {
            Self::base_named(named, &platform)
        } else if let Some(index) = earlier {
            Base::Stage(index)
        } else if base == "scratch" {
            Base::Scratch
        } else if let Some(named) = self.named_context(&base) {
            Self::base_named(named, &platform)
        } else {
            Base::Image(self.image(&base, &platform, stage.span)?)
        };
        // As with BuildKit, a stage is for what the one below is for.
        let platform = match base {
            Base::Stage(below) => self.stages[below].platform.clone(),
            _ => platform,
        };
        Ok(OutlineStage {
            name,
            base,
            span: stage.span,
            text: stage.text.clone(),
            platform,
            triggers: None,
            instructions,
        })
    }

    /// What `--build-context` gave a name; names of images are compared as such.
    pub(super) fn named_context(&self, name: &str) -> Option<(&str, &Named)> {
        if matches!(name, "scratch" | "context") {
            return None;
        }
        let contexts = &self.settings.contexts;
        if let Some((key, named)) = contexts.get_key_value(name) {
            return Some((key, named));
        }
        let image = |name: &str| name.parse::<ImageRef>().ok().map(ImageRef::or_latest);
        let wanted = image(name)?;
        let found = contexts
            .iter()
            .find(|(key, _)| image(key).as_ref() == Some(&wanted));
        found.map(|(key, named)| (key.as_str(), named))
    }

    pub(super) fn base_named((name, named): (&str, &Named), platform: &Platform) -> Base {
        match named {
            Named::Files => Base::Files(name.to_owned()),
            Named::Image(image) => Base::Image(ImageKey {
                image: image.clone().or_latest(),
                platform: platform.clone(),
            }),
        }
    }

    pub(super) fn image(
        &self,
        name: &str,
        platform: &Platform,
        span: Span,
    ) -> Result<ImageKey, BuildError> {
        let image: ImageRef = name
            .parse()
            .map_err(|e| self.error(span, format!("failed to parse image name {name:?}: {e}")))?;
        Ok(ImageKey {
            image: image.or_latest(),
            platform: platform.clone(),
        })
    }

    /// The last stage of that name before `before`; later ones shadow earlier ones.
    pub(super) fn stage_named(&self, name: &str, before: usize) -> Option<usize> {
        let of_name = self.names.get(&name.to_lowercase())?;
        let earlier = of_name.partition_point(|index| *index < before);
        of_name[..earlier].last().copied()
    }

    fn find_target(&self) -> Result<usize, BuildError> {
        let Some(target) = self.settings.target.as_deref().filter(|t| !t.is_empty()) else {
            return Ok(self.stages.len() - 1);
        };
        if let Some(index) = self.stage_named(target, self.stages.len()) {
            return Ok(index);
        }
        if let Ok(index) = target.parse::<usize>()
            && index < self.stages.len()
        {
            return Ok(index);
        }
        let names: Vec<&str> = self
            .stages
            .iter()
            .filter_map(|s| s.name.as_deref())
            .collect();
        let hint = corten_dockerfile::suggest(target, &names)
            .map_or_else(String::new, |name| format!(" (did you mean {name}?)"));
        Err(BuildError::NoSuchTarget {
            target: target.to_owned(),
            hint,
        })
    }

    /// Finds what the target needs as far as it can be told, given the triggers of the images
    /// known by now. Returns the images that must be looked at next, each with the place that
    /// names it; none: the outline is complete.
    pub(crate) fn complete(
        &mut self,
        known: &HashMap<ImageKey, Vec<String>>,
    ) -> Result<Vec<(ImageKey, Span)>, BuildError> {
        let mut missing: Vec<(ImageKey, Span)> = Vec::new();
        let mut need = |key: &ImageKey, span: Span| {
            if !known.contains_key(key) && !missing.iter().any(|(k, _)| k == key) {
                missing.push((key.clone(), span));
            }
        };
        let mut waiting = vec![self.target];
        self.needed.clear();
        while let Some(index) = waiting.pop() {
            if !self.needed.insert(index) {
                continue;
            }
            let span = self.stages[index].span;
            let triggers = match &self.stages[index].base {
                Base::Scratch | Base::Files(_) => Some(Vec::new()),
                Base::Stage(base) => {
                    waiting.push(*base);
                    Some(triggers_of(&self.stages[*base].instructions))
                }
                Base::Image(key) => {
                    need(key, span);
                    known.get(key).cloned()
                }
            };
            if self.stages[index].triggers.is_none()
                && let Some(texts) = triggers
            {
                let parsed = self.parse_triggers(&texts, span)?;
                self.stages[index].triggers = Some(parsed);
            }
            let stage = &self.stages[index];
            for instruction in stage.all() {
                for from in self.sources(instruction)? {
                    match self.copy_from(index, from.as_deref(), instruction.span)? {
                        CopyFrom::Context | CopyFrom::Named(_) => {}
                        CopyFrom::Stage(other) => waiting.push(other),
                        CopyFrom::Image(key) => need(&key, instruction.span),
                    }
                }
            }
        }
        Ok(missing)
    }

    fn parse_triggers(&self, texts: &[String], span: Span) -> Result<Vec<Instruction>, BuildError> {
        texts
            .iter()
            .map(|text| {
                let mut parsed = Dockerfile::parse_trigger(text).map_err(|e| {
                    self.error(span, format!("ONBUILD trigger {text:?}: {}", e.message))
                })?;
                parsed.span = span;
                Ok(parsed)
            })
            .collect()
    }

    /// Whether `--no-cache-filter` names a stage.
    pub(crate) fn is_uncached(&self, index: usize) -> bool {
        let name = self.stages[index].name.as_deref();
        let filter = &self.settings.no_cache;
        name.is_some_and(|name| filter.iter().any(|f| f.eq_ignore_ascii_case(name)))
    }

    /// Whether a `--build-arg` is used nowhere, for a warning.
    pub(crate) fn unused_args(&self) -> Vec<String> {
        let declared: HashSet<&str> = self
            .source
            .dockerfile
            .meta_args
            .iter()
            .chain(self.stages.iter().flat_map(OutlineStage::all))
            .filter_map(|instruction| match &instruction.kind {
                Kind::Arg(declarations) => Some(declarations.iter().map(|d| d.name.as_str())),
                _ => None,
            })
            .flatten()
            .collect();
        self.settings
            .build_args
            .keys()
            .filter(|name| !declared.contains(name.as_str()))
            .filter(|name| !scope::PREDEFINED_PROXY_ARGS.contains(&name.as_str()))
            .filter(|name| !special_args::is_known(name) && *name != super::epoch::NAME)
            .cloned()
            .collect()
    }
}

impl OutlineStage {
    /// Triggers, then its own instructions.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Instruction> {
        self.triggers.iter().flatten().chain(&self.instructions)
    }
}

/// The triggers a stage leaves to those built on it.
fn triggers_of(instructions: &[Instruction]) -> Vec<String> {
    instructions
        .iter()
        .filter_map(|instruction| match &instruction.kind {
            Kind::Onbuild(trigger) => Some(trigger.text.clone()),
            _ => None,
        })
        .collect()
}

/// The predefined names of the global scope (BuildKit's `platform.go`).
fn globals(host: &Platform, target: &Platform, stage: Option<&str>) -> BTreeMap<String, String> {
    let mut globals = BTreeMap::new();
    for (prefix, platform) in [("BUILD", host), ("TARGET", target)] {
        let variant = platform.variant.clone().unwrap_or_default();
        for (name, value) in [
            ("PLATFORM", platform.to_string()),
            ("OS", platform.os.clone()),
            ("OSVERSION", String::new()),
            ("ARCH", platform.architecture.clone()),
            ("VARIANT", variant),
        ] {
            globals.insert(format!("{prefix}{name}"), value);
        }
    }
    let stage = stage.filter(|s| !s.is_empty()).unwrap_or("default");
    globals.insert("TARGETSTAGE".to_owned(), stage.to_owned());
    globals
}
