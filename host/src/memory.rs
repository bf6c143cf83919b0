//! Untrusted memory that the enclave knows of: the threads' frames and what it asked for.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use enclos::abi::{self, FaultReport};
use enclos::contract::End;

/// Zero-filled memory of its own, page-aligned, given back when dropped.
pub(crate) struct Mapping {
    address: usize,
    len: usize,
}

impl Mapping {
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        let len = len.max(1).next_multiple_of(abi::PAGE_SIZE as usize);
        // SAFETY: a new anonymous mapping at an address of the kernel's choice.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        match address {
            libc::MAP_FAILED => Err(io::Error::last_os_error()),
            address => Ok(Self { address: address as usize, len }),
        }
    }

    pub(crate) fn address(&self) -> usize {
        self.address
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours; its users are gone with the owner.
        unsafe { libc::munmap(self.address as *mut libc::c_void, self.len) };
    }
}

/// All untrusted memory of one enclave.
pub(crate) struct UntrustedMemory {
    frames: Mapping,
    allocated: Mutex<Allocations>,
    limit: u64,
    /// Changes whenever memory is freed, so that what was found before is looked up again.
    generation: AtomicU64,
}

#[derive(Default)]
struct Allocations {
    by_address: BTreeMap<u64, Mapping>,
    bytes: u64,
}

impl UntrustedMemory {
    pub(crate) fn new(frames: Mapping, limit: u64) -> Self {
        Self { frames, allocated: Mutex::default(), limit, generation: AtomicU64::new(0) }
    }

    /// Allocates for the enclave; the error is a Linux error number.
    pub(crate) fn allocate(&self, len: u64) -> Result<u64, i32> {
        let mut allocated = self.allocated.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = allocated.bytes.checked_add(len).filter(|b| *b <= self.limit).ok_or(libc::ENOMEM)?;
        let mapping = Mapping::new(len as usize).map_err(|e| e.raw_os_error().unwrap_or(libc::ENOMEM))?;
        let address = mapping.address as u64;
        allocated.bytes = bytes - len + mapping.len as u64;
        allocated.by_address.insert(address, mapping);
        Ok(address)
    }

    /// Frees what was allocated at this address.
    pub(crate) fn free(&self, address: u64) -> Result<(), i32> {
        let mut allocated = self.allocated.lock().unwrap_or_else(PoisonError::into_inner);
        let mapping = allocated.by_address.remove(&address).ok_or(libc::EINVAL)?;
        allocated.bytes -= mapping.len as u64;
        self.generation.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// As long as this is the same, pieces found before still exist.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// The piece of this memory that holds the whole range: start and length.
    pub(crate) fn piece(&self, address: u64, len: u64) -> Option<(u64, u64)> {
        let frames = (self.frames.address as u64, self.frames.len as u64);
        if holds(frames, address, len) {
            return Some(frames);
        }
        let allocated = self.allocated.lock().unwrap_or_else(PoisonError::into_inner);
        let (start, mapping) = allocated.by_address.range(..=address).next_back()?;
        let piece = (*start, mapping.len as u64);
        holds(piece, address, len).then_some(piece)
    }

    /// What a dying enclave left in a thread's frame.
    pub(crate) fn fault_report(&self, frame: usize, len: u64) -> End {
        let fixed = size_of::<FaultReport>();
        if len < fixed as u64 || len > abi::FRAME_SIZE {
            let text = "it left no report".to_owned();
            return End::Faulted { vector: u32::MAX, thread: u32::MAX, text };
        }
        // SAFETY: frames are as large as FRAME_SIZE and page-aligned, and a `FaultReport` has no invalid values.
        let (report, text) = unsafe {
            let report = (frame as *const FaultReport).read();
            let text_len = report.text_len.min(len - fixed as u64) as usize;
            (report, std::slice::from_raw_parts((frame + fixed) as *const u8, text_len))
        };
        let text = String::from_utf8_lossy(text).into_owned();
        End::Faulted { vector: report.vector, thread: report.thread, text }
    }
}

/// Copies in pieces: see [`abi::COPY_BYTES`].
///
/// # Safety
/// As [`std::ptr::copy_nonoverlapping`].
#[inline]
pub(crate) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    let mut done = 0;
    while done < len {
        let part = (len - done).min(abi::COPY_BYTES);
        // SAFETY: within the caller's ranges.
        unsafe { std::ptr::copy_nonoverlapping(from.add(done), to.add(done), part) };
        done += part;
    }
}

pub(crate) fn holds((start, size): (u64, u64), address: u64, len: u64) -> bool {
    address >= start && address.checked_add(len).is_some_and(|end| end <= start + size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_memory_is_found() {
        let memory = UntrustedMemory::new(Mapping::new(8192).unwrap(), 1 << 20);
        let frames = memory.frames.address as u64;
        assert_eq!(memory.piece(frames + 8, 8184), Some((frames, 8192)));
        assert_eq!(memory.piece(frames + 8, 8185), None);
        assert_eq!(memory.piece(u64::MAX, 2), None);
        let a = memory.allocate(5000).unwrap();
        assert_eq!(memory.piece(a + 8000, 192), Some((a, 8192)));
        assert_eq!(memory.piece(a, 8193), None);
        assert_eq!(memory.free(a + 4096), Err(libc::EINVAL));
        assert_eq!(memory.free(a), Ok(()));
        assert_eq!(memory.free(a), Err(libc::EINVAL));
        assert_eq!(memory.allocate(2 << 20), Err(libc::ENOMEM));
        assert_eq!(memory.allocate(u64::MAX), Err(libc::ENOMEM));
    }
}
