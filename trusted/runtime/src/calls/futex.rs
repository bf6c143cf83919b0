//! futex(2): waiters are known inside only; the host merely lets threads sleep, and its wakes are hints.

use core::sync::atomic::{AtomicU32, Ordering};

use super::{Outcome, own};
use crate::clock::{self, Clock};
use crate::host::{self, Errno};
use crate::lock::SpinLock;
use crate::thread::{self, Thread};
use enclos::abi::hostcall;

/// Held while waiters are looked at or changed.
static WAITERS: SpinLock<u32> = SpinLock::new(0);
/// How often a waiter looks at its flag before it exits to sleep: about the cost of an exit on hardware.
const SPINS: u32 = 200;
const MATCH_ANY: u32 = u32::MAX;

/// futex(2): WAIT, WAKE, REQUEUE, CMP_REQUEUE, WAKE_OP, and the BITSET forms.
pub fn futex(
    me: &mut Thread,
    at: u64,
    operation: u32,
    value: u32,
    fourth: u64,
    at2: u64,
    value3: u32,
) -> Outcome {
    if !at.is_multiple_of(4) {
        return Err(Errno::INVAL);
    }
    own::<u32>(at)?;
    let realtime = operation & 256 != 0;
    match operation & 127 {
        0 => {
            let timeout = if fourth == 0 { None } else { Some(super::time::read_timespec(fourth)?) };
            wait(me, at, value, timeout, MATCH_ANY)
        }
        9 => {
            if value3 == 0 {
                return Err(Errno::INVAL);
            }
            let clock = if realtime { Clock::Realtime } else { Clock::Monotonic };
            let timeout = if fourth == 0 {
                None
            } else {
                let until = super::time::read_timespec(fourth)?;
                Some(until.saturating_sub(clock::now(me, clock)?))
            };
            wait(me, at, value, timeout, value3)
        }
        1 => Ok(wake(at, value, MATCH_ANY)),
        10 if value3 != 0 => Ok(wake(at, value, value3)),
        3 | 4 => {
            own::<u32>(at2)?;
            let expected = (operation & 127 == 4).then_some(value3);
            requeue(at, at2, value, fourth as u32, expected)
        }
        5 => {
            own::<u32>(at2)?;
            Ok(wake_op(at, at2, value, fourth as u32, value3)?)
        }
        _ => Err(Errno::NOSYS),
    }
}

fn wait(me: &mut Thread, at: u64, expected: u32, timeout: Option<u64>, bits: u32) -> Outcome {
    {
        let mut waiters = WAITERS.lock();
        if word(at).load(Ordering::SeqCst) != expected {
            return Err(Errno::AGAIN);
        }
        if timeout == Some(0) {
            return Err(Errno::TIMEDOUT);
        }
        *waiters += 1;
        (me.futex, me.futex_bits) = (at, bits);
        me.futex_woken.store(false, Ordering::Relaxed);
    }
    for _ in 0..SPINS {
        if me.futex_woken.load(Ordering::Acquire) {
            return Ok(0);
        }
        core::hint::spin_loop();
    }
    let until = match timeout {
        Some(ns) => Some(clock::now(me, Clock::Monotonic)?.saturating_add(ns)),
        None => None,
    };
    loop {
        let left = match until {
            Some(until) => until.saturating_sub(clock::now(me, Clock::Monotonic)?),
            None => 0,
        };
        if me.futex_woken.load(Ordering::Acquire) {
            return Ok(0);
        }
        let is_interrupted = super::signal::is_due(me);
        if crate::ended() || is_interrupted || (until.is_some() && left == 0) {
            // Whoever wakes takes the lock as well: after it, woken or not is decided.
            let mut waiters = WAITERS.lock();
            if me.futex_woken.load(Ordering::Acquire) {
                return Ok(0);
            }
            me.futex = 0;
            *waiters -= 1;
            return Err(if is_interrupted { Errno::INTR } else { Errno::TIMEDOUT });
        }
        // The answer does not matter: the flag and the clock decide.
        host::call_keeping(me, hostcall::WAIT, me.seed.index, left, 0);
    }
}

