//! Nodes to typed instructions.

use std::time::Duration;

use crate::error::DockerfileError;
use crate::flags::Flags;
use crate::instruction::{
    ArgDeclaration, CommandLine, CopyInstruction, Dockerfile, Healthcheck, Heredoc, Instruction,
    KeyValue, Kind, RunInstruction, Stage, Trigger,
};
use crate::line;
use crate::node::Node;

type Result<T> = std::result::Result<T, DockerfileError>;

/// Every keyword, for suggestions.
const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// The one of `known` that `word` was probably meant to be.
#[must_use]
pub fn suggest<S: AsRef<str>>(word: &str, known: &[S]) -> Option<String> {
    let lower = word.to_lowercase();
    let limit = (lower.chars().count() / 3).clamp(1, 3);
    known
        .iter()
        .map(|k| {
            (
                strsim::osa_distance(&lower, &k.as_ref().to_lowercase()),
                k.as_ref(),
            )
        })
        .filter(|&(distance, _)| distance <= limit)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, known)| known.to_owned())
}

impl Dockerfile {
    /// Parses a Dockerfile.
    ///
    /// # Errors
    /// The first thing that is wrong, with its line.
    pub fn parse(text: &str) -> Result<Self> {
        let (directives, nodes) = line::split(text)?;
        let mut parsed = Self {
            directives,
            meta_args: Vec::new(),
            stages: Vec::new(),
        };
        for node in &nodes {
            if node.keyword.eq_ignore_ascii_case("FROM") {
                parsed.stages.push(stage(node)?);
                continue;
            }
            parsed.push(instruction(node)?, &node.keyword)?;
        }
        Ok(parsed)
    }

    /// Adds an instruction to the last stage or, if there is none yet, to the global ARGs.
    pub(crate) fn push(&mut self, instruction: Instruction, keyword: &str) -> Result<()> {
        match self.stages.last_mut() {
            Some(stage) => stage.instructions.push(instruction),
            None if matches!(instruction.kind, Kind::Arg(_)) => self.meta_args.push(instruction),
            None => {
                let message = "no build stage in current context: the first instruction must be \
                               FROM (or ARG)";
                return Err(DockerfileError::new(instruction.span, message).at(keyword));
            }
        }
        Ok(())
    }

    /// Only the line parser: nodes that are not understood yet.
    ///
    /// # Errors
    /// The first thing that is wrong, with its line.
    pub fn nodes(text: &str) -> Result<Vec<Node>> {
        Ok(line::split(text)?.1)
    }

    /// Parses one instruction that stands alone, as an image's ONBUILD triggers do.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse_trigger(text: &str) -> Result<Instruction> {
        let (_, nodes) = line::split(text)?;
        match nodes.as_slice() {
            [node] => trigger(node),
            _ => Err(DockerfileError::new(
                nodes.last().map(|n| n.span).unwrap_or_default(),
                "a trigger must be one instruction",
            )),
        }
    }
}

pub(crate) fn stage(node: &Node) -> Result<Stage> {
    let mut flags = Flags::new(&node.flags, node.span);
    let platform = flags.value("platform")?;
    flags.finish()?;
    let error = |message: &str| DockerfileError::new(node.span, message);
    let (base, name) = match node.args.as_slice() {
        [base] => (base, None),
        [base, keyword, name] if keyword.eq_ignore_ascii_case("as") => (base, Some(name)),
        [] => {
            return Err(error("FROM requires either one or three arguments").at(&node.keyword));
        }
        [_, second, ..] => {
            return Err(error("FROM requires either one or three arguments").at(second));
        }
    };
    let name = name
        .map(|name| stage_name(name).map_err(|m| error(&m).at(name)))
        .transpose()?;
    Ok(Stage {
        name,
        base: base.clone(),
        platform,
        span: node.span,
        text: node.text.trim().to_owned(),
        comments: node.comments.clone(),
        instructions: Vec::new(),
    })
}

fn stage_name(name: &str) -> std::result::Result<String, String> {
    let lower = name.to_lowercase();
    let valid = lower.starts_with(|c: char| c.is_ascii_lowercase())
        && lower
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.'));
    if valid {
        return Ok(lower);
    }
    Err(format!(
        "invalid name for build stage: {name:?}, name can't start with a number or contain symbols"
    ))
}

