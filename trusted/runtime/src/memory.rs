//! Anonymous memory for the program: whole pages of the heap, found by bitmap.
//!
//! `brk` grows from the bottom, mappings are taken from the top, so that both can grow.
//!
//! **All memory there from the start** (SGX1): the heap's pages are part of the image but their contents are not measured,
//! so whatever the host put there is cleared before a page is handed out; freed pages are cleared when they are handed
//! out again. Permissions cannot change: `mprotect` within the heap succeeds and does nothing.
//!
//! **Dynamic memory** (SGX2, see [`pages`]): a page is brought when it is handed out, so that a program which is given
//! memory has it and one that is refused gets ENOMEM. What a program asks for as a stack, or without reservation, is
//! promised only: it is brought when it is touched ([`on_fault`]), and so is what it said it does not need. Ranges of
//! [`GIVE_BACK`] pages and more go back to the host when they are freed.

use crate::host::Errno;
use crate::lock::SpinLock;
use crate::pages::{self, Gone};

pub const PAGE: u64 = 4096;

/// Pages that are given back to the host when they are freed together: fewer are likely to be wanted again soon.
const GIVE_BACK: usize = 64;

/// Promised pages that are brought at once, when one of them is touched.
const BROUGHT_AT_ONCE: usize = 64;

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
    /// Where memory is dynamic: a byte a page, after the bitmap; see [`state`]. Else null.
    states: *mut u8,
}

/// What is known of a page where memory is dynamic: bits.
mod state {
    /// It was accepted and has not been given back.
    pub const PRESENT: u8 = 1 << 0;
    /// It is brought when it is touched.
    pub const PROMISED: u8 = 1 << 1;
    /// Present, and only readable.
    pub const READ_ONLY: u8 = 1 << 2;
    /// Present, and not accessible.
    pub const HIDDEN: u8 = 1 << 3;
    /// Being given back.
    pub const LEAVING: u8 = 1 << 4;
    /// The host did with it what it was not asked to; it stays in use for ever.
    pub const LOST: u8 = 1 << 5;
    /// Promised, and being brought.
    pub const COMING: u8 = 1 << 6;
    /// Part of a mapping that is promised rather than brought.
    pub const LAZY: u8 = 1 << 7;
}

// SAFETY: bitmap and states belong to the heap alone and are reached under its lock.
unsafe impl Send for Heap {}

static HEAP: SpinLock<Heap> = SpinLock::new(Heap {
    base: 0,
    pages: 0,
    used: core::ptr::null_mut(),
    free_pages: 0,
    brk_start: 0,
    brk: 0,
    top: 0,
    states: core::ptr::null_mut(),
});

/// Takes over `[base, base + size)`: whole pages that nobody uses. Of these the last `present` bytes are there, contents
/// unknown; the others come when they are needed, if memory is dynamic.
///
/// # Safety
/// The present range must be mapped, writable and used by no one else, and large enough for what must be known of each
/// page ([`enclos::image::dynamic_heap_present`]).
pub unsafe fn initialise(base: u64, size: u64, present: u64) {
    let all = (size / PAGE) as usize;
    let whole = |bytes: usize| bytes.div_ceil(PAGE as usize);
    let bitmap_pages = whole(all.div_ceil(8));
    let state_pages = if pages::are_dynamic() { whole(all) } else { 0 };
    let pages = all.saturating_sub(bitmap_pages + state_pages);
    let used = base + pages as u64 * PAGE;
    let states = used + bitmap_pages as u64 * PAGE;
    let absent = ((size - present.min(size)) / PAGE) as usize;
    // SAFETY: the end of the range is ours as well, and present.
    unsafe {
        core::ptr::write_bytes(used as *mut u8, 0, (bitmap_pages + state_pages) * PAGE as usize);
        if state_pages != 0 && absent < pages {
            core::ptr::write_bytes((states + absent as u64) as *mut u8, state::PRESENT, pages - absent);
        }
    }
    *HEAP.lock() = Heap {
        base,
        pages,
        used: used as *mut u64,
        free_pages: pages,
        brk_start: base,
        brk: base,
        top: pages,
        states: if state_pages != 0 { states as *mut u8 } else { core::ptr::null_mut() },
    };
}

