//! What a Dockerfile offers: its targets, and the parameters of one of them. The answers of
//! `build --call=targets` and `--call=outline`, in BuildKit's forms.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::error::DockerfileError;
use crate::expand::Lexer;
use crate::instruction::{Dockerfile, Instruction, Kind, Span, Stage, description};
use crate::lint::variables::{Variables, expand, nearest};
use crate::lint::{Settings, from, location, named, sources};
use crate::mount::{Mount, MountKind};

/// A stage that can be built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its name.
    pub name: Option<String>,
    /// The last stage.
    pub default: bool,
    /// What the comment above it says.
    pub description: Option<String>,
    /// What it is built on, as written.
    pub base: String,
    /// Its platform, as written.
    pub platform: Option<String>,
    /// Where it is.
    pub span: Span,
}

/// The stages of a Dockerfile.
#[must_use]
pub fn targets(file: &Dockerfile) -> Vec<Target> {
    let last = file.stages.len().saturating_sub(1);
    file.stages
        .iter()
        .enumerate()
        .map(|(index, stage)| Target {
            name: stage.name.clone(),
            default: index == last,
            description: described(stage),
            base: stage.base.clone(),
            platform: stage.platform.clone(),
            span: stage.span,
        })
        .collect()
}

fn described(stage: &Stage) -> Option<String> {
    let name = stage.name.as_deref()?;
    description(&stage.comments, name).map(str::to_owned)
}

/// The targets as a table.
#[must_use]
pub fn targets_text(targets: &[Target]) -> String {
    let mut rows = vec![["TARGET".to_owned(), "DESCRIPTION".to_owned()]];
    for target in targets {
        let name = match (&target.name, target.default) {
            (None, true) => "(default)".to_owned(),
            (Some(name), true) => format!("{name} (default)"),
            (name, false) => name.clone().unwrap_or_default(),
        };
        rows.push([name, target.description.clone().unwrap_or_default()]);
    }
    table(&rows, 1)
}

/// The targets as JSON. `source`: the text, encoded as clients expect it.
#[must_use]
pub fn targets_json(targets: &[Target], source: &str) -> Value {
    let targets: Vec<Value> = targets
        .iter()
        .map(|target| {
            let mut shown = json!({
                "base": target.base,
                "location": location(&[target.span]),
            });
            for (key, value) in [
                ("name", &target.name),
                ("description", &target.description),
                ("platform", &target.platform),
            ] {
                if let Some(value) = value {
                    shown[key] = json!(value);
                }
            }
            if target.default {
                shown["default"] = json!(true);
            }
            shown
        })
        .collect();
    json!({ "targets": targets, "sources": [source] })
}

/// A build argument that a target looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argument {
    /// Its name.
    pub name: String,
    /// The value it has without (or with the given) `--build-arg`.
    pub value: String,
    /// What the comment above it says.
    pub description: Option<String>,
    /// Where it is declared.
    pub span: Span,
}

/// A secret, or an SSH agent, that a target asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needed {
    /// Its id.
    pub name: String,
    /// The build fails without it.
    pub required: bool,
    /// Where it is asked for.
    pub span: Span,
}

/// The parameters of a target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outline {
    /// Its name.
    pub name: Option<String>,
    /// What the comment above it says.
    pub description: Option<String>,
    /// Build arguments.
    pub arguments: Vec<Argument>,
    /// Secrets.
    pub secrets: Vec<Needed>,
    /// SSH agents.
    pub ssh: Vec<Needed>,
}

/// Finds out the parameters of the target.
///
/// # Errors
/// The file cannot be understood, or has no such target.
pub fn outline(file: &Dockerfile, settings: &Settings<'_>) -> Result<Outline, DockerfileError> {
    let all = file.stages.len();
    let wanted = settings.target.filter(|target| !target.is_empty());
    let target = match wanted {
        Some(target) => named(&file.stages, target, all)
            .or_else(|| target.parse().ok().filter(|index| *index < all))
            .ok_or_else(|| no_target(file, target))?,
        None => all.checked_sub(1).ok_or_else(|| {
            DockerfileError::new(Span::line(1), "dockerfile contains no stages to build")
        })?,
    };
    let lexer = Lexer::new(file.directives.escape);
    let shown = file.stages[target].name.as_deref().unwrap_or("default");
    let given = &settings.build_args;
    let predefined = from::predefined(&settings.host, &settings.platform, shown, given);
    let globals = from::global(&lexer, predefined, &file.meta_args, given)?;
    let mut look = Look {
        file,
        settings,
        globals: Globals::new(&lexer, &file.meta_args, &globals),
        values: &globals,
        lexer: &lexer,
        found: Outline {
            name: file.stages[target].name.clone(),
            description: described(&file.stages[target]),
            ..Outline::default()
        },
        seen: HashSet::new(),
    };
    let mut waiting = vec![target];
    let mut done = BTreeSet::new();
    while let Some(index) = waiting.pop() {
        if done.insert(index) {
            waiting.extend(look.stage(index)?);
        }
    }
    let mut found = look.found;
    found.arguments.sort_by_key(|argument| argument.span.start);
    found.secrets.sort_by_key(|needed| needed.span.start);
    found.ssh.sort_by_key(|needed| needed.span.start);
    Ok(found)
}