/// Wakes up to `most` waiters at the address whose bits match; returns how many.
pub fn wake(at: u64, most: u32, bits: u32) -> u64 {
    let mut woken = [0_u32; 64];
    let mut n = 0;
    let mut rest = most;
    loop {
        let mut batch = 0;
        {
            let mut waiters = WAITERS.lock();
            if *waiters == 0 {
                break;
            }
            for i in thread::all() {
                if batch == woken.len() || rest == 0 {
                    break;
                }
                if wake_one(i, at, bits, &mut waiters) {
                    woken[batch] = i;
                    batch += 1;
                    rest -= 1;
                }
            }
        }
        notify(&woken[..batch]);
        n += batch as u64;
        if batch < woken.len() || rest == 0 {
            break;
        }
    }
    n
}

/// Under the lock: takes thread `i` out of the waiters if it waits there.
fn wake_one(i: u32, at: u64, bits: u32, waiters: &mut u32) -> bool {
    let t = thread::at(i);
    // SAFETY: the futex fields of other threads are accessed under the lock only; the flag is atomic.
    unsafe {
        if (*t).futex != at || (*t).futex_bits & bits == 0 {
            return false;
        }
        (*t).futex = 0;
        *waiters -= 1;
        (*t).futex_woken.store(true, Ordering::Release);
    }
    true
}

fn notify(threads: &[u32]) {
    let me = Thread::current();
    for i in threads {
        host::call_keeping(me, hostcall::WAKE, u64::from(*i), 0, 0);
    }
}

fn requeue(at: u64, to: u64, wake_most: u32, move_most: u32, expected: Option<u32>) -> Outcome {
    let mut woken = [0_u32; 64];
    let (mut n, mut moved) = (0, 0);
    {
        let mut waiters = WAITERS.lock();
        if expected.is_some_and(|v| word(at).load(Ordering::SeqCst) != v) {
            return Err(Errno::AGAIN);
        }
        for i in thread::all() {
            let t = thread::at(i);
            if n < (wake_most as usize).min(woken.len()) {
                if wake_one(i, at, MATCH_ANY, &mut waiters) {
                    woken[n] = i;
                    n += 1;
                }
            // SAFETY: under the lock.
            } else if moved < move_most && unsafe { (*t).futex } == at {
                // SAFETY: as above.
                unsafe { (*t).futex = to };
                moved += 1;
            }
        }
    }
    notify(&woken[..n]);
    Ok(n as u64 + u64::from(moved))
}

/// FUTEX_WAKE_OP: an atomic operation on the second word decides whether its waiters are woken too.
fn wake_op(at: u64, at2: u64, most: u32, most2: u32, encoded: u32) -> Outcome {
    let argument = {
        let a = ((encoded as i32) << 8 >> 20) as u32;
        if encoded >> 28 & 8 != 0 { 1_u32.checked_shl(a).ok_or(Errno::INVAL)? } else { a }
    };
    let compare = ((encoded as i32) << 20 >> 20) as u32;
    let w = word(at2);
    let old = match encoded >> 28 & 7 {
        0 => w.swap(argument, Ordering::SeqCst),
        1 => w.fetch_add(argument, Ordering::SeqCst),
        2 => w.fetch_or(argument, Ordering::SeqCst),
        3 => w.fetch_and(!argument, Ordering::SeqCst),
        4 => w.fetch_xor(argument, Ordering::SeqCst),
        _ => return Err(Errno::NOSYS),
    } as i32;
    let c = compare as i32;
    let also = match encoded >> 24 & 15 {
        0 => old == c,
        1 => old != c,
        2 => old < c,
        3 => old <= c,
        4 => old > c,
        5 => old >= c,
        _ => return Err(Errno::NOSYS),
    };
    let n = wake(at, most, MATCH_ANY);
    Ok(n + if also { wake(at2, most2, MATCH_ANY) } else { 0 })
}

fn word(at: u64) -> &'static AtomicU32 {
    // SAFETY: checked to be aligned memory of the program, which accesses it atomically itself.
    unsafe { &*(at as *const AtomicU32) }
}
