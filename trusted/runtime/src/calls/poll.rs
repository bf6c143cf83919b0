//! Waiting for several things at once: epoll, poll, select.
//!
//! What is inside (pipes, counters, timers) is looked at inside; sockets of the host are registered with an epoll
//! instance of the host, which is told a number for each, never the program's data. What it reports is matched with
//! what was registered under that number: an event that was not asked for, or for something that is gone, is dropped.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;

use enclos::abi::{MAX_POLLED, MAX_READY, Polled, Ready, hostcall};

use super::descriptors::{self, CLOEXEC, Kind, Now, Object, events};
use super::{Outcome, own, signal, time};
use crate::clock::{self, Clock};
use crate::host::{self, Errno, Frame};
use crate::lock::SpinLock;
use crate::thread::Thread;

const ADD: u64 = 1;
const DELETE: u64 = 2;
const MODIFY: u64 = 3;
const EXCLUSIVE: u32 = 1 << 28;
const ONE_SHOT: u32 = 1 << 30;
const EDGE: u32 = 1 << 31;
/// Events that may be reported: the lower bits.
const EVENTS: u32 = 0x2fff;
const FOREVER: u64 = u64::MAX;

/// An epoll instance.
pub struct Epoll {
    handle: u32,
    interests: SpinLock<Interests>,
}

#[derive(Default)]
struct Interests {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// By descriptor and object, as Linux identifies them.
    by_name: BTreeMap<(u32, usize), u32>,
    /// Slots of what is looked at inside.
    inside: Vec<u32>,
    /// Threads that wait in the host.
    waiting: u32,
    /// Was the host told to wake them?
    woken: bool,
    /// Did the last wait not ask the host?
    skipped_host: bool,
    /// Numbers the waits.
    wait: u64,
}

#[derive(Default)]
struct Slot {
    /// Tells what a slot was used for before from what it is used for now.
    generation: u32,
    interest: Option<Interest>,
}

struct Interest {
    /// Is it for the host to say when it is ready?
    is_host: bool,
    object: Weak<Object>,
    events: u32,
    data: u64,
    is_armed: bool,
    /// The object's edge when it was reported last.
    seen: Option<u64>,
    /// The wait that reported it last.
    reported: u64,
}

impl Drop for Epoll {
    fn drop(&mut self) {
        host::call_keeping(Thread::current(), hostcall::CLOSE, u64::from(self.handle), 0, 0);
    }
}

/// epoll_create(2) and epoll_create1(2).
pub fn epoll_create(me: &mut Thread, flags: u64) -> Outcome {
    if flags as u32 & !CLOEXEC != 0 {
        return Err(Errno::INVAL);
    }
    descriptors::room()?;
    let answer = host::call_keeping(me, hostcall::EPOLL_CREATE, 0, 0, 0);
    let handle = host::checked(answer, i32::MAX as u64)? as u32;
    let epoll = Epoll { handle, interests: SpinLock::new(Interests::default()) };
    descriptors::open(Kind::Epoll(epoll), flags as u32)
}

