//! Locks: one for state that is held for a few instructions and never across an exit, one for what may be.

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, Ordering};

/// Mutual exclusion by spinning. A holder may be interrupted by the host and kept outside for as long as it likes; that
/// is denial of service, which the host always has.
pub struct SpinLock<T> {
    taken: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached through the lock only.
unsafe impl<T: Send> Sync for SpinLock<T> {}

impl<T> SpinLock<T> {
    /// An open lock.
    pub const fn new(value: T) -> Self {
        Self { taken: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// Takes the lock if it is open.
    pub fn try_lock(&self) -> Option<SpinGuard<'_, T>> {
        let taken = self.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        taken.is_ok().then_some(SpinGuard { lock: self })
    }

    /// Takes the lock.
    pub fn lock(&self) -> SpinGuard<'_, T> {
        while self.taken.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            while self.taken.load(Ordering::Relaxed) {
                core::hint::spin_loop();
            }
        }
        SpinGuard { lock: self }
    }
}

impl<T: Default> Default for SpinLock<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

/// The right to the value.
pub struct SpinGuard<'a, T> {
    lock: &'a SpinLock<T>,
}

impl<T> Deref for SpinGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the lock is held.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for SpinGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the lock is held.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for SpinGuard<'_, T> {
    fn drop(&mut self) {
        self.lock.taken.store(false, Ordering::Release);
    }
}

/// Mutual exclusion for what may leave the enclave meanwhile: who waits lets other threads of the host run.
pub struct HostLock<T>(SpinLock<T>);

impl<T> HostLock<T> {
    /// An open lock.
    pub const fn new(value: T) -> Self {
        Self(SpinLock::new(value))
    }

    /// Takes the lock.
    pub fn lock(&self) -> SpinGuard<'_, T> {
        const SPINS: u32 = 100;
        loop {
            for _ in 0..SPINS {
                if let Some(guard) = self.0.try_lock() {
                    return guard;
                }
                core::hint::spin_loop();
            }
            crate::host::call_keeping(
                crate::thread::Thread::current(),
                enclos::abi::hostcall::YIELD,
                0,
                0,
                0,
            );
        }
    }
}

impl<T: Default> Default for HostLock<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}
