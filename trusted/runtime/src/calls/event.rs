//! eventfd(2) and timerfd_create(2), answered inside.

use core::sync::atomic::{AtomicU64, Ordering};

use super::descriptors::{self, Kind, Now, Watch, events, wait_for};
use super::{Outcome, own, time};
use crate::clock::Clock;
use crate::host::Errno;
use crate::lock::SpinLock;
use crate::thread::Thread;

/// Largest value of a counter.
const MOST: u64 = u64::MAX - 1;

/// An eventfd.
pub struct Counter {
    value: AtomicU64,
    /// EFD_SEMAPHORE: reading takes one.
    is_semaphore: bool,
    pub watch: Watch,
}

/// eventfd2(2).
pub fn eventfd(value: u64, flags: u64) -> Outcome {
    descriptors::room()?;
    let value = AtomicU64::new(u64::from(value as u32));
    let counter = Counter { value, is_semaphore: flags & 1 != 0, watch: Watch::new() };
    descriptors::open(Kind::Counter(counter), flags as u32)
}

impl Counter {
    pub fn level(&self) -> u32 {
        match self.value.load(Ordering::SeqCst) {
            0 => events::OUT,
            MOST => events::IN,
            _ => events::IN | events::OUT,
        }
    }

    pub fn read(&self, me: &mut Thread, to: &mut [u8], blocks: bool) -> Outcome {
        let to = to.first_chunk_mut::<8>().ok_or(Errno::INVAL)?;
        let is_semaphore = self.is_semaphore;
        let attempt = |_: &mut Thread| {
            let take = |v: u64| (v != 0).then(|| if is_semaphore { v - 1 } else { 0 });
            let before = self.value.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).ok()?;
            Some(if is_semaphore { 1 } else { before })
        };
        let value = match attempt(me) {
            Some(value) => value,
            None if blocks => wait_for(me, &self.watch, None, attempt)?,
            None => return Err(Errno::AGAIN),
        };
        self.watch.notify();
        *to = value.to_le_bytes();
        Ok(8)
    }

    pub fn write(&self, me: &mut Thread, from: &[u8], blocks: bool) -> Outcome {
        let more = u64::from_le_bytes(*from.first_chunk::<8>().ok_or(Errno::INVAL)?);
        if more > MOST {
            return Err(Errno::INVAL);
        }
        let attempt = |_: &mut Thread| {
            let add = |v: u64| v.checked_add(more).filter(|v| *v <= MOST);
            self.value.fetch_update(Ordering::SeqCst, Ordering::SeqCst, add).ok()
        };
        match attempt(me) {
            Some(_) => {}
            None if blocks => drop(wait_for(me, &self.watch, None, attempt)?),
            None => return Err(Errno::AGAIN),
        }
        self.watch.notify();
        Ok(8)
    }
}

/// A timerfd.
pub struct Timer {
    clock: Clock,
    state: SpinLock<Alarm>,
    pub watch: Watch,
}

#[derive(Clone, Copy, Default)]
struct Alarm {
    /// Next time, by its clock, in nanoseconds; 0: off.
    at: u64,
    /// 0: once.
    interval: u64,
    /// Expirations that were read.
    read: u64,
}

impl Alarm {
    /// Expirations that were not read.
    fn pending(&self, now: u64) -> u64 {
        match now.checked_sub(self.at) {
            Some(late) if self.at != 0 => 1 + late.checked_div(self.interval).unwrap_or(0),
            _ => 0,
        }
    }
}

/// timerfd_create(2).
pub fn timerfd_create(clock: u64, flags: u64) -> Outcome {
    descriptors::room()?;
    let clock = match clock {
        0 | 8 => Clock::Realtime,
        1 | 7 | 9 => Clock::Monotonic,
        _ => return Err(Errno::INVAL),
    };
    let timer = Timer { clock, state: SpinLock::new(Alarm::default()), watch: Watch::new() };
    descriptors::open(Kind::Timer(timer), flags as u32)
}

