//! `RUN --mount`, `--network`, `--security`, secrets, agents, limits of steps.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::harness::{Background, Done, Engine, until};

/// Builds a Dockerfile with some files beside it; extra arguments come before the context.
fn build(engine: &Engine, tag: &str, dockerfile: &str, extra: &[&str]) -> Done {
    let files = [
        ("Dockerfile", dockerfile),
        (".dockerignore", "ignored\n"),
        ("ignored", "x"),
        ("src/a", "a\n"),
        ("src/b", "b\n"),
    ];
    let context = engine.context(tag, &files);
    let mut args = vec!["build", "-t", tag];
    args.extend(extra);
    args.push(context.to_str().unwrap());
    engine.run(args)
}

#[track_caller]
fn built(engine: &Engine, tag: &str, dockerfile: &str, extra: &[&str]) {
    let done = build(engine, tag, dockerfile, extra);
    assert_eq!(done.code, 0, "{dockerfile}\n{done:?}");
}

fn shown(engine: &Engine, tag: &str, command: &str) -> String {
    engine.ok(["run", "--rm", tag, "sh", "-c", command])
}

#[test]
fn files_of_context_stages_and_images_are_seen_and_belong_to_no_layer() {
    let engine = Engine::with_alpine();
    let dockerfile = "\
FROM alpine AS other
RUN mkdir -p /made/deep && echo made > /made/deep/file
FROM alpine
WORKDIR /work
RUN --mount=target=. ls > /context && cat src/a >> /context
RUN --mount=type=bind,source=src/b,target=/etc/b cat /etc/b > /single
RUN --mount=from=other,source=/made,target=/seen cat /seen/deep/file > /stage
RUN --mount=from=other,src=made/deep/file,dst=/seen/one cat /seen/one > /one
RUN --mount=from=alpine,target=/base test -x /base/bin/sh
RUN --mount=from=other,source=made,target=/seen,rw echo more > /seen/deep/more && cat /seen/deep/more > /written
RUN --mount=target=src,source=src,rw echo new > src/new && ls src > /changed
RUN --mount=target=/seen ! touch /seen/x
";
    built(&engine, "binds", dockerfile, &[]);
    assert_eq!(
        shown(&engine, "binds", "cat /context"),
        "Dockerfile\nsrc\na"
    );
    assert_eq!(
        shown(
            &engine,
            "binds",
            "cat /single /stage /one /written /changed"
        ),
        "b\nmade\nmade\nmore\na\nb\nnew"
    );
    // A step sees the directory it is shown, too.
    let dockerfile = "FROM alpine\nRUN --mount=target=/seen,source=src stat -c %a /seen > /mode\n";
    let context = engine.context("mode", &[("Dockerfile", dockerfile), ("src/a", "a\n")]);
    for mode in ["755", "750"] {
        let bits = u32::from_str_radix(mode, 8).unwrap();
        let permissions = fs::Permissions::from_mode(bits);
        fs::set_permissions(context.join("src"), permissions).unwrap();
        engine.ok(["build", "-q", "-t", "mode", context.to_str().unwrap()]);
        assert_eq!(shown(&engine, "mode", "cat /mode"), mode);
    }
    // Neither what was mounted nor where it was mounted is in the image.
    assert_eq!(
        shown(
            &engine,
            "binds",
            "ls -d /seen /base /etc/b 2>&1 | grep -vc 'No such'; ls -A /work"
        ),
        "0"
    );
    // The context of the host is as it was.
    assert!(!engine.path("context-binds/src/new").exists());
    engine.assert_clean();
}

