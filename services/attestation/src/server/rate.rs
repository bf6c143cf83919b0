//! How many requests a client address may make.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Instant,
};

/// A bucket a client address: filled at its rate, emptied by requests, holding ten seconds' worth.
#[derive(Debug)]
pub(super) struct RateLimiter {
    rate: f64,
    buckets: Mutex<HashMap<IpAddr, (f64, Instant)>>,
}

/// Addresses remembered; when there are more, those that have not been seen for long are forgotten.
const CLIENTS: usize = 100_000;
const SECONDS_HELD: f64 = 10.0;

impl RateLimiter {
    pub(super) fn new(requests_per_second: u32) -> Self {
        Self { rate: requests_per_second.into(), buckets: Mutex::default() }
    }

    pub(super) fn admits(&self, client: IpAddr, now: Instant) -> bool {
        if self.rate == 0.0 {
            return true;
        }
        let full = self.rate * SECONDS_HELD;
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= CLIENTS && !buckets.contains_key(&client) {
            // A bucket not touched for so long is full again, as a new one would be.
            buckets.retain(|_, (_, seen)| now.duration_since(*seen).as_secs_f64() < SECONDS_HELD);
            if buckets.len() >= CLIENTS {
                return false;
            }
        }
        let (tokens, seen) = buckets.entry(client).or_insert((full, now));
        *tokens = (*tokens + now.duration_since(*seen).as_secs_f64() * self.rate).min(full);
        *seen = now;
        let admitted = *tokens >= 1.0;
        if admitted {
            *tokens -= 1.0;
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn clients_are_limited_apart_and_recover() {
        let limiter = RateLimiter::new(2);
        let (one, other) = ([127, 0, 0, 1].into(), [127, 0, 0, 2].into());
        let start = Instant::now();
        let admitted = (0..30).filter(|_| limiter.admits(one, start)).count();
        assert_eq!(admitted, 20);
        assert!(limiter.admits(other, start));
        assert!(!limiter.admits(one, start + Duration::from_millis(400)));
        assert!(limiter.admits(one, start + Duration::from_millis(600)));
        assert!(!limiter.admits(one, start + Duration::from_millis(700)));
        let unlimited = RateLimiter::new(0);
        assert!((0..10_000).all(|_| unlimited.admits(one, start)));
    }
}
