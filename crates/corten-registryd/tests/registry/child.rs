//! The command in a process of its own, which is this test program again, running [`child`]
//! alone.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Lines};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Signal, getrlimit, kill_process, setrlimit};

use crate::harness::Http;

/// The flags that say where the registry is, one a line.
const PLACE: &str = "REGISTRYD_TEST_PLACE";

/// Not a test of its own: what [`Process::start`] runs.
#[test]
#[ignore = "run by the other tests here"]
fn child() {
    let place = std::env::var(PLACE).unwrap();
    // Fewer files than most systems allow at first.
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(256);
    setrlimit(Resource::Nofile, limit).unwrap();
    let words = ["serve", "--listen", "127.0.0.1:0", "--log-format", "json"];
    let words = words.into_iter().chain(place.lines()).map(OsString::from);
    let code = corten_registryd::main(words);
    assert_eq!(code, std::process::ExitCode::SUCCESS);
}

pub(crate) struct Process {
    child: Child,
    pub(crate) http: Http,
    /// Kept open: the test program writes its own summary there at its end.
    _output: Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// Serves a folder, and logs to `log.json` there.
    #[allow(dead_code, reason = "one of the two backends has folders")]
    pub(crate) fn in_folder(root: &Path) -> Self {
        let place = format!("--root\n{}", root.display());
        Self::start(&place, &root.join("log.json"))
    }

    /// Serves what the flags in `place`, one a line, say.
    pub(crate) fn start(place: &str, log: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child::child", "--ignored", "--nocapture"])
            .env(PLACE, place)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .env_remove("RUST_LOG")
            .stderr(std::fs::File::create(log).unwrap())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        let address: SocketAddr = output
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| Some(line.split_once("http://")?.1.parse().unwrap()))
            .unwrap();
        let http = Http::new(address);
        Self {
            child,
            http,
            _output: output,
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
    }

    pub(crate) async fn end(mut self) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the server does not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
