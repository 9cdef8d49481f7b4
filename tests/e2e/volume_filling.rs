//! A volume's first content is what the image has in its place, all of it or nothing.

use std::fs;
use std::path::Path;

use crate::harness::{Background, Engine, until};

/// How many files the image has in `/d`.
const FILES: usize = 1500;

fn with_files() -> Engine {
    let engine = Engine::with_alpine();
    let dockerfile = format!(
        "FROM alpine\nRUN mkdir /d && for i in $(seq {FILES}); do echo $i > /d/$i; done && \
         chown 7:8 /d && chmod 1750 /d && touch -d '2001-09-09 01:46:40' /d\n"
    );
    let built = engine.build("seed", &[("Dockerfile", &dockerfile)]);
    assert_eq!(built.code, 0, "{built:?}");
    engine
}

fn count(directory: &Path) -> usize {
    fs::read_dir(directory).map_or(0, |entries| entries.count())
}

#[test]
fn two_that_race_end_with_one_complete_copy() {
    let engine = with_files();
    let script = "ls /d | wc -l; stat -c '%u:%g %a %Y' /d";
    let start = |volume: &str| {
        let mount = format!("{volume}:/d");
        engine.spawn(["run", "--rm", "-v", &mount, "seed", "sh", "-c", script])
    };
    for volume in ["one", "two"] {
        let racing: Vec<Background> = (0..3).map(|_| start(volume)).collect();
        for run in racing {
            let done = run.finish();
            assert_eq!(done.code, 0, "{done:?}");
            assert_eq!(
                done.stdout,
                format!("{FILES}\n7:8 1750 1000000000\n"),
                "{done:?}"
            );
        }
        let directory = engine.root().join("volumes").join(volume);
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["_data", "in-use"]);
    }
    engine.assert_clean();
}

#[test]
fn what_a_killed_one_has_begun_is_completed_by_the_next() {
    let engine = with_files();
    let show = ["sh", "-c", "ls /d | wc -l"];
    // The next is the same container's start, or another container.
    for (volume, same) in [("one", true), ("two", false)] {
        let mount = format!("{volume}:/d");
        let args = ["create", "--name", volume, "-v", &mount, "seed"];
        let create = engine.spawn(args.iter().chain(&show));
        let directory = engine.root().join("volumes").join(volume);
        until("it is being filled", || {
            count(&directory.join("filling")) > 1
        });
        create.kill_9();
        let found = count(&directory.join("_data"));
        assert!(
            found < FILES,
            "the kill was too late to test anything: {found}"
        );
        let told = if same {
            engine.ok(["start", "-a", volume])
        } else {
            engine.ok([
                "run",
                "--rm",
                "-v",
                &mount,
                "seed",
                "sh",
                "-c",
                "ls /d | wc -l",
            ])
        };
        assert_eq!(told, FILES.to_string());
        // What its user empties stays empty, though.
        engine.ok([
            "run",
            "--rm",
            "-v",
            &mount,
            "alpine",
            "sh",
            "-c",
            "rm -r /d/*",
        ]);
        assert_eq!(engine.ok(["start", "-a", volume]), "0");
        engine.ok(["rm", volume]);
    }
    engine.assert_clean();
}

#[test]
fn memory_is_filled_too_and_nocopy_is_heeded() {
    let engine = Engine::with_alpine();
    let built = engine.build(
        "seed",
        &[(
            "Dockerfile",
            "FROM alpine\nRUN mkdir /d && echo seed > /d/f\n",
        )],
    );
    assert_eq!(built.code, 0, "{built:?}");
    let options = "volume-opt=type=tmpfs,volume-opt=device=tmpfs";
    let mount = format!("src=memory,dst=/d,{options}");
    engine.ok([
        "create",
        "--name",
        "keeper",
        "--mount",
        &format!("src=memory,dst=/k,{options}"),
        "alpine",
        "sleep",
        "1000",
    ]);
    engine.ok(["start", "keeper"]);
    let told = engine.ok(["run", "--rm", "--mount", &mount, "seed", "cat", "/d/f"]);
    assert_eq!(told, "seed");
    engine.ok(["rm", "-f", "keeper"]);
    for mount in [
        "src=bare,dst=/d,volume-nocopy",
        "src=bare,dst=/d,volume-nocopy=true",
    ] {
        let told = engine.ok(["run", "--rm", "--mount", mount, "seed", "ls", "/d"]);
        assert_eq!(told, "");
    }
    engine.ok(["run", "--rm", "-v", "bare:/d:nocopy", "seed", "ls", "/d"]);
    assert_eq!(
        engine.ok(["run", "--rm", "-v", "bare:/d", "seed", "ls", "/d"]),
        "f"
    );
    engine.assert_clean();
}
