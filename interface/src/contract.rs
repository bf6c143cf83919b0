//! Typed calls across the boundary, the same in both directions.
//!
//! [`macro@crate::interface`] turns a trait into a typed client, a dispatcher for an implementation and a
//! [`Contract`] that names both. This module holds what the generated code and the two sides share: the traits
//! [`Transport`] and [`Dispatch`], the [`Router`] that serves several contracts, the handshake, and the errors.
//!
//! # Wire format
//! A request is a [`CallHeader`] and the arguments as one postcard tuple; a reply is a [status](crate::abi::status)
//! and, with [`status::OK`], the postcard encoding of the result. Nothing here looks at memory that the other side
//! can still change: requests and replies are slices that the transport has copied in.
//!
//! # Handshake
//! Before the first call a client asks for its contract by hash ([`abi::CONNECT`](crate::abi::CONNECT)) and learns
//! the index to put into its calls. Halves built from different sources find out here, by a [`ConnectError`] that
//! names both, and not by arguments that decode into something else.

use alloc::{borrow::ToOwned, boxed::Box, format, string::String, sync::Arc, vec::Vec};
use core::{convert::Infallible, fmt, time::Duration};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::abi::{self, CallHeader, status};

/// What identifies a contract. Generated; one `static` a contract.
#[derive(Debug)]
pub struct Contract {
    /// Name of the trait.
    pub name: &'static str,
    /// Name of the crate that defines it.
    pub crate_name: &'static str,
    /// SHA-256 over the normalised tokens of the trait and of all type definitions in its crate.
    pub hash: [u8; 32],
    /// Names of the methods; a method's number is its place.
    pub methods: &'static [&'static str],
    /// Description as JSON between `\x01ENCLOS-CONTRACT:` and `\x01END`, so that it can be found in a binary.
    pub description: &'static str,
}

/// One of the four parties of DESIGN section 1, for saying who has to act on an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Party {
    /// The program that made the call.
    Caller,
    /// The enclave application.
    Enclave,
    /// The untrusted host process.
    Host,
    /// CPU and kernel, or the emulator.
    Platform,
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Caller => "caller",
            Self::Enclave => "enclave",
            Self::Host => "host",
            Self::Platform => "platform",
        })
    }
}

/// Carries requests to the other side and brings the replies back.
pub trait Transport {
    /// Who answers: the enclave for calls from the host, the host for calls of services.
    const CALLEE: Party;

    /// One call: encodes `args`, waits for the reply and decodes it.
    ///
    /// # Errors
    /// Whatever kept a result from coming back.
    fn call<A, R>(&self, header: CallHeader, args: &A) -> Result<R, Failure>
    where
        A: Serialize + ?Sized,
        R: DeserializeOwned;
}

impl<T: Transport> Transport for &T {
    const CALLEE: Party = T::CALLEE;

    fn call<A, R>(&self, header: CallHeader, args: &A) -> Result<R, Failure>
    where
        A: Serialize + ?Sized,
        R: DeserializeOwned,
    {
        (**self).call(header, args)
    }
}

/// A transport that can bound how long a call may take.
pub trait DeadlineTransport: Transport + Sized {
    /// The same connection; calls over it that take longer fail with [`Failure::DeadlineExceeded`].
    ///
    /// A call given up is not undone: the enclave has one thread less from then on, and locks that the thread held inside
    /// stay held. Where that matters, start the enclave anew.
    #[must_use]
    fn with_deadline(&self, limit: Duration) -> Self;
}

/// A transport that has a switchless counterpart.
pub trait SwitchlessTransport: Transport + Sized {
    /// The counterpart.
    type Switchless: Transport;

    /// Opens it.
    ///
    /// # Errors
    /// When it cannot be set up; ordinary calls may still work.
    fn switchless(&self) -> Result<Self::Switchless, Failure>;
}

/// A generated client.
pub trait Client<T: Transport>: Sized {
    /// The contract it was generated from.
    const CONTRACT: &'static Contract;

    /// Performs the handshake over a transport.
    ///
    /// # Errors
    /// When the other side does not serve exactly this contract, or cannot be reached.
    fn connect(transport: T) -> Result<Self, ConnectError>;
}

/// Serves the calls of one contract. Implemented by generated servers.
pub trait Dispatch: Send + Sync {
    /// The contract served.
    fn contract(&self) -> &'static Contract;

