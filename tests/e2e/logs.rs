//! Log drivers: what they keep, where, and how it is read again.

use std::net::UdpSocket;
use std::time::Duration;

use crate::harness::{Background, Engine, until};

fn directory(engine: &Engine, id: &str) -> std::path::PathBuf {
    engine.root().join("containers").join(id)
}

fn lines(text: &str) -> Vec<u32> {
    text.lines().map(|line| line.parse().unwrap()).collect()
}

/// Of a file that is being written to: without a line that is not whole yet.
fn whole_lines(text: &str) -> Vec<u32> {
    lines(text.rfind('\n').map_or("", |end| &text[..end]))
}

#[test]
fn rotated_and_compressed_logs_are_read_as_one() {
    let engine = Engine::with_alpine();
    let script = "seq 1 400; while ! test -e /go; do sleep 0.02; done; \
                  for i in $(seq 401 700); do echo $i; done";
    let id = engine.ok([
        "run",
        "-d",
        "--name",
        "box",
        "--log-opt",
        "max-size=8k",
        "--log-opt",
        "max-file=3",
        "--log-opt",
        "compress=true",
        "alpine",
        "sh",
        "-c",
        script,
    ]);
    until("the first part is logged", || {
        lines(&engine.ok(["logs", "--tail", "1", "box"])) == [400]
    });
    let before = lines(&engine.ok(["logs", "box"]));
    let followed = engine.path("followed");
    let mut follow = engine.command(["logs", "-f", "--tail", "10", "box"]);
    follow.stdout(std::fs::File::create(&followed).unwrap());
    let mut follower = Background::of(follow.spawn().unwrap());
    let followed = || whole_lines(&std::fs::read_to_string(&followed).unwrap_or_default());
    until("it has been shown the past", || followed().len() == 10);
    // Its exit code is not looked at: the container may end before it does, and take it along.
    engine.run(["exec", "box", "touch", "/go"]);
    assert_eq!(follower.code(), Some(0));
    assert_eq!(followed(), (391..=700).collect::<Vec<_>>());
    // So much as three files keep, without a gap.
    let all = lines(&engine.ok(["logs", "box"]));
    assert_eq!(all, (all[0]..=700).collect::<Vec<_>>());
    assert!(all[0] > before[0] && all.len() > 150, "{} lines", all.len());
    assert_eq!(
        lines(&engine.ok(["logs", "-n", "120", "box"])),
        (581..=700).collect::<Vec<_>>()
    );
    let logs = || -> Vec<(String, u64)> {
        let entries = std::fs::read_dir(directory(&engine, &id))
            .unwrap()
            .flatten();
        entries
            .filter(|e| e.file_name().to_string_lossy().contains("-json.log"))
            .map(|e| {
                (
                    e.file_name().into_string().unwrap(),
                    e.metadata().unwrap().len(),
                )
            })
            .collect()
    };
    let found = logs();
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found.iter().all(|(_, size)| *size <= 8 * 1024), "{found:?}");
    // Since and until, over files.
    let stamped = engine.ok(["logs", "-t", "box"]);
    let at = |n: &str| {
        let line = stamped
            .lines()
            .find(|l| l.ends_with(&format!(" {n}")))
            .unwrap();
        line.split(' ').next().unwrap().to_owned()
    };
    let (from, to) = (at("600"), at("650"));
    let span = lines(&engine.ok(["logs", "--since", &from, "--until", &to, "box"]));
    assert!(
        span.contains(&600) && span.contains(&650) && !span.contains(&700),
        "{span:?}"
    );
}

#[test]
fn details_are_the_attributes_asked_for() {
    let engine = Engine::with_alpine();
    for driver in ["json-file", "local"] {
        let name = format!("box-{driver}");
        engine.ok([
            "run",
            "--name",
            &name,
            "--log-driver",
            driver,
            "--label",
            "team=a b",
            "--label",
            "other=1",
            "-e",
            "X_MODE=fast",
            "--log-opt",
            "labels=team",
            "--log-opt",
            "env-regex=^X_",
            "--log-opt",
            "tag={{.Name}}",
            "alpine",
            "echo",
            "hello",
        ]);
        let expected = format!("X_MODE=fast,tag={name},team=a+b hello");
        assert_eq!(engine.ok(["logs", "--details", &name]), expected);
        assert_eq!(engine.ok(["logs", &name]), "hello");
    }
    assert_eq!(
        engine.ok([
            "inspect",
            "-f",
            "{{.HostConfig.LogConfig.Type}}",
            "box-local"
        ]),
        "local"
    );
    for (driver, option, error) in [
        (
            "local",
            "labels-of=a",
            "unknown log opt 'labels-of' for log driver local",
        ),
        (
            "journald",
            "max-size=1m",
            "unknown log opt 'max-size' for journald log driver",
        ),
        (
            "nowhere",
            "tag=a",
            "error looking up logging plugin nowhere: plugin \"nowhere\" not found",
        ),
    ] {
        let refused = engine.fails(
            125,
            [
                "run",
                "--log-driver",
                driver,
                "--log-opt",
                option,
                "alpine",
                "true",
            ],
        );
        assert!(refused.contains(error), "{refused}");
    }
}

