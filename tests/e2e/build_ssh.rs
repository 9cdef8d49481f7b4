//! `build --ssh id=FILE`: keys in files, used by OpenSSH in a step.

use std::path::Path;
use std::process::Command;

use crate::harness::{Done, Engine};

/// A context with OpenSSH's programs of this machine and what they load.
fn context(engine: &Engine, dockerfile: &str) -> std::path::PathBuf {
    let context = engine.context("ssh", &[("Dockerfile", dockerfile)]);
    let copy = |from: &Path| {
        let to = context
            .join("programs")
            .join(from.strip_prefix("/").unwrap());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(from, to).unwrap();
    };
    for program in ["/usr/bin/ssh-add", "/usr/bin/ssh-keygen"] {
        copy(Path::new(program));
        let loaded = Command::new("ldd").arg(program).output().unwrap();
        let loaded = String::from_utf8(loaded.stdout).unwrap();
        let paths = loaded.split_whitespace().filter(|w| w.starts_with('/'));
        paths.for_each(|path| copy(Path::new(path)));
    }
    context
}

fn build(engine: &Engine, context: &Path, ssh: &[&str]) -> Done {
    let mut args = vec!["build", "--progress=plain", "-t", "signed"];
    args.extend(ssh.iter().flat_map(|ssh| ["--ssh", ssh]));
    args.push(context.to_str().unwrap());
    engine.run(args)
}

fn keygen(dir: &Path, args: &[&str]) {
    let mut command = Command::new("ssh-keygen");
    let made = command.arg("-q").args(args).current_dir(dir).output();
    let made = made.unwrap();
    assert!(made.status.success(), "{made:?}");
}

#[test]
fn keys_in_files_sign_in_a_step() {
    let engine = Engine::with_alpine();
    let dir = engine.path("keys");
    std::fs::create_dir(&dir).unwrap();
    keygen(&dir, &["-t", "ed25519", "-N", "", "-f", "one"]);
    keygen(&dir, &["-t", "rsa", "-b", "2048", "-N", "", "-f", "two"]);
    keygen(&dir, &["-t", "ed25519", "-N", "secret", "-f", "sealed"]);
    let key = |name: &str| dir.join(name).display().to_string();
    let both = format!("default={},{}", key("one"), key("two"));
    let dockerfile = "\
FROM alpine AS tools
COPY programs /
RUN echo root:x:0:0:root:/root:/bin/sh > /etc/passwd
FROM tools AS signing
RUN --mount=type=ssh,required ssh-add -l > /listed && ssh-add -L > /public && \
    while read line; do echo \"$line\" > /key.pub && echo text > /text && \
    ssh-keygen -Y sign -f /key.pub -n file /text && echo \"me $line\" > /allowed && \
    ssh-keygen -Y verify -f /allowed -I me -n file -s /text.sig < /text >> /verified && \
    rm /text.sig; done < /public
RUN --mount=type=ssh,id=other ssh-add -l > /other || echo none > /other
FROM alpine
COPY --from=signing /listed /verified /other /
";
    let context = context(&engine, dockerfile);
    let done = build(&engine, &context, &[&both]);
    assert_eq!(done.code, 0, "{done:?}");
    let shown = |path: &str| engine.ok(["run", "--rm", "signed", "cat", path]);
    for name in ["one.pub", "two.pub"] {
        let printed = Command::new("ssh-keygen")
            .args(["-l", "-f", &key(name)])
            .output();
        let printed = String::from_utf8(printed.unwrap().stdout).unwrap();
        let fingerprint = printed.split(' ').nth(1).unwrap();
        assert!(shown("/listed").contains(fingerprint), "{fingerprint}");
    }
    assert_eq!(
        shown("/verified")
            .matches("Good \"file\" signature for me")
            .count(),
        2
    );
    assert_eq!(shown("/other"), "none");

    let private = std::fs::read_to_string(dir.join("one")).unwrap();
    let secret = private.lines().nth(2).unwrap();
    let kept = Command::new("grep")
        .args(["-rlF", secret])
        .arg(engine.root())
        .output();
    assert_eq!(String::from_utf8(kept.unwrap().stdout).unwrap(), "");

    for (ssh, why) in [
        ("default=sealed", "passphrase protected"),
        ("default=one.pub", "no key found"),
        ("default=one,none", "none: no such file"),
    ] {
        let ssh = ssh.replace('=', &format!("={}/", dir.display()));
        let ssh = ssh.replace(',', &format!(",{}/", dir.display()));
        let done = build(&engine, &context, &[&ssh]);
        assert_eq!(done.code, 1, "{done:?}");
        assert!(done.stderr.contains(why), "{done:?}");
        assert_eq!(done.stderr.trim().lines().count(), 1, "{done:?}");
    }
    engine.assert_clean();
}