    /// Decodes the arguments of a method, calls it and encodes the result into `reply`. A panic of the method passes
    /// through: whoever calls this decides what becomes of it.
    fn dispatch(&self, method: u32, args: &[u8], reply: &mut Reply<'_>);
}

impl<D: Dispatch + ?Sized> Dispatch for Box<D> {
    fn contract(&self) -> &'static Contract {
        (**self).contract()
    }

    fn dispatch(&self, method: u32, args: &[u8], reply: &mut Reply<'_>) {
        (**self).dispatch(method, args, reply);
    }
}

/// Serves several contracts: answers handshakes and passes each call to the server of its contract.
#[derive(Default)]
pub struct Router {
    servers: Vec<Box<dyn Dispatch>>,
}

impl Router {
    /// A router that serves nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a server. A second one of the same contract replaces the first.
    pub fn add(&mut self, server: impl Dispatch + 'static) {
        let hash = &server.contract().hash;
        match self.servers.iter_mut().find(|s| s.contract().hash == *hash) {
            Some(old) => *old = Box::new(server),
            None => self.servers.push(Box::new(server)),
        }
    }

    /// The contracts served, in the order of their indices.
    pub fn contracts(&self) -> impl Iterator<Item = &'static Contract> + '_ {
        self.servers.iter().map(|s| s.contract())
    }

    /// Serves one request. Panics of the method pass through.
    pub fn serve(&self, request: &[u8], reply: &mut Reply<'_>) {
        let Some((header, args)) = CallHeader::split(request) else {
            return reply.fail(status::BAD_ARGUMENTS, "");
        };
        match self.servers.get(header.contract as usize) {
            Some(server) => server.dispatch(header.method, args, reply),
            None if header.contract == abi::CONTROL && header.method == abi::CONNECT => {
                self.connect(args, reply)
            }
            None => reply.fail(status::NO_SUCH_METHOD, ""),
        }
    }

    fn connect(&self, args: &[u8], reply: &mut Reply<'_>) {
        let Some(asked) = decode_args::<Offer>(args, reply) else { return };
        let index = self.servers.iter().position(|s| s.contract().hash == asked.hash);
        let answer = match index {
            Some(index) => Connected::Index(index as u32),
            None => Connected::Unknown(self.contracts().map(Offer::of).collect()),
        };
        reply.encode(&answer);
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.contracts().map(|c| c.name)).finish()
    }
}

/// A contract as named in a handshake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Name of the trait.
    pub name: String,
    /// Name of the crate that defines it.
    pub crate_name: String,
    /// Its hash.
    pub hash: [u8; 32],
}

impl Offer {
    fn of(contract: &Contract) -> Self {
        Self {
            name: contract.name.to_owned(),
            crate_name: contract.crate_name.to_owned(),
            hash: contract.hash,
        }
    }
}

impl fmt::Display for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of crate {} (", self.name, self.crate_name)?;
        self.hash[..6].iter().try_for_each(|b| write!(f, "{b:02x}"))?;
        f.write_str("…)")
    }
}

/// The answer to [`abi::CONNECT`].
#[derive(Serialize, Deserialize)]
enum Connected {
    Index(u32),
    Unknown(Vec<Offer>),
}

/// Asks the other side for the index of a contract. Generated clients call it.
///
/// # Errors
/// See [`ConnectError`].
pub fn connect<T: Transport>(transport: &T, contract: &Contract) -> Result<u32, ConnectError> {
    let header = CallHeader { contract: abi::CONTROL, method: abi::CONNECT };
    let ours = Offer::of(contract);
    match transport.call::<_, Connected>(header, &ours)? {
        Connected::Index(index) => Ok(index),
        Connected::Unknown(offered) => match offered.iter().find(|o| o.name == ours.name) {
            Some(theirs) => Err(ConnectError::Mismatch {
                ours: Box::new(ours),
                theirs: Box::new(theirs.clone()),
                callee: T::CALLEE,
            }),
            None => Err(ConnectError::NotServed {
                ours: Box::new(ours),
                served: offered.into_iter().map(|o| o.name).collect(),
                callee: T::CALLEE,
            }),
        },
    }
}

