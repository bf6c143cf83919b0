//! The clocks that the host tells the enclave about, and the rate of the time-stamp counter between them.

use std::arch::x86_64::{__cpuid, _rdtsc};
use std::sync::atomic::{AtomicU64, Ordering};

use enclos::abi::ClockSample;

use crate::entry::{clock_ns, monotonic_ns};

/// Measures the rate of the time-stamp counter from when it is made: the longer ago, the more precisely.
pub(crate) struct Clock {
    /// The first reading: counter and CLOCK_MONOTONIC; `None` when the counter is not usable as a clock.
    first: Option<(u64, u64)>,
}

/// At least this much time lies between two readings from which a rate is computed: with a jitter of some 50 ns a
/// reading, the rate is then off by 20 parts in a million at most.
const BASELINE_NS: u64 = 5_000_000;

/// The rate that some clock of this process measured last; 0: none yet.
static MEASURED_HZ: AtomicU64 = AtomicU64::new(0);

impl Clock {
    /// Takes the first reading. What the caller does until [`Clock::sample`] costs no time on top.
    pub(crate) fn start() -> Self {
        Self { first: is_invariant().then(reading) }
    }

    /// All clocks, now.
    pub(crate) fn sample(&self) -> ClockSample {
        let realtime = || clock_ns(libc::CLOCK_REALTIME);
        let Some((tsc0, ns0)) = self.first else {
            return ClockSample { tsc: 0, tsc_hz: 0, realtime_ns: realtime(), monotonic_ns: monotonic_ns() };
        };
        let mut now = reading();
        let mut tsc_hz = 0;
        if now.1 - ns0 < BASELINE_NS {
            // Only the process's first enclave has to wait for a baseline.
            tsc_hz = MEASURED_HZ.load(Ordering::Relaxed);
        }
        if tsc_hz == 0 {
            while now.1 - ns0 < BASELINE_NS {
                std::hint::spin_loop();
                now = reading();
            }
            tsc_hz = (u128::from(now.0 - tsc0) * 1_000_000_000 / u128::from(now.1 - ns0)) as u64;
            MEASURED_HZ.store(tsc_hz, Ordering::Relaxed);
        }
        ClockSample { tsc: now.0, tsc_hz, realtime_ns: realtime(), monotonic_ns: now.1 }
    }
}

/// Counter and clock as close together as they can be had.
fn reading() -> (u64, u64) {
    let attempt = || {
        // SAFETY: RDTSC has no preconditions in a process that may use it; Linux allows it unless asked not to.
        let before = unsafe { _rdtsc() };
        let ns = monotonic_ns();
        // SAFETY: as above.
        let after = unsafe { _rdtsc() };
        (after - before, before + (after - before) / 2, ns)
    };
    let best = (0..4).map(|_| attempt()).min().unwrap_or_else(attempt);
    (best.1, best.2)
}

/// Does the counter run at a constant rate in all power states (CPUID.80000007H:EDX\[8\])?
fn is_invariant() -> bool {
    __cpuid(0x8000_0000).eax >= 0x8000_0007 && __cpuid(0x8000_0007).edx & 1 << 8 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_predicts_the_clock() {
        let clock = Clock::start();
        let first = clock.sample();
        if first.tsc_hz == 0 {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
        let second = clock.sample();
        let ticks = u128::from(second.tsc - first.tsc);
        let predicted = (ticks * 1_000_000_000 / u128::from(first.tsc_hz)) as i64;
        let real = (second.monotonic_ns - first.monotonic_ns) as i64;
        assert!((predicted - real).abs() < real / 1000, "{predicted} predicted, {real} passed");
    }
}