/// What a program wants of new pages.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Clear pages, now.
    Memory,
    /// Clear pages when they are touched.
    Promise,
    /// Addresses; pages of them are asked for later (mprotect), and then `is_lazy` says whether as promises.
    Addresses {
        /// Memory there is promised, not brought.
        is_lazy: bool,
    },
}

/// Clear, unused pages for `len` bytes.
///
/// # Errors
/// ENOMEM, EINVAL for length 0.
pub fn map(len: u64) -> Result<u64, Errno> {
    map_as(len, Want::Memory)
}

/// Unused pages for `len` bytes.
///
/// # Errors
/// ENOMEM, EINVAL for length 0.
pub fn map_as(len: u64, want: Want) -> Result<u64, Errno> {
    let pages = pages_of(len)?;
    let (first, at) = {
        let mut heap = HEAP.lock();
        let first = heap.find_from_top(pages).ok_or(Errno::NOMEM)?;
        heap.mark(first, pages, true);
        (first, heap.address(first))
    };
    supply(first, pages, want, true)?;
    Ok(at)
}

/// Pages at this very address, whatever was there (MAP_FIXED).
///
/// # Errors
/// EINVAL when the range is not page-aligned or not in the heap.
pub fn map_fixed(at: u64, len: u64, replace: bool, want: Want) -> Result<u64, Errno> {
    let pages = pages_of(len)?;
    let first = {
        let mut heap = HEAP.lock();
        let first = heap.index(at, pages).ok_or(Errno::INVAL)?;
        if !replace && (first..first + pages).any(|p| heap.is_used(p)) {
            return Err(Errno(17));
        }
        heap.mark(first, pages, true);
        first
    };
    supply(first, pages, want, false)?;
    Ok(at)
}

/// Gives pages back. Pages that were not in use stay so.
///
/// # Errors
/// EINVAL when the range is not page-aligned or not in the heap.
pub fn unmap(at: u64, len: u64) -> Result<(), Errno> {
    let pages = pages_of(len)?;
    let first = HEAP.lock().index(at, pages).ok_or(Errno::INVAL)?;
    release(first, pages);
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
            drop(heap);
            release(first + new, old - new);
            return Ok(at);
        }
        let grow = first + old..first + new;
        if grow.end <= heap.pages && !grow.clone().any(|p| heap.is_used(p)) {
            heap.mark(grow.start, new - old, true);
            drop(heap);
            supply(grow.start, new - old, Want::Memory, true)?;
            return Ok(at);
        }
    }
    if !may_move {
        return Err(Errno::NOMEM);
    }
    let to = map(new_len)?;
    let copy = |from: usize, count: usize| {
        let offset = from as u64 * PAGE;
        // SAFETY: both ranges are the program's, and they do not overlap: the new one was free.
        unsafe {
            let (from, to) = ((at + offset) as *const u8, (to + offset) as *mut u8);
            core::ptr::copy_nonoverlapping(from, to, count * PAGE as usize);
        }
    };
    if pages::are_dynamic() {
        // What is only addresses has no contents.
        let first = HEAP.lock().index(at, old).ok_or(Errno::FAULT)?;
        let mut next = first;
        while let Some((from, count, is)) = run(next, first + old) {
            next = from + count;
            if is & state::HIDDEN != 0 {
                pages::extend(address(from), count as u64, pages::READ);
            }
            if is & (state::PRESENT | state::PROMISED) != 0 {
                copy(from - first, count);
            }
        }
    } else {
        copy(0, old);
    }
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
    let index = |at: u64| ((at - heap.base) / PAGE) as usize;
    let (from, until) = (index(have), index(want));
    if until > from {
        if (from..until).any(|p| heap.is_used(p)) {
            return old;
        }
        heap.mark(from, until - from, true);
        // Before the lock goes: nobody else may move the break meanwhile and believe in what is not there yet.
        heap.brk = to;
        drop(heap);
        if supply(from, until - from, Want::Memory, true).is_err() {
            let mut heap = HEAP.lock();
            if heap.brk == to {
                heap.brk = old;
            }
            return heap.brk;
        }
        return to;
    }
    heap.brk = to;
    drop(heap);
    release(until, from - until);
    to
}