#[test]
fn a_bind_mount_counts_by_its_content() {
    let engine = Engine::with_alpine();
    let dockerfile =
        "FROM alpine\nRUN --mount=source=src,target=/s cat /s/* > /all; date +%N > /when\n";
    built(&engine, "keyed", dockerfile, &[]);
    let first = engine.ok(["images", "-q", "--no-trunc", "keyed"]);
    // Another file of the context is not seen.
    fs::write(engine.path("context-keyed/other"), "x").unwrap();
    let context = engine.path("context-keyed");
    let context = context.to_str().unwrap();
    engine.ok(["build", "-q", "-t", "keyed", context]);
    assert_eq!(engine.ok(["images", "-q", "--no-trunc", "keyed"]), first);
    fs::write(engine.path("context-keyed/src/a"), "A\n").unwrap();
    engine.ok(["build", "-q", "-t", "keyed", context]);
    assert_eq!(shown(&engine, "keyed", "cat /all"), "A\nb");
}

#[test]
fn caches_are_kept_shown_and_pruned() {
    let engine = Engine::with_alpine();
    let run = |options: &str, command: &str| {
        format!("FROM alpine\nRUN --mount=type=cache,target=/root/.cache{options} {command}\n")
    };
    built(&engine, "c", &run("", "echo 1 >> /root/.cache/log"), &[]);
    built(
        &engine,
        "c",
        &run("", "echo 2 >> /root/.cache/log; cp /root/.cache/log /log"),
        &[],
    );
    assert_eq!(shown(&engine, "c", "cat /log; ls -A /root 2>&1"), "1\n2");
    // Another id, owner or mode is another directory.
    built(
        &engine,
        "c",
        &run(",id=other", "ls -A /root/.cache > /log"),
        &[],
    );
    assert_eq!(shown(&engine, "c", "cat /log"), "");
    let owned = run(
        ",uid=7,gid=8,mode=0700,sharing=locked",
        "stat -c '%u %g %a' /root/.cache > /log",
    );
    built(&engine, "c", &owned, &[]);
    assert_eq!(shown(&engine, "c", "cat /log"), "7 8 700");
    // What it begins with.
    let from = "FROM alpine AS seed\nRUN mkdir /seed && echo s > /seed/f\nFROM alpine\n\
                RUN --mount=type=cache,from=seed,source=seed,target=/s cat /s/f > /log && echo t > /s/f\n\
                RUN --mount=type=cache,from=seed,source=seed,target=/s cat /s/f >> /log\n";
    built(&engine, "c", from, &[]);
    assert_eq!(shown(&engine, "c", "cat /log"), "s\nt");
    // Relative to WORKDIR, with a variable in it.
    let relative = "FROM alpine\nARG NAME=n\nWORKDIR /w\n\
                    RUN --mount=type=cache,target=$NAME/x,id=rel-$NAME pwd > n/x/f && ls /w/n/x > /log\n";
    built(&engine, "c", relative, &[]);
    assert_eq!(shown(&engine, "c", "cat /log"), "f");

    let usage = engine.ok(["builder", "du", "--verbose"]);
    assert_eq!(usage.matches("exec.cachemount").count(), 5, "{usage}");
    assert!(usage.contains("cached mount /root/.cache"), "{usage}");
    let table = engine.ok(["builder", "du"]);
    assert!(
        table.starts_with("ID") && table.contains("RECLAIMABLE"),
        "{table}"
    );
    engine.ok(["builder", "prune", "-f"]);
    let usage = engine.ok(["builder", "du", "--verbose"]);
    assert!(!usage.contains("exec.cachemount"), "{usage}");
    engine.assert_clean();
}

#[test]
fn locked_caches_are_used_one_after_the_other() {
    let engine = Engine::with_alpine();
    let step = "RUN --mount=type=cache,target=/c,id=turn,sharing=locked \
                mkdir /c/busy && sleep 1 && rmdir /c/busy";
    let dockerfile = format!(
        "FROM alpine AS a\n{step} && echo a > /a\nFROM alpine AS b\n{step} && echo b > /b\n\
         FROM alpine\nCOPY --from=a /a /\nCOPY --from=b /b /\n"
    );
    built(&engine, "locked", &dockerfile, &[]);
    // Each user of a private one has its own.
    let private = dockerfile
        .replace("sharing=locked", "sharing=private")
        .replace("id=turn", "id=own")
        .replace("sleep 1", "sleep 2");
    built(&engine, "private", &private, &[]);
    let usage = engine.ok(["builder", "du", "--verbose"]);
    assert_eq!(usage.matches("cached mount own").count(), 2, "{usage}");
    assert_eq!(usage.matches("cached mount turn").count(), 1, "{usage}");
}

