//! Serving calls: threads that wait for them, and what happens with each.
//!
//! A request is copied in once, into memory that the thread reuses, and decoded there; the reply is encoded straight
//! into the host's buffer and never read back.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use enclos::abi::{self, CallHeader, IncomingCall, RuntimeTable, status};
use enclos::contract::{Dispatch, Full, Reply, Router, Sink, decode_args};

use crate::runtime::{self, Next, NotInEnclave, Untrusted};
use crate::switchless;

/// Serves one contract until the host says that no more calls come: `Server::new().contract(server).run()`.
///
/// # Errors
/// See [`Server::run`].
pub fn serve(server: impl Dispatch + 'static) -> Result<(), ServeError> {
    Server::new().contract(server).run()
}

/// Serves contracts.
#[derive(Debug, Default)]
pub struct Server {
    router: Router,
    threads: Option<usize>,
    stack_size: Option<usize>,
}

/// Why a server could not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The program does not run in an enclave.
    #[error(transparent)]
    NotInEnclave(#[from] NotInEnclave),
    /// A server ran before. The enclave's contracts are fixed by its first one.
    #[error("this enclave serves already: put all contracts into one `Server`")]
    AlreadyServing,
    /// Not enough threads.
    #[error(
        "thread {number} of {wanted} could not be started ({source}): raise `threads` in enclos.toml, or ask for fewer"
    )]
    Threads {
        /// Which one.
        number: usize,
        /// How many were asked for.
        wanted: usize,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Stack of a serving thread in bytes, unless [`Server::stack_size`] says otherwise.
const STACK_SIZE: usize = 512 * 1024;

impl Server {
    /// A server without contracts.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a contract.
    #[must_use]
    pub fn contract(mut self, server: impl Dispatch + 'static) -> Self {
        self.router.add(server);
        self
    }

    /// How many threads wait for calls, the calling one included: so many calls can run at once. By default all that
    /// the manifest grants and the program has not started itself.
    #[must_use]
    pub fn threads(mut self, count: usize) -> Self {
        self.threads = Some(count);
        self
    }

    /// Stack of each thread in bytes, for all but the calling one; default 512 KiB. It comes from the heap.
    #[must_use]
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.stack_size = Some(bytes);
        self
    }

    /// Serves calls, on the calling thread too, and returns when the host says that no more will come.
    ///
    /// A method that panics fails that call only; the thread goes on.
    ///
    /// # Errors
    /// Outside an enclave, when a server has run before, or when threads asked for cannot be started.
    pub fn run(self) -> Result<(), ServeError> {
        let table = runtime::table()?;
        if ROUTER.set(self.router).is_err() {
            return Err(ServeError::AlreadyServing);
        }
        let router = ROUTER.get_or_init(Router::new);
        for contract in router.contracts() {
            // The description must stay in the image, for `enclos inspect`.
            std::hint::black_box(contract.description);
        }
        runtime::set_nested_handler(table, nested);

        let wanted = self.threads.unwrap_or(runtime::manifest()?.threads as usize).max(1);
        let mut workers = Vec::new();
        for number in 2..=wanted {
            let worker = std::thread::Builder::new()
                .name(format!("enclos-{number}"))
                .stack_size(self.stack_size.unwrap_or(STACK_SIZE))
                .spawn(move || work(table, router));
            match worker {
                Ok(worker) => workers.push(worker),
                // By default: as many as there are.
                Err(_) if self.threads.is_none() => break,
                Err(source) => return Err(ServeError::Threads { number, wanted, source }),
            }
        }
        work(table, router);
        for worker in workers {
            let _ = worker.join();
        }
        Ok(())
    }
}

/// What is served; set once.
static ROUTER: OnceLock<Router> = OnceLock::new();

/// The life of one serving thread.
fn work(table: &RuntimeTable, router: &Router) {
    let (mut status, mut len) = (0, 0);
    while let Next::Call(call) = runtime::next_call(table, status, len) {
        (status, len) = answer(router, &call);
    }
}

/// A call that arrives while this thread waits for a host service.
fn nested(call: &IncomingCall) -> (u64, u64) {
    ROUTER.get().map_or((status::NO_SUCH_METHOD, 0), |router| answer(router, call))
}