fn no_target(file: &Dockerfile, target: &str) -> DockerfileError {
    let names = file.stages.iter().filter_map(|stage| stage.name.as_deref());
    let hint =
        nearest(target, names).map_or_else(String::new, |near| format!(" (did you mean {near}?)"));
    let message = format!("target stage {target:?} could not be found{hint}");
    DockerfileError::new(Span::line(1), message)
}

/// Global arguments, and which others each of them is made of.
struct Globals {
    arguments: BTreeMap<String, (Argument, BTreeSet<String>)>,
}

impl Globals {
    fn new(lexer: &Lexer, arguments: &[Instruction], values: &Variables) -> Self {
        let mut found = BTreeMap::new();
        for instruction in arguments {
            let Kind::Arg(declarations) = &instruction.kind else {
                continue;
            };
            for declaration in declarations {
                let name = &declaration.name;
                let parts = declaration.default.as_ref().map(|default| {
                    let mut parts = expand(lexer, default, values).matched;
                    parts.remove(name);
                    parts
                });
                let argument = Argument {
                    name: name.clone(),
                    value: values.get(name).unwrap_or_default().to_owned(),
                    description: description(&instruction.comments, name).map(str::to_owned),
                    span: instruction.span,
                };
                found.insert(name.clone(), (argument, parts.unwrap_or_default()));
            }
        }
        Self { arguments: found }
    }
}

struct Look<'a> {
    file: &'a Dockerfile,
    settings: &'a Settings<'a>,
    globals: Globals,
    values: &'a Variables,
    lexer: &'a Lexer,
    found: Outline,
    /// Names of arguments that have been found.
    seen: HashSet<String>,
}

impl Look<'_> {
    /// Looks at a stage; the stages it needs.
    fn stage(&mut self, index: usize) -> Result<Vec<usize>, DockerfileError> {
        let file = self.file;
        let stage = &file.stages[index];
        let mut needs = Vec::new();
        // What the stage itself declares comes before what it inherits.
        for instruction in &stage.instructions {
            match &instruction.kind {
                Kind::Arg(_) => self.arg(instruction),
                Kind::Run(run) => {
                    for mount in &run.mounts {
                        self.mount(mount, instruction.span)?;
                    }
                }
                _ => {}
            }
            needs.extend(sources(instruction).filter_map(|from| {
                named(&file.stages, from, index)
                    .or_else(|| from.parse().ok().filter(|number| *number < index))
            }));
        }
        for word in std::iter::once(&stage.base).chain(&stage.platform) {
            let expanded = expand(self.lexer, word, self.values);
            for name in expanded.matched {
                self.global(&name);
            }
            if let Ok(base) = expanded.result {
                needs.extend(named(&file.stages, &base, index));
            }
        }
        Ok(needs)
    }

    fn arg(&mut self, instruction: &Instruction) {
        let Kind::Arg(declarations) = &instruction.kind else {
            return;
        };
        for declaration in declarations {
            let name = &declaration.name;
            let given = self.settings.build_args.get(name);
            if given.is_none() && declaration.default.is_none() {
                if self.globals.arguments.contains_key(name) {
                    self.global(name);
                    continue;
                }
                if self.values.get(name).is_some() {
                    continue; // a predefined one
                }
            }
            if !self.seen.insert(name.clone()) {
                continue;
            }
            let default = declaration.default.as_deref().unwrap_or_default();
            let value = match given {
                Some(given) => given.clone(),
                None => expand(self.lexer, default, self.values)
                    .result
                    .unwrap_or_default(),
            };
            self.found.arguments.push(Argument {
                name: name.clone(),
                value,
                description: description(&instruction.comments, name).map(str::to_owned),
                span: instruction.span,
            });
        }
    }

    /// A global argument is used, and with it those it is made of.
    fn global(&mut self, name: &str) {
        let mut waiting = vec![name.to_owned()];
        while let Some(name) = waiting.pop() {
            let Some((argument, parts)) = self.globals.arguments.get(&name) else {
                continue;
            };
            if self.seen.insert(name) {
                self.found.arguments.push(argument.clone());
                waiting.extend(parts.iter().cloned());
            }
        }
    }

    fn mount(&mut self, flag: &str, span: Span) -> Result<(), DockerfileError> {
        let mount = Mount::parse(flag, &mut |word| self.lexer.word(word, &|_| None))
            .map_err(|message| DockerfileError::new(span, message))?;
        let (list, name) = match mount.kind {
            MountKind::Secret => (&mut self.found.secrets, mount.secret_id()),
            MountKind::Ssh => (&mut self.found.ssh, mount.ssh_id()),
            _ => return Ok(()),
        };
        if !list.iter().any(|needed| needed.name == name) {
            list.push(Needed {
                name,
                required: mount.required,
                span,
            });
        }
        Ok(())
    }
}