#[test]
fn locked_caches_never_keep_steps_waiting_for_each_other() {
    let engine = Engine::with_alpine();
    // One step may show a cache twice.
    let twice = "FROM alpine\n\
        RUN --mount=type=cache,id=k,target=/x,sharing=locked \
        --mount=type=cache,id=k,target=/y,sharing=locked echo x > /x/f && cat /y/f > /f\n";
    built(&engine, "twice", twice, &[]);
    assert_eq!(shown(&engine, "twice", "cat /f"), "x");
    // Stages that take the same two in opposite order.
    let step = |first: &str, second: &str, out: &str| {
        format!(
            "RUN --mount=type=cache,id={first},target=/1,sharing=locked \
             --mount=type=cache,id={second},target=/2,sharing=locked sleep 1; echo > /{out}\n"
        )
    };
    let dockerfile = format!(
        "FROM alpine AS a\n{}FROM alpine AS b\n{}FROM alpine\n\
         COPY --from=a /a /\nCOPY --from=b /b /\n",
        step("k1", "k2", "a"),
        step("k2", "k1", "b")
    );
    built(&engine, "opposite", &dockerfile, &["--progress=plain"]);
    engine.assert_clean();
}

/// A file of a name somewhere in a directory.
fn has_below(dir: &Path, name: &str) -> bool {
    fs::read_dir(dir).is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            entry.file_name() == name
                || entry.file_type().is_ok_and(|kind| kind.is_dir())
                    && has_below(&entry.path(), name)
        })
    })
}

#[test]
fn who_waits_for_a_cache_keeps_nobody_else_waiting() {
    let engine = Engine::with_alpine();
    let lock = "--mount=type=cache,id=lock,target=/lock,sharing=locked";
    let gate = "--mount=type=cache,id=gate,target=/gate";
    let holder = format!(
        "FROM alpine\nRUN {lock} {gate} touch /gate/held; until test -e /gate/open; do sleep 0.1; done\n"
    );
    // The second step of `opens` needs the place that `waits` would take if it kept one.
    let other = format!(
        "FROM alpine AS waits\nRUN {lock} touch /w\n\
         FROM alpine AS opens\nRUN sleep 1\nRUN {gate} touch /gate/open /o\n\
         FROM alpine\nCOPY --from=waits /w /\nCOPY --from=opens /o /\n"
    );
    let context = engine.context("holder", &[("Dockerfile", &holder)]);
    let holder = engine.spawn(["build", context.to_str().unwrap()]);
    until("the lock is held", || {
        has_below(&engine.root().join("cache-mounts"), "held")
    });
    // Whoever waits can go.
    let given_up = format!("FROM alpine\nRUN {lock} true\n");
    let context = engine.context("given-up", &[("Dockerfile", &given_up)]);
    let told = engine.path("told");
    let mut waiting = engine.command(["build", "--progress=plain", context.to_str().unwrap()]);
    waiting.stderr(fs::File::create(&told).unwrap());
    let mut waiting = Background::of(waiting.spawn().unwrap());
    let waits = "waiting for cache mount lock, which another step uses";
    until("it is told", || {
        fs::read_to_string(&told).unwrap().contains(waits)
    });
    waiting.signal(rustix::process::Signal::INT);
    assert_eq!(waiting.code(), Some(130));
    let context = engine.context("other", &[("Dockerfile", &other)]);
    // On one processor one step runs at a time.
    let mut command = std::process::Command::new("taskset");
    let built = engine.command(["build", "--progress", "plain", context.to_str().unwrap()]);
    command.args(["-c", "0"]).arg(built.get_program());
    command.args(built.get_args());
    for (key, value) in built.get_envs() {
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
    }
    let done: Done = command.output().unwrap().into();
    assert_eq!(done.code, 0, "{done:?}");
    // However often it looked.
    assert_eq!(done.stderr.matches(waits).count(), 1, "{done:?}");
    let done = holder.finish();
    assert_eq!(done.code, 0, "{done:?}");
    engine.assert_clean();
}

