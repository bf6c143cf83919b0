//! The runtime's own small allocations, taken from the same pages as the program's: there is one heap.
//!
//! Sizes up to half a page come from free lists of power-of-two blocks, larger ones are pages. Blocks never go back to
//! the pages: what was needed once is needed again. Calls that make something ask [`has_room`] first, so that a program
//! that has used up its heap gets ENOMEM and not the end of the enclave. Where memory is dynamic the host may have none
//! left long before the heap is used up: a reserve of pages that are there is kept for that.

use core::alloc::{GlobalAlloc, Layout};

use crate::lock::SpinLock;
use crate::memory::{self, PAGE};

/// Log2 of the smallest block, and how many sizes there are: 16 to 2048 bytes.
const SMALLEST: u32 = 4;
const SIZES: usize = 8;
/// Pages taken at a time for blocks.
const REFILL: u64 = 4 * PAGE;
/// Left free for what is allocated after [`has_room`] said yes.
const RESERVE: u64 = 32 * PAGE;

/// Is there memory for a new object of the runtime?
pub fn has_room() -> bool {
    memory::totals().1 > RESERVE && reserve_is_full()
}

/// Is there memory for what a call needs while it lasts? More than for what stays, so that a file can be deleted when
/// there is no room for another.
pub fn has_room_for_call() -> bool {
    memory::totals().1 > RESERVE / 4
}

/// The reserve of dynamic memory: pages that are there, and how many bytes of them are not used yet.
static KEPT: SpinLock<(u64, u64)> = SpinLock::new((0, 0));

/// Fills the reserve if it is not full; false when there is nothing to fill it with.
fn reserve_is_full() -> bool {
    if !crate::pages::are_dynamic() || KEPT.lock().1 == RESERVE {
        return true;
    }
    let Ok(fresh) = memory::map(RESERVE) else { return false };
    let (old, left) = core::mem::replace(&mut *KEPT.lock(), (fresh, RESERVE));
    if left != 0 {
        let _ = memory::unmap(old, left);
    }
    true
}

/// Pages for the runtime; from the reserve when there are no others.
fn take_pages(len: u64) -> Result<u64, crate::host::Errno> {
    memory::map(len).or_else(|e| {
        let len = len.next_multiple_of(PAGE);
        let mut kept = KEPT.lock();
        if kept.1 < len {
            return Err(e);
        }
        kept.1 -= len;
        Ok(kept.0 + kept.1)
    })
}

struct Lists([usize; SIZES]);

static LISTS: SpinLock<Lists> = SpinLock::new(Lists([0; SIZES]));

/// The allocator.
pub struct Heap;

#[cfg(freestanding)]
#[global_allocator]
static HEAP: Heap = Heap;

/// Which list serves the layout; `None`: whole pages.
fn list_of(layout: Layout) -> Option<usize> {
    let size = layout.size().max(layout.align()).max(1 << SMALLEST).next_power_of_two();
    let list = (size.trailing_zeros() - SMALLEST) as usize;
    (list < SIZES).then_some(list)
}

// SAFETY: blocks of a list are disjoint, as large as its size and aligned to it, since pages are; pages come from the
// page allocator, which hands each out once. Alignments beyond a page are refused.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(list) = list_of(layout) else {
            if layout.align() as u64 > PAGE {
                return core::ptr::null_mut();
            }
            return take_pages(layout.size() as u64).map_or(core::ptr::null_mut(), |at| at as *mut u8);
        };
        let mut lists = LISTS.lock();
        if lists.0[list] == 0 {
            // Bringing pages leaves the enclave: not with a lock held.
            drop(lists);
            let Ok(fresh) = take_pages(REFILL) else { return core::ptr::null_mut() };
            lists = LISTS.lock();
            let size = 1_u64 << (list as u32 + SMALLEST);
            for at in (fresh..fresh + REFILL).step_by(size as usize) {
                // SAFETY: within the fresh pages, aligned.
                unsafe { (at as *mut usize).write(lists.0[list]) };
                lists.0[list] = at as usize;
            }
        }
        let block = lists.0[list] as *mut usize;
        // SAFETY: the first word of a free block is the next one's address.
        lists.0[list] = unsafe { block.read() };
        block.cast()
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match list_of(layout) {
            Some(list) => {
                let mut lists = LISTS.lock();
                // SAFETY: the block is free from now on and at least a word long.
                unsafe { block.cast::<usize>().write(lists.0[list]) };
                lists.0[list] = block as usize;
            }
            None => {
                let _ = memory::unmap(block as u64, layout.size() as u64);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_lists() {
        let of = |size, align| list_of(Layout::from_size_align(size, align).unwrap());
        assert_eq!([of(1, 1), of(16, 8), of(17, 8), of(2048, 8)], [Some(0), Some(0), Some(1), Some(7)]);
        assert_eq!([of(2049, 8), of(8, 4096), of(8, 128)], [None, None, Some(3)]);
    }
}
