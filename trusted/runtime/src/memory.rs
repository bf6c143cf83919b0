//! Anonymous memory for the program: whole pages of the heap, found by bitmap.
//!
//! The heap's pages are part of the image (SGX1: all memory is there from the start) but their contents are not
//! measured, so whatever the host put there is cleared before a page is handed out; freed pages are cleared when they
//! are handed out again. `brk` grows from the bottom, mappings are taken from the top, so that both can grow.
//!
//! Page permissions cannot change on SGX1: `mprotect` within the heap succeeds and does nothing.

use crate::host::Errno;
use crate::lock::SpinLock;

pub const PAGE: u64 = 4096;

/// The heap and which of its pages are in use.
struct Heap {
    base: u64,
    pages: usize,
    /// One bit a page; lies at the end of the heap itself.
    used: *mut u64,
    free_pages: usize,
    brk_start: u64,
    brk: u64,
    /// No free page at or above this index (a hint for the search from the top).
    top: usize,
}

// SAFETY: the bitmap belongs to the heap alone and is reached under its lock.
unsafe impl Send for Heap {}

static HEAP: SpinLock<Heap> = SpinLock::new(Heap {
    base: 0,
    pages: 0,
    used: core::ptr::null_mut(),
    free_pages: 0,
    brk_start: 0,
    brk: 0,
    top: 0,
});

/// Takes over `[base, base + size)`: whole pages that nobody uses, contents unknown.
///
/// # Safety
/// The range must be mapped, writable and used by no one else.
pub unsafe fn initialise(base: u64, size: u64) {
    let all = (size / PAGE) as usize;
    let bitmap_pages = (all.div_ceil(8)).div_ceil(PAGE as usize).min(all);
    let pages = all - bitmap_pages;
    let used = (base + pages as u64 * PAGE) as *mut u64;
    // SAFETY: the end of the range is ours as well.
    unsafe { core::ptr::write_bytes(used.cast::<u8>(), 0, bitmap_pages * PAGE as usize) };
    *HEAP.lock() = Heap { base, pages, used, free_pages: pages, brk_start: base, brk: base, top: pages };
}

/// Clear, unused pages for `len` bytes.
///
/// # Errors
/// ENOMEM, EINVAL for length 0.
pub fn map(len: u64) -> Result<u64, Errno> {
    let pages = pages_of(len)?;
    let at = {
        let mut heap = HEAP.lock();
        let first = heap.find_from_top(pages).ok_or(Errno::NOMEM)?;
        heap.mark(first, pages, true);
        heap.address(first)
    };
    clear(at, pages);
    Ok(at)
}

/// Clear pages at this very address, whatever was there (MAP_FIXED).
///
/// # Errors
/// EINVAL when the range is not page-aligned or not in the heap.
pub fn map_fixed(at: u64, len: u64, replace: bool) -> Result<u64, Errno> {
    let pages = pages_of(len)?;
    {
        let mut heap = HEAP.lock();
        let first = heap.index(at, pages).ok_or(Errno::INVAL)?;
        if !replace && (first..first + pages).any(|p| heap.is_used(p)) {
            return Err(Errno(17));
        }
        heap.mark(first, pages, true);
    }
    clear(at, pages);
    Ok(at)
}

/// Gives pages back. Pages that were not in use stay so.
///
/// # Errors
/// EINVAL when the range is not page-aligned or not in the heap.
pub fn unmap(at: u64, len: u64) -> Result<(), Errno> {
    let pages = pages_of(len)?;
    let mut heap = HEAP.lock();
    let first = heap.index(at, pages).ok_or(Errno::INVAL)?;
    heap.mark(first, pages, false);
    Ok(())
}

