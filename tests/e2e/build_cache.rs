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
    here.assert_clean();
    there.assert_clean();
}

/// Builds `FILE`, which must come out.
fn build(engine: &Engine, flags: &[&str]) -> String {
    let context = engine.context("app", &[("Dockerfile", FILE)]);
    let mut args = vec!["build", "-t", "app"];
    args.extend(flags);
    args.push(context.to_str().unwrap());
    let done = engine.run(args);
    assert_eq!(done.code, 0, "{done:?}");
    done.stderr
}

fn id(engine: &Engine) -> String {
    engine.ok(["inspect", "-f", "{{.Id}}", "app"])
}

#[test]
fn a_cache_travels_through_a_registry() {
    let (here, there) = (Engine::with_alpine(), Engine::with_alpine());
    let (registry, address) = here.registry("caches", &[]);
    let name = format!("{address}/cache:app");
    let to = format!("type=registry,ref={name},mode=max");
    let from = format!("type=registry,ref={name}");

    // There is none yet.
    let told = build(&here, &["--cache-from", &from, "--cache-to", &to]);
    assert!(told.contains("failed to import cache from"), "{told}");
    assert!(told.contains("exporting cache to registry"), "{told}");
    let told = build(&there, &["--cache-from", &name]);
    assert!(!told.contains("failed to import"), "{told}");
    assert_eq!(told.matches("CACHED").count(), 5, "{told}");
    assert_eq!(id(&here), id(&there));
    assert_eq!(there.ok(["run", "--rm", "app", "cat", "/tool"]), "tool");

    // Without the other stage, which is built again and comes out differently.
    let min = format!("{address}/cache:min");
    build(&here, &["--cache-to", &min]);
    let (_, other) = (there, Engine::with_alpine());
    let told = build(&other, &["--cache-from", &min]);
    assert_eq!(told.matches("CACHED").count(), 4, "{told}");
    assert_eq!(id(&here), id(&other));

    // No registry.
    drop(registry);
    let context = here.path("context-app");
    let context = context.to_str().unwrap();
    let failed = here.fails(1, ["build", "--cache-to", &to, context]);
    assert!(failed.contains("failed to export cache to"), "{failed}");
    let ignored = build(&here, &["--cache-to", &format!("{to},ignore-error=true")]);
    assert!(ignored.contains("failed to export cache to"), "{ignored}");
    here.assert_clean();
    other.assert_clean();
}

#[test]
fn an_image_carries_its_cache() {
    let (here, there) = (Engine::with_alpine(), Engine::with_alpine());
    let (_registry, address) = here.registry("images", &[]);
    let name = format!("{address}/app:1");
    let inline = ["--cache-to", "type=inline"];
    let context = here.context("app", &[("Dockerfile", FILE)]);
    let context = context.to_str().unwrap();
    let push = ["build", "-q", "-t", &name, "--push", context];
    here.ok(push.iter().chain(&inline));
    here.ok(["tag", &name, "app"]);
    let first = id(&here);
    // What is known makes the same image, by whichever key it was found.
    build(&here, &inline);
    assert_eq!(id(&here), first);
    build(&here, &[]);
    assert_ne!(id(&here), first, "without the records");

    let told = build(&there, &[&inline[..], &["--cache-from", &name]].concat());
    assert!(!told.contains("failed to import"), "{told}");
    // All but the tool, which is no part of the image.
    assert_eq!(told.matches("CACHED").count(), 4, "{told}");
    assert_eq!(id(&there), first);

    // An image that carries none; and one that was made from one that does.
    let plain = format!("{address}/plain:1");
    here.ok(["build", "-q", "-t", &plain, "--push", context]);
    let told = build(&there, &["--cache-from", &plain]);
    assert!(told.contains("no build cache of ours"), "{told}");
    let context = there.context(
        "child",
        &[("Dockerfile", &format!("FROM {name}\nLABEL a=b\n"))],
    );
    there.ok(["build", "-q", "-t", "child", context.to_str().unwrap()]);
    let saved = there.path("child.tar");
    let saved = saved.to_str().unwrap();
    there.ok(["save", "-o", saved, "child"]);
    let archive = fs::read(saved).unwrap();
    let key = b"corten.buildcache.v1";
    assert!(!archive.windows(key.len()).any(|bytes| bytes == key));
    there.ok(["save", "-o", saved, &name]);
    let archive = fs::read(saved).unwrap();
    assert!(archive.windows(key.len()).any(|bytes| bytes == key));
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

#[test]
fn prunes_take_filters() {
    let engine = Engine::with_alpine();
    let context = engine.context(
        "app",
        &[("Dockerfile", "FROM alpine\nRUN echo kept > /kept\n")],
    );
    engine.ok(["build", "-q", context.to_str().unwrap()]);
    engine.ok(["create", "--name", "idle", "alpine", "true"]);
    let records = || engine.ok(["builder", "du"]).matches("true").count();
    let before = records();
    assert!(before > 0);
    // What is refused is refused before anything is gone.
    for wrong in ["dangling=true", "until=never"] {
        engine.fails(1, ["system", "prune", "-af", "--filter", wrong]);
    }
    assert!(engine.ok(["ps", "-a"]).contains("idle"));
    // Nothing here is a day old.
    let told = engine.ok(["system", "prune", "-af", "--filter", "until=24h"]);
    assert!(!told.contains("Deleted"), "{told}");
    engine.ok(["builder", "prune", "-af", "--filter", "until=24h"]);
    engine.ok([
        "builder",
        "prune",
        "-af",
        "--filter",
        "type=exec.cachemount",
    ]);
    assert!(engine.ok(["ps", "-a"]).contains("idle"));
    assert_eq!(records(), before);
    let told = engine.ok(["builder", "prune", "-af", "--filter", "type=regular"]);
    assert!(told.contains("Deleted build cache objects"), "{told}");
    assert_eq!(records(), 0);
    engine.ok(["rm", "idle"]);
    engine.assert_clean();
}
