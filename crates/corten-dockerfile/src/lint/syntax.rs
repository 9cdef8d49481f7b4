//! Rules that need nothing but the syntax: casing, names of stages, comments, continuation.

use std::collections::HashSet;

use super::rules::Rule;
use super::{Findings, Options};
use crate::instruction::{ArgDeclaration, Span, Stage};
use crate::node::Node;

/// Names that mean something else.
const RESERVED: [&str; 2] = ["scratch", "context"];

/// An empty line where an instruction continues.
pub(super) fn continuation(nodes: &[Node], options: &Options, findings: &mut Findings) {
    for node in nodes.iter().filter(|node| node.empty_continuation) {
        let span = Span::line(node.written_to);
        findings.add(
            options,
            Rule::NoEmptyContinuation,
            span,
            "Empty continuation line",
        );
    }
}

/// What is checked before an instruction is understood.
pub(super) fn node(node: &Node, options: &Options, findings: &mut Findings) {
    let keyword = node.keyword.to_ascii_uppercase();
    if keyword == "MAINTAINER" {
        let detail = "Maintainer instruction is deprecated in favor of using label";
        findings.add(options, Rule::MaintainerDeprecated, node.span, detail);
    }
    if keyword != "FROM" {
        return;
    }
    if let [_, _, name] = node.args.as_slice()
        && *name != name.to_lowercase()
    {
        let detail = format!("Stage name '{name}' should be lowercase");
        findings.add(options, Rule::StageNameCasing, node.span, detail);
    }
    if let [_, word, _, ..] = node.args.as_slice() {
        let from = &node.keyword;
        let matches = match casing(from) {
            // Said by another rule.
            Casing::Mixed => true,
            Casing::Lower => *word == word.to_lowercase(),
            Casing::Upper => *word == word.to_uppercase(),
        };
        if !matches {
            let detail = format!("'{word}' and '{from}' keywords' casing do not match");
            findings.add(options, Rule::FromAsCasing, node.span, detail);
        }
    }
}

/// The comment above a stage or arguments, once their names are known.
pub(super) fn stage_description(stage: &Stage, options: &Options, findings: &mut Findings) {
    if let Some(name) = &stage.name {
        description(
            "FROM",
            &[name],
            &stage.comments,
            stage.span,
            options,
            findings,
        );
    }
}

/// Likewise for ARG.
pub(super) fn arg_description(
    arguments: &[ArgDeclaration],
    comments: &[String],
    span: Span,
    options: &Options,
    findings: &mut Findings,
) {
    let names: Vec<&String> = arguments.iter().map(|argument| &argument.name).collect();
    description("ARG", &names, comments, span, options, findings);
}

fn description(
    keyword: &str,
    names: &[&String],
    comments: &[String],
    span: Span,
    options: &Options,
    findings: &mut Findings,
) {
    let Some(comment) = comments.last() else {
        return;
    };
    let word = comment.split(' ').next().unwrap_or_default();
    if names.iter().any(|name| *name == word) {
        return;
    }
    let example = match names {
        [] => return,
        [one] => one.as_str(),
        _ => "<arg_key>",
    };
    let detail =
        format!("Comment for {keyword} should follow the format: `# {example} <description>`");
    findings.add(options, Rule::InvalidDefinitionDescription, span, detail);
}

/// Names of stages that are taken.
pub(super) fn stage_names(stages: &[Stage], options: &Options, findings: &mut Findings) {
    let mut seen = HashSet::new();
    for stage in stages {
        let Some(name) = stage.name.as_deref() else {
            continue;
        };
        if RESERVED.contains(&name) {
            let detail =
                format!("Stage name should not use the same name as reserved stage {name:?}");
            findings.add(options, Rule::ReservedStageName, stage.span, detail);
        }
        if !seen.insert(name) {
            let detail = format!("Duplicate stage name {name:?}, stage names should be unique");
            findings.add(options, Rule::DuplicateStageName, stage.span, detail);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Casing {
    Lower,
    Upper,
    Mixed,
}

fn casing(word: &str) -> Casing {
    if word == word.to_lowercase() {
        Casing::Lower
    } else if word == word.to_uppercase() {
        Casing::Upper
    } else {
        Casing::Mixed
    }
}

/// Every keyword is written as most of them are.
pub(super) fn keywords(stages: &[Stage], options: &Options, findings: &mut Findings) {
    let words: Vec<(&str, Span)> = stages
        .iter()
        .flat_map(|stage| {
            let from = stage.text.split_whitespace().next().unwrap_or_default();
            std::iter::once((from, stage.span))
                .chain(stage.instructions.iter().map(|i| (i.keyword(), i.span)))
        })
        .collect();
    let count = |wanted: Casing| words.iter().filter(|(w, _)| casing(w) == wanted).count();
    let (majority, name) = if count(Casing::Lower) > count(Casing::Upper) {
        (Casing::Lower, "lowercase")
    } else {
        (Casing::Upper, "uppercase")
    };
    for (word, span) in words {
        if casing(word) != majority {
            let detail =
                format!("Command '{word}' should match the case of the command majority ({name})");
            findings.add(options, Rule::ConsistentInstructionCasing, span, detail);
        }
    }
}