/// epoll_ctl(2).
pub fn epoll_ctl(me: &mut Thread, fd: u64, operation: u64, target: u64, event: u64) -> Outcome {
    let instance = descriptors::get(fd)?;
    let object = descriptors::get(target)?;
    let Kind::Epoll(epoll) = &instance.kind else { return Err(Errno::INVAL) };
    match &object.kind {
        // Instances within instances, and what is always ready.
        Kind::Epoll(_) => return Err(Errno::INVAL),
        Kind::Standard(_) | Kind::File(_) => return Err(Errno::PERM),
        _ => {}
    }
    let (events, data) = match operation {
        DELETE => (0, 0),
        _ => {
            let at = own::<[u32; 3]>(event)?;
            // SAFETY: checked to be the program's; the structure is packed.
            let [events, low, high] = unsafe { at.read_unaligned() };
            (events & !EXCLUSIVE, u64::from(high) << 32 | u64::from(low))
        }
    };
    let name = (target as u32, Arc::as_ptr(&object) as usize);
    // Events before the change are not edges after it.
    let (number, handle) = match operation {
        ADD => {
            descriptors::room()?;
            let number = epoll.interests.lock().add(name, &object, events, data)?;
            (number, object.host_handle())
        }
        MODIFY => (epoll.interests.lock().modify(name, events, data)?, object.host_handle()),
        DELETE => (epoll.interests.lock().remove(name)?, object.host_handle()),
        _ => return Err(Errno::INVAL),
    };
    let Some(handle) = handle else {
        if operation != DELETE {
            object.watches().into_iter().flatten().for_each(|w| w.attach(&instance));
            // It may be ready already, and somebody may wait.
            epoll.wake();
        }
        return Ok(0);
    };
    Frame::of(me).put(0, &number.to_le_bytes());
    let target = operation << 32 | u64::from(handle);
    let answer =
        host::call_keeping(me, hostcall::EPOLL_CTL, u64::from(epoll.handle), target, u64::from(events));
    let done = host::checked(answer, 0);
    if done.is_err() && operation == ADD {
        let _ = epoll.interests.lock().remove(name);
    }
    done
}

impl Interests {
    /// Number of the slot: what the host is told.
    fn number(&self, index: u32) -> u64 {
        u64::from(self.slots[index as usize].generation) << 32 | u64::from(index)
    }

    fn add(
        &mut self,
        name: (u32, usize),
        object: &Arc<Object>,
        events: u32,
        data: u64,
    ) -> Result<u64, Errno> {
        if self.by_name.contains_key(&name) {
            return Err(Errno::EXIST);
        }
        // What had this descriptor before and was closed is gone.
        let same_fd = self.by_name.range((name.0, 0)..=(name.0, usize::MAX));
        let stale: Vec<_> = same_fd.filter(|(_, i)| self.is_stale(**i)).map(|(n, _)| *n).collect();
        for name in stale {
            self.remove(name)?;
        }
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.slots.try_reserve(1).map_err(|_| Errno::NOMEM)?;
                self.slots.push(Slot::default());
                self.slots.len() as u32 - 1
            }
        };
        self.slots[index as usize].interest = Some(Interest {
            is_host: object.host_handle().is_some(),
            object: Arc::downgrade(object),
            events,
            data,
            is_armed: true,
            seen: None,
            reported: 0,
        });
        self.by_name.insert(name, index);
        if object.host_handle().is_none() {
            self.inside.push(index);
        }
        Ok(self.number(index))
    }

    fn is_stale(&self, index: u32) -> bool {
        let interest = self.slots[index as usize].interest.as_ref();
        interest.is_none_or(|i| i.object.strong_count() == 0)
    }

    fn modify(&mut self, name: (u32, usize), events: u32, data: u64) -> Result<u64, Errno> {
        let index = *self.by_name.get(&name).ok_or(Errno::NOENT)?;
        if let Some(i) = &mut self.slots[index as usize].interest {
            (i.events, i.data, i.is_armed, i.seen) = (events, data, true, None);
        }
        Ok(self.number(index))
    }

    fn remove(&mut self, name: (u32, usize)) -> Result<u64, Errno> {
        let index = self.by_name.remove(&name).ok_or(Errno::NOENT)?;
        let number = self.number(index);
        let slot = &mut self.slots[index as usize];
        slot.interest = None;
        slot.generation = slot.generation.wrapping_add(1) & 0x7fff_ffff;
        self.inside.retain(|i| *i != index);
        self.free.push(index);
        Ok(number)
    }

    /// Reports what is ready inside. Objects that were looked at go to `kept`: the last reference to one must not be
    /// dropped under the lock.
    fn look_inside(&mut self, now: Now, out: &mut Out, kept: &mut Vec<Arc<Object>>) -> Option<u64> {
        let mut due: Option<u64> = None;
        // What was reported goes to the end, so that all get their turn.
        let (mut i, mut left) = (0, self.inside.len());
        while left > 0 && !out.is_full() {
            left -= 1;
            let index = self.inside[i];
            let interest = self.slots[index as usize].interest.as_mut();
            let found = interest.and_then(|interest| {
                let object = interest.object.upgrade()?;
                if let (Some(at), true) = (object.due(now), interest.is_armed) {
                    due = Some(due.map_or(at, |d| d.min(at)));
                }
                let edge = object.edge(now);
                let level = object.level(now) & (interest.events & EVENTS | events::ALWAYS);
                kept.push(object);
                if level == 0
                    || !interest.is_armed
                    || (interest.events & EDGE != 0 && interest.seen == Some(edge))
                {
                    return None;
                }
                interest.seen = Some(edge);
                interest.is_armed = interest.events & ONE_SHOT == 0;
                Some((level, interest.data))
            });
            match found {
                Some((level, data)) => {
                    out.put(level, data);
                    let reported = self.inside.remove(i);
                    self.inside.push(reported);
                }
                None => i += 1,
            }
        }
        due
    }

    /// Takes an event that the host reports; `None`: it cannot be.
    fn take(&mut self, ready: Ready) -> Option<(u32, u64)> {
        let wait = self.wait;
        let slot = self.slots.get_mut(ready.index as u32 as usize)?;
        if u64::from(slot.generation) != ready.index >> 32 {
            return None;
        }
        let interest = slot.interest.as_mut()?;
        let level = ready.events & (interest.events & EVENTS | events::ALWAYS);
        if level == 0 || !interest.is_armed || !interest.is_host || interest.reported == wait {
            return None;
        }
        interest.reported = wait;
        interest.is_armed = interest.events & ONE_SHOT == 0;
        Some((level, interest.data))
    }
}