/// mremap with MREMAP_MAYMOVE or without.
///
/// # Errors
/// ENOMEM, EINVAL, EFAULT as Linux.
pub fn remap(at: u64, old_len: u64, new_len: u64, may_move: bool) -> Result<u64, Errno> {
    let (old, new) = (pages_of(old_len)?, pages_of(new_len)?);
    {
        let mut heap = HEAP.lock();
        let first = heap.index(at, old).ok_or(Errno::FAULT)?;
        if new <= old {
            heap.mark(first + new, old - new, false);
            return Ok(at);
        }
        let grow = first + old..first + new;
        if grow.end <= heap.pages && !grow.clone().any(|p| heap.is_used(p)) {
            heap.mark(grow.start, new - old, true);
            drop(heap);
            clear(at + old as u64 * PAGE, new - old);
            return Ok(at);
        }
    }
    if !may_move {
        return Err(Errno::NOMEM);
    }
    let to = map(new_len)?;
    // SAFETY: both ranges are the program's, and they do not overlap: the new one was free.
    unsafe { core::ptr::copy_nonoverlapping(at as *const u8, to as *mut u8, old * PAGE as usize) };
    unmap(at, old_len)?;
    Ok(to)
}

/// brk(2): the new break, or the old one when the request cannot be met.
pub fn set_break(to: u64) -> u64 {
    let mut heap = HEAP.lock();
    let round = |a: u64| a.next_multiple_of(PAGE);
    let old = heap.brk;
    if to < heap.brk_start || to > heap.base + heap.pages as u64 * PAGE {
        return old;
    }
    let (have, want) = (round(old), round(to));
    if want > have {
        let pages = ((want - have) / PAGE) as usize;
        let first = ((have - heap.base) / PAGE) as usize;
        if (first..first + pages).any(|p| heap.is_used(p)) {
            return old;
        }
        heap.mark(first, pages, true);
        clear(have, pages);
    } else if want < have {
        let first = ((want - heap.base) / PAGE) as usize;
        heap.mark(first, ((have - want) / PAGE) as usize, false);
    }
    heap.brk = to;
    to
}

/// Is the whole range heap? (For mprotect and madvise.)
pub fn is_heap(at: u64, len: u64) -> bool {
    let heap = HEAP.lock();
    at >= heap.base && at.checked_add(len).is_some_and(|end| end <= heap.base + heap.pages as u64 * PAGE)
}

/// madvise(MADV_DONTNEED): the pages read as zero afterwards.
pub fn discard(at: u64, len: u64) -> Result<(), Errno> {
    let pages = pages_of(len)?;
    if HEAP.lock().index(at, pages).is_none() {
        return Err(Errno::INVAL);
    }
    clear(at, pages);
    Ok(())
}

/// Total and free bytes, for sysinfo(2).
pub fn totals() -> (u64, u64) {
    let heap = HEAP.lock();
    (heap.pages as u64 * PAGE, heap.free_pages as u64 * PAGE)
}

fn pages_of(len: u64) -> Result<usize, Errno> {
    if len == 0 {
        return Err(Errno::INVAL);
    }
    len.checked_next_multiple_of(PAGE).map(|l| (l / PAGE) as usize).ok_or(Errno::NOMEM)
}

fn clear(at: u64, pages: usize) {
    // SAFETY: pages of the heap that the caller has just taken, or that the program gave up.
    unsafe { core::ptr::write_bytes(at as *mut u8, 0, pages * PAGE as usize) };
}

impl Heap {
    fn address(&self, index: usize) -> u64 {
        self.base + index as u64 * PAGE
    }

    /// Index of the page at `at`, if `pages` pages from there are heap.
    fn index(&self, at: u64, pages: usize) -> Option<usize> {
        let offset = at.checked_sub(self.base)?;
        let index = (offset / PAGE) as usize;
        (offset % PAGE == 0 && index.checked_add(pages)? <= self.pages).then_some(index)
    }

    fn is_used(&self, index: usize) -> bool {
        // SAFETY: indices are below `pages`, which the bitmap covers.
        unsafe { *self.used.add(index / 64) >> (index % 64) & 1 != 0 }
    }

    fn mark(&mut self, first: usize, pages: usize, used: bool) {
        for index in first..first + pages {
            // SAFETY: as above.
            let word = unsafe { &mut *self.used.add(index / 64) };
            let bit = 1_u64 << (index % 64);
            if (*word & bit != 0) != used {
                *word ^= bit;
                if used {
                    self.free_pages -= 1;
                } else {
                    self.free_pages += 1;
                }
            }
        }
        if !used {
            self.top = self.top.max(first + pages);
        }
    }

