//! A command line looks steps up on its one thread, a service on several: both must come to the same
//! keys, or one of them takes what the other did not make.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use corten_build::BuildRequest;

use super::{Fixture, Told};

struct Way {
    dockerfile: &'static str,
    /// Whether one thread finds it without others.
    at_hand: bool,
    /// A file that it takes.
    takes: Option<&'static str>,
    /// One that it does not.
    leaves: Option<&'static str>,
}

const fn way(dockerfile: &'static str, at_hand: bool) -> Way {
    Way {
        dockerfile,
        at_hand,
        takes: None,
        leaves: None,
    }
}

impl Way {
    const fn takes(mut self, path: &'static str) -> Self {
        self.takes = Some(path);
        self
    }

    const fn leaves(mut self, path: &'static str) -> Self {
        self.leaves = Some(path);
        self
    }
}

const WAYS: &[Way] = &[
    way(
        "FROM base AS last\nWORKDIR /a/b\nRUN echo here > there\n",
        true,
    )
    .leaves("d/x.txt"),
    way("FROM base AS last\nCOPY d/x.txt d/y.md /named/\n", true)
        .takes("d/y.md")
        .leaves("d/e/z.txt"),
    // 512 with the directory itself, and one more.
    way("FROM base AS last\nCOPY --chmod=640 few /few/\n", true)
        .takes("few/007")
        .leaves("full/007"),
    way("FROM base AS last\nCOPY --chmod=640 full /full/\n", false)
        .takes("full/007")
        .leaves("few/007"),
    // What .dockerignore leaves out.
    way("FROM base AS last\nCOPY --chown=1:2 d /d/\n", true)
        .takes("d/e/z.txt")
        .leaves("d/left"),
    way("FROM base AS last\nCOPY --exclude=*.md d /d/\n", true)
        .takes("d/x.txt")
        .leaves("d/y.md"),
    way("FROM base AS last\nCOPY d/*.txt /d/\n", true)
        .takes("d/x.txt")
        .leaves("d/y.md"),
    way("FROM base AS last\nCOPY --parents d/e/z.txt /p/\n", true)
        .takes("d/e/z.txt")
        .leaves("d/x.txt"),
    // Everything is looked at.
    way("FROM base AS last\nCOPY --parents **/z.txt /p/\n", false)
        .takes("d/e/z.txt")
        .leaves("d/x.txt"),
    way(
        "FROM base AS last\nCOPY <<one d/x.txt /h/\nhere\none\n",
        true,
    )
    .takes("d/x.txt")
    .leaves("d/y.md"),
    way(
        "FROM base AS one\nCOPY d /d/\nFROM base AS last\nCOPY --from=one /d/e /e/\n",
        true,
    )
    .takes("d/e/z.txt")
    .leaves("d/left"),
    way(
        "FROM base AS last\nRUN --mount=source=d,target=/m cat /m/x.txt > /x\n",
        false,
    )
    .takes("d/x.txt")
    .leaves("d/left"),
];

pub(super) fn two_ways_to_a_key(f: &Fixture) {
    f.file(".dockerignore", "d/left\n");
    for file in ["d/x.txt", "d/y.md", "d/e/z.txt", "d/left"] {
        f.file(file, file);
    }
    for n in 0..512 {
        f.file(&format!("full/{n:03}"), "");
        if n > 0 {
            f.file(&format!("few/{n:03}"), "");
        }
    }
    for (number, way) in WAYS.iter().enumerate() {
        let shown = way.dockerfile;
        let request = || f.request(shown);
        let first = id(&f.run(request()));
        // What has just been written is read each time.
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let (told, alone) = on_one(f, request());
            assert_eq!(id(&told), first, "{shown}");
            assert_eq!(told.carried_out(), [""; 0], "{shown}");
            if alone == way.at_hand {
                break;
            }
            assert!(way.at_hand && Instant::now() < deadline, "{shown}");
            assert_eq!(id(&f.run(request())), first, "{shown}");
        }
        if let Some(path) = way.leaves {
            f.file(path, format!("left {number}"));
            let (told, _) = on_one(f, request());
            assert_eq!(told.carried_out(), [""; 0], "{shown}");
            assert_eq!(id(&told), first, "{shown}");
        }
        if let Some(path) = way.takes {
            f.file(path, format!("changed {number}"));
            let (told, _) = on_one(f, request());
            assert_ne!(told.carried_out(), [""; 0], "{shown}");
            let second = id(&told);
            assert_ne!(second, first, "{shown}");
            let told = f.run(request());
            assert_eq!(told.carried_out(), [""; 0], "{shown}");
            assert_eq!(id(&told), second, "{shown}");
        }
        // A stage that is to be made anew is, however it would be found.
        let mut request = request();
        request.no_cache_stages = vec!["last".to_owned()];
        assert_ne!(on_one(f, request).0.carried_out(), [""; 0], "{shown}");
    }
}

fn id(told: &Told) -> String {
    match &told.result {
        Ok(id) => id.to_string(),
        Err(error) => panic!("{}", error.report()),
    }
}

/// As a command line builds, and whether that took no other thread.
fn on_one(f: &Fixture, request: BuildRequest) -> (Told, bool) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let before = threads();
    let told = f.run_on(&runtime, request);
    let alone = threads().is_subset(&before);
    corten_build::end_threads(runtime, Duration::from_secs(60));
    (told, alone)
}

fn threads() -> BTreeSet<std::ffi::OsString> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks.flatten().map(|task| task.file_name()).collect()
}
