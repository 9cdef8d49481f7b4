//! What the build graph promises: steps that can run at once do, a step that several builds need
//! runs once, only files that are used are read, nothing that was finished is done again after a
//! `kill -9`, and the cache keeps to its bounds.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::inotify;

use crate::harness::{Engine, binary, until};

/// A file that steps left in a cache mount.
fn in_caches(engine: &Engine, name: &str) -> Option<PathBuf> {
    let mounts = fs::read_dir(engine.root().join("cache-mounts")).ok()?;
    mounts
        .flatten()
        .map(|mount| mount.path().join("data").join(name))
        .find(|file| file.exists())
}

fn log(engine: &Engine) -> String {
    in_caches(engine, "log").map_or(String::new(), |path| fs::read_to_string(path).unwrap())
}

#[test]
fn independent_stages_run_at_once() {
    let engine = Engine::with_alpine();
    // Each waits for the other, which has to be there at the same time.
    let meet = |own: &str, other: &str| {
        format!(
            "FROM alpine AS {own}\nRUN --mount=type=cache,target=/c touch /c/{own}; \
             for i in $(seq 200); do test -e /c/{other} && exec touch /{own}; sleep 0.1; done; exit 9\n"
        )
    };
    let dockerfile = format!(
        "{}{}FROM alpine\nCOPY --from=a /a /\nCOPY --from=b /b /\n",
        meet("a", "b"),
        meet("b", "a")
    );
    let done = engine.build("both", &[("Dockerfile", &dockerfile)]);
    assert_eq!(done.code, 0, "{done:?}");
    engine.assert_clean();
}

#[test]
fn a_step_that_two_builds_need_runs_once() {
    let engine = Engine::with_alpine();
    let dockerfile = "FROM alpine\nRUN --mount=type=cache,target=/c echo ran >> /c/log; \
                      until test -e /c/go; do sleep 0.05; done; echo made > /made\n";
    let context = engine.context("once", &[("Dockerfile", dockerfile)]);
    let args = ["build", "--progress=plain", "-t"];
    let first = [&args[..], &["first", context.to_str().unwrap()]].concat();
    let first = engine.spawn(first);
    until("the step runs", || log(&engine) == "ran\n");
    // In another process, which gets as far as that step.
    let mut second = engine
        .command([&args[..], &["second", context.to_str().unwrap()]].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(second.stderr.take().unwrap()).lines();
    let waits = lines
        .by_ref()
        .any(|line| line.unwrap().contains("waiting for another build"));
    assert!(waits, "the second build did not wait for the first");
    File::create(in_caches(&engine, "log").unwrap().with_file_name("go")).unwrap();
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert!(second.wait().unwrap().success(), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("CACHED")), "{rest:?}");
    let done = first.finish();
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(log(&engine), "ran\n");
    assert_eq!(engine.ok(["run", "--rm", "second", "cat", "/made"]), "made");
    engine.assert_clean();
}