/// Where `struct epoll_event`s go: packed, 12 bytes each.
struct Out {
    at: u64,
    count: u64,
    most: u64,
}

impl Out {
    fn is_full(&self) -> bool {
        self.count == self.most
    }

    fn put(&mut self, events: u32, data: u64) {
        let at = (self.at + 12 * self.count) as *mut [u32; 3];
        // SAFETY: the caller checked that room for `most` is the program's.
        unsafe { at.write_unaligned([events, data as u32, (data >> 32) as u32]) };
        self.count += 1;
    }
}

/// Size of a [`Ready`].
const READY: usize = size_of::<Ready>();
/// How many of them are copied at a time.
const BATCH: usize = 64;

/// What the host wrote of one event.
fn reported(raw: &[u8; READY]) -> Ready {
    let [a @ .., e0, e1, e2, e3, _, _, _, _] = *raw;
    Ready { index: u64::from_le_bytes(a), events: u32::from_le_bytes([e0, e1, e2, e3]), reserved: 0 }
}

impl Epoll {
    /// Something inside may be ready: gets those who wait out of the host.
    pub fn wake(&self) {
        let must = {
            let mut interests = self.interests.lock();
            interests.waiting != 0 && !core::mem::replace(&mut interests.woken, true)
        };
        if must {
            host::call_keeping(Thread::current(), hostcall::EPOLL_WAKE, u64::from(self.handle), 0, 0);
        }
    }

