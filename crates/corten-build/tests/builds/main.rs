//! Whole builds in a throw-away store, with a static busybox as the base image. Needs root
//! and `busybox`; says so and passes where either is missing.
//!
//! This program has no harness: called with `build-step` it is that face of `corten`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    clippy::print_stdout
)]

mod composed;
mod copies;
mod nowhere;
mod ways;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use corten_build::progress::{LogStream, StepResult};
use corten_build::{
    BoxError, BuildError, BuildEvent, BuildRequest, Builder, CachedBlob, Context, DockerfileSource,
    ImageSource, PullFuture, PullSink, RegistryDocument, Sandboxing, StepEndpoint, StepNetwork,
    StepNetworkMode,
};
use corten_db::Database;
use corten_oci::{DiffId, Digest, ImageRef, Platform};
use corten_store::{Image, LayerBlob, LayerForm, Store};
use nowhere::{BRIDGE, Nowhere, Pruned, TABLE};

type Test = (&'static str, fn(&Fixture));

const TESTS: &[Test] = &[
    ("multi_stage", multi_stage),
    ("pruned_bases", pruned_bases),
    ("cached_builds_are_equal", cached_builds_are_equal),
    ("only_what_changed_runs", only_what_changed_runs),
    ("failures_are_told", failures_are_told),
    ("steps_see_what_they_should", steps_see_what_they_should),
    ("copies", copies::copies),
    ("copies_at_once", composed::copies_at_once),
    ("archives", copies::archives),
    ("two_ways_to_a_key", ways::two_ways_to_a_key),
    ("cancelling_ends_everything", cancelling_ends_everything),
    ("pruning", pruning),
    ("steps_on_a_bridge", steps_on_a_bridge),
    (
        "a_killed_builder_leaves_nothing_running",
        a_killed_builder_leaves_nothing_running,
    ),
    ("how_long_steps_take", how_long_steps_take),
];

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    if args.get(1).is_some_and(|word| word == "build-step") {
        return corten_build::step::main(&args[2..]);
    }
    let Some(busybox) = find_busybox() else {
        eprintln!("skipped: needs root and a static busybox");
        return ExitCode::SUCCESS;
    };
    if args.get(1).is_some_and(|word| word == "hang") {
        return hang(Path::new(&args[2]), args[3].to_str().unwrap());
    }
    let wanted = args.get(1).and_then(|word| word.to_str()).unwrap_or("");
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in TESTS {
        if name.contains(wanted) || wanted.starts_with('-') {
            let ok = std::panic::catch_unwind(|| test(&Fixture::new(&busybox))).is_ok();
            println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
            *(if ok { &mut passed } else { &mut failed }) += 1;
        }
    }
    // Cargo's own words: scripts count by them.
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {verdict}. {passed} passed; {failed} failed; 0 ignored");
    ExitCode::from(u8::from(failed > 0))
}

fn find_busybox() -> Option<PathBuf> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let dirs = ["/bin", "/usr/bin", "/usr/local/bin"];
    dirs.iter()
        .map(|dir| Path::new(dir).join("busybox"))
        .find(|path| path.exists())
}

struct Fixture {
    dir: tempfile::TempDir,
    store: Store,
    builder: Builder,
    cgroups: String,
    runtime: tokio::runtime::Runtime,
}

fn open(dir: &Path, cgroups: &str, form: LayerForm) -> (Store, Builder) {
    open_with(dir, cgroups, form, |_| Arc::new(Nowhere))
}

/// With images from elsewhere.
fn open_with(
    dir: &Path,
    cgroups: &str,
    form: LayerForm,
    images: impl FnOnce(&Store) -> Arc<dyn ImageSource>,
) -> (Store, Builder) {
    let root = dir.join("root");
    let schemas = [corten_store::SCHEMA, corten_build::SCHEMA];
    let database = Database::open(&root.join("db"), &schemas).unwrap();
    let store = Store::open_with(&root, database.clone(), form);
    let builder = Builder::new(
        store.clone(),
        database,
        images(&store),
        Sandboxing {
            cgroup_parent: cgroups.to_owned(),
            exe: std::env::current_exe().unwrap(),
            exe_args: vec!["build-step".to_owned()],
            network: Arc::new(Nowhere),
            parallelism: 0,
            cache_mounts: root.join("cache-mounts"),
            cdi: Vec::new(),
            history: root.join("builds"),
        },
    );
    (store, builder)
}