    /// The highest run of free pages.
    fn find_from_top(&mut self, pages: usize) -> Option<usize> {
        if pages > self.free_pages {
            return None;
        }
        while self.top > 0 && self.is_used(self.top - 1) {
            self.top -= 1;
        }
        let mut end = self.top;
        let mut index = end;
        while end >= pages {
            if end - index == pages {
                return Some(index);
            }
            index -= 1;
            // SAFETY: as above.
            if index % 64 == 63 && index >= 64 && unsafe { *self.used.add(index / 64) } == u64::MAX {
                // A full word: skip it whole.
                index -= 63;
                end = index;
                continue;
            }
            if self.is_used(index) {
                end = index;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test, because there is one heap a process.
    #[test]
    fn pages_are_clear_disjoint_and_reused() {
        let pages = 300_u64;
        let layout = std::alloc::Layout::from_size_align((pages * PAGE) as usize, PAGE as usize).unwrap();
        // SAFETY: a fresh allocation of this size, filled with rubbish as a hostile host would.
        let base = unsafe {
            let at = std::alloc::alloc(layout);
            at.write_bytes(0xee, layout.size());
            initialise(at as u64, pages * PAGE);
            at as u64
        };
        let read = |at: u64, n: u64| {
            // SAFETY: within the allocation.
            unsafe { core::slice::from_raw_parts_mut(at as *mut u8, n as usize) }
        };
        let (total, free) = totals();
        assert_eq!((total, free), ((pages - 1) * PAGE, (pages - 1) * PAGE));
        let a = map(3 * PAGE).unwrap();
        let b = map(1).unwrap();
        assert!(b + PAGE <= a && is_heap(b, PAGE));
        assert!(read(a, 3 * PAGE).iter().all(|v| *v == 0));
        read(a, PAGE).fill(7);
        assert_eq!(remap(a, 3 * PAGE, PAGE, false), Ok(a));
        let c = remap(a, PAGE, 100 * PAGE, true).unwrap();
        assert!(
            c != a
                && read(c, PAGE).iter().all(|v| *v == 7)
                && read(c + PAGE, 99 * PAGE).iter().all(|v| *v == 0)
        );
        read(c, 100 * PAGE).fill(9);
        unmap(c, 100 * PAGE).unwrap();
        let d = map(100 * PAGE).unwrap();
        assert!(read(d, 100 * PAGE).iter().all(|v| *v == 0));
        unmap(d, 100 * PAGE).unwrap();
        unmap(b, PAGE).unwrap();
        assert_eq!(totals(), (total, total));
        // brk from below
        assert_eq!(set_break(0), base);
        assert_eq!(set_break(base + 5000), base + 5000);
        assert!(read(base, 5000).iter().all(|v| *v == 0));
        let rest = totals().1;
        assert_eq!(rest, total - 2 * PAGE);
        let all = map(rest).unwrap();
        assert_eq!(all, base + 2 * PAGE);
        assert_eq!(map(1), Err(Errno::NOMEM));
        assert_eq!(set_break(base + 3 * PAGE), base + 5000, "no room: unchanged");
        assert_eq!(map_fixed(all + PAGE, PAGE, false), Err(Errno(17)));
        assert_eq!(map_fixed(all + PAGE, PAGE, true), Ok(all + PAGE));
        // every other page, then a run that fits nowhere
        for i in (0..rest / PAGE).step_by(2) {
            unmap(all + i * PAGE, PAGE).unwrap();
        }
        assert_eq!(map(2 * PAGE), Err(Errno::NOMEM));
        let mut seen = 0;
        while map(PAGE).is_ok() {
            seen += 1;
        }
        assert_eq!(seen, (rest / PAGE).div_ceil(2));
        // nonsense
        assert_eq!(unmap(base - PAGE, PAGE), Err(Errno::INVAL));
        assert_eq!(unmap(base + 1, PAGE), Err(Errno::INVAL));
        assert_eq!(map(0), Err(Errno::INVAL));
        assert_eq!(map(u64::MAX), Err(Errno::NOMEM));
        assert_eq!(unmap(base, u64::MAX - 10 * PAGE), Err(Errno::INVAL));
    }
}
