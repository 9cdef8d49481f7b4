//! The command in a process of its own: what it prints, how it ends, and what a `kill -9`
//! leaves.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use corten_oci::Digest;
use http::StatusCode;
use rustix::process::{Resource, Signal, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::child::Process;

#[tokio::test]
async fn a_running_request_is_finished_at_sigterm() {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::in_folder(folder.path());
    let digest = Digest::of(b"0123456789");
    let mut stream = tokio::net::TcpStream::connect(process.http.address)
        .await
        .unwrap();
    let head = format!(
        "POST /v2/app/blobs/uploads/?digest={digest} HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n01234"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // The upload's file shows that the request runs.
    wait_for(|| has_entry(&folder.path().join("repositories/app/_uploads"))).await;
    process.signal(Signal::TERM);
    let address = process.http.address;
    wait_for(|| std::net::TcpStream::connect(address).is_err()).await;
    stream.write_all(b"56789").await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 201 "), "{reply}");
    assert!(process.end().await.success());
}

/// All connected before the first is answered, whatever limit of open files there was.
#[tokio::test]
async fn a_thousand_clients_are_served() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let process = Process::in_folder(folder.path());
    let bytes = vec![7; 200_000];
    let digest = process.http.push_blob("app", &bytes).await;
    let request =
        format!("GET /v2/app/blobs/{digest} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let mut clients = Vec::new();
    for _ in 0..1000 {
        let connected = tokio::net::TcpStream::connect(process.http.address).await;
        clients.push(connected.unwrap());
    }
    for client in &mut clients {
        client.write_all(request.as_bytes()).await.unwrap();
    }
    for (n, mut client) in clients.into_iter().enumerate() {
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{n}");
        assert!(answer.ends_with(&bytes), "{n}");
    }
    process.signal(Signal::TERM);
    assert!(process.end().await.success());
}

#[tokio::test]
async fn a_killed_server_leaves_no_half_blob_and_uploads_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let bytes: Vec<u8> = (0..8_000_000_u32).map(|n| (n % 253) as u8).collect();
    let digest = Digest::of(&bytes);
    let process = Process::in_folder(root);
    let upload = process.http.start_upload("app").await;
    let mut stream = tokio::net::TcpStream::connect(process.http.address)
        .await
        .unwrap();
    let head = format!(
        "PATCH {upload} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
        bytes.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&bytes[..5_000_000]).await.unwrap();
    let file = root.join("repositories").join(
        upload
            .trim_start_matches("/v2/")
            .replace("blobs/uploads", "_uploads"),
    );
    wait_for(|| std::fs::metadata(&file).is_ok_and(|metadata| metadata.len() > 0)).await;
    process.signal(Signal::KILL);
    assert!(!process.end().await.success());
    assert!(!has_entry(&root.join("blobs")));
    let stale = root.join("tmp/stale");
    std::fs::write(&stale, "x").unwrap();
    let old = SystemTime::now() - Duration::from_secs(25 * 60 * 60);
    std::fs::File::options()
        .write(true)
        .open(&stale)
        .unwrap()
        .set_modified(old)
        .unwrap();

    let process = Process::in_folder(root);
    assert!(!stale.exists(), "stale files are swept at start");
    let http = &process.http;
    http.get(&format!("/v2/app/blobs/{digest}"))
        .await
        .expect(StatusCode::NOT_FOUND);
    let state = http.get(&upload).await;
    let last = state
        .expect(StatusCode::NO_CONTENT)
        .header("range")
        .strip_prefix("0-")
        .unwrap();
    let have = last.parse::<usize>().unwrap() + 1;
    let range = format!("{have}-{}", bytes.len() - 1);
    let path = format!("{upload}?digest={digest}");
    let done = http
        .send(
            "PUT",
            &path,
            &[("content-range", &range)],
            bytes[have..].to_vec(),
        )
        .await;
    done.expect(StatusCode::CREATED);
    let blob = http.get(&format!("/v2/app/blobs/{digest}")).await;
    assert!(blob.expect(StatusCode::OK).body == bytes);
    process.signal(Signal::INT);
    assert!(process.end().await.success());
}

#[tokio::test]
async fn every_request_is_an_object_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::in_folder(folder.path());
    let bytes: Vec<u8> = vec![7; 30_000_000];
    let digest = process.http.push_blob("app", &bytes).await;
    let path = format!("/v2/app/blobs/{digest}");
    process.http.get(&path).await.expect(StatusCode::OK);
    process
        .http
        .get("/v2/none/tags/list")
        .await
        .expect(StatusCode::NOT_FOUND);
    // This one leaves in the middle.
    let mut stream = tokio::net::TcpStream::connect(process.http.address)
        .await
        .unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nuser-agent: leaver\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.read_exact(&mut [0; 10]).await.unwrap();
    drop(stream);
    let events = || -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(folder.path().join("log.json")).unwrap();
        let lines = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        let access = |event: &serde_json::Value| event["target"] == "corten_registryd::access";
        lines.filter(access).collect()
    };
    wait_for(|| events().len() == 4).await;
    let events = events();
    let get = &events[1];
    for (field, value) in [
        ("method", "GET".into()),
        ("path", path.into()),
        ("status", 200.into()),
        ("bytes", bytes.len().into()),
        ("whole", true.into()),
    ] {
        let value: serde_json::Value = value;
        assert_eq!(get[field], value, "{get}");
    }
    assert!(
        get["peer"].as_str().unwrap().starts_with("127.0.0.1:"),
        "{get}"
    );
    assert_eq!(
        (&events[2]["status"], &events[2]["whole"]),
        (&404.into(), &true.into())
    );
    assert_eq!(
        (&events[3]["agent"], &events[3]["whole"]),
        (&"leaver".into(), &false.into())
    );
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let settings = folder.path().join("settings.toml");
    let root = folder.path().join("registry");
    let text = format!("root = {root:?}\ndrain = \"10m\"\n");
    std::fs::write(&settings, text).unwrap();
    let place = format!("--config\n{}", settings.display());
    let process = Process::start(&place, &folder.path().join("log.json"));
    process.signal(Signal::TERM);
    let log = || std::fs::read_to_string(folder.path().join("log.json")).unwrap();
    wait_for(|| log().contains("stopping")).await;
    process.signal(Signal::INT);
    assert!(process.end().await.success());
    assert!(log().contains("once more"), "{}", log());
}

#[tokio::test]
async fn it_goes_on_after_a_hangup() {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::in_folder(folder.path());
    process.signal(Signal::HUP);
    let log = || std::fs::read_to_string(folder.path().join("log.json")).unwrap();
    wait_for(|| log().contains("SIGHUP")).await;
    process.http.get("/v2/").await.expect(StatusCode::OK);
    process.signal(Signal::TERM);
    assert!(process.end().await.success());
}

async fn wait_for(mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "waited too long");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn has_entry(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some())
}
