//! What the service tells Prometheus.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use axum::http::StatusCode;

/// How much is going on at present, in the text form Prometheus reads.
pub(super) fn gauges(all: &[(&str, &str, u64)]) -> String {
    let mut text = String::new();
    for (name, help, value) in all {
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "# HELP enclos_attestation_{name} {help}\n# TYPE enclos_attestation_{name} gauge\n\
             enclos_attestation_{name} {value}"
        );
    }
    text
}

/// Counters in the text form Prometheus reads.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    routes: [RouteMetrics; ROUTES.len()],
}

pub(super) const ROUTES: [&str; 15] = [
    "attest",
    "get_policy",
    "set_policy",
    "reset_policy",
    "certificates",
    "change_certificate",
    "tcb_baselines",
    "keys",
    "openid_configuration",
    "openapi",
    "metrics",
    "health",
    "page",
    "inspect",
    "none",
];
/// Upper bounds of the duration histogram, microseconds.
const BUCKETS: [u64; 8] = [500, 1_000, 2_500, 5_000, 10_000, 50_000, 250_000, 1_000_000];

#[derive(Debug, Default)]
struct RouteMetrics {
    /// By hundreds of the status: 2xx, 4xx, 5xx.
    answers: [AtomicU64; 3],
    buckets: [AtomicU64; BUCKETS.len()],
    microseconds: AtomicU64,
}

impl Metrics {
    pub(super) fn count(&self, route: &str, status: StatusCode, elapsed: Duration) {
        let index = ROUTES.iter().position(|name| *name == route).unwrap_or(ROUTES.len() - 1);
        let route = &self.routes[index];
        let class = match status.as_u16() {
            ..400 => 0,
            400..500 => 1,
            _ => 2,
        };
        route.answers[class].fetch_add(1, Ordering::Relaxed);
        let microseconds = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        route.microseconds.fetch_add(microseconds, Ordering::Relaxed);
        for (bucket, bound) in route.buckets.iter().zip(BUCKETS) {
            if microseconds <= bound {
                bucket.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "for people's eyes")]
    pub(super) fn text(&self) -> String {
        let mut text = String::from(
            "# HELP enclos_attestation_requests_total Requests answered.\n# TYPE enclos_attestation_requests_total counter\n",
        );
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        // Writing to a string does not fail.
        for (name, route) in ROUTES.iter().zip(&self.routes) {
            for (class, count) in ["2xx", "4xx", "5xx"].iter().zip(&route.answers) {
                let _ = writeln!(
                    text,
                    "enclos_attestation_requests_total{{route=\"{name}\",status=\"{class}\"}} {}",
                    load(count)
                );
            }
        }
        text.push_str(
            "# HELP enclos_attestation_request_seconds Time to answer.\n# TYPE enclos_attestation_request_seconds histogram\n",
        );
        for (name, route) in ROUTES.iter().zip(&self.routes) {
            let total: u64 = route.answers.iter().map(load).sum();
            for (bucket, bound) in route.buckets.iter().zip(BUCKETS) {
                let _ = writeln!(
                    text,
                    "enclos_attestation_request_seconds_bucket{{route=\"{name}\",le=\"{}\"}} {}",
                    bound as f64 / 1e6,
                    load(bucket)
                );
            }
            let _ = writeln!(
                text,
                "enclos_attestation_request_seconds_bucket{{route=\"{name}\",le=\"+Inf\"}} {total}\n\
                 enclos_attestation_request_seconds_sum{{route=\"{name}\"}} {}\n\
                 enclos_attestation_request_seconds_count{{route=\"{name}\"}} {total}",
                load(&route.microseconds) as f64 / 1e6
            );
        }
        text
    }
}
