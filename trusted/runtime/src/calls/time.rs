//! Clocks and sleeping.

use super::{Outcome, own};
use crate::clock::{self, Clock};
use crate::host::{self, Errno};
use crate::thread::Thread;
use enclos::abi::hostcall;

const NS: u64 = 1_000_000_000;

/// clock_gettime(2): REALTIME (0), MONOTONIC (1), MONOTONIC_RAW (4), the COARSE ones (5, 6), BOOTTIME (7); CPU times
/// (2, 3) are the monotonic clock.
pub fn clock_gettime(me: &mut Thread, id: u64, to: u64) -> Outcome {
    let to = own::<[u64; 2]>(to)?;
    let ns = clock::now(me, which(id)?)?;
    // SAFETY: checked to be the program's.
    unsafe { to.write([ns / NS, ns % NS]) };
    Ok(0)
}

/// clock_getres(2): a nanosecond.
pub fn clock_getres(id: u64, to: u64) -> Outcome {
    which(id)?;
    if to != 0 {
        // SAFETY: checked to be the program's.
        unsafe { own::<[u64; 2]>(to)?.write([0, 1]) };
    }
    Ok(0)
}

/// gettimeofday(2).
pub fn gettimeofday(me: &mut Thread, to: u64) -> Outcome {
    if to != 0 {
        let ns = clock::now(me, Clock::Realtime)?;
        // SAFETY: checked to be the program's.
        unsafe { own::<[u64; 2]>(to)?.write([ns / NS, ns % NS / 1000]) };
    }
    Ok(0)
}

/// time(2).
pub fn time(me: &mut Thread, to: u64) -> Outcome {
    let s = clock::now(me, Clock::Realtime)? / NS;
    if to != 0 {
        // SAFETY: checked to be the program's.
        unsafe { own::<u64>(to)?.write(s) };
    }
    Ok(s)
}

/// nanosleep(2).
pub fn nanosleep(me: &mut Thread, request: u64, remaining: u64) -> Outcome {
    let ns = read_timespec(request)?;
    sleep(me, ns, remaining)
}

/// clock_nanosleep(2), relative and TIMER_ABSTIME.
pub fn clock_nanosleep(me: &mut Thread, id: u64, flags: u64, request: u64, remaining: u64) -> Outcome {
    let ns = read_timespec(request)?;
    let clock = which(id)?;
    match flags & 1 != 0 {
        true => {
            let left = ns.saturating_sub(clock::now(me, clock)?);
            sleep(me, left, 0)
        }
        false => sleep(me, ns, remaining),
    }
}

/// Sleeps until the enclave's own clock says that the time is over; the host may wake it early as often as it likes. A
/// signal ends it: then what is left goes to `remaining`, where that is not 0.
fn sleep(me: &mut Thread, ns: u64, remaining: u64) -> Outcome {
    if remaining != 0 {
        own::<[u64; 2]>(remaining)?;
    }
    let until = clock::now(me, Clock::Monotonic)?.saturating_add(ns);
    let mut left = ns;
    while left > 0 && !crate::ended() {
        if super::signal::is_due(me) {
            if remaining != 0 {
                // SAFETY: checked to be the program's.
                unsafe { (remaining as *mut [u64; 2]).write([left / NS, left % NS]) };
            }
            return Err(Errno::INTR);
        }
        // The answer does not matter: the clock decides.
        host::call_keeping(me, hostcall::WAIT, me.seed.index, left, 0);
        left = until.saturating_sub(clock::now(me, Clock::Monotonic)?);
    }
    Ok(0)
}

/// A `struct timespec` of the program in nanoseconds, saturating.
pub fn read_timespec(at: u64) -> Result<u64, Errno> {
    // SAFETY: checked to be the program's.
    let [s, ns] = unsafe { own::<[i64; 2]>(at)?.read() };
    if s < 0 || !(0..NS as i64).contains(&ns) {
        return Err(Errno::INVAL);
    }
    Ok((s as u64).saturating_mul(NS).saturating_add(ns as u64))
}

/// A `struct timeval` of the program in nanoseconds; null: none.
pub fn optional_timeval(at: u64) -> Result<Option<u64>, Errno> {
    if at == 0 {
        return Ok(None);
    }
    // SAFETY: checked to be the program's.
    let [s, us] = unsafe { own::<[i64; 2]>(at)?.read() };
    if s < 0 || us < 0 {
        return Err(Errno::INVAL);
    }
    Ok(Some((s as u64).saturating_mul(NS).saturating_add((us as u64).saturating_mul(1000))))
}

fn which(id: u64) -> Result<Clock, Errno> {
    match id as i32 {
        0 | 5 | 11 => Ok(Clock::Realtime),
        // CPU-time clocks of a process or thread (negative numbers) too.
        1..=4 | 6 | 7 | ..0 => Ok(Clock::Monotonic),
        _ => Err(Errno::INVAL),
    }
}