#[test]
fn steps_run_again_when_a_secrets_id_or_a_caches_beginning_changes() {
    let engine = Engine::with_alpine();
    let (a, b) = (engine.path("a"), engine.path("b"));
    fs::write(&a, "one").unwrap();
    fs::write(&b, "two").unwrap();
    let (a, b) = (
        format!("id=A,src={}", a.display()),
        format!("id=B,src={}", b.display()),
    );
    for (id, value) in [("A", "one"), ("B", "two")] {
        let dockerfile = format!(
            "FROM alpine\nRUN --mount=type=secret,id={id},target=/s cp /s /out\n\
             RUN --mount=type=secret,id={id},env=V env | grep V= > /env\n"
        );
        built(
            &engine,
            "ids",
            &dockerfile,
            &["--secret", &a, "--secret", &b],
        );
        let out = shown(&engine, "ids", "cat /out; echo; cat /env");
        assert_eq!(out, format!("{value}\nV={value}"));
    }
    for value in ["1", "2"] {
        let dockerfile = format!(
            "FROM alpine AS gen\nRUN mkdir /d && echo {value} > /d/v\nFROM alpine\n\
             RUN --mount=type=cache,id=cf,from=gen,source=/d,target=/c cp /c/v /v\n"
        );
        built(&engine, "begins", &dockerfile, &[]);
        assert_eq!(shown(&engine, "begins", "cat /v"), value);
    }
}

#[test]
fn other_engines_are_told_no_secrets() {
    let engine = Engine::new();
    let context = engine.context("foreign", &[("Dockerfile", "FROM foo\n")]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = format!("tcp://{}", listener.local_addr().unwrap());
    let asked = std::thread::spawn(move || {
        let mut asked = String::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let count = stream.read(&mut request).unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..count]).into_owned();
            if request.starts_with("END") {
                break;
            }
            asked.push_str(&request);
            let answer = "HTTP/1.1 200 OK\r\nServer: Docker/28.0.0 (linux)\r\n\
                          Api-Version: 1.48\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            stream.write_all(answer.as_bytes()).unwrap();
        }
        asked
    });
    let secret = engine.path("secret");
    fs::write(&secret, "s3cret").unwrap();
    let secret = format!("id=token,src={}", secret.display());
    for flags in [
        ["--secret", &secret],
        ["--build-context", "foo=docker-image://alpine"],
        ["--no-cache-filter", "x"],
    ] {
        let done = engine.run([
            "-H",
            &host,
            "build",
            flags[0],
            flags[1],
            context.to_str().unwrap(),
        ]);
        assert_eq!(done.code, 1, "{done:?}");
        let why = format!("{}: this engine has the classic builder only", flags[0]);
        assert!(done.stderr.contains(&why), "{done:?}");
    }
    let mut end = TcpStream::connect(host.trim_start_matches("tcp://")).unwrap();
    end.write_all(b"END").unwrap();
    let asked = asked.join().unwrap();
    assert!(
        asked.contains("/_ping") && !asked.contains("/build"),
        "{asked}"
    );
}

