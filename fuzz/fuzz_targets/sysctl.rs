//! A sysctl (its name in the first line) of a container with all namespaces of its own is
//! written to a file of one of them, or refused.
#![no_main]

use corten_oci::runtime_spec::Spec;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (name, value) = text.split_once('\n').unwrap_or((text, ""));
    let document = serde_json::json!({
        "ociVersion": "1.2.0",
        "linux": {
            "namespaces": [{"type": "network"}, {"type": "ipc"}, {"type": "uts"},
                           {"type": "mount"}],
            "sysctl": {name: value},
        },
    });
    let spec: Spec = serde_json::from_value(document).expect("a specification");
    for file in corten_runtime::fuzzing::sysctls(&spec).unwrap_or_default() {
        let plain = file.split('/').all(|part| !matches!(part, "" | "." | ".."));
        let namespaced = [
            "sys/net/",
            "sys/fs/mqueue/",
            "sys/kernel/msg",
            "sys/kernel/sem",
            "sys/kernel/shm",
            "sys/kernel/domainname",
            "sys/kernel/hostname",
        ];
        assert!(
            plain && namespaced.iter().any(|prefix| file.starts_with(prefix)),
            "{name:?} became {file:?}"
        );
    }
});