/// Where the bytes of a reply go.
pub trait Sink {
    /// Puts `bytes` at `offset`. Offsets only grow by what was put before, or start at 0 again.
    ///
    /// # Errors
    /// When they do not fit.
    fn put(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Full>;

    /// Keeps a reply that did not fit until it is fetched ([`abi::FETCH_REPLY`]).
    fn stash(&mut self, reply: Vec<u8>);
}

/// A reply did not fit into its [`Sink`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the reply buffer is full")]
pub struct Full;

impl Sink for Vec<u8> {
    fn put(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Full> {
        self.truncate(offset);
        self.extend_from_slice(bytes);
        Ok(())
    }

    fn stash(&mut self, reply: Vec<u8>) {
        *self = reply;
    }
}

/// The reply to one call, on its way into a [`Sink`].
pub struct Reply<'a> {
    sink: &'a mut dyn Sink,
    status: u64,
    len: usize,
}

impl<'a> Reply<'a> {
    /// An empty reply.
    pub fn new(sink: &'a mut dyn Sink) -> Self {
        Self { sink, status: status::OK, len: 0 }
    }

    /// Encodes a result: the whole reply.
    #[inline]
    pub fn encode<T: Serialize + ?Sized>(&mut self, value: &T) {
        let staged = Staged { sink: &mut *self.sink, len: 0, staged: [0; STAGE], fill: 0 };
        match postcard::serialize_with_flavor(value, staged) {
            Ok(len) if len as u64 <= abi::MAX_MESSAGE => (self.status, self.len) = (status::OK, len),
            Ok(_) | Err(postcard::Error::SerializeBufferFull) => self.encode_apart(value),
            Err(e) => self.bad_result(e),
        }
    }

    /// Replies with a status other than OK; the message is the payload, cut to what fits.
    #[cold]
    pub fn fail(&mut self, status: u64, message: &str) {
        self.status = status;
        let mut cut = message.len();
        while self.sink.put(0, &message.as_bytes()[..cut]).is_err() {
            cut /= 2;
            while !message.is_char_boundary(cut) {
                cut -= 1;
            }
        }
        self.len = cut;
    }

    /// Status and length in bytes, for [`abi::exit::PARKED`].
    pub fn finish(self) -> (u64, u64) {
        (self.status, self.len as u64)
    }

    /// The reply does not fit: encode once more, into memory of our own, for the caller to fetch.
    #[cold]
    #[inline(never)]
    fn encode_apart<T: Serialize + ?Sized>(&mut self, value: &T) {
        match postcard::to_allocvec(value) {
            Ok(whole) if whole.len() as u64 <= abi::MAX_MESSAGE => {
                (self.status, self.len) = (status::REPLY_TOO_LARGE, whole.len());
                self.sink.stash(whole);
            }
            Ok(whole) => self.fail(
                status::BAD_RESULT,
                &format!("the result has {} bytes, {} are allowed", whole.len(), abi::MAX_MESSAGE),
            ),
            Err(e) => self.bad_result(e),
        }
    }

    #[cold]
    fn bad_result(&mut self, e: postcard::Error) {
        self.fail(status::BAD_RESULT, &format!("the result does not encode: {e}"));
    }
}

impl fmt::Debug for Reply<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").field("status", &self.status).field("len", &self.len).finish_non_exhaustive()
    }
}

/// Size of the stage in which small pieces of a reply gather, so that the sink sees few of them.
const STAGE: usize = 64;

/// Gathers what serde produces byte by byte.
struct Staged<'a> {
    sink: &'a mut dyn Sink,
    len: usize,
    staged: [u8; STAGE],
    fill: usize,
}

impl Staged<'_> {
    fn put(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.sink.put(self.len, bytes).map_err(|Full| postcard::Error::SerializeBufferFull)?;
        self.len += bytes.len();
        Ok(())
    }

    fn flush(&mut self) -> postcard::Result<()> {
        let fill = core::mem::take(&mut self.fill);
        if fill == 0 {
            return Ok(());
        }
        self.sink.put(self.len, &self.staged[..fill]).map_err(|Full| postcard::Error::SerializeBufferFull)?;
        self.len += fill;
        Ok(())
    }
}

impl postcard::ser_flavors::Flavor for Staged<'_> {
    type Output = usize;

    #[inline]
    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        if let Some(room) = self.staged.get_mut(self.fill..self.fill + data.len()) {
            room.copy_from_slice(data);
            self.fill += data.len();
            return Ok(());
        }
        self.flush()?;
        self.put(data)
    }

    #[inline]
    fn try_push(&mut self, data: u8) -> postcard::Result<()> {
        self.try_extend(&[data])
    }

    #[inline]
    fn finalize(mut self) -> postcard::Result<usize> {
        self.flush()?;
        Ok(self.len)
    }
}