/// A socket called `agent` somewhere in a directory.
fn socket_below(dir: &Path) -> Option<PathBuf> {
    fs::read_dir(dir).ok()?.flatten().find_map(|entry| {
        let kind = entry.file_type().ok()?;
        if kind.is_socket() && entry.file_name() == "agent" {
            return Some(entry.path());
        }
        kind.is_dir().then(|| socket_below(&entry.path())).flatten()
    })
}

#[test]
fn memory_secrets_and_the_agent() {
    let engine = Engine::with_alpine();
    let secret = engine.path("secret");
    fs::write(&secret, "s3cret").unwrap();
    let secret = format!("id=token,src={}", secret.display());
    let dockerfile = "\
FROM alpine
RUN --mount=type=tmpfs,target=/t,size=1m grep ' /t tmpfs' /proc/mounts | grep -q size=1024k && echo x > /t/x
RUN --mount=type=secret,id=token cat /run/secrets/token > /read && stat -c '%a %u' /run/secrets/token >> /read
RUN --mount=type=secret,id=token,target=/root/.token,mode=0444,uid=5 stat -c '%a %u' /root/.token > /mode
RUN --mount=type=secret,id=token,env=TOKEN echo $TOKEN > /env; ls /run/secrets 2>&1 | grep -v 'No such' > /listed || true
RUN --mount=type=secret,id=absent test ! -e /run/secrets/absent && echo none > /none
RUN ls -A /t /run/secrets /root/.token 2>&1 | grep -vc 'No such' > /left || true
";
    built(&engine, "secrets", dockerfile, &["--secret", &secret]);
    assert_eq!(
        shown(
            &engine,
            "secrets",
            "cat /read; echo; cat /mode /env /listed /none /left"
        ),
        "s3cret400 0\n\n444 5\ns3cret\nnone\n0"
    );
    // Its content is in no key, and nowhere in the image's history.
    let first = engine.ok(["images", "-q", "--no-trunc", "secrets"]);
    let other = "id=token,env=OTHER_SECRET";
    let context = engine.path("context-secrets");
    let mut command = engine.command(["build", "-q", "-t", "secrets", "--secret", other]);
    let status = command
        .arg(&context)
        .env("OTHER_SECRET", "changed")
        .output()
        .unwrap();
    assert!(status.status.success(), "{status:?}");
    assert_eq!(engine.ok(["images", "-q", "--no-trunc", "secrets"]), first);
    let history = engine.ok(["history", "--no-trunc", "secrets"]);
    assert!(
        history.contains("type=secret") || history.contains("/run/secrets/token"),
        "{history}"
    );
    assert!(!history.contains("s3cret"), "{history}");

    let socket = engine.path("agent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let agent = std::thread::spawn(move || {
        // The first connection only asks whether anybody is there.
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            if stream.read_to_end(&mut asked).unwrap_or(0) > 0 {
                stream.write_all(b"told\n").unwrap();
                return String::from_utf8(asked).unwrap();
            }
        }
        String::new()
    });
    let dockerfile = "FROM alpine\n\
        RUN --mount=type=ssh,required test -S $SSH_AUTH_SOCK && echo $SSH_AUTH_SOCK > /where && \
        sleep 5\n\
        RUN test -z \"$SSH_AUTH_SOCK\"\n";
    let ssh = format!("default={}", socket.display());
    std::thread::scope(|scope| {
        let building = scope.spawn(|| build(&engine, "agent", dockerfile, &["--ssh", &ssh]));
        // No program of the image speaks to a socket: ask the one that the step sees.
        let mut served = None;
        until("the step has its socket", || {
            served = socket_below(&engine.root());
            served.is_some() || building.is_finished()
        });
        // It has its name before it listens.
        let (socket, mut stream) = (served.unwrap(), None);
        until("the socket answers", || {
            stream = UnixStream::connect(&socket).ok();
            stream.is_some()
        });
        let mut stream = stream.unwrap();
        stream.write_all(b"asked\n").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut told = String::new();
        stream.read_to_string(&mut told).unwrap();
        assert_eq!(told, "told\n");
        let done = building.join().unwrap();
        assert_eq!(done.code, 0, "{done:?}");
    });
    assert_eq!(
        shown(&engine, "agent", "cat /where"),
        "/run/buildkit/ssh_agent.0"
    );
    assert_eq!(agent.join().unwrap(), "asked\n");
    engine.assert_clean();
}