/// A builder of its own process, to be killed.
fn hang(dir: &Path, cgroups: &str) -> ExitCode {
    let (_, builder) = open(dir, cgroups, LayerForm::default());
    let request = BuildRequest {
        dockerfile: DockerfileSource::Inline("FROM base\nRUN echo begun; sleep 60\n".to_owned()),
        network: StepNetworkMode::None,
        ..BuildRequest::default()
    };
    let sink = |event| {
        if matches!(event, BuildEvent::Log { .. }) {
            println!("begun");
        }
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime
        .block_on(builder.build(request, Arc::new(sink)))
        .ok();
    ExitCode::FAILURE
}

/// What a build told.
struct Told {
    result: Result<Digest, BuildError>,
    events: Vec<BuildEvent>,
}

impl Fixture {
    fn new(busybox: &Path) -> Self {
        Self::with_form(busybox, LayerForm::default())
    }

    fn with_form(busybox: &Path, form: LayerForm) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cgroups = format!("corten-test-{:08x}", rand::random::<u32>());
        let (store, builder) = open(dir.path(), &cgroups, form);
        base_image(&store, busybox);
        std::fs::create_dir(dir.path().join("context")).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        Self {
            dir,
            store,
            builder,
            cgroups,
            runtime,
        }
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.dir.path().join("context").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    fn request(&self, dockerfile: &str) -> BuildRequest {
        BuildRequest {
            context: Context::Dir(self.dir.path().join("context")),
            dockerfile: DockerfileSource::Inline(dockerfile.to_owned()),
            network: StepNetworkMode::None,
            ..BuildRequest::default()
        }
    }

    fn run(&self, request: BuildRequest) -> Told {
        self.run_on(&self.runtime, request)
    }

    fn run_on(&self, runtime: &tokio::runtime::Runtime, request: BuildRequest) -> Told {
        let events = Arc::new(Mutex::new(Vec::new()));
        let sink = events.clone();
        let build = self
            .builder
            .build(request, Arc::new(move |e| sink.lock().unwrap().push(e)));
        let result = runtime.block_on(build);
        self.nothing_is_left();
        let events = std::mem::take(&mut *events.lock().unwrap());
        Told { result, events }
    }

    fn build(&self, dockerfile: &str) -> Told {
        self.run(self.request(dockerfile))
    }

    fn image(&self, told: &Told) -> Image {
        match &told.result {
            Ok(id) => self.store.images().get(id).unwrap(),
            Err(error) => panic!("{error}\n{}", error.report()),
        }
    }

    /// A whole file system, as `path mode uid:gid content`.
    fn content(&self, image: &Image, below: &str) -> Vec<String> {
        use corten_store::Upper;
        use corten_store::rooted::RootFd;
        let mount = self
            .store
            .layers()
            .mount(&image.layers, Upper::ReadOnly)
            .unwrap();
        let root = RootFd::from(mount);
        let mut found = Vec::new();
        walk(&root, Path::new(below), &mut found);
        found
    }

    /// No control group and no temporary directory outlives a build.
    fn nothing_is_left(&self) {
        let groups = corten_runtime::cgroup::children(&self.cgroups).unwrap();
        assert!(groups.is_empty(), "{groups:?}");
        let tmp = self.dir.path().join("root/tmp");
        let left: Vec<_> = std::fs::read_dir(tmp).unwrap().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Ok(group) = corten_runtime::Cgroup::open(&self.cgroups) {
            group.remove().ok();
        }
    }
}

fn walk(root: &corten_store::rooted::RootFd, dir: &Path, found: &mut Vec<String>) {
    use rustix::fs::{FileType, Mode, OFlags};
    let fd = root
        .open_in_root(dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
        .unwrap();
    let mut names: Vec<String> = rustix::fs::Dir::read_from(&fd)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name != "." && name != "..")
        .collect();
    names.sort();
    for name in names {
        let path = dir.join(name);
        let stat = root.lstat(&path).unwrap();
        let kind = FileType::from_raw_mode(stat.st_mode);
        let what = match kind {
            FileType::Symlink => format!("-> {}", root.read_link(&path).unwrap().display()),
            FileType::RegularFile => {
                String::from_utf8_lossy(&root.read(&path, 1 << 24).unwrap()).into_owned()
            }
            _ => "/".to_owned(),
        };
        found.push(format!(
            "{} {:o} {}:{} {}",
            path.display(),
            stat.st_mode & 0o7777,
            stat.st_uid,
            stat.st_gid,
            what.trim_end()
        ));
        if kind == FileType::Directory {
            walk(root, &path, found);
        }
    }
}

impl Told {
    fn log(&self) -> String {
        self.events
            .iter()
            .filter_map(|event| match event {
                BuildEvent::Log {
                    data,
                    stream: LogStream::Stdout,
                    ..
                } => Some(data.as_str()),
                _ => None,
            })
            .collect()
    }

    /// Names of the Dockerfile's steps that were carried out.
    fn carried_out(&self) -> Vec<String> {
        let mut names = BTreeMap::new();
        let mut found = Vec::new();
        for event in &self.events {
            match event {
                BuildEvent::Started(vertex) if !vertex.internal => {
                    names.insert(vertex.id, vertex.name.clone());
                }
                BuildEvent::Completed {
                    id, cached: false, ..
                } => found.extend(names.remove(id)),
                _ => {}
            }
        }
        found
    }

    fn results(&self) -> Vec<StepResult> {
        self.events
            .iter()
            .filter_map(|event| match event {
                BuildEvent::Completed { result, .. } => result.clone(),
                _ => None,
            })
            .collect()
    }

    fn error(&self) -> &BuildError {
        self.result
            .as_ref()
            .expect_err("the build should have failed")
    }
}

fn base_image(store: &Store, busybox: &Path) {
    let work = store.layers().begin().unwrap();
    for dir in ["bin", "etc", "tmp"] {
        std::fs::create_dir(work.upper().join(dir)).unwrap();
    }
    std::fs::copy(busybox, work.upper().join("bin/busybox")).unwrap();
    for applet in [
        "sh", "cat", "ls", "echo", "id", "sleep", "rm", "touch", "mkdir", "hostname",
    ] {
        std::os::unix::fs::symlink("busybox", work.upper().join("bin").join(applet)).unwrap();
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n";
    std::fs::write(work.upper().join("etc/passwd"), passwd).unwrap();
    std::fs::write(work.upper().join("etc/group"), "extra:x:7:app\n").unwrap();
    let layer = store.layers().commit(work).unwrap();
    let config = format!(
        r#"{{"architecture":"{}","os":"linux","created":"2024-01-01T00:00:00Z",
            "config":{{"Env":["PATH=/bin"],"Cmd":["sh"]}},
            "history":[{{"created":"2024-01-01T00:00:00Z","created_by":"base"}}],
            "rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        Platform::host().architecture,
        layer.diff_id
    );
    let id = store.images().put(config.as_bytes(), None).unwrap();
    store.images().tag(&"base".parse().unwrap(), &id).unwrap();
}

/// A base image that has no name may be pruned at any time.
fn pruned_bases(f: &Fixture) {
    let other = match Platform::host().architecture.as_str() {
        "arm64" => "amd64",
        _ => "arm64",
    };
    for (times, enough) in [(0, true), (2, true), (9, false)] {
        let (_, builder) = open_with(f.dir.path(), &f.cgroups, LayerForm::default(), |store| {
            let (store, times) = (store.clone(), times.into());
            Arc::new(Pruned { store, times })
        });
        let text = format!("FROM --platform=linux/{other} far/{times}\nENV A=b\n");
        let built = builder.build(f.request(&text), Arc::new(|_| {}));
        let told = f.runtime.block_on(built).map_err(|error| error.to_string());
        match &told {
            Ok(id) => assert!(enough && f.store.images().get(id).is_ok(), "{times}"),
            Err(error) => assert!(
                !enough && error.contains("as soon as it is pulled"),
                "{error}"
            ),
        }
    }
    f.nothing_is_left();
}

fn multi_stage(f: &Fixture) {
    f.file("src/main.c", "int main;");
    f.file("Makefile", "all:");
    let text = "FROM base AS builder\nWORKDIR /app\nCOPY Makefile ./\nRUN echo got > dep\n\
                COPY . .\nRUN cat src/main.c > main\nFROM base\nWORKDIR /out\n\
                COPY --from=builder /app/main .\nCMD [\"./main\"]\n";
    let mut request = f.request(text);
    request.tags = vec!["made:1".parse().unwrap(), "made".parse().unwrap()];
    let told = f.run(request);
    let image = f.image(&told);
    let tags: Vec<_> = image.repo_tags.iter().map(ImageRef::familiar).collect();
    assert_eq!(tags, ["made:1", "made:latest"]);
    assert_eq!(f.content(&image, "out"), ["out/main 644 0:0 int main;"]);
    assert_eq!(image.layers.len(), 3);
    let names: Vec<_> = told
        .events
        .iter()
        .filter_map(|event| match event {
            BuildEvent::Started(vertex) if vertex.internal => Some(vertex.name.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(
        names,
        [
            "[internal] load build definition from Dockerfile",
            "[internal] load .dockerignore",
            "[internal] load metadata for docker.io/library/base:latest",
            "[internal] load build context",
            "exporting to image"
        ]
    );
    assert!(matches!(told.events.last(), Some(BuildEvent::Image { id, .. }) if *id == image.id));
    // The last step of the target is shown as the image.
    assert!(
        told.results()
            .iter()
            .any(|result| result.id == image.id.to_string())
    );
    // What is mounted into steps leaves no trace.
    let mut request = f.request(text);
    request.target = Some("builder".to_owned());
    let builder = f.image(&f.run(request));
    let names: Vec<_> = f
        .content(&builder, "")
        .into_iter()
        .map(|l| top(&l))
        .collect();
    for left in ["proc", "sys", "dev", "etc/hosts", "etc/resolv.conf"] {
        assert!(!names.iter().any(|name| name == left), "{left}");
    }
}

fn top(line: &str) -> String {
    line.split(' ').next().unwrap_or_default().to_owned()
}

fn cached_builds_are_equal(f: &Fixture) {
    f.file("a", "1");
    let text = "FROM base\nLABEL v=1\nRUN echo x > /x\nCOPY a /\nENV A=b\nCMD x\n";
    let first = f.build(text);
    let begun = Instant::now();
    let second = f.build(text);
    eprintln!("    a cached build takes {:?}", begun.elapsed());
    assert_eq!(second.carried_out(), [""; 0]);
    assert_eq!(f.image(&first).id, f.image(&second).id);
    let mut request = f.request(text);
    request.no_cache = true;
    assert_eq!(f.run(request).carried_out().len(), 2);
    // The image of FROM alone is its base.
    let base = f.store.images().resolve("base").unwrap();
    assert_eq!(f.image(&f.build("FROM base\n")).id, base);
}

fn only_what_changed_runs(f: &Fixture) {
    f.file("a", "1");
    f.file("b", "1");
    f.file("ignored", "1");
    f.file(".dockerignore", "ignored\n.dockerignore\n");
    let build = |label: &str, arg: &str| {
        let text = format!(
            "FROM base\nARG V\nLABEL l={label}\nCMD {label}\nCOPY a /\nRUN echo a\nCOPY . /all/\n\
             RUN echo b\n"
        );
        let mut request = f.request(&text);
        request.build_args.insert("V".into(), Some(arg.into()));
        f.run(request).carried_out()
    };
    let (a, run_a) = ("[2/5] COPY a /", "[3/5] RUN echo a");
    let (all, run_b) = ("[4/5] COPY . /all/", "[5/5] RUN echo b");
    assert_eq!(build("1", "x"), [a, run_a, all, run_b]);
    assert_eq!(build("2", "x"), [""; 0]);
    f.file("b", "2");
    f.file("ignored", "2");
    assert_eq!(build("2", "x"), [all, run_b]);
    f.file("ignored", "3");
    let touched = Command::new("touch")
        .arg(f.dir.path().join("context/a"))
        .status();
    assert!(touched.unwrap().success());
    assert_eq!(build("2", "x"), [""; 0]);
    // An ARG in scope is seen by RUN, and by nothing else.
    assert_eq!(build("2", "y"), [run_a, run_b]);
}

fn failures_are_told(f: &Fixture) {
    f.file("main.go", "");
    let told = f.build("FROM base\nRUN echo out; echo err >&2; exit 3\n");
    let error = told.error();
    assert_eq!(error.exit_code(), Some(3));
    assert_eq!(
        error.to_string(),
        "process \"/bin/sh -c echo out; echo err >&2; exit 3\" did not complete successfully: \
         exit code: 3"
    );
    let report = error.report();
    assert!(
        report.contains("   2 | >>> RUN echo out") && report.contains("err"),
        "{report}"
    );
    let told = f.build("FROM base\nCOPY main.c /\n");
    let message = told.error().to_string();
    assert!(
        message.starts_with("failed to compute cache key: failed to calculate checksum of ref ")
            && message.ends_with(": \"/main.c\": not found (did you mean main.go?)"),
        "{message}"
    );
    let told = f.build("FROM nothing:x\n");
    assert_eq!(
        told.error().to_string(),
        "nothing:x: failed to resolve source metadata for docker.io/library/nothing:x: not found"
    );
    let told = f.build("FROM base\nRUN [\"/nowhere\"]\n");
    assert_eq!(told.error().exit_code(), Some(127), "{}", told.error());
    let told = f.build("FROM base\nUSER nobody\nRUN id\n");
    assert!(
        told.error()
            .to_string()
            .contains("unable to find user nobody")
    );
    // A failure in one stage ends the others at once.
    let begun = Instant::now();
    let told = f.build(
        "FROM base AS a\nRUN sleep 30\nFROM base AS b\nRUN exit 1\n\
                        FROM base\nCOPY --from=a /x /\nCOPY --from=b /x /\n",
    );
    assert_eq!(told.error().exit_code(), Some(1));
    assert!(begun.elapsed() < Duration::from_secs(10));
}

fn steps_see_what_they_should(f: &Fixture) {
    let told = f.build(
        "FROM base\nARG A=arg\nENV E=env\nWORKDIR /home/app\nUSER app\n\
         RUN id -u; id -G; echo $A $E $HOME $(cat /proc/self/comm); hostname; ls -d $(echo ~)\n\
         USER root\nRUN <<EOF\necho one\necho two > /two\nEOF\n\
         RUN <<S\n#!/bin/cat\nscript\nS\n\
         RUN cat /etc/hosts; ls /sys/class/net\n",
    );
    let image = f.image(&told);
    let log = told.log();
    for expected in [
        "1000\n",
        "1001 7\n",
        "arg env /home/app",
        "buildkitsandbox",
        "one\n",
    ] {
        assert!(log.contains(expected), "{expected:?} in {log}");
    }
    assert!(
        log.contains("script\n") && log.contains("127.0.0.1\tlocalhost"),
        "{log}"
    );
    assert!(log.contains("lo\n") && !log.contains("eth0"), "{log}");
    assert_eq!(f.content(&image, "home"), ["home/app 755 0:0 /"]);
}

fn cancelling_ends_everything(f: &Fixture) {
    let request = f.request("FROM base\nRUN echo begun; sleep 60\n");
    let (sender, receiver) = std::sync::mpsc::channel();
    let sink = move |event| {
        if matches!(event, BuildEvent::Log { .. }) {
            sender.send(()).ok();
        }
    };
    let builder = f.builder.clone();
    let task = f
        .runtime
        .spawn(async move { builder.build(request, Arc::new(sink)).await });
    receiver
        .recv_timeout(Duration::from_secs(20))
        .expect("the step says it has begun");
    task.abort();
    let begun = Instant::now();
    loop {
        let groups = corten_runtime::cgroup::children(&f.cgroups).unwrap();
        let tmp = std::fs::read_dir(f.dir.path().join("root/tmp"))
            .unwrap()
            .count();
        if groups.is_empty() && tmp == 0 {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{groups:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn pruning(f: &Fixture) {
    let text = "FROM base AS a\nRUN echo big > /f; echo g > /g\nFROM base\nCOPY --from=a /f /\n";
    let image = f.image(&f.build(text));
    f.store.gc().unwrap();
    assert_eq!(
        f.build(text).carried_out(),
        [""; 0],
        "the cache keeps its layers"
    );
    let usage = f.builder.usage().unwrap();
    assert_eq!(usage.iter().filter(|record| record.shared).count(), 2); // by state and content
    let pruned = f.builder.prune(false).unwrap();
    assert_eq!((pruned.ids.len(), pruned.bytes), (1, 6));
    f.builder.prune(true).unwrap();
    assert_eq!(f.builder.usage().unwrap(), []);
    assert!(f.store.layers().has(image.layers.last().unwrap()).unwrap());
    assert_eq!(f.build(text).carried_out().len(), 2);
}

fn steps_on_a_bridge(f: &Fixture) {
    let mut request = f.request("FROM base\nRUN ls /sys/class/net; cat /etc/resolv.conf\n");
    request.network = StepNetworkMode::Default;
    request.extra_hosts = vec![("there".to_owned(), "192.0.2.7".to_owned())];
    let told = f.run(request);
    f.image(&told);
    let log = told.log();
    assert!(
        log.contains("eth0") && log.contains("nameserver 192.0.2.1"),
        "{log}"
    );
    let begun = Instant::now();
    let links = || {
        std::fs::read_dir("/sys/class/net")
            .unwrap()
            .flatten()
            .filter(|link| link.file_name().to_string_lossy().starts_with("vt"))
            .count()
    };
    while links() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(5), "a link stays");
        std::thread::sleep(Duration::from_millis(5));
    }
    corten_network::sweep(
        TABLE,
        &[BRIDGE.to_owned()],
        &Default::default(),
        &Default::default(),
    )
    .unwrap();
    corten_network::remove_link(BRIDGE).unwrap();
    corten_network::remove_table(TABLE).unwrap();
}

fn a_killed_builder_leaves_nothing_running(f: &Fixture) {
    use std::io::{BufRead, BufReader};
    let mut child = Command::new(std::env::current_exe().unwrap())
        .arg("hang")
        .arg(f.dir.path())
        .arg(&f.cgroups)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "begun\n");
    child.kill().unwrap();
    child.wait().unwrap();
    let begun = Instant::now();
    while !corten_runtime::cgroup::children(&f.cgroups)
        .unwrap()
        .is_empty()
    {
        assert!(begun.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(5));
    }
    f.store.sweep(true).unwrap();
    f.nothing_is_left();
}

fn how_long_steps_take(f: &Fixture) {
    let steps: String = (0..10)
        .map(|number| format!("RUN echo {number} > /f\n"))
        .collect();
    let text = format!("FROM base\n{steps}");
    let begun = Instant::now();
    f.image(&f.build(&text));
    eprintln!("    a step takes {:?}", begun.elapsed() / 10);
    for number in 0..10_000 {
        f.file(
            &format!("many/{}/{number}", number % 100),
            number.to_string().repeat(100),
        );
    }
    for what in ["first", "second"] {
        let begun = Instant::now();
        f.image(&f.build("FROM base\nCOPY many /many\n"));
        eprintln!(
            "    the {what} COPY of 10,000 files takes {:?}",
            begun.elapsed()
        );
    }
}
