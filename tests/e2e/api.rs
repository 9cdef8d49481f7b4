//! The same things through `corten serve`: with our command line, and with the real
//! `docker` command line where it is installed.

use std::process::Command;

use crate::harness::{Engine, docker, free_port, http_get, until};

#[test]
fn the_docker_command_line_walks_through() {
    let engine = Engine::with_alpine();
    let (_server, host) = engine.serve();
    let (_registry, address) = engine.registry("registry", &[]);
    let run = |args: &[&str]| {
        let done = docker(&engine, &host, args)?;
        assert_eq!(done.code, 0, "docker {args:?}: {done:?}");
        Some(done.stdout.trim_end().to_owned())
    };
    if run(&["version"]).is_none() {
        return;
    }
    let context = engine.context(
        "web",
        &[
            ("Dockerfile", "FROM alpine AS builder\nCOPY page /page\nRUN cat /page > /index.html\nFROM alpine\nWORKDIR /www\nCOPY --from=builder /index.html .\nCMD [\"httpd\",\"-f\",\"-p\",\"80\",\"-h\",\"/www\"]\n"),
            ("page", "Hello, Docker!\n"),
        ],
    );
    let built = run(&["build", "-t", "web", context.to_str().unwrap()]).unwrap();
    assert!(built.contains("Successfully tagged web:latest"), "{built}");
    let port = free_port();
    let publish = format!("{port}:80");
    run(&["run", "-d", "-p", &publish, "--name", "my-web", "web"]);
    until("the app answers", || {
        http_get(&format!("127.0.0.1:{port}")).as_deref() == Some("Hello, Docker!\n")
    });
    assert!(run(&["ps"]).unwrap().contains("my-web"));
    assert_eq!(
        run(&["exec", "my-web", "echo", "inside"]).unwrap(),
        "inside"
    );
    run(&["logs", "my-web"]);
    run(&["inspect", "my-web"]);
    run(&["stop", "-t", "1", "my-web"]);
    assert!(run(&["ps", "-a"]).unwrap().contains("Exited"));
    run(&["rm", "my-web"]);
    let name = format!("{address}/web");
    run(&["tag", "web", &name]);
    assert!(run(&["push", &name]).unwrap().contains("digest: sha256:"));
    run(&["rmi", &name, "web"]);
    assert_eq!(
        run(&["run", "--rm", &name, "cat", "index.html"]).unwrap(),
        "Hello, Docker!"
    );
    run(&[
        "run",
        "--rm",
        "-v",
        "data:/data",
        "alpine",
        "sh",
        "-c",
        "echo kept > /data/f",
    ]);
    assert_eq!(
        run(&[
            "run",
            "--rm",
            "-v",
            "data:/data",
            "alpine",
            "cat",
            "/data/f"
        ])
        .unwrap(),
        "kept"
    );
    let failed = docker(
        &engine,
        &host,
        &["run", "--rm", "alpine", "no-such-command"],
    )
    .unwrap();
    assert_eq!(failed.code, 127, "{failed:?}");
    let failed = docker(
        &engine,
        &host,
        &["run", "--rm", "alpine", "sh", "-c", "exit 5"],
    )
    .unwrap();
    assert_eq!(failed.code, 5, "{failed:?}");
    for args in [
        vec!["images"],
        vec!["volume", "ls"],
        vec!["network", "ls"],
        vec!["info"],
        vec!["system", "df"],
        vec!["history", &name],
        vec!["network", "inspect", "bridge"],
    ] {
        run(&args);
    }
}

#[test]
fn our_command_line_through_a_socket() {
    let engine = Engine::with_alpine();
    let (_server, host) = engine.serve();
    let remote = |args: &[&str]| {
        let mut all = vec!["-H", &host];
        all.extend(args);
        engine.run(all)
    };
    let done = remote(&["run", "--rm", "-i", "alpine", "sh", "-c", "cat; exit 4"]);
    assert_eq!(done.code, 4, "{done:?}");
    let context = engine.context(
        "remote",
        &[
            (
                "Dockerfile",
                "FROM alpine\nCOPY f /f\nCMD [\"cat\",\"/f\"]\n",
            ),
            ("f", "sent\n"),
        ],
    );
    let built = remote(&["build", "-t", "remote", context.to_str().unwrap()]);
    assert_eq!(built.code, 0, "{built:?}");
    assert_eq!(remote(&["run", "--rm", "remote"]).stdout, "sent\n");
    // A client of a socket cannot make the engine read a directory of its host.
    let raw = Command::new("curl")
        .args([
            "-sS",
            "--unix-socket",
            &engine.path("api.sock").display().to_string(),
            "-X",
            "POST",
            "-H",
            "X-Corten-Context: /etc",
            "http://corten/build?t=stolen",
        ])
        .output()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&raw.stdout).contains("message"),
        "{raw:?}"
    );
    assert_eq!(engine.ok(["images", "-q", "stolen"]), "");
}

