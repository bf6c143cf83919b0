//! The host: asking it for something, and memory that is its.
//!
//! Nothing else in the runtime touches an address that came from the host.

use core::sync::atomic::{AtomicU64, Ordering};

use enclos::abi::{FRAME_SIZE, exit, hostcall};

use crate::entry;
pub use crate::replies::{Errno, checked};
use crate::thread::{Thread, state};

impl Errno {
    pub const PERM: Self = Self(1);
    pub const NOENT: Self = Self(2);
    pub const SRCH: Self = Self(3);
    pub const INTR: Self = Self(4);
    pub const BADF: Self = Self(9);
    pub const AGAIN: Self = Self(11);
    pub const NOMEM: Self = Self(12);
    pub const FAULT: Self = Self(14);
    pub const NODEV: Self = Self(19);
    pub const INVAL: Self = Self(22);
    pub const NOTTY: Self = Self(25);
    pub const SPIPE: Self = Self(29);
    pub const RANGE: Self = Self(34);
    pub const NOSYS: Self = Self(38);
    pub const TIMEDOUT: Self = Self(110);
    pub const IO: Self = Self(5);
    pub const ACCES: Self = Self(13);
    pub const BUSY: Self = Self(16);
    pub const XDEV: Self = Self(18);
    pub const ROFS: Self = Self(30);
    pub const EXIST: Self = Self(17);
    pub const NOTDIR: Self = Self(20);
    pub const ISDIR: Self = Self(21);
    pub const MFILE: Self = Self(24);
    pub const FBIG: Self = Self(27);
    pub const NOSPC: Self = Self(28);
    pub const PIPE: Self = Self(32);
    pub const NAMETOOLONG: Self = Self(36);
    pub const NOTEMPTY: Self = Self(39);
    pub const NOTSOCK: Self = Self(88);
    pub const DESTADDRREQ: Self = Self(89);
    pub const NOPROTOOPT: Self = Self(92);
    pub const PROTONOSUPPORT: Self = Self(93);
    pub const OPNOTSUPP: Self = Self(95);
    pub const AFNOSUPPORT: Self = Self(97);
    pub const NOTCONN: Self = Self(107);
    pub const INPROGRESS: Self = Self(115);
}

const INTERRUPTED: i64 = -(Errno::INTR.0 as i64);

static BASE: AtomicU64 = AtomicU64::new(0);
static SIZE: AtomicU64 = AtomicU64::new(0);

/// Tells this module where ELRANGE is.
pub fn initialise(base: u64, size: u64) {
    BASE.store(base, Ordering::Relaxed);
    SIZE.store(size, Ordering::Relaxed);
}

/// Is `[at, at + len)` wholly outside ELRANGE, in the lower half, without wrapping?
pub fn is_outside(at: u64, len: u64) -> bool {
    let (base, size) = (BASE.load(Ordering::Relaxed), SIZE.load(Ordering::Relaxed));
    match at.checked_add(len) {
        Some(end) => at != 0 && end <= 1 << 47 && (end <= base || at >= base + size),
        None => false,
    }
}

/// Is it wholly inside?
pub fn is_inside(at: u64, len: u64) -> bool {
    let (base, size) = (BASE.load(Ordering::Relaxed), SIZE.load(Ordering::Relaxed));
    at.checked_add(len).is_some_and(|end| at >= base && end <= base + size)
}

/// A host call by a Linux call: vector registers survive. The result is the host's word.
pub fn call_keeping(me: &mut Thread, number: u64, a: u64, b: u64, c: u64) -> i64 {
    crate::calls::count(enclos::abi::counter::HOST_CALLS);
    me.requests = me.requests.wrapping_add(1);
    me.set_state(state::HOST_CALL, false);
    // SAFETY: the state is set; the only entry that gets in is RETURN.
    let answer = unsafe { entry::enclos_switch_keeping(exit::HOST_CALL, number, a, b, c) }.value as i64;
    // A wait may have been interrupted by a signal of the host; only where the manifest permits some is it asked.
    if answer == INTERRUPTED
        && crate::boot::signals() != 0
        && matches!(number, hostcall::WAIT | hostcall::EPOLL_WAIT | hostcall::POLL)
    {
        crate::calls::signal::ask_host(me);
    }
    answer
}

/// A host call by the enclave library (C calling convention: vector registers are the caller's to save). Typed service
/// calls may have calls nested on top.
pub fn call(me: &mut Thread, number: u64, a: u64, b: u64, c: u64, nestable: bool) -> i64 {
    me.set_state(state::HOST_CALL, nestable);
    // SAFETY: as above, and NESTED_CALL where allowed.
    let answer = unsafe { entry::enclos_switch(exit::HOST_CALL, number, a, b, c) };
    answer.value as i64
}

/// A thread's untrusted frame: checked once, at start, to lie outside.
#[derive(Clone, Copy)]
pub struct Frame(u64);

impl Frame {
    /// The calling thread's.
    pub fn of(thread: &Thread) -> Self {
        Self(thread.frame)
    }

    /// Copies into the frame at an offset; `false` when it does not fit.
    pub fn put(self, offset: u64, from: &[u8]) -> bool {
        let len = from.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > FRAME_SIZE) {
            return false;
        }
        // SAFETY: the frame lies outside ELRANGE (checked at start), the range within the frame.
        unsafe { copy((self.0 + offset) as *mut u8, from.as_ptr(), from.len()) };
        true
    }

    /// Copies out of the frame, once; `false` when it is not that long.
    pub fn get(self, offset: u64, to: &mut [u8]) -> bool {
        let len = to.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > FRAME_SIZE) {
            return false;
        }
        // SAFETY: as above.
        unsafe { copy(to.as_mut_ptr(), (self.0 + offset) as *const u8, to.len()) };
        true
    }
}

/// Reads a structure of plain integers from untrusted memory, once. `None` if it is not wholly outside.
pub fn read_outside<T: Copy + Default>(at: u64) -> Option<T> {
    if !is_outside(at, size_of::<T>() as u64) {
        return None;
    }
    let mut value = T::default();
    // SAFETY: outside ELRANGE; `T` is made of integers, of which all bit patterns are values.
    unsafe { copy((&raw mut value).cast(), at as *const u8, size_of::<T>()) };
    Some(value)
}

/// Copies untrusted memory inside. `false`, with nothing copied, if it is not wholly outside.
pub fn copy_in(at: u64, to: &mut [u8]) -> bool {
    let ok = is_outside(at, to.len() as u64);
    if ok {
        // SAFETY: checked.
        unsafe { copy(to.as_mut_ptr(), at as *const u8, to.len()) };
    }
    ok
}

/// Copies by one instruction that the compiler cannot repeat, split or elide: the other side may be changing the bytes.
///
/// # Safety
/// As `ptr::copy_nonoverlapping`, except that untrusted memory may change meanwhile.
unsafe fn copy(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: the caller's contract; the direction flag is clear by convention.
    unsafe {
        core::arch::asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") len => _,
            options(nostack, preserves_flags));
    }
}
