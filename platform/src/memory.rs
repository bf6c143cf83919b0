//! Address space for enclaves: naturally aligned reservations.

use std::io;

use crate::PlatformError;

/// Page size of EPC pages (SDM vol. 3D, "Enclave Page Cache").
pub(crate) const PAGE: u64 = 4096;

/// Address space set aside for ELRANGE and, below it, for whatever must be within reach of it. Inaccessible until
/// [`protect`](Self::protect) or a fixed mapping changes that; unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    base: u64,
    size: u64,
    below: u64,
}

impl Reservation {
    /// Reserves `size` bytes aligned to `size`, and `below` bytes (whole pages) before them. No memory is committed.
    ///
    /// # Errors
    /// When there is no such hole in the address space, or a limit on it (`RLIMIT_AS`) forbids it.
    ///
    /// # Panics
    /// When `size` is not a power of two of at least a page, or `below` is not a number of pages.
    pub(crate) fn new(size: u64, below: u64) -> Result<Self, PlatformError> {
        assert!(size.is_power_of_two() && size >= PAGE && below.is_multiple_of(PAGE));
        let full = (|| usize::try_from(size.checked_mul(2)?.checked_add(below)?).ok())();
        let full = full.ok_or_else(|| PlatformError::Os {
            what: "reserving address space for the enclave",
            source: io::Error::from_raw_os_error(libc::ENOMEM),
        })?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { libc::mmap(core::ptr::null_mut(), full, libc::PROT_NONE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(os("reserving address space for the enclave"));
        }
        let start = start as u64;
        let base = (start + below).next_multiple_of(size);
        let this = Self { base, size, below };
        let (keep, keep_end, end) = (base - below, base + size, start + full as u64);
        // SAFETY: both parts belong to the mapping just made and nobody uses them.
        unsafe {
            if keep > start {
                libc::munmap(start as *mut _, (keep - start) as usize);
            }
            if end > keep_end {
                libc::munmap(keep_end as *mut _, (end - keep_end) as usize);
            }
        }
        Ok(this)
    }

    /// The aligned start.
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    /// Bytes from the start.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Sets the protection of `len` bytes at `offset`.
    ///
    /// # Errors
    /// As mprotect(2), for example when memory is short.
    ///
    /// # Panics
    /// When the range is not within the reservation.
    pub(crate) fn protect(&self, offset: u64, len: u64, protection: i32) -> Result<(), PlatformError> {
        let at = self.range(offset, len);
        // SAFETY: the range is ours; whoever accesses it does so by raw pointers and answers for the protection.
        match unsafe { libc::mprotect(at.cast(), len as usize, protection) } {
            0 => Ok(()),
            _ => Err(os("changing the protection of enclave pages")),
        }
    }

    /// A pointer to `len` bytes at `offset`. Whether they are accessible is the caller's affair.
    ///
    /// # Panics
    /// When the range is not within the reservation.
    pub(crate) fn range(&self, offset: u64, len: u64) -> *mut u8 {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.size), "outside of the reservation");
        (self.base + offset) as *mut u8
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: our own mapping; the owner has made sure that nobody uses it any more.
        unsafe { libc::munmap((self.base - self.below) as *mut _, (self.below + self.size) as usize) };
    }
}

pub(crate) fn os(what: &'static str) -> PlatformError {
    PlatformError::Os { what, source: io::Error::last_os_error() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_are_naturally_aligned_and_have_room_below() {
        for size in [2 * PAGE, 1 << 20, 1 << 30, 1 << 36] {
            let r = Reservation::new(size, PAGE).unwrap();
            assert_eq!(r.base() % size, 0);
            assert_eq!(r.size(), size);
            r.protect(0, PAGE, libc::PROT_READ | libc::PROT_WRITE).unwrap();
            let p = r.range(0, PAGE);
            // SAFETY: just made accessible; fresh anonymous memory.
            unsafe {
                assert_eq!(p.read(), 0);
                p.write(1);
            }
        }
    }

    #[test]
    fn a_reservation_that_cannot_be_had_is_an_error() {
        assert!(matches!(Reservation::new(1 << 62, PAGE), Err(PlatformError::Os { .. })));
        assert!(matches!(Reservation::new(1 << 63, PAGE), Err(PlatformError::Os { .. })));
    }
}