    fn wait(&self, me: &mut Thread, out: &mut Out, until: Option<u64>) -> Result<(), Errno> {
        loop {
            let now = Now::ask(me)?;
            let mut kept = Vec::new();
            let (due, asks_host) = {
                let mut interests = self.interests.lock();
                interests.wait += 1;
                let due = interests.look_inside(now, out, &mut kept);
                // What is always ready inside must not keep sockets from their turn, nor cost an exit each time.
                interests.skipped_host = out.count != 0 && !interests.skipped_host;
                let asks_host = !interests.skipped_host && !out.is_full();
                if asks_host {
                    interests.waiting += 1;
                    interests.woken = false;
                }
                (due, asks_host)
            };
            drop(kept);
            let left = until.map_or(FOREVER, |u| u.saturating_sub(now.monotonic));
            // From here on whoever sends this thread a signal wakes it.
            me.signals().waits_in_epoll(asks_host.then_some(self.handle));
            let is_interrupted = signal::is_due(me);
            if asks_host {
                let left = if is_interrupted { 0 } else { left };
                let limit = if out.count != 0 { 0 } else { due.map_or(left, |d| d.min(left)) };
                let most = (out.most - out.count).min(MAX_READY);
                let answer =
                    host::call_keeping(me, hostcall::EPOLL_WAIT, u64::from(self.handle), most, limit);
                me.signals().waits_in_epoll(None);
                if answer == 0 {
                    signal::pass_on(me, self.handle);
                }
                let mut interests = self.interests.lock();
                interests.waiting -= 1;
                match host::checked(answer, most) {
                    Ok(count) => {
                        let mut raw = [0; BATCH * READY];
                        for first in (0..count as usize).step_by(BATCH) {
                            let raw = &mut raw[..READY * BATCH.min(count as usize - first)];
                            Frame::of(me).get((first * READY) as u64, raw);
                            for ready in raw.chunks_exact(READY).filter_map(|r| r.first_chunk()) {
                                if let Some((events, data)) = interests.take(reported(ready)) {
                                    out.put(events, data);
                                }
                            }
                        }
                    }
                    Err(Errno::INTR) => {}
                    Err(e) if out.count == 0 => return Err(e),
                    Err(_) => {}
                }
            }
            if out.count != 0 {
                return Ok(());
            }
            if crate::ended() || signal::is_due(me) {
                return Err(Errno::INTR);
            }
            if until.is_some() && clock::now(me, Clock::Monotonic)? >= until.unwrap_or(0) {
                return Ok(());
            }
        }
    }
}

/// epoll_wait(2), epoll_pwait(2), epoll_pwait2(2): `limit` in nanoseconds, `None` for ever.
pub fn epoll_wait(me: &mut Thread, fd: u64, to: u64, most: u64, limit: Option<u64>) -> Outcome {
    let instance = descriptors::get(fd)?;
    let Kind::Epoll(epoll) = &instance.kind else { return Err(Errno::INVAL) };
    let most = most as u32 as i32;
    if most <= 0 {
        return Err(Errno::INVAL);
    }
    let most = (most as u64).min(MAX_READY);
    super::own_bytes(to, 12 * most)?;
    let mut out = Out { at: to, count: 0, most };
    let until = deadline(me, limit)?;
    epoll.wait(me, &mut out, until)?;
    Ok(out.count)
}

/// When a wait that begins now is over; `None`: never.
fn deadline(me: &mut Thread, limit: Option<u64>) -> Result<Option<u64>, Errno> {
    limit.map(|ns| Ok(clock::now(me, Clock::Monotonic)?.saturating_add(ns))).transpose()
}

/// Milliseconds as poll and epoll_wait take them: negative for ever.
pub fn milliseconds(ms: u64) -> Option<u64> {
    u64::try_from(ms as u32 as i32).ok().map(|ms| ms * 1_000_000)
}

/// A `struct timespec`; null for ever.
pub fn optional_timespec(at: u64) -> Result<Option<u64>, Errno> {
    if at == 0 { Ok(None) } else { time::read_timespec(at).map(Some) }
}

/// One thing that poll or select waits for.
struct Item {
    /// `None`: not open.
    object: Option<Arc<Object>>,
    wanted: u32,
    found: u32,
}