#[test]
fn networks_security_and_limits() {
    let engine = Engine::with_alpine();
    let dockerfile = "\
FROM alpine
RUN --network=none ls /sys/class/net > /none
RUN --network=default ls /sys/class/net > /default
RUN --security=sandbox grep CapEff /proc/self/status > /sandbox
RUN ulimit -n > /files && df -k /dev/shm | tail -n 1 | awk '{print $2}' > /shm
";
    let extra = ["--ulimit", "nofile=77:99", "--shm-size", "8m"];
    built(&engine, "limits", dockerfile, &extra);
    let all = shown(&engine, "limits", "cat /none /default /files /shm");
    assert_eq!(all, "lo\neth0\nlo\n77\n8192");
    let sandbox = shown(&engine, "limits", "cat /sandbox");
    assert!(sandbox.ends_with("00000000a80425fb"), "{sandbox}");

    let insecure = "FROM alpine\nRUN --security=insecure grep CapEff /proc/self/status > /caps\n";
    let refused = build(&engine, "insecure", insecure, &[]);
    assert_eq!(refused.code, 1, "{refused:?}");
    let why = "security.insecure is not allowed: build with --allow security.insecure";
    assert!(refused.stderr.contains(why), "{refused:?}");
    built(
        &engine,
        "insecure",
        insecure,
        &["--allow", "security.insecure"],
    );
    let caps = shown(&engine, "insecure", "cat /caps");
    assert!(!caps.ends_with("00000000a80425fb"), "{caps}");
    engine.assert_clean();
}

#[test]
fn mistakes_in_mounts_point_at_the_line() {
    let engine = Engine::with_alpine();
    for (step, expected) in [
        (
            "RUN --mount=type=cach,target=/x true",
            "unsupported mount type \"cach\" (did you mean cache?)",
        ),
        ("RUN --mount=type=bind true", "invalid mount target \"/\""),
        (
            "RUN --mount=source=nothing,target=/x true",
            "\"/nothing\": not found",
        ),
        (
            "RUN --mount=source=ignored,target=/x true",
            "\"/ignored\": not found",
        ),
        (
            "RUN --mount=from=alpine,source=/nothing,target=/x true",
            "\"/nothing\": not found",
        ),
        (
            "RUN --mount=from=$X,target=/x true",
            "define alias stage instead",
        ),
        (
            "RUN --mount=type=secret,id=a,required true",
            "secret a: not found",
        ),
        (
            "RUN --mount=type=ssh,required true",
            "no SSH key \"default\" forwarded",
        ),
        ("RUN --security=none true", "security \"none\" is not valid"),
        (
            "RUN --network=bridged true",
            "unsupported network mode \"bridged\"",
        ),
    ] {
        let done = build(&engine, "wrong", &format!("FROM alpine\n{step}\n"), &[]);
        assert_eq!(done.code, 1, "{step}: {done:?}");
        assert!(done.stderr.contains(expected), "{step}: {done:?}");
        assert!(done.stderr.contains("Dockerfile:2"), "{step}: {done:?}");
    }
    let missing = build(
        &engine,
        "wrong",
        "FROM alpine\n",
        &["--secret", "id=a,src=/no/such"],
    );
    assert!(
        missing.stderr.contains("failed to stat /no/such"),
        "{missing:?}"
    );
    engine.assert_clean();
}