#[test]
fn syslog_is_sent_to_and_kept_to_be_read() {
    let engine = Engine::with_alpine();
    let daemon = UdpSocket::bind("127.0.0.1:0").unwrap();
    daemon
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let address = format!("syslog-address=udp://{}", daemon.local_addr().unwrap());
    let mut arguments = vec![
        "run",
        "--name",
        "box",
        "--log-driver",
        "syslog",
        "--log-opt",
        &address,
        "--log-opt",
        "syslog-facility=local0",
        "--log-opt",
        "syslog-format=rfc5424",
        "--log-opt",
        "tag={{.Name}}",
        "alpine",
        "sh",
        "-c",
        "echo out; echo err >&2",
    ];
    engine.ok(&arguments);
    let mut told: Vec<String> = (0..2)
        .map(|_| {
            let mut buffer = [0; 1024];
            let n = daemon.recv(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..n]).into_owned()
        })
        .collect();
    told.sort();
    // Facility 16: 16 * 8 + 3 and + 6.
    assert!(
        told[0].starts_with("<131>1 2") && told[0].ends_with(" box - err\n"),
        "{told:?}"
    );
    assert!(
        told[1].starts_with("<134>1 2") && told[1].ends_with(" box - out\n"),
        "{told:?}"
    );
    assert_eq!(engine.ok(["logs", "box"]), "out");
    arguments[2] = "unread";
    arguments.splice(3..3, ["--log-opt", "cache-disabled=true"]);
    engine.ok(&arguments);
    let refused = engine.fails(1, ["logs", "unread"]);
    let wanted = "configured logging driver does not support reading";
    assert!(refused.contains(wanted), "{refused}");
    engine.ok([
        "run",
        "--name",
        "none",
        "--log-driver",
        "none",
        "alpine",
        "echo",
        "x",
    ]);
    assert!(engine.fails(1, ["logs", "none"]).contains(wanted));
}

#[test]
fn a_log_of_others_that_is_not_there_is_said_at_the_start() {
    let engine = Engine::with_alpine();
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let address = format!("syslog-address=tcp://{closed}");
    let refused = engine.fails(
        125,
        [
            "run",
            "--log-driver",
            "syslog",
            "--log-opt",
            &address,
            "alpine",
            "true",
        ],
    );
    let words = format!(
        "failed to initialize logging driver: syslog at tcp://{closed}: connection refused"
    );
    assert!(refused.contains(&words), "{refused}");
    if !std::path::Path::new("/run/systemd/journal/socket").exists() {
        let refused = engine.fails(125, ["run", "--log-driver", "journald", "alpine", "true"]);
        assert!(
            refused.contains("journald is not enabled on this host"),
            "{refused}"
        );
    }
    engine.assert_clean();
}

#[test]
fn syslog_with_tls_is_sent_to_whom_it_is_meant_for() {
    use std::io::Read as _;
    use std::process::{Command, Stdio};

    let engine = Engine::with_alpine();
    let dir = engine.path("tls");
    std::fs::create_dir(&dir).unwrap();
    let made = Command::new("openssl")
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        ])
        .args([
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
        ])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", "key.pem", "-out", "cert.pem"])
        .current_dir(&dir)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let port = crate::harness::free_port();
    let mut daemon = Command::new("openssl")
        .args(["s_server", "-quiet", "-cert", "cert.pem", "-key", "key.pem"])
        .args(["-accept", &format!("127.0.0.1:{port}")])
        .current_dir(&dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("the daemon listens", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    let address = format!("syslog-address=tcp+tls://localhost:{port}");
    let authority = format!("syslog-tls-ca-cert={}/cert.pem", dir.display());
    let log = |options: &[&str]| {
        let mut args = vec!["run", "--rm", "--log-driver", "syslog"];
        for option in [&[&*address, "syslog-format=rfc5424", "tag=web"], options].concat() {
            args.extend(["--log-opt", option]);
        }
        args.extend(["alpine", "echo", "told in confidence"]);
        engine.run(args)
    };
    let refused = log(&[]);
    assert_eq!(refused.code, 125, "{refused:?}");
    assert!(
        refused.stderr.contains("invalid peer certificate"),
        "{refused:?}"
    );
    let done = log(&[&authority]);
    assert_eq!(done.code, 0, "{done:?}");
    // It has no more clients, and ends when it is told to.
    let mut told = String::new();
    let mut output = daemon.stdout.take().unwrap();
    let mut buffer = [0; 4096];
    while !told.contains("told in confidence") {
        let read = output.read(&mut buffer).unwrap();
        assert!(read > 0, "{told:?}");
        told.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    // RFC 5425: how long it is comes first.
    let (length, message) = told.split_once(' ').unwrap();
    assert_eq!(length.parse::<usize>().unwrap(), message.len(), "{told:?}");
    engine.assert_clean();
}