/// Waits until one of the items is ready or the time has come; the events are in `found`.
fn wait_for_any(me: &mut Thread, items: &mut [Item], limit: Option<u64>) -> Result<(), Errno> {
    const ATTEMPTS: u32 = 8;
    let until = deadline(me, limit)?;
    let mut attempts = 0_u32;
    loop {
        attempts = attempts.saturating_add(1);
        let now = Now::ask(me)?;
        let (mut ready, mut sockets, mut due) = (false, 0, None::<u64>);
        for item in items.iter_mut() {
            let Some(object) = &item.object else {
                item.found = events::NVAL;
                ready = true;
                continue;
            };
            object.watches().into_iter().flatten().for_each(|w| w.enlist(me));
            item.found = object.level(now) & (item.wanted | events::ALWAYS);
            ready |= item.found != 0;
            if let Some(at) = object.due(now) {
                due = Some(due.map_or(at, |d| d.min(at)));
            }
            if let Some(handle) = object.host_handle() {
                if sockets == MAX_POLLED {
                    return Err(Errno::INVAL);
                }
                let mut raw = [0; size_of::<Polled>()];
                raw[..4].copy_from_slice(&handle.to_le_bytes());
                raw[4..6].copy_from_slice(&(item.wanted as u16).to_le_bytes());
                Frame::of(me).put(sockets * size_of::<Polled>() as u64, &raw);
                sockets += 1;
            }
        }
        let left = until.map_or(FOREVER, |u| u.saturating_sub(now.monotonic));
        let left = if ready { 0 } else { due.map_or(left, |d| d.min(left)) };
        // Whoever sends a signal later wakes this thread.
        let left = if signal::is_due(me) { 0 } else { left };
        let answer = match (sockets, left) {
            (0, 0) => Ok(0),
            // The answer does not matter: what is looked at again decides.
            (0, left) => {
                let left = if left == FOREVER { 0 } else { left };
                host::call_keeping(me, hostcall::WAIT, me.seed.index, left, 0);
                Ok(0)
            }
            _ => host::checked(host::call_keeping(me, hostcall::POLL, sockets, left, 0), sockets),
        };
        items.iter().filter_map(|i| i.object.as_ref()).for_each(|o| {
            o.watches().into_iter().flatten().for_each(|w| w.delist(me));
        });
        match answer {
            // What is ready inside must not hide what is at the host; but a host that is never done must not hide what is
            // ready inside.
            Err(Errno::INTR) if ready && attempts < ATTEMPTS && !crate::ended() => continue,
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) if !ready => return Err(e),
            Err(_) => {}
        }
        if answer.is_ok() && sockets != 0 {
            let mut at = 0;
            for item in
                items.iter_mut().filter(|i| i.object.as_ref().is_some_and(|o| o.host_handle().is_some()))
            {
                let mut raw = [0; size_of::<Polled>()];
                Frame::of(me).get(at, &mut raw);
                at += size_of::<Polled>() as u64;
                // Only what was asked for, whatever the host says it found.
                let found = u32::from(u16::from_le_bytes([raw[6], raw[7]]));
                item.found = found & (item.wanted | events::ALWAYS);
                ready |= item.found != 0;
            }
        }
        if ready {
            return Ok(());
        }
        if crate::ended() || signal::is_due(me) {
            return Err(Errno::INTR);
        }
        if let Some(until) = until
            && clock::now(me, Clock::Monotonic)? >= until
        {
            return Ok(());
        }
    }
}