impl Outline {
    /// As tables.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        if self.name.is_some() || self.description.is_some() {
            let name = self.name.as_deref().unwrap_or("(default)");
            let mut rows = vec![["TARGET:".to_owned(), name.to_owned()]];
            if let Some(description) = &self.description {
                rows.push(["DESCRIPTION:".to_owned(), description.clone()]);
            }
            out.push_str(&table(&rows, 1));
            out.push('\n');
        }
        if !self.arguments.is_empty() {
            let mut rows = vec![["BUILD ARG", "VALUE", "DESCRIPTION"].map(str::to_owned)];
            rows.extend(self.arguments.iter().map(|argument| {
                let description = argument.description.clone().unwrap_or_default();
                [argument.name.clone(), argument.value.clone(), description]
            }));
            out.push_str(&table(&rows, 3));
            out.push('\n');
        }
        for (title, needed) in [("SECRET", &self.secrets), ("SSH", &self.ssh)] {
            if needed.is_empty() {
                continue;
            }
            let mut rows = vec![[title, "REQUIRED"].map(str::to_owned)];
            rows.extend(needed.iter().map(|needed| {
                let required = if needed.required { "true" } else { "" };
                [needed.name.clone(), required.to_owned()]
            }));
            out.push_str(&table(&rows, 3));
            out.push('\n');
        }
        out
    }

    /// As JSON. `source`: the text, encoded as clients expect it.
    #[must_use]
    pub fn json(&self, source: &str) -> Value {
        let mut shown = json!({ "sources": [source] });
        for (key, value) in [("name", &self.name), ("description", &self.description)] {
            if let Some(value) = value {
                shown[key] = json!(value);
            }
        }
        let arguments: Vec<Value> = self
            .arguments
            .iter()
            .map(|argument| {
                let mut shown = json!({
                    "name": argument.name,
                    "location": location(&[argument.span]),
                });
                if !argument.value.is_empty() {
                    shown["value"] = json!(argument.value);
                }
                if let Some(description) = &argument.description {
                    shown["description"] = json!(description);
                }
                shown
            })
            .collect();
        let needed = |list: &[Needed]| -> Vec<Value> {
            list.iter()
                .map(|needed| {
                    let mut shown = json!({
                        "name": needed.name,
                        "location": location(&[needed.span]),
                    });
                    if needed.required {
                        shown["required"] = json!(true);
                    }
                    shown
                })
                .collect()
        };
        for (key, list) in [
            ("args", arguments),
            ("secrets", needed(&self.secrets)),
            ("ssh", needed(&self.ssh)),
        ] {
            if !list.is_empty() {
                shown[key] = json!(list);
            }
        }
        shown
    }
}

/// Columns as wide as their widest cell and some space; the last as it is.
fn table<const N: usize>(rows: &[[String; N]], space: usize) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in rows {
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            if column + 1 == N {
                out.push_str(cell);
            } else {
                let width = width + space;
                // Writing to a String cannot fail.
                let _ = write!(out, "{cell:<width$}");
            }
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
# VERSION which one
ARG VERSION=1
ARG IMAGE=base:${VERSION}
ARG UNUSED
# build makes it
FROM ${IMAGE} AS build
# DEBUG tells more
ARG DEBUG
ARG VERSION
RUN --mount=type=secret,id=token,required --mount=type=ssh true

# app is it
FROM scratch AS app
COPY --from=build / /
RUN --mount=type=secret,target=/root/.npmrc true
";

    #[test]
    fn stages() {
        let file = Dockerfile::parse(FILE).unwrap();
        let targets = targets(&file);
        insta::assert_snapshot!(targets_text(&targets), @r"
        TARGET        DESCRIPTION
        build         makes it
        app (default) is it
        ");
        let json = targets_json(&targets, "");
        assert_eq!(json["targets"][1]["default"], true);
        assert_eq!(json["targets"][0]["base"], "${IMAGE}");
    }

    #[test]
    fn parameters() {
        let file = Dockerfile::parse(FILE).unwrap();
        let mut settings = Settings::default();
        settings.build_args.insert("DEBUG".into(), "yes".into());
        let found = outline(&file, &settings).unwrap();
        insta::assert_snapshot!(found.text(), @r"
        TARGET:      app
        DESCRIPTION: is it

        BUILD ARG   VALUE    DESCRIPTION
        VERSION     1        which one
        IMAGE       base:1   
        DEBUG       yes      tells more

        SECRET   REQUIRED
        token    true
        .npmrc   

        SSH       REQUIRED
        default   
        ");
        let json = found.json("");
        assert_eq!(json["args"][2]["name"], "DEBUG");
        assert_eq!(json["secrets"][0]["required"], true);
        let settings = Settings {
            target: Some("ap"),
            ..Settings::default()
        };
        assert_eq!(
            outline(&file, &settings).unwrap_err().message,
            "target stage \"ap\" could not be found (did you mean app?)"
        );
    }
}
