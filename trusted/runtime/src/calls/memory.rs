//! mmap and its family, on the allocator of `crate::memory`.

use super::Outcome;
use crate::host::Errno;
use crate::memory::{self, Want};
use crate::pages;

const PROT_READ: u64 = 1;
const PROT_WRITE: u64 = 2;
const PROT_EXEC: u64 = 4;
const MAP_SHARED: u64 = 1;
const MAP_FIXED: u64 = 0x10;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_NORESERVE: u64 = 0x4000;
const MAP_STACK: u64 = 0x2_0000;
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
    let is_accessible = protection & (PROT_READ | PROT_WRITE) != 0;
    let want = match (is_accessible || is_file, flags & MAP_STACK != 0) {
        (true, false) if flags & MAP_NORESERVE == 0 || is_file => Want::Memory,
        (true, _) => Want::Promise,
        (false, is_lazy) => Want::Addresses { is_lazy },
    };
    let mapped = match flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) {
        0 => memory::map_as(len, want)?,
        f => memory::map_fixed(at, len, f & MAP_FIXED_NOREPLACE == 0, want)?,
    };
    if is_file && let Err(e) = super::files::map_private(fd, mapped, len, offset) {
        let _ = memory::unmap(mapped, len);
        return Err(e);
    }
    Ok(mapped)
}

/// mprotect(2). Where memory is dynamic, it does what it says, but for making anything executable. On SGX1 permissions are
/// fixed: asking for less than there is succeeds, as does asking for what is there; RELRO pages of the application stay
/// writable, and the guard pages of spawned threads' stacks do not guard: only the first thread's stack lies above a page
/// that does not exist.
pub fn mprotect(at: u64, len: u64, protection: u64) -> Outcome {
    let in_heap = memory::is_heap(at, len);
    let own = in_heap || (crate::boot::in_application(at) && at.is_multiple_of(memory::PAGE));
    if !own {
        return Err(Errno::NOMEM);
    }
    if !pages::are_dynamic() || len == 0 {
        return Ok(0);
    }
    let permissions = match protection & (PROT_READ | PROT_WRITE | PROT_EXEC) {
        0 => 0,
        PROT_READ => pages::READ,
        // On x86 what can be written can be read.
        p if p & PROT_EXEC == 0 => pages::READ_WRITE,
        _ if in_heap => return Err(Errno::PERM),
        _ => return Ok(0),
    };
    if in_heap {
        return memory::protect(at, len, permissions).map(|()| 0);
    }
    // Of the application, data: RELRO.
    let whole = len.next_multiple_of(memory::PAGE);
    if crate::boot::is_application_data(at, whole) {
        match permissions {
            pages::READ_WRITE => pages::extend(at, whole / memory::PAGE, pages::READ_WRITE),
            pages::READ => pages::restrict(at, whole / memory::PAGE, pages::READ)?,
            _ => {}
        }
    }
    Ok(0)
}

/// madvise(2): DONTNEED clears, or gives back; everything else is only advice.
pub fn madvise(at: u64, len: u64, advice: u64) -> Outcome {
    match advice {
        MADV_DONTNEED if len != 0 => memory::discard(at, len).map(|()| 0),
        MADV_FREE => Err(Errno::INVAL),
        _ => Ok(0),
    }
}
