//! Counters, in the text format that Prometheus reads (exposition format 0.0.4).
//!
//! Labels come from small fixed sets only: what a client sends never makes a new series.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of the classes of request times, seconds.
const BOUNDS: [f64; 11] = [
    0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0,
];

/// What has happened since the start.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    requests: Mutex<BTreeMap<(&'static str, &'static str, u16), u64>>,
    times: Mutex<BTreeMap<&'static str, Times>>,
    in_flight: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    connections: AtomicU64,
    cache_hits: AtomicU64,
    cache_misses: AtomicU64,
    cache_fetched: Mutex<BTreeMap<&'static str, u64>>,
    collections: AtomicU64,
    collected_blobs: AtomicU64,
    collected_bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct Times {
    classes: [u64; BOUNDS.len()],
    count: u64,
    seconds: f64,
}

/// Counts one more of something until dropped.
#[derive(Debug)]
pub(crate) struct Counted<'a>(&'a AtomicU64);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    /// A request begins.
    pub(crate) fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// A request is over, its answer sent or given up.
    pub(crate) fn end(
        &self,
        route: &'static str,
        method: &'static str,
        status: u16,
        sent: u64,
        time: Duration,
    ) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.sent.fetch_add(sent, Ordering::Relaxed);
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((route, method, status)).or_default() += 1;
        drop(requests);
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        let times = times.entry(route).or_default();
        let seconds = time.as_secs_f64();
        for (class, bound) in times.classes.iter_mut().zip(BOUNDS) {
            *class += u64::from(seconds <= bound);
        }
        times.count += 1;
        times.seconds += seconds;
    }

    pub(crate) fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A client is connected until the guard is dropped.
    pub(crate) fn connected(&self) -> Counted<'_> {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Counted(&self.connections)
    }

    /// A cache was asked for a blob.
    pub(crate) fn cache_asked(&self, hit: bool) {
        let counter = if hit {
            &self.cache_hits
        } else {
            &self.cache_misses
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// A cache got something from its upstream.
    pub(crate) fn cache_fetched(&self, what: &'static str) {
        let fetched = self.cache_fetched.lock();
        let mut fetched = fetched.unwrap_or_else(PoisonError::into_inner);
        *fetched.entry(what).or_default() += 1;
    }

    pub(crate) fn collected(&self, blobs: u64, bytes: u64) {
        self.collections.fetch_add(1, Ordering::Relaxed);
        self.collected_blobs.fetch_add(blobs, Ordering::Relaxed);
        self.collected_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// All of it as text. `stored` are the bytes on the disk, where they are counted.
    pub(crate) fn text(&self, stored: Option<u64>) -> String {
        let mut out = String::new();
        let mut family = |name: &str, kind: &str, help: &str, samples: &[(String, String)]| {
            let name = format!("corten_registry_{name}");
            // Writing to a String cannot fail.
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (suffix, value) in samples {
                let _ = writeln!(out, "{name}{suffix} {value}");
            }
        };
        let plain = |value: u64| [(String::new(), value.to_string())];
        let load = |counter: &AtomicU64| plain(counter.load(Ordering::Relaxed));

        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let samples: Vec<_> = requests
            .iter()
            .map(|((route, method, status), count)| {
                let labels =
                    format!("{{route=\"{route}\",method=\"{method}\",status=\"{status}\"}}");
                (labels, count.to_string())
            })
            .collect();
        drop(requests);
        family("requests_total", "counter", "Requests answered.", &samples);

        let times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        let mut samples = Vec::new();
        for (route, times) in times.iter() {
            for (class, bound) in times.classes.iter().zip(BOUNDS) {
                let labels = format!("_bucket{{route=\"{route}\",le=\"{bound}\"}}");
                samples.push((labels, class.to_string()));
            }
            let count = times.count.to_string();
            let all = format!("_bucket{{route=\"{route}\",le=\"+Inf\"}}");
            samples.push((all, count.clone()));
            samples.push((
                format!("_sum{{route=\"{route}\"}}"),
                times.seconds.to_string(),
            ));
            samples.push((format!("_count{{route=\"{route}\"}}"), count));
        }
        drop(times);
        family(
            "request_duration_seconds",
            "histogram",
            "Time from a request's head to the end of its answer.",
            &samples,
        );
        family(
            "requests_in_flight",
            "gauge",
            "Requests being answered.",
            &load(&self.in_flight),
        );
        family(
            "connections",
            "gauge",
            "Clients connected.",
            &load(&self.connections),
        );
        family(
            "received_bytes_total",
            "counter",
            "Bytes of request bodies.",
            &load(&self.received),
        );
        family(
            "sent_bytes_total",
            "counter",
            "Bytes of answers' bodies.",
            &load(&self.sent),
        );
        family(
            "cache_hits_total",
            "counter",
            "Blobs a cache had.",
            &load(&self.cache_hits),
        );
        family(
            "cache_misses_total",
            "counter",
            "Blobs a cache lacked.",
            &load(&self.cache_misses),
        );
        let fetched = self
            .cache_fetched
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let samples: Vec<_> = fetched
            .iter()
            .map(|(what, count)| (format!("{{what=\"{what}\"}}"), count.to_string()))
            .collect();
        drop(fetched);
        family(
            "cache_fetched_total",
            "counter",
            "Things fetched from the upstream.",
            &samples,
        );
        family(
            "collections_total",
            "counter",
            "Garbage collections done.",
            &load(&self.collections),
        );
        family(
            "collected_blobs_total",
            "counter",
            "Blobs removed by garbage collections.",
            &load(&self.collected_blobs),
        );
        family(
            "collected_bytes_total",
            "counter",
            "Bytes of blobs removed by garbage collections.",
            &load(&self.collected_bytes),
        );
        if let Some(bytes) = stored {
            family(
                "stored_bytes",
                "gauge",
                "Bytes of all blobs.",
                &plain(bytes),
            );
        }
        out
    }
}

/// The method as a label.
pub(crate) fn method(method: &http::Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_format() {
        let metrics = Metrics::default();
        for milliseconds in [2, 30] {
            metrics.begin();
            let time = Duration::from_millis(milliseconds);
            metrics.end("blob", "GET", 200, 5, time);
        }
        metrics.begin();
        let guard = metrics.connected();
        let text = metrics.text(Some(7));
        for line in [
            "# TYPE corten_registry_requests_total counter",
            "corten_registry_requests_total{route=\"blob\",method=\"GET\",status=\"200\"} 2",
            "corten_registry_request_duration_seconds_bucket{route=\"blob\",le=\"0.001\"} 0",
            "corten_registry_request_duration_seconds_bucket{route=\"blob\",le=\"0.005\"} 1",
            "corten_registry_request_duration_seconds_bucket{route=\"blob\",le=\"+Inf\"} 2",
            "corten_registry_request_duration_seconds_count{route=\"blob\"} 2",
            "corten_registry_requests_in_flight 1",
            "corten_registry_connections 1",
            "corten_registry_sent_bytes_total 10",
            "corten_registry_stored_bytes 7",
        ] {
            assert!(text.lines().any(|have| have == line), "{line}\n{text}");
        }
        drop(guard);
        assert!(
            metrics
                .text(None)
                .contains("corten_registry_connections 0\n")
        );
    }
}
