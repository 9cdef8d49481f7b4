//! Compares this crate with the answers of the reference implementations.
//!
//! `cargo run -p corten-dockerfile --example corpora -- parse|lex|dockerignore|lint FILE.jsonl`
//! prints every disagreement and `N agree, M differ`; exits with 0 only if M is 0.

use std::path::Path;
use std::process::ExitCode;

use corten_dockerfile::lint::{self, Settings};
use corten_dockerfile::{Dockerfile, IgnoreRules, Lexer, ignore};
use serde_json::{Map, Value, json};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [what, file] = arguments.as_slice() else {
        eprintln!("usage: corpora parse|lex|dockerignore|lint FILE.jsonl");
        return ExitCode::from(2);
    };
    match compare(what, Path::new(file)) {
        Ok((agree, differ)) => {
            println!("{agree} agree, {differ} differ");
            if differ == 0 {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn compare(what: &str, file: &Path) -> Result<(usize, usize), Box<dyn std::error::Error>> {
    let environment = match what {
        "lex" => {
            let beside = file.with_file_name("lex_env.json");
            serde_json::from_str(&std::fs::read_to_string(beside)?)?
        }
        _ => Map::new(),
    };
    let (mut agree, mut differ) = (0, 0);
    for (number, line) in std::fs::read_to_string(file)?.lines().enumerate() {
        let case: Value = serde_json::from_str(line)?;
        let (ours, theirs) = match what {
            "parse" => parse(&case),
            "lex" => lex(&case, &environment),
            "dockerignore" => dockerignore(&case),
            "lint" => lint(&case)?,
            other => return Err(format!("unknown corpus {other}").into()),
        };
        if ours == theirs {
            agree += 1;
        } else {
            differ += 1;
            println!(
                "line {}: {}\n  ours:   {ours}\n  theirs: {theirs}",
                number + 1,
                case.get("id").unwrap_or(&case["func"])
            );
        }
    }
    Ok((agree, differ))
}

fn text<'a>(case: &'a Value, key: &str) -> &'a str {
    case[key].as_str().unwrap_or_default()
}

fn parse(case: &Value) -> (Value, Value) {
    let source = text(case, "dockerfile");
    if case.get("parse_error").is_some() {
        return (json!(Dockerfile::nodes(source).is_err()), json!(true));
    }
    let mut theirs = json!({ "ast": case["ast"], "escape": case["escape"] });
    let nodes = match Dockerfile::nodes(source) {
        Ok(nodes) => nodes,
        Err(error) => return (json!(error.to_string()), theirs),
    };
    let ast: Vec<String> = nodes
        .iter()
        .map(|node| format!("({})", node.dump()))
        .collect();
    let mut ours = json!({ "ast": ast.join("\n"), "escape": "\\" });
    if case.get("instr_error").is_some() {
        theirs["error"] = json!(true);
        theirs["escape"] = json!("\\");
        ours["error"] = json!(Dockerfile::parse(source).is_err());
        return (ours, theirs);
    }
    let parsed = match Dockerfile::parse(source) {
        Ok(parsed) => parsed,
        Err(error) => return (json!(error.to_string()), theirs),
    };
    ours["escape"] = json!(parsed.directives.escape.to_string());
    let stages: Vec<Value> = parsed
        .stages
        .iter()
        .map(|stage| {
            let commands: Vec<&str> = stage.instructions.iter().map(|i| i.text.as_str()).collect();
            json!({
                "base": stage.base,
                "commands": if commands.is_empty() { Value::Null } else { json!(commands) },
                "name": stage.name.clone().unwrap_or_default(),
                "platform": stage.platform.clone().unwrap_or_default(),
            })
        })
        .collect();
    ours["stages"] = if stages.is_empty() {
        Value::Null
    } else {
        json!(stages)
    };
    theirs["stages"] = case["stages"].clone();
    let mut meta = Vec::new();
    for instruction in &parsed.meta_args {
        if let corten_dockerfile::Kind::Arg(args) = &instruction.kind {
            meta.extend(
                args.iter()
                    .map(|a| format!("{}={}", a.name, a.default.as_deref().unwrap_or(""))),
            );
        }
    }
    ours["meta_args"] = if meta.is_empty() {
        Value::Null
    } else {
        json!(meta)
    };
    theirs["meta_args"] = case["meta_args"].clone();
    (ours, theirs)
}

fn lex(case: &Value, environment: &Map<String, Value>) -> (Value, Value) {
    let lexer = Lexer::new(text(case, "escape").chars().next().unwrap_or('\\'));
    let lookup = |name: &str| {
        environment
            .get(name)
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    let word = text(case, "word");
    let result = match lexer.word(word, &lookup) {
        Ok(result) => json!(result),
        Err(_) => json!({ "error": true }),
    };
    let words = match lexer.words(word, &lookup) {
        Ok(words) if words.is_empty() => Value::Null,
        Ok(words) => json!(words),
        Err(_) => json!({ "error": true }),
    };
    let theirs = |key: &str, error: &str| match case.get(error) {
        Some(_) => json!({ "error": true }),
        None => case[key].clone(),
    };
    (
        json!([result, words]),
        json!([theirs("result", "error"), theirs("words", "words_error")]),
    )
}

fn dockerignore(case: &Value) -> (Value, Value) {
    let source = text(case, "dockerignore");
    let patterns = ignore::patterns(source);
    let Ok(rules) = IgnoreRules::parse(source) else {
        let theirs = json!([case["parsed"], case.get("error").is_some()]);
        return (json!([patterns, true]), theirs);
    };
    let ignored: Vec<Value> = case["ignored"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|pair| json!([pair[0], rules.ignores(pair[0].as_str().unwrap_or_default())]))
        .collect();
    let theirs = if case.get("error").is_some() {
        json!([case["parsed"], true])
    } else {
        json!([case["parsed"], case["ignored"]])
    };
    (json!([patterns, ignored]), theirs)
}

/// Rules, lines and messages, in the order of lines and messages.
fn lint(case: &Value) -> Result<(Value, Value), Box<dyn std::error::Error>> {
    let attribute = |name: &str| case["frontend_attrs"][name].as_str();
    let ignore = match case["dockerignore"].as_str() {
        Some(text) => Some(IgnoreRules::parse(text)?),
        None => None,
    };
    let mut settings = Settings {
        target: attribute("target"),
        ignore: ignore.as_ref(),
        ..Settings::default()
    };
    if let Some(platform) = attribute("platform") {
        // Of several, each is checked alike.
        settings.platform = platform.split(',').next().unwrap_or_default().parse()?;
    }
    for (key, value) in case["frontend_attrs"].as_object().into_iter().flatten() {
        if let (Some(name), Some(value)) = (key.strip_prefix("build-arg:"), value.as_str()) {
            let (name, value) = (name.to_owned(), value.to_owned());
            settings.build_args.insert(name, value);
        }
    }
    let report = lint::check(text(case, "dockerfile"), &settings);
    let sorted = |mut warnings: Vec<(u64, String, String)>| {
        warnings.sort();
        json!(warnings)
    };
    let ours = report.warnings.iter().map(|warning| {
        let line = u64::from(warning.span.start);
        let rule = warning.rule.name().to_owned();
        (line, warning.detail.clone(), rule)
    });
    let theirs = case["warnings"].as_array().into_iter().flatten();
    let theirs = theirs.map(|warning| {
        let line = warning["line"].as_u64().unwrap_or_default();
        let (detail, rule) = (text(warning, "detail"), text(warning, "rule"));
        (line, detail.to_owned(), rule.to_owned())
    });
    Ok((sorted(ours.collect()), sorted(theirs.collect())))
}
