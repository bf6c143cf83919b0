//! The shared ring of switchless calls: calls without a transition, by a thread inside that polls untrusted memory.
//!
//! The host allocates a [`Ring`] and has a parked thread serve it ([`crate::abi::SWITCHLESS`]). A client takes a slot
//! (bookkeeping of the host, not visible here), writes a request into it and sets [`state::REQUEST`]; the worker takes
//! it ([`state::RUNNING`]), answers in place and sets [`state::DONE`]. A request that nobody has taken yet can be
//! withdrawn by exchanging `REQUEST` for `FREE`: the client then makes an ordinary call. So nobody spins for ever.
//!
//! Everything here is the host's memory. The enclave reads each field once, and copies a request before it looks at it.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicU64};

/// Values of [`Slot::state`].
pub mod state {
    /// No request.
    pub const FREE: u32 = 0;
    /// A request waits.
    pub const REQUEST: u32 = 1;
    /// The worker has taken it.
    pub const RUNNING: u32 = 2;
    /// The reply is there.
    pub const DONE: u32 = 3;
}

/// Values of [`Ring::worker`].
pub mod worker {
    /// No thread serves the ring.
    pub const ABSENT: u32 = 0;
    /// A thread serves the ring.
    pub const PRESENT: u32 = 1;
    /// The thread is asked to leave.
    pub const STOP: u32 = 2;
}

/// Number of slots.
pub const SLOTS: usize = 8;
/// Largest request or reply within a slot, in bytes.
pub const PAYLOAD: usize = 16 * 1024 - 32;

/// The ring.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Ring {
    /// Is there a [`worker`]?
    pub worker: AtomicU32,
    /// How many slots have ever been used: the worker need not look at those above.
    pub used: AtomicU32,
    /// The slots.
    pub slots: [Slot; SLOTS],
}

/// One request or reply. The first cache line holds all of a small one.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct Slot {
    /// Whose turn it is.
    pub state: AtomicU32,
    /// Length of the request, then that of the reply (needed, if too large), in bytes.
    pub len: AtomicU32,
    /// [Status](crate::abi::status) of the reply.
    pub status: AtomicU32,
    /// 0.
    pub reserved: AtomicU32,
    /// For [`crate::abi::FETCH_REPLY`]: untrusted address where a reply goes that did not fit.
    pub large_reply: AtomicU64,
    /// Capacity there.
    pub large_capacity: AtomicU64,
    payload: UnsafeCell<[u8; PAYLOAD]>,
}

impl Slot {
    /// Address of the request or reply.
    pub fn payload(&self) -> *mut u8 {
        self.payload.get().cast()
    }
}
