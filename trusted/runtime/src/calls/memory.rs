//! mmap and its family, on the allocator of `crate::memory`.

use super::Outcome;
use crate::host::Errno;
use crate::memory;

const PROT_EXEC: u64 = 4;
const MAP_SHARED: u64 = 1;
const MAP_FIXED: u64 = 0x10;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_FIXED_NOREPLACE: u64 = 0x10_0000;
const MADV_DONTNEED: u64 = 4;
const MADV_FREE: u64 = 8;

/// mmap(2): anonymous memory, and private copies of files; a fixed address must lie in the heap.
pub fn mmap([at, len, protection, flags, fd, offset]: [u64; 6]) -> Outcome {
    let is_file = flags & MAP_ANONYMOUS == 0;
    // Nobody could see what is written to a shared one.
    if is_file && flags & MAP_SHARED != 0 {
        return Err(Errno::NODEV);
    }
    if protection & PROT_EXEC != 0 {
        // All code is measured; pages cannot become executable later.
        return Err(Errno::PERM);
    }
    let mapped = match flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) {
        0 => memory::map(len)?,
        f => memory::map_fixed(at, len, f & MAP_FIXED_NOREPLACE == 0)?,
    };
    if is_file && let Err(e) = super::files::map_private(fd, mapped, len, offset) {
        let _ = memory::unmap(mapped, len);
        return Err(e);
    }
    Ok(mapped)
}

/// mprotect(2): permissions of SGX1 pages are fixed; asking for less than there is succeeds, as does asking for what
/// is there. RELRO pages of the application stay writable, and the guard pages of spawned threads' stacks do not guard:
/// only the first thread's stack lies above a page that does not exist.
pub fn mprotect(at: u64, len: u64) -> Outcome {
    let own =
        memory::is_heap(at, len) || (crate::boot::in_application(at) && at.is_multiple_of(memory::PAGE));
    if own { Ok(0) } else { Err(Errno::NOMEM) }
}

/// madvise(2): DONTNEED clears; everything else is only advice.
pub fn madvise(at: u64, len: u64, advice: u64) -> Outcome {
    match advice {
        MADV_DONTNEED if len != 0 => memory::discard(at, len).map(|()| 0),
        MADV_FREE => Err(Errno::INVAL),
        _ => Ok(0),
    }
}