pub(crate) fn instruction(node: &Node) -> Result<Instruction> {
    let mut flags = Flags::new(&node.flags, node.span);
    let keyword = node.keyword.to_ascii_uppercase();
    let kind = match keyword.as_str() {
        "ADD" => Kind::Add(copy(node, &mut flags, true)?),
        "ARG" => Kind::Arg(args(node)?),
        "CMD" => Kind::Cmd(command(node, &node.args)),
        "COPY" => Kind::Copy(copy(node, &mut flags, false)?),
        "ENTRYPOINT" => Kind::Entrypoint(command(node, &node.args)),
        "ENV" => Kind::Env(pairs(node)?),
        "EXPOSE" => Kind::Expose(at_least_one(node)?),
        "HEALTHCHECK" => Kind::Healthcheck(healthcheck(node, &mut flags)?),
        "LABEL" => Kind::Label(pairs(node)?),
        "MAINTAINER" => Kind::Maintainer(exactly_one(node)?),
        "ONBUILD" => onbuild(node)?,
        "RUN" => Kind::Run(run(node, &mut flags)?),
        "SHELL" => Kind::Shell(shell(node)?),
        "STOPSIGNAL" => Kind::Stopsignal(exactly_one(node)?),
        "USER" => Kind::User(exactly_one(node)?),
        "VOLUME" => Kind::Volume(volumes(node)?),
        "WORKDIR" => Kind::Workdir(exactly_one(node)?),
        _ => {
            let hint = match suggest(&keyword, &KEYWORDS) {
                Some(known) => format!(" (did you mean {known}?)"),
                None => String::new(),
            };
            let message = format!("unknown instruction: {}{hint}", node.keyword);
            return Err(DockerfileError::new(node.span, message).at(&node.keyword));
        }
    };
    flags.finish()?;
    Ok(Instruction {
        kind,
        span: node.span,
        text: node.text.trim().to_owned(),
        comments: node.comments.clone(),
    })
}

fn wrong(node: &Node, message: impl Into<String>) -> DockerfileError {
    DockerfileError::new(node.span, message).at(&node.keyword)
}

fn exactly_one(node: &Node) -> Result<String> {
    match node.args.as_slice() {
        [one] => Ok(one.clone()),
        _ => {
            let keyword = node.keyword.to_ascii_uppercase();
            Err(wrong(
                node,
                format!("{keyword} requires exactly one argument"),
            ))
        }
    }
}

fn at_least_one(node: &Node) -> Result<Vec<String>> {
    if node.args.is_empty() {
        let keyword = node.keyword.to_ascii_uppercase();
        return Err(wrong(
            node,
            format!("{keyword} requires at least one argument"),
        ));
    }
    Ok(node.args.clone())
}

fn command(node: &Node, args: &[String]) -> CommandLine {
    if node.json {
        CommandLine::Exec(args.to_vec())
    } else {
        CommandLine::Shell(args.concat())
    }
}

fn args(node: &Node) -> Result<Vec<ArgDeclaration>> {
    at_least_one(node)?
        .iter()
        .map(|word| {
            let (name, default) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (word.as_str(), None),
            };
            if name.is_empty() {
                return Err(DockerfileError::new(node.span, "ARG names can not be blank").at(word));
            }
            Ok(ArgDeclaration {
                name: name.to_owned(),
                default,
            })
        })
        .collect()
}

fn pairs(node: &Node) -> Result<Vec<KeyValue>> {
    let keyword = node.keyword.to_ascii_uppercase();
    at_least_one(node)?
        .chunks_exact(3)
        .map(|triple| {
            if triple[0].is_empty() {
                return Err(wrong(node, format!("{keyword} names can not be blank")));
            }
            Ok(KeyValue {
                key: triple[0].clone(),
                value: triple[1].clone(),
                legacy: triple[2].is_empty(),
            })
        })
        .collect()
}

fn copy(node: &Node, flags: &mut Flags, add: bool) -> Result<CopyInstruction> {
    let keyword = if add { "ADD" } else { "COPY" };
    let mut copy = CopyInstruction {
        chown: flags.value("chown")?,
        chmod: flags.value("chmod")?,
        link: flags.switch("link")?.unwrap_or(false),
        exclude: flags.values("exclude")?,
        ..CopyInstruction::default()
    };
    if add {
        copy.keep_git_dir = flags.switch("keep-git-dir")?;
        copy.checksum = flags.value("checksum")?;
        copy.unpack = flags.switch("unpack")?;
    } else {
        copy.from = flags.value("from")?;
        copy.parents = flags.switch("parents")?.unwrap_or(false);
    }
    let Some((destination, sources)) = node.args.split_last() else {
        return Err(wrong(
            node,
            format!("{keyword} requires at least two arguments"),
        ));
    };
    if sources.is_empty() {
        return Err(wrong(
            node,
            format!(
                "{keyword} requires at least two arguments, but only one was provided. \
                 Destination could not be determined"
            ),
        ));
    }
    if line::heredoc(destination).is_some() && !node.json {
        let message = format!("{keyword} cannot accept a heredoc as a destination");
        return Err(DockerfileError::new(node.span, message).at(destination));
    }
    copy.destination.clone_from(destination);
    for source in sources {
        let announced = if node.json {
            None
        } else {
            line::heredoc(source)
        };
        let found = announced.and_then(|h| node.heredocs.iter().find(|d| d.name == h.name));
        match found {
            Some(heredoc) => copy.heredocs.push(heredoc.clone()),
            None => copy.sources.push(source.clone()),
        }
    }
    if copy.from.is_some() && !copy.heredocs.is_empty() {
        return Err(wrong(node, "COPY --from cannot take a heredoc as a source"));
    }
    Ok(copy)
}

