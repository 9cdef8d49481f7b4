//! Pulls that are killed over and over, and what they cost.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::harness::Engine;

/// Bytes of each of the two layers.
const LAYER: usize = 40 << 20;
/// Bytes a second that come through: so slow that the kills hit all of the transfer.
const RATE: u64 = 12 << 20;
const KILLS: u32 = 50;

/// Stands before a registry, slows its answers down and counts them.
struct Meter {
    address: String,
    down: Arc<AtomicU64>,
}

impl Meter {
    fn before(registry: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let down = Arc::new(AtomicU64::new(0));
        let (counter, registry) = (down.clone(), registry.to_owned());
        // When the next byte may come, for all connections together.
        let next = Arc::new(Mutex::new(Instant::now()));
        // Ends with the test's process.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // Counted is what the client could have read, not what waits in a queue here
                // when a busy machine does not let it read.
                rustix::net::sockopt::set_socket_send_buffer_size(&client, 32 << 10).unwrap();
                let Ok(server) = TcpStream::connect(&registry) else {
                    continue;
                };
                let (counter, next) = (counter.clone(), next.clone());
                std::thread::spawn(move || carry(&client, &server, &counter, &next));
            }
        });
        Self { address, down }
    }
}

fn carry(client: &TcpStream, server: &TcpStream, counter: &AtomicU64, next: &Mutex<Instant>) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ = std::io::copy(&mut &*client, &mut &*server);
            let _ = server.shutdown(Shutdown::Both);
        });
        let mut buffer = vec![0; 16 << 10];
        while let Ok(count @ 1..) = (&*server).read(&mut buffer) {
            let due = {
                let mut next = next.lock().unwrap_or_else(PoisonError::into_inner);
                let due = (*next).max(Instant::now());
                *next = due + Duration::from_micros(count as u64 * 1_000_000 / RATE);
                due
            };
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            counter.fetch_add(count as u64, Ordering::Relaxed);
            if (&*client).write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = client.shutdown(Shutdown::Both);
        let _ = server.shutdown(Shutdown::Both);
    });
}

/// Numbers that are as good as random, from a seed (xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[test]
fn a_pull_killed_fifty_times_costs_less_than_half_more() {
    let seed = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .subsec_nanos();
    let mut random = Random(u64::from(seed) | 1);
    let engine = Engine::with_alpine();
    let (_server, registry) = engine.registry("registry", &[]);
    let context = engine.context(
        "big",
        &[("Dockerfile", "FROM alpine\nCOPY one /one\nCOPY two /two\n")],
    );
    for name in ["one", "two"] {
        let mut bytes = Vec::with_capacity(LAYER);
        while bytes.len() < LAYER {
            bytes.extend_from_slice(&random.next().to_le_bytes());
        }
        fs::write(context.join(name), bytes).unwrap();
    }
    let meter = Meter::before(&registry);
    let name = format!("{}/big", meter.address);
    engine.ok(["build", "-q", "-t", &name, context.to_str().unwrap()]);
    let sums = ["run", "--rm", &name, "sha256sum", "/one", "/two"];
    let expected = engine.ok(sums);
    let id = engine.ok(["images", "-q", "--no-trunc", &name]);
    // Past the meter: the same repository.
    let direct = format!("{registry}/big");
    engine.ok(["tag", &name, &direct]);
    engine.ok(["push", &direct]);
    engine.ok(["rmi", "-f", &name, &direct, "alpine"]);
    engine.ok(["system", "prune", "--all", "--force"]);
    assert_eq!(meter.down.load(Ordering::Relaxed), 0);

    let mut cut = 0;
    for _ in 0..KILLS {
        let pulling = engine.spawn(["pull", "-q", &name]);
        std::thread::sleep(Duration::from_millis(20 + random.next() % 380));
        pulling.kill_9();
        cut += u32::from(engine.run(["image", "inspect", &name]).code != 0);
    }
    engine.ok(["pull", "-q", &name]);
    let fetched = meter.down.load(Ordering::Relaxed);
    let size = 2 * LAYER as u64;
    assert!(
        fetched < size * 3 / 2,
        "{fetched} bytes were fetched of {size} (seed {seed})"
    );
    assert!(
        fetched >= size,
        "{fetched} bytes cannot be all (seed {seed})"
    );
    assert!(
        cut >= KILLS / 4,
        "only {cut} kills hit a transfer: it is too fast"
    );
    assert_eq!(engine.ok(["images", "-q", "--no-trunc", &name]), id);
    assert_eq!(engine.ok(sums), expected, "seed {seed}");
    engine.assert_clean();
    eprintln!("{fetched} bytes fetched of {size}; {cut} of {KILLS} kills hit the transfer");
}