/// Is the whole range heap? (For mprotect and madvise.)
pub fn is_heap(at: u64, len: u64) -> bool {
    let heap = HEAP.lock();
    at >= heap.base && at.checked_add(len).is_some_and(|end| end <= heap.base + heap.pages as u64 * PAGE)
}

/// madvise(MADV_DONTNEED): the pages read as zero afterwards.
///
/// # Errors
/// EINVAL when the range is not page-aligned or not in the heap.
pub fn discard(at: u64, len: u64) -> Result<(), Errno> {
    let pages = pages_of(len)?;
    let first = HEAP.lock().index(at, pages).ok_or(Errno::INVAL)?;
    if !pages::are_dynamic() {
        clear(at, pages);
        return Ok(());
    }
    let mut next = first;
    while let Some((from, count, is)) = run(next, first + pages) {
        next = from + count;
        if is & (state::PRESENT | state::LEAVING | state::LOST) != state::PRESENT {
            continue;
        }
        let keeps = is & (state::READ_ONLY | state::HIDDEN);
        if count >= GIVE_BACK && keeps == 0 {
            leave(from, count, Then::Promised);
        } else {
            let at = address(from);
            if keeps != 0 {
                pages::extend(at, count as u64, pages::READ_WRITE);
            }
            clear(at, count);
            if keeps != 0 {
                let permissions = if keeps & state::HIDDEN != 0 { 0 } else { pages::READ };
                pages::restrict(at, count as u64, permissions)?;
            }
        }
    }
    Ok(())
}

/// mprotect(2) within the heap: `permissions` are [`pages::READ_WRITE`], [`pages::READ`] or 0.
///
/// # Errors
/// EINVAL when the range is not page-aligned or not in the heap, ENOMEM when pages are not to be had.
pub fn protect(at: u64, len: u64, permissions: u64) -> Result<(), Errno> {
    let pages = pages_of(len)?;
    let first = HEAP.lock().index(at, pages).ok_or(Errno::INVAL)?;
    if !pages::are_dynamic() {
        return Ok(());
    }
    let mut next = first;
    while let Some((from, count, is)) = run(next, first + pages) {
        next = from + count;
        if is & (state::LEAVING | state::LOST | state::COMING) != 0 {
            continue;
        }
        let kept = is & state::LAZY;
        if is & state::PRESENT == 0 {
            if permissions == 0 {
                set(from, count, kept);
                continue;
            }
            if permissions == pages::READ_WRITE && is & (state::LAZY | state::PROMISED) != 0 {
                // The end of what becomes a stack is used at once: who makes the thread is to learn that there is none.
                let now = if kept != 0 { count.min(BROUGHT_AT_ONCE) } else { 0 };
                set(from, count - now, kept | state::PROMISED);
                bring(from + count - now, now, kept)?;
                continue;
            }
            bring(from, count, kept)?;
        }
        let at = address(from);
        let has = match is {
            _ if is & state::HIDDEN != 0 => 0,
            _ if is & state::READ_ONLY != 0 => pages::READ,
            _ => pages::READ_WRITE,
        };
        if has & !permissions != 0 {
            pages::restrict(at, count as u64, permissions)?;
        } else if permissions & !has != 0 {
            pages::extend(at, count as u64, permissions);
        }
        let now = match permissions {
            0 => state::HIDDEN,
            pages::READ => state::READ_ONLY,
            _ => 0,
        };
        set(from, count, kept | state::PRESENT | now);
    }
    Ok(())
}

/// What to do about a page fault of the program.
pub enum Fault {
    /// It is not about memory that was promised.
    Foreign,
    /// Try the instruction again: another thread is bringing the page, or has.
    Again {
        /// It has, and unless the host took it away since, it is there.
        is_there: bool,
    },
    /// These pages must be brought: address, number. Then [`arrived`].
    Bring(u64, u64),
}

