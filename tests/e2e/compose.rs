//! An application of three services, with Debian's docker-compose 1.29 through `corten serve`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::harness::{Background, Done, Engine, http_path, until};

/// One project on an engine.
struct Project<'a> {
    engine: &'a Engine,
    host: String,
    directory: PathBuf,
}

impl Project<'_> {
    fn compose(&self, args: &[&str]) -> Done {
        let output = Command::new("docker-compose")
            .args(["--ansi", "never", "-p", "queue"])
            .args(args)
            .current_dir(&self.directory)
            .env("DOCKER_HOST", &self.host)
            .env("DOCKER_CONFIG", self.engine.path("docker"))
            .env("COMPOSE_HTTP_TIMEOUT", "120")
            .env_remove("DOCKER_CONTEXT")
            .stdin(Stdio::null())
            .output();
        output
            .expect("docker-compose is installed by scripts/install-deps.sh test")
            .into()
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let done = self.compose(args);
        assert_eq!(done.code, 0, "docker-compose {args:?}: {done:?}");
        done.stdout.trim_end().to_owned()
    }

    /// A page of the service `web`, by its published port.
    fn page(&self, path: &str) -> Option<String> {
        let address = self.ok(&["port", "web", "8080"]);
        http_path(&address, path).map(|body| body.trim_end().to_owned())
    }

    /// Queues a job and waits until so many are done.
    #[track_caller]
    fn work(&self, job: &str, done: &str) {
        until("the job is queued", || {
            self.page(&format!("/cgi-bin/add?{job}")).is_some()
        });
        until("the job is done", || {
            self.page("/cgi-bin/done").as_deref() == Some(done)
        });
    }

    /// What Redis answers, a line each.
    fn redis(&self, words: &[&str]) -> BTreeSet<String> {
        let args = [&["exec", "-T", "store", "redis-cli"], words].concat();
        self.ok(&args).lines().map(str::to_owned).collect()
    }
}

/// The project's directory with Debian's Redis and the libraries it needs.
fn directory(engine: &Engine) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/e2e/compose");
    let directory = engine.path("project");
    let copied = Command::new("cp")
        .arg("-a")
        .args([&source, &directory])
        .status();
    assert!(copied.unwrap().success());
    // One program, which is the server under another name.
    let server = "/usr/bin/redis-check-rdb";
    let needed = Command::new("ldd").arg(server).output().unwrap();
    let needed = String::from_utf8(needed.stdout).unwrap();
    let libraries = needed
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    let mut tar = tar::Builder::new(fs::File::create(directory.join("redis.tar")).unwrap());
    for (from, to) in [
        (server, "usr/bin/redis-server"),
        ("/usr/bin/redis-cli", "usr/bin/redis-cli"),
    ] {
        let found = "Redis is installed by scripts/install-deps.sh test";
        tar.append_path_with_name(from, to).expect(found);
    }
    for library in libraries {
        let real = fs::canonicalize(library).unwrap();
        tar.append_path_with_name(real, library.trim_start_matches('/'))
            .unwrap();
    }
    tar.finish().unwrap();
    directory
}

fn served(engine: &Engine) -> (Background, Project<'_>) {
    let (server, host) = engine.serve();
    let directory = engine.path("project");
    let project = Project {
        engine,
        host,
        directory,
    };
    (server, project)
}

#[test]
fn compose_brings_an_application_up_scales_it_and_takes_it_down() {
    let engine = Engine::with_alpine();
    directory(&engine);
    let (server, project) = served(&engine);
    project.ok(&["up", "-d", "--build"]);
    project.work("a", "1");
    let states = project.ok(&["ps"]);
    for service in ["queue_store_1", "queue_web_1"] {
        let line = states.lines().find(|line| line.contains(service));
        assert!(line.is_some_and(|l| l.contains("Up (healthy)")), "{states}");
    }

    // Three workers: each is there under its own name, and all under the service's.
    project.ok(&["up", "-d", "--scale", "worker=3", "--no-recreate"]);
    until("three workers have said who they are", || {
        project.redis(&["SMEMBERS", "workers"]).len() == 3
    });
    let looked_up = project.ok(&["exec", "-T", "web", "nslookup", "worker"]);
    let answers = looked_up
        .lines()
        .filter(|line| line.starts_with("Address") && !line.contains("127.0.0.11"));
    assert_eq!(answers.count(), 3, "{looked_up}");
    let alias = project.ok(&["exec", "-T", "store", "nslookup", "shop"]);
    assert!(alias.contains("Address"), "{alias}");
    // The front network has the page only.
    let front = engine.ok([
        "network",
        "inspect",
        "-f",
        "{{range .Containers}}{{.Name}} {{end}}",
        "queue_front",
    ]);
    assert_eq!(front.trim(), "queue_web_1");

    // The server of the API is not in the way of anything.
    server.kill_9();
    let listed = engine.ok(["ps", "-q", "--filter", "health=healthy"]);
    assert_eq!(listed.lines().count(), 2);
    let (_server, project) = served(&engine);
    project.work("b", "2");

    // What is taken down keeps its data, and comes back with it.
    project.ok(&["down"]);
    assert_eq!(engine.ok(["ps", "-aq"]), "");
    assert_eq!(engine.ok(["network", "ls", "-q"]).lines().count(), 3);
    project.ok(&["up", "-d"]);
    project.work("c", "3");
    project.ok(&["down", "--volumes"]);
    assert_eq!(engine.ok(["volume", "ls", "-q"]), "");
    engine.assert_clean();
}
