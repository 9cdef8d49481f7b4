//! Where the time of `create` and `start` goes: `cargo test … -- --bench`, best in a
//! release build and under `strace -r -f` or `perf trace`.

use std::time::{Duration, Instant};

use corten_runtime::{Stdio, exec, wait_pidfd};

use crate::support::Container;

/// Prints medians.
pub fn run() {
    let container = Container::args(&["true"]);
    let mut times: [Vec<Duration>; 5] = Default::default();
    for _ in 0..50 {
        let start = Instant::now();
        let created = container.create(Stdio::Inherit).unwrap();
        let made = Instant::now();
        let running = created.start().unwrap();
        let started = Instant::now();
        wait_pidfd(&running.pidfd).unwrap();
        let ended = Instant::now();
        running.cgroup.remove().unwrap();
        let removed = Instant::now();
        times[0].push(made - start);
        times[1].push(started - made);
        times[2].push(ended - started);
        times[3].push(removed - ended);
        times[4].push(removed - start);
    }
    for (name, times) in ["create", "start", "run and wait", "remove", "all"]
        .iter()
        .zip(times)
    {
        print(name, times);
    }
    let sleeping = Container::args(&["sleep", "1000"]);
    let running = sleeping.create(Stdio::Inherit).unwrap().start().unwrap();
    let mut process = sleeping.spec.process().clone().unwrap();
    process.set_args(Some(vec!["true".into()]));
    let mut times = Vec::new();
    for _ in 0..50 {
        let start = Instant::now();
        let target = sleeping.target(&running);
        let process = exec(&target, &process, Stdio::Inherit).unwrap();
        wait_pidfd(&process.pidfd).unwrap();
        times.push(start.elapsed());
    }
    print("exec and wait", times);
    running.cgroup.kill_all().unwrap();
    wait_pidfd(&running.pidfd).unwrap();
    running.cgroup.remove().unwrap();
}

fn print(name: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let (least, median) = (times[0], times[times.len() / 2]);
    println!("{name:>14}: median {median:>10.1?}, least {least:>10.1?}");
}
