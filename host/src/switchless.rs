//! Calls without a transition: see `enclos::ring`.
//!
//! One ring an enclave, made when first asked for, and one OS thread that lends itself to the worker inside. The worker
//! leaves when it has nothing to do for a while; the next call is then an ordinary one and calls it back.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use enclos::abi::{self, CallHeader, status};
use enclos::contract::{DeadlineTransport, Failure, Party, Transport, decode_reply, encode_request};
use enclos::ring::{PAYLOAD, Ring, SLOTS, Slot, state, worker};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::call::{Buffers, EnclaveTransport};
use crate::enclave::Shared;
use crate::entry;
use crate::memory::{Mapping, copy};
use crate::threads::{futex_wait, futex_wake};

/// How often a client looks for its reply before it tries to withdraw the request: some tens of microseconds.
const PATIENCE: u32 = 4_000;

/// Carries calls into an enclave by a shared ring. Where that is not possible at once (no worker, no slot, a large
/// request) a call goes the ordinary way. Deadlines of the transport it was opened from stay in force.
#[derive(Clone, Debug)]
pub struct SwitchlessEnclave {
    ordinary: EnclaveTransport,
    ring: Arc<RingOwner>,
}

/// The switchless part of an enclave's state.
#[derive(Default)]
pub(crate) struct Slots {
    ring: OnceLock<Arc<RingOwner>>,
    opening: Mutex<()>,
}

/// The ring, and which of its slots clients hold.
pub(crate) struct RingOwner {
    memory: Mapping,
    taken: [AtomicBool; SLOTS],
    /// 1: the worker is wanted.
    wanted: AtomicU32,
}

impl SwitchlessEnclave {
    pub(crate) fn open(ordinary: EnclaveTransport) -> Result<Self, Failure> {
        let shared = ordinary.shared.clone();
        let _opening = shared.switchless.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.switchless.ring.get().is_none() {
            let host_failed = |what| {
                move |e: std::io::Error| Failure::HostFailed { what, errno: e.raw_os_error().unwrap_or(0) }
            };
            let ring = Arc::new(RingOwner {
                memory: Mapping::new(size_of::<Ring>()).map_err(host_failed("allocating a ring"))?,
                taken: Default::default(),
                wanted: AtomicU32::new(1),
            });
            let (weak, lent) = (Arc::downgrade(&shared), ring.clone());
            std::thread::Builder::new()
                .name("enclos-switchless".into())
                .spawn(move || lend(&weak, &lent))
                .map_err(host_failed("starting a thread"))?;
            let _ = shared.switchless.ring.set(ring);
        }
        let ring = shared.switchless.ring.get().ok_or_else(|| shared.ended_failure())?.clone();
        Ok(Self { ordinary, ring })
    }

    /// Brings the call through the ring; `None`: it goes the ordinary way.
    #[inline]
    fn exchange(&self, buffers: &mut Buffers) -> Option<Result<(u64, usize), Failure>> {
        if buffers.request.len() > PAYLOAD || self.ordinary.shared.current_service().is_some() {
            return None;
        }
        let ring = self.ring.ring();
        if ring.worker.load(Ordering::Acquire) != worker::PRESENT {
            self.ring.call_worker();
            return None;
        }
        let held = self.ring.hold()?;
        let slot = &ring.slots[held.index];
        // SAFETY: the slot is ours and free, so the worker does not touch its payload; the length was checked.
        unsafe {
            std::ptr::copy_nonoverlapping(buffers.request.as_ptr(), slot.payload(), buffers.request.len())
        };
        match self.post(slot, buffers.request.len()) {
            Posted::Withdrawn => None,
            Posted::Given(failure) => {
                // The worker may still write into the slot: nobody gets it again.
                std::mem::forget(held);
                Some(Err(failure))
            }
            Posted::Done => Some(self.collect(slot, buffers)),
        }
    }

    /// Posts what stands in the slot and waits for the worker.
    #[inline]
    fn post(&self, slot: &Slot, len: usize) -> Posted {
        slot.len.store(len as u32, Ordering::Relaxed);
        slot.state.store(state::REQUEST, Ordering::Release);
        for _ in 0..PATIENCE {
            if slot.state.load(Ordering::Acquire) == state::DONE {
                return Posted::Done;
            }
            std::hint::spin_loop();
        }
        self.post_slowly(slot)
    }

    #[cold]
    fn post_slowly(&self, slot: &Slot) -> Posted {
        let withdrawn =
            slot.state.compare_exchange(state::REQUEST, state::FREE, Ordering::AcqRel, Ordering::Acquire);
        if withdrawn.is_ok() {
            return Posted::Withdrawn;
        }
        // The worker is at it; the method takes its time, and so do we.
        let mut pause = Duration::from_micros(5);
        while slot.state.load(Ordering::Acquire) != state::DONE {
            if self.ordinary.shared.ended.load(Ordering::Acquire) {
                return Posted::Given(self.ordinary.shared.ended_failure());
            }
            if entry::deadline().is_some_and(|at| entry::monotonic_ns() >= at) {
                return Posted::Given(Failure::DeadlineExceeded { limit: Duration::ZERO });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(1));
        }
        Posted::Done
    }

    #[inline]
    fn collect(&self, slot: &Slot, buffers: &mut Buffers) -> Result<(u64, usize), Failure> {
        let (status, len) = (slot.status.load(Ordering::Relaxed), slot.len.load(Ordering::Relaxed) as usize);
        if u64::from(status) == status::REPLY_TOO_LARGE {
            return self.fetch(slot, buffers, len);
        }
        if len > PAYLOAD || len > buffers.reply.len() {
            slot.state.store(state::FREE, Ordering::Release);
            return Err(Failure::BadReply { callee: Party::Enclave, what: "it is longer than its buffer" });
        }
        // SAFETY: the worker is done with the slot; both lengths were checked.
        unsafe { copy(slot.payload(), buffers.reply.as_mut_ptr(), len) };
        slot.state.store(state::FREE, Ordering::Release);
        Ok((u64::from(status), len))
    }

