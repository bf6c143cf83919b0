//! Which thread of the enclave is where: one bit a TCS, in sets that need one atomic operation to take from.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A set of TCS indices that several threads take from and put back to.
pub(crate) struct IndexSet {
    words: Box<[AtomicU64]>,
}

impl IndexSet {
    /// An empty set for indices below `limit`.
    pub(crate) fn new(limit: usize) -> Self {
        Self { words: (0..limit.div_ceil(64)).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Puts an index in.
    #[inline]
    pub(crate) fn put(&self, index: usize) {
        self.words[index / 64].fetch_or(1 << (index % 64), Ordering::SeqCst);
    }

    /// Takes an index out, the lowest there is: the one used last when there is no contention, which is still warm.
    #[inline]
    pub(crate) fn take(&self) -> Option<usize> {
        self.words.iter().enumerate().find_map(|(i, word)| {
            let mut seen = word.load(Ordering::SeqCst);
            while seen != 0 {
                let bit = seen & seen.wrapping_neg();
                match word.compare_exchange_weak(seen, seen ^ bit, Ordering::SeqCst, Ordering::SeqCst) {
                    Ok(_) => return Some(i * 64 + bit.trailing_zeros() as usize),
                    Err(now) => seen = now,
                }
            }
            None
        })
    }

    /// Takes this very index out; false when it is not in.
    pub(crate) fn remove(&self, index: usize) -> bool {
        let bit = 1 << (index % 64);
        self.words.get(index / 64).is_some_and(|word| word.fetch_and(!bit, Ordering::SeqCst) & bit != 0)
    }

    /// How many are in it right now.
    pub(crate) fn len(&self) -> usize {
        self.words.iter().map(|w| w.load(Ordering::Relaxed).count_ones() as usize).sum()
    }
}

/// Lets threads sleep until something has changed, without a lock for those who change it.
#[derive(Default)]
pub(crate) struct Event {
    sleepers: AtomicU32,
    generation: AtomicU32,
}

impl Event {
    /// Wakes one sleeper, if there are any. The change must have been made by a sequentially consistent operation.
    #[inline]
    pub(crate) fn notify(&self) {
        if self.sleepers.load(Ordering::SeqCst) != 0 {
            self.wake(1);
        }
    }

    /// Wakes all sleepers.
    pub(crate) fn notify_all(&self) {
        self.wake(i32::MAX);
    }

    /// Tries until it gives something or the time (CLOCK_MONOTONIC, nanoseconds) has come.
    #[cold]
    pub(crate) fn wait_for<T>(&self, until: u64, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let found = loop {
            let generation = self.generation.load(Ordering::SeqCst);
            if let Some(found) = attempt() {
                break Some(found);
            }
            let now = crate::entry::monotonic_ns();
            if now >= until {
                break None;
            }
            let _ = futex_wait(&self.generation, generation, Some(until - now));
        };
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        found
    }

    #[cold]
    fn wake(&self, count: i32) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        futex_wake(&self.generation, count);
    }
}

/// Why a futex wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    /// Woken, or the value was another already.
    Changed,
    TimedOut,
    Interrupted,
}

/// Sleeps while the word has this value, at most `timeout_ns`.
pub(crate) fn futex_wait(word: &AtomicU32, value: u32, timeout_ns: Option<u64>) -> Wake {
    let time = timeout_ns.map(|ns| libc::timespec {
        tv_sec: i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: (ns % 1_000_000_000) as i64,
    });
    let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the word outlives the call; the timeout is null or ours.
    let result = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            value,
            time,
            0,
            0,
        )
    };
    if result == 0 {
        return Wake::Changed;
    }
    match std::io::Error::last_os_error().raw_os_error() {
        Some(libc::ETIMEDOUT) => Wake::TimedOut,
        Some(libc::EINTR) => Wake::Interrupted,
        _ => Wake::Changed,
    }
}

/// Wakes up to `count` threads that sleep on the word.
pub(crate) fn futex_wake(word: &AtomicU32, count: i32) {
    // SAFETY: the kernel only uses the address as a key.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, count)
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_is_taken_once() {
        let set = IndexSet::new(130);
        for i in [0, 63, 64, 129] {
            set.put(i);
        }
        assert_eq!(set.len(), 4);
        assert!(set.remove(64) && !set.remove(64) && !set.remove(1000));
        set.put(64);
        let taken: Vec<_> = std::iter::from_fn(|| set.take()).collect();
        assert_eq!(taken, [0, 63, 64, 129]);
        assert_eq!(set.take(), None);
    }

    #[test]
    fn a_sleeper_gets_what_is_put_while_it_looks() {
        let set = IndexSet::new(1);
        let event = Event::default();
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..2000 {
                        let until = crate::entry::monotonic_ns() + 10_000_000_000;
                        let index = set
                            .take()
                            .or_else(|| event.wait_for(until, || set.take()))
                            .expect("put back in time");
                        set.put(index);
                        event.notify();
                    }
                });
            }
            set.put(0);
            event.notify();
        });
        assert_eq!(set.len(), 1);
    }

    #[test]
    fn waiting_ends_in_time() {
        let until = crate::entry::monotonic_ns() + 20_000_000;
        assert_eq!(Event::default().wait_for(until, || None::<()>), None);
        assert!(crate::entry::monotonic_ns() >= until);
    }
}