/// Encodes a request into `out`, which is emptied first and keeps its capacity between calls.
///
/// # Errors
/// When the arguments do not encode or are too large.
#[inline]
pub fn encode_request<A>(header: CallHeader, args: &A, out: &mut Vec<u8>) -> Result<(), Failure>
where
    A: Serialize + ?Sized,
{
    out.clear();
    out.extend_from_slice(&header.to_bytes());
    postcard::serialize_with_flavor(args, Growing(out)).map_err(not_encodable)?;
    check_request_size(out.len() as u64)
}

/// Encodes a request into a [`Sink`] and returns its length; `None` when it does not fit.
///
/// # Errors
/// When the arguments do not encode or are too large.
#[inline]
pub fn encode_request_to<A>(header: CallHeader, args: &A, sink: &mut dyn Sink) -> Result<Option<u64>, Failure>
where
    A: Serialize + ?Sized,
{
    let mut staged = Staged { sink, len: 0, staged: [0; STAGE], fill: CallHeader::SIZE };
    staged.staged[..CallHeader::SIZE].copy_from_slice(&header.to_bytes());
    match postcard::serialize_with_flavor(args, staged) {
        Ok(len) => check_request_size(len as u64).map(|()| Some(len as u64)),
        Err(postcard::Error::SerializeBufferFull) => Ok(None),
        Err(e) => Err(not_encodable(e)),
    }
}

/// How large a request will be, header included, in bytes.
///
/// # Errors
/// When the arguments do not encode or are too large.
pub fn request_size<A: Serialize + ?Sized>(args: &A) -> Result<u64, Failure> {
    let size =
        postcard::serialize_with_flavor(args, Counting(CallHeader::SIZE)).map_err(not_encodable)? as u64;
    check_request_size(size).map(|()| size)
}

#[cold]
fn not_encodable(e: postcard::Error) -> Failure {
    Failure::NotEncodable { reason: format!("{e}") }
}

#[inline]
fn check_request_size(size: u64) -> Result<(), Failure> {
    match size <= abi::MAX_MESSAGE {
        true => Ok(()),
        false => Err(Failure::RequestTooLarge { size }),
    }
}

struct Growing<'a>(&'a mut Vec<u8>);

impl postcard::ser_flavors::Flavor for Growing<'_> {
    type Output = ();

    #[inline]
    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        self.0.reserve(data.len());
        data.chunks(abi::COPY_BYTES).for_each(|part| self.0.extend_from_slice(part));
        Ok(())
    }

    #[inline]
    fn try_push(&mut self, data: u8) -> postcard::Result<()> {
        self.0.push(data);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

struct Counting(usize);

impl postcard::ser_flavors::Flavor for Counting {
    type Output = usize;

    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        self.0 = self.0.saturating_add(data.len());
        Ok(())
    }

    fn try_push(&mut self, _: u8) -> postcard::Result<()> {
        self.try_extend(&[0])
    }

    fn finalize(self) -> postcard::Result<usize> {
        Ok(self.0)
    }
}

/// Decodes the arguments of a call; on failure says so in `reply`. Generated servers call it.
#[inline]
pub fn decode_args<'a, T: Deserialize<'a>>(args: &'a [u8], reply: &mut Reply<'_>) -> Option<T> {
    match postcard::take_from_bytes(args) {
        Ok((value, [])) => Some(value),
        _ => {
            reply.fail(status::BAD_ARGUMENTS, "");
            None
        }
    }
}

/// Turns status and payload of a reply into a result. Transports call it.
///
/// # Errors
/// The failure that the status stands for.
#[inline]
pub fn decode_reply<R>(callee: Party, header: CallHeader, status: u64, payload: &[u8]) -> Result<R, Failure>
where
    R: DeserializeOwned,
{
    if status == status::OK {
        if let Ok((value, [])) = postcard::take_from_bytes(payload) {
            return Ok(value);
        }
        return Err(Failure::BadReply { callee, what: "its payload does not decode" });
    }
    Err(failure(callee, header, status, payload))
}

#[cold]
fn failure(callee: Party, header: CallHeader, status: u64, payload: &[u8]) -> Failure {
    let message = || String::from_utf8_lossy(payload).into_owned();
    match status {
        status::PANICKED => Failure::Panicked { callee, message: message() },
        status::NO_SUCH_METHOD => {
            Failure::NoSuchMethod { callee, contract: header.contract, method: header.method }
        }
        status::BAD_ARGUMENTS => Failure::BadArguments { callee },
        status::NOT_PERMITTED => Failure::NotPermitted { callee, reason: message() },
        status::BAD_RESULT => Failure::BadResult { callee, reason: message() },
        _ => Failure::BadReply { callee, what: "its status is unknown" },
    }
}