/// The names of files that were opened in a directory since it was watched.
fn opened(watch: &impl std::os::fd::AsFd) -> BTreeSet<String> {
    let mut buffer = [std::mem::MaybeUninit::uninit(); 1 << 14];
    let mut events = inotify::Reader::new(watch, &mut buffer);
    let mut names = BTreeSet::new();
    loop {
        match events.next() {
            Ok(event) => {
                let name = event
                    .file_name()
                    .map(|name| name.to_string_lossy().into_owned());
                names.extend(name);
            }
            Err(rustix::io::Errno::AGAIN) => return names,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn only_files_that_are_used_and_changed_are_read() {
    let engine = Engine::new();
    let context = engine.context(
        "few",
        &[
            ("Dockerfile", "FROM scratch\nCOPY src/used src/also /\n"),
            ("src/used", "used"),
            ("src/also", "also"),
            ("src/other", "other"),
        ],
    );
    // Whoever reads this has a disk of its size, and much time.
    let huge = File::create(context.join("src/huge")).unwrap();
    huge.set_len(1 << 40).unwrap();
    // The status of a file that was changed a moment ago proves nothing.
    std::thread::sleep(Duration::from_millis(60));
    let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
    let watch = inotify::init(flags).unwrap();
    inotify::add_watch(&watch, context.join("src"), inotify::WatchFlags::OPEN).unwrap();
    let context_path = context.to_str().unwrap();
    let args = ["build", "-q", "-t", "few", context_path];
    let id = engine.ok(args);
    let expected = ["also", "used"].map(str::to_owned);
    assert_eq!(opened(&watch), BTreeSet::from(expected));
    assert_eq!(engine.ok(args), id);
    assert_eq!(opened(&watch), BTreeSet::new(), "nothing has changed");
    fs::write(context.join("src/used"), "more").unwrap();
    opened(&watch);
    let changed = engine.ok(args);
    assert_ne!(changed, id);
    assert_eq!(
        opened(&watch),
        BTreeSet::from(["used".to_owned(), "also".to_owned()])
    );
    engine.assert_clean();
}

#[test]
fn a_context_is_copied_once_for_all_that_mount_it() {
    let engine = Engine::with_alpine();
    let dockerfile = "FROM alpine AS a\nRUN --mount=target=/src cp /src/d/f /a\n\
                      FROM alpine\nRUN --mount=target=/src cat /src/d/f > /b\n\
                      RUN --mount=target=/src,rw echo lost > /src/d/f && cat /src/d/f > /c\n\
                      RUN --mount=target=/src cat /src/d/f > /d\n\
                      COPY --from=a /a /\n";
    let files = |f| {
        [
            ("Dockerfile", dockerfile),
            ("d/f", f),
            ("ignored", f),
            (".dockerignore", "ignored\n"),
        ]
    };
    let copies = || {
        let usage = engine.ok(["builder", "du", "--verbose"]);
        usage.matches("context of mounts").count()
    };
    for (content, expected) in [("1", 1), ("1", 1), ("2", 2)] {
        let done = engine.build("mounts", &files(content));
        assert_eq!(done.code, 0, "{done:?}");
        let seen = engine.ok(["run", "--rm", "mounts", "cat", "/a", "/b", "/c", "/d"]);
        assert_eq!(seen, format!("{content}{content}lost\n{content}"));
        assert_eq!(copies(), expected);
    }
    // Steps that are known need no copy; those that are not make it anew.
    engine.ok(["builder", "prune", "-af"]);
    let done = engine.build("mounts", &files("1"));
    assert_eq!((done.code, copies()), (0, 1), "{done:?}");
    engine.assert_clean();
}

#[test]
fn nothing_finished_is_done_again_after_a_kill() {
    const STEPS: usize = 6;
    let engine = Engine::with_alpine();
    let mut dockerfile = "FROM alpine\nCOPY f /f\n".to_owned();
    for step in 1..=STEPS {
        dockerfile += &format!(
            "RUN --mount=type=cache,target=/c echo {step} >> /c/log; sleep 0.05; echo {step} > /{step}\n"
        );
    }
    let context = engine.context("killed", &[("Dockerfile", &dockerfile), ("f", "f")]);
    let args = [
        "build",
        "--progress=plain",
        "-t",
        "killed",
        context.to_str().unwrap(),
    ];
    let mut finished = BTreeSet::new();
    for kill in 0..20_u64 {
        let before = log(&engine);
        let building = engine.spawn(args);
        // Somewhere, spread over more than the time that is left.
        std::thread::sleep(Duration::from_millis(rand_below(50 + 40 * kill)));
        let done = building.killed();
        let log = log(&engine);
        for step in log[before.len()..].lines() {
            let known = finished.contains(step);
            assert!(
                !known,
                "step {step} was finished before kill {kill}: {done:?}"
            );
        }
        // `#5 [3/8] RUN …` and then `#5 DONE 0.1s`; the step's number is what it wrote.
        for line in done
            .stderr
            .lines()
            .filter(|line| line.contains("RUN --mount"))
        {
            let (vertex, rest) = line.split_once(' ').unwrap();
            let number: usize = rest[1..].split('/').next().unwrap().parse().unwrap();
            let ended = |word: &str| done.stderr.contains(&format!("\n{vertex} {word}"));
            if ended("DONE") || ended("CACHED") {
                finished.insert((number - 2).to_string());
            }
        }
        let check = engine.run(["system", "check", "--repair"]);
        assert_eq!(check.code, 0, "{check:?}");
    }
    engine.ok(args);
    let seen = engine.ok(["run", "--rm", "killed", "sh", "-c", "cat /?"]);
    assert_eq!(seen, "1\n2\n3\n4\n5\n6\nf");
    engine.assert_clean();
}

/// A number that nobody has chosen.
fn rand_below(bound: u64) -> u64 {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).unwrap();
    u64::from_le_bytes(bytes) % bound
}

#[test]
fn the_cache_keeps_to_its_bounds() {
    let engine = Engine::with_alpine();
    let dockerfile = |n: u32| {
        format!("FROM alpine\nRUN dd if=/dev/zero of=/f bs=1k count={n} && echo {n} >> /f\n")
    };
    let build = |n: u32, most: Option<&str>| {
        let context = engine.context("bound", &[("Dockerfile", &dockerfile(n))]);
        let mut command = engine.command(["build", "-q", context.to_str().unwrap()]);
        command.envs(most.map(|most| ("CORTEN_BUILD_CACHE_MAX", most)));
        assert!(command.output().unwrap().status.success());
        let id = engine.ok(["images", "-q", "--filter", "dangling=true"]);
        engine.ok(["rmi", &id]);
    };
    let steps = || {
        let usage = engine.ok(["builder", "du", "--verbose"]);
        let number = |n: u32| usage.contains(&format!("count={n} "));
        (500..=503).filter(|&n| number(n)).collect::<Vec<_>>()
    };
    for n in 500..=502 {
        build(n, None);
    }
    assert_eq!(steps(), [500, 501, 502]);
    // By hand: what is reserved stays, the least recently used goes.
    engine.ok(["builder", "prune", "-f", "--keep-storage", "10MB"]);
    engine.ok([
        "builder",
        "prune",
        "-f",
        "--reserved-space",
        "10MB",
        "--max-used-space",
        "1kb",
    ]);
    assert_eq!(steps(), [500, 501, 502]);
    engine.ok(["builder", "prune", "-f", "--max-used-space", "1200kb"]);
    assert_eq!(steps(), [501, 502]);
    let refused = engine.fails(125, ["builder", "prune", "-f", "--max-used-space", "much"]);
    assert!(refused.contains("much"), "{refused}");
    // By itself, after a build; what the image has that was just made counts for nothing.
    build(503, Some("600k"));
    assert_eq!(steps(), [502, 503]);
    engine.assert_clean();
}

/// Another user of this machine.
fn nobody(engine: &Engine, host: &str, context: &Path) -> (bool, String) {
    let output = Command::new(binary())
        .args(["-H", host, "build", "-q", context.to_str().unwrap()])
        .env("DOCKER_CONFIG", engine.path("docker"))
        .env("HOME", "/")
        .uid(65534)
        .gid(65534)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), errors)
}

#[test]
fn a_client_sends_what_it_may_read() {
    let engine = Engine::new();
    let files = [
        ("Dockerfile", "FROM scratch\nCOPY a /\n"),
        ("a", "a"),
        ("secret", "s"),
    ];
    let context = engine.context("mine", &files);
    let open = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    open(&engine.path(""), 0o755);
    open(&context.join("secret"), 0o600);
    let (_server, host) = engine.serve();
    // Who answers has given its socket the mode that it is to have.
    engine.ok(["-H", &host, "version"]);
    open(&engine.path("api.sock"), 0o666);
    let reached = Command::new(binary()).arg("--version").uid(65534).output();
    if !reached.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: the program is out of other users' reach");
        return;
    }
    let (ok, errors) = nobody(&engine, &host, &context);
    assert!(
        !ok && errors.contains("secret") && errors.contains("ermission denied"),
        "{errors}"
    );
    // What is ignored is not looked at; a link is sent as a link, wherever it leads.
    fs::write(context.join(".dockerignore"), "secret\n").unwrap();
    symlink(engine.path("root"), context.join("link")).unwrap();
    let (ok, errors) = nobody(&engine, &host, &context);
    assert!(ok, "{errors}");
    engine.assert_clean();
}
