//! What a debugger asks this process: which enclaves it has, and where.
//!
//! Nothing in the process says where the code of an enclave lies: no loader of the system knows of it. So there is a
//! table under a fixed name, and an empty function that is called whenever it changes, for a breakpoint. The script that
//! `enclos build` writes for debug images reads them (`docs/debugging.md`).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// One enclave of this process. The script knows this layout.
#[repr(C)]
pub(crate) struct Entry {
    /// Start of ELRANGE; 0: the entry is free.
    base: AtomicU64,
    /// MRENCLAVE: four words in memory order.
    mrenclave: [AtomicU64; 4],
}

/// More enclaves than this are not shown to debuggers.
const ENTRIES: usize = 64;

/// The enclaves of this process.
#[unsafe(no_mangle)]
pub(crate) static ENCLOS_HOST_ENCLAVES: [Entry; ENTRIES] =
    [const { Entry { base: AtomicU64::new(0), mrenclave: [const { AtomicU64::new(0) }; 4] } }; ENTRIES];

/// Serialises changes.
static CHANGES: Mutex<()> = Mutex::new(());

/// Called after every change of the table; does nothing.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn enclos_host_enclaves_changed() {
    // Not empty, so that the call is not elided.
    std::hint::black_box(ENCLOS_HOST_ENCLAVES[0].base.load(Ordering::Relaxed));
}

/// An enclave shown to debuggers until this is dropped.
#[derive(Debug)]
pub(crate) struct Shown(Option<usize>);

/// Shows an enclave to debuggers.
pub(crate) fn show(base: u64, mrenclave: &[u8; 32]) -> Shown {
    let changes = CHANGES.lock().unwrap_or_else(PoisonError::into_inner);
    let free = ENCLOS_HOST_ENCLAVES.iter().position(|e| e.base.load(Ordering::Relaxed) == 0);
    if let Some(index) = free {
        let entry = &ENCLOS_HOST_ENCLAVES[index];
        for (to, from) in entry.mrenclave.iter().zip(mrenclave.as_chunks::<8>().0) {
            to.store(u64::from_ne_bytes(*from), Ordering::Relaxed);
        }
        entry.base.store(base, Ordering::Release);
    }
    drop(changes);
    enclos_host_enclaves_changed();
    Shown(free)
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(index) = self.0 {
            ENCLOS_HOST_ENCLAVES[index].base.store(0, Ordering::Release);
            enclos_host_enclaves_changed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enclaves_are_shown_until_they_go() {
        let of = |base| ENCLOS_HOST_ENCLAVES.iter().find(|e| e.base.load(Ordering::Acquire) == base);
        let first = show(0x7000, &[1; 32]);
        let second = show(0x9000, &std::array::from_fn(|i| i as u8));
        let entry = of(0x9000).unwrap();
        assert_eq!(entry.mrenclave[1].load(Ordering::Relaxed).to_ne_bytes(), [8, 9, 10, 11, 12, 13, 14, 15]);
        drop(second);
        assert!(of(0x9000).is_none() && of(0x7000).is_some());
        drop(first);
        assert!(of(0x7000).is_none());
    }
}
