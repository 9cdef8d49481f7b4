//! A `.dockerignore`; the last line is a path asked about. A directory below which something
//! is kept must never be skipped.
#![no_main]

use corten_dockerfile::IgnoreRules;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (rules, path) = text.rsplit_once('\n').unwrap_or((text, "a/b"));
    let Ok(rules) = IgnoreRules::parse(rules) else {
        return;
    };
    // What a walk of a directory can yield.
    if path.split('/').any(|name| matches!(name, "" | "." | "..")) {
        return;
    }
    if rules.ignores(path) {
        return;
    }
    let parents = path.match_indices('/').map(|(at, _)| &path[..at]);
    for parent in parents {
        assert!(
            !rules.ignores(parent) || rules.may_keep_below(parent),
            "{path:?} is kept, but a walk skips {parent:?}"
        );
    }
});