/// Serves one call; returns status and length of the reply.
#[inline]
fn answer(router: &Router, call: &IncomingCall) -> (u64, u64) {
    let claimed =
        (Untrusted::claim(call.request, call.request_len), Untrusted::claim(call.reply, call.reply_capacity));
    let (Ok(source), Ok(target)) = claimed else { return (status::BAD_ARGUMENTS, 0) };
    let mut sink = UntrustedSink { target, stash: None };
    let mut request = take_buffer();
    let outcome = match source.read_to(&mut request) {
        Ok(()) => answer_request(router, &request, &mut sink),
        Err(_) => {
            let reason =
                format!("the request of {} bytes does not fit into the enclave's heap", source.len());
            fail(&mut sink, status::NOT_PERMITTED, &reason)
        }
    };
    keep_buffer(request);
    if let Some(stash) = sink.stash {
        STASH.set(stash);
    }
    outcome
}

#[inline]
fn answer_request(router: &Router, request: &[u8], sink: &mut UntrustedSink) -> (u64, u64) {
    if let Some((CallHeader { contract: abi::CONTROL, method }, args)) = CallHeader::split(request)
        && method != abi::CONNECT
    {
        return control(router, method, args, sink);
    }
    serve_request(router, request, sink)
}

/// Serves one request of a contract; a panic becomes a status.
#[inline]
pub(crate) fn serve_request(router: &Router, request: &[u8], sink: &mut dyn Sink) -> (u64, u64) {
    let served = catch_unwind(AssertUnwindSafe(|| {
        let mut reply = Reply::new(sink);
        router.serve(request, &mut reply);
        reply.finish()
    }));
    served.unwrap_or_else(|panic| {
        let message = panic_message(panic.as_ref()).to_owned();
        // The payload's own destructor may panic; that must not take the thread with it.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(panic)));
        fail(sink, status::PANICKED, &message)
    })
}

#[cold]
fn control(router: &Router, method: u32, args: &[u8], sink: &mut UntrustedSink) -> (u64, u64) {
    match method {
        abi::FETCH_REPLY => {
            let stash = STASH.take();
            if sink.put(0, &stash).is_err() {
                let len = stash.len() as u64;
                STASH.set(stash);
                return (status::REPLY_TOO_LARGE, len);
            }
            (status::OK, stash.len() as u64)
        }
        abi::SWITCHLESS => {
            let mut reply = Reply::new(sink);
            if let Some(address) = decode_args::<u64>(args, &mut reply) {
                match switchless::serve_ring(router, address) {
                    Ok(()) => reply.encode(&()),
                    Err(e) => reply.fail(status::NOT_PERMITTED, &e.to_string()),
                }
            }
            reply.finish()
        }
        _ => (status::NO_SUCH_METHOD, 0),
    }
}

fn fail(sink: &mut dyn Sink, status: u64, message: &str) -> (u64, u64) {
    let mut reply = Reply::new(sink);
    reply.fail(status, message);
    reply.finish()
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a value that is not text")
}

/// The host's reply buffer.
struct UntrustedSink {
    target: Untrusted,
    stash: Option<Vec<u8>>,
}

impl Sink for UntrustedSink {
    #[inline]
    fn put(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Full> {
        match self.target.write(offset, bytes) {
            true => Ok(()),
            false => Err(Full),
        }
    }

    fn stash(&mut self, reply: Vec<u8>) {
        self.stash = Some(reply);
    }
}

/// Larger request buffers are not kept.
const KEPT_BYTES: usize = 256 * 1024;

thread_local! {
    /// A request's buffer between calls; a call that nests makes its own.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    /// The reply that did not fit.
    static STASH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

#[inline]
pub(crate) fn take_buffer() -> Vec<u8> {
    BUFFER.take()
}

#[inline]
pub(crate) fn keep_buffer(mut buffer: Vec<u8>) {
    if buffer.capacity() <= KEPT_BYTES {
        buffer.clear();
        // When the thread is ending, the buffer just goes.
        let _ = BUFFER.try_with(|kept| kept.set(buffer));
    }
}