/// The outcome of a method call, seen from a client: the method's own error, or that the call failed as such.
///
/// Clients of methods that return `Result<T, E>` return `Result<T, CallError<E>>`, all others `Result<R, CallError>`.
/// It is an [`Error`](core::error::Error) whenever `E` can be displayed, so `?` works in functions that return
/// `Box<dyn Error>` or `anyhow::Error`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError<E = Infallible> {
    /// The method ran and returned this error.
    Method(E),
    /// The call did not come to a result.
    Failed(Failure),
}

impl<E> CallError<E> {
    /// The method's own error, if that is what happened.
    pub fn method(self) -> Option<E> {
        match self {
            Self::Method(e) => Some(e),
            Self::Failed(_) => None,
        }
    }

    /// Why the call failed as such, if it did.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Method(_) => None,
            Self::Failed(f) => Some(f),
        }
    }
}

impl<E> From<Failure> for CallError<E> {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl<E: fmt::Display> fmt::Display for CallError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Method(e) => e.fmt(f),
            Self::Failed(e) => e.fmt(f),
        }
    }
}

impl<E: fmt::Display + fmt::Debug> core::error::Error for CallError<E> {}

/// Why a call did not come to a result. [`Failure::at_fault`] says who has to act.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The encoded arguments are larger than any call may carry.
    #[error(
        "the arguments have {size} bytes, a call carries at most {}: split them over several calls",
        abi::MAX_MESSAGE
    )]
    RequestTooLarge {
        /// Size of the encoded request.
        size: u64,
    },
    /// The arguments' `Serialize` refused.
    #[error("the arguments do not encode: {reason}")]
    NotEncodable {
        /// What it said.
        reason: String,
    },
    /// The method panicked. Other calls go on.
    #[error("the {callee} panicked: {message}")]
    Panicked {
        /// Which side.
        callee: Party,
        /// The panic's message.
        message: String,
    },
    /// Contract or method unknown at the callee: the connection belongs to another instance.
    #[error("the {callee} has no method {method} of contract {contract}: connect again")]
    NoSuchMethod {
        /// Which side.
        callee: Party,
        /// Index of the contract.
        contract: u32,
        /// Index of the method.
        method: u32,
    },
    /// The callee could not decode the arguments.
    #[error("the {callee} could not decode the arguments: a type's Serialize and Deserialize do not agree")]
    BadArguments {
        /// Which side.
        callee: Party,
    },
    /// The method's result could not be sent.
    #[error("the {callee} could not send its result: {reason}")]
    BadResult {
        /// Which side.
        callee: Party,
        /// Why.
        reason: String,
    },
    /// What came back is not a reply.
    #[error("the reply of the {callee} is not usable: {what}")]
    BadReply {
        /// Which side.
        callee: Party,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The callee does not allow this.
    #[error("not permitted: {reason}")]
    NotPermitted {
        /// Which side refused.
        callee: Party,
        /// Why, and what to change.
        reason: String,
    },
    /// The enclave has ended.
    #[error("the enclave has ended: {0}")]
    Ended(End),
    /// The call took longer than its deadline. The thread inside that served it is given up.
    #[error("no result within {limit:?}; the call was given up, and the enclave has one thread less")]
    DeadlineExceeded {
        /// The deadline.
        limit: Duration,
    },
    /// No thread of the enclave was free in time.
    #[error(
        "no thread of the enclave became free within {waited:?}: raise `threads` in enclos.toml, or call less often at once"
    )]
    Busy {
        /// How long the caller waited.
        waited: Duration,
    },
    /// Calls into the enclave and back nest too deep on one thread.
    #[error("calls nest deeper than {}: break the recursion between enclave and host", abi::MAX_NESTING)]
    NestingTooDeep,
    /// The runtime refused the entry.
    #[error("the enclave refused the entry (refusal {code})")]
    Refused {
        /// The [refusal](crate::abi::refusal).
        code: u64,
    },
    /// The host did not do what a host call asked for.
    #[error("the host failed with error {errno} at {what}")]
    HostFailed {
        /// What was asked.
        what: &'static str,
        /// Its Linux error number.
        errno: i32,
    },
    /// CPU, kernel or emulator refused.
    #[error("the platform failed: {reason}")]
    Platform {
        /// What it said.
        reason: String,
    },
}