#[test]
fn versions_are_negotiated() {
    let engine = Engine::new();
    let (_server, _host) = engine.serve();
    let get = |path: &str| {
        let socket = engine.path("api.sock").display().to_string();
        let url = format!("http://corten{path}");
        let output = Command::new("curl")
            .args(["-sS", "-i", "--unix-socket", &socket, &url])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let ping = get("/_ping");
    assert!(
        ping.starts_with("HTTP/1.1 200") && ping.ends_with("OK"),
        "{ping}"
    );
    assert!(ping.to_lowercase().contains("api-version: 1."), "{ping}");
    assert!(get("/v1.24/version").starts_with("HTTP/1.1 200"));
    assert!(get("/v1.99/version").contains("too new"));
    assert!(get("/v1.44/no/such/route").starts_with("HTTP/1.1 404"));
    assert!(get("/containers/nobody/json").contains("No such container: nobody"));
}

#[test]
fn the_docker_command_line_tells_failures_once() {
    let engine = Engine::with_alpine();
    let (_server, host) = engine.serve();
    let (_registry, address) = engine.registry("registry", &[]);
    let image = format!("{address}/absent:1");
    let Some(done) = docker(&engine, &host, &["pull", &image]) else {
        return;
    };
    let unknown = format!(
        "Error response from daemon: manifest for {image} not found: manifest unknown: \
         manifest unknown\n"
    );
    assert_eq!((done.code, done.stdout.as_str()), (1, ""), "{done:?}");
    assert_eq!(done.stderr, unknown);

    for (args, code, message) in [
        // A missing network is no missing image: nothing is pulled.
        (
            ["--network", "absent", "alpine", "true"],
            125,
            "failed to set up container networking: network absent not found",
        ),
        (
            ["--network", "none", "alpine", "absent"],
            127,
            "exec: \"absent\": executable file not found in $PATH",
        ),
    ] {
        let args = [&["run", "--rm"][..], &args].concat();
        let done = docker(&engine, &host, &args).unwrap();
        let told = format!("docker: Error response from daemon: {message}\n\n");
        assert_eq!(done.code, code, "{done:?}");
        assert!(done.stderr.starts_with(&told), "{done:?}");
    }

    let run = |args: &[&str]| docker(&engine, &host, args).unwrap().stdout;
    run(&["run", "--name", "changes", "alpine", "touch", "/new"]);
    assert_eq!(run(&["diff", "changes"]), "A /new\n");
}

#[test]
fn any_client_of_a_terminal_detaches_by_keys() {
    use std::io::{Read as _, Write as _};
    let engine = Engine::with_alpine();
    let (_server, _host) = engine.serve();
    engine.ok(["run", "-dit", "--name", "box", "alpine", "cat"]);
    for (query, typed) in [
        ("", "echo\r\x10\x11"),
        ("&detachKeys=ctrl-a,z", "\x10\x11\x01z"),
    ] {
        let mut stream = std::os::unix::net::UnixStream::connect(engine.path("api.sock")).unwrap();
        let patience = Some(crate::harness::PATIENCE);
        stream.set_read_timeout(patience).unwrap();
        let request = format!(
            "POST /containers/box/attach?stream=1&stdin=1&stdout=1{query} HTTP/1.1\r\n\
             Host: corten\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        assert!(head.starts_with(b"HTTP/1.1 101"), "{head:?}");
        stream.write_all(typed.as_bytes()).unwrap();
        // To its end: the client is let go, the program is not.
        stream.read_to_end(&mut Vec::new()).unwrap();
        let running = engine.ok(["inspect", "-f", "{{.State.Running}}", "box"]);
        assert_eq!(running, "true", "{query}");
    }
    engine.ok(["rm", "-f", "box"]);
}

/// What is born into a frozen group never gets to its program.
#[test]
fn nothing_is_executed_in_what_has_been_paused_meanwhile() {
    let engine = Engine::with_alpine();
    let (_server, _host) = engine.serve();
    engine.ok(["run", "-d", "--name", "box", "alpine", "sleep", "1000"]);
    let post = |path: &str, body: &str| {
        let socket = engine.path("api.sock").display().to_string();
        let url = format!("http://corten{path}");
        let output = Command::new("curl")
            .args(["-sS", "-X", "POST", "-H", "Content-Type: application/json"])
            .args(["--unix-socket", &socket, "-d", body, &url])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let created = post("/containers/box/exec", r#"{"Cmd": ["touch", "/new"]}"#);
    let id = created.split('"').nth(3).unwrap();
    engine.ok(["pause", "box"]);
    let start = format!("/exec/{id}/start");
    let refused = post(&start, r#"{"Detach": true}"#);
    assert!(refused.contains("is paused"), "{refused}");
    engine.ok(["unpause", "box"]);
    assert_eq!(post(&start, r#"{"Detach": true}"#), "");
    until("it has been executed", || {
        engine.run(["exec", "box", "test", "-e", "/new"]).code == 0
    });
    engine.ok(["rm", "-f", "box"]);
    engine.assert_clean();
}

/// Its supervisor hears of it with its start, whoever asks for that.
#[test]
fn an_exec_is_created_by_one_server_and_started_by_the_next() {
    let engine = Engine::with_alpine();
    let curl = |headers: &[&str], method: &str, path: &str, body: &str| {
        let socket = engine.path("api.sock").display().to_string();
        let url = format!("http://corten{path}");
        let output = Command::new("curl")
            .args(["-sS", "-w", "\n%{http_code}", "-X", method])
            .args(["-H", "Content-Type: application/json"])
            .args(headers.iter().flat_map(|header| ["-H", header]))
            .args(["--unix-socket", &socket, "-d", body, &url])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let ask = |method: &str, path: &str, body: &str| curl(&[], method, path, body);
    engine.ok(["run", "-d", "--name", "box", "alpine", "sleep", "1000"]);
    let (server, _) = engine.serve();
    let command = r#"{"Cmd": ["sh", "-c", "echo $$ >> /pid; exec sleep 1000"]}"#;
    let created = ask("POST", "/containers/box/exec", command);
    let id = created.split('"').nth(3).unwrap();
    assert!(engine.told("{{.ExecIDs}}", "box").contains(id));
    server.kill_9();
    std::fs::remove_file(engine.path("api.sock")).unwrap();
    let (_server, _) = engine.serve();
    let json = format!("/exec/{id}/json");
    let look = || ask("GET", &json, "");
    let waiting = look();
    for told in [r#""Running":false"#, r#""Pid":0"#] {
        assert!(waiting.contains(told), "{waiting}");
    }
    assert!(!waiting.contains(r#""ExitCode":1"#), "{waiting}");
    let resized = ask("POST", &format!("/exec/{id}/resize?h=1&w=1"), "");
    assert!(resized.ends_with("409"), "{resized}");
    let start = || ask("POST", &format!("/exec/{id}/start"), r#"{"Detach": true}"#);
    assert_eq!(start(), "\n200");
    assert!(look().contains(r#""Running":true"#));
    let again = start();
    assert!(again.ends_with("409"), "{again}");
    // Nor is it begun anew once it has ended.
    engine.ok(["exec", "box", "sh", "-c", "kill -9 $(cat /pid)"]);
    until("it has ended", || look().contains(r#""ExitCode":137"#));
    let again = start();
    assert!(again.ends_with("409"), "{again}");
    assert_eq!(engine.ok(["exec", "box", "wc", "-l", "/pid"]), "1 /pid");
    // A pause refuses one with a status, not in its stream, and it can be started after it.
    let command = r#"{"AttachStdout": true, "Cmd": ["echo", "after it"]}"#;
    let created = ask("POST", "/containers/box/exec", command);
    let id = created.split('"').nth(3).unwrap();
    let attached = || {
        let headers = ["Connection: Upgrade", "Upgrade: tcp"];
        curl(&headers, "POST", &format!("/exec/{id}/start"), "{}")
    };
    engine.ok(["pause", "box"]);
    let refused = attached();
    assert!(refused.contains("is paused"), "{refused}");
    assert!(refused.ends_with("409"), "{refused}");
    engine.ok(["unpause", "box"]);
    let started = ask("POST", &format!("/exec/{id}/start"), "{}");
    assert!(started.contains("after it"), "{started}");
    engine.ok(["rm", "-f", "box"]);
    engine.assert_clean();
}
