//! Caches that travel, stages that are not cached, parent cgroups of steps.

use std::fs;

use crate::harness::Engine;

const FILE: &str = "\
FROM alpine AS tool
RUN echo tool > /tool && date +%s%N > /when-tool
FROM alpine AS app
RUN date +%s%N > /when
COPY --from=tool /tool /
";

#[test]
fn a_cache_travels_to_another_engine() {
    let (here, there) = (Engine::with_alpine(), Engine::with_alpine());
    let cache = here.path("cache");
    let build = |engine: &Engine, flag: &str, value: String| {
        let context = engine.context("app", &[("Dockerfile", FILE)]);
        let context = context.to_str().unwrap();
        let done = engine.run(["build", "-t", "app", flag, &value, context]);
        assert_eq!(done.code, 0, "{done:?}");
        done.stderr
    };
    let place = cache.display();
    build(
        &here,
        "--cache-to",
        format!("type=local,dest={place},mode=max"),
    );
    assert!(cache.join("oci-layout").exists() && cache.join("index.json").exists());
    let told = build(&there, "--cache-from", format!("type=local,src={place}"));
    assert!(told.contains("importing cache manifest from"), "{told}");
    assert_eq!(told.matches("CACHED").count(), 5, "{told}");
    let id = |engine: &Engine| engine.ok(["images", "-q", "--no-trunc", "app"]);
    assert_eq!(id(&here), id(&there));
    assert_eq!(there.ok(["run", "--rm", "app", "cat", "/tool"]), "tool");
    // What was brought is known from now on.
    fs::remove_dir_all(&cache).unwrap();
    let told = build(&there, "--cache-from", format!("type=local,src={place}"));
    assert_eq!(told.matches("CACHED").count(), 5, "{told}");
    assert!(told.contains("failed to import cache from"), "{told}");
    let context = here.path("context-app");
    let refused = here.fails(
        1,
        [
            "build",
            "--cache-to",
            "type=inline",
            context.to_str().unwrap(),
        ],
    );
    assert!(
        refused.contains("caches of type inline are not supported"),
        "{refused}"
    );
    here.assert_clean();
    there.assert_clean();
}

#[test]
fn some_stages_are_not_cached() {
    let engine = Engine::with_alpine();
    let context = engine.context("app", &[("Dockerfile", FILE)]);
    let context = context.to_str().unwrap();
    engine.ok(["build", "-q", "-t", "app", context]);
    let done = engine.run(["build", "--no-cache-filter", "tool", context]);
    assert_eq!(done.code, 0, "{done:?}");
    let lines: Vec<&str> = done.stderr.lines().collect();
    let cached = |name: &str| {
        let at = lines.iter().position(|line| line.contains(name)).unwrap();
        let number = lines[at].split(' ').next().unwrap();
        lines.contains(&format!("{number} CACHED").as_str())
    };
    assert!(!cached("[tool 2/2] RUN"), "{done:?}");
    assert!(cached("[app 2/3] RUN"), "{done:?}");
}

#[test]
fn a_parent_for_the_groups_of_steps() {
    let engine = Engine::with_alpine();
    let file = "FROM alpine\nRUN cat /proc/1/cgroup > /group\n";
    let context = engine.context("app", &[("Dockerfile", file)]);
    let context = context.to_str().unwrap();
    for bad in ["../x", "a/../b", "/"] {
        let refused = engine.fails(1, ["build", "--cgroup-parent", bad, context]);
        assert!(refused.contains("invalid cgroup parent"), "{refused}");
    }
}