    /// Gets a reply that did not fit into the slot. The worker does not leave while it keeps one.
    #[cold]
    fn fetch(&self, slot: &Slot, buffers: &mut Buffers, len: usize) -> Result<(u64, usize), Failure> {
        let bad = |what| Failure::BadReply { callee: Party::Enclave, what };
        if len as u64 > abi::MAX_MESSAGE {
            return Err(bad("it is larger than any reply may be"));
        }
        buffers.reply.resize(len.max(buffers.reply.len()), 0);
        slot.large_reply.store(buffers.reply.as_mut_ptr() as u64, Ordering::Relaxed);
        slot.large_capacity.store(len as u64, Ordering::Relaxed);
        let header = CallHeader { contract: abi::CONTROL, method: abi::FETCH_REPLY }.to_bytes();
        // SAFETY: as in `exchange`.
        unsafe { std::ptr::copy_nonoverlapping(header.as_ptr(), slot.payload(), header.len()) };
        loop {
            match self.post(slot, header.len()) {
                Posted::Done => break,
                Posted::Given(failure) => return Err(failure),
                // It is busy with another slot: there is no other way to the reply, so ask again.
                Posted::Withdrawn if self.ordinary.shared.ended.load(Ordering::Acquire) => {
                    return Err(self.ordinary.shared.ended_failure());
                }
                Posted::Withdrawn => std::thread::yield_now(),
            }
        }
        let got = (slot.status.load(Ordering::Relaxed), slot.len.load(Ordering::Relaxed) as usize);
        slot.state.store(state::FREE, Ordering::Release);
        match got == (status::OK as u32, len) {
            true => Ok((status::OK, len)),
            false => Err(bad("it announced a large reply and then did not give it")),
        }
    }
}

enum Posted {
    Done,
    /// The request was not taken.
    Withdrawn,
    /// It was taken, and will not be waited for.
    Given(Failure),
}

impl Transport for SwitchlessEnclave {
    const CALLEE: Party = Party::Enclave;

    #[inline]
    fn call<A, R>(&self, header: CallHeader, args: &A) -> Result<R, Failure>
    where
        A: Serialize + ?Sized,
        R: DeserializeOwned,
    {
        let mut buffers = Buffers::take();
        encode_request(header, args, &mut buffers.request)?;
        let (status, len) = self.ordinary.under_deadline(|| match self.exchange(&mut buffers) {
            Some(outcome) => outcome,
            None => self.ordinary.shared.call(&mut buffers),
        })?;
        decode_reply(Self::CALLEE, header, status, &buffers.reply[..len])
    }
}

impl DeadlineTransport for SwitchlessEnclave {
    fn with_deadline(&self, limit: Duration) -> Self {
        Self { ordinary: self.ordinary.with_deadline(limit), ring: self.ring.clone() }
    }
}

impl Slots {
    /// Asks the worker to leave.
    pub(crate) fn stop(&self) {
        if let Some(owner) = self.ring.get() {
            let worker = &owner.ring().worker;
            let _ =
                worker.compare_exchange(worker::PRESENT, worker::STOP, Ordering::SeqCst, Ordering::SeqCst);
        }
    }
}

impl RingOwner {
    fn ring(&self) -> &Ring {
        // SAFETY: the mapping is large enough, page-aligned and zero, which is a valid `Ring`; what changes in it is
        // atomic, or a payload that is only touched through raw pointers by its turn.
        unsafe { &*(self.memory.address() as *const Ring) }
    }

    fn hold(&self) -> Option<Held<'_>> {
        let index =
            self.taken.iter().position(|t| !t.load(Ordering::Relaxed) && !t.swap(true, Ordering::Acquire))?;
        let used = &self.ring().used;
        if used.load(Ordering::Relaxed) <= index as u32 {
            used.fetch_max(index as u32 + 1, Ordering::Release);
        }
        Some(Held { owner: self, index })
    }

    #[cold]
    fn call_worker(&self) {
        if self.wanted.swap(1, Ordering::SeqCst) == 0 {
            futex_wake(&self.wanted, 1);
        }
    }
}

impl std::fmt::Debug for RingOwner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("worker", &self.ring().worker).finish_non_exhaustive()
    }
}

struct Held<'a> {
    owner: &'a RingOwner,
    index: usize,
}

impl Drop for Held<'_> {
    #[inline]
    fn drop(&mut self) {
        self.owner.taken[self.index].store(false, Ordering::Release);
    }
}

/// Lends this OS thread to the worker whenever it is wanted.
fn lend(enclave: &Weak<Shared>, owner: &Arc<RingOwner>) {
    let header = CallHeader { contract: abi::CONTROL, method: abi::SWITCHLESS };
    let address = owner.memory.address() as u64;
    loop {
        let Some(shared) = enclave.upgrade() else { return };
        if shared.ended.load(Ordering::Acquire) {
            return;
        }
        if owner.wanted.swap(0, Ordering::SeqCst) == 0 {
            drop(shared);
            let _ = futex_wait(&owner.wanted, 0, Some(100_000_000));
            continue;
        }
        // When no thread is free or the worker fails, calls go the ordinary way and ask for it again.
        let _: Result<(), Failure> = EnclaveTransport::new(shared).call(header, &address);
        owner.ring().worker.store(worker::ABSENT, Ordering::SeqCst);
    }
}