#[test]
fn steps_have_the_memory_and_cpus_they_are_given() {
    let engine = Engine::with_alpine();
    let dockerfile = "\
FROM alpine AS seen
RUN cd /sys/fs/cgroup && cat memory/memory.limit_in_bytes memory.max > /memory 2>/dev/null; \
    cat cpuset/cpuset.cpus cpuset.cpus > /cpus 2>/dev/null; true
FROM alpine AS greedy
RUN tail /dev/zero
";
    let context = engine.context("limits", &[("Dockerfile", dockerfile)]);
    let context = context.to_str().unwrap();
    let limits = [
        "-m",
        "32m",
        "--memory-swap",
        "32m",
        "--cpuset-cpus",
        "0",
        "-c",
        "512",
    ];
    let build = |target: &str, flags: &[&str]| {
        let mut args = vec![
            "build",
            "--progress=plain",
            "-t",
            "seen",
            "--target",
            target,
        ];
        args.extend(flags);
        args.push(context);
        engine.run(args)
    };
    let done = build("seen", &limits);
    assert_eq!(done.code, 0, "{done:?}");
    let seen = engine.ok([
        "run",
        "--rm",
        "--network=none",
        "seen",
        "cat",
        "/memory",
        "/cpus",
    ]);
    assert_eq!(seen, "33554432\n0");
    // What a step makes does not depend on them.
    let again = build("seen", &[]);
    assert!(again.stderr.contains("CACHED"), "{again:?}");
    let killed = build("greedy", &limits);
    assert_eq!(killed.code, 137, "{killed:?}");
    assert!(killed.stderr.contains("out-of-memory"), "{killed:?}");
    for (flags, why) in [
        (["-m", "1m"], "Minimum memory limit allowed is 6MB"),
        (["--memory-swap", "64m"], "always set the Memory limit"),
        (["--cpu-period", "1"], "CPU cfs period"),
        (["--cpuset-cpus", "x"], "Invalid value x for cpuset cpus"),
    ] {
        let refused = build("seen", &flags);
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(refused.stderr.contains(why), "{refused:?}");
    }
    engine.assert_clean();
}

#[test]
fn large_secrets() {
    let engine = Engine::with_alpine();
    let dockerfile =
        "FROM alpine\nRUN --mount=type=secret,id=big wc -c < /run/secrets/big > /size\n";
    let context = engine.context("big", &[("Dockerfile", dockerfile)]);
    let context = context.to_str().unwrap();
    let secret = engine.path("secret");
    let flag = format!("id=big,src={}", secret.display());
    // A second one of the same size shows that there is room for several.
    let other = format!("id=other,src={}", secret.display());
    std::fs::write(&secret, vec![b'x'; 500 << 10]).unwrap();
    engine.ok([
        "build", "-q", "-t", "big", "--secret", &flag, "--secret", &other, context,
    ]);
    let size = engine.ok(["run", "--rm", "--network=none", "big", "cat", "/size"]);
    assert_eq!(size.trim(), "512000");
    std::fs::write(&secret, vec![b'x'; (500 << 10) + 1]).unwrap();
    let refused = engine.fails(1, ["build", "--secret", &flag, context]);
    assert!(refused.contains("larger than 500 KiB"), "{refused}");
    engine.assert_clean();
}

#[test]
fn compilers_are_shown_the_times_of_now() {
    let engine = Engine::with_alpine();
    let dockerfile = "FROM alpine\nRUN --mount=type=bind,source=src,target=/src \
                      cat /src/f > /seen && stat -c %Y /src/f >> /seen\n";
    let context = engine.context("times", &[("Dockerfile", dockerfile), ("src/f", "")]);
    // The same content comes back, but later: what was made of it before is not newer than it.
    for (content, seconds) in [("a\n", 1000), ("b\n", 2000), ("a\n", 3000)] {
        let path = context.join("src/f");
        fs::write(&path, content).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        let file = fs::File::options().append(true).open(&path).unwrap();
        file.set_modified(time).unwrap();
        let context = context.to_str().unwrap();
        engine.ok(["build", "-q", "--no-cache", "-t", "times", context]);
        let seen = engine.ok(["run", "--rm", "--network=none", "times", "cat", "/seen"]);
        assert_eq!(seen.trim_end(), format!("{content}{seconds}"));
    }
    engine.assert_clean();
}

