//! Bad input: one clear line, the right exit code, nothing left behind.

use crate::harness::Engine;

#[test]
fn malformed_flags_exit_125_with_one_clear_line() {
    let engine = Engine::with_alpine();
    for (flags, expected) in [
        (vec!["-p", "abc:80"], "abc"),
        (vec!["-p", "80:99999"], "99999"),
        (vec!["-p", "1.2.3:80:80"], "1.2.3"),
        (vec!["-p", "80:80/xyz"], "xyz"),
        (vec!["-v", "relative:/a:rw:x"], "relative:/a:rw:x"),
        (vec!["-v", "name:relative"], "relative"),
        (vec!["--memory", "lots"], "lots"),
        (vec!["--memory", "1m"], "6MB"),
        (vec!["--name", "a b"], "a b"),
        (vec!["--network", "nowhere"], "nowhere"),
        (vec!["--no-such-flag"], "--no-such-flag"),
        (vec!["-e", "=x"], "=x"),
    ] {
        let mut args = vec!["run", "--rm"];
        args.extend(&flags);
        args.extend(["alpine", "true"]);
        let stderr = engine.fails(125, args);
        assert!(stderr.contains(expected), "{flags:?}: {stderr}");
        assert!(!stderr.contains("panicked"), "{flags:?}: {stderr}");
    }
    assert_eq!(engine.ok(["ps", "-aq"]), "");
    engine.assert_clean();
}

#[test]
fn commands_that_cannot_run() {
    let engine = Engine::with_alpine();
    let missing = engine.fails(127, ["run", "--rm", "alpine", "no-such-command"]);
    assert!(
        missing.contains("no-such-command") && missing.contains("not found"),
        "{missing}"
    );
    let missing = engine.fails(127, ["run", "--rm", "alpine", "/no/such/file"]);
    assert!(missing.contains("no such file or directory"), "{missing}");
    for command in ["/etc/passwd", "/etc"] {
        let refused = engine.fails(126, ["run", "--rm", "alpine", command]);
        assert!(
            refused.contains("permission denied") || refused.contains("is a directory"),
            "{refused}"
        );
    }
    assert_eq!(engine.ok(["ps", "-aq"]), "");
    engine.assert_clean();
}

#[test]
fn unknown_objects() {
    let engine = Engine::with_alpine();
    for (args, expected) in [
        (vec!["stop", "nobody"], "No such container: nobody"),
        (vec!["logs", "nobody"], "No such container: nobody"),
        (vec!["rm", "nobody"], "No such container: nobody"),
        (vec!["rmi", "nobody"], "No such image: nobody"),
        (vec!["volume", "rm", "nobody"], "nobody"),
        (vec!["tag", "nobody", "a"], "No such image: nobody"),
        (vec!["tag", "alpine", "UPPER"], "lowercase"),
        (vec!["inspect", "nobody"], "nobody"),
    ] {
        let stderr = engine.fails(1, &args);
        assert!(stderr.contains(expected), "{args:?}: {stderr}");
    }
    let unknown = engine.run(["frobnicate"]);
    assert!(
        unknown.code == 1 && unknown.stderr.contains("frobnicate"),
        "{unknown:?}"
    );
}

#[test]
fn dockerfiles_of_any_size_and_content() {
    let engine = Engine::new();
    let context = engine.context("odd", &[]);
    std::fs::create_dir_all(&context).unwrap();
    let outside = engine.path("Outside");
    let long = format!("# {}\n", "long ".repeat(2000));
    let comments = |bytes: usize| long.repeat(bytes / long.len());
    let of = |middle: String| format!("FROM scratch\n{middle}LABEL last=read\n").into_bytes();
    let build = |content: &[u8]| {
        std::fs::write(&outside, content).unwrap();
        std::fs::write(context.join("Dockerfile"), content).unwrap();
        let context = context.to_str().unwrap();
        let inside = engine.run(["build", "-q", "-t", "odd", context]);
        let outside = outside.to_str().unwrap();
        let other = engine.run(["build", "-q", "-t", "odd", "-f", outside, context]);
        assert_eq!(inside.code, other.code, "{inside:?} {other:?}");
        assert_eq!(inside.stdout, other.stdout);
        (inside, other)
    };
    let (done, _) = build(&of(comments(10 << 20)));
    assert_eq!(
        done.code,
        0,
        "{}",
        &done.stderr[..done.stderr.len().min(500)]
    );
    let label = ["inspect", "-f", "{{.Config.Labels.last}}", "odd"];
    assert_eq!(engine.ok(label), "read");
    for (content, expected) in [
        (of(comments(17 << 20)), "too large"),
        (
            b"FROM scratch\nLABEL a=\xff\n".to_vec(),
            "it is not UTF-8 text",
        ),
        (Vec::new(), "the Dockerfile cannot be empty"),
    ] {
        let (inside, other) = build(&content);
        for done in [inside, other] {
            assert_eq!(
                done.code,
                1,
                "{}",
                &done.stderr[..done.stderr.len().min(500)]
            );
            assert!(done.stderr.contains(expected), "{}", done.stderr);
        }
    }
    engine.assert_clean();
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing() {
    use std::os::unix::process::CommandExt;
    let engine = Engine::with_alpine();
    let context = engine.context("big", &[("Dockerfile", "FROM alpine\nCOPY big /big\n")]);
    std::fs::write(context.join("big"), vec![7_u8; 8 << 20]).unwrap();
    let mut command = engine.command(["build", "-t", "big", context.to_str().unwrap()]);
    // SAFETY: setrlimit is async-signal-safe and the closure touches nothing else.
    #[allow(unsafe_code)]
    unsafe {
        // A file size limit fails writes as a full disk does, on this process alone.
        command.pre_exec(|| {
            let limit = libc::rlimit {
                rlim_cur: 4 << 20,
                rlim_max: libc::RLIM_INFINITY,
            };
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            if libc::setrlimit(libc::RLIMIT_FSIZE, &limit) == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        });
    }
    let output = command.output().unwrap();
    assert!(!output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.to_lowercase().contains("file too large"), "{stderr}");
    assert_eq!(engine.ok(["images", "-q", "big"]), "");
    engine.assert_clean();
    engine.ok(["build", "-q", "-t", "big", context.to_str().unwrap()]);
}