/// A page fault at this address. Only after the CPU has said that there was one.
pub fn on_fault(address: u64) -> Fault {
    let heap = HEAP.lock();
    if heap.states.is_null() {
        return Fault::Foreign;
    }
    let Some(index) = heap.index(address & !(PAGE - 1), 1) else { return Fault::Foreign };
    let is = heap.state(index);
    match is & (state::COMING | state::PROMISED | state::PRESENT | state::LAZY) {
        s if s & state::COMING != 0 => return Fault::Again { is_there: false },
        s if s & state::PRESENT != 0 => {
            let promised = s & state::LAZY != 0 && is & (state::READ_ONLY | state::HIDDEN) == 0;
            return if promised { Fault::Again { is_there: true } } else { Fault::Foreign };
        }
        s if s & state::PROMISED == 0 || !heap.is_used(index) => return Fault::Foreign,
        _ => {}
    }
    let window = index - index % BROUGHT_AT_ONCE;
    let like = |i: &usize| heap.state(*i) == is && heap.is_used(*i);
    let first = (window..index).rev().take_while(like).last().unwrap_or(index);
    let end = (window + BROUGHT_AT_ONCE).min(heap.pages);
    let last = (index + 1..end).take_while(like).last().unwrap_or(index);
    heap.set_states(first, last + 1 - first, is | state::COMING);
    Fault::Bring(heap.address(first), (last + 1 - first) as u64)
}

/// The host says it has added these pages. False when it has not.
pub fn arrived(at: u64, count: u64) -> bool {
    let there = pages::accept_new(at, count) as usize;
    let heap = HEAP.lock();
    let Some(first) = heap.index(at, count as usize) else { return false };
    // A thread that faulted before they came sees by this that it is to try again.
    heap.set_states(first, there, state::PRESENT | state::LAZY);
    there == count as usize
}

/// Total and free bytes, for sysinfo(2).
pub fn totals() -> (u64, u64) {
    let heap = HEAP.lock();
    (heap.pages as u64 * PAGE, heap.free_pages as u64 * PAGE)
}

/// Pages that were just marked as used get what is wanted of them. If that fails they are free again, unless they were
/// somebody's before.
fn supply(first: usize, pages: usize, want: Want, were_free: bool) -> Result<(), Errno> {
    if !pages::are_dynamic() {
        // Addresses too: there is no other memory to come, and no mprotect that would bring it.
        clear(address(first), pages);
        return Ok(());
    }
    let outcome = match want {
        Want::Memory => make_present(first, pages),
        Want::Promise => promise(first, pages, state::LAZY | state::PROMISED),
        Want::Addresses { is_lazy } => promise(first, pages, if is_lazy { state::LAZY } else { 0 }),
    };
    if outcome.is_err() && were_free {
        release(first, pages);
    }
    outcome
}

/// All pages of the range are there, clear and writable.
fn make_present(first: usize, pages: usize) -> Result<(), Errno> {
    let mut next = first;
    while let Some((from, count, is)) = run(next, first + pages) {
        next = from + count;
        if is & (state::LEAVING | state::LOST | state::COMING) != 0 {
            return Err(Errno::NOMEM);
        }
        if is & state::PRESENT == 0 {
            bring(from, count, 0)?;
            continue;
        }
        if is & (state::READ_ONLY | state::HIDDEN) != 0 {
            pages::extend(address(from), count as u64, pages::READ_WRITE);
        }
        clear(address(from), count);
        set(from, count, state::PRESENT);
    }
    Ok(())
}

/// Pages of the range are not there until they are touched, or asked for: `later` says which. Those that are there from
/// before serve as they are.
fn promise(first: usize, pages: usize, later: u8) -> Result<(), Errno> {
    let mut next = first;
    while let Some((from, count, is)) = run(next, first + pages) {
        next = from + count;
        if is & (state::LEAVING | state::LOST | state::COMING) != 0 {
            return Err(Errno::NOMEM);
        }
        if is & state::PRESENT == 0 {
            set(from, count, later);
            continue;
        }
        if is & (state::READ_ONLY | state::HIDDEN) != 0 {
            pages::extend(address(from), count as u64, pages::READ_WRITE);
        }
        clear(address(from), count);
        if later & state::PROMISED != 0 {
            set(from, count, state::PRESENT | state::LAZY);
        } else {
            // What is only addresses must not be accessible: a guard is.
            pages::restrict(address(from), count as u64, 0)?;
            set(from, count, state::PRESENT | state::HIDDEN | later);
        }
    }
    Ok(())
}

