//! Calls into the enclave.

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::time::Duration;

use enclos::abi::{self, CallHeader, op, refusal, status};
use enclos::contract::{
    DeadlineTransport, Failure, Party, SwitchlessTransport, Transport, decode_reply, encode_request,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::enclave::{Outcome, Shared};
use crate::entry::{Deadline, Registers};
use crate::switchless::SwitchlessEnclave;

/// Carries calls into an enclave, from any thread. The calling OS thread itself enters; when it does so out of a host
/// service that the enclave called, the call runs on top of that same thread inside.
#[derive(Clone, Debug)]
pub struct EnclaveTransport {
    pub(crate) shared: Arc<Shared>,
    limit: Option<Duration>,
}

impl EnclaveTransport {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, limit: None }
    }

    /// Runs `f` under the deadline of this transport, if it has one.
    #[inline]
    pub(crate) fn under_deadline<R>(&self, f: impl FnOnce() -> Result<R, Failure>) -> Result<R, Failure> {
        let Some(limit) = self.limit else { return f() };
        let _deadline = Deadline::set(limit);
        f().map_err(|e| match e {
            // The time that was left may have been less than the limit.
            Failure::DeadlineExceeded { .. } => Failure::DeadlineExceeded { limit },
            e => e,
        })
    }
}

impl Transport for EnclaveTransport {
    const CALLEE: Party = Party::Enclave;

    #[inline]
    fn call<A, R>(&self, header: CallHeader, args: &A) -> Result<R, Failure>
    where
        A: Serialize + ?Sized,
        R: DeserializeOwned,
    {
        let mut buffers = Buffers::take();
        encode_request(header, args, &mut buffers.request)?;
        let (status, len) = self.under_deadline(|| self.shared.call(&mut buffers))?;
        decode_reply(Self::CALLEE, header, status, &buffers.reply[..len])
    }
}

impl DeadlineTransport for EnclaveTransport {
    fn with_deadline(&self, limit: Duration) -> Self {
        Self { shared: self.shared.clone(), limit: Some(limit) }
    }
}

impl SwitchlessTransport for EnclaveTransport {
    type Switchless = SwitchlessEnclave;

    fn switchless(&self) -> Result<SwitchlessEnclave, Failure> {
        SwitchlessEnclave::open(self.clone())
    }
}

/// Request and reply of one call, kept by the thread for the next.
#[derive(Default)]
pub(crate) struct Buffers {
    pub(crate) request: Vec<u8>,
    /// Always as long as it is large.
    pub(crate) reply: Vec<u8>,
}

/// Size of a reply buffer at first.
const REPLY_BYTES: usize = 64 * 1024;
/// Larger buffers are not kept.
const KEPT_BYTES: usize = 1 << 20;

thread_local! {
    /// Empty while they are in use: a call that nests makes its own.
    static KEPT: Cell<Option<Box<Buffers>>> = const { Cell::new(None) };
}

/// Buffers in use; they go back to the thread when dropped.
pub(crate) struct Taken(ManuallyDrop<Box<Buffers>>);

impl Buffers {
    #[inline]
    pub(crate) fn take() -> Taken {
        Taken(ManuallyDrop::new(KEPT.take().unwrap_or_else(Self::boxed)))
    }

    #[cold]
    fn boxed() -> Box<Self> {
        Box::new(Self { request: Vec::with_capacity(4096), reply: vec![0; REPLY_BYTES] })
    }
}

impl std::ops::Deref for Taken {
    type Target = Buffers;

    #[inline]
    fn deref(&self) -> &Buffers {
        &self.0
    }
}

impl std::ops::DerefMut for Taken {
    #[inline]
    fn deref_mut(&mut self) -> &mut Buffers {
        &mut self.0
    }
}

impl Drop for Taken {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: taken once, here; nothing uses the field afterwards.
        let buffers = unsafe { ManuallyDrop::take(&mut self.0) };
        if buffers.request.capacity() <= KEPT_BYTES && buffers.reply.len() <= KEPT_BYTES {
            // When the thread is ending, the buffers just go.
            let _ = KEPT.try_with(|kept| kept.set(Some(buffers)));
        }
    }
}

