//! FROM: variables in its image and platform.

use std::collections::{BTreeMap, BTreeSet};

use corten_oci::{ImageRef, Platform};

use super::rules::Rule;
use super::variables::{Expanded, Variables, expand, nearest};
use super::{Findings, Options};
use crate::error::DockerfileError;
use crate::expand::Lexer;
use crate::instruction::{Instruction, Kind, Stage};

/// Build arguments that were given.
pub(crate) type Given = BTreeMap<String, String>;

/// The predefined variables of the global scope.
pub(crate) fn predefined(
    host: &Platform,
    target: &Platform,
    stage: &str,
    given: &Given,
) -> Variables {
    let mut variables = Variables::default();
    let mut set = |name: String, value: &str| {
        let value = given.get(&name).map_or(value, String::as_str);
        variables.set(&name, value);
    };
    for (prefix, platform) in [("BUILD", host), ("TARGET", target)] {
        set(format!("{prefix}PLATFORM"), &platform.to_string());
        set(format!("{prefix}OS"), &platform.os);
        set(format!("{prefix}OSVERSION"), "");
        set(format!("{prefix}ARCH"), &platform.architecture);
        set(
            format!("{prefix}VARIANT"),
            platform.variant.as_deref().unwrap_or_default(),
        );
    }
    set("TARGETSTAGE".to_owned(), stage);
    variables
}

/// The global scope after the ARGs before the first FROM.
pub(crate) fn global(
    lexer: &Lexer,
    mut variables: Variables,
    arguments: &[Instruction],
    given: &Given,
) -> Result<Variables, DockerfileError> {
    for instruction in arguments {
        let Kind::Arg(declarations) = &instruction.kind else {
            continue;
        };
        for declaration in declarations {
            let value = match (given.get(&declaration.name), &declaration.default) {
                (Some(given), _) => given.clone(),
                (None, Some(default)) => expand(lexer, default, &variables)
                    .result
                    .map_err(|e| DockerfileError::new(instruction.span, e.to_string()))?,
                (None, None) => continue,
            };
            variables.set(&declaration.name, &value);
        }
    }
    Ok(variables)
}

/// Names of images must be names even if no argument is given.
pub(super) fn defaults(
    lexer: &Lexer,
    globals: &Variables,
    stages: &[Stage],
    options: &Options,
    findings: &mut Findings,
) {
    for stage in stages {
        let Ok(name) = expand(lexer, &stage.base, globals).result else {
            return;
        };
        if name.parse::<ImageRef>().is_err() {
            let detail = format!(
                "Default value for ARG {} results in empty or invalid base image name",
                stage.base
            );
            findings.add(options, Rule::InvalidDefaultArgInFrom, stage.span, detail);
        }
    }
}

/// What FROM says once its variables are known.
pub(super) struct From {
    pub(super) base: String,
    pub(super) platform: Option<Platform>,
}

/// Checks one FROM.
pub(super) fn stage(
    lexer: &Lexer,
    globals: &Variables,
    declared: &BTreeSet<String>,
    stage: &Stage,
    options: &Options,
    findings: &mut Findings,
) -> Result<From, DockerfileError> {
    let options = options.with_comments(&stage.comments);
    let error = |message: String| DockerfileError::new(stage.span, message);
    let known: BTreeSet<&str> = globals
        .names()
        .chain(declared.iter().map(String::as_str))
        .collect();
    let mut undeclared = |word: &Expanded| {
        for name in word
            .unmatched
            .iter()
            .filter(|n| !known.contains(n.as_str()))
        {
            let hint = nearest(name, known.iter().copied())
                .map_or_else(String::new, |near| format!(" (did you mean {near}?)"));
            let detail = format!("FROM argument '{name}' is not declared{hint}");
            findings.add(&options, Rule::UndefinedArgInFrom, stage.span, detail);
        }
    };
    let base = expand(lexer, &stage.base, globals);
    undeclared(&base);
    let base = base.result.map_err(|e| error(e.to_string()))?;
    if base.is_empty() {
        return Err(error(format!(
            "base name ({}) should not be blank",
            stage.base
        )));
    }
    let Some(written) = &stage.platform else {
        let platform = None;
        return Ok(From { base, platform });
    };
    let word = expand(lexer, written, globals);
    undeclared(&word);
    redundant(stage, written, &word, globals, &options, findings);
    constant(stage, &word, &options, findings);
    let hint = word
        .unmatched
        .iter()
        .find_map(|name| nearest(name, globals.names()))
        .map_or_else(String::new, |near| format!(" (did you mean {near}?)"));
    let platform = word.result.map_err(|e| {
        error(format!(
            "failed to process arguments for platform {written}: {e}"
        ))
    })?;
    if platform.is_empty() {
        return Err(error(format!(
            "empty platform value from expression {written}{hint}"
        )));
    }
    let platform = platform
        .parse()
        .map_err(|e| error(format!("failed to parse platform {written}: {e}{hint}")))?;
    Ok(From {
        base,
        platform: Some(platform),
    })
}

/// `--platform=$TARGETPLATFORM` says what is so anyway.
fn redundant(
    stage: &Stage,
    written: &str,
    word: &Expanded,
    globals: &Variables,
    options: &Options,
    findings: &mut Findings,
) {
    const TARGET: &str = "TARGETPLATFORM";
    let only = word.matched.len() == 1 && word.matched.contains(TARGET);
    let result = word.result.as_deref().unwrap_or_default();
    if only && word.unmatched.is_empty() && globals.get(TARGET) == Some(result) {
        let detail = format!(
            "Setting platform to predefined {written} in FROM is redundant as this is the default \
             behavior"
        );
        findings.add(options, Rule::RedundantTargetPlatform, stage.span, detail);
    }
}

/// A platform without a variable, unless the stage is named after it.
fn constant(stage: &Stage, word: &Expanded, options: &Options, findings: &mut Findings) {
    if !word.matched.is_empty() || !word.unmatched.is_empty() {
        return;
    }
    let Ok(written) = &word.result else { return };
    let Ok(platform) = written.parse::<Platform>() else {
        return;
    };
    let name = stage.name.as_deref().unwrap_or_default();
    if !name.contains(&platform.os) && !name.contains(&platform.architecture) {
        let detail = format!("FROM --platform flag should not use constant value {written:?}");
        findings.add(
            options,
            Rule::FromPlatformFlagConstDisallowed,
            stage.span,
            detail,
        );
    }
}
