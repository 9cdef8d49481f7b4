//! The runtime's tests with real containers (root needed). `create` and `exec` want a
//! single-threaded caller, which the usual test harness is not, so this program is its
//! own: it runs every case in a process of its own, a few at a time.
//!
//! `cargo test -p corten-runtime --test runtime -- [name…]`

#![allow(unreachable_pub, missing_docs, missing_debug_implementations)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod agent;
mod bench;
mod cases;
mod cli;
mod support;

use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Name and body of a case. It fails by panicking.
type Case = (&'static str, fn());

const CASE: &str = "CORTEN_RUNTIME_CASE";
/// Attackers keep every processor busy: beside other tests that takes its time.
const TIMEOUT: Duration = Duration::from_secs(180);

/// How many times longer than usual everything may take: an emulated machine is slow.
fn patience() -> u32 {
    let given = std::env::var("CORTEN_TEST_PATIENCE").ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(1)
}

fn main() -> ExitCode {
    let mut args = std::env::args();
    if args
        .next()
        .is_some_and(|name| name.ends_with(cases::attacks::ATTACKER))
    {
        return cases::attacks::program::main(&args.collect::<Vec<_>>());
    }
    // Called by the runtime's name, this program is the runtime's command line.
    let mut args = std::env::args_os();
    if args.next().is_some_and(|name| name == cli::NAME) {
        return corten_runtime::cli::main(args.collect());
    }
    if let Some(socket) = std::env::var_os(agent::SOCKET) {
        agent::serve(socket.as_ref());
        return ExitCode::SUCCESS;
    }
    if let Ok(name) = std::env::var(CASE) {
        let case = cases::all().into_iter().find(|(case, _)| *case == name);
        case.expect("known case").1();
        return ExitCode::SUCCESS;
    }
    if std::env::args().any(|arg| arg == "--bench") {
        bench::run();
        return ExitCode::SUCCESS;
    }
    let filters: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"))
        .collect();
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|f| name.contains(f));
    let queue: Vec<Case> = cases::all()
        .into_iter()
        .filter(|(name, _)| wanted(name))
        .collect();
    if !rustix::process::geteuid().is_root() {
        println!("not root: {} cases skipped", queue.len());
        return ExitCode::SUCCESS;
    }
    let total = queue.len();
    // Not this very file: the runtime does not execute its own.
    let attacker = tempfile::NamedTempFile::new().unwrap();
    std::fs::copy(std::env::current_exe().unwrap(), attacker.path()).unwrap();
    let attacker = attacker.into_temp_path();
    let queue = Mutex::new(queue);
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let Some((name, _)) = queue.lock().unwrap().pop() else {
                        return;
                    };
                    let (ok, output) = run(name, &attacker);
                    println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
                    if !ok {
                        failed.lock().unwrap().push((name, output));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    for (name, output) in &failed {
        println!("\n--- {name} ---\n{output}");
    }
    // Cargo's own words: scripts count by them.
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {} passed; {} failed; 0 ignored",
        total - failed.len(),
        failed.len()
    );
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn run(name: &str, attacker: &std::path::Path) -> (bool, String) {
    let mut output = tempfile::tempfile().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .env(CASE, name)
        .env(cases::attacks::ATTACKER_FILE, attacker)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output.try_clone().unwrap())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + TIMEOUT * patience();
    let ok = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status.success();
        }
        if Instant::now() > deadline {
            child.kill().ok();
            child.wait().ok();
            break false;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    remove_groups(child.id());
    let mut text = String::new();
    std::io::Seek::rewind(&mut output).unwrap();
    std::io::Read::read_to_string(&mut output, &mut text).unwrap();
    (ok, text)
}

/// Removes the control groups of a case, also of one that failed half way.
fn remove_groups(pid: u32) {
    let path = support::group_of(pid);
    if let Ok(group) = corten_runtime::Cgroup::open(&path) {
        group.kill_all().ok();
        group.remove().ok();
    }
}