/// timerfd_settime(2).
pub fn timerfd_settime(me: &mut Thread, fd: u64, flags: u64, new: u64, old: u64) -> Outcome {
    const TFD_TIMER_ABSTIME: u64 = 1;
    let object = descriptors::get(fd)?;
    let Kind::Timer(timer) = &object.kind else { return Err(Errno::INVAL) };
    let (interval, value) = (time::read_timespec(new)?, time::read_timespec(new + 16)?);
    let now = Now::ask(me)?;
    let at = match value {
        0 => 0,
        value if flags & TFD_TIMER_ABSTIME != 0 => value,
        value => timer.now(now).saturating_add(value),
    };
    if old != 0 {
        timer.write_setting(now, old)?;
    }
    {
        let mut alarm = timer.state.lock();
        // The count goes on, since edges are told by it.
        let read = alarm.read + alarm.pending(timer.now(now));
        *alarm = Alarm { at, interval, read };
    }
    timer.watch.notify();
    Ok(0)
}

/// timerfd_gettime(2).
pub fn timerfd_gettime(me: &mut Thread, fd: u64, to: u64) -> Outcome {
    let object = descriptors::get(fd)?;
    let Kind::Timer(timer) = &object.kind else { return Err(Errno::INVAL) };
    let now = Now::ask(me)?;
    timer.write_setting(now, to)
}

impl Timer {
    fn now(&self, now: Now) -> u64 {
        if self.clock == Clock::Realtime { now.realtime } else { now.monotonic }
    }

    pub fn level(&self, now: Now) -> u32 {
        if self.state.lock().pending(self.now(now)) != 0 { events::IN } else { 0 }
    }

    /// Grows with every expiration that is an edge: as in Linux, the first after the timer was set or read.
    pub fn ticks(&self, now: Now) -> u64 {
        let alarm = *self.state.lock();
        alarm.read + alarm.pending(self.now(now)).min(1)
    }

    /// Nanoseconds until it becomes ready, if it is not.
    pub fn due(&self, now: Now) -> Option<u64> {
        self.state.lock().at.checked_sub(self.now(now)).filter(|left| *left != 0)
    }

    /// Writes a `struct itimerspec`: interval, and what is left.
    fn write_setting(&self, now: Now, to: u64) -> Outcome {
        const NS: u64 = 1_000_000_000;
        let to = own::<[u64; 4]>(to)?;
        let alarm = *self.state.lock();
        let (interval, at) = (alarm.interval, self.now(now));
        let next = alarm.at.saturating_add(alarm.pending(at).saturating_mul(interval));
        let left = if alarm.at == 0 { 0 } else { next.saturating_sub(at) };
        // SAFETY: checked to be the program's.
        unsafe { to.write([interval / NS, interval % NS, left / NS, left % NS]) };
        Ok(0)
    }

    pub fn read(&self, me: &mut Thread, to: &mut [u8], blocks: bool) -> Outcome {
        let to = to.first_chunk_mut::<8>().ok_or(Errno::INVAL)?;
        loop {
            let now = Now::ask(me)?;
            let at = self.now(now);
            {
                let mut alarm = self.state.lock();
                let count = alarm.pending(at);
                if count != 0 {
                    alarm.read += count;
                    alarm.at = match alarm.interval {
                        0 => 0,
                        interval => alarm.at.saturating_add(count.saturating_mul(interval)),
                    };
                    *to = count.to_le_bytes();
                    return Ok(8);
                }
            }
            if !blocks {
                return Err(Errno::AGAIN);
            }
            let until = self.due(now).map(|ns| now.monotonic.saturating_add(ns));
            let mut looked = false;
            // Woken when it is set anew; else when it is due.
            let again =
                wait_for(me, &self.watch, until, |_| core::mem::replace(&mut looked, true).then_some(()));
            if !matches!(again, Ok(()) | Err(Errno::AGAIN)) {
                again?;
            }
        }
    }
}
