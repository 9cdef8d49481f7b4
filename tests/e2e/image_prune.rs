//! Which images `image prune` removes.

use crate::harness::Engine;

/// Builds an image of a file and these instructions.
fn image(engine: &Engine, name: &str, more: &str, arguments: &[&str]) {
    let dockerfile = format!("FROM scratch\nCOPY name /\n{more}\n");
    let context = engine.context(name, &[("Dockerfile", &dockerfile), ("name", name)]);
    let context = context.to_str().unwrap();
    let words = ["build", "-q", "-t", name];
    engine.ok(words.iter().chain(arguments).chain([&context]));
}

fn names(engine: &Engine) -> Vec<String> {
    let listed = engine.ok(["images", "--format", "{{.Repository}}"]);
    let mut names: Vec<String> = listed.lines().map(str::to_owned).collect();
    names.sort_unstable();
    names
}

#[test]
fn filters_and_containers_decide() {
    let engine = Engine::new();
    image(
        &engine,
        "old",
        "ENV A=1",
        &["--build-arg", "SOURCE_DATE_EPOCH=1000"],
    );
    image(&engine, "new", "ENV A=2", &[]);
    image(&engine, "kept", "LABEL keep=yes", &[]);
    image(&engine, "used", "CMD [\"/nothing\"]", &[]);
    image(&engine, "twice", "ENV A=3", &[]);
    image(&engine, "twice", "ENV A=4", &[]);
    let prune = |filters: &[&str]| {
        engine.ok(["image", "prune", "-f"].iter().chain(filters));
        names(&engine)
    };
    let all = ["<none>", "kept", "new", "old", "twice", "used"];
    assert_eq!(names(&engine), all);
    // Nothing is both dangling and old, nor dangling and labelled.
    assert_eq!(prune(&["--filter", "until=24h"]), all);
    assert_eq!(prune(&["--filter", "label=keep"]), all);
    assert_eq!(prune(&[]), all[1..]);
    // What does not say how old it is is not.
    let unmade = engine.context("unmade", &[("Dockerfile", "FROM scratch\nLABEL a=b\n")]);
    engine.ok(["build", "-q", "-t", "unmade", unmade.to_str().unwrap()]);
    let listed = engine.ok(["images", "unmade"]);
    assert!(listed.contains("N/A"), "{listed}");
    assert_eq!(
        engine.ok(["images", "-q", "--filter", "until=1s", "unmade"]),
        ""
    );
    let left = prune(&["-a", "--filter", "until=24h"]);
    assert_eq!(left, ["kept", "new", "twice", "unmade", "used"]);
    engine.ok(["rmi", "unmade"]);
    let left = ["kept", "new", "twice", "used"];
    assert_eq!(prune(&["-a", "--filter", "label=keep=no"]), left);
    engine.ok(["create", "--name", "user", "used"]);
    assert_eq!(prune(&["-a", "--filter", "label!=keep"]), ["kept", "used"]);
    assert_eq!(prune(&["-a", "--filter", "label=keep=yes"]), ["used"]);
    assert_eq!(prune(&["-a"]), ["used"]);
    let refused = engine.fails(1, ["image", "prune", "-f", "--filter", "colour=red"]);
    assert!(refused.contains("colour"), "{refused}");
    engine.ok(["rm", "user"]);
    assert_eq!(prune(&["-a"]), [""; 0]);
    engine.assert_clean();
}

/// What the configuration file keeps from being pruned is kept.
#[test]
fn filters_of_the_configuration_file_hold() {
    let engine = Engine::new();
    image(&engine, "kept", "LABEL keep=yes", &[]);
    image(&engine, "other", "ENV A=1", &[]);
    let config = engine.path("docker").join("config.json");
    std::fs::write(config, r#"{"pruneFilters":["label!=keep=yes"]}"#).unwrap();
    engine.ok(["volume", "create", "--label", "keep=yes", "kept"]);
    engine.ok(["volume", "prune", "-a", "-f"]);
    assert_eq!(engine.ok(["volume", "ls", "-q"]), "kept");
    engine.ok(["builder", "prune", "-a", "-f"]);
    let asked = engine.run_with_input(["system", "prune", "-a"], b"n\n");
    assert!(asked.stdout.contains("  - label!=keep=yes\n"), "{asked:?}");
    engine.ok(["image", "prune", "-a", "-f"]);
    assert_eq!(names(&engine), ["kept"]);
    // The command line knows better.
    engine.ok(["image", "prune", "-a", "-f", "--filter", "label=keep=yes"]);
    assert_eq!(names(&engine), [""; 0]);
    engine.ok(["volume", "rm", "kept"]);
    engine.assert_clean();
}
