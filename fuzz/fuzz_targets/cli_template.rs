//! `--format`: a template parses or not, and renders to text or to an error.
#![no_main]

use std::sync::LazyLock;

use corten_cli::template::{Data, Template};
use libfuzzer_sys::fuzz_target;

static DATA: LazyLock<Data> = LazyLock::new(|| {
    Data::from(serde_json::json!({
        "ID": "0123456789ab", "Names": ["a", "b"], "Size": 12, "Up": true, "Ratio": 0.5,
        "Labels": { "k": "v" }, "None": null, "State": { "Status": "running", "Pid": 1 },
    }))
});

fuzz_target!(|source: &str| {
    match Template::parse(source) {
        Ok(template) => {
            for result in [template.render(&DATA), template.render_header(&DATA)] {
                drop(result.map_err(|error| error.to_string()));
            }
        }
        Err(error) => drop(error.to_string()),
    }
});
