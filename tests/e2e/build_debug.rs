//! `build --debug`: a shell where a step has failed.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use crate::harness::{Background, Engine, Terminal, until};

/// A build on a terminal, somebody at its keyboard.
struct Sitting {
    build: Background,
    keyboard: File,
    seen: Arc<Mutex<String>>,
}

/// `build --debug` of a context with nothing but this Dockerfile.
fn debug(engine: &Engine, name: &str, dockerfile: &str) -> Sitting {
    let context = engine.context(name, &[("Dockerfile", dockerfile)]);
    sit_down(engine, &["build", "--debug", context.to_str().unwrap()])
}

fn sit_down(engine: &Engine, args: &[&str]) -> Sitting {
    let terminal = Terminal::open();
    let theirs = || Stdio::from(terminal.theirs.try_clone().unwrap());
    let mut command = engine.command(args);
    command.stdin(theirs()).stdout(theirs()).stderr(theirs());
    let build = Background(command.spawn().unwrap());
    let Terminal { ours, theirs } = terminal;
    drop(theirs);
    let seen = Arc::new(Mutex::new(String::new()));
    let (mut screen, shown) = (ours.try_clone().unwrap(), seen.clone());
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        // It ends with the last process that has the other side.
        while let Ok(count) = screen.read(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
            shown.lock().unwrap().push_str(&text);
        }
    });
    Sitting {
        build,
        keyboard: ours,
        seen,
    }
}

impl Sitting {
    fn sees(&self, text: &str) {
        until(&format!("{text:?} is seen"), || {
            self.seen.lock().unwrap().contains(text)
        });
    }

    fn types(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).unwrap();
    }
}

const DOCKERFILE: &str = "FROM alpine AS base\nRUN echo below > /below\n\
    FROM base\nENV SAID=hello\nUSER 1000\nWORKDIR /home/w\n\
    RUN --mount=type=secret,id=s,uid=1000 --mount=type=cache,target=/c,uid=1000 \
    --mount=type=bind,from=base,source=/below,target=/b touch made; exit 7\n";

#[test]
fn a_shell_has_what_the_step_had() {
    let engine = Engine::with_alpine();
    let context = engine.context("debug", &[("Dockerfile", DOCKERFILE), ("key", "hidden")]);
    let secret = format!("id=s,src={}", context.join("key").display());
    let args = [
        "build",
        "--debug",
        "--secret",
        &secret,
        context.to_str().unwrap(),
    ];
    let mut sitting = sit_down(&engine, &args);
    sitting.sees("This is /bin/sh in what it left");
    // Why it failed is told before.
    sitting.sees("did not complete successfully: exit code: 7");
    sitting.types(
        "echo \"[$SAID $(id -u) $(pwd) $(cat /b) $(cat /run/secrets/s) $(ls)]\"; test -w /c && \
         tty; echo over > made; exit 3\n",
    );
    // Of the build, not of the shell.
    let code = sitting.build.code();
    sitting.sees("[hello 1000 /home/w below hidden made]");
    sitting.sees("/dev/pts/0");
    sitting.sees("did not complete successfully: exit code: 7");
    assert_eq!(code, Some(7));
    engine.assert_clean();
}

/// What other steps say meanwhile is not written over the shell, holds nobody up, and comes after.
#[test]
fn other_steps_go_on_unseen_while_a_shell_is_open() {
    let engine = Engine::with_alpine();
    let gate = "RUN --mount=type=cache,id=gate,target=/gate";
    // More than a connection holds. Its last word shows that it was not held up.
    let dockerfile = format!(
        "FROM alpine AS other\n{gate} until test -e /gate/shell; do sleep 0.1; done; \
         yes line $((7*9)) of it | head -n 20000; touch /gate/done; \
         until test -e /gate/left; do sleep 0.1; done\n\
         FROM alpine\n{gate} exit 4\nCOPY --from=other /x /\n"
    );
    let context = engine.context("others", &[("Dockerfile", &dockerfile)]);
    let plain = ["build", "--debug", "--progress=plain"];
    let args: Vec<_> = plain.into_iter().chain(context.to_str()).collect();
    let mut sitting = sit_down(&engine, &args);
    sitting.sees("This is /bin/sh in what it left");
    sitting.types(
        "touch /gate/shell; until test -e /gate/done; do sleep 0.1; done; echo \"[$((40+2))]\"\n",
    );
    sitting.sees("[42]");
    assert!(!sitting.seen.lock().unwrap().contains("line 63 of it"));
    sitting.types("touch /gate/left; exit\n");
    assert_eq!(sitting.build.code(), Some(4));
    sitting.sees("line 63 of it");
    engine.assert_clean();
}

