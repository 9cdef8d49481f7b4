//! `linux.cgroupsPath` names a group below the hierarchies' roots, or is refused.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|given: &str| {
    // Without one, the container's id makes the path.
    if given.is_empty() {
        return;
    }
    if let Ok(path) = corten_runtime::fuzzing::cgroup_path(given) {
        let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
        assert!(path.split('/').all(plain), "{given:?} became {path:?}");
    }
});