/// Waits for one socket. EAGAIN when the time (CLOCK_MONOTONIC) has come, EINTR for a signal.
pub fn wait_for_socket(me: &mut Thread, handle: u32, wanted: u32, until: Option<u64>) -> Result<(), Errno> {
    loop {
        if signal::is_due(me) {
            return Err(Errno::INTR);
        }
        let left = match until {
            None => FOREVER,
            Some(until) => match until.saturating_sub(clock::now(me, Clock::Monotonic)?) {
                0 => return Err(Errno::AGAIN),
                left => left,
            },
        };
        let mut raw = [0; size_of::<Polled>()];
        raw[..4].copy_from_slice(&handle.to_le_bytes());
        raw[4..6].copy_from_slice(&(wanted as u16).to_le_bytes());
        Frame::of(me).put(0, &raw);
        match host::checked(host::call_keeping(me, hostcall::POLL, 1, left, 0), 1) {
            Ok(1) => return Ok(()),
            Ok(_) | Err(Errno::INTR) if crate::ended() => return Err(Errno::INTR),
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}

/// poll(2) and ppoll(2).
pub fn poll(me: &mut Thread, descriptors: u64, count: u64, limit: Option<u64>) -> Outcome {
    if count > descriptors::MOST as u64 {
        return Err(Errno::INVAL);
    }
    super::own_bytes(descriptors, 8 * count)?;
    descriptors::room()?;
    // struct pollfd: fd, events, revents
    let entries = descriptors as *mut (i32, u16, u16);
    let mut items = Vec::with_capacity(count as usize);
    for i in 0..count as usize {
        // SAFETY: checked to be the program's.
        let (fd, wanted, _) = unsafe { entries.add(i).read() };
        // Negative ones are left out.
        if let Ok(fd) = u64::try_from(fd) {
            items.push(Item { object: descriptors::get(fd).ok(), wanted: u32::from(wanted), found: 0 });
        }
    }
    wait_for_any(me, &mut items, limit)?;
    let mut ready = 0;
    let mut items = items.into_iter();
    for i in 0..count as usize {
        // SAFETY: as above.
        unsafe {
            let entry = entries.add(i);
            let found = if (*entry).0 < 0 { 0 } else { items.next().map_or(0, |item| item.found) };
            (*entry).2 = found as u16;
            ready += u64::from(found != 0);
        }
    }
    Ok(ready)
}

/// select(2) and pselect6(2): the three sets, each of `count` bits.
pub fn select(me: &mut Thread, count: u64, sets: [u64; 3], limit: Option<u64>) -> Outcome {
    const WANTED: [u32; 3] = [events::IN, events::OUT, 2];
    const FOUND: [u32; 3] = [events::IN | events::HUP | events::ERR, events::OUT | events::ERR, 2];
    let count = count as u32 as usize;
    if count > descriptors::MOST {
        return Err(Errno::INVAL);
    }
    descriptors::room()?;
    let words = count.div_ceil(64);
    for set in sets {
        super::own_bytes(set, if set == 0 { 0 } else { 8 * words as u64 })?;
    }
    let word = |set: u64, i: usize| match set {
        0 => 0,
        // SAFETY: checked to be the program's.
        set => unsafe { (set as *const u64).add(i).read_unaligned() },
    };
    let mut items = Vec::new();
    let mut fds = Vec::new();
    for fd in 0..count {
        let asked = |i: usize| word(sets[i], fd / 64) >> (fd % 64) & 1 != 0;
        let wanted = (0..3).filter(|i| asked(*i)).fold(0, |w, i| w | WANTED[i]);
        if wanted != 0 {
            items.push(Item { object: Some(descriptors::get(fd as u64)?), wanted, found: 0 });
            fds.push(fd);
        }
    }
    wait_for_any(me, &mut items, limit)?;
    let mut ready = 0;
    for (i, set) in sets.into_iter().enumerate().filter(|(_, set)| *set != 0) {
        for w in 0..words {
            let mut bits = 0_u64;
            for (item, fd) in items.iter().zip(&fds).filter(|(_, fd)| **fd / 64 == w) {
                let is_set = item.wanted & WANTED[i] != 0 && item.found & FOUND[i] != 0;
                bits |= u64::from(is_set) << (fd % 64);
            }
            ready += u64::from(bits.count_ones());
            // SAFETY: as above.
            unsafe { (set as *mut u64).add(w).write_unaligned(bits) };
        }
    }
    Ok(ready)
}