#[test]
fn an_engine_elsewhere_has_shells_too() {
    let engine = Engine::with_alpine();
    let (_server, host) = engine.serve();
    let dockerfile = "FROM alpine\nRUN echo made > /made; exit 5\n";
    let context = engine.context("served", &[("Dockerfile", dockerfile)]);
    let args = ["-H", &host, "build", "--debug", context.to_str().unwrap()];
    let mut sitting = sit_down(&engine, &args);
    sitting.sees("This is /bin/sh in what it left");
    sitting.types("echo \"[$(cat /made)]\"; exit\n");
    assert_eq!(sitting.build.code(), Some(5));
    sitting.sees("[made]");
}

#[test]
fn nothing_is_left_of_a_shell_whose_build_is_killed() {
    let engine = Engine::with_alpine();
    let dockerfile = "FROM alpine\nRUN false\n";
    let mut sitting = debug(&engine, "killed", dockerfile);
    sitting.sees("This is /bin/sh in what it left");
    let time = some_time();
    sitting.types(&format!("echo pid $((1 + 1)); exec sleep {time}\n"));
    sitting.sees("pid 2");
    until("it sleeps", || sleeps(&time));
    sitting.build.kill_9();
    until("it is gone", || !sleeps(&time));
    engine.assert_clean();
}

#[test]
fn nothing_is_left_of_a_shell_whose_process_is_killed() {
    let engine = Engine::with_alpine();
    let dockerfile = "FROM alpine\nRUN exit 9\n";
    let mut sitting = debug(&engine, "shot", dockerfile);
    sitting.sees("This is /bin/sh in what it left");
    let time = some_time();
    // The end of its terminal is nothing to it.
    sitting.types(&format!("trap '' HUP; exec sleep {time}\n"));
    until("it sleeps", || sleeps(&time));
    let build = sitting.build.0.id();
    let mut killed = 0;
    for process in processes() {
        let status = std::fs::read_to_string(process.join("status")).unwrap_or_default();
        let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
        let of_build = status.lines().any(|line| line == format!("PPid:\t{build}"));
        if of_build
            && line
                .split(|byte| *byte == 0)
                .any(|word| word == b"build-step")
        {
            let pid = process.file_name().unwrap().to_str().unwrap();
            let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            killed += 1;
        }
    }
    assert!(killed > 0);
    assert_eq!(sitting.build.code(), Some(9));
    until("it is gone", || !sleeps(&time));
    engine.assert_clean();
}

#[test]
fn a_shell_that_is_none_hides_no_failure() {
    let engine = Engine::with_alpine();
    let dockerfile = "FROM alpine\nRUN printf '#!/bin/true\\n' > /bin/bash && chmod +x /bin/bash\n\
        RUN [\"sh\", \"-c\", \"exit 6\"]\n";
    let mut sitting = debug(&engine, "short", dockerfile);
    assert_eq!(sitting.build.code(), Some(6));
    sitting.sees("This is /bin/bash in what it left");
    sitting.sees("ERROR: failed to solve: ");
    engine.assert_clean();
}

/// How long to sleep so that nobody else of this machine does.
fn some_time() -> String {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap();
    format!("9{}", now.subsec_nanos())
}

fn processes() -> impl Iterator<Item = std::path::PathBuf> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.map(|process| process.path())
}

fn sleeps(time: &str) -> bool {
    let wanted = format!("sleep\0{time}\0");
    processes()
        .filter_map(|process| std::fs::read(process.join("cmdline")).ok())
        .any(|line| line == wanted.as_bytes())
}

#[test]
fn without_a_shell_the_build_fails_as_ever() {
    let engine = Engine::with_alpine();
    let dockerfile = "FROM scratch\nRUN [\"/none\"]\n";
    let context = engine.context("none", &[("Dockerfile", dockerfile)]);
    let args = ["build", "--debug", context.to_str().unwrap()];
    let sitting = sit_down(&engine, &args);
    sitting.sees("no shell in the failed step: the image has none (/bin/bash, /bin/sh");
    sitting.sees("exit code: 127");
    let mut sitting = sitting;
    assert_eq!(sitting.build.code(), Some(127));
    // Nobody is there.
    let told = engine.fails(127, args);
    assert!(
        told.contains("--debug opens a shell in a failed step only on a terminal"),
        "{told}"
    );
    engine.assert_clean();
}