/// Brings pages that are not there.
fn bring(first: usize, count: usize, kept: u8) -> Result<(), Errno> {
    if count == 0 {
        return Ok(());
    }
    let (there, outcome) = pages::bring(address(first), count as u64);
    set(first, there as usize, state::PRESENT | kept);
    outcome
}

/// Marks pages as free; gives those back that are many.
fn release(first: usize, pages: usize) {
    if !pages::are_dynamic() {
        HEAP.lock().mark(first, pages, false);
        return;
    }
    let mut next = first;
    while let Some((from, count, is)) = run(next, first + pages) {
        next = from + count;
        if is & (state::LEAVING | state::LOST | state::COMING) != 0 {
            continue;
        }
        if is & state::PRESENT != 0 && count >= GIVE_BACK {
            leave(from, count, Then::Free);
            continue;
        }
        let mut heap = HEAP.lock();
        heap.set_states(from, count, is & (state::PRESENT | state::READ_ONLY | state::HIDDEN));
        heap.mark(from, count, false);
    }
}

/// What pages are that were given back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Free,
    Promised,
}

/// Gives pages back to the host.
fn leave(first: usize, count: usize, then: Then) {
    {
        let heap = HEAP.lock();
        if (first..first + count).any(|p| heap.state(p) & (state::PRESENT | state::LEAVING) != state::PRESENT)
        {
            // Another thread frees the same memory: the program's mistake, and that thread's work.
            return;
        }
        heap.set_states(first, count, state::PRESENT | state::LEAVING);
    }
    pages::send_back(address(first), count as u64, |i, run, gone| {
        let mut heap = HEAP.lock();
        let (index, run) = (first + i as usize, run as usize);
        let now = match (gone, then) {
            (Gone::Unknown, _) => state::LOST,
            (Gone::Yes, Then::Free) => 0,
            (Gone::Yes, Then::Promised) => state::LAZY | state::PROMISED,
            (Gone::No, _) => state::PRESENT,
        };
        heap.set_states(index, run, now);
        if then == Then::Free && gone != Gone::Unknown {
            heap.mark(index, run, false);
        }
        let at = heap.address(index);
        drop(heap);
        if then == Then::Promised && gone == Gone::No {
            clear(at, run);
        }
    });
}

/// The next run of pages in the same state: first page, number, state.
fn run(from: usize, end: usize) -> Option<(usize, usize, u8)> {
    let heap = HEAP.lock();
    let is = if from < end { heap.state(from) } else { return None };
    let count = (from..end).take_while(|p| heap.state(*p) == is).count();
    Some((from, count, is))
}

fn set(first: usize, count: usize, to: u8) {
    HEAP.lock().set_states(first, count, to);
}

fn address(index: usize) -> u64 {
    HEAP.lock().address(index)
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

    /// State of a page, where memory is dynamic.
    fn state(&self, index: usize) -> u8 {
        debug_assert!(index < self.pages);
        // SAFETY: indices are below `pages`, and there is a byte for each.
        unsafe { *self.states.add(index) }
    }

    fn set_states(&self, first: usize, count: usize, to: u8) {
        debug_assert!(first + count <= self.pages);
        // SAFETY: as above; the lock is held.
        unsafe { core::ptr::write_bytes(self.states.add(first), to, count) };
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
            initialise(at as u64, pages * PAGE, pages * PAGE);
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
        assert_eq!(map_fixed(all + PAGE, PAGE, false, Want::Memory), Err(Errno(17)));
        assert_eq!(map_fixed(all + PAGE, PAGE, true, Want::Memory), Ok(all + PAGE));
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
