//! What Prometheus reads.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use enclos_inference::Status;

/// What becomes of requests for inference.
pub(crate) const OUTCOMES: [&str; 8] =
    ["answered", "key", "undecryptable", "replayed", "malformed", "busy", "timed_out", "failed"];

/// Upper bounds of the duration histogram, microseconds.
const BUCKETS: [u64; 9] = [100, 250, 1_000, 5_000, 25_000, 100_000, 500_000, 2_500_000, 10_000_000];

#[derive(Debug, Default)]
pub(crate) struct Metrics {
    outcomes: [AtomicU64; OUTCOMES.len()],
    buckets: [AtomicU64; BUCKETS.len()],
    microseconds: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

/// How things are at present.
pub(crate) struct Gauges {
    pub(crate) inside: usize,
    pub(crate) waiting: usize,
    pub(crate) restarts: u64,
    pub(crate) files_refused: u64,
    /// `None`: the enclave does not answer.
    pub(crate) status: Option<Status>,
}

impl Metrics {
    /// Counts a request; the outcome is one of [`OUTCOMES`].
    pub(crate) fn count(&self, outcome: &str, elapsed: Duration, bytes_in: usize, bytes_out: usize) {
        let index = OUTCOMES.iter().position(|name| *name == outcome).unwrap_or(OUTCOMES.len() - 1);
        let add = |counter: &AtomicU64, n: u64| counter.fetch_add(n, Ordering::Relaxed);
        let microseconds = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        add(&self.outcomes[index], 1);
        add(&self.microseconds, microseconds);
        add(&self.bytes_in, bytes_in as u64);
        add(&self.bytes_out, bytes_out as u64);
        for (bucket, bound) in self.buckets.iter().zip(BUCKETS) {
            add(bucket, u64::from(microseconds <= bound));
        }
    }

    /// All of it in Prometheus' text format.
    pub(crate) fn text(&self, gauges: &Gauges) -> String {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut text = Text::default();
        text.family("requests_total", "counter", "Requests for inference, by what became of them.");
        for (outcome, count) in OUTCOMES.iter().zip(&self.outcomes) {
            text.sample("requests_total", &format!("{{outcome=\"{outcome}\"}}"), load(count));
        }
        text.family("request_seconds", "histogram", "Time from a request's head to its answer.");
        for (bucket, bound) in self.buckets.iter().zip(BUCKETS) {
            let bound = Duration::from_micros(bound).as_secs_f64();
            text.sample("request_seconds_bucket", &format!("{{le=\"{bound}\"}}"), load(bucket));
        }
        let total: u64 = self.outcomes.iter().map(load).sum();
        text.sample("request_seconds_bucket", "{le=\"+Inf\"}", total);
        text.sample("request_seconds_sum", "", Duration::from_micros(load(&self.microseconds)).as_secs_f64());
        text.sample("request_seconds_count", "", total);
        text.one("received_bytes_total", "counter", "Encrypted requests, bytes.", load(&self.bytes_in));
        text.one("sent_bytes_total", "counter", "Encrypted replies, bytes.", load(&self.bytes_out));
        text.one("requests_inside", "gauge", "Requests in the enclave.", gauges.inside as u64);
        text.one("requests_waiting", "gauge", "Requests that wait for others.", gauges.waiting as u64);
        text.one(
            "restarts_total",
            "counter",
            "Enclaves started in place of one that ended.",
            gauges.restarts,
        );
        text.one("files_refused_total", "counter", "Model files that were not served.", gauges.files_refused);
        text.one("up", "gauge", "Does the enclave answer?", u64::from(gauges.status.is_some()));
        let Some(status) = &gauges.status else { return text.0 };
        text.family("model", "gauge", "Versions served.");
        for model in &status.models {
            let labels = format!("{{name=\"{}\",version=\"{}\"}}", model.name, model.version());
            text.sample("model", &labels, 1);
        }
        text.family("key_requests", "gauge", "Requests decrypted, by key.");
        for key in &status.keys {
            text.sample("key_requests", &format!("{{key=\"{}\"}}", key.id), key.requests);
        }
        text.family("key_not_after_seconds", "gauge", "Until when a key takes requests.");
        for key in &status.keys {
            text.sample("key_not_after_seconds", &format!("{{key=\"{}\"}}", key.id), key.not_after);
        }
        text.0
    }
}

#[derive(Default)]
struct Text(String);

/// Writing to a string does not fail.
impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ =
            writeln!(self.0, "# HELP enclos_inference_{name} {help}\n# TYPE enclos_inference_{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.0, "enclos_inference_{name}{labels} {value}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.family(name, kind, help);
        self.sample(name, "", value);
    }
}
