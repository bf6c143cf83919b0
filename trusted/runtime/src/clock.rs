//! Time. The host's clocks are allegations: they are taken as base, the CPU's counter carries on from there without an
//! exit, and CLOCK_MONOTONIC never goes back whatever the host says.

use core::sync::atomic::{AtomicU64, Ordering};

use enclos::abi::{ClockSample, hostcall};

use crate::host::{self, Errno, Frame};
use crate::replies;
use crate::thread::Thread;

/// The last sample, under a sequence lock: odd while it changes.
static SEQUENCE: AtomicU64 = AtomicU64::new(0);
static TSC: AtomicU64 = AtomicU64::new(0);
static HZ: AtomicU64 = AtomicU64::new(0);
/// Nanoseconds a tick, times 2^32.
static SCALE: AtomicU64 = AtomicU64::new(0);
static REALTIME: AtomicU64 = AtomicU64::new(0);
static MONOTONIC: AtomicU64 = AtomicU64::new(0);
/// The latest monotonic time that was given out.
static LATEST: AtomicU64 = AtomicU64::new(0);

/// Which clock.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    Realtime,
    Monotonic,
}

/// Takes a sample as the new base. Of several threads at once, one wins.
pub fn set(sample: &ClockSample) {
    let sequence = SEQUENCE.load(Ordering::Relaxed);
    if sequence % 2 == 1
        || SEQUENCE.compare_exchange(sequence, sequence + 1, Ordering::Acquire, Ordering::Relaxed).is_err()
    {
        return;
    }
    let (hz, scale) = replies::counter_rate(sample);
    TSC.store(sample.tsc, Ordering::Relaxed);
    HZ.store(hz, Ordering::Relaxed);
    SCALE.store(scale, Ordering::Relaxed);
    REALTIME.store(sample.realtime_ns, Ordering::Relaxed);
    MONOTONIC.store(sample.monotonic_ns, Ordering::Relaxed);
    SEQUENCE.store(sequence + 2, Ordering::Release);
}

/// Nanoseconds of the clock. Asks the host once a second, or each time where the counter is not usable.
pub fn now(me: &mut Thread, clock: Clock) -> Result<u64, Errno> {
    let base = loop {
        let sequence = SEQUENCE.load(Ordering::Acquire);
        let v = (
            TSC.load(Ordering::Relaxed),
            HZ.load(Ordering::Relaxed),
            SCALE.load(Ordering::Relaxed),
            if clock == Clock::Realtime { &REALTIME } else { &MONOTONIC }.load(Ordering::Relaxed),
        );
        core::sync::atomic::fence(Ordering::Acquire);
        if sequence.is_multiple_of(2) && SEQUENCE.load(Ordering::Relaxed) == sequence {
            break v;
        }
        core::hint::spin_loop();
    };
    let (tsc, hz, scale, at) = base;
    let ticks = if hz == 0 { u64::MAX } else { crate::cpu::rdtsc().wrapping_sub(tsc) };
    let ns = if ticks < hz {
        at.saturating_add(replies::nanoseconds(ticks, scale))
    } else {
        let sample = ask(me)?;
        set(&sample);
        if clock == Clock::Realtime { sample.realtime_ns } else { sample.monotonic_ns }
    };
    Ok(if clock == Clock::Monotonic { LATEST.fetch_max(ns, Ordering::Relaxed).max(ns) } else { ns })
}

fn ask(me: &mut Thread) -> Result<ClockSample, Errno> {
    host::checked(host::call_keeping(me, hostcall::CLOCK, 0, 0, 0), 0)?;
    let mut words = [0_u8; size_of::<ClockSample>()];
    if !Frame::of(me).get(0, &mut words) {
        return Err(Errno::IO);
    }
    let word = |i: usize| {
        let mut w = [0; 8];
        w.copy_from_slice(&words[8 * i..8 * i + 8]);
        u64::from_le_bytes(w)
    };
    Ok(ClockSample { tsc: word(0), tsc_hz: word(1), realtime_ns: word(2), monotonic_ns: word(3) })
}