impl Shared {
    /// One call with the request in the buffers. Returns status and length of the reply, which is then there too.
    #[inline]
    pub(crate) fn call(&self, buffers: &mut Buffers) -> Result<(u64, usize), Failure> {
        if let Some(index) = self.current_service() {
            return self.call_with(index, op::NESTED_CALL, buffers).0;
        }
        let index = self.take_parked()?;
        let (result, is_parked) = self.call_with(index, op::CALL, buffers);
        if is_parked {
            self.park(index);
        }
        result
    }

    /// The call by a certain thread, and whether that thread is ready for another one afterwards.
    #[inline]
    fn call_with(
        &self,
        index: usize,
        op: u64,
        buffers: &mut Buffers,
    ) -> (Result<(u64, usize), Failure>, bool) {
        match self.enter_for(index, op, buffers) {
            Ok((status::REPLY_TOO_LARGE, len)) => self.fetch(index, op, buffers, len),
            Ok((status, len)) if len <= buffers.reply.len() as u64 => (Ok((status, len as usize)), true),
            Ok(_) => (
                Err(Failure::BadReply { callee: Party::Enclave, what: "it is longer than its buffer" }),
                true,
            ),
            Err((failure, is_parked)) => (Err(failure), is_parked),
        }
    }

    /// Gets a reply that did not fit, into a buffer that is large enough.
    #[cold]
    fn fetch(
        &self,
        index: usize,
        op: u64,
        buffers: &mut Buffers,
        len: u64,
    ) -> (Result<(u64, usize), Failure>, bool) {
        let bad = |what| (Err(Failure::BadReply { callee: Party::Enclave, what }), true);
        if len > abi::MAX_MESSAGE {
            return bad("it is larger than any reply may be");
        }
        buffers.reply.resize(len as usize, 0);
        let header = CallHeader { contract: abi::CONTROL, method: abi::FETCH_REPLY };
        buffers.request.clear();
        buffers.request.extend_from_slice(&header.to_bytes());
        match self.enter_for(index, op, buffers) {
            Ok((status::OK, got)) if got == len => (Ok((status::OK, len as usize)), true),
            Ok(_) => bad("it announced a large reply and then did not give it"),
            Err((failure, is_parked)) => (Err(failure), is_parked),
        }
    }

    #[inline]
    fn enter_for(&self, index: usize, op: u64, buffers: &mut Buffers) -> Result<(u64, u64), (Failure, bool)> {
        let registers = Registers {
            rdi: op,
            rsi: buffers.request.as_ptr() as u64,
            rdx: buffers.request.len() as u64,
            r8: buffers.reply.as_mut_ptr() as u64,
            r9: buffers.reply.len() as u64,
        };
        match self.drive(index, registers) {
            Outcome::Parked(status, len) if op == op::CALL => Ok((status, len)),
            Outcome::NestedDone(status, len) if op == op::NESTED_CALL => Ok((status, len)),
            other => Err(self.call_failure(other)),
        }
    }

    #[cold]
    fn call_failure(&self, outcome: Outcome) -> (Failure, bool) {
        match outcome {
            Outcome::Lost => (Failure::DeadlineExceeded { limit: Duration::ZERO }, false),
            Outcome::Ended => (self.ended_failure(), false),
            Outcome::Refused(refusal::NESTING) => (Failure::NestingTooDeep, true),
            Outcome::Refused(code) => (Failure::Refused { code }, true),
            Outcome::Failed(failure) => (failure, true),
            Outcome::ThreadEnded | Outcome::Parked(..) | Outcome::NestedDone(..) => {
                let what = "the thread that served a call left the protocol".to_owned();
                self.finish(enclos::contract::End::Broken { what });
                (self.ended_failure(), false)
            }
        }
    }
}
