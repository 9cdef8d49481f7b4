//! `cargo run --release -p corten-oci --example corpora -- reference FILE.jsonl`
//!
//! Compares this crate's answers with recorded ones, prints each disagreement, and ends
//! with `N agree, M differ`; exit status 0 only when M is 0. The line before it tells how many
//! of those M are known (docs/registries.md, "Names").

use std::io::{BufRead, BufReader};
use std::process::ExitCode;

use corten_oci::ImageRef;
use serde_json::Value;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [kind, file] = args.as_slice() else {
        eprintln!("usage: corpora reference FILE.jsonl");
        return ExitCode::from(2);
    };
    if kind != "reference" {
        eprintln!("unknown corpus \"{kind}\": only \"reference\" is judged here");
        return ExitCode::from(2);
    }
    let reader = match std::fs::File::open(file) {
        Ok(opened) => BufReader::new(opened),
        Err(error) => {
            eprintln!("{file}: {error}");
            return ExitCode::from(2);
        }
    };
    let (mut agree, mut differ, mut known) = (0_u32, 0_u32, 0_u32);
    for (number, line) in reader.lines().enumerate() {
        let parsed = line
            .map_err(|e| e.to_string())
            .and_then(|line| serde_json::from_str::<Value>(&line).map_err(|e| e.to_string()));
        let case = match parsed {
            Ok(case) => case,
            Err(error) => {
                eprintln!("{file}:{}: {error}", number + 1);
                return ExitCode::from(2);
            }
        };
        let input = case["input"].as_str().unwrap_or_default();
        match judge(input, &case) {
            Ok(()) => agree += 1,
            Err(why) => {
                differ += 1;
                known += u32::from(is_known(input, &case));
                println!("{}: {input:?}: {why}", number + 1);
            }
        }
    }
    if known > 0 {
        println!(
            "{known} of these are names with a digest, all of which the recorded program refuses"
        );
    }
    println!("{agree} agree, {differ} differ");
    if differ == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Whether all that is wrong for the recorded program is a digest: it was linked without any
/// hash function.
fn is_known(input: &str, case: &Value) -> bool {
    let has_digest = |name: ImageRef| name.digest().is_some();
    case["error"] == "unsupported digest algorithm" && input.parse().is_ok_and(has_digest)
}

fn judge(input: &str, case: &Value) -> Result<(), String> {
    match (
        input.parse::<ImageRef>(),
        case.get("error").and_then(Value::as_str),
    ) {
        (Err(_), Some(_)) => Ok(()),
        (Err(ours), None) => Err(format!("ours is an error ({ours}), theirs is not")),
        (Ok(ours), Some(theirs)) => Err(format!("ours is {ours}, theirs is an error ({theirs})")),
        (Ok(ours), None) => {
            for (field, answer) in [
                ("string", ours.to_string()),
                ("familiar", ours.familiar()),
                ("domain", ours.domain().to_owned()),
                ("path", ours.path().to_owned()),
                ("tagged_latest", ours.clone().or_latest().to_string()),
            ] {
                let theirs = case.get(field).and_then(Value::as_str).unwrap_or_default();
                if answer != theirs {
                    return Err(format!("{field}: ours is {answer}, theirs is {theirs}"));
                }
            }
            Ok(())
        }
    }
}