impl Failure {
    /// Who has to act.
    pub fn at_fault(&self) -> Party {
        match self {
            Self::RequestTooLarge { .. }
            | Self::NotEncodable { .. }
            | Self::NoSuchMethod { .. }
            | Self::BadArguments { .. }
            | Self::Busy { .. }
            | Self::NotPermitted { .. }
            | Self::NestingTooDeep => Party::Caller,
            Self::Panicked { callee, .. }
            | Self::BadResult { callee, .. }
            | Self::BadReply { callee, .. } => *callee,
            Self::Ended(_) | Self::DeadlineExceeded { .. } => Party::Enclave,
            Self::Refused { .. } | Self::HostFailed { .. } => Party::Host,
            Self::Platform { .. } => Party::Platform,
        }
    }
}

/// How an enclave ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// Its program ended.
    Exited {
        /// The exit status.
        status: i32,
    },
    /// It ended itself after a fault.
    Faulted {
        /// Exception vector (SDM vol. 3A, 6.3.1), or 0x100 for an abort by the program.
        vector: u32,
        /// Index of the thread.
        thread: u32,
        /// What it says about it: in a debug image address and registers.
        text: String,
    },
    /// The host shut it down.
    ShutDown,
    /// Its threads left the protocol; it cannot be entered again.
    Broken {
        /// What was seen.
        what: String,
    },
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited { status } => write!(f, "its program exited with status {status}"),
            Self::Faulted { vector: 0x100, thread, text } => write!(f, "thread {thread} aborted: {text}"),
            Self::Faulted { vector, thread, text } => {
                write!(f, "fault with vector {vector} ({}) in thread {thread}: {text}", vector_name(*vector))
            }
            Self::ShutDown => f.write_str("it was shut down"),
            Self::Broken { what } => write!(f, "{what}"),
        }
    }
}

impl core::error::Error for End {}

fn vector_name(vector: u32) -> &'static str {
    match vector {
        0 => "#DE, division error",
        1 => "#DB, debug",
        3 => "#BP, breakpoint",
        5 => "#BR, bound range",
        6 => "#UD, invalid instruction",
        13 => "#GP, general protection",
        14 => "#PF, page fault",
        16 => "#MF, x87 error",
        17 => "#AC, alignment check",
        19 => "#XM, SIMD error",
        21 => "#CP, control protection",
        _ => "exception",
    }
}

/// Why a client could not connect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Both sides know a contract of this name, but not the same one.
    #[error(
        "contract mismatch: this side was built with {ours}, the {callee} with {theirs}; \
         build both sides again from the same sources of `{}`",
        .ours.crate_name
    )]
    Mismatch {
        /// The contract of this side.
        ours: Box<Offer>,
        /// The contract of the other side.
        theirs: Box<Offer>,
        /// Which the other side is.
        callee: Party,
    },
    /// The other side serves no contract of this name.
    #[error(
        "the {callee} does not serve {ours}; it serves {served:?}: add the server, or connect to what it serves"
    )]
    NotServed {
        /// The contract asked for.
        ours: Box<Offer>,
        /// Names of the contracts served.
        served: Vec<String>,
        /// Which the other side is.
        callee: Party,
    },
    /// The handshake itself failed.
    #[error("the handshake failed: {0}")]
    Failed(#[from] Failure),
}

/// A transport that calls a [`Router`] in the same address space: no enclave, no protection. For unit tests of
/// contracts and of their implementations. Panics of the method pass through.
#[derive(Clone, Debug)]
pub struct Loopback {
    router: Arc<Router>,
}

impl Loopback {
    /// Serves one contract.
    pub fn new(server: impl Dispatch + 'static) -> Self {
        let mut router = Router::new();
        router.add(server);
        Self::of(router)
    }

    /// Serves what a router does.
    pub fn of(router: Router) -> Self {
        Self { router: Arc::new(router) }
    }
}

impl Transport for Loopback {
    const CALLEE: Party = Party::Enclave;

    fn call<A, R>(&self, header: CallHeader, args: &A) -> Result<R, Failure>
    where
        A: Serialize + ?Sized,
        R: DeserializeOwned,
    {
        let (mut request, mut answer) = (Vec::new(), Vec::new());
        encode_request(header, args, &mut request)?;
        let mut reply = Reply::new(&mut answer);
        self.router.serve(&request, &mut reply);
        let (status, _) = reply.finish();
        decode_reply(Self::CALLEE, header, status, &answer)
    }
}
