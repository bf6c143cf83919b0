//! The worker of the shared ring: see `enclos::ring`.

use std::sync::atomic::Ordering;

use enclos::abi::{self, CallHeader, status};
use enclos::contract::{Full, Router, Sink};
use enclos::ring::{PAYLOAD, Ring, SLOTS, Slot, state, worker};

use crate::runtime::{Untrusted, UntrustedError};
use crate::serve::{keep_buffer, serve_request, take_buffer};

/// How often the worker looks at the ring without finding anything before it leaves: some milliseconds at most, so that
/// a thread is not burnt for a host that has stopped calling.
const IDLE_ROUNDS: u32 = 100_000;

/// Serves the ring at an untrusted address until it is idle or the host asks to stop.
///
/// # Errors
/// When the address does not lie outside the enclave.
pub(crate) fn serve_ring(router: &Router, address: u64) -> Result<(), UntrustedError> {
    Untrusted::claim(address, size_of::<Ring>() as u64)?;
    if !address.is_multiple_of(align_of::<Ring>() as u64) {
        return Err(UntrustedError::NotOutside { address, len: size_of::<Ring>() as u64 });
    }
    // SAFETY: aligned and outside the enclave, so nothing inside is at stake; all fields are atomics or a payload that
    // is only copied by address. Should the host unmap it, the thread faults.
    let ring = unsafe { &*(address as *const Ring) };
    ring.worker.store(worker::PRESENT, Ordering::SeqCst);
    let mut stashes: [Option<Vec<u8>>; SLOTS] = Default::default();
    let mut idle = 0;
    while idle < IDLE_ROUNDS {
        let used = (ring.used.load(Ordering::Relaxed) as usize).min(SLOTS);
        let mut served = false;
        for (slot, stash) in ring.slots[..used].iter().zip(&mut stashes) {
            if slot.state.load(Ordering::Relaxed) == state::REQUEST && take(slot) {
                serve_slot(router, slot, stash);
                served = true;
            }
        }
        if served {
            idle = 0;
            continue;
        }
        if ring.worker.load(Ordering::Relaxed) == worker::STOP {
            break;
        }
        // A reply that waits to be fetched would be lost.
        if stashes.iter().all(Option::is_none) {
            idle += 1;
        }
        std::hint::spin_loop();
    }
    // A client that posts from here on withdraws its request and calls the ordinary way.
    ring.worker.store(worker::ABSENT, Ordering::SeqCst);
    Ok(())
}

/// Takes the request, unless the client has just withdrawn it.
fn take(slot: &Slot) -> bool {
    let taken =
        slot.state.compare_exchange(state::REQUEST, state::RUNNING, Ordering::Acquire, Ordering::Relaxed);
    taken.is_ok()
}

fn serve_slot(router: &Router, slot: &Slot, stash: &mut Option<Vec<u8>>) {
    let len = slot.len.load(Ordering::Relaxed) as usize;
    let (status, len) = match Untrusted::claim(slot.payload() as u64, PAYLOAD as u64) {
        Ok(payload) if len <= PAYLOAD => serve_payload(router, slot, payload.first(len), payload, stash),
        _ => (status::BAD_ARGUMENTS, 0),
    };
    slot.status.store(status as u32, Ordering::Relaxed);
    slot.len.store(len as u32, Ordering::Relaxed);
    slot.state.store(state::DONE, Ordering::Release);
}

fn serve_payload(
    router: &Router,
    slot: &Slot,
    source: Untrusted,
    target: Untrusted,
    stash: &mut Option<Vec<u8>>,
) -> (u64, u64) {
    let mut request = take_buffer();
    let outcome = match source.read_to(&mut request) {
        Err(_) => (status::BAD_ARGUMENTS, 0),
        Ok(()) => match CallHeader::split(&request) {
            Some((CallHeader { contract: abi::CONTROL, method: abi::FETCH_REPLY }, _)) => fetch(slot, stash),
            // Handshakes and ring control go the ordinary way.
            Some((CallHeader { contract: abi::CONTROL, .. }, _)) => (status::NO_SUCH_METHOD, 0),
            _ => serve_request(router, &request, &mut SlotSink { target, stash }),
        },
    };
    keep_buffer(request);
    outcome
}

fn fetch(slot: &Slot, stash: &mut Option<Vec<u8>>) -> (u64, u64) {
    let (address, capacity) =
        (slot.large_reply.load(Ordering::Relaxed), slot.large_capacity.load(Ordering::Relaxed));
    let Some(reply) = stash.take() else { return (status::NO_SUCH_METHOD, 0) };
    match Untrusted::claim(address, capacity) {
        Ok(target) if target.write(0, &reply) => (status::OK, reply.len() as u64),
        _ => (status::BAD_ARGUMENTS, 0),
    }
}

struct SlotSink<'a> {
    target: Untrusted,
    stash: &'a mut Option<Vec<u8>>,
}

impl Sink for SlotSink<'_> {
    fn put(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Full> {
        match self.target.write(offset, bytes) {
            true => Ok(()),
            false => Err(Full),
        }
    }

    fn stash(&mut self, reply: Vec<u8>) {
        *self.stash = Some(reply);
    }
}