fn run(node: &Node, flags: &mut Flags) -> Result<RunInstruction> {
    let mounts = flags.values("mount")?;
    for mount in &mounts {
        if mount
            .split(',')
            .any(|f| f.starts_with("from=") && f.contains('$'))
        {
            let message = "'from' doesn't support variable expansion, define alias stage instead";
            return Err(DockerfileError::new(node.span, message).at(mount));
        }
    }
    let network = flags.value("network")?;
    let security = flags.value("security")?;
    let devices = flags.values("device")?;
    let heredocs: Vec<Heredoc> = node.heredocs.clone();
    let command = command(node, &node.args);
    Ok(RunInstruction {
        command,
        heredocs,
        mounts,
        network,
        security,
        devices,
    })
}

fn shell(node: &Node) -> Result<Vec<String>> {
    if !node.json {
        let message = format!(
            "SHELL requires the arguments to be in JSON form, e.g. SHELL [\"/bin/sh\", \"-c\"]: {}",
            node.text.trim()
        );
        return Err(wrong(node, message));
    }
    at_least_one(node)
}

fn volumes(node: &Node) -> Result<Vec<String>> {
    let volumes = at_least_one(node)?;
    volumes
        .into_iter()
        .map(|volume| {
            let trimmed = volume.trim();
            if trimmed.is_empty() {
                return Err(wrong(node, "VOLUME specified can not be an empty string"));
            }
            Ok(trimmed.to_owned())
        })
        .collect()
}

fn onbuild(node: &Node) -> Result<Kind> {
    let Some(child) = &node.child else {
        return Err(wrong(node, "ONBUILD requires at least one argument"));
    };
    let mut child = (**child).clone();
    child.heredocs.clone_from(&node.heredocs);
    may_be_trigger(&child)?;
    let mut text = child.text.clone();
    for heredoc in &child.heredocs {
        text.push('\n');
        text.push_str(&heredoc.raw);
        text.push_str(&heredoc.name);
    }
    let instruction = instruction(&child).ok().map(Box::new);
    Ok(Kind::Onbuild(Trigger { text, instruction }))
}

fn trigger(node: &Node) -> Result<Instruction> {
    may_be_trigger(node)?;
    instruction(node)
}

fn may_be_trigger(node: &Node) -> Result<()> {
    match node.keyword.to_ascii_uppercase().as_str() {
        "ONBUILD" => Err(wrong(
            node,
            "chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed",
        )),
        keyword @ ("MAINTAINER" | "FROM") => Err(wrong(
            node,
            format!("{keyword} isn't allowed as an ONBUILD trigger"),
        )),
        _ => Ok(()),
    }
}

fn healthcheck(node: &Node, flags: &mut Flags) -> Result<Healthcheck> {
    let durations = [
        flags.value("interval")?,
        flags.value("timeout")?,
        flags.value("start-period")?,
        flags.value("start-interval")?,
    ];
    let retries = flags.value("retries")?;
    let Some((kind, rest)) = node.args.split_first() else {
        return Err(wrong(node, "HEALTHCHECK requires at least one argument"));
    };
    match kind.to_ascii_uppercase().as_str() {
        "NONE" if rest.is_empty() => {
            if !node.flags.is_empty() {
                return Err(wrong(node, "HEALTHCHECK NONE takes no flags"));
            }
            Ok(Healthcheck::None)
        }
        "NONE" => Err(wrong(node, "HEALTHCHECK NONE takes no arguments")),
        "CMD" => {
            if rest.is_empty() {
                return Err(wrong(node, "missing command after HEALTHCHECK CMD"));
            }
            let parse = |text: &Option<String>| {
                let Some(text) = text else { return Ok(None) };
                let duration = duration(text)
                    .map_err(|message| DockerfileError::new(node.span, message).at(text))?;
                if !duration.is_zero() && duration < Duration::from_millis(1) {
                    let message = format!("duration {text:?} cannot be less than 1ms");
                    return Err(DockerfileError::new(node.span, message).at(text));
                }
                Ok(Some(duration))
            };
            let retries = match retries {
                None => None,
                Some(text) => Some(text.parse().map_err(|_| {
                    let message = format!("--retries must be a number of at least 0, not {text:?}");
                    DockerfileError::new(node.span, message).at(&text)
                })?),
            };
            let [interval, timeout, start_period, start_interval] = &durations;
            Ok(Healthcheck::Cmd {
                command: command(node, rest),
                interval: parse(interval)?,
                timeout: parse(timeout)?,
                start_period: parse(start_period)?,
                start_interval: parse(start_interval)?,
                retries,
            })
        }
        other => Err(DockerfileError::new(
            node.span,
            format!("unknown type {other:?} in HEALTHCHECK (try CMD)"),
        )
        .at(kind)),
    }
}

/// Go's `time.ParseDuration`, without a sign: `1h2m3.5s`.
fn duration(text: &str) -> std::result::Result<Duration, String> {
    let wrong =
        || format!("invalid duration {text:?}: use numbers with units, such as 30s or 1m30s");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let end = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(wrong()),
        };
        seconds += number * unit;
        rest = &rest[end..];
    }
    if text.is_empty() {
        return Err(wrong());
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

#[cfg(test)]
mod tests;