#[test]
fn devices_are_those_that_are_described() {
    let engine = Engine::with_alpine();
    let (dir, shared) = (engine.path("cdi"), engine.path("shared"));
    for path in [&dir, &shared] {
        fs::create_dir(path).unwrap();
    }
    fs::write(shared.join("file"), "of the host\n").unwrap();
    // Where a file is mounted in what is mounted.
    fs::create_dir(shared.join("deep")).unwrap();
    fs::write(shared.join("deep/file"), "").unwrap();
    let described = format!(
        "cdiVersion: 0.6.0\nkind: test.example/thing\ndevices:\n- name: one\n  containerEdits:\n    \
         env: [THING=one]\n    deviceNodes:\n    - {{path: /dev/thing, hostPath: /dev/zero}}\n    \
         mounts:\n    - {{hostPath: {0}/file, containerPath: /opt/thing/deep/file}}\n    \
         - hostPath: {0}\n      containerPath: /opt/thing\n      options: [ro, nosuid]\n",
        shared.display()
    );
    fs::write(dir.join("thing.yaml"), described).unwrap();
    let build = |device: &str, flags: &[&str]| {
        let dockerfile = format!(
            "FROM alpine\nUSER 1000\nRUN --device={device} echo \"$THING $(cat /opt/thing/file) \
             $(head -c 3 /dev/thing | wc -c) $(cat /opt/thing/deep/file)\"; touch /opt/thing/x; test -n \"$THING\"\n"
        );
        let context = engine.context("devices", &[("Dockerfile", &dockerfile)]);
        let args = ["build", "--progress=plain", "-t", "devices"];
        let mut command = engine.command(args.iter().chain(flags));
        command.arg(context).env("CORTEN_CDI_DIRS", &dir);
        Done::from(command.output().unwrap())
    };
    let done = build("test.example/thing=one", &["--allow=device"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(
        done.stderr.contains("one of the host 3 of the host"),
        "{done:?}"
    );
    assert!(done.stderr.contains("Read-only file system"), "{done:?}");
    // Nothing of it is in the layer.
    let there = "ls /opt /dev/thing 2>&1; echo \"[$THING]\"";
    let shown = engine.ok(["run", "--rm", "devices", "sh", "-c", there]);
    assert!(
        shown.contains("/opt: No such file") && shown.contains("[]"),
        "{shown}"
    );
    let done = build("test.example/thing", &["--allow=device=test.example/thing"]);
    assert_eq!(done.code, 0, "{done:?}");
    // One that need not be there is not; a step without it is one that asks for none.
    let dockerfile = |flag: &str| format!("FROM alpine\nRUN {flag}test ! -e /dev/thing\n");
    for flag in ["", "--device=test.example/other "] {
        let context = engine.context("optional", &[("Dockerfile", &dockerfile(flag))]);
        let done = engine.run(["build", "--progress=plain", context.to_str().unwrap()]);
        assert_eq!(done.code, 0, "{done:?}");
        assert_eq!(
            done.stderr.contains("#5 CACHED"),
            !flag.is_empty(),
            "{done:?}"
        );
    }
    for (device, expected) in [
        (
            "test.example/thing=one",
            "is not allowed: build with --allow device",
        ),
        (
            "test.example/other,required",
            "\"test.example/other\" is not registered: no CDI description in",
        ),
        ("a,requird=1", "(did you mean required?)"),
    ] {
        let done = build(device, &[]);
        assert_eq!(done.code, 1, "{done:?}");
        assert!(done.stderr.contains(expected), "{done:?}");
        assert!(done.stderr.contains("Dockerfile:3"), "{done:?}");
    }
    engine.assert_clean();
}
